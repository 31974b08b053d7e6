//! The mixers and a stack of them: however a sequence is cut, packed or padded, it gives what it gives alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod models;

use candle_core::{DType, Result, Tensor, Var};
use mamba_core::mamba1::{DtInit, DtRank};
use mamba_core::mamba2::DtLimit;
use mamba_core::mixer::Pass;
use mamba_core::nn::NormKind;
use mamba_core::{
    Backbone, BackboneConfig, BackboneState, Error, Mamba1, Mamba1Config, Mamba2Config, Mamba3Config, Mixer,
    MixerConfig, MixerState, Params, S4dConfig, StateInit,
};
use mamba_kernels::Segments;
use mamba_kernels::testing::expect_gradients_match_differences;
use models::*;
use proptest::prelude::*;

/// d_model, d_state, d_conv, expand: what models use, and the ends of what is allowed.
const SHAPES: [(usize, usize, usize, usize); 13] = [
    (1, 16, 4, 2),
    (7, 1, 1, 1),
    (118, 16, 4, 2),
    (6, 256, 4, 2),
    (5, 2, 2, 4),
    (16, 4, 3, 1),
    (3, 5, 5, 2),
    (3, 5, 6, 2),
    (3, 5, 7, 2),
    (3, 5, 8, 2),
    (2, 3, 8, 4),
    (33, 17, 1, 2),
    (24, 8, 2, 1),
];

fn mamba1_configs() -> impl Iterator<Item = (usize, Mamba1Config)> {
    SHAPES.iter().enumerate().map(|(i, &(d_model, d_state, d_conv, expand))| {
        let dt_rank = if i % 4 == 3 { DtRank::Rank(3) } else { DtRank::Auto };
        let (bias, conv_bias) = (i % 2 == 1, i % 3 != 1);
        (d_model, Mamba1Config { d_state, d_conv, expand, dt_rank, bias, conv_bias, ..Default::default() })
    })
}

/// Everything that a Mamba-2 may have, in turns.
fn mamba2_configs() -> Vec<(usize, Mamba2Config)> {
    let base = Mamba2Config { d_state: 5, headdim: 4, ..Default::default() };
    vec![
        (8, base.clone()),
        (1, Mamba2Config { d_state: 1, headdim: 1, d_conv: 1, ..base.clone() }),
        (6, Mamba2Config { ngroups: 3, norm_before_gate: true, bias: true, ..base.clone() }),
        (
            12,
            Mamba2Config { d_ssm: Some(16), d_has_hdim: true, conv_bias: false, ngroups: 2, ..base.clone() },
        ),
        (7, Mamba2Config { headdim: 7, rmsnorm: false, d_conv: 2, dt_limit: LIMIT, ..base.clone() }),
        (118, Mamba2Config { headdim: 59, d_state: 16, ..base.clone() }),
        (5, Mamba2Config { headdim: 2, ngroups: 5, d_state: 33, d_conv: 3, rmsnorm: false, ..base }),
    ]
}

/// Everything that a Mamba-3 may have, in turns.
fn mamba3_configs() -> Vec<(usize, Mamba3Config)> {
    let base = Mamba3Config { d_state: 8, headdim: 4, ..Default::default() };
    vec![
        (8, base.clone()),
        (6, Mamba3Config { ngroups: 3, rope_fraction: 1.0, is_outproj_norm: true, ..base.clone() }),
        (1, Mamba3Config { headdim: 1, d_state: 7, ..base.clone() }),
        (118, Mamba3Config { headdim: 59, d_state: 16, a_floor: 1.5, ..base }),
    ]
}

/// Complex states: of Mamba-1 and of S4D.
fn complex_configs() -> Vec<(usize, MixerConfig)> {
    let mamba1 = Mamba1Config { d_state: 6, state_init: StateInit::S4dLin, ..Default::default() };
    let s4d = S4dConfig { d_state: 6, ..Default::default() };
    vec![
        (9, mamba1.clone().into()),
        (3, Mamba1Config { d_state: 2, forget_gate: true, bias: true, d_conv: 1, ..mamba1 }.into()),
        (9, s4d.clone().into()),
        (5, S4dConfig { d_state: 34, state_init: StateInit::HippoLegS, bias: true, ..s4d.clone() }.into()),
        (1, S4dConfig { d_state: 2, expand: 1, state_init: StateInit::S4dReal, ..s4d }.into()),
    ]
}

const LIMIT: DtLimit = DtLimit { lo: 0.3, hi: 0.9 };

fn configs() -> impl Iterator<Item = (usize, MixerConfig)> {
    let ones = mamba1_configs().map(|(d, cfg)| (d, cfg.into()));
    let twos = mamba2_configs().into_iter().map(|(d, cfg)| (d, cfg.into()));
    let threes = mamba3_configs().into_iter().map(|(d, cfg)| (d, cfg.into()));
    ones.chain(twos).chain(threes).chain(complex_configs())
}

/// A mid-sized mixer of every kind, for what does not depend on the shape.
fn usual() -> Vec<(usize, MixerConfig)> {
    let mamba1 = Mamba1Config { d_state: 6, bias: true, ..Default::default() };
    let complex = Mamba1Config { state_init: StateInit::S4dLin, ..mamba1.clone() };
    let mamba2 = Mamba2Config { d_state: 6, headdim: 5, ngroups: 2, bias: true, ..Default::default() };
    let mamba3 = Mamba3Config { d_state: 6, headdim: 5, ngroups: 2, ..Default::default() };
    let s4d = S4dConfig { d_state: 6, bias: true, ..Default::default() };
    vec![
        (10, mamba1.into()),
        (10, mamba2.into()),
        (10, mamba3.into()),
        (10, s4d.into()),
        (10, complex.into()),
    ]
}

/// The outputs of chunks that end at `ends`, and the state after them.
fn in_chunks(mixer: &Mixer, x: &Tensor, ends: &[usize]) -> Result<(Tensor, MixerState)> {
    let (mut state, mut from, mut parts) = (MixerState::new(), 0, Vec::new());
    for &to in ends {
        parts.push(mixer.forward_with(&tokens(x, from, to), None, Some(&mut state))?);
        from = to;
    }
    Ok((Tensor::cat(&parts, 1)?, state))
}

/// The same token by token, after a prefill of `prefill` tokens.
fn in_steps(mixer: &Mixer, x: &Tensor, prefill: usize) -> Result<(Tensor, MixerState)> {
    let (mut state, mut parts) = (MixerState::new(), Vec::new());
    if prefill > 0 {
        parts.push(mixer.forward_with(&tokens(x, 0, prefill), None, Some(&mut state))?);
    }
    for t in prefill..x.dim(1)? {
        parts.push(mixer.step(&tokens(x, t, t + 1).squeeze(1)?, &mut state)?.unsqueeze(1)?);
    }
    Ok((Tensor::cat(&parts, 1)?, state))
}

#[test]
fn steps_prefill_and_any_cut_equal_the_whole_for_every_shape() -> Result<()> {
    const LEN: usize = 11;
    for (d_model, cfg) in configs() {
        for (dtype, tolerance) in TOLERANCES {
            let what = format!("d_model {d_model}, {cfg:?}, {dtype:?}");
            let (_, mixer) = perturbed_mixer(d_model, &cfg, dtype)?;
            let x = random(&[2, LEN, d_model], 3, dtype)?;
            let whole = mixer.forward(&x)?;
            assert_eq!(whole.dims(), x.dims(), "{what}");
            let (with_state, last) = in_chunks(&mixer, &x, &[LEN])?;
            assert_close(&format!("{what}: asking for the state"), &with_state, &whole, 0.0);
            for prefill in [0, 1, 5, LEN] {
                let (y, state) = in_steps(&mixer, &x, prefill)?;
                let what = format!("{what}: {prefill} tokens, then steps");
                assert_close(&what, &y, &whole, tolerance);
                assert_states_close(&what, &state, &last, tolerance);
            }
            for cut in 1..LEN {
                let (y, state) = in_chunks(&mixer, &x, &[cut, LEN])?;
                let what = format!("{what}: cut at {cut}");
                assert_close(&what, &y, &whole, tolerance);
                assert_states_close(&what, &state, &last, tolerance);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn chunks_of_any_sizes_equal_the_whole(sizes in proptest::collection::vec(1usize..90, 1..6), seed in 0u64..1000) {
        let ends: Vec<usize> = sizes.iter().scan(0, |end, size| { *end += size; Some(*end) }).collect();
        for (d_model, cfg) in usual() {
            let (_, mixer) = perturbed_mixer(d_model, &cfg, DType::F64).unwrap();
            let x = random(&[1, *ends.last().unwrap(), d_model], seed, DType::F64).unwrap();
            let (y, state) = in_chunks(&mixer, &x, &ends).unwrap();
            let what = format!("{}, chunks that end at {ends:?}", cfg.kind());
            assert_close(&what, &y, &mixer.forward(&x).unwrap(), 1e-12);
            let (_, whole) = in_chunks(&mixer, &x, &ends[ends.len() - 1..]).unwrap();
            assert_states_close(&what, &state, &whole, 1e-12);
        }
    }

    #[test]
    fn sequences_of_any_lengths_packed_or_padded_get_what_they_get_alone(
        lengths in proptest::collection::vec(1usize..40, 1..6), padding in 0usize..9,
    ) {
        for (d_model, cfg) in usual() {
            alone_and_together(d_model, &cfg, &lengths, padding).unwrap();
        }
    }
}

/// Junk, so that whatever reads padding shows.
fn pad(x: &Tensor, len: usize, left: bool) -> Result<Tensor> {
    let (_, n, d) = x.dims3()?;
    if n == len {
        return Ok(x.clone());
    }
    let junk = (random(&[1, len - n, d], 1234, x.dtype())? * 50.0)?;
    Tensor::cat(&if left { [&junk, x] } else { [x, &junk] }, 1)
}

/// Outputs, states and gradients of sequences in one batch against those of each alone.
fn alone_and_together(d_model: usize, cfg: &MixerConfig, lengths: &[usize], padding: usize) -> Result<()> {
    for (dtype, tolerance) in TOLERANCES {
        let (params, mixer) = perturbed_mixer(d_model, cfg, dtype)?;
        let sequence = |(i, &n): (usize, &usize)| random(&[1, n, d_model], i as u64, dtype);
        let sequences = lengths.iter().enumerate().map(sequence).collect::<Result<Vec<_>>>()?;
        let weight = |i: usize, y: &Tensor| random(y.dims(), 90 + i as u64, dtype);
        let mut alone = Vec::new();
        let mut loss = Tensor::zeros((), dtype, &CPU)?;
        for (i, x) in sequences.iter().enumerate() {
            let mut state = MixerState::new();
            let y = mixer.forward_with(x, None, Some(&mut state))?;
            loss = (loss + (&y * weight(i, &y)?)?.sum_all()?)?;
            loss = (loss + state_sum(&state)?)?;
            alone.push((y, state));
        }
        let wanted = parameter_gradients(&params, &loss)?;

        let len = lengths.iter().max().unwrap() + padding;
        let padded =
            |left| Tensor::cat(&sequences.iter().map(|x| pad(x, len, left)).collect::<Result<Vec<_>>>()?, 0);
        let ends: Vec<usize> = [0]
            .into_iter()
            .chain(lengths.iter().scan(0, |s, n| {
                *s += n;
                Some(*s)
            }))
            .collect();
        let arrangements = [
            ("right padded", padded(false)?, Segments::right_padded(len, lengths)?),
            ("left padded", padded(true)?, Segments::left_padded(len, lengths)?),
            ("packed", Tensor::cat(&sequences, 1)?, Segments::packed(&ends)?),
        ];
        for (what, x, segments) in arrangements {
            let mut state = MixerState::new();
            let y = mixer.forward_with(&x, Some(&segments), Some(&mut state))?;
            let mut loss = state_sum(&state)?;
            for (i, (segment, (want, want_state))) in segments.iter().zip(&alone).enumerate() {
                let what = format!("{what} {lengths:?} + {padding}, sequence {i}, {dtype:?}");
                let got = tokens(&y.narrow(0, segment.row, 1)?, segment.start, segment.end);
                assert_close(&what, &got, want, tolerance);
                assert_states_close(&what, &state_of_sequence(&state, i), want_state, tolerance);
                loss = (loss + (&got * weight(i, &got)?)?.sum_all()?)?;
            }
            for ((name, got), (_, want)) in parameter_gradients(&params, &loss)?.iter().zip(&wanted) {
                assert_close(&format!("{what}, gradient of {name}"), got, want, 10.0 * tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn a_row_of_a_batch_gets_what_it_gets_alone() -> Result<()> {
    for (d_model, cfg) in configs() {
        let (_, mixer) = perturbed_mixer(d_model, &cfg, DType::F64)?;
        let x = random(&[3, 9, d_model], 5, DType::F64)?;
        let together = mixer.forward(&x)?;
        for i in 0..3 {
            let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
            assert_close(&format!("row {i}, {cfg:?}"), &row(&together), &mixer.forward(&row(&x))?, 1e-13);
        }
    }
    Ok(())
}

#[test]
fn a_token_changes_nothing_before_it_and_itself() -> Result<()> {
    const LEN: usize = 20;
    for (d_model, cfg) in configs() {
        let (_, mixer) = perturbed_mixer(d_model, &cfg, DType::F32)?;
        let x = random(&[1, LEN, d_model], 6, DType::F32)?;
        let y = mixer.forward(&x)?;
        for t in [0, 1, 7, LEN - 1] {
            let other = (tokens(&x, t, t + 1) + 1.0)?;
            let mut parts = vec![tokens(&x, 0, t), other, tokens(&x, t + 1, LEN)];
            parts.retain(|part| part.elem_count() > 0);
            let changed = mixer.forward(&Tensor::cat(&parts, 1)?)?;
            let bits =
                |y: &Tensor, from, to| tokens(y, from, to).flatten_all().unwrap().to_vec1::<f32>().unwrap();
            if t > 0 {
                assert_eq!(bits(&changed, 0, t), bits(&y, 0, t), "before token {t}, {cfg:?}");
            }
            assert_ne!(bits(&changed, t, t + 1), bits(&y, t, t + 1), "token {t}, {cfg:?}");
        }
    }
    Ok(())
}

#[test]
fn a_reverse_pass_is_the_pass_of_the_reversed_sequence() -> Result<()> {
    for (d_model, cfg) in usual() {
        let (_, mixer) = perturbed_mixer(d_model, &cfg, DType::F64)?;
        let x = random(&[2, 13, d_model], 8, DType::F64)?;
        let reversed = |x: &Tensor| mamba_core::nn::flip(x, 1);
        let (mut state, mut other) = (MixerState::new(), MixerState::new());
        let got =
            mixer.forward_pass(&x, Pass { reverse: true, state: Some(&mut state), ..Default::default() })?;
        let want = reversed(&mixer.forward_with(&reversed(&x)?, None, Some(&mut other))?)?;
        assert_close(cfg.kind(), &got, &want, 1e-12);
        assert_states_close(cfg.kind(), &state, &other, 1e-12);
    }
    Ok(())
}

#[test]
fn gradients_through_the_state_equal_those_of_the_whole_and_detach_cuts_them() -> Result<()> {
    for (d_model, cfg) in usual() {
        truncated_back_propagation(d_model, &cfg)?;
    }
    Ok(())
}

fn truncated_back_propagation(d_model: usize, cfg: &MixerConfig) -> Result<()> {
    let (params, mixer) = perturbed_mixer(d_model, cfg, DType::F64)?;
    const LEN: usize = 12;
    let x = Var::from_tensor(&random(&[2, LEN, d_model], 9, DType::F64)?)?;
    let weights = random(&[2, LEN, d_model], 10, DType::F64)?;
    let loss = |ends: &[usize], detach: bool| -> Result<Tensor> {
        let (mut state, mut from, mut parts) = (MixerState::new(), 0, Vec::new());
        for &to in ends {
            parts.push(mixer.forward_with(&tokens(&x, from, to), None, Some(&mut state))?);
            state = if detach { state.detach() } else { state };
            from = to;
        }
        // Only the last token counts: what the first chunk gets, it gets through the state.
        (Tensor::cat(&parts, 1)? * &weights)?.narrow(1, LEN - 1, 1)?.sum_all()
    };
    let whole = loss(&[LEN], false)?;
    let by_x = |loss: &Tensor| loss.backward().map(|grads| grads.get(&x).unwrap().clone());
    for ends in [vec![5, LEN], vec![1, 2, 3, LEN], (1..=LEN).collect()] {
        let chunked = loss(&ends, false)?;
        assert_close(&format!("{ends:?}, x"), &by_x(&chunked)?, &by_x(&whole)?, 1e-11);
        let wanted = parameter_gradients(&params, &whole)?;
        for ((name, got), (_, want)) in parameter_gradients(&params, &chunked)?.iter().zip(&wanted) {
            assert_close(&format!("{ends:?}, {name}"), got, want, 1e-11);
        }
    }
    let cut = loss(&[5, LEN], true)?;
    assert_close("the value does not change", &cut, &whole, 1e-13);
    let size = |x: Tensor| x.abs()?.max_all()?.to_scalar::<f64>();
    assert!(size(tokens(&by_x(&whole)?, 0, 5))? > 1e-6, "the first chunk matters");
    assert_eq!(size(tokens(&by_x(&cut)?, 0, 5))?, 0.0);
    assert!(size(tokens(&by_x(&cut)?, 5, LEN))? > 1e-6);
    Ok(())
}

/// A state of the given kind for so many sequences that no sequence need have led to.
fn any_state(mixer: &Mixer, d_model: usize, sequences: usize, seed: u64) -> Result<MixerState> {
    let mut state = MixerState::new();
    mixer.forward_with(&random(&[sequences, 3, d_model], seed, DType::F64)?, None, Some(&mut state))?;
    let moved = state.parts().into_iter().map(|(name, x)| {
        let noise = random(x.dims(), seed + 1, DType::F64)?;
        Ok((name.to_string(), (x.detach() + (noise * 0.5)?)?))
    });
    let moved = moved.collect::<Result<_>>()?;
    MixerState::from_parts(state.kind(), moved).map_err(candle_core::Error::wrap)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_prefill_of_any_length_from_any_state_is_its_steps(len in 1usize..70, cut in 0.0f64..1.0, seed in 0u64..1000) {
        for (d_model, cfg) in usual() {
            let (_, mixer) = perturbed_mixer(d_model, &cfg, DType::F64).unwrap();
            let x = random(&[2, len, d_model], seed, DType::F64).unwrap();
            let start = any_state(&mixer, d_model, 2, seed + 5).unwrap();
            let (mut whole, mut chunks, mut steps) = (start.clone(), start.clone(), start);
            let y = mixer.forward_with(&x, None, Some(&mut whole)).unwrap();
            for t in 0..len {
                let step = mixer.step(&tokens(&x, t, t + 1).squeeze(1).unwrap(), &mut steps).unwrap();
                assert_close(&format!("{}, step {t}", cfg.kind()), &step.unsqueeze(1).unwrap(), &tokens(&y, t, t + 1), 1e-11);
            }
            assert_states_close(cfg.kind(), &steps, &whole, 1e-11);
            let cut = (cut * len as f64) as usize;
            for (from, to) in [(0, cut), (cut, len)].into_iter().filter(|(from, to)| from < to) {
                let part = mixer.forward_with(&tokens(&x, from, to), None, Some(&mut chunks)).unwrap();
                assert_close(&format!("{}, chunk", cfg.kind()), &part, &tokens(&y, from, to), 1e-11);
            }
            assert_states_close(cfg.kind(), &chunks, &whole, 1e-11);
        }
    }

    #[test]
    fn sequences_of_one_batch_go_on_from_their_own_states(
        lengths in proptest::collection::vec(1usize..30, 1..5), padding in 0usize..5, seed in 0u64..1000,
    ) {
        for (d_model, cfg) in usual() {
            let (_, mixer) = perturbed_mixer(d_model, &cfg, DType::F64).unwrap();
            let starts = any_state(&mixer, d_model, lengths.len(), seed).unwrap();
            let sequences: Vec<Tensor> =
                lengths.iter().map(|&n| random(&[1, n, d_model], seed + n as u64, DType::F64).unwrap()).collect();
            let alone: Vec<(Tensor, MixerState)> = sequences.iter().enumerate().map(|(i, x)| {
                let mut state = state_of_sequence(&starts, i);
                (mixer.forward_with(x, None, Some(&mut state)).unwrap(), state)
            }).collect();
            let len = lengths.iter().max().unwrap() + padding;
            let padded: Vec<Tensor> = sequences.iter().map(|x| pad(x, len, false).unwrap()).collect();
            let mut ends = vec![0];
            lengths.iter().for_each(|n| ends.push(ends[ends.len() - 1] + n));
            let arrangements = [
                (Tensor::cat(&padded, 0).unwrap(), Segments::right_padded(len, &lengths).unwrap()),
                (Tensor::cat(&sequences, 1).unwrap(), Segments::packed(&ends).unwrap()),
            ];
            for (x, segments) in arrangements {
                let mut state = starts.clone();
                let y = mixer.forward_with(&x, Some(&segments), Some(&mut state)).unwrap();
                for (i, (segment, (want, want_state))) in segments.iter().zip(&alone).enumerate() {
                    let got = tokens(&y.narrow(0, segment.row, 1).unwrap(), segment.start, segment.end);
                    assert_close(cfg.kind(), &got, want, 1e-11);
                    assert_states_close(cfg.kind(), &state_of_sequence(&state, i), want_state, 1e-11);
                }
            }
        }
    }
}

#[test]
fn gradients_to_the_incoming_state_match_finite_differences() -> Result<()> {
    for (d_model, cfg) in usual() {
        let (_, mixer) = perturbed_mixer(d_model, &cfg, DType::F64)?;
        let x = random(&[2, 5, d_model], 3, DType::F64)?;
        let start = any_state(&mixer, d_model, 2, 4)?;
        let names: Vec<&str> = start.parts().into_iter().map(|(name, _)| name).collect();
        let parts: Vec<(&str, Tensor)> =
            start.parts().into_iter().map(|(name, part)| (name, part.clone())).collect();
        let f = |parts: &[Tensor]| -> Result<Tensor> {
            let named = names.iter().map(|name| name.to_string()).zip(parts.iter().cloned()).collect();
            let mut state = MixerState::from_parts(start.kind(), named).map_err(candle_core::Error::wrap)?;
            let y = mixer.forward_with(&x, None, Some(&mut state))?;
            (&y * random(y.dims(), 77, DType::F64)?)?.sum_all()? + state_sum(&state)?
        };
        expect_gradients_match_differences(&parts, 1e-7, f)?;
    }
    Ok(())
}

#[test]
fn parameters_have_upstream_names_and_shapes() -> Result<()> {
    let shapes = |cfg: &Mamba1Config| -> Result<Vec<(String, Vec<usize>)>> {
        let (params, _) = perturbed_mixer(20, &cfg.into(), DType::F32)?;
        Ok(params.named().iter().map(|p| (p.name().to_string(), p.tensor().dims().to_vec())).collect())
    };
    let full = Mamba1Config { bias: true, ..Default::default() };
    let expected = [
        ("A_log", vec![40, 16]),
        ("D", vec![40]),
        ("conv1d.bias", vec![40]),
        ("conv1d.weight", vec![40, 1, 4]),
        ("dt_proj.bias", vec![40]),
        ("dt_proj.weight", vec![40, 2]),
        ("in_proj.bias", vec![80]),
        ("in_proj.weight", vec![80, 20]),
        ("out_proj.bias", vec![20]),
        ("out_proj.weight", vec![20, 40]),
        ("x_proj.weight", vec![34, 40]),
    ]
    .map(|(name, shape)| (name.to_string(), shape));
    assert_eq!(shapes(&full)?, expected);
    let bare = shapes(&Mamba1Config { conv_bias: false, ..Default::default() })?;
    let optional = ["conv1d.bias", "in_proj.bias", "out_proj.bias"];
    assert!(bare.iter().eq(expected.iter().filter(|(name, _)| !optional.contains(&name.as_str()))));
    Ok(())
}

#[test]
fn initial_values_are_upstreams() {
    let (d_model, n_residual) = (96, 9);
    let values = |cfg: &Mamba1Config, name: &str| -> Vec<f64> {
        let params = Params::fresh(4, DType::F64, &CPU);
        Mamba1::new(d_model, cfg, n_residual, &params.builder()).unwrap();
        params.get(name).unwrap().tensor().flatten_all().unwrap().to_vec1().unwrap()
    };
    let cfg = Mamba1Config { dt_min: 0.01, dt_max: 0.02, bias: true, ..Default::default() };
    let get = |name: &str| values(&cfg, name);
    for row in get("A_log").chunks(16) {
        assert!(row.iter().zip(1..).all(|(a, k)| (a.exp() - f64::from(k)).abs() < 1e-6), "{row:?}");
    }
    assert!(get("D").iter().all(|&d| d == 1.0));
    assert!(get("in_proj.bias").iter().chain(&get("out_proj.bias")).all(|&b| b == 0.0));
    let steps: Vec<f64> = get("dt_proj.bias").iter().map(|b| b.exp().ln_1p()).collect();
    assert!(steps.iter().all(|s| (0.01 * 0.999..0.02 * 1.001).contains(s)), "{steps:?}");
    let spread = |x: &[f64]| x.iter().fold((f64::MAX, f64::MIN), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    assert!(spread(&steps).0 < 0.0105 && spread(&steps).1 > 0.019, "{:?}", spread(&steps));

    // Uniform within a bound: all values inside it, the largest close to it, the deviation bound/√3.
    let uniform = |name: &str, x: &[f64], bound: f64| {
        let deviation = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        let (lo, hi) = spread(x);
        assert!(
            lo >= -bound && hi <= bound && hi > 0.97 * bound && lo < -0.97 * bound,
            "{name}: {lo}..{hi}, ±{bound}"
        );
        assert!((deviation * 3f64.sqrt() / bound - 1.0).abs() < 0.07, "{name}: {deviation}");
    };
    uniform("in_proj", &get("in_proj.weight"), 1.0 / 96f64.sqrt());
    uniform("x_proj", &get("x_proj.weight"), 1.0 / 192f64.sqrt());
    uniform("conv1d", &get("conv1d.weight"), 0.5);
    uniform("conv1d.bias", &get("conv1d.bias"), 0.5);
    uniform("dt_proj", &get("dt_proj.weight"), 1.0 / 6f64.sqrt());
    uniform("out_proj", &get("out_proj.weight"), 1.0 / 192f64.sqrt() / 3.0);

    let constant = Mamba1Config { dt_init: DtInit::Constant, dt_scale: 2.0, ..cfg.clone() };
    assert!(values(&constant, "dt_proj.weight").iter().all(|w| (w - 2.0 / 6f64.sqrt()).abs() < 1e-6));
}

#[test]
fn only_matrices_decay() -> Result<()> {
    let (params, _) = backbone(NormKind::Layer, 20, DType::F32)?;
    let matrix = |name: &str| name.ends_with("weight") && !name.contains("norm");
    for param in params.named() {
        assert_eq!(param.decay(), matrix(param.name()), "{}", param.name());
    }
    Ok(())
}

#[test]
fn sizes_that_make_no_mixer_are_refused_by_name() {
    for (cfg, message) in [
        (Mamba1Config { d_state: 0, ..Default::default() }, "d_state 0"),
        (Mamba1Config { expand: 0, ..Default::default() }, "expand 0"),
        (Mamba1Config { dt_rank: DtRank::Rank(0), ..Default::default() }, "dt_rank Rank(0)"),
        (Mamba1Config { d_conv: 0, ..Default::default() }, "d_conv is 0, expected 1..=8"),
        (Mamba1Config { d_conv: 9, ..Default::default() }, "d_conv is 9, expected 1..=8"),
        (
            Mamba1Config { d_state: usize::MAX, ..Default::default() },
            "d_state 18446744073709551615, expand 2",
        ),
        (Mamba1Config { expand: usize::MAX, ..Default::default() }, "expand 18446744073709551615"),
        (
            Mamba1Config { dt_rank: DtRank::Rank(1 << 40), ..Default::default() },
            "would have 3.5e13 parameters",
        ),
    ] {
        let error = cfg.validate_for(8).unwrap_err();
        assert!(matches!(error, Error::Config(_)) && error.to_string().contains(message), "{error}");
        let params = Params::fresh(0, DType::F32, &CPU);
        let built = Mamba1::new(8, &cfg, 1, &params.builder()).unwrap_err().to_string();
        assert!(built.contains(message), "{built}");
    }
    for d_model in [0, usize::MAX] {
        let error = Mamba1Config::default().validate_for(d_model).unwrap_err().to_string();
        assert!(error.contains("d_model"), "{error}");
    }
    let params = Params::fresh(0, DType::F32, &CPU);
    let cfg = Mamba1Config { dt_min: 0.5, ..Default::default() };
    let error = Mamba1::new(8, &cfg, 1, &params.builder()).unwrap_err().to_string();
    assert!(error.contains("dt bias needs 0 < min <= max and floor > 0, got 0.5, 0.1"), "{error}");
}

#[test]
fn a_config_says_which_key_it_does_not_know() {
    let parse = |json: &str| serde_json::from_str::<Mamba1Config>(json);
    assert!(parse(r#"{"d_stat": 8}"#).unwrap_err().to_string().contains("unknown field `d_stat`"));
    assert_eq!(parse(r#"{"dt_rank": "auto"}"#).unwrap(), Mamba1Config::default());
    assert_eq!(parse(r#"{"dt_rank": 5}"#).unwrap().dt_rank, DtRank::Rank(5));
    assert!(parse(r#"{"dt_rank": "automatic"}"#).is_err() && parse(r#"{"dt_rank": -1}"#).is_err());
    assert_eq!((DtRank::Auto.resolve(16), DtRank::Auto.resolve(17), DtRank::Auto.resolve(1)), (1, 2, 1));
    for (_, cfg) in mamba1_configs() {
        assert_eq!(parse(&serde_json::to_string(&cfg).unwrap()).unwrap(), cfg);
    }
}

/// Three layers of Mamba-1 with feed-forward parts and biases.
fn backbone(norm: NormKind, d_model: usize, dtype: DType) -> Result<(Params, Backbone)> {
    let mixer = Mamba1Config { d_state: 5, d_conv: 3, bias: true, ..Default::default() };
    backbone_of(mixer.into(), norm, d_model, dtype)
}

fn backbone_of(
    mixer: MixerConfig,
    norm: NormKind,
    d_model: usize,
    dtype: DType,
) -> Result<(Params, Backbone)> {
    let cfg = BackboneConfig {
        d_model,
        n_layer: 3,
        d_intermediate: 30,
        norm,
        norm_epsilon: 1e-5,
        mixer,
        dense_layers: 0,
    };
    let params = Params::fresh(1, dtype, &CPU);
    let backbone = Backbone::new(&cfg, &params.builder())?;
    perturb(&params, 2)?;
    Ok((params, backbone))
}

#[test]
fn a_backbone_in_steps_chunks_or_packed_equals_the_whole() -> Result<()> {
    const LEN: usize = 9;
    for ((d_model, mixer), norm) in
        usual().into_iter().zip([NormKind::Rms, NormKind::Layer].into_iter().cycle())
    {
        // errors of three layers add up
        for (dtype, tolerance) in TOLERANCES.map(|(dtype, tolerance)| (dtype, 4.0 * tolerance)) {
            let (_, model) = backbone_of(mixer.clone(), norm, d_model, dtype)?;
            let x = random(&[2, LEN, d_model], 3, dtype)?;
            let whole = model.forward(&x)?;
            let mut state = BackboneState::new();
            let steps =
                (0..LEN).map(|t| model.step(&tokens(&x, t, t + 1).squeeze(1)?, &mut state)?.unsqueeze(1));
            let stepped = Tensor::cat(&steps.collect::<Result<Vec<_>>>()?, 1)?;
            assert_close("steps", &stepped, &whole, tolerance);
            for cut in 1..LEN {
                let mut chunked = BackboneState::new();
                let first = model.forward_with(&tokens(&x, 0, cut), None, Some(&mut chunked))?;
                let second = model.forward_with(&tokens(&x, cut, LEN), None, Some(&mut chunked))?;
                assert_close(&format!("cut at {cut}"), &Tensor::cat(&[first, second], 1)?, &whole, tolerance);
                for (got, want) in chunked.layers.iter().zip(&state.layers) {
                    assert_states_close(&format!("cut at {cut}"), got, want, tolerance);
                }
            }
            let rows = [x.narrow(0, 0, 1)?, tokens(&x.narrow(0, 1, 1)?, 0, 4)];
            let packed = model.forward_with(
                &Tensor::cat(&rows, 1)?,
                Some(&Segments::packed(&[0, LEN, LEN + 4])?),
                None,
            )?;
            assert_close("packed, first", &tokens(&packed, 0, LEN), &whole.narrow(0, 0, 1)?, tolerance);
            let second = tokens(&whole.narrow(0, 1, 1)?, 0, 4);
            assert_close("packed, second", &tokens(&packed, LEN, LEN + 4), &second, tolerance);
        }
    }
    Ok(())
}

#[test]
fn a_saved_state_continues_to_the_same_bits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("state.safetensors");
    for (d_model, mixer) in usual() {
        let (_, model) = backbone_of(mixer.clone(), NormKind::Rms, d_model, DType::F32)?;
        let x = random(&[2, 9, d_model], 3, DType::F32)?;
        let mut state = BackboneState::new();
        model.forward_with(&tokens(&x, 0, 5), None, Some(&mut state))?;
        state.save(&path).unwrap();
        let mut read = BackboneState::load(&path, &CPU).unwrap();
        let want = model.forward_with(&tokens(&x, 5, 9), None, Some(&mut state))?;
        let got = model.forward_with(&tokens(&x, 5, 9), None, Some(&mut read))?;
        assert_close(mixer.kind(), &got, &want, 0.0);
        for (got, want) in read.layers.iter().zip(&state.layers) {
            assert_states_close(mixer.kind(), got, want, 0.0);
        }
        let bytes = std::fs::read(&path)?;
        std::fs::write(&path, &bytes[..bytes.len() / 2])?;
        let error = BackboneState::load(&path, &CPU).unwrap_err().to_string();
        assert!(error.contains("state.safetensors: truncated"), "{error}");
    }
    Ok(())
}

#[test]
fn a_state_of_another_mixer_is_refused() -> Result<()> {
    let (d_model, cfg) = usual().swap_remove(0);
    let (_, mamba1) = perturbed_mixer(d_model, &cfg, DType::F32)?;
    let (d_model, cfg) = usual().swap_remove(1);
    let (_, mamba2) = perturbed_mixer(d_model, &cfg, DType::F32)?;
    let x = random(&[1, d_model], 0, DType::F32)?;
    let mut state = MixerState::new();
    mamba1.step(&x, &mut state)?;
    let error = mamba2.step(&x, &mut state).unwrap_err().to_string();
    assert!(error.starts_with("a state of mamba1, for a mixer of Mamba2"), "{error}");
    Ok(())
}

#[test]
fn a_mixers_type_stands_in_its_config() {
    let parse = |json: &str| serde_json::from_str::<MixerConfig>(json);
    for (json, kind) in [
        ("{}", "mamba1"),
        (r#"{"d_state": 3}"#, "mamba1"),
        (r#"{"type": "mamba2", "headdim": 3}"#, "mamba2"),
        (r#"{"layer": "Mamba2", "ngroups": 3, "dt_limit": [0.0, null]}"#, "mamba2"),
        (r#"{"type": "mamba3", "rope_fraction": 1.0}"#, "mamba3"),
        (r#"{"type": "s4d", "state_init": "hippo_legs"}"#, "s4d"),
        (r#"{"state_init": "s4d_lin"}"#, "mamba1"),
    ] {
        let cfg = parse(json).unwrap();
        assert_eq!(cfg.kind(), kind, "{json}");
        assert_eq!(parse(&serde_json::to_string(&cfg).unwrap()).unwrap(), cfg, "{json}");
    }
    for (json, message) in [
        (r#"{"type": "mamba4"}"#, r#"type of the mixer is "mamba4""#),
        (r#"{"layer": 2}"#, "layer of the mixer is 2"),
        (r#"{"type": "mamba1", "layer": "Mamba2"}"#, "the mixer's type is"),
        (r#"{"headdim": 4}"#, "settings of a mamba1 mixer: unknown field `headdim`"),
        (r#"{"type": "mamba2", "dt_rank": 4}"#, "settings of a mamba2 mixer: unknown field `dt_rank`"),
    ] {
        let error = parse(json).unwrap_err().to_string();
        assert!(error.contains(message), "{json}: {error}");
    }
    for (_, cfg) in configs() {
        assert_eq!(parse(&serde_json::to_string(&cfg).unwrap()).unwrap(), cfg);
    }
}

#[test]
fn heads_that_do_not_fit_are_refused_by_name() {
    let two = Mamba2Config { headdim: 4, ..Default::default() };
    let three = Mamba3Config { headdim: 4, ..Default::default() };
    let cases: [(MixerConfig, &str); 9] = [
        (Mamba2Config { headdim: 3, ..two.clone() }.into(), "headdim 3 does not divide the 16 channels"),
        (Mamba2Config { ngroups: 3, ..two.clone() }.into(), "ngroups 3 does not divide the 4 heads"),
        (Mamba2Config { d_ssm: Some(20), ..two.clone() }.into(), "d_ssm is 20, expected at most d_inner 16"),
        (Mamba2Config { d_state: 0, ..two.clone() }.into(), "d_state 0"),
        (Mamba2Config { d_state: usize::MAX, ..two.clone() }.into(), "d_state 18446744073709551615"),
        (Mamba2Config { dt_limit: DtLimit { lo: 1.0, hi: 0.5 }, ..two }.into(), "dt_limit is [1, 0.5]"),
        (Mamba3Config { rope_fraction: 0.3, ..three.clone() }.into(), "rope_fraction is 0.3"),
        (Mamba3Config { is_mimo: true, ..three.clone() }.into(), "is_mimo"),
        (Mamba3Config { d_state: 2, ..three }.into(), "no pair of states"),
    ];
    for (cfg, message) in cases {
        let error = cfg.validate_for(8).unwrap_err().to_string();
        assert!(error.contains(message), "{error}, expected {message}");
        let params = Params::fresh(0, DType::F32, &CPU);
        assert!(Mixer::new(8, &cfg, 1, &params.builder()).is_err(), "{message}");
    }
}

#[test]
fn every_parameter_of_every_mixer_learns() -> Result<()> {
    for (d_model, cfg) in usual() {
        let (params, mixer) = perturbed_mixer(d_model, &cfg, DType::F32)?;
        let y = mixer.forward(&random(&[2, 7, d_model], 3, DType::F32)?)?;
        let weights = random(&[2, 7, d_model], 4, DType::F32)?;
        assert_every_parameter_learns(&params, &(y * weights)?.sum_all()?);
    }
    Ok(())
}

#[test]
fn a_state_of_another_depth_is_refused() -> Result<()> {
    let (_, model) = backbone(NormKind::Rms, 8, DType::F32)?;
    let mut state = BackboneState { layers: vec![MixerState::new(); 2] };
    let error = model.step(&random(&[1, 8], 0, DType::F32)?, &mut state).unwrap_err().to_string();
    assert!(error.starts_with("state of 2 layers for a backbone of 3"), "{error}");
    Ok(())
}

#[test]
fn a_state_of_another_batch_is_refused() -> Result<()> {
    let (_, model) = backbone(NormKind::Rms, 8, DType::F32)?;
    let mut state = BackboneState::new();
    model.step(&random(&[2, 8], 0, DType::F32)?, &mut state)?;
    assert!(model.step(&random(&[3, 8], 0, DType::F32)?, &mut state).is_err());
    Ok(())
}

#[test]
fn every_branch_that_ends_in_the_residual_starts_scaled_down() -> Result<()> {
    let cfg = BackboneConfig {
        d_model: 64,
        n_layer: 8,
        d_intermediate: 128,
        norm: NormKind::Rms,
        norm_epsilon: 1e-5,
        mixer: Mamba1Config::default().into(),
        dense_layers: 0,
    };
    let largest = |cfg: &BackboneConfig, name: &str| -> Result<f64> {
        let params = Params::fresh(0, DType::F64, &CPU);
        Backbone::new(cfg, &params.builder())?;
        params.get(name).unwrap().tensor().abs()?.max_all()?.to_scalar()
    };
    // Two branches for each of the eight layers, whose last projections have 128 inputs.
    let bound = 1.0 / 128f64.sqrt() / 16f64.sqrt();
    for name in ["layers.3.mixer.out_proj.weight", "layers.3.mlp.fc2.weight"] {
        let got = largest(&cfg, name)?;
        assert!(got <= bound && got > 0.99 * bound, "{name}: {got}, expected up to {bound}");
    }
    let plain = BackboneConfig { d_intermediate: 0, ..cfg };
    let (got, bound) = (largest(&plain, "layers.3.mixer.out_proj.weight")?, bound * 2f64.sqrt());
    assert!(got <= bound && got > 0.99 * bound, "one branch a layer: {got}, expected up to {bound}");
    Ok(())
}

#[test]
fn every_parameter_of_a_backbone_learns() -> Result<()> {
    for norm in [NormKind::Rms, NormKind::Layer] {
        let (params, model) = backbone(norm, 12, DType::F32)?;
        let y = model.forward(&random(&[2, 7, 12], 3, DType::F32)?)?;
        assert_every_parameter_learns(&params, &(&y * random(&[2, 7, 12], 4, DType::F32)?)?.sum_all()?);
    }
    Ok(())
}
