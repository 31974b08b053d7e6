//! A GPU, through cudarc.
//!
//! All work of a device is ordered by candle's one stream for it, so that memory may be freed as soon as its kernels
//! are launched.
#![allow(unsafe_code)] // uninitialised memory and launches

use super::messages::{self, Memory};
use super::{Grid, Kernel, KernelArgs, Module, symbol};
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUresult};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, DevicePtr, DriverError, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, bail};
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
        Err(error) if messages::is_out_of_memory(&error.to_string()) => {
            bail!("{}", memory(device)?.is_short(Some(size.elem_count() * dtype.size_in_bytes())))
        }
        Err(error) => return Err(error),
    };
    let address = address(device, &storage)?;
    Ok((storage, address))
}

/// Opens a GPU with one stream for all threads: what one uploads comes before what another computes from it.
pub(super) fn open(number: usize) -> Result<CudaDevice> {
    let Device::Cuda(device) = Device::new_cuda_with_stream(number)? else { bail!("no CUDA device") };
    let capability = device.cuda_stream().context().compute_capability().w()?;
    // What candle's own kernels are compiled for.
    if let Some(reason) = messages::unfit(env!("MAMBA_COMPUTE_CAPABILITY"), capability) {
        bail!("{reason}");
    }
    // SAFETY: events order the work of several streams; all of this device's work is on its one stream, memory is
    // allocated and freed on it.
    unsafe { device.disable_event_tracking() };
    if let Some(pool) = pool(&device)? {
        // Freed memory stays with the process. Else it goes back at each transfer, and comes anew after it.
        let mut threshold = u64::MAX;
        // SAFETY: the attribute is a 64-bit number, the pool is the device's own.
        unsafe {
            sys::cuMemPoolSetAttribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            )
        }
        .result()
        .w()?;
    }
    Ok(device)
}

/// The pool that the device's memory comes from, if it has one.
fn pool(device: &CudaDevice) -> Result<Option<sys::CUmemoryPool>> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes one handle.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) }.result().w()?;
    Ok(Some(pool))
}

pub(super) fn memory(device: &CudaDevice) -> Result<Memory> {
    use sys::CUmemPool_attribute as Attribute;
    let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
    let (free, total) = (free as u64, total as u64);
    let Some(pool) = pool(device)? else {
        return Ok(Memory { free, total, used: total - free, peak: total - free });
    };
    let read = |attribute| {
        let mut value = 0u64;
        // SAFETY: these attributes are 64-bit numbers, the pool is the device's own.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) }.result().w()?;
        Ok::<_, candle_core::Error>(value)
    };
    let used = read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    let reserved = read(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let peak = read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
    // What the pool holds and no tensor uses is as good as free.
    Ok(Memory { free: free + reserved.saturating_sub(used), total, used, peak })
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
            bail!("{}", messages::no_code(module.name(), env!("MAMBA_NVCC_VERSION"), (major, minor)))
        }
        error => error.w(),
    }
}
