//! Public data sets by name: what they are, where they come from, and getting them onto this machine.
//!
//! A [`DataSet`] says its licence, citation and source, and lists each of its files with a checksum. [`fetch`]
//! downloads a set, [`import`] takes it from a copy that one has (a file, a folder, a zip or tar archive), and both
//! keep only what matches the checksums. [`resolve`] turns what stands after `--data` into a path:
//!
//! ```no_run
//! let path = mamba_datasets::registry::resolve("ml-100k")?;      // .../recsys/ml-100k/ml-100k.inter
//! let task = mamba_datasets::registry::resolve("gue/mouse/0")?;  // one task of a set
//! let mine = mamba_datasets::registry::resolve("logs/may.csv")?; // a path stays what it is
//! # Ok::<(), mamba_datasets::Error>(())
//! ```
//!
//! **Where sets are.** `$MAMBA_DATA`, when set, is a folder that others filled: a set is used from there if its
//! files match, or unpacked from there if it lies there as gzip or archive; nothing is ever written to it. Everything
//! fetched or imported goes into the cache: `$MAMBA_DATA_HOME`, or `mamba-zoo` in the platform's cache folder
//! (`$XDG_CACHE_HOME` or `~/.cache` on Linux), there `DOMAIN/NAME`.
//!
//! **Checksums.** Most files are known by their SHA-256, some by that of their content alone ([`DigestKind`]): a genome
//! by its bases, whatever its header. [`Checked`] tells whether a checksum was compared with the file upstream.

mod archive;
mod digest;
mod download;
mod fetch;
mod home;
mod import;
mod movielens;
mod table;

pub use digest::{Digest, DigestKind};
pub use download::Client;
pub use fetch::{Event, fetch};
pub use home::{Home, Place};
pub use import::import;
pub use movielens::histories;
pub use table::{Archive, Checked, Conversion, DataFile, DataSet, Registry};

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Every data set, by domain.
pub fn list() -> &'static [DataSet] {
    Registry::bundled().sets()
}

/// The data set of this name, in any case; an unknown name is an error that lists similar ones.
pub fn info(name: &str) -> Result<&'static DataSet> {
    Registry::bundled().get(name)
}

/// The path that the argument of a `--data` flag stands for: an existing file or folder is itself; `NAME` is a data
/// set's main file or its folder; `NAME/PATH` is a part of a set.
///
/// A set that is not on this machine is an error that says how to get it; nothing is downloaded.
pub fn resolve(name_or_path: &str) -> Result<PathBuf> {
    let Err(missing) = Path::new(name_or_path).metadata() else {
        return Ok(name_or_path.into());
    };
    let (name, part) = name_or_path.split_once('/').unwrap_or((name_or_path, ""));
    match info(name) {
        Ok(set) => Home::from_env()?.resolve(set, part),
        Err(error) if name_or_path.contains(['/', '\\', '.']) => Err(match error {
            Error::UnknownSet { .. } => Error::io("open", Path::new(name_or_path))(missing),
            other => other,
        }),
        Err(error) => Err(error),
    }
}
