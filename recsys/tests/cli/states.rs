//! States between jobs: what is whole, what belongs together.

use crate::{SMALL, json, program, write_log};
use predicates::str::contains;
use std::path::Path;

/// A small model, and its log in two days.
fn two_days(dir: &Path) {
    write_log(dir);
    json(dir, &format!("train --data log.csv --out run --epochs 1 --format json {SMALL}"));
    let log = std::fs::read_to_string(dir.join("log.csv")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let day = |range: std::ops::Range<usize>| format!("{}\n{}\n", lines[0], lines[range].join("\n"));
    std::fs::write(dir.join("day0.csv"), day(1..400)).unwrap();
    std::fs::write(dir.join("day1.csv"), day(400..481)).unwrap();
}

const SCORE: &str = "score --checkpoint run --format json --quiet";

#[test]
fn states_are_never_written_over_those_that_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    two_days(dir);
    json(dir, &format!("{SCORE} --data day0.csv --out day0.csv.out.csv --state-out s0"));
    let mut same = vec!["s0", "s0/", "./s0/../s0"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("s0", dir.join("link")).unwrap();
        same.push("link");
    }
    for folder in same {
        program(
            dir,
            &format!("{SCORE} --data day1.csv --out day1.out.csv --state-in s0 --state-out {folder}"),
        )
        .assert()
        .code(2)
        .stderr(contains("is the folder of --state-in s0"));
    }
}

#[test]
fn a_folder_of_states_is_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    two_days(dir);
    let refused = |folder: &str, message: &'static str| {
        program(dir, &format!("{SCORE} --data day1.csv --out no.csv --state-in {folder}"))
            .assert()
            .code(1)
            .stderr(contains(message));
    };
    // more parts than users, so that some are empty
    let shard = |i: usize| {
        json(dir, &format!("{SCORE} --data day0.csv --out recs --parts 50 --shard {i}/2 --state-out s0"))
    };
    assert_eq!(shard(0)["states"], serde_json::json!({ "written": 25, "missing": 25 }));
    refused("s0", "no state.json: the job that makes these states is not finished");
    assert_eq!(shard(1)["states"]["missing"], 0);
    json(dir, &format!("{SCORE} --data day1.csv --out day1.out.csv --state-in s0"));
    let part = dir.join("s0/state-00007.safetensors");
    std::fs::remove_file(&part).unwrap();
    refused("s0", "state-00007.safetensors");
    // a rerun makes the missing part, and no rows
    let rerun = shard(1);
    assert_eq!((&rerun["states"]["written"], &rerun["outputs"]["written"]), (&1.into(), &0.into()));
    assert!(part.exists());

    // a job that fails leaves no folder that could be read
    std::fs::write(dir.join("cold.csv"), "user,item,time\nnobody,nothing,1\n").unwrap();
    program(
        dir,
        &format!("{SCORE} --data day0.csv cold.csv --out a --parts 9 --cold-users error --state-out s1"),
    )
    .assert()
    .code(1)
    .stderr(contains("user nobody has no item"));
    assert!(std::fs::read_dir(dir.join("s1")).unwrap().count() > 0);
    refused("s1", "no state.json");
}

#[test]
fn states_of_two_jobs_never_mix() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    two_days(dir);
    json(dir, &format!("train --data log.csv --out other --seed 5 --epochs 1 --format json {SMALL}"));
    json(dir, &format!("{SCORE} --data day0.csv --out a.csv --parts 3 --state-out s0"));
    json(
        dir,
        "score --checkpoint other --format json --quiet --data day0.csv --out b.csv --parts 3 --state-out t0",
    );
    // the same manifest over a part of another checkpoint
    let (mine, theirs) = (dir.join("s0/state-00001.safetensors"), dir.join("t0/state-00001.safetensors"));
    let kept = std::fs::read(&mine).unwrap();
    std::fs::copy(theirs, &mine).unwrap();
    program(dir, &format!("{SCORE} --data day1.csv --out no.csv --state-in s0"))
        .assert()
        .code(1)
        .stderr(contains("state-00001.safetensors: of another job"));
    std::fs::write(&mine, kept).unwrap();

    let again = format!("{SCORE} --data log.csv --out c.csv --parts 2 --state-out s0");
    program(dir, &again).assert().code(1).stderr(contains("--overwrite replaces them"));
    json(dir, &format!("{SCORE} --data day1.csv --out d.csv --state-in s0")); // it is as it was
    json(dir, &format!("{again} --overwrite"));
    assert!(!dir.join("s0/state-00002.safetensors").exists());
    json(dir, &format!("{SCORE} --data day1.csv --out e.csv --state-in s0"));
}

#[test]
fn finished_rows_get_the_states_that_are_asked_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    two_days(dir);
    json(dir, &format!("{SCORE} --data day0.csv --out day0.out.csv --parts 3 --state-out s0"));
    for out in ["rows", "rows.csv"] {
        let score = format!("{SCORE} --data day1.csv --out {out} --state-in s0");
        let first = json(dir, &score);
        assert_eq!(first["states"], serde_json::Value::Null);
        let states = format!("states-of-{out}");
        let second = json(dir, &format!("{score} --state-out {states}"));
        assert_eq!(second["states"], serde_json::json!({ "written": 3, "missing": 0 }));
        assert_eq!((&second["rows"], &second["users"]), (&first["rows"], &first["users"]));
        assert_eq!(second["outputs"]["written"], 0);
        json(dir, &format!("{SCORE} --data log.csv --out {out}-2.csv --state-in s0 {states}"));
    }
}

#[test]
fn a_model_without_states_is_refused_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir);
    let small =
        "--quiet --set model.hidden_size=16 --max-length 20 --batch 8 --set train.steps=1 --format json";
    std::fs::write(dir.join("bad.csv"), "user,item,time\n1,2,soon\n").unwrap();
    for (model, why) in [
        ("sasrec", "sasrec keeps no state of constant size"),
        ("recmamba", "recmamba numbers the positions of a history"),
        ("echomamba4rec", "echomamba4rec reads every history in both directions"),
    ] {
        json(dir, &format!("train --data log.csv --out {model} --model {model} {small}"));
        program(dir, &format!("score --checkpoint {model} --data bad.csv --out a.csv --state-out s"))
            .assert()
            .code(2)
            .stderr(contains(why));
        assert!(!dir.join("s").exists());
    }
}

#[test]
fn a_day_without_events_gives_no_rows_and_breaks_no_chain() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    two_days(dir);
    std::fs::write(dir.join("quiet.csv"), "user,item,time\n").unwrap();
    json(dir, &format!("{SCORE} --data day0.csv --out a.csv --state-out s0"));
    let quiet = json(dir, &format!("{SCORE} --data quiet.csv --out b.csv --state-in s0 --state-out s1"));
    assert_eq!(quiet["users"], 0);
    assert_eq!(std::fs::read_to_string(dir.join("b.csv")).unwrap(), "user,rank,item,score\n");
    json(dir, &format!("{SCORE} --data day1.csv --out c.csv --state-in s0 s1"));
    json(dir, &format!("{SCORE} --data day1.csv --out d.csv --state-in s0"));
    assert_eq!(std::fs::read(dir.join("c.csv")).unwrap(), std::fs::read(dir.join("d.csv")).unwrap());
}
