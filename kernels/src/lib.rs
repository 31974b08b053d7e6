//! Fused, differentiable Mamba kernels for candle.
#![doc = include_str!("../README.md")]

mod fused;
pub mod segments;
pub mod selective_scan;
mod shared;
mod simd;
#[cfg(feature = "testing")]
pub mod testing;

pub use segments::{Segment, Segments};
pub use selective_scan::{SelectiveScan, selective_state_update};
