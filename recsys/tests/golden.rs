//! Mamba4Rec against the official implementation: every golden case, vectors, scores, losses and gradients.

use candle_core::{D, DType, Result, Tensor};
use mamba_core::{Mamba1Config, Params};
use mamba_kernels::testing::{Case, check_cases, device, expect_close, float_types, golden_dir};
use mamba_kernels::{Segments, linear_cross_entropy};
use mamba_recsys::models::{Mamba4Rec, Mamba4RecConfig};
use mamba_recsys::task::bpr_loss;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

#[test]
fn every_golden_mamba4rec_case_holds() {
    check_cases(&golden_dir(COMMITTED), &[("mamba4rec", &mamba4rec)], &[], &["mamba4rec"]);
}

fn config(case: &Case) -> Result<Mamba4RecConfig> {
    let mixer = Mamba1Config {
        d_state: case.number("d_state")?,
        d_conv: case.number("d_conv")?,
        expand: case.number("expand")?,
        ..Mamba1Config::default()
    };
    let (hidden_size, num_layers) = (case.number("hidden_size")?, case.number("num_layers")?);
    Ok(Mamba4RecConfig { hidden_size, num_layers, mixer: mixer.into(), ..Mamba4RecConfig::default() })
}

fn ids(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::U32)
}

fn mamba4rec(case: &Case) -> Result<()> {
    for &dtype in float_types() {
        in_type(case, dtype).map_err(|e| e.context(format!("{dtype:?}")))?;
    }
    Ok(())
}

fn in_type(case: &Case, dtype: DType) -> Result<()> {
    let (cfg, n_items) = (config(case)?, case.number("n_items")?);
    let params = Params::trainable(case.with_prefix("weights."), 0, dtype, &device());
    let model = Mamba4Rec::new(&cfg, n_items, &params.builder())?;
    params.check().map_err(candle_core::Error::wrap)?;

    let items = ids(&case.tensor("item_seq")?)?; // (B, L), padded on the right with item 0
    let (batch, len) = items.dims2()?;
    let lengths = ids(&case.tensor("item_seq_len")?)?.to_vec1::<u32>()?;
    let last: Vec<u32> = lengths.iter().enumerate().map(|(row, &n)| (row * len) as u32 + n - 1).collect();
    let last = Tensor::from_vec(last, batch, &device())?;
    let output = |segments: Segments| -> Result<Tensor> {
        let hidden = model.forward(&items, &segments, None, None)?; // (B, L, d)
        hidden.flatten_to(1)?.index_select(&last, 0) // (B, d)
    };
    // The published code takes padding for an item; being causal, it gives what it would without.
    let lengths: Vec<usize> = lengths.iter().map(|&n| n as usize).collect();
    let padded = output(Segments::right_padded(len, &lengths)?)?;
    expect_close("seq_output without padding", &padded, &case.tensor("seq_output")?, 1e-5)?;
    let hidden = output(Segments::whole(batch, len))?;
    expect_close("seq_output", &hidden, &case.tensor("seq_output")?, 1e-5)?;

    let table = model.item_table();
    let scores = hidden.matmul(&table.t()?)?; // (B, n_items)
    expect_close("full_sort_scores", &scores, &case.tensor("full_sort_scores")?, 1e-5)?;
    if dtype == DType::F64 {
        expect_close("f64.full_sort_scores", &scores, &case.tensor("f64.full_sort_scores")?, 1e-9)?;
    }
    let score = |name: &str| -> Result<Tensor> {
        (&hidden * table.index_select(&ids(&case.tensor(name)?)?, 0)?)?.sum(D::Minus1) // (B)
    };
    let positive = score("pos_item")?;
    expect_close("predict_scores", &positive, &case.tensor("predict_scores")?, 1e-5)?;

    let loss = match case.config["loss_type"].as_str() {
        Some("BPR") => bpr_loss(&positive, &score("neg_item")?)?,
        _ => linear_cross_entropy(&hidden, table, &ids(&case.tensor("pos_item")?)?)?,
    };
    expect_close("loss", &loss, &case.tensor("loss")?, 1e-5)?;
    let grads = loss.backward()?;
    let wanted = case.with_prefix("grad.weights.");
    assert_eq!(wanted.len(), params.named().len(), "{}: a gradient for every parameter", case.name);
    for (name, want) in &wanted {
        let param = params.get(name).unwrap_or_else(|| panic!("{}: no parameter {name}", case.name));
        let var = param.var().expect("the parameters are trainable");
        let got = grads.get(var).unwrap_or_else(|| panic!("{}: {name} has no gradient", case.name));
        expect_close(&format!("gradient of {name}"), got, want, 5e-5)?;
    }
    Ok(())
}
