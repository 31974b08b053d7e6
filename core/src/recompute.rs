//! Training with less memory: a part of the model keeps its input only, and runs once more in the backward pass (gradient
//! checkpointing, Chen et al. 2016, arXiv 1604.06174).
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use mamba_core::recompute::recompute;
//!
//! let weight = Var::new(&[[2f32, 0.0], [0.0, 3.0]], &Device::Cpu)?;
//! let x = Var::new(&[[1f32, 1.0]], &Device::Cpu)?;
//! let w = weight.as_tensor().clone();
//! let y = recompute(x.as_tensor(), &[w.clone()], move |x| x.matmul(&w)?.sqr())?;
//! let grads = y.sum_all()?.backward()?;
//! assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>()?, [[8.0, 18.0]]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, Var, bail};
#[cfg(feature = "cuda")]
use candle_core::{
    CudaStorage,
    backend::{BackendDevice, BackendStorage},
};
use std::sync::{Arc, Mutex, PoisonError};

/// `f(x)`, of which nothing but `x` and the result is kept until the backward pass.
///
/// `params` are the trainable tensors that `f` reads besides `x`; one that is left out gets no gradient. `f` must be a pure
/// function: then outputs and gradients have the same bits as without recomputation.
pub fn recompute(
    x: &Tensor,
    params: &[Tensor],
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let tracked: Vec<&Tensor> = std::iter::once(x).chain(params).filter(|t| t.track_op()).collect();
    if tracked.is_empty() {
        return f(x);
    }
    let grads: Cells = Arc::new(tracked.iter().map(|_| Mutex::new(None)).collect());
    let taps = tracked.iter().enumerate().map(|(index, t)| t.apply_op1(Tap { grads: grads.clone(), index }));
    let taps = Tensor::cat(&taps.collect::<Result<Vec<_>>>()?, 0)?; // one element for each
    let input = x.detach();
    let output = f(&input)?.contiguous()?;
    let whole = Whole {
        f,
        x: input,
        x_is_tracked: x.track_op(),
        params: params.iter().filter(|t| t.track_op()).cloned().collect(),
        output: Mutex::new(Some(output.detach())),
        grads,
    };
    drop(output); // and with it the graph inside
    taps.apply_op1(whole)
}

type Cells = Arc<Vec<Mutex<Option<Tensor>>>>;

/// Stands for an input in the outer graph: one element, whose gradient is what [`Whole`] left for it.
struct Tap {
    grads: Cells,
    index: usize,
}

impl CustomOp1 for Tap {
    fn name(&self) -> &'static str {
        "recompute input"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let one = match storage {
            CpuStorage::F32(_) => CpuStorage::F32(vec![0.0]),
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            _ => bail!("recompute: only f32 and f64 tensors are supported"),
        };
        Ok((one, Shape::from(1)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = Shape::from(1);
        Ok((storage.device().zeros_impl(&shape, storage.dtype())?, shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.grads[self.index].lock().unwrap_or_else(PoisonError::into_inner).take())
    }
}

/// The recomputed part.
struct Whole<F> {
    f: F,
    x: Tensor,
    x_is_tracked: bool,
    params: Vec<Tensor>,
    /// Until the outer graph takes it.
    output: Mutex<Option<Tensor>>,
    grads: Cells,
}

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync> CustomOp1 for Whole<F> {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some(output) = self.output.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("recompute: the output was taken before");
        };
        let (storage, _) = output.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => Ok((cpu.clone(), output.shape().clone())),
            _ => bail!("recompute: the output has left the CPU"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let Some(output) = self.output.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("recompute: the output was taken before");
        };
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Cuda(cuda) => Ok((cuda.try_clone(layout)?, output.shape().clone())),
            _ => bail!("recompute: the output has left the GPU"),
        }
    }

    fn bwd(&self, taps: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let x = match self.x_is_tracked {
            true => Var::from_tensor(&self.x)?.into_inner(),
            false => self.x.clone(),
        };
        // The gradient of Σ f(x) · grad by f(x) is grad itself.
        let mut inner = ((self.f)(&x)? * grad.detach())?.sum_all()?.backward()?;
        let inputs = self.x_is_tracked.then_some(&x).into_iter().chain(&self.params);
        for (cell, input) in self.grads.iter().zip(inputs) {
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = inner.remove(input);
        }
        Ok(Some(taps.zeros_like()?))
    }
}
