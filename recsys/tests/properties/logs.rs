//! Readers, filters and splits.

use crate::support::{log, small_sample};
use mamba_recsys::config::DataConfig;
use mamba_recsys::data::{
    Dataset, Duplicates, FilterConfig, Layout, Log, Query, ReadOptions, Split, SplitConfig, files_of,
    for_each_chunk, read_all,
};
use mamba_recsys::task::TrainingData;
use mamba_recsys::{Id, Ids};
use polars::prelude::*;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn written(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn read(path: &Path) -> mamba_recsys::Result<Log> {
    read_all(&[path.to_owned()], &ReadOptions::default())
}

fn rows(log: &Log) -> Vec<(String, String)> {
    (0..log.len()).map(|i| (log.user.get(i).to_string(), log.item.get(i).to_string())).collect()
}

#[test]
fn every_layout_holds_the_same_events() {
    let dir = tempfile::tempdir().unwrap();
    let events = [("7", "30", 5), ("7", "10", 6), ("8", "30", 2), ("8", "20", 9)];
    let table = |separator: &str, header: &str| {
        let rows = events.iter().map(|(u, i, t)| [u, "x", i, &t.to_string()].join(separator) + "\n");
        header.to_string() + &rows.collect::<String>()
    };
    let mut frame = df!(
        "user" => [7i32, 7, 8, 8], "other" => [true; 4], "movieId" => ["30", "10", "30", "20"], "ts" => [5i32, 6, 2, 9]
    )
    .unwrap();
    let parquet = dir.path().join("a.parquet");
    ParquetWriter::new(std::fs::File::create(&parquet).unwrap()).finish(&mut frame).unwrap();
    let list = |values: &[i64]| Series::new("".into(), values);
    let mut lists =
        df!("user_id" => [7i64, 8, 9], "history" => [list(&[30, 10]), list(&[30, 20]), list(&[])]).unwrap();
    let listed = dir.path().join("b.parquet");
    ParquetWriter::new(std::fs::File::create(&listed).unwrap()).finish(&mut lists).unwrap();
    let files = [
        written(
            dir.path(),
            "a.inter",
            table("\t", "user_id:token\tx:token\titem_id:token\ttimestamp:float\n"),
        ),
        written(dir.path(), "a.csv", table(",", "\u{feff}User,x,Item,timestamp\n")),
        written(dir.path(), "a.tsv", table("\t", "uid\tx\tiid\ttime\r\n")),
        written(dir.path(), "a.dat", "7::30::4::5\n7::10::4::6\n8::30::1::2\n8::20::3::9\n"),
        written(dir.path(), "pairs.txt", "7 30\n7 10\n\n8 30\n8 20\n"),
        written(dir.path(), "lines.txt", "7 30 10\n8 30 20\n"),
        parquet,
        listed,
    ];
    for path in files {
        let log = read(&path).unwrap();
        let want: Vec<_> = events.iter().map(|(u, i, _)| (u.to_string(), i.to_string())).collect();
        assert_eq!(rows(&log), want, "{}", path.display());
        assert!(matches!((&log.user, &log.item), (Ids::Int(_), Ids::Int(_))), "{}", path.display());
        if let Some(times) = log.time {
            assert_eq!(times, [5.0, 6.0, 2.0, 9.0], "{}", path.display());
        }
    }
}

#[test]
fn chunks_are_the_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..100).map(|i| format!("u{},\"i{}\n\",{i}\n", i % 7, i % 5)).collect();
    let path = written(dir.path(), "a.csv", format!("user,item,time\n{rows}"));
    let whole = read(&path).unwrap();
    assert_eq!(whole.len(), 100);
    for size in [1, 7, 100, 1000] {
        let (mut users, mut chunks) = (Vec::new(), 0);
        for_each_chunk(&path, &ReadOptions::default(), size, &mut |log| {
            users.extend((0..log.len()).map(|i| log.user.get(i).to_string()));
            chunks += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(chunks, 100usize.div_ceil(size));
        assert!(users.iter().enumerate().all(|(i, user)| *whole.user.get(i).to_string() == **user));
    }
}

#[test]
fn a_bad_value_is_named_with_file_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let message = |name: &str, content: &str| {
        let error = read(&written(dir.path(), name, content)).unwrap_err();
        error.to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(
        message("a.csv", "user,item,time\n1,2,3\n1,2,soon\n"),
        "a.csv:3: column \"time\": \"soon\", expected a number or a date"
    );
    assert_eq!(
        message("a.csv", "user,item,time\n1,2,soon\n"),
        "a.csv:2: column \"time\": \"soon\", expected a number or a date"
    );
    assert_eq!(
        message("a.csv", "user,item,time\n1,,3\n"),
        "a.csv:2: column \"item\": nothing, expected an id: a whole number or text"
    );
    assert_eq!(message("a.csv", "user,item\n1,2\n1,2,3\n"), "a.csv:3: 3 fields, expected 2 as in the header");
    assert_eq!(message("a.csv", "user,item\n1,\"2\n"), "a.csv:2: a quote is never closed");
    // quoted line breaks and blank lines count
    assert_eq!(
        message("a.csv", "user,item,time\n\"a\nb\",2,3\n\n1,2,soon\n"),
        "a.csv:5: column \"time\": \"soon\", expected a number or a date"
    );
    assert_eq!(
        message("a.csv", "user,item\n\"a\nb\",2\n1,2,3\n"),
        "a.csv:4: 3 fields, expected 2 as in the header"
    );
    assert_eq!(
        message("a.csv", "user,item\n1,\"2\n\",3\n"),
        "a.csv:2: 3 fields, expected 2 as in the header"
    );
    assert_eq!(message("a.csv", "user,item\n1,2\n1,\"2\n3,4\n"), "a.csv:3: a quote is never closed");
    assert_eq!(
        message("a.csv", "who,item\n1,2\n"),
        "a.csv: no column for users (user_id, user, userid, uid, customer_id, visitorid, reviewerid) among who, item"
    );
    assert_eq!(
        message("a.dat", "1::2::3\n"),
        "a.dat:1: 3 fields between \"::\", expected user, item, rating, time"
    );
    assert_eq!(message("a.dat", "1::2::3::NaN\n"), "a.dat:1: time \"NaN\" is not a finite number");
    assert_eq!(message("lines.txt", "1 2 3\n4\n"), "lines.txt:2: user \"4\" without an item");
    assert!(message("a.csv", "user,item\n").starts_with("there are no events in "));
    assert!(message("a.parquet", "PAR1").starts_with("a.parquet: "));
    assert!(message("a.xyz", "").starts_with("a.xyz: unknown ending"));
    assert!(
        read(Path::new("/nowhere/a.csv")).unwrap_err().to_string().starts_with("cannot open /nowhere/a.csv")
    );
}

#[test]
fn a_bad_list_is_named_with_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let list = |values: &[Option<&str>]| Series::new("".into(), values);
    let items = [list(&[Some("a"), Some("b")]), list(&[]), list(&[Some("c"), None])];
    let times = |lengths: [i64; 3]| lengths.map(|n| Series::new("".into(), (0..n).collect::<Vec<_>>()));
    let message = |lengths: [i64; 3]| {
        let mut frame = df!("user" => [1, 2, 3], "items" => items.clone(), "time" => times(lengths)).unwrap();
        ParquetWriter::new(std::fs::File::create(&path).unwrap()).finish(&mut frame).unwrap();
        read(&path).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(
        message([2, 0, 2]),
        "a.parquet:3: column \"items\": nothing, expected an id: a whole number or text"
    );
    assert_eq!(message([2, 1, 2]), "a.parquet:2: 0 items in \"items\", 1 times in \"time\"");
}

#[test]
fn ids_of_a_category_are_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let mut frame = df!("user" => ["u", "v", "u"], "item" => ["7", "8", "8"]).unwrap();
    let category = DataType::from_categories(Categories::global());
    frame.apply("user", |user| user.cast(&category).unwrap()).unwrap();
    frame.apply("item", |item| item.cast(&category).unwrap()).unwrap();
    ParquetWriter::new(std::fs::File::create(&path).unwrap()).finish(&mut frame).unwrap();
    let want = [("u", "7"), ("v", "8"), ("u", "8")].map(|(u, i)| (u.to_string(), i.to_string()));
    assert_eq!(rows(&read(&path).unwrap()), want);
}

#[test]
fn blank_lines_are_no_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "a.csv", "\r\nuser,item\r\n1,2\r\n\r\n1,3\r\n\r\n \n");
    assert_eq!(rows(&read(&path).unwrap()), [("1".into(), "2".into()), ("1".into(), "3".into())]);
}

#[test]
fn columns_can_be_named_and_files_have_no_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "a.csv", "\u{feff}1,2,3.5,77\n1,3,4,78\n");
    let header = Some(["user", "item", "rating", "time"].map(String::from).to_vec());
    let log = read_all(&[path], &ReadOptions { header, ..ReadOptions::default() }).unwrap();
    assert_eq!((log.user, log.time), (Ids::Int(vec![1, 1]), Some(vec![77.0, 78.0])));
}

#[test]
fn dates_are_times_and_ids_keep_their_spelling() {
    let dir = tempfile::tempdir().unwrap();
    let path =
        written(dir.path(), "a.csv", "user,item,time\n007,a,2024-03-01 10:00:00\n7,a,2024-02-28 23:59:59\n");
    let log = read(&path).unwrap();
    let times = log.time.unwrap();
    assert!(times[0] > times[1] && (times[0] - times[1] - 122_401e6).abs() < 1.0, "{times:?}");
    assert_eq!((log.user.get(0), log.user.get(1)), (Id::Text("007"), Id::Text("7")));
}

#[test]
fn a_folder_is_its_files_by_name() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), "b.csv", "user,item\nx,1\n");
    written(dir.path(), "a.csv", "user,item\n5,1\n");
    written(dir.path(), "README", "");
    assert_eq!(files_of(dir.path()).unwrap().len(), 2);
    let log = read_all(&[dir.path().to_owned()], &ReadOptions::default()).unwrap();
    assert_eq!(rows(&log), [("5".into(), "1".into()), ("x".into(), "1".into())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_reader_panics_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
        let dir = tempfile::tempdir().unwrap();
        for layout in [
            Layout::Inter, Layout::Csv, Layout::Tsv, Layout::Parquet, Layout::Lines, Layout::Pairs, Layout::Dat,
        ] {
            let options = ReadOptions { layout: Some(layout), ..ReadOptions::default() };
            for content in [&bytes[..], text.as_bytes(), &[b"user_id\titem_id\n", &bytes[..]].concat()] {
                let path = written(dir.path(), "a", content);
                if let Ok(log) = read_all(&[path], &options) {
                    prop_assert!(!log.is_empty() && log.item.len() == log.len());
                }
            }
        }
    }

    #[test]
    fn the_k_core_is_the_largest_set_that_has_enough(
        events in prop::collection::vec((0i64..12, 0i64..10), 1..120), k in 1usize..5,
    ) {
        let times: Vec<_> = events.iter().map(|&(u, i)| (u, i, 0.0)).collect();
        let filter = FilterConfig { k_core: k, ..FilterConfig::default() };
        // by removing one user or item at a time
        let mut kept = events.clone();
        loop {
            let lacks = kept.iter().find(|(u, i)| {
                kept.iter().filter(|e| e.0 == *u).count() < k || kept.iter().filter(|e| e.1 == *i).count() < k
            });
            let Some(&(u, i)) = lacks else { break };
            let user = kept.iter().filter(|e| e.0 == u).count() < k;
            kept.retain(|e| if user { e.0 != u } else { e.1 != i });
        }
        match Dataset::new(&log(&times), &filter) {
            Err(_) => prop_assert!(kept.is_empty()),
            Ok(data) => {
                let mut got: Vec<(i64, i64)> = Vec::new();
                for (user, items) in data.sequences.iter().enumerate() {
                    let Id::Int(user) = data.users.get(user) else { unreachable!() };
                    got.extend(items.iter().map(|&item| match data.items.id(item) {
                        Id::Int(item) => (user, item),
                        Id::Text(_) => unreachable!(),
                    }));
                }
                got.sort_unstable();
                kept.sort_unstable();
                prop_assert_eq!(got, kept);
            }
        }
    }

    #[test]
    fn events_are_in_time_order_and_ties_in_file_order(
        times in prop::collection::vec(0u8..5, 1..60),
    ) {
        let events: Vec<_> = times.iter().zip(0i64..).map(|(&t, item)| (1, item, f64::from(t))).collect();
        let data = Dataset::new(&log(&events), &FilterConfig { k_core: 0, ..FilterConfig::default() }).unwrap();
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by_key(|&i| times[i]); // stable
        let want: Vec<u32> = order.iter().map(|&i| i as u32 + 1).collect();
        prop_assert_eq!(&data.sequences[0], &want);
    }
}

#[test]
fn duplicates_are_kept_or_collapsed_to_the_first() {
    let events = [(1, 5, 3.0), (1, 6, 1.0), (1, 5, 2.0), (1, 6, 4.0), (2, 5, 1.0)];
    let of = |duplicates| {
        let filter = FilterConfig { k_core: 0, min_length: 2, duplicates };
        Dataset::new(&log(&events), &filter).unwrap().sequences
    };
    assert_eq!(of(Duplicates::Keep), [[2, 1, 1, 2]]);
    assert_eq!(of(Duplicates::Collapse).first(), Some(&vec![2, 1]));
}

#[test]
fn leave_one_out_holds_out_the_last_two() {
    let events: Vec<_> = (0..5).map(|t| (1, t, t as f64)).chain([(2, 0, 0.0), (2, 1, 1.0)]).collect();
    let data = Dataset::new(&log(&events), &FilterConfig { k_core: 0, ..FilterConfig::default() }).unwrap();
    let split = Split::new(&data, &SplitConfig::LeaveOneOut).unwrap();
    assert_eq!(split.train, [3, 2]);
    assert_eq!(split.valid, [Query { user: 0, history: 3 }]);
    assert_eq!(split.test, [Query { user: 0, history: 4 }]);
}

#[test]
fn a_split_by_time_trains_on_nothing_later() {
    let cfg = DataConfig { split: SplitConfig::Time { valid: 0.1, test: 0.2 }, ..DataConfig::default() };
    let TrainingData { dataset, split, .. } = TrainingData::new(&small_sample(), &cfg).unwrap();
    let times = dataset.times.as_ref().unwrap();
    let last_trained = split.train.iter().zip(times).filter(|(n, _)| **n > 0).map(|(n, t)| t[n - 1]);
    let last_trained = last_trained.fold(f64::MIN, f64::max);
    let first = |queries: &[Query]| queries.iter().map(|q| times[q.user][q.history]).fold(f64::MAX, f64::min);
    assert!(last_trained < first(&split.valid) && first(&split.valid) < first(&split.test));
    let trained = split.train.iter().sum::<usize>() as f64 / dataset.events() as f64;
    assert!((trained - 0.7).abs() < 0.02, "{trained}");
    let without = Log { time: None, ..small_sample() };
    let error = TrainingData::new(&without, &cfg).unwrap_err().to_string();
    assert_eq!(error, "a split by time needs times, and the log has none");
}
