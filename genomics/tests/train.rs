//! `train`, `eval` and their errors, as a user runs them.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn command(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("mamba-genomics").expect("the binary is built");
    command.args(args);
    command
}

/// phiX174 in a file, and settings small enough for a test.
fn genome(folder: &TempDir) -> PathBuf {
    let sample = mamba_datasets::sample("phix174").expect("the sample exists");
    sample.write_to(folder.path()).expect("the sample can be written")
}

const SMALL: [&str; 12] = [
    "--preset",
    "tiny",
    "--steps",
    "6",
    "--batch",
    "2",
    "--length",
    "64",
    "--set",
    "train.eval_every=3",
    "--set",
    "data.block=300",
];

fn train(fasta: &Path, out: &Path, more: &[&str]) -> Command {
    let (fasta, out) = (fasta.to_str().unwrap(), out.to_str().unwrap());
    command(&[&["train", fasta, "--out", out, "--format", "json"], &SMALL[..], more].concat())
}

/// The last line of stdout.
fn table(command: &mut Command) -> Value {
    let output = command.assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn stderr(command: &mut Command, code: i32) -> String {
    String::from_utf8(command.assert().code(code).get_output().stderr.clone()).unwrap()
}

#[test]
fn a_run_leaves_a_whole_folder_and_eval_repeats_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let (fasta, out) = (genome(&folder), folder.path().join("run"));
    let trained = table(&mut train(&fasta, &out, &[]));
    let names =
        ["config.json", "model.safetensors", "optim.safetensors", "metrics.jsonl", "run.json", "loss.svg"];
    for name in names {
        assert!(out.join(name).exists(), "{name} is missing");
    }
    let bits = |table: &Value, key: &str| table[key]["bits"].as_f64().unwrap();
    for key in ["test", "causal_count_model", "two_sided_count_model"] {
        assert!((1.0..8.0).contains(&bits(&trained, key)), "{key}: {trained}");
    }
    let (fasta, out) = (fasta.to_str().unwrap(), out.to_str().unwrap());
    let evaluated = table(&mut command(&["eval", fasta, "--checkpoint", out, "--format", "json"]));
    assert_eq!(evaluated, trained);
}

#[test]
fn a_stopped_run_goes_on_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let fasta = genome(&folder);
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    train(&fasta, &whole, &[]).assert().success();
    train(&fasta, &stopped, &["--minutes", "0"]).assert().success();
    let again = stderr(&mut train(&fasta, &stopped, &[]), 1);
    assert!(
        again.contains("already holds a run") && again.contains("hint: --resume goes on with it"),
        "{again}"
    );
    train(&fasta, &stopped, &["--resume"]).assert().success();
    let read = |out: &Path| std::fs::read(out.join("optim.safetensors")).unwrap();
    let tensors =
        |bytes: &[u8]| candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu).unwrap();
    let (whole, stopped) = (tensors(&read(&whole)), tensors(&read(&stopped)));
    assert_eq!(whole.len(), stopped.len());
    for (name, tensor) in &whole {
        let bits = |x: &candle_core::Tensor| {
            let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(bits(tensor), bits(&stopped[name]), "{name}");
    }
}

#[test]
fn a_resumed_run_refuses_another_genome() {
    let folder = tempfile::tempdir().unwrap();
    let (fasta, out) = (genome(&folder), folder.path().join("run"));
    train(&fasta, &out, &[]).assert().success();
    let text = std::fs::read_to_string(&fasta).unwrap();
    let (header, bases) = text.split_once('\n').unwrap();
    let changed = if bases.starts_with('A') { "C" } else { "A" };
    std::fs::write(&fasta, format!("{header}\n{changed}{}", &bases[1..])).unwrap();
    let message = stderr(&mut train(&fasta, &out, &["--resume"]), 1);
    assert!(message.contains("data"), "{message}");
}

#[test]
fn ph_is_trained_too() {
    let folder = tempfile::tempdir().unwrap();
    let (fasta, out) = (genome(&folder), folder.path().join("run"));
    train(&fasta, &out, &["--ph"]).assert().success();
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    assert!(config.contains("\"rcps\": false"), "{config}");
}

#[test]
fn wrong_settings_are_named_and_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let (fasta, out) = (genome(&folder), folder.path().join("run"));
    for (flags, expected) in [
        (&["--preset", "huge"][..], "expected one of tiny, small, base, released"),
        (&["--set", "train.stepz=3"], "--set train.stepz=3: unknown field `stepz`"),
        (&["--set", "model.d_model=0"], "d_model"),
        (&["--batch", "0"], "batch_size is 0, must be at least 1"),
        (&["--learning-rate", "nan"], "learning_rate"),
        (&["--minutes", "nan"], "max_minutes"),
        (&["--dtype", "bf16"], "--dtype bf16 needs a CUDA device"),
    ] {
        let small: Vec<&str> = if flags[0] == "--preset" { vec![] } else { vec!["--preset", "tiny"] };
        let args = [&["train", fasta.to_str().unwrap(), "--out", out.to_str().unwrap()], &small[..], flags];
        let message = stderr(&mut command(&args.concat()), 2);
        assert!(message.contains(expected), "{flags:?}: {message}");
        assert!(!out.exists(), "{flags:?}");
    }
}

#[test]
fn bad_genomes_are_named_and_exit_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    for (path, expected) in [
        (folder.path().join("absent.fa"), "absent.fa"),
        (write("empty.fa", ""), "empty.fa"),
        (write("headless.fa", "ACGT\n"), "headless.fa"),
        (write("odd.fa", ">a\nAC!T\n"), "odd.fa:2"),
        (write("short.fa", ">a\nACGTACGTAC\n"), "block"),
    ] {
        let message = stderr(&mut train(&path, &out, &[]), 1);
        assert!(message.contains(expected), "{}: {message}", path.display());
    }
    let message = stderr(&mut command(&["eval", "--checkpoint", folder.path().to_str().unwrap()]), 1);
    assert!(message.contains("config.json"), "{message}");
}
