//! `generate`: motions by label, as BVH, NumPy arrays, a page to watch them, and pictures.

use crate::commands::eval::Sampling;
use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format, HintExt};
use mamba_motion::dataset::poses_of_bvh;
use mamba_motion::features::{self, FPS, Frame};
use mamba_motion::formats::humanml3d::values_of;
use mamba_motion::formats::npy::{self, Array};
use mamba_motion::run::{DENOISER, Generator, Request};
use mamba_motion::skeleton::{N_JOINTS, Pose};
use mamba_motion::viewer::{self, Named};
use mamba_motion::{picture, rig};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `generate`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-motion generate --checkpoint runs/first --label walk --out walk\n  \
    mamba-motion generate --checkpoint runs/clips --label walk/happy --label run --length 6 --count 3 --seed 7 --out out")]
pub(crate) struct Args {
    /// Folder of the training
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Labels separated by /, as `info` lists them; what is left out may be anything; repeatable
    #[arg(long, value_name = "LABEL", default_value = "")]
    label: Vec<String>,

    /// Seconds
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    length: f64,

    /// Motions of each label
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    count: u64,

    /// Folder for the files
    #[arg(long, value_name = "DIR", default_value = "motion")]
    out: PathBuf,

    /// Also show this BVH file in the page and the pictures; repeatable
    #[arg(long, value_name = "FILE")]
    compare: Vec<PathBuf>,

    /// Use another denoiser of the training: denoiser or peer
    #[arg(long, value_name = "NAME", default_value = DENOISER)]
    network: String,

    /// Units of a metre in the BVH files: 100 writes centimetres
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    scale: f64,

    #[command(flatten)]
    sampling: Sampling,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let usage = |message: String| mamba_core::Error::Config(message);
    if !(args.length > 0.0 && args.length <= 3600.0) {
        return Err(usage(format!("--length is {}, expected seconds above 0", args.length)).into());
    }
    if !(args.scale > 0.0 && args.scale.is_finite()) {
        return Err(usage(format!("--scale is {}, expected more than 0", args.scale)).into());
    }
    let generator = Generator::open(&args.checkpoint, &args.network, &device)
        .hint("--checkpoint names the --out folder of a training")?;
    let frames = (args.length * FPS).round() as usize;
    let most = generator.max_frames();
    if !(2..=most).contains(&frames) {
        let longest = most as f64 / FPS;
        return Err(usage(format!(
            "--length {} is {frames} frames, expected 2 to {most} ({longest} s)",
            args.length
        ))
        .into());
    }
    let (mut requests, mut names) = (Vec::new(), Vec::new());
    for label in &args.label {
        let labels = generator.shared().labels(label).map_err(|e| usage(e.to_string()))?;
        let name = match generator.shared().name(&labels) {
            open if open.is_empty() => "any".to_string(),
            name => name.replace('/', "_"),
        };
        for i in 0..args.count {
            requests.push(Request { labels: labels.clone(), frames });
            names.push(format!("{name}_{i:02}"));
        }
    }
    let motions = generator.generate(&requests, &args.sampling.options())?;
    std::fs::create_dir_all(&args.out)?;
    let mut shown: Vec<(String, Vec<Pose>)> = Vec::new();
    for (name, motion) in names.iter().zip(&motions) {
        let poses = write_motion(&args.out, name, motion, args.scale)?;
        if args.common.format == Format::Json {
            let file = args.out.join(format!("{name}.bvh"));
            println!("{}", serde_json::json!({ "name": name, "frames": poses.len(), "bvh": file }));
        }
        shown.push((name.clone(), poses));
    }
    for path in &args.compare {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        shown.push((name, poses_of_bvh(path, None)?));
    }
    let shown: Vec<Named<'_>> = shown.iter().map(|(name, poses)| Named { name, poses }).collect();
    viewer::write(&args.out.join("view.html"), &shown)?;
    picture::contact_sheet(&args.out.join("sheet.png"), &shown, 10)?;
    picture::animation(&args.out.join("motion.gif"), &shown[..shown.len().min(6)])?;
    if args.common.format == Format::Human && !args.common.quiet {
        let out = args.out.display();
        eprintln!("{} motions of {} s in {out}; open {out}/view.html", motions.len(), args.length);
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes `NAME.bvh`, `NAME.npy` (joints) and `NAME_features.npy`; returns the poses of the rig.
fn write_motion(out: &Path, name: &str, motion: &[Frame], scale: f64) -> Result<Vec<Pose>> {
    let poses = rig::rigid(&features::to_poses(motion));
    rig::to_bvh(&poses, FPS, scale).write(out.join(format!("{name}.bvh")))?;
    let joints = Array { shape: vec![poses.len(), N_JOINTS, 3], values: values_of(&poses) };
    npy::write(out.join(format!("{name}.npy")), &joints)?;
    let values = motion.iter().flatten().map(|&x| x as f32).collect();
    let array = Array { shape: vec![motion.len(), features::N_FEATURES], values };
    npy::write(out.join(format!("{name}_features.npy")), &array)?;
    Ok(poses)
}
