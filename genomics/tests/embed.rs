//! `mamba-genomics embed`, from FASTA files to files of vectors.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

#[path = "embed/jobs.rs"]
mod jobs;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use mamba_core::{Params, checkpoint};
use mamba_genomics::tokenizer::reverse_complement_bytes;
use mamba_genomics::{CaduceusConfig, CaduceusForMaskedLm};
use serde_json::Value;

/// Records of many lengths: shorter and longer than a window, with all that the policy speaks of.
const FASTA: &str = ">short first of all\nACGT\n\
    >mixed\nACGTNNacgtRYKM\nUU--..GATTACA\n\
    >one\nG\n\
    >long\nGGATTACACATTAGGCATCAGATTTACCAGATACCAGATTAGACCATTAGACCAGGATACCAGATTTAGGCACCATAGACCCATATAGACCAGATTAACC\n\
    GGATTACCACAGATTTACCCAGATTAGGGACCACCCATTTAGAGCCAGATATTTAGGACCCGAGATATTTAGGACCCAGAGATTTAGACCAGGGATACCA\n\
    >tail\nCCGGTTAACCGGTTAA\n";

struct Folder(tempfile::TempDir);

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("in.fa", FASTA);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs `embed` in the folder, with arguments separated by spaces.
    fn embed(&self, args: &str) -> Ended {
        self.embed_stdin(args, Vec::new())
    }

    fn embed_stdin(&self, args: &str, stdin: Vec<u8>) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mamba-genomics"));
        command
            .current_dir(self.0.path())
            .arg("embed")
            .args(args.split_whitespace())
            .arg("--quiet")
            .write_stdin(stdin);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    fn ok(&self, args: &str) {
        let ended = self.embed(args);
        assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (0, "", ""), "embed {args}");
    }

    /// Rows of a CSV file: what stands before the vector, and the vector.
    fn rows(&self, name: &str) -> Vec<(Vec<String>, Vec<f32>)> {
        let text = String::from_utf8(self.read(name)).unwrap();
        let mut lines = text.lines();
        let columns = lines.next().unwrap().split(',').position(|name| name == "embedding_0").unwrap();
        let row = |line: &str| {
            let fields: Vec<&str> = line.split(',').collect();
            let vector = fields[columns..].iter().map(|x| x.parse().unwrap()).collect();
            (fields[..columns].iter().map(|x| x.to_string()).collect(), vector)
        };
        lines.map(row).collect()
    }

    /// Embeds FASTA text to rows.
    fn rows_of(&self, fasta: &str, args: &str) -> Vec<(Vec<String>, Vec<f32>)> {
        self.write("some.fa", fasta);
        self.ok(&format!("some.fa --out some.csv --overwrite {args}"));
        self.rows("some.csv")
    }

    fn checkpoint(
        &self,
        name: &str,
        config: &CaduceusConfig,
        change: impl Fn(&mut BTreeMap<String, Tensor>),
    ) {
        let params = Params::fresh(3, DType::F32, &Device::Cpu);
        CaduceusForMaskedLm::new(config, &params.builder()).unwrap();
        let mut tensors = params.to_tensors();
        change(&mut tensors);
        checkpoint::save_dir(self.path(name), config, &tensors).unwrap();
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Bases that do not repeat.
fn bases(len: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b"ACGT"[(state >> 60) as usize % 4])
    };
    (0..len).map(next).collect()
}

#[test]
fn every_format_holds_the_same_rows() {
    let folder = Folder::new();
    for name in ["v.csv", "v.tsv", "v.parquet", "v.npy"] {
        folder.ok(&format!("in.fa --out {name} --window 40 --overlap 10"));
    }
    let rows = folder.rows("v.csv");
    let ids: Vec<String> = rows.iter().map(|(id, _)| id.join(" ")).collect();
    assert_eq!(ids, ["short 0 4", "mixed 0 27", "one 0 1", "long 0 200", "tail 0 16"]);

    let tsv = String::from_utf8(folder.read("v.tsv")).unwrap();
    assert_eq!(tsv.replace('\t', ","), String::from_utf8(folder.read("v.csv")).unwrap());

    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
        fs::File::open(folder.path("v.parquet")).unwrap(),
    );
    let batch = reader.unwrap().build().unwrap().next().unwrap().unwrap();
    let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["id", "start0", "end0", "embedding"]);
    let vectors = batch.column(3).as_fixed_size_list();
    for (i, (id, vector)) in rows.iter().enumerate() {
        assert_eq!(batch.column(0).as_string::<i32>().value(i), id[0]);
        assert_eq!(batch.column(2).as_primitive::<UInt64Type>().value(i).to_string(), id[2]);
        assert_eq!(vectors.value(i).as_primitive::<Float32Type>().values().to_vec(), *vector);
    }
    assert_eq!(vectors.len(), rows.len());

    let npy = npyz::NpyFile::new(fs::File::open(folder.path("v.npy")).unwrap()).unwrap();
    assert_eq!(npy.shape(), [5, rows[0].1.len() as u64]);
    let values: Vec<f32> = npy.into_vec().unwrap();
    assert_eq!(values, rows.iter().flat_map(|(_, vector)| vector.clone()).collect::<Vec<_>>());
    let ids = String::from_utf8(folder.read("v.ids.tsv")).unwrap();
    assert_eq!(ids, "id\tstart0\tend0\nshort\t0\t4\nmixed\t0\t27\none\t0\t1\nlong\t0\t200\ntail\t0\t16\n");
}

#[test]
fn batches_and_threads_do_not_change_a_byte() {
    let folder = Folder::new();
    for (i, what) in ["--pooling mean", "--pooling max --strand concat", "--pooling none", "--per window"]
        .into_iter()
        .enumerate()
    {
        let mut first: Option<Vec<u8>> = None;
        for (j, how) in
            ["", "--batch-tokens 1", "--batch-tokens 100 --threads 1", "--batch-tokens 7 --threads 3"]
                .into_iter()
                .enumerate()
        {
            let name = format!("v{i}-{j}.parquet");
            folder.ok(&format!("in.fa --out {name} --window 50 --overlap 20 {what} {how}"));
            let bytes = folder.read(&name);
            assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes, "{what} {how}");
        }
    }
}

#[test]
fn a_sequence_and_its_reverse_complement_share_a_vector() {
    let folder = Folder::new();
    let config = CaduceusConfig { d_model: 16, n_layer: 3, rcps: false, ..CaduceusConfig::default() };
    folder.checkpoint("ph", &config, |_| ());
    let text = bases(300);
    let other = String::from_utf8(reverse_complement_bytes(text.as_bytes())).unwrap();
    let fasta = format!(">a\n{text}\n>b\n{other}\n");
    for model in ["", "--checkpoint ph"] {
        let vectors = |args: &str| {
            let rows = folder.rows_of(&fasta, &format!("{args} {model}"));
            (rows[0].1.clone(), rows[1].1.clone())
        };
        for args in ["", "--pooling max", "--layer 1"] {
            let (a, b) = vectors(args);
            assert_eq!(a, b, "{model} {args}");
        }
        let (a, b) = vectors("--strand forward");
        assert!(distance(&a, &b) > 1e-3);
        let (a, b) = vectors("--strand concat");
        let half = a.len() / 2;
        assert_eq!([&a[half..], &a[..half]].concat(), b, "{model}");
    }
}

#[test]
fn layers_are_counted_in_blocks() {
    let folder = Folder::new();
    let fasta = format!(">a\n{}\n", bases(80));
    let vector = |layer: &str| folder.rows_of(&fasta, &format!("--layer {layer}")).remove(0).1;
    assert_ne!(vector("0"), vector("1"));
    assert_ne!(vector("2"), vector("last"));
    let ended = folder.embed("in.fa --out v.csv --layer 3");
    assert_eq!((ended.code, ended.stderr.as_str()), (2, "error: layer 3: the model has 2 layers\n"));
    let ended = folder.embed("in.fa --out v.csv --layer first");
    assert_eq!(ended.code, 2, "{}", ended.stderr);
}

#[test]
fn windows_join_without_seams() {
    let folder = Folder::new();
    let fasta = format!(">a\n{}\n>b\n{}\n", bases(1500), bases(90));
    // A window that covers the record is the record.
    let whole = folder.rows_of(&fasta, "--window 1500 --overlap 100");
    assert_eq!(folder.rows_of(&fasta, "--window 9000"), whole);
    assert_eq!(folder.rows_of(&fasta, "--window 1500 --overlap 0"), whole);

    // Rows of bases follow each other, and their mean and maximum are the record's vector.
    let windows = "--window 400 --overlap 120";
    let rows = folder.rows_of(&fasta, &format!("{windows} --pooling none"));
    let places: Vec<String> = rows.iter().map(|(place, _)| place.join(" ")).collect();
    let expected = (0..1500).map(|i| format!("a {i}")).chain((0..90).map(|i| format!("b {i}")));
    assert_eq!(places, expected.collect::<Vec<_>>());
    let dim = rows[0].1.len();
    let column =
        |range: std::ops::Range<usize>, channel: usize| rows[range].iter().map(move |(_, row)| row[channel]);
    let mean = folder.rows_of(&fasta, windows);
    for (record, range) in [0..1500, 1500..1590].into_iter().enumerate() {
        let n = range.len() as f64;
        let by_hand: Vec<f32> = (0..dim)
            .map(|channel| (column(range.clone(), channel).map(f64::from).sum::<f64>() / n) as f32)
            .collect();
        assert!(distance(&by_hand, &mean[record].1) < 1e-6);
    }
    let rows_of_strand = folder.rows_of(&fasta, &format!("{windows} --pooling none --strand forward"));
    let max = folder.rows_of(&fasta, &format!("{windows} --pooling max --strand forward"));
    for channel in 0..dim {
        let largest = rows_of_strand[..1500].iter().map(|(_, row)| row[channel]).fold(f32::MIN, f32::max);
        assert_eq!(largest, max[0].1[channel]);
    }
    // What windows cost is small and falls with their overlap.
    let far = |windows: &str| distance(&folder.rows_of(&fasta, windows)[0].1, &whole[0].1);
    let (none, some) = (far("--window 400 --overlap 0"), far("--window 400 --overlap 200"));
    let scale = whole[0].1.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    assert!(some < none && none < 0.1 * scale, "{none} without overlap, {some} with, of {scale}");
}

#[test]
fn a_row_for_each_window_says_where_it_lies() {
    let folder = Folder::new();
    let text = bases(250);
    let rows = folder
        .rows_of(&format!(">a\n{text}\n>b\n{}\n", &text[..40]), "--per window --window 100 --overlap 40");
    let places: Vec<String> = rows.iter().map(|(place, _)| place.join(" ")).collect();
    assert_eq!(places, ["a 0 100", "a 60 160", "a 120 220", "a 150 250", "b 0 40"]);
    let alone = folder.rows_of(&format!(">x\n{}\n", &text[60..160]), "");
    assert_eq!(rows[1].1, alone[0].1);
}

#[test]
fn regions_are_records() {
    let folder = Folder::new();
    let text = bases(600);
    let fasta = format!(">chr1 x\n{}\n{}\n>chr2\n{}\n", &text[..300], &text[300..], &text[..50]);
    folder.write("some.bed", "chr2\t0\t50\nchr1\t100\t400\tgene\t0\t-\n");
    let minus = String::from_utf8(reverse_complement_bytes(&text.as_bytes()[100..400])).unwrap();
    let cut = format!(">p\n{}\n>g\n{minus}\n>c\n{}\n", &text[..50], &text[100..400]);
    let cut = folder.rows_of(&cut, "--strand forward");

    let rows = folder.rows_of(&fasta, "--regions some.bed --strand forward");
    let places: Vec<String> = rows.iter().map(|(place, _)| place.join(" ")).collect();
    assert_eq!(places, ["chr2:1-50 chr2 + 0 50", "gene chr1 - 100 400"]);
    assert_eq!((&rows[0].1, &rows[1].1), (&cut[0].1, &cut[1].1));
    let list = folder.rows_of(&fasta, "--regions chr1:101-400,chr2 --strand forward");
    assert_eq!(list[0].0.join(" "), "chr1:101-400 chr1 + 100 400");
    assert_eq!((&list[0].1, &list[1].1), (&cut[2].1, &cut[0].1));

    // Windows and bases lie in the file's own coordinates on either strand.
    let windows = folder.rows_of(&fasta, "--regions some.bed --per window --window 200 --overlap 0");
    let places: Vec<String> = windows.iter().map(|(place, _)| place[2..].join(" ")).collect();
    assert_eq!(places, ["+ 0 50", "- 200 400", "- 100 300"]);
    let bases = folder.rows_of(&fasta, "--regions some.bed --pooling none");
    assert_eq!([&bases[50].0[3], &bases[349].0[3]], ["399", "100"]);

    folder.write("bad.bed", "chr1\t0\t601\n");
    let ended = folder.embed("some.fa --out v.csv --regions bad.bed");
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.starts_with("error: bad.bed:1: 0-601 (0-based, end not included)"),
        "{}",
        ended.stderr
    );
    let ended = folder.embed("some.fa --out v.csv --regions chr3:1-2");
    assert!(ended.code == 1 && ended.stderr.contains("no record is named \"chr3\""), "{}", ended.stderr);
    assert!(!folder.names().iter().any(|name| name.starts_with("v.")));
}

#[test]
fn compression_does_not_change_a_byte() {
    let folder = Folder::new();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(FASTA.as_bytes()).unwrap();
    folder.write("in.fa.gz", gzip.finish().unwrap());
    let mut bgzip = noodles::bgzf::io::Writer::new(Vec::new());
    bgzip.write_all(FASTA.as_bytes()).unwrap();
    folder.write("in.fa.bgz", bgzip.finish().unwrap());
    folder.write("crlf.fa", FASTA.replace('\n', "\r\n"));
    folder.ok("in.fa --out plain.parquet");
    for name in ["in.fa.gz", "in.fa.bgz", "crlf.fa"] {
        folder.ok(&format!("{name} --out {name}.parquet"));
        assert!(folder.read(&format!("{name}.parquet")) == folder.read("plain.parquet"), "{name}");
        folder.ok(&format!("{name} --out {name}.csv --regions long:11-60,short"));
        let rows = folder.rows(&format!("{name}.csv"));
        assert_eq!(rows[0].0[0], "long:11-60");
    }
    let ended = folder.embed_stdin("- --out stdin.parquet", FASTA.as_bytes().to_vec());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(folder.read("stdin.parquet") == folder.read("plain.parquet"));
}

#[test]
fn a_bacterial_genome_embeds() {
    let Some(data) = std::env::var_os("MAMBA_DATA") else {
        println!("skipped: MAMBA_DATA is not set");
        return;
    };
    let genome = Path::new(&data).join("genomics/genomes/NC_008253.fna.gz");
    assert!(genome.exists(), "{} is missing", genome.display());
    let folder = Folder::new();
    let output = Command::new(env!("CARGO_BIN_EXE_mamba-genomics"))
        .current_dir(folder.0.path())
        .args(["embed", "--out", "v.npy", "--per", "window", "--quiet", "--format", "json", "--regions"])
        .arg("{gi|110640213|ref|NC_008253.1|}:1-200000")
        .arg(&genome)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    assert_eq!((&summary["bases"], &summary["rows"]), (&200_000.into(), &26.into()));
}
