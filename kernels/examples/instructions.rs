//! One op on one small shape on one thread, for instruction counters: `instructions OP`, where OP is one of the names that
//! `instructions` alone lists. Only what [`measured`] calls counts; `.ci/instructions` compares the counts with those in
//! `kernels/benches/instructions.tsv`.

use candle_core::{DType, Result, Tensor, Var};
use mamba_kernels::testing::pseudo_random;
use mamba_kernels::{CausalConv1d, Conv2d, Norm, SelectiveScan, Ssd, conv2d, linear, linear_cross_entropy};
use std::process::ExitCode;

/// An op over some inputs.
type Op = fn(&[Tensor]) -> Result<Tensor>;

/// Name, shapes of the inputs, and the op. Sizes are those of a small model over a few hundred tokens.
const OPS: [(&str, &[&[usize]], Op); 8] = [
    ("selective_scan", &[&[2, 256, 64], &[2, 256, 64], &[64, 16], &[2, 256, 16], &[2, 256, 16]], |x| {
        SelectiveScan::new(&x[0], &x[1], &(x[2].abs()? + 0.1)?.neg()?, &x[3], &x[4]).softplus(true).run()
    }),
    (
        "selective_scan_step",
        &[&[1, 1, 512], &[1, 1, 512], &[512, 16], &[1, 1, 16], &[1, 1, 16], &[1, 512, 16]],
        |x| {
            let a = (x[2].abs()? + 0.1)?.neg()?;
            let scan = SelectiveScan::new(&x[0], &x[1], &a, &x[3], &x[4]).softplus(true);
            Ok(scan.initial_state(&x[5]).run_with_state()?.0)
        },
    ),
    ("ssd", &[&[2, 256, 4, 16], &[2, 256, 4], &[4], &[2, 256, 1, 16], &[2, 256, 1, 16]], |x| {
        Ssd::new(&x[0], &x[1], &(x[2].abs()? + 0.1)?.neg()?, &x[3], &x[4]).softplus(true).run()
    }),
    ("causal_conv1d", &[&[2, 512, 128], &[128, 4], &[128]], |x| {
        CausalConv1d::new(&x[0], &x[1]).bias(&x[2]).silu(true).run()
    }),
    ("rms_norm", &[&[2, 512, 128], &[128], &[2, 512, 128]], |x| {
        Ok(Norm::rms(&x[0], &x[1], 1e-5).residual(&x[2]).run_with_residual()?.0)
    }),
    ("linear", &[&[256, 128], &[256, 128]], |x| Ok(linear(&x[0], &x[1], None, &[128, 128])?.remove(0))),
    ("linear_cross_entropy", &[&[256, 64], &[1000, 64]], |x| {
        let targets: Vec<u32> = (0..256).map(|i| i * 37 % 1000).collect();
        linear_cross_entropy(&x[0], &x[1], &Tensor::new(targets, x[0].device())?)
    }),
    ("conv2d", &[&[1, 32, 32, 16], &[16, 16, 3, 3]], |x| conv2d(&[&x[0]], &x[1], None, Conv2d::default())),
];

/// What is counted.
#[inline(never)]
fn measured(op: Op, inputs: &[Tensor], backward: bool) -> Result<()> {
    let y = op(inputs)?;
    if backward {
        y.backward()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let (name, backward) =
        wanted.strip_suffix("_backward").map_or((wanted.as_str(), false), |name| (name, true));
    let Some((_, shapes, op)) = OPS.iter().find(|(op, ..)| *op == name) else {
        for (name, ..) in OPS {
            println!("{name}\n{name}_backward");
        }
        return if wanted.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    let inputs = shapes.iter().zip(1..).map(|(dims, seed)| {
        let x = pseudo_random(dims, seed, DType::F32)?;
        if backward { Ok(Var::from_tensor(&x)?.as_tensor().clone()) } else { Ok(x) }
    });
    let inputs = inputs.collect::<Result<Vec<_>>>().expect("inputs");
    // A counter switches itself on for the thread that enters `measured`, so all the work has to stay on it.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(|| measured(*op, &inputs, backward)).expect("the op runs");
    ExitCode::SUCCESS
}
