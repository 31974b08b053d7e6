//! Every golden case of the ops, in f32 and f64, for the kernels and for their references.

use candle_core::{DType, Result, Tensor, Var};
use mamba_kernels::testing::{Case, check_cases, device, expect_close, float_types, golden_dir};
use mamba_kernels::{
    CausalConv1d, Norm, Segments, SelectiveScan, Ssd, causal_conv1d, causal_conv1d_update, norm,
    selective_scan, selective_state_update, ssd, ssd_state_update,
};
use std::collections::BTreeMap;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// Tolerances for f32 outputs and gradients, and for f64.
const FORWARD: f64 = 5e-6;
const GRADIENT: f64 = 2e-5;
const F64: f64 = 1e-9;

#[test]
fn every_golden_op_case_holds() {
    let root = golden_dir(COMMITTED);
    check_cases(
        &root,
        &[
            ("selective_scan", &scan),
            ("selective_state_update", &state_update),
            ("selective_state_update_heads", &state_update_heads),
            ("ssd_chunk_scan", &chunk_scan),
            ("ssd_minimal", &minimal_scan),
            ("causal_conv1d", &conv),
            ("causal_conv1d_update", &conv_update),
            ("rms_norm_gated", &gated_norm),
            ("add_norm", &add_norm),
        ],
        &[],
        &[
            "selective_scan",
            "selective_state_update",
            "selective_state_update_heads",
            "ssd_chunk_scan",
            "ssd_minimal",
            "causal_conv1d",
            "causal_conv1d_update",
            "rms_norm_gated",
            "add_norm",
        ],
    );
}

/// Inputs as variables under their golden names, cast to `dtype`.
struct Inputs(BTreeMap<&'static str, Var>);

impl Inputs {
    fn new(case: &Case, names: &[&'static str], dtype: DType) -> Result<Self> {
        let present = names.iter().filter_map(|&name| Some((name, case.get(name)?)));
        let vars = present.map(|(name, x)| Ok((name, Var::from_tensor(&x.to_dtype(dtype)?)?)));
        Ok(Self(vars.collect::<Result<_>>()?))
    }

    fn get(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).map(|v| v.as_tensor().clone())
    }

    fn need(&self, name: &str) -> Tensor {
        self.get(name).unwrap_or_else(|| panic!("the case has no input {name:?}"))
    }

    /// Compares outputs, and the gradients of Σ y·cotangent with those of the case.
    fn expect(&self, case: &Case, what: &str, dtype: DType, outputs: &[(&str, Tensor)]) -> Result<()> {
        let (prefix, forward, gradient) = match dtype {
            DType::F64 => ("f64.", F64, F64),
            _ => ("", FORWARD, GRADIENT),
        };
        let mut loss = Tensor::zeros((), dtype, &device())?;
        for (name, y) in outputs {
            if let Some(want) = case.get(&format!("{prefix}{name}")) {
                expect_close(&format!("{what} {prefix}{name}"), y, want, forward)?;
            }
            let cotangent = match *name {
                "y" => "cotangent",
                "residual_out" => "cotangent_residual",
                _ => continue,
            };
            if let Some(cotangent) = case.get(cotangent) {
                loss = (loss + (y * cotangent.to_dtype(dtype)?)?.sum_all()?)?;
            }
        }
        let grads = loss.backward()?;
        for (name, var) in &self.0 {
            let key = format!("{prefix}grad.{name}");
            if let Some(want) = case.get(&key) {
                let got = grads.get(var).unwrap_or_else(|| panic!("{}: no {key}", case.name));
                expect_close(&format!("{what} {key}"), got, want, gradient)?;
            }
        }
        Ok(())
    }
}

/// (B, D, L) ↔ (B, L, D).
fn swap(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}

/// A coefficient (B, N, L) or (B, G, N, L) as (B, L, N) or (B, L, G, N); (D, N) stays.
fn coefficient(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        2 => Ok(x.clone()),
        3 => swap(x),
        _ => x.permute((0, 3, 1, 2))?.contiguous(),
    }
}

fn scan(case: &Case) -> Result<()> {
    const NAMES: &[&str] = &["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"];
    for &dtype in float_types() {
        for what in ["kernel", "reference"] {
            let inputs = Inputs::new(case, NAMES, dtype)?;
            let (u, delta) = (swap(&inputs.need("u"))?, swap(&inputs.need("delta"))?);
            let (b, c) = (coefficient(&inputs.need("B"))?, coefficient(&inputs.need("C"))?);
            let z = inputs.get("z").map(|z| swap(&z)).transpose()?;
            let (a, d, bias, h0) =
                (inputs.need("A"), inputs.get("D"), inputs.get("delta_bias"), inputs.get("initial_state"));
            let mut scan = SelectiveScan::new(&u, &delta, &a, &b, &c).softplus(case.flag("delta_softplus"));
            scan = d.iter().fold(scan, |s, d| s.skip(d));
            scan = z.iter().fold(scan, |s, z| s.gate(z));
            scan = bias.iter().fold(scan, |s, x| s.delta_bias(x));
            scan = h0.iter().fold(scan, |s, x| s.initial_state(x));
            let (y, last) = match what {
                "kernel" => scan.run_with_state()?,
                _ => selective_scan::reference::selective_scan(&scan)?,
            };
            inputs.expect(case, what, dtype, &[("y", swap(&y)?), ("last_state", last)])?;
        }
    }
    Ok(())
}

/// T consecutive decoding steps; the step axis is the last one.
fn state_update(case: &Case) -> Result<()> {
    let get = |name: &str| case.tensor(name);
    let at = |x: &Tensor, t: usize| x.narrow(2, t, 1)?.transpose(1, 2)?.contiguous(); // (B, 1, ·)
    let (a, mut state) = (get("A")?, get("state_in")?);
    let (skip, bias) = (case.get("D"), case.get("dt_bias"));
    let mut outputs = Vec::new();
    for t in 0..get("x")?.dim(2)? {
        let (x, dt, b, c) = (at(&get("x")?, t)?, at(&get("dt")?, t)?, at(&get("B")?, t)?, at(&get("C")?, t)?);
        let z = case.get("z").map(|z| at(z, t)).transpose()?;
        let mut step = SelectiveScan::new(&x, &dt, &a, &b, &c).softplus(case.flag("dt_softplus"));
        step = skip.into_iter().fold(step, |s, d| s.skip(d));
        step = bias.into_iter().fold(step, |s, d| s.delta_bias(d));
        step = z.iter().fold(step, |s, z| s.gate(z));
        let (y, next) = selective_state_update(step, &state)?;
        state = next;
        expect_close(&format!("state {t}"), &state, &get("state_after_each")?.get(t)?, FORWARD)?;
        outputs.push(y);
    }
    expect_close("y", &Tensor::stack(&outputs, 2)?, &get("y")?, FORWARD)
}

/// Decoding with heads, by both scans.
fn state_update_heads(case: &Case) -> Result<()> {
    state_update_ssd(case)?;
    let get = |name: &str| case.tensor(name);
    let state = get("state_in")?;
    let (batch, heads, p, n) = state.dims4()?;
    let per_channel = |x: &Tensor| -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        let x = x.unsqueeze(dims.len())?;
        dims.push(p);
        x.broadcast_as(dims.as_slice())?.contiguous()
    };
    let a = per_channel(&get("A")?)?.reshape((heads * p, 1))?.broadcast_as((heads * p, n))?.contiguous()?;
    let channels = |x: Option<&Tensor>| x.map(|x| per_channel(x)?.reshape(heads * p)).transpose();
    let (skip, bias) = (channels(case.get("D"))?, channels(case.get("dt_bias"))?);
    let mut state = state.reshape((batch, heads * p, n))?;
    for t in 0..get("x")?.dim(0)? {
        let token = |name: &str| get(name)?.get(t)?.reshape((batch, 1, heads * p));
        let dt = per_channel(&get("dt")?.get(t)?)?.reshape((batch, 1, heads * p))?;
        let (x, b, c) = (token("x")?, get("B")?.get(t)?.unsqueeze(1)?, get("C")?.get(t)?.unsqueeze(1)?);
        let z = case.get("z").map(|_| token("z")).transpose()?;
        let mut step = SelectiveScan::new(&x, &dt, &a, &b, &c).softplus(case.flag("dt_softplus"));
        step = skip.iter().fold(step, |s, d| s.skip(d));
        step = bias.iter().fold(step, |s, d| s.delta_bias(d));
        step = z.iter().fold(step, |s, z| s.gate(z));
        let (y, next) = selective_state_update(step, &state)?;
        state = next;
        expect_close("y", &y.reshape((batch, heads, p))?, &get("y")?.get(t)?, FORWARD)?;
        let after = get("state_after_each")?.get(t)?.reshape((batch, heads * p, n))?;
        expect_close("state", &state, &after, FORWARD)?;
    }
    Ok(())
}

/// Decoding with heads, by the scan that has them.
fn state_update_ssd(case: &Case) -> Result<()> {
    let get = |name: &str| case.tensor(name);
    let (a, mut state) = (get("A")?, get("state_in")?);
    for t in 0..get("x")?.dim(0)? {
        let token = |name: &str| get(name)?.get(t)?.unsqueeze(1);
        let (x, dt, b, c) = (token("x")?, token("dt")?, token("B")?, token("C")?);
        let z = case.get("z").map(|_| token("z")).transpose()?;
        let mut step = Ssd::new(&x, &dt, &a, &b, &c).softplus(case.flag("dt_softplus"));
        step = case.get("D").into_iter().fold(step, |s, d| s.skip(d));
        step = case.get("dt_bias").into_iter().fold(step, |s, d| s.dt_bias(d));
        step = z.iter().fold(step, |s, z| s.gate(z));
        let (y, next) = ssd_state_update(step, &state)?;
        state = next;
        expect_close("ssd y", &y, &get("y")?.get(t)?, FORWARD)?;
        expect_close("ssd state", &state, &get("state_after_each")?.get(t)?, FORWARD)?;
    }
    Ok(())
}

fn segments(case: &Case, batch: usize, len: usize) -> Result<Option<Segments>> {
    let Some(ids) = case.get("seq_idx") else { return Ok(None) };
    let ids = ids.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    let ids: Vec<i32> = ids.iter().map(|&i| i as i32).collect();
    Ok(Some(Segments::from_seq_idx(&ids, batch, len)?))
}

/// With several sequences in a row the initial state is that of the row's first, and the final state that of its last.
fn chunk_scan(case: &Case) -> Result<()> {
    const NAMES: &[&str] = &["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states"];
    for &dtype in float_types() {
        for what in ["kernel", "reference"] {
            let inputs = Inputs::new(case, NAMES, dtype)?;
            let [x, dt, a, b, c] = ["x", "dt", "A", "B", "C"].map(|name| inputs.need(name));
            let (d, z, bias) = (inputs.get("D"), inputs.get("z"), inputs.get("dt_bias"));
            let (batch, len, _, _) = x.dims4()?;
            let segments = segments(case, batch, len)?;
            let rows: Vec<usize> = segments.iter().flat_map(|s| s.iter().map(|s| s.row)).collect();
            let is_first = |i: usize| i == 0 || rows[i - 1] != rows[i];
            let initial = match (inputs.get("initial_states"), &segments) {
                (Some(h0), Some(_)) => {
                    let state = |(i, &row): (usize, &usize)| match is_first(i) {
                        true => h0.get(row),
                        false => h0.get(row)?.zeros_like(),
                    };
                    Some(Tensor::stack(&rows.iter().enumerate().map(state).collect::<Result<Vec<_>>>()?, 0)?)
                }
                (h0, _) => h0,
            };
            let mut scan = Ssd::new(&x, &dt, &a, &b, &c).softplus(case.flag("dt_softplus"));
            scan = scan.chunk_size(case.number("chunk_size")?);
            scan = d.iter().fold(scan, |s, d| s.skip(d));
            scan = z.iter().fold(scan, |s, z| s.gate(z));
            scan = bias.iter().fold(scan, |s, x| s.dt_bias(x));
            scan = initial.iter().fold(scan, |s, x| s.initial_state(x));
            scan = segments.iter().fold(scan, |s, x| s.segments(x));
            if let [Some(lo), Some(hi)] = [0, 1].map(|i| case.config["dt_limit"][i].as_f64()) {
                scan = scan.dt_limit(lo, hi);
            }
            let (y, last) = match what {
                "kernel" => scan.run_with_state()?,
                _ => ssd::reference::ssd(&scan)?,
            };
            let last = match rows.is_empty() {
                true => last,
                false => {
                    let ends = (0..rows.len()).filter(|&i| i + 1 == rows.len() || is_first(i + 1));
                    Tensor::stack(&ends.map(|i| last.get(i)).collect::<Result<Vec<_>>>()?, 0)?
                }
            };
            inputs.expect(case, what, dtype, &[("y", y), ("final_states", last)])?;
        }
    }
    Ok(())
}

/// Listing 1 of the paper: the inputs are multiplied by the step sizes beforehand, and so is A.
fn minimal_scan(case: &Case) -> Result<()> {
    for &dtype in float_types() {
        for what in ["kernel", "reference"] {
            let inputs = Inputs::new(case, &["X", "A", "B", "C"], dtype)?;
            let [x, decay, b, c] = ["X", "A", "B", "C"].map(|name| inputs.need(name));
            let heads = x.dim(2)?;
            let a = Tensor::full(-1.0, heads, &device())?.to_dtype(dtype)?;
            let dt = decay.neg()?;
            let ones = dt.ones_like()?.detach();
            let scan =
                Ssd::new(&x, &dt, &a, &b, &c).weights(&ones, &ones).chunk_size(case.number("block_len")?);
            let (y, last) = match what {
                "reference" => ssd::reference::ssd(&scan)?,
                _ => scan.run_with_state()?,
            };
            inputs.expect(case, what, dtype, &[("y", y), ("final_states", last)])?;
        }
    }
    Ok(())
}

fn conv(case: &Case) -> Result<()> {
    const NAMES: &[&str] = &["x", "weight", "bias", "initial_states"];
    for &dtype in float_types() {
        for what in ["kernel", "reference"] {
            let inputs = Inputs::new(case, NAMES, dtype)?;
            let x = swap(&inputs.need("x"))?;
            let (batch, len, _) = x.dims3()?;
            let (weight, bias) = (inputs.need("weight"), inputs.get("bias"));
            let state = inputs.get("initial_states").map(|x| swap(&x)).transpose()?;
            let segments = segments(case, batch, len)?;
            let mut conv = CausalConv1d::new(&x, &weight).silu(case.config["activation"] == "silu");
            conv = bias.iter().fold(conv, |c, b| c.bias(b));
            conv = state.iter().fold(conv, |c, s| c.initial_state(s));
            conv = segments.iter().fold(conv, |c, s| c.segments(s));
            let (y, last) = match what {
                "kernel" => conv.run_with_state()?,
                _ => causal_conv1d::reference::causal_conv1d(&conv)?,
            };
            let mut outputs = vec![("y", swap(&y)?)];
            if segments.is_none() {
                outputs.push(("final_states", swap(&last)?));
            }
            inputs.expect(case, what, dtype, &outputs)?;
        }
    }
    Ok(())
}

/// T single-token steps. Upstream's cache may be longer than K-1 columns, and circular: its newest token then lies before
/// column `cache_seqlens % columns`. Ours holds just the K-1 newest, oldest first.
fn conv_update(case: &Case) -> Result<()> {
    let get = |name: &str| case.tensor(name);
    let (weight, cache) = (get("weight")?, get("state_in")?);
    let (batch, _, columns) = cache.dims3()?;
    let width = weight.dim(1)?;
    let start = match case.get("cache_seqlens_start") {
        Some(start) => start.to_dtype(DType::I64)?.to_vec1::<i64>()?,
        None => vec![0; batch],
    };
    let circular = case.flag("circular_buffer");
    let newest = |cache: &Tensor, steps: usize| -> Result<Tensor> {
        let rows = (0..batch).map(|b| {
            let next = if circular { start[b] as usize + steps } else { 0 };
            let ids: Vec<u32> =
                (1..width).map(|k| ((next + 2 * columns + k - width) % columns) as u32).collect();
            let ids = Tensor::from_vec(ids, width - 1, &device())?;
            cache.get(b)?.t()?.contiguous()?.index_select(&ids, 0)
        });
        Tensor::stack(&rows.collect::<Result<Vec<_>>>()?, 0)
    };
    let mut state = newest(&cache, 0)?;
    for t in 0..get("x")?.dim(0)? {
        let x = get("x")?.get(t)?.unsqueeze(1)?;
        let mut step = CausalConv1d::new(&x, &weight).silu(case.config["activation"] == "silu");
        step = case.get("bias").into_iter().fold(step, |s, b| s.bias(b));
        let (y, next) = causal_conv1d_update(step, &state)?;
        state = next;
        expect_close(&format!("y {t}"), &y, &get("y")?.get(t)?, FORWARD)?;
        let want = newest(&get("state_after_each")?.get(t)?, t + 1)?;
        expect_close(&format!("state {t}"), &state, &want, FORWARD)?;
    }
    Ok(())
}

fn gated_norm(case: &Case) -> Result<()> {
    for &dtype in float_types() {
        for what in ["kernel", "reference"] {
            let inputs = Inputs::new(case, &["x", "weight", "bias", "z"], dtype)?;
            let (x, weight, bias, z) =
                (inputs.need("x"), inputs.need("weight"), inputs.get("bias"), inputs.get("z"));
            let eps = case.config["eps"].as_f64().unwrap_or_default();
            let mut norm = Norm::rms(&x, &weight, eps);
            norm = bias.iter().fold(norm, |n, b| n.bias(b));
            norm = z.iter().fold(norm, |n, z| n.gate(z, case.flag("norm_before_gate")));
            if let Some(size) = case.config["group_size"].as_u64() {
                norm = norm.group_size(size as usize);
            }
            let y = match what {
                "kernel" => norm.run()?,
                _ => norm::reference::norm(&norm)?.0,
            };
            inputs.expect(case, what, dtype, &[("y", y)])?;
        }
    }
    Ok(())
}

fn add_norm(case: &Case) -> Result<()> {
    for &dtype in float_types() {
        for what in ["kernel", "reference"] {
            let inputs = Inputs::new(case, &["x", "weight", "bias", "residual"], dtype)?;
            let (x, weight, bias, residual) =
                (inputs.need("x"), inputs.need("weight"), inputs.get("bias"), inputs.get("residual"));
            let eps = case.config["eps"].as_f64().unwrap_or_default();
            let new = if case.flag("rms") { Norm::rms } else { Norm::layer };
            let mut norm = new(&x, &weight, eps);
            norm = bias.iter().fold(norm, |n, b| n.bias(b));
            norm = residual.iter().fold(norm, |n, r| n.residual(r));
            let (y, sum) = match what {
                "kernel" => norm.run_with_residual()?,
                _ => norm::reference::norm(&norm)?,
            };
            inputs.expect(case, what, dtype, &[("y", y), ("residual_out", sum)])?;
        }
    }
    Ok(())
}
