#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! | module | for |
//! |---|---|
//! | [`params`], [`init`] | a model's parameters: fresh, loaded for training, loaded for inference |
//! | [`mamba1`], [`mamba2`], [`mamba3`], [`s4d`], [`mixer`] | the mixers, and the choice between them |
//! | [`bidirectional`], [`directions`] | mixers that see both sides |
//! | [`scan_order`] | paths over a picture |
//! | [`block`], [`backbone`], [`nn`] | what is built around them |
//! | `lm`, `text`, `generate` | causal language models, tokenizers, sampling (feature `lm`) |
//! | [`quant`], [`lora`], [`memory`] | small weights, adapters, managing states |
//! | [`recompute`] | gradients with less memory |
//! | [`checkpoint`] | Hugging Face style folders in and out, PyTorch files in |
//! | [`rng`] | seeded streams; dropout |
//! | [`device`] | `auto`, `cpu`, `cuda:N` |
//! | `optim` | gradients, AdamW, schedules, moving average (feature `train`) |
//! | `train`, `run_folder` | the loop, and the folder that it leaves (feature `train`) |
//! | `plot` | pictures as SVG or PNG (feature `plot`) |
//! | `cli`, `progress` | shared flags, exit codes, progress (feature `cli`) |

pub mod backbone;
pub mod bidirectional;
pub mod block;
pub mod checkpoint;
pub mod device;
pub mod directions;
pub mod error;
pub mod files;
#[cfg(feature = "lm")]
pub mod generate;
pub mod init;
mod linalg;
#[cfg(feature = "lm")]
pub mod lm;
pub mod lora;
pub mod mamba1;
pub mod mamba2;
pub mod mamba3;
pub mod memory;
pub mod mixer;
pub mod nn;
pub mod params;
pub mod quant;
pub mod recompute;
pub mod rng;
pub mod s4d;
pub mod scan_order;
#[cfg(feature = "lm")]
pub mod text;

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "train")]
pub mod optim;
#[cfg(feature = "plot")]
pub mod plot;
#[cfg(any(feature = "train", feature = "cli"))]
pub mod progress;
#[cfg(feature = "train")]
pub mod run_folder;
#[cfg(feature = "train")]
pub mod train;

pub use backbone::{Backbone, BackboneConfig, BackboneState};
pub use bidirectional::BiMamba;
pub use block::Block;
pub use checkpoint::Checkpoint;
pub use device::DeviceChoice;
pub use directions::{Bidirectional, Scheme};
pub use error::{Error, Result};
pub use init::{Init, StateInit};
pub use lora::LoraConfig;
pub use mamba1::{Mamba1, Mamba1Config, Mamba1State};
pub use mamba2::{Mamba2, Mamba2Config, Mamba2State};
pub use mamba3::{Mamba3, Mamba3Config, Mamba3State};
pub use mixer::{Mixer, MixerConfig, MixerState};
pub use params::{Param, ParamBuilder, Params};
pub use quant::WeightFormat;
pub use rng::{Rng, dropout};
pub use s4d::{S4d, S4dConfig, S4dMixer, S4dState};
