//! Training, measuring and comparing: what a refused command leaves, and what is told.

use crate::{SMALL, json, program, student, write_log};
use predicates::str::contains;
use std::path::Path;
use std::process::Stdio;

/// The files that make a model.
fn model(run: &Path) -> Vec<Vec<u8>> {
    ["config.json", "model.safetensors", "items.parquet"]
        .iter()
        .map(|name| std::fs::read(run.join(name)).unwrap())
        .collect()
}

const KT: &str =
    "--set model.hidden_size=8 --set model.mixer.d_state=4 --batch 8 --epochs 2 --quiet --format json";

#[test]
fn a_refused_resume_leaves_the_run_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    let log = std::fs::read_to_string(dir.join("log.csv")).unwrap();
    std::fs::write(
        dir.join("more.csv"),
        log.clone() + "u1,777,99\nu2,777,99\nu3,777,99\nu4,777,99\nu5,777,99\n",
    )
    .unwrap();
    let train = format!("train --out run --epochs 1 {SMALL}");
    program(dir, &format!("{train} --data log.csv")).assert().success();
    let measured = || json(dir, "eval --data log.csv --checkpoint run --format json --quiet");
    let (before, figures) = (model(&dir.join("run")), measured());
    let refused = |arguments: &str, message: &'static str| {
        program(dir, &format!("{train} --resume {arguments}")).assert().code(1).stderr(contains(message));
        assert_eq!(before, model(&dir.join("run")));
        assert_eq!(figures, measured());
    };
    refused("--data more.csv", "cannot resume with other data");
    refused("--data log.csv --set model.num_layers=2", "model.num_layers is 1 in the saved run, 2 now");
    refused(
        "--data log.csv --set eval.exclude_seen=true",
        "eval.exclude_seen is false in the saved run, true now",
    );
    refused(
        "--data log.csv --set data.filter.k_core=2",
        "cannot resume with other settings: data.filter.k_core is",
    );

    std::fs::write(dir.join("a.csv"), (0..40).map(student).collect::<String>()).unwrap();
    std::fs::write(
        dir.join("b.csv"),
        "2\n99,98\n1,0\n".to_string() + &(0..40).map(student).collect::<String>(),
    )
    .unwrap();
    program(dir, &format!("kt train --data a.csv --out kt {KT}")).assert().success();
    let before = model(&dir.join("kt"));
    program(dir, &format!("kt train --data b.csv --out kt --resume {KT}"))
        .assert()
        .code(1)
        .stderr(contains("cannot resume with other data"));
    assert_eq!(before, model(&dir.join("kt")));
}

#[test]
fn runs_of_other_settings_are_not_taken_for_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    for (out, flags) in [
        ("a", "--seed 1"),
        ("b", "--seed 2"),
        ("wide", "--seed 1 --set model.num_layers=2"),
        ("unseen", "--seed 1 --set eval.exclude_seen=true"),
    ] {
        program(dir, &format!("train --data log.csv --out {out} --epochs 1 {SMALL} {flags}"))
            .assert()
            .success();
    }
    let output = program(dir, "compare a b wide unseen --format json").output().unwrap().stdout;
    let rows = output.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let rows: Vec<serde_json::Value> = rows.collect();
    let mut runs: Vec<(String, u64)> = rows
        .iter()
        .filter(|row| row["model"] == "mamba4rec")
        .map(|row| (row["first_run"].as_str().unwrap().into(), row["runs"].as_u64().unwrap()))
        .collect();
    runs.sort();
    assert_eq!(runs, [("a".into(), 2), ("unseen".into(), 1), ("wide".into(), 1)]);
    // what the models are compared with knows no layers, but does know whether seen items count
    assert_eq!(rows.iter().filter(|row| row["model"] == "popularity").count(), 2);
    program(dir, "compare a b wide").assert().success().stdout(contains("mamba4rec as in wide"));
    program(dir, "compare a b").assert().success().stdout(contains("mamba4rec        2"));
}

#[test]
fn a_divided_folder_is_trained_validated_and_tested_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let students = |range: std::ops::Range<usize>| range.map(student).collect::<String>();
    std::fs::create_dir(dir.join("set")).unwrap();
    for (name, range) in [("train1.csv", 0..20), ("valid1.csv", 20..25), ("test.csv", 25..32)] {
        std::fs::write(dir.join("set").join(name), students(range)).unwrap();
    }
    let trained = json(dir, &format!("kt train --data set --out run {KT}"));
    assert_eq!(trained["test"][0]["metrics"]["answers"], 7 * 12);
    let evaluated = json(dir, "kt eval --data set --checkpoint run --quiet --format json");
    assert_eq!(trained["test"][0], evaluated["test"][0]);
    let info = json(dir, "info run --format json");
    assert_eq!((&info["skills"], &info["config"]["n_skills"]), (&4.into(), &5.into()));
    program(dir, "info run").assert().success().stdout(contains("answers     240 trained on"));

    std::fs::remove_file(dir.join("set/valid1.csv")).unwrap();
    program(dir, &format!("kt train --data set --out other {KT}"))
        .assert()
        .code(1)
        .stderr(contains("set is a folder; name the files in it: test.csv, train1.csv"));
}

#[test]
fn a_reader_of_stdout_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    program(dir, &format!("train --data log.csv --out run --epochs 1 {SMALL}")).assert().success();
    std::fs::write(dir.join("a.csv"), (0..40).map(student).collect::<String>()).unwrap();
    program(dir, &format!("kt train --data a.csv --out kt {KT}")).assert().success();
    for arguments in [
        "info run",
        "info kt --format json",
        "eval --data log.csv --checkpoint run --quiet",
        "kt eval --data a.csv --checkpoint kt --quiet",
        "compare run kt",
        "score --checkpoint run --data log.csv --out recs.csv --format json --quiet",
        "completions bash",
    ] {
        let mut child = std::process::Command::new(program(dir, "").get_program())
            .current_dir(dir)
            .args(arguments.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "{arguments}: {told}");
    }
}
