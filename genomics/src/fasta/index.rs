//! `.fai` indexes: read, built in one pass, written.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter};
use std::num::NonZero;
use std::path::Path;

use noodles::fasta::fai;

use super::input::Input;
use crate::error::{Error, Result, quote_byte};

/// Longer lines are not those of an index.
const MAX_INDEX_LINE_LEN: u64 = 1 << 16;

/// One line of a `.fai` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaiRecord {
    /// The record's name.
    pub name: String,
    /// Bases in the record.
    pub length: u64,
    /// Byte of the decompressed file at which the first base stands, 0-based.
    pub offset: u64,
    /// Bases in every line but the last.
    pub line_bases: NonZero<u64>,
    /// Bytes in every line but the last, line end included.
    pub line_width: NonZero<u64>,
}

impl FaiRecord {
    /// The byte, 0-based, of the base at `position0`.
    pub(super) fn byte_offset(&self, position0: u64) -> u64 {
        let (line, column) = (position0 / self.line_bases, position0 % self.line_bases);
        self.offset + line * self.line_width.get() + column
    }

    /// Why the numbers cannot describe any file, if so.
    fn problem(&self) -> Option<&'static str> {
        if self.name.is_empty() {
            return Some("the name is empty");
        }
        if self.length == 0 {
            return Some("the length is 0");
        }
        if self.line_width < self.line_bases {
            return Some("a line has fewer bytes than bases");
        }
        if self.line_width.get() - self.line_bases.get() > 2 {
            return Some("a line end has more than 2 bytes");
        }
        let lines = u128::from((self.length - 1) / self.line_bases) + 1;
        let end = u128::from(self.offset) + lines * u128::from(self.line_width.get());
        (end > u128::from(u64::MAX / 2)).then_some("the record ends beyond any file")
    }
}

/// The records of a FASTA file in file order, with what is needed to find any base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaiIndex {
    /// In file order.
    pub records: Vec<FaiRecord>,
}

impl FaiIndex {
    /// Reads a `.fai` file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let file = File::open(&path).map_err(|source| Error::Open { path: name.clone(), source })?;
        Self::parse(&name, BufReader::new(file))
    }

    /// Reads an index from any stream; `path` stands for it in messages.
    pub fn parse(path: &str, mut reader: impl BufRead) -> Result<Self> {
        let mut records = Vec::new();
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            std::io::Read::take(&mut reader, MAX_INDEX_LINE_LEN)
                .read_until(b'\n', &mut text)
                .map_err(|source| Error::Read { path: path.into(), source })?;
            if text.is_empty() {
                break;
            }
            let record =
                parse_line(&text).map_err(|reason| Error::Index { path: path.into(), line, reason })?;
            records.push(record);
        }
        Ok(Self { records })
    }

    /// Builds the index of a FASTA file of any compression in one pass, holding one buffer.
    pub fn build(path: impl AsRef<Path>) -> Result<Self> {
        build(Input::open(path.as_ref())?)
    }

    /// Writes the index as `samtools faidx` would.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let error = |source| Error::Write { path: path.as_ref().display().to_string(), source };
        let record =
            |r: &FaiRecord| fai::Record::new(&*r.name, r.length, r.offset, r.line_bases, r.line_width);
        let index = fai::Index::from(self.records.iter().map(record).collect::<Vec<_>>());
        let file = File::create(&path).map_err(error)?;
        fai::io::Writer::new(BufWriter::new(file)).write_index(&index).map_err(error)
    }
}

fn parse_line(text: &[u8]) -> std::result::Result<FaiRecord, String> {
    let text = std::str::from_utf8(text).map_err(|_| "line is not UTF-8".to_owned())?;
    let fields: Vec<&str> = text.trim_end_matches(['\n', '\r']).split('\t').collect();
    let &[name, length, offset, line_bases, line_width] = fields.as_slice() else {
        return Err(format!("expected 5 tab-separated columns, got {}", fields.len()));
    };
    let number =
        |what: &str, text: &str| text.parse().map_err(|_| format!("{what} {text:?} is not a number"));
    let positive = |what: &str, text: &str| {
        text.parse().map_err(|_| format!("{what} {text:?} is not a positive number"))
    };
    let record = FaiRecord {
        name: name.to_owned(),
        length: number("length", length)?,
        offset: number("offset", offset)?,
        line_bases: positive("bases per line", line_bases)?,
        line_width: positive("bytes per line", line_width)?,
    };
    record.problem().map_or(Ok(record), |problem| Err(problem.to_owned()))
}

/// What one line of a FASTA file looked like.
#[derive(Default)]
struct Line {
    /// Byte of the file, 0-based.
    start: u64,
    /// 1-based.
    number: u64,
    bytes: u64,
    first: Option<u8>,
    last: Option<u8>,
    /// White space anywhere but in the line end.
    has_space: bool,
    /// The text, if it is a header.
    header: Vec<u8>,
}

impl Line {
    fn push(&mut self, byte: u8) {
        self.first.get_or_insert(byte);
        if self.first == Some(b'>') {
            if !self.header.last().is_some_and(u8::is_ascii_whitespace) {
                self.header.push(byte);
            }
        } else if self.last == Some(b'\r') || (byte.is_ascii_whitespace() && byte != b'\r') {
            self.has_space = true;
        }
        self.last = Some(byte);
        self.bytes += 1;
    }

    /// Bytes without the CR of a CR LF.
    fn text_len(&self) -> u64 {
        self.bytes - u64::from(self.last == Some(b'\r'))
    }
}

fn build(mut input: Input) -> Result<FaiIndex> {
    let mut builder = Builder { path: input.path.clone(), ..Builder::default() };
    let mut line = Line { number: 1, ..Line::default() };
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
        line.start = 3;
    }
    loop {
        let buf = input.fill_buf()?;
        if buf.is_empty() {
            break;
        }
        for &byte in buf {
            if byte == b'\n' {
                let next =
                    Line { start: line.start + line.bytes + 1, number: line.number + 1, ..Line::default() };
                builder.add(std::mem::replace(&mut line, next), true)?;
            } else {
                line.push(byte);
                if line.header.len() as u64 > MAX_INDEX_LINE_LEN {
                    let (path, limit) = (input.path, MAX_INDEX_LINE_LEN as usize);
                    return Err(Error::HeaderTooLong { path, line: line.number, limit });
                }
            }
        }
        let used = buf.len();
        input.consume(used);
    }
    if line.bytes > 0 {
        builder.add(line, false)?;
    }
    builder.finish()
}

#[derive(Default)]
struct Builder {
    path: String,
    records: Vec<FaiRecord>,
    open: Option<OpenRecord>,
}

struct OpenRecord {
    name: String,
    header_line: u64,
    length: u64,
    /// Offset, bases and width of the first sequence line.
    first_line: Option<(u64, NonZero<u64>, NonZero<u64>)>,
    /// A shorter line was met: no other may follow.
    ended: bool,
}

impl Builder {
    fn add(&mut self, line: Line, terminated: bool) -> Result<()> {
        let text_len = line.text_len();
        if line.first == Some(b'>') {
            self.close()?;
            let name = line.header[1..].trim_ascii_end();
            let (path, number) = (&self.path, line.number);
            let name = std::str::from_utf8(name)
                .map_err(|_| Error::NameNotUtf8 { path: path.clone(), line: number })?;
            if name.is_empty() {
                return Err(Error::EmptyName { path: path.clone(), line: number });
            }
            self.open = Some(OpenRecord {
                name: name.to_owned(),
                header_line: number,
                length: 0,
                first_line: None,
                ended: false,
            });
            return Ok(());
        }
        let Some(record) = &mut self.open else {
            return match line.first {
                Some(byte) if !byte.is_ascii_whitespace() => Err(Error::NotFasta {
                    path: self.path.clone(),
                    line: line.number,
                    found: quote_byte(byte),
                }),
                _ => Ok(()),
            };
        };
        let refuse = |reason: String| {
            let (path, record) = (self.path.clone(), record.name.clone());
            Err(Error::NotIndexable { path, line: line.number, record, reason })
        };
        if line.has_space {
            return refuse("the line has white space between bases".into());
        }
        let Some(bases) = NonZero::new(text_len) else {
            // Blank lines are harmless after the record's last line only.
            record.ended = true;
            return Ok(());
        };
        let width = NonZero::new(line.bytes + u64::from(terminated)).unwrap_or(bases);
        if record.ended {
            return refuse("an earlier line of it is blank or shorter than its first".into());
        }
        let (_, line_bases, line_width) = *record.first_line.get_or_insert((line.start, bases, width));
        if bases > line_bases {
            return refuse(format!("the line has {bases} bases, its first line {line_bases}"));
        }
        record.ended = bases < line_bases || (width != line_width);
        record.length += bases.get();
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(record) = self.open.take() else { return Ok(()) };
        let Some((offset, line_bases, line_width)) = record.first_line else {
            return Err(Error::EmptyRecord {
                path: self.path.clone(),
                line: record.header_line,
                record: record.name,
            });
        };
        self.records.push(FaiRecord {
            name: record.name,
            length: record.length,
            offset,
            line_bases,
            line_width,
        });
        Ok(())
    }

    fn finish(mut self) -> Result<FaiIndex> {
        self.close()?;
        if self.records.is_empty() {
            return Err(Error::EmptyFile { path: self.path });
        }
        Ok(FaiIndex { records: self.records })
    }
}
