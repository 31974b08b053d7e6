//! Several FASTA files as one stream.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::input::Input;
use super::reader::{FastaOptions, FastaReader, Names, SeqChunk};
use crate::error::Result;
use crate::tokenizer::SequenceCounts;

/// Reads files one after the other, with record numbers and the check for duplicate names running over all of them.
/// An iterator over `Result<SeqChunk>` that ends after an error.
pub struct FastaFiles {
    waiting: VecDeque<PathBuf>,
    options: FastaOptions,
    reader: Option<FastaReader>,
    finished: SequenceCounts,
    finished_bytes: u64,
    waiting_bytes: Option<u64>,
}

impl FastaFiles {
    /// Will read `paths` in this order; `-` is standard input. Nothing is opened yet.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>, options: FastaOptions) -> Self {
        let waiting: VecDeque<PathBuf> = paths.into_iter().map(Into::into).collect();
        let waiting_bytes =
            waiting.iter().map(|path| path.metadata().ok().filter(|m| m.is_file()).map(|m| m.len())).sum();
        Self {
            waiting,
            options,
            reader: None,
            finished: SequenceCounts::default(),
            finished_bytes: 0,
            waiting_bytes,
        }
    }

    /// What was met so far.
    pub fn counts(&self) -> SequenceCounts {
        let mut counts = self.finished.clone();
        if let Some(reader) = &self.reader {
            counts.merge(&reader.counts());
        }
        counts
    }

    /// Bytes taken from the files so far, before decompression, and the size of all of them where it is known.
    pub fn progress(&self) -> (u64, Option<u64>) {
        let current = self.reader.as_ref().map_or(0, |reader| reader.progress().0);
        (self.finished_bytes + current, self.waiting_bytes)
    }

    fn open_next(&mut self) -> Option<Result<()>> {
        let (names, next_record) = match self.reader.take() {
            Some(mut reader) => {
                self.finished.merge(&reader.counts());
                self.finished_bytes += reader.progress().0;
                (std::mem::take(&mut reader.names), reader.records())
            }
            None => (Names::new(), 0),
        };
        let path = self.waiting.pop_front()?;
        let reader =
            Input::open(&path).and_then(|input| FastaReader::resume(input, self.options, names, next_record));
        Some(reader.map(|reader| self.reader = Some(reader)))
    }
}

impl Iterator for FastaFiles {
    type Item = Result<SeqChunk>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.reader.as_mut().and_then(Iterator::next) {
                Some(Err(error)) => {
                    self.waiting.clear();
                    return Some(Err(error));
                }
                Some(chunk) => return Some(chunk),
                None => {
                    if let Err(error) = self.open_next()? {
                        self.waiting.clear();
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}
