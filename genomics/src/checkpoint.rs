//! Opening a Caduceus checkpoint: a Hugging Face style folder, a run folder, a weight file, or the bundled one.
//!
//! ```
//! use candle_core::{DType, Device};
//! use mamba_genomics::CaduceusCheckpoint;
//!
//! let checkpoint = CaduceusCheckpoint::open(None)?;
//! let model = checkpoint.model(DType::F32, &Device::Cpu)?;
//! assert_eq!(model.body().n_layer(), checkpoint.config().n_layer);
//! # Ok::<(), mamba_core::Error>(())
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mamba_core::{Error, Params, Result, checkpoint};
use mamba_datasets::job::{Fingerprint, sha256, sha256_file};
use serde::Serialize;

use crate::{CaduceusConfig, CaduceusForMaskedLm};

/// The checkpoint that is compiled in. Replacing these files is all that replacing it takes.
const BUNDLED: Bundled = Bundled {
    name: "lambda-tiny",
    config: include_bytes!("../checkpoints/lambda-tiny/config.json"),
    weights: include_bytes!("../checkpoints/lambda-tiny/model.safetensors"),
    card: include_str!("../checkpoints/lambda-tiny/README.md"),
};

struct Bundled {
    name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
    card: &'static str,
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

impl WeightFile {
    /// Reads a file to describe it.
    pub fn of(path: &Path) -> Result<Self> {
        let (bytes, sha256) = sha256_file(path).map_err(Error::other)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, bytes, sha256 })
    }
}

/// Configuration and weights of a Caduceus model.
#[derive(Clone, Debug)]
pub struct CaduceusCheckpoint {
    path: PathBuf,
    card: Option<&'static str>,
    config: CaduceusConfig,
    tensors: BTreeMap<String, Tensor>,
    files: Vec<WeightFile>,
}

impl CaduceusCheckpoint {
    /// Opens a folder or a weight file with a `config.json` beside it; without a path, the bundled checkpoint.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Self::bundled() };
        let read = checkpoint::load(path, None)?;
        let files = read.files.iter().map(|file| WeightFile::of(file));
        let tensors = crate::finetune::merge_adapters(&read.config, read.tensors)?;
        Self::new(path.to_owned(), None, read.config, tensors, files.collect::<Result<_>>()?)
    }

    /// The checkpoint that is compiled into this crate.
    pub fn bundled() -> Result<Self> {
        let path = PathBuf::from(format!("bundled {}", BUNDLED.name));
        let config = serde_json::from_slice(BUNDLED.config).map_err(|e| problem(&path, e))?;
        let tensors = candle_core::safetensors::load_buffer(BUNDLED.weights, &Device::Cpu)?;
        let file = WeightFile {
            name: checkpoint::WEIGHTS.into(),
            bytes: BUNDLED.weights.len() as u64,
            sha256: sha256(BUNDLED.weights),
        };
        Self::new(path, Some(BUNDLED.card), config, tensors.into_iter().collect(), vec![file])
    }

    fn new(
        path: PathBuf,
        card: Option<&'static str>,
        config: serde_json::Value,
        tensors: BTreeMap<String, Tensor>,
        files: Vec<WeightFile>,
    ) -> Result<Self> {
        if config.is_null() {
            return Err(problem(&path, format!("there is no {} beside it", checkpoint::CONFIG)));
        }
        // Every field has a default, so another architecture's file would parse as well.
        if let Some(other) = config.get("model_type").filter(|model| *model != "caduceus") {
            return Err(problem(
                &path,
                format!("{} says model_type {other}, expected \"caduceus\"", checkpoint::CONFIG),
            ));
        }
        let config: CaduceusConfig = serde_json::from_value(config)
            .map_err(|e| problem(&path, format!("{}: {e}", checkpoint::CONFIG)))?;
        config.validate().map_err(|e| problem(&path, format!("{}: {e}", checkpoint::CONFIG)))?;
        Ok(Self { path, card, config, tensors, files })
    }

    /// Where it was read from; `bundled NAME` for the one compiled in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text that describes the bundled checkpoint: data, licence, figures.
    pub fn card(&self) -> Option<&'static str> {
        self.card
    }

    /// The hyperparameters.
    pub fn config(&self) -> &CaduceusConfig {
        &self.config
    }

    /// The tensors, as in the files.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The weight files.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// SHA-256 over all that decides what the model computes: the content of the weight files and the
    /// hyperparameters. Names, folders and what else `config.json` says do not count.
    pub fn hash(&self) -> Result<String> {
        let mut fingerprint = Fingerprint::new();
        for (i, file) in self.files.iter().enumerate() {
            fingerprint.add_hash(format!("weights {i}"), file.sha256.as_str());
        }
        let config = CaduceusConfig { other: BTreeMap::new(), ..self.config.clone() };
        Ok(fingerprint.set_config(&config).map_err(Error::other)?.digest())
    }

    /// The model with its masked-language-model head (which has no parameters of its own), for inference.
    /// A classification head in the checkpoint is passed over; adapters of fine-tuning are part of the weights.
    ///
    /// # Errors
    /// Tensors that do not fit the config; a fine-tuned model with a stem, without which its body means nothing.
    pub fn model(&self, dtype: DType, device: &Device) -> Result<CaduceusForMaskedLm> {
        if self.tensors.keys().any(|name| name.starts_with("stem.")) {
            let message = "is fine-tuned with convolutions in front (head.stem), which only `predict` runs";
            return Err(problem(&self.path, message));
        }
        Ok(self.build(dtype, device)?.0)
    }

    /// The model's parameters, loaded for inference.
    pub fn params(&self, dtype: DType, device: &Device) -> Result<Params> {
        Ok(self.build(dtype, device)?.1)
    }

    fn build(&self, dtype: DType, device: &Device) -> Result<(CaduceusForMaskedLm, Params)> {
        let params = Params::frozen(self.tensors.clone(), dtype, device);
        let model = CaduceusForMaskedLm::new(&self.config, &params.builder());
        let model = model.map_err(|e| problem(&self.path, e))?;
        params.check_with(|_| false, is_head).map_err(|e| problem(&self.path, e))?;
        Ok((model, params))
    }

    /// The tensors of a classification head and its stem, which embedding does not use.
    pub fn head(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().filter(|(name, _)| is_head(name)).map(|(name, tensor)| (name.as_str(), tensor))
    }
}

fn is_head(name: &str) -> bool {
    name.starts_with("score.") || name.starts_with("stem.")
}

fn problem(path: &Path, message: impl ToString) -> Error {
    Error::Checkpoint { path: path.to_owned(), message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn saved(
        dir: &Path,
        config: &serde_json::Value,
        tensors: &BTreeMap<String, Tensor>,
    ) -> CaduceusCheckpoint {
        checkpoint::save_dir(dir, config, tensors).unwrap();
        CaduceusCheckpoint::open(Some(dir)).unwrap()
    }

    #[test]
    fn the_bundled_checkpoint_opens_and_runs() {
        let bundled = CaduceusCheckpoint::open(None).unwrap();
        assert!(bundled.path().to_string_lossy().starts_with("bundled "));
        assert!(bundled.card().is_some_and(|card| card.starts_with("# ")));
        assert!(bundled.files()[0].bytes < 4 << 20);
        bundled.model(DType::F32, &Device::Cpu).unwrap();
    }

    #[test]
    fn the_hash_follows_weights_and_hyperparameters_only() {
        let dir = tempfile::tempdir().unwrap();
        let bundled = CaduceusCheckpoint::bundled().unwrap();
        let mut config = serde_json::to_value(bundled.config()).unwrap();
        let first = saved(&dir.path().join("a"), &config, bundled.tensors()).hash().unwrap();
        config["_name_or_path"] = json!("elsewhere");
        assert_eq!(saved(&dir.path().join("b"), &config, bundled.tensors()).hash().unwrap(), first);
        config["norm_epsilon"] = json!(1e-6);
        assert_ne!(saved(&dir.path().join("c"), &config, bundled.tensors()).hash().unwrap(), first);
        let mut tensors = bundled.tensors().clone();
        let one = tensors.values_mut().next().unwrap();
        *one = (&*one + 1.0).unwrap();
        let config = serde_json::to_value(bundled.config()).unwrap();
        assert_ne!(saved(&dir.path().join("d"), &config, &tensors).hash().unwrap(), first);
    }

    #[test]
    fn a_classification_head_is_passed_over_and_other_strangers_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let bundled = CaduceusCheckpoint::bundled().unwrap();
        let config = serde_json::to_value(bundled.config()).unwrap();
        let mut tensors = bundled.tensors().clone();
        let head = Tensor::zeros((2, bundled.config().d_model), DType::F32, &Device::Cpu).unwrap();
        tensors.insert("score.weight".into(), head.clone());
        let opened = saved(&dir.path().join("a"), &config, &tensors);
        opened.model(DType::F32, &Device::Cpu).unwrap();
        assert_eq!(opened.head().map(|(name, _)| name).collect::<Vec<_>>(), ["score.weight"]);

        let (lost, _) = tensors.pop_first().unwrap();
        tensors.insert("stranger".into(), head);
        let folder = dir.path().join("b");
        let error = saved(&folder, &config, &tensors).model(DType::F32, &Device::Cpu).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}: checkpoint does not fit the model: 1 missing tensor: {lost}; 1 unexpected tensor: stranger",
                folder.display()
            )
        );
    }

    #[test]
    fn errors_name_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let bundled = CaduceusCheckpoint::bundled().unwrap();
        let message = |config: serde_json::Value| {
            checkpoint::save_dir(dir.path(), &config, bundled.tensors()).unwrap();
            let error = CaduceusCheckpoint::open(Some(dir.path())).unwrap_err();
            error.to_string().replace(&dir.path().display().to_string(), "DIR")
        };
        assert_eq!(
            message(json!({ "model_type": "bert" })),
            "DIR: config.json says model_type \"bert\", expected \"caduceus\""
        );
        assert!(message(json!({ "d_model": "wide" })).starts_with("DIR: config.json: invalid type: string"));
        assert!(message(json!({ "d_model": 0 })).starts_with("DIR: config.json: d_model, vocab_size"));
        let missing = dir.path().join("nothing");
        let error = CaduceusCheckpoint::open(Some(&missing)).unwrap_err();
        assert!(error.to_string().contains("nothing"), "{error}");
    }
}
