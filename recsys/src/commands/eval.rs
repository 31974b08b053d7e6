//! `eval`: a model and the baselines on the held-out events of a log.

use super::log::LogArgs;
use anyhow::{Context, Result, bail};
use mamba_core::cli::{CommonArgs, Format};
use mamba_core::run_folder::RunInfo;
use mamba_recsys::RecCheckpoint;
use mamba_recsys::baselines::{Markov, Popularity};
use mamba_recsys::config::{EvalConfig, RunConfig};
use mamba_recsys::eval::{Scorer, evaluate};
use mamba_recsys::metrics::{LIST, Metrics};
use mamba_recsys::task::TrainingData;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(
    after_help = "Full ranking: the right answer of every query among all items, ties counted against the model.\n\n\
    Examples:\n  mamba-recsys eval --data ml-100k --checkpoint runs/ml-100k\n  \
    mamba-recsys eval --data ml-1m --checkpoint runs/ml-1m --whole-history"
)]
pub(crate) struct Args {
    #[command(flatten)]
    log: LogArgs,

    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "runs/recsys")]
    checkpoint: PathBuf,

    /// Rank only items that are not in the history. The papers rank all [default: as the run]
    #[arg(long)]
    exclude_seen: bool,

    /// Most items of a history that the model sees [default: as the run]
    #[arg(long, value_name = "ITEMS")]
    max_length: Option<usize>,

    /// Measure the model on whole histories too, however long, beside the window that it was trained with
    #[arg(long, conflicts_with = "max_length")]
    whole_history: bool,

    /// Measure on the validation events instead of the test events
    #[arg(long)]
    valid: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let checkpoint = RecCheckpoint::open(&args.checkpoint)?;
    let mut cfg = saved_config(&args.checkpoint)?;
    cfg.eval.exclude_seen |= args.exclude_seen;
    let mut data = TrainingData::new(&args.log.read()?, &cfg.data)?;
    if data.dataset.items.ids() != checkpoint.items().ids() {
        bail!(
            "{} was trained on other items than this log has: {} against {}",
            args.checkpoint.display(),
            checkpoint.items().ids().len(),
            data.dataset.items.ids().len()
        );
    }
    if args.valid {
        data.split.test = data.split.valid.clone();
    }
    let recommender = checkpoint.recommender(args.max_length, args.common.dtype(), &device)?;
    let mut table = Table::new(&cfg, &data);
    table.add(cfg.model.name(), test(&recommender, &data, &cfg.eval, &args.common)?);
    if args.whole_history {
        let longest = data.dataset.sequences.iter().map(Vec::len).max().unwrap_or(1);
        let whole = recommender.with_max_length(longest)?;
        table.add("whole history", test(&whole, &data, &cfg.eval, &args.common)?);
    }
    table.add_baselines(&args.common)?;
    table.print(&args.common)?;
    Ok(ExitCode::SUCCESS)
}

/// The settings that a run was trained with.
pub(crate) fn saved_config(run: &Path) -> Result<RunConfig> {
    let path = run.join("run.json");
    let cannot_read = || format!("cannot read {}", path.display());
    let text = std::fs::read(&path).with_context(cannot_read)?;
    let info: RunInfo = serde_json::from_slice(&text).with_context(cannot_read)?;
    let settings = info.settings.get("recsys").cloned().unwrap_or_default();
    serde_json::from_value(settings)
        .with_context(|| format!("{} has no settings of a training run", path.display()))
}

/// A scorer on the test queries.
pub(crate) fn test(
    scorer: &dyn Scorer,
    data: &TrainingData,
    cfg: &EvalConfig,
    common: &CommonArgs,
) -> Result<Metrics> {
    let mut progress = common.progress(Some(data.split.test.len() as u64), "queries");
    let mut done = 0;
    let metrics = evaluate(scorer, &data.dataset, &data.split.test, &data.popularity, cfg, |n| {
        progress.inc((n - done) as u64);
        done = n;
    })?;
    progress.finish();
    Ok(metrics)
}

/// Figures side by side.
pub(crate) struct Table<'a> {
    cfg: &'a RunConfig,
    data: &'a TrainingData,
    rows: Vec<(String, Metrics)>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(cfg: &'a RunConfig, data: &'a TrainingData) -> Self {
        Self { cfg, data, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &str, metrics: Metrics) {
        self.rows.push((name.into(), metrics));
    }

    /// The models that count.
    pub(crate) fn add_baselines(&mut self, common: &CommonArgs) -> Result<()> {
        let TrainingData { dataset, split, popularity } = self.data;
        let train = dataset.sequences.iter().zip(&split.train).map(|(items, &len)| &items[..len]);
        let markov = Markov::new(train, popularity);
        self.add("markov chain", test(&markov, self.data, &self.cfg.eval, common)?);
        self.add("popularity", test(&Popularity::new(popularity), self.data, &self.cfg.eval, common)?);
        Ok(())
    }

    /// As JSON.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let row = |(name, metrics): &(String, Metrics)| json!({ "model": name, "metrics": metrics });
        self.rows.iter().map(row).collect()
    }

    /// On stdout, for people or as JSON.
    pub(crate) fn print(&self, common: &CommonArgs) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if common.format == Format::Json {
            let json = json!({ "exclude_seen": self.cfg.eval.exclude_seen, "test": self.rows() });
            return Ok(writeln!(out, "{json}")?);
        }
        let seen = if self.cfg.eval.exclude_seen { "seen ones left out" } else { "seen ones too" };
        writeln!(
            out,
            "{} queries, each against all {} items, {seen}",
            self.data.split.test.len(),
            self.data.dataset.items.ids().len()
        )?;
        let cutoffs = [1, 5, 10, 20, 50];
        write!(out, "{:<14}", "")?;
        for (name, cutoffs) in [("Hit@", &cutoffs[..]), ("NDCG@", &cutoffs[1..]), ("MRR@", &[10])] {
            cutoffs.iter().try_for_each(|k| write!(out, " {:>8}", format!("{name}{k}")))?;
        }
        writeln!(out, " {:>8} {:>8}", format!("cover@{LIST}"), "pop-lift")?;
        for (name, metrics) in &self.rows {
            write!(out, "{name:<14}")?;
            for (figures, cutoffs) in
                [(&metrics.hit, &cutoffs[..]), (&metrics.ndcg, &cutoffs[1..]), (&metrics.mrr, &[10])]
            {
                cutoffs.iter().try_for_each(|k| write!(out, " {:>8.4}", figures[k]))?;
            }
            writeln!(out, " {:>8.4} {:>8.3}", metrics.coverage, metrics.popularity_lift)?;
        }
        Ok(())
    }
}
