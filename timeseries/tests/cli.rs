//! The commands as a user runs them.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn command(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("mamba-timeseries").expect("the binary is built");
    command.args(args);
    command
}

/// Two hourly series with a daily course, `rows` rows each.
fn table(folder: &TempDir, name: &str, rows: usize) -> PathBuf {
    let mut text = String::from("place,time,load,price\n");
    for (id, phase) in [("north", 0.0), ("south", 2.0)] {
        for i in 0..rows {
            let angle = i as f64 * std::f64::consts::TAU / 24.0 + phase;
            let (load, price) = (100.0 + 20.0 * angle.sin() + (i * 7 % 5) as f64, 30.0 + 5.0 * angle.cos());
            text += &format!(
                "{id},2021-{:02}-{:02} {:02}:00,{load:.3},{price:.3}\n",
                1 + i / 672,
                1 + i / 24 % 28,
                i % 24
            );
        }
    }
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

const SMALL: [&str; 20] = [
    "--id",
    "place",
    "--gaps",
    "keep",
    "--horizon",
    "6",
    "--look-back",
    "24",
    "--epochs",
    "2",
    "--format",
    "json",
    "--set",
    "model.d_model=16",
    "--set",
    "model.d_ff=16",
    "--set",
    "train.window_stride=4",
    "--set",
    "train.batch_size=16",
];

fn train(table: &Path, out: &Path, more: &[&str]) -> Command {
    command(&[&["train", table.to_str().unwrap(), "--out", out.to_str().unwrap()], &SMALL[..], more].concat())
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

fn last_json(command: &mut Command) -> Value {
    serde_json::from_str(stdout(command).lines().last().unwrap()).unwrap()
}

fn stderr(command: &mut Command, code: i32) -> String {
    String::from_utf8(command.assert().code(code).get_output().stderr.clone()).unwrap()
}

#[test]
fn a_model_is_trained_tested_and_forecasts() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, out) = (table(&folder, "load.csv", 600), folder.path().join("run"));
    let trained = last_json(&mut train(&rows, &out, &[]));
    for name in [
        "config.json",
        "model.safetensors",
        "optim.safetensors",
        "metrics.jsonl",
        "run.json",
        "loss.svg",
        "calibration.safetensors",
    ] {
        assert!(out.join(name).exists(), "{name} is missing");
    }
    let (rows, run) = (rows.to_str().unwrap(), out.to_str().unwrap());
    let evaluated = last_json(&mut command(&["eval", rows, "--checkpoint", run, "--format", "json"]));
    assert_eq!(evaluated, trained);
    let mse = |pointer: &str| evaluated.pointer(pointer).and_then(Value::as_f64).unwrap();
    assert!(mse("/test/mse") < mse("/baselines/0/1/mse"), "better than the last value: {evaluated}");
    assert_eq!(evaluated["test"]["windows"], 2 * (120 - 6 + 1));

    // forecasts in every format, of which a finished one is left alone
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let plot = file("f.png");
    for name in ["f.csv", "f.parquet", "f.json"] {
        let path = file(name);
        let args =
            ["forecast", rows, "--checkpoint", run, "--out", &path, "--plot", &plot, "--plot-id", "south"];
        command(&args).assert().success();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert!(stderr(&mut command(&args), 0).contains("left as it is"));
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
    }
    let csv = std::fs::read_to_string(file("f.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 2 * 6 * 2);
    assert!(csv.starts_with("id,time,column,forecast,lower_80,upper_80,lower_95,upper_95\nnorth,"));
    let json: Value = serde_json::from_str(&std::fs::read_to_string(file("f.json")).unwrap()).unwrap();
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    for row in json.as_array().unwrap() {
        let bounds = ["lower_95", "lower_80", "forecast", "upper_80", "upper_95"].map(|key| number(row, key));
        assert!(bounds.is_sorted(), "{row}");
        let range = if row["column"] == "load" { 60.0..150.0 } else { 15.0..45.0 };
        assert!(range.contains(&number(row, "forecast")), "in the units of the table: {row}");
    }
    assert!(std::fs::read(&plot).unwrap().starts_with(b"\x89PNG"));

    // parts hold the same rows, whoever makes them
    let parts = file("parts");
    for shard in ["1/2", "0/2"] {
        let args =
            ["forecast", rows, "--checkpoint", run, "--out", &parts, "--part-series", "1", "--shard", shard];
        command(&args).assert().success();
    }
    for name in ["part-00000.parquet", "part-00001.parquet"] {
        assert!(Path::new(&parts).join(name).exists(), "{name}");
    }
    let again = ["forecast", rows, "--checkpoint", run, "--out", &parts, "--part-series", "1"];
    assert!(stderr(&mut command(&again), 0).contains("2 parts finished before, 0 left to other shards"));

    // new rows move the forecast without training
    let longer = table(&folder, "longer.csv", 610);
    let forecast = |table: &str| {
        stdout(&mut command(&["forecast", table, "--checkpoint", run, "--level", "none", "--quiet"]))
    };
    let (before, after) = (forecast(rows), forecast(longer.to_str().unwrap()));
    assert_eq!(before.lines().count(), after.lines().count());
    assert_ne!(before, after);

    let tested = last_json(&mut command(&[
        "backtest",
        rows,
        "--checkpoint",
        run,
        "--format",
        "json",
        "--out",
        &file("b.csv"),
    ]));
    assert_eq!(tested["columns"][0]["mae_by_step"].as_array().unwrap().len(), 6);
    let lines = std::fs::read_to_string(file("b.csv")).unwrap().lines().count();
    assert_eq!(lines as u64, 1 + tested["origins"].as_u64().unwrap() * 6 * 2);

    let info = last_json(&mut command(&["info", run, "--format", "json"]));
    assert_eq!(info["config"]["columns"], serde_json::json!(["load", "price"]));
    assert!(stdout(&mut command(&["info", run])).contains("calibrated"));
}

#[test]
fn what_helps_is_told_from_what_is_forecast() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, all, one) =
        (table(&folder, "load.csv", 400), folder.path().join("all"), folder.path().join("one"));
    let of_both = last_json(&mut train(&rows, &all, &[]));
    let of_load = last_json(&mut train(&rows, &one, &["--targets", "load"]));
    assert_ne!(of_both["test"], of_load["test"]);
    // the same weights and windows at first: what differs is which errors are minimised
    let first_loss = |run: &Path| {
        let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records
            .filter(|record| record["kind"] == "train")
            .map(|record| record["loss"].clone())
            .next()
            .unwrap()
    };
    assert_ne!(first_loss(&all), first_loss(&one));
    let (rows, run) = (rows.to_str().unwrap(), one.to_str().unwrap());
    let info = last_json(&mut command(&["info", run, "--format", "json"]));
    assert_eq!(info["config"]["columns"], serde_json::json!(["load", "price"]), "it sees both");
    assert_eq!(info["config"]["targets"], serde_json::json!(["load"]));

    let csv = stdout(&mut command(&["forecast", rows, "--checkpoint", run]));
    assert_eq!(csv.lines().count(), 1 + 2 * 6);
    assert!(csv.lines().skip(1).all(|line| line.split(',').nth(2) == Some("load")), "{csv}");
    let tested = last_json(&mut command(&["backtest", rows, "--checkpoint", run, "--format", "json"]));
    let columns: Vec<&str> =
        tested["columns"].as_array().unwrap().iter().map(|c| c["column"].as_str().unwrap()).collect();
    assert_eq!(columns, ["load"]);

    let other = stderr(&mut command(&["forecast", rows, "--checkpoint", run, "--targets", "price"]), 1);
    assert!(other.contains("the model does not forecast such a column, only load"), "{other}");
    let unknown = stderr(&mut train(Path::new(rows), &folder.path().join("none"), &["--targets", "lode"]), 1);
    assert!(unknown.contains("the model sees no column \"lode\", only load, price"), "{unknown}");
    assert!(!folder.path().join("none").exists());
}

#[test]
fn a_stopped_run_goes_on_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let rows = table(&folder, "load.csv", 300);
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    train(&rows, &whole, &[]).assert().success();
    train(&rows, &stopped, &["--minutes", "0"]).assert().success();
    let again = stderr(&mut train(&rows, &stopped, &[]), 1);
    assert!(again.contains("hint: --resume goes on with it"), "{again}");
    train(&rows, &stopped, &["--resume"]).assert().success();
    let weights = |out: &Path| std::fs::read(out.join("calibration.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&stopped), "the same model, so the same intervals");
}

#[test]
fn faults_end_with_a_message_and_the_right_code() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let written = |text: String| {
        let path = folder.path().join("t.csv");
        std::fs::write(&path, text).unwrap();
        path
    };
    let rows = |n: usize, value: &dyn Fn(usize) -> String| {
        let row = |i: usize| format!("{i},{},{}\n", value(i), (i * i) % 13);
        format!("t,a,b\n{}", (0..n).map(row).collect::<String>())
    };
    let run = |text: String, more: &[&str], code: i32| {
        let path = written(text);
        let args = [
            "train",
            path.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
            "--time",
            "t",
            "--look-back",
            "8",
            "--horizon",
            "4",
        ];
        stderr(&mut command(&[&args[..], more].concat()), code)
    };
    let constant = run(rows(100, &|_| "5".into()), &[], 1);
    assert!(constant.contains("column a never changes in the training part"), "{constant}");
    let short = run(rows(20, &|i| i.to_string()), &[], 1);
    assert!(short.contains("the validation part has 2 of the series' 20 rows; 4 are needed"), "{short}");
    let short = run(rows(20, &|i| i.to_string()), &["--split", "0.6,0.1"], 1);
    assert!(short.contains("the test part has 2 of the series' 20 rows"), "{short}");
    let missing = run(rows(100, &|_| String::new()), &[], 1);
    assert!(missing.contains("column \"a\" has no value at all"), "{missing}");
    let infinite = run(rows(100, &|i| if i == 50 { "-inf".into() } else { i.to_string() }), &[], 1);
    assert!(infinite.contains("t.csv:52: column \"a\": -inf is not a finite number"), "{infinite}");
    let unknown = run(rows(100, &|i| i.to_string()), &["--model", "prophet"], 2);
    assert!(unknown.contains("there is no model \"prophet\", only s-mamba"), "{unknown}");
    let patch = run(rows(100, &|i| i.to_string()), &["--model", "bi-mamba-plus"], 2);
    assert!(patch.contains("patches of 24 steps, 12 apart, do not fit into 8 steps"), "{patch}");
    assert!(!out.exists(), "nothing is left behind");
    let none = stderr(&mut command(&["eval", "--checkpoint", out.to_str().unwrap()]), 1);
    assert!(none.contains("there is no such folder"), "{none}");
}

#[test]
fn data_sets_are_tables_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let offline = |args: &[&str]| {
        let mut command = command(args);
        command.env("MAMBA_DATA_HOME", folder.path()).env_remove("MAMBA_DATA");
        command
    };
    assert!(stdout(&mut offline(&["datasets", "list", "--domain", "timeseries"])).contains("etth1"));
    let out = folder.path().join("run");
    let train = |name| ["train", name, "--out", out.to_str().unwrap()];
    assert!(stderr(&mut offline(&train("etth")), 1).contains("similar: etth1"));
    assert!(stderr(&mut offline(&train("etth1")), 1).contains("`datasets fetch etth1` downloads it"));

    if std::env::var_os("MAMBA_DATA").is_none_or(|data| data.is_empty()) {
        return eprintln!("skipped: MAMBA_DATA is not set");
    }
    let quick = ["--model", "dlinear", "--horizon", "6", "--look-back", "24", "--epochs", "1", "--quiet"];
    command(&[&train("etth1")[..], &quick].concat()).assert().success();
}
