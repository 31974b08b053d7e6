//! What comes out of `score`, whoever makes which part of it.

use crate::{SMALL, json, program, write_log};
use polars::prelude::*;
use predicates::str::contains;
use std::path::Path;

const SCORE: &str = "score --checkpoint run --format json --quiet --top-k 3";

fn model(dir: &Path) {
    write_log(dir);
    json(dir, &format!("train --data log.csv --out run --epochs 1 --format json {SMALL}"));
}

fn parquet(path: &Path) -> DataFrame {
    ParquetReader::new(std::fs::File::open(path).unwrap()).finish().unwrap()
}

#[test]
fn parts_have_the_same_columns_whoever_makes_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    // one user has no number for an id
    let rows: String = (0..40).map(|user| format!("{user},101\n")).collect();
    std::fs::write(dir.join("mixed.csv"), format!("user,item\nab,101\n{rows}")).unwrap();
    let score = format!("{SCORE} --data mixed.csv --out recs --parts 4");
    (0..4).for_each(|shard| drop(json(dir, &format!("{score} --shard {shard}/4"))));
    let types = || -> Vec<DataType> {
        let path = |part: usize| dir.join(format!("recs/part-{part:05}.parquet"));
        (0..4).map(|part| parquet(&path(part)).column("user").unwrap().dtype().clone()).collect()
    };
    assert_eq!(types(), vec![DataType::String; 4]);
    for part in 0..4 {
        std::fs::remove_file(dir.join(format!("recs/part-{part:05}.parquet"))).unwrap();
        let rerun = json(dir, &score);
        assert_eq!(types(), vec![DataType::String; 4]);
        // what is reported is the whole output, as if it had been made at once
        assert_eq!((&rerun["users"], &rerun["rows"]), (&41.into(), &123.into()));
        assert_eq!((&rerun["events"], &rerun["outputs"]["written"]), (&41.into(), &1.into()));
    }
}

#[test]
fn users_with_an_empty_list_are_cold_users() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    let list = |values: &[i64]| Some(Series::new("".into(), values));
    let lists: ListChunked = [list(&[101, 102]), list(&[]), None, list(&[103])].into_iter().collect();
    let mut frame = DataFrame::new(
        4,
        vec![
            Column::new("user".into(), &["a", "b", "c", "d"]),
            lists.with_name("items".into()).into_column(),
        ],
    )
    .unwrap();
    ParquetWriter::new(std::fs::File::create(dir.join("lists.parquet")).unwrap()).finish(&mut frame).unwrap();
    let scored = json(dir, &format!("{SCORE} --data lists.parquet --out recs.csv"));
    assert_eq!(
        (&scored["users"], &scored["cold_users"], &scored["events"]),
        (&4.into(), &2.into(), &3.into())
    );
    let text = std::fs::read_to_string(dir.join("recs.csv")).unwrap();
    assert!(["b,1,", "c,3,"].iter().all(|row| text.contains(row)), "{text}");
}

#[cfg(unix)]
#[test]
fn many_parts_need_few_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    let score = format!("{SCORE} --data log.csv --parts 300 --out many");
    let program = std::path::PathBuf::from(program(dir, "").get_program());
    let limited = std::process::Command::new("sh")
        .args(["-c", &format!("ulimit -n 64; exec {} {score}", program.display())])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(limited.status.success(), "{}", String::from_utf8_lossy(&limited.stderr));
    assert!(dir.join("many/part-00299.parquet").exists());
}

#[test]
fn candidates_that_are_no_items_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    std::fs::write(dir.join("ask.csv"), "user,item\nu3,101\nu3,abc\nu3,9999\nu4,102\n").unwrap();
    let ask = "score --checkpoint run --data log.csv --candidates ask.csv --out asked.csv --format json";
    let output = program(dir, ask).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("2 of 4 candidates are none of the model's items, such as \"abc\" in ask.csv"),
        "{told}"
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["candidates"], &report["unknown_candidates"]), (&4.into(), &2.into()));
    // the number has a row, without a score; the word has none among numbers
    let rows = std::fs::read_to_string(dir.join("asked.csv")).unwrap();
    assert!(rows.lines().count() == 4 && rows.contains("u3,2,9999,\n"), "{rows}");
}

#[test]
fn what_cannot_be_written_or_read_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    std::fs::write(dir.join("bad.csv"), "user,item,time\n1,2,soon\n").unwrap();
    std::fs::write(dir.join("none.csv"), "user,item\n").unwrap();
    std::fs::write(dir.join("file"), "").unwrap();
    let fails = |arguments: &str, code: i32, message: &'static str| {
        program(dir, &format!("{SCORE} {arguments}")).assert().code(code).stderr(contains(message));
    };
    fails("--data bad.csv --out a.xlsx", 2, "a file's name ends in .parquet, .csv or .tsv");
    fails("--data bad.csv --out a.npy", 2, "a file's name ends in .parquet, .csv or .tsv");
    fails("--data bad.csv --out no/where/a.csv", 2, "there is no folder no/where");
    fails("--data bad.csv --out file", 2, "--out file: a file");
    fails("--data none.csv --out a.csv", 1, "there are no events in none.csv");
    assert!(!dir.join("a.csv").exists());

    std::fs::write(dir.join("filter.txt"), "101\nunheard\n").unwrap();
    let filtered = "score --checkpoint run --data log.csv --filter filter.txt --out";
    program(dir, &format!("{filtered} b.csv")).assert().success().stderr(contains("1 of 2 items"));
    program(dir, &format!("{filtered} c.csv --quiet")).assert().success().stderr("");
}
