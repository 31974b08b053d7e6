//! Tables and splits, from the library.

use super::Folder;
use arrow_array::types::{Int8Type, Int32Type};
use arrow_array::{ArrayRef, DictionaryArray, Int8Array, Int64Array, RecordBatch, StringArray};
use mamba_datasets::Fractions;
use mamba_genomics::labelled::{Columns, LabelledSet, Row, Rows, group_key, k_fold, leaks, split};
use mamba_genomics::tokenizer::{decode, encode, reverse_complement};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

fn read(text: &[u8]) -> mamba_genomics::Result<Vec<Row>> {
    let rows = Rows::from_reader("t.csv", std::io::Cursor::new(text.to_vec()), &Columns::default(), true)?;
    rows.collect()
}

#[test]
fn separators_quotes_marks_and_spaces_are_understood() {
    let expected: Vec<(String, String)> = vec![("ACGT".into(), "1".into()), ("NNGA".into(), "a b".into())];
    for text in [
        "sequence,label\nACGT,1\nNNGA,a b\n",
        "\u{feff}sequence,label\r\nacgu,1\r\nnRga,\"a b\"\r\n",
        "label\tid\tsequence\n1\tx\t  ACGT\n\na b\ty\t-NGA \n",
        "\"sequence\",\"label\"\n\"ACGT\",\"1\"\n\"NNGA\",\"a b\"",
    ] {
        let rows = read(text.as_bytes()).unwrap();
        let got: Vec<_> = rows.iter().map(|row| (decode(&row.ids), row.label.clone().unwrap())).collect();
        assert_eq!(got, expected, "{text:?}");
    }
}

#[test]
fn lines_are_counted_as_an_editor_does() {
    for (text, line) in [
        ("sequence,label\nACGT,0\n\n\nAC!T,1", 5),
        ("sequence,label\r\nACGT,0\r\nAC!T,1\r\n", 3),
        ("sequence,label\rACGT,0\r\rAC!T,1", 4),
        ("label,sequence\n\"a\nb\",ACGT\nc,A!\n", 4),
        ("label,sequence\n\"a\nb\",A!\n", 2),
    ] {
        let error = read(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("t.csv:{line}: invalid character '!'")), "{text:?}: {error}");
    }
}

fn parquet<const N: usize>(folder: &Folder, name: &str, columns: [(&str, ArrayRef); N]) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = File::create(folder.path(name)).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn categories_of_parquet_files_are_their_values() {
    let folder = Folder::new();
    let labels: DictionaryArray<Int8Type> =
        vec![Some("yes"), Some("no"), Some("yes"), None].into_iter().collect();
    let sequences: DictionaryArray<Int32Type> = vec!["ACGT", "GGN", "ACGT", "A"].into_iter().collect();
    let ids = Int8Array::from(vec![1, 0, 0, 1]);
    let ids = DictionaryArray::new(ids, Arc::new(Int64Array::from(vec![70, 80])));
    let read = |rows: usize| {
        let columns: [(&str, ArrayRef); 3] = [
            ("sequence", Arc::new(sequences.slice(0, rows))),
            ("label", Arc::new(labels.slice(0, rows))),
            ("id", Arc::new(ids.slice(0, rows))),
        ];
        parquet(&folder, "t.parquet", columns);
        let columns = Columns { id: Some("id".into()), ..Columns::default() };
        LabelledSet::from_table(&folder.path("t.parquet"), &columns)
    };
    let rows = read(3).unwrap().rows;
    let rows: Vec<_> = rows.into_iter().map(|row| (row.id, decode(&row.ids), row.label.unwrap())).collect();
    let expected = [("80", "ACGT", "yes"), ("70", "GGN", "no"), ("70", "ACGT", "yes")];
    assert_eq!(rows, expected.map(|(id, bases, label)| (id.into(), bases.into(), label.into())));
    let error = read(4).unwrap_err().to_string();
    assert!(error.ends_with("t.parquet, row 4: column \"label\" is null"), "{error}");
}

#[test]
fn gzip_and_parquet_hold_the_same_rows() {
    let folder = Folder::new();
    let text = b"name,sequence,label\nfirst,ACGT,1\nsecond,GGN,0\n";
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text).unwrap();
    folder.write("t.csv.gz", gz.finish().unwrap());
    folder.write("t.csv", text);
    let columns: [(&str, ArrayRef); 3] = [
        ("label", Arc::new(Int64Array::from(vec![1, 0]))),
        ("sequence", Arc::new(StringArray::from(vec!["ACGT", "GGN"]))),
        ("name", Arc::new(StringArray::from(vec!["first", "second"]))),
    ];
    parquet(&folder, "t.parquet", columns);
    let columns = Columns { id: Some("name".into()), ..Columns::default() };
    let rows = |name: &str| {
        let set = LabelledSet::from_table(&folder.path(name), &columns).unwrap();
        set.rows.into_iter().map(|row| (row.id, row.ids, row.label)).collect::<Vec<_>>()
    };
    let plain = rows("t.csv");
    assert_eq!(plain[1].0, "second");
    assert_eq!(rows("t.csv.gz"), plain);
    assert_eq!(rows("t.parquet"), plain);
    let cut = std::fs::read(folder.path("t.csv.gz")).unwrap();
    folder.write("cut.csv.gz", &cut[..cut.len() - 10]);
    let error = LabelledSet::from_table(&folder.path("cut.csv.gz"), &columns).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
}

#[test]
fn copies_and_reverse_complements_are_leaks() {
    let set = |sequences: &[&str]| {
        let text = sequences.iter().fold("sequence,label\n".to_string(), |text, s| format!("{text}{s},0\n"));
        LabelledSet { rows: read(text.as_bytes()).unwrap() }
    };
    assert_eq!(leaks(&set(&["AACC", "ACGT"]), &set(&["GGTT", "AACC", "TTTT", "acgt"])), 3);
}

/// Labelled sequences with many copies and reverse complements.
fn sets() -> impl Strategy<Value = LabelledSet> {
    let row = ("[AC]{1,4}", 0..3usize, any::<bool>());
    proptest::collection::vec(row, 12..60).prop_map(|rows| LabelledSet {
        rows: rows
            .into_iter()
            .enumerate()
            .map(|(i, (bases, label, turn))| {
                let ids = encode(bases.as_bytes(), &mut Default::default()).unwrap();
                let ids = if turn { reverse_complement(&ids) } else { ids };
                Row { id: i.to_string(), ids, label: Some(label.to_string()), place: String::new() }
            })
            .collect(),
    })
}

proptest! {
    #[test]
    fn any_bytes_are_rows_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(read(&bytes));
        let mut table = b"sequence,label\n".to_vec();
        table.extend(bytes);
        if let Ok(rows) = read(&table) {
            prop_assert!(rows.iter().all(|row| !row.ids.is_empty() && row.label.is_some()));
        }
    }

    #[test]
    fn what_is_written_is_read(rows in proptest::collection::vec(("[ACGTN]{1,40}", "[a-z0-9]{1,6}"), 1..20), tab: bool) {
        let by = if tab { '\t' } else { ',' };
        let text = rows.iter().fold(format!("label{by}sequence\n"), |text, (s, l)| format!("{text}{l}{by}{s}\n"));
        let got: Vec<_> = read(text.as_bytes()).unwrap().into_iter().map(|r| (decode(&r.ids), r.label.unwrap())).collect();
        prop_assert_eq!(got, rows);
    }

    #[test]
    fn no_group_straddles_a_split(set in sets(), seed: u64, stratify: bool) {
        let Ok(parts) = split(&set, Fractions { valid: 0.2, test: 0.2 }, stratify, seed) else { return Ok(()) };
        prop_assert_eq!(leaks(&parts.train, &parts.valid) + leaks(&parts.train, &parts.test) + leaks(&parts.valid, &parts.test), 0);
        let mut ids: Vec<usize> = [&parts.train, &parts.valid, &parts.test]
            .iter().flat_map(|part| part.rows.iter().map(|row| row.id.parse().unwrap())).collect();
        ids.sort();
        prop_assert_eq!(ids, (0..set.rows.len()).collect::<Vec<_>>());
        prop_assert_eq!(split(&set, Fractions { valid: 0.2, test: 0.2 }, stratify, seed).unwrap(), parts);
    }

    #[test]
    fn no_group_straddles_a_fold(set in sets(), seed: u64) {
        let Ok(folds) = k_fold(&set, 3, false, seed) else { return Ok(()) };
        let mut held_out = Vec::new();
        for (train, out) in folds {
            prop_assert_eq!(leaks(&set.select(&train), &set.select(&out)), 0);
            held_out.extend(out);
        }
        held_out.sort();
        prop_assert_eq!(held_out, (0..set.rows.len()).collect::<Vec<_>>());
    }

    #[test]
    fn both_strands_have_one_key(bases in "[ACGTN]{1,30}") {
        let ids = encode(bases.as_bytes(), &mut Default::default()).unwrap();
        prop_assert_eq!(group_key(&ids), group_key(&reverse_complement(&ids)));
    }
}
