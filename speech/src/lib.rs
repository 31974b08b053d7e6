#![doc = include_str!("../README.md")]

pub mod audio;
pub mod checkpoint;
pub mod config;
pub mod discriminator;
pub mod enhance;
mod error;
pub mod losses;
pub mod metrics;
pub mod mixture;
pub mod model;
pub mod pcs;
mod products;
pub mod sample;
pub mod separation;
pub mod spectrogram;
pub mod spectrum;
pub mod stft;
pub mod stream;
pub mod tagging;
pub mod task;

pub use checkpoint::{Checkpoint, SeMambaCheckpoint, SeparatorCheckpoint, TaggerCheckpoint};
pub use config::{Config, ModelConfig};
pub use enhance::Enhancer;
pub use error::{Error, Result};
pub use model::SeMamba;
pub use stream::Stream;
