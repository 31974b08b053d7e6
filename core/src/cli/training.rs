//! What commands that train share: flags, the run folder, the end of an interrupted run.

use super::{HintExt, INTERRUPTED, SettingsArgs};
use crate::Error;
use crate::run_folder::RunFolder;
use crate::train::{Console, TrainConfig};
use std::path::Path;
use std::process::ExitCode;

/// Flags of a command that trains. Flatten it beside [`CommonArgs`](super::CommonArgs).
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TrainingArgs {
    /// Go on where the run in --out was saved
    #[arg(long)]
    pub resume: bool,

    /// Stop after so many minutes, saved and evaluated
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,

    /// Examples in a batch
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,

    /// Highest learning rate
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,

    /// Seed, file and single settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

impl TrainingArgs {
    /// Replaces what the flags say.
    pub fn apply(&self, train: &mut TrainConfig) {
        train.seed = self.settings.seed.unwrap_or(train.seed);
        train.batch_size = self.batch.unwrap_or(train.batch_size);
        train.learning_rate = self.learning_rate.unwrap_or(train.learning_rate);
        train.max_minutes = self.minutes.or(train.max_minutes);
    }

    /// The folder of the run: a new one, or with `--resume` the one that is there.
    pub fn folder(&self, out: &Path) -> anyhow::Result<RunFolder> {
        open_run(out, self.resume)
    }
}

/// A new run folder, or the one that is there to go on with.
pub fn open_run(out: &Path, resume: bool) -> anyhow::Result<RunFolder> {
    match resume {
        true => Ok(RunFolder::resume(out)?),
        false => match RunFolder::create(out) {
            Err(taken @ Error::RunFolder { .. }) => Err(taken).hint("--resume goes on with it"),
            other => Ok(other?),
        },
    }
}

/// Says how an interrupted run goes on; its exit code.
pub fn interrupted(console: &Console, out: &Path) -> ExitCode {
    console.note(&format!("saved in {}; the same command with --resume goes on", out.display()));
    ExitCode::from(INTERRUPTED)
}
