//! The job around the vectors: parts and reruns, errors, what is said.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use assert_cmd::Command;
use candle_core::{Device, Tensor};
use mamba_genomics::CaduceusConfig;
use serde_json::Value;

use super::{FASTA, Folder};

#[test]
fn shards_make_the_parts_of_a_whole_run() {
    let folder = Folder::new();
    let parts = |dir: &str| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(folder.path(dir)).unwrap().map(|e| e.unwrap().path());
        entries
            .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(p).unwrap()))
            .collect()
    };
    for (what, expected) in
        [("", 3), ("--pooling none --part-format npy", 5), ("--per window --part-format csv", 5)]
    {
        let _ = fs::remove_dir_all(folder.path("whole"));
        let flags = format!("--window 50 --overlap 20 --part-bases 30 {what}");
        folder.ok(&format!("in.fa --out whole {flags}"));
        let whole = parts("whole");
        let count = whole.keys().filter(|name| name.ends_with(".manifest.json")).count();
        assert!(count >= expected, "{count} parts");
        for shards in [1, 2, 3, 16] {
            let _ = fs::remove_dir_all(folder.path("shards"));
            for shard in (0..shards).rev() {
                folder.ok(&format!("in.fa --out shards {flags} --shard {shard}/{shards} --batch-tokens 60"));
            }
            assert!(parts("shards") == whole, "{shards} shards: {:?}", parts("shards").keys());
        }
        if what.contains("csv") {
            folder.ok("in.fa --out one.csv --window 50 --overlap 20 --per window --overwrite");
            let mut joined = Vec::new();
            for (name, bytes) in whole.iter().filter(|(name, _)| name.ends_with(".csv")) {
                let header = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
                joined.extend_from_slice(if name == "part-00000.csv" { bytes } else { &bytes[header..] });
            }
            assert!(joined == folder.read("one.csv"));
        }
    }
    // A part that is lost is made again, the others stay.
    fs::remove_file(folder.path("shards/part-00001.csv")).unwrap();
    let ended = folder.embed(
        "in.fa --out shards --window 50 --overlap 20 --part-bases 30 --per window --part-format csv --format json",
    );
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(summary["outputs"]["written"], 1, "{ended:?}");
    assert!(parts("shards") == parts("whole"));
}

#[test]
fn bad_input_is_named_and_leaves_nothing_behind() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(FASTA.as_bytes()).unwrap();
    let mut gzip = gzip.finish().unwrap();
    gzip.truncate(gzip.len() * 2 / 3);
    let cases: [(&[u8], &str); 10] = [
        (b"", "error: in.fa: file is empty\n"),
        (b" \n\n", "error: in.fa: file is empty\n"),
        (b">a\nACGT\n>b\n>c\nACGT\n", "error: in.fa:3: record \"b\" has no sequence\n"),
        (b">a\nACGT\n>b\n", "error: in.fa:3: record \"b\" has no sequence\n"),
        (b">a\nAC\n>b\nAC\n>a x\nAC\n", "error: in.fa:5: record name \"a\" was used before at in.fa:1\n"),
        (
            b">a\nAC\nACJT\n",
            "error: in.fa:3: record \"a\": invalid character 'J' at column 3\n\
            hint: this looks like a protein sequence; a DNA or RNA sequence is expected\n",
        ),
        (b">a\nAC\x07\n", "error: in.fa:2: record \"a\": invalid character byte 0x07 at column 3\n"),
        (
            b"> a\nAC\n",
            "error: in.fa:1: header has no name after '>'\nhint: the name must follow '>' with no space between\n",
        ),
        (b"ACGT\n", "error: in.fa:1: not a FASTA file: expected '>', found 'A'\n"),
        (
            &gzip,
            "error: in.fa: gzip file is truncated\n\
            hint: copy or download the file again, then check it with `gzip -t`\n",
        ),
    ];
    for (content, message) in cases {
        folder.write("in.fa", content);
        for out in ["v.parquet", "v.npy", "parts", "deep/v.csv"] {
            fs::create_dir_all(folder.path("deep")).unwrap();
            let ended = folder.embed(&format!("in.fa --out {out}"));
            assert_eq!((ended.code, ended.stderr.as_str()), (1, message), "--out {out}");
            fs::remove_dir(folder.path("deep")).unwrap();
            assert_eq!(folder.names(), ["in.fa"], "--out {out}");
        }
        let ended = folder.embed_stdin("- --out v.npy", content.to_vec());
        assert_eq!((ended.code, ended.stderr), (1, message.replace("in.fa", "<stdin>")));
        assert_eq!(folder.names(), ["in.fa"]);
    }
    folder.write("in.fa", ">a\nAC\n");
    folder.write("more.fa", ">b\nAC\n>a\nAC\n");
    let ended = folder.embed("in.fa more.fa --out v.csv");
    assert_eq!(ended.stderr, "error: more.fa:3: record name \"a\" was used before at in.fa:1\n");
    let ended = folder.embed("missing.fa --out v.csv");
    let message = "error: cannot open missing.fa: No such file or directory (os error 2)\n";
    assert_eq!((ended.code, ended.stderr.as_str()), (1, message));
    let ended = folder.embed("in.fa --out missing/v.csv");
    assert!(
        ended.code == 1 && ended.stderr.starts_with("error: cannot create missing/v.csv"),
        "{}",
        ended.stderr
    );
    assert_eq!(folder.names(), ["in.fa", "more.fa"]);
}

#[test]
fn a_vector_that_is_not_finite_is_never_written() {
    let folder = Folder::new();
    let config = CaduceusConfig { d_model: 16, n_layer: 1, ..CaduceusConfig::default() };
    folder.checkpoint("broken", &config, |tensors| {
        // G (9) has no number; one record has none of it, nor of its complement.
        let name = "caduceus.backbone.embeddings.word_embeddings.embedding.weight";
        let mut rows = tensors[name].to_vec2::<f32>().unwrap();
        rows[9][2] = f32::NAN;
        tensors.insert(name.into(), Tensor::new(rows, &Device::Cpu).unwrap());
    });
    folder.write("in.fa", ">fine\nATATA\n>bad\nATTA\nAGA\n");
    let before = folder.names();
    for pooling in ["mean", "max", "none"] {
        let ended =
            folder.embed(&format!("in.fa --out v.npy --checkpoint broken --layer 0 --pooling {pooling}"));
        let bases = if pooling == "none" { "base 6" } else { "bases 1-7" };
        let message = format!("error: record \"bad\", {bases}: value 2 of the vector is NaN\n");
        assert_eq!((ended.code, ended.stderr), (1, message));
        assert_eq!(folder.names(), before);
    }
}

#[test]
fn a_rerun_skips_what_is_finished_and_refuses_what_has_changed() {
    let folder = Folder::new();
    folder.ok("in.fa --out v.npy");
    let written = fs::metadata(folder.path("v.npy")).unwrap().modified().unwrap();
    let ended = folder.embed("in.fa --out v.npy --batch-tokens 9 --threads 1 --format json");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (ended.code, &summary["outputs"]["finished_before"], &summary["rows"]),
        (0, &1.into(), &5.into())
    );
    assert_eq!(fs::metadata(folder.path("v.npy")).unwrap().modified().unwrap(), written);

    let refused = |args: &str, change: &str| {
        let ended = folder.embed(args);
        assert_eq!(ended.code, 1);
        let message = "error: v.npy was written from something else; since then changed:\n  ";
        assert!(ended.stderr.starts_with(&format!("{message}{change}")), "{}", ended.stderr);
        assert!(ended.stderr.ends_with("--overwrite replaces it\n"), "{}", ended.stderr);
    };
    refused("in.fa --out v.npy --pooling max", "config.pooling: \"max\", was \"mean\"");
    refused("in.fa in.fa --out v.npy", "input in.fa was added");
    let config = CaduceusConfig { d_model: 64, n_layer: 1, ..CaduceusConfig::default() };
    folder.checkpoint("other", &config, |_| ());
    refused("in.fa --out v.npy --checkpoint other", "model: ");
    folder.write("in.fa", FASTA.replace("GATTACA", "GATTTCA"));
    refused("in.fa --out v.npy", "input in.fa: other content of the same size");
    folder.ok("in.fa --out v.npy --overwrite");
    folder.ok("in.fa --out v.npy");

    folder.write("v.npy", "changed by hand");
    let ended = folder.embed("in.fa --out v.npy");
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (
            1,
            "error: v.npy was changed after it was written: its manifest no longer matches\nhint: --overwrite replaces it\n"
        )
    );
    folder.write("notes.csv", "of a person");
    let ended = folder.embed("in.fa --out notes.csv");
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (
            1,
            "error: notes.csv exists already and was not written by a finished job\nhint: --overwrite replaces it\n"
        )
    );
    assert_eq!(folder.read("notes.csv"), b"of a person");

    // Two streams are never taken for the same.
    let stream = |args: &str| folder.embed_stdin(args, FASTA.as_bytes().to_vec());
    assert_eq!(stream("- --out s.csv").code, 0);
    let ended = stream("- --out s.csv");
    assert!(ended.code == 1 && ended.stderr.ends_with("--overwrite replaces it\n"), "{}", ended.stderr);
    assert_eq!(stream("- --out s.csv --overwrite").code, 0);
}

#[test]
fn usage_errors_exit_with_2() {
    let folder = Folder::new();
    for (args, message) in [
        ("in.fa", "required arguments were not provided"),
        (
            "in.fa --out v.txt",
            "v.txt: unknown output format; the name must end in .parquet, .npy, .csv or .tsv",
        ),
        ("in.fa --out v.csv --shard 0/2", "--shard needs a directory of parts, and --out v.csv is one file"),
        ("in.fa --out parts --shard 2/2", "the index counts from 0"),
        (
            "in.fa --out v.csv --overlap 99 --window 99",
            "window overlap is 99: expected less than the window's 99 bases",
        ),
        ("in.fa --out v.csv --window 0", "window length is 0"),
        ("in.fa --out v.csv --per window --pooling none", "--per window needs --pooling mean or max"),
        ("in.fa --out v.csv --batch-tokens 0", "must be at least 1"),
        ("in.fa --out parts --part-format txt", "[possible values: parquet, npy, csv, tsv]"),
        ("in.fa --out v.csv --strand reverse", "[possible values: both, forward, concat]"),
        ("- --out parts", "parts need input files"),
    ] {
        let ended = folder.embed(args);
        assert_eq!(ended.code, 2, "{args}: {}", ended.stderr);
        assert!(ended.stderr.contains(message), "{args}: {}", ended.stderr);
    }
    assert_eq!(folder.names(), ["in.fa"]);
}

#[test]
fn what_was_read_is_said() {
    let folder = Folder::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mamba-genomics"));
    let output =
        command.current_dir(folder.0.path()).args(["embed", "in.fa", "--out", "v.csv"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let counts = "5 records: 248 bases; 4 soft-masked; 2 N; 4 ambiguous read as N (R 1, Y 1, K 1, M 1); \
        2 U read as T; 4 gaps read as N\nv.csv: 5 rows of 64 values; ";
    assert!(stderr.contains(counts) && stderr.trim_end().ends_with(" bp/s"), "{stderr}");

    let ended = folder.embed("in.fa --out v.parquet --format json");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    for (key, value) in [("rows", 5), ("records", 5), ("bases", 248), ("dim", 64)] {
        assert_eq!(summary[key], value, "{key}");
    }
    assert_eq!(summary["input"]["ambiguity_codes"]["R"], 1);
    assert!(summary["bases_per_second"].as_f64().unwrap() > 0.0);
    let manifest: Value = serde_json::from_slice(&folder.read("v.parquet.manifest.json")).unwrap();
    assert_eq!((&manifest["counts"]["bases"], &manifest["counts"]["gaps"]), (&248.into(), &4.into()));
}

#[test]
fn help_ends_with_an_example() {
    for verb in ["embed", "info"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_mamba-genomics")).args([verb, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let last = help.trim_end().lines().last().unwrap().trim();
        assert!(last.starts_with(&format!("mamba-genomics {verb} ")), "{last}");
    }
}

/// A genome of `records` records of 300 bases.
#[cfg(unix)]
fn long_input(folder: &Folder, records: usize) {
    let mut text = String::new();
    for n in 0..records {
        text.push_str(&format!(">r{n}\n"));
        text.extend((0..300).map(|i| ['A', 'C', 'G', 'T'][(i * i + n * i + i / 7) % 4]));
        text.push('\n');
    }
    fs::write(folder.path("long.fa"), text).unwrap();
}

/// Starts `embed` into parts, waits for a finished part, sends the signal, and returns how the process ended.
#[cfg(unix)]
fn interrupted(folder: &Folder, signal: &str) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mamba-genomics"));
    command.current_dir(folder.path("")).args(["embed", "long.fa", "--out", "parts", "--part-bases", "3000"]);
    command.args(["--batch-tokens", "300", "--quiet"]);
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while !folder.path("parts/part-00000.parquet.manifest.json").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_its_parts_and_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    long_input(&folder, 400);
    folder.ok("long.fa --out whole --part-bases 3000");
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(folder.path(dir)).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    for signal in ["-INT", "-KILL"] {
        let _ = fs::remove_dir_all(folder.path("parts"));
        let ended = interrupted(&folder, signal);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let made = names("parts");
        assert!(made.len() < names("whole").len(), "it ended before the signal");
        if signal == "-INT" {
            assert_eq!(ended.status.code(), Some(130), "{said}");
            assert!(said.contains("the same command goes on"), "{said}");
            assert!(!made.iter().any(|name| name.contains(".tmp-")), "{made:?}");
        }
        folder.ok("long.fa --out parts --part-bases 3000");
        assert_eq!(names("parts"), names("whole"));
        for name in names("whole") {
            assert!(folder.read(&format!("parts/{name}")) == folder.read(&format!("whole/{name}")), "{name}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_no_panic() {
    let folder = Folder::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mamba-genomics"));
    command.current_dir(folder.path("")).args(["embed", "in.fa", "--out", "v.npy", "--format", "json"]);
    let ended = command.stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write the summary: No space left on device"), "{said}");
    assert!(folder.path("v.npy").exists(), "the result was written before");

    std::os::unix::fs::symlink("/dev/full", folder.path("full.npy")).unwrap();
    let ended = folder.embed("in.fa --out full.npy");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("full.npy is not a regular file"), "{ended:?}");
}

#[test]
fn a_batch_limit_beyond_every_machine_is_no_error() {
    let folder = Folder::new();
    folder.ok("in.fa --out a.npy");
    folder.ok("in.fa --out b.npy --batch-tokens 18446744073709551615");
    assert!(folder.read("a.npy") == folder.read("b.npy"));
}

#[test]
fn data_sets_are_inputs_by_name() {
    let folder = Folder::new();
    let run = |args: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mamba-genomics"));
        command
            .current_dir(folder.path(""))
            .env("MAMBA_DATA_HOME", folder.path("home"))
            .env_remove("MAMBA_DATA");
        command.args(args.split(' ')).output().unwrap()
    };
    let embedded = run("embed phix174 --out v.npy --quiet");
    assert!(embedded.status.success(), "{}", String::from_utf8_lossy(&embedded.stderr));
    assert!(folder.path("home/genomics/phix174/phix174.fa").exists());
    assert!(String::from_utf8_lossy(&run("datasets list").stdout).contains("phix174"));
    let verified = run("datasets verify");
    assert_eq!(
        String::from_utf8_lossy(&verified.stdout).lines().count(),
        2,
        "lambda and phix174: {verified:?}"
    );
    for (args, code, message) in [
        ("embed phix --out v.npy", 1, "no data set is named \"phix\"; similar: phix174"),
        ("embed ecoli-536 --out w.npy", 1, "`datasets fetch ecoli-536` downloads it"),
        ("embed missing.fa --out w.npy", 1, "cannot open missing.fa"),
        ("datasets info nothing-like-it", 2, "no data set is named"),
        ("datasets import gue in.fa", 1, "holds 0 of the 18 files"),
    ] {
        let ended = run(args);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{args}: {said}");
        assert!(said.contains(message), "{args}: {said}");
    }
}
