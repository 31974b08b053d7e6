//! What a training that goes on must share with the saved one.

use anyhow::Result;
use mamba_core::cli::HintExt;
use mamba_core::train::{self, TrainConfig};
use mamba_motion::config::MotionConfig;
use mamba_motion::run::Shared;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// What is saved in a folder; none if no run is.
pub(crate) fn saved(out: &Path) -> mamba_motion::Result<Option<Shared>> {
    match Shared::read(out) {
        Err(mamba_motion::Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Refuses settings in `sections` that are not those of the saved run, and names them.
pub(crate) fn refuse_other_settings(
    out: &Path,
    saved: &MotionConfig,
    now: &MotionConfig,
    sections: &[&str],
) -> Result<()> {
    let of_sections = |config: &MotionConfig| -> Result<Value> {
        let all = serde_json::to_value(config)?;
        Ok(sections.iter().map(|&section| (section.to_string(), all[section].clone())).collect())
    };
    // steps of a training, but not those of a diffusion
    let free = |path: &str| {
        path.split_once('.')
            .is_some_and(|(section, key)| section.starts_with("train_") && TrainConfig::FREE.contains(&key))
    };
    train::refuse_other_settings(out, &of_sections(saved)?, &of_sections(now)?, free)
        .hint("without --preset, --config and --set, --resume takes the saved run's settings")
}

/// Refuses clips, or a text encoder, that are not those of the saved run.
pub(crate) fn refuse_other_data(out: &Path, saved: &Shared, now: &Shared) -> Result<()> {
    if saved.data != now.data {
        return refuse(out, "was trained on other clips".into())
            .hint("name the same files as for the saved run");
    }
    let probe = |shared: &Shared| shared.text.as_ref().map(|text| text.probe.clone());
    match &saved.text {
        _ if probe(saved) == probe(now) => Ok(()),
        Some(text) => {
            let folder = text.folder.display();
            refuse(out, format!("was trained with the text encoder of {folder}"))
                .hint(format!("--text-encoder {folder}"))
        }
        None => refuse(out, "was trained on labels".into()).hint("leave out --text-encoder"),
    }
}

fn refuse(out: &Path, message: String) -> mamba_core::Result<()> {
    Err(mamba_core::Error::RunFolder { path: out.to_owned(), message })
}
