//! What a training that goes on must share with the saved one.

use anyhow::Result;
use mamba_core::cli::HintExt;
use mamba_motion::config::MotionConfig;
use mamba_motion::run::Shared;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

/// Settings of a training that only say when to look, save and end.
const FREE: [&str; 6] = ["steps", "eval_every", "save_every", "log_every", "patience", "max_minutes"];

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
    let (saved, now) = (serde_json::to_value(saved)?, serde_json::to_value(now)?);
    let mut differences = Vec::new();
    for section in sections {
        compare(section, &saved[section], &now[section], &mut differences);
    }
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!("cannot resume with other settings: {}", differences.join("; "));
    refuse(out, message).hint("without --preset, --config and --set, --resume takes the saved run's settings")
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

/// Lists the places where two settings differ.
fn compare(path: &str, saved: &Value, now: &Value, differences: &mut Vec<String>) {
    match (saved, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys.into_iter().filter(|key| !FREE.contains(&key.as_str())) {
                compare(&format!("{path}.{key}"), &saved[key], &now[key], differences);
            }
        }
        (saved, now) if saved != now => {
            differences.push(format!("{path} is {} in the saved run, {} now", short(saved), short(now)));
        }
        _ => (),
    }
}

/// A value, of which a long text is cut.
fn short(value: &Value) -> String {
    const MOST: usize = 40;
    let text = value.to_string();
    let cut: String = text.chars().take(MOST).collect();
    if cut == text { text } else { format!("{cut}…") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_steps_are_free() {
        let saved = MotionConfig::preset("tiny").unwrap();
        let mut now = saved.clone();
        now.train_vae.steps += 1;
        now.train_vae.max_minutes = Some(3.0);
        now.stream.d_model = 7;
        let out = Path::new("run");
        refuse_other_settings(out, &saved, &now, &["vae", "train_vae", "crop"]).unwrap();
        now.vae.latent_dim = 8;
        now.source.skeleton = Some("x".repeat(100));
        let message = refuse_other_settings(out, &saved, &now, &["source", "vae"]).unwrap_err().to_string();
        assert!(message.contains("vae.latent_dim is 64 in the saved run, 8 now"), "{message}");
        assert!(
            message.contains("source.skeleton is null in the saved run, \"xxx") && message.len() < 250,
            "{message}"
        );
    }
}
