//! Reading, batches, merging, writing: a stream in which nothing grows with the input.

use super::table::Rows;
use super::{Per, named_counts};
use anyhow::Result;
use mamba_core::cli::Progress;
use mamba_core::train::Stop;
use mamba_datasets::job::arrow_schema::SchemaRef;
use mamba_datasets::job::{Directory, Manifest, Part, PartWriter};
use mamba_datasets::{InOrder, Layout, Limits, prefetch, stream};
use mamba_genomics::embed::{Embedder, Piece, Pool, Pooled, Sequences};
use mamba_genomics::tokenizer::SequenceCounts;
use mamba_genomics::windows::{SeqWindow, WindowSpec, Windows};
use std::cell::RefCell;
use std::ops::Range;
use std::time::Instant;

/// Windows that are read while the model computes.
const READ_AHEAD: usize = 16;
/// Batches' worth of windows that are sorted by length together.
const LOOK_AHEAD: usize = 4;

/// Where rows go.
pub(crate) enum Output {
    File(Box<PartWriter>),
    Parts { directory: Directory, bases: u64 },
}

/// What a run has done.
#[derive(Default)]
pub(crate) struct Done {
    /// Rows written, or found in the finished file.
    pub(crate) rows: u64,
    /// Records read.
    pub(crate) records: u64,
    /// Bases embedded, each once.
    pub(crate) bases: u64,
    /// Outputs written, left as they were, and left to other shards.
    pub(crate) written: u64,
    pub(crate) finished: u64,
    pub(crate) others: u64,
    /// What the input holds, if it was read.
    pub(crate) counts: Option<SequenceCounts>,
    /// Time between the first read and the last write.
    pub(crate) seconds: f64,
    /// Whether it was asked to stop; what was not finished is dropped.
    pub(crate) interrupted: bool,
}

impl Done {
    /// Nothing was to do.
    pub(crate) fn finished(manifest: &Manifest) -> Self {
        Self { rows: manifest.rows, finished: 1, ..Self::default() }
    }
}

/// Embeds all sequences and writes their rows, in input order.
pub(crate) fn run(
    sequences: Sequences,
    embedder: &Embedder,
    rows: Rows,
    spec: WindowSpec,
    batch_tokens: usize,
    output: Output,
    mut progress: Progress,
    stop: &Stop,
) -> Result<Done> {
    let started = Instant::now();
    let whole_windows = rows.per == Per::Window;
    let mut done = Done::default();
    let (single, mut parts) = match output {
        Output::File(writer) => (Some(*writer), None),
        Output::Parts { directory, bases } => (
            None,
            Some(Parts {
                directory,
                full_at: bases,
                windows_are_units: whole_windows || rows.pooling == Pool::None,
                schema: rows.schema().clone(),
                part: None,
                bases: 0,
                ours: false,
                finished: 0,
                others: 0,
            }),
        ),
    };
    let mut writer = Writer { rows, part: single, record: None, bases: 0, records: 0, done: &mut done };

    let read = RefCell::new((0, SequenceCounts::default()));
    let reading = Reading { windows: Windows::new(sequences, spec), ended: false };
    let units = prefetch(reading, READ_AHEAD)?.filter_map(|item| match item {
        Err(error) => Some(Err(error.into())),
        Ok(Read::End(counts)) => {
            read.borrow_mut().1 = *counts;
            None
        }
        Ok(Read::Window(window)) => {
            read.borrow_mut().0 = window.record.index as u64 + 1;
            match &mut parts {
                None => Some(Ok(Unit { window, opens: None })),
                Some(parts) => parts.take(window).transpose(),
            }
        }
    });
    let limits = Limits { max_tokens: batch_tokens, max_items: batch_tokens, layout: Layout::Padded };
    let mut in_order = InOrder::new();
    let mut interrupted = false;
    for batch in stream(units, limits, LOOK_AHEAD, |unit: &Unit| unit.window.ids.len())? {
        if stop.requested() {
            interrupted = true;
            break;
        }
        let batch: mamba_datasets::Batch<Unit> = batch?;
        let pieces: Vec<_> = batch.items.iter().map(|(_, unit)| piece(&unit.window, whole_windows)).collect();
        let pooled = embedder.pool(&pieces)?;
        for ((place, unit), pooled) in batch.items.into_iter().zip(pooled) {
            progress.inc(core_len(&unit.window));
            in_order.push(place, (unit, pooled));
        }
        while let Some((unit, pooled)) = in_order.pop() {
            writer.take(embedder, unit, pooled)?;
        }
    }
    if interrupted {
        progress.finish();
        drop(writer); // and with it the temporary file
        let finished = parts.map_or(0, |parts| parts.finished);
        return Ok(Done { finished, interrupted, ..done });
    }
    let (records, counts) = read.into_inner();
    if parts.is_none()
        && let Some(part) = &mut writer.part
    {
        named_counts(&counts).into_iter().skip(1).for_each(|(name, n)| part.count(name, n));
    }
    writer.close()?;
    progress.finish();
    if let Some(parts) = parts {
        (done.finished, done.others) = (parts.finished, parts.others);
    }
    Ok(Done { records, counts: Some(counts), seconds: started.elapsed().as_secs_f64(), ..done })
}

fn piece(window: &SeqWindow, whole: bool) -> Piece<'_> {
    let core = if whole { 0..window.ids.len() } else { window.window.core_range() };
    Piece { ids: &window.ids, core }
}

fn core_len(window: &SeqWindow) -> u64 {
    window.window.core_end0 - window.window.core_start0
}

/// Windows, then what they were made of.
struct Reading {
    windows: Windows<Sequences>,
    ended: bool,
}

enum Read {
    Window(SeqWindow),
    End(Box<SequenceCounts>),
}

impl Iterator for Reading {
    type Item = mamba_genomics::Result<Read>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let window = self.windows.next();
        self.ended = !matches!(window, Some(Ok(_)));
        let end = || Ok(Read::End(Box::new(self.windows.chunks().counts())));
        Some(window.map_or_else(end, |window| window.map(Read::Window)))
    }
}

/// A window to be embedded. The first of a part brings the part's writer.
struct Unit {
    window: SeqWindow,
    opens: Option<Box<PartWriter>>,
}

/// Cuts the input into parts by its bases alone, so that all shards agree, and takes this shard's.
struct Parts {
    directory: Directory,
    full_at: u64,
    windows_are_units: bool,
    schema: SchemaRef,
    part: Option<usize>,
    /// Bases in the part so far.
    bases: u64,
    /// Whether the part is to be made here.
    ours: bool,
    finished: u64,
    others: u64,
}

impl Parts {
    fn take(&mut self, window: SeqWindow) -> Result<Option<Unit>> {
        let begins = self.windows_are_units || window.window.start0 == 0;
        let opens = match begins && (self.part.is_none() || self.bases >= self.full_at) {
            true => self.open_next()?,
            false => None,
        };
        self.bases += core_len(&window);
        Ok(self.ours.then_some(Unit { window, opens }))
    }

    fn open_next(&mut self) -> Result<Option<Box<PartWriter>>> {
        let part = self.part.map_or(0, |part| part + 1);
        (self.part, self.bases, self.ours) = (Some(part), 0, false);
        if !self.directory.owns(part) {
            self.others += 1;
            return Ok(None);
        }
        match self.directory.part(part, &self.schema)? {
            Part::Finished(_) => {
                self.finished += 1;
                Ok(None)
            }
            Part::Open(writer) => {
                self.ours = true;
                Ok(Some(Box::new(writer)))
            }
        }
    }
}

/// Merges windows into rows and writes them.
struct Writer<'a> {
    rows: Rows,
    part: Option<PartWriter>,
    /// What the windows of the present record have contributed.
    record: Option<Pooled>,
    /// Bases in the present part.
    bases: u64,
    records: u64,
    done: &'a mut Done,
}

impl Writer<'_> {
    fn take(&mut self, embedder: &Embedder, unit: Unit, pooled: Pooled) -> Result<()> {
        let Unit { window: SeqWindow { record, window, last, .. }, opens } = unit;
        if let Some(part) = opens {
            self.close()?;
            self.part = Some(*part);
        }
        self.bases += window.core_end0 - window.core_start0;
        self.records += u64::from(last);
        let span: Range<u64> = match (self.rows.pooling, self.rows.per) {
            (Pool::None, _) => window.core_start0..window.core_end0,
            (_, Per::Window) => window.start0..window.end0,
            (_, Per::Record) => 0..window.core_end0,
        };
        let pooled = match (self.rows.pooling, self.rows.per) {
            (Pool::Mean | Pool::Max, Per::Record) => {
                let all = match self.record.take() {
                    None => pooled,
                    Some(mut all) => {
                        all.merge(pooled);
                        all
                    }
                };
                if !last {
                    self.record = Some(all);
                    return Ok(());
                }
                all
            }
            _ => pooled,
        };
        self.rows.add(&record, span, embedder.vectors(pooled))?;
        match &mut self.part {
            Some(part) => self.rows.write_some(part),
            None => Ok(()),
        }
    }

    /// Finishes the part, if there is one.
    fn close(&mut self) -> Result<()> {
        let Some(mut part) = self.part.take() else { return Ok(()) };
        self.rows.write_all(&mut part)?;
        part.count("records", std::mem::take(&mut self.records));
        part.count("bases", self.bases);
        self.done.bases += std::mem::take(&mut self.bases);
        self.done.rows += part.finish()?.rows;
        self.done.written += 1;
        Ok(())
    }
}
