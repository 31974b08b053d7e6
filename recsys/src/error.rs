//! The crate's one error type.

use std::path::{Path, PathBuf};

/// What can go wrong with logs, sequences and checkpoints. Messages carry file, line, column and value at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// A value of a log does not mean what its column says.
    #[error("{}:{line}: column {column:?}: {value}, expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Line of a text file, or row of a Parquet file, from 1.
        line: usize,
        /// The column's name.
        column: String,
        /// The value, quoted, or `nothing`.
        value: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A line of a text file, or a row of a Parquet file, is not what its format says.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line or row, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A table has no column for users or items, or none of the name that was asked for.
    #[error("{}: no column {wanted} among {}", path.display(), found.join(", "))]
    Column {
        /// The file.
        path: PathBuf,
        /// The name, or what it holds.
        wanted: String,
        /// The columns that there are.
        found: Vec<String>,
    },
    /// A file is not what its ending says, or is corrupt.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A step left nothing to go on with.
    #[error("{0}")]
    Empty(String),
}

/// A result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File { path: path.to_owned(), problem: problem.to_string() }
    }

    /// What the user could do about it, if that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Column { .. } => Some(
                "--user-column, --item-column and --time-column name them; --columns names those of a file without a header"
                    .into(),
            ),
            _ => None,
        }
    }
}

impl From<Error> for mamba_core::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
