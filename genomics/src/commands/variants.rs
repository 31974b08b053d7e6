//! `variants`: scores for the alternate alleles of a VCF file.

mod output;

use super::embed::{is_stream, plural, usage, with_hint};
use anyhow::{Context, Result};
use mamba_core::cli::{self, HintExt, Progress};
use mamba_core::train::Stop;
use mamba_datasets::job::{Fingerprint, Job, Shard};
use mamba_datasets::prefetch;
use mamba_genomics::CaduceusCheckpoint;
use mamba_genomics::fasta::IndexedFasta;
use mamba_genomics::variants::{
    Reference, Score, ScoreOptions, Site, SiteOptions, Skip, VariantScorer, VcfReader, VcfRecord,
};
use output::{Opened, Output, Row};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

/// Records that are read while the model computes.
const READ_AHEAD: usize = 4096;

#[derive(clap::Args)]
#[command(after_long_help = "\
Every alternate allele gets two scores. MAMBA_LLR is the log-likelihood ratio of ALT against REF (natural logarithm, the
allele's bases masked, mean over both strands): below 0 the model prefers the reference. MAMBA_DIST is the distance between
the mean vectors of the two haplotypes around the allele. Alleles without a sequence of A, C, G, T (symbolic, *, N) or
longer than --max-indel have none, and MAMBA_SKIP says why; no record is dropped. MAMBA_DIST is missing where an empty
allele has nothing around it (--flank 0 or --pool 0). Fields of these names from an earlier run are dropped.

VCF output keeps every line as it is, but for these INFO fields and its end, which is always LF. Tables have a row for each
alternate allele. The same input and model give the same bytes, whatever the threads, batches and shards.

Examples:
  mamba-genomics variants calls.vcf.gz --reference genome.fa.gz --checkpoint runs/genome --out scored.vcf.gz
  mamba-genomics variants calls.vcf.gz --reference genome.fa --out scores.parquet
  mamba-genomics variants - --reference genome.fa --out - < calls.vcf > scored.vcf
  mamba-genomics variants calls.vcf.gz --reference genome.fa --out parts/ --shard 0/4")]
pub(crate) struct Args {
    /// VCF file, plain, gzip or bgzip, or - for standard input
    #[arg(value_name = "VCF")]
    vcf: PathBuf,

    /// FASTA file that the variants were called against, or the name of a data set; a .fai index beside it is used
    #[arg(long, value_name = "FASTA")]
    reference: PathBuf,

    /// Folder of the model [default: the small model that comes with this program]
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,

    /// Output: a file (.vcf, .vcf.gz, .parquet, .csv, .tsv), a directory for parts, or - for VCF on standard output
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Replace output that was made from something else
    #[arg(long)]
    overwrite: bool,

    /// Bases of the reference on either side of an allele that the model sees
    #[arg(long, default_value_t = 512, value_name = "BASES", help_heading = "Scores")]
    flank: usize,

    /// Bases on either side of an allele whose vectors count for MAMBA_DIST
    #[arg(long, default_value_t = 64, value_name = "BASES", help_heading = "Scores")]
    pool: usize,

    /// Only MAMBA_LLR: about three times as fast
    #[arg(long, help_heading = "Scores")]
    no_distance: bool,

    /// Most bases of an allele, without what REF and ALT share; longer ones are counted and passed over
    #[arg(long, default_value_t = 50, value_name = "BASES", help_heading = "Alleles")]
    max_indel: usize,

    /// Take chromosome names that differ by a leading "chr" only, and M and MT, for the same
    #[arg(long, help_heading = "Alleles")]
    match_chr: bool,

    /// Pass over records whose REF is not what the reference has, instead of stopping
    #[arg(long, help_heading = "Alleles")]
    skip_mismatches: bool,

    /// Pass over records of chromosomes that the reference does not have, instead of stopping
    #[arg(long, help_heading = "Alleles")]
    skip_unknown: bool,

    /// Most tokens in a batch, padding counted; changes memory and speed, never the result
    #[arg(long, default_value_t = 16_384, value_name = "BASES", help_heading = "Work")]
    batch_tokens: usize,

    /// Make every N-th part from number I on, I from 0; needs a directory
    #[arg(long, value_name = "I/N", help_heading = "Work")]
    shard: Option<Shard>,

    /// Records in a part
    #[arg(long, default_value_t = 50_000, value_name = "N", help_heading = "Work")]
    part_records: u64,

    #[command(flatten)]
    common: cli::CommonArgs,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let started = Instant::now();
    match score(&args, &device) {
        Ok(done) if done.interrupted => {
            eprintln!(
                "stopped: {} finished and kept, the unfinished output dropped; the same command goes on",
                plural(done.written + done.finished, "part")
            );
            Ok(ExitCode::from(cli::INTERRUPTED))
        }
        Ok(done) => {
            report(&args, &done, started)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(with_hint(error)),
    }
}

/// What a run has done.
#[derive(Default)]
struct Done {
    records: u64,
    scored: u64,
    skipped: BTreeMap<Skip, u64>,
    /// Outputs written, left as they were, and left to other shards.
    written: u64,
    finished: u64,
    others: u64,
    interrupted: bool,
}

fn score(args: &Args, device: &candle_core::Device) -> Result<Done> {
    if args.batch_tokens == 0 || args.part_records == 0 || args.max_indel == 0 {
        return Err(usage("--batch-tokens, --part-records and --max-indel must be at least 1").into());
    }
    let output = Output::of(&args.out, args.shard, args.part_records)?;
    let stream = is_stream(&args.vcf);
    if stream && output.is_directory() {
        let out = args.out.display();
        return Err(
            usage(format!("--out {out}: parts need an input file, a stream can be read only once")).into()
        );
    }
    let reference = super::sequence_files(std::slice::from_ref(&args.reference))?.remove(0);
    let checkpoint = CaduceusCheckpoint::open(args.checkpoint.as_deref())
        .hint("train a model with `mamba-genomics train`, or leave --checkpoint out for the bundled one")?;
    let options =
        ScoreOptions { pool: (!args.no_distance).then_some(args.pool), batch_tokens: args.batch_tokens };
    let site_options = SiteOptions {
        flank: args.flank,
        longest: args.max_indel,
        match_chr: args.match_chr,
        skip_mismatches: args.skip_mismatches,
        skip_unknown: args.skip_unknown,
    };
    let scorer = VariantScorer::new(&checkpoint, options, args.common.dtype(), device)?;
    let fingerprint = fingerprint(args, &checkpoint, &reference, options, site_options, &output)?;
    let job = Job::new("mamba-genomics variants", fingerprint).overwrite(args.overwrite);

    let reader = VcfReader::open(&args.vcf)?;
    let name = reader.path().to_owned();
    let header = output::header(reader.header(), &args.reference, &checkpoint.hash()?, !args.no_distance);
    let fasta = IndexedFasta::open([&reference])?;
    let mut reference = Reference::new(fasta, reference.display().to_string(), site_options);
    let progress = args.common.progress(None, "variants");
    let mut done = Done::default();
    let made_directory = output.is_directory() && !args.out.exists();
    let result = (|| {
        let opened = match output.open(&job, &header)? {
            Some(opened) => opened,
            None => {
                done.finished = 1;
                return Ok(());
            }
        };
        let stop = Stop::on_signals()?;
        let records = prefetch(reader, READ_AHEAD)?;
        let mut pipeline = Pipeline {
            scorer: &scorer,
            opened,
            waiting: Vec::new(),
            tokens: 0,
            limit: args.batch_tokens,
            progress,
            done: &mut done,
        };
        for record in records {
            if stop.requested() {
                pipeline.done.interrupted = true;
                return Ok(()); // and drop what is unfinished
            }
            let record = record?;
            if !pipeline.enter_part()? {
                continue;
            }
            let sites = reference.sites(&name, &record)?;
            pipeline.push(record, sites)?;
        }
        pipeline.finish()
    })();
    if made_directory {
        // Succeeds only while it is empty.
        let _ = std::fs::remove_dir(&args.out);
    }
    result.map(|()| done)
}

/// Records that wait for their batch, and where their rows go.
struct Pipeline<'a> {
    scorer: &'a VariantScorer,
    opened: Opened,
    waiting: Vec<(VcfRecord, Vec<std::result::Result<Site, Skip>>)>,
    tokens: usize,
    limit: usize,
    progress: Progress,
    done: &'a mut Done,
}

impl Pipeline<'_> {
    /// Whether the record that comes next is to be scored here; opens and closes parts on the way.
    fn enter_part(&mut self) -> Result<bool> {
        if self.opened.part_is_full() {
            self.flush()?;
            self.done.written += u64::from(self.opened.close()?);
        }
        self.opened.next_record(&mut self.done.finished, &mut self.done.others)
    }

    fn push(&mut self, record: VcfRecord, sites: Vec<std::result::Result<Site, Skip>>) -> Result<()> {
        let size = |site: &Site| site.left.len() + site.right.len() + 2;
        self.tokens += sites.iter().flatten().map(size).sum::<usize>();
        self.waiting.push((record, sites));
        match self.tokens >= self.limit || self.waiting.len() >= READ_AHEAD {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let sites: Vec<Site> =
            self.waiting.iter().flat_map(|(_, sites)| sites.iter().flatten().cloned()).collect();
        let mut scores = self.scorer.score(&sites)?.into_iter();
        for (record, sites) in self.waiting.drain(..) {
            let mut rows = Vec::with_capacity(sites.len());
            for site in sites {
                rows.push(match site {
                    Err(skip) => {
                        *self.done.skipped.entry(skip).or_default() += 1;
                        Row::Skipped(skip)
                    }
                    Ok(_) => {
                        let score = scores.next().context("a site without a score")?;
                        check_finite(&record, score)?;
                        self.done.scored += 1;
                        Row::Scored(score)
                    }
                });
            }
            self.opened.write(&record, &rows)?;
            self.done.records += 1;
            self.progress.inc(1);
        }
        self.tokens = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.flush()?;
        let written = self.opened.close()?;
        self.progress.finish();
        self.done.written += u64::from(written);
        Ok(())
    }
}

fn check_finite(record: &VcfRecord, score: Score) -> Result<()> {
    let finite = score.llr.is_finite() && score.distance.is_none_or(f32::is_finite);
    anyhow::ensure!(finite, "line {}: the scores are {score:?}: the checkpoint is broken", record.line);
    Ok(())
}

/// Everything that decides the output's bytes.
fn fingerprint(
    args: &Args,
    checkpoint: &CaduceusCheckpoint,
    reference: &Path,
    options: ScoreOptions,
    sites: SiteOptions,
    output: &Output,
) -> Result<Fingerprint> {
    let mut fingerprint = Fingerprint::new();
    if is_stream(&args.vcf) {
        // Its content is not known before it is read, so no two streams are taken for the same.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        fingerprint.add_hash(format!("stream {}", args.vcf.display()), format!("read at {now} ns"));
    } else {
        std::fs::File::open(&args.vcf).with_context(|| format!("cannot open {}", args.vcf.display()))?;
        fingerprint.add_input(&args.vcf)?;
    }
    std::fs::File::open(reference).with_context(|| format!("cannot open {}", reference.display()))?;
    fingerprint.add_input(reference)?;
    fingerprint
        .add_hash("model", checkpoint.hash()?)
        .add_hash("version", env!("CARGO_PKG_VERSION"))
        .set_config(&json!({
            "scores": options, "sites": sites,
            "dtype": format!("{:?}", args.common.dtype).to_lowercase(),
            "part_records": output.is_directory().then_some(args.part_records),
        }))?;
    Ok(fingerprint)
}

fn report(args: &Args, done: &Done, started: Instant) -> Result<()> {
    let seconds = started.elapsed().as_secs_f64();
    let skipped: BTreeMap<&str, u64> = done.skipped.iter().map(|(skip, &n)| (skip.word(), n)).collect();
    let stdout = args.out == Path::new("-");
    if args.common.format == cli::Format::Json && !stdout {
        let summary = json!({
            "out": args.out, "records": done.records, "scored": done.scored, "skipped": skipped, "seconds": seconds,
            "outputs": { "written": done.written, "finished_before": done.finished, "of_other_shards": done.others },
        });
        writeln!(std::io::stdout(), "{summary}").context("cannot write the summary")?;
    }
    if args.common.quiet {
        return Ok(());
    }
    let out = args.out.display();
    if done.finished > 0 {
        eprintln!("{out}: {} finished before: left as it is", plural(done.finished, "output"));
    }
    if done.records > 0 {
        let rate = done.scored as f64 / seconds.max(1e-9);
        eprintln!(
            "{out}: {}, {} scored ({rate:.0}/s)",
            plural(done.records, "record"),
            plural(done.scored, "allele")
        );
    }
    for (reason, n) in skipped {
        eprintln!("  not scored, {reason}: {n}");
    }
    Ok(())
}
