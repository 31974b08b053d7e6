//! A reader of standard output that goes away early ends a command, and is no error.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a command whose standard output is closed from the beginning.
fn run_unread(folder: &Path, args: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mamba-genomics"))
        .current_dir(folder)
        .args(args.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !stderr.contains("panicked"), "{args}: {}: {stderr}", output.status);
}

#[test]
fn commands_end_well_where_nobody_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    mamba_datasets::sample("phix174").unwrap().write_to(folder).unwrap();
    let genome = fs::read_dir(folder).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let mut rng = mamba_core::Rng::new(1);
    let mut draw = |letters: &[u8], n: usize| -> String {
        (0..n).map(|_| char::from(letters[rng.below(letters.len())])).collect()
    };
    let (mut table, mut family) = ("sequence,label\n".to_string(), String::new());
    for i in 0..40 {
        writeln!(table, "{},{}", draw(b"ACGT", 24), i % 2).unwrap();
        writeln!(family, ">p{i}\n{}", draw(b"ACDEFGHIKLMNPQRSTVWY", 30)).unwrap();
    }
    fs::write(folder.join("all.csv"), table).unwrap();
    fs::write(folder.join("family.fa"), family).unwrap();
    let small = "--set model.d_model=16 --set model.n_layer=1 --quiet";
    for args in [
        format!("finetune all.csv --out one --epochs 1 --metric loss {small}"),
        format!("finetune all.csv --out one-json --epochs 1 --metric loss --format json {small}"),
        format!("finetune all.csv --out folds --folds 2 --epochs 1 --metric loss {small}"),
        format!("train {genome} --out train --steps 2 --batch 2 --length 64 --set data.block=300 {small}"),
        format!("eval {genome} --checkpoint train --quiet"),
        format!("protein train family.fa --model ptm-mamba --out protein --steps 2 --batch 2 {small}"),
        "quickstart --minutes 0 --out quickstart --quiet".into(),
        "info train".into(),
        "completions bash".into(),
    ] {
        run_unread(folder, &args);
    }
}
