//! Records that are too long for one pass: the same function of the whole record, computed in chunks.
//!
//! [Windows](crate::windows) cut a record, and what lies outside of a window is not seen. Here nothing is cut. A causal
//! model carries its states from chunk to chunk through all layers at once, and memory does not grow with the record. A
//! bidirectional one goes layer by layer: from right to left with the state of the one direction, then from left to right
//! with that of the other. In between it holds the residual stream of one strand and what the first direction adds to it:
//! `2 · 4 · D` bytes for each base (2 GiB for a million bases at D = 256), besides one chunk of everything else. The second
//! strand comes after the first, in the same memory.
//!
//! Sums are the same but for the order in which matrix products add up, which depends on the number of rows: results
//! differ from those of the whole by rounding.

use candle_core::{Module, Result, Tensor, bail};
use mamba_core::MixerState;
use mamba_core::bidirectional::Combine;
use mamba_core::nn::flip;

use crate::model::Caduceus;

/// A strand of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strand {
    /// As given.
    Forward,
    /// Its reverse complement, in the direction of that strand; of Caduceus-PS only.
    Reverse,
}

impl Caduceus {
    /// The hidden states of one strand of a record, `(1, at most chunk, D)` at a time and from its first base on; `each` gets
    /// them with the position of their first base. With `layer`, the residual stream after so many blocks, as
    /// [`forward_to`](Caduceus::forward_to); else the final hidden states, as [`forward`](Caduceus::forward).
    pub fn forward_chunks(
        &self,
        ids: &[u32],
        strand: Strand,
        layer: Option<usize>,
        chunk: usize,
        mut each: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let layers = layer.unwrap_or(self.n_layer());
        if layers > self.n_layer() {
            bail!("layer {layers} of a model with {} layers", self.n_layer());
        }
        if chunk == 0 || ids.is_empty() {
            bail!("chunks of {chunk} of a record of {} bases", ids.len());
        }
        if strand == Strand::Reverse && !self.is_rcps() {
            bail!("only Caduceus-PS has a second strand");
        }
        // After an odd number of swapping layers the strands lie in each other's place, reversed.
        let swapped = self.swaps() && !layers.is_multiple_of(2);
        let device = self.device();
        let ids = Tensor::new(ids, &device)?.unsqueeze(0)?; // (1, L)
        let ids = match (strand == Strand::Reverse) != swapped {
            true => self.reverse_complement(&ids, None)?,
            false => ids,
        };
        let len = ids.dim(1)?;
        let mut show = |start: usize, stream: &Tensor| {
            let stream = match swapped {
                true => flip(&flip(stream, 1)?, 2)?,
                false => stream.clone(),
            };
            match layer {
                None => each(start, &self.norm_f().forward(&stream)?),
                Some(_) => each(start, &stream),
            }
        };
        let chunks = len.div_ceil(chunk);
        let embed = |i: usize| {
            let start = i * chunk;
            self.embed(&ids.narrow(1, start, chunk.min(len - start))?.contiguous()?)
        };
        if self.is_causal() {
            let mut states = vec![MixerState::new(); layers];
            for i in 0..chunks {
                let mut stream = embed(i)?; // (1, chunk, D)
                for (layer, state) in states.iter_mut().enumerate() {
                    stream = (&stream + self.one_way(layer, &stream, false, state)?)?;
                }
                show(i * chunk, &stream)?;
            }
            return Ok(());
        }
        let mut streams = (0..chunks).map(embed).collect::<Result<Vec<_>>>()?;
        for layer in 0..layers {
            // Right to left, then left to right.
            let mut state = MixerState::new();
            let mut parts = vec![None; chunks];
            for i in (0..chunks).rev() {
                parts[i] = self.maybe_one_way(layer, &streams[i], true, &mut state)?;
            }
            let mut state = MixerState::new();
            for (stream, part) in streams.iter_mut().zip(parts) {
                let other = self.maybe_one_way(layer, stream, false, &mut state)?;
                let change = match (part, other, self.combine(layer)) {
                    (Some(a), Some(b), Combine::Add) => (a + b)?,
                    (Some(a), Some(b), Combine::Multiply) => (a * b)?,
                    (Some(one), None, _) | (None, Some(one), _) => one,
                    (None, None, _) => bail!("layer {layer} reads in no direction"),
                };
                *stream = (&*stream + change)?;
            }
        }
        match swapped {
            // The last chunk holds the first bases.
            true => (0..chunks).rev().try_for_each(|i| {
                let end = (i * chunk + chunk).min(len);
                show(len - end, &streams[i])
            }),
            false => (0..chunks).try_for_each(|i| show(i * chunk, &streams[i])),
        }
    }

    fn one_way(
        &self,
        layer: usize,
        stream: &Tensor,
        reverse: bool,
        state: &mut MixerState,
    ) -> Result<Tensor> {
        match self.maybe_one_way(layer, stream, reverse, state)? {
            Some(change) => Ok(change),
            None => bail!("layer {layer} has no mixer in this direction"),
        }
    }
}
