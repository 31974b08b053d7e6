//! The program: train, eval, generate, info, and how it refuses.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use mamba_motion::formats::bvh::Bvh;
use mamba_motion::formats::humanml3d;
use serde_json::Value;
use std::path::Path;

/// Exit code, stdout, stderr.
fn motion(args: &str) -> (i32, String, String) {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_mamba-motion"));
    let output = command.args(args.split_whitespace()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The flags of a training that is over in seconds.
const QUICK: &str = "--quiet --set train_evaluator.steps=3 --set train_vae.steps=3 --set train_denoiser.steps=3 \
    --set vae.latent_dim=16 --set vae.d_ff=16 --set evaluator.d_model=16 --set latent.parts_per_clip=1 \
    --set source.mirror=false --set denoiser.n_level=1";

fn train(out: &Path, more: &str) {
    let (code, _, stderr) = motion(&format!("train --out {} {QUICK} {more}", out.display()));
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn a_training_is_evaluated_generated_from_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, "--peer");
    for part in ["evaluator", "vae", "denoiser", "peer"] {
        for file in ["config.json", "model.safetensors", "metrics.jsonl", "run.json"] {
            assert!(run.join(part).join(file).exists(), "{part}/{file}");
        }
    }
    let run = run.display();

    let (code, stdout, stderr) =
        motion(&format!("eval --checkpoint {run} --repetitions 2 --steps 3 --format json"));
    assert_eq!(code, 0, "{stderr}");
    let figures: Value = serde_json::from_str(&stdout).unwrap();
    assert!(figures["windows"].as_u64().unwrap() > 10 && figures["dim"] == 32, "{figures}");
    for row in ["held-out clips", "training clips", "VAE alone", "Motion Mamba", "transformer"] {
        for figure in ["fid", "r_precision_1", "matching", "diversity", "foot_skating", "jerk", "bone_error"]
        {
            assert!(figures["figures"][row][figure]["mean"].is_number(), "{row}, {figure}: {figures}");
        }
    }
    assert!(figures["figures"]["held-out clips"]["fid"]["mean"].as_f64().unwrap().abs() < 1e-6);

    let out = folder.path().join("out");
    let generate = format!(
        "generate --checkpoint {run} --label walk --label kick --count 2 --length 2 --steps 3 --out {}",
        out.display()
    );
    let (code, stdout, stderr) = motion(&format!("{generate} --format json"));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout.lines().count(), 4);
    for name in ["walk_00", "walk_01", "kick_00", "kick_01"] {
        let bvh = Bvh::read(out.join(format!("{name}.bvh"))).unwrap();
        assert_eq!((bvh.frames.len(), bvh.joints.len(), bvh.fps()), (40, 22, 20.0));
        assert_eq!(humanml3d::read_joints(out.join(format!("{name}.npy"))).unwrap().len(), 40);
        assert_eq!(
            humanml3d::read_features(out.join(format!("{name}_features.npy"))).unwrap().len(),
            40 * 263
        );
    }
    let page = std::fs::read_to_string(out.join("view.html")).unwrap();
    assert!(page.contains("\"walk_00\"") && page.contains("\"kick_01\""));
    assert!(std::fs::read(out.join("sheet.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(std::fs::read(out.join("motion.gif")).unwrap().starts_with(b"GIF89a"));
    let features =
        |dir: &Path, name: &str| humanml3d::read_features(dir.join(format!("{name}_features.npy"))).unwrap();
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let first = features(&out, "walk_00");
    assert!(distance(&first, &features(&out, "walk_01")) > 1e-2, "each has its own noise");
    // The same request and seed give the same motion (up to rounding), also beside fewer others; another seed does not.
    let alone = folder.path().join("alone");
    let one =
        format!("generate --checkpoint {run} --label walk --length 2 --steps 3 --out {}", alone.display());
    assert_eq!(motion(&one).0, 0);
    assert!(distance(&first, &features(&alone, "walk_00")) < 1e-3);
    assert_eq!(motion(&format!("{one} --seed 1")).0, 0);
    assert!(distance(&first, &features(&alone, "walk_00")) > 1e-2);

    let (code, stdout, _) = motion(&format!("info {run}"));
    assert!(code == 0 && stdout.contains("cartwheel") && stdout.contains("3 steps, Completed"), "{stdout}");
    let (_, stdout, _) = motion(&format!("info {run} --format json"));
    let facts: Value = serde_json::from_str(&stdout).unwrap();
    assert!(facts["parts"]["vae"]["parameters"].as_u64().unwrap() > 1000, "{facts}");

    let (code, _, stderr) =
        motion(&format!("generate --checkpoint {run} --label fly --out {}", out.display()));
    assert!(
        code == 2 && stderr.contains("no label is called \"fly\"; there are content: backflip"),
        "{stderr}"
    );
    let (code, _, stderr) =
        motion(&format!("generate --checkpoint {run} --length 99 --out {}", out.display()));
    assert!(code == 2 && stderr.contains("1980 frames, expected 2 to 100"), "{stderr}");
}

#[test]
fn a_finished_training_is_left_alone_and_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, "");
    let weights = std::fs::read(run.join("denoiser/model.safetensors")).unwrap();
    let (code, _, stderr) = motion(&format!("train --out {} {QUICK}", run.display()));
    assert!(
        code == 1 && stderr.contains("already holds a run") && stderr.contains("hint: --resume"),
        "{stderr}"
    );
    train(&run, "--resume");
    let same = |run: &Path| std::fs::read(run.join("denoiser/model.safetensors")).unwrap() == weights;
    assert!(same(&run));
    let again = folder.path().join("again");
    train(&again, "");
    assert!(same(&again), "a seed gives one training");
}

#[test]
fn what_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let broken = dir.join("walk_001.bvh");
    std::fs::write(&broken, "HIERARCHY\nROOT a\n{\n OFFSET 0 0\n").unwrap();
    let (code, _, stderr) =
        motion(&format!("train {} --out {} --quiet", broken.display(), dir.join("r").display()));
    assert!(
        code == 1 && stderr.contains("walk_001.bvh:4: the file ends where an offset is expected"),
        "{stderr}"
    );
    assert!(!dir.join("r/motion.json").exists());
    let empty = dir.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let (code, _, stderr) =
        motion(&format!("train {} --out {} --quiet", empty.display(), dir.join("r2").display()));
    assert!(code == 1 && stderr.contains("empty: no motion"), "{stderr}");
    let (code, _, stderr) = motion(&format!("eval --checkpoint {}", empty.display()));
    assert!(code == 1 && stderr.contains("motion.json") && stderr.contains("hint: --checkpoint"), "{stderr}");
    for (flags, message) in [
        ("--preset huge", "expected one of tiny, small, paper"),
        ("--set crop.max_frames=500", "vae.max_frames 100"),
        ("--set vae.n_head=3", "n_head 3 does not divide"),
        ("--set nothing=1", "unknown"),
    ] {
        let (code, _, stderr) = motion(&format!("train --out {} {flags}", dir.join("r3").display()));
        assert!(code == 2 && stderr.contains(message), "{flags}: {stderr}");
    }
}
