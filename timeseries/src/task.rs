//! Training a forecaster, and what it is measured by.

use crate::checkpoint::CheckpointConfig;
use crate::config::ForecastConfig;
use crate::dataset::{Dataset, Window};
use crate::metrics::ErrorSums;
use crate::models::{ForecastModel, Input, ModelConfig, Sizes};
use crate::split::Part;
use candle_core::{DType, Device, Tensor};
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task};
use mamba_core::{Params, Result, Rng};
use serde_json::Value;

/// Windows that are scored at once.
const SCORE_BATCH: usize = 128;

/// A training run as the training loop sees it.
pub struct Forecasting<'a> {
    cfg: &'a ForecastConfig,
    saved: &'a CheckpointConfig,
    data: &'a Dataset,
    params: Params,
    model: ForecastModel,
    windows: Vec<Window>,
    valid: Vec<Window>,
    steps_per_epoch: u64,
    /// The epoch whose order stands in `order`.
    epoch: Option<u64>,
    order: Vec<usize>,
    prepared: Prepared<candle_core::Result<(Input, Tensor)>>,
    device: Device,
}

impl<'a> Forecasting<'a> {
    /// A run from `params`: fresh ones, or those of a checkpoint. `saved` is what becomes the checkpoint's config.
    pub fn new(
        cfg: &'a ForecastConfig,
        saved: &'a CheckpointConfig,
        data: &'a Dataset,
        params: Params,
    ) -> Result<Self> {
        let model = ForecastModel::new(&saved.model, saved.sizes(), &params.builder())?;
        ForecastModel::check(&params)?;
        let windows = data.windows(Part::Train);
        let steps_per_epoch = cfg.train.steps_per_epoch(windows.len())?;
        let valid = data.windows(Part::Valid);
        let device = params.device().clone();
        let (epoch, order, prepared) = (None, Vec::new(), Prepared::default());
        Ok(Self {
            cfg,
            saved,
            data,
            params,
            model,
            windows,
            valid,
            steps_per_epoch,
            epoch,
            order,
            prepared,
            device,
        })
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// A step's batch, on the host.
    fn batch(&mut self, step: u64) -> candle_core::Result<(Input, Tensor)> {
        let windows = self.drawn(step);
        self.data.batch(&windows, self.saved.model.uses_marks(), &Device::Cpu)
    }

    /// The windows of a step's batch: every epoch has an order of its own.
    fn drawn(&mut self, step: u64) -> Vec<Window> {
        let train = &self.cfg.train;
        let (epoch, within) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        if self.epoch != Some(epoch) {
            let mut rng = Rng::stream(train.seed, "windows", epoch);
            // with a stride, each epoch begins elsewhere
            let first = if train.window_stride > 1 { rng.below(train.window_stride) } else { 0 };
            self.order = (first..self.windows.len()).step_by(train.window_stride).collect();
            rng.shuffle(&mut self.order);
            self.epoch = Some(epoch);
        }
        let start = within as usize * train.batch_size;
        let end = (start + train.batch_size).min(self.order.len());
        self.order[start.min(end)..end].iter().map(|&i| self.windows[i]).collect()
    }
}

impl Task for Forecasting<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(self.saved).expect("a config of plain values has a JSON form")
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        let batch = self.batch(step);
        self.prepared.put(step, micro, batch);
    }

    fn train_step(&mut self, step: u64, micro: usize) -> Result<StepLoss> {
        let (input, target) = self.prepared.take(step, micro).unwrap_or_else(|| self.batch(step))?;
        let input = input.to(&self.device, self.params.dtype())?;
        let target = target.to_device(&self.device)?;
        let rng = || Some(Rng::stream(self.cfg.train.seed, "dropout", step));
        let error = (self.model.forward(&input, &mut rng())?.to_dtype(target.dtype())? - &target)?;
        self.model.note_costs(&self.params, &error, rng())?;
        let error = self.saved.only_targets(&error)?;
        Ok(StepLoss { loss: self.cfg.train.loss.of(&error)?, items: target.dim(0)? })
    }

    fn evaluate(&mut self) -> Result<Vec<Metric>> {
        // Without variables there is no graph, and activations are freed as they are used.
        let frozen = Params::frozen(self.params.to_tensors(), DType::F32, &self.device);
        let model = ForecastModel::new(&self.saved.model, self.saved.sizes(), &frozen.builder())?;
        let score = score(&model, self.saved, self.data, &self.valid, &self.device, |_| ())?.score();
        Ok(vec![Metric::down("loss", score.mse), Metric::down("mae", score.mae)])
    }

    fn data_fingerprint(&self) -> String {
        let mut bytes =
            format!("{:?} {} {:?}", self.cfg.split, self.windows.len(), self.cfg.targets).into_bytes();
        bytes.extend(self.data.fingerprint());
        mamba_datasets::job::sha256(&bytes)
    }

    fn unit(&self) -> &'static str {
        "windows"
    }
}

/// The errors of a model over windows, of the columns that it is to forecast; `seen` is told after each batch how many are done.
pub fn score(
    model: &ForecastModel,
    saved: &CheckpointConfig,
    data: &Dataset,
    windows: &[Window],
    device: &Device,
    mut seen: impl FnMut(usize),
) -> candle_core::Result<ErrorSums> {
    let mut sums = ErrorSums::new(saved.pred_len, saved.target_places().len());
    for (i, batch) in windows.chunks(SCORE_BATCH).enumerate() {
        let (input, target) = data.batch(batch, saved.model.uses_marks(), device)?;
        let forecast = model.forward(&input, &mut None)?;
        sums.add(&saved.only_targets(&forecast)?, &saved.only_targets(&target)?)?;
        seen(i * SCORE_BATCH + batch.len());
    }
    Ok(sums)
}

/// The baselines without parameters that stand beside every figure: last value, and last season where there is one.
pub fn naive_models(sizes: Sizes, season: usize) -> Result<Vec<(&'static str, ForecastModel)>> {
    let naive = |period| crate::models::Naive::new(period, sizes).map(ForecastModel::Naive);
    let mut models = vec![("last value", naive(1)?)];
    if season > 1 && season <= sizes.seq_len {
        models.push(("last season", naive(season)?));
    }
    Ok(models)
}

/// Answers what a model's config leaves to the data: whether Bi-Mamba+ mixes the variables.
pub fn decide(model: &ModelConfig, data: &Dataset) -> ModelConfig {
    let mut model = model.clone();
    if let ModelConfig::BiMambaPlus(cfg) = &mut model
        && cfg.channel_independent.is_none()
    {
        let correlations = data.training_correlations();
        let mixes = crate::models::mixes_channels(&correlations, data.columns().len(), cfg.threshold);
        cfg.channel_independent = Some(!mixes);
    }
    model
}
