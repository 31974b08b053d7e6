//! Everything that the models of mamba-zoo share: parameters and their initial values, checkpoints, seeded randomness,
//! devices; with feature `train` the optimizer, the training loop and the run folder; with feature `cli` the flags
//! and messages of the binaries.
//!
//! | module | for |
//! |---|---|
//! | [`params`], [`init`] | a model's parameters: fresh, loaded for training, loaded for inference |
//! | [`checkpoint`] | Hugging Face style folders in and out, PyTorch files in |
//! | [`rng`] | seeded streams; dropout |
//! | [`device`] | `auto`, `cpu`, `cuda:N` |
//! | `optim` | gradients, AdamW, schedules, moving average (feature `train`) |
//! | `train`, `run_folder` | the loop, and the folder that it leaves (feature `train`) |
//! | `cli`, `progress` | shared flags, exit codes, progress (feature `cli`) |

pub mod checkpoint;
pub mod device;
pub mod error;
pub mod files;
pub mod init;
pub mod params;
pub mod rng;

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "train")]
pub mod optim;
#[cfg(any(feature = "train", feature = "cli"))]
pub mod progress;
#[cfg(feature = "train")]
pub mod run_folder;
#[cfg(feature = "train")]
pub mod train;

pub use device::DeviceChoice;
pub use error::{Error, Result};
pub use init::Init;
pub use params::{Param, ParamBuilder, Params};
pub use rng::{Rng, dropout};

// Blocks: mixers, norms, backbone, language model.
