//! Mixers, blocks and language models against the official implementations: every golden case.

use candle_core::{DType, Device, Result, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::nn::{GatedMlp, NormKind, cross_entropy};
use mamba_core::{Block, Checkpoint, Mamba1, Mamba1Config, Mamba1State, Params, checkpoint};
use mamba_kernels::testing::{Case, check_cases, expect_close, golden_dir};
use serde_json::Value;
use std::collections::BTreeMap;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

#[test]
fn every_golden_mamba1_case_holds() {
    check_cases(
        &golden_dir(COMMITTED),
        &[
            ("mamba1", &mixer),
            ("block_prenorm", &block),
            ("lm_mamba1", &language_model),
            ("hf_mamba", &hub_language_model),
        ],
        &["hf_mamba2"],
        &["mamba1", "block_prenorm", "lm_mamba1", "hf_mamba"],
    );
}

/// The fields of a case's config that the mixer knows.
fn mixer_config(config: &Value) -> Result<Mamba1Config> {
    let known = ["d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias"];
    let picked: serde_json::Map<String, Value> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| known.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    serde_json::from_value(Value::Object(picked)).map_err(candle_core::Error::wrap)
}

fn trainable(case: &Case, dtype: DType) -> Params {
    Params::trainable(case.with_prefix("weights."), 0, dtype, &Device::Cpu)
}

/// Compares gradients `PREFIX.NAME` of the parameters and `PREFIX.INPUT` of the inputs, where the case has them.
fn expect_gradients(
    prefix: &str,
    case: &Case,
    params: &Params,
    inputs: &[(&str, &candle_core::Var)],
    loss: &Tensor,
    tolerance: f64,
) -> Result<()> {
    let grads = loss.backward()?;
    let mut checked = 0;
    for (name, want) in case.with_prefix(prefix) {
        let param = name.strip_prefix("weights.").and_then(|name| params.get(name));
        let input = inputs.iter().find(|(input, _)| *input == name).map(|(_, var)| (*var).clone());
        let Some(var) = param.as_ref().and_then(|p| p.var().cloned()).or(input) else {
            panic!("{}: no parameter or input {name:?}", case.name)
        };
        let got = grads.get(&var).unwrap_or_else(|| panic!("{}: {name} has no gradient", case.name));
        expect_close(&format!("{prefix}{name}"), got, &want, tolerance)?;
        checked += 1;
    }
    assert!(checked > 0, "{}: no gradients {prefix}*", case.name);
    Ok(())
}

/// Our states as upstream keeps them: `(B, d_inner, K)` columns of the convolution, of which we keep the last K-1.
fn expect_state(case: &Case, at: &str, conv: &str, ssm: &str, state: &Mamba1State) -> Result<()> {
    let (Some(ours), Some(scan)) = (&state.conv, &state.ssm) else { panic!("{at}: the state is empty") };
    let columns = case.tensor(conv)?;
    let k = columns.dim(2)?;
    let newest = columns.narrow(2, 1, k - 1)?.transpose(1, 2)?.contiguous()?;
    expect_close(&format!("{at}: {conv}"), ours, &newest, 1e-5)?;
    expect_close(&format!("{at}: {ssm}"), scan, &case.tensor(ssm)?, 1e-5)
}

fn mixer(case: &Case) -> Result<()> {
    let (cfg, d_model) = (mixer_config(&case.config)?, case.number("d_model")?);
    for dtype in [DType::F32, DType::F64] {
        let params = trainable(case, dtype);
        let mixer = Mamba1::new(d_model, &cfg, 1, &params.builder())?;
        params.check().map_err(candle_core::Error::wrap)?;
        let x = candle_core::Var::from_tensor(&case.tensor("x")?.to_dtype(dtype)?)?;
        let y = mixer.forward(&x)?;
        if dtype == DType::F64 {
            expect_close("f64.y", &y, &case.tensor("f64.y")?, 1e-9)?;
            continue;
        }
        expect_close("y", &y, &case.tensor("y")?, 1e-5)?;
        let loss = (&y * case.tensor("cotangent")?)?.sum_all()?;
        expect_gradients("grad.", case, &params, &[("x", &x)], &loss, 5e-5)?;

        let len = x.dim(1)?;
        let steps = |from: usize, state: &mut Mamba1State| -> Result<Vec<Tensor>> {
            (from..len).map(|t| mixer.step(&x.narrow(1, t, 1)?.squeeze(1)?, state)?.unsqueeze(1)).collect()
        };
        let mut state = Mamba1State::new();
        let decoded = Tensor::cat(&steps(0, &mut state)?, 1)?;
        expect_close("y_decode", &decoded, &case.tensor("y_decode")?, 1e-5)?;
        expect_state(case, "decode", "decode.conv_state_final", "decode.ssm_state_final", &state)?;

        let prefill = case.number("prefill")?.min(len);
        let mut state = Mamba1State::new();
        let mut parts = vec![mixer.forward_with(&x.narrow(1, 0, prefill)?, None, Some(&mut state))?];
        let key = |part: &str| format!("prefill_decode.{part}");
        expect_state(case, "prefill", &key("conv_state_prefill"), &key("ssm_state_prefill"), &state)?;
        parts.extend(steps(prefill, &mut state)?);
        expect_close("y_prefill_decode", &Tensor::cat(&parts, 1)?, &case.tensor("y_prefill_decode")?, 1e-5)?;
        expect_state(case, "prefill, decode", &key("conv_state_final"), &key("ssm_state_final"), &state)?;
    }
    Ok(())
}

fn block(case: &Case) -> Result<()> {
    let d_model = case.number("d_model")?;
    let kind = if case.flag("rms_norm") { NormKind::Rms } else { NormKind::Layer };
    let eps = case.config["norm_eps"].as_f64().unwrap_or(1e-5);
    let params = trainable(case, DType::F32);
    let pb = params.builder();
    let mixer = Mamba1::new(d_model, &mixer_config(&case.config)?, 1, &pb.pp("mixer"))?;
    let mlp = match case.number("mlp_hidden")? {
        0 => None,
        hidden => Some(GatedMlp::new(d_model, hidden, 1, &pb.pp("mlp"))?),
    };
    let block = Block::new(d_model, (kind, eps), mixer, mlp, &pb)?;
    params.check().map_err(candle_core::Error::wrap)?;
    let x = candle_core::Var::from_tensor(&case.tensor("x")?)?;
    let residual = case.get("residual").map(candle_core::Var::from_tensor).transpose()?;
    let (y, sum) =
        block.forward(&x, residual.as_ref().map(|r| r.as_tensor()), |mixer, x| mixer.forward(x))?;
    expect_close("y", &y, &case.tensor("y")?, 1e-5)?;
    expect_close("residual_out", &sum, &case.tensor("residual_out")?, 1e-5)?;
    let loss = ((&y * case.tensor("cotangent")?)?.sum_all()?
        + (&sum * case.tensor("cotangent_residual")?)?.sum_all()?)?;
    let mut inputs = vec![("x", &x)];
    inputs.extend(residual.as_ref().map(|r| ("residual", r)));
    expect_gradients("grad.", case, &params, &inputs, &loss, 5e-5)
}

/// The fields of a case's config that are the model's.
fn lm_config(case: &Case) -> Result<LmConfig> {
    let own = ["seed", "f32_vs_f64", "padded_vocab", "greedy_min_top2_margin"];
    let mut config = case.config.clone();
    if let Some(config) = config.as_object_mut() {
        own.iter().for_each(|key| {
            config.remove(*key);
        });
    }
    LmConfig::from_json(&config).map_err(candle_core::Error::wrap)
}

fn ids(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::U32)
}

fn language_model(case: &Case) -> Result<()> {
    let cfg = lm_config(case)?;
    let input_ids = ids(&case.tensor("input_ids")?)?;
    let params = trainable(case, DType::F32);
    let lm = MambaLm::new(&cfg, &params.builder())?;
    params.check().map_err(candle_core::Error::wrap)?;
    let logits = lm.forward(&input_ids)?;
    expect_close("logits", &logits, &case.tensor("logits")?, 2e-5)?;
    let states = lm.hidden_states(&input_ids)?;
    let last = states.last().expect("there is a last state");
    expect_close("hidden_states", last, &case.tensor("hidden_states")?, 2e-5)?;

    let len = input_ids.dim(1)?;
    let loss = cross_entropy(&logits.narrow(1, 0, len - 1)?, &input_ids.narrow(1, 1, len - 1)?, None)?;
    expect_close("loss_next_token", &loss, &case.tensor("loss_next_token")?, 2e-5)?;
    expect_gradients("grad_loss.", case, &params, &[], &loss, 1e-4)?;
    greedy(case, &lm)?;

    let params = trainable(case, DType::F64);
    let lm = MambaLm::new(&cfg, &params.builder())?;
    // Upstream rounds the residual to f32 in some of its paths; ours keeps f64.
    let rounds = cfg.residual_in_fp32 && !cfg.fused_add_norm;
    let tolerance = if rounds { 2e-7 } else { 1e-9 };
    match case.get("f64.logits") {
        Some(want) => expect_close("f64.logits", &lm.forward(&input_ids)?, want, tolerance),
        None => Ok(()),
    }
}

/// Twenty greedy tokens, exactly, and the logits that chose them.
fn greedy(case: &Case, lm: &MambaLm) -> Result<()> {
    let prompt = ids(&case.tensor("greedy_prompt")?)?;
    let sequence = ids(&case.tensor("greedy_sequence")?)?;
    let tokens = sequence.dim(1)? - prompt.dim(1)?;
    let (new, logits) = lm.generate_greedy(&prompt, tokens)?;
    let want = sequence.narrow(1, prompt.dim(1)?, tokens)?;
    assert_eq!(new.to_vec2::<u32>()?, want.to_vec2::<u32>()?, "{}: greedy tokens", case.name);
    expect_close("greedy_step_logits", &logits, &case.tensor("greedy_step_logits")?, 2e-5)
}

fn hub_language_model(case: &Case) -> Result<()> {
    let folder = case.config["checkpoint_dir"].as_str().unwrap_or_default();
    let loaded = checkpoint::load_dir(case.folder.join(folder)).map_err(candle_core::Error::wrap)?;
    let lm = MambaLm::load(loaded.clone(), DType::F32, &Device::Cpu).map_err(candle_core::Error::wrap)?;
    let input_ids = ids(&case.tensor("input_ids")?)?;
    let logits = lm.forward(&input_ids)?;
    expect_close("logits", &logits, &case.tensor("logits")?, 2e-5)?;
    expect_close("logits_mamba_ssm", &logits, &case.tensor("logits_mamba_ssm")?, 2e-5)?;
    for (i, state) in lm.hidden_states(&input_ids)?.iter().enumerate() {
        expect_close(
            &format!("hidden_states.{i}"),
            state,
            &case.tensor(&format!("hidden_states.{i}"))?,
            2e-5,
        )?;
    }
    greedy(case, &lm)?;
    written_and_read_again(&loaded, &input_ids, &logits)
}

/// A folder that we write gives the same model.
fn written_and_read_again(loaded: &Checkpoint, input_ids: &Tensor, logits: &Tensor) -> Result<()> {
    let folder = tempfile::tempdir()?;
    checkpoint::save_dir(folder.path(), &loaded.config, &loaded.tensors).map_err(candle_core::Error::wrap)?;
    let again = checkpoint::load_dir(folder.path()).map_err(candle_core::Error::wrap)?;
    let names = |tensors: &BTreeMap<String, Tensor>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&again.tensors), names(&loaded.tensors));
    let lm = MambaLm::load(again, DType::F32, &Device::Cpu).map_err(candle_core::Error::wrap)?;
    expect_close("logits of the written folder", &lm.forward(input_ids)?, logits, 0.0)
}
