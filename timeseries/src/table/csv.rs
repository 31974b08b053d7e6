//! CSV text in chunks of whole records: separator and decimal mark detected, every record held to the header's number of
//! fields, values parsed by polars into text columns.

use super::Chunk;
use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use polars::prelude::*;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

/// Records of a chunk.
const CHUNK: usize = 65_536;

/// A CSV file, read chunk by chunk.
pub(crate) struct CsvChunks {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    header: Vec<u8>,
    /// The separator of the fields.
    separator: u8,
    fields: usize,
    /// Lines read so far.
    line: u64,
}

impl CsvChunks {
    /// Opens a file, plain or gzip, and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let mut file = BufReader::with_capacity(1 << 18, File::open(path).map_err(failed)?);
        let gzip = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read + Send> =
            if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        let mut chunks = Self {
            path: path.to_owned(),
            reader: Box::new(BufReader::with_capacity(1 << 18, reader)),
            header: Vec::new(),
            separator: b',',
            fields: 0,
            line: 0,
        };
        let Some((_, mut header)) = chunks.record()? else {
            return Err(Error::table(path, "the file is empty"));
        };
        if header.starts_with(&[0xef, 0xbb, 0xbf]) {
            header.drain(..3); // a byte order mark
        }
        if header.trim_ascii_end().split(|&b| b == b'\r').skip(1).any(|rest| !rest.starts_with(b"\n")) {
            let message =
                "its lines end with carriage returns alone; convert them, for example with `tr '\\r' '\\n'`";
            return Err(Error::table(path, message));
        }
        chunks.separator = separator(&header);
        chunks.fields = fields(&header, chunks.separator);
        chunks.header = header;
        Ok(chunks)
    }

    /// The next record that is not blank, with its line ends, and the line where it begins.
    fn record(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        let mut record = Vec::new();
        let mut begins = self.line + 1;
        loop {
            let before = record.len();
            let read = self.reader.read_until(b'\n', &mut record);
            let read = read.map_err(|source| Error::Read { path: self.path.clone(), source })?;
            if read == 0 {
                return match record.is_empty() {
                    true => Ok(None),
                    false => Err(Error::line(&self.path, begins, "a quoted value does not end")),
                };
            }
            self.line += 1;
            if record[before..].contains(&0) {
                return Err(Error::line(&self.path, self.line, "holds a zero byte: this is not a text file"));
            }
            let quotes = record.iter().filter(|&&b| b == b'"').count();
            if quotes % 2 == 1 {
                continue; // a line break within quotes
            }
            if record.iter().all(u8::is_ascii_whitespace) {
                record.clear();
                begins = self.line + 1;
                continue;
            }
            return Ok(Some((begins, record)));
        }
    }
}

impl Iterator for CsvChunks {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = self.header.clone();
        let mut lines = Vec::new();
        while lines.len() < CHUNK {
            match self.record() {
                Err(error) => return Some(Err(error)),
                Ok(None) => break,
                Ok(Some((line, record))) => {
                    let n = fields(&record, self.separator);
                    if n != self.fields {
                        let message = format!("{n} fields, but the header has {}", self.fields);
                        return Some(Err(Error::line(&self.path, line, message)));
                    }
                    if !text.ends_with(b"\n") {
                        text.push(b'\n');
                    }
                    text.extend(record);
                    lines.push(line);
                }
            }
        }
        (!lines.is_empty()).then(|| self.parse(text, lines))
    }
}

impl CsvChunks {
    fn parse(&self, text: Vec<u8>, lines: Vec<u64>) -> Result<Chunk> {
        // Headers in Latin-1 are common; nothing but names can be hurt by them.
        let text = match String::from_utf8(text) {
            Ok(text) => text.into_bytes(),
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned().into_bytes(),
        };
        let options = CsvReadOptions::default()
            .with_infer_schema_length(Some(0)) // every column is text
            .with_n_threads(Some(1))
            .map_parse_options(|parse| parse.with_separator(self.separator).with_missing_is_null(true));
        let frame = CsvReader::new(Cursor::new(text)).with_options(options).finish();
        let frame = frame.map_err(|e| Error::line(&self.path, lines[0], e))?;
        if frame.height() != lines.len() {
            let message = format!("{} records were read as {} rows", lines.len(), frame.height());
            return Err(Error::line(&self.path, lines[0], message));
        }
        Ok(Chunk { frame, lines, separator: Some(self.separator), unread: Vec::new() })
    }
}

/// The separator that cuts the header into most fields; a comma only where no other cuts it into half as many, for it may
/// stand in names.
fn separator(header: &[u8]) -> u8 {
    let commas = fields(header, b',');
    let others = [b';', b'\t', b'|'].into_iter().filter(|&s| fields(header, s) > 1);
    let best = others.max_by_key(|&s| fields(header, s));
    best.filter(|&s| 2 * fields(header, s) >= commas).unwrap_or(b',')
}

/// Number of fields of a record.
fn fields(record: &[u8], separator: u8) -> usize {
    let (mut quoted, mut n) = (false, 1);
    for &byte in record {
        match byte {
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => n += 1,
            _ => {}
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_detected() {
        for (header, expected) in [
            ("date,a,b", b','),
            ("date;a;b", b';'),
            ("date\ta, in m\tb", b'\t'),
            ("only", b','),
            ("date;\"a,b,c,d\";e", b';'),
            ("date,\"a;b;c\",d", b','),
        ] {
            assert_eq!(separator(header.as_bytes()) as char, expected as char, "{header}");
        }
    }
}
