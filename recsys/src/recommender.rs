//! A model at work: histories to vectors, vectors to scores.

use crate::models::{Mamba4Rec, Mamba4RecState, Model, ModelConfig};
use candle_core::{DType, Device, Result, Tensor};
use mamba_core::Params;
use mamba_kernels::Segments;

/// Fewest items in a pass, padded with a sequence of its own: products of a few rows only would be summed in another
/// order, and a history's scores would depend on those beside it.
const FEWEST_ITEMS: usize = 512;

/// A model with fixed weights.
#[derive(Clone, Debug)]
pub struct Recommender {
    model: Model,
    n_items: usize,
    max_length: usize,
    device: Device,
}

impl Recommender {
    /// Builds the model on fixed weights.
    ///
    /// # Errors
    /// Weights that are not those of the model.
    pub fn new(
        cfg: &ModelConfig,
        n_items: usize,
        max_length: usize,
        params: &Params,
    ) -> mamba_core::Result<Self> {
        let model = Model::new(cfg, n_items, max_length, &params.builder())?;
        params.check()?;
        Ok(Self { model, n_items, max_length, device: params.device().clone() })
    }

    /// The weights of another store, such as those in training, without their variables.
    pub fn frozen(
        cfg: &ModelConfig,
        n_items: usize,
        max_length: usize,
        params: &Params,
    ) -> mamba_core::Result<Self> {
        // Without variables there is no graph, and activations are freed as they are used.
        let frozen = Params::frozen(params.to_tensors(), params.dtype(), params.device());
        Self::new(cfg, n_items, max_length, &frozen)
    }

    /// The same model over more or fewer items of each history.
    ///
    /// # Errors
    /// None at all, or more than the model has positions for.
    pub fn with_max_length(self, max_length: usize) -> mamba_core::Result<Self> {
        let most = self.model.positions().unwrap_or(usize::MAX);
        if !(1..=most).contains(&max_length) {
            let problem = format!("histories of {max_length} items: the model takes 1 to {most}");
            return Err(mamba_core::Error::Config(problem));
        }
        Ok(Self { max_length, ..self })
    }

    /// Rows of the item table: items and padding.
    pub fn n_items(&self) -> usize {
        self.n_items
    }

    /// Most items of a history that count.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The item table `(n_items, d)`.
    pub fn item_table(&self) -> &Tensor {
        self.model.item_table()
    }

    /// One vector for each history, `(histories, d)`, of its last `max_length` items. Histories must not be empty.
    pub fn encode(&self, histories: &[&[u32]]) -> Result<Tensor> {
        let (mut items, mut cu_seqlens) = (Vec::new(), vec![0]);
        for history in histories {
            items.extend(&history[history.len().saturating_sub(self.max_length)..]);
            cu_seqlens.push(items.len());
        }
        let last: Vec<u32> = cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect();
        while items.len() < FEWEST_ITEMS {
            items.resize(FEWEST_ITEMS.min(items.len() + self.max_length), 0);
            cu_seqlens.push(items.len());
        }
        let len = items.len();
        let items = Tensor::from_vec(items, (1, len), &self.device)?;
        let hidden = self.model.forward(&items, &Segments::packed(&cu_seqlens)?, None)?; // (1, L, d)
        let n = last.len();
        hidden.squeeze(0)?.index_select(&Tensor::from_vec(last, n, &self.device)?, 0) // (histories, d)
    }

    /// The state before the first item.
    ///
    /// # Errors
    /// A model that has none.
    pub fn new_state(&self) -> mamba_core::Result<Mamba4RecState> {
        Ok(self.recurrent()?.new_state())
    }

    /// A state after one item: its parts have the shapes that those of any state have.
    ///
    /// # Errors
    /// A model that has none.
    pub fn example_state(&self) -> mamba_core::Result<Mamba4RecState> {
        let mut state = self.new_state()?;
        self.encode_from(&[&[0]], &mut state)?;
        Ok(state)
    }

    /// One vector for each history, `(histories, d)`, after its *new* items, all of them; the states move on. Nothing may
    /// be empty.
    ///
    /// # Errors
    /// A model that has no state.
    pub fn encode_from(
        &self,
        new_items: &[&[u32]],
        state: &mut Mamba4RecState,
    ) -> mamba_core::Result<Tensor> {
        let mut cu_seqlens = vec![0];
        for items in new_items {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + items.len());
        }
        let last: Vec<u32> = cu_seqlens[1..].iter().map(|&end| end as u32 - 1).collect();
        let items: Vec<u32> = new_items.concat();
        let (n, len) = (last.len(), items.len());
        let items = Tensor::from_vec(items, (1, len), &self.device)?;
        let segments = Segments::packed(&cu_seqlens)?;
        let hidden = self.recurrent()?.forward(&items, &segments, None, Some(state))?; // (1, L, d)
        Ok(hidden.squeeze(0)?.index_select(&Tensor::from_vec(last, n, &self.device)?, 0)?)
    }

    fn recurrent(&self) -> mamba_core::Result<&Mamba4Rec> {
        match &self.model {
            Model::Mamba4Rec(model) => Ok(model),
            other => {
                let why = match other {
                    Model::RecMamba(_) => {
                        "numbers the positions of a history, so that none goes on past the last"
                    }
                    Model::EchoMamba4Rec(_) => {
                        "reads every history in both directions, so that none can go on"
                    }
                    _ => "keeps no state of constant size",
                };
                let problem = format!("{} {why}; states need mamba4rec", other.name());
                Err(mamba_core::Error::Config(problem))
            }
        }
    }

    /// The scores of all items for each history, `(histories, n_items)` row-major; place 0 of a row is padding.
    pub fn scores(&self, histories: &[&[u32]]) -> Result<Vec<f32>> {
        let hidden = self.encode(histories)?;
        hidden.matmul(&self.item_table().t()?)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }
}
