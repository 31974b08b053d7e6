//! `generate`: motions by label or text, continued, filled in, of any length; as BVH, NumPy arrays, a page, and pictures.

use crate::commands::eval::Sampling;
use anyhow::Result;
use candle_core::Device;
use mamba_core::cli::{CommonArgs, Format, HintExt, INTERRUPTED};
use mamba_core::train::Stop;
use mamba_motion::conditions::Asked;
use mamba_motion::dataset::{frames_of_file, poses_beside};
use mamba_motion::features::{self, FPS, Frame};
use mamba_motion::formats::humanml3d::values_of;
use mamba_motion::formats::npy::{self, Array};
use mamba_motion::run::{DENOISER, Generator, PEER, Request, STREAM, Shared, longest_of_latents};
use mamba_motion::skeleton::{N_JOINTS, Pose};
use mamba_motion::stream::{Piece, StreamGenerator, land};
use mamba_motion::viewer::{self, Named};
use mamba_motion::{cleanup, picture, rig};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `generate`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-motion generate --checkpoint runs/first --label walk --out walk\n  \
    mamba-motion generate --checkpoint runs/clips --label walk/happy --label run --length 6 --count 3 --seed 7 --out out\n  \
    mamba-motion generate --checkpoint runs/text --text \"a person walks happily\" --out out\n  \
    mamba-motion generate --checkpoint runs/long --label walk --length 60 --out minute\n  \
    mamba-motion generate --checkpoint runs/long --script \"walk:4; run:3; jump:2\" --out script\n  \
    mamba-motion generate --checkpoint runs/long --continue clip.bvh --label run --length 5 --out on\n  \
    mamba-motion generate --checkpoint runs/long --between a.bvh b.bvh --length 1.5 --out between\n  \
    mamba-motion generate --checkpoint runs/long --fill clip.bvh --keep 0-1,3-4.5 --out filled")]
pub(crate) struct Args {
    /// Folder of the training
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Labels separated by /, as `info` lists them; what is left out may be anything; repeatable
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,

    /// A sentence, for a training with --text-encoder; repeatable
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,

    /// Several things in a row as one motion: WHAT:SECONDS; WHAT:SECONDS; … where WHAT is a label, or a sentence for a training
    /// with --text-encoder
    #[arg(long, value_name = "SCRIPT", conflicts_with_all = ["label", "text", "length"])]
    script: Option<String>,

    /// Go on where this motion ends (.bvh, DeepMimic .txt, features .npy); its own frames stay exactly as they are
    #[arg(long = "continue", value_name = "FILE", conflicts_with_all = ["between", "fill"])]
    go_on: Option<PathBuf>,

    /// Lead from the end of one motion to the beginning of another in --length seconds
    #[arg(long, value_name = "FILE", num_args = 2, conflicts_with_all = ["fill", "script"])]
    between: Option<Vec<PathBuf>>,

    /// Keep the parts --keep of this motion, where they are, and make the rest anew
    #[arg(long, value_name = "FILE", requires = "keep", conflicts_with_all = ["script", "length"])]
    fill: Option<PathBuf>,

    /// Seconds of --fill that stay: FROM-TO,FROM-TO,…
    #[arg(long, value_name = "RANGES", requires = "fill")]
    keep: Option<String>,

    /// Seconds to make
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    length: f64,

    /// Motions of each label or text
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    count: u64,

    /// Folder for the files
    #[arg(long, value_name = "DIR", default_value = "motion")]
    out: PathBuf,

    /// Also show this BVH file in the page and the pictures, by the training's skeleton map if it fits; repeatable
    #[arg(long, value_name = "FILE")]
    compare: Vec<PathBuf>,

    /// Which denoiser of the training: denoiser, peer or stream [default: stream for what only it can do, else denoiser]
    #[arg(long, value_name = "NAME")]
    network: Option<String>,

    /// Where the training's text encoder lies now [default: where it was]
    #[arg(long, value_name = "DIR")]
    text_encoder: Option<PathBuf>,

    /// Leave feet that slide while they stand
    #[arg(long)]
    no_cleanup: bool,

    /// Units of a metre in the BVH files: 100 writes centimetres
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    scale: f64,

    #[command(flatten)]
    sampling: Sampling,

    #[command(flatten)]
    common: CommonArgs,
}

/// A motion to write.
struct Made {
    name: String,
    frames: Vec<Frame>,
    /// Whether each frame was given.
    kept: Vec<bool>,
}

fn usage(message: String) -> mamba_core::Error {
    mamba_core::Error::Config(message)
}

/// Longest motion, in seconds.
const LONGEST: f64 = 3600.0;
/// The page in --out.
const PAGE: &str = "view.html";
/// Seconds that the animation shows.
const SHOWN: f64 = 20.0;

impl Args {
    /// Frames of so many seconds.
    fn frames(what: &str, seconds: f64) -> Result<usize, mamba_core::Error> {
        if !(seconds > 0.0 && seconds <= LONGEST) {
            return Err(usage(format!("{what} is {seconds}, expected seconds above 0, at most {LONGEST}")));
        }
        match (seconds * FPS).round() as usize {
            0 => Err(usage(format!("{what} is {seconds} s, less than a frame; one lasts {} s", 1.0 / FPS))),
            frames => Ok(frames),
        }
    }

    /// What the flags ask for, with names for files.
    fn asked(&self, shared: &Shared) -> Result<Vec<(String, Asked)>> {
        let mut asked = Vec::new();
        let any = [String::new()];
        let labels = if self.label.is_empty() && self.text.is_empty() { &any[..] } else { &self.label[..] };
        for label in labels {
            let labels = shared.labels(label).map_err(|e| usage(e.to_string()))?;
            let name = match shared.name(&labels) {
                open if open.is_empty() => "any".to_string(),
                name => name.replace('/', "_"),
            };
            asked.push((name, Asked::Labels(labels)));
        }
        for text in &self.text {
            asked.push((file_name(text), Self::sentence(shared, text)?));
        }
        Ok(asked)
    }

    fn sentence(shared: &Shared, text: &str) -> Result<Asked> {
        if shared.text.is_none() {
            return Err(usage(format!("--text {text:?}: the training knows labels only")))
                .hint("--label chooses among them; train with --text-encoder for sentences");
        }
        if text.trim().is_empty() {
            return Err(usage("--text is empty".into()).into());
        }
        Ok(Asked::Text(text.to_string()))
    }

    /// The pieces of a script.
    fn script(shared: &Shared, script: &str) -> Result<Vec<Piece>> {
        let piece = |part: &str| {
            let (what, seconds) = part
                .rsplit_once(':')
                .ok_or_else(|| usage(format!("--script: {part:?} has no seconds, expected WHAT:SECONDS")))?;
            let number: f64 = seconds
                .trim()
                .parse()
                .map_err(|_| usage(format!("--script: {seconds:?} of {part:?} is no number of seconds")))?;
            let frames = Self::frames(&format!("--script {part:?}"), number)?;
            let asked = match &shared.text {
                Some(_) => Self::sentence(shared, what.trim())?,
                None => Asked::Labels(shared.labels(what.trim()).map_err(|e| usage(e.to_string()))?),
            };
            Ok(Piece::Make { asked, frames })
        };
        let parts: Vec<&str> = script.split(';').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err(usage("--script is empty, expected WHAT:SECONDS; WHAT:SECONDS; …".into()).into());
        }
        parts.into_iter().map(piece).collect()
    }
}

/// Words as the name of a file.
fn file_name(text: &str) -> String {
    let words: String = text.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let words: Vec<&str> = words.split('_').filter(|word| !word.is_empty()).take(8).collect();
    if words.is_empty() { "text".into() } else { words.join("_") }
}

/// Longest name of a motion, in bytes: what its files' names add to it has room in any file system.
const LONGEST_NAME: usize = 80;

/// Cuts names that are too long, and numbers those that are there already, so that no motion takes another's files.
fn tell_apart<'a>(names: impl Iterator<Item = &'a mut String>) {
    let mut taken = BTreeSet::new();
    for name in names {
        name.truncate(name.floor_char_boundary(LONGEST_NAME));
        let first = name.clone();
        // Where file systems do not tell capitals, names must not either.
        for number in 2.. {
            if taken.insert(name.to_lowercase()) {
                break;
            }
            *name = format!("{first}_{number}");
        }
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Which frames of `n` the seconds `FROM-TO,FROM-TO` are.
fn kept_frames(ranges: &str, n: usize) -> Result<Vec<bool>, mamba_core::Error> {
    let mut kept = vec![false; n];
    for range in ranges.split(',') {
        let ends: Option<Vec<f64>> = range.split('-').map(|end| end.trim().parse().ok()).collect();
        let seconds = n as f64 / FPS;
        match ends.as_deref() {
            Some(&[from, to]) if from >= 0.0 && from < to && from < seconds => {
                let (from, to) = ((from * FPS).round() as usize, ((to * FPS).round() as usize).min(n));
                if from >= to {
                    return Err(usage(format!("--keep: {range:?} is less than a frame, {} s", 1.0 / FPS)));
                }
                kept[from..to].fill(true);
            }
            _ => {
                return Err(usage(format!(
                    "--keep: {range:?} is no part of a motion of {seconds} s, expected FROM-TO in seconds"
                )));
            }
        }
    }
    match kept.iter().all(|&kept| kept) {
        true => Err(usage(format!("--keep {ranges} leaves nothing to make"))),
        false => Ok(kept),
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    if !(args.scale > 0.0 && args.scale.is_finite()) {
        return Err(usage(format!("--scale is {}, expected more than 0", args.scale)).into());
    }
    let shared = Shared::read(&args.checkpoint).hint("--checkpoint names the --out folder of a training")?;
    let frames = Args::frames("--length", args.length)?;
    let has = |network: &str| args.checkpoint.join(network).is_dir();
    let only_stream =
        args.script.is_some() || args.go_on.is_some() || args.between.is_some() || args.fill.is_some();
    let longest = longest_of_latents(&args.checkpoint)?;
    let long = longest.is_some_and(|longest| frames > longest) && has(STREAM);
    let network = match &args.network {
        Some(name) if only_stream && name != STREAM => {
            let message =
                format!("--network {name} makes no motion from other motion or scripts, only {STREAM} does");
            return Err(usage(message).into());
        }
        Some(name) if ![DENOISER, PEER, STREAM].contains(&name.as_str()) => {
            return Err(usage(format!("--network {name}: expected {DENOISER}, {PEER} or {STREAM}")).into());
        }
        Some(name) => name.as_str(),
        None if only_stream || long || !has(DENOISER) => STREAM,
        None => DENOISER,
    };
    if !has(network) {
        let message = format!("{} has no {network}", args.checkpoint.display());
        return Err(usage(message)).hint(format!("train --parts {network} --resume adds it to the run"));
    }
    let compared = compared(&args, &shared)?;
    let stop = Stop::on_signals()?;
    let (made, asked) = match network {
        STREAM => by_stream(&args, frames, &device, &stop)?,
        _ => by_latents(&args, network, frames, &device, &stop)?,
    };
    if made.is_empty() {
        eprintln!("interrupted before a motion was finished: nothing is written");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    write(&args, &made, compared)?;
    if made.len() < asked {
        eprintln!("interrupted: {} of {asked} motions written", made.len());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the folder for the files. One that takes none says so before anything is sampled.
fn make_room(args: &Args) -> Result<()> {
    let not_made = |source| mamba_motion::Error::Write { path: args.out.clone(), source };
    std::fs::create_dir_all(&args.out).map_err(not_made)?;
    drop(mamba_datasets::AtomicFile::create(args.out.join(PAGE))?);
    Ok(())
}

/// The files to show beside what is made.
fn compared(args: &Args, shared: &Shared) -> mamba_motion::Result<Vec<(String, Vec<Pose>)>> {
    let skeleton = shared.config.source.skeleton.as_deref();
    args.compare.iter().map(|path| Ok((stem(path), poses_beside(path, skeleton)?))).collect()
}

/// Motions from latents, and how many were asked for: more, if interrupted.
fn by_latents(
    args: &Args,
    network: &str,
    frames: usize,
    device: &Device,
    stop: &Stop,
) -> Result<(Vec<Made>, usize)> {
    let generator = Generator::open(&args.checkpoint, network, args.text_encoder.as_deref(), device)?;
    let most = generator.max_frames();
    if !(2..=most).contains(&frames) {
        let longest = most as f64 / FPS;
        let length = args.length;
        let message = format!("--length {length} is {frames} frames, expected 2 to {most} ({longest} s)");
        return Err(usage(message)).hint("a run with --parts stream makes motion of any length");
    }
    let (mut requests, mut names) = (Vec::new(), Vec::new());
    let mut all = args.asked(generator.shared())?;
    tell_apart(all.iter_mut().map(|(name, _)| name));
    for (name, asked) in all {
        for i in 0..args.count {
            requests.push(Request { asked: asked.clone(), frames });
            names.push(format!("{name}_{i:02}"));
        }
    }
    make_room(args)?;
    let motions = generator.generate(&requests, &args.sampling.options(), || !stop.requested())?;
    let made = |(name, frames): (String, Vec<Frame>)| Made { name, kept: vec![false; frames.len()], frames };
    Ok((names.into_iter().zip(motions).map(made).collect(), requests.len()))
}

/// Motions chunk by chunk, and how many were asked for: more, if interrupted.
fn by_stream(args: &Args, frames: usize, device: &Device, stop: &Stop) -> Result<(Vec<Made>, usize)> {
    let generator = StreamGenerator::open(&args.checkpoint, args.text_encoder.as_deref(), device)?;
    let shared = generator.shared();
    let read = |path: &Path| frames_of_file(path, shared.config.source.skeleton.as_deref());
    let mut jobs: Vec<(String, Vec<Piece>)> = Vec::new();
    let mut original: Option<(Vec<Frame>, Vec<bool>)> = None;
    let before = match &args.go_on {
        Some(path) => vec![Piece::Keep(read(path)?)],
        None => Vec::new(),
    };
    if let Some(script) = &args.script {
        let pieces = before.into_iter().chain(Args::script(shared, script)?).collect();
        jobs.push((args.go_on.as_deref().map_or("script".into(), stem), pieces));
    } else if let Some(path) = &args.fill {
        let clip = read(path)?;
        let kept = kept_frames(args.keep.as_deref().unwrap_or_default(), clip.len())?;
        for (name, asked) in args.asked(shared)? {
            let mut pieces = Vec::new();
            let mut start = 0;
            for run in kept.chunk_by(|a, b| a == b) {
                let part = &clip[start..start + run.len()];
                start += run.len();
                pieces.push(match run[0] {
                    true => Piece::Keep(part.to_vec()),
                    false => Piece::Make { asked: asked.clone(), frames: part.len() },
                });
            }
            jobs.push((format!("{}_{name}", stem(path)), pieces));
        }
        original = Some((clip, kept));
    } else {
        for (name, asked) in args.asked(shared)? {
            let mut pieces = before.clone();
            let make = Piece::Make { asked, frames };
            let name = match (&args.go_on, args.between.as_deref()) {
                (Some(path), _) => format!("{}_{name}", stem(path)),
                (None, Some([a, b])) => {
                    pieces.push(Piece::Keep(read(a)?));
                    pieces.extend([make.clone(), Piece::Keep(read(b)?)]);
                    format!("{}_{}_{name}", stem(a), stem(b))
                }
                (None, _) => name,
            };
            if args.between.is_none() {
                pieces.push(make);
            }
            jobs.push((name, pieces));
        }
    }

    tell_apart(jobs.iter_mut().map(|(name, _)| name));
    make_room(args)?;
    let total: usize = jobs.iter().flat_map(|(_, pieces)| pieces).map(Piece::len).sum();
    let mut progress = args.common.progress(Some(total as u64), "frames");
    let (mut made, asked) = (Vec::new(), jobs.len() * args.count as usize);
    for (name, pieces) in jobs {
        let mut done = 0;
        let mut seen = |n: usize| {
            progress.inc((n - done) as u64);
            done = n;
            !stop.requested()
        };
        let options = args.sampling.options();
        let Some(motions) = generator.generate(&pieces, args.count as usize, &options, &mut seen)? else {
            break;
        };
        let kept: Vec<bool> =
            pieces.iter().flat_map(|piece| vec![matches!(piece, Piece::Keep(_)); piece.len()]).collect();
        for (i, mut frames) in motions.into_iter().enumerate() {
            if let Some((clip, kept)) = &original {
                land(&mut frames, clip, kept);
            }
            made.push(Made { name: format!("{name}_{i:02}"), frames, kept: kept.clone() });
        }
    }
    progress.finish();
    Ok((made, asked))
}

/// Writes the files of all motions, page and pictures.
fn write(args: &Args, made: &[Made], compared: Vec<(String, Vec<Pose>)>) -> Result<()> {
    let mut shown: Vec<(String, Vec<Pose>)> = Vec::new();
    for made in made {
        let poses = write_motion(args, made)?;
        if args.common.format == Format::Json {
            let file = args.out.join(format!("{}.bvh", made.name));
            let kept = made.kept.iter().filter(|&&kept| kept).count();
            writeln!(
                std::io::stdout(),
                "{}",
                serde_json::json!({ "name": made.name, "frames": poses.len(), "kept": kept, "bvh": file })
            )?;
        }
        shown.push((made.name.clone(), poses));
    }
    shown.extend(compared);
    let named: Vec<Named<'_>> = shown.iter().map(|(name, poses)| Named { name, poses }).collect();
    viewer::write(&args.out.join(PAGE), &named)?;
    picture::contact_sheet(&args.out.join("sheet.png"), &named, 10)?;
    let beginning = |(name, poses): &'_ (String, Vec<Pose>)| -> (String, Vec<Pose>) {
        (name.clone(), poses[..poses.len().min((SHOWN * FPS) as usize)].to_vec())
    };
    let beginnings: Vec<(String, Vec<Pose>)> = shown.iter().take(6).map(beginning).collect();
    let named: Vec<Named<'_>> = beginnings.iter().map(|(name, poses)| Named { name, poses }).collect();
    picture::animation(&args.out.join("motion.gif"), &named)?;
    if args.common.format == Format::Human && !args.common.quiet {
        let out = args.out.display();
        let seconds = made.first().map_or(0.0, |made| made.frames.len() as f64 / FPS);
        eprintln!("{} motions of {seconds} s in {out}; open {out}/{PAGE}", made.len());
    }
    Ok(())
}

/// Writes `NAME.bvh`, `NAME.npy` (joints) and `NAME_features.npy`; returns the poses of the rig.
fn write_motion(args: &Args, Made { name, frames, kept }: &Made) -> Result<Vec<Pose>> {
    let mut poses = rig::rigid(&features::to_poses(frames), kept);
    if !args.no_cleanup {
        poses = cleanup::still_feet(&poses, frames, kept);
    }
    let out = &args.out;
    rig::to_bvh(&poses, FPS, args.scale).write(out.join(format!("{name}.bvh")))?;
    let joints = Array { shape: vec![poses.len(), N_JOINTS, 3], values: values_of(&poses) };
    npy::write(out.join(format!("{name}.npy")), &joints)?;
    let values = frames.iter().flatten().map(|&x| x as f32).collect();
    let array = Array { shape: vec![frames.len(), features::N_FEATURES], values };
    npy::write(out.join(format!("{name}_features.npy")), &array)?;
    Ok(poses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_seconds_are_frames() {
        let kept = kept_frames("0-1, 3-4.5", 100).unwrap();
        let count = |range: std::ops::Range<usize>| kept[range].iter().filter(|&&kept| kept).count();
        assert_eq!((count(0..20), count(20..60), count(60..90), count(90..100)), (20, 0, 30, 0));
        for (ranges, message) in [
            ("3-2", "\"3-2\" is no part of a motion of 5 s, expected FROM-TO in seconds"),
            ("7-8", "is no part"),
            ("1", "is no part"),
            ("0-5", "leaves nothing to make"),
            ("1-1.01", "\"1-1.01\" is less than a frame, 0.05 s"),
        ] {
            let error = kept_frames(ranges, 100).unwrap_err().to_string();
            assert!(error.contains(message), "{ranges}: {error}");
        }
    }

    #[test]
    fn sentences_become_names_of_files() {
        assert_eq!(file_name("A man walks, then/stops."), "A_man_walks_then_stops");
        assert_eq!(file_name("../.."), "text");
    }

    #[test]
    fn names_that_agree_are_numbered_and_long_ones_cut() {
        let mut names: Vec<String> =
            ["walk", "walk", "walk_2", "Walk", "run"].into_iter().map(str::to_string).collect();
        names.extend(["ü".repeat(200), "ü".repeat(201)]);
        tell_apart(names.iter_mut());
        assert_eq!(names[..5], ["walk", "walk_2", "walk_2_2", "Walk_3", "run"]);
        assert_eq!(names[5..], ["ü".repeat(40), "ü".repeat(40) + "_2"]);
    }
}
