//! Opening a checkpoint: a folder, a weight file, for SEMamba upstream's `.pth` or the bundled one.

use crate::separation::{Separator, SeparatorConfig};
use crate::tagging::{Tagger, TaggerConfig};
use crate::{Config, Enhancer, SeMamba};
use candle_core::{DType, Device, Tensor};
use mamba_core::{Error, Params, Result, checkpoint};
use mamba_datasets::job::{Fingerprint, sha256, sha256_file};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A kind of model of this crate, by its `config.json`.
pub trait ModelConfig: Clone + Serialize + DeserializeOwned {
    /// What `model_type` says.
    const MODEL_TYPE: &'static str;

    /// The command that takes such a checkpoint.
    const COMMAND: &'static str;

    /// For weights without a `config.json` beside them, if that is possible.
    fn published() -> Option<Self> {
        None
    }

    /// Refuses settings that make no model.
    ///
    /// # Errors
    /// The first impossible value.
    fn validate(&self) -> Result<()>;
}

impl ModelConfig for Config {
    const MODEL_TYPE: &'static str = "semamba";
    const COMMAND: &'static str = "enhance";

    fn published() -> Option<Self> {
        Some(Self::default())
    }

    fn validate(&self) -> Result<()> {
        Config::validate(self)
    }
}

impl ModelConfig for SeparatorConfig {
    const MODEL_TYPE: &'static str = SeparatorConfig::MODEL_TYPE;
    const COMMAND: &'static str = "separate";

    fn validate(&self) -> Result<()> {
        SeparatorConfig::validate(self)
    }
}

impl ModelConfig for TaggerConfig {
    const MODEL_TYPE: &'static str = TaggerConfig::MODEL_TYPE;
    const COMMAND: &'static str = "tag";

    fn validate(&self) -> Result<()> {
        TaggerConfig::validate(self)
    }
}

/// The command for each `model_type`.
const COMMANDS: [(&str, &str); 3] = [
    (<Config as ModelConfig>::MODEL_TYPE, Config::COMMAND),
    (<SeparatorConfig as ModelConfig>::MODEL_TYPE, SeparatorConfig::COMMAND),
    (<TaggerConfig as ModelConfig>::MODEL_TYPE, TaggerConfig::COMMAND),
];

/// The `model_type` of a checkpoint; that of SEMamba where there is no `config.json`.
///
/// # Errors
/// Files that cannot be read.
pub fn model_type(path: &Path) -> Result<String> {
    let config = checkpoint::load(path, None)?.config;
    let named = config.get("model_type").and_then(Value::as_str);
    Ok(named.unwrap_or(<Config as ModelConfig>::MODEL_TYPE).to_string())
}

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

/// Configuration and weights of a model.
#[derive(Clone, Debug)]
pub struct Checkpoint<C> {
    path: PathBuf,
    card: Option<&'static str>,
    config: C,
    tensors: BTreeMap<String, Tensor>,
    files: Vec<WeightFile>,
}

/// Of an enhancement model.
pub type SeMambaCheckpoint = Checkpoint<Config>;
/// Of a separation model.
pub type SeparatorCheckpoint = Checkpoint<SeparatorConfig>;
/// Of a tagging model.
pub type TaggerCheckpoint = Checkpoint<TaggerConfig>;

impl<C: ModelConfig> Checkpoint<C> {
    /// Opens a folder or a weight file. A weight file of SEMamba without a `config.json` beside it, as upstream publishes
    /// them, is taken for the published size.
    ///
    /// # Errors
    /// Files that cannot be read, and checkpoints of another kind of model.
    pub fn open(path: &Path) -> Result<Self> {
        let read = checkpoint::load(path, None)?;
        let files = read.files.iter().map(|file| {
            let (bytes, sha256) = sha256_file(file).map_err(Error::other)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(WeightFile { name, bytes, sha256 })
        });
        let files = files.collect::<Result<_>>()?;
        let config: C = match (read.config, C::published()) {
            (Value::Null, Some(config)) => config,
            (Value::Null, None) => {
                return Err(problem(path, format!("there is no {} beside the weights", checkpoint::CONFIG)));
            }
            (json, _) => {
                let kind = json.get("model_type").and_then(Value::as_str).unwrap_or(C::MODEL_TYPE);
                if kind != C::MODEL_TYPE {
                    let other = COMMANDS.iter().find(|(name, _)| *name == kind);
                    let hint = other.map_or(String::new(), |(_, command)| format!(": `{command}` takes it"));
                    let message = format!("a model of type {kind}, expected {}{hint}", C::MODEL_TYPE);
                    return Err(problem(path, message));
                }
                serde_json::from_value(json)
                    .map_err(|e| problem(path, format!("{}: {e}", checkpoint::CONFIG)))?
            }
        };
        config.validate().map_err(|e| problem(path, format!("{}: {e}", checkpoint::CONFIG)))?;
        Ok(Self { path: path.to_owned(), card: None, config, tensors: read.tensors, files })
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
    pub fn config(&self) -> &C {
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

    /// Numbers of parameters by the first part of their names, without those of a discriminator that training left.
    pub fn parts(&self) -> BTreeMap<String, usize> {
        let mut parts = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            let part = name.split('.').next().unwrap_or_default();
            if part != crate::task::DISCRIMINATOR {
                *parts.entry(part.to_string()).or_default() += tensor.elem_count();
            }
        }
        parts
    }
}

impl SeMambaCheckpoint {
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

impl SeparatorCheckpoint {
    /// The model, ready to separate.
    ///
    /// # Errors
    /// Weights that do not go with the settings.
    pub fn separator(&self, dtype: DType, device: &Device) -> Result<Separator> {
        Separator::new(&self.config, self.tensors.clone(), dtype, device).map_err(|e| problem(&self.path, e))
    }
}

impl TaggerCheckpoint {
    /// The model, ready to tag.
    ///
    /// # Errors
    /// Weights that do not go with the settings.
    pub fn tagger(&self, dtype: DType, device: &Device) -> Result<Tagger> {
        Tagger::new(&self.config, self.tensors.clone(), dtype, device).map_err(|e| problem(&self.path, e))
    }
}

fn problem(path: &Path, message: impl ToString) -> Error {
    Error::Checkpoint { path: path.to_owned(), message: message.to_string() }
}
