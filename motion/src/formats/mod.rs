//! The file formats of motion capture.

pub mod bvh;
pub mod deepmimic;
pub mod humanml3d;
pub mod npy;

use crate::{Error, Result};
use std::io::Write;
use std::path::Path;

/// The text of a file, of which no format here has more than some hundred megabytes.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::read(path))?;
    String::from_utf8(bytes).map_err(|e| Error::file(path, format!("not UTF-8: {e}")))
}

/// Writes a file whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = mamba_datasets::AtomicFile::create(path).map_err(mamba_core::Error::other)?;
    file.write_all(bytes).map_err(Error::write(path))?;
    Ok(file.commit().map_err(mamba_core::Error::other)?)
}
