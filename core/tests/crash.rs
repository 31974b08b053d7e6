//! Nothing that was saved is lost, whatever happens to the process or the disk.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::*;
use mamba_core::Rng;
use mamba_core::train::{Outcome, Stop};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const DIR: &str = "MAMBA_TEST_RUN_DIR";
const STEPS: u64 = 150;
/// Half a megabyte of state, saved at every step, so that many a kill hits a save.
const WIDTH: usize = 3_000;

fn slow_task() -> Perceptron {
    let mut config = config(STEPS);
    config.save_every = 1;
    let mut task = Perceptron::new(&config, WIDTH).unwrap();
    task.pause = Duration::from_millis(2);
    task
}

/// Not a test of its own: the process that the tests below start.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let mut task = slow_task();
    task.stop_at = Some((u64::MAX, Stop::on_signals().unwrap()));
    match train(&mut task, Path::new(&dir)) {
        Ok(report) if report.outcome == Outcome::Interrupted => std::process::exit(130),
        Ok(_) => (),
        Err(error) => {
            eprintln!("child: {error}");
            std::process::exit(1);
        }
    }
}

fn child_command(shell_prefix: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    let exe = std::env::current_exe().unwrap();
    command.arg("-c").arg(format!("{shell_prefix} exec \"$0\" --exact child --nocapture")).arg(exe);
    command.env(DIR, dir).env_remove("RUST_BACKTRACE").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(dir: &Path) -> ExitStatus {
    child_command("", dir).stderr(Stdio::inherit()).status().unwrap()
}

#[test]
fn kills_at_random_instants_change_nothing() {
    let whole = tempfile::tempdir().unwrap();
    assert!(finish(whole.path()).success());

    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut kills, mut torn) = (0, 0);
    for round in 0..12 {
        let mut child = child_command("", dir.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + rng.below(200) as u64));
        let patience = Instant::now() + Duration::from_secs(2);
        while round % 2 == 1 && !is_saving(dir.path(), child.id()) && Instant::now() < patience {
            // every other time wait for a save to begin
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        torn += u32::from(is_saving(dir.path(), child.id()));
        let state = dir.path().join("optim.safetensors");
        if state.exists() {
            bits(&state); // readable at every instant
        }
    }
    println!("{kills} kills, {torn} of them while a file was being written");
    assert!(kills >= 2, "the run ended before it could be killed");
    assert!(finish(dir.path()).success());
    assert_same_run(whole.path(), dir.path());
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 5, "no temporary file stays");
}

#[test]
fn sigterm_saves_and_exits_130() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child_command("", dir.path()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !dir.path().join("optim.safetensors").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    resumes_to_the_end(dir.path());
}

/// Whether that process has a temporary file in the folder, or had when it died.
fn is_saving(dir: &Path, process: u32) -> bool {
    let ending = format!(".{process}.tmp");
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name());
    names.into_iter().any(|name| name.to_string_lossy().ends_with(&ending))
}

/// A file may grow no further in the middle of a save. The shell ignores the signal, so the write fails instead.
#[test]
fn a_write_that_fails_half_way_keeps_the_earlier_save() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = slow_task();
    first.stop_at = Some((20, Stop::new()));
    train(&mut first, dir.path()).unwrap();
    let saved = bits(&dir.path().join("optim.safetensors"));
    let child = child_command("trap '' XFSZ; ulimit -f 150;", dir.path()).output().unwrap();
    assert_eq!(child.status.code(), Some(1), "{}", String::from_utf8_lossy(&child.stderr));
    assert!(bits(&dir.path().join("optim.safetensors")) == saved);
    resumes_to_the_end(dir.path());
}

#[test]
fn a_full_disk_and_a_read_only_one_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Tmpfs::new(dir.path(), "size=8m") else {
        println!("skipped: mounting a tmpfs needs root");
        return;
    };
    let run = dir.path().join("run");
    let mut first = slow_task();
    first.stop_at = Some((20, Stop::new()));
    train(&mut first, &run).unwrap();
    let saved = bits(&run.join("optim.safetensors"));

    let ballast = dir.path().join("ballast");
    let _ = std::fs::write(&ballast, vec![1u8; 16 << 20]);
    let error = train(&mut slow_task(), &run).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("No space left"), "{error}: {cause}");
    assert!(bits(&run.join("optim.safetensors")) == saved);
    std::fs::remove_file(ballast).unwrap();

    assert!(mount.remount("ro"));
    let error = train(&mut slow_task(), &run).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("Read-only"), "{error}: {cause}");
    assert!(bits(&run.join("optim.safetensors")) == saved);
    assert!(mount.remount("rw"));
    resumes_to_the_end(&run);
}

fn resumes_to_the_end(dir: &Path) {
    train(&mut slow_task(), dir).unwrap();
    let whole = tempfile::tempdir().unwrap();
    train(&mut slow_task(), whole.path()).unwrap();
    assert_same_run(whole.path(), dir);
}

/// A small file system of its own, unmounted when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn new(dir: &'a Path, options: &str) -> Option<Self> {
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], dir).then_some(Self(dir))
    }

    fn remount(&self, mode: &str) -> bool {
        mount(&["-o", &format!("remount,{mode}")], self.0)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

fn mount(args: &[&str], dir: &Path) -> bool {
    Command::new("mount").args(args).arg(dir).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
