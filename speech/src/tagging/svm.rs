//! What a model of spoken words is compared with: cepstra and a support vector machine.
//!
//! A clip is cut into equal parts of time; the mean cepstra of each, and the deviations over all, are its features. Pairs
//! of classes are told apart by machines with the kernel `exp(-γ·‖a - b‖²)`, trained by sequential minimal optimisation on
//! the pair that violates the conditions most (Keerthi et al. 2001); the class with most votes wins.

use super::features::{MelImage, cepstra};
use rayon::prelude::*;

/// Settings of the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SvmConfig {
    /// Coefficients of each part.
    pub coefficients: usize,
    /// Parts of a clip.
    pub parts: usize,
    /// What an error costs.
    pub cost: f64,
}

impl Default for SvmConfig {
    fn default() -> Self {
        Self { coefficients: 13, parts: 5, cost: 10.0 }
    }
}

/// Features of a clip: `parts · coefficients` means, `coefficients` deviations.
pub fn features(image: &MelImage, cfg: &SvmConfig) -> Vec<f64> {
    let c = cfg.coefficients.min(image.n_mels);
    let frames: Vec<f32> = cepstra(image, c);
    let n = frames.len() / c;
    let mean = |from: usize, to: usize, k: usize| {
        let (from, to) = (from.min(n - 1), to.clamp(from.min(n - 1) + 1, n));
        (from..to).map(|t| f64::from(frames[t * c + k])).sum::<f64>() / (to - from) as f64
    };
    let mut out: Vec<f64> = (0..cfg.parts)
        .flat_map(|p| {
            let (from, to) = (p * n / cfg.parts, (p + 1) * n / cfg.parts);
            (0..c).map(move |k| (from, to, k))
        })
        .map(|(from, to, k)| mean(from, to, k))
        .collect();
    out.extend((0..c).map(|k| {
        let centre = mean(0, n, k);
        ((0..n).map(|t| (f64::from(frames[t * c + k]) - centre).powi(2)).sum::<f64>() / n as f64).sqrt()
    }));
    out
}

/// A trained classifier.
#[derive(Clone, Debug)]
pub struct Svm {
    centre: Vec<f64>,
    scale: Vec<f64>,
    gamma: f64,
    examples: Vec<Vec<f64>>,
    classes: usize,
    machines: Vec<Machine>,
}

/// What tells class `pair.0` (positive) from `pair.1`.
#[derive(Clone, Debug)]
struct Machine {
    pair: (usize, usize),
    /// Examples and their weights.
    support: Vec<(usize, f64)>,
    offset: f64,
}

impl Svm {
    /// Trains on `examples` of `labels` below `classes`.
    ///
    /// # Panics
    /// Without examples, or with labels that do not go with them.
    pub fn train(examples: &[Vec<f64>], labels: &[usize], classes: usize, cfg: &SvmConfig) -> Self {
        assert!(!examples.is_empty() && examples.len() == labels.len(), "every example has a label");
        let (n, d) = (examples.len() as f64, examples[0].len());
        let centre: Vec<f64> = (0..d).map(|k| examples.iter().map(|x| x[k]).sum::<f64>() / n).collect();
        let deviation = |k: usize| {
            let variance = examples.iter().map(|x| (x[k] - centre[k]).powi(2)).sum::<f64>() / n;
            variance.sqrt().max(1e-9)
        };
        let scale: Vec<f64> = (0..d).map(deviation).collect();
        let examples: Vec<Vec<f64>> = examples.iter().map(|x| standardised(x, &centre, &scale)).collect();
        let gamma = 1.0 / d as f64;
        let pairs: Vec<(usize, usize)> =
            (0..classes).flat_map(|a| (a + 1..classes).map(move |b| (a, b))).collect();
        let machines = pairs
            .par_iter()
            .filter_map(|&(a, b)| {
                let of_pair: Vec<usize> =
                    (0..labels.len()).filter(|&i| labels[i] == a || labels[i] == b).collect();
                let signs: Vec<f64> =
                    of_pair.iter().map(|&i| if labels[i] == a { 1.0 } else { -1.0 }).collect();
                let both = signs.contains(&1.0) && signs.contains(&-1.0);
                both.then(|| {
                    let kernel =
                        |i: usize, j: usize| rbf(&examples[of_pair[i]], &examples[of_pair[j]], gamma);
                    let (alphas, offset) = minimal_optimisation(&signs, kernel, cfg.cost);
                    let support = (0..signs.len()).filter(|&i| alphas[i] > 0.0);
                    let support = support.map(|i| (of_pair[i], alphas[i] * signs[i])).collect();
                    Machine { pair: (a, b), support, offset }
                })
            })
            .collect();
        Self { centre, scale, gamma, examples, classes, machines }
    }

    /// The class of an example.
    pub fn predict(&self, example: &[f64]) -> usize {
        let x = standardised(example, &self.centre, &self.scale);
        let mut votes = vec![0; self.classes];
        for machine in &self.machines {
            let sum: f64 = machine
                .support
                .iter()
                .map(|&(i, weight)| weight * rbf(&self.examples[i], &x, self.gamma))
                .sum();
            votes[if sum + machine.offset > 0.0 { machine.pair.0 } else { machine.pair.1 }] += 1;
        }
        // Of equal votes the first class wins.
        (0..self.classes).rev().max_by_key(|&class| votes[class]).unwrap_or(0)
    }
}

fn standardised(x: &[f64], centre: &[f64], scale: &[f64]) -> Vec<f64> {
    x.iter().zip(centre).zip(scale).map(|((x, c), s)| (x - c) / s).collect()
}

fn rbf(a: &[f64], b: &[f64], gamma: f64) -> f64 {
    (-gamma * a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>()).exp()
}

/// Maximises `Σ α - ½ Σ α_i α_j y_i y_j k(i, j)` under `0 ≤ α ≤ cost` and `Σ α y = 0`; the weights and the offset.
fn minimal_optimisation(y: &[f64], kernel: impl Fn(usize, usize) -> f64, cost: f64) -> (Vec<f64>, f64) {
    const TOLERANCE: f64 = 1e-3;
    let n = y.len();
    let k: Vec<f64> = (0..n * n).map(|at| kernel(at / n, at % n)).collect();
    let mut alpha = vec![0.0; n];
    // y_i - Σ_j α_j y_j k(i, j): the offset that example i would like.
    let mut wish = y.to_vec();
    for _ in 0..100_000 {
        let up = |i: usize| if y[i] > 0.0 { alpha[i] < cost } else { alpha[i] > 0.0 };
        let down = |i: usize| if y[i] > 0.0 { alpha[i] > 0.0 } else { alpha[i] < cost };
        let high = (0..n).filter(|&i| up(i)).max_by(|&a, &b| wish[a].total_cmp(&wish[b]));
        let low = (0..n).filter(|&i| down(i)).min_by(|&a, &b| wish[a].total_cmp(&wish[b]));
        let (Some(i), Some(j)) = (high, low) else { break };
        if wish[i] - wish[j] < TOLERANCE {
            return (alpha, 0.5 * (wish[i] + wish[j]));
        }
        let curvature = (k[i * n + i] + k[j * n + j] - 2.0 * k[i * n + j]).max(1e-12);
        let room = |at: usize, sign: f64| if sign * y[at] > 0.0 { cost - alpha[at] } else { alpha[at] };
        let step = ((wish[i] - wish[j]) / curvature).min(room(i, 1.0)).min(room(j, -1.0));
        alpha[i] = (alpha[i] + step * y[i]).clamp(0.0, cost);
        alpha[j] = (alpha[j] - step * y[j]).clamp(0.0, cost);
        for (t, wish) in wish.iter_mut().enumerate() {
            *wish -= step * (k[t * n + i] - k[t * n + j]);
        }
    }
    let free: Vec<f64> = (0..n).filter(|&i| alpha[i] > 0.0 && alpha[i] < cost).map(|i| wish[i]).collect();
    let offset = free.iter().sum::<f64>() / free.len().max(1) as f64;
    (alpha, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mamba_core::Rng;

    #[test]
    fn two_points_are_parted_in_their_middle() {
        // k = 1 on the diagonal, e^{-1/d·4} beside it: α = 1 / (1 - k), offset 0.
        let svm = Svm::train(&[vec![1.0], vec![-1.0]], &[0, 1], 2, &SvmConfig::default());
        let k = (-4f64).exp();
        assert!((svm.machines[0].support[0].1 - 1.0 / (1.0 - k)).abs() < 1e-3);
        assert!(svm.machines[0].offset.abs() < 1e-3);
        assert_eq!((svm.predict(&[0.1]), svm.predict(&[-0.1])), (0, 1));
    }

    #[test]
    fn rings_that_no_line_parts_are_learnt() {
        let mut rng = Rng::new(0);
        let mut point = |class: usize| {
            let (angle, radius) =
                (rng.uniform_in(0.0, std::f64::consts::TAU), 1.0 + class as f64 + rng.uniform_in(-0.2, 0.2));
            vec![radius * angle.cos(), radius * angle.sin()]
        };
        let labels: Vec<usize> = (0..240).map(|i| i % 3).collect();
        let points: Vec<Vec<f64>> = labels.iter().map(|&l| point(l)).collect();
        let svm = Svm::train(&points[..180], &labels[..180], 3, &SvmConfig::default());
        let right = (180..240).filter(|&i| svm.predict(&points[i]) == labels[i]).count();
        assert!(right >= 57, "{right} of 60");
    }

    #[test]
    fn features_have_means_of_parts_and_deviations() {
        // Two bands, two frames; the first coefficient is (a + b) / √2.
        let image = MelImage { values: vec![1.0, 1.0, 3.0, 3.0], n_mels: 2 };
        let cfg = SvmConfig { coefficients: 1, parts: 2, ..SvmConfig::default() };
        let got = features(&image, &cfg);
        let root = 2f64.sqrt();
        for (got, want) in got.iter().zip([root, 3.0 * root, root]) {
            assert!((got - want).abs() < 1e-6);
        }
        assert_eq!(
            features(&MelImage { values: vec![1.0, 2.0], n_mels: 2 }, &cfg).len(),
            3,
            "one frame for two parts"
        );
    }
}
