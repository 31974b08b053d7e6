//! The one source of randomness: ChaCha8 streams that are named, not shared.
//!
//! candle's CPU generator cannot be seeded, so initialisation, dropout, masking and shuffling all draw from here.
//! A stream is a function of `(seed, name, index)` only. Whoever needs random numbers at training step `i` opens
//! `Rng::stream(seed, "dropout", i)`; a resumed run then needs no saved generator state, and adding a consumer does
//! not shift the numbers of another.
//!
//! ```
//! use mamba_core::Rng;
//! let mut a = Rng::stream(7, "shuffle", 3);
//! let mut b = Rng::stream(7, "shuffle", 3);
//! assert_eq!(a.uniform(), b.uniform());
//! assert_ne!(a.uniform(), Rng::stream(7, "shuffle", 4).uniform());
//! ```

use candle_core::{DType, Device, Result, Shape, Tensor, WithDType, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

/// Values per parallel block of a random tensor; part of what a seed means, so never change it.
const BLOCK: usize = 1 << 14;

/// A seeded generator. The same seed gives the same numbers on every platform and with any number of threads.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// A generator from a seed alone.
    pub fn new(seed: u64) -> Self {
        Self::stream(seed, "", 0)
    }

    /// The generator for one purpose (`name`) and one occasion (`index`, for example the training step).
    pub fn stream(seed: u64, name: &str, index: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        key[16..].copy_from_slice(&fnv1a_128(name.as_bytes()).to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.random()
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// Uniform in `[lo, hi)`.
    pub fn uniform_in(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.uniform()
    }

    /// Normal with mean 0 and standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// A uniform integer in `0..n`.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // drawn as u64, so that 32-bit machines see the same numbers
        self.0.random_range(0..n as u64) as usize
    }

    /// Permutes a slice in place, every order equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// The numbers `0..n` in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// A tensor of uniform values in `[lo, hi)`, rounded to `dtype`.
    pub fn uniform_tensor(
        &mut self,
        shape: impl Into<Shape>,
        lo: f64,
        hi: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.tensor(shape.into(), dtype, device, |rng| rng.uniform_in(lo, hi))
    }

    /// A tensor of normal values.
    pub fn normal_tensor(
        &mut self,
        shape: impl Into<Shape>,
        mean: f64,
        std: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.tensor(shape.into(), dtype, device, |rng| mean + std * rng.normal())
    }

    /// Draws block by block, each block from its own stream, so that threads do not change the result.
    fn tensor(
        &mut self,
        shape: Shape,
        dtype: DType,
        device: &Device,
        draw: impl Fn(&mut Rng) -> f64 + Sync,
    ) -> Result<Tensor> {
        let base = self.next_u64();
        let tensor = match dtype {
            DType::F64 => Tensor::from_vec(fill::<f64>(base, shape.elem_count(), draw), shape, device)?,
            _ => Tensor::from_vec(fill::<f32>(base, shape.elem_count(), draw), shape, device)?,
        };
        tensor.to_dtype(dtype)
    }
}

fn fill<T: WithDType>(base: u64, n: usize, draw: impl Fn(&mut Rng) -> f64 + Sync) -> Vec<T> {
    let mut values = vec![T::zero(); n];
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(i, block)| {
        let mut rng = Rng::stream(base, "block", i as u64);
        block.iter_mut().for_each(|value| *value = T::from_f64(draw(&mut rng)));
    });
    values
}

/// Inverted dropout: zeroes each value with probability `p` and scales the rest by `1 / (1 - p)`.
///
/// Differentiable in `x`. At evaluation do not call it.
pub fn dropout(x: &Tensor, p: f64, rng: &mut Rng) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("dropout: probability {p} is not in [0, 1)")
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    let keep = 1.0 / (1.0 - p);
    let mask = rng
        .tensor(x.shape().clone(), x.dtype(), x.device(), |rng| if rng.uniform() < p { 0.0 } else { keep })?;
    x.mul(&mask)
}

/// FNV-1a with 128 bits: short, and good enough to keep names apart.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62272e07bb014262b821756295c58d;
    const PRIME: u128 = 0x0000000001000000000000000000013b;
    bytes.iter().fold(OFFSET, |hash, &b| (hash ^ u128::from(b)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_published_fnv1a() {
        assert_eq!(fnv1a_128(b""), 0x6c62272e07bb014262b821756295c58d);
        assert_eq!(fnv1a_128(b"a"), 0xd228cb696f1a8caf78912b704e4a8964);
    }

    #[test]
    fn streams_differ_in_seed_name_and_index() {
        let first = |seed, name, index| Rng::stream(seed, name, index).next_u64();
        let base = first(1, "init", 0);
        assert_eq!(base, first(1, "init", 0));
        assert_ne!(base, first(2, "init", 0));
        assert_ne!(base, first(1, "inis", 0));
        assert_ne!(base, first(1, "init", 1));
    }

    #[test]
    fn numbers_stay_the_same_across_versions() {
        // A change of these two lines changes every seeded result: say so in the changelog.
        let mut rng = Rng::new(0);
        assert_eq!([rng.next_u64(), rng.next_u64()], PINNED);
        assert_eq!(Rng::new(0).permutation(8), PINNED_ORDER);
    }
    const PINNED: [u64; 2] = [3641998802033467848, 1543804312379040075];
    const PINNED_ORDER: [usize; 8] = [7, 4, 3, 5, 2, 6, 0, 1];

    #[test]
    fn uniform_and_normal_have_their_moments() -> Result<()> {
        let n = 200_000;
        let u = Rng::new(3).uniform_tensor(n, -1.0, 3.0, DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
        assert!(u.iter().all(|x| (-1.0..3.0).contains(x)));
        let (mean, std) = moments(&u);
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        assert!((std - 4.0 / 12f64.sqrt()).abs() < 0.01, "{std}");
        let z = Rng::new(4).normal_tensor(n, 0.5, 2.0, DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
        let (mean, std) = moments(&z);
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((std - 2.0).abs() < 0.02, "{std}");
        let beyond = z.iter().filter(|&&x| (x - 0.5).abs() > 2.0 * 1.96).count() as f64 / n as f64;
        assert!((beyond - 0.05).abs() < 0.003, "{beyond}");
        Ok(())
    }

    #[test]
    fn thread_count_does_not_change_a_tensor() -> Result<()> {
        let draw = || Rng::new(5).normal_tensor(100_000, 0.0, 1.0, DType::F32, &Device::Cpu);
        let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let one = pool(1).install(draw)?.to_vec1::<f32>()?;
        assert_eq!(one, pool(3).install(draw)?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn a_shuffle_is_a_fair_permutation() {
        let mut counts = [[0usize; 4]; 4];
        let mut rng = Rng::new(6);
        for _ in 0..12_000 {
            rng.permutation(4).iter().enumerate().for_each(|(i, &x)| counts[i][x] += 1);
        }
        assert!(counts.iter().flatten().all(|&c| (2800..3200).contains(&c)), "{counts:?}");
    }

    #[test]
    fn dropout_keeps_the_mean_and_masks_the_gradient() -> Result<()> {
        let x = candle_core::Var::ones(40_000, DType::F32, &Device::Cpu)?;
        let y = dropout(&x, 0.25, &mut Rng::new(8))?;
        let values = y.to_vec1::<f32>()?;
        assert!(values.iter().all(|&v| v == 0.0 || v == (1.0 / 0.75) as f32));
        let zeros = values.iter().filter(|&&v| v == 0.0).count() as f64 / 40_000.0;
        assert!((zeros - 0.25).abs() < 0.01, "{zeros}");
        let grads = y.sum_all()?.backward()?;
        assert_eq!(grads.get(&x).map(|g| g.to_vec1::<f32>()).transpose()?, Some(values));
        assert!(dropout(&x, 1.0, &mut Rng::new(8)).is_err());
        Ok(())
    }

    fn moments(x: &[f32]) -> (f64, f64) {
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (mean, (x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt())
    }
}
