//! Text from a language model: sampling, and a loop over prefill and steps that hands out one token at a time.
//!
//! ```
//! use candle_core::{DType, Device};
//! use mamba_core::generate::{Generation, Sampling};
//! use mamba_core::lm::{LmConfig, MambaLm};
//! use mamba_core::Params;
//!
//! let cfg = LmConfig { d_model: 16, n_layer: 2, vocab_size: 32, ..Default::default() };
//! let lm = MambaLm::new(&cfg, &Params::fresh(1, DType::F32, &Device::Cpu).builder())?;
//! let sampling = Sampling { temperature: 0.8, top_p: 0.95, ..Default::default() };
//! let generation = Generation { max_tokens: 5, sampling, seed: 7, ..Default::default() };
//! for token in lm.generate(&[3, 1, 4], &generation)? {
//!     println!("{}", token?);
//! }
//! # Ok::<(), mamba_core::Error>(())
//! ```

use crate::lm::MambaLm;
use crate::{BackboneState, Error, Rng};
use candle_core::{D, DType, Device, IndexOp, Result, Tensor, bail};
use std::collections::HashSet;

/// Tokens of a prompt that are run at once: bounds memory, changes nothing else.
const PREFILL_CHUNK: usize = 2048;

/// How the next token is drawn from the logits. The filters apply in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits of tokens that the text already has are divided by it where positive and multiplied where negative (Keskar
    /// et al. 2019, arXiv 1909.05858, section 4.1); 1 for none.
    pub repetition_penalty: f64,
    /// Logits are divided by it; 0 always takes the most likely token.
    pub temperature: f64,
    /// Only so many most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together have at least this probability (Holtzman et al. 2019, arXiv 1904.09751,
    /// section 3.1), and always one; 1 for all.
    pub top_p: f64,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 }
    }
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses settings that make no distribution.
    pub fn validate(&self) -> crate::Result<()> {
        let Self { repetition_penalty, temperature, top_p, .. } = *self;
        let problem = if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            format!("repetition penalty is {repetition_penalty}, must be above 0")
        } else if !(temperature >= 0.0 && temperature.is_finite()) {
            format!("temperature is {temperature}, must be at least 0")
        } else if !(top_p > 0.0 && top_p <= 1.0) {
            format!("top-p is {top_p}, must be above 0 and at most 1")
        } else {
            return Ok(());
        };
        Err(Error::Config(problem))
    }

    /// The tokens that may come next with their probabilities, most likely first; of equally likely ones the lower id
    /// first. `seen` are the tokens of the text so far.
    ///
    /// # Errors
    /// A logit that is not a number, or none that is above -∞.
    pub fn distribution(&self, logits: &[f32], seen: &HashSet<u32>) -> Result<Vec<(u32, f64)>> {
        if let Some(id) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
            bail!("the logit of token {id} is {}", logits[id]);
        }
        let penalised = |(id, &logit): (usize, &f32)| {
            let (id, logit) = (id as u32, f64::from(logit));
            let repeated = self.repetition_penalty != 1.0 && seen.contains(&id);
            match repeated {
                true if logit > 0.0 => (id, logit / self.repetition_penalty),
                true => (id, logit * self.repetition_penalty),
                false => (id, logit),
            }
        };
        let mut tokens: Vec<(u32, f64)> = logits.iter().enumerate().map(penalised).collect();
        let likelier = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let keep = match (self.temperature, self.top_k) {
            (0.0, _) => 1,
            (_, 0) => tokens.len(),
            (_, k) => k.min(tokens.len()),
        };
        if keep < tokens.len() {
            tokens.select_nth_unstable_by(keep - 1, likelier);
            tokens.truncate(keep);
        }
        tokens.sort_unstable_by(likelier);
        let Some(&(_, largest)) = tokens.first() else { bail!("there are no logits") };
        if largest == f64::NEG_INFINITY {
            bail!("every logit is -inf");
        }
        let temperature = if self.temperature > 0.0 { self.temperature } else { 1.0 };
        for (_, p) in &mut tokens {
            *p = ((*p - largest) / temperature).exp();
        }
        normalise(&mut tokens);
        if self.top_p < 1.0 {
            let mut total = 0.0;
            let enough = tokens.iter().position(|(_, p)| {
                total += p;
                total >= self.top_p
            });
            tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
            normalise(&mut tokens);
        }
        Ok(tokens)
    }
}

fn normalise(tokens: &mut [(u32, f64)]) {
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    tokens.iter_mut().for_each(|(_, p)| *p /= total);
}

/// A token drawn from a distribution as [`Sampling::distribution`] gives it.
fn draw(tokens: &[(u32, f64)], rng: &mut Rng) -> u32 {
    let mut left = rng.uniform();
    for &(id, p) in tokens {
        if left < p {
            return id;
        }
        left -= p;
    }
    // rounding left a little: the last token that is possible at all
    tokens.iter().rev().find(|(_, p)| *p > 0.0).map_or(0, |&(id, _)| id)
}

/// What is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Most tokens.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Seed of the draws: the same seed gives the same tokens.
    pub seed: u64,
    /// Tokens that end the text; they are not part of it.
    pub stop: Vec<u32>,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_tokens: 100, sampling: Sampling::default(), seed: 0, stop: Vec::new() }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// `max_tokens` were drawn.
    Length,
    /// A stop token was drawn.
    Stop,
}

/// The tokens of a text as they come; made by [`MambaLm::generate`].
#[derive(Debug)]
pub struct Tokens<'a> {
    lm: &'a MambaLm,
    generation: Generation,
    device: Device,
    rng: Rng,
    state: BackboneState,
    /// Of the next token; empty once the text ended.
    logits: Vec<f32>,
    seen: HashSet<u32>,
    drawn: usize,
    ending: Option<Ending>,
}

impl Tokens<'_> {
    /// Why the text ended; `None` while it goes on.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    fn advance(&mut self) -> Result<Option<u32>> {
        if self.ending.is_some() {
            return Ok(None);
        }
        if self.drawn >= self.generation.max_tokens {
            self.ending = Some(Ending::Length);
            return Ok(None);
        }
        let tokens = self.generation.sampling.distribution(&self.logits, &self.seen)?;
        let token = draw(&tokens, &mut self.rng);
        if self.generation.stop.contains(&token) {
            self.ending = Some(Ending::Stop);
            return Ok(None);
        }
        self.seen.insert(token);
        self.drawn += 1;
        if self.drawn < self.generation.max_tokens {
            let (lm, state) = (self.lm, &mut self.state);
            let id = Tensor::from_slice(&[token], 1, &self.device)?;
            let logits = on_pool(|| lm.step(&id, state))?; // (1, vocabulary)
            self.logits = next_logits(lm, &logits.squeeze(0)?)?;
        }
        Ok(Some(token))
    }
}

impl Iterator for Tokens<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Result<u32>> {
        let token = self.advance().transpose();
        if let Some(Err(_)) = token {
            self.ending = Some(Ending::Stop);
        }
        token
    }
}

/// Runs `work` on a thread of rayon's pool: from outside it every parallel loop would put this thread to sleep and wake
/// it again, which costs as much as the loops of a decoding step themselves.
pub(crate) fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Logits `(vocabulary)` without those of padding tokens.
fn next_logits(lm: &MambaLm, logits: &Tensor) -> Result<Vec<f32>> {
    logits.narrow(0, 0, lm.vocab_size())?.to_dtype(DType::F32)?.to_vec1()
}

impl MambaLm {
    /// Runs `prompt` `(B, L)` from and to a state and returns the logits `(B, vocabulary)` of what comes next.
    pub fn prefill(&self, prompt: &Tensor, state: &mut BackboneState) -> Result<Tensor> {
        let (_, len) = prompt.dims2()?;
        let mut last = None;
        for start in (0..len).step_by(PREFILL_CHUNK) {
            let chunk = prompt.narrow(1, start, PREFILL_CHUNK.min(len - start))?;
            let hidden = self.forward_embedded(&self.embed(&chunk)?, None, Some(state))?; // (B, chunk, d_model)
            last = Some(hidden.i((.., hidden.dim(1)? - 1))?); // (B, d_model)
        }
        match last {
            Some(hidden) => self.logits(&hidden.contiguous()?),
            None => bail!("the prompt has no tokens"),
        }
    }

    /// The tokens that follow `prompt`.
    ///
    /// # Errors
    /// An empty prompt, a token outside the vocabulary, impossible settings; each token that is asked for later may fail
    /// too.
    pub fn generate(&self, prompt: &[u32], generation: &Generation) -> crate::Result<Tokens<'_>> {
        generation.sampling.validate()?;
        if prompt.is_empty() {
            return Err(Error::Config("the prompt has no tokens; give it at least one".into()));
        }
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= self.vocab_size()) {
            let most = self.vocab_size();
            return Err(Error::Config(format!(
                "token {token} of the prompt is outside the vocabulary of {most}"
            )));
        }
        let device = self.device().clone();
        let ids = Tensor::from_slice(prompt, (1, prompt.len()), &device)?;
        let mut state = BackboneState::new();
        let logits = on_pool(|| self.prefill(&ids, &mut state))?;
        Ok(Tokens {
            lm: self,
            device,
            rng: Rng::stream(generation.seed, "generate", 0),
            state,
            logits: next_logits(self, &logits.squeeze(0)?)?,
            seen: prompt.iter().copied().collect(),
            drawn: 0,
            ending: None,
            generation: generation.clone(),
        })
    }

    /// Continues each row of `prompt` `(B, L)` by `tokens` most likely tokens: the new tokens `(B, tokens)` and the
    /// logits that chose them `(B, tokens, vocabulary)`.
    pub fn generate_greedy(&self, prompt: &Tensor, tokens: usize) -> Result<(Tensor, Tensor)> {
        let mut state = BackboneState::new();
        let mut logits = self.prefill(prompt, &mut state)?;
        let (mut ids, mut all) = (Vec::new(), Vec::new());
        for i in 0..tokens {
            let next = logits.argmax(D::Minus1)?; // (B)
            all.push(logits.clone());
            if i + 1 < tokens {
                logits = self.step(&next, &mut state)?;
            }
            ids.push(next);
        }
        Ok((Tensor::stack(&ids, 1)?, Tensor::stack(&all, 1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.4, 0.1, 0.3, 0.2 of tokens 0..4.
    fn logits() -> Vec<f32> {
        [0.4f32, 0.1, 0.3, 0.2].map(f32::ln).to_vec()
    }

    fn distribution(sampling: Sampling, seen: &[u32]) -> Vec<(u32, f64)> {
        sampling.distribution(&logits(), &seen.iter().copied().collect()).unwrap()
    }

    #[track_caller]
    fn expect(got: Vec<(u32, f64)>, want: &[(u32, f64)]) {
        assert_eq!(got.len(), want.len(), "{got:?}");
        for (got, want) in got.iter().zip(want) {
            assert!(got.0 == want.0 && (got.1 - want.1).abs() < 1e-6, "{got:?}, expected {want:?}");
        }
    }

    #[test]
    fn without_filters_the_distribution_is_the_softmax() {
        expect(distribution(Sampling::default(), &[1]), &[(0, 0.4), (2, 0.3), (3, 0.2), (1, 0.1)]);
    }

    #[test]
    fn temperature_raises_probabilities_to_its_inverse() {
        // p^2 / Σ p^2 = (0.16, 0.01, 0.09, 0.04) / 0.3
        let sampling = Sampling { temperature: 0.5, ..Default::default() };
        expect(distribution(sampling, &[]), &[(0, 16. / 30.), (2, 9. / 30.), (3, 4. / 30.), (1, 1. / 30.)]);
        expect(distribution(Sampling::greedy(), &[]), &[(0, 1.0)]);
    }

    #[test]
    fn top_k_keeps_the_k_most_likely() {
        let top = |top_k| distribution(Sampling { top_k, ..Default::default() }, &[]);
        expect(top(2), &[(0, 4. / 7.), (2, 3. / 7.)]);
        expect(top(1), &[(0, 1.0)]);
        assert_eq!(top(9).len(), 4);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_p() {
        let top = |top_p| distribution(Sampling { top_p, ..Default::default() }, &[]);
        expect(top(0.69), &[(0, 4. / 7.), (2, 3. / 7.)]);
        expect(top(0.71), &[(0, 4. / 9.), (2, 3. / 9.), (3, 2. / 9.)]);
        expect(top(1e-9), &[(0, 1.0)]);
    }

    #[test]
    fn repetition_divides_positive_and_multiplies_negative_logits() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Default::default() };
        let logits = [2f32.ln(), -(2f32.ln()), 0.0];
        // ln 2 → ln √2, -ln 2 → -ln 4
        let got = sampling.distribution(&logits, &[0, 1].into_iter().collect()).unwrap();
        let total = 2f64.sqrt() + 0.25 + 1.0;
        expect(got, &[(0, 2f64.sqrt() / total), (2, 1.0 / total), (1, 0.25 / total)]);
    }

    #[test]
    fn filters_apply_one_after_another() {
        // penalty first: ln 0.4 · 4 = ln 0.0256 makes token 0 the last of four; then two of three by top-p
        let sampling = Sampling { repetition_penalty: 4.0, top_k: 3, top_p: 0.8, ..Default::default() };
        expect(distribution(sampling, &[0]), &[(2, 0.6), (3, 0.4)]);
    }

    #[test]
    fn of_equals_the_lower_id_comes_first() {
        let sampling = Sampling { top_k: 2, ..Default::default() };
        let got = sampling.distribution(&[1.0, 3.0, 1.0, 3.0, 3.0], &HashSet::new()).unwrap();
        expect(got, &[(1, 0.5), (3, 0.5)]);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let tokens = distribution(Sampling::default(), &[]);
        let mut rng = Rng::new(1);
        let mut counts = [0u32; 4];
        (0..40_000).for_each(|_| counts[draw(&tokens, &mut rng) as usize] += 1);
        for (count, p) in counts.into_iter().zip([0.4, 0.1, 0.3, 0.2]) {
            assert!((f64::from(count) / 40_000.0 - p).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let none = HashSet::new();
        let sampling = Sampling::default();
        let message = |logits: &[f32]| sampling.distribution(logits, &none).unwrap_err().to_string();
        assert!(message(&[0.0, f32::NAN]).contains("the logit of token 1 is NaN"));
        assert!(message(&[f32::NEG_INFINITY; 2]).contains("every logit is -inf"));
        assert!(message(&[]).contains("no logits"));
        for (sampling, message) in [
            (Sampling { temperature: -1.0, ..sampling }, "temperature is -1, must be at least 0"),
            (Sampling { temperature: f64::NAN, ..sampling }, "temperature is NaN"),
            (Sampling { top_p: 0.0, ..sampling }, "top-p is 0"),
            (Sampling { top_p: 1.1, ..sampling }, "top-p is 1.1"),
            (Sampling { repetition_penalty: 0.0, ..sampling }, "repetition penalty is 0"),
        ] {
            let error = sampling.validate().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
