//! Batch jobs from outside: round trips, reruns, refusals, crashes.
#![allow(clippy::unwrap_used)] // every function here is part of a test

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use mamba_datasets::Error;
use mamba_datasets::job::{
    Directory, Fingerprint, Format, Job, Manifest, Part, Shard, arrow_array, embedding_schema, embeddings,
    sha256,
};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use arrow_array::{RecordBatch, StringArray, UInt64Array};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

const DIM: usize = 5;

fn schema() -> mamba_datasets::job::arrow_schema::SchemaRef {
    embedding_schema(["id"], ["start"], "embedding", DIM)
}

fn value(row: usize, i: usize) -> f32 {
    (row as f32 + 1.0) / (i as f32 + 3.0)
}

fn rows(from: usize, to: usize) -> RecordBatch {
    let ids: StringArray = (from..to).map(|r| Some(format!("seq{r}"))).collect();
    let starts: UInt64Array = (from..to).map(|r| Some(r as u64 * 10)).collect();
    let vectors = (from..to).flat_map(|r| (0..DIM).map(move |i| value(r, i))).collect();
    let columns: Vec<arrow_array::ArrayRef> =
        vec![Arc::new(ids), Arc::new(starts), embeddings(vectors, DIM).unwrap()];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn job(setting: &str) -> Job {
    let mut fingerprint = Fingerprint::new();
    fingerprint.set_config(&serde_json::json!({ "pooling": setting })).unwrap();
    Job::new("test", fingerprint)
}

/// Writes rows `0..n` in batches that end at the given places.
fn write(job: &Job, path: &Path, cuts: &[usize], n: usize) -> Result<Manifest, Error> {
    let Part::Open(mut part) = job.file(path, &schema())? else { panic!("finished already") };
    let mut from = 0;
    for to in cuts.iter().copied().chain([n]) {
        part.write(&rows(from, to))?;
        from = to;
    }
    part.finish()
}

fn finished(job: &Job, path: &Path) -> bool {
    matches!(job.file(path, &schema()).unwrap(), Part::Finished(_))
}

/// Every file of a folder with its content.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(p).unwrap())).collect()
}

fn restore(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for name in content(dir).keys() {
        fs::remove_file(dir.join(name)).unwrap();
    }
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn parquet_reads_back_with_its_created_by_and_group_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let n = 70_000; // more than one row group
    let manifest = write(&job("mean"), &path, &[1, 40_000], n).unwrap();
    assert_eq!(manifest.rows, n as u64);
    assert_eq!(manifest.files[0].sha256, sha256(&fs::read(&path).unwrap()));

    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    let metadata = reader.metadata().clone();
    assert_eq!(metadata.file_metadata().created_by(), Some("mamba-datasets"));
    let groups: Vec<_> = metadata.row_groups().iter().map(|g| g.num_rows()).collect();
    assert_eq!(groups, [65_536, 4_464]);
    assert_eq!(*reader.schema(), schema());
    let mut row = 0;
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        assert_eq!(batch, rows(row, row + batch.num_rows()));
        row += batch.num_rows();
    }
    assert_eq!(row, n);
}

#[test]
fn npy_reads_back_with_its_ids() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    // A slice in the middle of larger rows must give its own values.
    let Part::Open(mut part) = job("mean").file(&path, &schema()).unwrap() else { panic!() };
    part.write(&rows(0, 50).slice(0, 20)).unwrap();
    part.write(&rows(0, 50).slice(20, 30)).unwrap();
    part.count("skipped", 2);
    let manifest = part.finish().unwrap();
    assert_eq!(
        manifest.to_string(),
        format!("x.npy + x.ids.tsv: 50 rows, {} bytes, skipped 2", 128 + 50 * DIM * 4 + ids(50).len())
    );

    let npy = npyz::NpyFile::new(File::open(&path).unwrap()).unwrap();
    assert_eq!(npy.shape(), [50, DIM as u64]);
    let expected: Vec<f32> = (0..50).flat_map(|r| (0..DIM).map(move |i| value(r, i))).collect();
    assert_eq!(npy.into_vec::<f32>().unwrap(), expected);
    assert_eq!(fs::read_to_string(dir.path().join("x.ids.tsv")).unwrap(), ids(50));
}

fn ids(n: usize) -> String {
    let lines = (0..n).map(|r| format!("seq{r}\t{}\n", r * 10));
    format!("id\tstart\n{}", lines.collect::<String>())
}

#[test]
fn no_rows_make_a_valid_empty_output() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["x.parquet", "x.npy", "x.csv"] {
        write(&job("mean"), &dir.path().join(name), &[], 0).unwrap();
    }
    let npy = npyz::NpyFile::new(File::open(dir.path().join("x.npy")).unwrap()).unwrap();
    assert_eq!(npy.shape(), [0, DIM as u64]);
    let parquet = File::open(dir.path().join("x.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap();
    assert_eq!(*reader.schema(), schema());
    assert_eq!(reader.build().unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn bytes_do_not_depend_on_how_rows_are_cut(mut cuts in prop::collection::vec(0usize..3000, 0..20)) {
        cuts.sort();
        for name in ["x.parquet", "x.npy", "x.csv"] {
            let [one, many] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            write(&job("mean"), &one.path().join(name), &[], 3000).unwrap();
            write(&job("mean"), &many.path().join(name), &cuts, 3000).unwrap();
            prop_assert!(content(one.path()) == content(many.path()), "{} differs", name);
        }
    }
}

#[test]
fn a_rerun_skips_a_finished_output_and_refuses_a_changed_job() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write(&job("mean"), &path, &[], 10).unwrap();
    let before = content(dir.path());
    assert!(finished(&job("mean"), &path));

    let message = job("max").file(&path, &schema()).unwrap_err().to_string();
    assert!(message.contains("config.pooling: \"max\", was \"mean\""), "{message}");
    assert!(message.contains("--overwrite"), "{message}");
    assert_eq!(content(dir.path()), before);

    let overwrite = job("max").overwrite(true);
    drop(overwrite.file(&path, &schema()).unwrap()); // given up half-way: the old output still stands
    assert_eq!(content(dir.path()), before);
    write(&overwrite, &path, &[], 11).unwrap();
    assert!(finished(&job("max"), &path));
}

#[test]
fn a_changed_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.fa");
    let job = || {
        let mut fingerprint = Fingerprint::new();
        fingerprint.add_input(&input).unwrap();
        Job::new("test", fingerprint)
    };
    fs::write(&input, ">a\nAC\n").unwrap();
    let path = dir.path().join("x.npy");
    write(&job(), &path, &[], 3).unwrap();
    assert!(finished(&job(), &path));
    fs::write(&input, ">a\nAG\n").unwrap();
    let message = job().file(&path, &schema()).unwrap_err().to_string();
    assert!(message.contains("input in.fa: other content of the same size"), "{message}");
}

#[test]
fn a_missing_output_is_made_again_and_a_strange_one_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    write(&job("mean"), &path, &[], 10).unwrap();
    fs::remove_file(dir.path().join("x.ids.tsv")).unwrap();
    assert!(!finished(&job("mean"), &path));
    write(&job("mean"), &path, &[], 10).unwrap();

    fs::write(&path, "edited").unwrap();
    assert!(matches!(job("mean").file(&path, &schema()), Err(Error::Altered { .. })));
    assert!(!finished(&job("mean").overwrite(true), &path));

    fs::write(dir.path().join("mine.csv"), "precious").unwrap();
    let foreign = job("mean").file(&dir.path().join("mine.csv"), &schema());
    assert!(matches!(foreign, Err(Error::Exists { .. })));
    fs::write(dir.path().join("y.ids.tsv"), "precious").unwrap();
    let foreign = job("mean").file(&dir.path().join("y.npy"), &schema());
    assert!(matches!(foreign, Err(Error::Exists { .. })));
}

#[test]
fn a_job_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["x.parquet", "x.npy", "x.tsv"] {
        let Part::Open(mut part) = job("mean").file(&dir.path().join(name), &schema()).unwrap() else {
            panic!()
        };
        part.write(&rows(0, 2000)).unwrap();
        let other = embedding_schema(["id"], [], "embedding", DIM);
        let wrong = RecordBatch::new_empty(other);
        let message = part.write(&wrong).unwrap_err().to_string();
        assert!(message.contains("rows have (id Utf8"), "{message}");
        drop(part);
        assert!(content(dir.path()).is_empty(), "{name}");
    }
}

#[test]
fn a_commit_cut_short_anywhere_is_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    // Same sizes, so that only the content tells old from new.
    write(&job("old"), &path, &[], 10).unwrap();
    let old = content(dir.path());
    let Part::Open(mut part) = job("new").overwrite(true).file(&path, &schema()).unwrap() else { panic!() };
    part.write(&rows(20, 30)).unwrap();
    part.finish().unwrap();
    let new = content(dir.path());
    assert_eq!(old["x.npy"].len(), new["x.npy"].len());

    let (manifest, pending) = ("x.npy.manifest.json", "x.npy.manifest.json.pending");
    let mix = |base: &BTreeMap<String, Vec<u8>>, renamed: &[&str]| {
        let mut files = base.clone();
        files.insert(pending.to_owned(), new[manifest].clone());
        files.extend(renamed.iter().map(|&name| (name.to_owned(), new[name].clone())));
        files
    };
    let nothing = BTreeMap::new();
    let (npy, ids) = ("x.npy", "x.ids.tsv");

    // All files renamed: the rerun finds the job finished.
    for base in [&nothing, &old] {
        restore(dir.path(), &mix(base, &[npy, ids]));
        assert!(finished(&job("new"), &path));
        assert_eq!(content(dir.path()), new);
    }
    // Some renamed: the rerun makes the output again, another job is refused.
    for base in [&nothing, &old] {
        restore(dir.path(), &mix(base, &[npy]));
        assert!(matches!(job("other").file(&path, &schema()), Err(Error::Changed { .. })));
        assert!(!finished(&job("new"), &path));
    }
    // None renamed, nothing before: made again.
    restore(dir.path(), &mix(&nothing, &[]));
    assert!(!finished(&job("new"), &path));
    // None renamed, the old output whole: it stands.
    restore(dir.path(), &mix(&old, &[]));
    assert!(finished(&job("old"), &path));
    assert_eq!(content(dir.path()), old);
}

#[cfg(unix)]
#[test]
fn an_output_behind_a_link_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("far")).unwrap();
    let (link, real) = (dir.path().join("x.csv"), dir.path().join("far/real.csv"));
    fs::write(&real, "").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    write(&job("mean").overwrite(true), &link, &[], 4).unwrap();
    assert!(link.is_symlink());
    assert!(finished(&job("mean"), &link));
}

#[test]
fn outputs_that_cannot_be_made_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| job("mean").file(path, &schema()).unwrap_err().to_string();
    assert!(message(&dir.path().join("x.txt")).contains("must end in .parquet, .npy, .csv or .tsv"));
    assert!(message(&dir.path().join("no/x.npy")).starts_with("cannot create "));
    fs::create_dir(dir.path().join("d.npy")).unwrap();
    assert!(message(&dir.path().join("d.npy")).ends_with("d.npy is not a regular file"));
}

/// Makes this shard's parts of six, each of 100 rows, and says which it made.
fn make_parts(dir: &Directory) -> Vec<usize> {
    let mut made = Vec::new();
    for k in (0..6).filter(|&k| dir.owns(k)) {
        if let Part::Open(mut part) = dir.part(k, &schema()).unwrap() {
            part.write(&rows(k * 100, (k + 1) * 100)).unwrap();
            assert_eq!(part.finish().unwrap().part, Some(k));
            made.push(k);
        }
    }
    made
}

#[test]
fn shards_together_make_what_one_process_makes() {
    let [whole, sharded] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    make_parts(&job("mean").directory(whole.path(), Format::Npy, Shard::WHOLE).unwrap());
    for index in 0..4 {
        let shard = Shard::new(index, 4).unwrap();
        let dir = job("mean").directory(sharded.path(), Format::Npy, shard).unwrap();
        let made = make_parts(&dir);
        assert_eq!(made, (index..6).step_by(4).collect::<Vec<_>>());
        let other = dir.part(index + 1, &schema()).unwrap_err().to_string();
        assert_eq!(other, format!("part {} does not belong to shard {index}/4", index + 1));
    }
    assert_eq!(content(whole.path()), content(sharded.path()));
    assert_eq!(content(whole.path()).len(), 18);
}

#[test]
fn a_directory_of_parts_skips_refuses_and_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let open = |job: Job, shard| job.directory(dir.path(), Format::Parquet, shard);
    assert_eq!(make_parts(&open(job("mean"), Shard::WHOLE).unwrap()).len(), 6);
    fs::remove_file(dir.path().join("part-00003.parquet")).unwrap();
    assert_eq!(make_parts(&open(job("mean"), Shard::WHOLE).unwrap()), [3]);

    // Refused at once, also where the shard's own parts are not yet there.
    assert!(matches!(open(job("max"), Shard::WHOLE), Err(Error::Changed { .. })));
    let far = Shard::new(99, 100).unwrap();
    assert!(matches!(open(job("max"), far), Err(Error::Changed { .. })));

    // A shard that overwrites removes its own old parts, also one whose commit was cut short, and no others.
    let manifest = dir.path().join("part-00004.parquet.manifest.json");
    fs::rename(&manifest, manifest.with_extension("json.pending")).unwrap();
    let even = Shard::new(0, 2).unwrap();
    open(job("max").overwrite(true), even).unwrap();
    let names: Vec<_> = content(dir.path()).into_keys().filter(|name| name.ends_with(".parquet")).collect();
    assert_eq!(names, ["part-00001.parquet", "part-00003.parquet", "part-00005.parquet"]);
}

/// Not a test: the process that `kill_nine_at_any_instant_costs_only_unfinished_parts` kills.
#[test]
#[ignore = "run by another test"]
fn a_process_to_kill() {
    if let Ok(dir) = std::env::var("PARTS_DIR") {
        make_parts(&job("mean").directory(Path::new(&dir), Format::Npy, Shard::WHOLE).unwrap());
    }
}

#[cfg(unix)]
#[test]
fn kill_nine_at_any_instant_costs_only_unfinished_parts() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let clean = tempfile::tempdir().unwrap();
    let start = Instant::now();
    make_parts(&job("mean").directory(clean.path(), Format::Npy, Shard::WHOLE).unwrap());
    let needed = start.elapsed();

    for attempt in 0..24 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "a_process_to_kill"])
            .env("PARTS_DIR", dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // From the first file on, a little later each time.
        while fs::read_dir(dir.path()).unwrap().next().is_none() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
        std::thread::sleep(needed.mul_f64(f64::from(attempt) / 24.0));
        child.kill().unwrap();
        child.wait().unwrap();

        for (name, bytes) in content(dir.path()) {
            // What has its final name has its final content.
            if !name.contains(".tmp-") && !name.ends_with(".pending") {
                assert_eq!(bytes, content(clean.path())[&name], "{name} after attempt {attempt}");
            }
        }
        make_parts(&job("mean").directory(dir.path(), Format::Npy, Shard::WHOLE).unwrap());
        assert_eq!(content(dir.path()), content(clean.path()), "attempt {attempt}");
    }
}

#[test]
fn rows_can_be_read_as_typed_columns() {
    let batch = rows(3, 5);
    assert_eq!(batch.column(1).as_primitive::<UInt64Type>().values(), &[30, 40]);
    let vectors = batch.column(2).as_fixed_size_list();
    assert_eq!(vectors.value(1).as_primitive::<Float32Type>().value(2), value(4, 2));
}

#[test]
fn a_job_index_is_read_only_from_its_variable() {
    // The variable is not set under the test runner: nothing is guessed.
    if std::env::var_os("JOB_COMPLETION_INDEX").is_none() {
        assert_eq!(Shard::from_job_index(4).unwrap(), None);
    }
}
