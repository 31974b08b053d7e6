//! The training loop: one plain function, [`run`], that a crate plugs a [`Task`] into.
//!
//! Everything random depends on `(seed, step)` only, and a save holds everything else, so a run that was killed at any
//! instant resumes to the same losses bit for bit (same binary, same kind of CPU).
//!
//! While a step is computed, [`Task::prepare`] makes the batch of the next one on a thread of its own.

mod config;
mod console;
mod same;
mod stop;

pub use config::TrainConfig;
pub use console::Console;
pub use same::refuse_other_settings;
pub use stop::Stop;

use crate::device::peak_memory;
use crate::optim::{AdamW, Ema, Gradients};
use crate::run_folder::{Metric, MetricsLog, Record, RunFolder, RunInfo};
use crate::{Error, Params, Result};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// What is trained, and on what.
pub trait Task: Send {
    /// The parameters to train.
    fn params(&self) -> &Params;

    /// The model's `config.json`.
    fn config(&self) -> Value;

    /// The loss of one micro-batch. Batch, masks and dropout are drawn from `Rng::stream(seed, …)` with an index made
    /// of `step` (from 0) and `micro`, never from a generator that lives on between calls.
    fn train_step(&mut self, step: u64, micro: usize) -> Result<StepLoss>;

    /// Makes what [`train_step`](Self::train_step) of the same numbers will need of the host alone: reads, draws, mixes and
    /// packs its batch, and keeps it, for example in a [`Prepared`]. Called on a thread of its own while the gradients of
    /// the micro-batch before are computed. Only a hint: a step must do without, and must come to the same.
    fn prepare(&mut self, step: u64, micro: usize) {
        let _ = (step, micro);
    }

    /// Scores the current weights on held-out data. The first metric decides which weights are best; none at all
    /// means that the latest are.
    fn evaluate(&mut self) -> Result<Vec<Metric>>;

    /// Identifies the training data, for example by a hash: a resumed run must see the same.
    fn data_fingerprint(&self) -> String {
        String::new()
    }

    /// What [`StepLoss::items`] counts, for the display.
    fn unit(&self) -> &'static str {
        "tok"
    }
}

/// The loss of one micro-batch.
#[derive(Clone, Debug)]
pub struct StepLoss {
    /// A scalar with a graph behind it.
    pub loss: Tensor,
    /// How much was trained on, for the throughput.
    pub items: usize,
}

/// A batch that [`Task::prepare`] has made, until its step takes it.
#[derive(Debug)]
pub struct Prepared<B>(Option<(u64, usize, B)>);

impl<B> Default for Prepared<B> {
    fn default() -> Self {
        Self(None)
    }
}

impl<B> Prepared<B> {
    /// Keeps the batch of a step and micro-batch, in place of any other.
    pub fn put(&mut self, step: u64, micro: usize, batch: B) {
        self.0 = Some((step, micro, batch));
    }

    /// The batch of these numbers, if that is the one that was prepared.
    pub fn take(&mut self, step: u64, micro: usize) -> Option<B> {
        self.0.take().filter(|(s, m, _)| (*s, *m) == (step, micro)).map(|(.., batch)| batch)
    }
}

/// Says how much memory a GPU has where an error is that it is short of it.
fn explain(error: Error, device: &Device) -> Error {
    match &error {
        Error::Candle(inner) => mamba_kernels::explain_gpu_memory(device, inner).map_or(error, Error::other),
        _ => error,
    }
}

/// Runs `work` while the task prepares its next micro-batch, if there is one.
fn while_preparing<T>(
    task: &mut dyn Task,
    next: Option<(u64, usize)>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some((step, micro)) = next else { return work() };
    std::thread::scope(|scope| {
        let preparing = scope.spawn(move || task.prepare(step, micro));
        let result = work();
        if let Err(panic) = preparing.join() {
            std::panic::resume_unwind(panic);
        }
        result
    })
}

/// Why a run ended. In every case its state is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Completed,
    /// No new best for `patience` evaluations.
    EarlyStopped,
    /// `max_minutes` are over.
    TimeLimit,
    /// [`Stop`] was raised: exit code 130.
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Why it ended.
    pub outcome: Outcome,
    /// Steps taken, over all resumed parts.
    pub step: u64,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Seconds of training, over all resumed parts.
    pub seconds: f64,
}

/// The best evaluation so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps taken at that time.
    pub step: u64,
    /// The deciding metric.
    pub metric: String,
    /// Its value.
    pub value: f64,
}

/// Everything besides tensors that a save holds.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// Steps taken.
    step: u64,
    /// The step of the last evaluation.
    evaluated: Option<u64>,
    best: Option<Best>,
    /// Evaluations since the best.
    stale: u32,
    /// Losses since the last log line.
    loss_sum: f64,
    loss_count: u64,
    seconds: f64,
    /// Model, settings and data, which a resumed run must share.
    identity: Value,
}

/// [`run`] with its record in the folder, `run.json`: what runs, and how it ended. `None` if it was interrupted, with all saved.
pub fn run_recorded(
    task: &mut dyn Task,
    config: &TrainConfig,
    folder: &RunFolder,
    mut info: RunInfo,
    console: &mut Console,
    stop: &Stop,
) -> Result<Option<Report>> {
    config.validate()?;
    let run = Run::open(task, config, folder)?;
    // not before: a run that may not go on keeps its record
    folder.save_info(&info)?;
    let report = drive(run, task, config, console, stop)?;
    info.finish(&format!("{:?}", report.outcome), report.step);
    folder.save_info(&info)?;
    Ok((report.outcome != Outcome::Interrupted).then_some(report))
}

/// Trains until done, stopped or out of time; starts where the folder's save left off.
pub fn run(
    task: &mut dyn Task,
    config: &TrainConfig,
    folder: &RunFolder,
    console: &mut Console,
    stop: &Stop,
) -> Result<Report> {
    config.validate()?;
    drive(Run::open(task, config, folder)?, task, config, console, stop)
}

/// Trains from where the run stands.
fn drive(
    mut run: Run<'_>,
    task: &mut dyn Task,
    config: &TrainConfig,
    console: &mut Console,
    stop: &Stop,
) -> Result<Report> {
    let (schedule, device) = (config.schedule(), task.params().device().clone());
    let clock = Instant::now();
    let (seconds_before, mut last_line, mut items) = (run.state.seconds, Instant::now(), 0);
    console.start(run.state.step, config.steps, task.unit());

    let outcome = loop {
        let step = run.state.step;
        run.state.seconds = seconds_before + clock.elapsed().as_secs_f64();
        if stop.requested() {
            run.save()?;
            break Outcome::Interrupted;
        }

        // evaluate and save
        let out_of_time = config.max_minutes.is_some_and(|m| clock.elapsed().as_secs_f64() >= 60.0 * m);
        let last = step >= config.steps || out_of_time;
        let evaluate = (last || (step > 0 && step.is_multiple_of(config.eval_every)))
            && run.state.evaluated != Some(step);
        if evaluate {
            run.evaluate(task, console)?;
        }
        if last || evaluate || (step > 0 && step.is_multiple_of(config.save_every)) {
            run.save()?;
        }
        if step >= config.steps {
            break Outcome::Completed;
        }
        if config.patience.is_some_and(|patience| run.state.stale >= patience) {
            break Outcome::EarlyStopped;
        }
        if out_of_time {
            break Outcome::TimeLimit;
        }

        // micro-batches
        let lr = schedule.at(step);
        let mut grads = Gradients::new(&run.params);
        grads.scale(1.0 / config.accumulate as f64);
        let mut loss = 0.0;
        for micro in 0..config.accumulate {
            let part = task.train_step(step, micro).map_err(|error| explain(error, &device))?;
            let next = if micro + 1 < config.accumulate { (step, micro + 1) } else { (step + 1, 0) };
            let value = while_preparing(task, Some(next).filter(|next| next.0 < config.steps), || {
                grads.accumulate(part.loss.backward()?)?;
                // A GPU is waited for here, when all of its work is queued.
                Ok(part.loss.detach().to_dtype(DType::F64)?.to_scalar::<f64>()?)
            })
            .map_err(|error| explain(error, &device))?;
            if !value.is_finite() {
                return Err(Error::NonFinite { step: step + 1, what: "the loss".into(), value });
            }
            loss += value / config.accumulate as f64;
            items += part.items;
        }

        // clip, step
        let grad_norm = grads.clip_grad_norm(config.clip.unwrap_or(f64::INFINITY), step + 1)?;
        run.optimizer.step(&grads, lr)?;
        if let Some(ema) = &mut run.ema {
            ema.update()?;
        }
        run.state.step += 1;
        run.state.loss_sum += loss;
        run.state.loss_count += 1;

        // log
        console.step(run.state.step);
        if run.state.step.is_multiple_of(config.log_every) || run.state.step == config.steps {
            let seconds = seconds_before + clock.elapsed().as_secs_f64();
            let rate = items as f64 / last_line.elapsed().as_secs_f64().max(1e-9);
            let loss = run.state.loss_sum / run.state.loss_count as f64;
            let peak_memory = peak_memory(&device);
            let record =
                Record::Train { step: run.state.step, loss, lr, grad_norm, rate, peak_memory, seconds };
            run.metrics.append(&record)?;
            console.train(&record);
            (run.state.loss_sum, run.state.loss_count, last_line, items) = (0.0, 0, Instant::now(), 0);
        }
    };

    console.finish();
    let State { step, best, seconds, .. } = run.state;
    Ok(Report { outcome, step, best, seconds })
}

/// A run in progress: what is saved, and where to.
struct Run<'a> {
    folder: &'a RunFolder,
    metrics: MetricsLog,
    params: Params,
    optimizer: AdamW,
    ema: Option<Ema>,
    state: State,
}

impl<'a> Run<'a> {
    /// Starts a run, or takes up the saved one.
    fn open(task: &dyn Task, config: &TrainConfig, folder: &'a RunFolder) -> Result<Self> {
        let params = task.params().clone();
        let identity =
            json!({"model": task.config(), "train": config.fixed_part()?, "data": task.data_fingerprint()});
        let mut optimizer = AdamW::new(&params, config.adamw())?;
        let mut ema = config.ema.map(|decay| Ema::new(&params, decay)).transpose()?;
        let state = match folder.load_state()? {
            None => {
                let (loss_sum, loss_count, seconds) = (0.0, 0, 0.0);
                State {
                    step: 0,
                    evaluated: None,
                    best: None,
                    stale: 0,
                    loss_sum,
                    loss_count,
                    seconds,
                    identity,
                }
            }
            Some((tensors, saved)) => {
                let saved: State =
                    serde_json::from_value(saved).map_err(|e| Error::run_folder(folder.dir(), e))?;
                refuse_other_settings(folder.dir(), &saved.identity, &identity, |_| false)?;
                restore_params(&params, &tensors)?;
                optimizer.restore(&tensors, saved.step)?;
                if let Some(ema) = &mut ema {
                    ema.restore(&tensors)?;
                }
                saved
            }
        };
        let metrics = folder.open_metrics(state.step)?;
        folder.save_config(&task.config())?;
        Ok(Self { folder, metrics, params, optimizer, ema, state })
    }

    /// Scores the weights, or their moving average, and keeps them in `model.safetensors` if they are the best.
    fn evaluate(&mut self, task: &mut dyn Task, console: &mut Console) -> Result<()> {
        if let Some(ema) = &mut self.ema {
            ema.swap()?;
        }
        let metrics = task.evaluate()?;
        let State { step, seconds, .. } = self.state;
        let old = self.state.best.as_ref().map(|best| best.value);
        let best = metrics.first().is_none_or(|new| new.goal.improves(new.value, old));
        if best {
            self.folder.save_model(&self.params.to_tensors())?;
            self.state.best = metrics.first().map(|m| Best { step, metric: m.name.clone(), value: m.value });
        }
        self.state.stale = if best { 0 } else { self.state.stale + 1 };
        self.state.evaluated = Some(step);
        if let Some(ema) = &mut self.ema {
            ema.swap()?;
        }

        if !metrics.is_empty() {
            let finite = |m: &Metric| (m.name.clone(), Some(m.value).filter(|value| value.is_finite()));
            let record = Record::Valid { step, metrics: metrics.iter().map(finite).collect(), best, seconds };
            self.metrics.append(&record)?;
            console.valid(&record, &metrics, best);
        }
        self.folder.draw_curve()
    }

    /// Writes `optim.safetensors`, after making the metrics up to here durable.
    fn save(&self) -> Result<()> {
        self.metrics.sync()?;
        let mut tensors = self.optimizer.to_tensors();
        tensors.extend(self.ema.iter().flat_map(Ema::to_tensors));
        tensors.extend(
            self.params.to_tensors().into_iter().map(|(name, value)| (format!("param/{name}"), value)),
        );
        self.folder.save_state(&tensors, &serde_json::to_value(&self.state).map_err(Error::other)?)
    }
}

/// Puts saved weights into the parameters; their names must agree.
fn restore_params(params: &Params, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let saved: BTreeMap<&str, &Tensor> =
        tensors.iter().filter_map(|(name, value)| Some((name.strip_prefix("param/")?, value))).collect();
    let named = params.named();
    let missing: Vec<String> =
        named.iter().map(|p| p.name()).filter(|n| !saved.contains_key(n)).map(str::to_string).collect();
    let unexpected: Vec<String> =
        saved.keys().filter(|n| named.iter().all(|p| p.name() != **n)).map(|n| n.to_string()).collect();
    if !(missing.is_empty() && unexpected.is_empty()) {
        return Err(Error::Tensors { missing, unexpected });
    }
    for param in named.iter().filter(|p| p.var().is_some()) {
        params.set(param.name(), saved[param.name()])?;
    }
    Ok(())
}
