//! Where sequences come from: whole files, or regions of indexed ones.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Result;
use crate::fasta::{Duplicates, FastaFiles, FastaOptions, IndexedFasta, SeqChunk, SeqRecord};
use crate::regions::{Region, Strand};
use crate::tokenizer::SequenceCounts;

/// Records in chunks of bounded memory: an iterator over `Result<SeqChunk>` that owns all it reads from, so that it
/// can run on a thread of its own. It ends after an error.
pub struct Sequences(Kind);

enum Kind {
    Files(Box<FastaFiles>),
    Regions(Box<Regions>),
}

/// [`IndexedFasta::region_chunks`] that owns files and regions.
struct Regions {
    fasta: IndexedFasta,
    regions: Vec<Region>,
    chunk_len: u64,
    /// Region being read.
    next: usize,
    /// Bases of it already given.
    done: u64,
    record: Option<Arc<SeqRecord>>,
}

impl Sequences {
    /// All records of some files, `-` for standard input. Nothing is opened yet.
    pub fn files(paths: impl IntoIterator<Item = impl Into<PathBuf>>, duplicates: Duplicates) -> Self {
        let options = FastaOptions { duplicates, ..FastaOptions::default() };
        Self(Kind::Files(Box::new(FastaFiles::new(paths, options))))
    }

    /// Regions, each as a record of its own, as in [`IndexedFasta::region_chunks`].
    pub fn regions(fasta: IndexedFasta, regions: Vec<Region>) -> Self {
        let chunk_len = FastaOptions::default().chunk_len as u64;
        Self(Kind::Regions(Box::new(Regions { fasta, regions, chunk_len, next: 0, done: 0, record: None })))
    }

    /// What was met so far.
    pub fn counts(&self) -> SequenceCounts {
        match &self.0 {
            Kind::Files(files) => files.counts(),
            Kind::Regions(regions) => regions.fasta.counts(),
        }
    }

    /// Reads everything to its end, and says what is in it: finds what is wrong with a file before hours of work.
    pub fn check(mut self) -> Result<SequenceCounts> {
        self.try_for_each(|chunk| chunk.map(drop))?;
        Ok(self.counts())
    }
}

impl Iterator for Sequences {
    type Item = Result<SeqChunk>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Kind::Files(files) => files.next(),
            Kind::Regions(regions) => regions.next(),
        }
    }
}

impl Regions {
    fn next(&mut self) -> Option<Result<SeqChunk>> {
        let region = self.regions.get(self.next)?;
        let record = self.record.take().unwrap_or_else(|| {
            Arc::new(SeqRecord { index: self.next, name: region.label(), description: String::new() })
        });
        let start0 = self.done;
        let count = self.chunk_len.min(region.len() - start0);
        let first = match region.strand {
            Strand::Plus => region.start0 + start0,
            Strand::Minus => region.end0 - start0 - count,
        };
        let part = Region { start0: first, end0: first + count, ..region.clone() };
        let chunk = self.fasta.region_chunks(&[part], count as usize).next()?;
        self.done += count;
        let last = self.done == region.len();
        if last {
            self.next += 1;
            self.done = 0;
        } else {
            self.record = Some(Arc::clone(&record));
        }
        if chunk.is_err() {
            self.next = self.regions.len();
        }
        Some(chunk.map(|chunk| SeqChunk { record, start0, last, ..chunk }))
    }
}
