//! Fused, differentiable Mamba kernels for candle.
#![doc = include_str!("../README.md")]

pub mod causal_conv1d;
#[cfg(feature = "testing")]
pub mod ceilings;
pub mod complex_scan;
pub mod conv2d;
pub mod cross_entropy;
mod fused;
pub mod gelu;
mod gpu;
pub mod instance_norm;
pub mod linear;
mod matrix;
pub mod norm;
pub mod segments;
pub mod selective_scan;
mod shared;
mod simd;
pub mod ssd;
pub mod team;
#[cfg(feature = "testing")]
pub mod testing;
pub mod top_k;

pub use causal_conv1d::{CausalConv1d, causal_conv1d_update};
pub use complex_scan::ComplexScan;
pub use conv2d::{Conv2d, conv_transpose2d, conv2d};
pub use cross_entropy::linear_cross_entropy;
pub use gelu::gelu;
pub use gpu::{explain_gpu_memory, open_gpu, peak_gpu_memory};
pub use instance_norm::instance_norm;
pub use linear::compact::{linear_compact, quantize_rows};
pub use linear::linear;
pub use norm::Norm;
pub use segments::{Segment, Segments};
pub use selective_scan::{SelectiveScan, selective_state_update};
pub use ssd::{Ssd, ssd_state_update};
pub use top_k::top_k;
