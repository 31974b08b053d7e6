//! Masked-language-model corruption, a pure function of `(seed, step, row)`.
//!
//! Each of A, C, G, T is chosen with probability [`MaskConfig::choose`], independently of all others; N and special
//! tokens never are. A chosen base becomes `[MASK]` with probability [`MaskConfig::mask`], a base drawn uniformly from
//! A, C, G, T (which may be the same again) with probability [`MaskConfig::random`], and is kept otherwise. The label of
//! a chosen base is the base, every other label is `[PAD]`, which the loss ignores. A row may have no chosen base.
//!
//! Draws come from ChaCha12 keyed by `(seed, step, row)`: one 32-bit number per base of A, C, G, T in the row to choose
//! it, two more for every chosen one (what becomes of it; which random base). Probabilities are exact to 2⁻³².

use rand_chacha::rand_core::Rng;

use crate::error::{Error, Result};
use crate::genome::{GenomePosition, Interval};
use crate::rng::{self, Stream};
use crate::tokenizer::{BASES, MASK, PAD, is_base};

/// How bases are chosen and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskConfig {
    /// Probability that a base is chosen, and so predicted.
    pub choose: f64,
    /// Probability that a chosen base becomes `[MASK]`.
    pub mask: f64,
    /// Probability that a chosen base becomes a random base.
    pub random: f64,
}

impl MaskConfig {
    /// 15 % chosen; of these 80 % masked, 10 % random, 10 % kept.
    pub const TRAIN: Self = Self { choose: 0.15, mask: 0.8, random: 0.1 };
    /// 15 % chosen, all of them masked. Use one seed throughout, so that every evaluation scores the same bases.
    pub const EVAL: Self = Self { choose: 0.15, mask: 1.0, random: 0.0 };

    /// Checks that these are probabilities.
    pub fn validate(&self) -> Result<()> {
        let sum = self.mask + self.random;
        let values =
            [("choose", self.choose), ("mask", self.mask), ("random", self.random), ("mask + random", sum)];
        for (name, value) in values {
            if !(0.0..=1.0).contains(&value) {
                let expected = "a probability, 0 to 1".into();
                return Err(Error::Setting { name, got: value.to_string(), expected });
            }
        }
        Ok(())
    }
}

/// Writes the corrupted row and its labels, and returns how many bases were chosen.
///
/// # Panics
/// If the three slices differ in length.
pub fn mask_row(
    ids: &[u8],
    config: &MaskConfig,
    (seed, step, row): (u64, u64, u64),
    input_ids: &mut [u32],
    labels: &mut [u32],
) -> usize {
    assert!(ids.len() == input_ids.len() && ids.len() == labels.len(), "the rows must have one length");
    // In steps of 2^-32, so that 0 is never and 1 is always.
    let threshold = |probability: f64| (probability * 2f64.powi(32)).round() as u64;
    let (choose, mask) = (threshold(config.choose), threshold(config.mask));
    let random = threshold(config.mask + config.random);
    let mut rng = rng::keyed(seed, step, row, Stream::Mask);
    let mut chosen = 0;
    for ((&id, input), label) in ids.iter().zip(input_ids).zip(labels) {
        (*input, *label) = (u32::from(id), u32::from(PAD));
        if !is_base(id) || u64::from(rng.next_u32()) >= choose {
            continue;
        }
        let (fate, base) = (u64::from(rng.next_u32()), rng.next_u32() >> 30);
        if fate < mask {
            *input = u32::from(MASK);
        } else if fate < random {
            *input = u32::from(BASES[base as usize]);
        }
        *label = u32::from(id);
        chosen += 1;
    }
    chosen
}

/// Where the chosen bases of a window stand in the genome, so that another model can be scored on the very same ones.
/// `labels` are those of [`mask_row`] for the window's forward strand.
pub fn chosen_positions(window: Interval, labels: &[u32]) -> impl Iterator<Item = GenomePosition> {
    let chosen = labels.iter().enumerate().filter(|&(_, &label)| label != u32::from(PAD));
    chosen.map(move |(i, _)| GenomePosition { record: window.record, position0: window.start0 + i })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::{A, C, CLS, G, N, T, UNK};

    fn masked(ids: &[u8], config: &MaskConfig, key: (u64, u64, u64)) -> (Vec<u32>, Vec<u32>, usize) {
        let (mut input, mut labels) = (vec![99; ids.len()], vec![99; ids.len()]);
        let chosen = mask_row(ids, config, key, &mut input, &mut labels);
        (input, labels, chosen)
    }

    #[test]
    fn shares_are_15_percent_and_80_10_10() {
        let ids = vec![C; 1_000_000];
        let (input, labels, chosen) = masked(&ids, &MaskConfig::TRAIN, (1, 2, 3));
        let count = |pairs: &dyn Fn(u32, u32) -> bool| {
            input.iter().zip(&labels).filter(|&(&i, &l)| pairs(i, l)).count() as f64
        };
        let label_c = u32::from(C);
        // Five standard deviations: 5 * sqrt(1e6 * 0.15 * 0.85) = 1785, 5 * sqrt(150e3 * p * (1 - p)) <= 775.
        assert!((chosen as f64 - 150_000.0).abs() < 1785.0, "{chosen}");
        assert_eq!(count(&|_, l| l == label_c), chosen as f64);
        assert!((count(&|i, _| i == u32::from(MASK)) - 0.8 * chosen as f64).abs() < 775.0);
        for other in [A, G, T] {
            let n = count(&|i, l| i == u32::from(other) && l == label_c);
            assert!((n - 0.025 * chosen as f64).abs() < 310.0, "{n}");
        }
        // Kept, or replaced by the same base: 10 % + 2.5 %.
        assert!((count(&|i, l| i == label_c && l == label_c) - 0.125 * chosen as f64).abs() < 650.0);
    }

    #[test]
    fn evaluation_masks_every_chosen_base() {
        let ids: Vec<u8> = (0..10_000).map(|i| BASES[i % 4]).collect();
        let (input, labels, chosen) = masked(&ids, &MaskConfig::EVAL, (0, 0, 0));
        assert!(chosen > 1000);
        for ((&input, &label), &id) in input.iter().zip(&labels).zip(&ids) {
            match label == u32::from(PAD) {
                true => assert_eq!(input, u32::from(id)),
                false => assert_eq!((input, label), (u32::from(MASK), u32::from(id))),
            }
        }
    }

    #[test]
    fn chosen_positions_are_where_the_labels_are() {
        let pad = u32::from(PAD);
        let window = Interval { record: 3, start0: 100, end0: 104 };
        let positions: Vec<_> = chosen_positions(window, &[pad, 7, pad, 9]).collect();
        assert_eq!(positions, [101, 103].map(|position0| GenomePosition { record: 3, position0 }));
    }

    #[test]
    fn equal_keys_give_equal_rows_and_others_do_not() {
        let ids = vec![T; 500];
        let reference = masked(&ids, &MaskConfig::TRAIN, (1, 2, 3));
        assert_eq!(reference, masked(&ids, &MaskConfig::TRAIN, (1, 2, 3)));
        for key in [(0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3)] {
            assert_ne!(reference, masked(&ids, &MaskConfig::TRAIN, key));
        }
    }

    #[test]
    fn settings_must_be_probabilities() {
        assert!(MaskConfig::TRAIN.validate().is_ok() && MaskConfig::EVAL.validate().is_ok());
        for config in [
            MaskConfig { choose: 1.5, ..MaskConfig::TRAIN },
            MaskConfig { mask: f64::NAN, ..MaskConfig::TRAIN },
            MaskConfig { random: 0.3, ..MaskConfig::TRAIN },
        ] {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }

    proptest! {
        #[test]
        fn only_bases_are_chosen(ids in proptest::collection::vec(0u8..12, 0..200), key in any::<(u64, u64, u64)>()) {
            let all = MaskConfig { choose: 1.0, ..MaskConfig::TRAIN };
            let (input, labels, chosen) = masked(&ids, &all, key);
            prop_assert_eq!(chosen, ids.iter().filter(|&&id| is_base(id)).count());
            for ((&input, &label), &id) in input.iter().zip(&labels).zip(&ids) {
                if is_base(id) {
                    prop_assert_eq!(label, u32::from(id));
                } else {
                    prop_assert_eq!((input, label), (u32::from(id), u32::from(PAD)));
                }
            }
            let (input, _, chosen) = masked(&[CLS, N, UNK], &all, key);
            prop_assert_eq!((input, chosen), (vec![u32::from(CLS), u32::from(N), u32::from(UNK)], 0));
        }
    }
}
