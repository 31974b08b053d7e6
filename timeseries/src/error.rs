//! The one error type of this crate's data side.

use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with tables, series and what is asked of them. Messages name the file, and the line (1-based, with
/// the header as line 1; for Parquet the row, from 1) where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says: not a table, not Parquet, not text.
    #[error("{}: {message}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// One line, or one value of it.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line or row, 1-based.
        line: u64,
        /// What is wrong there.
        message: String,
    },
    /// A whole series, or one of its columns.
    #[error("{}{}: {message}", path.display(), series_name(id))]
    Series {
        /// The file.
        path: PathBuf,
        /// The series' id; empty where the file holds one series.
        id: String,
        /// What is wrong with it.
        message: String,
    },
    /// Two things do not fit together, such as a table and a checkpoint.
    #[error("{0}")]
    Mismatch(String),
    /// Tensors, checkpoints, settings.
    #[error("{0}")]
    Core(#[from] mamba_core::Error),
}

fn series_name(id: &str) -> String {
    if id.is_empty() { String::new() } else { format!(", series {id:?}") }
}

impl Error {
    /// The same of another path: that by which a user knows the file.
    pub fn at(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::Read { source, .. } => Self::Read { path, source },
            Self::Table { message, .. } => Self::Table { path, message },
            Self::Line { line, message, .. } => Self::Line { path, line, message },
            Self::Series { id, message, .. } => Self::Series { path, id, message },
            other => other,
        }
    }

    pub(crate) fn table(path: &Path, message: impl ToString) -> Self {
        Self::Table { path: path.to_owned(), message: message.to_string() }
    }

    pub(crate) fn line(path: &Path, line: u64, message: impl ToString) -> Self {
        Self::Line { path: path.to_owned(), line, message: message.to_string() }
    }

    pub(crate) fn series(path: &Path, id: &str, message: impl ToString) -> Self {
        Self::Series { path: path.to_owned(), id: id.to_owned(), message: message.to_string() }
    }

    /// A wrong setting: exit code 2.
    pub(crate) fn config(message: impl ToString) -> Self {
        Self::Core(mamba_core::Error::Config(message.to_string()))
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Core(error.into())
    }
}

impl From<Error> for mamba_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(error) => error,
            other => Self::other(other),
        }
    }
}
