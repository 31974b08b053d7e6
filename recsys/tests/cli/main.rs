//! The program as its users run it.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

mod runs;
mod score;
mod states;

use assert_cmd::Command;
use predicates::str::contains;
use std::path::Path;

pub(crate) fn program(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::cargo_bin("mamba-recsys").unwrap();
    command.current_dir(dir).args(arguments.split_whitespace());
    command
}

pub(crate) const SMALL: &str =
    "--quiet --set model.hidden_size=16 --set model.mixer.d_state=4 --max-length 20 --batch 8";

/// 40 users with 12 events each of 10 items.
pub(crate) fn write_log(dir: &Path) {
    let rows = (0..480).map(|i| {
        let (user, event) = (i % 40, i / 40);
        format!("u{user},{},{event}\n", 100 + (user + event * (1 + user % 2)) % 10)
    });
    std::fs::write(dir.join("log.csv"), format!("user,item,time\n{}", rows.collect::<String>())).unwrap();
}

/// Three lines of a student's twelve answers.
pub(crate) fn student(i: usize) -> String {
    let answers: Vec<usize> =
        (0..12).map(|event| usize::from(!(i + event * event).is_multiple_of(3))).collect();
    let skills: Vec<usize> = (0..12).map(|event| 10 + (i + event) % 4).collect();
    let line = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    format!("12\n{}\n{}\n", line(&skills), line(&answers))
}

pub(crate) fn json(dir: &Path, arguments: &str) -> serde_json::Value {
    let output = program(dir, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(output.stdout.split(|&b| b == b'\n').rfind(|line| !line.is_empty()).unwrap())
        .unwrap()
}

#[test]
fn train_eval_score_and_info_follow_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    let trained = json(dir, &format!("train --data log.csv --out run --epochs 4 --format json {SMALL}"));
    let evaluated = json(dir, "eval --data log.csv --checkpoint run --format json --quiet");
    assert_eq!(trained["test"], evaluated["test"]);
    assert_eq!(evaluated["test"][0]["metrics"]["queries"], 40);
    json(dir, &format!("train --data log.csv --out other --seed 1 --epochs 4 --format json {SMALL}"));
    let compared = program(dir, "compare run other --format json").output().unwrap().stdout;
    let rows: Vec<serde_json::Value> =
        compared.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let runs = |model: &str| rows.iter().find(|row| row["model"] == model).unwrap()["runs"].clone();
    assert_eq!((rows.len(), runs("mamba4rec"), runs("popularity")), (3, 2.into(), 1.into()));
    program(dir, "compare run").assert().success().stdout(contains("mamba4rec"));
    program(dir, "compare nowhere").assert().code(1).stderr(contains("results.json"));
    let whole = json(dir, "eval --data log.csv --checkpoint run --whole-history --format json --quiet");
    assert_eq!(
        (&whole["test"][0], &whole["test"][1]["model"]),
        (&evaluated["test"][0], &"whole history".into())
    );
    assert_eq!(
        whole["test"][0]["metrics"], whole["test"][1]["metrics"],
        "no history is longer than the window"
    );
    let info = json(dir, "info run --format json");
    assert_eq!((&info["items"], &info["config"]["max_length"]), (&10.into(), &20.into()));

    let score = "score --checkpoint run --data log.csv --format json --quiet --top-k 3";
    let scored = json(dir, &format!("{score} --out all.csv"));
    assert_eq!((&scored["users"], &scored["rows"]), (&40.into(), &120.into()));
    let whole = std::fs::read_to_string(dir.join("all.csv")).unwrap();
    assert!(whole.starts_with("user,rank,item,score\nu0,1,10"), "{whole}");
    assert_eq!(json(dir, &format!("{score} --out all.csv"))["outputs"]["finished_before"], 1);

    // any number of shards makes the same parts
    json(dir, &format!("{score} --parts 4 --out one"));
    for shard in 0..2 {
        json(dir, &format!("{score} --parts 4 --out two --shard {shard}/2 --threads 1"));
    }
    for part in 0..4 {
        let read = |out: &str| std::fs::read(dir.join(out).join(format!("part-{part:05}.parquet"))).unwrap();
        assert!(read("one") == read("two"), "part {part}");
    }
    program(dir, &format!("{score} --parts 4 --out one --exclude-seen"))
        .assert()
        .code(1)
        .stderr(contains("was written from something else"));

    // candidates
    std::fs::write(dir.join("ask.csv"), "user,item\nu3,101\nu3,105\nnobody,101\n").unwrap();
    let asked =
        "score --checkpoint run --data log.csv --candidates ask.csv --out asked.csv --format json --quiet";
    assert_eq!(json(dir, asked)["cold_users"], 1);
    assert_eq!(std::fs::read_to_string(dir.join("asked.csv")).unwrap().lines().count(), 4);
}

#[test]
fn tomorrows_job_reads_tomorrows_events_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    json(dir, &format!("train --data log.csv --out run --epochs 2 --format json {SMALL}"));
    let log = std::fs::read_to_string(dir.join("log.csv")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let part = |range: std::ops::Range<usize>| format!("{}\n{}\n", lines[0], lines[range].join("\n"));
    std::fs::write(dir.join("day0.csv"), part(1..400)).unwrap();
    std::fs::write(dir.join("day1.csv"), part(400..481)).unwrap();
    let score = "score --checkpoint run --format json --quiet --exclude-seen --top-k 4 --parts 3";
    json(dir, &format!("{score} --data day0.csv --out day0.csv.out.csv --state-out s0"));
    json(dir, &format!("{score} --data day1.csv --out day1.csv.out.csv --state-in s0 --state-out s1"));
    json(dir, &format!("{score} --data log.csv --out whole.csv --state-out s2"));
    let rows = |name: &str| -> Vec<(String, f64)> {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        let row = |line: &str| {
            let (key, score) = line.rsplit_once(',').unwrap();
            (key.to_string(), score.parse().unwrap())
        };
        let mut rows: Vec<_> = text.lines().skip(1).map(row).collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    };
    let (incremental, whole) = (rows("day1.csv.out.csv"), rows("whole.csv"));
    assert_eq!(incremental.len(), whole.len());
    for (a, b) in incremental.iter().zip(&whole) {
        assert_eq!(a.0, b.0);
        assert!((a.1 - b.1).abs() < 1e-5, "{a:?} {b:?}");
    }
}

#[test]
fn a_run_that_goes_on_is_the_run_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    let train =
        format!("train --data log.csv --format json --set train.steps=24 --set train.save_every=5 {SMALL}");
    let whole = json(dir, &format!("{train} --out whole"));
    program(dir, &format!("{train} --out parts --minutes 0")).assert().success();
    let resumed = json(dir, &format!("{train} --out parts --resume"));
    assert_eq!(whole, resumed);
    program(dir, &format!("{train} --out whole"))
        .assert()
        .code(1)
        .stderr(contains("--resume goes on with it"));
}

#[test]
fn mistakes_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    let fails = |arguments: &str, code: i32, message: &'static str| {
        program(dir, arguments).assert().code(code).stderr(contains(message));
    };
    fails("train --data nothing.csv", 1, "cannot open nothing.csv");
    fails("train --data log.csv --user-column who", 1, "--user-column, --item-column");
    fails("train --data log.csv --set model.sise=3", 2, "--set model.sise=3");
    let echo = "train --data log.csv --model echomamba4rec --set objective.positions=all";
    fails(echo, 2, "objective.positions must be \"last\"");
    fails("train --data log.csv --model sasrec --mixer mamba2", 2, "sasrec has no --mixer");
    fails("train --data log.csv --set objective.context=200", 2, "objective.context 200 must be below");
    fails("train --data log.csv --model gru4rec", 2, "mamba4rec");
    fails("train --data log.csv --epochs 0", 2, "--epochs 0");
    fails("train --data log.csv --set data.filter.k_core=100", 1, "k_core is 100");
    fails("score --checkpoint nowhere --data log.csv --out a.parquet", 1, "mamba-recsys train");
    fails("score --out a.parquet", 2, "--data");
    fails("eval --checkpoint nowhere", 1, "nowhere");
}

#[test]
fn data_sets_are_logs_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let offline = |arguments: &str| {
        let mut command = program(dir, arguments);
        command.env("MAMBA_DATA_HOME", dir.join("home")).env_remove("MAMBA_DATA");
        command
    };
    offline("datasets list --domain recsys").assert().success().stdout(contains("assist2009"));
    offline("datasets info ml-1m").assert().success().stdout(contains("ratings.dat"));
    offline("train --data ml-1k").assert().code(1).stderr(contains("similar: ml-1"));
    offline("train --data ml-100k")
        .assert()
        .code(1)
        .stderr(contains("`datasets fetch ml-100k` downloads it"));

    if std::env::var_os("MAMBA_DATA").is_none_or(|data| data.is_empty()) {
        return eprintln!("skipped: MAMBA_DATA is not set");
    }
    let quick =
        "--columns user,item,rating,time --set train.steps=2 --set data.filter.k_core=20 --format json";
    let trained = json(dir, &format!("train --data ml-latest-small --out run {quick} {SMALL}"));
    assert_eq!(trained["test"][0]["metrics"]["queries"], 650);
}

#[test]
fn knowledge_is_traced_from_answers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("a.csv"), (0..40).map(student).collect::<String>()).unwrap();
    std::fs::write(dir.join("b.csv"), student(7) + "1\n99\n1\n").unwrap();
    let small =
        "--set model.hidden_size=8 --set model.mixer.d_state=4 --batch 8 --epochs 2 --quiet --format json";
    let trained = json(dir, &format!("kt train --data a.csv --test b.csv --out run {small}"));
    assert_eq!(trained["test"][0]["metrics"]["answers"], 13);
    let evaluated = json(dir, "kt eval --data b.csv --checkpoint run --quiet --format json");
    assert_eq!(trained["test"][0], evaluated["test"][0]);
    let told = program(dir, "kt eval --data b.csv --checkpoint run").output().unwrap();
    assert!(String::from_utf8_lossy(&told.stderr).contains("1 answers are to skills that the model"));
    assert_eq!(
        json(dir, &format!("kt train --data a.csv --out own {small}"))["test"][0]["metrics"]["answers"],
        96
    );
    program(dir, "kt train --data b.csv --out few").assert().code(1);
    program(dir, "eval --checkpoint run").assert().code(1).stderr(contains("config.json"));
    program(dir, "kt eval --data c.csv --checkpoint run")
        .assert()
        .code(1)
        .stderr(contains("cannot open c.csv"));
}
