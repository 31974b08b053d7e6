//! Balanced truncation of diagonal states (Ezoe and Sato 2024, "Model Compression Method for S4 with Diagonal State Space
//! Layers using Balanced Truncation", arXiv 2402.15993).
//!
//! For the time-invariant system `h' = A h + b u, y = c h` with a real diagonal `A < 0` both Gramians have a closed form,
//!
//! ```text
//! P_ij = -b_i b_j / (a_i + a_j)            Q_ij = -c_i c_j / (a_i + a_j)
//! ```
//!
//! and the Hankel singular values `σ_i = √λ_i(P Q)` say what each balanced state is worth: a system that keeps the first r
//! differs from the whole by at most `2 Σ_{i>r} σ_i` at any frequency ([`System::truncate`]).
//!
//! A Mamba-1 mixer is not time-invariant, and its B and C are shared by all channels, so that balanced coordinates of one
//! channel are none of another. [`reduce_mamba1`] therefore keeps states as they are and drops those that are worth least,
//! by the Hankel singular value of each mode alone, `|b_n c_n| δ / (1 - exp(-2 δ |a_n|))` after discretisation, summed over
//! all channels, in the system that the mixer is at its initial step sizes with the norms of `x_proj`'s rows for `b` and `c`:
//! the size of B and C for inputs of unit variance. This is modal truncation, which the paper's method becomes when the
//! coordinates may not be changed. What it starts from is then trained on, as in the paper.

use crate::mamba1::Mamba1Config;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// A single-input, single-output system with a real diagonal state matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
}

/// A system with any state matrix: what truncation leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseSystem {
    /// `(r, r)`, row-major.
    pub a: Vec<Vec<f64>>,
    /// `(r)`.
    pub b: Vec<f64>,
    /// `(r)`.
    pub c: Vec<f64>,
}

type Matrix = Vec<Vec<f64>>;

impl System {
    /// From the diagonal of `A`, all negative, and as many entries of `b` and `c`.
    pub fn new(a: Vec<f64>, b: Vec<f64>, c: Vec<f64>) -> Result<Self> {
        let fits = a.len() == b.len() && a.len() == c.len() && !a.is_empty();
        if !fits || a.iter().any(|a| !(*a < 0.0 && a.is_finite())) {
            let message =
                format!("a system of {} states: expected negative poles, and as many b and c", a.len());
            return Err(Error::Config(message));
        }
        Ok(Self { a, b, c })
    }

    /// The controllability Gramian `P` and the observability Gramian `Q`.
    pub fn gramians(&self) -> (Matrix, Matrix) {
        let gramian = |x: &[f64]| -> Matrix {
            let entry = |i: usize, j: usize| -x[i] * x[j] / (self.a[i] + self.a[j]);
            (0..x.len()).map(|i| (0..x.len()).map(|j| entry(i, j)).collect()).collect()
        };
        (gramian(&self.b), gramian(&self.c))
    }

    /// The Hankel singular values, largest first.
    pub fn hankel_singular_values(&self) -> Vec<f64> {
        self.balance().1
    }

    /// √P, the singular values, and the eigenvectors of √P Q √P that belong to them.
    fn balance(&self) -> (Matrix, Vec<f64>, Matrix) {
        let (p, q) = self.gramians();
        let root = square_root(&p);
        let (values, vectors) = eigen(&multiply(&multiply(&root, &q), &root));
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
        let sorted = order.iter().map(|&i| values[i].max(0.0).sqrt()).collect();
        let columns = |row: &Vec<f64>| order.iter().map(|&i| row[i]).collect();
        (root, sorted, vectors.iter().map(columns).collect())
    }

    /// The system with its `states` most valuable balanced states, or fewer where the others are worth nothing.
    pub fn truncate(&self, states: usize) -> DenseSystem {
        let (root, sigma, vectors) = self.balance();
        let r = sigma.iter().take(states).filter(|s| **s > 1e-7 * sigma[0]).count();
        // T = √P V Σ^-1/2 takes balanced to old coordinates; its left inverse is Σ^-3/2 Vᵀ √P Q.
        let (_, q) = self.gramians();
        let right = multiply(&root, &vectors);
        let left = multiply(&transpose(&right), &q);
        let n = self.a.len();
        let to_old = |i: usize, k: usize| right[i][k] / sigma[k].sqrt();
        let to_new = |k: usize, i: usize| left[k][i] / sigma[k].powf(1.5);
        let entry = |k: usize, l: usize| (0..n).map(|i| to_new(k, i) * self.a[i] * to_old(i, l)).sum();
        DenseSystem {
            a: (0..r).map(|k| (0..r).map(|l| entry(k, l)).collect()).collect(),
            b: (0..r).map(|k| (0..n).map(|i| to_new(k, i) * self.b[i]).sum()).collect(),
            c: (0..r).map(|k| (0..n).map(|i| self.c[i] * to_old(i, k)).sum()).collect(),
        }
    }
}

/// What [`reduce_mamba1`] did to one mixer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduction {
    /// The mixer's name.
    pub mixer: String,
    /// The worth of each state, by its old number.
    pub worth: Vec<f64>,
    /// The states that were kept, by their old numbers.
    pub kept: Vec<usize>,
}

/// Reduces the states of every Mamba-1 mixer among `tensors` from `cfg.d_state` to `d_state`, in place; the config's
/// `d_state` must follow.
pub fn reduce_mamba1(
    tensors: &mut BTreeMap<String, Tensor>,
    cfg: &Mamba1Config,
    d_state: usize,
) -> Result<Vec<Reduction>> {
    let n = cfg.d_state;
    if d_state == 0 || d_state > n {
        return Err(Error::Config(format!("cannot reduce {n} states to {d_state}")));
    }
    let mixers: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix("A_log")).map(String::from).collect();
    if mixers.is_empty() {
        return Err(Error::Config("no tensor is called A_log: there is no Mamba-1 mixer to reduce".into()));
    }
    let mut reductions = Vec::new();
    for mixer in mixers {
        let of = |name: &str| {
            let name = format!("{mixer}{name}");
            tensors.get(&name).ok_or(Error::Tensors { missing: vec![name], unexpected: Vec::new() })
        };
        let (a_log, x_proj, dt_bias) = (of("A_log")?, of("x_proj.weight")?, of("dt_proj.bias")?);
        let rank = x_proj.dim(0)?.checked_sub(2 * n).filter(|_| a_log.dims2().is_ok_and(|(_, k)| k == n));
        let Some(rank) = rank else {
            return Err(Error::Config(format!(
                "{mixer}A_log has shape {:?}, expected (·, {n})",
                a_log.dims()
            )));
        };
        let f64s = |x: &Tensor| -> Result<Vec<Vec<f64>>> { Ok(x.to_dtype(DType::F64)?.to_vec2()?) };
        let (a, rows) = (f64s(a_log)?, f64s(x_proj)?);
        let steps = dt_bias.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        // B_t and C_t are rows of x_proj times x: their size for inputs of unit variance.
        let size = |row: &[f64]| row.iter().map(|w| w * w).sum::<f64>().sqrt();
        let worth: Vec<f64> = (0..n)
            .map(|k| {
                let (b, c) = (size(&rows[rank + k]), size(&rows[rank + n + k]));
                // per unit of u: δ b c / (1 - exp(-2 δ |a|)), the value of the mode of the discrete system
                let channel = |(a, bias): (&Vec<f64>, &f64)| {
                    let dt = bias.exp().ln_1p();
                    dt * b * c / -(-2.0 * dt * a[k].exp()).exp_m1()
                };
                a.iter().zip(&steps).map(channel).sum::<f64>()
            })
            .collect();
        let mut kept: Vec<usize> = (0..n).collect();
        kept.sort_by(|&i, &j| worth[j].total_cmp(&worth[i]).then(i.cmp(&j)));
        kept.truncate(d_state);
        kept.sort_unstable();
        let states: Vec<u32> = kept.iter().map(|&k| k as u32).collect();
        let from = |start: usize| states.iter().map(move |k| (start + *k as usize) as u32);
        let rows: Vec<u32> = (0..rank as u32).chain(from(rank)).chain(from(rank + n)).collect();
        let ids = |ids: &[u32], x: &Tensor| Tensor::from_slice(ids, ids.len(), x.device());
        let new_a = a_log.contiguous()?.index_select(&ids(&states, a_log)?, 1)?;
        let new_x_proj = x_proj.contiguous()?.index_select(&ids(&rows, x_proj)?, 0)?;
        tensors.insert(format!("{mixer}A_log"), new_a);
        tensors.insert(format!("{mixer}x_proj.weight"), new_x_proj);
        reductions.push(Reduction { mixer: mixer.trim_end_matches('.').into(), worth, kept });
    }
    Ok(reductions)
}

fn multiply(a: &Matrix, b: &Matrix) -> Matrix {
    let columns = b.first().map_or(0, Vec::len);
    let entry = |row: &[f64], j: usize| row.iter().zip(b).map(|(x, b)| x * b[j]).sum();
    a.iter().map(|row| (0..columns).map(|j| entry(row, j)).collect()).collect()
}

fn transpose(a: &Matrix) -> Matrix {
    (0..a.first().map_or(0, Vec::len)).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

/// The square root of a symmetric matrix without negative eigenvalues.
fn square_root(a: &Matrix) -> Matrix {
    let (values, vectors) = eigen(a);
    let scaled: Matrix = vectors
        .iter()
        .map(|row| row.iter().zip(&values).map(|(v, value)| v * value.max(0.0).sqrt()).collect())
        .collect();
    multiply(&scaled, &transpose(&vectors))
}

/// Eigenvalues of a symmetric matrix and, as columns, its eigenvectors, by Jacobi's rotations.
fn eigen(a: &Matrix) -> (Vec<f64>, Matrix) {
    let n = a.len();
    let mut a = a.clone();
    let mut vectors: Matrix = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _sweep in 0..100 {
        let off: f64 = (0..n).map(|i| (0..i).map(|j| a[i][j] * a[i][j]).sum::<f64>()).sum();
        let on: f64 = (0..n).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-32 * on {
            break;
        }
        for i in 0..n {
            for j in 0..i {
                if a[i][j] == 0.0 {
                    continue;
                }
                let theta = (a[j][j] - a[i][i]) / (2.0 * a[i][j]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                let turn = |x: f64, y: f64| (c * x - s * y, s * x + c * y);
                for row in a.iter_mut().chain(&mut vectors) {
                    (row[i], row[j]) = turn(row[i], row[j]);
                }
                let rows: Vec<(f64, f64)> = a[i].iter().zip(&a[j]).map(|(&x, &y)| turn(x, y)).collect();
                (a[i], a[j]) = rows.into_iter().unzip();
            }
        }
    }
    ((0..n).map(|i| a[i][i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn random(n: usize, seed: u64) -> System {
        let mut rng = Rng::new(seed);
        let mut draw = |lo, hi| (0..n).map(|_| rng.uniform_in(lo, hi)).collect::<Vec<f64>>();
        System::new(draw(-6.0, -0.1), draw(-1.0, 1.0), draw(-1.0, 1.0)).unwrap()
    }

    /// |G(iω)| of a difference of two systems: c (iω - A)^-1 b, solved by elimination in complex numbers.
    fn response(system: &DenseSystem, omega: f64) -> (f64, f64) {
        let n = system.b.len();
        let mut m: Vec<Vec<(f64, f64)>> = (0..n)
            .map(|i| {
                let mut row: Vec<(f64, f64)> =
                    (0..n).map(|j| (-system.a[i][j], if i == j { omega } else { 0.0 })).collect();
                row.push((system.b[i], 0.0));
                row
            })
            .collect();
        let mul = |a: (f64, f64), b: (f64, f64)| (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0);
        let div = |a: (f64, f64), b: (f64, f64)| {
            let norm = b.0 * b.0 + b.1 * b.1;
            mul(a, (b.0 / norm, -b.1 / norm))
        };
        for i in 0..n {
            let pivot =
                (i..n).max_by(|&p, &q| m[p][i].0.hypot(m[p][i].1).total_cmp(&m[q][i].0.hypot(m[q][i].1)));
            m.swap(i, pivot.unwrap());
            let head = m[i].clone();
            for (k, row) in m.iter_mut().enumerate() {
                if k != i {
                    let factor = div(row[i], head[i]);
                    for (x, h) in row.iter_mut().zip(&head).skip(i) {
                        let p = mul(factor, *h);
                        *x = (x.0 - p.0, x.1 - p.1);
                    }
                }
            }
        }
        (0..n).fold((0.0, 0.0), |y, i| {
            let h = div(m[i][n], m[i][i]);
            (y.0 + system.c[i] * h.0, y.1 + system.c[i] * h.1)
        })
    }

    fn dense(system: &System) -> DenseSystem {
        let n = system.a.len();
        let row = |i: usize| (0..n).map(|j| if i == j { system.a[i] } else { 0.0 }).collect();
        DenseSystem { a: (0..n).map(row).collect(), b: system.b.clone(), c: system.c.clone() }
    }

    #[test]
    fn gramians_solve_lyapunovs_equations() {
        let system = random(6, 1);
        let (p, q) = system.gramians();
        for i in 0..6 {
            for j in 0..6 {
                let a = system.a[i] + system.a[j];
                assert!((a * p[i][j] + system.b[i] * system.b[j]).abs() < 1e-12);
                assert!((a * q[i][j] + system.c[i] * system.c[j]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn one_state_has_its_hand_worked_value() {
        let system = System::new(vec![-2.0], vec![3.0], vec![-5.0]).unwrap();
        assert!((system.hankel_singular_values()[0] - 15.0 / 4.0).abs() < 1e-12);
        assert!(System::new(vec![0.1], vec![1.0], vec![1.0]).is_err());
    }

    #[test]
    fn truncation_stays_within_twice_the_dropped_values_at_every_frequency() {
        for seed in 0..8 {
            let system = random(6, seed);
            let sigma = system.hankel_singular_values();
            assert!(sigma.windows(2).all(|w| w[0] >= w[1]));
            for r in 1..4 {
                let reduced = system.truncate(r);
                let bound = 2.0 * sigma[r..].iter().sum::<f64>() + 1e-6;
                for k in -30..30 {
                    let omega = 1.3f64.powi(k);
                    let (a, b) = (response(&dense(&system), omega), response(&reduced, omega));
                    let error = (a.0 - b.0).hypot(a.1 - b.1);
                    assert!(error <= bound, "seed {seed}, {r} states at ω = {omega}: {error} > {bound}");
                }
            }
        }
    }
}
