//! Sequential recommendation with Mamba4Rec and its relatives.
//!
//! From an interaction log to a trained model to recommendations for every user:
//!
//! - [`data`]: logs in RecBole's atomic files, CSV, TSV, Parquet and plain text; k-core, duplicates, splits;
//! - [`ids`]: the caller's own ids, numbers or text, which the model keeps;
//! - [`models`]: Mamba4Rec and what it is compared with; [`baselines`]: popularity, Markov chain;
//! - [`sampler`], [`task`]: packed training batches and the losses over them;
//! - [`metrics`], [`eval`]: full ranking;
//! - [`checkpoint`], [`recommender`]: a trained model at work;
//! - [`score`]: recommendations for many users;
//! - [`knowledge`]: knowledge tracing with Mamba4KT.

pub mod baselines;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod eval;
pub mod ids;
pub mod knowledge;
pub mod metrics;
pub mod models;
pub mod recommender;
pub mod sampler;
pub mod score;
pub mod task;

pub use checkpoint::RecCheckpoint;
pub use error::{Error, Result};
pub use ids::{Id, Ids, ItemMap};
pub use models::{Model, ModelConfig};
pub use recommender::Recommender;
