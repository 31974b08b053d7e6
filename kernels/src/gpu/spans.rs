//! How kernels find the sequences of a batch.

use super::{Buffer, Gpu, kernel_args};
use crate::segments::Segments;
use candle_core::Result;

kernel_args! {
    /// `Spans` of common.cuh.
    struct SpansArgs {
        table: u64,
        firsts: u64,
        count: i64,
        segments: i64,
        per_row: i64,
        len: i64,
        size: i64,
        chunk_size: i64,
        reverse: i64,
    }
}

/// Segments cut into spans of `size` steps, counted in scan order.
pub(crate) struct SpanPlan {
    pub(crate) args: SpansArgs,
    /// Number of spans. Every segment has at least one.
    pub(crate) count: usize,
    /// Number of chunks of all segments.
    pub(crate) chunks: usize,
    /// Whether some segment has more than one span.
    pub(crate) is_cut: bool,
    /// Keep the tables alive.
    _tables: Option<[Buffer; 2]>,
}

impl SpanPlan {
    /// `size` must be a multiple of `chunk`. Rows that are whole segments need no table on the device.
    pub(crate) fn new(
        gpu: &Gpu,
        segments: &Segments,
        size: usize,
        chunk: usize,
        reverse: bool,
    ) -> Result<Self> {
        let (batch, len) = (segments.batch(), segments.seq_len());
        let mut args = SpansArgs {
            segments: segments.count() as i64,
            len: len as i64,
            size: size as i64,
            chunk_size: chunk as i64,
            reverse: i64::from(reverse),
            ..SpansArgs::default()
        };
        if segments.are_whole_rows() {
            let per_row = len.div_ceil(size);
            let count = batch * per_row;
            args.count = count as i64;
            args.per_row = per_row as i64;
            let chunks = batch * len.div_ceil(chunk);
            return Ok(Self { args, count, chunks, is_cut: per_row > 1, _tables: None });
        }
        let (mut table, mut firsts, mut chunks, mut is_cut) = (Vec::new(), Vec::new(), 0, false);
        for (i, s) in segments.iter().enumerate() {
            firsts.push((table.len() / 6) as i64);
            for first in (0..s.len().max(1)).step_by(size) {
                let steps = size.min(s.len() - first);
                let row = [i, s.row * len + s.start, s.len(), first, steps, chunks + first / chunk];
                table.extend(row.map(|x| x as i64));
                is_cut |= first > 0;
            }
            chunks += s.len().div_ceil(chunk);
        }
        let count = table.len() / 6;
        firsts.push(count as i64);
        let tables = [gpu.upload(&table)?, gpu.upload(&firsts)?];
        args.count = count as i64;
        args.table = tables[0].address();
        args.firsts = tables[1].address();
        Ok(Self { args, count, chunks, is_cut, _tables: Some(tables) })
    }
}
