//! Records without windows, recomputed blocks, growing windows.

use super::scores::{lambda, random_checkpoint};
use candle_core::{DType, Device, Tensor};
use mamba_core::bidirectional::Combine;
use mamba_core::optim::Gradients;
use mamba_core::{Mamba2Config, MixerConfig, Params};
use mamba_genomics::embed::{EmbedOptions, Embedder, Layer, Piece, Pool, StrandChoice};
use mamba_genomics::long::Strand;
use mamba_genomics::task::LengthWarmup;
use mamba_genomics::{Caduceus, CaduceusConfig, CaduceusForMaskedLm};

fn ids(len: usize) -> Vec<u32> {
    lambda()[..len].iter().map(|&id| u32::from(id)).collect()
}

fn base(rcps: bool, n_layer: usize) -> CaduceusConfig {
    CaduceusConfig { d_model: 18, n_layer, rcps, ..CaduceusConfig::default() }
}

/// All that decides how a record is read.
fn variants() -> Vec<(String, CaduceusConfig)> {
    let mut all = Vec::new();
    for rcps in [true, false] {
        for n_layer in [2, 3] {
            all.push((format!("rcps {rcps}, {n_layer} layers"), base(rcps, n_layer)));
        }
        let multiply = Some(Combine::Multiply);
        all.push((
            format!("rcps {rcps}, untied, product, unfused"),
            CaduceusConfig {
                bidirectional_weight_tie: false,
                bidirectional_strategy: multiply,
                fused_add_norm: false,
                rms_norm: false,
                ..base(rcps, 2)
            },
        ));
        let causal = CaduceusConfig { bidirectional: false, fused_add_norm: false, ..base(rcps, 2) };
        all.push((format!("rcps {rcps}, causal"), causal));
        let one_way = CaduceusConfig { bidirectional: false, ..base(rcps, 3) };
        all.push((format!("rcps {rcps}, one direction, swapped"), one_way));
        let mamba2 = Mamba2Config { d_state: 8, headdim: 6, bias: true, ..Mamba2Config::default() };
        let ssm_cfg = MixerConfig::from(mamba2);
        all.push((format!("rcps {rcps}, mamba2 with biases"), CaduceusConfig { ssm_cfg, ..base(rcps, 2) }));
    }
    all
}

fn farthest(a: &Tensor, b: &Tensor) -> f64 {
    let largest = |x: &Tensor| {
        x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    };
    largest(&(a - b).unwrap()) / largest(b).max(1e-30)
}

#[test]
fn chunks_with_states_carried_over_give_what_the_whole_gives() {
    let ids = ids(700);
    let whole = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    for (what, cfg) in variants() {
        let params = Params::fresh(3, DType::F64, &Device::Cpu);
        let body = Caduceus::new(&cfg, &params.builder()).unwrap();
        for layer in [None, Some(0), Some(1), Some(cfg.n_layer)] {
            let want = match layer {
                None => body.forward(&whole, None).unwrap(),
                Some(layer) => body.forward_to(&whole, None, layer).unwrap(),
            };
            let strands = [Some((Strand::Forward, want.forward)), want.reverse.map(|r| (Strand::Reverse, r))];
            for (strand, want) in strands.into_iter().flatten() {
                for chunk in [1000, 700, 256, 41] {
                    let mut parts = Vec::new();
                    let mut next = 0;
                    let collect = |start: usize, x: &Tensor| {
                        assert_eq!(start, next, "{what}: chunks come in order");
                        next += x.dim(1)?;
                        parts.push(x.clone());
                        Ok(())
                    };
                    body.forward_chunks(&ids, strand, layer, chunk, collect).unwrap();
                    let error = farthest(&Tensor::cat(&parts, 1).unwrap(), &want);
                    assert!(
                        error < 1e-11,
                        "{what}, {strand:?}, after {layer:?}, chunks of {chunk}: {error:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn vectors_of_whole_records_do_not_depend_on_the_chunk() {
    let genome = lambda();
    for (rcps, n_layer) in [(true, 3), (true, 2), (false, 2)] {
        let (checkpoint, _dir) = random_checkpoint(&base(rcps, n_layer), 8);
        for pooling in [Pool::Mean, Pool::Max, Pool::None] {
            for strand in [StrandChoice::Both, StrandChoice::Forward, StrandChoice::Concat] {
                let options = EmbedOptions { pooling, layer: Layer::Last, strand };
                let embedder = Embedder::new(&checkpoint, options, DType::F32, &Device::Cpu).unwrap();
                let pieces: Vec<Piece<'_>> = [(3000, 0..3000), (900, 100..700), (2500, 1200..1300)]
                    .into_iter()
                    .map(|(len, core)| Piece { ids: &genome[..len], core })
                    .collect();
                let vectors = |embedder: &Embedder| -> Vec<Vec<f32>> {
                    embedder
                        .pool(&pieces)
                        .unwrap()
                        .into_iter()
                        .map(|pooled| embedder.vectors(pooled))
                        .collect()
                };
                let whole = vectors(&embedder);
                for (a, b) in vectors(&embedder.clone().in_chunks_of(1024)).iter().zip(&whole) {
                    assert_eq!(a.len(), b.len());
                    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
                    let error = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / largest;
                    assert!(error < 1e-4, "{pooling:?}, {strand:?}, rcps {rcps}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn recomputed_blocks_have_the_same_loss_and_gradients_bit_for_bit() {
    let genome = ids(2 * 300);
    let input = Tensor::from_vec(genome, (2, 300), &Device::Cpu).unwrap();
    for (what, cfg) in variants() {
        let of = |recomputed: bool| {
            let params = Params::fresh(4, DType::F32, &Device::Cpu);
            let model = CaduceusForMaskedLm::new(&cfg, &params.builder()).unwrap().recomputed(recomputed);
            let loss = model.loss(&input, &input, Some(&[300, 211])).unwrap();
            let grads = Gradients::of(&loss, &params).unwrap();
            let bits = |t: &Tensor| -> Vec<u32> {
                t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
            };
            let named = params.named();
            let grads: Vec<_> =
                named.iter().map(|p| (p.name().to_string(), grads.get(p.name()).map(bits))).collect();
            (loss.to_scalar::<f32>().unwrap().to_bits(), grads)
        };
        let (plain, recomputed) = (of(false), of(true));
        assert_eq!(plain.0, recomputed.0, "{what}: the loss");
        for ((name, a), (_, b)) in plain.1.iter().zip(&recomputed.1) {
            assert!(a.is_some() && a == b, "{what}: the gradient of {name}");
        }
    }
}

#[test]
fn windows_double_until_they_have_their_length() {
    let warmup = LengthWarmup { from: 100, steps: 30 };
    assert_eq!(warmup.lengths(800), [100, 200, 400, 800]);
    assert_eq!(warmup.lengths(1000), [100, 200, 400, 800, 1000]);
    assert_eq!(warmup.lengths(100), [100]);
    let stages: Vec<usize> = [0, 9, 10, 19, 20, 29, 30, 1000].map(|step| warmup.stage(step, 800)).into();
    assert_eq!(stages, [0, 0, 1, 1, 2, 2, 3, 3]);
    assert_eq!(LengthWarmup { from: 1, steps: 0 }.stage(0, 8), 3);
}
