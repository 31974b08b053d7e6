//! `protein train`.

use super::print_scores;
use crate::commands::sequence_files;
use anyhow::Result;
use mamba_core::Params;
use mamba_core::cli::{CommonArgs, Format, TrainingArgs, interrupted};
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop, Task, TrainConfig};
use mamba_genomics::protein::reader;
use mamba_genomics::protein::task::{ProteinData, ProteinDataConfig, ProteinTrainConfig, ProteinTraining};
use mamba_genomics::protein::{MsaMambaConfig, ProtMambaConfig, ProteinConfig, ProteinModel, PtmMambaConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Which model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Model {
    /// Causal, over the homologs of a family; generates and fills in
    Protmamba,
    /// Bidirectional, over single proteins; modified residues such as <Phosphoserine> are tokens
    PtmMamba,
    /// Over an alignment: A3M, or a family that is aligned to its first protein
    MsaMamba,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-genomics protein train globins.fa --model protmamba --out runs/globins\n  \
    mamba-genomics protein train proteome.fa.gz --model ptm-mamba --out runs/ptm --minutes 20\n  \
    mamba-genomics protein train family.a3m --model msa-mamba --out runs/msa --set data.rows=16")]
pub(crate) struct Args {
    /// Proteins: FASTA or A3M, plain, gzip or bgzip
    #[arg(required = true, value_name = "FASTA")]
    inputs: Vec<PathBuf>,

    /// The model
    #[arg(long, value_enum, value_name = "NAME")]
    model: Model,

    /// Folder for the run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Tokens in a row; of an alignment columns
    #[arg(long, value_name = "N")]
    length: Option<usize>,

    #[command(flatten)]
    training: TrainingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.model {
        Model::Protmamba => {
            run_as(&args, ProtMambaConfig::default(), ProteinDataConfig::default(), ProteinConfig::ProtMamba)
        }
        Model::PtmMamba => {
            let data = ProteinDataConfig { length: 256, ..ProteinDataConfig::default() };
            run_as(&args, PtmMambaConfig::default(), data, ProteinConfig::PtmMamba)
        }
        Model::MsaMamba => {
            let data = ProteinDataConfig { length: 256, ..ProteinDataConfig::default() };
            run_as(&args, MsaMambaConfig::default(), data, ProteinConfig::MsaMamba)
        }
    }
}

fn run_as<M: Serialize + DeserializeOwned + Clone>(
    args: &Args,
    model: M,
    data: ProteinDataConfig,
    config: impl Fn(M) -> ProteinConfig,
) -> Result<ExitCode> {
    let device = args.common.start()?;
    let train = TrainConfig {
        steps: 1500,
        batch_size: 8,
        learning_rate: 2e-3,
        warmup: 50,
        log_every: 25,
        eval_every: 100,
        save_every: 100,
        ..TrainConfig::default()
    };
    let mut cfg: ProteinTrainConfig<M> =
        args.training.settings.resolve(&ProteinTrainConfig { model, train, data })?;
    args.training.apply(&mut cfg.train);
    cfg.train.steps = args.steps.unwrap_or(cfg.train.steps);
    cfg.data.length = args.length.unwrap_or(cfg.data.length);
    cfg.train.validate()?;
    let model = config(cfg.model.clone());
    model.validate()?;

    let mut console = Console::new(args.common.format, args.common.quiet);
    let proteins = reader::read_all(&sequence_files(&args.inputs)?, model.alphabet())?;
    let read = proteins.len();
    let data = ProteinData::new(&model, proteins, &cfg.data)?;
    let (train_n, valid_n, test_n) = data.sizes();
    let aligned = if data.was_aligned_here { ", aligned to the first" } else { "" };
    console.note(&format!(
        "{read} proteins{aligned}, {} of them the same as another; {train_n} to train on, {valid_n} for validation, {test_n} for the test",
        data.duplicates
    ));
    let params = Params::fresh(cfg.train.seed, args.common.dtype(), &device);
    let mut task = ProteinTraining::new(model, &cfg.train, &data, params)?;
    let folder = args.training.folder(&args.out)?;
    console.note(&format!("{} parameters", task.params().count()));
    let settings = json!({ "protein": &cfg, "fasta": &args.inputs });
    let info = RunInfo::new("mamba-genomics", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    let stop = Stop::on_signals()?;
    if train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &stop)?.is_none() {
        return Ok(interrupted(&console, &args.out));
    }
    drop(task);
    let (best, _) = ProteinModel::load(&args.out, args.common.dtype(), &device)?;
    let score = data.score(&best, true, &device)?;
    let (frequencies, columns) = data.baselines(true)?;
    let mut stdout = std::io::stdout().lock();
    if args.common.format == Format::Json {
        let table = json!({ "test": score, "frequencies": frequencies, "column_frequencies": columns });
        writeln!(stdout, "{table}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(stdout, "held-out proteins: {test_n}, {} residues scored", score.residues)?;
    let mut rows = vec![("model", &score), ("frequencies", &frequencies)];
    rows.extend(columns.as_ref().map(|columns| ("column frequencies", columns)));
    print_scores(&mut stdout, &rows)?;
    console.note(&format!(
        "run in {out}: model, metrics, {out}/loss.svg\nnext: mamba-genomics protein score proteins.fa --checkpoint {out} --out scores.tsv",
        out = args.out.display()
    ));
    Ok(ExitCode::SUCCESS)
}
