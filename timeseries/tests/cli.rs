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
        std::fs::remove_file(&plot).unwrap();
        let again = stderr(&mut command(&args), 0);
        assert!(again.contains(&format!("left as it is; picture in {plot}")), "{again}");
        assert!(Path::new(&plot).exists(), "it is drawn all the same");
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

    // parts hold the same rows, whoever makes them; the picture is drawn where the part of its series is made
    let parts = file("parts");
    for (shard, draws) in [("1/2", true), ("0/2", false)] {
        let args =
            ["forecast", rows, "--checkpoint", run, "--out", &parts, "--part-series", "1", "--shard", shard];
        let of_shard = file(&format!("{}.png", shard.replace('/', "-")));
        let words =
            stderr(&mut command(&[&args[..], &["--plot", &of_shard, "--plot-id", "south"]].concat()), 0);
        assert_eq!(Path::new(&of_shard).exists(), draws, "{shard}: {words}");
        assert_eq!(words.contains("; the picture is left to another shard"), !draws, "{words}");
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
    let unknown = stderr(&mut train(Path::new(rows), &folder.path().join("none"), &["--targets", "lode"]), 2);
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
    assert!(constant.contains("t.csv: column a never changes in the training part"), "{constant}");
    let short = run(rows(20, &|i| i.to_string()), &[], 1);
    assert!(
        short.contains("t.csv: the validation part has 2 of the series' 20 rows; 4 are needed"),
        "{short}"
    );
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
    let epochs = run(rows(100, &|i| i.to_string()), &["--epochs", "0", "--set", "train.batch_size=8"], 2);
    assert!(epochs.contains("epochs, batch_size and window_stride must be at least 1"), "{epochs}");
    let rate = ["--learning-rate", "nan", "--set", "train.batch_size=8"];
    let rate = run(rows(100, &|i| i.to_string()), &rate, 2);
    assert!(rate.contains("learning_rate is") && rate.contains("must be above 0"), "{rate}");
    assert!(!out.exists(), "nothing is left behind");
    let id = stderr(&mut command(&["train", "--id", "x", "--out", out.to_str().unwrap()]), 1);
    assert!(id.starts_with("error: nyc_weather_2013.csv.gz: there is no column \"x\", only "), "{id}");
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

/// A small linear model, trained in no time.
fn quick(table: &Path, out: &Path, more: &[&str]) -> Command {
    let (table, out) = (table.to_str().unwrap(), out.to_str().unwrap());
    let args = [
        "train",
        table,
        "--out",
        out,
        "--model",
        "dlinear",
        "--horizon",
        "6",
        "--look-back",
        "24",
        "--epochs",
        "1",
    ];
    command(&[&args[..], more].concat())
}

#[test]
fn flags_change_how_the_table_of_a_checkpoint_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, out) = (table(&folder, "load.csv", 400), folder.path().join("run"));
    quick(&rows, &out, &["--id", "place", "--gaps", "keep"]).assert().success();
    let run = out.to_str().unwrap();
    let mut text = std::fs::read_to_string(&rows).unwrap();
    let last = text.lines().last().unwrap().to_owned();
    text += &format!("{last}\n");
    let twice = folder.path().join("twice.csv");
    std::fs::write(&twice, &text).unwrap();
    for verb in ["eval", "forecast", "backtest"] {
        let args = [verb, twice.to_str().unwrap(), "--checkpoint", run, "--quiet"];
        let refused = stderr(&mut command(&args), 1);
        assert!(refused.contains("--duplicates first, last or mean merges them\n"), "{refused}");
        command(&[&args[..], &["--duplicates", "last"]].concat()).assert().success();
    }
    // every other row is at another distance
    let half: String =
        text.lines().enumerate().filter(|(i, _)| i % 2 == 0).map(|(_, l)| format!("{l}\n")).collect();
    let half_path = folder.path().join("half.csv");
    std::fs::write(&half_path, half).unwrap();
    for verb in ["eval", "forecast", "backtest"] {
        let args = [verb, half_path.to_str().unwrap(), "--checkpoint", run, "--duplicates", "last"];
        let refused = stderr(&mut command(&args), 1);
        assert!(
            refused.contains("the rows come every 2 hours, but the model was trained on rows every 1 hour"),
            "{refused}"
        );
    }
    // one object a line, at times of the zone
    let args = [
        "forecast",
        rows.to_str().unwrap(),
        "--checkpoint",
        run,
        "--format",
        "json",
        "--time-zone",
        "Europe/Berlin",
    ];
    let text = stdout(&mut command(&args));
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2 * 6 * 2);
    assert_eq!(objects[0]["time"], "2021-01-17T16:00:00+01:00");

    // a preset's way of reading is changed by flags as well
    let preset = ["--id", "place", "--preset", "weather"];
    let other = folder.path().join("other");
    quick(&twice, &other, &preset).assert().success();
    let strict =
        quick(&twice, &folder.path().join("strict"), &[&preset[..], &["--duplicates", "error"]].concat())
            .assert()
            .code(1);
    assert!(String::from_utf8_lossy(&strict.get_output().stderr).contains("the time is that of line"));
    // a flag counts before a setting
    let third = folder.path().join("third");
    quick(&rows, &third, &["--id", "place", "--gaps", "keep", "--set", "pred_len=12"]).assert().success();
    let info = last_json(&mut command(&["info", third.to_str().unwrap(), "--format", "json"]));
    assert_eq!(info["config"]["pred_len"], 6);
}

#[test]
fn a_checkpoint_remembers_the_decimal_mark_of_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, separator: &str, cell: &dyn Fn(usize) -> String| {
        let row = |i: usize| format!("{i}{separator}{}\n", cell(i));
        let path = folder.path().join(name);
        let rows: String = (0..200).map(row).collect();
        std::fs::write(&path, format!("t{separator}a\n{rows}")).unwrap();
        path
    };
    let trained = |name: &str, cell: &dyn Fn(usize) -> String| {
        let (rows, out) = (file(name, ";", cell), folder.path().join(format!("run of {name}")));
        quick(&rows, &out, &["--time", "t", "--set", "train.batch_size=16"]).assert().success();
        out.to_str().unwrap().to_owned()
    };
    let forecast = |run: &str, table: &Path, more: &[&str]| {
        let args = ["forecast", table.to_str().unwrap(), "--checkpoint", run, "--level", "none", "--quiet"];
        command(&[&args[..], more].concat())
    };
    let first = |command: &mut Command| -> f64 {
        stdout(command).lines().nth(1).unwrap().rsplit(',').next().unwrap().parse().unwrap()
    };
    let thousands = file("thousands.csv", ";", &|i| format!("1.{:03}", i % 7));
    let comma = file("comma.csv", ";", &|i| format!("1,{:03}", i % 7));

    let grouped = trained("grouped.csv", &|i| format!("1.{:03},5", i % 7));
    assert!(first(&mut forecast(&grouped, &thousands, &[])) > 900.0, "a thousand");
    assert!(first(&mut forecast(&grouped, &thousands, &["--decimal", "point"])) < 900.0, "a flag says more");
    let by_commas = file("by_commas.csv", ",", &|i| format!("1.{:03}", i % 7));
    assert!(first(&mut forecast(&grouped, &by_commas, &[])) < 900.0, "commas that separate are no marks");

    let plain = trained("plain.csv", &|i| format!("10{},5", i % 7));
    let unclear = stderr(&mut forecast(&plain, &thousands, &[]), 1);
    assert!(unclear.contains("\"1.000\" is not a number where others have a decimal comma"), "{unclear}");
    let both = file("both.csv", ";", &|i| format!("1.{:03}{}", i % 7, if i == 0 { ",5" } else { "" }));
    assert!(first(&mut forecast(&plain, &both, &[])) > 900.0, "points are seen to group digits");

    let point = trained("point.csv", &|i| format!("10{}.5", i % 7));
    let other = stderr(&mut forecast(&point, &comma, &[]), 1);
    assert!(other.contains("\"1,000\" is not a number; --decimal comma reads decimal commas"), "{other}");
}

#[test]
fn quarters_end_with_their_last_day_whatever_the_look_back() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("quarters.csv"), folder.path().join("run"));
    let ends = ["03-31", "06-30", "09-30", "12-31"];
    let rows: String = (0..59).map(|i| format!("{}-{},{}\n", 2001 + i / 4, ends[i % 4], i % 5)).collect();
    std::fs::write(&path, format!("date,a\n{rows}")).unwrap();
    let small = ["--horizon", "2", "--look-back", "2", "--set", "train.batch_size=4"];
    let (table, run) = (path.to_str().unwrap(), out.to_str().unwrap());
    let args = ["train", table, "--out", run, "--model", "dlinear", "--epochs", "1"];
    command(&[&args[..], &small].concat()).assert().success();
    let csv = stdout(&mut command(&["forecast", table, "--checkpoint", run, "--level", "none"]));
    let times: Vec<&str> = csv.lines().skip(1).map(|line| line.split(',').nth(1).unwrap()).collect();
    assert_eq!(times, ["2015-12-31T00:00:00", "2016-03-31T00:00:00"]);
}

#[test]
fn nothing_is_written_over_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, out) = (table(&folder, "load.csv", 400), folder.path().join("run"));
    quick(&rows, &out, &["--id", "place", "--gaps", "keep"]).assert().success();
    let before = std::fs::read(&rows).unwrap();
    let (rows, run) = (rows.to_str().unwrap(), out.to_str().unwrap());
    for verb in ["forecast", "backtest"] {
        let own = stderr(&mut command(&[verb, rows, "--checkpoint", run, "--out", rows, "--overwrite"]), 2);
        assert!(own.contains("is the table itself; name another file"), "{own}");
        let (table, plot) = (folder.path().join("rows.svg"), folder.path().join("new.svg"));
        std::fs::copy(rows, &table).unwrap();
        for (plot, what) in [(&table, "the table itself"), (&plot, "the file of --out")] {
            let (table, plot) = (table.to_str().unwrap(), plot.to_str().unwrap());
            let out = folder.path().join("run/../new.svg");
            let args = [verb, table, "--checkpoint", run, "--out", out.to_str().unwrap(), "--plot", plot];
            let refused = stderr(&mut command(&args), 2);
            assert!(refused.contains(&format!("--plot {plot} is {what}; name another file")), "{refused}");
        }
        assert!(std::fs::read(table).unwrap() == before && !plot.exists());
    }
    assert!(std::fs::read(rows).unwrap() == before);
    let notes = folder.path().join("notes.csv");
    std::fs::write(&notes, "mine").unwrap();
    let args = ["backtest", rows, "--checkpoint", run, "--out", notes.to_str().unwrap()];
    let kept = stderr(&mut command(&args), 1);
    assert!(kept.contains("notes.csv exists already\nhint: --overwrite replaces it"), "{kept}");
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "mine");
    command(&[&args[..], &["--overwrite"]].concat()).assert().success();
    assert!(std::fs::read_to_string(&notes).unwrap().starts_with("id,origin,step,"));
    let none = stderr(&mut command(&["backtest", rows, "--checkpoint", run, "--origins", "0"]), 2);
    assert!(none.contains("--origins"), "{none}");
}

#[test]
fn a_benchmark_goes_on_with_its_own_table_only() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (table(&folder, "one.csv", 200), table(&folder, "other.csv", 220));
    let out = folder.path().join("runs");
    let bench = |table: &Path, more: &[&str]| {
        let (table, out) = (table.to_str().unwrap(), out.to_str().unwrap());
        let args = ["bench-table", table, "--out", out, "--preset", "weather", "--model", "dlinear"];
        let small = ["--horizons", "6", "--seeds", "1,2", "--set", "seq_len=24", "--set", "train.epochs=1"];
        command(&[&args[..], &small, more].concat())
    };
    let first = stdout(&mut bench(&one, &[]));
    assert!(first.lines().nth(2).unwrap().starts_with("| dlinear | 6 | 2 | "), "{first}");
    assert_eq!(stdout(&mut bench(&one, &["--quiet"])), first);
    let rows = stdout(&mut bench(&one, &["--format", "json"]));
    assert_eq!(rows.lines().count(), 2);
    let mixed = stderr(&mut bench(&other, &[]), 1);
    assert!(mixed.contains("test.json is of another table than "), "{mixed}");
    let seed = stderr(&mut bench(&one, &["--seed", "3"]), 2);
    assert!(seed.contains("--seeds names the seeds of the runs"), "{seed}");
}

#[test]
fn the_mixers_of_the_readme_fit_every_model_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let rows = table(&folder, "load.csv", 200);
    let mixers = r#"model.ssm_cfg={"type": "mamba2", "d_state": 64, "headdim": 32}"#;
    let train = |model: &str, more: &[&str]| {
        let out = folder.path().join(model);
        let (rows, out) = (rows.to_str().unwrap(), out.to_str().unwrap());
        let args = ["train", rows, "--out", out, "--model", model, "--id", "place", "--gaps", "keep"];
        let small = ["--horizon", "6", "--look-back", "48", "--minutes", "0", "--set", mixers];
        command(&[&args[..], &small, more].concat())
    };
    for model in ["s-mamba", "bi-mamba-plus", "mamba", "mamba-simple"] {
        train(model, &[]).assert().success();
    }
    let apart = stderr(&mut train("time-machine", &[]), 2);
    assert!(apart.contains("--set model.channel_independent=false gives them the variables"), "{apart}");
    train("time-machine", &["--set", "model.channel_independent=false"]).assert().success();
}

#[test]
fn what_is_left_out_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("wide.csv"), folder.path().join("run"));
    let row = |i: usize| {
        let values: String = (1..8).map(|column| format!(",{}", i * column % 11)).collect();
        format!("2021-01-{:02} {:02}:00{values}\n", 1 + i / 24, i % 24)
    };
    let rows: String = (0..200).map(row).collect();
    std::fs::write(&path, format!("time,a,b,c,d,e,f,\"g, m\"\n{rows}")).unwrap();
    quick(&path, &out, &["--set", "train.batch_size=64"]).assert().success();
    let (table, run) = (path.to_str().unwrap(), out.to_str().unwrap());
    let eval = ["eval", table, "--checkpoint", run];
    let text = stdout(&mut command(&eval));
    assert!(text.contains("\ntest, whole batches of 64 only   none: there are fewer windows\n"), "{text}");
    assert_eq!(
        last_json(&mut command(&[&eval[..], &["--format", "json"]].concat()))["test_drop_last"],
        Value::Null
    );
    let plot = folder.path().join("f.svg");
    for (verb, advice) in [("forecast", "; --targets chooses others"), ("backtest", "")] {
        let args = [verb, table, "--checkpoint", run, "--level", "80", "--plot", plot.to_str().unwrap()];
        let words = stderr(&mut command(&args), 0);
        assert!(
            words.contains(&format!("the picture shows 6 of 7 columns: a, b, c, d, e, f{advice}\n")),
            "{words}"
        );
    }
    let csv = stdout(&mut command(&[
        "forecast",
        table,
        "--checkpoint",
        run,
        "--level",
        "none",
        "--targets",
        "g, m,a",
    ]));
    assert_eq!(csv.lines().count(), 1 + 6 * 2, "{csv}");
}
