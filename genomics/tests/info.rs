//! `mamba-genomics info`: what is in a checkpoint.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use mamba_core::{Params, checkpoint};
use mamba_genomics::{CaduceusConfig, CaduceusForMaskedLm};
use serde_json::{Value, json};

fn info(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mamba-genomics")).arg("info").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A folder with a fresh model and a classification head.
fn save(dir: &Path, rcps: bool) {
    let config = CaduceusConfig { rcps, d_model: 16, n_layer: 2, ..CaduceusConfig::default() };
    let params = Params::fresh(1, DType::F32, &Device::Cpu);
    CaduceusForMaskedLm::new(&config, &params.builder()).unwrap();
    let mut tensors = params.to_tensors();
    tensors.insert("score.weight".into(), Tensor::zeros((3, 16), DType::F32, &Device::Cpu).unwrap());
    checkpoint::save_dir(dir, &config, &tensors).unwrap();
}

#[test]
fn the_bundled_model_tells_its_sizes_and_shows_its_card() {
    let (code, stdout, _) = info(&[]);
    assert_eq!(code, 0);
    for text in ["checkpoint  bundled ", "Caduceus-PS", "parameters ", "12 padded to 16: [CLS]", "\n# "] {
        assert!(stdout.contains(text), "{text}: {stdout}");
    }
    let (_, stdout, _) = info(&["--format", "json"]);
    let facts: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(facts["kind"], "ps");
    assert_eq!(facts["run"], Value::Null);
    let parts = ["embedding", "mixers", "norms"].map(|part| facts["parameters"][part].as_u64().unwrap());
    assert_eq!(facts["parameters"]["total"], parts.iter().sum::<u64>());
}

#[test]
fn a_folder_from_a_hub_has_no_run() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), false);
    let path = dir.path().to_str().unwrap();
    let (code, stdout, stderr) = info(&[path]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("Caduceus-Ph"), "{stdout}");
    assert!(stdout.contains("score.weight [3, 16], not used by embed"), "{stdout}");
    assert!(!stdout.contains("made by") && !stdout.contains("\nbest"), "{stdout}");
    let file = dir.path().join("model.safetensors");
    let (_, stdout, _) = info(&[file.to_str().unwrap(), "--format", "json"]);
    let facts: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(facts["files"][0]["bytes"], fs::metadata(file).unwrap().len());
    assert_eq!((&facts["kind"], &facts["dtype"]), (&json!("ph"), &json!(["f32"])));
    assert_eq!(facts["parameters"]["classification_head"], 48);
    assert_eq!(facts["not_used_by_embed"], json!(["score.weight"]));
}

#[test]
fn a_run_folder_tells_how_the_model_was_made() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), true);
    let run = json!({
        "program": "mamba-genomics", "version": "0.1.0", "mamba_core": "0.1.0", "git_sha": null,
        "command": ["mamba-genomics", "train", "phage.fa"], "device": "cpu", "threads": 2, "seed": 42,
        "settings": { "fasta": ["phage.fa"] }, "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T00:10:00Z", "outcome": "Finished", "steps": 300,
    });
    fs::write(dir.path().join("run.json"), run.to_string()).unwrap();
    let valid = |step: u64, loss: f64, best: bool| json!({ "kind": "valid", "step": step, "metrics": { "loss": loss }, "best": best, "seconds": 1.0 });
    let metrics = [valid(100, 1.4, true), valid(200, 1.3, true), valid(300, 1.35, false)];
    fs::write(dir.path().join("metrics.jsonl"), metrics.map(|line| format!("{line}\n")).concat()).unwrap();
    let before = fs::read_dir(dir.path()).unwrap().count();

    let path = dir.path().to_str().unwrap();
    let (_, stdout, _) = info(&[path]);
    for line in [
        "made by     mamba-genomics 0.1.0",
        "command     mamba-genomics train phage.fa",
        "training    300 steps, seed 42, cpu with 2 threads: Finished",
        "data        phage.fa",
        "best        loss 1.3000 (step 200)",
    ] {
        assert!(stdout.contains(&format!("{line}\n")), "{line}: {stdout}");
    }
    let (_, stdout, _) = info(&[path, "--format", "json"]);
    let facts: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&facts["run"]["seed"], &facts["best"]["step"]), (&json!(42), &json!(200)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let (code, stdout, stderr) = info(&[path]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(
        stderr.starts_with(&format!("error: {path}/config.json: ")) && stderr.contains("\nhint: "),
        "{stderr}"
    );
    save(dir.path(), true);
    let weights = dir.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let (code, _, stderr) = info(&[path]);
    assert!(code == 1 && stderr.contains("model.safetensors: truncated"), "{stderr}");
    fs::write(&weights, bytes).unwrap();
    fs::write(dir.path().join("run.json"), "{").unwrap();
    let (code, _, stderr) = info(&[path]);
    assert!(code == 1 && stderr.contains("run.json: not a run's record"), "{stderr}");
}
