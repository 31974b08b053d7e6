//! Launches of the normalisation's kernels, `cuda/norm.cu`.
#![allow(unsafe_code)] // launches

use super::{Kind, Op};
use crate::fused::Output;
use crate::gpu::{Buffer, Gpu, Grid, Module, address_of, kernel_args};
use candle_core::{DType, Result, Shape, Tensor};

/// Most threads of a block, for one row and group.
const MOST_THREADS: usize = 512;
/// Elements that a thread keeps; longer groups than `MOST_THREADS` times as many are read again.
const ITEMS: usize = 8;
/// Threads of a block that sums columns.
const COLUMNS: usize = 128;
/// Slices of rows that are summed side by side.
const SLICES: usize = 256;

kernel_args! {
    /// `NormArgs` of the kernels.
    struct NormArgs {
        x: u64,
        weight: u64,
        bias: u64,
        residual: u64,
        z: u64,
        y: u64,
        sum: u64,
        dy: u64,
        dsum: u64,
        dx: u64,
        dz: u64,
        statistics: u64,
        dweight: u64,
        rows: i64,
        d: i64,
        group: i64,
        layer: i64,
        norm_before_gate: i64,
        slice_rows: i64,
        eps: f64,
    }
}

/// The arguments that forward and backward share.
fn prepare(gpu: &Gpu, op: &Op, inputs: &[Option<Tensor>], x: &Tensor) -> Result<(Grid, NormArgs)> {
    let d = x.dims().last().copied().unwrap_or(1);
    let rows = x.elem_count() / d;
    let threads = op.group.div_ceil(ITEMS).next_power_of_two().clamp(32, MOST_THREADS);
    let grid = Grid { blocks: [rows * (d / op.group), 1], threads: [threads, 1] };
    let input = |i: usize| gpu.address(inputs[i].as_ref());
    let args = NormArgs {
        x: input(0)?,
        weight: input(1)?,
        bias: input(2)?,
        residual: input(3)?,
        z: input(4)?,
        rows: rows as i64,
        d: d as i64,
        group: op.group as i64,
        layer: i64::from(op.kind == Kind::Layer),
        norm_before_gate: i64::from(op.norm_before_gate),
        slice_rows: rows.div_ceil(SLICES).max(16) as i64,
        eps: op.eps,
        ..NormArgs::default()
    };
    Ok((grid, args))
}

/// Output and, if asked for, `x + residual`.
pub(super) fn forward(gpu: &Gpu, op: &Op, inputs: &[Option<Tensor>]) -> Result<Vec<Output>> {
    let Some(x) = &inputs[0] else { return Ok(Vec::new()) };
    let (grid, mut args) = prepare(gpu, op, inputs, x)?;
    let y = gpu.uninitialised(x.shape(), x.dtype())?;
    let sum = op.with_residual.then(|| gpu.uninitialised(x.shape(), x.dtype())).transpose()?;
    (args.y, args.sum) = (y.address(), address_of(&sum));
    // SAFETY: all of the inputs' shapes were checked to be that of `x`, or one row of it.
    unsafe { gpu.launch((Module::Norm, "forward", x.dtype()), grid, &args)? };
    Ok([Some(y), sum].into_iter().flatten().map(Buffer::into_output).collect())
}

/// Gradients in the order of the inputs.
pub(super) fn backward(
    gpu: &Gpu,
    op: &Op,
    inputs: &[Option<Tensor>],
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let Some(x) = &inputs[0] else { return Ok(Vec::new()) };
    let (grid, mut args) = prepare(gpu, op, inputs, x)?;
    let (rows, d, dtype) = (args.rows as usize, args.d as usize, x.dtype());
    let slices = rows.div_ceil(args.slice_rows as usize);
    let dx = gpu.uninitialised(x.shape(), dtype)?;
    let dz = inputs[4].as_ref().map(|z| gpu.uninitialised(z.shape(), dtype)).transpose()?;
    let statistics = gpu.uninitialised((grid.blocks[0], 2), DType::F32)?;
    let parts = gpu.uninitialised((slices, 2, d), DType::F32)?;
    args.dy = gpu.address(grads[0].as_ref())?;
    args.dsum = gpu.address(grads.get(1).and_then(Option::as_ref))?;
    (args.dx, args.dz) = (dx.address(), address_of(&dz));
    (args.statistics, args.dweight) = (statistics.address(), parts.address());
    // SAFETY: as in forward; one pair of statistics for each block.
    unsafe { gpu.launch((Module::Norm, "backward", dtype), grid, &args)? };
    // Slices lie on the grid's second axis: there are few.
    let grid = Grid { blocks: [d.div_ceil(COLUMNS), slices], threads: [COLUMNS, 1] };
    // SAFETY: as above; one row of parts for each slice.
    unsafe { gpu.launch((Module::Norm, "columns", dtype), grid, &args)? };
    // (D, 2): weight and bias
    let sums =
        gpu.sum_rows(Module::Norm, parts.address(), slices, (2, d), &Shape::from((d, 2)))?.into_tensor();
    let column = |i: usize| sums.narrow(1, i, 1)?.squeeze(1)?.contiguous();
    let bias = inputs[2].is_some().then(|| column(1)).transpose()?;
    let dx = dx.into_tensor();
    // The sum passes its gradient on to both terms.
    let residual = inputs[3].as_ref().map(|_| dx.clone());
    Ok(vec![Some(dx), Some(column(0)?), bias, residual, dz.map(Buffer::into_tensor)])
}
