//! Tagging: which of some classes a clip of sound belongs to, by Audio Mamba.
//!
//! Clips come from a folder whose file names tell the class, or from a table; any format that [`crate::audio`] reads. What
//! is shared by clips that must not lie on both sides of a split, as their speaker, is their group.

pub mod augment;
mod clips;
pub mod features;
mod model;
pub mod svm;
mod tagger;
mod task;

pub use clips::{Clip, Clips, NamePattern};
pub use model::{AudioMamba, Embedding, Pooling, TaggerConfig};
pub use tagger::Tagger;
pub use task::{Confusion, Sounds, Tagging, TaggingConfig, evaluate};
