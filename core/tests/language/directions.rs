//! The bidirectional schemes A to G: what each sees, shares and equals.

use super::*;
use candle_core::Module;
use mamba_core::bidirectional::Combine;
use mamba_core::nn::{Norm, NormKind, flip};
use mamba_core::scan_order::ScanOrder;
use mamba_core::{BiMamba, Bidirectional, Mamba1, Scheme};
use models::*;
use std::collections::BTreeMap;

const D: usize = 6;
const LEN: usize = 12;
const GRID: Scheme = Scheme::CrossScan { height: 3, width: 4 };
const ALL: [Scheme; 8] = [
    Scheme::TiedProjections { combine: Combine::Add },
    Scheme::TwoMixers,
    Scheme::TwoBlocks,
    Scheme::VimV2 { halve: true },
    Scheme::VimV2 { halve: false },
    Scheme::VimV1,
    GRID,
    Scheme::Alternate,
];

fn cfg() -> Mamba1Config {
    Mamba1Config { d_state: 5, ..Default::default() }
}

fn mixer(scheme: Scheme, layer: usize) -> Result<(Params, Bidirectional)> {
    let params = Params::fresh(1, DType::F64, &CPU);
    let mixer = Bidirectional::new(D, &cfg(), scheme, layer, 1, &params.builder())?;
    perturb(&params, 2)?;
    Ok((params, mixer))
}

fn input() -> Result<Tensor> {
    random(&[2, LEN, D], 3, DType::F64)
}

fn backwards(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<Tensor> {
    flip(&f(&flip(x, 1)?)?, 1)
}

/// The parameters of a Mamba-1 of this name.
fn part(params: &Params, prefix: &str) -> Result<Mamba1> {
    let named = params.to_tensors().into_iter();
    let own = named.filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_string(), t)));
    Mamba1::new(D, &cfg(), 1, &Params::frozen(own, DType::F64, &CPU).builder())
}

#[test]
fn all_see_both_sides_but_the_alternating_one() -> Result<()> {
    for scheme in ALL {
        for layer in [0, 1] {
            let (_, f) = mixer(scheme, layer)?;
            let x = input()?;
            let y = f.forward(&x, None)?;
            let bump = Tensor::cat(&[tokens(&x, 0, 5), (tokens(&x, 5, 6) + 1.0)?, tokens(&x, 6, LEN)], 1)?;
            let moved = (f.forward(&bump, None)? - y)?.abs()?.max(2)?.narrow(0, 0, 1)?.squeeze(0)?;
            let moved: Vec<bool> = moved.to_vec1::<f64>()?.into_iter().map(|x| x > 0.0).collect();
            let want: Vec<bool> = (0..LEN)
                .map(|t| scheme != Scheme::Alternate || if layer == 0 { t >= 5 } else { t <= 5 })
                .collect();
            assert_eq!(moved, want, "{scheme:?}, layer {layer}");
        }
    }
    Ok(())
}

#[test]
fn every_parameter_learns() -> Result<()> {
    for scheme in ALL {
        let (params, f) = mixer(scheme, 0)?;
        let y = f.forward(&input()?, None)?;
        let weights = random(y.dims(), 4, DType::F64)?;
        assert_every_parameter_learns(&params, &(y * weights)?.sum_all()?);
    }
    Ok(())
}

#[test]
fn two_mixers_and_two_blocks_are_their_parts_between_flips() -> Result<()> {
    let x = input()?;
    let (params, f) = mixer(Scheme::TwoMixers, 0)?;
    let (a, b) = (part(&params, "mamba_fwd.")?, part(&params, "mamba_bwd.")?);
    let want = (a.forward(&x)? + backwards(|x| b.forward(x), &x)?)?;
    assert_close("B", &f.forward(&x, None)?, &want, 1e-12);

    let (params, f) = mixer(Scheme::TwoBlocks, 0)?;
    let block = |name: &str, x: &Tensor| -> Result<Tensor> {
        let mixer = part(&params, &format!("{name}.mixer."))?;
        let weight = params.get(&format!("{name}.norm.weight")).unwrap().tensor().clone();
        let norm = Params::frozen([("weight".to_string(), weight)], DType::F64, &CPU);
        let norm = Norm::new(NormKind::Rms, D, 1e-5, &norm.builder())?;
        x + mixer.forward(&norm.forward(x)?)?
    };
    let both = [block("forward", &x)?, backwards(|x| block("backward", x), &x)?];
    let value = |name: &str| params.get(name).unwrap().tensor().clone();
    let want = Tensor::cat(&both, 2)?.broadcast_matmul(&value("fusion.weight").t()?)?;
    let want = want.broadcast_add(&value("fusion.bias"))?;
    assert_close("C", &f.forward(&x, None)?, &want, 1e-12);
    Ok(())
}

/// Vim's mixer has the parameters of one with tied projections, under other names.
#[test]
fn vim_is_tied_projections_and_its_first_version_shares_all_but_a() -> Result<()> {
    let x = input()?;
    let as_tied = |params: &Params, share: bool| -> Result<Tensor> {
        let mut tensors = BTreeMap::new();
        for (name, value) in params.to_tensors() {
            if let Some(name) = name.strip_prefix("A_b").map(|end| format!("A{end}")) {
                tensors.insert(format!("mamba_rev.{name}"), value);
            } else if name.contains("_b.") || name.ends_with("_b") {
                tensors.insert(format!("mamba_rev.{}", name.replacen("_b", "", 1)), value);
            } else {
                let projection = name.starts_with("in_proj") || name.starts_with("out_proj");
                if share && !projection && name != "A_log" {
                    tensors.insert(format!("mamba_rev.{name}"), value.clone());
                }
                tensors.insert(format!("mamba_fwd.{name}"), value);
            }
        }
        let loaded = Params::frozen(tensors, DType::F64, &CPU);
        let tied = BiMamba::new(D, cfg(), (true, true), Combine::Add, 1, &loaded.builder())?;
        loaded.check()?;
        tied.forward(&x, Default::default(), None)
    };
    for (scheme, share, factor) in [
        (Scheme::VimV2 { halve: false }, false, 1.0),
        (Scheme::VimV2 { halve: true }, false, 0.5),
        (Scheme::VimV1, true, 1.0),
    ] {
        let (params, f) = mixer(scheme, 0)?;
        let want = (as_tied(&params, share)? * factor)?;
        assert_close(&format!("{scheme:?}"), &f.forward(&x, None)?, &want, 1e-12);
    }
    let (a, f) = mixer(ALL[0], 0)?;
    let tied = BiMamba::new(D, cfg(), (true, true), Combine::Add, 1, &a.builder())?;
    assert_close("A", &f.forward(&x, None)?, &tied.forward(&x, Default::default(), None)?, 0.0);
    Ok(())
}

/// The four directions of a turned picture are those of the picture, in other roles.
#[test]
fn a_transposed_picture_exchanges_rows_and_columns() -> Result<()> {
    let (params, f) = mixer(GRID, 0)?;
    let swap = |x: &Tensor, dim: usize, parts: usize| -> Result<Tensor> {
        let size = x.dim(dim)? / parts;
        let part = |i: usize| x.narrow(dim, i * size, size);
        Tensor::cat(&[part(1)?, part(0)?, part(3)?, part(2)?], dim)
    };
    let turned = params.to_tensors().into_iter().map(|(name, value)| {
        let value = match name.as_str() {
            "x_proj_weight" | "dt_projs_weight" | "dt_projs_bias" | "A_logs" | "Ds" => swap(&value, 0, 4)?,
            "conv2d.weight" => value.transpose(2, 3)?.contiguous()?,
            _ => value,
        };
        Ok((name, value))
    });
    let turned = Params::frozen(turned.collect::<Result<Vec<_>>>()?, DType::F64, &CPU);
    let scheme = Scheme::CrossScan { height: 4, width: 3 };
    let g = Bidirectional::new(D, &cfg(), scheme, 0, 1, &turned.builder())?;
    let x = input()?;
    let transpose = ScanOrder::columns(3, 4)?;
    let got = transpose.restore(&g.forward(&transpose.apply(&x)?, None)?)?;
    assert_close("F", &got, &f.forward(&x, None)?, 1e-12);
    assert!(f.forward(&tokens(&x, 0, 11), None).unwrap_err().to_string().contains("3 × 4 tokens got 11"));
    Ok(())
}

#[test]
fn alternating_layers_are_one_mixer_either_way() -> Result<()> {
    let ((params, even), (_, odd)) = (mixer(Scheme::Alternate, 2)?, mixer(Scheme::Alternate, 3)?);
    let (plain, x) = (part(&params, "")?, input()?);
    assert_close("even", &even.forward(&x, None)?, &plain.forward(&x)?, 0.0);
    assert_close("odd", &odd.forward(&x, None)?, &backwards(|x| plain.forward(x), &x)?, 1e-12);
    Ok(())
}
