//! The parameters of a model: where their values come from, and which of them training changes.
//!
//! [`Params`] is the store, [`ParamBuilder`] the handle that a model's `new` takes. Three sources:
//!
//! | constructor | values | trainable |
//! |---|---|---|
//! | [`Params::fresh`] | each parameter's [`Init`], drawn from a stream named after the parameter | yes |
//! | [`Params::trainable`] | a checkpoint; what it lacks is drawn as in `fresh` and reported as missing | yes |
//! | [`Params::frozen`] | a checkpoint | no: plain tensors, no graph |
//!
//! The weights of linear maps may be stored small ([`Params::with_weight_format`]) or get low-rank adapters, which are then
//! all that is trained ([`Params::with_lora`]).
//!
//! Every tensor that a model asks for is noted, so [`Params::check`] can list what a checkpoint lacks and what it
//! has beyond the model. Asking twice for one name gives the same tensor: that is how weights are tied.
//!
//! ```
//! use candle_core::{DType, Device};
//! use mamba_core::{Init, Params};
//! let params = Params::fresh(42, DType::F32, &Device::Cpu);
//! let pb = params.builder().pp("layers.0");
//! let weight = pb.get((4, 3), "weight", Init::linear(3))?;
//! let bias = pb.get_no_decay(4, "bias", Init::Zeros)?;
//! assert_eq!(params.named()[0].name(), "layers.0.bias");
//! assert_eq!(params.count(), 16);
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::lora::{Adapter, LoraConfig};
use crate::quant::WeightFormat;
use crate::{Error, Init, Rng};
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use mamba_kernels::linear::compact;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One named parameter.
#[derive(Clone, Debug)]
pub struct Param {
    name: String,
    tensor: Tensor,
    var: Option<Var>,
    decay: bool,
}

impl Param {
    /// The full name, as in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value. For a trainable parameter it is tracked, and shows later updates.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The variable, when trainable.
    pub fn var(&self) -> Option<&Var> {
        self.var.as_ref()
    }

    /// Whether weight decay applies.
    pub fn decay(&self) -> bool {
        self.decay
    }
}

/// A store of parameters by name. Clones share it.
#[derive(Clone, Debug)]
pub struct Params {
    dtype: DType,
    device: Device,
    seed: u64,
    trainable: bool,
    format: WeightFormat,
    lora: Option<Arc<LoraConfig>>,
    /// Beginnings of the names that are trained, where not all are.
    chosen: Option<Arc<[String]>>,
    state: Arc<Mutex<State>>,
}

/// What a linear map computes with.
#[derive(Clone, Debug)]
pub(crate) struct LinearWeight {
    /// `(out, in)`, in the type of the model or compact.
    pub(crate) values: Tensor,
    /// `(out)`, with 8-bit values.
    pub(crate) scales: Option<Tensor>,
    pub(crate) adapter: Option<Adapter>,
}

/// What becomes of a parameter that a model asks for.
#[derive(Clone, Copy)]
struct Role {
    decay: bool,
    trained: bool,
    /// Whether a checkpoint may lack it: an adapter.
    optional: bool,
}

#[derive(Debug, Default)]
struct State {
    params: BTreeMap<String, Param>,
    /// Other names under which a parameter was asked for.
    aliases: BTreeMap<String, String>,
    /// Checkpoint tensors that nobody asked for yet; `None` for a fresh store.
    unused: Option<BTreeMap<String, Tensor>>,
    missing: BTreeSet<String>,
}

impl Params {
    /// Trainable parameters, initialised from `seed`. A value depends on seed and name only, not on creation order.
    pub fn fresh(seed: u64, dtype: DType, device: &Device) -> Self {
        Self::new(None, seed, true, dtype, device)
    }

    /// What a training starts from: the checkpoint in a folder, as in [`trainable`](Self::trainable), or fresh values.
    pub fn start(from: Option<&Path>, seed: u64, dtype: DType, device: &Device) -> crate::Result<Self> {
        Ok(match from {
            Some(folder) => {
                Self::trainable(crate::checkpoint::load(folder, None)?.tensors, seed, dtype, device)
            }
            None => Self::fresh(seed, dtype, device),
        })
    }

    /// Trainable parameters with the values of a checkpoint: fine-tuning. `seed` initialises those that it lacks.
    pub fn trainable(
        values: impl IntoIterator<Item = (String, Tensor)>,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Self {
        Self::new(Some(values.into_iter().collect()), seed, true, dtype, device)
    }

    /// Plain tensors with the values of a checkpoint: inference.
    pub fn frozen(values: impl IntoIterator<Item = (String, Tensor)>, dtype: DType, device: &Device) -> Self {
        Self::new(Some(values.into_iter().collect()), 0, false, dtype, device)
    }

    fn new(
        values: Option<BTreeMap<String, Tensor>>,
        seed: u64,
        trainable: bool,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let state = Arc::new(Mutex::new(State { unused: values, ..State::default() }));
        let format = WeightFormat::Full;
        Self { dtype, device: device.clone(), seed, trainable, format, lora: None, chosen: None, state }
    }

    /// Stores the weights of linear maps of models built from here on in another format. They are then not trained: for
    /// inference, or under [`Params::with_lora`]. A checkpoint may hold any format.
    pub fn with_weight_format(mut self, format: WeightFormat) -> Self {
        self.format = format;
        self
    }

    /// Gives the linear maps that `lora` names adapters in models built from here on; only those are trained.
    pub fn with_lora(mut self, lora: &LoraConfig) -> crate::Result<Self> {
        lora.validate()?;
        self.lora = Some(Arc::new(lora.clone()));
        Ok(self)
    }

    /// Trains, in models built from here on, only the parameters whose names begin with one of `prefixes` (a new head),
    /// and the adapters of [`Params::with_lora`], if there are any. All others stay as they are.
    pub fn with_trained(mut self, prefixes: &[&str]) -> Self {
        self.chosen = Some(prefixes.iter().map(ToString::to_string).collect());
        self
    }

    /// A builder at the root of the names.
    pub fn builder(&self) -> ParamBuilder {
        ParamBuilder { params: self.clone(), prefix: String::new(), dtype: self.dtype }
    }

    /// The device of all parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The default type of the parameters.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// All parameters, sorted by name.
    pub fn named(&self) -> Vec<Param> {
        self.lock().params.values().cloned().collect()
    }

    /// The trainable variables, sorted by name.
    pub fn vars(&self) -> Vec<Var> {
        self.lock().params.values().filter_map(|p| p.var.clone()).collect()
    }

    /// Number of values over all parameters; a shared parameter counts once.
    pub fn count(&self) -> usize {
        self.lock().params.values().map(|p| p.tensor.elem_count()).sum()
    }

    /// The parameter of that name, or of that alias.
    pub fn get(&self, name: &str) -> Option<Param> {
        self.lock().find(name).cloned()
    }

    /// Values by name, detached. They share memory with the parameters, so a later training step changes them too;
    /// `copy()` those that must stay.
    pub fn to_tensors(&self) -> BTreeMap<String, Tensor> {
        self.lock().params.iter().map(|(name, p)| (name.clone(), p.tensor.detach())).collect()
    }

    /// Overwrites the value of a trainable parameter.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let Some(param) = self.get(name) else { bail!("no parameter is called {name}") };
        let Some(var) = &param.var else { bail!("{name} is not trainable") };
        check_shape(name, var.shape(), value.shape())?;
        var.set(&value.to_dtype(var.dtype())?.to_device(var.device())?)
    }

    /// Accepts a checkpoint's copy of a tensor that the model has under another name.
    pub fn discard(&self, name: &str) {
        if let Some(unused) = &mut self.lock().unused {
            unused.remove(name);
        }
    }

    /// Tensors that the model asked for and the checkpoint lacks, sorted.
    pub fn missing(&self) -> Vec<String> {
        self.lock().missing.iter().cloned().collect()
    }

    /// Tensors of the checkpoint that nobody asked for, sorted.
    pub fn unexpected(&self) -> Vec<String> {
        self.lock().unused.iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// An error that lists missing and unexpected tensors, unless there are none.
    /// Call it once the model is built; a fresh store always passes.
    pub fn check(&self) -> crate::Result<()> {
        self.check_with(|_| false, |_| false)
    }

    /// [`check`](Self::check) that lets some tensors be missing (a new head) or unexpected (upstream's buffers).
    pub fn check_with(
        &self,
        may_miss: impl Fn(&str) -> bool,
        may_ignore: impl Fn(&str) -> bool,
    ) -> crate::Result<()> {
        let missing: Vec<String> = self.missing().into_iter().filter(|name| !may_miss(name)).collect();
        let unexpected: Vec<String> =
            self.unexpected().into_iter().filter(|name| !may_ignore(name)).collect();
        match missing.is_empty() && unexpected.is_empty() {
            true => Ok(()),
            false => Err(Error::Tensors { missing, unexpected }),
        }
    }

    /// Nothing but whole insertions happens under the lock, so a panic elsewhere leaves the state usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, name: &str) -> Option<&Param> {
        self.params.get(self.aliases.get(name).map_or(name, String::as_str))
    }

    /// Takes the tensors of these names out of the checkpoint; the first that is there, with its name.
    fn take(&mut self, names: &[String]) -> Option<(String, Tensor)> {
        let unused = self.unused.as_mut()?;
        let mut found = None;
        for name in names {
            let value = unused.remove(name);
            found = found.or(value.map(|value| (name.clone(), value)));
        }
        found
    }
}

/// Hands a model its parameters, with names below a prefix.
#[derive(Clone, Debug)]
pub struct ParamBuilder {
    params: Params,
    prefix: String,
    dtype: DType,
}

impl ParamBuilder {
    /// A builder one level down: `pp("layers").pp(0)` names `layers.0.…`.
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { prefix: self.full_name(&name.to_string()), ..self.clone() }
    }

    /// The same place with another type for what is built from here on, for example f32 state matrices in bf16.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The device of the parameters.
    pub fn device(&self) -> &Device {
        &self.params.device
    }

    /// The type of the parameters built here.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The names' prefix so far, without a final dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The store behind this builder.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Whether the checkpoint has a tensor of this name, or the model built one. A fresh store has none at first:
    /// there the config decides what is optional.
    pub fn contains(&self, name: &str) -> bool {
        let name = self.full_name(name);
        let state = self.params.lock();
        state.find(&name).is_some() || state.unused.as_ref().is_some_and(|unused| unused.contains_key(&name))
    }

    /// A parameter that weight decay applies to.
    pub fn get(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        self.lookup(shape.into(), &[name], init, self.role(name, true))
    }

    /// A parameter without weight decay: biases, norms, `A_log`, `D`, `dt_bias`.
    pub fn get_no_decay(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        self.lookup(shape.into(), &[name], init, self.role(name, false))
    }

    /// A parameter that a checkpoint may hold under any of several names, because there it is tied. The first name
    /// is ours: under it the parameter is created, initialised and saved. The first name that is found gives the
    /// value; copies under the other names are accepted.
    pub fn get_any(&self, shape: impl Into<Shape>, names: &[&str], init: Init) -> Result<Tensor> {
        self.lookup(shape.into(), names, init, self.role(names.first().unwrap_or(&""), true))
    }

    /// The parameter `weight` `(out, in)` of a linear map, with all that belongs to it.
    pub(crate) fn linear_weight(&self, shape: (usize, usize), init: Init) -> Result<LinearWeight> {
        let (d_out, d_in) = shape;
        let adapter = match &self.params.lora {
            Some(lora) if lora.applies_to(&self.prefix) => {
                let role = Role { decay: true, trained: self.params.trainable, optional: true };
                let part =
                    |name, shape, init| self.pp(name).lookup(Shape::from(shape), &["weight"], init, role);
                let a = part("lora_A", (lora.rank, d_in), Init::linear(d_in))?;
                let b = part("lora_B", (d_out, lora.rank), Init::Zeros)?;
                Some(Adapter::new(a, b, lora.scale()))
            }
            _ => None,
        };
        let (values, scales) = self.stored_weight(Shape::from(shape), init)?;
        Ok(LinearWeight { values, scales, adapter })
    }

    /// The weight in the format of the store, and its scales.
    fn stored_weight(&self, shape: Shape, init: Init) -> Result<(Tensor, Option<Tensor>)> {
        let names = ["weight", "weight_scale"].map(|name| self.full_name(name));
        let mut state = self.params.lock();
        let given = state.unused.as_mut().and_then(|unused| {
            let scales = unused.remove(&names[1])?;
            Some((unused.remove(&names[0])?, scales))
        });
        let format = self.params.format;
        let weight = match given {
            Some((values, scales)) if format == WeightFormat::Int8 => {
                check_shape(&names[0], &shape, values.shape())?;
                (values.to_device(self.device())?, Some(scales.to_device(self.device())?))
            }
            given => {
                if let (Some((values, scales)), Some(unused)) = (given, &mut state.unused) {
                    unused.insert(names[0].clone(), compact::widen(&values, Some(&scales))?);
                }
                drop(state);
                if format == WeightFormat::Full {
                    return Ok((self.get(shape, "weight", init)?, None));
                }
                state = self.params.lock();
                if let Some(weight) = state.find(&names[0]) {
                    return Ok((weight.tensor.clone(), state.find(&names[1]).map(|s| s.tensor.clone())));
                }
                if self.role("weight", true).trained {
                    bail!("{}: a weight in format {format} cannot be trained", names[0]);
                }
                let value = self.value(&mut state, &shape, &names[..1], &init, false)?;
                format.compress(&value.to_dtype(DType::F32)?).map_err(|e| e.context(names[0].clone()))?
            }
        };
        let parts = [Some(weight.0.clone()), weight.1.clone()];
        for (name, tensor) in names.into_iter().zip(parts) {
            if let Some(tensor) = tensor {
                let param = Param { name: name.clone(), tensor, var: None, decay: false };
                state.params.insert(name, param);
            }
        }
        Ok(weight)
    }

    /// A weight that is another parameter too (a head tied to an embedding), in the format of the store.
    pub(crate) fn tied_weight(&self, weight: Tensor) -> Result<LinearWeight> {
        let (values, scales) = match self.params.format {
            WeightFormat::Full => (weight, None),
            format if self.role("weight", true).trained => {
                bail!("a weight in format {format} cannot be trained")
            }
            format => format.compress(&weight.to_dtype(DType::F32)?)?,
        };
        Ok(LinearWeight { values, scales, adapter: None })
    }

    /// Of the parameter `name` below the prefix.
    fn role(&self, name: &str, decay: bool) -> Role {
        let chosen = match &self.params.chosen {
            None => self.params.lora.is_none(),
            Some(prefixes) => {
                let name = self.full_name(name);
                prefixes.iter().any(|prefix| name.starts_with(prefix))
            }
        };
        Role { decay, trained: self.params.trainable && chosen, optional: false }
    }

    fn full_name(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_string(),
            (prefix, "") => prefix.to_string(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    fn lookup(&self, shape: Shape, names: &[&str], init: Init, role: Role) -> Result<Tensor> {
        let names: Vec<String> = names.iter().map(|name| self.full_name(name)).collect();
        let Some(name) = names.first() else { bail!("a parameter needs a name") };
        let mut state = self.params.lock();
        if let Some(param) = names.iter().find_map(|name| state.find(name)) {
            check_shape(&param.name, &shape, param.tensor.shape())?;
            let tensor = param.tensor.clone();
            state.take(&names);
            return Ok(tensor);
        }
        let value = self.value(&mut state, &shape, &names, &init, role.optional)?;
        let var = match role.trained {
            true => Some(Var::from_tensor(&value)?),
            false => None,
        };
        let tensor = var.as_ref().map_or_else(|| value.detach(), |var| var.as_tensor().clone());
        let aliases = names[1..].iter().map(|alias| (alias.clone(), name.clone()));
        state.aliases.extend(aliases);
        let param = Param { name: name.clone(), tensor: tensor.clone(), var, decay: role.decay };
        state.params.insert(name.clone(), param);
        Ok(tensor)
    }

    /// The checkpoint's value under the first of `names` that it has, or a fresh one.
    fn value(
        &self,
        state: &mut State,
        shape: &Shape,
        names: &[String],
        init: &Init,
        optional: bool,
    ) -> Result<Tensor> {
        if let Some((found, value)) = state.take(names) {
            check_shape(&found, shape, value.shape())?;
            return value.to_device(self.device())?.to_dtype(self.dtype)?.contiguous();
        }
        if state.unused.is_some() && !optional {
            state.missing.insert(names[0].clone());
        }
        let mut rng = Rng::stream(self.params.seed, &names[0], 0);
        init.tensor(shape, &mut rng, self.dtype, self.device())
    }
}

fn check_shape(name: &str, expected: &Shape, got: &Shape) -> Result<()> {
    if expected != got {
        bail!("{name}: expected shape {:?}, got {:?}", expected.dims(), got.dims())
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Device = Device::Cpu;

    fn values(names: &[&str]) -> Vec<(String, Tensor)> {
        let value = |i: usize| Tensor::full(i as f32, 2, &CPU).unwrap();
        names.iter().enumerate().map(|(i, name)| (name.to_string(), value(i))).collect()
    }

    #[test]
    fn creation_order_does_not_change_values() -> Result<()> {
        let draw = |names: [&str; 2]| -> Result<Vec<f32>> {
            let params = Params::fresh(1, DType::F32, &CPU);
            for name in names {
                params.builder().get(3, name, Init::Normal { std: 1.0 })?;
            }
            Tensor::cat(&params.named().iter().map(|p| p.tensor().clone()).collect::<Vec<_>>(), 0)?.to_vec1()
        };
        let forth = draw(["a", "b"])?;
        assert_eq!(forth, draw(["b", "a"])?);
        assert_ne!(forth[..3], forth[3..]);
        Ok(())
    }

    #[test]
    fn missing_and_unexpected_tensors_are_listed_together() -> Result<()> {
        let params = Params::frozen(values(&["a", "x", "rotary.buffer"]), DType::F32, &CPU);
        let pb = params.builder();
        pb.get(2, "a", Init::Zeros)?;
        pb.get(2, "c", Init::Zeros)?;
        pb.get(2, "b", Init::Zeros)?;
        let message = params.check().unwrap_err().to_string();
        assert!(
            message.ends_with("2 missing tensors: b, c; 2 unexpected tensors: rotary.buffer, x"),
            "{message}"
        );
        assert!(params.check_with(|name| name < "d", |name| name == "x" || name.ends_with("buffer")).is_ok());
        Ok(())
    }

    #[test]
    fn a_wrong_shape_names_the_tensor_and_both_shapes() {
        let params = Params::frozen(values(&["head.weight"]), DType::F32, &CPU);
        let error = params.builder().pp("head").get((2, 3), "weight", Init::Zeros).unwrap_err();
        assert!(error.to_string().starts_with("head.weight: expected shape [2, 3], got [2]"), "{error}");
    }

    #[test]
    fn values_are_converted_and_frozen_ones_have_no_graph() -> Result<()> {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let value = Tensor::new(&[0.5f32, -2.0], &CPU)?.to_dtype(dtype)?;
            let params = Params::frozen([("a".to_string(), value)], DType::F32, &CPU);
            let a = params.builder().get(2, "a", Init::Zeros)?;
            assert_eq!(a.to_vec1::<f32>()?, [0.5, -2.0]);
            assert!(!a.is_variable() && params.vars().is_empty());
            assert!(params.set("a", &a.zeros_like()?).is_err());
        }
        Ok(())
    }

    #[test]
    fn tied_names_share_one_tensor() -> Result<()> {
        let params = Params::trainable(values(&["lm_head.weight"]), 0, DType::F32, &CPU);
        let pb = params.builder();
        let embedding = pb.get_any(2, &["embedding.weight", "lm_head.weight"], Init::Zeros)?;
        let head = pb.pp("lm_head").get(2, "weight", Init::Zeros)?;
        assert_eq!(embedding.id(), head.id());
        assert_eq!(params.count(), 2);
        assert!(params.check().is_ok());
        assert!(pb.contains("lm_head.weight") && !pb.contains("lm_head.bias"));

        let both = Params::frozen(values(&["e", "h"]), DType::F32, &CPU);
        both.builder().get(2, "e", Init::Zeros)?;
        both.builder().get_any(2, &["e", "h"], Init::Zeros)?;
        assert!(both.check().is_ok(), "a stored copy of a tied tensor is not unexpected");
        Ok(())
    }

    #[test]
    fn chosen_parameters_are_trained_and_the_others_are_not() -> Result<()> {
        let params = Params::fresh(0, DType::F32, &CPU).with_trained(&["score."]);
        let pb = params.builder();
        let (body, head) =
            (pb.pp("body").get(2, "weight", Init::Ones)?, pb.pp("score").get(2, "weight", Init::Ones)?);
        assert!(!body.is_variable() && head.is_variable());
        assert_eq!(params.vars().len(), 1);
        assert_eq!(params.count(), 4);
        Ok(())
    }

    #[test]
    fn training_a_loaded_parameter_leaves_the_source_alone() -> Result<()> {
        let source = values(&["a"]);
        let params = Params::trainable(source.clone(), 0, DType::F32, &CPU);
        let a = params.builder().get(2, "a", Init::Zeros)?;
        params.set("a", &Tensor::new(&[5f32, 6.0], &CPU)?)?;
        assert_eq!(a.to_vec1::<f32>()?, [5.0, 6.0], "the model's tensor shows the new value");
        assert_eq!(source[0].1.to_vec1::<f32>()?, [0.0, 0.0]);
        Ok(())
    }
}
