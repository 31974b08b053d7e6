//! Forecasters without a mixer: what the others have to beat.

use super::layers::{Input, Sizes};
use candle_core::{Module, Result, Tensor};
use mamba_core::nn::Linear;
use mamba_core::{Error, Init, ParamBuilder};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of DLinear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DLinearConfig {
    /// Steps of the moving average that is the trend; odd.
    pub moving_avg: usize,
}

impl Default for DLinearConfig {
    fn default() -> Self {
        Self { moving_avg: 25 }
    }
}

impl DLinearConfig {
    pub(crate) fn validate(&self) -> mamba_core::Result<()> {
        match self.moving_avg % 2 {
            1 => Ok(()),
            _ => Err(Error::Config(format!("moving_avg is {}, must be odd", self.moving_avg))),
        }
    }
}

/// DLinear (Zeng et al. 2023, arXiv 2205.13504): one linear map of the window's moving average and one of the rest, the
/// same for all variables.
#[derive(Clone, Debug)]
pub struct DLinear {
    seasonal: Linear,
    trend: Linear,
    average: Tensor,
}

impl DLinear {
    /// Parameters under upstream's names.
    pub fn new(cfg: &DLinearConfig, sizes: Sizes, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate()?;
        let (l, h) = (sizes.seq_len, sizes.pred_len);
        let map = |name: &str| {
            let pb = pb.pp(name);
            let weight = pb.get((h, l), "weight", Init::Const(1.0 / l as f64))?;
            Ok::<_, candle_core::Error>(Linear::from_tensors(
                weight,
                Some(pb.get_no_decay(h, "bias", Init::linear(l))?),
            ))
        };
        // Row t holds what each step of the window gives to the average around t; beyond the ends, the ends repeat.
        let half = cfg.moving_avg / 2;
        let mut average = vec![0f64; l * l];
        for t in 0..l {
            for k in 0..cfg.moving_avg {
                let step = (t + k).saturating_sub(half).min(l - 1);
                average[t * l + step] += 1.0 / cfg.moving_avg as f64;
            }
        }
        Ok(Self {
            seasonal: map("Linear_Seasonal")?,
            trend: map("Linear_Trend")?,
            average: Tensor::from_vec(average, (l, l), pb.device())?.to_dtype(pb.dtype())?,
        })
    }

    /// `(B, L, V)` → `(B, H, V)`.
    pub fn forward(&self, input: &Input) -> Result<Tensor> {
        let x = input.values.transpose(1, 2)?.contiguous()?; // (B, V, L)
        let trend = Linear::from_tensors(self.average.clone(), None).forward(&x)?;
        let rest = (&x - &trend)?;
        (self.seasonal.forward(&rest)? + self.trend.forward(&trend)?)?.transpose(1, 2)?.contiguous()
    }
}

/// Repeats the last `period` steps of the window: with a period of 1 the last value.
#[derive(Clone, Copy, Debug)]
pub struct Naive {
    period: usize,
    pred_len: usize,
}

impl Naive {
    /// A period beyond the window is an error.
    pub fn new(period: usize, sizes: Sizes) -> mamba_core::Result<Self> {
        match period == 0 || period > sizes.seq_len {
            true => Err(Error::Config(format!(
                "a season of {period} steps does not fit into a window of {}",
                sizes.seq_len
            ))),
            false => Ok(Self { period, pred_len: sizes.pred_len }),
        }
    }

    /// `(B, L, V)` → `(B, H, V)`.
    pub fn forward(&self, input: &Input) -> Result<Tensor> {
        let start = input.values.dim(1)? - self.period;
        let steps = (0..self.pred_len).map(|h| (start + h % self.period) as u32);
        input.values.contiguous()?.index_select(&Tensor::from_iter(steps, input.values.device())?, 1)
    }
}
