//! Instance normalisation against its reference and against finite differences.

use crate::support::{expect_kernel_is_reference, message, weighted_sum};
use candle_core::{DType, Result, Tensor};
use mamba_kernels::instance_norm;
use mamba_kernels::instance_norm::reference;
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, pseudo_random};

pub(crate) const NAMES: [&str; 4] = ["x", "weight", "bias", "slope"];
const EPS: f64 = 1e-5;

pub(crate) fn inputs(dims: &[usize]) -> Result<Vec<Tensor>> {
    let channels = dims[dims.len() - 1];
    let parameter = |seed: u64| pseudo_random(&[channels], seed, DType::F32);
    Ok(vec![pseudo_random(dims, 1, DType::F32)?, parameter(2)?, parameter(3)?, parameter(4)?])
}

#[test]
fn kernels_compute_what_the_reference_says() -> Result<()> {
    let shapes: [&[usize]; 5] =
        [&[1, 2, 1], &[2, 3, 5, 7], &[3, 40, 33], &[2, 70, 30, 16], &[1, 5, 3, 20_000]];
    for dims in shapes {
        for slope in [false, true] {
            let of = |x: &[Tensor]| slope.then(|| x[3].clone());
            expect_kernel_is_reference(
                &format!("{dims:?}, slope {slope}"),
                &NAMES,
                &inputs(dims)?,
                |x| Ok(vec![instance_norm(&x[0], &x[1], &x[2], of(x).as_ref(), EPS)?]),
                |x| Ok(vec![reference::instance_norm(&x[0], &x[1], &x[2], of(x).as_ref(), EPS)?]),
            )?;
        }
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_finite_differences() -> Result<()> {
    let named: Vec<_> = NAMES.into_iter().zip(inputs(&[2, 3, 2, 2])?).collect();
    expect_gradients_match_differences(&named, 1e-6, |x| {
        weighted_sum(&[instance_norm(&x[0], &x[1], &x[2], Some(&x[3]), EPS)?])
    })
}

#[test]
fn a_large_mean_costs_no_precision() -> Result<()> {
    let x = inputs(&[1, 5000, 3])?;
    let far = (&x[0] + 4096.0)?; // exact in f32 up to its last bits
    let want = reference::instance_norm(
        &far.to_dtype(DType::F64)?,
        &x[1].to_dtype(DType::F64)?,
        &x[2].to_dtype(DType::F64)?,
        None,
        EPS,
    )?;
    expect_close("far from 0", &instance_norm(&far, &x[1], &x[2], None, EPS)?, &want, 2e-3)
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let x = inputs(&[1, 4, 3])?;
    let error = message(instance_norm(&x[0], &x[0], &x[2], None, EPS));
    assert_eq!(error, "instance_norm: weight has shape [1, 4, 3], expected [3]");
    let flat = message(instance_norm(&x[1], &x[1], &x[2], None, EPS));
    assert!(flat.contains("expected (batch, pixels …, channels)"), "{flat}");
    Ok(())
}
