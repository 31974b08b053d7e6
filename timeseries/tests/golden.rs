//! The forecasters against the official implementations: every golden case, outputs and gradients in f32 and f64, and
//! the published Bi-Mamba+ checkpoint.

#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use candle_core::{DType, Result, Tensor};
use mamba_core::{Mamba1Config, Params};
use mamba_kernels::testing::{Case, check_cases, device, expect_close, float_types, golden_dir};
use mamba_timeseries::ForecastCheckpoint;
use mamba_timeseries::models::{
    Activation, ForecastModel, Input, ModelConfig, SMambaConfig, Sizes, TimeMachineConfig, TslibConfig,
};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

#[test]
fn every_golden_timeseries_case_holds() {
    check_cases(
        &golden_dir(COMMITTED),
        &[
            ("s_mamba", &s_mamba),
            ("timemachine", &time_machine),
            ("tslib_mamba", &tslib_mamba),
            ("tslib_mambasimple", &tslib_mamba_simple),
        ],
        &[],
        &["s_mamba", "timemachine", "tslib_mamba", "tslib_mambasimple"],
    );
}

fn s_mamba(case: &Case) -> Result<()> {
    let ssm_cfg =
        Mamba1Config { d_state: case.number("d_state")?, d_conv: 2, expand: 1, ..Default::default() };
    let cfg = SMambaConfig {
        d_model: case.number("d_model")?,
        d_ff: case.number("d_ff")?,
        e_layers: case.number("e_layers")?,
        ssm_cfg: ssm_cfg.into(),
        activation: if case.config["activation"] == "relu" { Activation::Relu } else { Activation::Gelu },
        use_norm: case.flag("use_norm"),
        use_marks: case.get("x_mark_enc").is_some(),
        ..Default::default()
    };
    check(case, &ModelConfig::SMamba(cfg))
}

fn time_machine(case: &Case) -> Result<()> {
    let ssm_cfg = Mamba1Config {
        d_state: case.number("d_state")?,
        d_conv: case.number("dconv")?,
        expand: case.number("e_fact")?,
        ..Default::default()
    };
    let cfg = TimeMachineConfig {
        n1: case.number("n1")?,
        n2: case.number("n2")?,
        ssm_cfg: ssm_cfg.into(),
        channel_independent: case.number("ch_ind")? == 1,
        residual: case.number("residual")? == 1,
        revin: case.number("revin")? == 1,
        ..Default::default()
    };
    check(case, &ModelConfig::TimeMachine(cfg))
}

fn tslib_mamba(case: &Case) -> Result<()> {
    tslib(case, None)
}

fn tslib_mamba_simple(case: &Case) -> Result<()> {
    tslib(case, Some(case.number("e_layers")?))
}

fn tslib(case: &Case, e_layers: Option<usize>) -> Result<()> {
    let ssm_cfg = Mamba1Config {
        d_state: case.number("d_ff")?,
        d_conv: case.number("d_conv")?,
        expand: case.number("expand")?,
        ..Default::default()
    };
    let cfg = TslibConfig {
        d_model: case.number("d_model")?,
        e_layers,
        ssm_cfg: ssm_cfg.into(),
        ..Default::default()
    };
    check(case, &ModelConfig::TslibMamba(cfg))
}

/// The published Bi-Mamba+ model of Weather, in a folder of `$MAMBA_CHECKPOINTS`: its outputs.
#[test]
fn the_published_bi_mamba_checkpoint_gives_its_reference_outputs() {
    let Some(folder) = std::env::var_os("MAMBA_CHECKPOINTS") else {
        eprintln!("MAMBA_CHECKPOINTS is not set: the published Bi-Mamba+ checkpoint is not checked");
        return;
    };
    let folder = std::path::Path::new(&folder).join("bimamba4ts_weather_96_96");
    let checkpoint = ForecastCheckpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.config().columns.len(), 21);
    let reference = candle_core::safetensors::load(folder.join("reference.safetensors"), &device()).unwrap();
    for &dtype in float_types() {
        let tolerance = 2e-5;
        let (model, _) = checkpoint.model(dtype, &device()).unwrap();
        let input = Input { values: reference["x"].to_dtype(dtype).unwrap(), marks: None };
        let y = model.forward(&input, &mut None).unwrap();
        expect_close(&format!("{dtype:?} forecasts"), &y, &reference["pred"], tolerance).unwrap();
    }
}

/// Output in f32 and f64, gradients of every weight in both.
fn check(case: &Case, cfg: &ModelConfig) -> Result<()> {
    // TSLib's table of positions is computed in f32, where libraries differ in the last bit.
    let tight = if matches!(cfg, ModelConfig::TslibMamba(_)) { 1e-8 } else { 1e-9 };
    for &dtype in float_types() {
        let tolerance = if dtype == DType::F64 { tight } else { 1e-5 };
        let get = |name: &str| case.get(name).map(|x| x.to_dtype(dtype)).transpose();
        let input = Input { values: case.tensor("x_enc")?.to_dtype(dtype)?, marks: get("x_mark_enc")? };
        let sizes = Sizes {
            seq_len: case.number("seq_len")?,
            pred_len: case.number("pred_len")?,
            n_vars: case.number("enc_in")?,
            // TSLib has weights for calendar features also where it is given none.
            n_marks: 4,
        };
        let params = Params::trainable(case.with_prefix("weights."), 0, dtype, &device());
        let model = ForecastModel::new(cfg, sizes, &params.builder())?;
        ForecastModel::check(&params).map_err(candle_core::Error::wrap)?;
        let y = model.forward(&input, &mut None)?;
        let want = if dtype == DType::F64 { "f64.y" } else { "y" };
        expect_close(&format!("{dtype:?} y"), &y, &case.tensor(want)?, tolerance)?;
        let cotangent = case.tensor("cotangent")?.to_dtype(dtype)?;
        expect_gradients(case, &params, &(y * cotangent)?.sum_all()?)?;
    }
    Ok(())
}

fn expect_gradients(case: &Case, params: &Params, loss: &Tensor) -> Result<()> {
    let grads = loss.backward()?;
    let wanted = case.with_prefix("grad.weights.");
    assert!(wanted.len() > 10, "{}: no gradients", case.name);
    for (name, want) in &wanted {
        let param = params.get(name).unwrap_or_else(|| panic!("{}: no parameter {name}", case.name));
        let var = param.var().expect("the parameters are trainable");
        // A weight that a single token never touches has no gradient here and zeros in the file.
        let got = grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?;
        expect_close(&format!("gradient of {name}"), &got, want, 1e-4)?;
    }
    Ok(())
}
