//! Opening a SEMamba checkpoint: a folder, a weight file, upstream's `.pth`, or the bundled one.

use crate::{Config, Enhancer, SeMamba};
use candle_core::{DType, Device, Tensor};
use mamba_core::{Error, Params, Result, checkpoint};
use mamba_datasets::job::{Fingerprint, sha256, sha256_file};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightFile {
    /// Its name, without folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

/// The checkpoint that is compiled in. Replacing these files is all that replacing it takes.
const BUNDLED: Bundled = Bundled {
    name: "semamba-small",
    config: include_bytes!("../checkpoints/semamba-small/config.json"),
    weights: include_bytes!("../checkpoints/semamba-small/model.safetensors"),
    card: include_str!("../checkpoints/semamba-small/README.md"),
};

/// A checkpoint that is compiled in.
struct Bundled {
    name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
    card: &'static str,
}

/// Configuration and weights of a SEMamba model.
#[derive(Clone, Debug)]
pub struct SeMambaCheckpoint {
    path: PathBuf,
    card: Option<&'static str>,
    config: Config,
    tensors: BTreeMap<String, Tensor>,
    files: Vec<WeightFile>,
}

impl SeMambaCheckpoint {
    /// Opens a folder or a weight file. A weight file without a `config.json` beside it, as upstream publishes them, is
    /// taken for the published size.
    pub fn open(path: &Path) -> Result<Self> {
        let read = checkpoint::load(path, None)?;
        let files = read.files.iter().map(|file| {
            let (bytes, sha256) = sha256_file(file).map_err(Error::other)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(WeightFile { name, bytes, sha256 })
        });
        let files = files.collect::<Result<_>>()?;
        let config = match read.config {
            serde_json::Value::Null => Config::default(),
            json => serde_json::from_value(json)
                .map_err(|e| problem(path, format!("{}: {e}", checkpoint::CONFIG)))?,
        };
        config.validate().map_err(|e| problem(path, format!("{}: {e}", checkpoint::CONFIG)))?;
        Ok(Self { path: path.to_owned(), card: None, config, tensors: read.tensors, files })
    }

    /// [`SeMambaCheckpoint::open`], or without a path the bundled checkpoint.
    pub fn open_or_bundled(path: Option<&Path>) -> Result<Self> {
        match path {
            Some(path) => Self::open(path),
            None => Self::bundled(),
        }
    }

    /// The checkpoint that is compiled into this crate.
    pub fn bundled() -> Result<Self> {
        Self::from_bundle(&BUNDLED)
    }

    fn from_bundle(bundled: &Bundled) -> Result<Self> {
        let path = PathBuf::from(format!("bundled {}", bundled.name));
        let config: Config = serde_json::from_slice(bundled.config).map_err(|e| problem(&path, e))?;
        let tensors = candle_core::safetensors::load_buffer(bundled.weights, &Device::Cpu)?;
        let file = WeightFile {
            name: checkpoint::WEIGHTS.into(),
            bytes: bundled.weights.len() as u64,
            sha256: sha256(bundled.weights),
        };
        let tensors = tensors.into_iter().collect();
        Ok(Self { path, card: Some(bundled.card), config, tensors, files: vec![file] })
    }

    /// Where it was read from; `bundled NAME` for one that is compiled in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text that describes a bundled checkpoint: data, licence, figures.
    pub fn card(&self) -> Option<&'static str> {
        self.card
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weight files.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// SHA-256 over all that decides what the model computes: weights and hyper-parameters.
    pub fn hash(&self) -> Result<String> {
        let mut fingerprint = Fingerprint::new();
        for (i, file) in self.files.iter().enumerate() {
            fingerprint.add_hash(format!("weights {i}"), file.sha256.as_str());
        }
        Ok(fingerprint.set_config(&self.config).map_err(Error::other)?.digest())
    }

    /// The model's parameters, loaded for inference.
    pub fn params(&self, dtype: DType, device: &Device) -> Result<Params> {
        Ok(self.build(dtype, device)?.1)
    }

    /// The model, ready to enhance.
    pub fn enhancer(&self, dtype: DType, device: &Device) -> Result<Enhancer> {
        let (model, _) = self.build(dtype, device)?;
        Ok(Enhancer::new(model, self.config.clone(), dtype, device))
    }

    fn build(&self, dtype: DType, device: &Device) -> Result<(SeMamba, Params)> {
        let params = Params::frozen(self.tensors.clone(), dtype, device);
        let model = SeMamba::new(&self.config, &params.builder()).map_err(|e| problem(&self.path, e))?;
        // Training may leave its discriminator in the file.
        let of_discriminator = |name: &str| name.starts_with(crate::task::DISCRIMINATOR);
        params.check_with(|_| false, of_discriminator).map_err(|e| problem(&self.path, e))?;
        Ok((model, params))
    }
}

fn problem(path: &Path, message: impl ToString) -> Error {
    Error::Checkpoint { path: path.to_owned(), message: message.to_string() }
}
