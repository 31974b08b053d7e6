//! Batches of recordings: where each result goes, and what came of all of them.

use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format, INTERRUPTED};
use mamba_core::train::Stop;
use mamba_datasets::job::Shard;
use mamba_speech::audio::{files_in_except, is_audio};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A recording and the places of its results, each a `.wav`.
pub(crate) struct Recording {
    pub(crate) input: PathBuf,
    pub(crate) outputs: Vec<PathBuf>,
}

/// Every recording, and places below `out` for each, in which sub-folders are kept: those that `results` makes of the name
/// of the recording. What lies below `out` already is no recording.
pub(crate) fn below(
    inputs: &[PathBuf],
    out: &Path,
    results: impl Fn(PathBuf) -> Vec<PathBuf>,
) -> Result<Vec<Recording>> {
    if is_audio(out) && !out.is_dir() {
        let problem = format!("--out {}: expected a folder, this is the name of a sound file", out.display());
        return Err(mamba_core::Error::Config(problem).into());
    }
    let mut recordings = Vec::new();
    for path in inputs {
        let (root, files) = match path.is_dir() {
            true => (path.as_path(), files_in_except(path, Some(out))?),
            false => (path.parent().unwrap_or(Path::new("")), vec![path.clone()]),
        };
        for input in files {
            let relative = input.strip_prefix(root).unwrap_or(&input);
            let outputs = results(out.join(relative).with_extension("wav"));
            recordings.push(Recording { outputs, input });
        }
    }
    refuse_clashes(&recordings)?;
    Ok(recordings)
}

/// Refuses, before any work, results that would take the place of a recording or of each other.
pub(crate) fn refuse_clashes(recordings: &[Recording]) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let inputs: BTreeSet<PathBuf> = recordings.iter().map(|r| real(&r.input)).collect();
    let mut taken: BTreeMap<&Path, &Path> = BTreeMap::new();
    for Recording { input, outputs } in recordings {
        for output in outputs {
            let (from, to) = (input.display(), output.display());
            let problem = if inputs.contains(&real(output)) {
                format!("{to}: the result of {from} would replace a recording: name another place with --out")
            } else if let Some(first) = taken.insert(output, input) {
                format!("{} and {from} would both become {to}: write them into two folders", first.display())
            } else {
                continue;
            };
            return Err(mamba_core::Error::Config(problem).into());
        }
    }
    Ok(())
}

/// Sound that was processed, and the time it took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) recordings: u64,
    pub(crate) seconds: f64,
    pub(crate) took: f64,
    /// Samples that were limited to full scale.
    pub(crate) clipped: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.recordings += other.recordings;
        self.seconds += other.seconds;
        self.took += other.took;
        self.clipped += other.clipped;
    }

    /// Seconds of work for a second of sound.
    fn real_time_factor(&self) -> f64 {
        self.took / self.seconds.max(1e-9)
    }

    fn describe(&self) -> String {
        let clipped = match self.clipped {
            0 => String::new(),
            n => format!(", {n} samples limited to full scale"),
        };
        format!(
            "{:.1} s of sound in {:.1} s, real-time factor {:.3}{clipped}",
            self.seconds,
            self.took,
            self.real_time_factor()
        )
    }
}

/// Makes all results of a shard; `make` gives nothing for one that stands already. A recording that fails is reported, and
/// the others go on.
pub(crate) fn batch(
    recordings: &[Recording],
    shard: Shard,
    common: &CommonArgs,
    mut make: impl FnMut(&Recording) -> Result<Option<Totals>>,
) -> Result<ExitCode> {
    let stop = Stop::on_signals()?;
    let ours: Vec<&Recording> =
        recordings.iter().enumerate().filter(|(i, _)| shard.owns(*i)).map(|(_, r)| r).collect();
    let mut totals = Totals::default();
    let (mut finished, mut failed) = (0, 0);
    for recording in &ours {
        if stop.requested() {
            break;
        }
        match make(recording) {
            Ok(None) => finished += 1,
            Ok(Some(one)) => {
                if !common.quiet {
                    let names: Vec<String> =
                        recording.outputs.iter().map(|path| path.display().to_string()).collect();
                    eprintln!("{}: {}", names.join(", "), one.describe());
                }
                totals.add(&one);
            }
            // With one recording, its error is the program's.
            Err(error) if ours.len() == 1 => return Err(error),
            Err(error) => {
                failed += 1;
                eprintln!("error: {error:#}");
            }
        }
    }
    let summary = serde_json::json!({
        "written": totals.recordings, "already_there": finished, "failed": failed,
        "seconds": totals.seconds, "real_time_factor": totals.real_time_factor(),
    });
    match common.format {
        Format::Json => writeln!(std::io::stdout(), "{summary}")?,
        Format::Human if ours.len() > 1 && !common.quiet => {
            eprintln!(
                "{} written, {finished} already there, {failed} failed; {}",
                totals.recordings,
                totals.describe()
            );
        }
        Format::Human => (),
    }
    Ok(match (stop.requested(), failed) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}
