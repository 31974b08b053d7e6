//! Fused, differentiable Mamba kernels for candle.
#![doc = include_str!("../README.md")]

pub mod causal_conv1d;
mod fused;
mod gpu;
pub mod linear;
pub mod norm;
pub mod segments;
pub mod selective_scan;
mod shared;
mod simd;
#[cfg(feature = "testing")]
pub mod testing;

pub use causal_conv1d::{CausalConv1d, causal_conv1d_update};
pub use linear::linear;
pub use norm::Norm;
pub use segments::{Segment, Segments};
pub use selective_scan::{SelectiveScan, selective_state_update};
