//! A GPU, through cudarc.
//!
//! All work of a device is ordered by candle's one stream for it, so that memory may be freed as soon as its kernels
//! are launched.
#![allow(unsafe_code)] // uninitialised memory and launches

use super::{Grid, Kernel, KernelArgs, Module, symbol};
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, DevicePtr, DriverError, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Storage, bail};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

fn binary(module: Module) -> &'static [u8] {
    match module {
        Module::CausalConv1d => include_bytes!(concat!(env!("OUT_DIR"), "/causal_conv1d.fatbin")),
        Module::Norm => include_bytes!(concat!(env!("OUT_DIR"), "/norm.fatbin")),
        Module::SelectiveScan => include_bytes!(concat!(env!("OUT_DIR"), "/selective_scan.fatbin")),
        Module::Ssd => include_bytes!(concat!(env!("OUT_DIR"), "/ssd.fatbin")),
    }
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<(DeviceId, Module), Arc<CudaModule>>,
    functions: HashMap<(DeviceId, Kernel), CudaFunction>,
}

static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);

pub(super) fn alloc(device: &CudaDevice, size: &Shape, dtype: DType, zero: bool) -> Result<(Storage, u64)> {
    let storage = match zero {
        true => device.zeros_impl(size, dtype),
        // SAFETY: kernels write every element that is read.
        false => unsafe { device.alloc_uninit(size, dtype) },
    };
    let storage = match storage {
        Ok(storage) => Storage::Cuda(storage),
        Err(error) => {
            let asked = size.elem_count() * dtype.size_in_bytes();
            match device.cuda_stream().context().mem_get_info() {
                Ok((free, total)) if error.to_string().contains("OUT_OF_MEMORY") => bail!(
                    "out of GPU memory: asked for {:.1} MiB, {:.1} of {:.1} MiB are free",
                    mib(asked),
                    mib(free),
                    mib(total)
                ),
                _ => return Err(error),
            }
        }
    };
    let address = address(device, &storage)?;
    Ok((storage, address))
}

/// Refuses a GPU that is older than what candle's own kernels are compiled for.
pub(super) fn check(device: &CudaDevice) -> Result<()> {
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    match env!("MAMBA_COMPUTE_CAPABILITY").parse::<i32>() {
        Ok(built) if 10 * major + minor < built => bail!(
            "this build is for GPUs of compute capability {}.{} and newer, this one has {major}.{minor}: build with CUDA_COMPUTE_CAP={major}{minor}",
            built / 10,
            built % 10
        ),
        _ => Ok(()),
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub(super) fn upload(device: &CudaDevice, values: &[i64]) -> Result<(Storage, u64)> {
    // Nothing to upload is still a table that a kernel may be handed.
    let values = if values.is_empty() { &[0] } else { values };
    let slice = device.clone_htod(values)?;
    let storage = Storage::Cuda(CudaStorage { slice: CudaStorageSlice::I64(slice), device: device.clone() });
    let address = address(device, &storage)?;
    Ok((storage, address))
}

pub(super) fn address(device: &CudaDevice, storage: &Storage) -> Result<u64> {
    let Storage::Cuda(storage) = storage else { bail!("expected a tensor on a CUDA device") };
    let stream = device.cuda_stream();
    Ok(match &storage.slice {
        CudaStorageSlice::F32(x) => x.device_ptr(&stream).0,
        CudaStorageSlice::BF16(x) => x.device_ptr(&stream).0,
        CudaStorageSlice::F16(x) => x.device_ptr(&stream).0,
        CudaStorageSlice::I64(x) => x.device_ptr(&stream).0,
        _ => bail!("only f32, bf16 and f16 tensors are supported on a CUDA device"),
    })
}

/// # Safety
/// As [`super::Gpu::launch`].
pub(super) unsafe fn launch<A: KernelArgs>(
    device: &CudaDevice,
    kernel: Kernel,
    grid: Grid,
    args: &A,
) -> Result<()> {
    let function = function(device, kernel)?;
    let size = |x: [usize; 2]| (x[0] as u32, x[1] as u32, 1);
    let config =
        LaunchConfig { grid_dim: size(grid.blocks), block_dim: size(grid.threads), shared_mem_bytes: 0 };
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    builder.arg(args);
    // SAFETY: as the caller promises.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

fn function(device: &CudaDevice, kernel: Kernel) -> Result<CudaFunction> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(function) = loaded.functions.get(&(device.id(), kernel)) {
        return Ok(function.clone());
    }
    let module = match loaded.modules.get(&(device.id(), kernel.0)) {
        Some(module) => module.clone(),
        None => {
            let module = load(device, kernel.0)?;
            loaded.modules.insert((device.id(), kernel.0), module.clone());
            module
        }
    };
    let function = module.load_function(&symbol(kernel)).w()?;
    loaded.functions.insert((device.id(), kernel), function.clone());
    Ok(function)
}

fn load(device: &CudaDevice, module: Module) -> Result<Arc<CudaModule>> {
    let stream = device.cuda_stream();
    let context = stream.context();
    match context.load_module(Ptx::from_binary(binary(module).to_vec())) {
        Ok(module) => Ok(module),
        Err(DriverError(
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        )) => {
            let (major, minor) = context.compute_capability().w()?;
            bail!(
                "the kernels of {} are compiled for GPUs of compute capability 8.0 and newer and for drivers of CUDA {} and newer; this GPU has {major}.{minor}",
                module.name(),
                env!("MAMBA_NVCC_VERSION"),
            )
        }
        error => error.w(),
    }
}
