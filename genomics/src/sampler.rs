//! Training windows, drawn as a pure function of `(seed, step, row)`.

use rand_chacha::rand_core::Rng;

use crate::error::{Error, Result};
use crate::genome::{Genome, Interval};
use crate::rng::{self, Stream};
use crate::tokenizer::{N, reverse_complement_in_place};
use mamba_datasets::Windows;

/// How often a window with too many N is drawn again.
const MAX_DRAWS: usize = 32;

/// Which windows are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Bases in a window.
    pub length: usize,
    /// A window with a larger share of N is drawn again, up to 32 draws in all; then the one with the fewest is taken.
    pub max_n_share: f64,
    /// Reverse complement a window with probability 1/2, as Caduceus-Ph is trained.
    pub reverse_complement: bool,
}

/// Draws windows that lie wholly inside given intervals, every possible window with the same probability.
#[derive(Clone, Debug)]
pub struct WindowSampler {
    config: SamplerConfig,
    windows: Windows,
}

/// Where a drawn window stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledWindow {
    /// In the genome, forward strand.
    pub interval: Interval,
    /// Whether its ids were reverse complemented.
    pub reverse_complemented: bool,
}

impl WindowSampler {
    /// Draws from `intervals`, which must not overlap if windows are to be equally likely.
    pub fn new(genome: &Genome, intervals: &[Interval], config: SamplerConfig) -> Result<Self> {
        let setting =
            |name, got: String, expected: &str| Error::Setting { name, got, expected: expected.into() };
        if config.length == 0 {
            return Err(setting("window length", "0".into(), "at least 1"));
        }
        if !(0.0..=1.0).contains(&config.max_n_share) {
            return Err(setting("share of N", config.max_n_share.to_string(), "0 to 1"));
        }
        for interval in intervals {
            let inside = genome.records().get(interval.record).is_some_and(|r| interval.end0 <= r.ids.len());
            if !inside {
                return Err(setting("training interval", format!("{interval:?}"), "a part of the genome"));
            }
        }
        let longest = intervals.iter().map(Interval::len).max().unwrap_or(0);
        if longest < config.length {
            return Err(Error::NoTrainingWindow { length: config.length, longest });
        }
        let intervals: Vec<_> = intervals.iter().map(mamba_datasets::Interval::from).collect();
        Ok(Self { config, windows: Windows::new(&intervals, config.length as u64)? })
    }

    /// Bases in a window.
    pub fn length(&self) -> usize {
        self.config.length
    }

    /// How many different windows can be drawn, strands not counted.
    pub fn windows(&self) -> u64 {
        self.windows.count()
    }

    /// Writes the ids of the window of `(seed, step, row)` to `ids`.
    ///
    /// # Panics
    /// If `ids` does not have the window's length, or `genome` is not the one that the sampler was made for.
    pub fn sample(&self, genome: &Genome, seed: u64, step: u64, row: u64, ids: &mut [u8]) -> SampledWindow {
        assert_eq!(ids.len(), self.config.length, "the buffer must hold one window");
        let mut rng = rng::keyed(seed, step, row, Stream::Sampler);
        let n_allowed = (self.config.max_n_share * self.config.length as f64) as usize;
        let mut best = self.at(rng::below(&mut rng, self.windows()));
        let mut best_n = count_n(genome.ids(best));
        for _ in 1..MAX_DRAWS {
            if best_n <= n_allowed {
                break;
            }
            let window = self.at(rng::below(&mut rng, self.windows()));
            let n = count_n(genome.ids(window));
            if n < best_n {
                (best, best_n) = (window, n);
            }
        }
        ids.copy_from_slice(genome.ids(best));
        let reverse_complemented = self.config.reverse_complement && rng.next_u32() & 1 == 1;
        if reverse_complemented {
            reverse_complement_in_place(ids);
        }
        SampledWindow { interval: best, reverse_complemented }
    }

    /// Window number `i` of all.
    fn at(&self, i: u64) -> Interval {
        Interval::from(&self.windows.get(i))
    }
}

fn count_n(ids: &[u8]) -> usize {
    ids.iter().filter(|&&id| id == N).count()
}

/// Cuts intervals into consecutive windows of `length` bases, for evaluation: no base twice. What remains of an
/// interval is a shorter window, dropped if it has fewer than `min_length` bases.
pub fn tile(intervals: &[Interval], length: usize, min_length: usize) -> Vec<Interval> {
    let mut windows = Vec::new();
    for interval in intervals {
        for start0 in (interval.start0..interval.end0).step_by(length.max(1)) {
            let end0 = interval.end0.min(start0.saturating_add(length.max(1)));
            windows.push(Interval { start0, end0, ..*interval });
        }
    }
    windows.retain(|window| window.len() >= min_length);
    windows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::genome::GenomeRecord;
    use crate::tokenizer::{SequenceCounts, encode, reverse_complement};

    fn genome(texts: &[&str]) -> Genome {
        let record = |text: &&str| GenomeRecord {
            name: (*text).into(),
            ids: encode(text.as_bytes(), &mut SequenceCounts::default()).unwrap(),
        };
        Genome::from_records(texts.iter().map(record).collect())
    }

    fn config(length: usize) -> SamplerConfig {
        SamplerConfig { length, max_n_share: 1.0, reverse_complement: false }
    }

    #[test]
    fn every_window_is_equally_likely_and_none_lies_outside() {
        let genome = genome(&["ACGTACGTAC", "GGG", "TTTTTT"]);
        // 10 - 4 + 1 = 7 windows, none, 3: every window is drawn about 3000 times.
        let sampler = WindowSampler::new(&genome, &genome.intervals(), config(4)).unwrap();
        assert_eq!(sampler.windows(), 10);
        let mut drawn = std::collections::BTreeMap::new();
        let mut ids = [0; 4];
        for row in 0..30_000 {
            let window = sampler.sample(&genome, 1, 2, row, &mut ids);
            assert_eq!(genome.ids(window.interval), ids);
            *drawn.entry(window.interval).or_insert(0u32) += 1;
        }
        assert_eq!(drawn.len(), 10);
        assert!(drawn.values().all(|&n| n.abs_diff(3000) < 250), "{drawn:?}");
    }

    #[test]
    fn half_of_the_windows_are_reverse_complemented() {
        let genome = genome(&["AACCGT"]);
        let config = SamplerConfig { reverse_complement: true, ..config(6) };
        let sampler = WindowSampler::new(&genome, &genome.intervals(), config).unwrap();
        let (forward, mut ids) = (genome.records()[0].ids.clone(), [0; 6]);
        let mut reversed = 0u32;
        for step in 0..4000 {
            let window = sampler.sample(&genome, 5, step, 0, &mut ids);
            let expected =
                if window.reverse_complemented { reverse_complement(&forward) } else { forward.clone() };
            assert_eq!(ids.as_slice(), expected);
            reversed += u32::from(window.reverse_complemented);
        }
        assert!(reversed.abs_diff(2000) < 200, "{reversed}");
    }

    #[test]
    fn windows_of_n_are_avoided_where_possible_and_never_hang() {
        let genome = genome(&[&format!("{}ACGTACGT", "N".repeat(40)), &"N".repeat(20)]);
        let strict = SamplerConfig { max_n_share: 0.0, ..config(4) };
        let sampler = WindowSampler::new(&genome, &genome.intervals()[..1], strict).unwrap();
        let mut ids = [0; 4];
        let clean = (0..500).filter(|&row| {
            sampler.sample(&genome, 0, 0, row, &mut ids);
            !ids.contains(&N)
        });
        // 5 of 45 windows are free of N: 32 draws miss them all with probability 0.023.
        assert!(clean.count() > 460);
        let hopeless = WindowSampler::new(&genome, &genome.intervals()[1..], strict).unwrap();
        hopeless.sample(&genome, 0, 0, 0, &mut ids);
        assert_eq!(ids, [N; 4]);
    }

    #[test]
    fn intervals_that_are_too_short_or_outside_are_refused() {
        let genome = genome(&["ACGT"]);
        let error = WindowSampler::new(&genome, &genome.intervals(), config(5)).unwrap_err();
        assert!(matches!(error, Error::NoTrainingWindow { length: 5, longest: 4 }));
        let outside = [Interval { record: 0, start0: 0, end0: 5 }];
        assert!(matches!(WindowSampler::new(&genome, &outside, config(2)), Err(Error::Setting { .. })));
    }

    proptest! {
        #[test]
        fn training_windows_never_touch_held_out_bases(seed in any::<u64>(), length in 1usize..30, block in 30usize..80) {
            let text = "ACGTTGCA".repeat(100);
            let genome = genome(&[&text]);
            let held_out = mamba_datasets::Fractions { valid: 0.2, test: 0.1 };
            let split = crate::genome::Split::blocks(&genome, Some(block), held_out, seed).unwrap();
            let sampler = WindowSampler::new(&genome, &split.train, config(length)).unwrap();
            let mut ids = vec![0; length];
            for row in 0..50 {
                let window = sampler.sample(&genome, seed, 0, row, &mut ids).interval;
                for held_out in split.valid.iter().chain(&split.test) {
                    prop_assert!(window.end0 <= held_out.start0 || window.start0 >= held_out.end0);
                }
                prop_assert_eq!(window, sampler.sample(&genome, seed, 0, row, &mut ids).interval);
            }
        }
    }

    #[test]
    fn tiles_are_consecutive() {
        let intervals =
            [Interval { record: 0, start0: 5, end0: 16 }, Interval { record: 1, start0: 0, end0: 2 }];
        let spans = |min| tile(&intervals, 4, min).iter().map(|w| (w.start0, w.end0)).collect::<Vec<_>>();
        assert_eq!(spans(1), [(5, 9), (9, 13), (13, 16), (0, 2)]);
        assert_eq!(spans(3), [(5, 9), (9, 13), (13, 16)]);
    }
}
