//! Kernels compiled for the host, where tests run them on CPU tensors.
#![allow(unsafe_code)] // a library loaded when the test runs, and its functions

use super::{Grid, Kernel, Module, symbol};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
use candle_core::{CpuStorage, DType, Error, Result, Shape, Storage, bail};
use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The kernels as a library of host code.
///
/// Inside [`Emulation::run`] the ops treat CPU tensors as if they lay on a GPU: the launches, their arguments and the
/// device code are those of the GPU, threads and blocks are emulated one after another.
#[derive(Clone, Copy, Debug)]
pub struct Emulation {
    libraries: [usize; Module::ALL.len()],
    order: u32,
    smaller: usize,
}

thread_local! {
    static CURRENT: RefCell<Option<Emulation>> = const { RefCell::new(None) };
}

pub(super) fn current() -> Option<Emulation> {
    CURRENT.with_borrow(|current| *current).or_else(everywhere)
}

/// The emulation of all threads, if `$MAMBA_TEST_DEVICE` is `emulated`.
pub(super) fn everywhere() -> Option<Emulation> {
    static BUILT: OnceLock<Option<Emulation>> = OnceLock::new();
    *BUILT.get_or_init(|| {
        std::env::var("MAMBA_TEST_DEVICE").is_ok_and(|device| device == "emulated").then(|| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
            match Emulation::build(&folder, &std::env::temp_dir()) {
                Ok(Some(emulation)) => emulation,
                Ok(None) => panic!("there is no C++ compiler to emulate the CUDA kernels with ($CXX, c++)"),
                Err(error) => panic!("the CUDA kernels do not compile for the host: {error}"),
            }
        })
    })
}

impl Emulation {
    /// Compiles the kernels in `folder` into `output` with `$CXX`, or `c++`. None if there is no such compiler.
    ///
    /// # Errors
    /// If the compiler refuses them.
    pub fn build(folder: &Path, output: &Path) -> Result<Option<Self>> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let mut libraries = [0; Module::ALL.len()];
        for (library, module) in libraries.iter_mut().zip(Module::ALL) {
            let path = output.join(format!("{}-{}.so", module.name(), std::process::id()));
            let mut command = Command::new(&compiler);
            command.args([
                "-std=c++17",
                "-O2",
                "-g",
                "-fPIC",
                "-shared",
                "-U_FORTIFY_SOURCE",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
            ]);
            command.args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DMAMBA_EMULATED"]);
            command.args(std::env::var("MAMBA_EMULATION_FLAGS").unwrap_or_default().split_whitespace());
            command
                .args(["-x", "c++"])
                .arg(folder.join(module.name()).with_extension("cu"))
                .arg("-o")
                .arg(&path);
            match command.output() {
                Ok(done) if done.status.success() => {}
                Ok(done) => bail!("{}", String::from_utf8_lossy(&done.stderr)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::wrap(error)),
            }
            let name = CString::new(path.to_string_lossy().into_owned()).map_err(Error::wrap)?;
            // SAFETY: the library was compiled from kernels just now and has no initialiser of its own.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            let _ = std::fs::remove_file(&path);
            if handle.is_null() {
                bail!("{} does not load", path.display());
            }
            *library = handle as usize;
        }
        Ok(Some(Self { libraries, order: 0, smaller: 1 }))
    }

    /// The same with threads that run in another order between barriers: 0, 1 or 2.
    pub fn with_order(self, order: u32) -> Self {
        Self { order, ..self }
    }

    /// The same as a GPU that is smaller by a factor, so that small inputs are cut into blocks as large ones are on a GPU.
    pub fn smaller(self, by: usize) -> Self {
        Self { smaller: by.max(1), ..self }
    }

    /// How many blocks, warps or threads it takes for what takes `count` of a GPU.
    pub(super) fn scaled(&self, count: usize) -> usize {
        (count / self.smaller).max(1)
    }

    /// Runs `f` with the ops of this thread emulated.
    pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
        struct Restore(Option<Emulation>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self)));
        f()
    }

    /// # Safety
    /// As [`super::Gpu::launch`].
    pub(super) unsafe fn launch<A>(&self, kernel: Kernel, grid: Grid, args: &A) -> Result<()> {
        type Entry = unsafe extern "C" fn(*const c_void, *const u32, *const u32, u32);
        let name = symbol(kernel);
        let library = self.libraries[kernel.0 as usize] as *mut c_void;
        let text = CString::new(name.clone()).map_err(Error::wrap)?;
        // SAFETY: the handle came from dlopen and is never closed.
        let entry = unsafe { libc::dlsym(library, text.as_ptr()) };
        if entry.is_null() {
            bail!("there is no kernel {name}");
        }
        // SAFETY: emulation.h defines every kernel with this signature.
        let entry = unsafe { std::mem::transmute::<*mut c_void, Entry>(entry) };
        let size = |x: [usize; 2]| [x[0] as u32, x[1] as u32, 1];
        let (blocks, threads) = (size(grid.blocks), size(grid.threads));
        // SAFETY: as the caller promises.
        unsafe { entry((args as *const A).cast(), blocks.as_ptr(), threads.as_ptr(), self.order) };
        Ok(())
    }
}

/// Memory that is not zeroed is filled with NaN, so that results show where a kernel reads what it has not written.
pub(super) fn alloc(size: &Shape, dtype: DType, zero: bool) -> Result<(Storage, u64)> {
    let mut storage = CpuDevice.zeros_impl(size, dtype)?;
    if !zero {
        match &mut storage {
            CpuStorage::F32(x) => x.fill(f32::NAN),
            CpuStorage::BF16(x) => x.iter_mut().for_each(|x| *x = candle_core::WithDType::from_f64(f64::NAN)),
            CpuStorage::F16(x) => x.iter_mut().for_each(|x| *x = candle_core::WithDType::from_f64(f64::NAN)),
            other => bail!("no emulated memory of {:?}", other.dtype()),
        }
    }
    let storage = Storage::Cpu(storage);
    let address = address(&storage)?;
    Ok((storage, address))
}

pub(super) fn upload(values: &[i64]) -> Result<(Storage, u64)> {
    let storage = Storage::Cpu(CpuStorage::I64(values.to_vec()));
    let address = address(&storage)?;
    Ok((storage, address))
}

pub(super) fn address(storage: &Storage) -> Result<u64> {
    Ok(match storage {
        Storage::Cpu(CpuStorage::F32(x)) => x.as_ptr() as u64,
        Storage::Cpu(CpuStorage::BF16(x)) => x.as_ptr() as u64,
        Storage::Cpu(CpuStorage::F16(x)) => x.as_ptr() as u64,
        Storage::Cpu(CpuStorage::I64(x)) => x.as_ptr() as u64,
        _ => bail!("only f32, bf16 and f16 are emulated"),
    })
}
