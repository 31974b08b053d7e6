//! Low-rank adapters: only they learn, they start at nothing, merging them changes no output.

use super::*;
use candle_core::Var;
use mamba_core::nn::cross_entropy;
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{LoraConfig, WeightFormat, lora};
use models::assert_close;
use std::collections::BTreeMap;

fn lora_config() -> LoraConfig {
    LoraConfig { rank: 3, alpha: 6.0, ..Default::default() }
}

fn adapted(base: &BTreeMap<String, Tensor>, dtype: DType, format: WeightFormat) -> Result<(Params, MambaLm)> {
    let params = Params::trainable(base.clone(), 5, dtype, &CPU).with_lora(&lora_config())?;
    let params = params.with_weight_format(format);
    let lm = MambaLm::new(&config(true), &params.builder())?;
    params.check()?; // a base checkpoint has no adapters, and that is no error
    Ok((params, lm))
}

fn loss(lm: &MambaLm) -> Result<Tensor> {
    cross_entropy(&lm.forward(&ids(2, 9, 3)?)?, &ids(2, 9, 4)?, None)
}

fn train(params: &Params, lm: &MambaLm, steps: usize) -> mamba_core::Result<Vec<f64>> {
    let mut optimizer = AdamW::new(params, AdamWConfig::default())?;
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = loss(lm)?;
        optimizer.step(&Gradients::of(&loss, params)?, 1e-2)?;
        losses.push(loss.to_dtype(DType::F64)?.to_scalar::<f64>()?);
    }
    Ok(losses)
}

#[test]
fn only_adapters_learn_beside_full_and_compact_weights() -> Result<()> {
    let (base, lm) = model(&config(true), DType::F32)?;
    let base = base.to_tensors();
    for format in [WeightFormat::Full, WeightFormat::Int8] {
        let (params, adapted) = adapted(&base, DType::F32, format)?;
        assert_eq!(params.vars().len(), 2 * 4 * 2, "A and B of four projections of two layers");
        let x = ids(2, 9, 3)?;
        if format == WeightFormat::Full {
            assert_close("before training", &adapted.forward(&x)?, &lm.forward(&x)?, 0.0);
        }
        let before: BTreeMap<String, Tensor> =
            params.to_tensors().into_iter().map(|(n, t)| Ok((n, t.copy()?))).collect::<Result<_>>()?;
        let losses = train(&params, &adapted, 30)?;
        assert!(losses[29] < 0.9 * losses[0], "{format}: {losses:?}");
        for (name, tensor) in params.to_tensors() {
            let a = before[&name].to_dtype(DType::F64)?;
            let moved = (tensor.to_dtype(DType::F64)? - a)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert_eq!(moved > 0.0, name.contains("lora_"), "{name} moved by {moved}");
        }
    }
    Ok(())
}

#[test]
fn merged_adapters_give_the_same_outputs_and_are_saved_alone() -> Result<()> {
    let (base, _) = model(&config(true), DType::F64)?;
    let base: BTreeMap<String, Tensor> = base.to_tensors();
    let (params, adapted) = adapted(&base, DType::F64, WeightFormat::Full)?;
    train(&params, &adapted, 5)?;
    let x = ids(2, 9, 8)?;
    let want = adapted.forward(&x)?;

    let folder = tempfile::tempdir()?;
    lora::save_dir(folder.path(), &lora_config(), &params)?;
    let (cfg, adapters) = lora::load_dir(folder.path())?;
    assert_eq!(cfg, lora_config());
    assert_eq!(adapters.len(), 16);
    assert!(adapters.keys().all(|name| name.contains(".mixer.")));

    let mut merged = base.clone();
    lora::merge(&mut merged, &adapters, &cfg)?;
    let frozen = Params::frozen(merged, DType::F64, &CPU);
    let lm = MambaLm::new(&config(true), &frozen.builder())?;
    frozen.check()?;
    assert_close("merged", &lm.forward(&x)?, &want, 1e-12);

    let beside = Params::frozen(base.into_iter().chain(adapters), DType::F64, &CPU).with_lora(&cfg)?;
    let lm = MambaLm::new(&config(true), &beside.builder())?;
    beside.check()?;
    assert_close("loaded beside the weights", &lm.forward(&x)?, &want, 0.0);
    Ok(())
}

#[test]
fn adapters_that_do_not_fit_are_refused() -> Result<()> {
    let zeros = |shape: (usize, usize)| Var::zeros(shape, DType::F32, &CPU).map(|v| v.as_detached_tensor());
    let adapters = |out: usize| -> Result<BTreeMap<String, Tensor>> {
        Ok([("p.lora_A.weight".into(), zeros((3, 4))?), ("p.lora_B.weight".into(), zeros((out, 3))?)].into())
    };
    let mut weights: BTreeMap<String, Tensor> = [("p.weight".to_string(), zeros((5, 4))?)].into();
    let message = |weights: &mut BTreeMap<String, Tensor>, adapters: &BTreeMap<String, Tensor>| {
        lora::merge(weights, adapters, &lora_config()).unwrap_err().to_string()
    };
    assert!(
        message(&mut weights, &adapters(6)?).contains("p.weight has shape [5, 4], its adapter makes [6, 4]")
    );
    assert!(message(&mut BTreeMap::new(), &adapters(5)?).contains("missing tensor: p.weight"));
    let mut half = adapters(5)?;
    half.remove("p.lora_B.weight");
    assert!(message(&mut weights, &half).contains("missing tensor: p.lora_B.weight"));
    let none = LoraConfig { rank: 0, ..Default::default() };
    assert!(none.validate().unwrap_err().to_string().contains("rank 0"));
    Ok(())
}
