//! What is in a checkpoint of a protein model.

use super::{Best, Lines, best, best_line, run_info, run_lines};
use anyhow::Result;
use candle_core::{DType, Device};
use mamba_core::cli::Format;
use mamba_core::progress::short;
use mamba_core::run_folder::RunInfo;
use mamba_core::{Checkpoint, MixerConfig, checkpoint};
use mamba_genomics::checkpoint::WeightFile;
use mamba_genomics::protein::{ProteinConfig, ProteinModel};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;

/// What is printed of a checkpoint, if it is one of a protein model.
pub(super) fn describe(path: &Path, format: Format) -> Result<Option<String>> {
    let Ok(stored) = checkpoint::load(path, None) else { return Ok(None) };
    if ProteinConfig::of(&stored).is_err() {
        return Ok(None);
    }
    let (_, config) = ProteinModel::load(path, DType::F32, &Device::Cpu)?;
    let (run, best) = match path.is_dir() {
        true => (run_info(path)?, best(path)?),
        false => (None, None),
    };
    let files = stored.files.iter().map(|file| WeightFile::of(file)).collect::<mamba_core::Result<_>>()?;
    let facts = Facts { path, stored, config, files, run, best };
    Ok(Some(match format {
        Format::Json => facts.json(),
        Format::Human => facts.human(),
    }))
}

struct Facts<'a> {
    path: &'a Path,
    stored: Checkpoint,
    config: ProteinConfig,
    files: Vec<WeightFile>,
    run: Option<RunInfo>,
    best: Option<Best>,
}

impl Facts<'_> {
    /// A head that shares the embedding may be stored beside it, and counts once.
    fn parameters(&self) -> usize {
        let tensors = &self.stored.tensors;
        let is_copy =
            |name: &str| name == "lm_head.weight" && tensors.contains_key("backbone.embedding.weight");
        tensors.iter().filter(|(name, _)| !is_copy(name)).map(|(_, tensor)| tensor.elem_count()).sum()
    }

    fn dtypes(&self) -> BTreeSet<&'static str> {
        self.stored.tensors.values().map(|tensor| tensor.dtype().as_str()).collect()
    }

    fn json(&self) -> String {
        let facts = json!({
            "checkpoint": self.path,
            "architecture": self.config.name(),
            "config": self.config.to_json(),
            "parameters": { "total": self.parameters() },
            "dtype": self.dtypes(),
            "files": self.files,
            "run": self.run,
            "best": self.best.as_ref().map(|(step, metrics)| json!({ "step": step, "metrics": metrics })),
        });
        format!("{facts}\n")
    }

    fn human(&self) -> String {
        let (what, d_model, n_layer, ssm): (_, _, _, &MixerConfig) = match &self.config {
            ProteinConfig::ProtMamba(c) => {
                ("ProtMamba: causal, over homologs", c.d_model, c.n_layer, &c.ssm_cfg)
            }
            ProteinConfig::PtmMamba(c) => {
                ("PTM-Mamba: masked, over one protein", c.d_model, c.n_layer, &c.ssm_cfg)
            }
            ProteinConfig::MsaMamba(c) => {
                ("MSAMamba: masked, over an alignment", c.d_model, c.n_layer, &c.ssm_cfg)
            }
        };
        let mut lines = Lines(String::new());
        lines.add("checkpoint", self.path.display());
        lines.add("model", what);
        lines.add(
            "sizes",
            format!("d_model {d_model}, {n_layer} layers of {}, d_state {}", ssm.layer(), ssm.d_state()),
        );
        let total = self.parameters();
        lines.add("parameters", format!("{} ({total})", short(total as f64)));
        lines.add("type", self.dtypes().into_iter().collect::<Vec<_>>().join(", "));
        for file in &self.files {
            lines.add_file(file);
        }
        if let Some(run) = &self.run {
            run_lines(run, &mut lines);
        }
        best_line(self.best.as_ref(), &mut lines);
        lines.add("used by", "mamba-genomics protein score, protein infill");
        lines.0
    }
}
