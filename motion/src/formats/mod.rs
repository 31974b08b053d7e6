//! The file formats of motion capture.

pub mod bvh;
pub mod deepmimic;
pub mod humanml3d;
pub mod npy;

use crate::{Error, Result};
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::Path;

/// Seconds from one frame to the next that a file may have; others are other units, or broken.
pub(crate) const FRAME_TIMES: RangeInclusive<f64> = 1e-4..=1.0;

/// A time between frames, and what is expected of it, if it is none that a file may have.
pub(crate) fn frame_time_problem(seconds: f64) -> Option<String> {
    if FRAME_TIMES.contains(&seconds) {
        return None;
    }
    let (least, most) = (FRAME_TIMES.start(), FRAME_TIMES.end());
    let hint = match seconds / 1000.0 {
        short if FRAME_TIMES.contains(&short) => format!("; as milliseconds it would be {short:.4}"),
        _ => String::new(),
    };
    Some(format!("{seconds:?} seconds, expected {least} to {most}{hint}"))
}

/// The text of a file, of which no format here has more than some hundred megabytes; a byte order mark is left out.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::read(path))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes);
    String::from_utf8(bytes).map_err(|e| Error::file(path, format!("not UTF-8: {e}")))
}

/// Writes a file whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = mamba_datasets::AtomicFile::create(path).map_err(mamba_core::Error::other)?;
    file.write_all(bytes).map_err(Error::write(path))?;
    Ok(file.commit().map_err(mamba_core::Error::other)?)
}
