//! NumPy arrays of numbers, in and out.

use crate::{Error, Result};
use npyz::WriterBuilder;
use std::path::Path;

/// An array in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its size in each dimension.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<f32>,
}

/// Reads an array of f32 or f64.
///
/// # Errors
/// A file that is no such array, is truncated, or holds a value that is not finite.
pub fn read(path: impl AsRef<Path>) -> Result<Array> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::read(path))?;
    let broken = |e: std::io::Error| Error::file(path, format!("not a NumPy array: {e}"));
    let file = npyz::NpyFile::new(&bytes[..]).map_err(broken)?;
    if file.order() != npyz::Order::C {
        return Err(Error::file(path, "the array is in Fortran order, expected C order"));
    }
    let shape: Vec<usize> = file.shape().iter().map(|&n| n as usize).collect();
    let size = shape.iter().try_fold(1usize, |size, &n| size.checked_mul(n));
    if size.is_none_or(|size| size > bytes.len()) {
        return Err(Error::file(path, format!("shape {shape:?} does not fit into {} bytes", bytes.len())));
    }
    let dtype = file.dtype().descr();
    let values: Vec<f32> = match dtype.trim_matches(['\'', '"']) {
        "<f4" => file.into_vec().map_err(broken)?,
        "<f8" => file.into_vec::<f64>().map_err(broken)?.into_iter().map(|x| x as f32).collect(),
        other => return Err(Error::file(path, format!("values are {other}, expected f4 or f8"))),
    };
    if let Some(i) = values.iter().position(|x| !x.is_finite()) {
        return Err(Error::file(path, format!("value {i} is {}", values[i])));
    }
    Ok(Array { shape, values })
}

/// Writes an array, whole or not at all.
pub fn write(path: impl AsRef<Path>, array: &Array) -> Result<()> {
    let path = path.as_ref();
    let shape: Vec<u64> = array.shape.iter().map(|&n| n as u64).collect();
    let mut bytes = Vec::new();
    let filled = (|| {
        let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
        let mut writer = options.writer(&mut bytes).begin_nd()?;
        writer.extend(array.values.iter().copied())?;
        writer.finish()
    })();
    filled.map_err(Error::write(path))?;
    super::write_whole(path, &bytes)
}
