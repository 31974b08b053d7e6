//! Compact weights against the f32 weights that they stand for, and scans of one token against the general way.

use crate::support::message;
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::linear::compact::{linear_compact, quantize_rows, widen};
use mamba_kernels::linear::reference;
use mamba_kernels::testing::{gradients, pseudo_random, relative_error};
use mamba_kernels::{Segments, SelectiveScan};

/// Values, scales and the f32 weight of each format.
fn formats(weight: &Tensor) -> Result<Vec<(Tensor, Option<Tensor>, Tensor)>> {
    let (values, scales) = quantize_rows(weight)?;
    let mut all = vec![(values, Some(scales))];
    for dtype in [DType::BF16, DType::F16] {
        all.push((weight.to_dtype(dtype)?, None));
    }
    all.into_iter().map(|(v, s)| widen(&v, s.as_ref()).map(|w| (v, s, w))).collect()
}

#[test]
fn compact_products_are_those_of_the_widened_weights() -> Result<()> {
    // one row and a few (streamed), many (widened first); widths below, at and beyond registers and blocks
    for (dims, parts) in [
        (&[1usize, 1][..], &[1usize][..]),
        (&[1, 7], &[5]),
        (&[1, 256], &[9, 2]),
        (&[1, 300], &[1000]),
        (&[2, 2, 33], &[17, 3]),
        (&[3, 5, 48], &[20]),
    ] {
        let (d_in, d_out) = (dims[dims.len() - 1], parts.iter().sum::<usize>());
        let x = pseudo_random(dims, 1, DType::F32)?;
        let bias = pseudo_random(&[d_out], 3, DType::F32)?;
        for (values, scales, weight) in formats(&pseudo_random(&[d_out, d_in], 2, DType::F32)?)? {
            let f = |x: &[Tensor]| linear_compact(&x[0], &values, scales.as_ref(), Some(&x[1]), parts);
            let want = |x: &[Tensor]| reference::linear(&x[0], &weight, Some(&x[1]), parts);
            let inputs = [x.clone(), bias.clone()];
            for (got, want) in f(&inputs)?.iter().zip(want(&inputs)?) {
                let error = relative_error(got, &want)?;
                assert!(error < 2e-6, "{dims:?} to {parts:?}, {:?}: {error:.1e}", values.dtype());
            }
            let loss = |y: Vec<Tensor>| {
                y.iter().try_fold(Tensor::zeros((), DType::F32, &Device::Cpu)?, |sum, y| {
                    sum + y.sqr()?.sum_all()?
                })
            };
            let got = gradients(&inputs, |x| loss(f(x)?))?;
            for (got, want) in got.iter().zip(gradients(&inputs, |x| loss(want(x)?))?) {
                let error = relative_error(got, &want)?;
                assert!(error < 2e-5, "gradient of {dims:?} to {parts:?}: {error:.1e}");
            }
        }
    }
    Ok(())
}

#[test]
fn no_quantised_weight_moves_by_more_than_half_a_scale() -> Result<()> {
    let weight = pseudo_random(&[9, 130], 5, DType::F32)?;
    let (values, scales) = quantize_rows(&weight)?;
    let moved = (widen(&values, Some(&scales))? - &weight)?.abs()?.max(1)?.to_vec1::<f32>()?;
    for (moved, scale) in moved.iter().zip(scales.to_vec1::<f32>()?) {
        assert!(*moved <= 0.5001 * scale, "{moved}, scale {scale}");
    }
    let (values, scales) = quantize_rows(&Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?)?;
    assert_eq!(widen(&values, Some(&scales))?.to_vec2::<f32>()?, [[0.0; 3]; 2]);
    Ok(())
}

#[test]
fn halves_widen_exactly() -> Result<()> {
    // every finite f16, subnormal ones and both zeros too, and the same bits as bf16
    let bits: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).collect();
    let halves: Vec<half::f16> = bits.iter().map(|&b| half::f16::from_bits(b)).collect();
    let x = Tensor::from_slice(&halves, (1, halves.len()), &Device::Cpu)?;
    let got = widen(&x, None)?.flatten_all()?.to_vec1::<f32>()?;
    assert!(got.iter().zip(&halves).all(|(got, half)| got.to_bits() == half.to_f32().to_bits()));
    let halves: Vec<half::bf16> = bits.iter().map(|&b| half::bf16::from_bits(b)).collect();
    let x = Tensor::from_slice(&halves, (1, halves.len()), &Device::Cpu)?;
    let got = widen(&x, None)?.flatten_all()?.to_vec1::<f32>()?;
    assert!(got.iter().zip(&halves).all(|(got, half)| got.to_bits() == half.to_f32().to_bits()));
    Ok(())
}

#[test]
fn wrong_compact_arguments_are_named() -> Result<()> {
    let weight = pseudo_random(&[3, 4], 1, DType::F32)?;
    let (values, scales) = quantize_rows(&weight)?;
    let x = pseudo_random(&[1, 4], 2, DType::F32)?;
    let error = |values: &Tensor, scales| message(linear_compact(&x, values, scales, None, &[3]));
    assert!(error(&weight, None).contains("values have dtype F32, expected BF16, F16 or U8"));
    assert!(error(&values, None).contains("U8 values need scales"));
    assert!(error(&weight.to_dtype(DType::F16)?, Some(&scales)).contains("scales go with U8 values only"));
    let nan = Tensor::full(f32::NAN, (1, 2), &Device::Cpu)?;
    assert!(message(quantize_rows(&nan)).contains("row 0 of the weight is not finite"));
    Ok(())
}

/// A scan of one token takes another way than longer ones, unless there are more tokens behind it.
#[test]
fn a_scan_of_one_token_is_the_first_of_a_longer_scan() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 1e-13)] {
        for (batch, d, n) in [(1, 1, 16), (2, 37, 16), (3, 20, 19), (1, 1100, 8), (2, 17, 64), (2, 5, 1)] {
            let random = |shape: &[usize], seed| pseudo_random(shape, seed, dtype);
            let [u, delta, z] = [1, 2, 3].map(|seed| random(&[batch, 2, d], seed));
            let (u, delta, z) = (u?, delta?, z?);
            let (b, c) = (random(&[batch, 2, n], 4)?, random(&[batch, 2, n], 5)?);
            let a = random(&[d, n], 6)?.abs()?.neg()?;
            let (skip, bias, state) = (random(&[d], 7)?, random(&[d], 8)?, random(&[batch, d, n], 9)?);
            let scan = |len: usize, segments: Option<&Segments>| -> Result<(Tensor, Tensor)> {
                let x = [&u, &delta, &z, &b, &c].map(|x| x.narrow(1, 0, len)?.contiguous());
                let [u, delta, z, b, c] = x;
                let (u, delta, z, b, c) = (u?, delta?, z?, b?, c?);
                let scan = SelectiveScan::new(&u, &delta, &a, &b, &c).skip(&skip).gate(&z).delta_bias(&bias);
                let scan = scan.softplus(true).initial_state(&state);
                segments.into_iter().fold(scan, |scan, s| scan.segments(s)).run_with_state()
            };
            let (one, one_state) = scan(1, None)?;
            let (two, _) = scan(2, None)?;
            let error = relative_error(&one, &two.narrow(1, 0, 1)?)?;
            assert!(error < tolerance, "{batch} × {d} × {n}: {error:.1e}");
            // the same token alone in a padded row
            let padded = Segments::right_padded(2, &vec![1; batch])?;
            let (y, state) = scan(2, Some(&padded))?;
            assert_eq!(relative_error(&y.narrow(1, 0, 1)?, &one)?, 0.0);
            assert_eq!(relative_error(&state, &one_state)?, 0.0);
            assert_eq!(y.narrow(1, 1, 1)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?, 0.0);
        }
    }
    Ok(())
}
