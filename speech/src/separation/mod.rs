//! Separation: what each of some talkers says at once, by Mamba over time and frequency.
//!
//! Mixtures are made of read speech while training runs; a model names talkers in any order, so it is trained and
//! measured in the best one.

pub mod loss;
mod mixture;
mod model;
mod separator;
mod task;

pub use mixture::{Mixture, Part, Talk, TalkConfig};
pub use model::{DualPathMamba, SeparatorConfig};
pub use separator::{Separator, Stitch};
pub use task::{Separated, Separation, SeparationConfig, score_mixtures};
