//! The selective scan against its reference, against finite differences and against itself.

use crate::support::{
    ARRANGEMENTS, Arrangement, cast, evaluate, expect_kernel_is_reference, expect_same, expect_same_bits,
    expect_zero_padding, fill_padding, message, tokens, values, weighted_sum, with_element,
};
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::selective_scan::reference;
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, gradients, pseudo_random};
use mamba_kernels::{Segments, SelectiveScan, selective_state_update};
use proptest::prelude::*;
use proptest::sample::select;

/// The inputs of a case, in order; those that it does not use get a zero gradient.
pub(crate) const NAMES: [&str; 9] = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"];
const U: usize = 0;
const DELTA: usize = 1;
const A: usize = 2;
const B: usize = 3;
const C: usize = 4;
const Z: usize = 6;
const H0: usize = 8;
/// Inputs of shape `(B, L, …)`, if B and C are.
const PER_TOKEN: [usize; 5] = [U, DELTA, B, C, Z];

/// How B or C varies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Coefficient {
    Token,
    Groups(usize),
    Constant,
}

/// A scan to test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) d: usize,
    pub(crate) n: usize,
    pub(crate) b: Coefficient,
    pub(crate) c: Coefficient,
    pub(crate) skip: bool,
    pub(crate) gate: bool,
    pub(crate) bias: bool,
    pub(crate) softplus: bool,
    pub(crate) initial: bool,
    pub(crate) reverse: bool,
    pub(crate) arrangement: Arrangement,
    pub(crate) chunk: Option<usize>,
}

/// Everything that there is, in whole rows.
pub(crate) fn full(batch: usize, len: usize, d: usize, n: usize) -> Case {
    Case {
        batch,
        len,
        d,
        n,
        b: Coefficient::Token,
        c: Coefficient::Token,
        skip: true,
        gate: true,
        bias: true,
        softplus: true,
        initial: true,
        reverse: false,
        arrangement: Arrangement::Whole,
        chunk: None,
    }
}

/// Only what must be there.
fn bare(batch: usize, len: usize, d: usize, n: usize) -> Case {
    Case { skip: false, gate: false, bias: false, softplus: false, initial: false, ..full(batch, len, d, n) }
}

impl Case {
    pub(crate) fn segments(&self) -> Option<Segments> {
        self.arrangement.segments(self.batch, self.len)
    }

    /// [`NAMES`] in f32; step sizes are positive, with a bias that may push softplus into either tail.
    pub(crate) fn inputs(&self) -> Result<Vec<Tensor>> {
        let Self { batch, len, d, n, .. } = *self;
        let random = |dims: &[usize], seed| pseudo_random(dims, seed, DType::F32);
        let coefficient = |kind, seed| match kind {
            Coefficient::Token => random(&[batch, len, n], seed),
            Coefficient::Groups(groups) => random(&[batch, len, groups, n], seed),
            Coefficient::Constant => random(&[d, n], seed),
        };
        let delta = random(&[batch, len, d], 2)?;
        let delta = if self.softplus { (delta * 2.0)? } else { ((delta.abs()? * 0.6)? + 0.02)? };
        let bias = (random(&[d], 8)? * if self.softplus { 2.0 } else { 0.01 })?;
        let count = self.segments().map_or(batch, |s| s.count());
        Ok(vec![
            random(&[batch, len, d], 1)?,
            delta,
            (random(&[d, n], 3)? * 1.5)?.exp()?.neg()?,
            coefficient(self.b, 4)?,
            coefficient(self.c, 5)?,
            random(&[d], 6)?,
            (random(&[batch, len, d], 7)? * 3.0)?,
            bias,
            random(&[count, d, n], 9)?,
        ])
    }

    /// The scan of `x`, named [`NAMES`].
    pub(crate) fn scan<'a>(&self, x: &'a [Tensor], segments: Option<&'a Segments>) -> SelectiveScan<'a> {
        let mut scan = SelectiveScan::new(&x[0], &x[1], &x[2], &x[3], &x[4]);
        if self.skip {
            scan = scan.skip(&x[5]);
        }
        if self.gate {
            scan = scan.gate(&x[6]);
        }
        if self.bias {
            scan = scan.delta_bias(&x[7]);
        }
        if self.initial {
            scan = scan.initial_state(&x[8]);
        }
        if let Some(segments) = segments {
            scan = scan.segments(segments);
        }
        if let Some(chunk) = self.chunk {
            scan = scan.chunk_size(chunk);
        }
        scan.softplus(self.softplus).reverse(self.reverse)
    }

    /// Output and last state by the kernel.
    pub(crate) fn kernel(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let segments = self.segments();
        let (y, last) = self.scan(x, segments.as_ref()).run_with_state()?;
        Ok(vec![y, last])
    }

    /// Output and last state by the reference.
    pub(crate) fn reference(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let segments = self.segments();
        let (y, last) = reference::selective_scan(&self.scan(x, segments.as_ref()))?;
        Ok(vec![y, last])
    }

    fn expect_reference(&self) -> Result<()> {
        let x = self.inputs()?;
        expect_kernel_is_reference(
            &format!("{self:?}"),
            &NAMES,
            &x,
            |x| self.kernel(x),
            |x| self.reference(x),
        )
    }
}

#[test]
fn odd_sizes_match_the_reference() -> Result<()> {
    let sizes = [
        (1, 1, 1, 1),
        (2, 7, 2, 2),
        (3, 64, 7, 3),
        (1, 129, 16, 16),
        (2, 64, 17, 20),
        (1, 129, 33, 16),
        (1, 7, 236, 16),
        (1, 1024, 2, 3),
        (1, 1024, 1, 16),
        (1, 7, 16, 256),
        (2, 33, 2, 256),
    ];
    for (batch, len, d, n) in sizes {
        for reverse in [false, true] {
            Case { reverse, ..full(batch, len, d, n) }.expect_reference()?;
        }
        bare(batch, len, d, n).expect_reference()?;
    }
    Ok(())
}

#[test]
fn every_arrangement_matches_the_reference() -> Result<()> {
    for arrangement in ARRANGEMENTS {
        for (batch, len, d, n) in [(1, 40, 5, 3), (3, 37, 17, 4), (2, 2, 3, 2)] {
            for reverse in [false, true] {
                Case { arrangement, reverse, ..full(batch, len, d, n) }.expect_reference()?;
                Case { arrangement, reverse, ..bare(batch, len, d, n) }.expect_reference()?;
            }
        }
    }
    Ok(())
}

#[test]
fn every_kind_of_coefficient_matches_the_reference() -> Result<()> {
    use Coefficient::{Constant, Groups, Token};
    for (b, c) in [
        (Groups(1), Token),
        (Groups(3), Groups(2)),
        (Groups(36), Groups(36)),
        (Constant, Token),
        (Token, Constant),
        (Constant, Constant),
        (Groups(2), Constant),
    ] {
        for reverse in [false, true] {
            Case { b, c, reverse, ..full(2, 35, 36, 5) }.expect_reference()?;
        }
        Case { b, c, arrangement: Arrangement::SeqIdx, ..full(2, 35, 36, 2) }.expect_reference()?;
    }
    Ok(())
}

fn any_case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..=3, 1usize..=70, select(vec![1usize, 2, 6, 16, 17, 18, 33]), 1usize..=21);
    let coefficients = (0usize..5, 0usize..5);
    let flags = (any::<[bool; 6]>(), select(ARRANGEMENTS.to_vec()));
    let chunk = prop::option::of(1usize..80);
    (sizes, coefficients, flags, chunk).prop_map(|(sizes, (b, c), (flags, arrangement), chunk)| {
        let (batch, len, d, n) = sizes;
        let coefficient = |kind: usize| match kind {
            0 | 1 => Coefficient::Token,
            2 => Coefficient::Groups(if d % 3 == 0 { 3 } else { 1 }),
            3 => Coefficient::Groups(if d % 2 == 0 { 2 } else { d }),
            _ => Coefficient::Constant,
        };
        let [skip, gate, bias, softplus, initial, reverse] = flags;
        let (b, c) = (coefficient(b), coefficient(c));
        Case { batch, len, d, n, b, c, skip, gate, bias, softplus, initial, reverse, arrangement, chunk }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_combination_matches_the_reference(case in any_case()) {
        case.expect_reference().map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    let small = full(2, 5, 3, 2);
    let cases = [
        small,
        Case { reverse: true, chunk: Some(2), ..small },
        Case { b: Coefficient::Constant, c: Coefficient::Groups(3), ..small },
        Case { b: Coefficient::Groups(1), c: Coefficient::Constant, softplus: false, ..small },
        Case { arrangement: Arrangement::Packed, ..small },
        Case { arrangement: Arrangement::RightPadded, reverse: true, ..small },
    ];
    for case in cases {
        let x = case.inputs()?;
        let named: Vec<(&str, Tensor)> = NAMES.into_iter().zip(x).collect();
        expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&case.kernel(x)?))?;
        // Through each output alone.
        expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&case.kernel(x)?[..1]))?;
        expect_gradients_match_differences(&named, 1e-8, |x| case.kernel(x)?[1].sqr()?.sum_all())?;
    }
    Ok(())
}

#[test]
fn reverse_is_flip_scan_flip() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let case = full(2, 70, 19, 5);
        let x = cast(&case.inputs()?, dtype)?;
        let flipped = evaluate(&x, |x| {
            let mut x = x.to_vec();
            for i in PER_TOKEN {
                x[i] = x[i].flip(&[1])?;
            }
            let outputs = case.kernel(&x)?;
            Ok(vec![outputs[0].flip(&[1])?, outputs[1].clone()])
        })?;
        let reverse = Case { reverse: true, ..case };
        let reversed = evaluate(&x, |x| reverse.kernel(x))?;
        for i in 0..2 {
            expect_same_bits(&format!("output {i}"), &reversed.outputs[i], &flipped.outputs[i])?;
        }
        for (i, name) in NAMES.iter().enumerate() {
            expect_same_bits(&format!("gradient of {name}"), &reversed.grads[i], &flipped.grads[i])?;
        }
    }
    Ok(())
}

/// The states advance one token at a time whatever the chunk, so that outputs are the same bits; gradients are summed by
/// chunks, and sequences that are cut along L are cut at multiples of the chunk.
#[test]
fn chunk_size_does_not_change_the_result() -> Result<()> {
    for (case, is_cut) in [(full(2, 300, 17, 5), false), (full(1, 5000, 3, 2), true)] {
        for reverse in [false, true] {
            let case = Case { reverse, ..case };
            let x = case.inputs()?;
            let want = evaluate(&cast(&x, DType::F64)?, |x| case.kernel(x))?;
            let default = evaluate(&x, |x| case.kernel(x))?;
            for chunk in [1, 5, 32, 1000, usize::MAX] {
                let case = Case { chunk: Some(chunk), ..case };
                for dtype in [DType::F32, DType::F64] {
                    let got = evaluate(&cast(&x, dtype)?, |x| case.kernel(x))?;
                    expect_same(&format!("chunk {chunk}"), dtype, &NAMES, &got, &want)?;
                    if dtype == DType::F32 && !is_cut {
                        expect_same_bits("y", &got.outputs[0], &default.outputs[0])?;
                        expect_same_bits("last state", &got.outputs[1], &default.outputs[1])?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Bit for bit forward; gradients that are summed over channels or sequences are grouped differently.
#[test]
fn packed_sequences_are_each_alone() -> Result<()> {
    for reverse in [false, true] {
        let case = Case { arrangement: Arrangement::Packed, reverse, ..full(1, 90, 18, 4) };
        let x = case.inputs()?;
        let segments = case.segments().unwrap();
        let alone = |x: &[Tensor]| {
            let (mut y, mut last) = (Vec::new(), Vec::new());
            for (i, s) in segments.iter().enumerate() {
                let mut one = x.to_vec();
                one[H0] = x[H0].narrow(0, i, 1)?;
                if s.is_empty() {
                    last.push(one[H0].clone());
                    continue;
                }
                for k in PER_TOKEN {
                    one[k] = tokens(&x[k], s.start, s.end)?;
                }
                let (part, state) = case.scan(&one, None).run_with_state()?;
                y.push(part);
                last.push(state);
            }
            Ok(vec![Tensor::cat(&y, 1)?, Tensor::cat(&last, 0)?])
        };
        for dtype in [DType::F32, DType::F64] {
            let x = cast(&x, dtype)?;
            let (got, want) = (evaluate(&x, |x| case.kernel(x))?, evaluate(&x, alone)?);
            expect_same_bits("y", &got.outputs[0], &want.outputs[0])?;
            expect_same_bits("last state", &got.outputs[1], &want.outputs[1])?;
            expect_same("packed", dtype, &NAMES, &got, &want)?;
        }
    }
    Ok(())
}

#[test]
fn padding_is_never_read_and_its_output_and_gradient_are_zero() -> Result<()> {
    for arrangement in
        [Arrangement::RightPadded, Arrangement::LeftPadded, Arrangement::SeqIdx, Arrangement::Nothing]
    {
        for reverse in [false, true] {
            let case = Case { arrangement, reverse, ..full(3, 50, 18, 4) };
            let segments = case.segments().unwrap();
            let clean = evaluate(&case.inputs()?, |x| case.kernel(x))?;
            let mut x = case.inputs()?;
            for i in PER_TOKEN {
                x[i] = fill_padding(&x[i], &segments, f64::NAN)?;
            }
            let poisoned = evaluate(&x, |x| {
                // The gradient of y at padding is NaN, too.
                let y = case.kernel(x)?;
                let ones = fill_padding(&y[0].ones_like()?.detach(), &segments, f64::NAN)?;
                Ok(vec![(&y[0] * ones)?, y[1].clone()])
            })?;
            let y = case.kernel(&x)?.swap_remove(0);
            expect_zero_padding("y", &y, &segments)?;
            expect_same_bits("y", &y, &clean.outputs[0])?;
            expect_same_bits("last state", &poisoned.outputs[1], &clean.outputs[1])?;
            for (i, name) in NAMES.iter().enumerate() {
                expect_same_bits(&format!("gradient of {name}"), &poisoned.grads[i], &clean.grads[i])?;
            }
            for i in PER_TOKEN {
                expect_zero_padding(NAMES[i], &poisoned.grads[i], &segments)?;
            }
        }
    }
    Ok(())
}

/// The scan in pieces of `piece` tokens, each starting from the state after the one before it in scan order.
fn in_pieces(case: &Case, x: &[Tensor], piece: usize) -> Result<Vec<Tensor>> {
    let mut pieces: Vec<usize> = (0..case.len).step_by(piece).collect();
    if case.reverse {
        pieces.reverse();
    }
    let (mut y, mut state) = (Vec::new(), x[H0].clone());
    for start in pieces {
        let mut part = x.to_vec();
        for i in PER_TOKEN {
            part[i] = tokens(&x[i], start, (start + piece).min(case.len))?;
        }
        part[H0] = state;
        let (out, next) = case.scan(&part, None).run_with_state()?;
        y.push(out);
        state = next;
    }
    if case.reverse {
        y.reverse();
    }
    Ok(vec![Tensor::cat(&y, 1)?, state])
}

#[test]
fn two_halves_are_the_whole() -> Result<()> {
    for reverse in [false, true] {
        for len in [2, 61] {
            let case = Case { reverse, ..full(2, len, 18, 5) };
            for dtype in [DType::F32, DType::F64] {
                let x = cast(&case.inputs()?, dtype)?;
                let whole = evaluate(&x, |x| case.kernel(x))?;
                let halves = evaluate(&x, |x| in_pieces(&case, x, len.div_ceil(2)))?;
                expect_same_bits("y", &halves.outputs[0], &whole.outputs[0])?;
                expect_same_bits("last state", &halves.outputs[1], &whole.outputs[1])?;
                expect_same("halves", dtype, &NAMES, &halves, &whole)?;
            }
        }
    }
    Ok(())
}

/// Few channels and many tokens: the kernel cuts these along L, and pieces of 500 tokens it does not.
#[test]
fn sequences_that_are_cut_along_their_length_are_the_same_in_pieces() -> Result<()> {
    let slow = |case: &Case| -> Result<Vec<Tensor>> {
        let mut x = case.inputs()?;
        x[DELTA] = (&x[DELTA] - 6.0)?; // states that outlive their span
        Ok(x)
    };
    for (batch, len, d, n) in [(1, 4096, 1, 1), (1, 5001, 3, 4), (2, 4500, 17, 3), (1, 9000, 20, 2)] {
        for reverse in [false, true] {
            let case = Case { reverse, ..full(batch, len, d, n) };
            let x = slow(&case)?;
            let want = evaluate(&cast(&x, DType::F64)?, |x| in_pieces(&case, x, 500))?;
            for dtype in [DType::F64, DType::F32] {
                let got = evaluate(&cast(&x, dtype)?, |x| case.kernel(x))?;
                expect_same(&format!("{case:?}"), dtype, &NAMES, &got, &want)?;
            }
        }
    }
    Ok(())
}

/// Long and short sequences in one row, with padding: some are cut, some are not.
#[test]
fn long_packed_sequences_are_each_alone() -> Result<()> {
    let len = 7000;
    let segments = Segments::right_padded(len, &[6500])?;
    let packed = Segments::from_seq_idx(
        &(0..len as i32).map(|i| (i > 5200) as i32 - (i > 6900) as i32 * 2).collect::<Vec<_>>(),
        1,
        len,
    )?;
    for (segments, count) in [(segments, 1), (packed, 2)] {
        let case = full(1, len, 2, 3);
        let mut x = case.inputs()?;
        x[H0] = pseudo_random(&[count, case.d, case.n], 9, DType::F32)?;
        let alone = |x: &[Tensor]| {
            let (mut y, mut last) = (Vec::new(), Vec::new());
            for (i, s) in segments.iter().enumerate() {
                let mut one = x.to_vec();
                one[H0] = x[H0].narrow(0, i, 1)?;
                for k in PER_TOKEN {
                    one[k] = tokens(&x[k], s.start, s.end)?;
                }
                let parts = in_pieces(&Case { len: s.len(), ..case }, &one, 500)?;
                y.push(parts[0].clone());
                last.push(parts[1].clone());
            }
            let y = Tensor::cat(&y, 1)?;
            let padding = len - y.dim(1)?;
            Ok(vec![y.pad_with_zeros(1, 0, padding)?, Tensor::cat(&last, 0)?])
        };
        let want = evaluate(&cast(&x, DType::F64)?, alone)?;
        for dtype in [DType::F64, DType::F32] {
            let got = evaluate(&cast(&x, dtype)?, |x| {
                let (y, last) = case.scan(x, Some(&segments)).run_with_state()?;
                Ok(vec![y, last])
            })?;
            expect_same("long packed", dtype, &NAMES, &got, &want)?;
        }
    }
    Ok(())
}

#[test]
fn stepping_is_scanning() -> Result<()> {
    let case = full(3, 9, 18, 4);
    let x = case.inputs()?;
    let whole = case.kernel(&x)?;
    let mut state = x[H0].clone();
    for t in 0..case.len {
        let mut one = x.clone();
        for i in PER_TOKEN {
            one[i] = tokens(&x[i], t, t + 1)?;
        }
        let (y, next) = selective_state_update(Case { initial: false, ..case }.scan(&one, None), &state)?;
        expect_same_bits("y", &y, &whole[0].narrow(1, t, 1)?.squeeze(1)?)?;
        state = next;
    }
    expect_same_bits("last state", &state, &whole[1])
}

#[test]
fn views_and_repeated_tensors_get_their_gradients() -> Result<()> {
    let case = full(2, 12, 6, 4);
    let x = cast(&case.inputs()?, DType::F64)?;
    // u, delta and z as columns of one projection, B and C transposed, u = z.
    let wide = Tensor::cat(&[&x[U], &x[DELTA]], 2)?;
    let transposed = x[B].transpose(1, 2)?.contiguous()?;
    let inputs = [wide, x[A].clone(), transposed];
    let build = |x: &[Tensor], run: &dyn Fn(SelectiveScan<'_>) -> Result<Tensor>| {
        let (u, delta) = (x[0].narrow(2, 0, case.d)?, x[0].narrow(2, case.d, case.d)?);
        let b = x[2].transpose(1, 2)?;
        run(SelectiveScan::new(&u, &delta, &x[1], &b, &b).gate(&u).softplus(true))
    };
    let got = gradients(&inputs, |x| build(x, &|scan| scan.run())?.sqr()?.sum_all())?;
    let want =
        gradients(&inputs, |x| build(x, &|scan| Ok(reference::selective_scan(&scan)?.0))?.sqr()?.sum_all())?;
    for (got, want) in got.iter().zip(&want) {
        expect_close("gradient", got, want, 1e-10)?;
    }
    Ok(())
}

#[test]
fn huge_step_sizes_do_not_overflow() -> Result<()> {
    let case = Case { bias: false, ..full(1, 40, 18, 4) };
    let mut x = case.inputs()?;
    // softplus of ±1e4, and Σ|δA| far beyond the 88 at which exp overflows in f32.
    x[DELTA] = (&x[DELTA] * 1e4)?;
    let y = case.kernel(&x)?;
    assert!(values(&y[0])?.iter().all(|y| y.is_finite()));
    case_with_inputs_matches_reference(&case, &x)?;
    let case = Case { softplus: false, ..case };
    x[DELTA] = x[DELTA].ones_like()?.affine(9.0, 0.0)?;
    case_with_inputs_matches_reference(&case, &x)
}

fn case_with_inputs_matches_reference(case: &Case, x: &[Tensor]) -> Result<()> {
    expect_kernel_is_reference(&format!("{case:?}"), &NAMES, x, |x| case.kernel(x), |x| case.reference(x))
}

#[test]
fn tiny_values_stay_finite_and_near_zero() -> Result<()> {
    let case = Case { initial: false, ..full(1, 40, 18, 4) };
    let mut x = case.inputs()?;
    x[U] = (&x[U] * 1e-40)?;
    let got = evaluate(&x, |x| case.kernel(x))?;
    let outputs = got.outputs.iter().chain(&got.grads);
    for x in outputs {
        assert!(values(x)?.iter().all(|x| x.is_finite()));
    }
    assert!(values(&got.outputs[0])?.iter().all(|y| y.abs() < 1e-37));
    Ok(())
}

#[test]
fn nan_in_an_input_reaches_the_output_and_a_gradient() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        for case in [full(1, 6, 18, 4), Case { softplus: false, ..full(1, 6, 18, 4) }] {
            let x = cast(&case.inputs()?, dtype)?;
            for (i, name) in NAMES.iter().enumerate() {
                let mut poisoned = x.clone();
                poisoned[i] = with_element(&x[i], 1, f64::NAN)?;
                let got = evaluate(&poisoned, |x| case.kernel(x))?;
                let has_nan = |x: &Tensor| Ok::<_, candle_core::Error>(values(x)?.iter().any(|x| x.is_nan()));
                assert!(has_nan(&got.outputs[0])?, "{dtype:?} {case:?}: NaN in {name} is lost in the output");
                let mut any = false;
                for grad in &got.grads {
                    any |= has_nan(grad)?;
                }
                assert!(any, "{dtype:?} {case:?}: NaN in {name} is lost in the gradients");
            }
        }
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let case = full(2, 5, 6, 4);
    let x = case.inputs()?;
    let with = |i: usize, tensor: Tensor| {
        let mut x = x.clone();
        x[i] = tensor;
        message(case.scan(&x, None).run())
    };
    let coefficient = "expected (batch 2, len 5, d_state 4), (batch, len, groups, d_state) with groups dividing 6, or (d_inner 6, d_state 4)";
    let cases = [
        (with(0, zeros(&[5, 6])?), "selective_scan: u has shape [5, 6], expected (batch, len, d_inner)".into()),
        (with(1, zeros(&[2, 5, 7])?), "selective_scan: delta has shape [2, 5, 7], expected [2, 5, 6]".into()),
        (with(2, zeros(&[6])?), "selective_scan: A has shape [6], expected (d_inner 6, d_state)".into()),
        (
            with(2, zeros(&[7, 4])?),
            "selective_scan: A has shape [7, 4] and u [2, 5, 6], expected A (d_inner 6, d_state ≥ 1) and len ≥ 1"
                .into(),
        ),
        (with(3, zeros(&[2, 4, 5])?), format!("selective_scan: B has shape [2, 4, 5], {coefficient}")),
        (with(4, zeros(&[2, 5, 4, 4])?), format!("selective_scan: C has shape [2, 5, 4, 4], {coefficient}")),
        (with(5, zeros(&[6, 1])?), "selective_scan: D has shape [6, 1], expected [6]".into()),
        (with(6, zeros(&[2, 6, 5])?), "selective_scan: z has shape [2, 6, 5], expected [2, 5, 6]".into()),
        (with(7, zeros(&[1])?), "selective_scan: delta_bias has shape [1], expected [6]".into()),
        (
            with(8, zeros(&[1, 6, 4])?),
            "selective_scan: initial_state has shape [1, 6, 4], expected [2, 6, 4]".into(),
        ),
        (with(2, x[2].to_dtype(DType::F64)?), "selective_scan: A has dtype F64, expected F32".into()),
        (
            with(0, x[0].to_dtype(DType::U8)?),
            "selective_scan: dtype U8 is not supported, expected f32 or f64".into(),
        ),
        (
            message(case.scan(&x, Some(&Segments::whole(2, 6))).run()),
            "selective_scan: segments are of batch 2 × len 6, u of batch 2 × len 5".into(),
        ),
        (
            message(case.scan(&x, None).chunk_size(0).run()),
            "selective_scan: chunk_size is 0, expected at least 1".into(),
        ),
        (
            message(selective_state_update(case.scan(&x, None), &x[8])),
            "selective_state_update: u has 5 tokens, expected 1".into(),
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
    Ok(())
}
