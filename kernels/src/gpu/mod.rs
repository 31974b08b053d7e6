//! What runs kernels: a GPU (feature `cuda`), or for tests an emulation of one on the host (feature `testing`).
//!
//! The ops' `cuda.rs` plan launches and fill argument structs in terms of [`Gpu`] alone, so that tests without a GPU
//! run those plans and the device code itself. There is no fallback: a tensor on a GPU is computed there or is an error.
#![cfg_attr(
    not(any(feature = "cuda", feature = "testing")),
    allow(unused_variables, unused_imports, unreachable_code, dead_code)
)]

use crate::fused::Output;
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "testing")]
mod emulated;
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // its tests need no GPU
mod messages;
mod spans;

#[cfg(feature = "testing")]
pub use emulated::Emulation;
pub(crate) use spans::{SpanPlan, SpansArgs};

/// Opens the GPU of a number for these ops and for candle's: all work goes to one stream, memory that is freed stays with
/// the process.
///
/// # Errors
/// Why it does not open, in words for people: no driver, no such GPU, one that is too old for this build.
#[cfg(feature = "cuda")]
pub fn open_gpu(number: usize) -> std::result::Result<Device, String> {
    device::open(number).map(Device::Cuda).map_err(|error| messages::does_not_open(&error.to_string()))
}

/// Opens the GPU of a number: this build, without feature `cuda`, has none.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn open_gpu(_: usize) -> std::result::Result<Device, String> {
    Err("this build has no CUDA support (feature `cuda`)".into())
}

/// The most bytes that tensors of this process have taken on a GPU at once; none for the CPU, or where the driver does not
/// say.
pub fn peak_gpu_memory(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => device::memory(cuda).ok().map(|memory| memory.peak),
        _ => None,
    }
}

/// If an error on a GPU is that its memory is short, how much there is: candle's own ops do not say.
pub fn explain_gpu_memory(device: &Device, error: &candle_core::Error) -> Option<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) if messages::is_out_of_memory(&error.to_string()) => {
            device::memory(cuda).ok().map(|memory| memory.is_short(None))
        }
        _ => {
            let _ = error;
            None
        }
    }
}

/// Marks structs that a kernel takes as its one argument.
#[cfg(feature = "cuda")]
pub(crate) use candle_core::cuda_backend::cudarc::driver::DeviceRepr as KernelArgs;

/// Marks structs that a kernel takes as its one argument.
///
/// # Safety
/// The layout must be that of the kernel's own struct.
#[cfg(not(feature = "cuda"))]
#[allow(unsafe_code)]
pub(crate) unsafe trait KernelArgs {}

/// Defines a struct of 8-byte fields that a kernel takes as its argument.
macro_rules! kernel_args {
    ($(#[$meta:meta])* struct $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Default)]
        #[allow(dead_code)] // the kernel reads them
        pub(crate) struct $name { $(pub(crate) $field: $type,)* }

        // SAFETY: plain numbers in C layout, field for field the struct of the same name in the kernel's source.
        #[allow(unsafe_code)]
        unsafe impl $crate::gpu::KernelArgs for $name {}
    };
}
pub(crate) use kernel_args;

/// A source file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    CausalConv1d,
    Norm,
    SelectiveScan,
    Ssd,
}

impl Module {
    #[cfg(feature = "testing")]
    const ALL: [Self; 4] = [Self::CausalConv1d, Self::Norm, Self::SelectiveScan, Self::Ssd];

    /// Its file without extension, which begins the names of its kernels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CausalConv1d => "causal_conv1d",
            Self::Norm => "norm",
            Self::SelectiveScan => "selective_scan",
            Self::Ssd => "ssd",
        }
    }
}

/// A kernel: module, name without the module's, element type.
pub(crate) type Kernel = (Module, &'static str, DType);

/// Its symbol.
fn symbol((module, name, dtype): Kernel) -> String {
    format!("{}_{name}_{}", module.name(), dtype.as_str())
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [usize; 2],
    pub(crate) threads: [usize; 2],
}

impl Grid {
    /// Enough blocks of `threads` threads for `items` items.
    pub(crate) fn line(items: usize, threads: usize) -> Self {
        Self { blocks: [items.div_ceil(threads), 1], threads: [threads, 1] }
    }
}

/// The most blocks along the second axis of a grid.
pub(crate) const MAX_BLOCKS_Y: usize = 65_535;

/// New memory of the device. Freed in the order of the stream, so that it may be dropped once its kernels are launched.
pub(crate) struct Buffer {
    storage: Storage,
    shape: Shape,
    address: u64,
}

impl Buffer {
    /// Where it lies on the device.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn into_output(self) -> Output {
        Output { storage: self.storage, shape: self.shape }
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.into_output().into_tensor()
    }
}

/// The address of a buffer that may be absent: 0 is none.
pub(crate) fn address_of(buffer: &Option<Buffer>) -> u64 {
    buffer.as_ref().map_or(0, Buffer::address)
}

/// Whether CPU tensors of all threads are computed as if they lay on a GPU.
#[cfg(feature = "testing")]
pub(crate) fn emulates_everywhere() -> bool {
    emulated::everywhere().is_some()
}

/// What runs kernels on the tensors at hand.
pub(crate) enum Gpu {
    #[cfg(feature = "cuda")]
    Cuda(candle_core::CudaDevice),
    #[cfg(feature = "testing")]
    Emulated(Emulation),
}

impl Gpu {
    /// The GPU that a tensor lies on; none for the CPU.
    pub(crate) fn of(x: Option<&Tensor>) -> Option<Self> {
        match x?.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Some(Self::Cuda(device.clone())),
            #[cfg(feature = "testing")]
            Device::Cpu => emulated::current().map(Self::Emulated),
            _ => None,
        }
    }

    /// A number of blocks, warps or threads that plans for a GPU name; an emulation may stand for a smaller one.
    pub(crate) fn scaled(&self, count: usize) -> usize {
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => count,
            #[cfg(feature = "testing")]
            Self::Emulated(ref emulation) => emulation.scaled(count),
        }
    }

    /// Memory whose content is undefined.
    pub(crate) fn uninitialised(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Buffer> {
        self.alloc(shape.into(), dtype, false)
    }

    /// Memory filled with zeros.
    pub(crate) fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Buffer> {
        self.alloc(shape.into(), dtype, true)
    }

    fn alloc(&self, shape: Shape, dtype: DType, zero: bool) -> Result<Buffer> {
        // Drivers refuse to allocate nothing.
        let size = Shape::from(shape.elem_count().max(1));
        let (storage, address) = match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref cuda) => device::alloc(cuda, &size, dtype, zero)?,
            #[cfg(feature = "testing")]
            Self::Emulated(_) => emulated::alloc(&size, dtype, zero)?,
        };
        Ok(Buffer { storage, shape, address })
    }

    /// A table on the device.
    pub(crate) fn upload(&self, values: &[i64]) -> Result<Buffer> {
        let (storage, address): (Storage, u64) = match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref cuda) => device::upload(cuda, values)?,
            #[cfg(feature = "testing")]
            Self::Emulated(_) => emulated::upload(values)?,
        };
        Ok(Buffer { storage, shape: values.len().into(), address })
    }

    /// Where the elements of a contiguous tensor lie; 0 if there is none.
    pub(crate) fn address(&self, x: Option<&Tensor>) -> Result<u64> {
        let Some(x) = x else { return Ok(0) };
        let (storage, layout) = x.storage_and_layout();
        let Some((start, _)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
        let first: u64 = match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref cuda) => device::address(cuda, &storage)?,
            #[cfg(feature = "testing")]
            Self::Emulated(_) => emulated::address(&storage)?,
        };
        Ok(first + (start * x.dtype().size_in_bytes()) as u64)
    }

    /// Runs a kernel after all that were launched before.
    ///
    /// # Safety
    /// The argument must be the kernel's struct, its addresses must point to as many elements of the right type as the
    /// sizes beside them say, on this device, and the grid must be one that the kernel is written for.
    #[allow(unsafe_code)] // a kernel follows raw addresses
    pub(crate) unsafe fn launch<A: KernelArgs>(&self, kernel: Kernel, grid: Grid, args: &A) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        if grid.blocks[0] > i32::MAX as usize || grid.blocks[1] > MAX_BLOCKS_Y {
            bail!("{}: the input is too large for one launch ({:?} blocks)", symbol(kernel), grid.blocks);
        }
        // SAFETY: as the caller promises.
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref cuda) => unsafe { device::launch(cuda, kernel, grid, args) },
            #[cfg(feature = "testing")]
            Self::Emulated(ref emulation) => unsafe { emulation.launch(kernel, grid, args) },
        }
    }
}

kernel_args! {
    /// Sums of the rows of a (rows, n, d) array, written as (d, n).
    struct SumRowsArgs {
        input: u64,
        output: u64,
        rows: i64,
        n: i64,
        d: i64,
    }
}

impl Gpu {
    /// Sums the rows of a (rows, n, d) array of f32 that begins at `input`, as (d, n).
    #[allow(unsafe_code)] // a launch
    pub(crate) fn sum_rows(
        &self,
        module: Module,
        input: u64,
        rows: usize,
        (n, d): (usize, usize),
        shape: &Shape,
    ) -> Result<Buffer> {
        let output = self.uninitialised(shape.clone(), DType::F32)?;
        let args =
            SumRowsArgs { input, output: output.address(), rows: rows as i64, n: n as i64, d: d as i64 };
        let grid = Grid { blocks: [(n * d).div_ceil(32), 1], threads: [32, 16] };
        // SAFETY: every caller hands an array of that size, and `output` has one element for each column.
        unsafe { self.launch((module, "sum_rows", DType::F32), grid, &args)? };
        Ok(output)
    }
}
