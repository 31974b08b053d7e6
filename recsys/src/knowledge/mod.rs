//! Knowledge tracing: how likely is a student's next answer right, given the answers so far?
//!
//! [`read`] knows the published layout of answer logs; [`model`] is Mamba4KT; [`task`] trains it in the same loop as the
//! recommenders; [`metrics`] are AUC and accuracy, [`baselines`] what a model must beat; [`checkpoint`] opens a run again.

pub mod baselines;
pub mod checkpoint;
pub mod metrics;
pub mod model;
pub mod read;
mod sample;
pub mod task;

pub use checkpoint::KtCheckpoint;
pub use model::{Mamba4Kt, Mamba4KtConfig};
pub use read::{AnswerLog, read_answers};
pub use sample::sample;
pub use task::{KtConfig, KtData, KtTraining, predict};

/// A student's answers in time order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Student {
    /// The skill that each question asks for; 0 is one that the model does not know.
    pub skills: Vec<u32>,
    /// Whether each answer was right.
    pub right: Vec<bool>,
}
