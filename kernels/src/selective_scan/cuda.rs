//! Launches of the scan's kernels, `cuda/selective_scan.cu`.
#![allow(unsafe_code)] // launches

use super::{Dims, Op};
use crate::fused::{Output, tensors};
use crate::gpu::{Buffer, Gpu, Grid, MAX_BLOCKS_Y, Module, SpanPlan, SpansArgs, address_of, kernel_args};
use candle_core::{DType, Result, Shape, Tensor, bail};

// As in the kernels.
const LANES: usize = 32;
const STATES: usize = 4;
const WARPS: usize = 4;
const ROUND: usize = STATES * WARPS;
const THREADS: usize = LANES * WARPS;
const CHUNK: usize = 32;

/// Segments are cut along L where fewer warps than this have states to work on, and then into as many spans as make
/// `MANY_WARPS`. Cutting costs a second walk over all but the last spans, as much work as the first, so that a GPU must
/// be less than half used before it pays; once cut, more and shorter spans leave no multiprocessor waiting for the last
/// one. Constants, so that results are the same bits on any GPU.
const ENOUGH_WARPS: usize = 1024;
const MANY_WARPS: usize = 8192;
/// Spans are no shorter than this many steps.
const MIN_SPAN: usize = 128;
/// Blocks of the backward pass at most; each walks several spans if there are more.
const MOST_BLOCKS: usize = 16_384;

kernel_args! {
    /// `ScanArgs` of the kernels.
    struct ScanArgs {
        spans: SpansArgs,
        u: u64,
        delta: u64,
        a: u64,
        b: u64,
        c: u64,
        skip: u64,
        z: u64,
        delta_bias: u64,
        initial_state: u64,
        y: u64,
        last_state: u64,
        kept: u64,
        span_states: u64,
        span_delta: u64,
        carry: u64,
        dy: u64,
        dlast: u64,
        du: u64,
        ddelta: u64,
        dz: u64,
        dinitial: u64,
        db_parts: u64,
        dc_parts: u64,
        da_parts: u64,
        dskip_parts: u64,
        dbias_parts: u64,
        spans_per_block: i64,
        tokens: i64,
        d: i64,
        n: i64,
        b_groups: i64,
        c_groups: i64,
        run: i64,
        tiles_of_run: i64,
        first_tile: i64,
        softplus: i64,
    }
}

kernel_args! {
    /// `SumTilesArgs` of the kernels.
    struct SumTilesArgs {
        parts: u64,
        sum: u64,
        output: u64,
        tokens: i64,
        n: i64,
        groups: i64,
        tiles_of_group: i64,
        first_tile: i64,
        tiles: i64,
    }
}

/// How a scan is cut into blocks.
struct Launches<'a> {
    gpu: &'a Gpu,
    dims: Dims,
    dtype: DType,
    plan: SpanPlan,
    /// Tiles of 32 channels.
    tiles: usize,
    rounds: usize,
    args: ScanArgs,
}

impl<'a> Launches<'a> {
    fn new(gpu: &'a Gpu, op: &Op, inputs: &[Option<Tensor>], dtype: DType) -> Result<Self> {
        let Dims { d, n, b_groups, c_groups, .. } = op.dims;
        let run = greatest_common_divisor(d / b_groups.max(1), d / c_groups.max(1));
        let tiles_of_run = run.div_ceil(LANES);
        let tiles = d / run * tiles_of_run;
        let working = n.div_ceil(STATES).min(WARPS);
        let lines = (op.segments.count() * tiles * working).max(1);
        let cuts = if lines < gpu.scaled(ENOUGH_WARPS) { gpu.scaled(MANY_WARPS) / lines } else { 1 };
        let longest = op.segments.iter().map(|s| s.len()).max().unwrap_or(1);
        let span = longest.div_ceil(cuts).max(MIN_SPAN).next_multiple_of(CHUNK);
        let plan = SpanPlan::new(gpu, &op.segments, span, CHUNK, op.reverse)?;
        let input = |i: usize| gpu.address(inputs[i].as_ref());
        let args = ScanArgs {
            spans: plan.args,
            u: input(0)?,
            delta: input(1)?,
            a: input(2)?,
            b: input(3)?,
            c: input(4)?,
            skip: input(5)?,
            z: input(6)?,
            delta_bias: input(7)?,
            initial_state: input(8)?,
            spans_per_block: 1,
            tokens: (op.segments.batch() * op.segments.seq_len()) as i64,
            d: d as i64,
            n: n as i64,
            b_groups: b_groups as i64,
            c_groups: c_groups as i64,
            run: run as i64,
            tiles_of_run: tiles_of_run as i64,
            softplus: i64::from(op.softplus),
            ..ScanArgs::default()
        };
        Ok(Self { gpu, dims: op.dims, dtype, plan, tiles, rounds: n.div_ceil(ROUND), args })
    }

    /// Tiles `first .. first + len` of each launch, so that no launch has more than `most`.
    fn waves(&self, most: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let tiles = self.tiles;
        (0..tiles).step_by(most).map(move |first| (first, most.min(tiles - first)))
    }

    fn grid(&self, blocks: usize, tiles: usize) -> Grid {
        Grid { blocks: [blocks, tiles], threads: [LANES, WARPS] }
    }

    /// Memory for the states of rounds that wait; the kernels for constant coefficients keep a single round there too.
    fn carry(&self, blocks: usize, tiles: usize) -> Result<Option<Buffer>> {
        let shape = (blocks * tiles, self.rounds, STATES * THREADS);
        (self.rounds > 1 || self.has_constant())
            .then(|| self.gpu.uninitialised(shape, DType::F32))
            .transpose()
    }

    fn has_constant(&self) -> bool {
        self.dims.b_groups == 0 || self.dims.c_groups == 0
    }

    /// The variant of a kernel for these sizes: plain, for more than one round of states, for constant coefficients.
    fn variant(&self, names: [&'static str; 3]) -> &'static str {
        names[if self.has_constant() { 2 } else { usize::from(self.rounds > 1) }]
    }

    /// One of the kernels that walk over all tiles.
    fn walk(&self, names: [&'static str; 3], args: &ScanArgs) -> Result<()> {
        let name = self.variant(names);
        for (first_tile, tiles) in self.waves(self.gpu.scaled(MAX_BLOCKS_Y)) {
            let carry = self.carry(self.plan.count, tiles)?;
            let args = ScanArgs { first_tile: first_tile as i64, carry: address_of(&carry), ..*args };
            // SAFETY: inputs were checked against these sizes and outputs are allocated from them.
            unsafe {
                self.gpu.launch(
                    (Module::SelectiveScan, name, self.dtype),
                    self.grid(self.plan.count, tiles),
                    &args,
                )?
            };
        }
        Ok(())
    }

    /// The states that enter the spans of segments that are cut; in backward, the gradients that enter from behind.
    fn border_states(&mut self, names: [&'static str; 3], join: &'static str) -> Result<Option<[Buffer; 2]>> {
        if !self.plan.is_cut {
            return Ok(None);
        }
        let Dims { d, n, .. } = self.dims;
        let states = self.gpu.uninitialised((self.plan.count, n, d), DType::F32)?;
        let delta = self.gpu.uninitialised((self.plan.count, d), DType::F32)?;
        (self.args.span_states, self.args.span_delta) = (states.address(), delta.address());
        self.walk(names, &self.args)?;
        let grid = Grid::line(self.args.spans.segments as usize * n * d, THREADS);
        // SAFETY: as in `walk`; threads beyond the last state do nothing.
        unsafe { self.gpu.launch((Module::SelectiveScan, join, DType::F32), grid, &self.args)? };
        Ok(Some([states, delta]))
    }

    /// The sum of parts (rows, n, d) as a gradient of `shape`.
    fn sum(&self, parts: &Buffer, rows: usize, n: usize, shape: &Shape) -> Result<Buffer> {
        self.gpu.sum_rows(Module::SelectiveScan, parts.address(), rows, (n, self.dims.d), shape)
    }
}

/// Output, last state if asked for, and with `track` the states that backward starts from.
pub(super) fn forward(
    gpu: &Gpu,
    op: &Op,
    inputs: &[Option<Tensor>],
    track: bool,
) -> Result<(Vec<Output>, Option<Tensor>)> {
    let Some(u) = &inputs[0] else { bail!("selective_scan: there is no u") };
    let mut launches = Launches::new(gpu, op, inputs, u.dtype())?;
    let Dims { d, n, .. } = op.dims;
    let _borders = launches.border_states(["summary", "summary_rounds", "summary_constant"], "join")?;
    let y = like_tokens(gpu, op, u)?;
    let state = (op.segments.count(), d, n);
    let last = op.with_state.then(|| gpu.uninitialised(state, DType::F32)).transpose()?;
    let kept = track.then(|| gpu.uninitialised((launches.plan.chunks, n, d), DType::F32)).transpose()?;
    let args =
        ScanArgs { y: y.address(), last_state: address_of(&last), kept: address_of(&kept), ..launches.args };
    launches.walk(["forward", "forward_rounds", "forward_constant"], &args)?;
    let outputs = [Some(y), last].into_iter().flatten().map(Buffer::into_output).collect();
    Ok((outputs, kept.map(Buffer::into_tensor)))
}

/// Gradients in the order of the inputs.
pub(super) fn backward(
    gpu: &Gpu,
    op: &Op,
    inputs: &[Option<Tensor>],
    kept: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let [Some(u), Some(_), Some(a), Some(b), Some(c), ..] = inputs else {
        bail!("selective_scan: an input is missing")
    };
    let mut launches = Launches::new(gpu, op, inputs, u.dtype())?;
    let Dims { d, n, b_groups, c_groups, .. } = op.dims;
    launches.args.dy = gpu.address(grads[0].as_ref())?;
    launches.args.dlast = gpu.address(grads.get(1).and_then(Option::as_ref))?;
    launches.args.kept = gpu.address(Some(kept))?;
    let names = ["summary_back", "summary_back_rounds", "summary_back_constant"];
    let _borders = launches.border_states(names, "join_back")?;

    let (du, ddelta) = (like_tokens(gpu, op, u)?, like_tokens(gpu, op, u)?);
    let dz = inputs[6].as_ref().map(|z| like_tokens(gpu, op, z)).transpose()?;
    let dinitial = inputs[8].as_ref().map(|h| gpu.uninitialised(h.shape(), DType::F32)).transpose()?;
    // Parts of sums over spans.
    let spans = launches.plan.count;
    let per_block = (spans * launches.tiles).div_ceil(gpu.scaled(MOST_BLOCKS)).max(1);
    let blocks = spans.div_ceil(per_block);
    let part = |n: usize| gpu.uninitialised((blocks, n, d), DType::F32);
    let (da, dskip, dbias) = (part(n)?, part(1)?, part(1)?);
    // Parts of sums over channels; of as many tiles at a time as take up to two values for each of B·L·D.
    let wave = (d / n).clamp(1, launches.tiles.min(gpu.scaled(MAX_BLOCKS_Y)));
    let mut db = Coefficient::new(&launches, op, b, b_groups, blocks, wave)?;
    let mut dc = Coefficient::new(&launches, op, c, c_groups, blocks, wave)?;
    let args = ScanArgs {
        du: du.address(),
        ddelta: ddelta.address(),
        dz: address_of(&dz),
        dinitial: address_of(&dinitial),
        da_parts: da.address(),
        dskip_parts: dskip.address(),
        dbias_parts: dbias.address(),
        db_parts: db.parts.address(),
        dc_parts: dc.parts.address(),
        spans_per_block: per_block as i64,
        ..launches.args
    };
    let name = launches.variant(["backward", "backward_rounds", "backward_constant"]);
    let carry = launches.carry(blocks, wave)?;
    for (first_tile, tiles) in launches.waves(wave) {
        let args = ScanArgs { first_tile: first_tile as i64, carry: address_of(&carry), ..args };
        // SAFETY: inputs were checked against these sizes and outputs are allocated from them.
        unsafe { gpu.launch((Module::SelectiveScan, name, u.dtype()), launches.grid(blocks, tiles), &args)? };
        db.add(&launches, first_tile, tiles)?;
        dc.add(&launches, first_tile, tiles)?;
    }
    let sum = |parts: &Buffer, n: usize, like: &Tensor| launches.sum(parts, blocks, n, like.shape());
    let optional = |parts: &Buffer, i: usize| inputs[i].as_ref().map(|x| sum(parts, 1, x)).transpose();
    let (db, dc) = (db.finish(&launches, blocks, b)?, dc.finish(&launches, blocks, c)?);
    Ok(tensors([
        Some(du),
        Some(ddelta),
        Some(sum(&da, n, a)?),
        Some(db),
        Some(dc),
        optional(&dskip, 5)?,
        dz,
        optional(&dbias, 7)?,
        dinitial,
    ]))
}

/// The gradient of B or C while it is summed.
struct Coefficient {
    groups: usize,
    parts: Buffer,
    /// Of a coefficient that varies with the token.
    gradient: Option<Buffer>,
    /// Sums between waves, if there is more than one.
    sum: Option<Buffer>,
}

impl Coefficient {
    fn new(l: &Launches<'_>, op: &Op, x: &Tensor, groups: usize, blocks: usize, wave: usize) -> Result<Self> {
        let Dims { d, n, .. } = l.dims;
        if groups == 0 {
            let parts = l.gpu.uninitialised((blocks, n, d), DType::F32)?;
            return Ok(Self { groups, parts, gradient: None, sum: None });
        }
        let shape = (wave, l.args.tokens as usize, n);
        let parts = match op.segments.has_padding() {
            true => l.gpu.zeros(shape, DType::F32)?,
            false => l.gpu.uninitialised(shape, DType::F32)?,
        };
        let gradient = Some(l.gpu.uninitialised(x.shape(), x.dtype())?);
        let waves = l.waves(wave).count();
        let sum = (waves > 1).then(|| l.gpu.uninitialised(x.shape(), DType::F32)).transpose()?;
        Ok(Self { groups, parts, gradient, sum })
    }

    /// Adds the parts of one wave.
    fn add(&mut self, l: &Launches<'_>, first_tile: usize, tiles: usize) -> Result<()> {
        if self.groups == 0 {
            return Ok(());
        }
        let n = l.dims.n;
        let is_last = first_tile + tiles == l.tiles;
        let args = SumTilesArgs {
            parts: self.parts.address(),
            sum: address_of(&self.sum),
            output: if is_last { address_of(&self.gradient) } else { 0 },
            tokens: l.args.tokens,
            n: n as i64,
            groups: self.groups as i64,
            tiles_of_group: (l.tiles / self.groups) as i64,
            first_tile: first_tile as i64,
            tiles: tiles as i64,
        };
        let grid = Grid::line(l.args.tokens as usize * self.groups * n, THREADS);
        // SAFETY: parts of `tiles` tiles, and one sum for each token, group and state.
        unsafe { l.gpu.launch((Module::SelectiveScan, "sum_tiles", l.dtype), grid, &args) }
    }

    /// The gradient in the shape of `x`.
    fn finish(self, l: &Launches<'_>, blocks: usize, x: &Tensor) -> Result<Buffer> {
        match self.gradient {
            Some(gradient) => Ok(gradient),
            None => l.sum(&self.parts, blocks, l.dims.n, x.shape()),
        }
    }
}

/// Memory for a value of every token and channel; zero where padding is.
fn like_tokens(gpu: &Gpu, op: &Op, x: &Tensor) -> Result<Buffer> {
    match op.segments.has_padding() {
        true => gpu.zeros(x.shape(), x.dtype()),
        false => gpu.uninitialised(x.shape(), x.dtype()),
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
