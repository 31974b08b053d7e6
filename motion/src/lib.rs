//! Motion generation with Motion Mamba.

pub mod config;
pub mod dataset;
pub mod diffusion;
pub mod error;
pub mod evaluation;
pub mod features;
pub mod formats;
pub mod metrics;
pub mod models;
pub mod picture;
pub mod quaternion;
pub mod retarget;
pub mod rig;
pub mod run;
pub mod skeleton;
pub mod tasks;
pub mod viewer;

pub use error::{Error, Result};
