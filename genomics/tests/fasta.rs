//! Streaming and random access over every kind of file, and the message of every kind of fault.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use mamba_genomics::fasta::{
    Compression, Duplicates, FaiIndex, FastaFiles, FastaOptions, FastaReader, IndexedFasta, SeqChunk,
};
use mamba_genomics::regions::{self, Strand};
use mamba_genomics::tokenizer::{self, SequenceCounts};
use mamba_genomics::{Error, Result};
use noodles::bgzf;
use proptest::prelude::*;
use tempfile::TempDir;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// bgzip with blocks of `block` bytes.
fn bgzip(text: &[u8], block: usize) -> Vec<u8> {
    let mut writer = bgzf::io::Writer::new(Vec::new());
    for piece in text.chunks(block) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
    }
    writer.finish().unwrap()
}

fn options(chunk_len: usize) -> FastaOptions {
    FastaOptions { chunk_len, duplicates: Duplicates::Error }
}

fn reader(bytes: &[u8], chunk_len: usize) -> Result<FastaReader> {
    FastaReader::from_reader("reads.fa", std::io::Cursor::new(bytes.to_vec()), options(chunk_len))
}

/// Name and letters of every record; checks what every stream of chunks promises.
fn joined(chunks: impl Iterator<Item = Result<SeqChunk>>, chunk_len: usize) -> Result<Vec<(String, String)>> {
    let mut records: Vec<(String, String)> = Vec::new();
    let mut ended = true;
    for chunk in chunks {
        let chunk = chunk?;
        assert!((1..=chunk_len).contains(&chunk.ids.len()));
        if chunk.start0 == 0 {
            assert!(ended, "a record began before the last one ended");
            assert_eq!(chunk.record.index, records.len());
            records.push((chunk.record.name.clone(), String::new()));
        }
        let text = &mut records.last_mut().unwrap().1;
        assert_eq!(chunk.start0, text.len() as u64);
        text.push_str(&tokenizer::decode(&chunk.ids));
        ended = chunk.last;
    }
    assert!(ended, "the last record did not end");
    Ok(records)
}

fn read(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    joined(reader(bytes, 7)?, 7)
}

fn message(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

fn save(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn line_ends_blank_lines_white_space_and_a_missing_last_line_end_change_nothing() {
    let expected = vec![("a".to_owned(), "ACGTACGTNN".to_owned()), ("b".to_owned(), "TTT".to_owned())];
    for text in [
        ">a first one\nACGTACGTNN\n>b\nTTT\n",
        ">a first one\nACGTACGTNN\n>b\nTTT",
        ">a first one\r\nACGTA\r\nCGTNN\r\n\r\n>b\r\nTTT\r\n",
        ">a\rACGTA\rCGTNN\r>b\rTTT\r",
        "\u{feff}\n\n>a\n\nAC GTA\tCGT  NN \n\n\n>b\nT\nT\nT\n\n",
        ">a\nacguacguNX\n>b\nttt",
    ] {
        assert_eq!(read(text.as_bytes()).unwrap(), expected, "{text:?}");
    }
    let first = reader(b">a first one\nA\n", 9).unwrap().next().unwrap().unwrap();
    assert_eq!((first.record.name.as_str(), first.record.description.as_str()), ("a", "first one"));
}

#[test]
fn compression_is_told_by_content_and_members_are_joined() {
    let text = b">a\nACGTACGT\n>b\nGG\n";
    let expected = read(text).unwrap();
    let two_members = [gzip(&text[..8]), gzip(&text[8..])].concat();
    let two_files = [bgzip(&text[..8], 5), bgzip(&text[8..], 5)].concat();
    let cases = [
        (gzip(text), Compression::Gzip),
        (two_members, Compression::Gzip),
        (bgzip(text, 5), Compression::Bgzf),
        (two_files, Compression::Bgzf),
    ];
    for (bytes, compression) in cases {
        assert_eq!(reader(&bytes, 3).unwrap().compression(), compression);
        assert_eq!(read(&bytes).unwrap(), expected);
        let folder = TempDir::new().unwrap();
        let mut fasta = IndexedFasta::open([save(&folder, "x.fa", &bytes)]).unwrap();
        assert_eq!(fetch(&mut fasta, 0, 3, 8).unwrap(), "TACGT");
    }
}

#[test]
fn faults_name_file_line_and_record() {
    let long_header = format!(">{}\nA\n", "x".repeat(70_000));
    let cases: &[(&[u8], &str)] = &[
        (b"", "reads.fa: file is empty"),
        (b"\n \r\n", "reads.fa: file is empty"),
        (&gzip(b""), "reads.fa: file is empty"),
        (b"ACGT\n", "reads.fa:1: not a FASTA file: expected '>', found 'A'"),
        (b"\n@read\nACGT\n", "reads.fa:2: not a FASTA file: expected '>', found '@'"),
        (b"\x00\x01", "reads.fa:1: not a FASTA file: expected '>', found byte 0x00"),
        (b">a\nA\n>\nC\n", "reads.fa:3: header has no name after '>'"),
        (b"> a\nA\n", "reads.fa:1: header has no name after '>'"),
        (b">\xff\xfe\nA\n", "reads.fa:1: record name is not UTF-8"),
        (b">a\n>b\nA\n", "reads.fa:1: record \"a\" has no sequence"),
        (b">a\nA\n>b\n\n \n", "reads.fa:3: record \"b\" has no sequence"),
        (b">a\nA\n>b", "reads.fa:3: record \"b\" has no sequence"),
        (b">a\nA\n>b\nC\n>a\nG\n", "reads.fa:5: record name \"a\" was used before at reads.fa:1"),
        (b">chr2\r\nACGT\r\nAC GT!A\r\n", "reads.fa:3: record \"chr2\": invalid character '!' at column 6"),
        (b">a\nAC>b\n", "reads.fa:2: record \"a\": invalid character '>' at column 3"),
        (b">a\nMKV*\n", "reads.fa:2: record \"a\": invalid character '*' at column 4"),
        (b">a\nA\x00\n", "reads.fa:2: record \"a\": invalid character byte 0x00 at column 2"),
        (b"\x28\xb5\x2f\xfdxxxx", "reads.fa: zstd files are not read"),
        (long_header.as_bytes(), "reads.fa:1: header is longer than 65536 bytes"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(&message(bytes), expected);
    }
    assert!(read(b"@r\nA\n").unwrap_err().hint().unwrap().contains("FASTQ"));
    assert!(read(b">p\nMKVLE\n").unwrap_err().hint().unwrap().contains("protein"));
}

#[test]
fn a_reader_ends_after_its_error() {
    let mut chunks = reader(b">a\n!\n>b\nACGT\n", 9).unwrap();
    assert!(chunks.next().unwrap().is_err());
    assert!(chunks.next().is_none());
}

#[test]
fn duplicate_names_are_read_where_that_is_asked_for() {
    let options = FastaOptions { duplicates: Duplicates::Allow, ..FastaOptions::default() };
    let text: &[u8] = b">a\nA\n>a\nC\n";
    let chunks = FastaReader::from_reader("x", text, options).unwrap();
    assert_eq!(joined(chunks, 9).unwrap().len(), 2);
}

#[test]
fn every_truncation_of_a_gzip_file_is_an_error() {
    let text: Vec<u8> = format!(">a\n{}\n", "ACGTTGCATC".repeat(300)).into_bytes();
    let whole = gzip(&text);
    for cut in 2..whole.len() {
        let error = read(&whole[..cut]).unwrap_err();
        assert!(matches!(error, Error::TruncatedGzip { .. }), "cut at {cut}: {error}");
    }
    // Between blocks too, from a stream and from a file.
    let whole = bgzip(&text, 500);
    let folder = TempDir::new().unwrap();
    for cut in 18..whole.len() {
        let error = read(&whole[..cut]).unwrap_err();
        assert!(matches!(error, Error::TruncatedBgzf { .. }), "cut at {cut}: {error}");
    }
    let path = save(&folder, "cut.fa.gz", &whole[..whole.len() - 28]);
    assert!(matches!(FastaReader::open(&path, options(9)), Err(Error::TruncatedBgzf { .. })));
}

#[test]
fn a_flipped_byte_in_a_gzip_file_is_an_error() {
    let mut bytes = gzip(format!(">a\n{}\n", "ACGTTGCATC".repeat(300)).as_bytes());
    let checksum = bytes.len() - 6;
    bytes[checksum] ^= 1;
    assert!(matches!(read(&bytes).unwrap_err(), Error::CorruptGzip { .. }));
    let trailing = [gzip(b">a\nACGT\n"), b"garbage".to_vec()].concat();
    assert!(read(&trailing).is_err());
}

#[test]
fn a_missing_file_and_a_folder_are_errors_that_name_them() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("no.fa");
    let error = FastaReader::open(&missing, options(9)).err().unwrap();
    assert!(matches!(error, Error::Open { .. }) && error.to_string().contains("no.fa"));
    let error = FastaReader::open(folder.path(), options(9)).err().unwrap();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn names_numbers_and_counts_run_over_all_files() {
    let folder = TempDir::new().unwrap();
    let a = save(&folder, "a.fa", b">a\nACgt\n>b\nNN\n");
    let b = save(&folder, "b.fa", &gzip(b">c\nRU-\n"));
    let mut files = FastaFiles::new([&a, &b], options(3));
    let records = joined(&mut files, 3).unwrap();
    assert_eq!(records.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    let counts = files.counts();
    assert_eq!((counts.bases, counts.soft_masked, counts.n, counts.uracil, counts.gaps), (9, 2, 2, 1, 1));
    let sizes = a.metadata().unwrap().len() + b.metadata().unwrap().len();
    assert_eq!(files.progress(), (sizes, Some(sizes)));

    let again = save(&folder, "again.fa", b"\n>b\nA\n");
    let error = joined(FastaFiles::new([&a, &again], options(3)), 3).unwrap_err().to_string();
    assert!(error.contains("again.fa:2: record name \"b\"") && error.contains("a.fa:3"), "{error}");
}

#[test]
fn one_line_of_many_megabytes_is_read_in_bounded_chunks() {
    let mut text = b">chromosome\n".to_vec();
    text.resize(text.len() + 20_000_000, b'G');
    let (mut bases, mut chunks) = (0, 0);
    for chunk in reader(&text, 1 << 16).unwrap() {
        let chunk = chunk.unwrap();
        assert!(chunk.ids.capacity() <= 1 << 17);
        bases += chunk.ids.len();
        chunks += 1;
    }
    assert_eq!((bases, chunks), (20_000_000, 20_000_000usize.div_ceil(1 << 16)));
}

const UNEVEN: &str = ">a x\nACGT\nTTGC\nA\n>b\nGGGGGG\n\n>c\r\nACG\r\nTTT\r\n";

/// The same text plain, bgzip and gzip.
fn three_ways(folder: &TempDir, text: &[u8]) -> [PathBuf; 3] {
    [
        save(folder, "plain.fa", text),
        save(folder, "blocks.fa.gz", &bgzip(text, 11)),
        save(folder, "stream.fa.gz", &gzip(text)),
    ]
}

fn fetch(fasta: &mut IndexedFasta, record: usize, start0: u64, end0: u64) -> Result<String> {
    let mut ids = Vec::new();
    fasta.read(record, start0, end0, &mut ids)?;
    Ok(tokenizer::decode(&ids))
}

#[test]
fn random_access_agrees_with_streaming_for_every_range_and_compression() {
    let folder = TempDir::new().unwrap();
    for path in three_ways(&folder, UNEVEN.as_bytes()) {
        let records = joined(FastaReader::open(&path, options(5)).unwrap(), 5).unwrap();
        for with_file in [false, true] {
            let mut index_path = path.clone().into_os_string();
            index_path.push(".fai");
            if with_file {
                FaiIndex::build(&path).unwrap().write(&index_path).unwrap();
            }
            let mut fasta = IndexedFasta::open([&path]).unwrap();
            assert_eq!(fasta.records().len(), 3);
            for (record, (name, text)) in records.iter().enumerate() {
                assert_eq!(fasta.records().get(record), (name.as_str(), text.len() as u64));
                for start in 0..text.len() {
                    for end in start + 1..=text.len() {
                        let bases = fetch(&mut fasta, record, start as u64, end as u64).unwrap();
                        assert_eq!(bases, text[start..end], "{} {start}..{end}", path.display());
                    }
                }
            }
        }
    }
}

#[test]
fn an_index_is_written_as_samtools_writes_it() {
    let folder = TempDir::new().unwrap();
    let path = save(&folder, "x.fa", UNEVEN.as_bytes());
    let written = folder.path().join("x.fa.fai");
    let index = FaiIndex::build(&path).unwrap();
    index.write(&written).unwrap();
    let text = std::fs::read_to_string(&written).unwrap();
    assert_eq!(text, "a\t9\t5\t4\t5\nb\t6\t20\t6\t7\nc\t6\t32\t3\t5\n");
    assert_eq!(FaiIndex::read(&written).unwrap(), index);
}

#[test]
fn what_no_index_can_describe_is_refused_with_its_line() {
    let folder = TempDir::new().unwrap();
    for (text, expected) in [
        (">a\nACG\nACGT\n", ":3: record \"a\" cannot be indexed: the line has 4 bases, its first line 3"),
        (">a\nACG\nA\nACG\n", ":4: record \"a\" cannot be indexed: an earlier line"),
        (">a\nACG\n\nACG\n", ":4: record \"a\" cannot be indexed: an earlier line"),
        (">a\nA CG\nACG\n", ":2: record \"a\" cannot be indexed: the line has white space"),
        (">a\nACG\r\nACG\n\nACG\n", ":5: record \"a\" cannot be indexed"),
        (">a\n>b\nACG\n", ":1: record \"a\" has no sequence"),
        ("\nACG\n", ":2: not a FASTA file"),
        ("\n\n", ": file is empty"),
        (">a\nA\n>a\nC\n", ": record name \"a\" was used before in"),
    ] {
        let path = save(&folder, "x.fa", text.as_bytes());
        let error = IndexedFasta::open([&path]).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(matches!(IndexedFasta::open(["-"]), Err(Error::NotSeekable { .. })));
}

#[test]
fn a_stale_or_broken_index_is_noticed() {
    let folder = TempDir::new().unwrap();
    let path = save(&folder, "x.fa", b">a\nACGT\nAC\n>b\nGGGG\n");
    let index = folder.path().join("x.fa.fai");
    for (text, expected) in [
        ("a\t7\t3\t4\t5\n", "its last line ends elsewhere"),
        ("a\t6\t3\t5\t6\n", "a line is"),
        ("a\t5\t3\t4\t5\n", "its last line ends elsewhere"),
        ("b\t6\t3\t4\t5\n", "the header before it is \"a\""),
        ("a\t6\t4\t4\t5\n", "no line begins at byte 4"),
        ("a\t4\t8\t4\t5\n", "no header stands before it"),
        ("b\t40\t14\t4\t5\n", "the file ends before"),
        ("b\t4\t999\t4\t5\n", "no line begins"),
    ] {
        std::fs::write(&index, text).unwrap();
        let mut fasta = IndexedFasta::open([&path]).unwrap();
        let (_, length) = fasta.records().get(0);
        let error = fetch(&mut fasta, 0, 0, length).unwrap_err();
        assert!(matches!(error, Error::IndexMismatch { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains(expected), "{text:?}: {error}");
        assert!(error.hint().unwrap().contains("x.fa.fai"));
    }
    for (text, expected) in [
        ("a\t6\t3\t4\n", ".fai:1: expected 5 tab-separated columns, got 4"),
        ("a\t6\t3\t4\t5\nb\tx\t3\t4\t5\n", ".fai:2: length \"x\" is not a number"),
        ("a\t6\t3\t0\t5\n", "bases per line \"0\" is not a positive number"),
        ("a\t6\t3\t5\t4\n", "a line has fewer bytes than bases"),
        ("a\t6\t3\t1\t900\n", "a line end has more than 2 bytes"),
        ("a\t18446744073709551615\t3\t1\t2\n", "beyond any file"),
        ("\t6\t3\t4\t5\n", "the name is empty"),
    ] {
        std::fs::write(&index, text).unwrap();
        let error = IndexedFasta::open([&path]).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_invalid_character_in_a_region_is_named_by_its_base() {
    let folder = TempDir::new().unwrap();
    let path = save(&folder, "x.fa", b">a\nACGT\nA!GT\n");
    let mut fasta = IndexedFasta::open([&path]).unwrap();
    let error = fetch(&mut fasta, 0, 2, 8).unwrap_err().to_string();
    assert!(error.ends_with("x.fa: record \"a\": invalid character '!' at base 6"), "{error}");
}

#[test]
fn regions_come_in_order_and_the_minus_strand_is_reverse_complemented() {
    let folder = TempDir::new().unwrap();
    for path in three_ways(&folder, UNEVEN.as_bytes()) {
        let mut fasta = IndexedFasta::open([&path]).unwrap();
        let list = regions::parse_list("c:2-4, a:2-9(-) a:1-1", fasta.records()).unwrap();
        assert_eq!(list[1].strand, Strand::Minus);
        let chunks = joined(fasta.region_chunks(&list, 3), 3).unwrap();
        let expected = [("c:2-4", "CGT"), ("a:2-9(-)", "TGCAAACG"), ("a:1-1", "A")];
        assert_eq!(chunks, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        assert_eq!(fasta.counts().bases, 12);
    }
}

#[test]
fn gzip_is_read_backwards_beyond_what_is_kept() {
    let folder = TempDir::new().unwrap();
    let text: String =
        (0..150_000).map(|i| format!("{:<60}\n", "ACGTTGCA"[i % 8..].to_owned()).replace(' ', "G")).collect();
    let path = save(&folder, "x.fa.gz", &gzip(format!(">a\n{text}").as_bytes()));
    let bases = text.replace('\n', "");
    let mut fasta = IndexedFasta::open([&path]).unwrap();
    assert!(fasta.is_sequential());
    for start in [8_900_000, 10, 8_000_000, 7_999_990, 5_000_000, 0] {
        let got = fetch(&mut fasta, 0, start as u64, start as u64 + 1000).unwrap();
        assert_eq!(got, bases[start..start + 1000]);
    }
}

fn record_text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ACGTNacgtnRYUX.-]{1,80}").unwrap()
}

proptest! {
    #[test]
    fn any_layout_of_any_records_is_read_back(
        records in proptest::collection::vec(record_text(), 1..6),
        width in 1usize..90, line_end in prop_oneof![Just("\n"), Just("\r\n")], last_end: bool,
        chunk_len in 1usize..100, block in 1usize..60,
    ) {
        let mut text = String::new();
        for (i, record) in records.iter().enumerate() {
            text.push_str(&format!(">r{i} text{line_end}"));
            for line in record.as_bytes().chunks(width) {
                text.push_str(std::str::from_utf8(line).unwrap());
                text.push_str(line_end);
            }
        }
        let bytes = if last_end { text.as_bytes() } else { text.trim_end().as_bytes() };
        let mut counts = SequenceCounts::default();
        let expected: Vec<(String, String)> = records.iter().enumerate().map(|(i, record)| {
            (format!("r{i}"), tokenizer::decode(&tokenizer::encode(record.as_bytes(), &mut counts).unwrap()))
        }).collect();
        for bytes in [bytes.to_vec(), gzip(bytes), bgzip(bytes, block)] {
            let mut chunks = reader(&bytes, chunk_len).unwrap();
            prop_assert_eq!(&joined(&mut chunks, chunk_len).unwrap(), &expected);
            prop_assert_eq!(&chunks.counts(), &counts);
        }
        // An index of it finds every record.
        let folder = TempDir::new().unwrap();
        let path = save(&folder, "x.fa", bytes);
        let mut fasta = IndexedFasta::open([&path]).unwrap();
        for (i, (_, text)) in expected.iter().enumerate() {
            prop_assert_eq!(&fetch(&mut fasta, i, 0, text.len() as u64).unwrap(), text);
        }
    }

    #[test]
    fn a_changed_byte_in_a_bgzip_file_is_an_error_or_changes_nothing(at in 0.0..1.0f64, byte: u8, block in 20usize..90) {
        // No two blocks alike: a changed length that joins two equal ones would pass their checksum.
        let base = |i: u32| {
            let mixed = i.wrapping_mul(0x9e37_79b1);
            char::from(b"ACGT"[((mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca6b) >> 30) as usize])
        };
        let bases: String = (1..=300).map(base).collect();
        let folder = TempDir::new().unwrap();
        let text = format!(">a\n{bases}\n");
        let mut bytes = bgzip(text.as_bytes(), block);
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = byte;
        let path = save(&folder, "x.fa.gz", &bytes);
        save(&folder, "x.fa.gz.fai", b"a\t300\t3\t300\t301\n");
        let random = IndexedFasta::open([&path]).and_then(|mut fasta| fetch(&mut fasta, 0, 0, 300));
        let streamed = FastaReader::open(&path, options(9)).and_then(|chunks| joined(chunks, 9));
        prop_assert!(random.is_err() || random.is_ok_and(|text| text == bases));
        prop_assert!(streamed.is_err() || streamed.is_ok_and(|records| records[0].1 == bases));
    }

    #[test]
    fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), index in ".{0,80}") {
        let _ = read(&bytes);
        let _ = read(&[b"\x1f\x8b\x08\x04".as_slice(), &bytes].concat());
        let _ = FaiIndex::parse("x.fai", bytes.as_slice());
        let _ = FaiIndex::parse("x.fai", index.as_bytes());
    }

    #[test]
    fn nothing_that_looks_like_fasta_makes_the_readers_panic(
        text in "(>|a|A|C|G|T|\n|\r| |\t|!|N){0,60}", index in "(a|\t|\n|[0-9]|99999999999999999999){0,40}",
        good_index in "a\t[0-9]{1,3}\t[0-9]{1,2}\t[1-9]\t[1-9]\n",
    ) {
        let streamed = read(text.as_bytes());
        let folder = TempDir::new().unwrap();
        let path = save(&folder, "x.fa", text.as_bytes());
        if let (Ok(mut fasta), Ok(records)) = (IndexedFasta::open([&path]), streamed) {
            for (i, (_, text)) in records.iter().enumerate().filter(|_| !text.contains('\r')) {
                prop_assert_eq!(&fetch(&mut fasta, i, 0, text.len() as u64).unwrap(), text);
            }
        }
        for index in [index, good_index] {
            save(&folder, "x.fa.fai", index.as_bytes());
            if let Ok(mut fasta) = IndexedFasta::open([&path]) {
                for record in 0..fasta.records().len() {
                    let (_, length) = fasta.records().get(record);
                    let _ = fetch(&mut fasta, record, 0, length);
                }
            }
        }
    }
}

#[test]
fn real_files_are_read() {
    let Some(data) = std::env::var_os("MAMBA_DATA") else {
        eprintln!("skipped: MAMBA_DATA is not set");
        return;
    };
    let folder = Path::new(&data).join("genomics");
    let read_with = |name: &str, duplicates| {
        let options = FastaOptions { duplicates, ..FastaOptions::default() };
        let mut files = FastaFiles::new([folder.join(name)], options);
        let records = files.try_fold(0, |n, chunk| chunk.map(|chunk| n + usize::from(chunk.last)));
        records.map(|records| (records, files.counts()))
    };
    let read = |name| read_with(name, Duplicates::Error);
    for (name, records, bases) in [
        ("genomes/NC_008253.fna.gz", 1, 4_938_920),
        ("genomes/lambda_virus.fa.gz", 1, 48_502),
        ("genomes/NC_001422_phiX174.fa", 1, 5_386),
        ("genomes/yeast_chrI.fa", 1, 230_208),
        ("genomes/ce.fa", 7, 1_039_800),
        ("genomes/NC_001802lc.fna.gz", 1, 9_181),
        ("genomes/ls_orchid.fasta.gz", 94, 67_518),
        ("edge_cases/test-whitespace.fa", 2, 492),
        ("edge_cases/test.fa.gz", 22, 10_335),
        ("edge_cases/test_ref.fa", 1, 50_000),
        ("edge_cases/hg38.fa.gz", 2, 61_674),
        ("edge_cases/test.iupac.fa", 2, 40),
    ] {
        let (got, counts) = read(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((got, counts.bases), (records, bases), "{name}: {counts}");
    }
    assert_eq!(read("genomes/NC_001802lc.fna.gz").unwrap().1.soft_masked, 9_181);
    assert_eq!(read("edge_cases/test.iupac.fa").unwrap().1.ambiguous, [2; 11]);
    let (records, counts) = read_with("edge_cases/nucleotide_lib.fa.gz", Duplicates::Allow).unwrap();
    assert_eq!((records, counts.bases), (7, 17_344));
    assert!(matches!(read("edge_cases/nucleotide_lib.fa.gz"), Err(Error::DuplicateName { line: 285, .. })));
    assert!(matches!(read("edge_cases/empty.fa"), Err(Error::EmptyFile { .. })));
    assert!(matches!(read("edge_cases/dups.fasta"), Err(Error::DuplicateName { line: 10, .. })));
    let protein = read("protein/globins45.fa").unwrap_err();
    assert!(protein.hint().unwrap().contains("protein"), "{protein}");
}
