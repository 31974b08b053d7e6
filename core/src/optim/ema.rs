//! Exponential moving average of the parameters.

use super::{BLOCK, on_host_f32, on_two};
use crate::params::Param;
use crate::{Error, Params};
use candle_core::{DType, Result, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Averaged copies of the trainable parameters: `e ← decay · e + (1 - decay) · p`, starting at the parameters. Those of
/// parameters in half precision are f32, in which such small steps add up.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    slots: Vec<(Param, Var)>,
    /// The parameters in half precision while their averages stand in their place.
    parked: Vec<Tensor>,
}

impl Ema {
    /// Starts at the current values.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        let trainable = params.named().into_iter().filter(|p| p.var().is_some());
        let slot = |p: Param| Ok((p.clone(), Var::from_tensor(&widen(&p)?)?));
        Ok(Self { decay, slots: trainable.map(slot).collect::<Result<_>>()?, parked: Vec::new() })
    }

    /// Moves the averages towards the current parameters.
    pub fn update(&mut self) -> Result<()> {
        let (keep, rest) = (self.decay as f32, (1.0 - self.decay) as f32);
        for (param, average) in &self.slots {
            if on_host_f32(average) && on_host_f32(param.tensor()) {
                on_two(average, param.tensor(), |e, p| {
                    e.par_chunks_mut(BLOCK).zip(p.par_chunks(BLOCK)).for_each(|(e, p)| {
                        e.iter_mut().zip(p).for_each(|(e, &p)| *e = keep * *e + rest * p);
                    });
                    Ok(())
                })?;
            } else {
                let kept = (average.as_detached_tensor() * self.decay)?;
                average.set(&(kept + (widen(param)? * (1.0 - self.decay))?)?)?;
            }
        }
        Ok(())
    }

    /// Exchanges averages and parameters: once to evaluate with the averages, once more to train on.
    pub fn swap(&mut self) -> Result<()> {
        let mut parked = std::mem::take(&mut self.parked).into_iter();
        for (param, average) in &self.slots {
            let Some(var) = param.var() else { continue };
            if var.dtype() != average.dtype() {
                // The average keeps all its digits; the parameter waits beside it.
                match parked.next() {
                    Some(current) => var.set(&current)?,
                    None => {
                        self.parked.push(var.as_detached_tensor().copy()?);
                        var.set(&average.as_detached_tensor().to_dtype(var.dtype())?)?;
                    }
                }
                continue;
            }
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

/// A parameter's value, in f32 instead of half precision.
fn widen(param: &Param) -> Result<Tensor> {
    let value = param.tensor().detach();
    match value.dtype() {
        DType::BF16 | DType::F16 => value.to_dtype(DType::F32),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;
    use candle_core::Device;

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

    #[test]
    fn averages_of_half_precision_move_by_steps_below_its_rounding() -> Result<()> {
        let params = Params::fresh(0, DType::BF16, &Device::Cpu);
        let a = params.builder().get(1, "a", Init::Const(1.0))?;
        let mut ema = Ema::new(&params, 0.999)?;
        params.set("a", &Tensor::new(&[2f32], &Device::Cpu)?)?;
        (0..100).try_for_each(|_| ema.update())?; // each step moves it by less than 2^-8
        let average = |ema: &Ema| ema.to_tensors()["ema/a"].to_vec1::<f32>();
        let before = average(&ema)?;
        assert!((f64::from(before[0]) - (2.0 - 0.999f64.powi(100))).abs() < 1e-5, "{before:?}");
        ema.swap()?;
        assert_eq!(a.to_dtype(DType::F32)?.to_vec1::<f32>()?, [1.09375]); // 1.0952 in bf16
        ema.swap()?;
        assert_eq!(a.to_dtype(DType::F32)?.to_vec1::<f32>()?, [2.0]);
        assert_eq!(average(&ema)?, before);
        Ok(())
    }
}
