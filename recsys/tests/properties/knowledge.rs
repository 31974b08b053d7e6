//! Knowledge tracing: reading, no look ahead, every parameter learns, and the model learns what it should.

use candle_core::{DType, Device};
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::train::{Task, TrainConfig};
use mamba_core::{Mamba1Config, Params};
use mamba_datasets::{Fractions, index_split};
use mamba_kernels::testing::emulation;
use mamba_recsys::knowledge::baselines::SkillMean;
use mamba_recsys::knowledge::metrics::auc;
use mamba_recsys::knowledge::task::bce_loss;
use mamba_recsys::knowledge::{
    KtConfig, KtData, KtTraining, Mamba4Kt, Mamba4KtConfig, Student, predict, read_answers, sample,
};
use proptest::prelude::*;
use std::path::Path;

fn small() -> Mamba4KtConfig {
    let mixer = Mamba1Config { d_state: 4, ..Mamba1Config::default() }.into();
    Mamba4KtConfig { hidden_size: 16, num_layers: 2, dropout_prob: 0.0, mixer }
}

fn data(students: usize) -> KtData {
    let all = sample(students, 1);
    let places = index_split(students, Fractions { valid: 0.0, test: 0.3 }, 0).unwrap();
    let (test, train) = all.split(&places.test);
    KtData::new(&train, &test, &test)
}

fn read(text: &str) -> Result<Vec<Student>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let log = read_answers(&[file.path().to_owned()]).map_err(|e| {
        let name = file.path().display().to_string();
        e.to_string().replace(&name, "a.csv")
    })?;
    Ok(log.numbered(&log.skills()))
}

#[test]
fn three_lines_are_a_student() {
    let read_in = read("2\n30,7\n1,0\n\n3,\r\n7,7,9,\n0,1,1,\n").unwrap();
    let student = |skills: &[u32], right: &[bool]| Student { skills: skills.into(), right: right.into() };
    // 7, 9 and 30 are skills 1, 2 and 3.
    let want = [student(&[3, 1], &[true, false]), student(&[1, 1, 2], &[false, true, true])];
    assert_eq!(read_in, want);
    for (text, message) in [
        ("", "the files hold no student"),
        ("x\n1\n1\n", "a.csv:1: \"x\" is not a number of answers"),
        ("0\n\n\n", "a.csv:1: a student without answers"),
        ("2\n1,2\n", "a.csv:1: the last student is cut short"),
        ("2\n1,2,3\n1,0\n", "a.csv:2: 3 skills, line 1 says 2"),
        ("2\n1,2\n1\n", "a.csv:3: 1 answers, line 1 says 2"),
        ("2\n1,2\n1,nan\n", "a.csv:3: answer \"nan\", expected 0 or 1"),
        ("2\n1,,\n1,0\n", "a.csv:2: 1 skills, line 1 says 2"),
        ("2\n,1\n1,0\n", "a.csv:2: an empty skill"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(message), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[0-9,\n x.\u{e9}-]{0,60}") {
        if let Ok(students) = read(&text) {
            prop_assert!(students.iter().all(|s| s.skills.len() == s.right.len() && !s.right.is_empty()));
        }
    }
}

#[test]
fn a_prediction_depends_on_the_answers_before_it_only() {
    let params = Params::fresh(3, DType::F64, &Device::Cpu);
    let model = Mamba4Kt::new(&small(), 6, &params.builder()).unwrap();
    let student = Student {
        skills: vec![1, 2, 1, 3, 5, 1, 2, 2],
        right: vec![true, false, true, true, false, false, true, true],
    };
    let alone = |student: &Student| {
        predict(&model, std::slice::from_ref(student), &Device::Cpu, |_| ()).unwrap().remove(0)
    };
    let whole = alone(&student);
    for place in 0..8 {
        let mut other = student.clone();
        other.right[place] = !other.right[place];
        let changed = alone(&other);
        for (i, (a, b)) in whole.iter().zip(&changed).enumerate() {
            assert!(i > place || a == b, "answer {place} shows in prediction {i}");
        }
        assert!(place == 7 || (place + 1..8).any(|i| whole[i] != changed[i]), "answer {place} is never used");
    }
    let crowd = predict(&model, &[student.clone(), student.clone(), student], &Device::Cpu, |_| ()).unwrap();
    for (a, b) in crowd[1].iter().zip(&whole) {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn the_loss_of_huge_log_odds_is_finite() {
    let tensor = |values: &[f64]| candle_core::Tensor::new(values, &Device::Cpu).unwrap();
    let loss = bce_loss(&tensor(&[1000.0, -1000.0, 0.0]), &tensor(&[0.0, 0.0, 1.0])).unwrap();
    let want = (1000.0 + 2f64.ln()) / 3.0;
    assert!((loss.to_scalar::<f64>().unwrap() - want).abs() < 1e-9);
}

#[test]
fn it_trains_in_half_precision() {
    let Some(emulation) = emulation(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return };
    let data = data(20);
    let cfg = KtConfig { model: small(), train: TrainConfig { batch_size: 4, ..TrainConfig::default() } };
    let params = Params::fresh(1, DType::F16, &Device::Cpu);
    emulation.run(|| {
        let mut task = KtTraining::new(&cfg, &data, params.clone()).unwrap();
        let loss = task.train_step(0, 0).unwrap().loss;
        assert!(Gradients::of(&loss, &params).unwrap().norm().unwrap() > 0.0);
    });
}

#[test]
fn every_parameter_learns_and_the_model_beats_what_counts_alone_say() {
    let data = data(500);
    let mut cfg =
        KtConfig { model: small(), train: TrainConfig { batch_size: 32, ..TrainConfig::default() } };
    cfg.model.num_layers = 1;
    let params = Params::fresh(1, DType::F32, &Device::Cpu);
    let mut task = KtTraining::new(&cfg, &data, params.clone()).unwrap();
    let grads = task.train_step(0, 0).unwrap().loss.backward().unwrap();
    for param in params.named() {
        let grad = grads.get(param.var().unwrap()).unwrap_or_else(|| panic!("{}: none", param.name()));
        let size = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size.is_finite() && size > 0.0, "{}: {size}", param.name());
    }
    let mut optimizer = AdamW::new(&params, AdamWConfig { weight_decay: 0.0, ..Default::default() }).unwrap();
    for step in 0..250 {
        let loss = task.train_step(step, 0).unwrap().loss;
        let mut grads = Gradients::of(&loss, &params).unwrap();
        grads.clip_grad_norm(5.0, step).unwrap();
        optimizer.step(&grads, 1e-2).unwrap();
    }
    let figure = task.evaluate().unwrap()[0].value;
    let right: Vec<bool> = data.test.iter().flat_map(|s| &s.right).copied().collect();
    let means = SkillMean::new(&data.train, data.n_skills());
    let of = |predict: &dyn Fn(&Student) -> Vec<f32>| {
        auc(&data.test.iter().flat_map(predict).collect::<Vec<_>>(), &right)
    };
    let (skill, own) = (of(&|s| means.predict(s)), of(&|s| means.predict_with_own_answers(s)));
    assert!(skill > 0.6 && own > skill, "skill alone {skill}, with own answers {own}");
    assert!(figure > own + 0.01, "model {figure}, skill and own answers {own}");
}
