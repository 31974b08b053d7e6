//! Time of the ops on a GPU at four real shapes, and the part of the measured copy bandwidth that they reach.
//!
//! ```sh
//! MAMBA_TEST_DEVICE=cuda:0 cargo bench -p mamba-kernels --features cuda --bench gpu -- [--json]
//! cargo bench -p mamba-kernels --bench gpu -- --dry      # tiny shapes on the CPU: that it runs
//! ```
//!
//! Bytes are those that an op must move at least: each input read once, each output written once; with its backward, each
//! input and gradient of an output read, each gradient written. `cuda/kit/peers.py` measures other implementations at the
//! same shapes, `core/benches/gpu.rs` whole models.

mod on_gpu;

use candle_core::{DType, Device, Result, Tensor, Var};
use mamba_kernels::testing::{device, pseudo_random};
use mamba_kernels::{CausalConv1d, Norm, SelectiveScan, Ssd};
use on_gpu::seconds;

/// B rows of L tokens. A scan over D = H·P channels with N states; H is 0 for the selective scan.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    b: usize,
    l: usize,
    d: usize,
    n: usize,
    h: usize,
}

/// Caduceus over 131 k bases, a language model of 130 M, Mamba4Rec on ML-1M, Mamba-2 of 1.3 B.
const SHAPES: [Shape; 4] = [
    Shape { name: "caduceus_131k", b: 1, l: 131_072, d: 512, n: 16, h: 0 },
    Shape { name: "lm_130m_2k", b: 8, l: 2048, d: 1536, n: 16, h: 0 },
    Shape { name: "ml1m_200", b: 256, l: 200, d: 128, n: 32, h: 0 },
    Shape { name: "ssd_1.3b_8k", b: 1, l: 8192, d: 4096, n: 128, h: 64 },
];

const CONV_WIDTH: usize = 4;

type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An op at a shape.
struct Work {
    op: &'static str,
    /// Shapes of the inputs, and whether they are parameters, which stay f32.
    inputs: Vec<(Vec<usize>, bool)>,
    /// Elements of data read and written, forward.
    forward: usize,
    /// The same, forward and backward.
    both: usize,
    run: Run,
}

fn works(shape: &Shape) -> Vec<Work> {
    let Shape { b, l, d, n, h, .. } = *shape;
    let (tokens, coefficients) = (b * l * d, b * l * n);
    let data = |dims: &[usize]| (dims.to_vec(), false);
    let parameter = |dims: &[usize]| (dims.to_vec(), true);
    let scan = match h {
        0 => Work {
            op: "selective_scan",
            inputs: vec![
                data(&[b, l, d]),
                data(&[b, l, d]),
                parameter(&[d, n]),
                data(&[b, l, n]),
                data(&[b, l, n]),
                parameter(&[d]),
                data(&[b, l, d]),
                parameter(&[d]),
            ],
            // u, δ, z, y; and u, δ, z, dy, du, dδ, dz
            forward: 4 * tokens + 2 * coefficients,
            both: 11 * tokens + 6 * coefficients,
            run: Box::new(|x| {
                let a = ((&x[2] * 3.0)?.exp()? * -1.0)?;
                SelectiveScan::new(&x[0], &x[1], &a, &x[3], &x[4])
                    .skip(&x[5])
                    .gate(&x[6])
                    .delta_bias(&x[7])
                    .softplus(true)
                    .run()
            }),
        },
        h => Work {
            op: "ssd",
            inputs: vec![
                data(&[b, l, h, d / h]),
                data(&[b, l, h]),
                parameter(&[h]),
                data(&[b, l, 1, n]),
                data(&[b, l, 1, n]),
                parameter(&[h]),
                parameter(&[h]),
            ],
            // x, y; and x, dy, dx
            forward: 2 * tokens + 2 * coefficients + b * l * h,
            both: 5 * tokens + 6 * coefficients + 3 * b * l * h,
            run: Box::new(|x| {
                let a = ((&x[2] * 3.0)?.exp()? * -1.0)?;
                Ssd::new(&x[0], &x[1], &a, &x[3], &x[4]).skip(&x[5]).dt_bias(&x[6]).softplus(true).run()
            }),
        },
    };
    let conv = Work {
        op: "causal_conv1d",
        inputs: vec![data(&[b, l, d]), parameter(&[d, CONV_WIDTH]), parameter(&[d])],
        forward: 2 * tokens,
        both: 5 * tokens,
        run: Box::new(|x| CausalConv1d::new(&x[0], &x[1]).bias(&x[2]).silu(true).run()),
    };
    let norm = Work {
        op: "rms_norm_residual",
        inputs: vec![data(&[b, l, d]), parameter(&[d]), data(&[b, l, d])],
        // x, residual, y, their sum; and x, residual, dy, dx
        forward: 4 * tokens,
        both: 8 * tokens,
        run: Box::new(|x| Ok(Norm::rms(&x[0], &x[1], 1e-5).residual(&x[2]).run_with_residual()?.0)),
    };
    vec![scan, conv, norm]
}

/// Bytes per second, read and written, of copies that are larger than caches.
fn copy_bandwidth(device: &Device, bytes: usize) -> Result<f64> {
    let source = Tensor::zeros(bytes / 4, DType::F32, device)?;
    let seconds = seconds(device, || source.copy().map(drop))?;
    Ok(2.0 * bytes as f64 / seconds)
}

fn main() -> Result<()> {
    let flag = |name: &str| std::env::args().any(|arg| arg == name);
    let (device, json, dry) = (device(), flag("--json"), flag("--dry"));
    if device.is_cpu() && !dry {
        eprintln!("there is nothing to measure without a GPU: set MAMBA_TEST_DEVICE=cuda:0");
        return Ok(());
    }
    let copy = copy_bandwidth(&device, if dry { 1 << 20 } else { 1 << 30 })?;
    match json {
        true => {
            println!("{}", serde_json::json!({"program": "mamba-kernels", "copy_bytes_per_second": copy}))
        }
        false => println!("copy: {:.0} GB/s read and written", copy / 1e9),
    }
    for shape in &SHAPES {
        let shape = match dry {
            true => Shape { b: shape.b.min(2), l: 70, d: 64.max(shape.h), ..*shape },
            false => *shape,
        };
        for work in works(&shape) {
            for dtype in if dry { vec![DType::F32] } else { vec![DType::F32, DType::BF16] } {
                let make = |(i, (dims, parameter)): (usize, &(Vec<usize>, bool))| {
                    let x = pseudo_random(dims, i as u64, DType::F32)?;
                    x.to_dtype(if *parameter { DType::F32 } else { dtype })?.to_device(&device)
                };
                let x = work.inputs.iter().enumerate().map(make).collect::<Result<Vec<_>>>()?;
                let tracked =
                    x.iter().map(|x| Ok(Var::from_tensor(x)?.into_inner())).collect::<Result<Vec<_>>>()?;
                let forward = seconds(&device, || (work.run)(&x).map(drop))?;
                let both = seconds(&device, || (work.run)(&tracked)?.backward().map(drop))?;
                for (pass, seconds, elements) in
                    [("fwd", forward, work.forward), ("fwd_bwd", both, work.both)]
                {
                    let bandwidth = (elements * dtype.size_in_bytes()) as f64 / seconds;
                    let (op, name, dtype) = (work.op, shape.name, dtype.as_str());
                    match json {
                        true => println!(
                            "{}",
                            serde_json::json!({
                                "program": "mamba-kernels", "op": op, "pass": pass, "dtype": dtype, "shape": name,
                                "seconds": seconds, "bytes_per_second": bandwidth, "of_copy": bandwidth / copy,
                            })
                        ),
                        false => println!(
                            "{op}/{pass}/{dtype}/{name}  {:.3} ms  {:.0} GB/s, {:.0} % of copy",
                            1e3 * seconds,
                            bandwidth / 1e9,
                            100.0 * bandwidth / copy
                        ),
                    }
                }
            }
        }
    }
    Ok(())
}
