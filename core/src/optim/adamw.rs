//! AdamW with decoupled weight decay, <https://arxiv.org/abs/1711.05101>, algorithm 2:
//!
//! ```text
//! p ← p · (1 - lr · weight_decay)                       only where the parameter decays
//! m ← β₁ m + (1 - β₁) g
//! v ← β₂ v + (1 - β₂) g²
//! p ← p - lr · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)
//! ```

use super::{BLOCK, Gradients, on_host_f32, on_two, on_values};
use crate::params::Param;
use crate::{Error, Params};
use candle_core::{DType, Result, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Settings of [`AdamW`]; the learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay per unit of learning rate, for the parameters that decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The optimizer and its state: step count and two moments per parameter.
///
/// f32 parameters on the CPU are updated by one fused, parallel loop; others by tensor ops. Moments are at least f32, and
/// parameters in half precision have an f32 master copy that is updated in their place: steps that are smaller than the
/// parameter's rounding add up there.
/// A parameter without a gradient is updated as if its gradient were zero, so its moments go on decaying;
/// [`Gradients::missing`] tells which those are.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    param: Param,
    /// The parameter in f32, if it is in half precision.
    master: Option<Var>,
    m: Var,
    v: Var,
}

/// One step's numbers, the same for all parameters of a group.
#[derive(Clone, Copy)]
struct Factors {
    grad: f64,
    shrink: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    /// lr / (1 - β₁ᵗ)
    step_size: f64,
    /// √(1 - β₂ᵗ)
    v_root: f64,
}

impl AdamW {
    /// Zero moments for every trainable parameter.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        let slot = |param: Param| {
            let dtype = if param.tensor().dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let zeros = || Var::zeros(param.tensor().shape(), dtype, param.tensor().device());
            let half = matches!(param.tensor().dtype(), DType::BF16 | DType::F16);
            let copy = || Var::from_tensor(&param.tensor().detach().to_dtype(DType::F32)?);
            let master = half.then(copy).transpose()?;
            Ok(Slot { m: zeros()?, v: zeros()?, master, param })
        };
        let trainable = params.named().into_iter().filter(|p| p.var().is_some());
        Ok(Self { config, step: 0, slots: trainable.map(slot).collect::<Result<_>>()? })
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Updates every parameter in place.
    pub fn step(&mut self, grads: &Gradients, lr: f64) -> Result<()> {
        self.step += 1;
        let AdamWConfig { betas: (beta1, beta2), eps, weight_decay } = self.config;
        let t = self.step as f64;
        for (slot, (param, grad)) in self.slots.iter().zip(grads.iter()) {
            debug_assert_eq!(slot.param.name(), param.name());
            let zeros;
            let grad = match grad {
                Some(grad) => grad,
                None => {
                    zeros = param.tensor().zeros_like()?;
                    &zeros
                }
            };
            slot.update(
                grad,
                Factors {
                    grad: grads.factor(),
                    shrink: if param.decay() { 1.0 - lr * weight_decay } else { 1.0 },
                    beta1,
                    beta2,
                    eps,
                    step_size: lr / (1.0 - beta1.powf(t)),
                    v_root: (1.0 - beta2.powf(t)).sqrt(),
                },
            )?;
        }
        Ok(())
    }

    /// The moments as tensors named `m/NAME` and `v/NAME`, and `master/NAME` for each parameter in half precision; they
    /// share memory with the optimizer.
    pub fn to_tensors(&self) -> BTreeMap<String, Tensor> {
        let named = self.slots.iter().flat_map(|slot| {
            let name = slot.param.name();
            slot.vars().map(move |(kind, var)| (format!("{kind}/{name}"), var.as_detached_tensor()))
        });
        named.collect()
    }

    /// Takes back what [`to_tensors`](Self::to_tensors) gave, bit for bit; other entries are ignored.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>, step: u64) -> crate::Result<()> {
        for slot in &self.slots {
            for (prefix, var) in slot.vars() {
                let name = format!("{prefix}/{}", slot.param.name());
                let value = tensors.get(&name);
                let value =
                    value.ok_or_else(|| Error::Tensors { missing: vec![name], unexpected: vec![] })?;
                var.set(&value.to_device(var.device())?)?;
            }
        }
        self.step = step;
        Ok(())
    }
}

impl Slot {
    /// What is saved, by kind.
    fn vars(&self) -> impl Iterator<Item = (&'static str, &Var)> {
        let master = self.master.iter().map(|var| ("master", var));
        [("m", &self.m), ("v", &self.v)].into_iter().chain(master)
    }

    fn update(&self, grad: &Tensor, f: Factors) -> Result<()> {
        let Some(var) = self.param.var() else { return Ok(()) };
        if !on_host_f32(var) {
            return self.update_by_tensor_ops(var, grad, f);
        }
        // the parameter is locked first, then its gradient, then the moments: no other order is ever taken
        let grad = grad.contiguous()?;
        on_two(var, &grad, |p, g| {
            on_values(&self.m, |m| {
                on_values(&self.v, |v| {
                    fused(p, g, m, v, f);
                    Ok(())
                })
            })
        })
    }

    fn update_by_tensor_ops(&self, var: &Var, grad: &Tensor, f: Factors) -> Result<()> {
        let g = (grad.detach().to_dtype(self.m.dtype())? * f.grad)?;
        let m = ((self.m.as_detached_tensor() * f.beta1)? + (&g * (1.0 - f.beta1))?)?;
        let v = ((self.v.as_detached_tensor() * f.beta2)? + (g.sqr()? * (1.0 - f.beta2))?)?;
        let denominator = ((v.sqrt()? / f.v_root)? + f.eps)?;
        let now = self.master.as_ref().unwrap_or(var).as_detached_tensor();
        let p = (now.to_dtype(self.m.dtype())? * f.shrink)?;
        let p = (p - ((&m / denominator)? * f.step_size)?)?;
        self.m.set(&m)?;
        self.v.set(&v)?;
        if let Some(master) = &self.master {
            master.set(&p)?;
        }
        var.set(&p.to_dtype(var.dtype())?)
    }
}

fn fused(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
    let [scale, shrink, beta1, beta2, eps] = [f.grad, f.shrink, f.beta1, f.beta2, f.eps].map(|x| x as f32);
    let [rest1, rest2, step_size, v_scale] =
        [1.0 - f.beta1, 1.0 - f.beta2, f.step_size, 1.0 / f.v_root].map(|x| x as f32);
    let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
    let blocks = p.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(moments);
    blocks.for_each(|((p, g), (m, v))| {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * scale;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *p = *p * shrink - step_size * *m / (v.sqrt() * v_scale + eps);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;
    use candle_core::Device;

    const CONFIG: AdamWConfig = AdamWConfig { betas: (0.9, 0.99), eps: 1e-3, weight_decay: 0.5 };

    /// torch's AdamW, written out for one number.
    fn by_hand(mut p: f64, grads: &[f64], lr: f64, decay: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (i, g) in grads.iter().enumerate() {
            let t = i as i32 + 1;
            p -= lr * decay * p;
            m = 0.9 * m + 0.1 * g;
            v = 0.99 * v + 0.01 * g * g;
            let m_hat = m / (1.0 - 0.9f64.powi(t));
            let v_hat: f64 = v / (1.0 - 0.99f64.powi(t));
            p -= lr * m_hat / (v_hat.sqrt() + 1e-3);
        }
        p
    }

    fn model(dtype: DType) -> Result<(Params, Tensor, Tensor)> {
        let params = Params::fresh(0, dtype, &Device::Cpu);
        let w = params.builder().get(3, "w", Init::Const(2.0))?;
        let b = params.builder().get_no_decay(1, "b", Init::Const(-1.0))?;
        Ok((params, w, b))
    }

    fn as_f64(t: &Tensor) -> Result<Vec<f64>> {
        t.detach().to_dtype(DType::F64)?.to_vec1()
    }

    #[test]
    fn three_steps_match_the_formula_with_and_without_decay() -> Result<()> {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
            let (params, w, b) = model(dtype)?;
            let mut optimizer = AdamW::new(&params, CONFIG)?;
            for g in [0.5, -2.0, 0.25] {
                let loss = ((w.sum_all()? * g)? + (b.sum_all()? * (3.0 * g))?)?;
                let mut grads = Gradients::of(&loss, &params)?;
                grads.scale(2.0);
                optimizer.step(&grads, 0.1)?;
            }
            let expected = by_hand(2.0, &[1.0, -4.0, 0.5], 0.1, 0.5);
            assert!(as_f64(&w)?.iter().all(|p| (p - expected).abs() < tolerance), "{dtype:?} {w} {expected}");
            let expected = by_hand(-1.0, &[3.0, -12.0, 1.5], 0.1, 0.0);
            assert!((as_f64(&b)?[0] - expected).abs() < tolerance, "{dtype:?} {b} {expected}");
        }
        Ok(())
    }

    #[test]
    fn without_a_gradient_moments_decay_and_the_parameter_coasts() -> Result<()> {
        let (params, w, b) = model(DType::F32)?;
        let mut optimizer = AdamW::new(&params, CONFIG)?;
        optimizer.step(&Gradients::of(&(w.sum_all()? + b.sum_all()?)?, &params)?, 0.1)?;
        let grads = Gradients::of(&w.sum_all()?, &params)?;
        assert_eq!(grads.missing(), ["b"]);
        optimizer.step(&grads, 0.1)?;
        let expected = by_hand(-1.0, &[1.0, 0.0], 0.1, 0.0);
        assert!((as_f64(&b)?[0] - expected).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn steps_below_the_rounding_of_bf16_add_up_in_the_master_copy() -> crate::Result<()> {
        let (params, w, _) = model(DType::BF16)?;
        let mut optimizer = AdamW::new(&params, AdamWConfig { weight_decay: 0.0, ..CONFIG })?;
        // bf16 has steps of 2^-7 below 2; each update is 2e-4.
        for _ in 0..100 {
            optimizer.step(&Gradients::of(&w.sum_all()?, &params)?, 2e-4)?;
        }
        let master = as_f64(&optimizer.to_tensors()["master/w"])?;
        assert!(master.iter().all(|p| (p - 1.98).abs() < 1e-4), "{master:?}");
        assert_eq!(as_f64(&w)?, [1.9765625; 3]);
        Ok(())
    }

    #[test]
    fn master_copies_come_back_bit_for_bit() -> crate::Result<()> {
        let steps = |optimizer: &mut AdamW, params: &Params, w: &Tensor| {
            (0..7).try_for_each(|_| optimizer.step(&Gradients::of(&w.sqr()?.sum_all()?, params)?, 1e-3))
        };
        let (params, w, _) = model(DType::BF16)?;
        let mut whole = AdamW::new(&params, CONFIG)?;
        steps(&mut whole, &params, &w)?;
        let saved: BTreeMap<_, _> =
            whole.to_tensors().iter().map(|(k, t)| Ok((k.clone(), t.copy()?))).collect::<Result<_>>()?;
        let weights = w.detach().copy()?;
        steps(&mut whole, &params, &w)?;

        let (again, w2, _) = model(DType::BF16)?;
        let mut resumed = AdamW::new(&again, CONFIG)?;
        resumed.restore(&saved, 7)?;
        again.set("w", &weights)?;
        steps(&mut resumed, &again, &w2)?;
        let master = |o: &AdamW| o.to_tensors()["master/w"].to_vec1::<f32>();
        assert_eq!(master(&whole)?, master(&resumed)?);
        assert_eq!(as_f64(&w)?, as_f64(&w2)?);
        Ok(())
    }

    #[test]
    fn the_state_comes_back_bit_for_bit() -> crate::Result<()> {
        let train = |from: usize, to: usize, optimizer: &mut AdamW, params: &Params, w: &Tensor| {
            (from..to).try_for_each(|i| {
                let loss = (w.sqr()?.sum_all()? * (i as f64 + 0.3))?;
                optimizer.step(&Gradients::of(&loss, params)?, 0.01)
            })
        };
        let (params, w, _) = model(DType::F32)?;
        let mut whole = AdamW::new(&params, CONFIG)?;
        train(0, 5, &mut whole, &params, &w)?;
        let saved: BTreeMap<_, _> =
            whole.to_tensors().into_iter().map(|(k, t)| (k, t.copy().unwrap())).collect();
        let weights = w.detach().copy()?;
        train(5, 9, &mut whole, &params, &w)?;

        let (again, w2, _) = model(DType::F32)?;
        let mut resumed = AdamW::new(&again, CONFIG)?;
        resumed.restore(&saved, 5)?;
        again.set("w", &weights)?;
        train(5, 9, &mut resumed, &again, &w2)?;
        let bits = |t: &Tensor| t.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&w), bits(&w2));
        assert!(resumed.restore(&BTreeMap::new(), 5).is_err());
        Ok(())
    }
}
