//! Golden cases and tensor comparison, for the tests of this workspace.
//!
//! A golden case is `NAME.safetensors` with a sidecar `NAME.json` (`config` and a description), computed with an official
//! implementation. `$MAMBA_GOLDEN` names the folder that holds them; without it, tests use the small set committed
//! beside them.

pub use crate::gpu::Emulation;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where tests compute: `$MAMBA_TEST_DEVICE`, which is `cpu` (the default), `cuda:N`, or `emulated`: the CPU, where the ops
/// take the CUDA kernels as [`Emulation`] compiles them for the host.
///
/// # Panics
/// If the variable is something else or the device does not open.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || match std::env::var("MAMBA_TEST_DEVICE").as_deref() {
        Err(_) | Ok("" | "cpu" | "emulated") => Device::Cpu,
        Ok(name) => {
            let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            let number = number
                .unwrap_or_else(|| panic!("MAMBA_TEST_DEVICE is {name:?}, expected cpu, emulated or cuda:N"));
            crate::open_gpu(number).unwrap_or_else(|error| panic!("{name}: {error}"))
        }
    };
    DEVICE.get_or_init(open).clone()
}

/// The CUDA kernels compiled for the host, for a test that computes on a thread of its own in half precision; none, with a
/// message, without a C++ compiler. `output` is a folder for what the compiler writes.
///
/// # Panics
/// If the kernels do not compile.
pub fn emulation(output: &Path) -> Option<Emulation> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let built = Emulation::build(&folder, output);
    let built = built.unwrap_or_else(|error| panic!("the kernels do not compile for the host: {error}"));
    if built.is_none() {
        eprintln!("no C++ compiler ($CXX, c++): half precision is not tested");
    }
    built
}

/// The types in which ops compute on [`device`]: f64 on the CPU alone.
pub fn float_types() -> &'static [DType] {
    match device().is_cpu() && !crate::gpu::emulates_everywhere() {
        true => &[DType::F32, DType::F64],
        false => &[DType::F32],
    }
}

/// One golden case.
pub struct Case {
    /// File name without extension.
    pub name: String,
    /// The folder that holds it.
    pub folder: PathBuf,
    /// `config` of the sidecar.
    pub config: serde_json::Value,
    tensors: HashMap<String, Tensor>,
}

impl Case {
    fn read(sidecar: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(sidecar).map_err(candle_core::Error::wrap)?;
        // Python writes infinities and NaN as words that JSON does not have.
        let text = text.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
        let json: serde_json::Value = serde_json::from_str(&text).map_err(candle_core::Error::wrap)?;
        let tensors = read_tensors(&sidecar.with_extension("safetensors"))?;
        let name = sidecar.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let folder = sidecar.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self { name, folder, config: json["config"].clone(), tensors })
    }

    /// A tensor that must be there, as stored.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(x) => Ok(x.clone()),
            None => bail!("{}: there is no tensor {name:?}", self.name),
        }
    }

    /// A tensor that may be absent, as stored.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Names and tensors that begin with `prefix`, without it.
    pub fn with_prefix(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let stripped =
            self.tensors.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v.clone())));
        stripped.collect()
    }

    /// A flag of the config; absent means false.
    pub fn flag(&self, key: &str) -> bool {
        self.config[key].as_bool().unwrap_or(false)
    }

    /// A whole number of the config.
    pub fn number(&self, key: &str) -> Result<usize> {
        match self.config[key].as_u64() {
            Some(x) => Ok(x as usize),
            None => bail!("{}: config has no number {key:?}", self.name),
        }
    }
}

/// Tensors of a file. candle has no bool; torch stores masks as such, and U8 holds the same bytes.
fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let mut bytes = std::fs::read(path).map_err(candle_core::Error::wrap)?;
    let header = bytes.first_chunk().map_or(0, |n| u64::from_le_bytes(*n) as usize);
    let end = bytes.len().min(header.saturating_add(8));
    let word: &[u8] = br#""BOOL""#;
    let places: Vec<usize> = (0..end).filter(|&i| bytes[i..end].starts_with(word)).collect();
    for place in places {
        bytes[place..place + word.len()].copy_from_slice(br#""U8"  "#);
    }
    candle_core::safetensors::load_buffer(&bytes, &device())
}

/// `$MAMBA_GOLDEN`, else `committed` (say so on stderr).
pub fn golden_dir(committed: &str) -> PathBuf {
    match std::env::var_os("MAMBA_GOLDEN") {
        Some(dir) => PathBuf::from(dir),
        None => {
            eprintln!("MAMBA_GOLDEN is not set: checking only the small set in {committed}");
            PathBuf::from(committed)
        }
    }
}

/// What checks the cases of one kind.
pub type Check<'a> = (&'a str, &'a dyn Fn(&Case) -> Result<()>);

/// Checks every case under `root` whose kind is known; a case's kind is the longest known prefix of its name, be it one
/// of `kinds` or one of `others`, which are checked elsewhere.
///
/// Prints the number of cases of each kind, and the prefixes of all other cases.
///
/// # Panics
/// If a case of a known kind fails or cannot be read, or a kind in `required` has no case.
pub fn check_cases(root: &Path, kinds: &[Check<'_>], others: &[&str], required: &[&str]) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unknown = BTreeMap::new();
    let mut failures = Vec::new();
    let sidecars = sidecars(root);
    for sidecar in &sidecars {
        let name = sidecar.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let kind = kinds.iter().filter(|(kind, _)| name.starts_with(kind)).max_by_key(|(kind, _)| kind.len());
        let elsewhere =
            others.iter().filter(|other| name.starts_with(**other)).map(|other| other.len()).max();
        let kind = kind.filter(|(kind, _)| elsewhere.is_none_or(|len| len < kind.len()));
        let Some((kind, check)) = kind else {
            let prefix = name.split("_s").next().unwrap_or(&name).to_string();
            *unknown.entry(prefix).or_insert(0usize) += 1;
            continue;
        };
        *counts.entry(kind).or_default() += 1;
        if let Err(error) = Case::read(sidecar).and_then(|case| check(&case)) {
            failures.push(format!("{}: {error}", sidecar.display()));
        }
    }
    for (kind, n) in &counts {
        println!("{n} cases of {kind}");
    }
    if !unknown.is_empty() {
        println!("not checked here: {unknown:?}");
    }
    for kind in required {
        if !counts.contains_key(kind) {
            failures.push(format!("no case of kind {kind:?} under {}", root.display()));
        }
    }
    assert!(failures.is_empty(), "{} golden cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// Every `NAME.json` under `root`, in order, but those of checkpoints (`config.json` and indices).
fn sidecars(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|e| e.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".json") && name != "config.json" && !name.ends_with(".index.json") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Largest absolute difference over the largest absolute reference value; infinite if anything is not finite.
pub fn relative_error(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.dims() != want.dims() {
        bail!("shape {:?}, expected {:?}", got.dims(), want.dims());
    }
    let values = |x: &Tensor| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (got, want) = (values(got)?, values(want)?);
    if got.iter().chain(&want).any(|x| !x.is_finite()) {
        return Ok(f64::INFINITY);
    }
    let error = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
    let scale = want.iter().map(|w| w.abs()).fold(0.0, f64::max);
    Ok(if error == 0.0 { 0.0 } else { error / scale.max(1e-30) })
}

/// Fails if the [`relative_error`] exceeds `tolerance`.
pub fn expect_close(label: &str, got: &Tensor, want: &Tensor, tolerance: f64) -> Result<()> {
    let error = match relative_error(got, want) {
        Ok(error) => error,
        Err(error) => bail!("{label}: {error}"),
    };
    if error > tolerance {
        bail!("{label}: relative error {error:.2e}, tolerance {tolerance:.0e}");
    }
    Ok(())
}

/// Values in [-1, 1] that depend on `seed` only.
pub fn pseudo_random(shape: &[usize], seed: u64, dtype: DType) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let n = shape.iter().product();
    let values: Vec<f64> = (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// Gradients of the scalar `f` by backward, one for each input.
pub fn gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = f(&tensors)?.backward()?;
    let grad_of = |v: &Var| match grads.get(v) {
        Some(g) => Ok(g.clone()),
        None => v.zeros_like(),
    };
    vars.iter().map(grad_of).collect()
}

/// Fails if a gradient by backward differs from central differences of `f`, in f64, by more than `tolerance` relative to
/// the largest gradient of that input.
pub fn expect_gradients_match_differences(
    inputs: &[(&str, Tensor)],
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    const STEP: f64 = 1e-5;
    let tensors: Vec<Tensor> = inputs.iter().map(|(_, x)| x.to_dtype(DType::F64)).collect::<Result<_>>()?;
    let grads = gradients(&tensors, &f)?;
    for (i, (label, x)) in inputs.iter().enumerate() {
        let values = tensors[i].flatten_all()?.to_vec1::<f64>()?;
        let at = |values: Vec<f64>| -> Result<f64> {
            let mut moved = tensors.clone();
            moved[i] = Tensor::from_vec(values, x.shape(), &Device::Cpu)?;
            f(&moved)?.to_scalar::<f64>()
        };
        let mut differences = Vec::with_capacity(values.len());
        for k in 0..values.len() {
            let (mut up, mut down) = (values.clone(), values.clone());
            up[k] += STEP;
            down[k] -= STEP;
            differences.push((at(up)? - at(down)?) / (2.0 * STEP));
        }
        let differences = Tensor::from_vec(differences, x.shape(), &Device::Cpu)?;
        expect_close(&format!("gradient of {label}"), &grads[i], &differences, tolerance)?;
    }
    Ok(())
}
