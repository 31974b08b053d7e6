//! Launches of the convolution's kernels, `cuda/causal_conv1d.cu`.
#![allow(unsafe_code)] // launches

use super::Op;
use crate::fused::{Output, tensors};
use crate::gpu::{Buffer, Gpu, Grid, Kernel, Module, SpanPlan, SpansArgs, address_of, kernel_args};
use candle_core::{Result, Shape, Tensor};

/// Threads of a block: channels.
const THREADS: usize = 128;
/// Steps of a span, where there are enough of them to fill a GPU.
const SPAN: usize = 64;
const SHORT_SPAN: usize = 16;
/// Threads that fill a GPU.
const ENOUGH_THREADS: usize = 1 << 17;
/// The widest convolution of the narrow kernels.
const NARROW: usize = 4;

kernel_args! {
    /// `ConvArgs` of the kernels.
    struct ConvArgs {
        spans: SpansArgs,
        x: u64,
        weight: u64,
        bias: u64,
        initial_state: u64,
        y: u64,
        last_state: u64,
        dy: u64,
        dlast: u64,
        dx: u64,
        dweight: u64,
        dinitial: u64,
        d: i64,
        width: i64,
        silu: i64,
    }
}

/// Spans and the arguments that forward and backward share.
fn prepare(gpu: &Gpu, op: &Op, inputs: &[Option<Tensor>]) -> Result<(SpanPlan, ConvArgs)> {
    let tokens = op.segments.batch() * op.segments.seq_len();
    let span = if tokens.div_ceil(SPAN) * op.d < gpu.scaled(ENOUGH_THREADS) { SHORT_SPAN } else { SPAN };
    let plan = SpanPlan::new(gpu, &op.segments, span, span, op.reverse)?;
    let input = |i: usize| gpu.address(inputs[i].as_ref());
    let args = ConvArgs {
        spans: plan.args,
        x: input(0)?,
        weight: input(1)?,
        bias: input(2)?,
        initial_state: input(3)?,
        d: op.d as i64,
        width: op.width as i64,
        silu: i64::from(op.silu),
        ..ConvArgs::default()
    };
    Ok((plan, args))
}

/// Output and, if asked for, last state.
pub(super) fn forward(gpu: &Gpu, op: &Op, inputs: &[Option<Tensor>]) -> Result<Vec<Output>> {
    let Some(x) = &inputs[0] else { return Ok(Vec::new()) };
    let (plan, mut args) = prepare(gpu, op, inputs)?;
    let y = like_tokens(gpu, op, x)?;
    let state = (op.segments.count(), op.width - 1, op.d);
    let last = op.with_state.then(|| gpu.uninitialised(state, x.dtype())).transpose()?;
    (args.y, args.last_state) = (y.address(), address_of(&last));
    let name = if op.width > NARROW { "forward_wide" } else { "forward" };
    launch(gpu, (Module::CausalConv1d, name, x.dtype()), &plan, &args, op.d)?;
    Ok([Some(y), last].into_iter().flatten().map(Buffer::into_output).collect())
}

/// Gradients in the order of the inputs.
pub(super) fn backward(
    gpu: &Gpu,
    op: &Op,
    inputs: &[Option<Tensor>],
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let Some(x) = &inputs[0] else { return Ok(Vec::new()) };
    let (plan, mut args) = prepare(gpu, op, inputs)?;
    let (d, width, dtype) = (op.d, op.width, x.dtype());
    let dx = like_tokens(gpu, op, x)?;
    let parts = gpu.uninitialised((plan.count, width + 1, d), candle_core::DType::F32)?;
    let initial = inputs[3].as_ref().map(|state| gpu.uninitialised(state.shape(), dtype)).transpose()?;
    args.dy = gpu.address(grads[0].as_ref())?;
    args.dlast = gpu.address(grads.get(1).and_then(Option::as_ref))?;
    (args.dx, args.dweight, args.dinitial) = (dx.address(), parts.address(), address_of(&initial));
    let name = if width > NARROW { "backward_wide" } else { "backward" };
    launch(gpu, (Module::CausalConv1d, name, dtype), &plan, &args, d)?;
    // (D, K + 1): the taps of each channel and its bias
    let sums = gpu.sum_rows(
        Module::CausalConv1d,
        parts.address(),
        plan.count,
        (width + 1, d),
        &Shape::from((d, width + 1)),
    )?;
    let sums = sums.into_tensor();
    let weight = sums.narrow(1, 0, width)?.contiguous()?;
    let bias = match &inputs[2] {
        Some(_) => Some(sums.narrow(1, width, 1)?.squeeze(1)?.contiguous()?),
        None => None,
    };
    let [dx, initial] = <[_; 2]>::try_from(tensors([Some(dx), initial])).unwrap_or_default();
    Ok(vec![dx, Some(weight), bias, initial])
}

/// Memory for a value of every token; zero where padding is.
fn like_tokens(gpu: &Gpu, op: &Op, x: &Tensor) -> Result<Buffer> {
    match op.segments.has_padding() {
        true => gpu.zeros(x.shape(), x.dtype()),
        false => gpu.uninitialised(x.shape(), x.dtype()),
    }
}

fn launch(gpu: &Gpu, kernel: Kernel, plan: &SpanPlan, args: &ConvArgs, d: usize) -> Result<()> {
    let grid = Grid { blocks: [plan.count, d.div_ceil(THREADS)], threads: [THREADS, 1] };
    // SAFETY: inputs were checked against these sizes, outputs are allocated from them, and threads beyond the last
    // channel do nothing.
    unsafe { gpu.launch(kernel, grid, args) }
}
