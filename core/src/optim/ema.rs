//! Exponential moving average of the parameters.

use super::{BLOCK, on_host_f32, on_two};
use crate::params::Param;
use crate::{Error, Params};
use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Averaged copies of the trainable parameters: `e ← decay · e + (1 - decay) · p`, starting at the parameters.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    slots: Vec<(Param, Var)>,
}

impl Ema {
    /// Starts at the current values.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        let trainable = params.named().into_iter().filter(|p| p.var().is_some());
        let slot = |p: Param| Ok((p.clone(), Var::from_tensor(&p.tensor().detach())?));
        Ok(Self { decay, slots: trainable.map(slot).collect::<Result<_>>()? })
    }

    /// Moves the averages towards the current parameters.
    pub fn update(&mut self) -> Result<()> {
        let (keep, rest) = (self.decay as f32, (1.0 - self.decay) as f32);
        for (param, average) in &self.slots {
            if on_host_f32(average) {
                on_two(average, param.tensor(), |e, p| {
                    e.par_chunks_mut(BLOCK).zip(p.par_chunks(BLOCK)).for_each(|(e, p)| {
                        e.iter_mut().zip(p).for_each(|(e, &p)| *e = keep * *e + rest * p);
                    });
                    Ok(())
                })?;
            } else {
                let kept = (average.as_detached_tensor() * self.decay)?;
                average.set(&(kept + (param.tensor().detach() * (1.0 - self.decay))?)?)?;
            }
        }
        Ok(())
    }

    /// Exchanges averages and parameters: once to evaluate with the averages, once more to train on.
    pub fn swap(&mut self) -> Result<()> {
        for (param, average) in &self.slots {
            let Some(var) = param.var() else { continue };
            let current = var.as_detached_tensor().copy()?;
            var.set(average)?;
            average.set(&current)?;
        }
        Ok(())
    }

    /// The averages as tensors named `ema/NAME`; they share memory with this.
    pub fn to_tensors(&self) -> BTreeMap<String, Tensor> {
        self.slots.iter().map(|(p, e)| (format!("ema/{}", p.name()), e.as_detached_tensor())).collect()
    }

    /// Takes back what [`to_tensors`](Self::to_tensors) gave; other entries are ignored.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>) -> crate::Result<()> {
        for (param, average) in &self.slots {
            let name = format!("ema/{}", param.name());
            let value = tensors.get(&name);
            let value = value.ok_or_else(|| Error::Tensors { missing: vec![name], unexpected: vec![] })?;
            average.set(&value.to_device(average.device())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;
    use candle_core::{DType, Device};

    #[test]
    fn averages_move_by_hand_worked_steps_and_swap_back() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let params = Params::fresh(0, dtype, &Device::Cpu);
            let a = params.builder().get(1, "a", Init::Const(1.0))?;
            let mut ema = Ema::new(&params, 0.75)?;
            params.set("a", &Tensor::new(&[5f32], &Device::Cpu)?)?;
            ema.update()?; // 0.75 · 1 + 0.25 · 5 = 2
            ema.update()?; // 0.75 · 2 + 0.25 · 5 = 2.75
            let value = || a.to_dtype(DType::F64)?.to_vec1::<f64>();
            ema.swap()?;
            assert_eq!(value()?, [2.75]);
            ema.swap()?;
            assert_eq!(value()?, [5.0]);
            assert_eq!(ema.to_tensors()["ema/a"].to_dtype(DType::F64)?.to_vec1::<f64>()?, [2.75]);
        }
        Ok(())
    }
}
