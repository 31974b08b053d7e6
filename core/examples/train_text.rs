//! Trains a byte-level Mamba language model on plain text; the example `generate` writes with it.

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use clap::Parser;
use mamba_core::cli::{CommonArgs, Format, HintExt, INTERRUPTED, SettingsArgs, run_main};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::nn::cross_entropy;
use mamba_core::run_folder::{Metric, RunFolder, RunInfo};
use mamba_core::text::Tokenizer;
use mamba_core::train::{self, Console, Outcome, StepLoss, Stop, Task, TrainConfig};
use mamba_core::{BackboneState, Error, Params, Rng, checkpoint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::ExitCode;

/// Train a byte-level Mamba language model on plain text
///
/// The first 90 % of the text are trained on, the next 5 % choose the best weights, the last 5 % are the test.
#[derive(Parser)]
#[command(after_help = "Example:\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example train_text -- book.txt --out runs/book --minutes 10\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example generate -- --checkpoint runs/book --prompt 'In the'")]
struct Args {
    /// Plain text of any encoding
    #[arg(value_name = "FILE")]
    text: PathBuf,

    /// Folder for the run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Go on where the run in --out was saved
    #[arg(long)]
    resume: bool,

    /// Stop after so many minutes, saved and evaluated
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,

    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// All settings; `--set train.batch_size=4`, `--set model.d_model=128`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    model: LmConfig,
    train: TrainConfig,
    /// Bytes of a training sequence.
    length: usize,
}

impl Config {
    fn preset() -> Self {
        Self {
            model: LmConfig { d_model: 192, n_layer: 4, vocab_size: 256, ..Default::default() },
            train: TrainConfig {
                steps: 3000,
                batch_size: 8,
                learning_rate: 4e-3,
                warmup: 100,
                eval_every: 250,
                save_every: 250,
                log_every: 50,
                ..Default::default()
            },
            length: 256,
        }
    }

    fn validate(&self) -> Result<(), Error> {
        self.model.validate()?;
        self.train.validate()?;
        if self.length == 0 || self.model.vocab_size < 256 {
            let message = format!(
                "length {} must be at least 1 and vocab_size {} at least 256",
                self.length, self.model.vocab_size
            );
            return Err(Error::Config(message));
        }
        Ok(())
    }
}

/// The parts of a text.
struct Text {
    train: Vec<u8>,
    valid: Vec<u8>,
    test: Vec<u8>,
}

impl Text {
    /// Bytes of the validation text that each evaluation reads at most.
    const VALID: usize = 1 << 16;

    fn load(path: &PathBuf, length: usize) -> Result<Self> {
        let mut train = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) => bail!("{}: {e}", path.display()),
        };
        let total = train.len();
        let test = train.split_off(total - total / 20);
        let valid = train.split_off(train.len() - total / 20);
        if train.len() <= length || test.len() < 2 {
            bail!("{}: {total} bytes are too few to train on sequences of {length}", path.display());
        }
        Ok(Self { train, valid: valid[..valid.len().min(Self::VALID)].to_vec(), test })
    }
}

struct ByteModel<'a> {
    cfg: &'a Config,
    text: &'a Text,
    params: Params,
    lm: MambaLm,
}

impl Task for ByteModel<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        json!(self.cfg.model)
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let TrainConfig { seed, accumulate, batch_size, .. } = self.cfg.train;
        let mut rng = Rng::stream(seed, "text", step * accumulate as u64 + micro as u64);
        let length = self.cfg.length;
        let rows = (0..batch_size).flat_map(|_| {
            let start = rng.below(self.text.train.len() - length);
            self.text.train[start..=start + length].iter().map(|&byte| u32::from(byte))
        });
        let ids = Tensor::from_iter(rows.collect::<Vec<_>>(), self.params.device())?;
        let ids = ids.reshape((batch_size, length + 1))?;
        let logits = self.lm.forward(&ids.narrow(1, 0, length)?.contiguous()?)?; // (B, length, vocabulary)
        let loss = cross_entropy(&logits, &ids.narrow(1, 1, length)?, None)?;
        Ok(StepLoss { loss, items: batch_size * length })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let bits = bits_per_byte(&self.lm, &self.text.valid, self.params.device())?;
        Ok(vec![Metric::down("loss", bits * std::f64::consts::LN_2), Metric::down("bits_per_byte", bits)])
    }

    fn data_fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.cfg.length, &self.text.train, &self.text.valid).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    fn unit(&self) -> &'static str {
        "B"
    }
}

/// Mean bits that the model needs for each byte but the first of a text, read from beginning to end as one sequence.
fn bits_per_byte(lm: &MambaLm, text: &[u8], device: &Device) -> mamba_core::Result<f64> {
    const CHUNK: usize = 2048;
    let mut state = BackboneState::new();
    let mut nats = 0.0;
    let ids: Vec<u32> = text.iter().map(|&byte| byte.into()).collect();
    for start in (0..ids.len() - 1).step_by(CHUNK) {
        let end = (start + CHUNK).min(ids.len() - 1);
        let inputs = Tensor::from_slice(&ids[start..end], (1, end - start), device)?;
        let targets = Tensor::from_slice(&ids[start + 1..=end], (1, end - start), device)?;
        let logits = lm.forward_with(&inputs, None, Some(&mut state))?.detach(); // (1, chunk, vocabulary)
        state = state.detach();
        let loss = cross_entropy(&logits, &targets, None)?.to_dtype(candle_core::DType::F64)?;
        nats += loss.to_scalar::<f64>()? * (end - start) as f64;
    }
    Ok(nats / (ids.len() - 1) as f64 / std::f64::consts::LN_2)
}

fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let mut cfg = args.settings.resolve(&Config::preset())?;
    cfg.train.seed = args.settings.seed.unwrap_or(cfg.train.seed);
    cfg.train.steps = args.steps.unwrap_or(cfg.train.steps);
    cfg.train.max_minutes = args.minutes.or(cfg.train.max_minutes);
    cfg.validate()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let text = Text::load(&args.text, cfg.length)?;
    let folder = match args.resume {
        true => RunFolder::resume(&args.out)?,
        false => RunFolder::create(&args.out).hint("--resume goes on with it")?,
    };
    let params = Params::fresh(cfg.train.seed, args.common.dtype(), &device);
    let lm = MambaLm::new(&cfg.model, &params.builder())?;
    console.note(&format!(
        "{} parameters; {} bytes to train on, {} for validation, {} for the test",
        params.count(),
        text.train.len(),
        text.valid.len(),
        text.test.len()
    ));
    Tokenizer::bytes().save(folder.dir())?;
    let settings = json!({ "config": &cfg, "text": &args.text });
    let mut info = RunInfo::new("train_text", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    folder.save_info(&info)?;
    let mut task = ByteModel { cfg: &cfg, text: &text, params, lm };
    let report = train::run(&mut task, &cfg.train, &folder, &mut console, &Stop::on_signals()?)?;
    info.finish(&format!("{:?}", report.outcome), report.step);
    folder.save_info(&info)?;
    if report.outcome == Outcome::Interrupted {
        console.note(&format!("saved in {}; the same command with --resume goes on", args.out.display()));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let best = MambaLm::load(checkpoint::load_dir(&args.out)?, args.common.dtype(), &device)?;
    let bits = bits_per_byte(&best, &text.test, &device)?;
    match args.common.format {
        Format::Json => println!("{}", json!({ "test_bits_per_byte": bits, "step": report.step })),
        Format::Human => println!("test  bits per byte {bits:.4} over {} bytes", text.test.len()),
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let args = Args::parse();
    run_main(|| run(args))
}
