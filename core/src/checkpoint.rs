//! Checkpoints: a Hugging Face style folder in and out, PyTorch files in.
//!
//! | path | read as |
//! |---|---|
//! | folder | `config.json` and the first of `model.safetensors`, `model.safetensors.index.json` (shards), `pytorch_model.bin` |
//! | `*.safetensors` | one file; a `config.json` beside it is read too |
//! | `*.safetensors.index.json` | the shards that it names |
//! | `*.bin`, `*.pt`, `*.pth` | a zip archive of torch ≥ 1.6, without running any code in it |
//!
//! Names are passed through untouched; [`Params`](crate::Params) holds them against the model.

use crate::files::atomic_write;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors, View};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file with the hyperparameters.
pub const CONFIG: &str = "config.json";
/// The file with the weights.
pub const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TORCH: &str = "pytorch_model.bin";

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// `config.json`, or null when there is none.
    pub config: Value,
    /// Tensors by upstream name, on the CPU, in the type of the file.
    pub tensors: BTreeMap<String, Tensor>,
    /// The weight files that were read.
    pub files: Vec<PathBuf>,
}

impl Checkpoint {
    /// The config as a type of the model's crate.
    pub fn parse_config<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.config.clone())
            .map_err(|e| Error::Config(format!("{CONFIG} of the checkpoint: {e}")))
    }
}

/// Reads a checkpoint folder, which must have a `config.json`.
pub fn load_dir(dir: impl AsRef<Path>) -> Result<Checkpoint> {
    let dir = dir.as_ref();
    let config = read_json(&dir.join(CONFIG))?;
    let Some(weights) = [WEIGHTS, INDEX, TORCH].map(|name| dir.join(name)).into_iter().find(|p| p.exists())
    else {
        return Err(Error::checkpoint(dir, format!("has none of {WEIGHTS}, {INDEX}, {TORCH}")));
    };
    let (tensors, files) = load_weights(&weights, None)?;
    Ok(Checkpoint { config, tensors, files })
}

/// Reads a checkpoint folder or a single weight file. `key` says under which entry of a PyTorch file the tensors
/// lie (`state_dict`, `generator`); without it the top level and the usual entries are tried.
pub fn load(path: impl AsRef<Path>, key: Option<&str>) -> Result<Checkpoint> {
    let path = path.as_ref();
    if path.is_dir() {
        return load_dir(path);
    }
    let (tensors, files) = load_weights(path, key)?;
    let config = path.with_file_name(CONFIG);
    let config = if config.exists() { read_json(&config)? } else { Value::Null };
    Ok(Checkpoint { config, tensors, files })
}

/// Writes `config.json` and `model.safetensors`, each whole or not at all, and creates the folder.
pub fn save_dir(
    dir: impl AsRef<Path>,
    config: &impl Serialize,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    write_json(&dir.join(CONFIG), config)?;
    save_safetensors(dir.join(WEIGHTS), tensors, &BTreeMap::new())
}

/// Writes one safetensors file atomically, with `metadata` beside `{"format": "pt"}`. Equal input gives equal bytes.
pub fn save_safetensors(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut meta = metadata.clone();
    meta.insert("format".into(), "pt".into());
    let mut header = serde_json::Map::from_iter([("__metadata__".to_string(), json!(meta))]);
    let mut offset = 0;
    // wide types first, so that every tensor starts aligned
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(Tensor::dtype(tensor).size_in_bytes()));
    for (name, tensor) in &order {
        let end = offset + View::data_len(tensor);
        let dtype = View::dtype(tensor);
        let shape = tensor.dims();
        header
            .insert(name.to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    atomic_write(path, |w| {
        let mut put = |bytes: &[u8]| w.write_all(bytes).map_err(|e| Error::io(path, e));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        for (_, tensor) in &order {
            put(&tensor_bytes(tensor)?)?;
        }
        Ok(())
    })
}

/// Reads one safetensors file: tensors and metadata.
pub fn load_safetensors(
    path: impl AsRef<Path>,
) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let corrupt = |e: safetensors::SafeTensorError| Error::checkpoint(path, explain(&e, bytes.len()));
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(corrupt)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes).map_err(corrupt)?.iter() {
        tensors.insert(
            name.to_string(),
            tensor_of(view).map_err(|e| Error::checkpoint(path, format!("{name}: {e}")))?,
        );
    }
    let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok((tensors, metadata))
}

type Weights = (BTreeMap<String, Tensor>, Vec<PathBuf>);

fn load_weights(path: &Path, key: Option<&str>) -> Result<Weights> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.ends_with(".safetensors") {
        Ok((load_safetensors(path)?.0, vec![path.to_path_buf()]))
    } else if name.ends_with(".safetensors.index.json") {
        load_shards(path)
    } else if [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)) {
        Ok((load_torch(path, key)?, vec![path.to_path_buf()]))
    } else if let Err(missing) = path.metadata() {
        Err(Error::io(path, missing))
    } else {
        Err(Error::checkpoint(path, "is neither a folder nor a .safetensors, .bin, .pt, .pth or .ckpt file"))
    }
}

fn load_shards(index: &Path) -> Result<Weights> {
    let json = read_json(index)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::checkpoint(index, "has no \"weight_map\""));
    };
    let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let shard = shard.ok_or_else(|| {
            Error::checkpoint(index, format!("{tensor}: the shard is not a plain file name"))
        })?;
        shards.entry(shard).or_default().insert(tensor);
    }
    let mut tensors = BTreeMap::new();
    let mut files = Vec::new();
    for (shard, names) in shards {
        let path = index.with_file_name(shard);
        let (mut found, _) = load_safetensors(&path)?;
        if let Some(lost) = names.iter().find(|name| !found.contains_key(**name)) {
            return Err(Error::checkpoint(&path, format!("lacks {lost}, which the index places here")));
        }
        tensors.append(&mut found);
        files.push(path);
    }
    Ok((tensors, files))
}

fn load_torch(path: &Path, key: Option<&str>) -> Result<BTreeMap<String, Tensor>> {
    std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    const USUAL: [Option<&str>; 5] =
        [None, Some("state_dict"), Some("model_state_dict"), Some("model"), Some("generator")];
    let keys: &[Option<&str>] = if key.is_some() { &[key] } else { &USUAL };
    for key in keys {
        match candle_core::pickle::read_all_with_key(path, *key) {
            Ok(tensors) if !tensors.is_empty() => return Ok(tensors.into_iter().collect()),
            Ok(_) => (),
            Err(e) if key.is_some_and(|key| e.to_string().starts_with(&format!("key {key} not found"))) => (),
            Err(e) => {
                let message = e.to_string();
                let message = message.lines().next().unwrap_or_default();
                return Err(Error::checkpoint(path, format!("not a readable torch archive: {message}")));
            }
        }
    }
    let place = key.map_or("at the top level or under a usual key".into(), |key| format!("under {key:?}"));
    Err(Error::checkpoint(path, format!("holds no tensors {place}")))
}

fn explain(error: &safetensors::SafeTensorError, len: usize) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::MetadataIncompleteBuffer => {
            format!("truncated, or with bytes left over: {len} bytes do not match the header")
        }
        E::HeaderTooSmall | E::InvalidHeaderLength => {
            format!("truncated: the header does not fit into {len} bytes")
        }
        E::HeaderTooLarge | E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) => {
            format!("not a safetensors file: {error}")
        }
        other => other.to_string(),
    }
}

/// candle has no bool; torch stores masks as such, and U8 holds the same bytes.
fn tensor_of(view: safetensors::tensor::TensorView<'_>) -> candle_core::Result<Tensor> {
    use candle_core::safetensors::Load;
    match view.dtype() {
        Dtype::BOOL => {
            Tensor::from_raw_buffer(view.data(), candle_core::DType::U8, view.shape(), &Device::Cpu)
        }
        _ => view.load(&Device::Cpu),
    }
}

fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(View::data(&tensor).into_owned())
}

/// Reads a JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text)
        .or_else(|e| serde_json::from_slice(&without_python_numbers(&text)).map_err(|_| e))
        .map_err(|e| Error::checkpoint(path, format!("not valid JSON: {e}")))
}

/// JSON with `null` for the infinities and NaN that Python writes and JSON does not have; texts stay as they are.
fn without_python_numbers(json: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut out, mut rest, mut in_text) = (Vec::with_capacity(json.len()), json, false);
    while let Some((&byte, after)) = rest.split_first() {
        let word = WORDS.iter().find(|word| !in_text && rest.starts_with(word));
        rest = match word {
            Some(word) => {
                out.extend_from_slice(b"null");
                &rest[word.len()..]
            }
            None if in_text && byte == b'\\' && !after.is_empty() => {
                out.extend_from_slice(&rest[..2]);
                &after[1..]
            }
            None => {
                in_text ^= byte == b'"';
                out.push(byte);
                after
            }
        };
    }
    out
}

/// Writes a JSON file, whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(Error::other)?;
    text.push(b'\n');
    atomic_write(path, |w: &mut dyn Write| w.write_all(&text).map_err(|e| Error::io(path, e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_infinity_becomes_null_but_not_in_a_text() {
        let text = br#"{"a": [0.0, Infinity, -Infinity], "NaN": NaN, "b": "Infinity \" NaN \\"}"#;
        let json: Value = serde_json::from_slice(&without_python_numbers(text)).unwrap();
        assert_eq!(json, json!({"a": [0.0, null, null], "NaN": null, "b": "Infinity \" NaN \\"}));
    }
}
