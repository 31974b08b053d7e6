//! One error type for checkpoints, configs, run folders and training.
//!
//! Tensor code keeps [`candle_core::Result`], so that `?` and `Module` compose; [`Error`] converts both ways.

use std::path::{Path, PathBuf};

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong outside of tensor code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A checkpoint file is corrupt, truncated or of an unknown kind.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A checkpoint and a model do not have the same tensors.
    #[error("{}", describe_tensors(missing, unexpected))]
    Tensors {
        /// Tensors that the model asked for and the checkpoint lacks, sorted.
        missing: Vec<String>,
        /// Tensors of the checkpoint that the model never asked for, sorted.
        unexpected: Vec<String>,
    },
    /// A setting is unknown, has the wrong type or an impossible value.
    #[error("{0}")]
    Config(String),
    /// A run folder cannot be used as asked.
    #[error("{}: {message}", path.display())]
    RunFolder {
        /// The run folder, or the file in it.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// A loss or a gradient stopped being a number; nothing was saved after it.
    #[error("step {step}: {what} is {value}")]
    NonFinite {
        /// The step, counted from 1.
        step: u64,
        /// "the loss", or the gradient's name.
        what: String,
        /// NaN or an infinity.
        value: f64,
    },
    /// A tensor operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An error of the crate that plugs into this one.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps an error of another crate.
    pub fn other(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(source.into())
    }

    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    pub(crate) fn checkpoint(path: impl AsRef<Path>, message: impl ToString) -> Self {
        Self::Checkpoint { path: path.as_ref().to_path_buf(), message: message.to_string() }
    }

    #[cfg(feature = "train")]
    pub(crate) fn run_folder(path: impl AsRef<Path>, message: impl ToString) -> Self {
        Self::RunFolder { path: path.as_ref().to_path_buf(), message: message.to_string() }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// Tensors that a message names of each kind; all are in the error.
const SHOWN: usize = 6;

fn describe_tensors(missing: &[String], unexpected: &[String]) -> String {
    let list = |what: &str, names: &[String]| match names.len() {
        0 => None,
        n => {
            let shown = names[..n.min(SHOWN)].join(", ");
            let more = if n > SHOWN { format!(" and {} more", n - SHOWN) } else { String::new() };
            Some(format!("{n} {what} tensor{}: {shown}{more}", if n == 1 { "" } else { "s" }))
        }
    };
    let parts: Vec<String> =
        [list("missing", missing), list("unexpected", unexpected)].into_iter().flatten().collect();
    format!("checkpoint does not fit the model: {}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_a_few_of_many_tensors() {
        let missing: Vec<String> = (0..SHOWN + 2).map(|i| format!("layer.{i}")).collect();
        let message = Error::Tensors { missing, unexpected: vec!["x".into()] }.to_string();
        assert!(message.contains("8 missing tensors: layer.0, layer.1"), "{message}");
        assert!(message.ends_with("layer.5 and 2 more; 1 unexpected tensor: x"), "{message}");
    }
}
