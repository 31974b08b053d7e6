//! Opens a file or standard input and decompresses it; the format is taken from the first bytes, not from the name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use noodles::bgzf;

use crate::error::{Error, Result};

/// The empty block that ends every bgzip file.
const BGZF_EOF: [u8; 28] =
    [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 6, 0, b'B', b'C', 2, 0, 0x1b, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// First bytes that are looked at: a bgzip header has 18.
const MAGIC_LEN: usize = 32;
const BUFFER_LEN: usize = 1 << 17;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, one or more members.
    Gzip,
    /// bgzip: gzip in blocks that can be read at random.
    Bgzf,
}

/// Tells gzip and bgzip from plain text by the first bytes; formats that are not read are an error.
fn detect(path: &str, magic: &[u8]) -> Result<Compression> {
    let unsupported = |format| Err(Error::UnsupportedCompression { path: path.into(), format });
    match magic {
        [0x1f, 0x8b, 8, flags, ..] if flags & 4 != 0 && magic.get(12..16) == Some(b"BC\x02\0") => {
            Ok(Compression::Bgzf)
        }
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => unsupported("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => unsupported("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => unsupported("bzip2"),
        [b'P', b'K', 3, 4, ..] => unsupported("zip"),
        _ => Ok(Compression::Plain),
    }
}

/// A decompressed stream that knows its name for messages and how far it has got.
pub(crate) struct Input {
    pub(crate) path: String,
    pub(crate) compression: Compression,
    reader: Box<dyn BufRead + Send>,
    bytes_read: Arc<AtomicU64>,
    total_bytes: Option<u64>,
}

impl Input {
    /// Opens a file, or standard input for `-`. A bgzip file without its end block is refused here, before any work
    /// is done on it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if is_stdin(path) {
            return Self::new("<stdin>".into(), Box::new(io::stdin()), None);
        }
        let name = path.display().to_string();
        let mut file = File::open(path).map_err(|source| Error::Open { path: name.clone(), source })?;
        let metadata = file.metadata().map_err(|source| Error::Open { path: name.clone(), source })?;
        if !metadata.is_file() {
            return Self::new(name, Box::new(file), None);
        }
        let mut tail = [0; BGZF_EOF.len()];
        let has_end_block = metadata.len() >= tail.len() as u64
            && file
                .seek(SeekFrom::End(-(tail.len() as i64)))
                .and_then(|_| file.read_exact(&mut tail))
                .is_ok()
            && tail == BGZF_EOF;
        file.rewind().map_err(|source| Error::Read { path: name.clone(), source })?;
        let input = Self::new(name, Box::new(file), Some(metadata.len()))?;
        if input.compression == Compression::Bgzf && !has_end_block {
            return Err(Error::TruncatedBgzf { path: input.path });
        }
        Ok(input)
    }

    /// Decompresses any stream; `name` stands for it in messages.
    pub(crate) fn new(name: String, mut raw: Box<dyn Read + Send>, total_bytes: Option<u64>) -> Result<Self> {
        let mut magic = Vec::with_capacity(MAGIC_LEN);
        raw.by_ref()
            .take(MAGIC_LEN as u64)
            .read_to_end(&mut magic)
            .map_err(|source| Error::Read { path: name.clone(), source })?;
        let compression = detect(&name, &magic)?;
        let bytes_read = Arc::new(AtomicU64::new(0));
        let raw = RawStream {
            inner: Cursor::new(magic).chain(raw),
            bytes_read: Arc::clone(&bytes_read),
            tail: (compression == Compression::Bgzf).then(Vec::new),
        };
        let raw = BufReader::with_capacity(BUFFER_LEN, raw);
        let reader: Box<dyn BufRead + Send> = match compression {
            Compression::Plain => Box::new(raw),
            Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER_LEN, MultiGzDecoder::new(raw))),
            // As gzip it could be read too, but a changed length of a block header's extra field, which has no
            // checksum, would silently skip blocks.
            Compression::Bgzf => Box::new(bgzf::io::Reader::new(raw)),
        };
        Ok(Self { path: name, compression, reader, bytes_read, total_bytes })
    }

    /// The next bytes, decompressed; empty at the end.
    pub(crate) fn fill_buf(&mut self) -> Result<&[u8]> {
        loop {
            match self.reader.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(&self.path, self.compression, error)),
            }
        }
        // A second call returns the same bytes at once: the borrow checker does not let the first one's out of a loop.
        self.reader.fill_buf().map_err(|source| Error::Read { path: self.path.clone(), source })
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.reader.consume(n);
    }

    /// Bytes taken from the file so far, before decompression.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// The file's size, where it has one.
    pub(crate) fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }
}

/// Whether a path means standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Sorts a decompressor's error into truncated, corrupt and not readable.
pub(crate) fn read_error(path: &str, compression: Compression, error: io::Error) -> Error {
    let path = path.to_owned();
    if error.get_ref().is_some_and(|inner| inner.is::<MissingEndBlock>()) {
        return Error::TruncatedBgzf { path };
    }
    match (compression, error.kind()) {
        (Compression::Plain, _) => Error::Read { path, source: error },
        (Compression::Bgzf, io::ErrorKind::UnexpectedEof) => Error::TruncatedBgzf { path },
        (Compression::Gzip, io::ErrorKind::UnexpectedEof) => Error::TruncatedGzip { path },
        (_, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            Error::CorruptGzip { path, source: error }
        }
        _ => Error::Read { path, source: error },
    }
}

/// What [`RawStream`] reports through the decompressor.
#[derive(Debug, thiserror::Error)]
#[error("the end-of-file block is missing")]
struct MissingEndBlock;

/// The bytes of the file: counted, and for bgzip checked to end with the end block. Without that check a file cut
/// between two blocks would look complete.
struct RawStream<R> {
    inner: R,
    bytes_read: Arc<AtomicU64>,
    tail: Option<Vec<u8>>,
}

impl<R: Read> Read for RawStream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes_read.fetch_add(n as u64, Ordering::Relaxed);
        if let Some(tail) = &mut self.tail {
            if n == 0 && !buf.is_empty() && *tail != BGZF_EOF {
                // Not `UnexpectedEof`, which the bgzip reader takes for the end of the file.
                return Err(io::Error::other(MissingEndBlock));
            }
            tail.extend_from_slice(&buf[n.saturating_sub(BGZF_EOF.len())..n]);
            tail.drain(..tail.len().saturating_sub(BGZF_EOF.len()));
        }
        Ok(n)
    }
}
