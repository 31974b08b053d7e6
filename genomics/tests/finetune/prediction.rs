//! `predict`, and what it and `finetune` write.

use super::{Folder, SMALL, exists, motifs, table};
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::{self, File};
use std::path::Path;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: String,
    span: Option<(u64, u64)>,
    pub(crate) label: Option<String>,
    predicted: String,
    p_yes: f32,
}

pub(crate) fn rows(path: &Path) -> Vec<Row> {
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let of_batch = |batch: arrow_array::RecordBatch| {
        let text = |name: &str, i: usize| {
            batch.column_by_name(name).map(|c| c.as_string::<i32>().value(i).to_string())
        };
        let number = |name: &str, i: usize| {
            batch.column_by_name(name).map(|c| c.as_primitive::<UInt64Type>().value(i))
        };
        let row = |i| Row {
            id: text("id", i).unwrap(),
            span: number("start0", i).zip(number("end0", i)),
            label: text("label", i),
            predicted: text("predicted", i).unwrap(),
            p_yes: batch.column_by_name("p_yes").unwrap().as_primitive::<Float32Type>().value(i),
        };
        (0..batch.column(0).len()).map(row).collect::<Vec<_>>()
    };
    reader.flat_map(|batch| of_batch(batch.unwrap())).collect()
}

fn fasta(rows: &[(String, &str)]) -> String {
    rows.iter().enumerate().map(|(i, (bases, _))| format!(">s{i}\n{bases}\n")).collect()
}

/// A folder with a model in `run`, the sequences that it was tested on in `test.csv`, and the same in `test.fa`.
fn trained() -> Folder {
    let folder = Folder::new();
    let test = motifs(50, 12);
    folder.write("train.csv", table(&motifs(80, 11)));
    folder.write("test.csv", table(&test));
    folder.write("test.fa", fasta(&test));
    folder.succeed(&format!("finetune train.csv --test test.csv --out run --epochs 2 {SMALL}"));
    folder
}

#[test]
fn tables_and_fasta_files_get_the_predictions_of_the_run() {
    let folder = trained();
    let expected = rows(&folder.path("run/predictions.parquet"));
    assert_eq!(expected.len(), 50);
    folder.succeed("predict test.csv --checkpoint run --out a.parquet --quiet");
    folder.succeed("predict test.fa --checkpoint run --out b.parquet --quiet");
    let (a, b) = (rows(&folder.path("a.parquet")), rows(&folder.path("b.parquet")));
    for (i, row) in expected.iter().enumerate() {
        assert_eq!(row.label.as_deref(), Some(if i % 2 == 0 { "yes" } else { "no" }));
        assert_eq!(row.predicted, if row.p_yes > 0.5 { "yes" } else { "no" });
        for other in [&a[i], &b[i]] {
            assert!((other.p_yes - row.p_yes).abs() < 1e-5, "{other:?} {row:?}");
        }
        assert_eq!((a[i].id.as_str(), a[i].span), ((i + 1).to_string().as_str(), None));
        assert_eq!((b[i].id.as_str(), b[i].span.unwrap().0), (format!("s{i}").as_str(), 0));
    }
    folder.succeed("predict test.csv --checkpoint run --out a.csv --quiet");
    let text = fs::read_to_string(folder.path("a.csv")).unwrap();
    assert!(text.starts_with("id,predicted,p_no,p_yes\n1,"), "{text}");
    assert_eq!(text.lines().count(), 51);
}

#[test]
fn shards_make_the_parts_and_a_rerun_leaves_them() {
    let folder = trained();
    folder.succeed("predict test.fa --checkpoint run --out whole.parquet --quiet");
    for shard in ["1/2", "0/2"] {
        folder.succeed(&format!(
            "predict test.fa --checkpoint run --out parts --part-rows 15 --shard {shard} --quiet"
        ));
    }
    let parts: Vec<_> =
        (0..4).flat_map(|i| rows(&folder.path(&format!("parts/part-{i:05}.parquet")))).collect();
    assert!(!exists(&folder.path("parts/part-00004.parquet")));
    let whole = rows(&folder.path("whole.parquet"));
    assert_eq!(parts.len(), whole.len());
    for (a, b) in parts.iter().zip(&whole) {
        assert_eq!((&a.id, a.span), (&b.id, b.span));
        assert!((a.p_yes - b.p_yes).abs() < 1e-5, "{a:?} {b:?}");
    }
    let again = "predict test.fa --checkpoint run --out parts --part-rows 15";
    let (code, _, stderr) = folder.run(again);
    assert!(code == 0 && stderr.contains("4 outputs finished before"), "{stderr}");
    fs::remove_file(folder.path("parts/part-00002.parquet")).unwrap();
    let (code, _, stderr) = folder.run(again);
    assert!(
        code == 0 && stderr.contains("3 outputs finished before") && stderr.contains("15 rows"),
        "{stderr}"
    );
    folder.write("test.fa", ">other\nACGT\n");
    let (code, _, stderr) = folder.run(again);
    assert!(code == 1 && stderr.contains("written from something else"), "{stderr}");
}

#[test]
fn long_records_are_cut_or_refused() {
    let folder = trained();
    folder.write("long.fa", format!(">chr\n{}\n>short\nACGT\n", "GATTACAC".repeat(25)));
    folder.succeed("predict long.fa --checkpoint run --window 80 --overlap 40 --out w.parquet --quiet");
    let spans: Vec<_> =
        rows(&folder.path("w.parquet")).into_iter().map(|row| (row.id, row.span.unwrap())).collect();
    let expected =
        [("chr", (0, 80)), ("chr", (40, 120)), ("chr", (80, 160)), ("chr", (120, 200)), ("short", (0, 4))];
    assert_eq!(spans, expected.map(|(id, span)| (id.to_string(), span)));
    folder.succeed("predict long.fa --checkpoint run --longest 200 --out x.parquet --quiet");
    assert_eq!(rows(&folder.path("x.parquet"))[0].span, Some((0, 200)));
    let (code, _, stderr) =
        folder.run("predict long.fa --checkpoint run --longest 199 --out y.parquet --quiet");
    assert!(code == 1 && stderr.contains("\"chr\" has more than 199 bases"), "{stderr}");
    assert!(!exists(&folder.path("y.parquet")));
}

#[test]
fn what_cannot_be_predicted_is_named() {
    let folder = trained();
    folder.write("base.csv", "sequence\nACGT\nAC*T\n");
    for (args, code, message) in [
        ("test.csv test.fa --checkpoint run --out o.csv", 2, "either tables or FASTA files"),
        ("base.csv --checkpoint run --out o.csv", 1, "base.csv:3: invalid character '*' at base 3"),
        ("test.csv --checkpoint . --out o.csv", 1, "config.json"),
        ("test.fa --checkpoint run --out o.csv --shard 0/2", 2, "--shard needs a directory of parts"),
        ("gone.fa --checkpoint run --out o.csv", 1, "gone.fa"),
        ("test.fa --checkpoint run --out o.txt", 1, "unknown output format"),
    ] {
        let (got, _, stderr) = folder.run(&format!("predict {args} --quiet"));
        assert_eq!(got, code, "{args}: {stderr}");
        assert!(stderr.contains(message), "{args}: {stderr}");
        let left = fs::read_dir(folder.path("."))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(['o', '.']));
        assert_eq!(left.count(), 0, "{args}");
    }
    // A pre-trained model has no head.
    let params = mamba_core::Params::fresh(0, candle_core::DType::F32, &candle_core::Device::Cpu);
    let cfg = mamba_genomics::CaduceusConfig { d_model: 8, n_layer: 1, ..Default::default() };
    mamba_genomics::CaduceusForMaskedLm::new(&cfg, &params.builder()).unwrap();
    let config = serde_json::to_value(&cfg).unwrap();
    mamba_core::checkpoint::save_dir(folder.path("lm"), &config, &params.to_tensors()).unwrap();
    let (code, _, stderr) = folder.run("predict test.csv --checkpoint lm --out o.csv");
    assert!(
        code == 1 && stderr.contains("holds no fine-tuned model") && stderr.contains("hint:"),
        "{stderr}"
    );
}
