//! Protein models: the published checkpoint, properties, learning on real families.

use candle_core::{DType, Device, Result, Tensor};
use mamba_core::optim::Gradients;
use mamba_core::run_folder::RunFolder;
use mamba_core::train::{self, Console, Stop, TrainConfig};
use mamba_core::{BackboneState, Mamba1Config, Params, checkpoint};
use mamba_genomics::protein::alphabet::{Alphabet, CLS};
use mamba_genomics::protein::infill::{Sampling, generate, infill};
use mamba_genomics::protein::prot_mamba::{Positions, ProtMambaInput};
use mamba_genomics::protein::reader::{Protein, ProteinReader, read_all};
use mamba_genomics::protein::score::ProteinScorer;
use mamba_genomics::protein::task::{ProteinData, ProteinDataConfig, ProteinTraining};
use mamba_genomics::protein::{
    MsaMamba, MsaMambaConfig, ProtMamba, ProtMambaConfig, ProteinConfig, ProteinModel, PtmMamba,
    PtmMambaConfig,
};
use mamba_kernels::testing::{emulation, expect_close};
use std::path::{Path, PathBuf};

const CPU: Device = Device::Cpu;
const UBIQUITIN: &str = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG";

fn proteins(text: &str, alphabet: Alphabet) -> std::result::Result<Vec<Protein>, String> {
    let reader =
        ProteinReader::from_reader("p.fa", std::io::Cursor::new(text.as_bytes().to_vec()), alphabet).unwrap();
    reader.collect::<std::result::Result<_, _>>().map_err(|e| e.to_string())
}

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| Alphabet::Homologs.token(byte).unwrap()).collect()
}

#[test]
fn fasta_and_a3m_are_read_and_mistakes_are_named() {
    let all = proteins("#A3M\n\n> one text\nMkT-\r\na.L*\n>two\nLLL", Alphabet::Homologs).unwrap();
    assert_eq!(all[0].name, "one");
    assert_eq!(Alphabet::Homologs.decode(&all[0].residues(Alphabet::Homologs)), "MKTAL");
    assert_eq!(Alphabet::Homologs.decode(&all[0].columns()), "MT-L");
    assert_eq!(all[1].tokens.len(), 3);
    let modified = proteins(">p\nMS<Phosphoserine>K\n", Alphabet::Modified).unwrap();
    assert_eq!(modified[0].tokens.len(), 4);
    for (text, message) in [
        ("", "p.fa: file is empty"),
        ("MKT\n", "p.fa:1: not a FASTA file: expected '>', found 'M'"),
        (">\nMKT\n", "p.fa:1: header has no name after '>'"),
        (">a\nMK\nM1K\n", "p.fa:3: record \"a\": invalid character '1' at column 2: expected an amino acid"),
        (">a\nM*K\n", "p.fa:2: record \"a\" goes on after '*'"),
        (">a\n--\n>b\nM\n", "p.fa:1: record \"a\" has no sequence"),
        (">a\nM<Sugar>K\n", "p.fa:2: record \"a\": <Sugar> is no token of the model"),
        (">a\nM<K\n", "p.fa:2: record \"a\": <?> is no token of the model"),
    ] {
        assert_eq!(proteins(text, Alphabet::Modified).unwrap_err(), message);
    }
}

proptest::proptest! {
    #[test]
    fn any_protein_file_is_read_or_refused(text in "(>[a-z ]{0,4}\n)?([A-Z<>*.#a-z -]{0,12}\r?\n){0,6}") {
        for alphabet in [Alphabet::Homologs, Alphabet::Modified] {
            if let Ok(all) = proteins(&text, alphabet) {
                proptest::prop_assert!(all.iter().all(|p| p.tokens.len() == p.inserted.len() && !p.tokens.is_empty()));
            }
        }
    }
}

/// `$MAMBA_CHECKPOINTS/protmamba_example`, if there is one.
fn published() -> Option<PathBuf> {
    let Some(root) = std::env::var_os("MAMBA_CHECKPOINTS") else {
        eprintln!("MAMBA_CHECKPOINTS is not set: the published ProtMamba checkpoint is not checked");
        return None;
    };
    Some(PathBuf::from(root).join("protmamba_example"))
}

fn row(values: &[u32]) -> Tensor {
    Tensor::new(values, &CPU).unwrap().unsqueeze(0).unwrap()
}

#[test]
fn the_published_protmamba_checkpoint_is_reproduced() -> Result<()> {
    let Some(folder) = published() else { return Ok(()) };
    let (model, config) = ProteinModel::load(&folder, DType::F32, &CPU).unwrap();
    let ProteinConfig::ProtMamba(cfg) = &config else { panic!("{config:?}") };
    assert_eq!((cfg.add_position_ids, cfg.fills_in()), (Positions::None, false));
    let ProteinModel::ProtMamba(lm) = &model else { panic!("{config:?}") };
    let (reference, _) = checkpoint::load_safetensors(folder.join("reference.safetensors")).unwrap();
    let json = checkpoint::load(&folder, None).unwrap().config;
    let scorer = ProteinScorer::new(model.clone(), &config, Vec::new(), &CPU).unwrap();
    let mut whole = 0;
    for (i, item) in json["items"].as_array().unwrap().iter().enumerate() {
        let ids = reference[&format!("{i}.input_ids")].to_dtype(DType::U32)?.to_vec1::<u32>()?;
        let zeros = row(&vec![0; ids.len()]);
        let input = row(&ids);
        let logits =
            lm.forward(ProtMambaInput { ids: &input, positions: &zeros, sequences: &zeros })?.squeeze(0)?;
        if let Some(want) = reference.get(&format!("{i}.logits")) {
            expect_close("logits", &logits, want, 2e-5)?;
        }
        // A sequence alone: <cls> and residues, scored as `protein score` does.
        if ids[0] == CLS && ids[1..].iter().all(|&id| Alphabet::Homologs.is_residue(id)) {
            let got = scorer.log_likelihoods(&ids[1..]).unwrap();
            let as_tensor = Tensor::from_iter(got.iter().map(|&p| p as f32), &CPU)?;
            // the difference of two numbers with the logits' error, relative to something smaller
            expect_close("log-likelihoods", &as_tensor, &reference[&format!("{i}.token_logprob")], 1e-4)?;
            let sum: f64 = got.iter().sum();
            let want = item["sum_logprob"].as_f64().unwrap();
            assert!((sum - want).abs() < 1e-5 * want.abs(), "{}: {sum} {want}", item["name"]);
            whole += 1;
        }
    }
    assert!(whole >= 2, "{whole} sequences were scored");
    // ubiquitin with the context as state is the concatenation
    let greedy = reference["greedy.ids"].to_dtype(DType::U32)?.to_vec1::<u32>()?;
    let mut state = BackboneState::new();
    let mut next = greedy[..21].to_vec();
    for want in &greedy[21..] {
        let (ids, zeros) = (row(&next), row(&vec![0; next.len()]));
        let input = ProtMambaInput { ids: &ids, positions: &zeros, sequences: &zeros };
        let logits = lm.forward_with(input, None, Some(&mut state))?.squeeze(0)?;
        let last = logits.get(logits.dim(0)? - 1)?.narrow(0, 0, 33)?;
        next = vec![last.argmax(0)?.to_scalar::<u32>()?];
        assert_eq!(next[0], *want);
    }
    Ok(())
}

#[test]
fn a_context_that_was_read_into_the_state_counts_like_one_that_stands_before() -> Result<()> {
    for positions in [Positions::None, Positions::One, Positions::Two] {
        let cfg =
            ProtMambaConfig { d_model: 20, n_layer: 2, add_position_ids: positions, ..Default::default() };
        let params = Params::fresh(2, DType::F32, &CPU);
        let config = ProteinConfig::ProtMamba(cfg);
        let model = config.build(&params.builder())?;
        let (first, second) = (tokens("MKTAYIAKQR"), tokens(UBIQUITIN));
        let scorer =
            ProteinScorer::new(model.clone(), &config, vec![Protein::new("first", first.clone())], &CPU)
                .unwrap();
        let got = scorer.log_likelihoods(&second).unwrap();
        let mut prompt = mamba_genomics::protein::fim::Prompt::default();
        prompt.push_sequence(&first, 0);
        prompt.push_sequence(&second, 1);
        let ProteinModel::ProtMamba(lm) = &model else { panic!("{config:?}") };
        let (ids, places, sequences) = (row(&prompt.ids), row(&prompt.positions), row(&prompt.sequences));
        let input = ProtMambaInput { ids: &ids, positions: &places, sequences: &sequences };
        let p = candle_nn::ops::log_softmax(&lm.forward(input)?.squeeze(0)?, 1)?.to_vec2::<f32>()?;
        for (i, (&residue, got)) in second.iter().zip(&got).enumerate() {
            let want = f64::from(p[first.len() + 1 + i][residue as usize]);
            assert!((got - want).abs() < 1e-4, "{positions:?}, residue {i}: {got} {want}");
        }
    }
    Ok(())
}

/// Names of upstream's published checkpoints: what `state_dict` of each model has.
#[test]
fn parameters_have_upstreams_names_and_shapes() -> Result<()> {
    let names = |config: &ProteinConfig| -> Result<Vec<(String, Vec<usize>)>> {
        let params = Params::fresh(0, DType::F32, &CPU);
        config.build(&params.builder())?;
        let all = params.named();
        Ok(all
            .iter()
            .filter(|p| !p.name().contains(".mixer."))
            .map(|p| (p.name().to_string(), p.tensor().dims().to_vec()))
            .collect())
    };
    let expect = |list: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        list.iter().map(|(name, dims)| (name.to_string(), dims.to_vec())).collect()
    };
    let protmamba =
        ProteinConfig::ProtMamba(ProtMambaConfig { d_model: 16, n_layer: 1, ..Default::default() });
    assert_eq!(
        names(&protmamba)?,
        expect(&[
            ("backbone.embedding.weight", &[40, 8]),
            ("backbone.layers.0.norm.weight", &[16]),
            ("backbone.norm_f.weight", &[16]),
            ("backbone.position_embedding.weight", &[2048, 4]),
            ("backbone.seq_position_embedding.weight", &[512, 4]),
        ])
    );
    let ptm = PtmMambaConfig { d_model: 16, n_layer: 1, esm_embed_dim: Some(12), ..Default::default() };
    assert_eq!(
        names(&ProteinConfig::PtmMamba(ptm))?,
        expect(&[
            ("backbone.backward_layers.0.norm.weight", &[16]),
            ("backbone.embedding.weight", &[59, 16]),
            ("backbone.forward_layers.0.norm.weight", &[16]),
            ("backbone.gate.bias", &[1]),
            ("backbone.gate.weight", &[1, 32]),
            ("backbone.hidden_fc.0.bias", &[16]),
            ("backbone.hidden_fc.0.weight", &[16, 32]),
            ("backbone.norm_f.weight", &[16]),
            ("esm_head.weight", &[16, 12]),
        ])
    );
    Ok(())
}

fn far(a: &Tensor, b: &Tensor) -> f64 {
    let d = (a - b).unwrap().abs().unwrap().max_all().unwrap();
    d.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// The published formulas, layer by layer, with tensors side by side and flipped as upstream does.
#[test]
fn ptm_mamba_is_the_published_formula_and_padding_changes_nothing() -> Result<()> {
    use candle_core::Module;
    use mamba_core::nn::{Linear, Norm, NormKind, flip};
    let cfg = PtmMambaConfig { d_model: 12, n_layer: 2, esm_embed_dim: Some(5), ..Default::default() };
    let params = Params::fresh(6, DType::F64, &CPU);
    let model = PtmMamba::new(&cfg, &params.builder())?;
    // No bias may hide at its initial zero.
    for (i, param) in params.named().iter().enumerate().filter(|(_, p)| p.name().ends_with(".bias")) {
        let value = (param.tensor().ones_like()? * (0.1 + 0.01 * i as f64))?;
        params.set(param.name(), &value)?;
    }
    let pb = params.builder();
    let ids = Tensor::new(&[[0u32, 9, 10, 36, 12, 7, 20, 2], [0, 8, 8, 9, 30, 31, 2, 1]], &CPU)?;
    let other = mamba_core::Rng::new(1).normal_tensor((2, 8, 5), 0.0, 1.0, DType::F64, &CPU)?;
    let linear = |name: &str| {
        let get = |part: &str| {
            params.named().iter().find(|p| p.name() == format!("{name}.{part}")).map(|p| p.tensor().clone())
        };
        Linear::from_tensors(get("weight").unwrap(), get("bias"))
    };
    let table = linear("backbone.embedding").weight().clone();
    for other in [None, Some(&other)] {
        let tokens = table.index_select(&ids.flatten_all()?, 0)?.reshape((2, 8, 12))?;
        let beside = match other {
            None => tokens.zeros_like()?,
            Some(other) => linear("esm_head").forward(other)?,
        };
        let gate = candle_nn::ops::sigmoid(
            &linear("backbone.gate").forward(&Tensor::cat(&[&tokens, &beside], 2)?)?,
        )?;
        let mut hidden = (tokens.broadcast_mul(&gate)? + beside.broadcast_mul(&(1.0 - gate)?)?)?;
        let mut residual: Option<Tensor> = None;
        for i in 0..2 {
            let block =
                |name: &str, hidden: &Tensor, residual: Option<&Tensor>| -> Result<(Tensor, Tensor)> {
                    let pb = pb.pp("backbone").pp(name).pp(i);
                    let norm = Norm::new(NormKind::Rms, 12, 1e-5, &pb.pp("norm"))?;
                    let mixer = mamba_core::Mamba1::new(12, &Mamba1Config::default(), 2, &pb.pp("mixer"))?;
                    let sum = residual.map_or(Ok(hidden.clone()), |r| hidden + r)?;
                    Ok((mixer.forward(&norm.forward(&sum)?)?, sum))
                };
            let (f, rf) = block("forward_layers", &hidden, residual.as_ref())?;
            let flipped = residual.as_ref().map(|r| flip(r, 1)).transpose()?;
            let (b, rb) = block("backward_layers", &flip(&hidden, 1)?, flipped.as_ref())?;
            hidden =
                linear(&format!("backbone.hidden_fc.{i}")).forward(&Tensor::cat(&[&f, &flip(&b, 1)?], 2)?)?;
            residual = Some(((rf + flip(&rb, 1)?)? * 0.5)?);
        }
        let norm = Norm::new(NormKind::Rms, 12, 1e-5, &pb.pp("backbone").pp("norm_f"))?;
        let x = norm.forward(&(hidden + residual.unwrap())?)?;
        let want = x.broadcast_matmul(&table.t()?)?;
        assert!(far(&model.forward(&ids, other, None)?, &want) < 1e-11);
    }
    let short = ids.narrow(0, 1, 1)?.narrow(1, 0, 5)?.contiguous()?;
    let padded = model.forward(&ids, None, Some(&[8, 5]))?.narrow(0, 1, 1)?.narrow(1, 0, 5)?;
    assert!(far(&padded, &model.forward(&short, None, None)?) < 1e-11);
    let without = PtmMambaConfig { esm_embed_dim: None, d_model: 12, n_layer: 1, ..Default::default() };
    let without = PtmMamba::new(&without, &Params::fresh(1, DType::F64, &CPU).builder())?;
    assert!(
        without.forward(&ids, Some(&other), None).unwrap_err().to_string().contains("takes no embeddings")
    );
    Ok(())
}

#[test]
fn msa_mamba_takes_other_rows_in_any_order_and_needs_no_others() -> Result<()> {
    let params = Params::fresh(3, DType::F64, &CPU);
    let cfg = MsaMambaConfig { d_model: 16, n_layer: 2, n_head: 4, scan_rows: None, ..Default::default() };
    let model = MsaMamba::new(&cfg, &params.builder())?;
    let rows = ["MKTAYIAK", "MKTAYLAR", "-KSAYIAK", "MRTCYIA-"].map(tokens);
    let msa = |order: &[usize]| {
        let ids: Vec<u32> = order.iter().flat_map(|&i| rows[i].clone()).collect();
        Tensor::from_vec(ids, (1, order.len(), 8), &CPU).unwrap()
    };
    let given = model.forward(&msa(&[0, 1, 2, 3]))?;
    assert_eq!(given.dims(), [1, 8, 38]);
    assert!(far(&model.forward(&msa(&[0, 3, 1, 2]))?, &given) < 1e-12);
    assert!(far(&model.forward(&msa(&[1, 0, 2, 3]))?, &given) > 1e-3);
    assert!(far(&model.forward(&msa(&[0, 1, 2]))?, &given) > 1e-6);
    // rows that are not scanned still reach the query, and a batch is its rows
    let some = MsaMamba::new(&MsaMambaConfig { scan_rows: Some(2), ..cfg.clone() }, &params.builder())?;
    let two = some.forward(&msa(&[0, 1, 2, 3]))?;
    assert!(far(&some.forward(&msa(&[0, 1, 3, 2]))?, &two) < 1e-12);
    assert!(far(&some.forward(&msa(&[0, 1, 1, 1]))?, &two) > 1e-6);
    let batch = Tensor::cat(&[msa(&[0, 1, 2, 3]), msa(&[2, 1, 0, 3])], 0)?;
    assert!(far(&some.forward(&batch)?.narrow(0, 0, 1)?, &two) < 1e-12);
    assert_eq!(some.forward(&msa(&[0]))?.dims(), [1, 8, 38]);
    Ok(())
}

/// `$MAMBA_DATA/genomics/protein/NAME`, or a few globins that this file holds.
fn family() -> Vec<Protein> {
    let Some(root) = std::env::var_os("MAMBA_DATA") else {
        eprintln!("MAMBA_DATA is not set: learning is not checked on the globins");
        return Vec::new();
    };
    read_all(&[PathBuf::from(root).join("genomics/protein/globins630.fa")], Alphabet::Homologs).unwrap()
}

fn small(which: &str) -> ProteinConfig {
    match which {
        "protmamba" => {
            ProteinConfig::ProtMamba(ProtMambaConfig { d_model: 48, n_layer: 2, ..Default::default() })
        }
        "ptm_mamba" => {
            ProteinConfig::PtmMamba(PtmMambaConfig { d_model: 32, n_layer: 1, ..Default::default() })
        }
        _ => ProteinConfig::MsaMamba(MsaMambaConfig { d_model: 32, n_layer: 1, ..Default::default() }),
    }
}

/// Proteins as the alphabet of a model has them.
fn of_alphabet(all: &[Protein], config: &ProteinConfig) -> Vec<Protein> {
    let letters = |p: &Protein| Alphabet::Homologs.decode(&p.residues(Alphabet::Homologs));
    let text: String = all.iter().map(|p| format!(">{}\n{}\n", p.name, letters(p))).collect();
    proteins(&text, config.alphabet()).unwrap()
}

#[test]
fn every_model_trains_in_half_precision() {
    let Some(emulation) = emulation(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return };
    let text: String = (0..8).map(|i| format!(">u{i}\n{}\n", &UBIQUITIN[i..60])).collect();
    for which in ["protmamba", "ptm_mamba", "msa_mamba"] {
        let config = small(which);
        let cfg = ProteinDataConfig { length: 64, rows: 2, ..Default::default() };
        let data = ProteinData::new(&config, proteins(&text, config.alphabet()).unwrap(), &cfg).unwrap();
        let cfg = TrainConfig { batch_size: 1, ..TrainConfig::default() };
        let params = Params::fresh(1, DType::F16, &CPU);
        emulation.run(|| {
            let mut task = ProteinTraining::new(config.clone(), &cfg, &data, params.clone()).unwrap();
            let loss = train::Task::train_step(&mut task, 0, 0).unwrap().loss;
            assert!(Gradients::of(&loss, &params).unwrap().norm().unwrap() > 0.0, "{which}");
        });
    }
}

#[test]
fn every_model_learns_a_real_family_better_than_its_frequencies() {
    let family = family();
    if family.is_empty() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (which, steps, length) in [("protmamba", 80, 320), ("ptm_mamba", 110, 160), ("msa_mamba", 60, 160)] {
        let config = small(which);
        // The same part of the family for all; an alignment of all would take long.
        let proteins = of_alphabet(&family[..150], &config);
        let cfg = ProteinDataConfig { length, rows: 4, max_valid: Some(15), ..Default::default() };
        let data = ProteinData::new(&config, proteins, &cfg).unwrap();
        let cfg = TrainConfig {
            steps,
            batch_size: 4,
            learning_rate: 6e-3,
            warmup: 5,
            eval_every: steps / 2,
            ..TrainConfig::default()
        };
        let params = Params::fresh(1, DType::F32, &CPU);
        let mut task = ProteinTraining::new(config.clone(), &cfg, &data, params.clone()).unwrap();
        // every parameter is reached
        let loss = train::Task::train_step(&mut task, 0, 0).unwrap().loss;
        let missing = Gradients::of(&loss, &params).unwrap();
        let missing = missing.missing();
        assert!(missing.is_empty(), "{which}: {missing:?}");

        let first = data.score(&config.build(&params.builder()).unwrap(), false, &CPU).unwrap();
        let folder = RunFolder::create(dir.path().join(which)).unwrap();
        let mut console = Console::new(mamba_core::progress::Format::Human, true);
        train::run(&mut task, &cfg, &folder, &mut console, &Stop::new()).unwrap();
        let (model, stored) = ProteinModel::load(folder.dir(), DType::F32, &CPU).unwrap();
        assert_eq!(stored, config);
        let score = data.score(&model, false, &CPU).unwrap();
        let (frequencies, _) = data.baselines(false).unwrap();
        eprintln!(
            "{which}: {:.3} to {:.3} bits, frequencies {:.3}",
            first.bits, score.bits, frequencies.bits
        );
        assert_eq!(score.residues, frequencies.residues);
        assert!(
            score.bits < first.bits && score.bits < frequencies.bits,
            "{which}: {score:?} {frequencies:?}"
        );
        if which == "protmamba" {
            draws_and_substitutions(model, &stored, &family);
        }
    }
}

/// What a ProtMamba that has learnt something says about a family.
fn draws_and_substitutions(model: ProteinModel, config: &ProteinConfig, family: &[Protein]) {
    let scorer = ProteinScorer::new(model, config, family[..2].to_vec(), &CPU).unwrap();
    let target = family[2].residues(Alphabet::Homologs);
    let sampling = Sampling { temperature: 1.0, seed: 3 };
    let drawn = infill(&scorer, &target, &[4..7, 20..25], sampling, 0).unwrap();
    assert_eq!(drawn.residues.len(), target.len());
    for (i, (new, old)) in drawn.residues.iter().zip(&target).enumerate() {
        assert!(Alphabet::Homologs.is_amino_acid(*new));
        assert!(
            (4..7).contains(&i) || (20..25).contains(&i) || new == old,
            "residue {i} was outside the spans"
        );
    }
    assert_eq!(infill(&scorer, &target, &[4..7, 20..25], sampling, 0).unwrap(), drawn);
    assert_ne!(infill(&scorer, &target, &[4..7, 20..25], sampling, 1).unwrap().residues, drawn.residues);
    // A span of one residue is the distribution that substitutions are scored by.
    let greedy = Sampling { temperature: 0.0, seed: 0 };
    let one = infill(&scorer, &target, std::slice::from_ref(&(9..10)), greedy, 0).unwrap();
    let p = scorer.at(&target, &[9]).unwrap()[0];
    let likeliest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert!((one.log_likelihood - likeliest).abs() < 1e-4, "{one:?} {p:?}");
    assert!((p.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-5);
    let new = if target[9] == 4 { 5 } else { 4 };
    let there = scorer.substitutions(&target, &[vec![(9, new)]]).unwrap()[0];
    let mut mutant = target.clone();
    mutant[9] = new;
    let back = scorer.substitutions(&mutant, &[vec![(9, target[9])]]).unwrap()[0];
    assert!((there + back).abs() < 1e-6, "{there} {back}");
    let generated = generate(&scorer, 60, sampling, 0).unwrap();
    assert!((1..=60).contains(&generated.residues.len()));
    for spans in [&[][..], std::slice::from_ref(&(3..3)), &[5..9, 6..10], std::slice::from_ref(&(0..9999))] {
        assert!(infill(&scorer, &target, spans, sampling, 0).is_err(), "{spans:?}");
    }
}

#[test]
fn models_that_do_not_generate_say_so() {
    let config = small("ptm_mamba");
    let model = config.build(&Params::fresh(1, DType::F32, &CPU).builder()).unwrap();
    assert!(ProteinScorer::new(model.clone(), &config, vec![Protein::new("one", vec![9])], &CPU).is_err());
    let scorer = ProteinScorer::new(model, &config, Vec::new(), &CPU).unwrap();
    let sampling = Sampling { temperature: 1.0, seed: 3 };
    assert!(generate(&scorer, 9, sampling, 0).unwrap_err().to_string().contains("only ProtMamba generates"));
    assert!(infill(&scorer, &[8, 9, 10], std::slice::from_ref(&(1..2)), sampling, 0).is_err());
    // but score both ways
    assert_eq!(scorer.log_likelihoods(&[8, 9, 10]).unwrap().len(), 3);
    let change = scorer.substitutions(&[8, 9, 10], &[vec![(1, 12)], vec![(1, 9)]]).unwrap();
    assert!(change[0] != 0.0 && change[1] == 0.0);
    let too_few = ProteinData::new(&config, Vec::new(), &ProteinDataConfig::default());
    assert!(too_few.is_err());
    ProtMamba::new(
        &ProtMambaConfig { d_model: 3, ..Default::default() },
        &Params::fresh(1, DType::F32, &CPU).builder(),
    )
    .unwrap_err();
}
