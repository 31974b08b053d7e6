//! Batches of recordings: where each result goes, and what came of all of them.

use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format, INTERRUPTED};
use mamba_core::train::Stop;
use mamba_datasets::job::Shard;
use mamba_speech::audio::files_in;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A recording and the place of its result, a `.wav`.
pub(crate) struct Recording {
    pub(crate) input: PathBuf,
    pub(crate) output: PathBuf,
}

/// Every recording, and a place below `out` for each, in which sub-folders are kept; two of one name are refused before any
/// work.
pub(crate) fn below(inputs: &[PathBuf], out: &Path) -> Result<Vec<Recording>> {
    let mut recordings = Vec::new();
    for path in inputs {
        let (root, files) = match path.is_dir() {
            true => (path.as_path(), files_in(path)?),
            false => (path.parent().unwrap_or(Path::new("")), vec![path.clone()]),
        };
        for input in files {
            let relative = input.strip_prefix(root).unwrap_or(&input);
            recordings.push(Recording { output: out.join(relative).with_extension("wav"), input });
        }
    }
    let mut taken: BTreeMap<&Path, &Path> = BTreeMap::new();
    for recording in &recordings {
        if let Some(first) = taken.insert(&recording.output, &recording.input) {
            let (a, b, out) = (first.display(), recording.input.display(), recording.output.display());
            let problem = format!("{a} and {b} would both become {out}: write them into two folders");
            return Err(mamba_core::Error::Config(problem).into());
        }
    }
    Ok(recordings)
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
                    eprintln!("{}: {}", recording.output.display(), one.describe());
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
