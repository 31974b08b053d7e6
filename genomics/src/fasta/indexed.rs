//! Any part of any record, through an index.
//!
//! | File | How bases are found |
//! |---|---|
//! | plain | seek |
//! | bgzip | seek to a block; the table of blocks is made from the block headers, so that no `.gzi` file is needed and none can be stale |
//! | gzip | read forward from where the last request ended; a request far behind starts over, so sort regions first |

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noodles::bgzf::{self, gzi};

use super::index::{FaiIndex, FaiRecord};
use super::input::{Compression, Input, is_stdin, read_error};
use super::reader::{SeqChunk, SeqRecord};
use crate::error::{Error, Result, quote_byte};
use crate::regions::{RecordTable, Region, Strand};
use crate::tokenizer::{self, ByteHistogram, SequenceCounts};

/// How far back a gzip file can be read without starting over.
const GZIP_LOOK_BACK: usize = 1 << 21;
/// How far before a record's first base its header can start.
const MAX_HEADER_LEN: u64 = 1 << 16;

/// FASTA files whose records can be read in any order. Record names must differ over all files.
pub struct IndexedFasta {
    files: Vec<IndexedFile>,
    /// File, and record in it, of every record.
    places: Vec<(usize, usize)>,
    table: RecordTable,
    histogram: ByteHistogram,
}

struct IndexedFile {
    path: String,
    bytes: Bytes,
    records: Vec<FaiRecord>,
    /// Whether the index is known to describe the file, by record.
    verified: Vec<bool>,
}

impl IndexedFasta {
    /// Opens files with the `.fai` index beside each, or builds the index in memory in one pass where there is none.
    pub fn open(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        let mut fasta = Self {
            files: Vec::new(),
            places: Vec::new(),
            table: RecordTable::default(),
            histogram: ByteHistogram::default(),
        };
        for path in paths {
            let file = IndexedFile::open(path.as_ref())?;
            for (i, record) in file.records.iter().enumerate() {
                if let Some(earlier) = fasta.table.push(&record.name, record.length) {
                    let (earlier_file, _): (usize, usize) = fasta.places[earlier];
                    let first = fasta.files.get(earlier_file).map_or(&file.path, |earlier| &earlier.path);
                    return Err(Error::DuplicateRecord {
                        path: file.path.clone(),
                        record: record.name.clone(),
                        first: first.clone(),
                    });
                }
                fasta.places.push((fasta.files.len(), i));
            }
            fasta.files.push(file);
        }
        Ok(fasta)
    }

    /// Names and lengths of all records, in file order.
    pub fn records(&self) -> &RecordTable {
        &self.table
    }

    /// Whether a file can only be read forward (plain gzip): [`crate::regions::sort_by_position`] then saves passes.
    pub fn is_sequential(&self) -> bool {
        self.files.iter().any(|file| matches!(file.bytes, Bytes::Gzip(_)))
    }

    /// What was met so far.
    pub fn counts(&self) -> SequenceCounts {
        self.histogram.counts()
    }

    /// Token ids of bases `start0..end0` of a record, appended to `ids`.
    ///
    /// # Panics
    /// If the record does not exist or the range does not lie in it.
    pub fn read(&mut self, record: usize, start0: u64, end0: u64, ids: &mut Vec<u8>) -> Result<()> {
        let (_, length) = self.table.get(record);
        assert!(start0 < end0 && end0 <= length, "bases {start0}..{end0} of a record of {length}");
        let (file, record) = self.places[record];
        self.files[file].read(record, start0, end0, ids, &mut self.histogram)
    }

    /// The sequences of regions, in the order given, as chunks of at most `chunk_len` bases. Each region is a record
    /// of its own: numbered by its place in `regions`, named by [`Region::label`], with positions counted from its
    /// own first base in reading direction. A region of the minus strand is reverse complemented.
    pub fn region_chunks<'a>(&'a mut self, regions: &'a [Region], chunk_len: usize) -> RegionChunks<'a> {
        RegionChunks {
            fasta: self,
            regions,
            chunk_len: chunk_len.max(1) as u64,
            next: 0,
            done: 0,
            record: None,
        }
    }
}

/// Iterator of [`IndexedFasta::region_chunks`]; it ends after an error.
pub struct RegionChunks<'a> {
    fasta: &'a mut IndexedFasta,
    regions: &'a [Region],
    chunk_len: u64,
    /// Region being read.
    next: usize,
    /// Bases of it already given.
    done: u64,
    record: Option<Arc<SeqRecord>>,
}

impl RegionChunks<'_> {
    /// What was met so far.
    pub fn counts(&self) -> SequenceCounts {
        self.fasta.counts()
    }

    fn read(&mut self, region: &Region) -> Result<SeqChunk> {
        let record = self.record.take().unwrap_or_else(|| {
            Arc::new(SeqRecord { index: self.next, name: region.label(), description: String::new() })
        });
        let start0 = self.done;
        let count = self.chunk_len.min(region.len() - start0);
        let mut ids = Vec::with_capacity(count as usize);
        match region.strand {
            Strand::Minus => {
                let end0 = region.end0 - start0;
                self.fasta.read(region.record, end0 - count, end0, &mut ids)?;
                tokenizer::reverse_complement_in_place(&mut ids);
            }
            Strand::Plus => {
                let first = region.start0 + start0;
                self.fasta.read(region.record, first, first + count, &mut ids)?;
            }
        }
        self.done += count;
        let last = self.done == region.len();
        if last {
            self.next += 1;
            self.done = 0;
        } else {
            self.record = Some(Arc::clone(&record));
        }
        Ok(SeqChunk { record, start0, ids, last })
    }
}

impl Iterator for RegionChunks<'_> {
    type Item = Result<SeqChunk>;

    fn next(&mut self) -> Option<Self::Item> {
        let region = self.regions.get(self.next)?;
        let chunk = self.read(region);
        if chunk.is_err() {
            self.next = self.regions.len();
        }
        Some(chunk)
    }
}

impl IndexedFile {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let open_error = |source| Error::Open { path: name.clone(), source };
        if is_stdin(path) || !std::fs::metadata(path).map_err(open_error)?.is_file() {
            return Err(Error::NotSeekable { path: name });
        }
        let mut index_path = path.as_os_str().to_owned();
        index_path.push(".fai");
        let index_path = PathBuf::from(index_path);
        let has_index = index_path.exists();
        let index = if has_index { FaiIndex::read(&index_path)? } else { FaiIndex::build(path)? };
        let input = Input::open(path)?;
        let bytes = match input.compression {
            Compression::Plain => Bytes::Plain(File::open(path).map_err(open_error)?),
            Compression::Bgzf => {
                let mut file = File::open(path).map_err(open_error)?;
                let blocks =
                    block_table(&mut file).map_err(|error| read_error(&name, Compression::Bgzf, error))?;
                Bytes::Bgzf { reader: bgzf::io::Reader::new(file), blocks }
            }
            Compression::Gzip => Bytes::Gzip(Forward::new(path.to_owned(), input)),
        };
        Ok(Self {
            path: name,
            bytes,
            verified: vec![!has_index; index.records.len()],
            records: index.records,
        })
    }

    fn read(
        &mut self,
        index: usize,
        start0: u64,
        end0: u64,
        ids: &mut Vec<u8>,
        histogram: &mut ByteHistogram,
    ) -> Result<()> {
        if !self.verified[index] {
            self.verify(index)?;
            self.verified[index] = true;
        }
        let record = &self.records[index];
        let first = record.byte_offset(start0);
        let length = record.byte_offset(end0 - 1) + 1 - first;
        let text = self.bytes.read_at(&self.path, first, length)?;
        let mismatch = |reason: &str| Error::IndexMismatch {
            path: self.path.clone(),
            record: record.name.clone(),
            reason: reason.into(),
        };
        if (text.len() as u64) < length {
            return Err(mismatch("the file ends before the record does"));
        }
        let line_bases = record.line_bases.get();
        let line_end_len = (record.line_width.get() - line_bases) as usize;
        let mut rest = text.as_slice();
        let mut position0 = start0;
        while position0 < end0 {
            let in_line = (line_bases - position0 % line_bases).min(end0 - position0) as usize;
            let (bases, after) = rest.split_at(in_line);
            for (i, &byte) in bases.iter().enumerate() {
                match tokenizer::token(byte) {
                    Some(id) => {
                        ids.push(id);
                        histogram.add(byte);
                    }
                    None if byte == b'\n' || byte == b'\r' || byte == b'>' => {
                        return Err(mismatch("a line is shorter than the index says"));
                    }
                    None => {
                        return Err(Error::InvalidBase {
                            path: self.path.clone(),
                            record: record.name.clone(),
                            position1: position0 + i as u64 + 1,
                            character: quote_byte(byte),
                        });
                    }
                }
            }
            position0 += in_line as u64;
            let (line_end, after) = after.split_at(line_end_len.min(after.len()));
            if line_end.iter().any(|&byte| byte != b'\n' && byte != b'\r') {
                return Err(mismatch("a line is longer than the index says"));
            }
            rest = after;
        }
        Ok(())
    }

    /// Checks that a header of that name stands directly before the record, and a line end or the end of the file
    /// after it.
    fn verify(&mut self, index: usize) -> Result<()> {
        let record = &self.records[index];
        let mismatch = |reason: String| {
            let (path, record) = (self.path.clone(), record.name.clone());
            Err(Error::IndexMismatch { path, record, reason })
        };
        let before = record.offset.min(MAX_HEADER_LEN);
        let text = self.bytes.read_at(&self.path, record.offset - before, before)?;
        let Some(text) = text.strip_suffix(b"\n").filter(|_| text.len() as u64 == before) else {
            return mismatch(format!("no line begins at byte {}", record.offset));
        };
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let header = text.rsplit(|&byte| byte == b'\n').next().unwrap_or(text);
        let header = header.strip_prefix(b"\xef\xbb\xbf").unwrap_or(header);
        let name = header.strip_prefix(b">").and_then(|text| text.split(u8::is_ascii_whitespace).next());
        match name {
            None => return mismatch("no header stands before it".into()),
            Some(name) if name != record.name.as_bytes() => {
                return mismatch(format!("the header before it is {:?}", String::from_utf8_lossy(name)));
            }
            Some(_) => {}
        }
        let end = record.byte_offset(record.length - 1) + 1;
        match self.bytes.read_at(&self.path, end, 1)?.first() {
            None | Some(b'\n' | b'\r') => Ok(()),
            Some(_) => mismatch("its last line ends elsewhere than the index says".into()),
        }
    }
}

/// A decompressed file that is read by position.
enum Bytes {
    Plain(File),
    Bgzf { reader: bgzf::io::Reader<File>, blocks: gzi::Index },
    Gzip(Forward),
}

impl Bytes {
    /// `length` bytes from `offset`, or fewer where the file ends.
    fn read_at(&mut self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        match self {
            Self::Plain(file) => file
                .seek(SeekFrom::Start(offset))
                .and_then(|_| file.take(length).read_to_end(&mut text))
                .map_err(|error| read_error(path, Compression::Plain, error))?,
            Self::Bgzf { reader, blocks } => read_blocks(reader, blocks, offset, length, &mut text)
                .map_err(|error| read_error(path, Compression::Bgzf, error))?,
            Self::Gzip(forward) => forward.read_at(offset, length, &mut text)?,
        };
        Ok(text)
    }
}

fn read_blocks(
    reader: &mut bgzf::io::Reader<File>,
    blocks: &gzi::Index,
    offset: u64,
    length: u64,
    text: &mut Vec<u8>,
) -> io::Result<usize> {
    let file_end = blocks.as_ref().last().map_or(0, |&(_, uncompressed)| uncompressed);
    if offset >= file_end {
        return Ok(0);
    }
    reader.seek_by_uncompressed_position(blocks, offset)?;
    while (text.len() as u64) < length {
        let buf = reader.fill_buf()?;
        if buf.is_empty() {
            break;
        }
        let used = buf.len().min((length - text.len() as u64) as usize);
        text.extend_from_slice(&buf[..used]);
        reader.consume(used);
    }
    Ok(text.len())
}

/// Start in the file and in the decompressed text of every block, from the sizes in the block headers and trailers.
/// The last entry is the end block, whose second number is the length of the text.
fn block_table(file: &mut File) -> io::Result<gzi::Index> {
    let file_len = file.seek(SeekFrom::End(0))?;
    let (mut start, mut text_start) = (0, 0);
    let mut blocks = Vec::new();
    while start < file_len {
        let mut header = [0; 18];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut header)?;
        if header[..4] != [0x1f, 0x8b, 8, 4] || header[10..16] != *b"\x06\0BC\x02\0" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("no bgzip block at byte {start}"),
            ));
        }
        let block_len = u64::from(u16::from_le_bytes([header[16], header[17]])) + 1;
        let mut text_len = [0; 4];
        file.seek(SeekFrom::Start((start + block_len).saturating_sub(4)))?;
        file.read_exact(&mut text_len)?;
        if start > 0 {
            blocks.push((start, text_start));
        }
        start += block_len;
        text_start += u64::from(u32::from_le_bytes(text_len));
    }
    file.rewind()?;
    Ok(gzi::Index::from(blocks))
}

/// A gzip file read forward, with the last bytes kept for requests that overlap.
struct Forward {
    path: PathBuf,
    input: Input,
    /// Bytes read so far; `recent` holds the last of them.
    position: u64,
    recent: Vec<u8>,
}

impl Forward {
    fn new(path: PathBuf, input: Input) -> Self {
        Self { path, input, position: 0, recent: Vec::new() }
    }

    fn read_at(&mut self, offset: u64, length: u64, text: &mut Vec<u8>) -> Result<usize> {
        if offset < self.position - self.recent.len() as u64 {
            *self = Self::new(self.path.clone(), Input::open(&self.path)?);
        }
        if offset < self.position {
            let from = self.recent.len() - (self.position - offset) as usize;
            let to = self.recent.len().min(from.saturating_add(length as usize));
            text.extend_from_slice(&self.recent[from..to]);
        }
        while (text.len() as u64) < length {
            let buf = self.input.fill_buf()?;
            if buf.is_empty() {
                break;
            }
            let skip =
                (offset + text.len() as u64).saturating_sub(self.position).min(buf.len() as u64) as usize;
            let take = (buf.len() - skip).min((length - text.len() as u64) as usize);
            text.extend_from_slice(&buf[skip..skip + take]);
            let used = skip + take;
            self.recent.extend_from_slice(&buf[..used]);
            self.position += used as u64;
            self.input.consume(used);
            if self.recent.len() > 2 * GZIP_LOOK_BACK {
                self.recent.drain(..self.recent.len() - GZIP_LOOK_BACK);
            }
        }
        Ok(text.len())
    }
}
