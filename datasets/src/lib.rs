#![doc = include_str!("../README.md")]

pub mod atomic;
pub mod batch;
#[cfg(feature = "cli")]
pub mod cli;
mod error;
#[cfg(any(feature = "job", feature = "registry"))]
mod hash;
#[cfg(feature = "job")]
pub mod job;
pub mod prefetch;
#[cfg(feature = "registry")]
pub mod registry;
pub mod sample;
pub mod split;
mod windows;

pub use atomic::AtomicFile;
pub use batch::{Batch, Batches, InOrder, Layout, Limits, batches, stream};
pub use error::{Error, Result};
pub use prefetch::{Prefetch, prefetch};
pub use sample::{Sample, sample, samples};
pub use split::{Fold, Fractions, GenomeSplit, IndexSplit, Interval, genome_split, index_split, k_fold};
pub use windows::Windows;
