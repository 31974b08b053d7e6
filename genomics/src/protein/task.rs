//! Training of protein models, and what they are measured by.
//!
//! Identical proteins are taken for one; then some are held out for validation and test. Nothing else is removed: the
//! members of a family are alike, and a figure on held-out members says how well the *family* was learnt.
//!
//! | model | a training row | what is scored of a held-out protein |
//! |---|---|---|
//! | ProtMamba | homologs, spans taken out, up to `length` tokens; the loss is that of every next token | each residue, given those before it and training homologs in front, up to `length` tokens |
//! | PTM-Mamba | a protein, or `length` residues of it; 15 % masked (80 % `<mask>`, 10 % another, 10 % kept) | 15 % of its residues, all masked, always the same |
//! | MSAMamba | `length` columns of a protein as the query and `rows` - 1 others | the same, with training rows around |
//!
//! The baselines score the same residues: by the frequencies of the training proteins, and for an alignment also by those of
//! each column.

use candle_core::{D, DType, Device, Tensor};
use mamba_core::Params;
use mamba_core::nn::cross_entropy;
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task, TrainConfig};
use mamba_datasets::{Fractions, index_split};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::protein::alphabet::{Alphabet, CLS, PAD};
use crate::protein::fim::{Prompt, draw_spans};
use crate::protein::model::ProteinInput;
use crate::protein::reader::Protein;
use crate::protein::{ProteinConfig, ProteinModel, align};
use crate::rng::{Stream, below, keyed};

/// Everything that decides a run, besides the proteins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProteinTrainConfig<M> {
    /// The model.
    pub model: M,
    /// Optimizer and schedule.
    pub train: TrainConfig,
    /// Rows and the split.
    pub data: ProteinDataConfig,
}

/// Rows, and what is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProteinDataConfig {
    /// Tokens in a row, of an alignment columns.
    pub length: usize,
    /// Rows of an alignment, the query among them.
    pub rows: usize,
    /// Share of the proteins held out for validation.
    pub valid: f64,
    /// Share held out for the test.
    pub test: f64,
    /// Seed of the split, apart from that of the run.
    pub split_seed: u64,
    /// Held-out proteins that each evaluation scores at most; null for all. The test takes all.
    pub max_valid: Option<usize>,
    /// Share of residues that are masked.
    pub mask: f64,
}

impl Default for ProteinDataConfig {
    fn default() -> Self {
        Self { length: 512, rows: 8, valid: 0.1, test: 0.1, split_seed: 0, max_valid: Some(64), mask: 0.15 }
    }
}

/// Key of the held-out rows, in place of a seed.
const HELD_OUT_SEED: u64 = 0x6865_6c64;
/// Rows that are scored at once.
const SCORE_BATCH: usize = 8;

/// Proteins, split.
#[derive(Clone, Debug)]
pub struct ProteinData {
    alphabet: Alphabet,
    cfg: ProteinDataConfig,
    causal: bool,
    aligned: bool,
    /// Residues, or with gaps the columns of an alignment.
    train: Vec<Vec<u32>>,
    valid: Vec<Vec<u32>>,
    test: Vec<Vec<u32>>,
    /// Proteins that were dropped because another is the same.
    pub duplicates: usize,
    /// Whether the homologs were put in the columns of the first protein, because the file is no alignment.
    pub was_aligned_here: bool,
}

/// A row with what is scored of it.
#[derive(Clone, Debug, Default)]
struct Row {
    /// Tokens with positions; of an alignment all rows, one after the other.
    prompt: Prompt,
    /// What each token (of the query) is scored by; `<pad>` where it is not.
    labels: Vec<u32>,
}

impl ProteinData {
    /// Prepares proteins for a model and splits them.
    ///
    /// # Errors
    /// Settings out of range, or too few proteins.
    pub fn new(config: &ProteinConfig, proteins: Vec<Protein>, cfg: &ProteinDataConfig) -> Result<Self> {
        let setting = |name, got: usize, expected: &str| Error::Setting {
            name,
            got: got.to_string(),
            expected: expected.into(),
        };
        let (causal, aligned) =
            (matches!(config, ProteinConfig::ProtMamba(_)), matches!(config, ProteinConfig::MsaMamba(_)));
        if cfg.length < 8 {
            return Err(setting("data.length", cfg.length, "at least 8"));
        }
        if aligned && cfg.rows < 2 {
            return Err(setting("data.rows", cfg.rows, "at least 2: the query and another"));
        }
        if !(cfg.mask > 0.0 && cfg.mask < 1.0) {
            let got = cfg.mask.to_string();
            return Err(Error::Setting { name: "data.mask", got, expected: "between 0 and 1".into() });
        }
        let alphabet = config.alphabet();
        let (rows, was_aligned_here) = match aligned {
            true => columns(&proteins, alphabet),
            false => (proteins.iter().map(|protein| protein.residues(alphabet)).collect(), false),
        };
        let total = rows.len();
        let mut seen = std::collections::HashSet::new();
        let rows: Vec<Vec<u32>> = rows.into_iter().filter(|row| seen.insert(row.clone())).collect();
        let split = index_split(rows.len(), Fractions { valid: cfg.valid, test: cfg.test }, cfg.split_seed)?;
        let take = |ids: &[usize]| ids.iter().map(|&i| rows[i].clone()).collect::<Vec<_>>();
        if split.train.len() < cfg.rows.min(2) {
            return Err(setting("proteins to train on", split.train.len(), "at least 2"));
        }
        Ok(Self {
            alphabet,
            cfg: cfg.clone(),
            causal,
            aligned,
            train: take(&split.train),
            valid: take(&split.valid),
            test: take(&split.test),
            duplicates: total - rows.len(),
            was_aligned_here,
        })
    }

    /// Proteins to train on, for validation and for the test.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.train.len(), self.valid.len(), self.test.len())
    }

    /// A training row, a pure function of its key.
    fn training_row(&self, seed: u64, step: u64, row: u64) -> Row {
        let rng = &mut keyed(seed, step, row, Stream::Homologs);
        if self.causal {
            let mut prompt = Prompt::default();
            for sequence in 0.. {
                let residues = self.draw(rng);
                let spans = draw_spans(rng, residues.len());
                prompt.push_filled(residues, &spans, sequence);
                if prompt.len() > self.cfg.length {
                    break;
                }
            }
            prompt.truncate(self.cfg.length + 1);
            let labels = prompt.ids[1..].to_vec();
            prompt.truncate(self.cfg.length);
            return Row { prompt, labels };
        }
        let query = self.draw(rng);
        let start = below(rng, (query.len().saturating_sub(self.cfg.length) + 1) as u64) as usize;
        self.masked_row(query, start, rng, true)
    }

    /// A held-out row.
    fn held_out_row(&self, protein: &[u32], number: usize) -> Row {
        let rng = &mut keyed(HELD_OUT_SEED, 0, number as u64, Stream::Homologs);
        if !self.causal {
            return self.masked_row(protein, 0, rng, false);
        }
        let scored = &protein[..protein.len().min(self.cfg.length - 1)];
        let mut prompt = Prompt::default();
        let mut sequence = 0;
        loop {
            let homolog = self.draw(rng);
            if prompt.len() + homolog.len() + scored.len() + 2 > self.cfg.length {
                break;
            }
            prompt.push_sequence(homolog, sequence);
            sequence += 1;
        }
        let context = prompt.len();
        prompt.push_sequence(scored, sequence);
        let mut labels = vec![PAD; prompt.len()];
        labels[context..context + scored.len()].copy_from_slice(scored);
        Row { prompt, labels }
    }

    fn draw(&self, rng: &mut ChaCha12Rng) -> &[u32] {
        &self.train[below(rng, self.train.len() as u64) as usize]
    }

    /// A row from `start` on, of which some residues are asked; of an alignment with training rows below it.
    fn masked_row(&self, query: &[u32], start: usize, rng: &mut ChaCha12Rng, training: bool) -> Row {
        let end = query.len().min(start + self.cfg.length);
        let (mut ids, mut labels) = (query[start..end].to_vec(), vec![PAD; end - start]);
        let uniform = |rng: &mut ChaCha12Rng| (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let amino_acids = self.alphabet.amino_acids();
        for (id, label) in ids.iter_mut().zip(&mut labels) {
            let (draw, fate) = (uniform(rng), uniform(rng));
            let other = amino_acids.start + below(rng, amino_acids.len() as u64) as u32;
            if draw >= self.cfg.mask || !self.alphabet.is_residue(*id) {
                continue;
            }
            *label = *id;
            match training {
                true if fate >= 0.9 => {}
                true if fate >= 0.8 => *id = other,
                _ => *id = self.alphabet.mask(),
            }
        }
        let mut prompt = Prompt { ids, ..Prompt::default() };
        if self.aligned {
            for _ in 1..self.cfg.rows {
                // The query itself would give the answer away.
                let mut other = self.draw(rng);
                for _ in 0..8 {
                    if other != query {
                        break;
                    }
                    other = self.draw(rng);
                }
                prompt.ids.extend(&other[start..end]);
            }
        }
        Row { prompt, labels }
    }

    /// Rows as tensors: input and labels `(B, L)`.
    fn batch(&self, rows: &[Row], device: &Device) -> candle_core::Result<(ProteinInput, Tensor)> {
        let lengths: Vec<usize> = rows.iter().map(|row| row.labels.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded = |values: &dyn Fn(&Row) -> &[u32], with: u32| {
            let mut all = Vec::with_capacity(rows.len() * longest);
            for row in rows {
                all.extend_from_slice(values(row));
                all.resize(all.len() + longest - row.labels.len(), with);
            }
            Tensor::from_vec(all, (rows.len(), longest), device)
        };
        let labels = padded(&|row| &row.labels, PAD)?;
        if self.aligned {
            // Rows of one alignment have one length.
            let ids: Vec<u32> = rows.iter().flat_map(|row| row.prompt.ids.iter().copied()).collect();
            let ids = Tensor::from_vec(ids, (rows.len(), self.cfg.rows, longest), device)?; // (B, R, L)
            return Ok((ProteinInput { ids, places: None, lengths: None }, labels));
        }
        let ids = padded(&|row| &row.prompt.ids, PAD)?;
        let places = match self.causal {
            true => {
                Some((padded(&|row| &row.prompt.positions, 0)?, padded(&|row| &row.prompt.sequences, 0)?))
            }
            false => None,
        };
        let lengths = (!self.causal && lengths.iter().any(|&n| n < longest)).then_some(lengths);
        Ok((ProteinInput { ids, places, lengths }, labels))
    }

    /// Held-out rows: for validation at most `max_valid`, for the test all.
    fn held_out(&self, test: bool) -> Vec<Row> {
        let proteins = if test { &self.test } else { &self.valid };
        let limit = if test { None } else { self.cfg.max_valid };
        let rows = proteins.iter().enumerate().take(limit.unwrap_or(usize::MAX));
        rows.map(|(i, protein)| self.held_out_row(protein, i))
            .filter(|row| row.labels.iter().any(|&l| l != PAD))
            .collect()
    }

    /// A model on held-out proteins.
    ///
    /// # Errors
    /// Nothing to score, or a failing model.
    pub fn score(
        &self,
        model: &ProteinModel,
        test: bool,
        device: &Device,
    ) -> mamba_core::Result<ProteinScore> {
        let rows = self.held_out(test);
        let (mut nats, mut right, mut residues) = (0.0, 0, 0);
        for rows in rows.chunks(SCORE_BATCH) {
            let (input, labels) = self.batch(rows, device)?;
            let logits = model.forward(&input)?;
            let count = rows.iter().flat_map(|row| &row.labels).filter(|&&label| label != PAD).count();
            let loss =
                cross_entropy(&logits, &labels, Some(PAD))?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let likeliest = logits.argmax(D::Minus1)?.flatten_all()?.to_vec1::<u32>()?;
            let labels = labels.flatten_all()?.to_vec1::<u32>()?;
            right += likeliest.iter().zip(&labels).filter(|&(a, b)| a == b && *b != PAD).count();
            nats += loss * count as f64;
            residues += count;
        }
        if residues == 0 {
            return Err(mamba_core::Error::other("no residue of a held-out protein is scored"));
        }
        Ok(ProteinScore::new(nats, right as f64, residues))
    }

    /// The frequencies of the training proteins on the same residues; for an alignment also those of its columns.
    ///
    /// # Errors
    /// Nothing to score.
    pub fn baselines(&self, test: bool) -> mamba_core::Result<(ProteinScore, Option<ProteinScore>)> {
        let rows = self.held_out(test);
        let size = self.alphabet.len();
        let longest = self.train.iter().map(Vec::len).max().unwrap_or(0);
        let columns = if self.aligned { longest } else { 0 };
        let mut all = vec![0.0; size];
        let mut by_column = vec![vec![0.0; size]; columns];
        for row in &self.train {
            for (i, &token) in row.iter().enumerate().filter(|(_, token)| self.alphabet.is_residue(**token)) {
                all[token as usize] += 1.0;
                if let Some(column) = by_column.get_mut(i) {
                    column[token as usize] += 1.0;
                }
            }
        }
        // One count more for each amino acid; others that were never seen have what that leaves them.
        self.alphabet.amino_acids().for_each(|token| all[token as usize] += 1.0);
        let total: f64 = all.iter().sum();
        let all: Vec<f64> = all.iter().map(|n| n.max(0.5) / (total + 0.5 * size as f64)).collect();
        // The column's own counts, and five more in the family's proportions.
        let profile: Vec<Vec<f64>> = by_column
            .iter()
            .map(|column| {
                let total: f64 = column.iter().sum();
                column.iter().zip(&all).map(|(n, p)| (n + 5.0 * p) / (total + 5.0)).collect()
            })
            .collect();
        let likeliest = |p: &[f64]| {
            let best = p.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            best.map_or(CLS, |(token, _)| token as u32)
        };
        let measure = |p: &dyn Fn(usize) -> Vec<f64>| {
            let (mut nats, mut right, mut residues) = (0.0, 0.0, 0);
            for row in &rows {
                for (i, &label) in row.labels.iter().enumerate().filter(|(_, label)| **label != PAD) {
                    let p = p(i);
                    nats -= p[label as usize].ln();
                    right += f64::from(likeliest(&p) == label);
                    residues += 1;
                }
            }
            ProteinScore::new(nats, right, residues)
        };
        let frequencies = measure(&|_| all.clone());
        let columns = self.aligned.then(|| measure(&|i| profile[i].clone()));
        Ok((frequencies, columns))
    }

    /// A hash of the proteins and the settings that decide the split.
    fn fingerprint(&self) -> String {
        let mut text = format!("{:?}", self.cfg);
        for row in self.train.iter().chain(&self.valid).chain(&self.test) {
            text.push_str(&format!(" {row:?}"));
        }
        mamba_datasets::job::sha256(text.as_bytes())
    }
}

/// The columns of an alignment: those of the file if its rows have one length, else those of the first protein, to which
/// the others are aligned. Says which.
pub fn columns(proteins: &[Protein], alphabet: Alphabet) -> (Vec<Vec<u32>>, bool) {
    let rows: Vec<Vec<u32>> = proteins.iter().map(Protein::columns).collect();
    let is_alignment = rows.windows(2).all(|pair| pair[0].len() == pair[1].len());
    let Some(query) = proteins.first().filter(|_| !is_alignment) else { return (rows, false) };
    let query = query.residues(alphabet);
    let align = |protein: &Protein| align::to_query(&query, &protein.residues(alphabet), alphabet);
    (proteins.iter().map(align).collect(), true)
}

/// Figures on held-out residues.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProteinScore {
    /// Cross-entropy in nats.
    pub loss: f64,
    /// Cross-entropy in bits for each residue.
    pub bits: f64,
    /// `e` to the loss.
    pub perplexity: f64,
    /// Share of residues that were the likeliest.
    pub accuracy: f64,
    /// Residues scored.
    pub residues: usize,
}

impl ProteinScore {
    fn new(nats: f64, right: f64, residues: usize) -> Self {
        let n = residues as f64;
        let loss = nats / n;
        Self {
            loss,
            bits: loss / std::f64::consts::LN_2,
            perplexity: loss.exp(),
            accuracy: right / n,
            residues,
        }
    }
}

/// Training as the loop sees it.
pub struct ProteinTraining<'a> {
    config: ProteinConfig,
    train: &'a TrainConfig,
    data: &'a ProteinData,
    params: Params,
    model: ProteinModel,
    prepared: Prepared<Vec<Row>>,
    device: Device,
}

impl<'a> ProteinTraining<'a> {
    /// A run from `params`: fresh ones, or those of a checkpoint.
    ///
    /// # Errors
    /// Settings that make no model, a checkpoint that does not fit it.
    pub fn new(
        config: ProteinConfig,
        train: &'a TrainConfig,
        data: &'a ProteinData,
        params: Params,
    ) -> mamba_core::Result<Self> {
        let model = config.build(&params.builder())?;
        params.check()?;
        let device = params.device().clone();
        Ok(Self { config, train, data, params, model, prepared: Prepared::default(), device })
    }

    fn rows(&self, step: u64, micro: usize) -> Vec<Row> {
        let size = self.train.batch_size;
        let row = |i: usize| self.data.training_row(self.train.seed, step, (micro * size + i) as u64);
        (0..size).map(row).collect()
    }
}

impl Task for ProteinTraining<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        self.config.to_json()
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        self.prepared.put(step, micro, self.rows(step, micro));
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let rows = self.prepared.take(step, micro).unwrap_or_else(|| self.rows(step, micro));
        let items = rows.iter().map(|row| row.prompt.ids.len()).sum();
        let (input, labels) = self.data.batch(&rows, &self.device)?;
        let loss = cross_entropy(&self.model.forward(&input)?, &labels, Some(PAD))?;
        Ok(StepLoss { loss, items })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        // Without variables there is no graph, and activations are freed as they are used.
        let frozen = Params::frozen(self.params.to_tensors(), self.params.dtype(), &self.device);
        let model = self.config.build(&frozen.builder())?;
        let score = self.data.score(&model, false, &self.device)?;
        Ok(vec![
            Metric::down("loss", score.loss),
            Metric::down("perplexity", score.perplexity),
            Metric::up("accuracy", score.accuracy),
        ])
    }

    fn data_fingerprint(&self) -> String {
        self.data.fingerprint()
    }

    fn unit(&self) -> &'static str {
        "tok"
    }
}
