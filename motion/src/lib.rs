//! Human motion by latent diffusion with Motion Mamba (Zhang et al. 2024, arXiv 2403.07487): from motion capture to
//! generated motion that is measured and watched.
//!
//! | module | for |
//! |---|---|
//! | [`formats`] | BVH, DeepMimic, HumanML3D, NumPy |
//! | [`quaternion`], [`skeleton`], [`retarget`], [`rig`] | rotations; the 22 joints; from other skeletons to them; from them to a rig |
//! | [`features`], [`dataset`] | the 263 numbers per frame; clips, labels, what is held out |
//! | [`diffusion`], [`models`] | schedules and samplers; VAE, denoisers, evaluator |
//! | [`config`], [`tasks`], [`run`] | settings, the trainings, a training's folder and what it generates |
//! | [`metrics`], [`evaluation`] | figures, and motions compared by them |
//! | [`text`], [`conditions`] | sentences to vectors by a frozen encoder; what denoisers are told |
//! | [`join`](mod@join), [`stream`], [`grounding`] | long motion: concatenated, made chunk by chunk, searched by what it shows |
//! | [`cleanup`] | feet that stand where they stand |
//! | [`viewer`], [`picture`] | a web page, a contact sheet, a GIF |
//!
//! Lengths are metres, y is up, a person at rest faces z with the left hand towards x; motion has 20 frames a second.
//!
//! ```
//! use mamba_motion::dataset::{MotionData, SourceConfig};
//! use mamba_motion::features::{FPS, root_path};
//!
//! let data = MotionData::bundled(&SourceConfig::standard())?;
//! let walk = data.clips.iter().find(|clip| clip.name == "walk").expect("it is one of the bundled clips");
//! let end = root_path(&walk.frames).1[walk.frames.len() - 1];
//! let speed = end[2] / (walk.frames.len() as f64 / FPS);
//! assert!((0.8..2.0).contains(&speed), "a walk, in metres a second");
//! # Ok::<(), mamba_motion::Error>(())
//! ```

pub mod cleanup;
pub mod conditions;
pub mod config;
pub mod dataset;
pub mod diffusion;
pub mod error;
pub mod evaluation;
pub mod features;
pub mod formats;
pub mod grounding;
pub mod join;
pub mod metrics;
pub mod models;
pub mod picture;
pub mod quaternion;
pub mod retarget;
pub mod rig;
pub mod run;
pub mod skeleton;
pub mod stream;
pub mod tasks;
pub mod text;
pub mod viewer;

pub use error::{Error, Result};
