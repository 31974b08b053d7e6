//! Which tokens of a `(B, L, D)` batch form one sequence.

use candle_core::{Result, bail};
use std::sync::Arc;

/// Consecutive tokens `start .. end` of batch row `row`, treated as a sequence of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Batch row.
    pub row: usize,
    /// First token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
}

impl Segment {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the segment has no token.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// The sequences inside a `(B, L, D)` batch: whole rows, packed rows, or rows with padding.
///
/// Scans and convolutions treat each segment as if it stood alone: state and window start afresh (or from that
/// segment's initial state) at its border, and every segment has a final state of its own. Tokens in no segment are
/// padding: they are never read, their output and gradient are zero. States have one leading row for each segment, in
/// the order of [`Segments::iter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    batch: usize,
    len: usize,
    items: Arc<[Segment]>,
    padded: bool,
}

impl Segments {
    /// Every row of a `(batch, len, ·)` tensor is one sequence.
    pub fn whole(batch: usize, len: usize) -> Self {
        let items = (0..batch).map(|row| Segment { row, start: 0, end: len }).collect();
        Self { batch, len, items, padded: false }
    }

    /// Row `i` holds a sequence of `lengths[i]` tokens followed by padding up to `len` (right padding).
    pub fn right_padded(len: usize, lengths: &[usize]) -> Result<Self> {
        let items = lengths.iter().enumerate().map(|(row, &end)| Segment { row, start: 0, end });
        Self::new(lengths.len(), len, items.collect())
    }

    /// Row `i` holds padding followed by a sequence of `lengths[i]` tokens (left padding).
    pub fn left_padded(len: usize, lengths: &[usize]) -> Result<Self> {
        let items = lengths.iter().enumerate().map(|(row, &n)| {
            let start = len.checked_sub(n).unwrap_or(len + 1);
            Segment { row, start, end: len }
        });
        Self::new(lengths.len(), len, items.collect())
    }

    /// One row that holds sequences back to back; sequence `i` is `cu_seqlens[i] .. cu_seqlens[i + 1]`.
    pub fn packed(cu_seqlens: &[usize]) -> Result<Self> {
        let (Some(&first), Some(&last)) = (cu_seqlens.first(), cu_seqlens.last()) else {
            bail!("segments: cu_seqlens is empty, expected [0, …, total]");
        };
        if first != 0 {
            bail!("segments: cu_seqlens starts at {first}, expected 0");
        }
        let items = cu_seqlens.windows(2).map(|w| Segment { row: 0, start: w[0], end: w[1] });
        Self::new(1, last, items.collect())
    }

    /// `seq_idx` is `(batch, len)` row-major: each run of equal values in a row is a sequence, negative means padding.
    pub fn from_seq_idx(seq_idx: &[i32], batch: usize, len: usize) -> Result<Self> {
        if seq_idx.len() != batch * len {
            bail!("segments: seq_idx has {} values, expected batch {batch} × len {len}", seq_idx.len());
        }
        let mut items = Vec::new();
        for row in 0..batch {
            let ids = &seq_idx[row * len..(row + 1) * len];
            let mut start = 0;
            for run in ids.chunk_by(|a, b| a == b) {
                if run[0] >= 0 {
                    items.push(Segment { row, start, end: start + run.len() });
                }
                start += run.len();
            }
        }
        Self::new(batch, len, items)
    }

    /// Segments in any arrangement; they must be ordered, inside the batch and must not overlap.
    pub fn new(batch: usize, len: usize, items: Vec<Segment>) -> Result<Self> {
        let mut previous = Segment { row: 0, start: 0, end: 0 };
        for (i, s) in items.iter().enumerate() {
            if s.row >= batch || s.start > s.end || s.end > len {
                bail!("segments: segment {i} ({s:?}) lies outside batch {batch} × len {len}");
            }
            if s.row < previous.row || (s.row == previous.row && s.start < previous.end) {
                bail!("segments: segment {i} ({s:?}) overlaps or precedes {previous:?}");
            }
            previous = *s;
        }
        let covered: usize = items.iter().map(Segment::len).sum();
        Ok(Self { batch, len, items: items.into(), padded: covered != batch * len })
    }

    /// Rows of the batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens of a row, padding included.
    pub fn seq_len(&self) -> usize {
        self.len
    }

    /// Number of segments, which is the leading dimension of every state.
    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// Whether some token belongs to no segment.
    pub fn has_padding(&self) -> bool {
        self.padded
    }

    /// The segments in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Segment> {
        self.items.iter()
    }

    /// Whether every row is one segment without padding.
    pub(crate) fn are_whole_rows(&self) -> bool {
        let whole = |(row, s): (usize, &Segment)| *s == Segment { row, start: 0, end: self.len };
        self.count() == self.batch && self.iter().enumerate().all(whole)
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_seq_idx_become_segments_and_negatives_padding() {
        let s = Segments::from_seq_idx(&[0, 0, 1, -1, 5, 5, 5, 5], 2, 4).unwrap();
        let want = [
            Segment { row: 0, start: 0, end: 2 },
            Segment { row: 0, start: 2, end: 3 },
            Segment { row: 1, start: 0, end: 4 },
        ];
        assert_eq!(s.as_slice(), want);
        assert!(s.has_padding());
    }

    #[test]
    fn bad_arrangements_are_refused() {
        assert!(Segments::right_padded(4, &[5]).is_err());
        assert!(Segments::left_padded(4, &[5]).is_err());
        assert!(Segments::packed(&[]).is_err());
        assert!(Segments::packed(&[1, 3]).is_err());
        assert!(Segments::packed(&[0, 3, 2]).is_err());
        assert!(Segments::from_seq_idx(&[0, 0], 1, 3).is_err());
        let overlap = vec![Segment { row: 0, start: 0, end: 3 }, Segment { row: 0, start: 2, end: 4 }];
        assert!(Segments::new(1, 4, overlap).is_err());
    }
}
