//! What every binary shares: flags, settings from file and flags, exit codes, messages.
//!
//! ```no_run
//! use clap::Parser;
//! use mamba_core::cli::{CommonArgs, run_main};
//! use std::process::ExitCode;
//!
//! #[derive(Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     common: CommonArgs,
//! }
//!
//! fn main() -> ExitCode {
//!     run_main(|| {
//!         let args = Args::parse();
//!         let device = args.common.start()?;
//!         println!("{device:?}");
//!         Ok(ExitCode::SUCCESS)
//!     })
//! }
//! ```

mod messages;
mod process;
mod settings;
#[cfg(feature = "train")]
mod training;

pub use crate::progress::{Format, Progress, progress};
pub use messages::{HintExt, Hinted, INTERRUPTED, USAGE, run_main};
pub use process::{peak_memory, tune_allocator, tune_candle};
pub use settings::resolve;
#[cfg(feature = "train")]
pub use training::{TrainingArgs, interrupted, open_run};

use crate::{DeviceChoice, Error, Result};
use candle_core::{DType, Device};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// What `--dtype` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DTypeChoice {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

impl From<DTypeChoice> for DType {
    fn from(choice: DTypeChoice) -> Self {
        match choice {
            DTypeChoice::F32 => Self::F32,
            DTypeChoice::Bf16 => Self::BF16,
        }
    }
}

/// Flags that all commands share; flatten it into the command's own.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE", help_heading = "Common options")]
    pub device: DeviceChoice,

    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t, value_name = "DTYPE", help_heading = "Common options")]
    pub dtype: DTypeChoice,

    /// Compute threads [default: one per physical core that this process may use]
    #[arg(long, value_name = "N", help_heading = "Common options")]
    pub threads: Option<std::num::NonZeroUsize>,

    /// Results for people, or one JSON object per line on stdout
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Common options")]
    pub format: Format,

    /// No progress on stderr
    #[arg(long, help_heading = "Common options")]
    pub quiet: bool,
}

/// Flags of commands that have settings beyond their flags: training. Flatten it beside [`CommonArgs`].
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SettingsArgs {
    /// Seed of everything random [default: the settings' own]
    #[arg(long, value_name = "SEED", help_heading = "Settings")]
    pub seed: Option<u64>,

    /// Settings as a JSON file; they replace the preset's
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    pub config: Option<PathBuf>,

    /// One setting, for example --set train.steps=500; replaces the file's; repeatable
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Settings")]
    pub set: Vec<String>,
}

impl SettingsArgs {
    /// The preset, overlaid with `--config` and then with each `--set`.
    pub fn resolve<T: Serialize + DeserializeOwned>(&self, preset: &T) -> Result<T> {
        resolve(preset, self.config.as_deref(), &self.set)
    }
}

impl CommonArgs {
    /// Sets up allocator and threads and opens the device. Call it before any tensor is made; again is harmless.
    pub fn start(&self) -> Result<Device> {
        tune_allocator();
        tune_candle();
        process::set_threads(self.threads.map(usize::from))?;
        let device = self.device.open()?;
        if self.dtype == DTypeChoice::Bf16 && device.is_cpu() {
            return Err(Error::Config("--dtype bf16 needs a CUDA device; on the CPU there is f32".into()));
        }
        Ok(device)
    }

    /// The type to compute in.
    pub fn dtype(&self) -> DType {
        self.dtype.into()
    }

    /// A progress display that honours `--quiet`.
    pub fn progress(&self, len: Option<u64>, unit: &str) -> Progress {
        progress(len, unit, self.quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        common: CommonArgs,
        #[command(flatten)]
        settings: SettingsArgs,
    }

    #[test]
    fn flags_parse_and_wrong_ones_are_refused() {
        Args::command().debug_assert();
        let flags =
            "x --device cuda:1 --dtype bf16 --threads 2 --seed 7 --format json --quiet --set a=1 --set b=2";
        let Args { common: args, settings } = Args::try_parse_from(flags.split(' ')).unwrap();
        assert_eq!((args.device, args.dtype()), (DeviceChoice::Cuda(1), DType::BF16));
        assert_eq!(
            (args.threads.map(usize::from), settings.seed, args.format),
            (Some(2), Some(7), Format::Json)
        );
        assert_eq!((args.quiet, settings.set.len()), (true, 2));
        let plain = Args::try_parse_from(["x"]).unwrap();
        let defaults = (plain.common.device, plain.common.dtype(), plain.settings.seed);
        assert_eq!(defaults, (DeviceChoice::Auto, DType::F32, None));
        for wrong in ["--device gpu", "--dtype f16", "--threads 0", "--format xml"] {
            let error = Args::try_parse_from(format!("x {wrong}").split(' ')).err().unwrap();
            assert_eq!(error.exit_code(), i32::from(USAGE), "{wrong}");
        }
    }
}
