//! BED files and region lists: what is accepted, and the message of every fault.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use std::io::Write;

use mamba_genomics::Result;
use mamba_genomics::regions::{self, RecordTable, Region, Strand};
use proptest::prelude::*;

fn records() -> RecordTable {
    let mut records = RecordTable::default();
    for (name, length) in [("chr1", 5000), ("chr2", 20), ("HLA:01", 50), ("HLA", 40), ("1", 300), ("x,y", 9)]
    {
        assert_eq!(records.push(name, length), None);
    }
    assert_eq!(records.push("chr2", 1), Some(1));
    records
}

fn bed(text: &str) -> Result<Vec<Region>> {
    regions::read_bed_from("regions.bed", std::io::Cursor::new(text.to_owned()), &records())
}

fn spans(regions: &[Region]) -> Vec<(&str, u64, u64)> {
    regions.iter().map(|r| (r.record_name.as_str(), r.start0, r.end0)).collect()
}

#[test]
fn bed_of_three_to_many_columns_is_read() {
    let text = "track name=x\nbrowser position chr1:1-2\n# comment\n\nchr1\t0\t5000\r\n\
                chr2\t3\t9\tpeak 1\nchr2\t3\t9\t.\t0\t-\nchr1 5 10 p 0.5 + 7 8\n1\t1\t2\ta\t1\t.\tmore\tcolumns";
    let regions = bed(text).unwrap();
    assert_eq!(
        spans(&regions),
        [("chr1", 0, 5000), ("chr2", 3, 9), ("chr2", 3, 9), ("chr1", 5, 10), ("1", 1, 2)]
    );
    let names: Vec<_> = regions.iter().map(|r| r.name.as_deref()).collect();
    assert_eq!(names, [None, Some("peak 1"), None, Some("p"), Some("a")]);
    let minus: Vec<_> = regions.iter().map(|r| r.strand == Strand::Minus).collect();
    assert_eq!(minus, [false, false, true, false, false]);
    assert_eq!((regions[2].label().as_str(), regions[2].len()), ("chr2:4-9(-)", 6));
}

#[test]
fn gzipped_bed_files_are_read_and_arguments_told_apart() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("peaks.bed.gz");
    let mut encoder =
        flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
    encoder.write_all(b"chr2\t0\t7\n").unwrap();
    encoder.finish().unwrap();
    let records = records();
    assert_eq!(spans(&regions::from_argument(path.to_str().unwrap(), &records).unwrap()), [("chr2", 0, 7)]);
    assert_eq!(spans(&regions::from_argument("chr2:1-7", &records).unwrap()), [("chr2", 0, 7)]);
    assert!(regions::from_argument("missing.bed", &records).unwrap_err().to_string().contains("cannot open"));
}

#[test]
fn bed_faults_name_file_and_line() {
    for (text, expected) in [
        ("chr1\t5\n", "regions.bed:1: expected at least 3 columns, got 2"),
        ("#\nchr1\tfive\t7\n", "regions.bed:2: start \"five\" is not a position"),
        ("chr1\t5\t-7\n", "regions.bed:1: end \"-7\" is not a position"),
        ("chr1\t7\t7\n", "regions.bed:1: 7-7 (0-based, end not included): region has no base"),
        ("chr2\t7\t21\n", "region ends after record \"chr2\", which has 20 bases"),
        ("chr9\t7\t21\n", "regions.bed:1: no record is named \"chr9\" (the first is \"chr1\")"),
        ("chr1\t1\t2\ta\t0\tx\n", "regions.bed:1: strand \"x\" is not '+', '-' or '.'"),
        ("# nothing\n", "regions.bed: file has no regions"),
        ("", "regions.bed: file has no regions"),
    ] {
        let error = bed(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let long = format!("chr1\t1\t2\t{}\n", "x".repeat(70_000));
    assert!(bed(&long).unwrap_err().to_string().contains("longer than"));
}

#[test]
fn lists_are_read_as_samtools_reads_them() {
    let list = |text: &str| {
        regions::parse_list(text, &records())
            .map(|r| r.iter().map(|r| (r.record_name.clone(), r.start0, r.end0)).collect::<Vec<_>>())
    };
    let one = |name: &str, start0, end0| vec![(name.to_owned(), start0, end0)];
    assert_eq!(list("chr1").unwrap(), one("chr1", 0, 5000));
    assert_eq!(list("chr1:1-1").unwrap(), one("chr1", 0, 1));
    assert_eq!(list("chr1:1,001-2,000").unwrap(), one("chr1", 1000, 2000));
    assert_eq!(list("chr1:100").unwrap(), one("chr1", 99, 5000));
    assert_eq!(list("chr1:100-").unwrap(), one("chr1", 99, 5000));
    assert_eq!(list("chr1:-200").unwrap(), one("chr1", 0, 200));
    assert_eq!(list("{HLA:01}:5-9").unwrap(), one("HLA:01", 4, 9));
    assert_eq!(list("{HLA}:01-9").unwrap(), one("HLA", 0, 9));
    assert_eq!(list("{x,y}").unwrap(), one("x,y", 0, 9));
    assert_eq!(list("HLA:01:5-9").unwrap(), one("HLA:01", 4, 9));
    let three = [one("chr1", 0, 1000), one("chr2", 0, 20), one("1", 1, 3)].concat();
    assert_eq!(list("chr1:1-1,000,chr2 ,1:2-3").unwrap(), three);
    for (text, expected) in [
        ("", "the list is empty"),
        ("chr9:1-2", "region \"chr9:1-2\": no record is named \"chr9\""),
        ("chr1:0-5", "positions count from 1, got 0"),
        ("chr1:9-5", "region has no base"),
        ("chr2:1-21", "region ends after record \"chr2\", which has 20 bases"),
        ("chr1:a-5", "\"a\" is not a position"),
        ("chr1:", "range \"\" is empty"),
        ("{chr1:5", "a '}' is missing"),
        ("{chr1}5", "expected ':' after '}', got \"5\""),
        ("HLA:01", "both \"HLA:01\" and its part before ':' are records"),
    ] {
        let error = list(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn labels_are_read_back(start0 in 0u64..5000, len in 1u64..5000, minus: bool) {
        let end0 = (start0 + len).min(5000);
        let strand = if minus { Strand::Minus } else { Strand::Plus };
        let region = Region { record: 0, record_name: "chr1".into(), start0, end0, strand, name: None };
        prop_assert_eq!(regions::parse_list(&region.label(), &records()).unwrap(), vec![region.clone()]);
        let line = format!("chr1\t{start0}\t{end0}\t.\t0\t{strand}\n");
        prop_assert_eq!(bed(&line).unwrap(), vec![region]);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(
        text in ".{0,80}", near in "(chr1|HLA|:|-|,|\\{|\\}|\\(-\\)| |\t|\n|[0-9]|99999999999999999999){0,25}",
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        for text in [&text, &near] {
            let _ = bed(text);
            if let Ok(regions) = regions::parse_list(text, &records()) {
                for region in regions {
                    prop_assert!(region.start0 < region.end0 && region.end0 <= records().get(region.record).1);
                }
            }
        }
        let _ = regions::read_bed_from("x", std::io::Cursor::new(bytes), &records());
    }
}
