//! The state space dual scan against its reference, against the selective scan, against finite differences and against
//! itself.

use crate::support::{
    ARRANGEMENTS, Arrangement, cast, evaluate, expect_kernel_is_reference, expect_same, expect_same_bits,
    expect_zero_padding, fill_padding, message, tokens, values, weighted_sum, with_element,
};
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::ssd::reference;
use mamba_kernels::testing::{expect_gradients_match_differences, pseudo_random};
use mamba_kernels::{Segments, SelectiveScan, Ssd, ssd_state_update};
use proptest::prelude::*;
use proptest::sample::select;

/// The inputs of a case, in order; those that it does not use get a zero gradient.
pub(crate) const NAMES: [&str; 11] =
    ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state", "into_state", "into_output"];
const X: usize = 0;
const DT: usize = 1;
const B: usize = 3;
const C: usize = 4;
const Z: usize = 6;
const H0: usize = 8;
const INTO_STATE: usize = 9;
const INTO_OUTPUT: usize = 10;
/// Inputs of shape `(B, L, …)`.
const PER_TOKEN: [usize; 7] = [X, DT, B, C, Z, INTO_STATE, INTO_OUTPUT];

/// A scan to test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) heads: usize,
    pub(crate) groups: usize,
    pub(crate) p: usize,
    pub(crate) n: usize,
    pub(crate) skip: bool,
    pub(crate) skip_per_channel: bool,
    pub(crate) gate: bool,
    pub(crate) bias: bool,
    pub(crate) softplus: bool,
    pub(crate) limit: bool,
    pub(crate) weights: bool,
    pub(crate) initial: bool,
    pub(crate) reverse: bool,
    pub(crate) arrangement: Arrangement,
    pub(crate) chunk: Option<usize>,
}

/// Everything that Mamba-2 has, in whole rows.
pub(crate) fn full(batch: usize, len: usize, (heads, groups): (usize, usize), p: usize, n: usize) -> Case {
    Case {
        batch,
        len,
        heads,
        groups,
        p,
        n,
        skip: true,
        skip_per_channel: false,
        gate: true,
        bias: true,
        softplus: true,
        limit: false,
        weights: false,
        initial: true,
        reverse: false,
        arrangement: Arrangement::Whole,
        chunk: None,
    }
}

/// Only what must be there.
pub(crate) fn bare(batch: usize, len: usize, (heads, groups): (usize, usize), p: usize, n: usize) -> Case {
    Case {
        skip: false,
        gate: false,
        bias: false,
        softplus: false,
        initial: false,
        ..full(batch, len, (heads, groups), p, n)
    }
}

impl Case {
    pub(crate) fn segments(&self) -> Option<Segments> {
        self.arrangement.segments(self.batch, self.len)
    }

    /// [`NAMES`] in f32; step sizes are positive, with a bias that may push softplus into either tail.
    pub(crate) fn inputs(&self) -> Result<Vec<Tensor>> {
        let Self { batch, len, heads, groups, p, n, .. } = *self;
        let random = |dims: &[usize], seed| pseudo_random(dims, seed, DType::F32);
        let dt = random(&[batch, len, heads], 2)?;
        let dt = if self.softplus { (dt * 2.0)? } else { ((dt.abs()? * 0.6)? + 0.02)? };
        let count = self.segments().map_or(batch, |s| s.count());
        let skip = if self.skip_per_channel { vec![heads, p] } else { vec![heads] };
        Ok(vec![
            random(&[batch, len, heads, p], 1)?,
            dt,
            (random(&[heads], 3)? * 1.5)?.exp()?.neg()?,
            random(&[batch, len, groups, n], 4)?,
            random(&[batch, len, groups, n], 5)?,
            random(&skip, 6)?,
            (random(&[batch, len, heads, p], 7)? * 3.0)?,
            (random(&[heads], 8)? * if self.softplus { 2.0 } else { 0.01 })?,
            random(&[count, heads, p, n], 9)?,
            random(&[batch, len, heads], 10)?,
            random(&[batch, len, heads], 11)?,
        ])
    }

    /// The scan of `x`, named [`NAMES`].
    fn scan<'a>(&self, x: &'a [Tensor], segments: Option<&'a Segments>) -> Ssd<'a> {
        let mut scan = Ssd::new(&x[0], &x[1], &x[2], &x[3], &x[4]);
        if self.skip {
            scan = scan.skip(&x[5]);
        }
        if self.gate {
            scan = scan.gate(&x[6]);
        }
        if self.bias {
            scan = scan.dt_bias(&x[7]);
        }
        if self.initial {
            scan = scan.initial_state(&x[8]);
        }
        if self.weights {
            scan = scan.weights(&x[9], &x[10]);
        }
        if self.limit {
            scan = scan.dt_limit(0.1, 0.9);
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
        let (y, last) = reference::ssd(&self.scan(x, segments.as_ref()))?;
        Ok(vec![y, last])
    }

    fn expect_reference(&self) -> Result<()> {
        self.expect_reference_of(&self.inputs()?)
    }

    fn expect_reference_of(&self, x: &[Tensor]) -> Result<()> {
        expect_kernel_is_reference(&format!("{self:?}"), &NAMES, x, |x| self.kernel(x), |x| self.reference(x))
    }
}

#[test]
fn odd_sizes_match_the_reference() -> Result<()> {
    let sizes = [
        (1, 1, (1, 1), 1, 1),
        (2, 7, (2, 1), 3, 2),
        (3, 64, (3, 3), 5, 16),
        (1, 129, (4, 2), 8, 16),
        (2, 65, (6, 2), 17, 20),
        (1, 300, (2, 1), 4, 8),
        (1, 33, (24, 1), 16, 8),
        (1, 70, (5, 1), 64, 33),
        (1, 40, (3, 1), 300, 4),
        (2, 33, (2, 1), 2, 130),
    ];
    for (batch, len, heads, p, n) in sizes {
        for reverse in [false, true] {
            Case { reverse, ..full(batch, len, heads, p, n) }.expect_reference()?;
        }
        bare(batch, len, heads, p, n).expect_reference()?;
    }
    Ok(())
}

#[test]
fn every_arrangement_matches_the_reference() -> Result<()> {
    for arrangement in ARRANGEMENTS {
        for (batch, len, heads, p, n) in
            [(1, 140, (4, 2), 5, 3), (3, 37, (2, 1), 17, 4), (2, 2, (3, 3), 3, 2)]
        {
            for reverse in [false, true] {
                for weights in [false, true] {
                    let case = Case { arrangement, reverse, weights, ..full(batch, len, heads, p, n) };
                    case.expect_reference()?;
                    Case { chunk: Some(16), limit: true, skip_per_channel: true, ..case }
                        .expect_reference()?;
                }
                Case { arrangement, reverse, ..bare(batch, len, heads, p, n) }.expect_reference()?;
            }
        }
    }
    Ok(())
}

fn any_case() -> impl Strategy<Value = Case> {
    let heads = select(vec![(1usize, 1usize), (2, 1), (4, 2), (6, 3), (9, 1), (3, 3)]);
    let sizes = (1usize..=3, 1usize..=90, heads, select(vec![1usize, 2, 8, 16, 17, 33]), 1usize..=21);
    let flags = (any::<[bool; 9]>(), select(ARRANGEMENTS.to_vec()));
    let chunk = prop::option::of(1usize..80);
    (sizes, flags, chunk).prop_map(|(sizes, (flags, arrangement), chunk)| {
        let (batch, len, (heads, groups), p, n) = sizes;
        let [skip, skip_per_channel, gate, bias, softplus, limit, weights, initial, reverse] = flags;
        Case {
            batch,
            len,
            heads,
            groups,
            p,
            n,
            skip,
            skip_per_channel,
            gate,
            bias,
            softplus,
            limit,
            weights,
            initial,
            reverse,
            arrangement,
            chunk,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_combination_matches_the_reference(case in any_case()) {
        case.expect_reference().map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}

/// With one state matrix per head, the selective scan with its scalars repeated computes the same, step by step.
#[test]
fn the_selective_scan_with_repeated_rates_is_the_same() -> Result<()> {
    let case = full(2, 150, (6, 2), 5, 7);
    let (batch, len, heads, p, n) = (case.batch, case.len, case.heads, case.p, case.n);
    let d = heads * p;
    for dtype in [DType::F32, DType::F64] {
        let x = cast(&case.inputs()?, dtype)?;
        let got = case.kernel(&x)?;
        let over_channels = |x: &Tensor, dims: &[usize]| -> Result<Tensor> {
            let mut wide = x.dims().to_vec();
            wide.push(p);
            x.unsqueeze(x.rank())?.broadcast_as(wide)?.reshape(dims)
        };
        let u = x[X].reshape((batch, len, d))?;
        let delta = over_channels(&x[DT], &[batch, len, d])?;
        let a = over_channels(&x[2], &[d, 1])?.broadcast_as((d, n))?.contiguous()?;
        let (skip, bias) = (over_channels(&x[5], &[d])?, over_channels(&x[7], &[d])?);
        let (z, h0) = (x[Z].reshape((batch, len, d))?, x[H0].reshape((batch, d, n))?);
        let (y, last) = SelectiveScan::new(&u, &delta, &a, &x[B], &x[C])
            .skip(&skip)
            .gate(&z)
            .delta_bias(&bias)
            .softplus(true)
            .initial_state(&h0)
            .run_with_state()?;
        let (forward, _) = crate::support::tolerances(dtype);
        mamba_kernels::testing::expect_close("y", &got[0], &y.reshape(got[0].shape())?, forward)?;
        mamba_kernels::testing::expect_close("state", &got[1], &last.reshape(got[1].shape())?, forward)?;
    }
    Ok(())
}

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    let small = full(2, 5, (2, 1), 3, 2);
    let cases = [
        small,
        Case { reverse: true, chunk: Some(2), ..small },
        Case { weights: true, chunk: Some(3), skip_per_channel: true, ..small },
        Case { groups: 2, softplus: false, limit: true, ..small },
        Case { arrangement: Arrangement::Packed, weights: true, ..small },
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
    let case = Case { weights: true, ..full(2, 150, (4, 2), 19, 5) };
    let x = case.inputs()?;
    let want = evaluate(&cast(&x, DType::F64)?, |x| {
        let mut x = x.to_vec();
        for i in PER_TOKEN {
            x[i] = x[i].flip(&[1])?;
        }
        let outputs = case.kernel(&x)?;
        Ok(vec![outputs[0].flip(&[1])?, outputs[1].clone()])
    })?;
    let reverse = Case { reverse: true, ..case };
    for dtype in [DType::F32, DType::F64] {
        let got = evaluate(&cast(&x, dtype)?, |x| reverse.kernel(x))?;
        expect_same("reverse", dtype, &NAMES, &got, &want)?;
    }
    Ok(())
}

#[test]
fn chunk_size_does_not_change_the_result() -> Result<()> {
    for reverse in [false, true] {
        let case = Case { reverse, ..full(2, 300, (4, 2), 17, 5) };
        let x = case.inputs()?;
        let want = evaluate(&cast(&x, DType::F64)?, |x| case.kernel(x))?;
        for chunk in [1, 5, 32, 100, 256, usize::MAX] {
            let case = Case { chunk: Some(chunk), ..case };
            for dtype in [DType::F32, DType::F64] {
                let got = evaluate(&cast(&x, dtype)?, |x| case.kernel(x))?;
                expect_same(&format!("chunk {chunk}"), dtype, &NAMES, &got, &want)?;
            }
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_are_each_alone() -> Result<()> {
    for reverse in [false, true] {
        let case = Case { arrangement: Arrangement::Packed, reverse, ..full(1, 290, (4, 1), 18, 4) };
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
            let case = Case { arrangement, reverse, weights: true, ..full(3, 150, (4, 2), 18, 4) };
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

#[test]
fn a_sequence_split_anywhere_is_the_whole() -> Result<()> {
    for reverse in [false, true] {
        for case in
            [full(2, 70, (4, 2), 9, 5), Case { weights: true, chunk: Some(8), ..full(1, 70, (2, 1), 3, 4) }]
        {
            let case = Case { reverse, ..case };
            let x = case.inputs()?;
            let want = evaluate(&cast(&x, DType::F64)?, |x| case.kernel(x))?;
            for cut in [1, 7, 35, 64, 69] {
                let halves = |x: &[Tensor]| {
                    let mut parts = [(0, cut), (cut, case.len)];
                    if case.reverse {
                        parts.reverse();
                    }
                    let (mut y, mut state) = (Vec::new(), x[H0].clone());
                    for (start, end) in parts {
                        let mut part = x.to_vec();
                        for i in PER_TOKEN {
                            part[i] = tokens(&x[i], start, end)?;
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
                };
                for dtype in [DType::F32, DType::F64] {
                    let got = evaluate(&cast(&x, dtype)?, halves)?;
                    expect_same(&format!("cut at {cut}"), dtype, &NAMES, &got, &want)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn stepping_is_scanning() -> Result<()> {
    let case = full(3, 9, (4, 2), 18, 4);
    for dtype in [DType::F32, DType::F64] {
        let (forward, _) = crate::support::tolerances(dtype);
        let x = cast(&case.inputs()?, dtype)?;
        let whole = case.kernel(&x)?;
        let mut state = x[H0].clone();
        for t in 0..case.len {
            let mut one = x.clone();
            for i in PER_TOKEN {
                one[i] = tokens(&x[i], t, t + 1)?;
            }
            let (y, next) = ssd_state_update(Case { initial: false, ..case }.scan(&one, None), &state)?;
            let want = whole[0].narrow(1, t, 1)?.squeeze(1)?;
            mamba_kernels::testing::expect_close("y", &y, &want, forward)?;
            state = next;
        }
        mamba_kernels::testing::expect_close("last state", &state, &whole[1], forward)?;
    }
    Ok(())
}

/// Σ|δA| in a chunk far beyond the 88 at which exp overflows in f32, and beyond the 745 of f64: outputs and gradients are
/// those of the reference, and finite.
#[test]
fn fast_decays_give_finite_outputs_and_gradients() -> Result<()> {
    let case = Case { bias: false, weights: true, ..full(1, 100, (4, 2), 6, 4) };
    for factor in [20.0, 300.0, 1e4] {
        for weights in [false, true] {
            let case = Case { weights, ..case };
            let mut x = case.inputs()?;
            x[DT] = (&x[DT] * factor)?;
            let got = evaluate(&x, |x| case.kernel(x))?;
            for x in got.outputs.iter().chain(&got.grads) {
                assert!(values(x)?.iter().all(|x| x.is_finite()), "factor {factor}");
            }
            case.expect_reference_of(&x)?;
        }
    }
    let case = Case { softplus: false, ..case };
    let mut x = case.inputs()?;
    x[DT] = (x[DT].ones_like()? * 1e30)?;
    for dtype in [DType::F32, DType::F64] {
        let got = evaluate(&cast(&x, dtype)?, |x| case.kernel(x))?;
        assert!(values(&got.outputs[0])?.iter().all(|x| x.is_finite()));
        assert!(got.grads.iter().all(|x| values(x).unwrap().iter().all(|x| x.is_finite())));
    }
    Ok(())
}

/// A state that hardly decays over a long sequence keeps its precision, and so does its gradient.
#[test]
fn slow_decays_keep_their_precision() -> Result<()> {
    let case = full(1, 700, (2, 1), 4, 3);
    let mut x = case.inputs()?;
    x[DT] = (&x[DT] - 9.0)?;
    case.expect_reference_of(&x)
}

#[test]
fn nan_in_an_input_reaches_the_output_and_a_gradient() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        for case in
            [full(1, 6, (2, 1), 9, 4), Case { softplus: false, weights: true, ..full(1, 6, (2, 2), 9, 4) }]
        {
            let x = cast(&case.inputs()?, dtype)?;
            for (i, name) in NAMES.iter().enumerate() {
                if !case.weights && [INTO_STATE, INTO_OUTPUT].contains(&i) {
                    continue;
                }
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
    let case = Case { weights: true, ..full(2, 5, (4, 2), 3, 8) };
    let x = case.inputs()?;
    let with = |i: usize, tensor: Tensor| {
        let mut x = x.clone();
        x[i] = tensor;
        message(case.scan(&x, None).run())
    };
    let cases = [
        (with(0, zeros(&[2, 5, 12])?), "ssd: x has shape [2, 5, 12], expected (batch, len, heads, headdim)"),
        (with(1, zeros(&[2, 5, 3])?), "ssd: dt has shape [2, 5, 3], expected [2, 5, 4]"),
        (with(2, zeros(&[4, 1])?), "ssd: A has shape [4, 1], expected [4]"),
        (
            with(3, zeros(&[2, 5, 3, 8])?),
            "ssd: B has shape [2, 5, 3, 8], expected (batch 2, len 5, groups that divide 4, d_state)",
        ),
        (
            with(3, zeros(&[2, 5, 8])?),
            "ssd: B has shape [2, 5, 8], expected (batch 2, len 5, groups, d_state)",
        ),
        (with(4, zeros(&[2, 5, 2, 7])?), "ssd: C has shape [2, 5, 2, 7], expected [2, 5, 2, 8]"),
        (with(5, zeros(&[3])?), "ssd: D has shape [3], expected [4] or [4, 3]"),
        (with(6, zeros(&[2, 5, 12])?), "ssd: z has shape [2, 5, 12], expected [2, 5, 4, 3]"),
        (with(7, zeros(&[1])?), "ssd: dt_bias has shape [1], expected [4]"),
        (with(8, zeros(&[1, 4, 3, 8])?), "ssd: initial_state has shape [1, 4, 3, 8], expected [2, 4, 3, 8]"),
        (with(9, zeros(&[2, 5])?), "ssd: into_state has shape [2, 5], expected [2, 5, 4]"),
        (with(2, x[2].to_dtype(DType::F64)?), "ssd: A has dtype F64, expected F32"),
        (
            message(case.scan(&x, Some(&Segments::whole(2, 6))).run()),
            "ssd: segments are of batch 2 × len 6, x of batch 2 × len 5",
        ),
        (message(case.scan(&x, None).chunk_size(0).run()), "ssd: chunk_size is 0, expected at least 1"),
        (
            message(case.scan(&x, None).dt_limit(1.0, 0.5).run()),
            "ssd: dt_limit is (1, 0.5), expected the lower limit first",
        ),
        (
            message(ssd_state_update(case.scan(&x, None), &x[8])),
            "ssd_state_update: x has 5 tokens, expected 1",
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
    Ok(())
}
