//! What a GPU's problems are called, for people.

/// Why a GPU does not open, from the driver's words.
pub(super) fn does_not_open(error: &str) -> String {
    let known = [
        ("CUDA_ERROR_NO_DEVICE", "this machine has no NVIDIA GPU that the driver shows"),
        ("CUDA_ERROR_INVALID_DEVICE", "there is no GPU of that number: nvidia-smi lists them"),
        ("CUDA_ERROR_STUB_LIBRARY", "no NVIDIA driver is loaded"),
        ("CUDA_ERROR_INSUFFICIENT_DRIVER", "the NVIDIA driver is too old for this build's CUDA"),
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "driver and libcuda are of different versions"),
        ("CUDA_ERROR_OUT_OF_MEMORY", "other programs use all of its memory"),
    ];
    match known.iter().find(|(code, _)| error.contains(code)) {
        Some((code, words)) => format!("{words} ({code})"),
        // A backtrace may follow the first line.
        None => error.lines().next().unwrap_or_default().to_string(),
    }
}

/// Why a GPU cannot run a build whose tensor ops are compiled for `built` (80 is 8.0), if so.
///
/// candle compiles for 9.0 and later with code that no other architecture runs (sm_90a), for earlier ones with code that all
/// later ones run.
pub(super) fn unfit(built: &str, (major, minor): (i32, i32)) -> Option<String> {
    let built = built.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<i32>().ok()?;
    let has = 10 * major + minor;
    let (fits, which) = if built < 90 { (has >= built, "and newer") } else { (has == built, "alone") };
    if has < 80 {
        return Some(format!(
            "a GPU of compute capability 8.0 or newer is needed, this one has {major}.{minor}"
        ));
    }
    (!fits).then(|| {
        format!(
            "this build is for GPUs of compute capability {}.{} {which}, this one has {major}.{minor}: build with CUDA_COMPUTE_CAP={has}, or 80 for all from 8.0 on",
            built / 10,
            built % 10
        )
    })
}

/// Why the kernels of a module do not load.
pub(super) fn no_code(module: &str, toolkit: &str, (major, minor): (i32, i32)) -> String {
    format!(
        "the kernels of {module} are compiled for GPUs of compute capability 8.0 and newer and for drivers of CUDA {toolkit} and newer; this GPU has {major}.{minor}"
    )
}

/// Whether an error says that memory is short.
pub(super) fn is_out_of_memory(error: &str) -> bool {
    error.contains("CUDA_ERROR_OUT_OF_MEMORY")
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) free: u64,
    pub(super) total: u64,
    /// What tensors of this process take.
    pub(super) used: u64,
    /// The most they took.
    pub(super) peak: u64,
}

impl Memory {
    /// That an allocation failed; `asked` is its size, where that is known.
    pub(super) fn is_short(&self, asked: Option<usize>) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let asked =
            asked.map_or_else(String::new, |bytes| format!("asked for {:.1} MiB, ", mib(bytes as u64)));
        format!(
            "out of GPU memory: {asked}{:.1} of {:.1} MiB are free, {:.1} hold tensors of this process",
            mib(self.free),
            mib(self.total),
            mib(self.used)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_does_not_open_is_explained() {
        let driver =
            |code: &str| does_not_open(&format!("DriverError({code}, \"text of the driver\")\n   0: main"));
        for (code, words) in [
            ("CUDA_ERROR_STUB_LIBRARY", "no NVIDIA driver is loaded (CUDA_ERROR_STUB_LIBRARY)"),
            (
                "CUDA_ERROR_NO_DEVICE",
                "this machine has no NVIDIA GPU that the driver shows (CUDA_ERROR_NO_DEVICE)",
            ),
            (
                "CUDA_ERROR_INVALID_DEVICE",
                "there is no GPU of that number: nvidia-smi lists them (CUDA_ERROR_INVALID_DEVICE)",
            ),
        ] {
            assert_eq!(driver(code), words);
        }
        assert_eq!(driver("CUDA_ERROR_ODD"), "DriverError(CUDA_ERROR_ODD, \"text of the driver\")");
    }

    #[test]
    fn another_gpu_is_told_what_to_build() {
        assert_eq!(
            unfit("80", (7, 5)).unwrap(),
            "a GPU of compute capability 8.0 or newer is needed, this one has 7.5"
        );
        assert_eq!(
            unfit("89", (8, 6)).unwrap(),
            "this build is for GPUs of compute capability 8.9 and newer, this one has 8.6: build with CUDA_COMPUTE_CAP=86, or 80 for all from 8.0 on"
        );
        assert_eq!(
            unfit("90a", (10, 0)).unwrap(),
            "this build is for GPUs of compute capability 9.0 alone, this one has 10.0: build with CUDA_COMPUTE_CAP=100, or 80 for all from 8.0 on"
        );
        for (built, has) in [("80", (8, 0)), ("80", (12, 0)), ("90", (9, 0)), ("", (8, 6))] {
            assert_eq!(unfit(built, has), None);
        }
        assert!(no_code("ssd", "13.0", (7, 5)).ends_with("CUDA 13.0 and newer; this GPU has 7.5"));
    }

    #[test]
    fn short_memory_says_what_was_asked_and_what_was_free() {
        let memory = Memory { free: 3 << 20, total: 8 << 20, used: 5 << 19, peak: 0 };
        assert!(is_out_of_memory("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"));
        assert_eq!(
            memory.is_short(Some(4 << 20)),
            "out of GPU memory: asked for 4.0 MiB, 3.0 of 8.0 MiB are free, 2.5 hold tensors of this process"
        );
        assert!(memory.is_short(None).starts_with("out of GPU memory: 3.0 of 8.0 MiB are free"));
    }
}
