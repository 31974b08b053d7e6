//! Launches of the scan's kernels, `cuda/ssd.cu`.
#![allow(unsafe_code)] // launches

use super::{Dims, NAME, Op};
use crate::fused::{Output, tensors};
use crate::gpu::{Buffer, Gpu, Grid, Module, SpanPlan, SpansArgs, address_of, kernel_args};
use candle_core::{DType, Result, Shape, Tensor, bail};

// As in the kernels.
const CHUNK: usize = 64;
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// Rows and columns of a product.
const SIDE: usize = 64;
/// Blocks that we want at least; with fewer, the heads of a group are shared out to more of them. A constant, so that
/// results are the same bits on any GPU.
const ENOUGH_BLOCKS: usize = 1024;

kernel_args! {
    /// `SsdArgs` of the kernels.
    struct SsdArgs {
        spans: SpansArgs,
        x: u64,
        dt: u64,
        a: u64,
        b: u64,
        c: u64,
        skip: u64,
        z: u64,
        dt_bias: u64,
        initial_state: u64,
        into_state: u64,
        into_output: u64,
        delta: u64,
        log: u64,
        log_rest: u64,
        states: u64,
        y: u64,
        last_state: u64,
        dy: u64,
        dlast: u64,
        grads: u64,
        dx: u64,
        ddt: u64,
        dz: u64,
        dinto_state: u64,
        dinto_output: u64,
        dinitial: u64,
        da_parts: u64,
        dskip_parts: u64,
        dbias_parts: u64,
        dproducts: u64,
        db_parts: u64,
        dc_parts: u64,
        tokens: i64,
        h: i64,
        p: i64,
        g: i64,
        n: i64,
        shares: i64,
        heads_of_share: i64,
        skip_per_channel: i64,
        softplus: i64,
        limited: i64,
        lowest: f64,
        highest: f64,
    }
}

kernel_args! {
    /// `SumSharesArgs` of the kernels.
    struct SumSharesArgs {
        parts: u64,
        output: u64,
        shares: i64,
        count: i64,
    }
}

/// How a scan is cut into blocks.
struct Launches<'a> {
    gpu: &'a Gpu,
    dims: Dims,
    dtype: DType,
    plan: SpanPlan,
    /// Shares of the heads of a group.
    shares: usize,
    tokens: usize,
    args: SsdArgs,
}

impl<'a> Launches<'a> {
    fn new(gpu: &'a Gpu, op: &Op, inputs: &[Option<Tensor>], dtype: DType) -> Result<Self> {
        let Dims { h, p, g, n, d_per_channel, .. } = op.dims;
        if h * p > i32::MAX as usize || g * n > i32::MAX as usize {
            bail!("{NAME}: a token of {h} × {p} channels or {g} × {n} coefficients is too large for a GPU");
        }
        let plan = SpanPlan::new(gpu, &op.segments, CHUNK, CHUNK, op.reverse)?;
        let in_group = h / g;
        let wanted = gpu.scaled(ENOUGH_BLOCKS).div_ceil((plan.count * g).max(1)).min(in_group);
        let heads_of_share = in_group.div_ceil(wanted);
        let shares = in_group.div_ceil(heads_of_share);
        let tokens = op.segments.batch() * op.segments.seq_len();
        let (lowest, highest) = op.dt_limit.unwrap_or_default();
        let input = |i: usize| gpu.address(inputs[i].as_ref());
        let args = SsdArgs {
            spans: plan.args,
            x: input(0)?,
            dt: input(1)?,
            a: input(2)?,
            b: input(3)?,
            c: input(4)?,
            skip: input(5)?,
            z: input(6)?,
            dt_bias: input(7)?,
            initial_state: input(8)?,
            into_state: input(9)?,
            into_output: input(10)?,
            tokens: tokens as i64,
            h: h as i64,
            p: p as i64,
            g: g as i64,
            n: n as i64,
            shares: shares as i64,
            heads_of_share: heads_of_share as i64,
            skip_per_channel: i64::from(d_per_channel),
            softplus: i64::from(op.softplus),
            limited: i64::from(op.dt_limit.is_some()),
            lowest,
            highest,
            ..SsdArgs::default()
        };
        Ok(Self { gpu, dims: op.dims, dtype, plan, shares, tokens, args })
    }

    fn run(&self, name: &'static str, blocks: usize) -> Result<()> {
        let dtype = if name.starts_with("pass") { DType::F32 } else { self.dtype };
        let grid = Grid { blocks: [blocks, 1], threads: [THREADS, 1] };
        // SAFETY: inputs were checked against these sizes, buffers are allocated from them, and blocks are counted as
        // the kernels say; threads beyond the last element do nothing.
        unsafe { self.gpu.launch((Module::Ssd, name, dtype), grid, &self.args) }
    }

    /// δ and decays of each token; kept alive while kernels read them.
    fn steps(&mut self) -> Result<[Buffer; 3]> {
        let new = || self.gpu.uninitialised((self.tokens, self.dims.h), DType::F32);
        let buffers = [new()?, new()?, new()?];
        [self.args.delta, self.args.log, self.args.log_rest] = buffers.each_ref().map(Buffer::address);
        self.run("steps", (self.plan.count * self.dims.h).div_ceil(THREADS))?;
        Ok(buffers)
    }

    /// One state for each chunk.
    fn chunk_states(&self) -> Result<Buffer> {
        let Dims { h, p, n, .. } = self.dims;
        self.gpu.uninitialised((self.plan.count, h, p, n), DType::F32)
    }

    /// What each chunk adds to the state, then the state before each chunk; or the same for gradients.
    fn pass_states(&self, chunks: &'static str, pass: &'static str) -> Result<()> {
        let Dims { h, p, n, .. } = self.dims;
        self.run(chunks, self.plan.count * h * p.div_ceil(SIDE) * n.div_ceil(SIDE))?;
        self.run(pass, (self.args.spans.segments as usize * h * p * n).div_ceil(THREADS))
    }

    /// Blocks for each chunk, group, share and one of `tiles`.
    fn of_shares(&self, tiles: usize) -> usize {
        self.plan.count * tiles * self.dims.g * self.shares
    }

    fn sum_rows(&self, parts: &Buffer, rows: usize, n: usize, d: usize) -> Result<Buffer> {
        self.gpu.sum_rows(Module::Ssd, parts.address(), rows, (n, d), &Shape::from(n * d))
    }

    /// The gradient of B or C, of shape `x`, from its shares.
    fn sum_shares(&self, parts: &Buffer, x: &Tensor) -> Result<Buffer> {
        let output = self.gpu.uninitialised(x.shape(), x.dtype())?;
        let count = x.elem_count();
        let args = SumSharesArgs {
            parts: parts.address(),
            output: output.address(),
            shares: self.shares as i64,
            count: count as i64,
        };
        let grid = Grid::line(count, THREADS);
        // SAFETY: `parts` holds `shares` times as many elements as `output`.
        unsafe { self.gpu.launch((Module::Ssd, "sum_shares", self.dtype), grid, &args)? };
        Ok(output)
    }
}

/// Output, last state if asked for, and with `track` the states before the chunks.
pub(super) fn forward(
    gpu: &Gpu,
    op: &Op,
    inputs: &[Option<Tensor>],
    track: bool,
) -> Result<(Vec<Output>, Option<Tensor>)> {
    let Some(x) = &inputs[0] else { bail!("{NAME}: there is no x") };
    let mut launches = Launches::new(gpu, op, inputs, x.dtype())?;
    let Dims { h, p, n, .. } = op.dims;
    let y = like_tokens(gpu, op, x)?;
    let state = (op.segments.count(), h, p, n);
    let last = op.with_state.then(|| gpu.uninitialised(state, DType::F32)).transpose()?;
    (launches.args.y, launches.args.last_state) = (y.address(), address_of(&last));
    let one_token_each = op.segments.are_whole_rows() && op.segments.seq_len() == 1;
    let saved = if one_token_each && !track {
        launches.run("step", (op.segments.count() * h * p).div_ceil(WARPS))?;
        None
    } else {
        let _steps = launches.steps()?;
        let states = launches.chunk_states()?;
        launches.args.states = states.address();
        launches.pass_states("chunk_states", "pass")?;
        launches.run("output", launches.of_shares(p.div_ceil(SIDE)))?;
        track.then(|| states.into_tensor())
    };
    let outputs = [Some(y), last].into_iter().flatten().map(Buffer::into_output).collect();
    Ok((outputs, saved))
}

/// Gradients in the order of the inputs.
pub(super) fn backward(
    gpu: &Gpu,
    op: &Op,
    inputs: &[Option<Tensor>],
    states: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let [Some(x), Some(dt), Some(_), Some(b), Some(c), ..] = inputs else {
        bail!("{NAME}: an input is missing")
    };
    let mut launches = Launches::new(gpu, op, inputs, x.dtype())?;
    let Dims { h, p, g, n, d_per_channel, .. } = op.dims;
    let (chunks, shares, tokens) = (launches.plan.count, launches.shares, launches.tokens);
    launches.args.dy = gpu.address(grads[0].as_ref())?;
    launches.args.dlast = gpu.address(grads.get(1).and_then(Option::as_ref))?;
    launches.args.states = gpu.address(Some(states))?;
    let _steps = launches.steps()?;
    let dinitial = inputs[8].as_ref().map(|h| gpu.uninitialised(h.shape(), DType::F32)).transpose()?;
    launches.args.dinitial = address_of(&dinitial);
    let state_grads = launches.chunk_states()?;
    launches.args.grads = state_grads.address();
    launches.pass_states("readers", "pass_back")?;

    let (dx, ddt) = (like_tokens(gpu, op, x)?, like_tokens(gpu, op, dt)?);
    let like = |i: usize| inputs[i].as_ref().map(|x| like_tokens(gpu, op, x)).transpose();
    // The gate's gradient is written only where the output has one.
    let dz = match grads[0] {
        Some(_) => like(6)?,
        None => inputs[6].as_ref().map(|z| gpu.zeros(z.shape(), z.dtype())).transpose()?,
    };
    let (dinto_state, dinto_output) = (like(9)?, like(10)?);
    let (da, dbias) =
        (gpu.uninitialised((chunks, h), DType::F32)?, gpu.uninitialised((chunks, h), DType::F32)?);
    let skips = || gpu.uninitialised((chunks, h, p), DType::F32);
    let dskip = inputs[5].as_ref().map(|_| skips()).transpose()?;
    let dproducts = gpu.uninitialised((chunks, g, shares, CHUNK * CHUNK), DType::F32)?;
    let part = || match op.segments.has_padding() {
        true => gpu.zeros((shares, tokens, g, n), DType::F32),
        false => gpu.uninitialised((shares, tokens, g, n), DType::F32),
    };
    let (db, dc) = (part()?, part()?);
    launches.args = SsdArgs {
        dx: dx.address(),
        ddt: ddt.address(),
        dz: address_of(&dz),
        dinto_state: address_of(&dinto_state),
        dinto_output: address_of(&dinto_output),
        da_parts: da.address(),
        dskip_parts: address_of(&dskip),
        dbias_parts: dbias.address(),
        dproducts: dproducts.address(),
        db_parts: db.address(),
        dc_parts: dc.address(),
        ..launches.args
    };
    launches.run("gradients", launches.of_shares(1))?;
    launches.run("coefficients", launches.of_shares(n.div_ceil(SIDE)))?;
    // (H·P), or over the channels of each head, which `sum_rows` leaves as (P, H), to (H)
    let dskip = match &dskip {
        None => None,
        Some(parts) if d_per_channel => Some(launches.sum_rows(parts, chunks, 1, h * p)?),
        Some(parts) => {
            let channels = launches.sum_rows(parts, chunks, h, p)?;
            Some(launches.sum_rows(&channels, p, 1, h)?)
        }
    };
    let dskip = match (dskip, &inputs[5]) {
        (Some(sum), Some(d)) => Some(sum.into_tensor().reshape(d.shape())?),
        _ => None,
    };
    let dbias = inputs[7].as_ref().map(|_| launches.sum_rows(&dbias, chunks, 1, h)).transpose()?;
    let da = launches.sum_rows(&da, chunks, 1, h)?;
    let (db, dc) = (launches.sum_shares(&db, b)?, launches.sum_shares(&dc, c)?);
    let mut out = tensors([
        Some(dx),
        Some(ddt),
        Some(da),
        Some(db),
        Some(dc),
        None,
        dz,
        dbias,
        dinitial,
        dinto_state,
        dinto_output,
    ]);
    out[5] = dskip;
    Ok(out)
}

/// Memory for a value of every token; zero where padding is.
fn like_tokens(gpu: &Gpu, op: &Op, x: &Tensor) -> Result<Buffer> {
    match op.segments.has_padding() {
        true => gpu.zeros(x.shape(), x.dtype()),
        false => gpu.uninitialised(x.shape(), x.dtype()),
    }
}
