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

pub use crate::progress::{Format, Progress, progress};
pub use messages::{HintExt, Hinted, INTERRUPTED, USAGE, run_main};
pub use process::tune_allocator;
pub use settings::resolve;

use crate::{DeviceChoice, Result};
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

    /// Seed of everything random [default: the settings' own]
    #[arg(long, value_name = "SEED", help_heading = "Common options")]
    pub seed: Option<u64>,

    /// Results for people, or one JSON object per line on stdout
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Common options")]
    pub format: Format,

    /// No progress on stderr
    #[arg(long, help_heading = "Common options")]
    pub quiet: bool,

    /// Settings as a JSON file; they replace the preset's
    #[arg(long, value_name = "FILE", help_heading = "Common options")]
    pub config: Option<PathBuf>,

    /// One setting, for example --set train.steps=500; replaces the file's; repeatable
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Common options")]
    pub set: Vec<String>,
}

impl CommonArgs {
    /// Sets up allocator and threads and opens the device. Call it once, before any tensor is made.
    pub fn start(&self) -> Result<Device> {
        tune_allocator();
        process::set_threads(self.threads.map(usize::from))?;
        self.device.open()
    }

    /// The preset, overlaid with `--config` and then with each `--set`.
    pub fn settings<T: Serialize + DeserializeOwned>(&self, preset: &T) -> Result<T> {
        resolve(preset, self.config.as_deref(), &self.set)
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
    }

    #[test]
    fn flags_parse_and_wrong_ones_are_refused() {
        Args::command().debug_assert();
        let flags =
            "x --device cuda:1 --dtype bf16 --threads 2 --seed 7 --format json --quiet --set a=1 --set b=2";
        let args = Args::try_parse_from(flags.split(' ')).unwrap().common;
        assert_eq!((args.device, args.dtype()), (DeviceChoice::Cuda(1), DType::BF16));
        assert_eq!((args.threads.map(usize::from), args.seed, args.format), (Some(2), Some(7), Format::Json));
        assert_eq!((args.quiet, args.set.len()), (true, 2));
        let plain = Args::try_parse_from(["x"]).unwrap().common;
        assert_eq!((plain.device, plain.dtype(), plain.seed), (DeviceChoice::Auto, DType::F32, None));
        for wrong in ["--device gpu", "--dtype f16", "--threads 0", "--format xml"] {
            let error = Args::try_parse_from(format!("x {wrong}").split(' ')).err().unwrap();
            assert_eq!(error.exit_code(), i32::from(USAGE), "{wrong}");
        }
    }
}
