//! The binary: train, evaluate, enhance, measure; and what it says when something is wrong.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use assert_cmd::Command;
use mamba_speech::audio::{Audio, Reader, WavFormat, read, resample, write_wav};
use mamba_speech::sample;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use std::path::Path;

fn speech(arguments: &str, folder: &Path) -> Command {
    let mut command = Command::cargo_bin("mamba-speech").unwrap();
    command.current_dir(folder).args(arguments.split_whitespace());
    command
}

fn json(output: &[u8]) -> serde_json::Value {
    serde_json::from_slice(output).unwrap()
}

/// A noisy voice and the voice in it.
fn pair(seed: u64, seconds: f64) -> (Vec<f32>, Vec<f32>) {
    let voice = sample::voice(seed, seconds);
    let noisy = voice.iter().zip(sample::noise(seed, seconds)).map(|(v, n)| v + 0.3 * n).collect();
    (noisy, voice)
}

fn mono(path: &Path, samples: Vec<f32>) {
    write_wav(path, &Audio::mono(16_000, samples), WavFormat::PCM16).unwrap();
}

/// Settings of a model that trains in seconds.
const TINY: &str = "--set model.model_cfg.hid_feature=8 --set model.model_cfg.num_tfmamba=1 \
                    --set model.model_cfg.dense_depth=2 --set data.segment_size=4000 --set data.valid_clips=1 \
                    --set data.valid_size=16000 --batch 1 --quiet --threads 2";

#[test]
fn train_eval_enhance_and_metrics_work_together() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    speech(&format!("train --out run --steps 3 {TINY}"), dir).assert().success();
    for file in ["config.json", "model.safetensors", "metrics.jsonl", "run.json", "optim.safetensors"] {
        assert!(dir.join("run").join(file).is_file(), "{file}");
    }
    speech(&format!("train --out run --steps 3 {TINY}"), dir).assert().code(1).stderr(contains("--resume"));
    speech(&format!("train --out run --steps 4 --resume {TINY}"), dir).assert().success();

    std::fs::create_dir_all(dir.join("clean/a")).unwrap();
    std::fs::create_dir_all(dir.join("noisy/a")).unwrap();
    for (seed, name) in ["one.wav", "a/two.wav"].iter().enumerate() {
        let (noisy, clean) = pair(seed as u64, 1.5);
        mono(&dir.join("noisy").join(name), noisy);
        mono(&dir.join("clean").join(name), clean);
    }
    let info = speech("info run --format json", dir).assert().success().get_output().stdout.clone();
    assert_eq!(json(&info)["config"]["model_cfg"]["hid_feature"], 8);

    let eval = "eval --checkpoint run --clean clean --noisy noisy --format json --quiet --csv scores.csv";
    let scores = json(&speech(eval, dir).assert().success().get_output().stdout);
    for scores in [&scores, &scores["noisy"]] {
        assert_eq!(scores["clips"].as_array().unwrap().len(), 2);
        assert!(scores["mean"]["stoi"].is_f64(), "{scores}");
    }
    assert_eq!(std::fs::read_to_string(dir.join("scores.csv")).unwrap().lines().count(), 3);

    // Folders keep their shape, a rerun makes nothing again, and other settings are refused.
    let enhance = "enhance noisy --out out --checkpoint run --format json --quiet";
    let summary = |arguments: &str| json(&speech(arguments, dir).assert().success().get_output().stdout);
    assert_eq!(summary(&format!("{enhance} --shard 1/2"))["written"], 1);
    let all = summary(enhance);
    assert_eq!((&all["written"], &all["already_there"]), (&1.into(), &1.into()));
    for name in ["one.wav", "a/two.wav"] {
        assert_eq!(read(dir.join("out").join(name)).unwrap().frames(), 24_000);
    }
    assert_eq!(summary(enhance)["already_there"], 2);
    speech(&format!("{enhance} --limit 12"), dir).assert().code(1).stderr(contains("out/a/two.wav"));
    assert_eq!(summary(&format!("{enhance} --limit 12 --overwrite"))["written"], 2);

    let same = summary("metrics --clean clean --enhanced clean --format json");
    let mean = &same["mean"];
    assert!(mean["pesq_wb"].as_f64().unwrap() > 4.6 && mean["stoi"].as_f64().unwrap() > 0.999, "{mean}");
    speech("metrics --clean clean --enhanced noisy", dir).assert().success().stdout(starts_with("clip"));

    // A clip that has no scores is told of, and the others have theirs; silence has no PESQ.
    mono(&dir.join("noisy/one.wav"), vec![0.0; 20_000]);
    speech("metrics --clean clean --enhanced noisy --csv some.csv", dir)
        .assert()
        .code(1)
        .stdout(contains("a/two.wav").and(contains("one.wav").not()))
        .stderr(contains("noisy/one.wav: the clean signal has 24000 samples and this one 20000"))
        .stderr(contains("1 of 2 clips have scores"));
    mono(&dir.join("noisy/one.wav"), vec![0.0; 24_000]);
    let silent = summary("metrics --clean clean/one.wav --enhanced noisy/one.wav --format json");
    assert!(silent["mean"]["pesq_wb"].is_null() && silent["mean"]["covl"].is_null(), "{silent}");
    std::fs::remove_file(dir.join("noisy/one.wav")).unwrap();
    speech("metrics --clean clean --enhanced noisy", dir)
        .assert()
        .code(1)
        .stderr(contains("clean/one.wav: there is no file of this name in noisy"));
}

#[test]
fn rate_channels_width_and_length_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (left, right) = pair(3, 1.1);
    let stereo = Audio { sample_rate: 16_000, channels: vec![left, right] }.resampled(44_100).unwrap();
    write_wav(&dir.join("in.wav"), &stereo, WavFormat::PCM24).unwrap();
    let made = speech("enhance in.wav --out out.wav --picture", dir).assert().success();
    made.stderr(contains("1/1 s of sound"));
    let spec = Reader::open(dir.join("out.wav")).unwrap().spec();
    assert_eq!((spec.sample_rate, spec.channels, spec.format), (44_100, 2, WavFormat::PCM24));
    assert_eq!(spec.frames, Some(stereo.frames() as u64));
    assert!(std::fs::read(dir.join("out.png")).unwrap().starts_with(b"\x89PNG"));

    // All of the recording mixed back is the recording.
    speech("enhance in.wav --out kept.wav --limit 0.0001 --quiet", dir).assert().success();
    let kept = read(dir.join("kept.wav")).unwrap();
    for (a, b) in kept.channels.iter().flatten().zip(stereo.channels.iter().flatten()) {
        assert!((a - b).abs() < 1e-4);
    }
}

#[test]
fn a_stream_of_raw_samples_has_as_many_samples_as_came() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    speech(&format!("train --preset semamba-stream --out live --steps 1 {TINY}"), dir).assert().success();
    let (noisy, _) = pair(1, 0.7);
    let bytes: Vec<u8> = noisy.iter().flat_map(|x| ((x * 32767.0) as i16).to_le_bytes()).collect();
    for (arguments, rate) in [("--checkpoint live", 16_000), ("--checkpoint live", 8_000), ("", 16_000)] {
        let command = format!("enhance --stream --rate {rate} {arguments}");
        let out =
            speech(&command, dir).write_stdin(bytes.clone()).assert().success().get_output().stdout.clone();
        assert_eq!(out.len(), bytes.len(), "{command}");
    }
    speech("enhance --stream --checkpoint live", dir)
        .write_stdin(bytes[..bytes.len() - 1].to_vec())
        .assert()
        .code(1)
        .stderr(contains("in the middle of a 16 bit sample"));
    // All that came before a stray byte is there.
    for checkpoint in ["", "--checkpoint live"] {
        let output = speech(&format!("enhance --stream --quiet {checkpoint}"), dir)
            .write_stdin(bytes[..bytes.len() - 1].to_vec())
            .assert()
            .code(1)
            .stderr(contains("follows live").not())
            .get_output()
            .stdout
            .clone();
        assert_eq!(output.len(), bytes.len() - 2);
    }
    speech("enhance --stream --rate 2000000000", dir).assert().code(2).stderr(contains("1..=1000000"));
}

#[test]
fn recordings_are_never_replaced_by_their_results() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::create_dir(dir.join("talk")).unwrap();
    for name in ["one.wav", "talk/two.wav", "talk/two_1.wav"] {
        mono(&dir.join(name), pair(1, 0.5).0);
    }
    let before = std::fs::read(dir.join("one.wav")).unwrap();
    for arguments in [
        "one.wav --out one.wav",
        "one.wav --out talk/../one.wav",
        "one.wav --out .",
        "talk --out talk",
        "talk one.wav --out .",
    ] {
        speech(&format!("enhance {arguments} --overwrite"), dir)
            .assert()
            .code(2)
            .stderr(contains("would replace a recording: name another place with --out"));
    }
    assert_eq!(std::fs::read(dir.join("one.wav")).unwrap(), before);
    speech("enhance one.wav --out res.flac", dir)
        .assert()
        .code(2)
        .stderr(contains("--out res.flac: results are WAV files: name a .wav file, or a folder"));
    assert!(!dir.join("res.flac").exists());

    // Results in a folder among the recordings are no recordings.
    for there in [0, 3] {
        let run = speech("enhance . --out talk/clean --quiet --format json", dir).assert().success();
        let summary = json(&run.get_output().stdout);
        assert_eq!((&summary["written"], &summary["already_there"]), (&(3 - there).into(), &there.into()));
    }
    // A recording of a few samples has a picture too.
    mono(&dir.join("short.wav"), vec![0.1; 100]);
    speech("enhance short.wav --out few.wav --picture", dir).assert().success();
    assert_eq!(read(dir.join("few.wav")).unwrap().frames(), 100);
    assert!(dir.join("few.png").is_file());
}

#[test]
fn training_that_could_not_be_validated_is_refused_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for name in ["short", "late", "clean", "noisy", "noise"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    for i in 0..3 {
        let (noisy, clean) = pair(i, 1.5);
        mono(&dir.join(format!("short/{i}.wav")), clean[..3000].to_vec());
        mono(&dir.join(format!("late/{i}.wav")), [&[0.0; 20_000], &clean[..]].concat());
        mono(&dir.join(format!("clean/{i}.wav")), clean);
        mono(&dir.join(format!("noisy/{i}.wav")), noisy);
        mono(&dir.join(format!("noise/{i}.wav")), sample::noise(i, 2.0));
    }
    let fails = |arguments: &str, code: i32, messages: [&str; 2]| {
        let run = speech(&format!("train --out run --steps 1 {TINY} {arguments}"), dir).assert().code(code);
        run.stderr(contains(messages[0]).and(contains(messages[1])));
        assert!(!dir.join("run").exists(), "{arguments}");
    };
    fails("--clean short --noise noise", 1, ["short/", "3000 samples are too few to score"]);
    fails("--clean late --noise noise", 1, ["late/", "the clean signal is silent"]);
    fails("--set model.stft_cfg.sampling_rate=8000", 2, ["sampling_rate is 8000", "16000"]);
    fails("--set data.valid=0", 2, ["valid is 0", "above 0"]);
    fails("--set loss.metric=0.05 --set data.segment_size=2000", 2, ["segment_size is 2000", "4000"]);
    fails(
        "--clean clean --clean late --noise noisy",
        1,
        ["noisy/0.wav: this noise holds the speech of clean/0.wav", "mix"],
    );
    speech(&format!("train --out run --steps 1 {TINY} --clean clean --noise noise"), dir).assert().success();
}

#[test]
fn talkers_are_parted_into_files() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let tiny = "--set model.channels=8 --set model.num_blocks=1 --set data.segment_size=4096 --set data.valid_mixtures=1 \
                --batch 1 --quiet --threads 2";
    speech(&format!("separate train --out run --steps 2 {tiny}"), dir).assert().success();
    speech(&format!("separate train --out run --steps 3 --resume {tiny}"), dir).assert().success();
    let info = speech("info run --format json", dir).assert().success().get_output().stdout.clone();
    assert_eq!(json(&info)["config"]["channels"], 8);
    speech("enhance x.wav --out y.wav --checkpoint run", dir)
        .assert()
        .code(1)
        .stderr(contains("`separate` takes it"));

    // Two talkers, each in a folder, who read the same sentences.
    for (talker, pitch) in [("low", 100.0), ("high", 200.0)] {
        std::fs::create_dir_all(dir.join("speech").join(talker)).unwrap();
        for sentence in 0..10 {
            let voice = sample::voice_of(pitch, sentence, 1.0);
            mono(&dir.join("speech").join(talker).join(format!("{talker}_{sentence}.wav")), voice);
        }
    }
    let own = format!("separate train --speech speech --out own --steps 2 {tiny}");
    speech(&own, dir).assert().success();
    let eval = "separate eval --checkpoint own --speech speech --count 3 --format json --quiet";
    let scores = json(&speech(eval, dir).assert().success().get_output().stdout);
    assert_eq!(scores["mixtures"].as_array().unwrap().len(), 3);
    assert!(scores["mean"]["improvement_db"].as_f64().unwrap().is_finite());
    speech("separate eval --checkpoint own --speech speech/low --all", dir)
        .assert()
        .code(1)
        .stderr(contains("here are: low"));

    // Any rate, channels and length; the talkers add up to the recording as far as the model's rate goes.
    std::fs::create_dir_all(dir.join("talk/a")).unwrap();
    let (left, right) = (sample::voice_of(100.0, 50, 2.3), sample::voice_of(210.0, 51, 2.3));
    let stereo = Audio { sample_rate: 16_000, channels: vec![left, right] }.resampled(44_100).unwrap();
    write_wav(&dir.join("talk/a/two.wav"), &stereo, WavFormat::FLOAT).unwrap();
    let separate = "separate talk --checkpoint run --out out --chunk 0.5 --quiet --format json";
    let summary = |arguments: &str| json(&speech(arguments, dir).assert().success().get_output().stdout);
    let made = speech(&separate.replace("--quiet", ""), dir).assert().success();
    let made = made.stderr(contains("out/a/two_1.wav, out/a/two_2.wav: ")).get_output().stdout.clone();
    assert_eq!(json(&made)["written"], 1);
    let parts: Vec<Audio> = (1..=2).map(|i| read(dir.join(format!("out/a/two_{i}.wav"))).unwrap()).collect();
    for part in &parts {
        assert_eq!((part.sample_rate, part.channels.len(), part.frames()), (44_100, 1, stereo.frames()));
    }
    let whole = stereo.mix_down();
    let narrow = |x: &[f32]| resample(x, 44_100, 4_000).unwrap();
    let sum: Vec<f32> = parts[0].channels[0].iter().zip(&parts[1].channels[0]).map(|(a, b)| a + b).collect();
    let (sum, whole) = (narrow(&sum), narrow(&whole));
    let largest = whole.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(sum[200..].iter().zip(&whole[200..]).all(|(a, b)| (a - b).abs() < 0.05 * largest));
    assert_eq!(summary(separate)["already_there"], 1);
    speech("separate talk --checkpoint run --out out --chunk 0.7", dir)
        .assert()
        .code(1)
        .stderr(contains("two_1.wav"));
    write_wav(&dir.join("talk/a/two_2.wav"), &parts[0], WavFormat::FLOAT).unwrap();
    speech("separate talk --checkpoint run --out talk --overwrite", dir)
        .assert()
        .code(2)
        .stderr(contains("would replace a recording"));
    std::fs::remove_file(dir.join("talk/a/two_2.wav")).unwrap();
    speech("separate eval --checkpoint run --mixtures talk --sources talk", dir)
        .assert()
        .code(2)
        .stderr(contains("1 folders of --sources, but the model separates 2 talkers"));
}

#[test]
fn clips_are_tagged() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let tiny = "--set model.embed_dim=8 --set model.depth=1 --steps 2 --batch 4 --quiet --threads 2";
    speech(&format!("tag train --out demo {tiny}"), dir)
        .assert()
        .success()
        .stdout(contains("40 clips, accuracy"));
    std::fs::create_dir(dir.join("clips")).unwrap();
    let mut table = String::from("path\tlabel\tgroup\n");
    for voice in 0..3 {
        for (i, vowel) in sample::VOWELS.iter().enumerate() {
            let name = format!("{vowel}_v{voice}_0.wav");
            mono(&dir.join("clips").join(&name), sample::vowel(i, voice));
            table += &format!("clips/{name}\t{vowel}\tv{voice}\n");
        }
    }
    std::fs::write(dir.join("clips.tsv"), &table).unwrap();
    let train =
        format!("tag train --clips clips.tsv --test v2 --valid v1 --baseline --out run --format json {tiny}");
    let lines =
        String::from_utf8(speech(&train, dir).assert().success().get_output().stdout.clone()).unwrap();
    let result = json(lines.lines().last().unwrap().as_bytes());
    assert_eq!((&result["model"]["clips"], &result["baseline"]["clips"]), (&5.into(), &5.into()));
    let folds = format!("tag train --clips clips --folds groups --baseline --out folds {tiny}");
    speech(&folds, dir).assert().success().stdout(contains("v0").and(contains("mean")));
    assert!(dir.join("folds/folds.json").is_file() && dir.join("folds/fold-v2/report.json").is_file());
    speech(&format!("tag train --clips clips --folds 3 --out thirds {tiny}"), dir).assert().success();

    let eval = "tag eval --checkpoint run --clips clips --group v0 --format json";
    let scores = json(&speech(eval, dir).assert().success().get_output().stdout);
    assert_eq!((&scores["clips"], scores["labels"].as_array().unwrap().len()), (&5.into(), 5));
    let tag = "tag clips --checkpoint run --csv all.csv --format json";
    let lines = String::from_utf8(speech(tag, dir).assert().success().get_output().stdout.clone()).unwrap();
    assert_eq!(lines.lines().count(), 15);
    let first = json(lines.lines().next().unwrap().as_bytes());
    let sum: f64 = first["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5 && first["path"] == "clips/a_v0_0.wav", "{first}");
    let csv = std::fs::read_to_string(dir.join("all.csv")).unwrap();
    assert!(csv.starts_with("path,seconds,label,a,e,i,o,u\n") && csv.lines().count() == 16, "{csv}");

    let fails = |arguments: &str, code: i32, message: &str| {
        speech(arguments, dir).assert().code(code).stderr(contains(message));
    };
    mono(&dir.join("clips/noname.wav"), sample::vowel(0, 9));
    fails("tag train --clips clips --out x", 1, "clips/noname.wav: the name does not fit {label}_{group}_{}");
    fails(
        "tag eval --checkpoint run --clips clips.tsv --group v9",
        2,
        "group is v9: expected one of v0, v1, v2",
    );
    fails("tag clips --checkpoint demo2", 1, "demo2");
    fails("tag clips/a_v0_0.wav", 2, "--checkpoint");
    fails("tag train --folds 1 --clips clips.tsv", 2, "expected groups, or a number of parts from 2 on");
    fails("tag train --folds groups", 2, "--folds needs --clips");
    fails("tag train --clips clips.tsv --set model.depth=0", 2, "depth");
    fails(
        "separate clips --checkpoint run --out x",
        1,
        "a model of type audio-mamba, expected dual-path-mamba: `tag` takes it",
    );
    std::fs::write(dir.join("bad.csv"), "path,label\nclips/a_v0_0.wav,a\nclips/none.wav,b\n").unwrap();
    fails("tag eval --checkpoint run --clips bad.csv", 1, "bad.csv:3: clips/none.wav is not there");
    std::fs::write(dir.join("text.wav"), "no sound at all").unwrap();
    speech("tag text.wav clips/a_v0_0.wav --checkpoint run", dir)
        .assert()
        .code(1)
        .stdout(contains("clips/a_v0_0.wav"))
        .stderr(contains("text.wav: not a WAV, FLAC"));
}

#[test]
fn mistakes_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let fails = |arguments: &str, code: i32, message: &str| {
        speech(arguments, dir).assert().code(code).stderr(contains(message));
    };
    std::fs::write(dir.join("text.wav"), "no sound at all").unwrap();
    mono(&dir.join("good.wav"), pair(1, 0.5).0);
    fails("enhance nowhere.wav --out x.wav", 1, "nowhere.wav");
    fails("enhance text.wav --out x.wav", 1, "text.wav: not a WAV, FLAC, Ogg Vorbis or MP3 file");
    fails("enhance good.wav", 2, "--out");
    fails("enhance good.wav --out x.wav --chunk 0", 2, "--chunk");
    fails("enhance good.wav text.wav --out x.wav", 2, "many recordings need a folder");
    fails("enhance good.wav ./good.wav --out x", 2, "would both become");
    fails("enhance good.wav --out x.wav --checkpoint nowhere", 1, "nowhere");
    fails("train --out r --preset huge", 2, "--preset huge: expected one of semamba");
    fails("train --out r --set model.model_cfg.hid_feature=0", 2, "hid_feature");
    fails("train --out r --set data.segment_size=1650", 2, "multiple of the hop");
    fails("train --out r --clean good.wav --noise nowhere", 1, "nowhere");
    // One bad recording does not stop the others.
    speech("enhance good.wav text.wav --out both", dir).assert().code(1).stderr(contains("text.wav"));
    assert!(dir.join("both/good.wav").is_file() && !dir.join("both/text.wav").exists());
    assert!(!dir.join("x.wav").exists(), "nothing is left of what failed");
}

#[test]
fn data_sets_are_folders_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let offline = |arguments: &str| {
        let mut command = speech(arguments, dir);
        command.env("MAMBA_DATA_HOME", dir.join("home")).env_remove("MAMBA_DATA");
        command
    };
    offline("datasets list --domain speech").assert().success().stdout(contains("vctk-excerpt"));
    let train = "train --out run --noise noise-speech-commands --clean";
    offline(&format!("{train} vctk")).assert().code(1).stderr(contains("similar: vctk-excerpt"));
    let missing = "`datasets fetch vctk-excerpt` downloads it";
    offline(&format!("{train} vctk-excerpt")).assert().code(1).stderr(contains(missing));
    offline("eval --clean vctk-excerpt --noisy vctk-excerpt").assert().code(1).stderr(contains(missing));

    if std::env::var_os("MAMBA_DATA").is_none_or(|data| data.is_empty()) {
        return eprintln!("skipped: MAMBA_DATA is not set");
    }
    speech(&format!("{train} vctk-excerpt --steps 1 {TINY}"), dir).assert().success();
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    for command in ["info", "completions bash"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_mamba-speech"));
        let output = program.args(command.split_whitespace()).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{command}: {output:?}");
    }
}
