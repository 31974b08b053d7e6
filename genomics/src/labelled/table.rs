//! Rows of CSV and TSV files, one at a time.

use super::{Row, parquet::ParquetRows};
use crate::error::{Error, Result};
use crate::fasta::Input;
use crate::tokenizer::{self, SequenceCounts};
use csv::{ByteRecord, ReaderBuilder};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::path::Path;

/// Names of the columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Of the sequences.
    pub sequence: String,
    /// Of the labels.
    pub label: String,
    /// Of the names; null: rows are numbered from 1.
    pub id: Option<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Self { sequence: "sequence".into(), label: "label".into(), id: None }
    }
}

/// Places of the columns in a table.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) sequence: usize,
    pub(super) label: Option<usize>,
    pub(super) id: Option<usize>,
}

impl Columns {
    /// Finds the columns by name; the label only if `labelled`.
    pub(super) fn find(&self, place: &str, names: &[String], labelled: bool) -> Result<Found> {
        let find = |wanted: &str| {
            let mut places = names.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(i, _)| i);
            let reason = match (places.next(), places.next()) {
                (Some(i), None) => return Ok(i),
                (Some(_), Some(_)) => format!("two columns are called {wanted:?}"),
                _ => format!("there is no column {wanted:?}, only {}", names.join(", ")),
            };
            Err(Error::Table { place: place.to_string(), reason })
        };
        Ok(Found {
            sequence: find(&self.sequence)?,
            label: labelled.then(|| find(&self.label)).transpose()?,
            id: self.id.as_deref().map(find).transpose()?,
        })
    }
}

/// The rows of a table: an iterator over `Result<Row>` that ends after an error. Memory does not grow with the file.
///
/// CSV and TSV need a header, may be compressed with gzip, and are told apart by whether the header has a tab. White space
/// around a value does not count; blank lines are skipped.
pub struct Rows(Kind);

enum Kind {
    Text(Box<TextRows>),
    Parquet(Box<ParquetRows>),
}

impl Rows {
    /// Opens a table; `-` is standard input. With `labelled` every row must have a label, else none is read.
    pub fn open(path: &Path, columns: &Columns, labelled: bool) -> Result<Self> {
        let is_parquet = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        Ok(Self(match is_parquet {
            true => Kind::Parquet(Box::new(ParquetRows::open(path, columns, labelled)?)),
            false => Kind::Text(Box::new(TextRows::new(Input::open(path)?, columns, labelled)?)),
        }))
    }

    /// The same of CSV or TSV text from any stream; `name` stands for it in messages.
    pub fn from_reader(
        name: &str,
        reader: impl Read + Send + 'static,
        columns: &Columns,
        labelled: bool,
    ) -> Result<Self> {
        let input = Input::new(name.into(), Box::new(reader), None)?;
        Ok(Self(Kind::Text(Box::new(TextRows::new(input, columns, labelled)?))))
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Kind::Text(rows) => rows.next(),
            Kind::Parquet(rows) => rows.next(),
        }
    }
}

struct TextRows {
    path: String,
    reader: csv::Reader<Lines>,
    record: ByteRecord,
    width: usize,
    found: Found,
    rows: u64,
    done: bool,
}

impl TextRows {
    fn new(mut input: Input, columns: &Columns, labelled: bool) -> Result<Self> {
        let path = input.path.clone();
        let start = input.fill_buf()?;
        let header = start.split(|&b| b == b'\n').next().unwrap_or_default();
        let delimiter = if header.contains(&b'\t') { b'\t' } else { b',' };
        let mut builder = ReaderBuilder::new();
        builder.delimiter(delimiter).flexible(true).trim(csv::Trim::All);
        let mut reader = builder.from_reader(Lines { input, after_return: false, ended: false });
        let header = reader.byte_headers().map_err(|e| read_error(&path, e))?.clone();
        let names: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim_start_matches('\u{feff}').trim().to_string())
            .collect();
        if names.iter().all(String::is_empty) {
            return Err(Error::EmptyFile { path });
        }
        let found = columns.find(&format!("{path}:1"), &names, labelled)?;
        Ok(Self { path, reader, record: ByteRecord::new(), width: names.len(), found, rows: 0, done: false })
    }

    fn read(&mut self) -> Result<Option<Row>> {
        if !self.reader.read_byte_record(&mut self.record).map_err(|e| read_error(&self.path, e))? {
            return Ok(None);
        }
        self.rows += 1;
        // A record's own position is in front of the blank lines before it.
        let within: usize = self.record.as_slice().iter().filter(|&&b| b == b'\n').count();
        let line = self.reader.position().line() - 1 - within as u64;
        let place = format!("{}:{line}", self.path);
        if self.record.len() != self.width {
            let reason = format!("{} fields, but the header has {}", self.record.len(), self.width);
            return Err(Error::Table { place, reason });
        }
        let text = |at: usize| {
            std::str::from_utf8(&self.record[at]).map(str::to_string).map_err(|_| Error::Table {
                place: place.clone(),
                reason: format!("field {} is not UTF-8", at + 1),
            })
        };
        let id = self.found.id.map(text).transpose()?;
        let label = self.found.label.map(text).transpose()?;
        row(place.clone(), id, self.rows, &self.record[self.found.sequence], label).map(Some)
    }
}

impl Iterator for TextRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.read().transpose();
        self.done = !matches!(row, Some(Ok(_)));
        row
    }
}

/// Checks and encodes one row.
pub(super) fn row(
    place: String,
    id: Option<String>,
    number: u64,
    sequence: &[u8],
    label: Option<String>,
) -> Result<Row> {
    let wrong = |reason: String| Error::Table { place: place.clone(), reason };
    if sequence.is_empty() {
        return Err(wrong("the sequence is empty".into()));
    }
    if label.as_deref() == Some("") {
        return Err(wrong("the label is empty".into()));
    }
    let ids = tokenizer::encode(sequence, &mut SequenceCounts::default()).map_err(|error| match error {
        Error::InvalidBase { position1, character, .. } => {
            wrong(format!("invalid character {character} at base {position1} of the sequence"))
        }
        other => other,
    })?;
    Ok(Row { id: id.unwrap_or_else(|| number.to_string()), ids, label, place })
}

fn read_error(path: &str, error: csv::Error) -> Error {
    let line = error.position().map(csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => match source.downcast::<Error>() {
            Ok(ours) => ours,
            Err(source) => Error::Read { path: path.to_string(), source },
        },
        kind => Error::Table {
            place: line.map_or(path.to_string(), |line| format!("{path}:{line}")),
            reason: format!("cannot be read as a table: {kind:?}"),
        },
    }
}

/// An input whose every line ends in one LF, so that lines can be counted. Its errors travel inside of [`io::Error`].
struct Lines {
    input: Input,
    /// Whether the last byte was a CR, given on as LF.
    after_return: bool,
    /// Whether the last LF was given.
    ended: bool,
}

impl Read for Lines {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let bytes = self.input.fill_buf().map_err(io::Error::other)?;
            if bytes.is_empty() {
                let more = usize::from(!std::mem::replace(&mut self.ended, true));
                out[..more].fill(b'\n');
                return Ok(more);
            }
            let (taken, mut given) = (bytes.len().min(out.len()), 0);
            for &byte in &bytes[..taken] {
                let skipped = byte == b'\n' && self.after_return;
                self.after_return = byte == b'\r';
                if !skipped {
                    out[given] = if byte == b'\r' { b'\n' } else { byte };
                    given += 1;
                }
            }
            self.input.consume(taken);
            if given > 0 {
                return Ok(given);
            }
        }
    }
}
