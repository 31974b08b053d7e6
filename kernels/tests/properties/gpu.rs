//! The CUDA kernels against the references, on the GPU that `$MAMBA_TEST_DEVICE` names (`cuda:N`), else compiled for the
//! host and run by the ops' own launches: blocks one after another, the threads of a block as fibers that switch at
//! barriers, also in other orders of threads, which a missing barrier would show in. Memory that a kernel has not written
//! is NaN there.
//!
//! Without a GPU this tells what the kernels compute, not that a GPU runs them; it is skipped without a C++ compiler.

use crate::support::{
    ARRANGEMENTS, Arrangement, Evaluated, cast, evaluate, expect_same, expect_same_bits, expect_zero_padding,
    fill_padding, message,
};
use crate::{
    causal_conv1d as conv, complex_scan, conv2d, cross_entropy, instance_norm, linear, norm,
    selective_scan as scan, ssd,
};
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::testing::{Emulation, device, expect_close};
use std::cell::Cell;
use std::path::Path;
use std::sync::OnceLock;

/// What runs kernels.
#[derive(Clone)]
enum Machine {
    Gpu(Device),
    Host(Emulation),
}

/// None, with a message, if there is neither a GPU nor a compiler. The kernels are compiled once.
fn machine() -> Option<Machine> {
    static BUILT: OnceLock<Option<Machine>> = OnceLock::new();
    let build = || {
        if !device().is_cpu() {
            return Some(Machine::Gpu(device()));
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
        let built = Emulation::build(&folder, Path::new(env!("CARGO_TARGET_TMPDIR")));
        let built = built.unwrap_or_else(|error| panic!("the kernels do not compile for the host: {error}"));
        if built.is_none() {
            eprintln!("no C++ compiler ($CXX, c++): the CUDA kernels are not tested");
        }
        built.map(Machine::Host)
    };
    BUILT.get_or_init(build).clone()
}

thread_local! {
    static SMALLER: Cell<usize> = const { Cell::new(1) };
}

/// Runs `f` where an emulated GPU is smaller by a factor: small inputs are then cut into blocks as large ones are on a GPU.
fn on_a_smaller_gpu(by: usize, f: impl FnOnce() -> Result<()>) -> Result<()> {
    SMALLER.set(by);
    let done = f();
    SMALLER.set(1);
    done
}

impl Machine {
    /// Runs `f` of the tensors, in one of three orders of threads where that can be chosen. Results lie on the CPU.
    fn run(
        &self,
        order: u32,
        x: &[Tensor],
        f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        match self {
            Self::Gpu(device) => to(&f(&to(x, device)?)?, &Device::Cpu),
            Self::Host(emulation) => emulation.with_order(order).smaller(SMALLER.get()).run(|| f(x)),
        }
    }

    /// The same with gradients.
    fn evaluate(
        &self,
        order: u32,
        x: &[Tensor],
        f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Evaluated> {
        match self {
            Self::Gpu(device) => {
                let Evaluated { outputs, grads } = evaluate(&to(x, device)?, f)?;
                Ok(Evaluated { outputs: to(&outputs, &Device::Cpu)?, grads: to(&grads, &Device::Cpu)? })
            }
            Self::Host(emulation) => {
                emulation.with_order(order).smaller(SMALLER.get()).run(|| evaluate(x, f))
            }
        }
    }

    /// The types of ops that are composed from tensor ops: on the CPU there are no products in bf16.
    fn types_of_products(&self) -> &'static [DType] {
        match self {
            Self::Gpu(_) => &DTYPES,
            Self::Host(_) => &[DType::F32, DType::F16],
        }
    }
}

fn to(x: &[Tensor], device: &Device) -> Result<Vec<Tensor>> {
    x.iter().map(|x| x.to_device(device)).collect()
}

/// The element types of kernels.
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Fails unless the kernel is `reference` in f64, given the inputs as `dtype` rounds them, and gives the same bits whatever
/// the order of threads. `parameters` are inputs that stay f32 beside half precision.
fn expect_gpu(
    label: &str,
    names: &[&str],
    x: &[Tensor],
    parameters: &[usize],
    dtypes: &[DType],
    kernel: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    reference: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<()> {
    let Some(machine) = machine() else { return Ok(()) };
    for &dtype in dtypes {
        let mut rounded = cast(x, dtype)?;
        for &i in parameters {
            rounded[i] = x[i].clone();
        }
        let want = evaluate(&cast(&rounded, DType::F64)?, &reference)?;
        let got = machine.evaluate(0, &rounded, &kernel)?;
        expect_same(label, dtype, names, &got, &want)?;
        // A checker of memory, which makes each launch take long, has no use for the same one again.
        let again = if std::env::var_os("MAMBA_TEST_ONCE").is_some() { &[][..] } else { &[1, 2] };
        for &order in again {
            let again = machine.evaluate(order, &rounded, &kernel)?;
            let pairs = got.outputs.iter().chain(&got.grads).zip(again.outputs.iter().chain(&again.grads));
            for (i, (a, b)) in pairs.enumerate() {
                expect_same_bits(&format!("{label} {dtype:?}: result {i} in order {order}"), b, a)?;
            }
        }
    }
    Ok(())
}

fn expect_scan(case: &scan::Case, dtypes: &[DType]) -> Result<()> {
    let x = case.inputs()?;
    let label = format!("{case:?}");
    // A, D, delta_bias, initial state
    let parameters = [2, 5, 7, 8];
    // The reference walks token by token; the CPU's kernel is tested against it and fast.
    let reference = |x: &[Tensor]| if case.len > 70 { case.kernel(x) } else { case.reference(x) };
    expect_gpu(&label, &scan::NAMES, &x, &parameters, dtypes, |x| case.kernel(x), reference)
}

fn expect_conv(case: &conv::Case, dtypes: &[DType]) -> Result<()> {
    let x = case.inputs()?;
    let label = format!("{case:?}");
    expect_gpu(&label, &conv::NAMES, &x, &[1, 2], dtypes, |x| case.kernel(x), |x| case.reference(x))
}

fn expect_norm(case: &norm::Case, dtypes: &[DType]) -> Result<()> {
    let x = case.inputs()?;
    let label = format!("{case:?}");
    expect_gpu(&label, &norm::NAMES, &x, &[1, 2], dtypes, |x| case.kernel(x), |x| case.reference(x))
}

fn expect_ssd(case: &ssd::Case, dtypes: &[DType]) -> Result<()> {
    let x = case.inputs()?;
    let label = format!("{case:?}");
    // A, D, dt_bias, initial state
    let parameters = [2, 5, 7, 8];
    expect_gpu(&label, &ssd::NAMES, &x, &parameters, dtypes, |x| case.kernel(x), |x| case.reference(x))
}

#[test]
fn scans_of_odd_sizes_match_the_reference() -> Result<()> {
    // More than 16 states take rounds; more than 32 channels take tiles.
    let sizes = [(1, 1, 1, 1), (2, 7, 2, 2), (3, 33, 7, 3), (1, 65, 33, 4), (2, 31, 17, 10), (1, 40, 40, 16)];
    for (batch, len, d, n) in sizes.into_iter().chain([(1, 37, 5, 20), (1, 9, 3, 70)]) {
        for reverse in [false, true] {
            expect_scan(&scan::Case { reverse, ..scan::full(batch, len, d, n) }, &DTYPES[..1])?;
        }
    }
    Ok(())
}

#[test]
fn scans_in_half_precision_match_the_reference() -> Result<()> {
    expect_scan(&scan::full(2, 40, 35, 16), &DTYPES[1..])?;
    let groups = scan::Case {
        b: scan::Coefficient::Constant,
        c: scan::Coefficient::Groups(2),
        ..scan::full(1, 20, 6, 5)
    };
    expect_scan(&groups, &DTYPES[1..])
}

#[test]
fn scans_with_any_coefficients_match_the_reference() -> Result<()> {
    use scan::Coefficient::{Constant, Groups, Token};
    let kinds = [(Groups(2), Token), (Groups(2), Groups(3)), (Constant, Token), (Token, Constant)];
    for (b, c) in
        kinds.into_iter().chain([(Constant, Constant), (Constant, Groups(6)), (Groups(6), Constant)])
    {
        expect_scan(&scan::Case { b, c, ..scan::full(2, 36, 6, 5) }, &DTYPES[..1])?;
    }
    // In rounds, and over runs of channels that are longer than a tile.
    expect_scan(&scan::Case { b: Constant, ..scan::full(1, 35, 3, 18) }, &DTYPES[..1])?;
    expect_scan(&scan::Case { b: Groups(2), c: Constant, ..scan::full(1, 12, 80, 17) }, &DTYPES[..1])
}

#[test]
fn scans_of_any_arrangement_and_options_match_the_reference() -> Result<()> {
    for arrangement in ARRANGEMENTS {
        for reverse in [false, true] {
            let case = scan::Case { arrangement, reverse, ..scan::full(2, 50, 5, 4) };
            expect_scan(&case, &DTYPES[..1])?;
            expect_scan(&scan::Case { batch: 1, n: 17, ..case }, &DTYPES[..1])?;
        }
    }
    for bits in 0..32 {
        let has = |bit: u32| bits >> bit & 1 == 1;
        let case = scan::Case {
            skip: has(0),
            gate: has(1),
            bias: has(2),
            softplus: has(3),
            initial: has(4),
            ..scan::full(1, 6, 3, 2)
        };
        expect_scan(&case, &DTYPES[..1])?;
    }
    Ok(())
}

/// Few channels and enough tokens: cut along L, with and without tables of segments, and in rounds.
#[test]
fn scans_that_are_cut_along_their_length_match() -> Result<()> {
    for (batch, len, d, n) in [(1, 300, 3, 4), (2, 270, 33, 2), (1, 290, 2, 18)] {
        for reverse in [false, true] {
            expect_scan(&scan::Case { reverse, ..scan::full(batch, len, d, n) }, &DTYPES[..1])?;
        }
    }
    for arrangement in [Arrangement::Packed, Arrangement::RightPadded, Arrangement::SeqIdx] {
        let case = scan::Case { arrangement, reverse: true, ..scan::full(2, 400, 3, 2) };
        expect_scan(&case, &DTYPES[..1])?;
        let bare = scan::Case { initial: false, reverse: false, ..case };
        expect_scan(&bare, &DTYPES[..1])?;
    }
    Ok(())
}

/// Parts of the gradients of B and C are made for some tiles of channels at a time where there are many states.
#[test]
fn scans_whose_gradients_come_in_waves_match() -> Result<()> {
    expect_scan(&scan::full(1, 12, 70, 40), &DTYPES[..1])?;
    let groups = scan::Case { b: scan::Coefficient::Groups(2), ..scan::full(2, 9, 80, 30) };
    expect_scan(&groups, &DTYPES[..1])?;
    expect_scan(&scan::Case { arrangement: Arrangement::RightPadded, ..groups }, &DTYPES[..1])
}

/// With more spans than blocks, a block of the backward pass walks several.
#[test]
fn scans_whose_blocks_walk_several_spans_match() -> Result<()> {
    on_a_smaller_gpu(1 << 14, || {
        for n in [3, 17] {
            for arrangement in [Arrangement::Whole, Arrangement::Packed, Arrangement::RightPadded] {
                expect_scan(&scan::Case { arrangement, ..scan::full(3, 40, 35, n) }, &DTYPES[..1])?;
            }
        }
        let constant = scan::Coefficient::Constant;
        expect_scan(&scan::Case { b: constant, c: constant, ..scan::full(3, 40, 35, 5) }, &DTYPES[..1])?;
        // More tiles than a launch has along its second axis.
        expect_scan(&scan::full(2, 5, 130, 3), &DTYPES[..1])
    })?;
    // Spans of one segment that is cut.
    on_a_smaller_gpu(512, || expect_scan(&scan::full(1, 4300, 2, 2), &DTYPES[..1]))
}

#[test]
fn padding_of_scans_is_never_read() -> Result<()> {
    let Some(machine) = machine() else { return Ok(()) };
    for arrangement in [Arrangement::RightPadded, Arrangement::SeqIdx, Arrangement::Nothing] {
        let case = scan::Case { arrangement, ..scan::full(2, 40, 5, 4) };
        let segments = case.segments().expect("the arrangement has segments");
        let clean = case.inputs()?;
        let mut poisoned = clean.clone();
        for i in [0, 1, 3, 4, 6] {
            poisoned[i] = fill_padding(&clean[i], &segments, f64::NAN)?;
        }
        let want = machine.evaluate(0, &clean, |x| case.kernel(x))?;
        let got = machine.run(0, &poisoned, |x| case.kernel(x))?;
        expect_zero_padding("y", &got[0], &segments)?;
        expect_same_bits("y", &got[0], &want.outputs[0])?;
        expect_same_bits("last state", &got[1], &want.outputs[1])?;
        for i in [0, 1, 3, 4, 6] {
            expect_zero_padding(scan::NAMES[i], &want.grads[i], &segments)?;
        }
    }
    Ok(())
}

#[test]
fn dual_scans_of_odd_sizes_match_the_reference() -> Result<()> {
    // More than 64 of P or N take tiles, more than 64 tokens chunks.
    let sizes = [
        (1, 1, (1, 1), 1, 1),
        (2, 7, (2, 1), 3, 2),
        (1, 65, (3, 3), 5, 16),
        (1, 129, (4, 2), 8, 33),
        (1, 20, (3, 1), 70, 4),
        (1, 66, (2, 1), 2, 68),
    ];
    for (batch, len, heads, p, n) in sizes {
        for reverse in [false, true] {
            expect_ssd(&ssd::Case { reverse, ..ssd::full(batch, len, heads, p, n) }, &DTYPES[..1])?;
        }
        expect_ssd(&ssd::bare(batch, len, heads, p, n), &DTYPES[..1])?;
    }
    Ok(())
}

#[test]
fn dual_scans_in_half_precision_match_the_reference() -> Result<()> {
    expect_ssd(&ssd::full(1, 70, (4, 2), 9, 18), &DTYPES[1..])?;
    expect_ssd(&ssd::Case { weights: true, ..ssd::full(1, 20, (2, 1), 16, 8) }, &DTYPES[1..])
}

#[test]
fn dual_scans_of_any_arrangement_and_options_match_the_reference() -> Result<()> {
    for arrangement in ARRANGEMENTS {
        for reverse in [false, true] {
            let case = ssd::Case { arrangement, reverse, ..ssd::full(2, 70, (2, 1), 3, 4) };
            expect_ssd(&case, &DTYPES[..1])?;
            let other = ssd::Case { weights: true, limit: true, skip_per_channel: true, ..case };
            expect_ssd(&other, &DTYPES[..1])?;
        }
    }
    for bits in 0..32 {
        let has = |bit: u32| bits >> bit & 1 == 1;
        let case = ssd::Case {
            skip: has(0),
            gate: has(1),
            bias: has(2),
            softplus: has(3),
            initial: has(4),
            ..ssd::full(1, 3, (2, 1), 2, 3)
        };
        expect_ssd(&case, &DTYPES[..1])?;
    }
    Ok(())
}

/// With enough chunks, a block takes several heads of a group, one after another: here all of them, or two and the last one.
#[test]
fn dual_scans_whose_blocks_take_several_heads_match() -> Result<()> {
    on_a_smaller_gpu(1024, || {
        expect_ssd(&ssd::full(1, 66, (3, 1), 3, 4), &DTYPES[..1])?;
        expect_ssd(&ssd::bare(1, 20, (4, 2), 66, 2), &DTYPES[..1])?;
        expect_ssd(&ssd::full(1, 20, (4, 2), 5, 6), &DTYPES[1..])
    })?;
    let packed = ssd::Case { arrangement: Arrangement::SeqIdx, ..ssd::full(1, 20, (5, 1), 3, 4) };
    on_a_smaller_gpu(64, || expect_ssd(&packed, &DTYPES[..1]))
}

/// Output `i` alone.
fn only(i: usize, outputs: Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
    Ok(vec![outputs?.swap_remove(i)])
}

/// A loss may depend on outputs alone, or on last states or sums alone.
#[test]
fn gradients_of_one_output_match_the_reference() -> Result<()> {
    for i in [0, 1] {
        let case = scan::full(2, 40, 5, 4);
        let (op, of_op) = (|x: &[Tensor]| only(i, case.kernel(x)), |x: &[Tensor]| only(i, case.reference(x)));
        expect_gpu("scan", &scan::NAMES, &case.inputs()?, &[2, 5, 7, 8], &DTYPES[..1], op, of_op)?;

        let case = ssd::full(2, 70, (2, 1), 3, 4);
        let (op, of_op) = (|x: &[Tensor]| only(i, case.kernel(x)), |x: &[Tensor]| only(i, case.reference(x)));
        expect_gpu("dual scan", &ssd::NAMES, &case.inputs()?, &[2, 5, 7, 8], &DTYPES[..1], op, of_op)?;

        let case = conv::full(2, 40, 5, 4);
        let (op, of_op) = (|x: &[Tensor]| only(i, case.kernel(x)), |x: &[Tensor]| only(i, case.reference(x)));
        expect_gpu("convolution", &conv::NAMES, &case.inputs()?, &[1, 2], &DTYPES[..1], op, of_op)?;

        let case = norm::full(&[5, 7]);
        let (op, of_op) = (|x: &[Tensor]| only(i, case.kernel(x)), |x: &[Tensor]| only(i, case.reference(x)));
        expect_gpu("norm", &norm::NAMES, &case.inputs()?, &[1, 2], &DTYPES[..1], op, of_op)?;
    }
    Ok(())
}

/// What decays within one token leaves nothing behind, and no gradient that is not a number.
#[test]
fn dual_scans_that_forget_at_once_stay_finite() -> Result<()> {
    let case = ssd::full(1, 70, (2, 1), 3, 4);
    let mut x = case.inputs()?;
    x[2] = (&x[2] * 1e6)?;
    expect_gpu("fast", &ssd::NAMES, &x, &[], &DTYPES[..1], |x| case.kernel(x), |x| case.reference(x))
}

/// A single token takes a kernel of its own where no gradient is asked for.
#[test]
fn single_tokens_match_the_reference() -> Result<()> {
    let Some(machine) = machine() else { return Ok(()) };
    for weights in [false, true] {
        for (heads, p, n) in [((1, 1), 1, 1), ((4, 2), 5, 70)] {
            let whole = ssd::Case { weights, skip_per_channel: weights, ..ssd::full(3, 1, heads, p, n) };
            for case in [whole, ssd::Case { initial: false, gate: false, ..whole }] {
                let x = case.inputs()?;
                let want = case.reference(&cast(&x, DType::F64)?)?;
                let got = machine.run(0, &x, |x| case.kernel(x))?;
                for (got, want) in got.iter().zip(&want) {
                    expect_close(&format!("{case:?}"), got, want, 5e-6)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn padding_of_dual_scans_is_never_read() -> Result<()> {
    let Some(machine) = machine() else { return Ok(()) };
    for arrangement in [Arrangement::RightPadded, Arrangement::SeqIdx, Arrangement::Nothing] {
        let case = ssd::Case { arrangement, weights: true, ..ssd::full(2, 40, (2, 1), 5, 4) };
        let segments = case.segments().expect("the arrangement has segments");
        let clean = case.inputs()?;
        let mut poisoned = clean.clone();
        for i in [0, 1, 3, 4, 6, 9, 10] {
            poisoned[i] = fill_padding(&clean[i], &segments, f64::NAN)?;
        }
        let want = machine.evaluate(0, &clean, |x| case.kernel(x))?;
        let got = machine.evaluate(0, &poisoned, |x| case.kernel(x))?;
        for (got, want) in got.outputs.iter().chain(&got.grads).zip(want.outputs.iter().chain(&want.grads)) {
            expect_same_bits("poisoned padding", got, want)?;
        }
        for i in [0, 1, 3, 4, 6, 9, 10] {
            expect_zero_padding(ssd::NAMES[i], &want.grads[i], &segments)?;
        }
    }
    Ok(())
}

#[test]
fn convolutions_match_the_reference() -> Result<()> {
    for width in 1..=8 {
        for (batch, len, d) in [(2, 1, 3), (1, 2, 2), (2, 37, 130)] {
            for reverse in [false, true] {
                expect_conv(&conv::Case { reverse, ..conv::full(batch, len, d, width) }, &DTYPES[..1])?;
            }
        }
    }
    for arrangement in ARRANGEMENTS {
        let case = conv::Case { arrangement, ..conv::full(2, 40, 5, 4) };
        expect_conv(&case, &DTYPES)?;
        let bare = conv::Case { bias: false, silu: false, initial: false, reverse: true, ..case };
        expect_conv(&bare, &DTYPES)?;
    }
    // In the spans of large inputs.
    on_a_smaller_gpu(1 << 17, || {
        for reverse in [false, true] {
            expect_conv(&conv::Case { reverse, ..conv::full(2, 150, 3, 4) }, &DTYPES[..1])?;
            expect_conv(&conv::Case { reverse, ..conv::full(1, 66, 3, 7) }, &DTYPES[..1])?;
        }
        Ok(())
    })
}

#[test]
fn norms_match_the_reference() -> Result<()> {
    for dims in [&[3, 2][..], &[2, 5, 7], &[20, 33], &[3, 236], &[2, 2100]] {
        for layer in [false, true] {
            for gate in [None, Some(false), Some(true)] {
                expect_norm(&norm::Case { layer, gate, ..norm::full(dims) }, &DTYPES[..1])?;
                let bare = norm::Case { layer, gate, bias: false, residual: false, ..norm::full(dims) };
                expect_norm(&bare, &DTYPES[..1])?;
            }
        }
    }
    let grouped = norm::Case { group: Some(11), ..norm::full(&[300, 33]) };
    expect_norm(&grouped, &DTYPES[..1])?;
    expect_norm(&norm::Case { layer: false, ..norm::full(&[7, 48]) }, &DTYPES[1..])
}

#[test]
fn a_dtype_without_kernels_is_refused() -> Result<()> {
    let Some(machine) = machine() else { return Ok(()) };
    let case = norm::full(&[2, 4]);
    let x = cast(&case.inputs()?, DType::F64)?;
    let message = message(machine.run(0, &x, |x| case.kernel(x)));
    assert_eq!(message, "norm: dtype F64 is not supported on a GPU, expected f32, bf16 or f16");
    Ok(())
}

/// Ops without kernels of their own are composed from tensor ops there.
#[test]
fn ops_that_are_composed_match_their_references() -> Result<()> {
    let Some(machine) = machine() else { return Ok(()) };
    let types = machine.types_of_products();
    let gelu = |x: &[Tensor]| Ok(vec![mamba_kernels::gelu(&x[0])?]);
    let of_gelu = |x: &[Tensor]| Ok(vec![mamba_kernels::gelu::reference::gelu(&x[0])?]);
    expect_gpu("gelu", &["x"], &conv::full(1, 7, 5, 2).inputs()?[..1], &[], types, gelu, of_gelu)?;

    let case = complex_scan::full(1, 5, 3, 2);
    let op = |x: &[Tensor]| case.kernel(x);
    let of_op = |x: &[Tensor]| case.reference(x);
    expect_gpu("complex scan", &complex_scan::NAMES, &case.inputs()?, &[1, 2, 3, 4, 5, 6], types, op, of_op)?;

    let x = instance_norm::inputs(&[2, 5, 3, 4])?;
    let op = |x: &[Tensor]| Ok(vec![mamba_kernels::instance_norm(&x[0], &x[1], &x[2], Some(&x[3]), 1e-5)?]);
    expect_gpu("instance norm", &instance_norm::NAMES, &x, &[], types, op, op)?;

    let x = conv2d::inputs((2, 6, 5), &[3, 4], 2, (3, 3))?;
    let shape =
        mamba_kernels::Conv2d { dilation: (2, 1), pad_h: (2, 2), pad_w: (1, 0), ..Default::default() };
    expect_gpu(
        "conv2d",
        &conv2d::NAMES,
        &x,
        &[],
        types,
        |x| conv2d::run(x, shape),
        |x| conv2d::run(x, shape),
    )?;

    let parts = [2, 3];
    let x = linear::inputs(&[2, 3, 4], &parts)?;
    let op = |x: &[Tensor]| mamba_kernels::linear(&x[0], &x[1], Some(&x[2]), &parts);
    expect_gpu("linear", &["x", "weight", "bias"], &x, &[], types, op, op)?;

    let (x, targets) = (cross_entropy::inputs(6, 4, 9)?, cross_entropy::targets(6, 9)?);
    let op = |x: &[Tensor]| {
        let targets = targets.to_device(x[0].device())?;
        Ok(vec![mamba_kernels::linear_cross_entropy(&x[0], &x[1], &targets)?])
    };
    expect_gpu("cross-entropy", &cross_entropy::NAMES, &x, &[], types, op, op)?;

    let (queries, table) = (x[0].clone(), x[1].clone());
    let skip: Vec<Vec<u32>> = (0..6).map(|i| vec![i, 100]).collect();
    let want = mamba_kernels::top_k::reference::top_k(&queries, &table, 3, &skip)?;
    machine.run(0, &[queries, table], |x| {
        let got = mamba_kernels::top_k(&x[0], &x[1], 3, &skip)?;
        let rows = |hits: &[Vec<(u32, f64)>]| -> Vec<Vec<u32>> {
            hits.iter().map(|hits| hits.iter().map(|hit| hit.0).collect()).collect()
        };
        assert_eq!(rows(&got), rows(&want));
        Ok(Vec::new())
    })?;
    Ok(())
}
