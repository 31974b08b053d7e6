//! Two-dimensional convolutions against their reference, against candle, against finite differences, and against each
//! other: the transpose is the adjoint.

use crate::support::{expect_kernel_is_reference, message, weighted_sum};
use candle_core::{DType, Result, Tensor};
use mamba_kernels::conv2d::reference;
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, pseudo_random};
use mamba_kernels::{Conv2d, conv_transpose2d, conv2d};
use proptest::prelude::*;

pub(crate) const NAMES: [&str; 4] = ["weight", "bias", "x", "second x"];

/// Weight, bias, and images of the given channels in f32.
pub(crate) fn inputs(
    image: (usize, usize, usize),
    channels: &[usize],
    out: usize,
    kernel: (usize, usize),
) -> Result<Vec<Tensor>> {
    let (b, h, w) = image;
    let mut all = vec![
        pseudo_random(&[out, channels.iter().sum(), kernel.0, kernel.1], 1, DType::F32)?,
        pseudo_random(&[out], 2, DType::F32)?,
    ];
    for (i, &c) in channels.iter().enumerate() {
        all.push(pseudo_random(&[b, h, w, c], 3 + i as u64, DType::F32)?);
    }
    Ok(all)
}

pub(crate) fn run(x: &[Tensor], conv: Conv2d) -> Result<Vec<Tensor>> {
    Ok(vec![conv2d(&x[2..].iter().collect::<Vec<_>>(), &x[0], Some(&x[1]), conv)?])
}

fn run_transposed(x: &[Tensor], conv: Conv2d) -> Result<Vec<Tensor>> {
    Ok(vec![conv_transpose2d(&x[2], &x[0], Some(&x[1]), conv)?])
}

/// The layers of a dense encoder and decoder, and odd ones.
fn convolutions() -> Vec<(Conv2d, (usize, usize))> {
    let same = |d: usize| Conv2d { dilation: (d, 1), pad_h: (d, d), pad_w: (1, 1), ..Conv2d::default() };
    vec![
        (Conv2d::default(), (1, 1)),
        (same(1), (3, 3)),
        (same(4), (3, 3)),
        (Conv2d { pad_h: (2, 0), pad_w: (1, 1), ..Conv2d::default() }, (3, 3)),
        (Conv2d { stride: (1, 2), ..Conv2d::default() }, (1, 3)),
        (Conv2d { stride: (2, 2), pad_h: (1, 1), pad_w: (1, 1), ..Conv2d::default() }, (4, 4)),
        (Conv2d { stride: (2, 3), dilation: (1, 2), pad_h: (0, 1), pad_w: (2, 0) }, (2, 3)),
    ]
}

#[test]
fn convolutions_compute_what_the_reference_says() -> Result<()> {
    for (conv, kernel) in convolutions() {
        for (image, channels, out) in
            [((1, 9, 7), &[1][..], 1), ((2, 10, 11), &[5], 3), ((2, 12, 13), &[4, 3], 17)]
        {
            expect_kernel_is_reference(
                &format!("{conv:?} of {image:?} × {channels:?}"),
                &NAMES,
                &inputs(image, channels, out, kernel)?,
                |x| run(x, conv),
                |x| {
                    let images: Vec<_> = x[2..].iter().collect();
                    Ok(vec![reference::conv2d(&images, &x[0], Some(&x[1]), conv)?])
                },
            )?;
        }
    }
    Ok(())
}

#[test]
fn transposed_convolutions_compute_what_the_reference_says() -> Result<()> {
    for (conv, kernel) in convolutions() {
        for (image, channels, out) in [((1, 9, 7), 1, 1), ((2, 6, 5), 4, 3)] {
            let mut x = inputs(image, &[channels], out, kernel)?;
            x[0] = pseudo_random(&[channels, out, kernel.0, kernel.1], 1, DType::F32)?;
            expect_kernel_is_reference(
                &format!("transpose of {conv:?}, {image:?} × {channels}"),
                &NAMES,
                &x,
                |x| run_transposed(x, conv),
                |x| Ok(vec![reference::conv_transpose2d(&x[2], &x[0], Some(&x[1]), conv)?]),
            )?;
        }
    }
    Ok(())
}

#[test]
fn convolutions_are_those_of_candle() -> Result<()> {
    for (padding, stride, dilation, kernel) in [(1, 1, 1, 3), (2, 1, 2, 3), (1, 2, 1, 4)] {
        let x = inputs((2, 12, 15), &[6], 5, (kernel, kernel))?;
        let conv = Conv2d {
            stride: (stride, stride),
            dilation: (dilation, dilation),
            pad_h: (padding, padding),
            pad_w: (padding, padding),
        };
        let ours = conv2d(&[&x[2]], &x[0], None, conv)?;
        let first = x[2].permute((0, 3, 1, 2))?.contiguous()?;
        let theirs = first.conv2d(&x[0], padding, stride, dilation, 1)?.permute((0, 2, 3, 1))?;
        expect_close("conv2d", &ours, &theirs.contiguous()?, 5e-6)?;
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_finite_differences() -> Result<()> {
    let conv = Conv2d { stride: (1, 2), dilation: (2, 1), pad_h: (2, 1), pad_w: (1, 0) };
    let x = inputs((2, 4, 5), &[2, 1], 3, (2, 3))?;
    let named: Vec<_> = NAMES.into_iter().zip(x).collect();
    expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&run(x, conv)?))?;
    let mut x = inputs((2, 4, 3), &[3], 2, (2, 3))?;
    x[0] = pseudo_random(&[3, 2, 2, 3], 1, DType::F32)?;
    let named: Vec<_> = NAMES.into_iter().zip(x).collect();
    expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&run_transposed(x, conv)?))
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let x = inputs((1, 4, 4), &[3], 2, (3, 3))?;
    let error =
        |inputs: &[&Tensor], bias: &Tensor| message(conv2d(inputs, &x[0], Some(bias), Conv2d::default()));
    assert_eq!(
        error(&[&x[2], &x[2]], &x[1]),
        "conv2d: the input has 6 channels, the weight [2, 3, 3, 3] expects 3"
    );
    assert_eq!(error(&[&x[2]], &x[0]), "conv2d: bias has shape [2, 3, 3, 3], expected [2]");
    assert!(error(&[], &x[1]).ends_with("there is no input"));
    let small = x[2].narrow(1, 0, 2)?;
    assert!(error(&[&small], &x[1]).contains("an input of 2 × 4 is too small for a kernel of 3 × 3"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// ⟨conv(x), y⟩ = ⟨x, conv_transpose(y)⟩ wherever the sizes fit without a rest.
    #[test]
    fn the_transpose_is_the_adjoint(
        small in (1usize..6, 1usize..6), kernel in (1usize..4, 1usize..4), stride in (1usize..4, 1usize..4),
        dilation in (1usize..3, 1usize..3), pad in (0usize..2, 0usize..2), channels in (1usize..4, 1usize..4),
    ) {
        let conv = Conv2d { stride, dilation, pad_h: (pad.0, 0), pad_w: (0, pad.1) };
        let size = |n: usize, k: usize, s: usize, d: usize| (n - 1) * s + (k - 1) * d + 1;
        let h = size(small.0, kernel.0, stride.0, dilation.0);
        let w = size(small.1, kernel.1, stride.1, dilation.1);
        prop_assume!(h > pad.0 && w > pad.1);
        let x = pseudo_random(&[2, h - pad.0, w - pad.1, channels.0], 1, DType::F64).unwrap();
        let y = pseudo_random(&[2, small.0, small.1, channels.1], 2, DType::F64).unwrap();
        let weight = pseudo_random(&[channels.1, channels.0, kernel.0, kernel.1], 3, DType::F64).unwrap();
        let dot = |a: &Tensor, b: &Tensor| (a * b).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        let there = dot(&conv2d(&[&x], &weight, None, conv).unwrap(), &y);
        let back = dot(&x, &conv_transpose2d(&y, &weight, None, conv).unwrap());
        prop_assert!((there - back).abs() < 1e-10 * (1.0 + there.abs()), "{there} and {back}");
    }
}
