//! Regions of records: BED files (0-based, half-open) and `name:start-end` lists (1-based, inclusive, as in samtools).

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::fasta::Input;

/// Longer lines are not those of a BED file.
const MAX_LINE_LEN: usize = 1 << 16;

/// Names and lengths of records, in file order.
#[derive(Clone, Debug, Default)]
pub struct RecordTable {
    records: Vec<(String, u64)>,
    by_name: HashMap<String, usize>,
}

impl RecordTable {
    /// Adds a record. Where the name is taken, nothing is added and the number of the earlier record is returned.
    pub fn push(&mut self, name: &str, length: u64) -> Option<usize> {
        if let Some(&earlier) = self.by_name.get(name) {
            return Some(earlier);
        }
        self.by_name.insert(name.to_owned(), self.records.len());
        self.records.push((name.to_owned(), length));
        None
    }

    /// Name and length of record number `record`.
    ///
    /// # Panics
    /// If there are not so many records.
    pub fn get(&self, record: usize) -> (&str, u64) {
        let (name, length) = &self.records[record];
        (name, *length)
    }

    /// Number of the record of that name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Which strand a region is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strand {
    /// As in the file.
    #[default]
    Plus,
    /// Reverse complemented.
    Minus,
}

impl fmt::Display for Strand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plus => "+",
            Self::Minus => "-",
        })
    }
}

/// Part of a record; it lies inside the record and has at least one base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Number of the record in the [`RecordTable`].
    pub record: usize,
    /// The record's name.
    pub record_name: String,
    /// First base, 0-based.
    pub start0: u64,
    /// One past the last base, 0-based.
    pub end0: u64,
    /// The strand that is read.
    pub strand: Strand,
    /// The BED file's fourth column.
    pub name: Option<String>,
}

impl Region {
    /// How many bases.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> u64 {
        self.end0 - self.start0
    }

    /// The name, or `record:start-end` (1-based, inclusive) with `(-)` for the minus strand.
    pub fn label(&self) -> String {
        match (&self.name, self.strand) {
            (Some(name), _) => name.clone(),
            (None, Strand::Plus) => format!("{}:{}-{}", self.record_name, self.start0 + 1, self.end0),
            (None, Strand::Minus) => format!("{}:{}-{}(-)", self.record_name, self.start0 + 1, self.end0),
        }
    }
}

/// Sorts regions as they stand in the files.
pub fn sort_by_position(regions: &mut [Region]) {
    regions.sort_by_key(|region| (region.record, region.start0, region.end0));
}

/// Reads `argument` as a BED file if a file of that name exists or the name ends in `.bed` or `.bed.gz`, else as a
/// list (see [`parse_list`]).
pub fn from_argument(argument: &str, records: &RecordTable) -> Result<Vec<Region>> {
    let path = Path::new(argument);
    if path.is_file() || argument.ends_with(".bed") || argument.ends_with(".bed.gz") {
        read_bed(path, records)
    } else {
        parse_list(argument, records)
    }
}

/// Reads a BED file, plain, gzip or bgzip: three to six columns are used (name in the fourth, strand in the sixth),
/// more are skipped, as are comments, blank lines, `track` and `browser` lines. Columns are separated by tabs, or by
/// white space in a line without tabs.
pub fn read_bed(path: impl AsRef<Path>, records: &RecordTable) -> Result<Vec<Region>> {
    bed(Input::open(path.as_ref())?, records)
}

/// Reads BED text from any stream; `name` stands for it in messages.
pub fn read_bed_from(
    name: &str,
    reader: impl std::io::Read + Send + 'static,
    records: &RecordTable,
) -> Result<Vec<Region>> {
    bed(Input::new(name.into(), Box::new(reader), None)?, records)
}

fn bed(mut input: Input, records: &RecordTable) -> Result<Vec<Region>> {
    let mut regions = Vec::new();
    let mut text = Vec::new();
    for number in 1u64.. {
        text.clear();
        let at_end = !read_line(&mut input, &mut text)?;
        let region = if text.len() > MAX_LINE_LEN {
            Err(format!("line is longer than {MAX_LINE_LEN} bytes"))
        } else {
            match std::str::from_utf8(&text) {
                Ok(line) => bed_line(line.trim_end_matches('\r'), records),
                Err(_) => Err("line is not UTF-8".into()),
            }
        };
        let region =
            region.map_err(|reason| Error::Region { origin: format!("{}:{number}", input.path), reason })?;
        regions.extend(region);
        if at_end {
            break;
        }
    }
    if regions.is_empty() {
        return Err(Error::Region { origin: input.path, reason: "file has no regions".into() });
    }
    Ok(regions)
}

/// Reads a line without its LF, or the first part of one that is too long; `false` at the end of the file.
fn read_line(input: &mut Input, text: &mut Vec<u8>) -> Result<bool> {
    while text.len() <= MAX_LINE_LEN {
        let buf = input.fill_buf()?;
        if buf.is_empty() {
            return Ok(false);
        }
        let end = buf.iter().position(|&byte| byte == b'\n');
        text.extend_from_slice(&buf[..end.unwrap_or(buf.len())]);
        let used = end.map_or(buf.len(), |end| end + 1);
        input.consume(used);
        if end.is_some() {
            break;
        }
    }
    Ok(true)
}

fn bed_line(line: &str, records: &RecordTable) -> std::result::Result<Option<Region>, String> {
    let first_word = line.split_whitespace().next().unwrap_or("");
    if first_word.is_empty() || first_word.starts_with('#') || matches!(first_word, "track" | "browser") {
        return Ok(None);
    }
    let columns: Vec<&str> =
        if line.contains('\t') { line.split('\t').collect() } else { line.split_whitespace().collect() };
    let &[record_name, start0, end0, ref rest @ ..] = columns.as_slice() else {
        return Err(format!("expected at least 3 columns, got {}", columns.len()));
    };
    let position = |what: &str, text: &str| {
        text.trim().parse::<u64>().map_err(|_| format!("{what} {text:?} is not a position"))
    };
    let (start0, end0) = (position("start", start0)?, position("end", end0)?);
    let strand = match rest.get(2).map(|text| text.trim()) {
        None | Some("+" | "." | "") => Strand::Plus,
        Some("-") => Strand::Minus,
        Some(other) => return Err(format!("strand {other:?} is not '+', '-' or '.'")),
    };
    let name = rest.first().map(|text| text.trim()).filter(|text| !matches!(*text, "" | "."));
    let record = find(records, record_name)?;
    let region = check(records, record, start0, end0)
        .map_err(|reason| format!("{start0}-{end0} (0-based, end not included): {reason}"))?;
    Ok(Some(Region { strand, name: name.map(str::to_owned), ..region }))
}

fn find(records: &RecordTable, name: &str) -> std::result::Result<usize, String> {
    records.find(name).ok_or_else(|| match records.records.first() {
        Some((first, _)) => format!("no record is named {name:?} (the first is {first:?})"),
        None => format!("no record is named {name:?}"),
    })
}

fn check(
    records: &RecordTable,
    record: usize,
    start0: u64,
    end0: u64,
) -> std::result::Result<Region, String> {
    let (name, length) = records.get(record);
    if start0 >= end0 {
        return Err("region has no base".into());
    }
    if end0 > length {
        return Err(format!("region ends after record {name:?}, which has {length} bases"));
    }
    Ok(Region { record, record_name: name.to_owned(), start0, end0, strand: Strand::Plus, name: None })
}

/// Parses a list of regions, separated by commas or white space. Positions are 1-based and inclusive:
///
/// - `chr1` all of a record; `chr1:100-200`; `chr1:100-` and `chr1:100` to its end; `chr1:-200` from its start
/// - `chr1:1,000-2,000`: a comma before exactly three digits separates thousands
/// - `{HLA:01}:5-9`: braces around a name with a colon or comma; without them a piece that is a record's name is that
///   record, and else the last colon ends the name
/// - `(-)` at the end: the minus strand
pub fn parse_list(text: &str, records: &RecordTable) -> Result<Vec<Region>> {
    let regions: Vec<Region> = split_list(text)
        .into_iter()
        .map(|piece| {
            parse_piece(piece, records)
                .map_err(|reason| Error::Region { origin: format!("region {piece:?}"), reason })
        })
        .collect::<Result<_>>()?;
    if regions.is_empty() {
        return Err(Error::Region {
            origin: format!("regions {text:?}"),
            reason: "the list is empty".into(),
        });
    }
    Ok(regions)
}

fn split_list(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut pieces = Vec::new();
    let (mut start, mut in_braces, mut after_colon) = (0, false, false);
    for (i, &byte) in bytes.iter().enumerate() {
        let three_digits = || {
            let next = &bytes[i + 1..];
            i > 0
                && bytes[i - 1].is_ascii_digit()
                && next.len() >= 3
                && next[..3].iter().all(u8::is_ascii_digit)
                && !next
                    .get(3)
                    .is_some_and(|&byte| byte != b',' && byte != b'-' && byte != b'(' && byte != b' ')
        };
        let separates = match byte {
            b'{' => {
                in_braces = true;
                false
            }
            b'}' => {
                in_braces = false;
                false
            }
            b':' => {
                after_colon = true;
                false
            }
            b',' => !(in_braces || (after_colon && three_digits())),
            _ => !in_braces && byte.is_ascii_whitespace(),
        };
        if separates {
            pieces.push(&text[start..i]);
            start = i + 1;
            after_colon = false;
        }
    }
    pieces.push(&text[start..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn parse_piece(piece: &str, records: &RecordTable) -> std::result::Result<Region, String> {
    let (text, strand) = match piece.strip_suffix("(-)") {
        Some(text) => (text, Strand::Minus),
        None => (piece.strip_suffix("(+)").unwrap_or(piece), Strand::Plus),
    };
    let (record, range) = if let Some(inside) = text.strip_prefix('{') {
        let (name, rest) = inside.split_once('}').ok_or("a '}' is missing")?;
        let range = match rest.strip_prefix(':') {
            Some(range) => Some(range),
            None if rest.is_empty() => None,
            None => return Err(format!("expected ':' after '}}', got {rest:?}")),
        };
        (find(records, name)?, range)
    } else {
        let split = text.rsplit_once(':').and_then(|(name, range)| Some((records.find(name)?, range)));
        match (records.find(text), split) {
            (Some(_), Some(_)) => {
                return Err(format!(
                    "both {text:?} and its part before ':' are records: put the name in braces"
                ));
            }
            (Some(whole), None) => (whole, None),
            (None, Some((record, range))) => (record, Some(range)),
            (None, None) => (find(records, text.rsplit_once(':').map_or(text, |(name, _)| name))?, None),
        }
    };
    let (_, length) = records.get(record);
    let (start1, end1) = match range {
        Some(range) => parse_range(range, length)?,
        None => (1, length),
    };
    let start0 = start1.checked_sub(1).ok_or("positions count from 1, got 0")?;
    Ok(Region { strand, ..check(records, record, start0, end1)? })
}

/// `start-end`, `start-`, `start` or `-end`, 1-based and inclusive.
fn parse_range(range: &str, length: u64) -> std::result::Result<(u64, u64), String> {
    let (start, end) = range.split_once('-').unwrap_or((range, ""));
    if start.is_empty() && end.is_empty() {
        return Err(format!("range {range:?} is empty"));
    }
    let position = |text: &str, missing: u64| {
        if text.is_empty() {
            return Ok(missing);
        }
        let digits: String = text.chars().filter(|&c| c != ',').collect();
        digits.parse().map_err(|_| format!("{text:?} is not a position"))
    };
    Ok((position(start, 1)?, position(end, length)?))
}
