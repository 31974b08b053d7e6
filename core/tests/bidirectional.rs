//! The bidirectional mixer: its orientation, what it sees, what it shares.
#![allow(clippy::unwrap_used, missing_docs)]

mod models;

use candle_core::{DType, Result, Tensor};
use mamba_core::bidirectional::{Combine, Orientation, flip_tokens_and_channels};
use mamba_core::{BiMamba, Mamba1Config, Params};
use mamba_kernels::Segments;
use models::*;

/// Tied or not, added or multiplied, with and without biases.
fn variants() -> impl Iterator<Item = (bool, Combine, bool)> {
    let each = [true, false];
    each.into_iter().flat_map(move |tied| {
        [Combine::Add, Combine::Multiply]
            .into_iter()
            .flat_map(move |combine| each.into_iter().map(move |bias| (tied, combine, bias)))
    })
}

fn mixer(
    d_model: usize,
    directions: (bool, bool),
    combine: Combine,
    bias: bool,
    dtype: DType,
) -> Result<(Params, BiMamba)> {
    let cfg = Mamba1Config { d_state: 6, bias, ..Default::default() };
    let params = Params::fresh(1, dtype, &CPU);
    let mixer = BiMamba::new(d_model, &cfg, directions, combine, 1, &params.builder())?;
    perturb(&params, 2)?;
    Ok((params, mixer))
}

fn given(mixer: &BiMamba, x: &Tensor) -> Result<Tensor> {
    mixer.forward(x, Orientation::Given, None)
}

fn flipped(mixer: &BiMamba, x: &Tensor) -> Result<Tensor> {
    mixer.forward(x, Orientation::Flipped, None)
}

#[test]
fn the_flipped_orientation_is_the_mixer_between_two_flips() -> Result<()> {
    for (tied, combine, bias) in variants() {
        for d_model in [1, 7, 24] {
            for bidirectional in [true, false] {
                let what =
                    format!("d_model {d_model}, tied {tied}, {combine:?}, bias {bias}, both {bidirectional}");
                let (params, f) = mixer(d_model, (bidirectional, tied), combine, bias, DType::F64)?;
                let x = random(&[2, 11, d_model], 3, DType::F64)?;
                let between =
                    |x: &Tensor| flip_tokens_and_channels(&given(&f, &flip_tokens_and_channels(x)?)?);
                let (got, want) = (flipped(&f, &x)?, between(&x)?);
                assert_close(&what, &got, &want, 1e-12);

                let by_x = |f: &dyn Fn(&Tensor) -> Result<Tensor>| input_gradient(&x, f);
                assert_close(&what, &by_x(&|x| flipped(&f, x))?, &by_x(&between)?, 1e-11);
                let weights = random(&[2, 11, d_model], 4, DType::F64)?;
                let wanted = parameter_gradients(&params, &(want * &weights)?.sum_all()?)?;
                let got = parameter_gradients(&params, &(got * &weights)?.sum_all()?)?;
                for ((name, got), (_, want)) in got.iter().zip(&wanted) {
                    assert_close(&format!("{what}, {name}"), got, want, 1e-11);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn orientations_differ() -> Result<()> {
    let (_, f) = mixer(6, (true, true), Combine::Add, false, DType::F64)?;
    let x = random(&[1, 5, 6], 3, DType::F64)?;
    let difference = (given(&f, &x)? - flipped(&f, &x)?)?.abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(difference > 1e-3, "{difference}");
    Ok(())
}

#[test]
fn both_directions_see_every_token_and_one_direction_only_those_before() -> Result<()> {
    const LEN: usize = 9;
    for (tied, combine, bias) in variants() {
        for orientation in [Orientation::Given, Orientation::Flipped] {
            for bidirectional in [true, false] {
                let (_, f) = mixer(6, (bidirectional, tied), combine, bias, DType::F64)?;
                let x = random(&[1, LEN, 6], 3, DType::F64)?;
                let y = f.forward(&x, orientation, None)?;
                // Which tokens a change of token 4 reaches.
                let other =
                    Tensor::cat(&[tokens(&x, 0, 4), (tokens(&x, 4, 5) + 1.0)?, tokens(&x, 5, LEN)], 1)?;
                let moved = (f.forward(&other, orientation, None)? - y)?.abs()?.max(2)?.squeeze(0)?;
                let moved: Vec<bool> = moved.to_vec1::<f64>()?.into_iter().map(|x| x > 0.0).collect();
                let expected: Vec<bool> = (0..LEN)
                    .map(|t| bidirectional || if orientation == Orientation::Given { t >= 4 } else { t <= 4 })
                    .collect();
                assert_eq!(
                    moved, expected,
                    "tied {tied}, {combine:?}, {orientation:?}, both {bidirectional}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn packed_and_padded_sequences_get_what_they_get_alone() -> Result<()> {
    let lengths = [5, 1, 8];
    for (tied, combine, bias) in variants() {
        for orientation in [Orientation::Given, Orientation::Flipped] {
            let (_, f) = mixer(6, (true, tied), combine, bias, DType::F64)?;
            let rows = lengths.iter().map(|&n| random(&[1, n, 6], n as u64, DType::F64));
            let rows = rows.collect::<Result<Vec<_>>>()?;
            let junk = |n: usize| -> Result<Tensor> { random(&[1, 10 - n, 6], 99, DType::F64)? * 50.0 };
            let padded = |left: bool| -> Result<Tensor> {
                let row = |(x, &n): (&Tensor, &usize)| {
                    let junk = junk(n)?;
                    Tensor::cat(&if left { [&junk, x] } else { [x, &junk] }, 1)
                };
                Tensor::cat(&rows.iter().zip(&lengths).map(row).collect::<Result<Vec<_>>>()?, 0)
            };
            for (what, x, segments) in [
                ("packed", Tensor::cat(&rows, 1)?, Segments::packed(&[0, 5, 6, 14])?),
                ("right", padded(false)?, Segments::right_padded(10, &lengths)?),
                ("left", padded(true)?, Segments::left_padded(10, &lengths)?),
            ] {
                let y = f.forward(&x, orientation, Some(&segments))?;
                for (segment, alone) in segments.iter().zip(&rows) {
                    let got = tokens(&y.narrow(0, segment.row, 1)?, segment.start, segment.end);
                    let want = f.forward(alone, orientation, None)?;
                    assert_close(
                        &format!("{what}, tied {tied}, {combine:?}, {orientation:?}"),
                        &got,
                        &want,
                        1e-12,
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn tied_directions_share_their_projections() -> Result<()> {
    let names = |tied| -> Result<Vec<String>> {
        let (params, _) = mixer(6, (true, tied), Combine::Add, true, DType::F32)?;
        Ok(params
            .named()
            .iter()
            .map(|p| p.name().to_string())
            .filter(|name| name.starts_with("mamba_rev"))
            .collect())
    };
    let between =
        ["A_log", "D", "conv1d.bias", "conv1d.weight", "dt_proj.bias", "dt_proj.weight", "x_proj.weight"];
    assert_eq!(names(true)?, between.map(|name| format!("mamba_rev.{name}")));
    assert_eq!(names(false)?.len(), between.len() + 4);
    Ok(())
}

#[test]
fn tied_directions_give_what_untied_ones_with_equal_projections_give() -> Result<()> {
    for (_, combine, bias) in variants() {
        let cfg = Mamba1Config { d_state: 6, bias, ..Default::default() };
        let (params, tied) = mixer(6, (true, true), combine, bias, DType::F64)?;
        let mut tensors = params.to_tensors();
        for (name, value) in params.to_tensors() {
            if let Some(projection) = name
                .strip_prefix("mamba_fwd.")
                .filter(|name| name.contains("t_proj.") || name.contains("in_proj."))
            {
                tensors.entry(format!("mamba_rev.{projection}")).or_insert(value);
            }
        }
        let loaded = Params::frozen(tensors, DType::F64, &CPU);
        let untied = BiMamba::new(6, &cfg, (true, false), combine, 1, &loaded.builder())?;
        loaded.check().unwrap();
        let x = random(&[2, 8, 6], 5, DType::F64)?;
        for orientation in [Orientation::Given, Orientation::Flipped] {
            let want = untied.forward(&x, orientation, None)?;
            let got = tied.forward(&x, orientation, None)?;
            assert_close(&format!("{combine:?}, bias {bias}, {orientation:?}"), &got, &want, 1e-12);
        }
    }
    Ok(())
}

#[test]
fn a_checkpoint_may_hold_copies_of_shared_projections() -> Result<()> {
    let cfg = Mamba1Config { d_state: 6, bias: true, ..Default::default() };
    let (params, f) = mixer(6, (true, true), Combine::Add, true, DType::F32)?;
    let mut tensors = params.to_tensors();
    for name in ["in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias"] {
        tensors.insert(format!("mamba_rev.{name}"), tensors[&format!("mamba_fwd.{name}")].clone());
    }
    let loaded = Params::frozen(tensors, DType::F32, &CPU);
    let again = BiMamba::new(6, &cfg, (true, true), Combine::Add, 1, &loaded.builder())?;
    loaded.check().unwrap();
    let x = random(&[1, 4, 6], 5, DType::F32)?;
    assert_close("loaded", &given(&again, &x)?, &given(&f, &x)?, 0.0);
    Ok(())
}

#[test]
fn every_parameter_learns() -> Result<()> {
    for (tied, combine, bias) in variants() {
        for orientation in [Orientation::Given, Orientation::Flipped] {
            let (params, f) = mixer(6, (true, tied), combine, bias, DType::F32)?;
            let y = f.forward(&random(&[2, 7, 6], 3, DType::F32)?, orientation, None)?;
            assert_every_parameter_learns(&params, &(&y * random(&[2, 7, 6], 4, DType::F32)?)?.sum_all()?);
        }
    }
    Ok(())
}
