//! Overlapping windows over records of any length.
//!
//! A record of at most `length` bases is one window. In a longer one windows start every `length - overlap` bases, and
//! the last is moved left so that it ends with the record and has full length too. Each window has a core: the bases
//! that are taken from it when windows are merged. A base that lies in several windows belongs to the core of the one
//! in which it is farthest from an edge (of two equally good ones, the later), so half of the overlap is dropped on
//! each inner side. The cores of a record are consecutive and cover each base exactly once.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fasta::{SeqChunk, SeqRecord};

/// Length and overlap of windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    length: u64,
    overlap: u64,
}

/// A window of a record. Positions are 0-based, ends not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First base.
    pub start0: u64,
    /// One past the last base.
    pub end0: u64,
    /// First base that is taken from this window.
    pub core_start0: u64,
    /// One past the last base that is taken from this window.
    pub core_end0: u64,
}

impl Window {
    /// Where the core lies in the window's own bases.
    pub fn core_range(&self) -> std::ops::Range<usize> {
        (self.core_start0 - self.start0) as usize..(self.core_end0 - self.start0) as usize
    }
}

impl WindowSpec {
    /// Windows of `length` bases of which neighbours share `overlap`, fewer than `length`.
    pub fn new(length: usize, overlap: usize) -> Result<Self> {
        if length == 0 || length > u32::MAX as usize {
            return Err(Error::Setting {
                name: "window length",
                got: length.to_string(),
                expected: format!("1 to {}", u32::MAX),
            });
        }
        if overlap >= length {
            return Err(Error::Setting {
                name: "window overlap",
                got: overlap.to_string(),
                expected: format!("less than the window's {length} bases"),
            });
        }
        Ok(Self { length: length as u64, overlap: overlap as u64 })
    }

    /// Bases from one window's start to the next.
    fn stride(&self) -> u64 {
        self.length - self.overlap
    }

    /// How many windows a record has.
    pub fn count(&self, record_len: u64) -> u64 {
        match record_len {
            0 => 0,
            _ => 1 + record_len.saturating_sub(self.length).div_ceil(self.stride()),
        }
    }

    fn span(&self, i: u64, record_len: u64) -> (u64, u64) {
        let start0 = (i * self.stride()).min(record_len.saturating_sub(self.length));
        (start0, (start0 + self.length).min(record_len))
    }

    /// Window number `i`, which must be below [`count`](Self::count).
    pub fn window(&self, i: u64, record_len: u64) -> Window {
        let border = |left: u64| {
            let (_, left_end) = self.span(left, record_len);
            let (right_start, _) = self.span(left + 1, record_len);
            right_start + (left_end - right_start) / 2
        };
        let (start0, end0) = self.span(i, record_len);
        let core_start0 = if i == 0 { 0 } else { border(i - 1) };
        let core_end0 = if i + 1 == self.count(record_len) { record_len } else { border(i) };
        Window { start0, end0, core_start0, core_end0 }
    }

    /// All windows of a record.
    pub fn windows(self, record_len: u64) -> impl Iterator<Item = Window> {
        (0..self.count(record_len)).map(move |i| self.window(i, record_len))
    }
}

/// A window with its bases.
#[derive(Clone, Debug)]
pub struct SeqWindow {
    /// The record that it is part of.
    pub record: Arc<SeqRecord>,
    /// Where in the record.
    pub window: Window,
    /// Token ids, one per base of the window.
    pub ids: Vec<u8>,
    /// Whether it is the record's last.
    pub last: bool,
}

/// Cuts a stream of chunks into windows, holding no more than one chunk, two windows and their gap: an iterator over
/// `Result<SeqWindow>`.
pub struct Windows<I> {
    chunks: I,
    spec: WindowSpec,
    record: Option<Arc<SeqRecord>>,
    /// Bases of the record from `buffer_start0` to the last one read.
    buffer: Vec<u8>,
    buffer_start0: u64,
    /// Next window of the record.
    next: u64,
    record_ended: bool,
}

impl<I: Iterator<Item = Result<SeqChunk>>> Windows<I> {
    /// Cuts what `chunks` yields.
    pub fn new(chunks: I, spec: WindowSpec) -> Self {
        Self {
            chunks,
            spec,
            record: None,
            buffer: Vec::new(),
            buffer_start0: 0,
            next: 0,
            record_ended: false,
        }
    }

    /// The source of the chunks, for its counts and progress.
    pub fn chunks(&self) -> &I {
        &self.chunks
    }

    fn bases_seen(&self) -> u64 {
        self.buffer_start0 + self.buffer.len() as u64
    }

    /// Whether the next window is known, core included: at the end of the record, or when one more window of full
    /// length fits into what was read, since then neither of the two can be the one that is moved.
    fn is_ready(&self) -> bool {
        let seen = self.bases_seen();
        if self.record_ended {
            self.next < self.spec.count(seen)
        } else {
            self.record.is_some() && (self.next + 1) * self.spec.stride() + self.spec.length <= seen
        }
    }

    fn add(&mut self, chunk: SeqChunk) {
        let same = self.record.as_ref().is_some_and(|record| record.index == chunk.record.index);
        if !same || self.record_ended {
            self.buffer.clear();
            self.buffer_start0 = 0;
            self.next = 0;
        }
        let unused = (self.next * self.spec.stride()).saturating_sub(self.buffer_start0);
        let unused = unused.min(self.buffer.len() as u64);
        self.buffer.drain(..unused as usize);
        self.buffer_start0 += unused;
        self.buffer.extend_from_slice(&chunk.ids);
        self.record_ended = chunk.last;
        self.record = Some(chunk.record);
    }
}

impl<I: Iterator<Item = Result<SeqChunk>>> Iterator for Windows<I> {
    type Item = Result<SeqWindow>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_ready() {
            match self.chunks.next()? {
                Ok(chunk) => self.add(chunk),
                Err(error) => return Some(Err(error)),
            }
        }
        let record = Arc::clone(self.record.as_ref()?);
        let seen = self.bases_seen();
        let window = self.spec.window(self.next, seen);
        let from = (window.start0 - self.buffer_start0) as usize;
        let to = (window.end0 - self.buffer_start0) as usize;
        let ids = self.buffer[from..to].to_vec();
        self.next += 1;
        let last = self.record_ended && self.next == self.spec.count(seen);
        Some(Ok(SeqWindow { record, window, ids, last }))
    }
}
