//! Sites to scores: a pure function that reads and writes nothing.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use mamba_core::Result;
use serde::Serialize;

use crate::embed::{EmbedOptions, Embedder, FEWEST_TOKENS, Piece};
use crate::tokenizer::{A, BASES, MASK, PAD};
use crate::variants::Site;
use crate::{CaduceusCheckpoint, CaduceusForMaskedLm};

/// What is worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ScoreOptions {
    /// Bases on either side of the allele whose vectors count for the distance; none leaves the distance out, and two of
    /// three passes of the model with it.
    pub pool: Option<usize>,
    /// Most tokens in one pass; changes memory and speed, never the result.
    #[serde(skip)]
    pub batch_tokens: usize,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self { pool: Some(64), batch_tokens: 16_384 }
    }
}

/// Scores of one alternate allele; see [the module](super).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Log-likelihood ratio of ALT against REF, natural logarithm.
    pub llr: f32,
    /// Euclidean distance between the vectors of the two haplotypes; none where an empty allele has nothing around it.
    pub distance: Option<f32>,
}

/// A model, ready to score variants.
#[derive(Clone, Debug)]
pub struct VariantScorer {
    model: CaduceusForMaskedLm,
    embedder: Option<Embedder>,
    options: ScoreOptions,
    device: Device,
}

impl VariantScorer {
    /// Builds the checkpoint's model.
    pub fn new(
        checkpoint: &CaduceusCheckpoint,
        options: ScoreOptions,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let model = checkpoint.model(dtype, device)?;
        let embedder = match options.pool {
            Some(_) => Some(Embedder::new(checkpoint, EmbedOptions::default(), dtype, device)?),
            None => None,
        };
        Ok(Self { model, embedder, options, device: device.clone() })
    }

    /// One score for each site, the same bits whatever the other sites are.
    pub fn score(&self, sites: &[Site]) -> Result<Vec<Score>> {
        let ratios = self.log_likelihood_ratios(sites)?;
        let distances = match (&self.embedder, self.options.pool) {
            (Some(embedder), Some(pool)) => self.distances(embedder, pool, sites)?,
            _ => vec![None; sites.len()],
        };
        let score = |(llr, distance): (f64, Option<f64>)| Score {
            llr: llr as f32,
            distance: distance.map(|distance| distance as f32),
        };
        Ok(ratios.into_iter().zip(distances).map(score).collect())
    }

    fn log_likelihood_ratios(&self, sites: &[Site]) -> Result<Vec<f64>> {
        // Alleles of one length share their masked haplotype, and so do the alternates of one site.
        let mut unique = Unique::default();
        let asked = sites.iter().map(|site| {
            let mut ask = |allele: &[u8]| {
                let masked = [&site.left, vec![MASK; allele.len()].as_slice(), &site.right].concat();
                let bases = site.left.len()..site.left.len() + allele.len();
                (!allele.is_empty()).then(|| unique.add(masked, bases))
            };
            (ask(&site.reference), ask(&site.alternate))
        });
        let asked: Vec<_> = asked.collect();
        let predicted = self.predict(&unique.entries)?;
        let evidence = |allele: &[u8], asked: Option<usize>| {
            let Some(asked) = asked else { return 0.0 };
            // Against bases drawn evenly.
            let bases = allele.iter().zip(&predicted[asked]);
            bases.map(|(&base, predicted)| predicted[usize::from(base - A)] + 4f64.ln()).sum::<f64>()
        };
        let ratio = |(site, &(of_reference, of_alternate)): (&Site, &(Option<usize>, Option<usize>))| {
            evidence(&site.alternate, of_alternate) - evidence(&site.reference, of_reference)
        };
        Ok(sites.iter().zip(&asked).map(ratio).collect())
    }

    /// ln p of A, C, G, T at every asked position of every sequence, the mean over both strands.
    fn predict(&self, asked: &[(Vec<u8>, Range<usize>)]) -> Result<Vec<Vec<[f64; 4]>>> {
        let mut predicted = Vec::with_capacity(asked.len());
        for (rows, len) in batches(asked.iter().map(|(ids, _)| ids.len()), self.options.batch_tokens) {
            let rows = &asked[rows];
            let (ids, lengths) = self.tensor(rows, len)?;
            let given = self.base_logits(&ids, &lengths)?;
            // PS has added both strands' logits already, in one pass.
            let other = match self.model.body().is_rcps() {
                true => None,
                false => {
                    let reverse = self.model.body().reverse_complement(&ids, Some(&lengths))?;
                    Some(self.base_logits(&reverse, &lengths)?)
                }
            };
            for (i, (ids, bases)) in rows.iter().enumerate() {
                let position = |t: usize| {
                    let mut p = log_softmax(given[i * len + t]);
                    if let Some(other) = &other {
                        // The same base of the other strand, where T stands for A.
                        let q = log_softmax(other[i * len + ids.len() - 1 - t]);
                        (0..4).for_each(|base| p[base] = (p[base] + q[3 - base]) / 2.0);
                    }
                    p
                };
                predicted.push(bases.clone().map(position).collect());
            }
        }
        Ok(predicted)
    }

    /// Token ids `(B, L)`, padded on the right, and the lengths.
    fn tensor(&self, rows: &[(Vec<u8>, Range<usize>)], len: usize) -> Result<(Tensor, Vec<usize>)> {
        let mut ids = vec![u32::from(PAD); rows.len() * len];
        for (padded, (row, _)) in ids.chunks_exact_mut(len).zip(rows) {
            padded.iter_mut().zip(row).for_each(|(slot, &id)| *slot = u32::from(id));
        }
        let lengths = rows.iter().map(|(row, _)| row.len()).collect();
        Ok((Tensor::from_vec(ids, (rows.len(), len), &self.device)?, lengths))
    }

    /// Logits of A, C, G, T, token after token.
    fn base_logits(&self, ids: &Tensor, lengths: &[usize]) -> Result<Vec<[f64; 4]>> {
        let logits = self.model.forward(ids, Some(lengths))?; // (B, L, vocabulary)
        let bases = logits.narrow(2, usize::from(A), BASES.len())?.to_dtype(DType::F64)?.contiguous()?;
        let values = bases.flatten_all()?.to_vec1::<f64>()?;
        Ok(values.chunks_exact(4).map(|x| [x[0], x[1], x[2], x[3]]).collect())
    }

    fn distances(&self, embedder: &Embedder, pool: usize, sites: &[Site]) -> Result<Vec<Option<f64>>> {
        let mut unique = Unique::default();
        let asked = sites.iter().map(|site| {
            let mut ask = |allele: &[u8]| {
                let haplotype = [&site.left, allele, &site.right].concat();
                let start = site.left.len().saturating_sub(pool);
                let end = (site.left.len() + allele.len()).saturating_add(pool).min(haplotype.len());
                // An empty allele with nothing around it leaves nothing to compare.
                (start < end).then(|| unique.add(haplotype, start..end))
            };
            (ask(&site.reference), ask(&site.alternate))
        });
        let asked: Vec<_> = asked.collect();
        let mut vectors = Vec::with_capacity(unique.entries.len());
        for (rows, _) in batches(unique.entries.iter().map(|(ids, _)| ids.len()), self.options.batch_tokens) {
            let pieces: Vec<Piece<'_>> =
                unique.entries[rows].iter().map(|(ids, core)| Piece { ids, core: core.clone() }).collect();
            vectors.extend(embedder.pool(&pieces)?.into_iter().map(|pooled| embedder.vectors(pooled)));
        }
        let distance = |pair: (Option<usize>, Option<usize>)| {
            let (a, b) = pair.0.zip(pair.1)?;
            let squares = vectors[a].iter().zip(&vectors[b]).map(|(a, b)| f64::from(a - b).powi(2));
            Some(squares.sum::<f64>().sqrt())
        };
        Ok(asked.into_iter().map(distance).collect())
    }
}

/// Sequences with the part that matters, each kept once.
#[derive(Default)]
struct Unique {
    entries: Vec<(Vec<u8>, Range<usize>)>,
    numbers: HashMap<(Vec<u8>, Range<usize>), usize>,
}

impl Unique {
    fn add(&mut self, ids: Vec<u8>, part: Range<usize>) -> usize {
        *self.numbers.entry((ids, part)).or_insert_with_key(|entry| {
            self.entries.push(entry.clone());
            self.entries.len() - 1
        })
    }
}

/// Rows that go through the model together, in order, and their padded length: at least [`FEWEST_TOKENS`] in all.
fn batches(
    lengths: impl Iterator<Item = usize>,
    most_tokens: usize,
) -> impl Iterator<Item = (Range<usize>, usize)> {
    let lengths: Vec<usize> = lengths.collect();
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut longest = *lengths.get(start)?;
        let mut end = start + 1;
        while let Some(&next) = lengths.get(end)
            && longest.max(next) * (end + 1 - start) <= most_tokens
        {
            longest = longest.max(next);
            end += 1;
        }
        let rows = start..end;
        start = end;
        let len = longest.max(FEWEST_TOKENS.div_ceil(rows.len()));
        Some((rows, len))
    })
}

fn log_softmax(x: [f64; 4]) -> [f64; 4] {
    let largest = x.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - largest).exp()).sum();
    x.map(|x| x - largest - sum.ln())
}
