//! Properties of the scores, with models of random weights and the bundled one.

use candle_core::{DType, Device};
use mamba_core::{Params, checkpoint};
use mamba_genomics::tokenizer::{self, SequenceCounts};
use mamba_genomics::variants::{Score, ScoreOptions, Site, VariantScorer};
use mamba_genomics::{CaduceusCheckpoint, CaduceusConfig, CaduceusForMaskedLm};

/// Bases of phage lambda.
pub(crate) fn lambda() -> Vec<u8> {
    let fasta = mamba_datasets::sample("lambda").unwrap().bytes();
    let bases = fasta.split(|&byte| byte == b'\n').skip(1).flatten().copied().collect::<Vec<_>>();
    tokenizer::encode(&bases, &mut SequenceCounts::default()).unwrap()
}

/// A model of random weights that are far from their initial values.
pub(crate) fn random_checkpoint(cfg: &CaduceusConfig, seed: u64) -> (CaduceusCheckpoint, tempfile::TempDir) {
    let params = Params::fresh(seed, DType::F32, &Device::Cpu);
    CaduceusForMaskedLm::new(cfg, &params.builder()).unwrap();
    let tensors = params.to_tensors().into_iter().map(|(name, value)| {
        let scale = if name.contains("embedding") || name.contains("out_proj") { 8.0 } else { 1.0 };
        (name, (value * scale).unwrap())
    });
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::to_value(cfg).unwrap();
    checkpoint::save_dir(dir.path(), &config, &tensors.collect()).unwrap();
    (CaduceusCheckpoint::open(Some(dir.path())).unwrap(), dir)
}

fn models() -> Vec<(&'static str, CaduceusCheckpoint, tempfile::TempDir)> {
    let cfg = |rcps, n_layer| CaduceusConfig { d_model: 24, n_layer, rcps, ..CaduceusConfig::default() };
    [("ps, even", cfg(true, 2)), ("ps, odd", cfg(true, 3)), ("ph", cfg(false, 2))]
        .into_iter()
        .map(|(name, cfg)| {
            let (checkpoint, dir) = random_checkpoint(&cfg, 5);
            (name, checkpoint, dir)
        })
        .collect()
}

fn scorer(checkpoint: &CaduceusCheckpoint, batch_tokens: usize) -> VariantScorer {
    let options = ScoreOptions { pool: Some(16), batch_tokens };
    VariantScorer::new(checkpoint, options, DType::F32, &Device::Cpu).unwrap()
}

fn site(at: usize, reference: usize, alternate: &str, flank: usize) -> Site {
    let genome = lambda();
    let alternate = tokenizer::encode(alternate.as_bytes(), &mut SequenceCounts::default()).unwrap();
    Site {
        left: genome[at - flank..at].to_vec(),
        reference: genome[at..at + reference].to_vec(),
        alternate,
        right: genome[at + reference..at + reference + flank].to_vec(),
    }
}

/// Substitutions of one and more bases, insertions, deletions, windows of many lengths.
fn sites() -> Vec<Site> {
    let mut sites = vec![
        site(2000, 2, "GA", 100),
        site(3000, 0, "ACGT", 64),
        site(4000, 3, "", 64),
        site(5000, 2, "TTTTT", 90),
        site(70, 1, "A", 70),
        site(9000, 1, "G", 0),
    ];
    for i in 0..12 {
        let mut snv = site(6000 + 37 * i, 1, "A", 40 + 3 * i);
        if snv.alternate == snv.reference {
            snv.alternate = vec![tokenizer::C];
        }
        sites.push(snv);
    }
    sites
}

#[test]
fn exchanging_the_alleles_changes_the_sign_and_keeps_the_distance() {
    for (name, checkpoint, _dir) in models() {
        let scorer = scorer(&checkpoint, 4096);
        let swapped: Vec<Site> = sites().iter().map(Site::swapped).collect();
        let scores = scorer.score(&sites()).unwrap();
        for (a, b) in scores.iter().zip(scorer.score(&swapped).unwrap()) {
            assert_eq!((a.llr, a.distance), (-b.llr, b.distance), "{name}");
        }
        assert!(scores.iter().any(|score| score.llr.abs() > 0.1), "{name}: {scores:?}");
        assert!(scores[..5].iter().all(|score| score.distance.unwrap() > 1e-3), "{name}: {scores:?}");
    }
}

#[test]
fn both_strands_have_the_same_scores() {
    for (name, checkpoint, _dir) in models() {
        let scorer = scorer(&checkpoint, 4096);
        let other: Vec<Site> = sites().iter().map(Site::reverse_complement).collect();
        for (a, b) in scorer.score(&sites()).unwrap().iter().zip(scorer.score(&other).unwrap()) {
            assert!((a.llr - b.llr).abs() < 2e-5 * a.llr.abs().max(1.0), "{name}: {a:?} {b:?}");
            let (a, b) = (a.distance.unwrap(), b.distance.unwrap());
            assert!((a - b).abs() < 2e-5 * a.max(1.0), "{name}: {a:?} {b:?}");
        }
    }
}

#[test]
fn scores_have_the_same_bits_in_any_batch() {
    for (name, checkpoint, _dir) in models() {
        let together = scorer(&checkpoint, 1 << 20).score(&sites()).unwrap();
        let bits = |scores: &[Score]| -> Vec<_> {
            scores.iter().map(|s| (s.llr.to_bits(), s.distance.unwrap().to_bits())).collect()
        };
        for tokens in [1, 700, 3000] {
            assert_eq!(
                bits(&scorer(&checkpoint, tokens).score(&sites()).unwrap()),
                bits(&together),
                "{name}"
            );
        }
        let alone: Vec<Score> = sites()
            .iter()
            .flat_map(|site| scorer(&checkpoint, 4096).score(std::slice::from_ref(site)).unwrap())
            .collect();
        assert_eq!(bits(&alone), bits(&together), "{name}");
    }
}

#[test]
fn the_ratio_of_a_substitution_is_that_of_the_masked_logits() {
    let checkpoint = CaduceusCheckpoint::bundled().unwrap();
    let site = site(1234, 1, "A", 60);
    let ids: Vec<u32> =
        [&site.left[..], &[tokenizer::MASK], &site.right].concat().into_iter().map(u32::from).collect();
    let model = checkpoint.model(DType::F32, &Device::Cpu).unwrap();
    let ratio = |ids: &[u32], at: usize, alternate: u8, reference: u8| {
        let ids = candle_core::Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.forward(&ids, None).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        logits[at][alternate as usize] - logits[at][reference as usize]
    };
    let by_hand = ratio(&ids, 60, site.alternate[0], site.reference[0]);
    let scored = scorer(&checkpoint, 4096).score(std::slice::from_ref(&site)).unwrap()[0];
    assert!((scored.llr - by_hand).abs() < 1e-4, "{scored:?} {by_hand}");
    // and without a distance the ratio is the same
    let options = ScoreOptions { pool: None, ..ScoreOptions::default() };
    let plain = VariantScorer::new(&checkpoint, options, DType::F32, &Device::Cpu).unwrap();
    let plain = plain.score(std::slice::from_ref(&site)).unwrap()[0];
    assert_eq!((plain.llr, plain.distance), (scored.llr, None));
}

#[test]
fn an_empty_allele_with_nothing_around_it_has_no_distance() {
    let checkpoint = CaduceusCheckpoint::bundled().unwrap();
    let distances = |pool, sites: &[Site]| -> Vec<bool> {
        let options = ScoreOptions { pool: Some(pool), ..ScoreOptions::default() };
        let scorer = VariantScorer::new(&checkpoint, options, DType::F32, &Device::Cpu).unwrap();
        scorer.score(sites).unwrap().iter().map(|score| score.distance.is_some()).collect()
    };
    // No window, an insertion, a deletion, and a deletion of the last bases of a record.
    let last = Site { right: Vec::new(), ..site(4000, 3, "", 40) };
    let sites = [site(3000, 0, "ACGT", 0), site(4000, 3, "", 0), site(3000, 0, "ACGT", 40), last];
    assert_eq!(distances(64, &sites), [false, false, true, true]);
    assert_eq!(distances(0, &sites), [false; 4]);
    assert_eq!(distances(usize::MAX, &sites), [false, false, true, true]);
    assert_eq!(distances(0, &[site(9000, 1, "G", 0), site(2000, 2, "GA", 40)]), [true, true]);
}

/// A model that has learnt a genome prefers its bases to others.
#[test]
fn a_trained_model_prefers_the_genome_that_it_knows() {
    let genome = lambda();
    let flank = 120;
    let sites: Vec<Site> = (0..150)
        .map(|i| {
            let at = 200 + i * 317;
            let reference = genome[at];
            let alternate = tokenizer::BASES[(usize::from(reference - tokenizer::A) + 1 + i % 3) % 4];
            Site { alternate: vec![alternate], ..site(at, 1, "", flank) }
        })
        .collect();
    let options = ScoreOptions { pool: None, ..ScoreOptions::default() };
    let bundled = CaduceusCheckpoint::bundled().unwrap();
    let scores =
        VariantScorer::new(&bundled, options, DType::F32, &Device::Cpu).unwrap().score(&sites).unwrap();
    let mean = scores.iter().map(|score| f64::from(score.llr)).sum::<f64>() / scores.len() as f64;
    // the deviation of such ratios is below 1, that of the mean of 150 below 0.1
    assert!(mean < -0.1, "{mean}");
}
