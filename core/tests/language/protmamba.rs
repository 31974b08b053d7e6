//! A real trained checkpoint, the example model of ProtMamba (Apache-2.0): its logits, likelihoods and greedy tokens.

use super::CPU;
use candle_core::{D, DType, Device, Result, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::{BackboneState, checkpoint};
use mamba_kernels::testing::expect_close;
use serde_json::{Value, json};
use std::path::PathBuf;

/// `$MAMBA_CHECKPOINTS/protmamba_example`, if there is one.
fn folder() -> Option<PathBuf> {
    let Some(root) = std::env::var_os("MAMBA_CHECKPOINTS") else {
        eprintln!("MAMBA_CHECKPOINTS is not set: published checkpoints are not checked");
        return None;
    };
    let folder = PathBuf::from(root).join("protmamba_example");
    assert!(folder.is_dir(), "{} is missing", folder.display());
    Some(folder)
}

/// The model, the reference tensors and the reference's own config.
fn load() -> Option<(MambaLm, std::collections::BTreeMap<String, Tensor>, Value)> {
    let folder = folder()?;
    let mut stored = checkpoint::load_dir(&folder).unwrap();
    let reference = checkpoint::load_safetensors(folder.join("reference.safetensors")).unwrap().0;
    let config = stored.config.clone();
    let known = serde_json::to_value(LmConfig::default()).unwrap();
    let keep = config.as_object().unwrap().iter().filter(|(key, _)| known.get(key).is_some());
    stored.config = Value::Object(keep.map(|(k, v)| (k.clone(), v.clone())).collect());
    Some((MambaLm::load(stored, DType::F32, &CPU).unwrap(), reference, config))
}

fn row(ids: &Tensor) -> Result<Tensor> {
    ids.to_dtype(DType::U32)?.unsqueeze(0)
}

/// Log-probabilities of each token but the first, given those before: logits `(L, vocabulary)`, ids `(L)`.
fn token_log_probabilities(logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let len = ids.dim(0)?;
    let targets = ids.narrow(0, 1, len - 1)?.to_dtype(DType::U32)?.unsqueeze(1)?;
    let all = candle_nn::ops::log_softmax(&logits.narrow(0, 0, len - 1)?, D::Minus1)?;
    all.gather(&targets, 1)?.squeeze(1)
}

#[test]
fn logits_hidden_states_and_likelihoods_are_those_of_the_reference() -> Result<()> {
    let Some((lm, reference, config)) = load() else { return Ok(()) };
    let items = config["items"].as_array().unwrap();
    assert_eq!(items.len(), 7);
    for (i, item) in items.iter().enumerate() {
        let what = |part: &str| format!("{}: {part}", item["name"]);
        let ids = &reference[&format!("{i}.input_ids")];
        assert_eq!(json!(ids.dim(0)?), item["len"]);
        let logits = lm.forward(&row(ids)?)?.squeeze(0)?; // (L, 40)
        if let Some(want) = reference.get(&format!("{i}.logits")) {
            expect_close(&what("logits"), &logits, want, 2e-5)?;
        }
        let got = token_log_probabilities(&logits, ids)?;
        // the difference of two numbers with the logits' error, relative to something smaller
        expect_close(&what("log-likelihoods"), &got, &reference[&format!("{i}.token_logprob")], 1e-4)?;
        let sum = f64::from(got.sum_all()?.to_scalar::<f32>()?);
        let want = item["sum_logprob"].as_f64().unwrap();
        assert!((sum - want).abs() < 1e-5 * want.abs(), "{}: {sum}, expected {want}", item["name"]);
    }
    let hidden = lm.hidden_states(&row(&reference["0.input_ids"])?)?;
    let layers = 8;
    for (layer, got) in hidden[..layers].iter().enumerate() {
        let want = &reference[&format!("0.residual_after_layer.{}", layer + 1)]; // 0 is the embedding
        expect_close(&format!("residual after layer {layer}"), &got.squeeze(0)?, want, 2e-5)?;
    }
    expect_close("final norm", &hidden[layers].squeeze(0)?, &reference["0.final_norm"], 5e-5)
}

#[test]
fn greedy_tokens_are_those_of_the_reference() -> Result<()> {
    let Some((lm, reference, _)) = load() else { return Ok(()) };
    let all = reference["greedy.ids"].to_dtype(DType::U32)?;
    let (new, _) = lm.generate_greedy(&all.narrow(0, 0, 21)?.unsqueeze(0)?, 40)?;
    assert_eq!(new.squeeze(0)?.to_vec1::<u32>()?, all.narrow(0, 21, 40)?.to_vec1::<u32>()?);
    Ok(())
}

/// ProtMamba feeds the backbone tokens beside positions: any embedding gives the same as its tokens would.
#[test]
fn embeddings_of_any_making_enter_the_backbone() -> Result<()> {
    let Some((lm, reference, _)) = load() else { return Ok(()) };
    let ids = row(&reference["1.input_ids"])?;
    let mut state = BackboneState::new();
    let hidden = lm.forward_embedded(&lm.embed(&ids)?, None, Some(&mut state))?;
    expect_close("logits", &lm.logits(&hidden)?.squeeze(0)?, &reference["1.logits"], 2e-5)?;
    let shifted = (lm.embed(&ids)? + Tensor::full(0.1f32, 128, &Device::Cpu)?.broadcast_as((1, 31, 128))?)?;
    let moved = (lm.forward_embedded(&shifted, None, None)? - hidden)?.abs()?.max_all()?;
    assert!(moved.to_scalar::<f32>()? > 1e-3);
    Ok(())
}
