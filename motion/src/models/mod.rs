//! The networks.

pub mod attention;
pub mod condition;
pub mod denoiser;
pub mod evaluator;
pub mod grounder;
pub mod motion_mamba;
pub mod stream;
pub mod vae;

pub use condition::{Condition, ConditionConfig};
pub use denoiser::{Denoiser, DenoiserConfig, NetworkConfig, TransformerConfig};
pub use evaluator::{Evaluator, EvaluatorConfig};
pub use grounder::{Grounder, GrounderConfig};
pub use motion_mamba::{Join, MotionMamba, MotionMambaConfig};
pub use stream::{StreamDenoiser, StreamDenoiserConfig, StreamState};
pub use vae::{Latent, MotionVae, VaeConfig, VaeLoss};
