//! Caduceus, a bidirectional DNA language model that respects the reverse complement (Schiff et al. 2024,
//! arXiv 2403.03234).
//!
//! **Ph** is a stack of pre-norm bidirectional Mamba blocks on one strand. **PS** runs the same blocks on both strands with
//! shared parameters: with `rc` reversing tokens and channels, each layer f acts as `(p, q) → (f(p), rc(f(rc(q))))`.
//! We keep the second strand as `q' = rc(q)`, read in its own direction. Then a PS layer is plain f on a batch of twice
//! the size, and nothing is flipped until the head.
//!
//! The upstream code has a twist that its published PS weights depend on: with `fused_add_norm` every block swaps the
//! strands, `(p, q) → (f(q), rc(f(rc(p))))`. Keeping the *other* orientation of both strands instead of moving them,
//! that is layer f alternating with `rc·f·rc`: even layers run [`Orientation::Flipped`], and again nothing is flipped.
//! After an odd number of layers the strands lie swapped and reversed, which the end puts right.

use crate::config::CaduceusConfig;
use candle_core::{D, Device, Module, Result, Tensor, bail};
use mamba_core::bidirectional::{Combine, Orientation};
use mamba_core::nn::{Embedding, Linear, Norm, cross_entropy, flip};
use mamba_core::recompute::recompute;
use mamba_core::{BiMamba, Init, MixerState, ParamBuilder};
use mamba_kernels::{Segment, Segments};

/// Hidden states `(B, L, D)` of both strands.
#[derive(Clone, Debug)]
pub struct Strands {
    /// Of the sequence as given.
    pub forward: Tensor,
    /// Of its reverse complement, in the direction of that strand; none for Caduceus-Ph.
    pub reverse: Option<Tensor>,
}

/// The body of Caduceus: embedding, blocks, final norm.
#[derive(Clone, Debug)]
pub struct Caduceus {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm_f: Norm,
    rcps: bool,
    /// Whether the layers alternate in orientation.
    swaps: bool,
    complements: Vec<u32>,
    /// Whether blocks are computed again in the backward pass.
    recomputes: bool,
}

/// Add, norm, bidirectional mixer.
#[derive(Clone, Debug)]
struct Layer {
    norm: Norm,
    mixer: BiMamba,
    /// What is trained of both.
    params: Vec<Tensor>,
}

impl Layer {
    /// `hidden`, `residual` `(B, L, D)` → the next of both.
    fn forward(
        &self,
        hidden: &Tensor,
        residual: Option<&Tensor>,
        orientation: Orientation,
        segments: Option<&Segments>,
    ) -> Result<(Tensor, Tensor)> {
        let (x, residual) = match orientation {
            Orientation::Given => self.norm.forward_residual(hidden, residual)?,
            Orientation::Flipped => self.norm.flip()?.forward_residual(hidden, residual)?,
        };
        Ok((self.mixer.forward(&x, orientation, segments)?, residual))
    }
}

impl Caduceus {
    /// Parameters `caduceus.backbone.*`.
    pub fn new(cfg: &CaduceusConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (root, pb) = (pb, pb.pp("caduceus.backbone"));
        let (d, init) = (cfg.d_model, &cfg.initializer_cfg);
        let residuals = match init.rescale_prenorm_residual {
            true => init.n_residuals_per_layer * cfg.n_layer,
            false => 1,
        };
        // PS wraps its modules, which shows in the names.
        let wrap = |name: &str, wrapped: bool| match wrapped {
            true => format!("{name}.submodule"),
            false => name.to_string(),
        };
        let wraps_norm = cfg.rcps && !cfg.fused_add_norm;
        let (kind, eps) = cfg.norm();
        // The embedding is the head of the language model too; a checkpoint holds it under either name.
        let names = match cfg.rcps {
            true => {
                ["caduceus.backbone.embeddings.word_embeddings.embedding.weight", "lm_head.lm_head.weight"]
            }
            false => ["caduceus.backbone.embeddings.word_embeddings.weight", "lm_head.weight"],
        };
        let normal = Init::Normal { std: init.initializer_range };
        let embedding = root.get_any((cfg.padded_vocab_size(), d), &names, normal)?;
        let layers = (0..cfg.n_layer).map(|i| {
            let pb = pb.pp("layers").pp(i);
            let mixer = BiMamba::new(
                d,
                &cfg.ssm_cfg,
                (cfg.bidirectional, cfg.bidirectional_weight_tie),
                cfg.bidirectional_strategy.unwrap_or_default(),
                residuals,
                &pb.pp(wrap("mixer", cfg.rcps)),
            )?;
            let norm = Norm::new(kind, d, eps, &pb.pp(wrap("norm", wraps_norm)))?;
            let prefix = format!("{}.", pb.prefix());
            let params = pb.params().named().into_iter();
            let params = params.filter(|p| p.var().is_some() && p.name().starts_with(&prefix));
            Ok(Layer { norm, mixer, params: params.map(|p| p.tensor().clone()).collect() })
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            embedding: Embedding::from_tensor(embedding),
            norm_f: Norm::new(kind, d, eps, &pb.pp(wrap("norm_f", wraps_norm)))?,
            rcps: cfg.rcps,
            swaps: cfg.rcps && cfg.fused_add_norm,
            complements: cfg.complements(),
            recomputes: false,
        })
    }

    /// Whether blocks keep their input only and are computed again in the backward pass ([`recompute`]): less memory, the
    /// same bits.
    pub fn recomputed(mut self, yes: bool) -> Self {
        self.recomputes = yes;
        self
    }

    /// Number of blocks.
    pub fn n_layer(&self) -> usize {
        self.layers.len()
    }

    /// Whether the model shares its parameters between the strands (PS).
    pub fn is_rcps(&self) -> bool {
        self.rcps
    }

    /// The final hidden states. `input_ids` `(B, L)` u32; with `lengths`, row i has `lengths[i]` tokens and is padded on
    /// the right: padding changes nothing, and its own hidden states mean nothing.
    pub fn forward(&self, input_ids: &Tensor, lengths: Option<&[usize]>) -> Result<Strands> {
        let segments = right_padded(input_ids, lengths)?;
        self.forward_with(input_ids, segments.as_ref(), |_, _, hidden| Ok(hidden))
    }

    /// The final hidden states of sequences that lie in `(B, L)` as `segments` say, whole rows without.
    ///
    /// `adapt(i, strands, hidden)` may change what goes into block i: for i = 0 the embedding, else the output of the
    /// block before. `strands` are the token ids of all rows of `hidden`: `input_ids`, and for PS below them those of the
    /// other strand.
    pub fn forward_with(
        &self,
        input_ids: &Tensor,
        segments: Option<&Segments>,
        adapt: impl FnMut(usize, &Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<Strands> {
        let layers = self.layers.len();
        let (hidden, residual) = self.run(input_ids, segments, layers, adapt)?;
        let hidden = self.arrange(&hidden, layers, segments)?;
        let residual = residual.map(|r| self.arrange(&r, layers, segments)).transpose()?;
        self.split(&self.norm_f.forward_residual(&hidden, residual.as_ref())?.0)
    }

    /// The residual stream after the first `layer` blocks, without the final norm.
    pub fn forward_to(&self, input_ids: &Tensor, lengths: Option<&[usize]>, layer: usize) -> Result<Strands> {
        if layer > self.layers.len() {
            bail!("layer {layer} of a model with {} layers", self.layers.len());
        }
        let segments = right_padded(input_ids, lengths)?;
        let (mut hidden, residual) =
            self.run(input_ids, segments.as_ref(), layer, |_, _, hidden| Ok(hidden))?;
        if let Some(residual) = residual {
            hidden = (hidden + residual)?;
        }
        self.split(&self.arrange(&hidden, layer, segments.as_ref())?)
    }

    /// Upstream's `output_hidden_states`: what is added to the residual stream in front of each block (the embedding,
    /// then the output of the block before) and last the final hidden states; `(B, L, D)` each, or `(B, L, 2·D)` for PS.
    pub fn hidden_states(&self, input_ids: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = Vec::new();
        self.clone().recomputed(false).run(input_ids, None, self.layers.len(), |i, _, hidden| {
            states.push(self.split(&self.arrange(&hidden, i, None)?)?.concatenated()?);
            Ok(hidden)
        })?;
        states.push(self.forward(input_ids, None)?.concatenated()?);
        Ok(states)
    }

    /// Runs the first `layers` blocks on `(B, L)` or, for PS, on both strands as `(2·B, L)`; `adapt` may change the hidden
    /// state in front of every block.
    fn run(
        &self,
        input_ids: &Tensor,
        segments: Option<&Segments>,
        layers: usize,
        mut adapt: impl FnMut(usize, &Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (ids, both) = match self.rcps {
            true => {
                let reverse = self.reverse_complement_segments(input_ids, segments)?;
                (Tensor::cat(&[input_ids, &reverse], 0)?, segments.map(twice).transpose()?)
            }
            false => (input_ids.clone(), segments.cloned()),
        };
        let (mut hidden, mut residual) = (self.embedding.forward(&ids)?, None);
        for (i, layer) in self.layers[..layers].iter().enumerate() {
            hidden = adapt(i, &ids, hidden)?;
            let orientation = self.orientation(i);
            if self.recomputes {
                // One tensor stands for both: their sum.
                let (block, segments) = (layer.clone(), both.clone());
                hidden = recompute(&hidden, &layer.params, move |stream| {
                    let (hidden, residual) = block.forward(stream, None, orientation, segments.as_ref())?;
                    hidden + residual
                })?;
                continue;
            }
            let (next, sum) = layer.forward(&hidden, residual.as_ref(), orientation, both.as_ref())?;
            (hidden, residual) = (next, Some(sum));
        }
        Ok((hidden, residual))
    }

    /// What block number `layer` adds to a chunk of the residual stream `(B, L, D)` in one direction of reading; none if it
    /// does not read in that one.
    pub(crate) fn maybe_one_way(
        &self,
        layer: usize,
        stream: &Tensor,
        reverse: bool,
        state: &mut MixerState,
    ) -> Result<Option<Tensor>> {
        let (Layer { norm, mixer, .. }, orientation) = (&self.layers[layer], self.orientation(layer));
        let x = match orientation {
            Orientation::Given => norm.forward(stream)?,
            Orientation::Flipped => norm.flip()?.forward(stream)?,
        };
        mixer.forward_one_way(&x, orientation, reverse, state)
    }

    pub(crate) fn combine(&self, layer: usize) -> Combine {
        self.layers[layer].mixer.combine()
    }

    pub(crate) fn swaps(&self) -> bool {
        self.swaps
    }

    /// Whether no token sees a later one.
    pub fn is_causal(&self) -> bool {
        !self.swaps && self.layers.iter().all(|layer| !layer.mixer.is_bidirectional())
    }

    pub(crate) fn norm_f(&self) -> &Norm {
        &self.norm_f
    }

    pub(crate) fn device(&self) -> Device {
        self.embedding.weight().device().clone()
    }

    /// Token ids `(B, L)` → `(B, L, D)`.
    pub(crate) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embedding.forward(ids)
    }

    /// How block number `i` reads.
    fn orientation(&self, i: usize) -> Orientation {
        match self.swaps && i.is_multiple_of(2) {
            true => Orientation::Flipped,
            false => Orientation::Given,
        }
    }

    /// Reverse complement of token ids `(B, L)`, of each row's first `lengths[i]` tokens.
    pub fn reverse_complement(&self, input_ids: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        self.reverse_complement_segments(input_ids, right_padded(input_ids, lengths)?.as_ref())
    }

    /// Reverse complement of every segment of token ids `(B, L)`, each in its place; of whole rows without segments.
    pub fn reverse_complement_segments(
        &self,
        input_ids: &Tensor,
        segments: Option<&Segments>,
    ) -> Result<Tensor> {
        let mut rows = input_ids.to_vec2::<u32>()?;
        let turn = |ids: &mut [u32]| {
            ids.reverse();
            for id in ids {
                match self.complements.get(*id as usize) {
                    Some(&complement) => *id = complement,
                    None => bail!("token {id} is outside the vocabulary of {}", self.complements.len()),
                }
            }
            Ok(())
        };
        match segments {
            Some(segments) => segments.iter().try_for_each(|s| turn(&mut rows[s.row][s.start..s.end]))?,
            None => rows.iter_mut().try_for_each(|row| turn(row))?,
        }
        Tensor::from_vec(rows.concat(), input_ids.shape(), input_ids.device())
    }

    /// Undoes what the swaps of `layers` layers have done to both strands `(2·B, L, D)`: nothing if their number is even.
    fn arrange(&self, x: &Tensor, layers: usize, segments: Option<&Segments>) -> Result<Tensor> {
        if !self.swaps || layers.is_multiple_of(2) {
            return Ok(x.clone());
        }
        let batch = x.dim(0)? / 2;
        let halves = Tensor::cat(&[x.narrow(0, batch, batch)?, x.narrow(0, 0, batch)?], 0)?;
        reverse_tokens(&flip(&halves, 2)?, segments.map(twice).transpose()?.as_ref())
    }

    fn split(&self, x: &Tensor) -> Result<Strands> {
        if !self.rcps {
            return Ok(Strands { forward: x.clone(), reverse: None });
        }
        let batch = x.dim(0)? / 2;
        Ok(Strands { forward: x.narrow(0, 0, batch)?, reverse: Some(x.narrow(0, batch, batch)?) })
    }
}

/// Each segment of `(B, L, D)` with its tokens reversed; whole rows without segments.
fn reverse_tokens(x: &Tensor, segments: Option<&Segments>) -> Result<Tensor> {
    let (batch, len, d) = x.dims3()?;
    let Some(segments) = segments else { return flip(x, 1) };
    let mut ids: Vec<u32> = (0..(batch * len) as u32).collect();
    for s in segments.iter() {
        ids[s.row * len + s.start..s.row * len + s.end].reverse();
    }
    let ids = Tensor::from_vec(ids, batch * len, x.device())?;
    x.reshape((batch * len, d))?.index_select(&ids, 0)?.reshape((batch, len, d))
}

/// Rows of `(B, L)` with `lengths[i]` tokens each, padded on the right.
fn right_padded(input_ids: &Tensor, lengths: Option<&[usize]>) -> Result<Option<Segments>> {
    let Some(lengths) = lengths else { return Ok(None) };
    let (batch, len) = input_ids.dims2()?;
    if lengths.len() != batch || lengths.iter().any(|&n| n > len) {
        bail!("lengths {lengths:?} do not fit input_ids of batch {batch} × len {len}");
    }
    Segments::right_padded(len, lengths).map(Some)
}

/// The same segments once more in as many rows below.
fn twice(segments: &Segments) -> Result<Segments> {
    let below = segments.iter().map(|s| Segment { row: s.row + segments.batch(), ..*s });
    let items = segments.iter().copied().chain(below).collect();
    Segments::new(2 * segments.batch(), segments.seq_len(), items)
}

impl Strands {
    /// Upstream's layout: `(B, L, D)`, or `(B, L, 2·D)` with the second strand's tokens and channels reversed.
    pub fn concatenated(&self) -> Result<Tensor> {
        match &self.reverse {
            None => Ok(self.forward.clone()),
            Some(reverse) => Tensor::cat(&[&self.forward, &flip(&flip(reverse, 1)?, 2)?], D::Minus1),
        }
    }
}

/// Caduceus with a masked-language-model head that shares the embedding.
#[derive(Clone, Debug)]
pub struct CaduceusForMaskedLm {
    body: Caduceus,
    pad_token_id: u32,
}

impl CaduceusForMaskedLm {
    /// Parameters `caduceus.backbone.*`; the head has none of its own.
    pub fn new(cfg: &CaduceusConfig, pb: &ParamBuilder) -> Result<Self> {
        for buffer in
            ["lm_head.complement_map", "caduceus.backbone.embeddings.word_embeddings.complement_map"]
        {
            pb.params().discard(buffer);
        }
        Ok(Self { body: Caduceus::new(cfg, pb)?, pad_token_id: cfg.pad_token_id })
    }

    /// [`Caduceus::recomputed`].
    pub fn recomputed(mut self, yes: bool) -> Self {
        self.body = self.body.recomputed(yes);
        self
    }

    /// The model below the head.
    pub fn body(&self) -> &Caduceus {
        &self.body
    }

    /// `input_ids` `(B, L)` u32 → logits `(B, L, vocabulary)`.
    pub fn forward(&self, input_ids: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        let strands = self.body.forward(input_ids, lengths)?;
        let weight = self.body.embedding.weight();
        let logits = Linear::from_tensors(weight.clone(), None).forward(&strands.forward)?;
        let Some(reverse) = &strands.reverse else { return Ok(logits) };
        let complements = Tensor::new(self.body.complements.as_slice(), weight.device())?;
        let weight = weight.index_select(&complements, 0)?;
        let of_reverse = Linear::from_tensors(weight, None).forward(reverse)?;
        logits + reverse_tokens(&of_reverse, right_padded(input_ids, lengths)?.as_ref())?
    }

    /// Mean cross-entropy in nats over the labels `(B, L)` u32 that are not padding.
    pub fn loss(&self, input_ids: &Tensor, labels: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        cross_entropy(&self.forward(input_ids, lengths)?, labels, Some(self.pad_token_id))
    }
}

/// How token vectors become one vector of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// Their largest value, channel by channel.
    Max,
}

impl Pooling {
    /// `(B, L, D)` → `(B, D)`, over each row's first `lengths[i]` tokens.
    pub fn pool(self, x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        let over = |x: &Tensor, dim: usize| match self {
            Self::Mean => x.mean(dim),
            Self::Max => x.max(dim),
        };
        let Some(lengths) = lengths else { return over(x, 1) };
        let rows = lengths.iter().enumerate().map(|(i, &n)| {
            if n == 0 {
                bail!("row {i} is empty, there is nothing to pool")
            }
            over(&x.get(i)?.narrow(0, 0, n)?, 0)
        });
        Tensor::stack(&rows.collect::<Result<Vec<_>>>()?, 0)
    }
}

/// Caduceus with a linear classifier on the pooled hidden states.
///
/// PS scores both strands with the same classifier and averages. Ph scores the given strand only, or with `conjoin` also
/// the reverse complement ("post-hoc conjoining": train without, test with).
#[derive(Clone, Debug)]
pub struct CaduceusForSequenceClassification {
    body: Caduceus,
    score: Linear,
    pooling: Pooling,
    conjoin: bool,
}

impl CaduceusForSequenceClassification {
    /// Parameters `caduceus.backbone.*` and `score`.
    pub fn new(
        cfg: &CaduceusConfig,
        classes: usize,
        pooling: Pooling,
        conjoin: bool,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        pb.params().discard("caduceus.backbone.embeddings.word_embeddings.complement_map");
        let init = Init::Normal { std: cfg.initializer_cfg.initializer_range };
        let score = pb.get((classes, cfg.d_model), "score.weight", init)?;
        let score = Linear::from_tensors(score, None);
        Ok(Self { body: Caduceus::new(cfg, pb)?, score, pooling, conjoin })
    }

    /// `input_ids` `(B, L)` u32 → logits `(B, classes)`.
    pub fn forward(&self, input_ids: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        let strands = self.body.forward(input_ids, lengths)?;
        let score = |x: &Tensor| self.score.forward(&self.pooling.pool(x, lengths)?);
        let logits = score(&strands.forward)?;
        let other = match (&strands.reverse, self.conjoin) {
            (Some(reverse), _) => score(reverse)?,
            (None, false) => return Ok(logits),
            (None, true) => {
                let reverse = self.body.reverse_complement(input_ids, lengths)?;
                score(&self.body.forward(&reverse, lengths)?.forward)?
            }
        };
        (logits + other)? / 2.0
    }
}
