//! Small logs, data sets and models.

use candle_core::{DType, Device};
use mamba_core::{Mamba1Config, Mamba2Config, Params};
use mamba_recsys::config::DataConfig;
use mamba_recsys::data::{Log, SampleConfig};
use mamba_recsys::models::{EchoMamba4RecConfig, Mamba4RecConfig, ModelConfig, RecMambaConfig, SasRecConfig};
use mamba_recsys::task::TrainingData;
use mamba_recsys::{Ids, Model};

/// A log from `(user, item, time)`.
pub(crate) fn log(events: &[(i64, i64, f64)]) -> Log {
    Log {
        user: Ids::Int(events.iter().map(|e| e.0).collect()),
        item: Ids::Int(events.iter().map(|e| e.1).collect()),
        time: Some(events.iter().map(|e| e.2).collect()),
        idle: Ids::default(),
    }
}

pub(crate) fn small_sample() -> Log {
    SampleConfig { users: 60, events: 30, genres: 4, items_per_genre: 6, ..SampleConfig::default() }.log()
}

pub(crate) fn small_data() -> TrainingData {
    TrainingData::new(&small_sample(), &DataConfig::default()).unwrap()
}

pub(crate) fn small_config(num_layers: usize) -> ModelConfig {
    let mixer = Mamba1Config { d_state: 4, ..Mamba1Config::default() }.into();
    let cfg = Mamba4RecConfig { hidden_size: 16, num_layers, mixer, ..Mamba4RecConfig::default() };
    ModelConfig::Mamba4Rec(cfg)
}

pub(crate) fn small_mamba2() -> ModelConfig {
    let mixer = Mamba2Config { d_state: 4, headdim: 8, ..Mamba2Config::default() }.into();
    let cfg = Mamba4RecConfig { hidden_size: 16, num_layers: 2, mixer, ..Mamba4RecConfig::default() };
    ModelConfig::Mamba4Rec(cfg)
}

pub(crate) fn small_echo() -> ModelConfig {
    let mixer = Mamba1Config { d_state: 4, ..Mamba1Config::default() }.into();
    let cfg = EchoMamba4RecConfig { hidden_size: 16, num_layers: 2, mixer, ..EchoMamba4RecConfig::default() };
    ModelConfig::EchoMamba4Rec(cfg)
}

/// Every model, small.
pub(crate) fn small_models() -> Vec<ModelConfig> {
    let recmamba =
        |mixer| ModelConfig::RecMamba(RecMambaConfig { hidden_size: 16, mixer, ..RecMambaConfig::default() });
    let mamba1 = recmamba(Mamba1Config { d_state: 4, ..Mamba1Config::default() }.into());
    let mamba2 = recmamba(Mamba2Config { d_state: 4, headdim: 8, ..Mamba2Config::default() }.into());
    let sasrec = SasRecConfig { hidden_size: 16, inner_size: 32, ..SasRecConfig::default() };
    vec![
        small_config(1),
        small_config(2),
        small_mamba2(),
        mamba1,
        mamba2,
        ModelConfig::SasRec(sasrec),
        small_echo(),
    ]
}

pub(crate) fn fresh(cfg: &ModelConfig, n_items: usize, dtype: DType) -> (Model, Params) {
    let params = Params::fresh(3, dtype, &Device::Cpu);
    (Model::new(cfg, n_items, 50, &params.builder()).unwrap(), params)
}
