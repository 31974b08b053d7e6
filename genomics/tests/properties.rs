//! What Caduceus promises about the two strands and about padding, over random models and sequences.
//!
//! Every promise is checked twice: in f64 to 1e-11, which only the same function reaches, and in f32 to 2e-5 of the
//! largest value, which is what sums in another order cost over four layers.
#![allow(clippy::unwrap_used, missing_docs)]

use candle_core::{DType, Device, Result, Tensor};
use mamba_core::bidirectional::Combine;
use mamba_core::nn::flip;
use mamba_core::{Mamba1Config, Params, Rng};
use mamba_genomics::tokenizer::{self, MASK, N, PAD, SequenceCounts};
use mamba_genomics::{CaduceusConfig, CaduceusForMaskedLm, CaduceusForSequenceClassification, Pooling};
use mamba_kernels::testing::relative_error;
use proptest::prelude::*;

const PRECISIONS: [(DType, f64); 2] = [(DType::F64, 1e-11), (DType::F32, 2e-5)];

#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_error(got, want).unwrap();
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, tolerance {tolerance:.0e}");
}

/// Parameters away from their initialisation, whose symmetries could hide a mistake.
fn perturbed(seed: u64, dtype: DType, build: impl FnOnce(&Params)) {
    let params = Params::fresh(seed, dtype, &Device::Cpu);
    build(&params);
    for param in params.named() {
        let noise = Rng::stream(seed, param.name(), 1)
            .normal_tensor(param.tensor().shape(), 0.0, 0.2, dtype, &Device::Cpu)
            .unwrap();
        params.set(param.name(), &(param.tensor().detach() + noise).unwrap()).unwrap();
    }
}

fn masked_lm(cfg: &CaduceusConfig, seed: u64, dtype: DType) -> CaduceusForMaskedLm {
    let mut model = None;
    perturbed(seed, dtype, |params| model = Some(CaduceusForMaskedLm::new(cfg, &params.builder()).unwrap()));
    model.unwrap()
}

fn classifier(
    cfg: &CaduceusConfig,
    (pooling, conjoin): (Pooling, bool),
    seed: u64,
    dtype: DType,
) -> CaduceusForSequenceClassification {
    let mut model = None;
    perturbed(seed, dtype, |params| {
        let built = CaduceusForSequenceClassification::new(cfg, 3, pooling, conjoin, &params.builder());
        model = Some(built.unwrap());
    });
    model.unwrap()
}

/// Models small enough for many cases, in all their variants.
fn configs() -> impl Strategy<Value = CaduceusConfig> {
    let sizes = (prop_oneof![Just(1usize), Just(6), Just(9)], 1..5usize, 1..7usize, 1..5usize);
    (sizes, any::<[bool; 6]>()).prop_map(|((d_model, n_layer, d_state, d_conv), flags)| {
        let [rms_norm, fused_add_norm, tied, multiply, bias, bidirectional] = flags;
        CaduceusConfig {
            d_model,
            n_layer,
            rms_norm,
            fused_add_norm,
            // Mostly as published.
            bidirectional: bidirectional || tied,
            bidirectional_weight_tie: tied,
            bidirectional_strategy: Some(if multiply { Combine::Multiply } else { Combine::Add }),
            ssm_cfg: Mamba1Config { d_state, d_conv, bias, ..Default::default() }.into(),
            ..Default::default()
        }
    })
}

/// What stands in FASTA files: all IUPAC codes in both cases, gaps and uracil, with some tokens masked.
fn sequences(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let bytes = proptest::sample::select(b"ACGTACGTACGTacgtNnRYSWKMBDHVUXryk-".to_vec());
    let bytes = proptest::collection::vec((bytes, prop::bool::weighted(0.1)), 1..max);
    bytes.prop_map(|bytes| {
        let (text, masked): (Vec<u8>, Vec<bool>) = bytes.into_iter().unzip();
        let ids = tokenizer::encode(&text, &mut SequenceCounts::default()).unwrap();
        ids.into_iter().zip(masked).map(|(id, masked)| if masked { MASK } else { id }).collect()
    })
}

fn batch(rows: &[impl AsRef<[u8]>]) -> Tensor {
    let (len, n) = (rows[0].as_ref().len(), rows.len());
    let ids = rows.iter().flat_map(|row| row.as_ref()).map(|&id| u32::from(id)).collect::<Vec<_>>();
    Tensor::from_vec(ids, (n, len), &Device::Cpu).unwrap()
}

fn reverse_complement(ids: &[u8]) -> Vec<u8> {
    tokenizer::reverse_complement(ids)
}

/// Logits `(B, L, vocabulary)` with the tokens reversed and every class exchanged for its complement.
fn reverse_complement_of_logits(logits: &Tensor) -> Result<Tensor> {
    let complements: Vec<u32> = tokenizer::COMPLEMENT_MAP.iter().map(|&c| u32::from(c)).collect();
    flip(logits, 1)?.contiguous()?.index_select(&Tensor::new(complements, &Device::Cpu)?, 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn ps_logits_of_the_reverse_complement_are_the_reverse_complement_of_the_logits(
        cfg in configs(), ids in sequences(300), seed in 0u64..1000,
    ) {
        for (dtype, tolerance) in PRECISIONS {
            let model = masked_lm(&cfg, seed, dtype);
            let logits = model.forward(&batch(&[&ids]), None).unwrap();
            let of_rc = model.forward(&batch(&[reverse_complement(&ids)]), None).unwrap();
            let back = reverse_complement_of_logits(&of_rc).unwrap();
            assert_close(&format!("{cfg:?}, {} tokens", ids.len()), &back, &logits, tolerance);
        }
    }

    #[test]
    fn ps_strands_change_places_under_the_reverse_complement_in_every_layer(
        cfg in configs(), ids in sequences(120), seed in 0u64..1000,
    ) {
        for (dtype, tolerance) in PRECISIONS {
            let model = masked_lm(&cfg, seed, dtype);
            let (given, other) = (batch(&[&ids]), batch(&[reverse_complement(&ids)]));
            let compare = |a: mamba_genomics::Strands, b: mamba_genomics::Strands, what: &str| {
                assert_close(what, &b.forward, a.reverse.as_ref().unwrap(), tolerance);
                assert_close(what, b.reverse.as_ref().unwrap(), &a.forward, tolerance);
            };
            let body = model.body();
            compare(body.forward(&given, None).unwrap(), body.forward(&other, None).unwrap(), "last");
            for layer in 0..=cfg.n_layer {
                let at = |ids: &Tensor| body.forward_to(ids, None, layer).unwrap();
                compare(at(&given), at(&other), &format!("after {layer} layers, {cfg:?}"));
            }
        }
    }

    #[test]
    fn ps_class_scores_do_not_depend_on_the_strand(
        cfg in configs(), ids in sequences(200), max in any::<bool>(), seed in 0u64..1000,
    ) {
        let pooling = if max { Pooling::Max } else { Pooling::Mean };
        for (dtype, tolerance) in PRECISIONS {
            let model = classifier(&cfg, (pooling, false), seed, dtype);
            let scores = model.forward(&batch(&[&ids]), None).unwrap();
            let of_rc = model.forward(&batch(&[reverse_complement(&ids)]), None).unwrap();
            assert_close(&format!("{pooling:?}, {cfg:?}"), &of_rc, &scores, tolerance);
        }
    }

    #[test]
    fn conjoined_ph_class_scores_do_not_depend_on_the_strand(
        cfg in configs(), ids in sequences(200), max in any::<bool>(), seed in 0u64..1000,
    ) {
        let cfg = CaduceusConfig { rcps: false, ..cfg };
        let pooling = if max { Pooling::Max } else { Pooling::Mean };
        for (dtype, tolerance) in PRECISIONS {
            let model = classifier(&cfg, (pooling, true), seed, dtype);
            let scores = model.forward(&batch(&[&ids]), None).unwrap();
            let of_rc = model.forward(&batch(&[reverse_complement(&ids)]), None).unwrap();
            assert_close(&format!("{pooling:?}, {cfg:?}"), &of_rc, &scores, tolerance);
        }
    }

    #[test]
    fn padding_changes_nothing(
        cfg in configs(), rcps in any::<bool>(), rows in proptest::collection::vec(sequences(60), 1..5),
        extra in 0usize..7, junk in any::<bool>(), seed in 0u64..1000,
    ) {
        let cfg = CaduceusConfig { rcps, ..cfg };
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        let len = lengths.iter().max().unwrap() + extra;
        let filler = if junk { tokenizer::G } else { PAD };
        let padded: Vec<Vec<u8>> =
            rows.iter().map(|row| [row.clone(), vec![filler; len - row.len()]].concat()).collect();
        for (dtype, tolerance) in PRECISIONS {
            let model = masked_lm(&cfg, seed, dtype);
            let scorer = classifier(&cfg, (Pooling::Mean, !rcps), seed, dtype);
            let together = model.forward(&batch(&padded), Some(&lengths)).unwrap();
            let scores = scorer.forward(&batch(&padded), Some(&lengths)).unwrap();
            let strands = model.body().forward(&batch(&padded), Some(&lengths)).unwrap();
            for (i, row) in rows.iter().enumerate() {
                let own = |x: &Tensor| x.narrow(0, i, 1).unwrap().narrow(1, 0, row.len()).unwrap();
                let alone = batch(&[row]);
                let what = format!("row {i} of lengths {lengths:?} + {extra}, {cfg:?}");
                assert_close(&what, &own(&together), &model.forward(&alone, None).unwrap(), tolerance);
                let (want, score) =
                    (model.body().forward(&alone, None).unwrap(), scorer.forward(&alone, None).unwrap());
                assert_close(&what, &own(&strands.forward), &want.forward, tolerance);
                if let (Some(got), Some(want)) = (&strands.reverse, &want.reverse) {
                    assert_close(&what, &own(got), want, tolerance);
                }
                assert_close(&what, &scores.narrow(0, i, 1).unwrap(), &score, tolerance);
            }
        }
    }

    #[test]
    fn the_complement_of_ids_is_that_of_the_text(text in "[ACGTNacgtnRYSWKMBDHVU]{1,80}") {
        let ids = |text: &[u8]| tokenizer::encode(text, &mut SequenceCounts::default()).unwrap();
        let of_text = ids(&tokenizer::reverse_complement_bytes(text.as_bytes()));
        prop_assert_eq!(&of_text, &reverse_complement(&ids(text.as_bytes())));
        let model = masked_lm(&CaduceusConfig { d_model: 1, n_layer: 0, ..Default::default() }, 0, DType::F32);
        let by_model = model.body().reverse_complement(&batch(&[ids(text.as_bytes())]), None).unwrap();
        prop_assert_eq!(by_model.to_vec2::<u32>().unwrap(), batch(&[of_text]).to_vec2::<u32>().unwrap());
    }
}

#[test]
fn a_sequence_of_n_only_has_logits_of_its_own_reverse_complement() {
    let cfg = CaduceusConfig { d_model: 8, n_layer: 3, ..Default::default() };
    let logits = masked_lm(&cfg, 1, DType::F64).forward(&batch(&[vec![N; 50]]), None).unwrap();
    assert_close("N", &reverse_complement_of_logits(&logits).unwrap(), &logits, 1e-11);
}

#[test]
fn without_shared_parameters_the_strand_matters() {
    let cfg = CaduceusConfig { d_model: 8, n_layer: 2, rcps: false, ..Default::default() };
    let ids = tokenizer::encode(b"ACGGTCATTACCGGATTA", &mut SequenceCounts::default()).unwrap();
    let model = classifier(&cfg, (Pooling::Mean, false), 1, DType::F64);
    let scores = model.forward(&batch(&[&ids]), None).unwrap();
    let of_rc = model.forward(&batch(&[reverse_complement(&ids)]), None).unwrap();
    assert!(relative_error(&of_rc, &scores).unwrap() > 1e-3);
}

#[test]
fn fused_and_unfused_ps_are_different_functions_of_the_same_weights() {
    let cfg = CaduceusConfig { d_model: 8, n_layer: 2, ..Default::default() };
    let ids = batch(&[tokenizer::encode(b"ACGGTCATTACCGGATTA", &mut SequenceCounts::default()).unwrap()]);
    let logits = [true, false].map(|fused_add_norm| {
        let params = Params::fresh(1, DType::F64, &Device::Cpu);
        let cfg = CaduceusConfig { fused_add_norm, ..cfg.clone() };
        CaduceusForMaskedLm::new(&cfg, &params.builder()).unwrap();
        // The same values whatever the wrapping calls them.
        for param in params.named() {
            let name = param.name().replace("submodule.", "");
            let value = Rng::stream(2, &name, 0).normal_tensor(
                param.tensor().shape(),
                0.3,
                0.2,
                DType::F64,
                &Device::Cpu,
            );
            params.set(param.name(), &value.unwrap()).unwrap();
        }
        CaduceusForMaskedLm::new(&cfg, &params.builder()).unwrap().forward(&ids, None).unwrap()
    });
    assert!(relative_error(&logits[0], &logits[1]).unwrap() > 1e-2);
}

#[test]
fn lengths_that_do_not_fit_and_empty_rows_are_refused() {
    let cfg = CaduceusConfig { d_model: 4, n_layer: 1, ..Default::default() };
    let model = masked_lm(&cfg, 1, DType::F32);
    let ids = batch(&[vec![N; 5], vec![N; 5]]);
    for lengths in [&[5][..], &[5, 6]] {
        let error = model.forward(&ids, Some(lengths)).unwrap_err().to_string();
        assert!(error.contains("do not fit input_ids of batch 2 × len 5"), "{error}");
    }
    let scorer = classifier(&cfg, (Pooling::Mean, false), 1, DType::F32);
    let error = scorer.forward(&ids, Some(&[5, 0])).unwrap_err().to_string();
    assert!(error.contains("row 1 is empty"), "{error}");
    let outside = Tensor::new(&[[7u32, 16]], &Device::Cpu).unwrap();
    assert!(model.forward(&outside, None).unwrap_err().to_string().contains("token 16"));
}
