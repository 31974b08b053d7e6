//! VCF files, plain, gzip or bgzip, line by line. Lines are kept as they are; noodles reads their fields.

use std::path::Path;

use noodles::vcf;

use crate::error::{Error, Result};
use crate::fasta::Input;

/// Longer lines are not those of a VCF file; with a hundred thousand samples one has some megabytes.
const MAX_LINE_LEN: usize = 1 << 28;
/// Columns of a file without samples.
const COLUMNS: usize = 8;
/// Number of the INFO column, from 0.
const INFO: usize = 7;
/// The INFO fields that are written here: ratio, distance, and why an allele has none.
pub const KEYS: [&str; 3] = ["MAMBA_LLR", "MAMBA_DIST", "MAMBA_SKIP"];

/// A line of a VCF file, and its fields that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcfRecord {
    /// Line in the file, 1-based.
    pub line: u64,
    /// The line as it is, without its end.
    pub text: String,
    /// CHROM.
    pub chrom: String,
    /// POS, 1-based; 0 stands before the first base.
    pub pos1: u64,
    /// ID.
    pub id: String,
    /// REF.
    pub reference: String,
    /// ALT, one for each alternate allele; empty where there is none (`.`).
    pub alternates: Vec<String>,
}

/// Reads a VCF file or stream: an iterator over `Result<VcfRecord>` that ends after an error.
pub struct VcfReader {
    input: Input,
    header: Vec<String>,
    line: u64,
    text: Vec<u8>,
    done: bool,
}

impl VcfReader {
    /// Opens a file, or standard input for `-`, and reads its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Input::open(path.as_ref())?)
    }

    /// Reads from any stream; `name` stands for it in messages.
    pub fn from_reader(name: &str, reader: impl std::io::Read + Send + 'static) -> Result<Self> {
        Self::new(Input::new(name.into(), Box::new(reader), None)?)
    }

    fn new(input: Input) -> Result<Self> {
        let mut reader = Self { input, header: Vec::new(), line: 0, text: Vec::new(), done: false };
        loop {
            if !reader.read_line()? {
                return match reader.line {
                    0 => Err(Error::EmptyFile { path: reader.input.path }),
                    _ => Err(reader.problem("the file ends before its line of column names, #CHROM POS ...")),
                };
            }
            let line = reader.utf8()?.to_owned();
            if reader.line == 1 && !line.starts_with("##fileformat=VCF") {
                let first: String = line.chars().take(40).collect();
                return Err(reader
                    .problem(format!("not a VCF file: expected \"##fileformat=VCF...\", found {first:?}")));
            }
            let names = line.starts_with("#CHROM");
            if !names && !line.starts_with("##") {
                return Err(
                    reader.problem("a line that is neither ## nor #CHROM stands before the column names")
                );
            }
            if names && line.split('\t').count() < COLUMNS {
                return Err(reader.problem("the line of column names has fewer than 8, separated by tabs"));
            }
            reader.header.push(line);
            if names {
                return Ok(reader);
            }
        }
    }

    /// The lines of the header, the last of which holds the column names.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// How the file is called in messages.
    pub fn path(&self) -> &str {
        &self.input.path
    }

    /// Bytes read, and the size of the file where it has one: for a progress bar.
    pub fn progress(&self) -> (u64, Option<u64>) {
        (self.input.bytes_read(), self.input.total_bytes())
    }

    fn problem(&self, reason: impl Into<String>) -> Error {
        Error::Vcf { path: self.input.path.clone(), line: self.line, reason: reason.into() }
    }

    /// Reads the next line into `text`, without its end; `false` at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        self.text.clear();
        self.line += 1;
        loop {
            let buf = self.input.fill_buf()?;
            if buf.is_empty() {
                self.line -= u64::from(self.text.is_empty());
                return Ok(!self.text.is_empty());
            }
            let end = buf.iter().position(|&byte| byte == b'\n');
            self.text.extend_from_slice(&buf[..end.unwrap_or(buf.len())]);
            let used = end.map_or(buf.len(), |end| end + 1);
            self.input.consume(used);
            if self.text.len() > MAX_LINE_LEN {
                return Err(self.problem(format!("line is longer than {MAX_LINE_LEN} bytes")));
            }
            if end.is_some() {
                if self.text.last() == Some(&b'\r') {
                    self.text.pop();
                }
                return Ok(true);
            }
        }
    }

    fn utf8(&self) -> Result<&str> {
        std::str::from_utf8(&self.text).map_err(|_| self.problem("line is not UTF-8"))
    }

    fn next_record(&mut self) -> Result<Option<VcfRecord>> {
        while self.read_line()? {
            if self.text.is_empty() {
                continue; // a blank line at the end of the file
            }
            return self.parse().map(Some);
        }
        Ok(None)
    }

    fn parse(&self) -> Result<VcfRecord> {
        let text = self.utf8()?.to_owned();
        let columns = text.split('\t').count();
        if columns < COLUMNS {
            return Err(self
                .problem(format!("expected at least {COLUMNS} columns separated by tabs, found {columns}")));
        }
        let record = vcf::Record::try_from(text.as_bytes()).map_err(|e| self.problem(e.to_string()))?;
        let pos1 = match record.variant_start() {
            None => 0,
            Some(Ok(position)) => usize::from(position) as u64,
            Some(Err(_)) => {
                let pos = text.split('\t').nth(1).unwrap_or_default();
                return Err(self.problem(format!("POS is {pos:?}, expected a whole number")));
            }
        };
        let alternates = record.alternate_bases();
        let alternates: Vec<String> = match alternates.as_ref() {
            "" => Vec::new(),
            all => all.split(',').map(str::to_owned).collect(),
        };
        let empty = |allele: &str| allele.is_empty() || allele.contains(char::is_whitespace);
        if empty(record.reference_bases()) || alternates.iter().any(|allele| empty(allele)) {
            return Err(self.problem("REF or ALT has an empty allele"));
        }
        Ok(VcfRecord {
            line: self.line,
            chrom: record.reference_sequence_name().to_owned(),
            pos1,
            id: text.split('\t').nth(2).unwrap_or(".").to_owned(),
            reference: record.reference_bases().to_owned(),
            alternates,
            text,
        })
    }
}

impl Iterator for VcfReader {
    type Item = Result<VcfRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let record = self.next_record();
        self.done = !matches!(record, Ok(Some(_)));
        record.transpose()
    }
}

impl VcfRecord {
    /// The line with INFO fields `key=value` added. Those of an earlier run ([`KEYS`]) are dropped, all else stays as it is.
    pub fn with_info(&self, fields: &[(&str, String)]) -> String {
        let mut columns: Vec<&str> = self.text.split('\t').collect();
        let new: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let is_ours = |field: &str| KEYS.contains(&field.split('=').next().unwrap_or(field));
        let kept =
            columns[INFO].split(';').filter(|field| *field != "." && !field.is_empty() && !is_ours(field));
        let info = kept.chain(new.iter().map(String::as_str)).collect::<Vec<_>>().join(";");
        columns[INFO] = if info.is_empty() { "." } else { &info };
        columns.join("\t")
    }
}

/// A header with `lines` (`##INFO=<ID=KEY,…>`) before the column names. Definitions of an earlier run ([`KEYS`]) are dropped.
pub fn header_with(header: &[String], lines: &[String]) -> Vec<String> {
    let is_ours = |line: &str| {
        let key = line.strip_prefix("##INFO=<ID=").and_then(|rest| rest.split([',', '>']).next());
        key.is_some_and(|key| KEYS.contains(&key))
    };
    let kept = header.iter().filter(|line| !is_ours(line));
    let mut all: Vec<String> = kept.cloned().collect();
    let names = all.pop();
    all.extend(lines.iter().cloned());
    all.extend(names);
    all
}
