//! The networks.

pub mod attention;
pub mod denoiser;
pub mod evaluator;
pub mod motion_mamba;
pub mod vae;

pub use denoiser::{Condition, ConditionConfig, Denoiser, DenoiserConfig, NetworkConfig, TransformerConfig};
pub use evaluator::{Evaluator, EvaluatorConfig};
pub use motion_mamba::{Join, MotionMamba, MotionMambaConfig};
pub use vae::{Latent, MotionVae, VaeConfig, VaeLoss};
