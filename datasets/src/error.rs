//! The crate's one error type.

use std::path::{Path, PathBuf};

/// What can go wrong in this crate. Messages carry the path and the values at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, written, renamed or removed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create` …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// The disk is full.
    #[error("no space left on device while writing {}", path.display())]
    NoSpace {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A path names a folder, device or pipe where a regular file is needed.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The operating system gave no thread.
    #[error("cannot start a thread to read ahead")]
    Thread {
        /// Why the system refused.
        source: std::io::Error,
    },
    /// No bundled sample has this name.
    #[error("no bundled sample is named {name:?}; there are {known}")]
    UnknownSample {
        /// The name that was asked for.
        name: String,
        /// The names that exist, separated by commas.
        known: String,
    },
    /// Held-out fractions that leave nothing to train on, or are no fractions.
    #[error(
        "valid fraction {valid} and test fraction {test} must each be at least 0 and together less than 1"
    )]
    Fractions {
        /// The validation fraction.
        valid: f64,
        /// The test fraction.
        test: f64,
    },
    /// Fewer things to split than non-empty sets were asked for.
    #[error("cannot split {found} {what} into {sets} non-empty sets")]
    TooFew {
        /// How many there are.
        found: usize,
        /// What they are: `blocks of 50000 bases`, `items`.
        what: String,
        /// How many sets were asked for.
        sets: usize,
    },
    /// No interval is long enough for a window.
    #[error("no stretch has {window} bases for a window; the longest has {longest}")]
    NoWindow {
        /// Bases in a window.
        window: u64,
        /// Bases in the longest interval.
        longest: u64,
    },
    /// A number that must be at least one is zero.
    #[error("{name} must be at least 1")]
    Zero {
        /// The name of the setting.
        name: &'static str,
    },
    /// A shard that cannot be parsed or does not exist.
    #[error("shard {text:?}: {reason}")]
    Shard {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A part was asked for that belongs to another shard.
    #[error("part {part} does not belong to shard {shard}")]
    OtherShard {
        /// The part.
        part: usize,
        /// The shard that runs.
        shard: String,
    },
    /// The output exists and nothing says that a job of ours wrote it.
    #[error("{} exists already and was not written by a finished job", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output no longer is what the job wrote.
    #[error("{} was changed after it was written: its manifest no longer matches", path.display())]
    Altered {
        /// The output.
        path: PathBuf,
    },
    /// The output stands from a run with another input, model or configuration.
    #[error(
        "{} was written from something else; since then changed:\n  {}\n--overwrite replaces it",
        path.display(),
        changes.join("\n  ")
    )]
    Changed {
        /// The output.
        path: PathBuf,
        /// One line for each difference.
        changes: Vec<String>,
    },
    /// A file that should be a job's manifest does not parse.
    #[error("{}:{line}: not a job manifest", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The line of the first fault, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A manifest of a version that this program does not know.
    #[error("{}: manifest version {found} is not supported (this program knows {known})", path.display())]
    ManifestVersion {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that this program writes.
        known: u32,
    },
    /// A job's configuration cannot be written as JSON.
    #[error("the configuration cannot be written as JSON")]
    Config {
        /// What the serializer says.
        source: serde_json::Error,
    },
    /// An output file whose ending names no known format.
    #[error("{}: unknown output format; the name must end in .parquet, .npy, .csv or .tsv", path.display())]
    Format {
        /// The output.
        path: PathBuf,
    },
    /// Rows that the output format cannot hold.
    #[error("{}: {reason}", path.display())]
    Rows {
        /// The output.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// No data set has this name.
    #[error("no data set is named {name:?}{}; `datasets list` shows all", similar(close))]
    UnknownSet {
        /// The name that was asked for.
        name: String,
        /// Names of sets that are like it.
        close: Vec<String>,
    },
    /// A data set is not on this machine.
    #[error(
        "data set {name} is not on this machine{reason}; {fetch}`datasets import {name} PATH` takes a copy that you have: {import}"
    )]
    SetMissing {
        /// The set.
        name: String,
        /// Where it was looked for, or why a copy there does not do.
        reason: String,
        /// How to download it, if that is possible.
        fetch: String,
        /// Which copies can be imported.
        import: String,
    },
    /// A data set has no such file or folder.
    #[error("data set {name} has no {part:?}")]
    NoSuchPart {
        /// The set.
        name: String,
        /// The path in it that was asked for.
        part: String,
    },
    /// The user has no home folder, and no variable names another.
    #[error("no folder for data sets is known; set MAMBA_DATA_HOME to one")]
    NoHome,
    /// Data sets cannot be downloaded as the environment says.
    #[error("{variable}: {reason}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A download failed.
    #[error("cannot download {url}: {reason}")]
    Download {
        /// The address.
        url: String,
        /// What the server, or the way to it, answered.
        reason: String,
    },
    /// A data set could not be downloaded.
    #[error(
        "data set {name} cannot be downloaded; `datasets import {name} PATH` takes a copy that you have: {import}"
    )]
    Fetch {
        /// The set.
        name: String,
        /// Which copies can be imported.
        import: String,
        /// What went wrong; none if there is no address to download it from.
        source: Option<Box<Error>>,
    },
    /// A file is not the one that the registry describes.
    #[error("{what} is not the file that is expected: {kind} {found}, expected {expected}")]
    Checksum {
        /// The file.
        what: String,
        /// What is compared: `SHA-256`, or what the checksum covers.
        kind: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// What was to be imported does not hold the whole set.
    #[error("{} holds {found} of data set {name}; expected: {import}", path.display())]
    Import {
        /// The set.
        name: String,
        /// Where the files were looked for.
        path: PathBuf,
        /// How much of it was found, what is missing and why.
        found: String,
        /// Which copies can be imported.
        import: String,
    },
    /// An archive is damaged, or of a kind that is not read.
    #[error("{} is not a whole archive: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What the reader says.
        reason: String,
    },
    /// A line of a data set, or of the table of data sets, cannot be understood.
    #[error("{place}: {reason}")]
    DataTable {
        /// `file:line`.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The Parquet writer refused.
    #[cfg(feature = "job")]
    #[error("cannot write {} as Parquet", path.display())]
    Parquet {
        /// The output.
        path: PathBuf,
        /// What the writer says.
        source: parquet::errors::ParquetError,
    },
    /// Arrow refused to build or join rows.
    #[cfg(feature = "job")]
    #[error("cannot build Arrow rows")]
    Arrow {
        /// What Arrow says.
        source: arrow_schema::ArrowError,
    },
}

/// A result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A closure for `map_err` that adds what was tried on which file; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull => Error::NoSpace { path },
            _ => Error::Io { action, path, source },
        }
    }
}

/// `; similar: a, b`, or nothing.
fn similar(close: &[String]) -> String {
    if close.is_empty() { String::new() } else { format!("; similar: {}", close.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_message() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::io("write", Path::new("out.npy"))(full);
        assert_eq!(error.to_string(), "no space left on device while writing out.npy");
    }

    #[test]
    fn messages_do_not_repeat_their_source() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = Error::io("create", Path::new("out.npy"))(denied);
        assert_eq!(error.to_string(), "cannot create out.npy");
        assert!(std::error::Error::source(&error).is_some());
    }
}
