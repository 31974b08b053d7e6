//! How likely a protein is, and what a substitution changes.

use candle_core::{DType, Device, Tensor};
use mamba_core::{BackboneState, Error, Result};

use crate::protein::alphabet::{AMINO_ACIDS, Alphabet};
use crate::protein::fim::Prompt;
use crate::protein::model::ProteinInput;
use crate::protein::prot_mamba::ProtMambaInput;
use crate::protein::reader::Protein;
use crate::protein::{ProtMamba, ProteinConfig, ProteinModel, align};

/// Masked copies that go through a model together, and the tokens in them unless one has more.
const BATCH: usize = 16;
const BATCH_TOKENS: usize = 16_384;
/// Tokens of the context of ProtMamba that are read at once.
const CHUNK: usize = 4096;

/// A model with the homologs that it reads before or beside a protein.
pub struct ProteinScorer {
    model: ProteinModel,
    alphabet: Alphabet,
    fills_in: bool,
    context: Vec<Protein>,
    /// ProtMamba's state after the context.
    state: BackboneState,
    device: Device,
}

/// ln p of the twenty amino acids, in the order of [`AMINO_ACIDS`].
pub type AminoAcids = [f64; AMINO_ACIDS.len()];

impl ProteinScorer {
    /// Reads the context once.
    ///
    /// # Errors
    /// A model that takes no context.
    pub fn new(
        model: ProteinModel,
        config: &ProteinConfig,
        context: Vec<Protein>,
        device: &Device,
    ) -> Result<Self> {
        let mut state = BackboneState::new();
        match &model {
            ProteinModel::ProtMamba(model) => {
                let mut prompt = Prompt::default();
                for (i, homolog) in context.iter().enumerate() {
                    prompt.push_sequence(&homolog.residues(config.alphabet()), i as u32);
                }
                read(model, &prompt, &mut state, device)?;
            }
            ProteinModel::PtmMamba(_) if !context.is_empty() => {
                return Err(Error::Config("PTM-Mamba reads one protein: it takes no context".into()));
            }
            _ => {}
        }
        let fills_in = matches!(config, ProteinConfig::ProtMamba(cfg) if cfg.fills_in());
        Ok(Self { model, alphabet: config.alphabet(), fills_in, context, state, device: device.clone() })
    }

    /// The tokens that the model knows.
    pub fn alphabet(&self) -> Alphabet {
        self.alphabet
    }

    /// ln p of each residue: given those before it (ProtMamba), or given all others (masked models, one at a time).
    pub fn log_likelihoods(&self, residues: &[u32]) -> Result<Vec<f64>> {
        let ProteinModel::ProtMamba(model) = &self.model else {
            let positions: Vec<usize> = (0..residues.len()).collect();
            return Ok(self
                .masked(residues, &positions)?
                .iter()
                .zip(residues)
                .map(|(p, &r)| p[r as usize])
                .collect());
        };
        let mut prompt = Prompt::default();
        prompt.push_sequence(residues, self.context.len() as u32);
        prompt.truncate(residues.len()); // nothing follows the last residue
        let mut state = self.state.clone();
        let logits = run(model, &prompt, &mut state, &self.device)?;
        Ok(logits
            .iter()
            .zip(residues)
            .map(|(logits, &residue)| log_softmax(logits)[residue as usize])
            .collect())
    }

    /// ln p of every amino acid at some positions (from 0) of a protein, given all its other residues: masked, or as a
    /// span of one residue for ProtMamba.
    ///
    /// # Errors
    /// A ProtMamba without tokens for spans.
    pub fn at(&self, residues: &[u32], positions: &[usize]) -> Result<Vec<AminoAcids>> {
        let all = match &self.model {
            ProteinModel::ProtMamba(model) => self.spans_of_one(model, residues, positions)?,
            _ => self.masked(residues, positions)?,
        };
        let amino_acids = self.alphabet.amino_acids();
        let choose = |p: Vec<f64>| {
            let chosen: Vec<f64> = amino_acids.clone().map(|token| p[token as usize]).collect();
            let chosen = log_softmax(&chosen.iter().map(|&x| x as f32).collect::<Vec<_>>());
            std::array::from_fn(|i| chosen[i])
        };
        Ok(all.into_iter().map(choose).collect())
    }

    /// Whether [`at`](Self::at) works: all models but a ProtMamba without tokens for spans.
    pub fn sees_both_sides(&self) -> bool {
        self.fills_in || !matches!(self.model, ProteinModel::ProtMamba(_))
    }

    /// ln p of the substitution of residues (position from 0, new token) against the protein as it is: the sum over the
    /// substitutions where the model sees both sides, else the difference of the whole proteins' likelihoods.
    pub fn substitutions(&self, residues: &[u32], changes: &[Vec<(usize, u32)>]) -> Result<Vec<f64>> {
        if !self.sees_both_sides() {
            let whole =
                |residues: &[u32]| -> Result<f64> { Ok(self.log_likelihoods(residues)?.iter().sum()) };
            let wild = whole(residues)?;
            return changes
                .iter()
                .map(|change| {
                    let mut mutant = residues.to_vec();
                    change.iter().for_each(|&(position, token)| mutant[position] = token);
                    Ok(whole(&mutant)? - wild)
                })
                .collect();
        }
        let mut positions: Vec<usize> = changes.iter().flatten().map(|&(position, _)| position).collect();
        positions.sort_unstable();
        positions.dedup();
        let predicted = self.at(residues, &positions)?;
        let first = self.alphabet.amino_acids().start;
        let of_change = |&(position, token): &(usize, u32)| {
            let place = positions.binary_search(&position).expect("every position was asked for");
            let p = |token: u32| predicted[place].get(token.wrapping_sub(first) as usize).copied();
            match (p(token), p(residues[position])) {
                (Some(new), Some(old)) => Ok(new - old),
                _ => Err(Error::Config(format!(
                    "residue {} is none of the twenty amino acids, before or after its substitution",
                    position + 1
                ))),
            }
        };
        changes.iter().map(|change| change.iter().map(of_change).sum()).collect()
    }

    fn spans_of_one(
        &self,
        model: &ProtMamba,
        residues: &[u32],
        positions: &[usize],
    ) -> Result<Vec<Vec<f64>>> {
        if !self.fills_in {
            return Err(Error::Config(
                "this ProtMamba has no tokens for spans (<mask-1> ...): it sees only what stands before a residue".into(),
            ));
        }
        let sequence = self.context.len() as u32;
        let ask = |&position: &usize| {
            let mut prompt = Prompt::default();
            prompt.push_open(residues, std::slice::from_ref(&(position..position + 1)), sequence);
            prompt.push_mask(0, position + 1, sequence);
            let logits = run(model, &prompt, &mut self.state.clone(), &self.device)?;
            Ok(log_softmax(logits.last().map_or(&[][..], Vec::as_slice)))
        };
        positions.iter().map(ask).collect()
    }

    /// The context in the columns of a protein: as it stands, if it is an alignment of that many columns, else aligned here.
    fn rows_below(&self, residues: &[u32]) -> Vec<Vec<u32>> {
        let columns: Vec<Vec<u32>> = self.context.iter().map(Protein::columns).collect();
        if columns.iter().all(|row| row.len() == residues.len()) {
            return columns;
        }
        let align =
            |homolog: &Protein| align::to_query(residues, &homolog.residues(self.alphabet), self.alphabet);
        self.context.iter().map(align).collect()
    }

    /// ln p of all tokens at masked positions.
    fn masked(&self, residues: &[u32], positions: &[usize]) -> Result<Vec<Vec<f64>>> {
        let others = self.rows_below(residues);
        let len = residues.len();
        let mut predicted = Vec::with_capacity(positions.len());
        let at_once = (BATCH_TOKENS / (len * (1 + others.len())).max(1)).clamp(1, BATCH);
        for positions in positions.chunks(at_once) {
            let mut ids = Vec::with_capacity(positions.len() * (1 + others.len()) * len);
            for &position in positions {
                let start = ids.len();
                ids.extend_from_slice(residues);
                ids[start + position] = self.alphabet.mask();
                others.iter().for_each(|other| ids.extend_from_slice(other));
            }
            let ids = match &self.model {
                ProteinModel::MsaMamba(_) => {
                    Tensor::from_vec(ids, (positions.len(), 1 + others.len(), len), &self.device)?
                }
                _ => Tensor::from_vec(ids, (positions.len(), len), &self.device)?,
            };
            let logits = self.model.forward(&ProteinInput { ids, places: None, lengths: None })?; // (B, L, V)
            for (row, &position) in positions.iter().enumerate() {
                predicted.push(log_softmax(
                    &logits.get(row)?.get(position)?.to_dtype(DType::F32)?.to_vec1::<f32>()?,
                ));
            }
        }
        Ok(predicted)
    }
}

/// A prompt as tensors `(1, L)`.
fn tensors(prompt: &Prompt, device: &Device) -> Result<[Tensor; 3]> {
    let row = |values: &[u32]| Tensor::new(values, device)?.unsqueeze(0);
    Ok([row(&prompt.ids)?, row(&prompt.positions)?, row(&prompt.sequences)?])
}

/// Takes the prompt into the state, in chunks: memory does not grow with the context.
fn read(model: &ProtMamba, prompt: &Prompt, state: &mut BackboneState, device: &Device) -> Result<()> {
    if prompt.is_empty() {
        return Ok(());
    }
    let all = tensors(prompt, device)?;
    for start in (0..prompt.len()).step_by(CHUNK) {
        let part = |t: &Tensor| t.narrow(1, start, CHUNK.min(prompt.len() - start))?.contiguous();
        let (ids, positions, sequences) = (part(&all[0])?, part(&all[1])?, part(&all[2])?);
        let input = ProtMambaInput { ids: &ids, positions: &positions, sequences: &sequences };
        model.forward_with(input, None, Some(state))?;
    }
    Ok(())
}

/// The logits after each token of a prompt, from and to a state.
pub(crate) fn run(
    model: &ProtMamba,
    prompt: &Prompt,
    state: &mut BackboneState,
    device: &Device,
) -> Result<Vec<Vec<f32>>> {
    let [ids, positions, sequences] = tensors(prompt, device)?;
    let input = ProtMambaInput { ids: &ids, positions: &positions, sequences: &sequences };
    let logits = model.forward_with(input, None, Some(state))?.squeeze(0)?;
    Ok(logits.to_dtype(DType::F32)?.to_vec2()?)
}

impl ProteinScorer {
    /// The model and its state after the context, if it is a ProtMamba.
    pub(crate) fn generator(&self) -> Option<(&ProtMamba, &BackboneState, &Device)> {
        match &self.model {
            ProteinModel::ProtMamba(model) => Some((model, &self.state, &self.device)),
            _ => None,
        }
    }

    /// How many homologs stand before a protein.
    pub fn context_len(&self) -> usize {
        self.context.len()
    }
}

pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    logits.iter().map(|&x| f64::from(x - largest) - sum.ln()).collect()
}
