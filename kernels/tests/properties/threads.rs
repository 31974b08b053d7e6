//! Same inputs, same bits, whatever the number of threads, forward and backward.

use crate::support::{Arrangement, Evaluated, evaluate, expect_same_bits};
use crate::{
    causal_conv1d, complex_scan, conv2d, cross_entropy, instance_norm, linear, norm, selective_scan, ssd,
};
use candle_core::{DType, Result, Tensor};
use rayon::ThreadPoolBuilder;

fn expect_same_bits_on_any_pool(
    label: &str,
    names: &[&str],
    x: &[Tensor],
    kernel: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Sync,
) -> Result<()> {
    let on = |threads: usize| -> Result<Evaluated> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
        pool.install(|| evaluate(x, &kernel))
    };
    let want = on(1)?;
    for threads in [2, 3, 8] {
        let got = on(threads)?;
        for (i, (got, want)) in got.outputs.iter().zip(&want.outputs).enumerate() {
            expect_same_bits(&format!("{label}, {threads} threads: output {i}"), got, want)?;
        }
        for (name, (got, want)) in names.iter().zip(got.grads.iter().zip(&want.grads)) {
            expect_same_bits(&format!("{label}, {threads} threads: gradient of {name}"), got, want)?;
        }
    }
    Ok(())
}

#[test]
fn scans_give_the_same_bits() -> Result<()> {
    use selective_scan::{Case, Coefficient, full};
    let cases = [
        full(3, 200, 236, 16),
        full(70, 40, 33, 3), // more lines than are in flight at once
        // Cut along L.
        full(1, 6000, 20, 4),
        Case { reverse: true, ..full(2, 4100, 5, 4) },
        Case { arrangement: Arrangement::Packed, ..full(1, 7000, 17, 2) },
        Case { b: Coefficient::Constant, c: Coefficient::Groups(2), ..full(1, 5000, 34, 3) },
    ];
    for case in cases {
        let x = case.inputs()?;
        expect_same_bits_on_any_pool(&format!("{case:?}"), &selective_scan::NAMES, &x, |x| case.kernel(x))?;
        let x = crate::support::cast(&x, DType::F64)?;
        expect_same_bits_on_any_pool(&format!("{case:?}"), &selective_scan::NAMES, &x, |x| case.kernel(x))?;
    }
    Ok(())
}

#[test]
fn complex_scans_give_the_same_bits() -> Result<()> {
    use complex_scan::{Case, NAMES, full};
    let cases = [full(3, 200, 236, 5), Case { constant: [true; 3], reverse: true, ..full(1, 3000, 20, 4) }];
    for case in cases {
        let x = case.inputs()?;
        expect_same_bits_on_any_pool(&format!("{case:?}"), &NAMES, &x, |x| case.kernel(x))?;
    }
    Ok(())
}

#[test]
fn dual_scans_give_the_same_bits() -> Result<()> {
    use ssd::{Case, NAMES, full};
    let cases = [
        full(3, 200, (6, 2), 16, 8),
        full(1, 40, (24, 1), 64, 16), // heads of one group shared out to several units
        full(1, 1500, (2, 2), 8, 128),
        Case { reverse: true, arrangement: Arrangement::Packed, ..full(2, 300, (4, 1), 5, 7) },
    ];
    for case in cases {
        let x = case.inputs()?;
        for dtype in [DType::F32, DType::F64] {
            let x = crate::support::cast(&x, dtype)?;
            expect_same_bits_on_any_pool(&format!("{case:?}"), &NAMES, &x, |x| case.kernel(x))?;
        }
    }
    Ok(())
}

#[test]
fn convolutions_give_the_same_bits() -> Result<()> {
    use causal_conv1d::{Case, NAMES, full};
    for case in [full(3, 1000, 33, 4), Case { reverse: true, ..full(1, 5000, 7, 3) }] {
        let x = case.inputs()?;
        expect_same_bits_on_any_pool(&format!("{case:?}"), &NAMES, &x, |x| case.kernel(x))?;
    }
    Ok(())
}

#[test]
fn norms_give_the_same_bits() -> Result<()> {
    for case in [norm::full(&[3, 1000, 33]), norm::Case { gate: None, ..norm::full(&[5001, 7]) }] {
        let x = case.inputs()?;
        expect_same_bits_on_any_pool(&format!("{case:?}"), &norm::NAMES, &x, |x| case.kernel(x))?;
    }
    Ok(())
}

#[test]
fn linear_maps_give_the_same_bits() -> Result<()> {
    let cases: [(&[usize], &[usize]); 2] = [(&[4, 300, 96], &[6, 16, 16]), (&[1, 2000, 118], &[236, 236])];
    for (dims, parts) in cases {
        let x = linear::inputs(dims, parts)?;
        let map = |x: &[Tensor]| mamba_kernels::linear(&x[0], &x[1], Some(&x[2]), parts);
        expect_same_bits_on_any_pool(&format!("{dims:?} to {parts:?}"), &linear::NAMES, &x, map)?;
    }
    Ok(())
}

#[test]
fn cross_entropies_give_the_same_bits() -> Result<()> {
    for (rows, d, classes) in [(1500, 16, 300), (200, 3, 9000)] {
        let (x, targets) = (cross_entropy::inputs(rows, d, classes)?, cross_entropy::targets(rows, classes)?);
        let label = format!("{rows} rows of {d}, {classes} classes");
        expect_same_bits_on_any_pool(&label, &cross_entropy::NAMES, &x, |x| {
            Ok(vec![mamba_kernels::linear_cross_entropy(&x[0], &x[1], &targets)?])
        })?;
    }
    Ok(())
}

#[test]
fn two_dimensional_convolutions_give_the_same_bits() -> Result<()> {
    let conv = mamba_kernels::Conv2d { pad_h: (2, 2), dilation: (2, 1), pad_w: (1, 1), ..Default::default() };
    let x = conv2d::inputs((2, 40, 21), &[5, 8], 17, (3, 3))?;
    expect_same_bits_on_any_pool("conv2d", &conv2d::NAMES, &x, |x| conv2d::run(x, conv))
}

#[test]
fn instance_norms_give_the_same_bits() -> Result<()> {
    let x = instance_norm::inputs(&[2, 300, 70, 5])?;
    expect_same_bits_on_any_pool("instance_norm", &instance_norm::NAMES, &x, |x| {
        Ok(vec![mamba_kernels::instance_norm(&x[0], &x[1], &x[2], Some(&x[3]), 1e-5)?])
    })
}
