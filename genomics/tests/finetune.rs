//! `mamba-genomics finetune` and `predict`, from tables and FASTA files to models and predictions.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

#[path = "finetune/labelled.rs"]
mod labelled;
#[path = "finetune/prediction.rs"]
mod prediction;

use assert_cmd::Command;
use mamba_core::Rng;
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// Runs the program here: exit code, stdout, stderr.
    fn run(&self, args: &str) -> (i32, String, String) {
        let mut command = Command::cargo_bin("mamba-genomics").expect("the binary is built");
        let output = command.current_dir(self.0.path()).args(args.split_whitespace()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn succeed(&self, args: &str) -> String {
        let (code, stdout, stderr) = self.run(args);
        assert_eq!(code, 0, "{args}: {stderr}");
        stdout
    }
}

/// Sequences of 24 to 40 bases; those of class `yes` hold GATTACA on one of the strands.
fn motifs(n: usize, seed: u64) -> Vec<(String, &'static str)> {
    let mut rng = Rng::new(seed);
    (0..n)
        .map(|i| {
            let mut bases: Vec<u8> = (0..24 + rng.below(17)).map(|_| b"ACGT"[rng.below(4)]).collect();
            if i % 2 == 0 {
                let at = rng.below(bases.len() - 7);
                let motif: &[u8] = if rng.below(2) == 0 { b"GATTACA" } else { b"TGTAATC" };
                bases[at..at + 7].copy_from_slice(motif);
            }
            (String::from_utf8(bases).unwrap(), if i % 2 == 0 { "yes" } else { "no" })
        })
        .collect()
}

fn table(rows: &[(String, &'static str)]) -> String {
    rows.iter().fold("sequence,label\n".to_string(), |mut text, (bases, label)| {
        writeln!(text, "{bases},{label}").unwrap();
        text
    })
}

/// Settings small enough for a test.
const SMALL: &str = "--set model.d_model=16 --set model.n_layer=1 --set head.stem.channels=16 --set head.dropout=0 \
    --set task.shift=0 --set task.mask=0 --set train.ema=0.9 --set train.warmup=10 --batch 32 --learning-rate 1e-2 \
    --format json --quiet";

fn figure(report: &Value, part: &str, name: &str) -> f64 {
    report[part]["figures"][name]["value"].as_f64().unwrap()
}

/// The best validation figure that the training loop noted.
fn best_of_run(folder: &Folder, run: &str, metric: &str) -> f64 {
    let text = fs::read_to_string(folder.path(run).join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_best = records.filter(|r| r["best"] == true).map(|r| r["metrics"][metric].as_f64().unwrap());
    of_best.reduce(|_, next| next).unwrap()
}

#[test]
fn a_motif_on_either_strand_is_learnt_by_ps_and_by_ph() {
    let folder = Folder::new();
    folder.write("train.csv", table(&motifs(900, 1)));
    folder.write("dev.csv", table(&motifs(100, 2)));
    folder.write("test.csv", table(&motifs(200, 3)));
    for (run, flags) in [("ps", ""), ("ph", "--ph")] {
        let out = folder.succeed(&format!(
            "finetune train.csv --valid dev.csv --test test.csv --out {run} --epochs 12 {flags} {SMALL}"
        ));
        let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert!(figure(&report, "test", "mcc") > 0.8, "{run}: {report}");
        assert_eq!(report, folder.json(&format!("{run}/report.json")));
        // The weights that were kept are those that were best, as the training loop computed them.
        let (kept, best) = (figure(&report, "valid", "mcc"), best_of_run(&folder, run, "mcc"));
        assert!((kept - best).abs() < 1e-9, "{kept} {best}");
        let interval = &report["test"]["figures"]["auroc"];
        let [low, value, high] = ["low", "value", "high"].map(|key| interval[key].as_f64().unwrap());
        assert!(0.9 < low && low <= value && value <= high, "{interval}");
        let svg = fs::read_to_string(folder.path(run).join("report.svg")).unwrap();
        assert!(svg.contains("confusion matrix") && svg.contains("ROC, area"), "{svg}");
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_weights() {
    let folder = Folder::new();
    folder.write("all.csv", table(&motifs(120, 4)));
    let train = |out: &str, more: &str| {
        folder.run(&format!("finetune all.csv --out {out} --epochs 12 --metric loss {SMALL} {more}"))
    };
    assert_eq!(train("whole", "").0, 0);
    assert_eq!(train("stopped", "--minutes 0").0, 0);
    let (code, _, stderr) = train("stopped", "");
    assert!(code == 1 && stderr.contains("hint: --resume goes on with it"), "{stderr}");
    assert_eq!(train("stopped", "--resume").0, 0);
    let weights = |run: &str| fs::read(folder.path(run).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("stopped"));
    let (code, _, stderr) = train("whole", "--resume --set head.dropout=0.3");
    assert!(code == 1 && stderr.contains("head.dropout"), "{stderr}");
    // More epochs are more steps, and so a longer warm-up, unless that of the saved run is named.
    let more = |set: &str| {
        folder.run(&format!("finetune all.csv --out whole --epochs 14 --metric loss {SMALL} --resume {set}"))
    };
    let (code, _, stderr) = more("");
    assert!(
        code == 1
            && stderr.contains("train.warmup is 7 in the saved run")
            && stderr.contains("hint: the warm-up"),
        "{stderr}"
    );
    assert_eq!(more("--set train.warmup=7").0, 0);
}

#[test]
fn values_are_learnt_and_reported_in_their_own_units() {
    let folder = Folder::new();
    // The share of G, times 100.
    let value =
        |bases: &str| 100.0 * bases.bytes().filter(|&b| b == b'G').count() as f64 / bases.len() as f64;
    let text = motifs(400, 5).iter().fold("seq\tlog2\n".to_string(), |mut text, (bases, _)| {
        writeln!(text, "{bases}\t{}", value(bases)).unwrap();
        text
    });
    folder.write("values.tsv", text);
    let out = folder.succeed(&format!(
        "finetune values.tsv --sequence-column seq --label-column log2 --task regression --out run --epochs 20 \
        --strands given {SMALL}"
    ));
    let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert!(figure(&report, "test", "pearson") > 0.8, "{report}");
    let mae = figure(&report, "test", "mae");
    assert!((0.01..5.0).contains(&mae), "{mae}");
    assert!(folder.path("run/report.svg").exists());
}

#[test]
fn folds_hold_every_sequence_out_once_and_never_a_copy_of_a_training_sequence() {
    let folder = Folder::new();
    let rows = motifs(60, 6);
    for class in ["yes", "no"] {
        let records = rows.iter().enumerate().filter(|(_, row)| row.1 == class);
        let text = records.fold(String::new(), |mut text, (i, (bases, _))| {
            writeln!(text, ">{class}{i}\n{bases}").unwrap();
            text
        });
        folder.write(&format!("{class}.fa"), text);
    }
    let out = folder.succeed(&format!(
        "finetune --class yes=yes.fa --class no=no.fa --folds 3 --out cv --epochs 1 {SMALL} --set data.valid=0.2 \
        --predictions cv.csv"
    ));
    let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(report["folds"].as_array().unwrap().len(), 3);
    assert_eq!(report["pooled"]["sequences"], 60);
    let text = fs::read_to_string(folder.path("cv.csv")).unwrap();
    assert!(text.starts_with("id,label,predicted,p_no,p_yes\n"), "{text}");
    let mut ids: Vec<&str> = text.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 60);
    assert!(
        text.lines().skip(1).all(|line| line.split(',').nth(1).is_some_and(|label| line.starts_with(label)))
    );
    assert_eq!(prediction::rows(&folder.path("cv/fold-2/predictions.parquet")).len(), 20);
}

#[test]
fn frozen_bodies_stay_and_adapters_are_trained() {
    let folder = Folder::new();
    folder.write("all.csv", table(&motifs(120, 7)));
    folder.succeed(&format!("finetune all.csv --out base --epochs 1 {SMALL}"));
    let load = |run: &str| mamba_core::checkpoint::load_dir(folder.path(run)).unwrap().tensors;
    let base = load("base");
    for mode in ["frozen", "lora"] {
        let out = folder.succeed(&format!(
            "finetune all.csv --checkpoint base --mode {mode} --out {mode} --epochs 2 --set task.lora.r=2 --quiet \
            --format json --metric loss"
        ));
        let tuned = load(mode);
        for (name, tensor) in base.iter().filter(|(name, _)| name.starts_with("caduceus.")) {
            let (a, b) = (tensor.flatten_all().unwrap(), tuned[name].flatten_all().unwrap());
            assert_eq!(a.to_vec1::<f32>().unwrap(), b.to_vec1::<f32>().unwrap(), "{mode}: {name}");
        }
        let adapters = tuned.keys().filter(|name| name.contains(".lora_")).count();
        assert_eq!(adapters > 0, mode == "lora");
        assert!(tuned.contains_key("score.weight"));
        // What the adapters were merged into predicts as the model with adapters did.
        let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        let (kept, best) = (figure(&report, "valid", "auroc"), best_of_run(&folder, mode, "auroc"));
        assert!((kept - best).abs() < 1e-3, "{mode}: {kept} {best}");
    }
    // Without its stem the body means nothing.
    folder.write("one.fa", ">one\nACGT\n");
    let (code, _, stderr) = folder.run("embed one.fa --checkpoint lora --out one.parquet");
    assert!(code == 1 && stderr.contains("only `predict` runs"), "{stderr}");
    assert!(folder.succeed("info lora").contains("classification head"));
    let (code, _, stderr) = folder.run(&format!("finetune all.csv --mode lora --out none {SMALL}"));
    assert!(code == 2 && stderr.contains("--checkpoint DIR"), "{stderr}");
    let (code, _, stderr) = folder.run("finetune all.csv --checkpoint base --strands given --out none");
    assert!(
        code == 2 && stderr.contains("always reads both strands") && !stderr.contains("rcps"),
        "{stderr}"
    );
}

#[test]
fn wrong_input_is_named_and_leaves_nothing() {
    let folder = Folder::new();
    let good = table(&motifs(40, 8));
    folder.write("good.csv", &good);
    folder.write("header.csv", "seq,label\nACGT,0\n");
    folder.write("field.csv", "sequence,label\nACGT,0\nACGT\n");
    folder.write("base.csv", "sequence,label\nACGT,0\n\nACJT,1\n");
    folder.write("empty.csv", "");
    folder.write("one.csv", "sequence,label\nACGT,0\nACGA,0\n");
    folder.write("no_rows.csv", "sequence,label\n");
    folder.write("no_label.csv", "sequence,label\nACGT,\n");
    folder.write("other.csv", "sequence,label\nACGT,maybe\n");
    folder.write("yes.csv", "sequence,label\nACGT,yes\nACGG,yes\n");
    fs::create_dir(folder.path("folder.csv")).unwrap();
    folder.write("broken.parquet", "PAR1 and nothing else");
    for (args, code, message) in [
        ("header.csv", 1, "header.csv:1: there is no column \"sequence\", only seq, label"),
        ("field.csv", 1, "field.csv:3: 1 fields, but the header has 2"),
        ("base.csv", 1, "base.csv:4: invalid character 'J' at base 3 of the sequence"),
        ("empty.csv", 1, "empty.csv: file is empty"),
        ("one.csv --set data.valid=0 --set data.test=0", 1, "all have the label \"0\""),
        ("no_rows.csv", 1, "no_rows.csv: there are no rows"),
        ("no_label.csv", 1, "no_label.csv:2: the label is empty"),
        ("missing.csv", 1, "cannot open missing.csv"),
        ("broken.parquet", 1, "broken.parquet: cannot be read as Parquet"),
        (
            "good.csv --valid other.csv",
            1,
            "other.csv:2: label \"maybe\" is none of the training sequences': no, yes",
        ),
        ("good.csv --task regression", 1, "good.csv:2: label \"yes\" is not a finite number"),
        ("good.csv --valid yes.csv --metric auroc", 2, "auroc is not defined on validation sequences"),
        ("good.csv --predictions out.txt", 2, "unknown output format"),
        ("good.csv --predictions out.npy", 2, "--predictions out.npy: expected .parquet, .csv or .tsv"),
        ("good.csv --predictions nowhere/p.csv", 2, "--predictions nowhere/p.csv: its folder does not exist"),
        ("good.csv --predictions folder.csv", 2, "--predictions folder.csv: is a folder"),
        ("good.csv --batch 0", 2, "batch_size is 0, must be at least 1"),
        ("good.csv --learning-rate nan", 2, "learning_rate"),
        ("good.csv --minutes nan", 2, "max_minutes"),
        ("good.csv --patience 0", 2, "patience is 0, must be at least 1"),
        ("good.csv --folds 0", 2, "--folds 0: must be at least 2"),
        ("good.csv --folds 1", 2, "--folds 1: must be at least 2"),
        ("good.csv --folds 3 --drop-leaks", 2, "cannot be used with"),
        ("good.csv --task regression --class-weights", 2, "--class-weights) is for classes"),
        ("good.csv --metric pearson", 2, "pearson is not one of classification"),
        ("good.csv --strands given --set model.rcps=true", 2, "head.strands is given"),
        ("good.csv --preset huge", 2, "expected motif or one of tiny"),
        ("good.csv --folds 100", 1, "class \"no\""),
        ("--class yes.fa", 2, "expected NAME=FASTA"),
        ("", 2, "required"),
    ] {
        let (got, _, stderr) = folder.run(&format!("finetune {args} --out run --quiet"));
        assert_eq!(got, code, "{args}: {stderr}");
        assert!(stderr.contains(message), "{args}: {stderr}");
        assert!(!folder.path("run").exists(), "{args}");
    }
}

#[test]
fn leaks_are_counted_and_removed_on_request() {
    let folder = Folder::new();
    let rows = motifs(60, 9);
    let (train, held_out) = rows.split_at(40);
    let reverse = |bases: &str| {
        let bases = mamba_genomics::tokenizer::reverse_complement_bytes(bases.as_bytes());
        String::from_utf8(bases).unwrap()
    };
    let mut test = held_out.to_vec();
    test.extend([(train[0].0.clone(), train[0].1), (reverse(&train[1].0), train[1].1)]);
    folder.write("train.csv", table(train));
    test.push((held_out[0].0.clone(), held_out[0].1));
    folder.write("test.csv", table(&test));
    folder.write("dev.csv", table(&held_out[..2]));
    let loud = SMALL.replace("--format json --quiet", "");
    let run = |out: &str, more: &str| {
        let args = format!(
            "finetune train.csv --out {out} --epochs 1 --metric loss --set data.valid=0 --set data.test=0 {more} {loud}"
        );
        let (code, _, stderr) = folder.run(&args);
        assert_eq!(code, 0, "{stderr}");
        stderr
    };
    let leaks = |out: &str| folder.json(&format!("{out}/report.json"))["leaks"].to_string();
    let said = run("a", "--test test.csv");
    assert!(said.contains("2 of 23 test sequences are among the training sequences too"), "{said}");
    assert!(said.contains("40 sequences to train on"), "{said}");
    assert!(said.contains("predictions of the test in a/predictions.parquet"), "{said}");
    assert_eq!(leaks("a"), r#"{"dropped":0,"test":2,"valid":0,"valid_test":0}"#);
    let said = run("b", "--test test.csv --valid dev.csv --drop-leaks --predictions ./b/own.csv");
    assert!(said.contains("38 sequences to train on"), "{said}");
    assert!(said.contains("predictions of the test in ./b/own.csv"), "{said}");
    assert!(folder.path("b/own.csv").exists() && !folder.path("b/predictions.parquet").exists());
    assert_eq!(leaks("b"), r#"{"dropped":2,"test":2,"valid":0,"valid_test":3}"#);
    // Nothing held out: no predictions, no picture.
    let said = run("c", "");
    assert!(said.contains("run in c: model, report.json\n") && !said.contains("predictions of"), "{said}");
    assert!(!folder.path("c/report.svg").exists());
}

fn exists(path: &Path) -> bool {
    path.exists()
}
