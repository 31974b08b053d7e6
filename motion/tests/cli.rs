//! The program: train, eval, generate, info, and how it refuses.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

mod tiny_clip;

use mamba_motion::dataset::{MotionData, SourceConfig, frames_of_file};
use mamba_motion::formats::bvh::Bvh;
use mamba_motion::formats::humanml3d;
use mamba_motion::skeleton::NAMES;
use mamba_motion::{features, rig};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

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
    --set source.mirror=false --set denoiser.n_level=1 --set train_stream.steps=3 --set train_grounding.steps=3 \
    --set stream.d_model=16 --set grounding.d_model=16";

fn train(out: &Path, more: &str) {
    let (code, _, stderr) = motion(&format!("train --out {} {QUICK} {more}", out.display()));
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn a_training_is_evaluated_generated_from_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, "--parts evaluator,vae,denoiser,peer");
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
    let (code, _, stderr) = motion(&format!("train --out {} --resume", run.display()));
    assert!(
        code == 0 && stderr.contains("vae: finished, left as it is"),
        "the settings are the run's: {stderr}"
    );
    let same = |run: &Path| std::fs::read(run.join("denoiser/model.safetensors")).unwrap() == weights;
    assert!(same(&run));
    let again = folder.path().join("again");
    train(&again, "");
    assert!(same(&again), "a seed gives one training");

    let shared = std::fs::read(run.join("motion.json")).unwrap();
    for (flags, message) in [
        ("--set latent.diffusion.steps=500", "latent.diffusion.steps is 1000 in the saved run, 500 now"),
        ("--set vae.latent_dim=32", "vae.latent_dim is 16 in the saved run, 32 now"),
        ("--preset small", "vae.n_layer is 2 in the saved run, 3 now"),
        ("--set train_vae.learning_rate=0.5", "train_vae.learning_rate is 0.001 in the saved run, 0.5 now"),
    ] {
        let (code, _, stderr) = motion(&format!("train --out {} --resume {flags}", run.display()));
        assert!(code == 1 && stderr.contains(message), "{flags}: {stderr}");
    }
    assert_eq!(std::fs::read(run.join("motion.json")).unwrap(), shared);
    // Settings of parts that are not there yet are free.
    train(&run, "--resume --parts stream --set stream.n_layer=1");
    std::fs::write(run.join("motion.json"), "{").unwrap();
    let (code, _, stderr) = motion(&format!("train --out {} --resume", run.display()));
    assert!(code == 1 && stderr.contains("motion.json: "), "{stderr}");
}

#[test]
fn parts_that_ended_by_time_or_get_more_steps_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let steps = |part: &str| -> (u64, String) {
        let info = std::fs::read_to_string(run.join(part).join("run.json")).unwrap();
        let info: Value = serde_json::from_str(&info).unwrap();
        (info["steps"].as_u64().unwrap(), info["outcome"].as_str().unwrap().to_string())
    };
    train(&run, "--parts vae,stream --minutes 0");
    assert_eq!((steps("vae"), steps("stream")), ((0, "TimeLimit".into()), (0, "TimeLimit".into())));
    train(&run, "--parts vae,denoiser,stream --resume");
    for part in ["vae", "denoiser", "stream"] {
        assert_eq!(steps(part), (3, "Completed".into()), "{part}");
    }
    // More steps of the VAE make other latents.
    let more = format!("train --out {} --resume --set train_vae.steps=5 --parts vae", run.display());
    let (code, _, stderr) = motion(&more);
    assert!(code == 0 && stderr.contains("denoiser: has to start anew, for the vae goes on"), "{stderr}");
    assert_eq!(steps("vae"), (5, "Completed".into()));
    assert!(!run.join("denoiser").exists() && run.join("denoiser.old/model.safetensors").exists());
    let (code, _, stderr) = motion(&format!("train --out {} --resume", run.display()));
    assert!(code == 0 && stderr.contains("vae: finished"), "{stderr}");
    assert_eq!(steps("denoiser"), (3, "Completed".into()));
    // and again: nothing that was put away is lost
    let (code, _, stderr) = motion(&more.replace("steps=5", "steps=6"));
    assert!(code == 0 && stderr.contains("denoiser.old2"), "{stderr}");
    for away in ["denoiser.old", "denoiser.old2"] {
        assert!(run.join(away).join("model.safetensors").exists(), "{away}");
    }

    std::fs::remove_file(run.join("vae/model.safetensors")).unwrap();
    let (code, stdout, stderr) = motion(&format!("info {}", run.display()));
    assert!(code == 0 && stdout.contains("no weights yet, 6 steps, Completed"), "{stdout}{stderr}");
    let only = folder.path().join("only");
    let (code, _, stderr) = motion(&format!("train --out {} --parts vae --minutes 0", only.display()));
    assert!(code == 0 && !stderr.contains("next:"), "{stderr}");
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
    assert!(!dir.join("r2").exists(), "nothing is left behind");
    let (code, _, stderr) = motion(&format!("eval --checkpoint {}", empty.display()));
    assert!(code == 1 && stderr.contains("motion.json") && stderr.contains("hint: --checkpoint"), "{stderr}");
    for (flags, message) in [
        ("--preset huge", "expected one of tiny, small, paper"),
        ("--set crop.max_frames=500", "vae.max_frames 100"),
        ("--set vae.n_head=3", "n_head 3 does not divide"),
        ("--set nothing=1", "unknown"),
        ("--parts vae,nose", "invalid value 'nose'"),
        ("--set denoiser.ssm_cfg.type=mamba2", "spatial scans of width 4"),
        ("--set stream.training.chunk=3", "chunk 3 must lie in 8 to 2000"),
        ("--set grounding.ssm_cfg.type=s4d", "scans of s4d select nothing"),
        (
            "--set grounding.ssm_cfg.type=mamba2 --set grounding.ssm_cfg.headdim=7",
            "grounding.ssm_cfg: headdim 7",
        ),
    ] {
        let (code, _, stderr) = motion(&format!("train --out {} {flags}", dir.join("r3").display()));
        assert!(code == 2 && stderr.contains(message), "{flags}: {stderr}");
    }
}

#[test]
fn data_sets_are_clips_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let offline = |args: &str| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_mamba-motion"));
        command.env("MAMBA_DATA_HOME", folder.path()).env_remove("MAMBA_DATA");
        let output = command.args(args.split_whitespace()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, listed, _) = offline("datasets list --domain motion");
    assert!(code == 0 && listed.contains("bandai-namco"), "{listed}");
    let run = folder.path().join("run");
    for (name, message) in
        [("deepmimik", "similar: deepmimic"), ("deepmimic", "`datasets fetch deepmimic` downloads it")]
    {
        let (code, _, said) = offline(&format!("train {name} --out {}", run.display()));
        assert!(code == 1 && said.contains(message), "{name}: {said}");
    }

    if std::env::var_os("MAMBA_DATA").is_none_or(|data| data.is_empty()) {
        return eprintln!("skipped: MAMBA_DATA is not set");
    }
    train(&run, "deepmimic");
}

#[test]
fn long_motion_is_made_continued_filled_in_and_searched() {
    let folder = tempfile::tempdir().unwrap();
    let (run, out) = (folder.path().join("run"), folder.path().join("out"));
    train(&run, "--parts stream,grounding");
    assert!(!run.join("vae").exists() && run.join("stream/model.safetensors").exists());
    let generate =
        format!("generate --checkpoint {} --steps 3 --format json --out {}", run.display(), out.display());
    let ok = |args: &str| {
        let (code, stdout, stderr) = motion(args);
        assert_eq!(code, 0, "{args}: {stderr}");
        stdout
    };
    let features = |name: &str| humanml3d::read_features(out.join(format!("{name}_features.npy"))).unwrap();
    // Longer than any chunk or clip.
    ok(&format!("{generate} --label walk --length 10"));
    assert_eq!(features("walk_00").len(), 200 * 263);
    let whole = |name: &str, seconds: &str| -> (String, Vec<f32>) {
        ok(&format!("{generate} --label {name} --length {seconds}"));
        (
            format!("{}", out.join(format!("{name}_00_features.npy")).display()),
            features(&format!("{name}_00")),
        )
    };
    let ((kick, kick_values), (spin, spin_values)) = (whole("kick", "3"), whole("spin", "2"));
    // Kept frames come back bit for bit.
    let line = ok(&format!("{generate} --continue {kick} --label spin --length 2"));
    assert!(line.contains("\"kept\":60") && line.contains("\"frames\":100"), "{line}");
    let continued = features("kick_00_features_spin_00");
    assert_eq!(continued[..kick_values.len()], kick_values[..]);
    ok(&format!("{generate} --between {kick} {spin} --length 1"));
    let between = features("kick_00_features_spin_00_features_any_00");
    assert_eq!(between.len(), (60 + 20 + 40) * 263);
    assert_eq!(between[..60 * 263], kick_values[..]);
    assert_eq!(between[80 * 263..], spin_values[..]);
    ok(&format!("{generate} --fill {kick} --keep 0-1,2-3"));
    let filled = features("kick_00_features_any_00");
    assert_eq!(
        (&filled[..20 * 263], &filled[40 * 263..]),
        (&kick_values[..20 * 263], &kick_values[40 * 263..])
    );
    assert_ne!(filled[20 * 263..40 * 263], kick_values[20 * 263..40 * 263]);
    let script = ["generate", "--script", "walk:1.5; kick: 1", "--steps", "3", "--quiet"];
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_mamba-motion"));
    command.args(script).arg("--checkpoint").arg(&run).arg("--out").arg(&out).assert().success();
    assert_eq!(features("script_00").len(), 50 * 263);

    // A BVH file is continued too, and searched.
    let bvh = out.join("walk_00.bvh");
    ok(&format!("{generate} --continue {} --length 1", bvh.display()));
    let found = ok(&format!(
        "ground {} {kick} --checkpoint {} --label walk --format json",
        bvh.display(),
        run.display()
    ));
    assert_eq!(found.lines().count(), 2);
    let first: Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
    assert!(first["segments"].is_array() && first["seconds"].as_f64().unwrap() > 9.0, "{first}");
    let figures = ok(&format!("eval --checkpoint {} --questions 5 --format json", run.display()));
    let figures: Value = serde_json::from_str(&figures).unwrap();
    let grounding = &figures["grounding"]["figures"];
    for figure in ["mean_iou", "iou_0.5", "mean_iou_of_all_frames", "mean_iou_of_a_guess"] {
        assert!((0.0..=1.0).contains(&grounding[figure]["mean"].as_f64().unwrap()), "{figure}: {figures}");
    }

    let no_frames = folder.path().join("empty.bvh");
    rig::to_bvh(&[], features::FPS, 1.0).write(&no_frames).unwrap();
    // The same label twice makes two motions.
    let line = ok(&format!("{generate} --label walk --label walk --length 1"));
    assert!(line.contains("/walk_00.bvh") && line.contains("/walk_2_00.bvh"), "{line}");
    assert_eq!(features("walk_2_00").len(), 20 * 263);

    let run = run.display();
    for (args, code, message) in [
        (format!("generate --checkpoint {run} --label walk --guidance nan"), 2, "expected a finite number"),
        (format!("{generate} --label walk --guidance 1e40"), 1, "frame 1 holds NaN"),
        (format!("generate --checkpoint {run} --label walk/walk"), 2, "asks for more than one content"),
        (format!("generate --checkpoint {run} --label walk --compare no.bvh"), 1, "cannot read no.bvh"),
        (format!("generate --checkpoint {run} --label walk --out {kick}/x"), 1, "cannot write"),
        (
            format!("generate --checkpoint {run} --continue {kick} --label walk --length 0.01"),
            2,
            "--length is 0.01 s, less than a frame; one lasts 0.05 s",
        ),
        (format!("generate --checkpoint {run} --script walk:1;kick:0.01"), 2, "\"kick:0.01\" is 0.01 s"),
        (
            format!("generate --checkpoint {run} --network denoiser"),
            2,
            "has no denoiser\nhint: train --parts denoiser --resume",
        ),
        (format!("generate --checkpoint {run} --network peer --continue {kick}"), 2, "only stream does"),
        (format!("generate --checkpoint {run} --text walk"), 2, "the training knows labels only"),
        (format!("generate --checkpoint {run} --script walk"), 2, "\"walk\" has no seconds"),
        (
            format!("generate --checkpoint {run} --fill {kick} --keep 5-9"),
            2,
            "\"5-9\" is no part of a motion of 3 s",
        ),
        (format!("generate --checkpoint {run} --continue nowhere.bvh"), 1, "cannot read nowhere.bvh"),
        (
            format!("generate --checkpoint {run} --continue {}", no_frames.display()),
            1,
            "the motion has no frames",
        ),
        (format!("ground {kick} --checkpoint {run} --label fly"), 2, "no label is called \"fly\""),
        (format!("ground {kick} --checkpoint {}", folder.path().display()), 2, "--text"),
    ] {
        let (got, _, stderr) = motion(&args);
        assert!(got == code && stderr.contains(message), "{args}: {got} {stderr}");
    }
}

#[test]
fn a_training_is_told_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let (encoder, run, out) =
        (folder.path().join("clip"), folder.path().join("run"), folder.path().join("out"));
    tiny_clip::write(&encoder, &tiny_clip::config(), &tiny_clip::weights());
    train(&run, &format!("--parts vae,denoiser,stream,grounding --text-encoder {}", encoder.display()));
    let moved = folder.path().join("moved");
    std::fs::rename(&encoder, &moved).unwrap();
    let generate = |more: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_mamba-motion"));
        let command = command.args(["generate", "--steps", "3", "--length", "2", "--checkpoint"]).arg(&run);
        let output = command.arg("--out").arg(&out).args(more).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = generate(&["--text", "a person walks"]);
    assert!(code == 1 && stderr.contains("clip"), "the encoder is not where it was: {stderr}");
    let place = ["--text-encoder", moved.to_str().unwrap()];
    for (name, network) in [("denoiser", "denoiser"), ("stream", "stream")] {
        let asked = ["--text", "a person walks", "--text", "kick", "--label", "walk", "--network", network];
        let (code, stderr) = generate(&[&place[..], &asked[..]].concat());
        assert_eq!(code, 0, "{name}: {stderr}");
        let features =
            |name: &str| humanml3d::read_features(out.join(format!("{name}_00_features.npy"))).unwrap();
        let (walks, kick) = (features("a_person_walks"), features("kick"));
        let far = walks.iter().zip(&kick).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far > 1e-4, "{name} does not hear what is asked: {far}");
        assert_eq!(features("walk").len(), 40 * 263);
    }
    let file = out.join("kick_00.bvh");
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_mamba-motion"));
    let command = command.arg("ground").arg(&file).arg("--checkpoint").arg(&run).args(place);
    command.args(["--text", "a person walks", "--format", "json"]).assert().success();
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, "--parts evaluator");
    for command in [format!("info {}", run.display()), "completions bash".into()] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_mamba-motion"));
        let output = program.args(command.split_whitespace()).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{command}: {output:?}");
    }
}

/// Writes two of the bundled clips, of which one has no style, with joints that no map of the crate knows, and their map.
fn write_clips(folder: &Path, map: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let joints: serde_json::Map<String, Value> =
        NAMES.iter().map(|name| (name.to_string(), serde_json::json!({ format!("my_{name}"): 1 }))).collect();
    std::fs::write(map, serde_json::json!({ "map": joints }).to_string()).unwrap();
    let data = MotionData::bundled(&SourceConfig::default()).unwrap();
    for (name, file) in [("walk", "walk_01.bvh"), ("kick", "dataset-2_kick_happy_001.bvh")] {
        let clip = data.clips.iter().find(|clip| clip.name == name).unwrap();
        let text = rig::to_bvh(&features::to_poses(&clip.frames), features::FPS, 100.0).to_string();
        let text = text.replace("ROOT ", "ROOT my_").replace("JOINT ", "JOINT my_");
        std::fs::write(folder.join(file), text).unwrap();
    }
}

#[test]
fn a_run_needs_its_map_file_no_more_and_keeps_the_joints_of_kept_frames() {
    let folder = tempfile::tempdir().unwrap();
    let [clips, map, run, out] = ["clips", "map.json", "run", "out"].map(|name| folder.path().join(name));
    write_clips(&clips, &map);
    let data = format!("train {} --out {}", clips.display(), run.display());
    let quick = QUICK.replace("--quiet", "--preset tiny");
    let first = format!("{data} {quick} --set source.skeleton={}", map.display());
    let (code, _, stderr) = motion(&format!("{first} --parts evaluator,vae"));
    assert!(code == 2 && stderr.contains("needs a label of each group: walk_01 has no style"), "{stderr}");
    assert!(!run.exists(), "nothing is left behind");
    let (code, _, stderr) = motion(&first);
    assert!(code == 0 && stderr.contains("evaluator: left out"), "{stderr}");
    assert!(!run.join("evaluator").exists() && !stderr.contains("mamba-motion eval"), "{stderr}");
    let map_text = std::fs::read_to_string(&map).unwrap();
    std::fs::remove_file(&map).unwrap();
    let (code, _, stderr) = motion(&format!("{data} --parts stream --resume"));
    assert_eq!(code, 0, "{stderr}");

    let walk = clips.join("walk_01.bvh");
    let generate = format!("generate --checkpoint {} --out {}", run.display(), out.display());
    let (code, _, stderr) =
        motion(&format!("{generate} --continue {0} --compare {0} --steps 3 --length 3", walk.display()));
    assert_eq!(code, 0, "{stderr}");
    let given = features::to_poses(&frames_of_file(&walk, Some(&map_text)).unwrap());
    let made = humanml3d::read_joints(out.join("walk_01_any_00.npy")).unwrap();
    let far = given.iter().flatten().flatten().zip(made.iter().flatten().flatten());
    let far = far.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(made.len() == given.len() + 60 && far < 1e-3, "{far}");
    // What was generated has other joints, and is continued and shown too.
    let made = out.join("walk_01_any_00.bvh");
    let (code, _, stderr) =
        motion(&format!("{generate} --continue {0} --compare {0} --steps 3 --length 1", made.display()));
    assert_eq!(code, 0, "{stderr}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_generation_writes_what_is_finished_or_says_that_nothing_is() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, "--parts vae,denoiser,stream");
    for (network, flags, message) in [
        ("stream", ["--length", "3600", "--count", "1"], "nothing is written"),
        ("denoiser", ["--length", "2", "--count", "1000"], " of 1000 motions written"),
    ] {
        let out = folder.path().join(network);
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_mamba-motion"));
        program.args(["generate", "--network", network, "--checkpoint"]).arg(&run).arg("--out").arg(&out);
        let child = program.args(flags).stderr(std::process::Stdio::piped()).spawn().unwrap();
        // Signals are heard before the folder is made.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !out.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(130) && stderr.contains(message), "{network}: {stderr}");
        assert_eq!(out.join("any_00.bvh").exists(), network == "denoiser");
    }
}
