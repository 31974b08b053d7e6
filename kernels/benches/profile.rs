//! Where the time of one Mamba-1 layer goes: every op of it alone, with what it moves and computes, and how near it comes
//! to what the machine can do at most.
//!
//! ```text
//! cargo bench -p mamba-kernels --features testing --bench profile -- [d_model tokens]
//! ```
//!
//! `at least` is the longest of three times: bytes of inputs, outputs and gradients at the rate of a copy; operations of
//! matrix products at the rate of a large product; updates of states, and softplus and gate of each channel, at the rates of
//! registers alone. The backward pass of the scan is counted with what it computes again of the forward pass. Everything is best of several runs, in microseconds. A
//! second table has the scan forward at the shapes of real models.

mod shapes;

use candle_core::{DType, Result, Tensor, Var};
use mamba_kernels::ceilings::Ceilings;
use mamba_kernels::testing::pseudo_random;
use mamba_kernels::{CausalConv1d, Norm, SelectiveScan, linear};
use shapes::{SHAPES, Shape};
use std::time::{Duration, Instant};

/// States, taps, and channels inside the layer as a multiple: Mamba-1's defaults.
const N: usize = 16;
const K: usize = 4;
const EXPAND: usize = 2;
const TIME: Duration = Duration::from_millis(400);

type Run = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>>;

/// An op over some inputs.
struct Op {
    name: &'static str,
    inputs: Vec<Vec<usize>>,
    /// Operations of matrix products, updates of states, and channels with softplus and gate, of a forward pass.
    products: usize,
    updates: usize,
    gates: usize,
    run: Run,
}

fn ops(d: usize, len: usize) -> Vec<Op> {
    let (inner, rank) = (EXPAND * d, d.div_ceil(16));
    let map = |name, from: usize, parts: Vec<usize>| {
        let to: usize = parts.iter().sum();
        Op {
            name,
            inputs: vec![vec![1, len, from], vec![to, from]],
            products: 2 * len * from * to,
            updates: 0,
            gates: 0,
            run: Box::new(move |x| linear(&x[0], &x[1], None, &parts)),
        }
    };
    let norm = Op {
        name: "add, norm",
        inputs: vec![vec![1, len, d], vec![d], vec![1, len, d]],
        products: 0,
        updates: 0,
        gates: 0,
        run: Box::new(|x| {
            let (y, sum) = Norm::rms(&x[0], &x[1], 1e-5).residual(&x[2]).run_with_residual()?;
            Ok(vec![y, sum])
        }),
    };
    let conv = Op {
        name: "conv, SiLU",
        inputs: vec![vec![1, len, inner], vec![inner, K], vec![inner]],
        products: 0,
        updates: 0,
        gates: 0,
        run: Box::new(|x| Ok(vec![CausalConv1d::new(&x[0], &x[1]).bias(&x[2]).silu(true).run()?])),
    };
    let scan = Op {
        name: "scan, gate",
        inputs: scan_inputs(1, len, inner, N),
        products: 0,
        updates: len * inner * N,
        gates: len * inner,
        run: Box::new(|x| Ok(vec![scan(x)?])),
    };
    vec![
        norm,
        map("in_proj", d, vec![inner, inner]),
        conv,
        map("x_proj", inner, vec![rank, N, N]),
        map("dt_proj", rank, vec![inner]),
        scan,
        map("out_proj", inner, vec![d]),
    ]
}

/// u, δ, A, B, C, gate, D, bias of δ.
fn scan_inputs(batch: usize, len: usize, d: usize, n: usize) -> Vec<Vec<usize>> {
    let (wide, coefficient) = (vec![batch, len, d], vec![batch, len, n]);
    let [u, delta, gate] = [wide.clone(), wide.clone(), wide];
    vec![u, delta, vec![d, n], coefficient.clone(), coefficient, gate, vec![d], vec![d]]
}

/// The scan with all that a Mamba-1 layer asks of it.
fn scan(x: &[Tensor]) -> Result<Tensor> {
    let a = x[2].affine(4.0, -4.5)?;
    let scan = SelectiveScan::new(&x[0], &x[1], &a, &x[3], &x[4]).gate(&x[5]).skip(&x[6]);
    scan.delta_bias(&x[7]).softplus(true).run()
}

/// Pseudo-random tensors of these shapes.
fn tensors(shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
    shapes.iter().zip(1..).map(|(dims, seed)| pseudo_random(dims, seed, DType::F32)).collect()
}

/// The shortest of the times that `run` takes.
fn best(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let (begun, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || begun.elapsed() < TIME {
        let started = Instant::now();
        run()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Seconds that updates, softplus and gates take at least.
fn scan_in_registers(updates: usize, gates: usize, at_most: &Ceilings) -> f64 {
    updates as f64 / at_most.state_updates + gates as f64 / at_most.softplus_and_gate
}

/// One line of the table: microseconds, what is moved and computed, and the time that this takes at least.
fn print(
    name: &str,
    seconds: f64,
    bytes: usize,
    products: usize,
    (updates, gates): (usize, usize),
    at_most: &Ceilings,
) {
    let bounds = [
        (bytes as f64 / at_most.copy, "copy"),
        (products as f64 / at_most.products, "products"),
        (scan_in_registers(updates, gates, at_most), "registers"),
    ];
    let (least, of) = bounds.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("three bounds");
    println!(
        "| {name} | {:.0} | {:.1} | {:.2} | {:.0} | {:.0} ({of}) | {:.0} % |",
        1e6 * seconds,
        bytes as f64 / 1e6,
        products as f64 / 1e9,
        updates as f64 / 1e6,
        1e6 * least,
        100.0 * least / seconds
    );
}

fn main() -> Result<()> {
    shapes::keep_freed_memory();
    let numbers: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let (d, len) = match numbers[..] {
        [] => (256, 4096),
        [d, len] if d > 0 && len > 0 => (d, len),
        _ => candle_core::bail!("expected d_model and tokens, or neither, got {numbers:?}"),
    };
    let ceilings = Ceilings::measure(Duration::from_secs(1))?;
    let Ceilings { products, copy, state_updates, softplus_and_gate, .. } = ceilings;
    println!(
        "d_model {d}, {len} tokens, {} threads; {:.0} GFLOP/s of products, {:.0} GB/s of copies, {:.1} G state updates/s, \
        {:.2} G softplus and gate/s\n",
        rayon::current_num_threads(),
        products / 1e9,
        copy / 1e9,
        state_updates / 1e9,
        softplus_and_gate / 1e9
    );
    println!("| op | µs | MB | GFLOP | M updates | at least, µs | reached |\n|---|---|---|---|---|---|---|");
    let mut total = [0.0; 2];
    for op in ops(d, len) {
        let inputs = tensors(&op.inputs)?;
        let outputs = (op.run)(&inputs)?;
        let bytes = |tensors: &[Tensor]| 4 * tensors.iter().map(Tensor::elem_count).sum::<usize>();
        let (read, written) = (bytes(&inputs), bytes(&outputs));
        let forward = best(|| (op.run)(&inputs).map(drop))?;
        print(op.name, forward, read + written, op.products, (op.updates, op.gates), &ceilings);

        let tracked = inputs.iter().map(|x| Ok(Var::from_tensor(x)?.as_tensor().clone()));
        let tracked = tracked.collect::<Result<Vec<_>>>()?;
        let both = best(|| {
            let sums = (op.run)(&tracked)?.into_iter().map(|y| y.sum_all());
            let loss = sums.reduce(|a, b| a? + b?).expect("an op has outputs")?;
            loss.backward().map(drop)
        })?;
        let name = format!("{}, backward", op.name);
        print(&name, both - forward, 2 * read + written, 2 * op.products, (op.updates, op.gates), &ceilings);
        total[0] += forward;
        total[1] += both - forward;
    }
    println!(
        "| all | {:.0} | | | | | |\n| all, backward | {:.0} | | | | | |",
        1e6 * total[0],
        1e6 * total[1]
    );

    println!(
        "\n| scan forward: batch × tokens × channels × states | M tokens/s | G updates/s | of their rate | with softplus and gate |\n|---|---|---|---|---|"
    );
    for Shape { name, batch, len, d_inner, d_state, .. } in SHAPES {
        let inputs = tensors(&scan_inputs(batch, len, d_inner, d_state))?;
        let seconds = best(|| scan(&inputs).map(drop))?;
        let (tokens, channels) = ((batch * len) as f64 / seconds, batch * len * d_inner);
        let updates = tokens * (d_inner * d_state) as f64;
        println!(
            "| {name}: {batch} × {len} × {d_inner} × {d_state} | {:.2} | {:.1} | {:.0} % | {:.0} % |",
            tokens / 1e6,
            updates / 1e9,
            100.0 * updates / state_updates,
            100.0 * scan_in_registers(channels * d_state, channels, &ceilings) / seconds
        );
    }
    Ok(())
}
