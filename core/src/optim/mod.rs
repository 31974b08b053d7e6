//! Optimisation: gradients, [`AdamW`], learning-rate [`Schedule`], [`Ema`].

mod adamw;
mod ema;
mod gradients;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::Ema;
pub use gradients::Gradients;
pub use schedule::{Decay, Schedule};

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use std::cell::RefCell;

/// Values per parallel block. Sums go block by block in order, so it is part of a run's numbers.
const BLOCK: usize = 1 << 14;

/// The contiguous values behind a layout.
fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the tensor is not contiguous") };
    Ok(&storage.as_slice::<T>()?[start..end])
}

fn f32_values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the tensor is not contiguous") };
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => bail!("the tensor is not f32"),
    }
}

/// Runs a function once on a tensor's own f32 values, in place. candle calls it by shared reference, hence the cell.
struct OnValues<F>(RefCell<F>);

impl<F: FnMut(&mut [f32]) -> Result<()>> InplaceOp1 for OnValues<F> {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0.borrow_mut())(f32_values_mut(storage, layout)?)
    }
}

/// The same with the values of a second tensor to read.
struct OnTwo<F>(RefCell<F>);

impl<F: FnMut(&mut [f32], &[f32]) -> Result<()>> InplaceOp2 for OnTwo<F> {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        (self.0.borrow_mut())(f32_values_mut(s1, l1)?, values(s2, l2)?)
    }
}

fn on_values(x: &Tensor, f: impl FnMut(&mut [f32]) -> Result<()>) -> Result<()> {
    x.inplace_op1(&OnValues(RefCell::new(f)))
}

fn on_two(x: &Tensor, y: &Tensor, f: impl FnMut(&mut [f32], &[f32]) -> Result<()>) -> Result<()> {
    x.inplace_op2(y, &OnTwo(RefCell::new(f)))
}

/// Whether the fused f32 loops apply.
fn on_host_f32(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32
}
