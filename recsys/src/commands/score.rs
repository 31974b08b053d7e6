//! `score`: recommendations for every user of some event files.

use super::log::{LogArgs, with_hint};
use anyhow::{Context, Result};
use mamba_core::Error;
use mamba_core::cli::{CommonArgs, Format, HintExt, Progress};
use mamba_core::progress::short;
use mamba_core::train::Stop;
use mamba_datasets::job::arrow_array::RecordBatch;
use mamba_datasets::job::arrow_schema::SchemaRef;
use mamba_datasets::job::{self, Claimed, Fingerprint, Job, Manifest, Part, PartWriter, Shard};
use mamba_recsys::data::files_of;
use mamba_recsys::score::state::{Continued, Memory, StateIn, StateOut};
use mamba_recsys::score::users::{Counts, OwnedId, Parts, User};
use mamba_recsys::score::{Cold, ScoreConfig, Scorer, schema, to_rows, top_k_rows};
use mamba_recsys::{Id, RecCheckpoint};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const PROGRAM: &str = "mamba-recsys score";
/// Bytes of text that make a part; Parquet counts fourfold.
const PART_BYTES: u64 = 16 << 20;
/// Users that are scored between two looks at progress and Ctrl-C.
const USERS: usize = 2048;
/// Counts in the manifests of outputs.
const USERS_SCORED: &str = "users";
const COLD_USERS: &str = "cold_users";
const EVENTS: &str = "events";
const UNKNOWN_ITEMS: &str = "unknown_items";
const CANDIDATES: &str = "candidates";
const UNKNOWN_CANDIDATES: &str = "unknown_candidates";

#[derive(clap::Args)]
#[command(after_long_help = "\
In: one event in a row (user, item, perhaps a time), or one user in a row (Parquet with a list column of items, or text
with a line per user). A user's events may lie in any file, in any order. Out: rows of user, rank, item, score, with the
ids as they came in; without times, events count in the order of the files.

A directory as --out takes one part after the other; a rerun skips parts that are finished, with their states where these
are asked for, and refuses those made from other events, another checkpoint or other settings. The same input and
checkpoint give the same rows, whatever the threads and shards.

With --state-in or --state-out the model reads the whole history, not its last items only, and a later job only the new
events: it gives rows for the users of these events, and none if there are none. A folder of states can be read from once all its parts are there,
those of every shard.

Examples:
  mamba-recsys score --checkpoint runs/shop --data events/ --out recommendations.parquet --exclude-seen
  mamba-recsys score --checkpoint runs/shop --data events/ --out recs/ --shard 0/4
  mamba-recsys score --checkpoint runs/shop --data events/ --out day-0.parquet --state-out states/day-0
  mamba-recsys score --checkpoint runs/shop --data day-1.parquet --out day-1.parquet \\
      --state-in states/day-0 --state-out states/day-1")]
pub(crate) struct Args {
    #[command(flatten)]
    log: LogArgs,

    /// Folder of the model's run
    #[arg(long, value_name = "DIR", default_value = "runs/recsys")]
    checkpoint: PathBuf,

    /// Output: a file (.parquet, .csv, .tsv), or a directory for parts
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Replace output and states that were made from something else
    #[arg(long)]
    overwrite: bool,

    /// Items for each user
    #[arg(long, default_value_t = 20, value_name = "K", help_heading = "Recommendations")]
    top_k: usize,

    /// Leave out items of the user's history
    #[arg(long, help_heading = "Recommendations")]
    exclude_seen: bool,

    /// Recommend only these items: a text file, one id in a line
    #[arg(long, value_name = "FILE", help_heading = "Recommendations")]
    filter: Option<PathBuf>,

    /// Never recommend these items: a text file, one id in a line
    #[arg(long, value_name = "FILE", help_heading = "Recommendations")]
    block: Option<PathBuf>,

    /// Score these instead: files of user and item, laid out as the events
    #[arg(long, value_name = "PATH", help_heading = "Recommendations", conflicts_with_all = ["top_k", "exclude_seen", "filter", "block"])]
    candidates: Option<PathBuf>,

    /// Users without any item that the model knows
    #[arg(long, value_enum, default_value_t, value_name = "POLICY", help_heading = "Recommendations")]
    cold_users: Cold,

    /// Fail at an event whose item the model does not know, instead of passing over it
    #[arg(long, help_heading = "Recommendations")]
    strict_items: bool,

    /// Most items of a history that the model sees [default: as trained]
    #[arg(long, value_name = "ITEMS", help_heading = "Recommendations")]
    max_length: Option<usize>,

    /// Start from what these folders remember of the users, the latest last: --data holds the new events only
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "State", conflicts_with_all = ["candidates", "max_length"])]
    state_in: Vec<PathBuf>,

    /// Remember the users of this job in this folder, for the next one
    #[arg(long, value_name = "DIR", help_heading = "State", conflicts_with_all = ["candidates", "max_length"])]
    state_out: Option<PathBuf>,

    /// Parts that users are divided into [default: by the size of the input]
    #[arg(long, value_name = "N", help_heading = "Work")]
    parts: Option<std::num::NonZeroUsize>,

    /// Make every N-th part from number I on, I from 0: shard 0/4, 1/4, 2/4 and 3/4 make all parts
    #[arg(long, value_name = "I/N", help_heading = "Work")]
    shard: Option<Shard>,

    #[command(flatten)]
    common: CommonArgs,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let started = Instant::now();
    let usage = |message: String| Err(Error::Config(message).into());
    if args.log.data.is_empty() {
        return usage("--data: name the files of events".into());
    }
    if args.top_k == 0 {
        return usage("--top-k must be at least 1".into());
    }
    let directory = args.out.is_dir() || args.out.extension().is_none();
    if args.shard.is_some() && !directory {
        return usage(format!(
            "--shard needs a directory of parts, and --out {} is one file",
            args.out.display()
        ));
    }
    check_places(&args, directory)?;
    let checkpoint = RecCheckpoint::open(&args.checkpoint).hint("train one with `mamba-recsys train`")?;
    let mut work = Work::new(&args, &checkpoint, &device, directory)?;
    let finished = work.run(&Stop::on_signals()?);
    let done = finished.map_err(with_overwrite_hint)?;
    report(&args, &done, directory, started)?;
    Ok(ExitCode::from(if done.interrupted { mamba_core::cli::INTERRUPTED } else { 0 }))
}

/// Refuses what could not be written, before anything is read.
fn check_places(args: &Args, directory: bool) -> Result<()> {
    let usage = |message: String| Err(Error::Config(message).into());
    let out = args.out.display();
    if directory && args.out.is_file() {
        return usage(format!("--out {out}: a file; one for results ends in .parquet, .csv or .tsv"));
    }
    if !directory {
        let format = job::Format::from_path(&args.out);
        if !matches!(format, Ok(job::Format::Parquet | job::Format::Csv | job::Format::Tsv)) {
            return usage(format!("--out {out}: a file's name ends in .parquet, .csv or .tsv"));
        }
        let folder = folder_of(&args.out);
        if !folder.is_dir() {
            return usage(format!("--out {out}: there is no folder {}", folder.display()));
        }
    }
    // A folder that does not exist is none that can be read from.
    let Some(Ok(state_out)) = args.state_out.as_ref().map(std::fs::canonicalize) else { return Ok(()) };
    for folder in &args.state_in {
        if std::fs::canonicalize(folder).is_ok_and(|state_in| state_in == state_out) {
            return usage(format!(
                "--state-out {} is the folder of --state-in {}: states of users without new events would be lost, \
                 and a rerun would count events twice; give it a folder of its own",
                args.state_out.as_deref().unwrap_or(folder).display(),
                folder.display()
            ));
        }
    }
    Ok(())
}

/// The folder that a file stands in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What came of a run: figures of all its output, also of what was finished before.
#[derive(Default)]
struct Done {
    users: u64,
    rows: u64,
    cold: u64,
    counts: Counts,
    unknown_candidate: Option<String>,
    written: usize,
    finished: usize,
    others: usize,
    /// Parts whose states were written.
    states: usize,
    /// Parts whose states are still to be made.
    states_missing: usize,
    /// Users scored now.
    scored: u64,
    scoring_seconds: f64,
    interrupted: bool,
}

/// The job: what it reads, what it writes.
struct Work<'a> {
    args: &'a Args,
    checkpoint: &'a RecCheckpoint,
    scorer: Scorer,
    events: Vec<PathBuf>,
    candidates: Vec<PathBuf>,
    parts: usize,
    directory: bool,
    job: Job,
    shard: Shard,
    state_in: Option<StateIn>,
    state_out: Option<StateOut>,
}

impl<'a> Work<'a> {
    fn new(
        args: &'a Args,
        checkpoint: &'a RecCheckpoint,
        device: &candle_core::Device,
        directory: bool,
    ) -> Result<Self> {
        let files = |paths: &[PathBuf]| -> Result<Vec<PathBuf>> {
            Ok(paths.iter().map(|path| files_of(path)).collect::<Result<Vec<_>, _>>()?.concat())
        };
        let events = files(&args.log.paths()?)?;
        let candidates = files(args.candidates.as_slice())?;
        let mut allowed: Option<Vec<u32>> =
            args.filter.as_deref().map(|path| item_list(path, checkpoint, args)).transpose()?;
        if let Some(path) = &args.block {
            let blocked: std::collections::HashSet<u32> =
                item_list(path, checkpoint, args)?.into_iter().collect();
            let all = allowed.unwrap_or_else(|| (1..checkpoint.config().n_items as u32).collect());
            allowed = Some(all.into_iter().filter(|item| !blocked.contains(item)).collect());
        }
        if allowed.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Config("--filter and --block leave no item to recommend".into()).into());
        }
        let config = ScoreConfig { k: args.top_k, exclude_seen: args.exclude_seen, cold: args.cold_users };
        let scorer = Scorer::new(checkpoint, config.clone(), allowed.clone(), args.max_length, device)?;
        if args.state_out.is_some() || !args.state_in.is_empty() {
            scorer.keeps_state()?;
        }
        let size = |path: &PathBuf| {
            let bytes = path.metadata().map(|meta| meta.len()).unwrap_or(0);
            if path.extension().is_some_and(|ending| ending == "parquet") { 4 * bytes } else { bytes }
        };
        let bytes: u64 = events.iter().chain(&candidates).map(size).sum();
        let state_in = StateIn::open(&args.state_in, checkpoint)?;
        if let (Some(asked), Some(state)) = (args.parts, &state_in)
            && usize::from(asked) != state.parts()
        {
            let problem = format!("--parts {asked}: the states in --state-in are in {} parts", state.parts());
            return Err(Error::Config(problem).into());
        }
        let asked = state_in.as_ref().map(StateIn::parts).or(args.parts.map(usize::from));
        let parts = asked.unwrap_or(bytes.div_ceil(PART_BYTES).clamp(1, 4096) as usize);

        let mut fingerprint = Fingerprint::new();
        for path in events.iter().chain(&candidates) {
            fingerprint.add_input(path)?;
        }
        fingerprint
            .add_hash("checkpoint", checkpoint.hash())
            .add_hash("version", env!("CARGO_PKG_VERSION"))
            .set_config(&json!({
                "score": config, "parts": parts, "max_length": args.max_length, "strict_items": args.strict_items,
                "candidates": candidates.len(), "read": format!("{:?}", args.log.options()),
                "state": args.state_out.is_some() || state_in.is_some(), "state_in": digest_of(&args.state_in)?,
                "allowed": allowed.as_ref().map(|items| job::sha256(format!("{items:?}").as_bytes())),
            }))?;
        let shard = args.shard.unwrap_or_default();
        let states = |folder: &PathBuf| {
            let digest = fingerprint.digest();
            StateOut::open(folder, checkpoint, parts, &digest, args.overwrite, |part| shard.owns(part))
        };
        let state_out = args.state_out.as_ref().map(states).transpose()?;
        let job = Job::new(PROGRAM, fingerprint).overwrite(args.overwrite);
        Ok(Self {
            args,
            checkpoint,
            scorer,
            events,
            candidates,
            parts,
            directory,
            job,
            shard,
            state_in,
            state_out,
        })
    }

    fn run(&mut self, stop: &Stop) -> Result<Done> {
        let mut done = Done::default();
        let wanted = self.wanted(&mut done)?;
        if !wanted.is_empty() {
            self.make(wanted, stop, &mut done)?;
        }
        if let Some(states) = &self.state_out {
            done.states_missing = states.finish()?;
        }
        Ok(done)
    }

    /// Makes these parts: rows where they are not finished, and states where these are asked for.
    fn make(&self, wanted: Vec<usize>, stop: &Stop, done: &mut Done) -> Result<()> {
        let folder = if self.directory { &self.args.out } else { folder_of(&self.args.out) };
        let mut parts = Parts::new(self.parts, folder, |part| wanted.contains(&part))?;
        let mut progress =
            self.args.common.progress(Some((self.events.len() + self.candidates.len()) as u64), "files");
        for path in &self.events {
            parts.add_events(path, &self.args.log.options(), self.checkpoint.items()).map_err(with_hint)?;
            progress.inc(1);
        }
        // a day without events is no fault of a job that goes on from states
        if parts.is_empty() && self.args.state_in.is_empty() {
            let names: Vec<String> = self.events.iter().map(|path| path.display().to_string()).collect();
            let problem = format!("there are no events in {}", names.join(", "));
            return Err(mamba_recsys::Error::Empty(problem).into());
        }
        for path in &self.candidates {
            parts
                .add_candidates(path, &self.args.log.options(), self.checkpoint.items())
                .map_err(with_hint)?;
            progress.inc(1);
        }
        progress.finish();
        done.unknown_candidate =
            parts.unknown_candidate().map(|(path, item)| format!("{item:?} in {}", path.display()));

        let schema = schema(parts.users_are_text(), self.checkpoint.items());
        let mut progress = self.args.common.progress(Some(parts.about_users()), "users");
        let clock = Instant::now();
        if self.directory {
            let directory = self.job.directory(&self.args.out, job::Format::Parquet, self.shard)?;
            for part in wanted {
                let mut writer = writer_of(directory.part(part, &schema)?);
                if !self.part(&mut parts, part, writer.as_mut(), &mut progress, done, stop)? {
                    break;
                }
                finish(writer, done)?;
            }
        } else {
            let mut writer = writer_of(self.job.file(&self.args.out, &schema)?);
            for part in wanted {
                if !self.part(&mut parts, part, writer.as_mut(), &mut progress, done, stop)? {
                    break;
                }
            }
            if !done.interrupted {
                finish(writer, done)?;
            }
        }
        done.scoring_seconds = clock.elapsed().as_secs_f64();
        progress.finish();
        Ok(())
    }

    /// The parts of which rows, or states that are asked for, are still to be made.
    fn wanted(&self, done: &mut Done) -> Result<Vec<usize>> {
        if !self.directory {
            return Ok(match self.job.claim(&self.args.out, &[], None)? {
                Claimed::Finished(manifest) => {
                    done.count_finished(&manifest);
                    (0..self.parts).filter(|&part| self.lacks_states(part)).collect()
                }
                Claimed::Open(_) => (0..self.parts).collect(),
            });
        }
        let directory = self.job.directory(&self.args.out, job::Format::Parquet, self.shard)?;
        let mut wanted = Vec::new();
        for part in 0..self.parts {
            if !directory.owns(part) {
                done.others += 1;
                continue;
            }
            match self.job.claim(&directory.path(part), &[], Some(part))? {
                Claimed::Finished(manifest) => {
                    done.count_finished(&manifest);
                    if self.lacks_states(part) {
                        wanted.push(part);
                    }
                }
                Claimed::Open(_) => wanted.push(part),
            }
        }
        Ok(wanted)
    }

    fn lacks_states(&self, part: usize) -> bool {
        self.state_out.as_ref().is_some_and(|states| !states.has(part))
    }

    /// Scores the users of a part, whose rows are written where there is a writer; false if it was stopped before the end.
    fn part(
        &self,
        parts: &mut Parts,
        part: usize,
        mut writer: Option<&mut PartWriter>,
        progress: &mut Progress,
        done: &mut Done,
        stop: &Stop,
    ) -> Result<bool> {
        let (mut users, counts) = parts.take(part)?;
        if self.args.strict_items && counts.unknown_items > 0 {
            let problem = format!(
                "{} of {} events have items that the model does not know",
                counts.unknown_items, counts.events
            );
            return Err(mamba_recsys::Error::Empty(problem).into());
        }
        if self.args.candidates.is_some() {
            // Who is asked nothing gets nothing.
            users.retain(|user| user.candidates.is_some());
        }
        let schema = schema(parts.users_are_text(), self.checkpoint.items());
        let stateful = self.state_out.is_some() || self.state_in.is_some();
        let mut memories = Vec::new();
        let mut all_cold = 0;
        for users in users.chunks(USERS) {
            if stop.requested() {
                done.interrupted = true;
                return Ok(false);
            }
            let (rows, cold) = match stateful {
                true => self.rows_from_states(part, users, &mut memories, &schema)?,
                false => to_rows(&self.scorer, users, self.checkpoint.items(), &schema)?,
            };
            if let Some(writer) = &mut writer {
                writer.write(&rows)?;
            }
            all_cold += cold;
            done.scored += users.len() as u64;
            progress.inc(users.len() as u64);
        }
        if let Some(states) = &self.state_out {
            states.write(part, &memories)?;
            done.states += 1;
        }
        if let Some(writer) = writer {
            writer.count(USERS_SCORED, users.len() as u64);
            writer.count(COLD_USERS, all_cold);
            writer.count(EVENTS, counts.events);
            writer.count(UNKNOWN_ITEMS, counts.unknown_items);
            writer.count(CANDIDATES, counts.candidates);
            writer.count(UNKNOWN_CANDIDATES, counts.unknown_candidates);
        }
        Ok(true)
    }
}

impl Work<'_> {
    /// Rows for users whose events here are only the new ones; adds what is remembered of them to `memories`.
    fn rows_from_states(
        &self,
        part: usize,
        users: &[User],
        memories: &mut Vec<(OwnedId, Memory)>,
        schema: &SchemaRef,
    ) -> Result<(RecordBatch, u64)> {
        let before = match &self.state_in {
            Some(state) => state.load(part, users)?,
            None => vec![None; users.len()],
        };
        let Continued { scored, memories: after } = self.scorer.top_k_from(users, before)?;
        let mut warm = Vec::new();
        let mut cold = 0;
        for ((user, scored), memory) in users.iter().zip(scored).zip(after) {
            cold += u64::from(memory.is_none());
            match (&memory, self.args.cold_users) {
                (None, Cold::Skip) => continue,
                (None, Cold::Error) => {
                    let problem = format!("user {} has no item that the model knows", user.id.get());
                    return Err(mamba_recsys::Error::Empty(problem).into());
                }
                _ => warm.push((user, scored)),
            }
            memories.extend(memory.map(|memory| (user.id.clone(), memory)));
        }
        let (users, scored): (Vec<&User>, Vec<_>) = warm.into_iter().unzip();
        Ok((top_k_rows(&users, scored, self.checkpoint.items(), schema)?, cold))
    }
}

/// Of all files of some folders, so that a rerun notices when one has changed.
fn digest_of(folders: &[PathBuf]) -> Result<String> {
    let mut fingerprint = Fingerprint::new();
    for folder in folders {
        let entries =
            std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        for file in files {
            // Size and time stand for the content, which may be large; states are replaced whole.
            let meta = file.metadata()?;
            let time = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            fingerprint.add_hash(file.display().to_string(), format!("{} {}", meta.len(), time.as_nanos()));
        }
    }
    Ok(fingerprint.digest())
}

/// The writer of an output; none where it is finished, and only states are lacking.
fn writer_of(part: Part) -> Option<PartWriter> {
    match part {
        Part::Open(writer) => Some(writer),
        Part::Finished(_) => None,
    }
}

fn finish(writer: Option<PartWriter>, done: &mut Done) -> Result<()> {
    if let Some(writer) = writer {
        done.count(&writer.finish()?);
        done.written += 1;
    }
    Ok(())
}

impl Done {
    fn count_finished(&mut self, manifest: &Manifest) {
        self.finished += 1;
        self.count(manifest);
    }

    fn count(&mut self, manifest: &Manifest) {
        let count = |name: &str| manifest.counts.get(name).copied().unwrap_or(0);
        self.rows += manifest.rows;
        self.users += count(USERS_SCORED);
        self.cold += count(COLD_USERS);
        self.counts.events += count(EVENTS);
        self.counts.unknown_items += count(UNKNOWN_ITEMS);
        self.counts.candidates += count(CANDIDATES);
        self.counts.unknown_candidates += count(UNKNOWN_CANDIDATES);
    }
}

/// The items of a text file, one id in a line.
fn item_list(path: &Path, checkpoint: &RecCheckpoint, args: &Args) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let ids: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let items: Vec<u32> = ids.iter().filter_map(|id| checkpoint.items().item(Id::Text(id))).collect();
    if items.len() < ids.len() && !args.common.quiet {
        eprintln!(
            "{}: {} of {} items are none of the model's",
            path.display(),
            ids.len() - items.len(),
            ids.len()
        );
    }
    Ok(items)
}

fn report(args: &Args, done: &Done, directory: bool, started: Instant) -> Result<()> {
    let Counts { events, unknown_items, candidates, unknown_candidates } = done.counts;
    let rate = done.scored as f64 / done.scoring_seconds.max(1e-9);
    if args.common.format == Format::Json {
        let states = args
            .state_out
            .as_ref()
            .map(|_| json!({ "written": done.states, "missing": done.states_missing }));
        let summary = json!({
            "out": args.out, "users": done.users, "rows": done.rows, "cold_users": done.cold,
            "events": events, "unknown_items": unknown_items, "candidates": candidates,
            "unknown_candidates": unknown_candidates, "states": states,
            "outputs": { "written": done.written, "finished_before": done.finished, "of_other_shards": done.others },
            "seconds": started.elapsed().as_secs_f64(), "users_per_second": rate, "interrupted": done.interrupted,
        });
        writeln!(std::io::stdout().lock(), "{summary}")?;
    }
    if args.common.quiet {
        return Ok(());
    }
    let out = args.out.display();
    if done.finished > 0 {
        eprintln!(
            "{out}: {} finished before from the same events, checkpoint and settings: left as it is",
            done.finished
        );
    }
    if done.written > 0 {
        eprintln!(
            "{events} events, {unknown_items} with items that the model does not know; {} cold users",
            done.cold
        );
        eprintln!("{out}: {} rows for {} users; {} users/s", done.rows, done.users, short(rate));
    }
    if unknown_candidates > 0 {
        let example =
            done.unknown_candidate.iter().map(|item| format!(", such as {item}")).collect::<String>();
        eprintln!("{unknown_candidates} of {candidates} candidates are none of the model's items{example}");
    }
    if let Some(folder) = &args.state_out {
        let (folder, written, missing) = (folder.display(), done.states, done.states_missing);
        let until = if missing > 0 { "; no job can read it before" } else { "" };
        eprintln!("{folder}: parts of states written: {written}, still to be made: {missing}{until}");
    }
    if done.interrupted {
        let how = if directory { "goes on with the next part" } else { "starts again" };
        eprintln!("{out}: stopped; the same command {how}");
    }
    Ok(())
}

/// Adds what could be done about output that stands in the way.
fn with_overwrite_hint(error: anyhow::Error) -> anyhow::Error {
    use mamba_datasets::Error as Output;
    match error.downcast_ref::<Output>() {
        Some(Output::Exists { .. } | Output::Altered { .. }) => {
            Err::<(), _>(error).hint("--overwrite replaces it").expect_err("it is an error")
        }
        _ => error,
    }
}
