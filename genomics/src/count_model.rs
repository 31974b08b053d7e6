//! Context count models: what held-out cross-entropy is compared with.
//!
//! The model of `l` left and `r` right context bases predicts a base by how often it stood in the same context in the
//! training intervals, both strands counted:
//!
//! p(b | context) = (count(context, b) + α) / (count(context) + 4 α)
//!
//! With `r = 0` it is causal, of order `l`. [`CountModels::choose`] tries every causal order and every two-sided split up
//! to a given number of context bases, with α from [`ALPHAS`], and keeps what codes the validation positions in the
//! fewest bits.
//!
//! A training word lies wholly inside one training interval and has no N. A scored base may use any base of its record as
//! context. Where its context leaves the record or has an N, it is predicted by the base composition of the training
//! intervals instead; a scored N is skipped.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::genome::{Genome, GenomePosition, Interval};
use crate::tokenizer::{A, is_base};

/// Most context bases, left and right together: 4¹² counts of 4 bytes are 64 MiB.
pub const MAX_CONTEXT: usize = 11;
/// The values of α that are tried.
pub const ALPHAS: [f64; 9] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// Counts of all words of `left + 1 + right` bases, and how they are smoothed.
#[derive(Clone, Debug)]
pub struct CountModel {
    left: usize,
    right: usize,
    alpha: f64,
    words: WordCounts,
    composition: WordCounts,
    valid_bits: f64,
}

/// The best causal and the best two-sided model.
#[derive(Clone, Debug)]
pub struct CountModels {
    /// Only bases to the left are seen.
    pub causal: CountModel,
    /// Bases on both sides are seen; a causal model if none is better.
    pub two_sided: CountModel,
}

/// A model's cross-entropy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Bits per base.
    pub bits: f64,
    /// Bases scored.
    pub bases: usize,
    /// Bases among them whose context was not whole.
    pub without_context: usize,
}

impl CountModels {
    /// Counts in `train`, and chooses context and α by `valid`. At most `max_context` (up to [`MAX_CONTEXT`]) context
    /// bases are tried. Holds at most three tables of 4^(`max_context` + 1) counts of 4 bytes.
    pub fn choose(
        genome: &Genome,
        train: &[Interval],
        valid: &[GenomePosition],
        max_context: usize,
    ) -> Result<Self> {
        if max_context > MAX_CONTEXT {
            let (got, expected) = (max_context.to_string(), format!("at most {MAX_CONTEXT}"));
            return Err(Error::Setting { name: "context", got, expected });
        }
        let scored = ScoredBase::collect(genome, valid);
        if scored.is_empty() {
            return Err(Error::NoPositions { role: "validation", count: valid.len() });
        }
        let composition = WordCounts::new(genome, train, 1);
        let mut best_causal: Option<Choice> = None;
        let mut best: Option<Choice> = None;
        for context in 0..=max_context {
            let words = WordCounts::new(genome, train, context + 1);
            for right in 0..=context {
                let choice = Choice::best_alpha(&scored, &words, &composition, context - right, right);
                if right == 0 {
                    choice.replace_if_better(&mut best_causal);
                }
                choice.replace_if_better(&mut best);
            }
        }
        let model = |choice: Option<Choice>| {
            let Choice { left, right, alpha, bits } =
                choice.expect("at least the context of no bases was tried");
            let words = WordCounts::new(genome, train, left + 1 + right);
            CountModel { left, right, alpha, words, composition: composition.clone(), valid_bits: bits }
        };
        Ok(Self { causal: model(best_causal), two_sided: model(best) })
    }
}

impl CountModel {
    /// Context bases to the left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Context bases to the right.
    pub fn right(&self) -> usize {
        self.right
    }

    /// What is added to every count.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Bits per base on the validation positions that the model was chosen by.
    pub fn valid_bits(&self) -> f64 {
        self.valid_bits
    }

    /// Cross-entropy in bits per base at `positions`.
    pub fn bits_per_base(&self, genome: &Genome, positions: &[GenomePosition]) -> Result<Score> {
        let scored = ScoredBase::collect(genome, positions);
        if scored.is_empty() {
            return Err(Error::NoPositions { role: "test", count: positions.len() });
        }
        let [bits] = mean_bits(&scored, &self.words, &self.composition, self.left, self.right, [self.alpha]);
        let without_context = scored.iter().filter(|base| !base.has_context(self.left, self.right)).count();
        Ok(Score { bits, bases: scored.len(), without_context })
    }
}

/// A candidate and its cost on the validation positions.
#[derive(Clone, Copy)]
struct Choice {
    left: usize,
    right: usize,
    alpha: f64,
    bits: f64,
}

impl Choice {
    fn best_alpha(
        scored: &[ScoredBase],
        words: &WordCounts,
        composition: &WordCounts,
        left: usize,
        right: usize,
    ) -> Self {
        let mut best = Self { left, right, alpha: ALPHAS[0], bits: f64::INFINITY };
        for (alpha, bits) in
            ALPHAS.into_iter().zip(mean_bits(scored, words, composition, left, right, ALPHAS))
        {
            if bits < best.bits {
                best = Self { alpha, bits, ..best };
            }
        }
        best
    }

    fn replace_if_better(self, best: &mut Option<Self>) {
        if best.is_none_or(|best| self.bits < best.bits) {
            *best = Some(self);
        }
    }
}

/// Bits per base for each α. Sums are taken over pieces of fixed size in order, so that the result does not depend on
/// the number of threads.
fn mean_bits<const K: usize>(
    scored: &[ScoredBase],
    words: &WordCounts,
    composition: &WordCounts,
    left: usize,
    right: usize,
    alphas: [f64; K],
) -> [f64; K] {
    let pieces: Vec<[f64; K]> = scored
        .par_chunks(1 << 14)
        .map(|piece| {
            let mut bits = [0.0; K];
            for base in piece {
                let (count, total) = if base.has_context(left, right) {
                    words.at(base.word(left, right), right)
                } else {
                    composition.at(base.word(0, 0), 0)
                };
                for (bits, alpha) in bits.iter_mut().zip(alphas) {
                    *bits -= ((count + alpha) / (total + 4.0 * alpha)).log2();
                }
            }
            bits
        })
        .collect();
    let mut mean = [0.0; K];
    for piece in pieces {
        for (mean, bits) in mean.iter_mut().zip(piece) {
            *mean += bits / scored.len() as f64;
        }
    }
    mean
}

/// A base to score with up to [`MAX_CONTEXT`] bases on each side, two bits each, the base itself in the middle.
struct ScoredBase {
    bases: u64,
    left: u8,
    right: u8,
}

impl ScoredBase {
    fn collect(genome: &Genome, positions: &[GenomePosition]) -> Vec<Self> {
        positions.iter().filter_map(|&position| Self::at(genome, position)).collect()
    }

    /// `None` where there is no A, C, G or T.
    fn at(genome: &Genome, position: GenomePosition) -> Option<Self> {
        let ids = &genome.records().get(position.record)?.ids;
        let code =
            |position: usize| ids.get(position).filter(|&&id| is_base(id)).map(|&id| u64::from(id - A));
        let mut bases = code(position.position0)? << (2 * MAX_CONTEXT);
        let (mut left, mut right) = (0, 0);
        while left < MAX_CONTEXT
            && let Some(base) = position.position0.checked_sub(left + 1).and_then(code)
        {
            left += 1;
            bases |= base << (2 * (MAX_CONTEXT + left));
        }
        while right < MAX_CONTEXT
            && let Some(base) = code(position.position0 + right + 1)
        {
            right += 1;
            bases |= base << (2 * (MAX_CONTEXT - right));
        }
        Some(Self { bases, left: left as u8, right: right as u8 })
    }

    fn has_context(&self, left: usize, right: usize) -> bool {
        usize::from(self.left) >= left && usize::from(self.right) >= right
    }

    fn word(&self, left: usize, right: usize) -> usize {
        let mask = (1u64 << (2 * (left + 1 + right))) - 1;
        ((self.bases >> (2 * (MAX_CONTEXT - right))) & mask) as usize
    }
}

/// How often every word of some length occurs, both strands together. A word is a number of two bits per base, its
/// first base highest.
#[derive(Clone, Debug)]
struct WordCounts(Vec<u32>);

impl WordCounts {
    fn new(genome: &Genome, intervals: &[Interval], word_len: usize) -> Self {
        let mut counts = vec![0u32; 1 << (2 * word_len)];
        let mask = counts.len() - 1;
        for &interval in intervals {
            let (mut word, mut bases) = (0, 0);
            for &id in genome.ids(interval) {
                if !is_base(id) {
                    bases = 0;
                    continue;
                }
                word = (word << 2 | usize::from(id - A)) & mask;
                bases += 1;
                if bases >= word_len {
                    counts[word] = counts[word].saturating_add(1);
                }
            }
        }
        for word in 0..counts.len() {
            let other = reverse_complement_word(word, word_len);
            if word <= other {
                // A word that is its own reverse complement is met on both strands too.
                let both = counts[word].saturating_add(counts[other]);
                counts[word] = both;
                counts[other] = both;
            }
        }
        Self(counts)
    }

    /// Counts of the word, and of all words that differ in the base with `right` bases after it only.
    fn at(&self, word: usize, right: usize) -> (f64, f64) {
        let shift = 2 * right;
        let context = word & !(3 << shift);
        let total = (0..4).map(|base| f64::from(self.0[context | base << shift])).sum();
        (f64::from(self.0[word]), total)
    }
}

/// The reverse complement of a word of two-bit bases (A0 C1 G2 T3: the complement is 3 minus the base).
fn reverse_complement_word(word: usize, word_len: usize) -> usize {
    let mut bits = !(word as u32);
    bits = (bits >> 2 & 0x3333_3333) | (bits & 0x3333_3333) << 2;
    bits = (bits >> 4 & 0x0f0f_0f0f) | (bits & 0x0f0f_0f0f) << 4;
    (bits.swap_bytes() >> (32 - 2 * word_len)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::genome::GenomeRecord;
    use crate::rng::{self, Stream};
    use crate::tokenizer::{SequenceCounts, encode, reverse_complement, reverse_complement_bytes};

    fn genome(texts: &[&str]) -> Genome {
        let record = |text: &&str| GenomeRecord {
            name: String::new(),
            ids: encode(text.as_bytes(), &mut SequenceCounts::default()).unwrap(),
        };
        Genome::from_records(texts.iter().map(record).collect())
    }

    fn positions(range: std::ops::Range<usize>) -> Vec<GenomePosition> {
        range.map(|position0| GenomePosition { record: 0, position0 }).collect()
    }

    /// Every base follows from the two before it, with some noise.
    fn second_order(length: usize) -> String {
        let mut rng = rng::keyed(3, 0, 0, Stream::Sampler);
        let mut codes = vec![0, 1];
        for i in 2..length {
            let preferred = (codes[i - 2] * 2 + codes[i - 1] * 3 + 1) % 4;
            let noisy = rng::below(&mut rng, 10) < 2;
            codes.push(if noisy { rng::below(&mut rng, 4) } else { preferred });
        }
        codes.iter().map(|&code| char::from(b"ACGT"[code as usize])).collect()
    }

    #[test]
    fn counts_are_those_of_both_strands_counted_by_hand() {
        let text = "ACGTTNACGGCATGCATACG";
        let genome = genome(&[text]);
        let other_strand = String::from_utf8(reverse_complement_bytes(text.as_bytes())).unwrap();
        for word_len in 1..=4 {
            let counts = WordCounts::new(&genome, &genome.intervals(), word_len);
            for word in 0..counts.0.len() {
                let letters: String =
                    (0..word_len).rev().map(|i| char::from(b"ACGT"[word >> (2 * i) & 3])).collect();
                let count = |text: &str| {
                    (0..=text.len() - word_len).filter(|&i| text[i..].starts_with(&letters)).count()
                };
                assert_eq!(counts.0[word] as usize, count(text) + count(&other_strand), "{letters}");
            }
        }
    }

    #[test]
    fn words_do_not_cross_the_end_of_a_training_interval() {
        let genome = genome(&["AAAACCCC"]);
        let parts = [Interval { record: 0, start0: 0, end0: 4 }, Interval { record: 0, start0: 4, end0: 8 }];
        let counts = WordCounts::new(&genome, &parts, 2);
        assert_eq!(counts.0[0b0001], 0, "AC stands across the two");
        assert_eq!(counts.0[0b0000], 3);
    }

    #[test]
    fn a_probability_worked_by_hand() {
        // Training AAC and its reverse complement GTT: after A there is A once, C once; after G a T; after T a T.
        let genome = genome(&["AACGA"]);
        let train = [Interval { record: 0, start0: 0, end0: 3 }];
        let words = WordCounts::new(&genome, &train, 2);
        let composition = WordCounts::new(&genome, &train, 1);
        let model = CountModel { left: 1, right: 0, alpha: 0.5, words, composition, valid_bits: 0.0 };
        let score = |range| model.bits_per_base(&genome, &positions(range)).unwrap();
        // p(A | A) = 1.5 / 4
        assert!((score(1..2).bits + (1.5f64 / 4.0).log2()).abs() < 1e-12);
        // p(G | C) = 0.5 / 2: C was never followed by anything.
        assert!((score(3..4).bits + 0.25f64.log2()).abs() < 1e-12);
        // The first base has no context: p(A) = 2.5 / 8 by composition A2 C1 G1 T2.
        let first = score(0..1);
        assert!((first.bits + (2.5f64 / 8.0).log2()).abs() < 1e-12);
        assert_eq!((first.bases, first.without_context), (1, 1));
    }

    #[test]
    fn two_sided_words_put_the_scored_base_at_its_place() {
        let genome = genome(&["ACGTN"]);
        let base = ScoredBase::at(&genome, GenomePosition { record: 0, position0: 2 }).unwrap();
        assert_eq!(base.word(2, 1), 0b00_01_10_11);
        assert_eq!(base.word(0, 0), 0b10);
        assert_eq!(base.word(1, 0), 0b01_10);
        assert!(base.has_context(2, 1) && !base.has_context(3, 0) && !base.has_context(0, 2));
        assert!(ScoredBase::at(&genome, GenomePosition { record: 0, position0: 4 }).is_none());
    }

    #[test]
    fn the_order_of_a_second_order_source_is_found_and_its_entropy_reached() {
        let text = second_order(60_000);
        let genome = genome(&[&text]);
        let train = [Interval { record: 0, start0: 0, end0: 50_000 }];
        let models = CountModels::choose(&genome, &train, &positions(50_000..55_000), 6).unwrap();
        // Preferred base 0.85, the three others 0.05 each.
        let entropy = -(0.85f64 * 0.85f64.log2() + 3.0 * 0.05 * 0.05f64.log2());
        let score = |model: &CountModel| model.bits_per_base(&genome, &positions(55_000..60_000)).unwrap();
        let (causal, two_sided) = (score(&models.causal), score(&models.two_sided));
        // Both strands are counted, and the other strand is not the same source: more than the entropy is needed.
        assert!(models.causal.left() >= 2 && models.causal.right() == 0);
        assert!(causal.bits > entropy - 0.05 && causal.bits < 1.6, "{} against {entropy}", causal.bits);
        assert!(two_sided.bits < causal.bits - 0.2, "{} {}", two_sided.bits, causal.bits);
        assert!(models.two_sided.right() >= 1 && models.two_sided.left() >= 1);
        assert_eq!((causal.bases, causal.without_context), (5_000, 0));
    }

    #[test]
    fn reading_the_other_strand_swaps_left_and_right() {
        let forward = genome(&[&second_order(5_000)]);
        let ids = reverse_complement(&forward.records()[0].ids);
        let backward = Genome::from_records(vec![GenomeRecord { name: String::new(), ids }]);
        let model = |left, right, genome: &Genome| CountModel {
            left,
            right,
            alpha: 1.0,
            words: WordCounts::new(genome, &genome.intervals(), left + 1 + right),
            composition: WordCounts::new(genome, &genome.intervals(), 1),
            valid_bits: 0.0,
        };
        let one = model(3, 1, &forward).bits_per_base(&forward, &positions(0..5_000)).unwrap();
        let other = model(1, 3, &backward).bits_per_base(&backward, &positions(0..5_000)).unwrap();
        assert!((one.bits - other.bits).abs() < 1e-12);
        assert_eq!((one.bases, one.without_context), (other.bases, other.without_context));
    }

    #[test]
    fn nothing_to_score_is_an_error() {
        let genome = genome(&["NNNN"]);
        let choice = CountModels::choose(&genome, &genome.intervals(), &positions(0..4), 2);
        assert!(matches!(choice, Err(Error::NoPositions { role: "validation", count: 4 })));
        assert!(CountModels::choose(&genome, &[], &[], 12).is_err());
    }
}
