//! The streaming reader: one pass, one chunk in memory.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::input::{Compression, Input};
use crate::error::{Error, Result, quote_byte};
use crate::tokenizer::{ByteHistogram, CLASS, NEWLINE, SPACE, SequenceCounts, VOCAB_SIZE};

/// Longer headers are taken for a file that is not FASTA.
const MAX_HEADER_LEN: usize = 1 << 16;

/// What to do about two records of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// Refuse the second. Memory grows with the number of records, by their names.
    #[default]
    Error,
    /// Read both.
    Allow,
}

/// How to read.
#[derive(Clone, Copy, Debug)]
pub struct FastaOptions {
    /// Most bases in one [`SeqChunk`].
    pub chunk_len: usize,
    /// What to do about two records of one name.
    pub duplicates: Duplicates,
}

impl Default for FastaOptions {
    fn default() -> Self {
        Self { chunk_len: 1 << 18, duplicates: Duplicates::Error }
    }
}

/// A record's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeqRecord {
    /// Number of the record over all files read, 0-based.
    pub index: usize,
    /// The word after `>`.
    pub name: String,
    /// The rest of the header line.
    pub description: String,
}

/// A run of bases of one record. Every record has at least one chunk, and every chunk at least one base.
#[derive(Clone, Debug)]
pub struct SeqChunk {
    /// The record that the bases belong to.
    pub record: Arc<SeqRecord>,
    /// Position in the record of the first base, 0-based.
    pub start0: u64,
    /// Token ids of A, C, G, T, N.
    pub ids: Vec<u8>,
    /// Whether the record ends with this chunk.
    pub last: bool,
}

/// Where each record name was seen first.
pub(super) type Names = HashMap<String, (Arc<str>, u64)>;

/// Reads one FASTA file or stream, chunk by chunk: an iterator over `Result<SeqChunk>` that ends after an error.
pub struct FastaReader {
    input: Input,
    options: FastaOptions,
    pub(super) names: Names,
    histogram: ByteHistogram,
    lines: LineCounter,
    path: Arc<str>,
    next_record: usize,
    current: Option<Current>,
    started: bool,
    done: bool,
}

/// The record being read.
struct Current {
    record: Arc<SeqRecord>,
    header_line: u64,
    bases: u64,
}

impl FastaReader {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: impl AsRef<Path>, options: FastaOptions) -> Result<Self> {
        Self::resume(Input::open(path.as_ref())?, options, Names::new(), 0)
    }

    /// Reads from any stream; `name` stands for it in messages.
    pub fn from_reader(
        name: &str,
        reader: impl Read + Send + 'static,
        options: FastaOptions,
    ) -> Result<Self> {
        Self::resume(Input::new(name.into(), Box::new(reader), None)?, options, Names::new(), 0)
    }

    /// Continues the names and record numbers of files read before.
    pub(super) fn resume(
        input: Input,
        options: FastaOptions,
        names: Names,
        next_record: usize,
    ) -> Result<Self> {
        if options.chunk_len == 0 {
            return Err(Error::Setting { name: "chunk_len", got: "0".into(), expected: "at least 1".into() });
        }
        Ok(Self {
            path: input.path.as_str().into(),
            input,
            options,
            names,
            histogram: ByteHistogram::default(),
            lines: LineCounter::default(),
            next_record,
            current: None,
            started: false,
            done: false,
        })
    }

    /// How the file is compressed.
    pub fn compression(&self) -> Compression {
        self.input.compression
    }

    /// What was met so far.
    pub fn counts(&self) -> SequenceCounts {
        self.histogram.counts()
    }

    /// Records begun so far, those of files read before included.
    pub fn records(&self) -> usize {
        self.next_record
    }

    /// Bytes taken from the file so far, before decompression, and its size where it has one: for a progress bar.
    pub fn progress(&self) -> (u64, Option<u64>) {
        (self.input.bytes_read(), self.input.total_bytes())
    }

    fn next_chunk(&mut self) -> Result<Option<SeqChunk>> {
        if !self.started {
            self.started = true;
            self.find_first_header()?;
        }
        let mut current = match self.current.take() {
            Some(current) => current,
            None => match self.read_header()? {
                Some(current) => current,
                None => return Ok(None),
            },
        };
        let (ids, last) = self.read_bases(&current)?;
        if ids.is_empty() {
            return Err(Error::EmptyRecord {
                path: self.path.to_string(),
                line: current.header_line,
                record: current.record.name.clone(),
            });
        }
        let chunk = SeqChunk { record: Arc::clone(&current.record), start0: current.bases, ids, last };
        current.bases += chunk.ids.len() as u64;
        if !last {
            self.current = Some(current);
        }
        Ok(Some(chunk))
    }

    /// Skips a byte order mark and blank lines, up to the first `>`.
    fn find_first_header(&mut self) -> Result<()> {
        if self.input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
            self.input.consume(3);
        }
        loop {
            let Some(&byte) = self.input.fill_buf()?.first() else {
                return Err(Error::EmptyFile { path: self.path.to_string() });
            };
            match CLASS[usize::from(byte)] {
                _ if byte == b'>' => return Ok(()),
                NEWLINE => self.lines.end_of_line(byte),
                SPACE => self.lines.skip(1),
                _ => {
                    let (path, line) = (self.path.to_string(), self.lines.line());
                    return Err(Error::NotFasta { path, line, found: quote_byte(byte) });
                }
            }
            self.input.consume(1);
        }
    }

    /// Reads a header line; `None` at the end of the file.
    fn read_header(&mut self) -> Result<Option<Current>> {
        let (path, line) = (Arc::clone(&self.path), self.lines.line());
        let mut header = Vec::new();
        loop {
            let buf = self.input.fill_buf()?;
            if buf.is_empty() {
                break;
            }
            let end = buf.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let text = &buf[..end.unwrap_or(buf.len())];
            header.extend_from_slice(text);
            if header.len() > MAX_HEADER_LEN {
                return Err(Error::HeaderTooLong { path: path.to_string(), line, limit: MAX_HEADER_LEN });
            }
            let consumed = text.len();
            self.lines.skip(consumed as u64);
            if let Some(end) = end {
                self.lines.end_of_line(buf[end]);
                self.input.consume(consumed + 1);
                break;
            }
            self.input.consume(consumed);
        }
        let Some((b'>', text)) = header.split_first() else { return Ok(None) };
        let name_len = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
        let (name, rest) = text.split_at(name_len);
        if name.is_empty() {
            return Err(Error::EmptyName { path: path.to_string(), line });
        }
        let name = std::str::from_utf8(name)
            .map_err(|_| Error::NameNotUtf8 { path: path.to_string(), line })?
            .to_owned();
        if self.options.duplicates == Duplicates::Error
            && let Some((first_path, first_line)) = self.names.insert(name.clone(), (Arc::clone(&path), line))
        {
            let first = format!("{first_path}:{first_line}");
            return Err(Error::DuplicateName { path: path.to_string(), line, record: name, first });
        }
        let description = String::from_utf8_lossy(rest).trim().to_owned();
        let record = Arc::new(SeqRecord { index: self.next_record, name, description });
        self.next_record += 1;
        Ok(Some(Current { record, header_line: line, bases: 0 }))
    }

    /// Reads up to a chunk of bases. A chunk is the last of its record when a header or the end of the file is
    /// reached before another base.
    fn read_bases(&mut self, current: &Current) -> Result<(Vec<u8>, bool)> {
        let mut ids = Vec::new();
        loop {
            let buf = self.input.fill_buf()?;
            if buf.is_empty() {
                return Ok((ids, true));
            }
            let mut used = 0;
            for &byte in buf {
                let class = CLASS[usize::from(byte)];
                if usize::from(class) < VOCAB_SIZE {
                    if ids.len() == self.options.chunk_len {
                        self.input.consume(used);
                        return Ok((ids, false));
                    }
                    ids.push(class);
                    self.histogram.add(byte);
                    self.lines.skip(1);
                } else if class == NEWLINE {
                    self.lines.end_of_line(byte);
                } else if class == SPACE {
                    self.lines.skip(1);
                } else if byte == b'>' && self.lines.column() == 1 {
                    self.input.consume(used);
                    return Ok((ids, true));
                } else {
                    return Err(Error::InvalidCharacter {
                        path: self.path.to_string(),
                        line: self.lines.line(),
                        column: self.lines.column(),
                        record: current.record.name.clone(),
                        character: quote_byte(byte),
                    });
                }
                used += 1;
            }
            self.input.consume(used);
        }
    }
}

impl Iterator for FastaReader {
    type Item = Result<SeqChunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let chunk = self.next_chunk().transpose();
        self.done = !matches!(chunk, Some(Ok(_)));
        chunk
    }
}

/// Where the reader stands, for messages.
#[derive(Default)]
struct LineCounter {
    finished_lines: u64,
    bytes_in_line: u64,
    /// The last line ended in CR: an LF at once after it belongs to the same line end.
    after_cr: bool,
}

impl LineCounter {
    fn line(&self) -> u64 {
        self.finished_lines + 1
    }

    fn column(&self) -> u64 {
        self.bytes_in_line + 1
    }

    fn skip(&mut self, bytes: u64) {
        self.bytes_in_line += bytes;
    }

    fn end_of_line(&mut self, byte: u8) {
        let second_half = byte == b'\n' && self.after_cr && self.bytes_in_line == 0;
        if !second_half {
            self.finished_lines += 1;
            self.bytes_in_line = 0;
        }
        self.after_cr = byte == b'\r';
    }
}
