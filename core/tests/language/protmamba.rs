//! A real trained checkpoint, the example model of ProtMamba (Apache-2.0): its logits, likelihoods and greedy tokens.

use super::CPU;
use candle_core::{D, DType, Device, Result, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::{BackboneState, Checkpoint, WeightFormat, checkpoint};
use mamba_kernels::testing::expect_close;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

/// The checkpoint, the reference tensors and the number of sequences they hold.
fn stored(folder: &Path) -> (Checkpoint, BTreeMap<String, Tensor>, usize) {
    let mut stored = checkpoint::load_dir(folder).unwrap();
    let reference = checkpoint::load_safetensors(folder.join("reference.safetensors")).unwrap().0;
    let items = stored.config["items"].as_array().unwrap().len();
    let known = serde_json::to_value(LmConfig::default()).unwrap();
    let keep = stored.config.as_object().unwrap().iter().filter(|(key, _)| known.get(key).is_some());
    stored.config = Value::Object(keep.map(|(k, v)| (k.clone(), v.clone())).collect());
    (stored, reference, items)
}

/// The model, the reference tensors and the reference's own config.
fn load() -> Option<(MambaLm, BTreeMap<String, Tensor>, Value)> {
    let folder = folder()?;
    let config = checkpoint::read_json(&folder.join("config.json")).unwrap();
    let (stored, reference, _) = stored(&folder);
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

/// What small weights cost a real model: its logits, and the loss over the seven sequences in nats per token.
#[test]
fn small_weights_hardly_change_logits_and_loss() -> Result<()> {
    let Some(folder) = folder() else { return Ok(()) };
    let (stored, reference, items) = stored(&folder);
    let measure = |format: WeightFormat| -> Result<(Vec<Tensor>, f64)> {
        let lm =
            MambaLm::load_as(stored.clone(), format, DType::F32, &CPU).map_err(candle_core::Error::wrap)?;
        let (mut all, mut sum, mut count) = (Vec::new(), 0.0, 0);
        for i in 0..items {
            let ids = &reference[&format!("{i}.input_ids")];
            let logits = lm.forward(&row(ids)?)?.squeeze(0)?;
            let likelihoods = token_log_probabilities(&logits, ids)?;
            sum -= f64::from(likelihoods.sum_all()?.to_scalar::<f32>()?);
            count += likelihoods.dim(0)?;
            all.push(logits.flatten_all()?);
        }
        Ok((all, sum / count as f64))
    };
    let (want, full) = measure(WeightFormat::Full)?;
    let want = Tensor::cat(&want, 0)?;
    println!("loss {full:.4} with full weights");
    let size = |x: &Tensor| -> Result<f64> { Ok(f64::from(x.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt()) };
    let formats = [WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Int8];
    // of the root mean square of the logits, of the farthest one relative to the largest, and of the loss
    let bounds = [(5e-2, 1e-1, 5e-3), (1e-2, 2e-2, 1e-3), (2e-1, 4e-1, 1e-2)];
    for (format, (mean, farthest, loss_bound)) in formats.into_iter().zip(bounds) {
        let (got, loss) = measure(format)?;
        let got = Tensor::cat(&got, 0)?;
        let error = mamba_kernels::testing::relative_error(&got, &want)?;
        let spread = size(&(got - &want)?)? / size(&want)?;
        println!("{format}: logits {spread:.1e} (at most {error:.1e}), loss {loss:.4}, {:+.1e}", loss - full);
        let close = spread < mean && error < farthest && (loss - full).abs() < loss_bound;
        assert!(close, "{format}: {spread:.2e}, {error:.2e}, loss {loss}, {full} with full weights");
    }
    Ok(())
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
