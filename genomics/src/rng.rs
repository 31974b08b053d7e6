//! Random numbers keyed by what they are for, so that nothing has to be saved to resume.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Keeps the streams of different uses of one `(seed, step, row)` apart.
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Mask = 1,
    Sampler = 2,
    Spans = 3,
    Homologs = 4,
}

/// ChaCha12 whose 256-bit key is `seed, step, row, stream`, each as 64 bits, little-endian.
pub(crate) fn keyed(seed: u64, step: u64, row: u64, stream: Stream) -> ChaCha12Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, step, row, stream as u64]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha12Rng::from_seed(key)
}

/// Uniform integer in `0..n` without bias (Lemire's multiply and reject); `n` must not be 0.
pub(crate) fn below(rng: &mut ChaCha12Rng, n: u64) -> u64 {
    let reject_under = n.wrapping_neg() % n;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        if product as u64 >= reject_under {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_changes_the_stream() {
        let first = |seed, step, row, stream| keyed(seed, step, row, stream).next_u64();
        let reference = first(1, 2, 3, Stream::Mask);
        assert_eq!(reference, first(1, 2, 3, Stream::Mask));
        assert_ne!(reference, first(9, 2, 3, Stream::Mask));
        assert_ne!(reference, first(1, 9, 3, Stream::Mask));
        assert_ne!(reference, first(1, 2, 9, Stream::Mask));
        assert_ne!(reference, first(1, 2, 3, Stream::Sampler));
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut rng = keyed(7, 0, 0, Stream::Mask);
        let mut histogram = [0u32; 3];
        for _ in 0..30_000 {
            histogram[below(&mut rng, 3) as usize] += 1;
        }
        assert!(histogram.iter().all(|&count| count.abs_diff(10_000) < 400), "{histogram:?}");
        assert_eq!(below(&mut rng, 1), 0);
    }
}
