//! Long motion: the denoiser of motion itself, what it keeps, that chunks equal the whole; grounding.

use candle_core::{DType, Device, Result, Tensor};
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{Mamba1Config, Mamba2Config, Mamba3Config, MixerConfig, Params, Rng, checkpoint};
use mamba_motion::conditions::Asked;
use mamba_motion::config::MotionConfig;
use mamba_motion::dataset::{Clip, MotionData, Role, SourceConfig, Standard};
use mamba_motion::features::{Frame, N_FEATURES, root_path};
use mamba_motion::models::stream::Frames;
use mamba_motion::models::{
    Condition, ConditionConfig, Grounder, GrounderConfig, StreamDenoiser, StreamDenoiserConfig, StreamState,
};
use mamba_motion::quaternion::{norm, sub};
use mamba_motion::run::{SampleOptions, Shared};
use mamba_motion::stream::{Piece, StreamGenerator, land};
use mamba_motion::tasks::stream::{StoredStream, StreamTraining};
use std::path::Path;
use std::sync::OnceLock;

const CPU: Device = Device::Cpu;

fn random(shape: impl Into<candle_core::Shape>, seed: u64) -> Tensor {
    Rng::new(seed).normal_tensor(shape, 0.0, 1.0, DType::F32, &CPU).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

fn mixers() -> [MixerConfig; 3] {
    [
        Mamba1Config { d_state: 4, ..Mamba1Config::default() }.into(),
        Mamba2Config { d_state: 8, headdim: 8, ..Mamba2Config::default() }.into(),
        Mamba3Config { d_state: 8, headdim: 8, ..Mamba3Config::default() }.into(),
    ]
}

fn config(ssm_cfg: MixerConfig) -> StreamDenoiserConfig {
    let condition = ConditionConfig::Labels { sizes: vec![3] };
    StreamDenoiserConfig { d_model: 16, n_layer: 2, ssm_cfg, condition }
}

fn labels(ids: &[Option<usize>]) -> Condition {
    Condition::Labels(ids.iter().map(|&id| vec![id]).collect())
}

/// A column of marks, the same for each row.
fn marks(rows: usize, given: &[bool]) -> Tensor {
    let column = given.iter().map(|&given| f32::from(u8::from(given)));
    Tensor::from_iter(column, &CPU).unwrap().reshape((1, (), 1)).unwrap().repeat((rows, 1, 1)).unwrap()
}

#[test]
fn chunks_with_a_carried_state_equal_one_pass_over_everything() -> Result<()> {
    for ssm_cfg in mixers() {
        let kind = ssm_cfg.kind();
        let params = Params::fresh(1, DType::F32, &CPU);
        let denoiser = StreamDenoiser::new(&config(ssm_cfg), &params.builder())?;
        let (motion, condition) = (random((2, 23, N_FEATURES), 2), labels(&[Some(1), None]));
        // Two chunks are given, of the third the last two frames.
        let given: Vec<bool> = (0..23).map(|i| !(16..21).contains(&i)).collect();
        let whole = Frames::chunked(motion.clone(), marks(2, &given), &[vec![9, 7, 7], vec![9, 7, 7]])?;
        let want = denoiser.forward(&whole, &[700, 30], &condition, None)?.narrow(1, 16, 7)?;
        let mut state = StreamState::default();
        denoiser.remember(&motion.narrow(1, 0, 9)?.contiguous()?, &mut state)?;
        denoiser.remember(&motion.narrow(1, 9, 7)?.contiguous()?, &mut state)?;
        let chunk = Frames::chunk(motion.narrow(1, 16, 7)?.contiguous()?, marks(2, &given[16..]))?;
        let got = denoiser.guided(&chunk, &[700, 30], &condition, &state, 1.0)?;
        assert!(difference(&got, &want) < 1e-4, "{kind}: {}", difference(&got, &want));
        let again = denoiser.guided(&chunk, &[700, 30], &condition, &state, 1.0)?;
        assert_eq!(difference(&got, &again), 0.0, "{kind}: looking does not change the state");
        // Nothing after a chunk reaches into it, everything before it does.
        let changed = |at: usize| -> Result<f32> {
            let other = Tensor::cat(
                &[
                    &motion.narrow(1, 0, at)?,
                    &random((2, 1, N_FEATURES), 9),
                    &motion.narrow(1, at + 1, 22 - at)?,
                ],
                1,
            )?;
            let frames = Frames::chunked(other, marks(2, &given), &[vec![9, 7, 7], vec![9, 7, 7]])?;
            let all = denoiser.forward(&frames, &[700, 30], &condition, None)?;
            let before = denoiser.forward(&whole, &[700, 30], &condition, None)?;
            Ok(difference(&all.narrow(1, 9, 7)?, &before.narrow(1, 9, 7)?))
        };
        assert_eq!(changed(16)?, 0.0, "{kind}");
        assert!(changed(0)? > 1e-6 && changed(15)? > 1e-6, "{kind}");
    }
    Ok(())
}

#[test]
fn padding_is_inert_and_conditions_reach_free_frames_only() -> Result<()> {
    let params = Params::fresh(1, DType::F32, &CPU);
    let denoiser = StreamDenoiser::new(&config(mixers()[0].clone()), &params.builder())?;
    let motion = random((1, 12, N_FEATURES), 2);
    let run = |values: Tensor, given: &[bool], chunks: &[Vec<usize>], label: Option<usize>| {
        let frames = Frames::chunked(values, marks(1, given), chunks)?;
        denoiser.forward(&frames, &[500], &labels(&[label]), None)
    };
    let alone = run(motion.clone(), &[false; 12], &[vec![5, 7]], Some(0))?;
    let padded = Tensor::cat(&[&motion, &random((1, 4, N_FEATURES), 3)], 1)?;
    let with = run(padded, &[false; 16], &[vec![5, 7]], Some(0))?;
    assert!(difference(&with.narrow(1, 0, 12)?, &alone) < 1e-5);
    assert!(difference(&run(motion.clone(), &[false; 12], &[vec![5, 7]], Some(1))?, &alone) > 1e-6);
    let given = run(motion.clone(), &[true; 12], &[vec![5, 7]], Some(0))?;
    assert_eq!(difference(&run(motion.clone(), &[true; 12], &[vec![5, 7]], Some(1))?, &given), 0.0);
    let wrong =
        denoiser.forward(&Frames::chunk(motion, marks(1, &[true; 12]))?, &[1, 2], &labels(&[None]), None);
    assert!(wrong.unwrap_err().to_string().contains("2 steps, 1 conditions"));
    Ok(())
}

/// Squared gradients, all finite and none zero, and the loss after training on one batch.
fn learns(what: &str, params: &Params, steps: usize, mut loss: impl FnMut() -> Result<Tensor>) -> (f32, f32) {
    let first = loss().unwrap();
    let grads = first.backward().unwrap();
    for param in params.named() {
        let grad =
            grads.get(param.var().unwrap()).unwrap_or_else(|| panic!("{what}: {} stays", param.name()));
        let size = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size.is_finite() && size > 0.0, "{what}: the squared gradient of {} is {size}", param.name());
    }
    let config = AdamWConfig { betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(params, config).unwrap();
    for _ in 0..steps {
        let mut grads = Gradients::of(&loss().unwrap(), params).unwrap();
        grads.clip_grad_norm(1.0, 1).unwrap();
        optimizer.step(&grads, 3e-3).unwrap();
    }
    (first.to_scalar().unwrap(), loss().unwrap().to_scalar().unwrap())
}

#[test]
fn the_denoiser_of_motion_trains_whatever_its_mixers() -> Result<()> {
    for ssm_cfg in mixers() {
        let kind = ssm_cfg.kind();
        let params = Params::fresh(1, DType::F32, &CPU);
        let denoiser = StreamDenoiser::new(&config(ssm_cfg), &params.builder())?;
        let (motion, target) = (random((3, 6, N_FEATURES), 2), random((3, 6, N_FEATURES), 3));
        let given: Vec<bool> = (0..6).map(|i| i < 2).collect();
        let chunks = vec![vec![2, 4]; 3];
        let condition = labels(&[Some(0), Some(1), None]);
        let (first, last) = learns(kind, &params, 150, || {
            let frames = Frames::chunked(motion.clone(), marks(3, &given), &chunks)?;
            let output = denoiser.forward(&frames, &[5, 900, 31], &condition, None)?;
            (output - &target)?.narrow(1, 2, 4)?.sqr()?.mean_all()
        });
        assert!(last < 0.3 * first, "{kind}: {first} to {last}");
    }
    Ok(())
}

fn data() -> &'static MotionData {
    static DATA: OnceLock<MotionData> = OnceLock::new();
    DATA.get_or_init(|| {
        MotionData::bundled(&SourceConfig { mirror: false, ..SourceConfig::standard() }).unwrap()
    })
}

fn clip(name: &str) -> &'static Clip {
    data().clips.iter().find(|clip| clip.name == name).unwrap()
}

/// A run with an untrained denoiser of motion: what is kept does not depend on the weights.
fn run(dir: &Path) -> StreamGenerator {
    let cfg = MotionConfig::preset("tiny").unwrap();
    let sizes: Vec<usize> = data().groups.iter().map(|group| group.values.len()).collect();
    let shared = Shared {
        config: cfg,
        groups: data().groups.clone(),
        text: None,
        standard: Standard::of(&data().of_role(Role::Train)),
        data: data().fingerprint(),
    };
    shared.write(dir).unwrap();
    let model =
        StreamDenoiserConfig { condition: ConditionConfig::Labels { sizes }, ..config(mixers()[0].clone()) };
    let params = Params::fresh(3, DType::F32, &CPU);
    StreamDenoiser::new(&model, &params.builder()).unwrap();
    let stored = StoredStream { model, training: StreamTraining { chunk: 20, ..StreamTraining::default() } };
    checkpoint::save_dir(dir.join("stream"), &serde_json::to_value(&stored).unwrap(), &params.to_tensors())
        .unwrap();
    StreamGenerator::open(dir, None, &CPU).unwrap()
}

fn make(frames: usize) -> Piece {
    Piece::Make { asked: Asked::Labels(vec![Some(2)]), frames }
}

fn frame_distance(a: &[Frame], b: &[Frame]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn kept_frames_stay_exactly_and_the_rest_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let generator = run(folder.path());
    let options = SampleOptions { respacing: "3".into(), ..SampleOptions::default() };
    let (walk, other) = (clip("walk").frames[..50].to_vec(), clip("stealthy_walk").frames[..30].to_vec());
    let pieces = [Piece::Keep(walk.clone()), make(45), Piece::Keep(other.clone()), make(15)];
    let motions = generator.generate(&pieces, 2, &options, |_| true).unwrap().unwrap();
    assert_eq!(motions.len(), 2);
    for motion in &motions {
        assert_eq!(motion.len(), 140);
        assert_eq!(motion[..50], walk[..]);
        assert_eq!(motion[95..125], other[..]);
        assert!(motion.iter().flatten().all(|x| x.is_finite()));
    }
    assert!(frame_distance(&motions[0][50..95], &motions[1][50..95]) > 1e-3, "each has its own noise");
    let alone = generator.generate(&pieces, 1, &options, |_| true).unwrap().unwrap();
    assert!(frame_distance(&alone[0], &motions[0]) < 1e-3, "whatever is made beside it");
    // What comes later does not matter to what is made before it.
    let shorter = generator.generate(&pieces[..3], 1, &options, |_| true).unwrap().unwrap();
    assert!(frame_distance(&shorter[0], &alone[0][..125]) < 1e-6);
    assert!(generator.generate(&pieces, 1, &options, |done| done < 60).unwrap().is_none(), "one may stop it");
    assert!(generator.generate(&[], 1, &options, |_| true).is_err());
    let idle = [Piece::Keep(walk), make(0), Piece::Keep(other)];
    assert!(generator.generate(&idle, 1, &options, |_| true).is_err());
    let blown = SampleOptions { guidance: f64::INFINITY, ..options };
    let error = generator.generate(&pieces, 1, &blown, |_| true).unwrap_err().to_string();
    assert!(error.contains("frame 1 holds NaN"), "{error}");
}

#[test]
fn streamed_motion_goes_on_as_if_its_beginning_had_been_given() {
    let folder = tempfile::tempdir().unwrap();
    let generator = run(folder.path());
    let options = SampleOptions { respacing: "3".into(), guidance: 1.5, ..SampleOptions::default() };
    let condition = labels(&[Some(2)]);
    let mut stream = generator.start(1, &options).unwrap();
    let made: Vec<Vec<Frame>> = (0..4).map(|_| stream.make(&condition, 20, &[]).unwrap().remove(0)).collect();
    let whole = generator.generate(&[make(80)], 1, &options, |_| true).unwrap().unwrap();
    assert!(frame_distance(&whole[0], &made.concat()) < 1e-4);
    // The state after three chunks is that of reading them.
    let mut reader = generator.start(1, &options).unwrap();
    reader.skip_noise(3);
    reader.keep(&made[..3].concat()).unwrap();
    let read = reader.make(&condition, 20, &[]).unwrap().remove(0);
    assert!(frame_distance(&read, &made[3]) < 1e-4, "{}", frame_distance(&read, &made[3]));
}

#[test]
fn filled_motion_lands_where_the_kept_frames_were() {
    let walk = &clip("walk").frames[..100];
    let kept: Vec<bool> = (0..100).map(|i| !(20..50).contains(&i) && !(70..80).contains(&i)).collect();
    let mut motion = walk.to_vec();
    let other = &clip("spin").frames;
    for i in (0..100).filter(|&i| !kept[i]) {
        motion[i] = other[i];
    }
    let before = motion.clone();
    land(&mut motion, walk, &kept);
    let ((turns, places), (want_turns, want_places)) = (root_path(&motion), root_path(walk));
    for i in (0..100).filter(|&i| kept[i]) {
        assert_eq!(motion[i], walk[i]);
        assert!(
            norm(sub(places[i], want_places[i])) < 1e-9,
            "frame {i}: {:?}, {:?}",
            places[i],
            want_places[i]
        );
        let same = (0..4).map(|k| turns[i][k] * want_turns[i][k]).sum::<f64>();
        assert!(same.abs() > 1.0 - 1e-9, "frame {i} faces elsewhere");
    }
    assert!(norm(sub(root_path(&before).1[50], want_places[50])) > 0.1, "it had drifted");
}

#[test]
fn grounding_hears_the_question_and_learns_a_batch() -> Result<()> {
    let of_some_channels =
        Mamba2Config { d_state: 4, headdim: 4, d_ssm: Some(16), ..Mamba2Config::default() };
    let mut kinds = mixers().to_vec();
    kinds.push(of_some_channels.into());
    for ssm_cfg in kinds {
        let name = format!("{ssm_cfg:?}");
        grounding_hears_and_learns(ssm_cfg).map_err(|e| e.context(name))?;
    }
    Ok(())
}

fn grounding_hears_and_learns(ssm_cfg: MixerConfig) -> Result<()> {
    let selected = 2 * ssm_cfg.d_state() // B and C
        + match &ssm_cfg {
            MixerConfig::Mamba1(ssm) => ssm.dt_rank.resolve(12),
            MixerConfig::Mamba2(ssm) => ssm.nheads(12),
            MixerConfig::Mamba3(ssm) => ssm.nheads(12),
            MixerConfig::S4d(_) => 0,
        };
    let cfg =
        GrounderConfig { d_model: 12, n_layer: 2, ssm_cfg, condition: ConditionConfig::Text { dim: 3 } };
    let params = Params::fresh(1, DType::F32, &CPU);
    let grounder = Grounder::new(&cfg, &params.builder())?;
    let motion = random((2, 10, N_FEATURES), 2);
    let ask = |text: [f32; 3]| Condition::Text(vec![Some(text.to_vec()), None]);
    let first = grounder.forward(&motion, &[10, 6], &ask([1.0, 0.0, 0.0]))?;
    let second = grounder.forward(&motion, &[10, 6], &ask([0.0, 1.0, 0.0]))?;
    assert!(difference(&first.narrow(0, 0, 1)?, &second.narrow(0, 0, 1)?) > 1e-4, "it hears the question");
    assert_eq!(difference(&first.narrow(0, 1, 1)?, &second.narrow(0, 1, 1)?), 0.0);
    let alone = grounder.forward(
        &motion.narrow(0, 1, 1)?.narrow(1, 0, 6)?.contiguous()?,
        &[6],
        &Condition::Text(vec![None]),
    )?;
    assert!(difference(&alone, &first.narrow(0, 1, 1)?.narrow(1, 0, 6)?) < 1e-5, "padding is inert");
    // The question reaches the selection of every scan: B, C and step sizes.
    let shown =
        Tensor::from_iter((0..20).map(|i| if i % 10 < 4 { 1f32 } else { 0.0 }), &CPU)?.reshape((2, 10))?;
    let loss = grounder.loss(&motion, &[10, 6], &ask([1.0, 0.0, 0.5]), &shown)?;
    let grads = loss.backward()?;
    for direction in ["forward", "backward"] {
        for block in 0..2 {
            let name = format!("blocks.{block}.{direction}.text_proj.weight");
            let grad = grads.get(params.get(&name).unwrap().var().unwrap()).unwrap();
            let rows = grad.sqr()?.sum(1)?.to_vec1::<f32>()?;
            assert_eq!(rows.len(), selected);
            assert!(rows.iter().all(|&row| row > 0.0), "{name}: {rows:?}");
        }
    }
    let (first, last) =
        learns("grounding", &params, 80, || grounder.loss(&motion, &[10, 6], &ask([1.0, 0.0, 0.5]), &shown));
    assert!(last < 0.4 * first, "{first} to {last}");
    Ok(())
}
