//! Low-rank adapters (Hu et al. 2021, arXiv 2106.09685, equation 3): beside a frozen weight `W` of a linear map two small
//! matrices are trained,
//!
//! ```text
//! y = x Wᵀ + (α / r) (x Aᵀ) Bᵀ          A (r, in), B (out, r); B starts at zero, so that training starts at W
//! ```
//!
//! [`Params::with_lora`](crate::Params::with_lora) gives adapters to every linear map whose name `targets` has, in any
//! model, and freezes all else. [`save_dir`] writes only the adapters, in the layout of Hugging Face peft; [`merge`] adds
//! them to the weights for good.
//!
//! ```
//! use candle_core::{DType, Device};
//! use mamba_core::{LoraConfig, Mamba1, Mamba1Config, Params, lora};
//! let base = Params::fresh(1, DType::F32, &Device::Cpu);
//! Mamba1::new(32, &Mamba1Config::default(), 1, &base.builder())?;
//! let mut weights = base.to_tensors();
//!
//! let cfg = LoraConfig { rank: 4, ..Default::default() };
//! let params = Params::trainable(weights.clone(), 2, DType::F32, &Device::Cpu).with_lora(&cfg)?;
//! let mixer = Mamba1::new(32, &Mamba1Config::default(), 1, &params.builder())?; // train it
//! assert_eq!(params.vars().len(), 8); // A and B of in_proj, x_proj, dt_proj, out_proj
//!
//! lora::merge(&mut weights, &lora::adapters(&params), &cfg)?;
//! # Ok::<(), mamba_core::Error>(())
//! ```

use crate::checkpoint::{load_safetensors, read_json, save_safetensors, write_json};
use crate::nn::flip;
use crate::{Error, Params};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Which linear maps get adapters, and of what size; serialised with peft's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Rank of the change, r.
    #[serde(rename = "r")]
    pub rank: usize,
    /// The change is multiplied by α / r.
    #[serde(rename = "lora_alpha")]
    pub alpha: f64,
    /// Last parts of the names of the linear maps that get adapters.
    #[serde(rename = "target_modules")]
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = ["in_proj", "x_proj", "dt_proj", "out_proj"].map(String::from).to_vec();
        Self { rank: 8, alpha: 16.0, targets }
    }
}

impl LoraConfig {
    /// Refuses settings that make no adapter.
    pub fn validate(&self) -> crate::Result<()> {
        if self.rank == 0 || self.targets.is_empty() || !self.alpha.is_finite() {
            let Self { rank, alpha, targets } = self;
            return Err(Error::Config(format!(
                "adapters of rank {rank}, alpha {alpha} on {targets:?}: expected a rank of at least 1, a finite alpha and at least one target"
            )));
        }
        Ok(())
    }

    /// The factor of the change.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    pub(crate) fn applies_to(&self, module: &str) -> bool {
        self.targets.iter().any(|target| module.rsplit('.').next() == Some(target))
    }
}

/// The low-rank change of one linear map.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    /// `(r, in)`.
    a: Tensor,
    /// `(out, r)`.
    b: Tensor,
    scale: f64,
}

impl Adapter {
    pub(crate) fn new(a: Tensor, b: Tensor, scale: f64) -> Self {
        Self { a, b, scale }
    }

    /// The change in parts: `(…, in)` → `(…, parts[i])` each.
    pub(crate) fn split(&self, x: &Tensor, parts: &[usize]) -> Result<Vec<Tensor>> {
        let low = mamba_kernels::linear(x, &self.a, None, &[self.a.dim(0)?])?.swap_remove(0); // (…, r)
        mamba_kernels::linear(&(low * self.scale)?, &self.b, None, parts)
    }

    pub(crate) fn flip_input(&self) -> Result<Self> {
        Ok(Self { a: flip(&self.a, 1)?, ..self.clone() })
    }

    pub(crate) fn flip_output(&self) -> Result<Self> {
        Ok(Self { b: flip(&self.b, 0)?, ..self.clone() })
    }
}

/// The adapters among a model's parameters, by name.
pub fn adapters(params: &Params) -> BTreeMap<String, Tensor> {
    params.to_tensors().into_iter().filter(|(name, _)| module_of(name).is_some()).collect()
}

/// The linear map that an adapter's tensor belongs to.
fn module_of(name: &str) -> Option<&str> {
    [".lora_A.weight", ".lora_B.weight"].into_iter().find_map(|end| name.strip_suffix(end))
}

/// Adds adapters to the weights that they belong to: `W + (α / r) B A`, computed in f64.
///
/// # Errors
/// An adapter without its other half, without a weight, or of the wrong shape.
pub fn merge(
    weights: &mut BTreeMap<String, Tensor>,
    adapters: &BTreeMap<String, Tensor>,
    cfg: &LoraConfig,
) -> crate::Result<()> {
    use candle_core::DType::F64;
    cfg.validate()?;
    let modules: std::collections::BTreeSet<&str> = adapters.keys().filter_map(|n| module_of(n)).collect();
    let missing = |name: &str| Error::Tensors { missing: vec![name.to_string()], unexpected: Vec::new() };
    for module in modules {
        let part = |end: &str| {
            let name = format!("{module}.{end}");
            adapters.get(&name).ok_or_else(|| missing(&name))?.to_dtype(F64).map_err(Error::from)
        };
        let change = (part("lora_B.weight")?.matmul(&part("lora_A.weight")?)? * cfg.scale())?; // (out, in)
        let name = format!("{module}.weight");
        let weight = weights.get_mut(&name).ok_or_else(|| missing(&name))?;
        if weight.shape() != change.shape() {
            let (w, c) = (weight.dims(), change.dims());
            return Err(Error::Config(format!("{name} has shape {w:?}, its adapter makes {c:?}")));
        }
        *weight = (weight.to_dtype(F64)? + change)?.to_dtype(weight.dtype())?;
    }
    Ok(())
}

/// Writes `adapter_config.json` and `adapter_model.safetensors`, each whole or not at all, and creates the folder.
pub fn save_dir(dir: impl AsRef<Path>, cfg: &LoraConfig, params: &Params) -> crate::Result<()> {
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let mut json = serde_json::to_value(cfg).map_err(Error::other)?;
    json["peft_type"] = Value::from("LORA");
    write_json(&dir.join(CONFIG), &json)?;
    save_safetensors(dir.join(WEIGHTS), &adapters(params), &BTreeMap::new())
}

/// Reads what [`save_dir`] or peft wrote.
pub fn load_dir(dir: impl AsRef<Path>) -> crate::Result<(LoraConfig, BTreeMap<String, Tensor>)> {
    let dir = dir.as_ref();
    let path = dir.join(CONFIG);
    let cfg: LoraConfig =
        serde_json::from_value(read_json(&path)?).map_err(|e| Error::checkpoint(&path, e))?;
    cfg.validate()?;
    let path = dir.join(WEIGHTS);
    let (tensors, _) = load_safetensors(&path)?;
    let stripped = |name: String| name.strip_prefix("base_model.model.").map_or(name.clone(), String::from);
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().map(|(n, t)| (stripped(n), t)).collect();
    if let Some(other) = tensors.keys().find(|name| module_of(name).is_none()) {
        return Err(Error::checkpoint(&path, format!("{other} is not part of an adapter")));
    }
    Ok((cfg, tensors))
}
