//! What ProtMamba reads: homologs one after the other, some of them with spans taken out and put behind.
//!
//! ```text
//! <cls> M K T A Y I A K Q            a whole sequence, positions 0 1 2 …
//! <cls> M K <mask-1> I A K Q <eos> <mask-1> T A Y
//!   0   1 2    3     6 7 8 9   0      3     3 4 5
//! ```
//!
//! Every residue keeps the position that it has in its sequence, so that the model knows how long a span is. The number of
//! spans is drawn from a Poisson distribution of mean 1 (up to five), their lengths evenly up to a fifth of the sequence
//! (Sgarbossa et al. 2024, bioRxiv 2024.05.24.595730).

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::Rng;

use crate::protein::alphabet::{Alphabet, CLS, EOS, SPANS};
use crate::rng::below;

/// Tokens with their positions: one sequence, or several one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where each token stands in its own sequence, `<cls>` at 0.
    pub positions: Vec<u32>,
    /// Number of the sequence that each token belongs to.
    pub sequences: Vec<u32>,
}

impl Prompt {
    fn push(&mut self, id: u32, position: usize, sequence: u32) {
        self.ids.push(id);
        self.positions.push(position as u32);
        self.sequences.push(sequence);
    }

    /// Appends a whole sequence of residues, as sequence number `sequence`.
    pub fn push_sequence(&mut self, residues: &[u32], sequence: u32) {
        self.push(CLS, 0, sequence);
        residues.iter().enumerate().for_each(|(i, &id)| self.push(id, i + 1, sequence));
    }

    /// Appends a sequence whose `spans` (of residues, from 0, in order, apart) are taken out, up to and with `<eos>`: what
    /// the model is to fill follows.
    pub fn push_open(&mut self, residues: &[u32], spans: &[std::ops::Range<usize>], sequence: u32) {
        self.push(CLS, 0, sequence);
        let mut at = 0;
        for (number, span) in spans.iter().take(SPANS).enumerate() {
            (at..span.start).for_each(|i| self.push(residues[i], i + 1, sequence));
            self.push_mask(number, span.start + 1, sequence);
            at = span.end;
        }
        (at..residues.len()).for_each(|i| self.push(residues[i], i + 1, sequence));
        self.push(EOS, 0, sequence);
    }

    /// Appends the mask that asks for span number `number`, which begins at `position`.
    pub fn push_mask(&mut self, number: usize, position: usize, sequence: u32) {
        let mask = Alphabet::Homologs.span(number).unwrap_or(Alphabet::Homologs.mask());
        self.push(mask, position, sequence);
    }

    /// Appends one residue at a position.
    pub fn push_residue(&mut self, id: u32, position: usize, sequence: u32) {
        self.push(id, position, sequence);
    }

    /// Appends a sequence with its spans behind it.
    pub fn push_filled(&mut self, residues: &[u32], spans: &[std::ops::Range<usize>], sequence: u32) {
        if spans.is_empty() {
            return self.push_sequence(residues, sequence);
        }
        self.push_open(residues, spans, sequence);
        for (number, span) in spans.iter().take(SPANS).enumerate() {
            self.push_mask(number, span.start + 1, sequence);
            span.clone().for_each(|i| self.push(residues[i], i + 1, sequence));
        }
    }

    /// Keeps the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.positions.truncate(len);
        self.sequences.truncate(len);
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Draws which spans of a sequence of `len` residues are taken out.
pub(crate) fn draw_spans(rng: &mut ChaCha12Rng, len: usize) -> Vec<std::ops::Range<usize>> {
    if len < 2 {
        return Vec::new();
    }
    let count = loop {
        let count = poisson_of_mean_1(rng);
        if count <= SPANS {
            break count.min(len - 1);
        }
    };
    let mut starts: Vec<usize> = Vec::with_capacity(count + 1);
    while starts.len() < count {
        let start = below(rng, len as u64) as usize;
        if !starts.contains(&start) {
            starts.push(start);
        }
    }
    starts.sort_unstable();
    starts.push(len);
    let span = |pair: &[usize]| {
        let room = pair[1] - pair[0];
        let most = (room / 5).max(1) as u64;
        pair[0]..pair[0] + (1 + below(rng, most) as usize).min(room)
    };
    starts.windows(2).map(span).collect()
}

/// Knuth's method: how many uniform numbers can be multiplied before the product falls below 1/e.
fn poisson_of_mean_1(rng: &mut ChaCha12Rng) -> usize {
    let mut product = 1.0;
    for count in 0.. {
        product *= (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        if product <= (-1f64).exp() {
            return count;
        }
    }
    unreachable!("the product falls")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, keyed};

    #[test]
    fn spans_move_behind_the_sequence_and_keep_their_positions() {
        let residues: Vec<u32> = (4..13).collect();
        let mut prompt = Prompt::default();
        prompt.push_filled(&residues, std::slice::from_ref(&(2..5)), 7);
        assert_eq!(prompt.ids, [0, 4, 5, 33, 9, 10, 11, 12, 2, 33, 6, 7, 8]);
        assert_eq!(prompt.positions, [0, 1, 2, 3, 6, 7, 8, 9, 0, 3, 3, 4, 5]);
        assert_eq!(prompt.sequences, [7; 13]);
    }

    #[test]
    fn drawn_spans_are_apart_inside_and_as_many_as_poisson_says() {
        let mut counts = [0usize; SPANS + 1];
        for step in 0..4000 {
            let mut rng = keyed(1, step, 0, Stream::Spans);
            let len = 2 + (step as usize % 120);
            let spans = draw_spans(&mut rng, len);
            assert!(spans.windows(2).all(|w| w[0].end <= w[1].start), "{spans:?}");
            assert!(spans.iter().all(|s| !s.is_empty() && s.end <= len), "{spans:?}");
            if len > 20 {
                counts[spans.len()] += 1;
            }
        }
        let n = counts.iter().sum::<usize>() as f64;
        assert!(
            (counts[0] as f64 / n - 0.368).abs() < 0.03 && (counts[1] as f64 / n - 0.368).abs() < 0.03,
            "{counts:?}"
        );
    }
}
