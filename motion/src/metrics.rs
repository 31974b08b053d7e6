//! What generated motions are measured by.
//!
//! In the evaluator's space (Guo et al. 2022): Fréchet distance, diversity, multimodality, R-precision, matching score.
//! On the joints, without any network: foot skating, jerk, error of the bones' lengths, penetration of the floor.

use crate::features::FPS;
use crate::quaternion::{add, norm, scale, sub};
use crate::skeleton::{Bones, LEFT_FOOT, N_JOINTS, Pose, RIGHT_FOOT};
use mamba_core::Rng;

/// A point of the evaluator's space.
pub type Point = Vec<f64>;

/// The Euclidean distance.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// Mean and covariance (over n - 1) of points, by rows.
fn moments(points: &[Point]) -> (Point, Vec<Point>) {
    let (n, d) = (points.len() as f64, points.first().map_or(0, Vec::len));
    let mean: Point = (0..d).map(|i| points.iter().map(|p| p[i]).sum::<f64>() / n).collect();
    let entry = |i: usize, j: usize| {
        points.iter().map(|p| (p[i] - mean[i]) * (p[j] - mean[j])).sum::<f64>() / (n - 1.0).max(1.0)
    };
    let covariance = (0..d).map(|i| (0..d).map(|j| entry(i, j)).collect()).collect();
    (mean, covariance)
}

/// The Fréchet distance of the Gaussians through two sets of points: |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½).
pub fn frechet_distance(a: &[Point], b: &[Point]) -> f64 {
    let ((mean_a, cov_a), (mean_b, cov_b)) = (moments(a), moments(b));
    gaussian_frechet_distance((&mean_a, &cov_a), (&mean_b, &cov_b))
}

/// The same from means and covariances.
pub fn gaussian_frechet_distance(
    (mean_a, cov_a): (&[f64], &[Point]),
    (mean_b, cov_b): (&[f64], &[Point]),
) -> f64 {
    let trace = |m: &[Point]| (0..m.len()).map(|i| m[i][i]).sum::<f64>();
    // tr (Σ₁ Σ₂)^½ = tr (Σ₁^½ Σ₂ Σ₁^½)^½, and the latter is symmetric.
    let root = square_root(cov_a);
    let inner = product(&product(&root, cov_b), &root);
    let cross: f64 = eigen(&inner).0.iter().map(|x| x.max(0.0).sqrt()).sum();
    // Rounding can bring the distance of equal Gaussians below 0.
    (distance(mean_a, mean_b).powi(2) + trace(cov_a) + trace(cov_b) - 2.0 * cross).max(0.0)
}

fn product(a: &[Point], b: &[Point]) -> Vec<Point> {
    let d = b.len();
    a.iter().map(|row| (0..d).map(|j| (0..d).map(|k| row[k] * b[k][j]).sum()).collect()).collect()
}

/// The square root of a symmetric matrix without negative eigenvalues.
fn square_root(m: &[Point]) -> Vec<Point> {
    let (values, vectors) = eigen(m);
    let d = m.len();
    let entry = |i: usize, j: usize| {
        (0..d).map(|k| vectors[i][k] * values[k].max(0.0).sqrt() * vectors[j][k]).sum::<f64>()
    };
    (0..d).map(|i| (0..d).map(|j| entry(i, j)).collect()).collect()
}

/// Eigenvalues, and eigenvectors by columns, of a symmetric matrix, by Jacobi's rotations.
fn eigen(m: &[Point]) -> (Vec<f64>, Vec<Point>) {
    let d = m.len();
    let mut a = m.to_vec();
    let mut v: Vec<Point> = (0..d).map(|i| (0..d).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let size: f64 = a.iter().flatten().map(|x| x * x).sum();
    for _ in 0..100 {
        let rest: f64 =
            (0..d).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        if rest <= 1e-28 * size {
            break;
        }
        for p in 0..d {
            for q in p + 1..d {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in a.iter_mut() {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                let (rows_p, rows_q) = (a[p].clone(), a[q].clone());
                for (k, (x, y)) in rows_p.into_iter().zip(rows_q).enumerate() {
                    (a[p][k], a[q][k]) = (c * x - s * y, s * x + c * y);
                }
                for row in v.iter_mut() {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
            }
        }
    }
    ((0..d).map(|i| a[i][i]).collect(), v)
}

/// The mean distance of random disjoint pairs of points, at most 300 pairs.
pub fn diversity(points: &[Point], rng: &mut Rng) -> Option<f64> {
    let order = rng.permutation(points.len());
    let pairs: Vec<f64> =
        order.chunks_exact(2).take(300).map(|pair| distance(&points[pair[0]], &points[pair[1]])).collect();
    mean(&pairs)
}

/// The mean distance of points that share their `kind`, over all pairs of a kind, averaged over the kinds that have pairs.
pub fn multimodality(points: &[Point], kinds: &[usize]) -> Option<f64> {
    let mut of_kind: std::collections::BTreeMap<usize, Vec<&Point>> = Default::default();
    for (point, &kind) in points.iter().zip(kinds) {
        of_kind.entry(kind).or_default().push(point);
    }
    let mean_distance = |points: &Vec<&Point>| {
        let pairs = (0..points.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        mean(&pairs.map(|(i, j)| distance(points[i], points[j])).collect::<Vec<_>>())
    };
    mean(&of_kind.values().filter_map(mean_distance).collect::<Vec<_>>())
}

/// How well motions find their labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retrieval {
    /// Share of motions whose own labels are the nearest, among the two nearest, among the three nearest.
    pub precision: [f64; 3],
    /// Mean distance to the own labels.
    pub matching: f64,
}

/// Largest pool of labels that a motion is to find its own in.
pub const POOL: usize = 32;

/// R-precision and matching score: each motion's own labels among those of at most 31 others, drawn without repetition
/// from all `labels`; `kinds` says which labels are a motion's own. A tie counts half of those ahead.
pub fn retrieval(motions: &[Point], labels: &[Point], kinds: &[usize], rng: &mut Rng) -> Retrieval {
    let (mut hits, mut matching) = ([0.0; 3], 0.0);
    for (motion, &kind) in motions.iter().zip(kinds) {
        let own = distance(motion, &labels[kind]);
        let mut others: Vec<usize> = (0..labels.len()).filter(|&other| other != kind).collect();
        rng.shuffle(&mut others);
        let far = others.iter().take(POOL - 1).map(|&other| distance(motion, &labels[other]));
        let ahead: f64 = far
            .map(|d| {
                if d < own {
                    1.0
                } else if d == own {
                    0.5
                } else {
                    0.0
                }
            })
            .sum();
        for (k, hit) in hits.iter_mut().enumerate() {
            *hit += f64::from(u8::from(ahead <= k as f64));
        }
        matching += own;
    }
    let n = motions.len().max(1) as f64;
    Retrieval { precision: hits.map(|hit| hit / n), matching: matching / n }
}

/// Height below which a foot that moves skates, in metres.
pub const SKATING_HEIGHT: f64 = 0.05;
/// Way per frame, in metres, from which on a low foot skates.
pub const SKATING_WAY: f64 = 0.025;

/// The share of frames in which the toes of a foot stay below [`SKATING_HEIGHT`] and yet move by more than
/// [`SKATING_WAY`] over the floor (Karunratanakul et al. 2023, arXiv 2305.12577).
pub fn foot_skating(poses: &[Pose]) -> f64 {
    let toes = [LEFT_FOOT[1], RIGHT_FOOT[1]];
    let skates = |pair: &[Pose], toe: usize| {
        let (a, b) = (pair[0][toe], pair[1][toe]);
        a[1].max(b[1]) < SKATING_HEIGHT && (b[0] - a[0]).hypot(b[2] - a[2]) > SKATING_WAY
    };
    let count = poses.windows(2).filter(|pair| toes.iter().any(|&toe| skates(pair, toe))).count();
    count as f64 / poses.len().saturating_sub(1).max(1) as f64
}

/// The mean length of the third derivative of the joints' places, in m/s³.
pub fn jerk(poses: &[Pose]) -> f64 {
    let third = |four: &[Pose], j: usize| {
        let odd = sub(four[3][j], four[0][j]);
        norm(add(odd, scale(sub(four[1][j], four[2][j]), 3.0))) * FPS.powi(3)
    };
    let values: Vec<f64> =
        poses.windows(4).flat_map(|four| (0..N_JOINTS).map(move |j| third(four, j))).collect();
    mean(&values).unwrap_or(0.0)
}

/// The mean difference of the bones' lengths from the reference, in metres.
pub fn bone_error(poses: &[Pose]) -> f64 {
    let error = |pose: &Pose| {
        let bones = Bones::of(pose);
        (1..N_JOINTS).map(|j| (bones.length(j) - Bones::REFERENCE.length(j)).abs()).sum::<f64>()
            / (N_JOINTS - 1) as f64
    };
    mean(&poses.iter().map(error).collect::<Vec<_>>()).unwrap_or(0.0)
}

/// The mean depth of the lowest joint below the floor, in metres.
pub fn floor_penetration(poses: &[Pose]) -> f64 {
    let depth = |pose: &Pose| pose.iter().map(|joint| -joint[1]).fold(0.0, f64::max);
    mean(&poses.iter().map(depth).collect::<Vec<_>>()).unwrap_or(0.0)
}

/// The mean; none of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Mean and half of the 95 % confidence interval (normal) of repetitions.
pub fn mean_and_interval(values: &[f64]) -> Option<(f64, f64)> {
    let (mean, n) = (mean(values)?, values.len() as f64);
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    Some((mean, 1.96 * (variance / n).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaussian(n: usize, mean: &[f64], mix: &[Vec<f64>], seed: u64) -> Vec<Point> {
        let mut rng = Rng::new(seed);
        let point = |_| {
            let z: Vec<f64> = mean.iter().map(|_| rng.normal()).collect();
            mix.iter().zip(mean).map(|(row, m)| m + dot(row, &z)).collect()
        };
        (0..n).map(point).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn the_frechet_distance_of_two_gaussians_has_its_closed_form() {
        // One dimension: (μ₁ - μ₂)² + (σ₁ - σ₂)².
        let d = gaussian_frechet_distance((&[1.0], &[vec![4.0]]), (&[-2.0], &[vec![9.0]]));
        assert!((d - (9.0 + 1.0)).abs() < 1e-12, "{d}");
        // Covariances that share their axes, turned by 30°.
        let (s, c) = 30f64.to_radians().sin_cos();
        let turned = |a: f64, b: f64| {
            let cross = (a - b) * s * c;
            vec![vec![a * c * c + b * s * s, cross], vec![cross, a * s * s + b * c * c]]
        };
        let d =
            gaussian_frechet_distance((&[0.0, 0.0], &turned(4.0, 1.0)), (&[3.0, 4.0], &turned(1.0, 25.0)));
        assert!((d - (25.0 + 1.0 + 16.0)).abs() < 1e-9, "{d}");
        // Axes that are not shared: tr (Σ₁Σ₂)^½ of 2×2 matrices is √(tr Σ₁Σ₂ + 2 √det Σ₁Σ₂).
        let (a, b) = (turned(4.0, 1.0), vec![vec![2.0, 0.0], vec![0.0, 3.0]]);
        let trace = 2.0 * a[0][0] + 3.0 * a[1][1];
        let want = 5.0 + 5.0 - 2.0 * (trace + 2.0 * (4.0f64 * 6.0).sqrt()).sqrt();
        let d = gaussian_frechet_distance((&[0.0, 0.0], &a), (&[0.0, 0.0], &b));
        assert!((d - want).abs() < 1e-9, "{d} instead of {want}");
    }

    #[test]
    fn the_frechet_distance_of_samples_approaches_that_of_their_gaussians() {
        let identity: Vec<Point> =
            (0..4).map(|i| (0..4).map(|j| f64::from(u8::from(i == j))).collect()).collect();
        let a = gaussian(20_000, &[0.0; 4], &identity, 1);
        let b = gaussian(20_000, &[0.5; 4], &identity, 2);
        let d = frechet_distance(&a, &b);
        assert!((d - 1.0).abs() < 0.05, "{d}");
        assert!(frechet_distance(&a, &a).abs() < 1e-8);
        let fewer_than_dimensions = frechet_distance(&a[..3], &b[..3]);
        assert!(fewer_than_dimensions.is_finite() && fewer_than_dimensions > 0.0);
    }

    #[test]
    fn retrieval_counts_by_hand() {
        let labels = vec![vec![0.0], vec![1.0], vec![2.0], vec![10.0]];
        // Nearest to its own; second to its own; own is the farthest of four.
        let motions = vec![vec![0.1], vec![0.9], vec![0.0]];
        let got = retrieval(&motions, &labels, &[0, 0, 3], &mut Rng::new(0));
        assert_eq!(got.precision, [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0]);
        assert!((got.matching - (0.1 + 0.9 + 10.0) / 3.0).abs() < 1e-12);
        let same = vec![vec![0.0]; 4];
        let got = retrieval(&motions, &same, &[0, 0, 3], &mut Rng::new(0));
        assert_eq!(got.precision, [0.0, 0.0, 1.0], "three ties count as one and a half ahead");
    }

    #[test]
    fn pairs_make_diversity_and_multimodality() {
        let points = vec![vec![0.0], vec![3.0], vec![10.0], vec![11.0], vec![12.0]];
        assert_eq!(multimodality(&points, &[0, 0, 1, 1, 1]), Some((3.0 + 4.0 / 3.0) / 2.0));
        assert_eq!(multimodality(&points, &[0, 1, 2, 3, 4]), None);
        assert_eq!(diversity(&points[..2], &mut Rng::new(0)), Some(3.0));
        assert_eq!(diversity(&points[..1], &mut Rng::new(0)), None);
    }

    fn standing(moved: impl Fn(usize) -> [f64; 3]) -> Vec<Pose> {
        let rest = crate::skeleton::forward_kinematics(
            &[crate::quaternion::IDENTITY; N_JOINTS],
            &Bones::REFERENCE,
            [0.0, 0.81, 0.0],
        );
        (0..20).map(|i| rest.map(|joint| add(joint, moved(i)))).collect()
    }

    #[test]
    fn physics_by_hand() {
        let still = standing(|_| [0.0; 3]);
        assert_eq!([foot_skating(&still), jerk(&still), floor_penetration(&still)], [0.0; 3]);
        assert!(bone_error(&still) < 1e-12);
        assert_eq!(foot_skating(&standing(|i| [0.03 * i as f64, 0.0, 0.0])), 1.0, "0.6 m/s on the floor");
        assert_eq!(foot_skating(&standing(|i| [0.03 * i as f64, 0.1, 0.0])), 0.0, "above the floor");
        assert_eq!(foot_skating(&standing(|i| [0.02 * i as f64, 0.0, 0.0])), 0.0, "slowly");
        assert!((floor_penetration(&standing(|_| [0.0, -0.1, 0.0])) - 0.1).abs() < 1e-9);
        // t³/6 in seconds has the jerk 1.
        let cubic = standing(|i| [(i as f64 / FPS).powi(3) / 6.0, 0.0, 0.0]);
        assert!((jerk(&cubic) - 1.0).abs() < 1e-9, "{}", jerk(&cubic));
        let grown: Vec<Pose> = still.iter().map(|pose| pose.map(|joint| scale(joint, 1.1))).collect();
        let mean_bone = (1..N_JOINTS).map(|j| Bones::REFERENCE.length(j)).sum::<f64>() / 21.0;
        assert!((bone_error(&grown) - 0.1 * mean_bone).abs() < 1e-9);
    }

    #[test]
    fn intervals_are_those_of_the_normal_distribution() {
        let (mean, half) = mean_and_interval(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(mean, 2.5);
        assert!((half - 1.96 * (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_interval(&[7.0]), Some((7.0, 0.0)));
        assert_eq!(mean_and_interval(&[]), None);
    }
}
