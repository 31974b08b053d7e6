//! New residues from ProtMamba: spans of a protein, or a whole new member of a family.

use mamba_core::{Error, Result};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::Rng;

use crate::protein::alphabet::SPANS;
use crate::protein::fim::Prompt;
use crate::protein::score::{ProteinScorer, log_softmax, run};
use crate::rng::{Stream, keyed};

/// How residues are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest; 1 draws as the model says; less is bolder towards the likely.
    pub temperature: f64,
    /// Of everything random.
    pub seed: u64,
}

/// A drawn sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The whole protein.
    pub residues: Vec<u32>,
    /// Sum of ln p of the drawn residues among the amino acids, before the temperature.
    pub log_likelihood: f64,
}

/// Fills spans of a protein (positions from 0, in order, apart, at most five) with as many residues as they have, each
/// given all that stays and what was filled before.
///
/// # Errors
/// Spans that are no such, or a model that cannot fill in.
pub fn infill(
    scorer: &ProteinScorer,
    residues: &[u32],
    spans: &[std::ops::Range<usize>],
    sampling: Sampling,
    sample: u64,
) -> Result<Drawn> {
    let Some((model, state, device)) = scorer.generator().filter(|_| scorer.sees_both_sides()) else {
        return Err(Error::Config("only a ProtMamba with tokens for spans can fill in".into()));
    };
    let apart = spans.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let inside = spans.iter().all(|span| !span.is_empty() && span.end <= residues.len());
    if spans.is_empty() || spans.len() > SPANS || !apart || !inside {
        return Err(Error::Config(format!(
            "expected 1 to {SPANS} spans in order inside the protein's {} residues",
            residues.len()
        )));
    }
    let sequence = scorer.context_len() as u32;
    let mut drawn = Drawn { residues: residues.to_vec(), log_likelihood: 0.0 };
    let mut state = state.clone();
    let mut rng = keyed(sampling.seed, sample, 0, Stream::Spans);
    let mut prompt = Prompt::default();
    prompt.push_open(residues, spans, sequence);
    for (number, span) in spans.iter().enumerate() {
        prompt.push_mask(number, span.start + 1, sequence);
        for position in span.clone() {
            let logits = run(model, &prompt, &mut state, device)?;
            let logits = logits.last().map_or(&[][..], Vec::as_slice);
            let (token, log_p) = draw(logits, scorer, sampling.temperature, &[], &mut rng);
            drawn.residues[position] = token;
            drawn.log_likelihood += log_p;
            prompt = Prompt::default();
            prompt.push_residue(token, position + 1, sequence);
        }
    }
    Ok(drawn)
}

/// A new protein after the context, up to where the model begins another or `longest` residues.
///
/// # Errors
/// A model that does not generate.
pub fn generate(scorer: &ProteinScorer, longest: usize, sampling: Sampling, sample: u64) -> Result<Drawn> {
    use crate::protein::alphabet::{CLS, EOS};
    let Some((model, state, device)) = scorer.generator() else {
        return Err(Error::Config("only ProtMamba generates proteins".into()));
    };
    let sequence = scorer.context_len() as u32;
    let mut drawn = Drawn { residues: Vec::new(), log_likelihood: 0.0 };
    let mut state = state.clone();
    let mut rng = keyed(sampling.seed, sample, 1, Stream::Spans);
    let mut prompt = Prompt::default();
    prompt.push_sequence(&[], sequence);
    while drawn.residues.len() < longest {
        let logits = run(model, &prompt, &mut state, device)?;
        let logits = logits.last().map_or(&[][..], Vec::as_slice);
        let ends: &[u32] = if drawn.residues.is_empty() { &[] } else { &[CLS, EOS] };
        let (token, log_p) = draw(logits, scorer, sampling.temperature, ends, &mut rng);
        if ends.contains(&token) {
            break;
        }
        drawn.residues.push(token);
        drawn.log_likelihood += log_p;
        prompt = Prompt::default();
        prompt.push_residue(token, drawn.residues.len(), sequence);
    }
    Ok(drawn)
}

/// One of the amino acids and `ends`, and its ln p among them.
fn draw(
    logits: &[f32],
    scorer: &ProteinScorer,
    temperature: f64,
    ends: &[u32],
    rng: &mut ChaCha12Rng,
) -> (u32, f64) {
    let tokens: Vec<u32> = scorer.alphabet().amino_acids().chain(ends.iter().copied()).collect();
    let chosen: Vec<f32> = tokens.iter().map(|&token| logits[token as usize]).collect();
    let p = log_softmax(&chosen);
    let likeliest = || (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0);
    let place = match temperature > 0.0 {
        false => likeliest(),
        true => {
            let weights: Vec<f64> = p.iter().map(|p| (p / temperature).exp()).collect();
            let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let mut rest = uniform * weights.iter().sum::<f64>();
            let place = weights.iter().position(|weight| {
                rest -= weight;
                rest < 0.0
            });
            place.unwrap_or_else(likeliest)
        }
    };
    (tokens[place], p[place])
}
