//! MambaTS (Cai et al. 2024, arXiv 2405.16440): the patches of all variables form one sequence, variable after variable,
//! which a stack of Mambas without convolution reads once.
//!
//! ```text
//! tokens = W · patches of variable σ(1), of σ(2), …                      (B, V · N, d)
//! layer:   r = r + x;  x = mamba(LN(r))
//! output = W' · [LN(r + x) of all patches of a variable]                 (B, V, H)
//! ```
//!
//! A sequence has an order, variables have none. So training draws an order σ for every window (variable permutation
//! training) and notes, for every step from one variable to the next, the mean error of the windows that took it, as
//! multiples of how much the errors of a batch vary. A trained model reads the variables in the order in which these
//! costs are least: an asymmetric travelling-salesman path from the variable that it was cheapest to begin with, here
//! by nearest neighbours and moves of segments (variable-aware scan along time, section 3.3).

use super::layers::{Input, Sizes, WindowNorm, drop};
use candle_core::{DType, Module, Result, Tensor, bail};
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Error, Init, Mamba1Config, Mixer, MixerConfig, ParamBuilder, Params, Rng};
use mamba_kernels::SelectiveScan;
use serde::{Deserialize, Serialize};

/// Hyper-parameters of MambaTS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MambaTsConfig {
    /// Width of a token.
    pub d_model: usize,
    /// Layers.
    pub e_layers: usize,
    /// Steps in a patch; patches do not overlap, and what does not fill one at the beginning of a window is not seen.
    pub patch_len: usize,
    /// The mixers. The convolution of Mamba-1 is left out, as in the paper; other mixers are taken as they are.
    pub ssm_cfg: MixerConfig,
    /// Dropout on Δ, B and C of Mamba-1, on the output of other mixers.
    pub dropout: f64,
}

impl Default for MambaTsConfig {
    fn default() -> Self {
        Self { d_model: 16, e_layers: 3, patch_len: 48, ssm_cfg: MixerConfig::default(), dropout: 0.3 }
    }
}

impl MambaTsConfig {
    /// Refuses patches that do not fit into the window, and what a mixer without convolution does not have.
    pub(crate) fn validate(&self, sizes: Sizes) -> mamba_core::Result<()> {
        if self.patch_len == 0 || self.patch_len > sizes.seq_len {
            return Err(Error::Config(format!(
                "patches of {} steps do not fit into {} steps",
                self.patch_len, sizes.seq_len
            )));
        }
        if let MixerConfig::Mamba1(ssm) = &self.ssm_cfg {
            ssm.expect_plain("the Mamba-1 of mamba-ts")?;
        }
        self.ssm_cfg.validate_for(self.d_model)
    }
}

/// A Mamba without convolution, and with dropout on the selective parameters.
#[derive(Clone, Debug)]
struct TemporalMamba {
    in_proj: Linear,
    x_proj: Linear,
    dt: Linear,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    out_proj: Linear,
    dropout: f64,
}

impl TemporalMamba {
    fn new(cfg: &MambaTsConfig, ssm: &Mamba1Config, pb: &ParamBuilder) -> Result<Self> {
        let (d_inner, n, rank) = (ssm.d_inner(cfg.d_model), ssm.d_state, ssm.dt_rank.resolve(cfg.d_model));
        let bound = (rank as f64).powf(-0.5) * ssm.dt_scale;
        let dt_bias = Init::DtBias { min: ssm.dt_min, max: ssm.dt_max, floor: ssm.dt_init_floor };
        let dt = pb.pp("dt_proj");
        let out_init = Init::linear(d_inner).scaled(1.0 / (cfg.e_layers.max(1) as f64).sqrt());
        Ok(Self {
            in_proj: Linear::new(cfg.d_model, 2 * d_inner, false, &pb.pp("in_proj"))?,
            x_proj: Linear::new(d_inner, rank + 2 * n, false, &pb.pp("x_proj"))?,
            dt: Linear::with_init((d_inner, rank), Init::Uniform { lo: -bound, hi: bound }, None, &dt)?,
            dt_bias: dt.get_no_decay(d_inner, "bias", dt_bias)?,
            a_log: pb.get_no_decay((d_inner, n), "A_log", Init::S4dReal)?,
            d: pb.get_no_decay(d_inner, "D", Init::Ones)?,
            out_proj: Linear::with_init((cfg.d_model, d_inner), out_init, None, &pb.pp("out_proj"))?,
            dropout: cfg.dropout,
        })
    }

    /// `(B, L, d)` → `(B, L, d)`.
    fn forward(&self, x: &Tensor, rng: &mut Option<Rng>) -> Result<Tensor> {
        let [d_inner, n] = [self.a_log.dim(0)?, self.a_log.dim(1)?];
        let [x, z] = self.in_proj.split(x, [d_inner; 2])?; // (B, L, d_inner)
        let selective = self.x_proj.split(&x, [self.dt.weight().dim(1)?, n, n])?; // (B, L, ·)
        let [dt, b, c] = selective.map(|part| drop(&part, self.dropout, rng));
        let (dt, b, c) = (dt?, b?, c?);
        let (delta, a) = (self.dt.forward(&dt)?, self.a_log.exp()?.neg()?);
        let scan = SelectiveScan::new(&x, &delta, &a, &b, &c);
        let y = scan.skip(&self.d).gate(&z).delta_bias(&self.dt_bias).softplus(true).run()?;
        self.out_proj.forward(&y)
    }
}

/// The mixer of a layer.
#[derive(Clone, Debug)]
enum LayerMixer {
    Temporal(Box<TemporalMamba>),
    Plain { mixer: Box<Mixer>, dropout: f64 },
}

impl LayerMixer {
    fn new(cfg: &MambaTsConfig, pb: &ParamBuilder) -> Result<Self> {
        Ok(match &cfg.ssm_cfg {
            MixerConfig::Mamba1(ssm) => Self::Temporal(Box::new(TemporalMamba::new(cfg, ssm, pb)?)),
            other => Self::Plain {
                mixer: Box::new(Mixer::new(cfg.d_model, other, cfg.e_layers, pb)?),
                dropout: cfg.dropout,
            },
        })
    }

    /// `(B, L, d)` → `(B, L, d)`.
    fn forward(&self, x: &Tensor, rng: &mut Option<Rng>) -> Result<Tensor> {
        match self {
            Self::Temporal(mamba) => mamba.forward(x, rng),
            Self::Plain { mixer, dropout } => drop(&mixer.forward(x)?, *dropout, rng),
        }
    }
}

/// MambaTS.
#[derive(Clone, Debug)]
pub struct MambaTs {
    embedding: Linear,
    layers: Vec<(Norm, LayerMixer)>,
    norm: Norm,
    head: Linear,
    /// The order in which a trained model reads the variables.
    order: Vec<usize>,
    patch_len: usize,
    patches: usize,
}

/// Name of the summed costs of the steps from variable to variable, `(V, V)`; on the diagonal those of beginnings.
const COSTS: &str = "encoder.adjacency_matrix";
/// Name of how often each step was taken, `(V, V)`.
const COUNTS: &str = "encoder.count_matrix";

impl MambaTs {
    /// Parameters under upstream's names.
    pub fn new(cfg: &MambaTsConfig, sizes: Sizes, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate(sizes)?;
        let (d, v, patches) = (cfg.d_model, sizes.n_vars, sizes.seq_len / cfg.patch_len);
        let norm = |pb: &ParamBuilder| Norm::new(NormKind::Layer, d, 1e-5, pb);
        let layer = |i: usize| {
            let pb = pb.pp("encoder.layers").pp(i);
            Ok((norm(&pb.pp("norm"))?, LayerMixer::new(cfg, &pb.pp("mixer"))?))
        };
        let matrix = |name| pb.get_no_decay((v, v), name, Init::Zeros)?.to_dtype(DType::F64)?.to_vec2();
        Ok(Self {
            embedding: Linear::new(cfg.patch_len, d, false, &pb.pp("value_embedding.1"))?,
            layers: (0..cfg.e_layers).map(layer).collect::<Result<_>>()?,
            norm: norm(&pb.pp("encoder.norm_f"))?,
            head: Linear::new(d * patches, sizes.pred_len, true, &pb.pp("head.linear"))?,
            order: cheapest_order(&mean_costs(&matrix(COSTS)?, &matrix(COUNTS)?)),
            patch_len: cfg.patch_len,
            patches,
        })
    }

    /// Tensors of published weights that take no part in the forecast.
    pub(crate) fn ignores(name: &str) -> bool {
        name == "encoder.ending_points"
    }

    /// Parameters that no gradient reaches.
    pub(crate) fn counts(name: &str) -> bool {
        name == COSTS || name == COUNTS
    }

    /// The order of the variables of each window: drawn with a generator, the cheapest without.
    fn orders(&self, windows: usize, rng: &mut Option<Rng>) -> Vec<Vec<usize>> {
        (0..windows)
            .map(|_| rng.as_mut().map_or_else(|| self.order.clone(), |rng| rng.permutation(self.order.len())))
            .collect()
    }

    /// `(B, L, V)` → `(B, H, V)`.
    pub fn forward(&self, input: &Input, rng: &mut Option<Rng>) -> Result<Tensor> {
        let (b, len, v) = input.values.dims3()?;
        if v != self.order.len() {
            bail!("mamba-ts: {v} variables, expected {}", self.order.len());
        }
        let orders = self.orders(b, rng);
        let row = |window: usize, variable: usize| (window * v + variable) as u32;
        let there: Vec<u32> =
            orders.iter().enumerate().flat_map(|(i, order)| order.iter().map(move |&j| row(i, j))).collect();
        let mut back = vec![0u32; b * v];
        there.iter().zip(0..).for_each(|(&from, to)| back[from as usize] = to);

        let (x, norm) = WindowNorm::apply(&input.values)?;
        let seen = self.patches * self.patch_len;
        let x = x.transpose(1, 2)?.narrow(2, len - seen, seen)?.contiguous()?; // (B, V, N · patch_len)
        let x = x.flatten_to(1)?.index_select(&Tensor::new(there, x.device())?, 0)?;
        let x = x.reshape((b, v * self.patches, self.patch_len))?;
        let mut x = self.embedding.forward(&x)?; // (B, V · N, d)
        let mut residual = None;
        for (norm, mamba) in &self.layers {
            let (normed, sum) = norm.forward_residual(&x, residual.as_ref())?;
            (x, residual) = (mamba.forward(&normed, rng)?, Some(sum));
        }
        let (x, _) = self.norm.forward_residual(&x, residual.as_ref())?;
        let y = self.head.forward(&x.reshape((b * v, ()))?)?; // (B · V, H)
        let y = y.index_select(&Tensor::new(back, y.device())?, 0)?;
        norm.invert(&y.reshape((b, v, ()))?.transpose(1, 2)?)
    }

    /// Notes what the orders of a training pass cost: `rng` as that pass was given it, `error` `(B, H, V)`.
    pub(crate) fn note_costs(&self, params: &Params, error: &Tensor, mut rng: Option<Rng>) -> Result<()> {
        let windows = error.dim(0)?;
        let costs: Vec<f64> =
            error.detach().sqr()?.flatten_from(1)?.mean(1)?.to_dtype(DType::F64)?.to_vec1()?;
        let mean = costs.iter().sum::<f64>() / windows as f64;
        let variance = costs.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / (windows.max(2) - 1) as f64;
        if variance == 0.0 {
            return Ok(());
        }
        let v = self.order.len();
        let (mut sums, mut counts) = (vec![0f64; v * v], vec![0f64; v * v]);
        for (order, cost) in self.orders(windows, &mut rng).iter().zip(costs) {
            let mut from = order[0];
            for &to in order {
                sums[from * v + to] += cost / variance.sqrt();
                counts[from * v + to] += 1.0;
                from = to;
            }
        }
        for (name, more) in [(COSTS, sums), (COUNTS, counts)] {
            let Some(param) = params.get(name) else { bail!("mamba-ts has no parameter {name}") };
            let before = param.tensor();
            let more = Tensor::from_vec(more, (v, v), before.device())?.to_dtype(before.dtype())?;
            params.set(name, &(before.detach() + more)?)?;
        }
        Ok(())
    }
}

/// Costs of a step, from the least on; a step that was never taken costs as much as the dearest.
fn mean_costs(costs: &[Vec<f64>], counts: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mean = |cost: f64, count: f64| if count > 0.0 { cost / count } else { f64::NAN };
    let mut means: Vec<Vec<f64>> =
        costs.iter().zip(counts).map(|(c, n)| c.iter().zip(n).map(|(&c, &n)| mean(c, n)).collect()).collect();
    let dearest = means.iter().flatten().copied().filter(|c| !c.is_nan()).fold(0.0, f64::max);
    means.iter_mut().flatten().filter(|c| c.is_nan()).for_each(|c| *c = dearest);
    means
}

/// The variables in an order of small cost: from the cheapest beginning always to the nearest, and then, as long as it
/// helps, a segment moved elsewhere. Among equals the first wins, so the order of a fresh model is that of the table.
fn cheapest_order(costs: &[Vec<f64>]) -> Vec<usize> {
    let v = costs.len();
    let nearest = |of: &mut dyn Iterator<Item = usize>, cost: &dyn Fn(usize) -> f64| {
        of.min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
    };
    let mut order: Vec<usize> = nearest(&mut (0..v), &|i| costs[i][i]).into_iter().collect();
    while order.len() < v {
        let last = order[order.len() - 1];
        let next = nearest(&mut (0..v).filter(|i| !order.contains(i)), &|i| costs[last][i]);
        order.extend(next);
    }
    let length = |order: &[usize]| order.windows(2).map(|step| costs[step[0]][step[1]]).sum::<f64>();
    let mut best = length(&order);
    // Each move shortens the path by more than rounding, so this ends.
    while let Some((moved, shorter)) = better_move(&order, best, &length) {
        (order, best) = (moved, shorter);
    }
    order
}

/// The first order, of those with up to three neighbours moved elsewhere behind the beginning, that is shorter.
fn better_move(order: &[usize], best: f64, length: &dyn Fn(&[usize]) -> f64) -> Option<(Vec<usize>, f64)> {
    let v = order.len();
    for size in 1..=3usize.min(v.saturating_sub(2)) {
        for start in 1..=v - size {
            let mut rest = order.to_vec();
            let segment: Vec<usize> = rest.drain(start..start + size).collect();
            for at in (1..=rest.len()).filter(|&at| at != start) {
                let mut moved = rest.clone();
                moved.splice(at..at, segment.iter().copied());
                let shorter = length(&moved);
                if shorter < best - 1e-9 * best.abs() {
                    return Some((moved, shorter));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use mamba_core::Rng;
    use proptest::prelude::*;

    /// All orders that begin with `order`, by brute force.
    fn shortest(order: &mut Vec<usize>, costs: &[Vec<f64>]) -> f64 {
        if order.len() == costs.len() {
            return order.windows(2).map(|step| costs[step[0]][step[1]]).sum();
        }
        let mut best = f64::INFINITY;
        for next in 0..costs.len() {
            if !order.contains(&next) {
                order.push(next);
                best = best.min(shortest(order, costs));
                order.pop();
            }
        }
        best
    }

    #[test]
    fn without_costs_the_order_is_that_of_the_table() {
        let nothing = vec![vec![0.0; 5]; 5];
        assert_eq!(cheapest_order(&mean_costs(&nothing, &nothing)), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_chain_is_found() {
        // 2 → 0 → 3 → 1 is cheap, the rest dear; 2 is the cheapest to begin with
        let mut costs = vec![vec![9.0; 4]; 4];
        for (from, to) in [(2, 2), (2, 0), (0, 3), (3, 1)] {
            costs[from][to] = 1.0;
        }
        assert_eq!(cheapest_order(&costs), [2, 0, 3, 1]);
    }

    #[test]
    fn what_was_never_taken_is_as_dear_as_the_dearest() {
        let costs = mean_costs(&[vec![2.0, 12.0], vec![0.0, 3.0]], &[vec![2.0, 3.0], vec![0.0, 1.0]]);
        assert_eq!(costs, [vec![1.0, 4.0], vec![4.0, 3.0]]);
    }

    fn length(order: &[usize], costs: &[Vec<f64>]) -> f64 {
        order.windows(2).map(|step| costs[step[0]][step[1]]).sum()
    }

    #[test]
    fn orders_are_near_the_best() {
        let mut rng = Rng::new(1);
        let mut ratio = || {
            let costs: Vec<Vec<f64>> =
                (0..6).map(|_| (0..6).map(|_| 0.1 + 0.9 * rng.uniform()).collect()).collect();
            let order = cheapest_order(&costs);
            length(&order, &costs) / shortest(&mut vec![order[0]], &costs)
        };
        let mean = (0..200).map(|_| ratio()).sum::<f64>() / 200.0;
        assert!((1.0..1.1).contains(&mean), "{mean}");
    }

    proptest! {
        #[test]
        fn an_order_has_every_variable_and_none_is_better_elsewhere(
            values in prop::collection::vec(0.1f64..1.0, 36),
        ) {
            let costs: Vec<Vec<f64>> = values.chunks(6).map(<[f64]>::to_vec).collect();
            let order = cheapest_order(&costs);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..6).collect::<Vec<_>>());
            let found = length(&order, &costs);
            for (from, to) in (1..6).flat_map(|from| (1..6).map(move |to| (from, to))) {
                let mut moved = order.clone();
                let variable = moved.remove(from);
                moved.insert(to, variable);
                prop_assert!(length(&moved, &costs) >= found * (1.0 - 1e-6), "{order:?} after {moved:?}");
            }
        }
    }
}
