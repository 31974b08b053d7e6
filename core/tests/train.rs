//! The training loop: determinism, stopping, resuming, refusing.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::*;
use mamba_core::run_folder::{Record, RunFolder, RunInfo};
use mamba_core::train::{Outcome, Stop};
use mamba_core::{Error, checkpoint};

fn valid_losses(dir: &std::path::Path) -> Vec<f64> {
    let loss = |record: Record| match record {
        Record::Valid { metrics, .. } => metrics["loss"],
        Record::Train { .. } => None,
    };
    records(dir).into_iter().filter_map(loss).collect()
}

#[test]
fn the_same_seed_gives_the_same_losses_and_another_seed_does_not() {
    let dirs = [11, 11, 12].map(|seed| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(40);
        config.seed = seed;
        let report = train(&mut Perceptron::new(&config, 16).unwrap(), dir.path()).unwrap();
        assert_eq!((report.outcome, report.step), (Outcome::Completed, 40));
        dir
    });
    assert_same_run(dirs[0].path(), dirs[1].path());
    assert_ne!(records(dirs[0].path()), records(dirs[2].path()));
    let losses = valid_losses(dirs[0].path());
    assert_eq!(losses.len(), 4);
    assert!(losses[3] < losses[0], "it learns: {losses:?}");
}

#[test]
fn a_stopped_run_resumes_bit_for_bit() {
    let whole = tempfile::tempdir().unwrap();
    train(&mut Perceptron::new(&config(40), 16).unwrap(), whole.path()).unwrap();
    // at, before and after a save, an evaluation and a log line
    for at in [0, 9, 10, 15, 38, 39] {
        let dir = tempfile::tempdir().unwrap();
        let mut task = Perceptron::new(&config(40), 16).unwrap();
        task.stop_at = Some((at, Stop::new()));
        let report = train(&mut task, dir.path()).unwrap();
        assert_eq!((report.outcome, report.step), (Outcome::Interrupted, at + 1));
        let report = train(&mut Perceptron::new(&config(40), 16).unwrap(), dir.path()).unwrap();
        assert_eq!(report.outcome, Outcome::Completed);
        assert_same_run(whole.path(), dir.path());
    }
}

#[test]
fn batches_that_are_prepared_ahead_change_nothing() {
    let runs = [false, true].map(|ahead| {
        let dir = tempfile::tempdir().unwrap();
        let mut task = Perceptron::new(&config(12), 16).unwrap();
        task.ahead = ahead;
        train(&mut task, dir.path()).unwrap();
        // two micro-batches a step; nobody prepares the very first
        assert_eq!(task.taken, if ahead { 23 } else { 0 });
        dir
    });
    assert_same_run(runs[0].path(), runs[1].path());
}

#[test]
fn the_log_says_how_much_memory_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut Perceptron::new(&config(4), 16).unwrap(), dir.path()).unwrap();
    let records = RunFolder::resume(dir.path()).unwrap().records().unwrap();
    let memory = records.iter().find_map(|record| match record {
        Record::Train { peak_memory, .. } => *peak_memory,
        Record::Valid { .. } => None,
    });
    if cfg!(target_os = "linux") {
        assert!(memory.unwrap() > 1 << 20, "{memory:?}");
    }
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = train(&mut Perceptron::new(&config(12), 16).unwrap(), dir.path()).unwrap();
    let before = (records(dir.path()), bits(&dir.path().join("optim.safetensors")));
    let again = train(&mut Perceptron::new(&config(12), 16).unwrap(), dir.path()).unwrap();
    assert_eq!((again.outcome, again.best), (Outcome::Completed, first.best));
    assert_eq!((records(dir.path()), bits(&dir.path().join("optim.safetensors"))), before);
}

#[test]
fn another_model_seed_or_data_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut Perceptron::new(&config(4), 16).unwrap(), dir.path()).unwrap();
    let mut seed = config(4);
    seed.seed = 5;
    let mut rate = config(4);
    rate.learning_rate = 0.5;
    let mut data = Perceptron::new(&config(4), 16).unwrap();
    data.data = "other".into();
    for (mut task, message) in [
        (Perceptron::new(&seed, 16).unwrap(), "train.seed is 11 in the saved run, 5 now"),
        (Perceptron::new(&rate, 16).unwrap(), "train.learning_rate is 0.01 in the saved run, 0.5 now"),
        (Perceptron::new(&config(4), 8).unwrap(), "model.width is 16 in the saved run, 8 now"),
        (data, r#"data is "perceptron data" in the saved run, "other" now"#),
    ] {
        let error = train(&mut task, dir.path()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let mut longer = config(8);
    longer.save_every = 1;
    assert_eq!(train(&mut Perceptron::new(&longer, 16).unwrap(), dir.path()).unwrap().step, 8);
    let error = RunFolder::create(dir.path()).unwrap_err().to_string();
    assert!(error.contains("already holds a run"), "{error}");
}

#[test]
fn a_run_that_may_not_go_on_keeps_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    let record = |seed: u64| {
        let mut config = config(4);
        config.seed = seed;
        let mut task = Perceptron::new(&config, 16).unwrap();
        let settings = serde_json::json!({ "seed": seed });
        let info = RunInfo::new("mamba-test", "1.2.3", &candle_core::Device::Cpu, seed, settings);
        let (mut console, stop) = (mamba_core::train::Console::silent(), Stop::new());
        mamba_core::train::run_recorded(&mut task, &config, &folder, info, &mut console, &stop)
    };
    record(11).unwrap();
    let before = std::fs::read(dir.path().join("run.json")).unwrap();
    assert!(record(12).unwrap_err().to_string().contains("train.seed"));
    assert_eq!(std::fs::read(dir.path().join("run.json")).unwrap(), before);
}

#[test]
fn a_loss_that_is_nan_stops_the_run_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut task = Perceptron::new(&config(40), 16).unwrap();
    task.nan_from = 20;
    let error = train(&mut task, dir.path()).unwrap_err();
    assert_eq!(error.to_string(), "step 21: the loss is NaN");
    for file in ["optim.safetensors", "model.safetensors"] {
        let finite = |bits: &u32| f32::from_bits(*bits).is_finite();
        assert!(bits(&dir.path().join(file)).iter().flat_map(|(_, values)| values).all(finite), "{file}");
    }
    // with the cause gone, the run goes on as if nothing had happened
    train(&mut Perceptron::new(&config(40), 16).unwrap(), dir.path()).unwrap();
    let whole = tempfile::tempdir().unwrap();
    train(&mut Perceptron::new(&config(40), 16).unwrap(), whole.path()).unwrap();
    assert_same_run(whole.path(), dir.path());
}

#[test]
fn patience_and_time_limit_end_a_run_early() {
    let mut patient = config(400);
    (patient.learning_rate, patient.patience, patient.ema) = (1e-30, Some(2), None);
    let dir = tempfile::tempdir().unwrap();
    let report = train(&mut Perceptron::new(&patient, 16).unwrap(), dir.path()).unwrap();
    assert_eq!((report.outcome, report.step), (Outcome::EarlyStopped, 30));
    assert_eq!(report.best.unwrap().step, 10);

    let mut short = config(1_000_000);
    (short.max_minutes, short.eval_every) = (Some(0.2 / 60.0), 1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let report = train(&mut Perceptron::new(&short, 16).unwrap(), dir.path()).unwrap();
    assert_eq!(report.outcome, Outcome::TimeLimit);
    assert_eq!(report.best.unwrap().step, report.step, "it evaluates before it ends");
}

#[test]
fn accumulating_micro_batches_equals_one_large_batch() {
    // without dropout, two micro-batches with the same data have the gradient of one
    let losses = [1, 2].map(|accumulate| {
        let mut config = config(10);
        (config.accumulate, config.log_every) = (accumulate, 1);
        let mut task = Same(Perceptron::new(&config, 16).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(dir.path().join("run")).unwrap();
        let (mut console, stop) = (mamba_core::train::Console::silent(), Stop::new());
        mamba_core::train::run(&mut task, &config, &folder, &mut console, &stop).unwrap();
        records(folder.dir())
    });
    assert_eq!(losses[0], losses[1]);
}

/// Draws the same micro-batch whatever `micro` says.
struct Same(Perceptron);

impl mamba_core::train::Task for Same {
    fn params(&self) -> &mamba_core::Params {
        self.0.params()
    }
    fn config(&self) -> serde_json::Value {
        self.0.config()
    }
    fn train_step(&mut self, step: u64, _micro: usize) -> mamba_core::Result<mamba_core::train::StepLoss> {
        let mut rng = mamba_core::Rng::stream(0, "batch", step);
        self.0.step_on(&mut rng)
    }
    fn evaluate(&mut self) -> mamba_core::Result<Vec<mamba_core::run_folder::Metric>> {
        self.0.evaluate()
    }
}

#[test]
fn the_folder_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let mut task = Perceptron::new(&config(40), 16).unwrap();
    let device = candle_core::Device::Cpu;
    let mut info = RunInfo::new("mamba-test", "1.2.3", &device, 11, serde_json::json!({"steps": 40}));
    let folder = RunFolder::create(dir.path()).unwrap();
    folder.save_info(&info).unwrap();
    let report = train(&mut task, dir.path()).unwrap();
    info.finish("completed", report.step);
    folder.save_info(&info).unwrap();

    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected =
        ["config.json", "loss.svg", "metrics.jsonl", "model.safetensors", "optim.safetensors", "run.json"];
    assert_eq!(names, expected);
    let model = checkpoint::load_dir(dir.path()).unwrap();
    assert_eq!(model.config["width"], 16);
    assert_eq!(model.tensors.keys().collect::<Vec<_>>(), ["0.bias", "0.weight", "1.bias", "1.weight"]);

    // a second process is kept out while the first holds the metrics
    let lock = folder.open_metrics(40).unwrap();
    let error = train(&mut task, dir.path()).unwrap_err();
    assert!(matches!(error, Error::RunFolder { .. }), "{error}");
    drop(lock);
}

#[test]
fn the_best_weights_are_kept_as_averages() {
    let dir = tempfile::tempdir().unwrap();
    let report = train(&mut Perceptron::new(&config(40), 16).unwrap(), dir.path()).unwrap();
    let best = report.best.unwrap();
    assert_eq!(best.step, 40, "the last evaluation is the best here");
    let model = bits(&dir.path().join("model.safetensors"));
    let state = bits(&dir.path().join("optim.safetensors"));
    let of = |prefix: &str| -> Vec<_> {
        let part =
            |(name, bits): &(String, Vec<u32>)| Some((name.strip_prefix(prefix)?.to_string(), bits.clone()));
        state.iter().filter_map(part).collect()
    };
    assert_eq!(model, of("ema/"));
    assert_ne!(model, of("param/"));
}
