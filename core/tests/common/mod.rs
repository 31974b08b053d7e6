//! A tiny task that trains in milliseconds: a two-layer perceptron with dropout learns a fixed random function.
#![allow(dead_code, unreachable_pub)] // every test binary takes a part of it

use candle_core::{DType, Device, Tensor};
use mamba_core::run_folder::{Metric, Record, RunFolder};
use mamba_core::train::{Console, Prepared, Report, StepLoss, Stop, Task, TrainConfig, run};
use mamba_core::{Init, Params, Result, Rng, dropout};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

pub const INPUTS: usize = 8;

pub struct Perceptron {
    params: Params,
    layers: [(Tensor, Tensor); 2],
    config: TrainConfig,
    width: usize,
    /// Slows a step down, for the tests that kill.
    pub pause: Duration,
    /// From this step on the loss is NaN.
    pub nan_from: u64,
    /// Raised before this step.
    pub stop_at: Option<(u64, Stop)>,
    pub data: String,
    /// Whether batches are drawn ahead, those that are, and how many of them were of use.
    pub ahead: bool,
    prepared: Prepared<Rng>,
    pub taken: usize,
}

impl Perceptron {
    pub fn new(config: &TrainConfig, width: usize) -> Result<Self> {
        let params = Params::fresh(config.seed, DType::F32, &Device::Cpu);
        let layer = |name: &str, inputs: usize, outputs: usize| -> Result<(Tensor, Tensor)> {
            let pb = params.builder().pp(name);
            let weight = pb.get((outputs, inputs), "weight", Init::linear(inputs))?;
            Ok((weight, pb.get_no_decay(outputs, "bias", Init::Zeros)?))
        };
        let layers = [layer("0", INPUTS, width)?, layer("1", width, 1)?];
        let (pause, data) = (Duration::ZERO, "perceptron data".into());
        Ok(Self {
            params,
            layers,
            config: config.clone(),
            width,
            pause,
            nan_from: u64::MAX,
            stop_at: None,
            data,
            ahead: false,
            prepared: Prepared::default(),
            taken: 0,
        })
    }

    /// What draws a micro-batch.
    fn drawn(&self, step: u64, micro: usize) -> Rng {
        Rng::stream(self.config.seed, "batch", step * self.config.accumulate as u64 + micro as u64)
    }

    /// The loss of a batch drawn from `rng`.
    pub fn step_on(&self, rng: &mut Rng) -> Result<StepLoss> {
        let shape = (self.config.batch_size, INPUTS);
        let x = rng.normal_tensor(shape, 0.0, 1.0, DType::F32, &Device::Cpu)?;
        Ok(StepLoss { loss: self.loss(&x, Some(rng))?, items: self.config.batch_size })
    }

    fn loss(&self, x: &Tensor, drop: Option<&mut Rng>) -> Result<Tensor> {
        let [(w0, b0), (w1, b1)] = &self.layers;
        let mut hidden = x.matmul(&w0.t()?)?.broadcast_add(b0)?.tanh()?; // (B, width)
        if let Some(rng) = drop {
            hidden = dropout(&hidden, 0.1, rng)?;
        }
        let y = hidden.matmul(&w1.t()?)?.broadcast_add(b1)?; // (B, 1)
        let target = x.sin()?.sum_keepdim(1)?; // (B, 1)
        Ok((y - target)?.sqr()?.mean_all()?)
    }
}

impl Task for Perceptron {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        json!({"width": self.width})
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        if self.ahead {
            self.prepared.put(step, micro, self.drawn(step, micro));
        }
    }

    fn train_step(&mut self, step: u64, micro: usize) -> Result<StepLoss> {
        std::thread::sleep(self.pause);
        if let Some((at, stop)) = &self.stop_at
            && *at == step
        {
            stop.request();
        }
        let prepared = self.prepared.take(step, micro);
        self.taken += usize::from(prepared.is_some());
        let mut rng = prepared.unwrap_or_else(|| self.drawn(step, micro));
        let mut part = self.step_on(&mut rng)?;
        if step >= self.nan_from {
            part.loss = (part.loss * f64::NAN)?;
        }
        Ok(part)
    }

    fn evaluate(&mut self) -> Result<Vec<Metric>> {
        let x = Rng::new(99).normal_tensor((64, INPUTS), 0.0, 1.0, DType::F32, &Device::Cpu)?;
        let loss = f64::from(self.loss(&x, None)?.to_scalar::<f32>()?);
        Ok(vec![Metric::down("loss", loss), Metric::up("never", f64::NAN)])
    }

    fn data_fingerprint(&self) -> String {
        self.data.clone()
    }
}

/// Two micro-batches, dropout, clipping, averaging: everything that a resume could get wrong.
pub fn config(steps: u64) -> TrainConfig {
    TrainConfig {
        steps,
        batch_size: 4,
        accumulate: 2,
        learning_rate: 0.01,
        warmup: 5,
        ema: Some(0.9),
        eval_every: 10,
        save_every: 3,
        log_every: 4,
        seed: 11,
        ..Default::default()
    }
}

pub fn train(task: &mut Perceptron, dir: &Path) -> Result<Report> {
    let stop = task.stop_at.as_ref().map_or_else(Stop::new, |(_, stop)| stop.clone());
    let config = task.config.clone();
    run(task, &config, &RunFolder::resume(dir)?, &mut Console::silent(), &stop)
}

/// The records without what the clock decides.
pub fn records(dir: &Path) -> Vec<Record> {
    let mut records = RunFolder::resume(dir).unwrap().records().unwrap();
    for record in &mut records {
        match record {
            Record::Train { rate, seconds, peak_memory, .. } => {
                (*rate, *seconds, *peak_memory) = (0.0, 0.0, None);
            }
            Record::Valid { seconds, .. } => *seconds = 0.0,
        }
    }
    records
}

/// The tensors of a file, as bits.
pub fn bits(path: &Path) -> Vec<(String, Vec<u32>)> {
    let (tensors, _) = mamba_core::checkpoint::load_safetensors(path).unwrap();
    let bits = |t: Tensor| {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

/// Both runs measured the same and hold the same weights, moments and averages, bit for bit.
pub fn assert_same_run(a: &Path, b: &Path) {
    assert_eq!(records(a), records(b));
    for file in ["optim.safetensors", "model.safetensors"] {
        assert!(bits(&a.join(file)) == bits(&b.join(file)), "{file} differs");
    }
}
