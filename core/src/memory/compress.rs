//! Fewer states for a trained model, by balanced truncation (Ezoe and Sato 2024, "Model Compression Method for S4 with Diagonal
//! State Space Layers using Balanced Truncation", arXiv 2402.15993).
//!
//! For a time-invariant system `h_n' = a_n h_n + b_n u, y = Re Σ c_n h_n` whose poles `a_n`, real or complex, have negative real
//! parts, both Gramians have a closed form, of sums over
//!
//! ```text
//! -b_i b_j / (a_i + a_j)        -b_i b̄_j / (a_i + ā_j)        and the same of c
//! ```
//!
//! and the Hankel singular values `σ_i = √λ_i(P Q)` say what each balanced state is worth: a system that keeps the first r
//! differs from the whole by at most `2 Σ_{i>r} σ_i` at any frequency ([`System::truncate`]). Its modes make it diagonal again
//! ([`DenseSystem::modes`]).
//!
//! [`compress`] does that to a model:
//!
//! - **S4D**: each channel of a layer is such a system, which zero-order hold discretises as it is. It is truncated exactly as in
//!   the paper, and what is left has the layer's own form.
//! - **Mamba-1** is not time-invariant, and its B and C, rows of `x_proj`, are shared by all channels, so that balanced
//!   coordinates of one channel are none of another. Each channel is linearised: at its initial step size, with B and C as they
//!   are for inputs of unit variance, `E[B Bᵀ] = W_B W_Bᵀ`; a step size only scales its time, so that it has the Hankel singular
//!   values of `P_ij = -(W_B W_Bᵀ)_ij / (a_i + a_j)` and the `Q` of C, which are reported. What is kept are whole states, those
//!   worth most by the value of each mode alone, `|b_n c_n| δ / (1 - exp(-2 δ |a_n|))` after discretisation, summed over the
//!   channels: modal truncation, which the paper's method becomes when the coordinates may not be changed.
//! - **Mamba-2 and Mamba-3** pass B and C through a convolution and SiLU, or norm and rotation, and all states of a head have one
//!   pole: no combination of states is a state, and no Gramian tells poles apart. They are refused.
//!
//! What it starts from is then trained on, as in the paper; the example `compress` does both.

use crate::linalg::{Matrix, modes, multiply, square_root, symmetric_eigen, transpose};
use crate::mamba1::Mamba1Config;
use crate::mixer::MixerConfig;
use crate::s4d::S4dConfig;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
pub use num_complex::Complex64;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// A single-input, single-output system with a diagonal state matrix: `h_n' = a_n h_n + b_n u, y = Re Σ c_n h_n`. A mode whose
/// numbers are all real is one state, another two, its real and imaginary part.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    a: Vec<Complex64>,
    b: Vec<Complex64>,
    c: Vec<Complex64>,
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

/// A mode `h' = pole · h + u`, of which the output is `Re(weight · h)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mode {
    /// Its pole; of a conjugate pair the one with a positive imaginary part.
    pub pole: Complex64,
    /// What it counts.
    pub weight: Complex64,
}

/// A real coordinate of a diagonal system.
#[derive(Clone, Copy)]
enum Coordinate {
    Re(usize),
    Im(usize),
}

impl System {
    /// From the diagonal of `A`, with negative real parts, and as many entries of `b` and `c`.
    pub fn new(a: Vec<Complex64>, b: Vec<Complex64>, c: Vec<Complex64>) -> Result<Self> {
        let fits = a.len() == b.len() && a.len() == c.len() && !a.is_empty();
        if !fits || a.iter().any(|a| !(a.re < 0.0 && a.re.is_finite() && a.im.is_finite())) {
            let message =
                format!("a system of {} modes: expected poles left of zero, and as many b and c", a.len());
            return Err(Error::Config(message));
        }
        Ok(Self { a, b, c })
    }

    /// The same with real numbers.
    pub fn real(a: &[f64], b: &[f64], c: &[f64]) -> Result<Self> {
        let complex = |x: &[f64]| x.iter().map(|&x| x.into()).collect();
        Self::new(complex(a), complex(b), complex(c))
    }

    fn coordinates(&self) -> Vec<Coordinate> {
        let real = |i: usize| [self.a[i], self.b[i], self.c[i]].iter().all(|x| x.im == 0.0);
        let parts = |i: usize| [Some(Coordinate::Re(i)), (!real(i)).then_some(Coordinate::Im(i))];
        (0..self.a.len()).flat_map(parts).flatten().collect()
    }

    /// The same system in real coordinates.
    pub fn dense(&self) -> DenseSystem {
        use Coordinate::{Im, Re};
        let coordinates = self.coordinates();
        let entry = |row: &Coordinate, column: &Coordinate| match (*row, *column) {
            (Re(i), Re(j)) | (Im(i), Im(j)) if i == j => self.a[i].re,
            (Re(i), Im(j)) if i == j => -self.a[i].im,
            (Im(i), Re(j)) if i == j => self.a[i].im,
            _ => 0.0,
        };
        let part = |x: &[Complex64], at: &Coordinate, sign: f64| match *at {
            Re(i) => x[i].re,
            Im(i) => sign * x[i].im,
        };
        DenseSystem {
            a: coordinates
                .iter()
                .map(|row| coordinates.iter().map(|column| entry(row, column)).collect())
                .collect(),
            b: coordinates.iter().map(|at| part(&self.b, at, 1.0)).collect(),
            // Re(c h) = c.re h.re - c.im h.im
            c: coordinates.iter().map(|at| part(&self.c, at, -1.0)).collect(),
        }
    }

    /// The controllability Gramian `P` and the observability Gramian `Q`, in real coordinates.
    pub fn gramians(&self) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        use Coordinate::{Im, Re};
        let coordinates = self.coordinates();
        // ∫ Re or Im of x_i e^{a_i t} times Re or Im of x_j e^{a_j t}; `sign` is that of imaginary parts.
        let gramian = |x: &[Complex64], sign: f64| -> Matrix {
            let entry = |row: &Coordinate, column: &Coordinate| {
                let (Re(i) | Im(i), Re(j) | Im(j)) = (*row, *column);
                let plain = -x[i] * x[j] / (self.a[i] + self.a[j]);
                let mixed = -x[i] * x[j].conj() / (self.a[i] + self.a[j].conj());
                match (row, column) {
                    (Re(_), Re(_)) => (mixed.re + plain.re) / 2.0,
                    (Im(_), Im(_)) => (mixed.re - plain.re) / 2.0,
                    (Re(_), Im(_)) => sign * (plain.im - mixed.im) / 2.0,
                    (Im(_), Re(_)) => sign * (plain.im + mixed.im) / 2.0,
                }
            };
            coordinates
                .iter()
                .map(|row| coordinates.iter().map(|column| entry(row, column)).collect())
                .collect()
        };
        (gramian(&self.b, 1.0), gramian(&self.c, -1.0))
    }

    /// The Hankel singular values, largest first.
    pub fn hankel_singular_values(&self) -> Vec<f64> {
        let (p, q) = self.gramians();
        Balance::new(&p, &q).sigma
    }

    /// The system with its `states` most valuable balanced states, or fewer where the others are worth nothing.
    pub fn truncate(&self, states: usize) -> DenseSystem {
        let (p, q) = self.gramians();
        Balance::new(&p, &q).truncate(&self.dense(), &q, states)
    }
}

impl DenseSystem {
    /// Its modes: the same system with a diagonal state matrix, given that its poles differ.
    pub fn modes(&self) -> Vec<Mode> {
        let scale = self.a.iter().flatten().fold(0.0f64, |most, x| most.max(x.abs()));
        let mode = |(pole, weight): (Complex64, Complex64)| {
            // a conjugate pair gives twice the real part of one of the two
            let real = pole.im.abs() <= 1e-12 * scale;
            match real {
                true => Some(Mode { pole: pole.re.into(), weight: weight.re.into() }),
                false if pole.im > 0.0 => Some(Mode { pole, weight: weight * 2.0 }),
                false => None,
            }
        };
        modes(&self.a, &self.b, &self.c).into_iter().filter_map(mode).collect()
    }
}

/// What balances a system of Gramians `P` and `Q`: `√P`, the Hankel singular values, and the eigenvectors of `√P Q √P` that
/// belong to them.
struct Balance {
    root: Matrix,
    sigma: Vec<f64>,
    vectors: Matrix,
}

impl Balance {
    fn new(p: &Matrix, q: &Matrix) -> Self {
        let root = square_root(p);
        let (values, vectors) = symmetric_eigen(&multiply(&multiply(&root, q), &root));
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
        let sigma = order.iter().map(|&i| values[i].max(0.0).sqrt()).collect();
        let columns = |row: &Vec<f64>| order.iter().map(|&i| row[i]).collect();
        Self { root, sigma, vectors: vectors.iter().map(columns).collect() }
    }

    fn truncate(&self, system: &DenseSystem, q: &Matrix, states: usize) -> DenseSystem {
        let sigma = &self.sigma;
        let r = sigma.iter().take(states).filter(|s| **s > 1e-7 * sigma[0]).count();
        // T = √P V Σ^-1/2 takes balanced to old coordinates; its left inverse is Σ^-3/2 Vᵀ √P Q.
        let mut to_old = multiply(&self.root, &self.vectors);
        let mut to_new = multiply(&transpose(&to_old), q);
        to_old.iter_mut().for_each(|row| {
            row.truncate(r);
            row.iter_mut().zip(sigma).for_each(|(x, s)| *x /= s.sqrt());
        });
        to_new.truncate(r);
        to_new.iter_mut().zip(sigma).for_each(|(row, s)| row.iter_mut().for_each(|x| *x /= s.powf(1.5)));
        let column = |x: &[f64]| -> Matrix { x.iter().map(|x| vec![*x]).collect() };
        DenseSystem {
            a: multiply(&multiply(&to_new, &system.a), &to_old),
            b: multiply(&to_new, &column(&system.b)).concat(),
            c: multiply(&vec![system.c.clone()], &to_old).concat(),
        }
    }
}

/// What [`compress`] did to one mixer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduction {
    /// The mixer's name.
    pub mixer: String,
    /// Its Hankel singular values, largest first: the mean over the channels.
    pub hankel: Vec<f64>,
    /// Of Mamba-1 the states that were kept, by their old numbers; elsewhere all balanced states are combinations of old ones.
    pub kept: Option<Vec<usize>>,
}

impl Reduction {
    /// The share of the Hankel singular values beyond the first `d_state`: what balanced truncation to so many drops.
    pub fn dropped(&self, d_state: usize) -> f64 {
        let total: f64 = self.hankel.iter().sum();
        if total > 0.0 { self.hankel.iter().skip(d_state).sum::<f64>() / total } else { 0.0 }
    }
}

/// Reduces the states of every mixer among a model's `tensors` to `d_state`, in place, and returns the mixers' new config and
/// what was done. See the [module](self).
///
/// # Errors
/// Mixers of another kind, complex states of Mamba-1, more states than there are, and tensors that do not fit the config.
pub fn compress(
    tensors: &mut BTreeMap<String, Tensor>,
    cfg: &MixerConfig,
    d_state: usize,
) -> Result<(MixerConfig, Vec<Reduction>)> {
    let n = cfg.d_state();
    if d_state == 0 || d_state > n {
        return Err(Error::Config(format!("cannot reduce {n} states to {d_state}")));
    }
    let (key, small): (&str, MixerConfig) = match cfg {
        MixerConfig::Mamba1(cfg) => {
            cfg.expect_plain_states()?;
            ("A_log", Mamba1Config { d_state, ..cfg.clone() }.into())
        }
        MixerConfig::S4d(cfg) => ("log_A_real", S4dConfig { d_state, ..cfg.clone() }.into()),
        other => {
            let message = format!(
                "the states of {} mixers are no linear system of B and C that could be balanced, expected mamba1 or s4d",
                other.kind()
            );
            return Err(Error::Config(message));
        }
    };
    small.validate()?;
    let mixers: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix(key)).map(String::from).collect();
    if mixers.is_empty() {
        return Err(Error::Config(format!("no tensor is called {key}: there is no {} mixer", cfg.kind())));
    }
    let reduce = |mixer: &String| match cfg {
        MixerConfig::Mamba1(_) => reduce_mamba1(tensors, mixer, n, d_state),
        _ => reduce_s4d(tensors, mixer, n, d_state),
    };
    let mut reductions = Vec::new();
    let reduced = mixers.iter().map(reduce).collect::<Result<Vec<_>>>()?;
    for (replaced, reduction) in reduced {
        tensors.extend(replaced);
        reductions.push(reduction);
    }
    Ok((small, reductions))
}

type Replaced = Vec<(String, Tensor)>;

fn tensor<'a>(tensors: &'a BTreeMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    let missing = || Error::Tensors { missing: vec![name.to_string()], unexpected: Vec::new() };
    tensors.get(name).ok_or_else(missing)
}

/// In f64, whatever the checkpoint's type.
fn rows(x: &Tensor) -> Result<Matrix> {
    Ok(x.to_dtype(DType::F64)?.to_vec2()?)
}

fn expect_columns(name: &str, x: &Tensor, columns: usize) -> Result<()> {
    match x.dims2() {
        Ok((_, n)) if n == columns => Ok(()),
        _ => Err(Error::Config(format!("{name} has shape {:?}, expected (·, {columns})", x.dims()))),
    }
}

/// The mean over rows of equal length.
fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let columns = rows.first().map_or(0, Vec::len);
    (0..columns).map(|k| rows.iter().map(|row| row[k]).sum::<f64>() / rows.len() as f64).collect()
}

fn reduce_mamba1(
    tensors: &BTreeMap<String, Tensor>,
    mixer: &str,
    n: usize,
    d_state: usize,
) -> Result<(Replaced, Reduction)> {
    let of = |name: &str| tensor(tensors, &format!("{mixer}{name}"));
    let (a_log, x_proj, dt_bias) = (of("A_log")?, of("x_proj.weight")?, of("dt_proj.bias")?);
    expect_columns(&format!("{mixer}A_log"), a_log, n)?;
    let projected = x_proj.dim(0)?;
    let Some(rank) = projected.checked_sub(2 * n) else {
        return Err(Error::Config(format!(
            "{mixer}x_proj.weight has {projected} rows, expected over {}",
            2 * n
        )));
    };
    let poles: Matrix = rows(a_log)?.iter().map(|row| row.iter().map(|a| -a.exp()).collect()).collect();
    let weights = rows(x_proj)?;
    let steps = dt_bias.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    // B_t and C_t are rows of x_proj times x: their second moments for inputs of unit variance.
    let moments = |from: usize| -> Matrix {
        let part = weights[from..from + n].to_vec();
        multiply(&part, &transpose(&part))
    };
    let (bb, cc) = (moments(rank), moments(rank + n));
    let gramian = |x: &Matrix, a: &[f64]| -> Matrix {
        (0..n).map(|i| (0..n).map(|j| -x[i][j] / (a[i] + a[j])).collect()).collect()
    };
    let hankel: Vec<Vec<f64>> =
        poles.par_iter().map(|a| Balance::new(&gramian(&bb, a), &gramian(&cc, a)).sigma).collect();
    let worth = |k: usize| {
        // per unit of u: δ b c / (1 - exp(-2 δ |a|)), the value of the mode of the discrete system
        let channel = |(a, bias): (&Vec<f64>, &f64)| {
            let dt = bias.exp().ln_1p();
            dt * (bb[k][k] * cc[k][k]).sqrt() / -(2.0 * dt * a[k]).exp_m1()
        };
        poles.iter().zip(&steps).map(channel).sum::<f64>()
    };
    let worth: Vec<f64> = (0..n).map(worth).collect();
    let mut kept: Vec<usize> = (0..n).collect();
    kept.sort_by(|&i, &j| worth[j].total_cmp(&worth[i]).then(i.cmp(&j)));
    kept.truncate(d_state);
    kept.sort_unstable();
    let from = |start: usize| kept.iter().map(move |k| (start + k) as u32);
    let ids = |ids: Vec<u32>| Tensor::new(ids, a_log.device());
    let columns = ids(from(0).collect())?;
    let selected = ids((0..rank as u32).chain(from(rank)).chain(from(rank + n)).collect())?;
    let replaced = vec![
        (format!("{mixer}A_log"), a_log.contiguous()?.index_select(&columns, 1)?),
        (format!("{mixer}x_proj.weight"), x_proj.contiguous()?.index_select(&selected, 0)?),
    ];
    let mixer = mixer.trim_end_matches('.').to_string();
    Ok((replaced, Reduction { mixer, hankel: mean(&hankel), kept: Some(kept) }))
}

fn reduce_s4d(
    tensors: &BTreeMap<String, Tensor>,
    mixer: &str,
    n: usize,
    d_state: usize,
) -> Result<(Replaced, Reduction)> {
    let of = |name: &str| tensor(tensors, &format!("{mixer}{name}"));
    let (log_real, imag, c) = (of("log_A_real")?, of("A_imag")?, of("C")?);
    expect_columns(&format!("{mixer}log_A_real"), log_real, n / 2)?;
    expect_columns(&format!("{mixer}A_imag"), imag, n / 2)?;
    let (real, turns) = (rows(log_real)?, rows(imag)?);
    let c_pairs = c.to_dtype(DType::F64)?.to_vec3::<f64>()?;
    let pairs = d_state / 2;
    // y = 2 Re Σ C_n h_n, with b = 1
    let channel = |ch: usize| -> Result<(Vec<Mode>, Vec<f64>)> {
        let poles = real[ch].iter().zip(&turns[ch]).map(|(re, im)| Complex64::new(-re.exp(), *im));
        let weights = c_pairs[ch].iter().map(|c| Complex64::new(2.0 * c[0], 2.0 * c[1]));
        let system = System::new(poles.collect(), vec![1.0.into(); n / 2], weights.collect())?;
        let (p, q) = system.gramians();
        let (balance, dense) = (Balance::new(&p, &q), system.dense());
        let mut sigma = balance.sigma.clone();
        sigma.resize(n, 0.0); // real modes are one state, not two
        if d_state == n {
            // nothing to drop: the modes as they are
            let modes = system.a.iter().zip(&system.c).map(|(&pole, &weight)| Mode { pole, weight });
            return Ok((modes.collect(), sigma));
        }
        // A mode needs a pair, also a real one: the most states whose modes have room.
        let mut fitting = (1..=d_state).rev().map(|r| balance.truncate(&dense, &q, r).modes());
        let modes = fitting.find(|modes| modes.len() <= pairs).unwrap_or_default();
        Ok((modes, sigma))
    };
    let channels = (0..real.len()).into_par_iter().map(channel).collect::<Result<Vec<_>>>()?;
    let (mut log_a, mut a_imag, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (modes, _) in &channels {
        // Places that are left over hold a mode that counts nothing.
        let nothing = Mode { pole: (-0.5).into(), weight: 0.0.into() };
        for mode in modes.iter().copied().chain(std::iter::repeat(nothing)).take(pairs) {
            log_a.push((-mode.pole.re).ln());
            a_imag.push(mode.pole.im);
            weights.extend([mode.weight.re / 2.0, mode.weight.im / 2.0]);
        }
    }
    let like = |values: Vec<f64>, shape: &[usize], x: &Tensor| -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?)
    };
    let d = channels.len();
    let replaced = vec![
        (format!("{mixer}log_A_real"), like(log_a, &[d, pairs], log_real)?),
        (format!("{mixer}A_imag"), like(a_imag, &[d, pairs], imag)?),
        (format!("{mixer}C"), like(weights, &[d, pairs, 2], c)?),
    ];
    let hankel: Vec<Vec<f64>> = channels.into_iter().map(|(_, sigma)| sigma).collect();
    let mixer = mixer.trim_end_matches('.').to_string();
    Ok((replaced, Reduction { mixer, hankel: mean(&hankel), kept: None }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Rng, S4d, StateInit};

    fn random(n: usize, seed: u64) -> System {
        let mut rng = Rng::new(seed);
        let mut draw = |lo, hi| (0..n).map(|_| rng.uniform_in(lo, hi)).collect::<Vec<f64>>();
        System::real(&draw(-6.0, -0.1), &draw(-1.0, 1.0), &draw(-1.0, 1.0)).unwrap()
    }

    fn random_complex(n: usize, seed: u64) -> System {
        let mut rng = Rng::new(seed);
        let mut draw = |lo, hi| (0..n).map(|_| rng.uniform_in(lo, hi)).collect::<Vec<f64>>();
        let pairs =
            |re: Vec<f64>, im: Vec<f64>| re.into_iter().zip(im).map(|(a, b)| Complex64::new(a, b)).collect();
        let a = pairs(draw(-3.0, -0.1), draw(0.2, 9.0));
        System::new(a, pairs(draw(-1.0, 1.0), draw(-1.0, 1.0)), pairs(draw(-1.0, 1.0), draw(-1.0, 1.0)))
            .unwrap()
    }

    /// The response at frequency ω of `y = Re Σ weight h, h' = pole h + u`: each mode beside its conjugate, both halved.
    fn of_modes(modes: &[Mode], omega: f64) -> Complex64 {
        let s = Complex64::new(0.0, omega);
        let mode = |m: &Mode| (m.weight / (s - m.pole) + m.weight.conj() / (s - m.pole.conj())) / 2.0;
        modes.iter().map(mode).sum()
    }

    fn of_system(system: &System, omega: f64) -> Complex64 {
        let modes =
            (0..system.a.len()).map(|i| Mode { pole: system.a[i], weight: system.c[i] * system.b[i] });
        of_modes(&modes.collect::<Vec<_>>(), omega)
    }

    #[test]
    fn gramians_solve_lyapunovs_equations() {
        for system in [random(6, 1), random_complex(4, 2)] {
            let (p, q) = system.gramians();
            let DenseSystem { a, b, c } = system.dense();
            let at = transpose(&a);
            // A P + P Aᵀ + b bᵀ = 0, Aᵀ Q + Q A + cᵀ c = 0
            for (left, gramian, right, x) in [(&a, &p, &at, &b), (&at, &q, &a, &c)] {
                let (l, r) = (multiply(left, gramian), multiply(gramian, right));
                for i in 0..x.len() {
                    for j in 0..x.len() {
                        assert!((l[i][j] + r[i][j] + x[i] * x[j]).abs() < 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn one_state_has_its_hand_worked_value() {
        let system = System::real(&[-2.0], &[3.0], &[-5.0]).unwrap();
        assert!((system.hankel_singular_values()[0] - 15.0 / 4.0).abs() < 1e-12);
        assert!(System::real(&[0.1], &[1.0], &[1.0]).is_err());
    }

    #[test]
    fn truncation_stays_within_twice_the_dropped_values_at_every_frequency() {
        for seed in 0..8 {
            for system in [random(6, seed), random_complex(3, seed)] {
                let sigma = system.hankel_singular_values();
                assert!(sigma.len() == 6 && sigma.windows(2).all(|w| w[0] >= w[1]));
                for r in 1..6 {
                    let reduced = system.truncate(r).modes();
                    let bound = 2.0 * sigma[r..].iter().sum::<f64>() + 1e-6;
                    for k in -30..30 {
                        let omega = 1.3f64.powi(k);
                        let error = of_system(&system, omega) - of_modes(&reduced, omega);
                        let error = error.norm_sqr().sqrt();
                        assert!(error <= bound, "seed {seed}, {r} states at ω = {omega}: {error} > {bound}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_layer_of_which_half_counts_comes_down_to_that_half() -> Result<()> {
        // The first two states of each channel count, the others hardly.
        let cfg = |d_state| S4dConfig { d_state, state_init: StateInit::S4dLin, ..Default::default() };
        let params = Params::fresh(5, DType::F64, &Device::Cpu);
        let layer = S4d::new(3, &cfg(8), &params.builder())?;
        let c = params.get("C").unwrap().tensor().detach();
        let fade = Tensor::new(&[1.0f64, 1.0, 1e-9, 1e-9], &Device::Cpu)?.reshape((1, 4, 1))?;
        params.set("C", &c.broadcast_mul(&fade)?)?;
        let mut tensors = params.to_tensors();
        let (small, reductions) = compress(&mut tensors, &cfg(8).into(), 4)?;
        assert_eq!(small, cfg(4).into());
        assert_eq!((reductions.len(), reductions[0].hankel.len()), (1, 8));
        assert!(reductions[0].dropped(4) < 1e-6 && reductions[0].dropped(2) > 1e-3, "{reductions:?}");
        let frozen = Params::frozen(tensors, DType::F64, &Device::Cpu);
        let reduced = S4d::new(3, &cfg(4), &frozen.builder())?;
        frozen.check()?;
        let difference = (layer.kernel(200)? - reduced.kernel(200)?)?.abs()?.max_all()?.to_scalar::<f64>()?;
        let largest = layer.kernel(200)?.abs()?.max_all()?.to_scalar::<f64>()?;
        assert!(difference < 1e-6 * largest, "{difference}, of {largest}");
        Ok(())
    }

    #[test]
    fn a_channel_stays_within_the_bound_of_its_dropped_values() -> Result<()> {
        for state_init in StateInit::ALL {
            let cfg = |d_state| S4dConfig { d_state, state_init, ..Default::default() };
            let params = Params::fresh(7, DType::F64, &Device::Cpu);
            S4d::new(2, &cfg(16), &params.builder())?;
            let mut tensors = params.to_tensors();
            let modes = |tensors: &BTreeMap<String, Tensor>, ch: usize| -> Vec<Mode> {
                let get = |name: &str| tensors[name].to_vec2::<f64>().unwrap()[ch].clone();
                let c = tensors["C"].to_vec3::<f64>().unwrap()[ch].clone();
                let mode = |((re, im), c): ((f64, f64), Vec<f64>)| Mode {
                    pole: Complex64::new(-re.exp(), im),
                    weight: Complex64::new(2.0 * c[0], 2.0 * c[1]),
                };
                get("log_A_real").into_iter().zip(get("A_imag")).zip(c).map(mode).collect()
            };
            let before = [modes(&tensors, 0), modes(&tensors, 1)];
            compress(&mut tensors, &cfg(16).into(), 8)?;
            for (ch, before) in before.iter().enumerate() {
                let part = |f: fn(&Mode) -> Complex64| before.iter().map(f).collect::<Vec<_>>();
                let system = System::new(part(|m| m.pole), vec![1.0.into(); 8], part(|m| m.weight))?;
                let sigma = system.hankel_singular_values();
                let after = modes(&tensors, ch);
                // Real modes take a place each, so that fewer states than 8 may have been kept: at least 4.
                let bound = 2.0 * sigma.iter().skip(4).sum::<f64>() + 1e-6;
                for k in -20..30 {
                    let omega = 1.3f64.powi(k);
                    let error = (of_modes(before, omega) - of_modes(&after, omega)).norm_sqr().sqrt();
                    assert!(error <= bound, "{state_init:?} at ω = {omega}: {error} > {bound}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_balanced_is_refused() {
        let refused = |json: &str, d_state: usize| {
            let cfg: MixerConfig = serde_json::from_str(json).unwrap();
            compress(&mut BTreeMap::new(), &cfg, d_state).unwrap_err().to_string()
        };
        assert!(refused(r#"{"type": "mamba2"}"#, 4).contains("expected mamba1 or s4d"));
        assert!(refused(r#"{"state_init": "s4d_lin"}"#, 4).contains("complex"));
        assert!(refused("{}", 17).contains("cannot reduce 16 states to 17"));
        assert!(refused("{}", 4).contains("no tensor is called A_log"));
        assert!(refused(r#"{"type": "s4d"}"#, 3).contains("d_state is 3, expected an even number"));
    }
}
