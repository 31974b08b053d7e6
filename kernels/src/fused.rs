//! Ops with any number of differentiable inputs and outputs, on top of candle's one-input `CustomOp1`.
//!
//! candle knows custom ops of at most three inputs and one output. Packing many tensors into one would copy them, so
//! the graph is built from one-element *token* tensors instead and the real tensors stay where they are:
//!
//! ```text
//! input_i ─ Tap ─ token_i ┐                     ┌ Emit ─ output_0
//!                         ├ cat ─ Main ─ token ─┤
//! input_j ─ Tap ─ token_j ┘                     └ Emit ─ output_1
//! ```
//!
//! Backward runs the same way from right to left: each `Emit` leaves its output's gradient in a cell, `Main` takes them,
//! computes all input gradients and leaves them in the inputs' cells, and each `Tap` returns what its cell holds.

use crate::gpu::{Buffer, Gpu};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, StorageRef, Tensor, WithDType, bail,
};
#[cfg(feature = "cuda")]
use candle_core::{CudaDevice, CudaStorage, backend::BackendDevice};
use std::sync::{Arc, Mutex, PoisonError};

/// A result on its way into a tensor.
pub(crate) struct Output {
    pub(crate) storage: Storage,
    pub(crate) shape: Shape,
}

impl Output {
    pub(crate) fn cpu<T: WithDType>(data: Vec<T>, shape: impl Into<Shape>) -> Self {
        Self { storage: Storage::Cpu(T::to_cpu_storage_owned(data)), shape: shape.into() }
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}

/// A differentiable op over a list of optional inputs. Inputs arrive detached and contiguous.
pub(crate) trait Fused: Send + Sync + Sized + 'static {
    /// What forward leaves for backward.
    type Saved: Send + Sync;
    const NAME: &'static str;

    /// Computes the outputs. `track` says whether backward may be called, hence whether to save anything.
    fn forward(&self, inputs: &[Option<Tensor>], track: bool) -> Result<(Vec<Output>, Self::Saved)>;

    /// One gradient for each input, given one for each output (`None`: the loss does not depend on it).
    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        saved: &Self::Saved,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>>;
}

/// Runs `op` and, if any input is tracked, records it for backward.
pub(crate) fn apply<F: Fused>(op: F, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let detached = inputs.iter().map(|x| x.map(|x| x.detach().contiguous()).transpose());
    let detached = detached.collect::<Result<Vec<_>>>()?;
    let tracked = inputs.iter().any(|x| x.is_some_and(|x| x.track_op()));
    let (outputs, saved) = op.forward(&detached, tracked)?;
    if !tracked {
        return Ok(outputs.into_iter().map(Output::into_tensor).collect());
    }
    let input_grads = cells(inputs.len());
    let output_grads = cells(outputs.len());
    let mut taps = Vec::new();
    for (i, x) in inputs.iter().enumerate() {
        if let Some(x) = x
            && x.track_op()
        {
            taps.push(x.apply_op1(Tap { grads: input_grads.clone(), index: i })?);
        }
    }
    let taps = Tensor::cat(&taps, 0)?;
    let main = Main { op, inputs: detached, saved, input_grads, output_grads: output_grads.clone() };
    let token = taps.apply_op1(main)?;
    outputs
        .into_iter()
        .enumerate()
        .map(|(index, output)| {
            token.apply_op1(Emit { output: Mutex::new(Some(output)), grads: output_grads.clone(), index })
        })
        .collect()
}

type Cells = Arc<Vec<Mutex<Option<Tensor>>>>;

fn cells(n: usize) -> Cells {
    Arc::new((0..n).map(|_| Mutex::new(None)).collect())
}

fn put(cells: &Cells, index: usize, value: Option<Tensor>) {
    *cells[index].lock().unwrap_or_else(PoisonError::into_inner) = value;
}

fn take(cells: &Cells, index: usize) -> Option<Tensor> {
    cells[index].lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A token: its value means nothing.
fn token() -> (CpuStorage, Shape) {
    (f32::to_cpu_storage_owned(vec![0.0]), Shape::from(1))
}

#[cfg(feature = "cuda")]
fn token_on(device: &CudaDevice) -> Result<(CudaStorage, Shape)> {
    let shape = Shape::from(1);
    Ok((device.zeros_impl(&shape, DType::F32)?, shape))
}

struct Tap {
    grads: Cells,
    index: usize,
}

impl CustomOp1 for Tap {
    fn name(&self) -> &'static str {
        "tap"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        token_on(&storage.device)
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(take(&self.grads, self.index))
    }
}

struct Main<F: Fused> {
    op: F,
    inputs: Vec<Option<Tensor>>,
    saved: F::Saved,
    input_grads: Cells,
    output_grads: Cells,
}

impl<F: Fused> CustomOp1 for Main<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        token_on(&storage.device)
    }
    fn bwd(&self, arg: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let grads = (0..self.output_grads.len())
            .map(|i| take(&self.output_grads, i).map(|g| g.contiguous()).transpose())
            .collect::<Result<Vec<_>>>()?;
        let input_grads = self.op.backward(&self.inputs, &self.saved, &grads)?;
        for (i, grad) in input_grads.into_iter().enumerate() {
            put(&self.input_grads, i, grad);
        }
        Ok(Some(arg.zeros_like()?.detach()))
    }
}

struct Emit {
    output: Mutex<Option<Output>>,
    grads: Cells,
    index: usize,
}

impl CustomOp1 for Emit {
    fn name(&self) -> &'static str {
        "emit"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        match output {
            Some(Output { storage: Storage::Cpu(storage), shape }) => Ok((storage, shape)),
            _ => bail!("fused op: the output was already taken or lies on another device"),
        }
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        match output {
            Some(Output { storage: Storage::Cuda(storage), shape }) => Ok((storage, shape)),
            _ => bail!("fused op: the output was already taken or lies on another device"),
        }
    }
    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        put(&self.grads, self.index, Some(grad.detach()));
        Ok(Some(arg.zeros_like()?.detach()))
    }
}

/// Runs `$body` with `$T` standing for the element type of the first of `$inputs`.
macro_rules! with_element_type {
    ($inputs:expr, $T:ident => $body:expr) => {
        match $inputs[0].as_ref().map(candle_core::Tensor::dtype) {
            Some(candle_core::DType::F64) => {
                type $T = f64;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use with_element_type;

/// Gradients as tensors in the shapes of the inputs; none for an input that is not there.
pub(crate) fn like_inputs<T: WithDType>(
    grads: impl IntoIterator<Item = Option<Vec<T>>>,
    inputs: &[Option<Tensor>],
) -> Vec<Option<Tensor>> {
    let tensor = |(grad, x): (Option<Vec<T>>, &Option<Tensor>)| {
        Some(Output::cpu(grad?, x.as_ref()?.shape()).into_tensor())
    };
    grads.into_iter().zip(inputs).map(tensor).collect()
}

/// Read access to the elements of a contiguous CPU tensor.
pub(crate) struct Elements<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Elements<'a> {
    pub(crate) fn new(x: &'a Tensor) -> Self {
        let (storage, layout) = x.storage_and_layout();
        Self { storage, layout }
    }

    /// All elements in row-major order.
    pub(crate) fn slice<T: WithDType>(&self) -> Result<&[T]> {
        let Storage::Cpu(storage) = &*self.storage else { bail!("expected a CPU tensor") };
        let all = T::cpu_storage_as_slice(storage)?;
        match self.layout.contiguous_offsets() {
            // An empty tensor may say that it begins behind the end of its storage.
            Some((start, end)) if start == end => Ok(&[]),
            Some((start, end)) => Ok(&all[start..end]),
            None => bail!("expected a contiguous tensor"),
        }
    }
}

/// [`Elements`] of every input that is there.
pub(crate) fn elements(inputs: &[Option<Tensor>]) -> Vec<Option<Elements<'_>>> {
    inputs.iter().map(|x| x.as_ref().map(Elements::new)).collect()
}

/// The same for memory on a GPU.
pub(crate) fn tensors(grads: impl IntoIterator<Item = Option<Buffer>>) -> Vec<Option<Tensor>> {
    grads.into_iter().map(|grad| grad.map(Buffer::into_tensor)).collect()
}

/// Checks that every input has the dtype and device of the first, that the dtype is one we compute in, and that the
/// device is the CPU: for ops without kernels for a GPU.
pub(crate) fn same_dtype_and_device(name: &str, inputs: &[(&str, Option<&Tensor>)]) -> Result<()> {
    check_inputs(name, inputs, &[], false)
}

/// The same for ops that also have kernels for a GPU. Half precision, which there is on a GPU alone, is for data that
/// belongs to tokens: `parameters` and states may be f32 beside it.
pub(crate) fn same_dtype_and_device_or_gpu(
    name: &str,
    inputs: &[(&str, Option<&Tensor>)],
    parameters: &[&str],
) -> Result<()> {
    check_inputs(name, inputs, parameters, true)
}

fn check_inputs(
    name: &str,
    inputs: &[(&str, Option<&Tensor>)],
    parameters: &[&str],
    gpu: bool,
) -> Result<()> {
    let Some((_, Some(first))) = inputs.first() else { bail!("{name}: the first input is missing") };
    let gpu = gpu && Gpu::of(Some(first)).is_some();
    if !gpu && !first.device().is_cpu() {
        bail!("{name}: there is no kernel for device {:?}", first.device().location());
    }
    match (first.dtype(), gpu) {
        (DType::F32 | DType::F64, false) | (DType::F32 | DType::BF16 | DType::F16, true) => {}
        (other, false) => bail!("{name}: dtype {other:?} is not supported, expected f32 or f64"),
        (other, true) => {
            bail!("{name}: dtype {other:?} is not supported on a GPU, expected f32, bf16 or f16")
        }
    }
    for (label, x) in inputs {
        let Some(x) = x else { continue };
        let f32_beside_half = is_half(first) && x.dtype() == DType::F32 && parameters.contains(label);
        if x.dtype() != first.dtype() && !f32_beside_half {
            bail!("{name}: {label} has dtype {:?}, expected {:?}", x.dtype(), first.dtype());
        }
        if !x.device().same_device(first.device()) {
            bail!("{name}: {label} lies on another device than {}", inputs[0].0);
        }
    }
    Ok(())
}

fn is_half(x: &Tensor) -> bool {
    matches!(x.dtype(), DType::BF16 | DType::F16)
}

/// Half precision becomes f32, differentiably.
pub(crate) fn widen(x: &Tensor) -> Result<Tensor> {
    if is_half(x) { x.to_dtype(DType::F32) } else { Ok(x.clone()) }
}

/// A parameter or state as kernels take it, in f32 instead of half precision.
pub(crate) fn full_precision(x: Option<&Tensor>) -> Result<Option<Tensor>> {
    x.map(widen).transpose()
}

/// `f` of `x`, in f32 where `x` is in half precision.
pub(crate) fn widened(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    f(&widen(x)?)?.to_dtype(x.dtype())
}

/// Checks the shape of an input that may be absent.
pub(crate) fn expect_shape(name: &str, label: &str, x: Option<&Tensor>, shape: &[usize]) -> Result<()> {
    match x {
        Some(x) if x.dims() != shape => {
            bail!("{name}: {label} has shape {:?}, expected {shape:?}", x.dims())
        }
        _ => Ok(()),
    }
}
