//! Linear maps against their reference and against finite differences.

use crate::support::{expect_kernel_is_reference, message, weighted_sum};
use candle_core::{DType, Result, Tensor};
use mamba_kernels::linear;
use mamba_kernels::linear::reference;
use mamba_kernels::testing::{expect_gradients_match_differences, pseudo_random};

/// The inputs of a case, in order.
pub(crate) const NAMES: [&str; 3] = ["x", "weight", "bias"];

/// [`NAMES`] in f32, for an input of `dims` and outputs of `parts`.
pub(crate) fn inputs(dims: &[usize], parts: &[usize]) -> Result<Vec<Tensor>> {
    let (d_in, d_out) = (*dims.last().expect("a tensor of some rank"), parts.iter().sum());
    Ok(vec![
        pseudo_random(dims, 1, DType::F32)?,
        pseudo_random(&[d_out, d_in], 2, DType::F32)?,
        pseudo_random(&[d_out], 3, DType::F32)?,
    ])
}

#[test]
fn kernels_compute_what_the_reference_says() -> Result<()> {
    let cases: [(&[usize], &[usize]); 6] = [
        (&[1, 1, 1], &[1]),
        (&[2, 7, 5], &[3, 1, 4]),
        (&[3, 33], &[17]),
        (&[1, 129, 118], &[236, 236]),
        (&[4, 64, 96], &[6, 16, 16]), // enough for all cores
        (&[2, 600, 40], &[48]),       // more rows than one bias sum adds up
    ];
    for (dims, parts) in cases {
        for bias in [false, true] {
            let label = format!("{dims:?} to {parts:?}, bias {bias}");
            let of = |x: &[Tensor]| bias.then(|| x[2].clone());
            expect_kernel_is_reference(
                &label,
                &NAMES,
                &inputs(dims, parts)?,
                |x| linear(&x[0], &x[1], of(x).as_ref(), parts),
                |x| reference::linear(&x[0], &x[1], of(x).as_ref(), parts),
            )?;
        }
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_finite_differences_also_when_a_part_is_not_used() -> Result<()> {
    let x = inputs(&[2, 3, 4], &[2, 3])?;
    let named: Vec<_> = NAMES.into_iter().zip(x).collect();
    let f = |x: &[Tensor]| linear(&x[0], &x[1], Some(&x[2]), &[2, 3]);
    expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&f(x)?))?;
    expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&f(x)?[1..]))
}

#[test]
fn no_rows_give_no_rows() -> Result<()> {
    let [x, weight, bias] = &inputs(&[2, 0, 5], &[3, 1])?[..] else { unreachable!() };
    let parts = linear(x, weight, Some(bias), &[3, 1])?;
    let dims: Vec<&[usize]> = parts.iter().map(Tensor::dims).collect();
    assert_eq!(dims, [[2, 0, 3], [2, 0, 1]]);
    Ok(())
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let x = inputs(&[2, 4], &[3])?;
    let error = |parts: &[usize]| message(linear(&x[0], &x[1], Some(&x[2]), parts));
    assert_eq!(error(&[2]), "linear: weight has shape [3, 4], expected [2, 4]");
    assert_eq!(error(&[3, 0]), "linear: parts are [3, 0] of 4 input channels, expected at least one of each");
    assert_eq!(
        message(linear(&x[0], &x[1], Some(&x[0]), &[3])),
        "linear: bias has shape [2, 4], expected [3]"
    );
    Ok(())
}
