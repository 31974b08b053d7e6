//! The models: causal, blind to their neighbours, every parameter learns, and they learn what they should.

use crate::support::{fresh, small_config, small_data, small_models};
use candle_core::{DType, Device, Result, Tensor};
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::train::{Task, TrainConfig};
use mamba_core::{Mamba1Config, Params};
use mamba_kernels::Segments;
use mamba_kernels::testing::{emulation, expect_close};
use mamba_recsys::baselines::{Markov, Popularity};
use mamba_recsys::config::{DataConfig, EvalConfig, Loss, ObjectiveConfig, Positions, RunConfig};
use mamba_recsys::data::SampleConfig;
use mamba_recsys::eval::evaluate;
use mamba_recsys::task::{Training, TrainingData, bpr_loss};
use mamba_recsys::{Model, ModelConfig, Recommender};
use std::path::Path;

fn run(model: &Model, items: &[u32], cu_seqlens: &[usize]) -> Result<Tensor> {
    let tensor = Tensor::new(items, &Device::Cpu)?.unsqueeze(0)?; // (1, L)
    model.forward(&tensor, &Segments::packed(cu_seqlens)?, None)?.squeeze(0) // (L, d)
}

#[test]
fn what_comes_later_and_what_lies_beside_changes_nothing() -> Result<()> {
    for cfg in small_models() {
        let (model, _) = fresh(&cfg, 20, DType::F64);
        let items = [3u32, 1, 4, 1, 5, 9, 2, 6];
        let whole = run(&model, &items, &[0, 8])?;
        let other = run(&model, &[3, 1, 4, 1, 5, 7, 7, 7], &[0, 8])?;
        let error = |from: usize, len: usize| {
            let part = |x: &Tensor| x.narrow(0, from, len);
            mamba_kernels::testing::relative_error(&part(&other)?, &part(&whole)?)
        };
        assert!(error(5, 3)? > 1e-3, "{}", cfg.name());
        match cfg.is_causal() {
            true => assert!(error(0, 5)? < 1e-12, "{} is causal", cfg.name()),
            false => assert!(error(0, 5)? > 1e-4, "{} is not", cfg.name()),
        }
        let packed = run(&model, &[8, 8, 3, 1, 4, 1, 5, 9, 2, 6, 7], &[0, 2, 10, 11])?;
        expect_close("packed", &packed.narrow(0, 2, 8)?, &whole, 1e-12)?;
    }
    Ok(())
}

fn config(model: ModelConfig, loss: Loss, positions: Positions) -> RunConfig {
    RunConfig {
        model,
        data: DataConfig { max_length: 50, ..DataConfig::default() },
        objective: ObjectiveConfig { loss, positions, negatives: 8, ..ObjectiveConfig::default() },
        eval: EvalConfig::default(),
        train: TrainConfig { batch_size: 16, learning_rate: 1e-2, ..TrainConfig::default() },
    }
}

#[test]
fn every_parameter_gets_a_gradient_from_every_loss() {
    let data = small_data();
    for model in small_models() {
        for loss in [Loss::Softmax, Loss::SampledSoftmax, Loss::Bpr] {
            for positions in [Positions::All, Positions::Last] {
                let cfg = config(model.clone(), loss, positions);
                if let Err(refused) = cfg.validate() {
                    assert!(!model.is_causal() && positions == Positions::All, "{refused}");
                    continue;
                }
                let params = Params::fresh(1, DType::F32, &Device::Cpu);
                let mut task = Training::new(&cfg, &data, params.clone()).unwrap();
                let grads = task.train_step(0, 0).unwrap().loss.backward().unwrap();
                for param in params.named() {
                    let what = format!("{} {loss:?} {positions:?}: {}", model.name(), param.name());
                    let grad = grads.get(param.var().unwrap()).unwrap_or_else(|| panic!("{what}: none"));
                    let size = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                    // The last position has nothing behind it that the last backward mixer could remember.
                    let idle = param.name().ends_with("mamba_backwards.1.A_log") && !model.is_causal();
                    assert!(size.is_finite() && (size > 0.0 || idle), "{what}: {size}");
                }
            }
        }
    }
}

/// What a GPU computes in bf16, here in f16, which the CPU multiplies.
#[test]
fn every_loss_trains_in_half_precision() {
    let Some(emulation) = emulation(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return };
    let data = small_data();
    for (i, model) in small_models().into_iter().enumerate() {
        let loss = [Loss::Softmax, Loss::SampledSoftmax, Loss::Bpr][i % 3];
        let cfg = config(model.clone(), loss, Positions::Last);
        let params = Params::fresh(1, DType::F16, &Device::Cpu);
        emulation.run(|| {
            let mut task = Training::new(&cfg, &data, params.clone()).unwrap();
            let loss = task.train_step(0, 0).unwrap().loss;
            let norm = Gradients::of(&loss, &params).unwrap().norm().unwrap();
            assert!(norm > 0.0, "{}", model.name());
        });
    }
}

fn train(task: &mut Training<'_>, params: &Params, steps: u64, learning_rate: f64) -> Vec<f64> {
    let mut optimizer = AdamW::new(params, AdamWConfig { weight_decay: 0.0, ..Default::default() }).unwrap();
    let step = |step: u64| {
        let loss = task.train_step(step, 0).unwrap().loss;
        let mut grads = Gradients::of(&loss, params).unwrap();
        grads.clip_grad_norm(5.0, step).unwrap();
        optimizer.step(&grads, learning_rate).unwrap();
        f64::from(loss.to_scalar::<f32>().unwrap())
    };
    (0..steps).map(step).collect()
}

#[test]
fn every_loss_falls() {
    let data = small_data();
    for loss in [Loss::Softmax, Loss::SampledSoftmax, Loss::Bpr] {
        let cfg = config(small_config(2), loss, Positions::All);
        let params = Params::fresh(1, DType::F32, &Device::Cpu);
        let mut task = Training::new(&cfg, &data, params.clone()).unwrap();
        let losses = train(&mut task, &params, 60, 1e-2);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[55..]));
        assert!(last < 0.8 * first, "{loss:?}: {first} to {last}");
    }
}

/// The sample's structure needs both of a user's genres; the item before tells of one only.
#[test]
fn the_model_learns_what_a_markov_chain_cannot() {
    let sample =
        SampleConfig { users: 300, events: 40, genres: 5, items_per_genre: 8, ..SampleConfig::default() };
    let data = TrainingData::new(&sample.log(), &DataConfig::default()).unwrap();
    let mut cfg = config(small_config(1), Loss::Softmax, Positions::All);
    let ModelConfig::Mamba4Rec(model) = &mut cfg.model else { unreachable!() };
    (model.hidden_size, model.dropout_prob) = (32, 0.0);
    model.mixer = Mamba1Config { d_state: 16, ..Mamba1Config::default() }.into();
    let params = Params::fresh(1, DType::F32, &Device::Cpu);
    let mut task = Training::new(&cfg, &data, params.clone()).unwrap();
    train(&mut task, &params, 500, 5e-3);
    let TrainingData { dataset, split, popularity } = &data;
    let recommender = Recommender::frozen(&cfg.model, dataset.items.n_items(), 50, &params).unwrap();
    let measure = |scorer: &dyn mamba_recsys::eval::Scorer| {
        evaluate(scorer, dataset, &split.test, popularity, &EvalConfig::default(), |_| ()).unwrap()
    };
    let model = measure(&recommender);
    let trained = dataset.sequences.iter().zip(&split.train).map(|(items, &len)| &items[..len]);
    let markov = measure(&Markov::new(trained, popularity));
    let popular = measure(&Popularity::new(popularity));
    let hit = |metrics: &mamba_recsys::metrics::Metrics| metrics.hit[&5];
    assert!(hit(&model) > 0.75, "model {model:?}");
    assert!(hit(&model) > hit(&markov) + 0.15, "markov chain {markov:?}");
    assert!(hit(&markov) > hit(&popular), "popularity {popular:?}");
}

#[test]
fn bpr_has_a_finite_gradient_at_any_difference() -> Result<()> {
    for difference in [-1000f32, -100.0, -90.0, 0.0, 90.0, 1000.0] {
        let answer = candle_core::Var::new(&[difference], &Device::Cpu)?;
        let loss = bpr_loss(answer.as_tensor(), &Tensor::new(&[0f32], &Device::Cpu)?)?;
        let grads = loss.backward()?;
        let gradient = grads.get(&answer).unwrap().to_vec1::<f32>()?[0];
        assert!(loss.to_scalar::<f32>()?.is_finite() && gradient.is_finite(), "{difference}: {gradient}");
        assert!(difference != 0.0 || (gradient + 0.5).abs() < 1e-6, "{gradient}");
    }
    Ok(())
}
