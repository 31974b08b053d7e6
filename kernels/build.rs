//! Compiles the CUDA kernels under feature `cuda`; does nothing without it.

use std::path::{Path, PathBuf};
use std::process::Command;

const MODULES: [&str; 4] = ["causal_conv1d", "norm", "selective_scan", "ssd"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=cuda");
    if let Err(problem) = compile() {
        println!("cargo::error={problem}");
    }
}

fn compile() -> Result<(), String> {
    let output = PathBuf::from(std::env::var("OUT_DIR").map_err(|error| error.to_string())?);
    let nvcc = nvcc().ok_or(
        "feature `cuda` needs the compiler nvcc, which is neither in $CUDA_HOME/bin nor on the PATH: see kernels/cuda/README.md",
    )?;
    println!("cargo::rustc-env=MAMBA_NVCC_VERSION={}", version(&nvcc));
    // What candle's own kernels are compiled for; without the variable, the GPU of the machine that builds.
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_default();
    println!("cargo::rustc-env=MAMBA_COMPUTE_CAPABILITY={capability}");
    for module in MODULES {
        let source = Path::new("cuda").join(module).with_extension("cu");
        // Code for A100 and H100, and portable code that drivers compile for what comes after them. A register that is
        // spilled to memory is an error, and so is an array that lies there because an index is not known.
        let done = Command::new(&nvcc)
            .args(["-std=c++17", "-O3", "-fatbin"])
            .args(["-gencode", "arch=compute_80,code=sm_80"])
            .args(["-gencode", "arch=compute_90,code=sm_90"])
            .args(["-gencode", "arch=compute_90,code=compute_90"])
            .args(["-Xptxas", "-v,--warn-on-spills,--warning-as-error"])
            .arg(&source)
            .arg("-o")
            .arg(output.join(module).with_extension("fatbin"))
            .output()
            .map_err(|error| format!("{} does not start: {error}", nvcc.display()))?;
        let text = String::from_utf8_lossy(&done.stderr);
        // Besides errors, what the compiler says of each kernel: its registers, and the memory of a thread.
        let (report, problems): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| {
            line.contains("ptxas info")
                || line.contains("Function properties")
                || line.trim().starts_with("0 bytes stack")
        });
        let frame = problems.iter().any(|line| line.contains("bytes stack frame"));
        if frame || !done.status.success() {
            for line in if problems.is_empty() { report } else { problems } {
                println!("cargo::warning={line}");
            }
            let problem = if frame { "registers or arrays in memory" } else { "nvcc refuses it" };
            return Err(format!("{}: {problem}", source.display()));
        }
    }
    Ok(())
}

/// `$NVCC`, else the one of `$CUDA_HOME`, else the first on the PATH.
fn nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return Some(nvcc.into());
    }
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = home.into_iter().chain(std::env::split_paths(&path));
    folders.find_map(|folder| Some(folder.join("nvcc")).filter(|nvcc| nvcc.is_file()))
}

/// `13.0`, or `unknown`.
fn version(nvcc: &Path) -> String {
    let text = Command::new(nvcc).arg("--version").output().map(|done| done.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    release.unwrap_or("unknown").trim().to_string()
}
