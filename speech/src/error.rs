//! The one error type of this crate's data side.

use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with audio files, folders and settings. Every message about a file names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not audio that can be read, or is damaged.
    #[error("{}: {reason}", path.display())]
    Audio {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A line of a table is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The table.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder holds no audio file.
    #[error("{}: no audio file ({}) in this folder", path.display(), crate::audio::EXTENSIONS.join(", "))]
    NoAudio {
        /// The folder.
        path: PathBuf,
    },
    /// A clip that should have a counterpart has none.
    #[error("{}: there is no file of this name in {}", path.display(), folder.display())]
    NoCounterpart {
        /// The clip.
        path: PathBuf,
        /// Where its counterpart was looked for.
        folder: PathBuf,
    },
    /// Signals that cannot be compared or measured.
    #[error("{0}")]
    Signal(String),
    /// A setting is out of range.
    #[error("{name} is {got}: expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// The value given.
        got: String,
        /// What would be accepted.
        expected: String,
    },
    /// Resampling refused its settings.
    #[error("resampling from {from} Hz to {to} Hz: {reason}")]
    Resample {
        /// Rate of the input.
        from: u32,
        /// Rate of the output.
        to: u32,
        /// Why.
        reason: String,
    },
    /// Writing an output failed.
    #[error(transparent)]
    Dataset(#[from] mamba_datasets::Error),
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn audio(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Self::Audio { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }
}

impl From<Error> for mamba_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Setting { .. } => Self::Config(error.to_string()),
            other => Self::other(other),
        }
    }
}
