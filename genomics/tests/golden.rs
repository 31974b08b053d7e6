//! Caduceus against the official implementation: every golden case, forward, loss and gradients.

use candle_core::{DType, Result, Tensor};
use mamba_core::{Checkpoint, Params, checkpoint};
use mamba_genomics::{CaduceusConfig, CaduceusForMaskedLm, CaduceusForSequenceClassification, Pooling};
use mamba_kernels::testing::{Case, check_cases, device, expect_close, golden_dir};
use std::collections::BTreeMap;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

#[test]
fn every_golden_caduceus_case_holds() {
    check_cases(
        &golden_dir(COMMITTED),
        &[("caduceus_ph", &masked_lm), ("caduceus_ps", &masked_lm), ("caduceus_seqcls", &classification)],
        &[],
        &["caduceus_ph", "caduceus_ps", "caduceus_seqcls"],
    );
}

fn load(case: &Case) -> Result<(Checkpoint, CaduceusConfig)> {
    let folder = case.config["checkpoint_dir"].as_str().unwrap_or_default();
    let checkpoint = checkpoint::load_dir(case.folder.join(folder)).map_err(candle_core::Error::wrap)?;
    let config = checkpoint.parse_config().map_err(candle_core::Error::wrap)?;
    Ok((checkpoint, config))
}

fn ids(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::U32)
}

fn masked_lm(case: &Case) -> Result<()> {
    let (checkpoint, config) = load(case)?;
    for (what, tensors) in [
        ("checkpoint", checkpoint.tensors.clone()),
        ("checkpoint with all keys", all_keys(case, &checkpoint)?),
    ] {
        let params = Params::trainable(tensors, 0, DType::F32, &device());
        let model = CaduceusForMaskedLm::new(&config, &params.builder())?;
        params.check().map_err(|e| candle_core::Error::wrap(e).context(what))?;
        for len in [10, 131, 777, 1024] {
            let get = |name: &str| case.get(&format!("L{len}.{name}"));
            let Some(input_ids) = get("input_ids") else { continue };
            let tolerance = if len >= 777 { 5e-5 } else { 2e-5 };
            let expect = |name: &str, got: &Tensor, tolerance: f64| match get(name) {
                Some(want) => expect_close(&format!("{what}, L{len}.{name}"), got, want, tolerance),
                None => Ok(()),
            };
            let input_ids = ids(input_ids)?;
            expect("logits", &model.forward(&input_ids, None)?, tolerance)?;
            let states = model.body().hidden_states(&input_ids)?;
            for (i, state) in states.iter().enumerate() {
                expect(&format!("hidden_states.{i}"), state, tolerance)?;
            }
            let last = states.last().expect("there is a last state");
            expect("last_hidden_state", last, tolerance)?;
            let rc = model.body().reverse_complement(&input_ids, None)?;
            expect("rc_input_ids", &rc.to_dtype(DType::F64)?, 0.0)?;
            expect("rc_logits", &model.forward(&rc, None)?, tolerance)?;
            let (Some(masked), Some(labels)) = (get("masked_input_ids"), get("labels")) else { continue };
            let loss = model.loss(&ids(masked)?, &ids(labels)?, None)?;
            expect("mlm_loss", &loss, 2e-5)?;
            if case.config["grad_loss_for"] == format!("L{len} masked input") {
                expect_gradients(case, &params, &loss)?;
            }
        }
    }
    Ok(())
}

/// The checkpoint as PyTorch would save it, with every shared tensor under all its names.
fn all_keys(case: &Case, checkpoint: &Checkpoint) -> Result<BTreeMap<String, Tensor>> {
    let folder = case.config["checkpoint_dir"].as_str().unwrap_or_default();
    let path = case.folder.join(folder).join("model_all_keys.safetensors");
    match path.exists() {
        true => Ok(candle_core::safetensors::load(path, &device())?.into_iter().collect()),
        false => Ok(checkpoint.tensors.clone()),
    }
}

fn expect_gradients(case: &Case, params: &Params, loss: &Tensor) -> Result<()> {
    let grads = loss.backward()?;
    let wanted = case.with_prefix("grad_loss.");
    assert!(!wanted.is_empty(), "{}: no gradients", case.name);
    for (name, want) in &wanted {
        let param = params.get(name).unwrap_or_else(|| panic!("{}: no parameter {name}", case.name));
        let var = param.var().expect("the parameters are trainable");
        let got = grads.get(var).unwrap_or_else(|| panic!("{}: {name} has no gradient", case.name));
        expect_close(&format!("gradient of {name}"), got, want, 1e-4)?;
    }
    Ok(())
}

fn classification(case: &Case) -> Result<()> {
    let (checkpoint, config) = load(case)?;
    let pooling = match case.config["pooling"].as_str() {
        Some("max") => Pooling::Max,
        _ => Pooling::Mean,
    };
    let params = Params::frozen(checkpoint.tensors, DType::F32, &device());
    let conjoin = case.flag("conjoin_eval");
    let model = CaduceusForSequenceClassification::new(&config, 3, pooling, conjoin, &params.builder())?;
    params.check().map_err(candle_core::Error::wrap)?;
    let logits = model.forward(&ids(&case.tensor("input_ids")?)?, None)?;
    expect_close("logits", &logits, &case.tensor("logits")?, 2e-5)?;
    let of_rc = model.forward(&ids(&case.tensor("rc_input_ids")?)?, None)?;
    expect_close("rc_logits", &of_rc, &case.tensor("rc_logits")?, 2e-5)?;
    let loss = mamba_core::nn::cross_entropy(&logits, &ids(&case.tensor("labels")?)?, None)?;
    expect_close("loss", &loss, &case.tensor("loss")?, 2e-5)
}
