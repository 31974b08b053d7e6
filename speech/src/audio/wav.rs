//! WAV files: 8, 16, 24 and 32 bit integers and 32 bit floats.

use super::{Audio, Source, Spec};
use crate::{Error, Result};
use hound::SampleFormat;
use mamba_datasets::AtomicFile;
use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How a sample is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WavFormat {
    /// 8, 16, 24 or 32.
    pub bits: u16,
    /// Floating point, which has 32 bits.
    pub float: bool,
}

impl WavFormat {
    /// 16 bit integers.
    pub const PCM16: Self = Self { bits: 16, float: false };
    /// 24 bit integers.
    pub const PCM24: Self = Self { bits: 24, float: false };
    /// 32 bit floats.
    pub const FLOAT: Self = Self { bits: 32, float: true };

    /// Size of the range of integers, one-sided.
    fn scale(self) -> f64 {
        f64::from(1u32 << (self.bits - 1))
    }
}

/// Opens a WAV file for reading.
pub(super) fn open(path: &Path) -> Result<(Spec, Box<dyn Source>)> {
    let reader = hound::WavReader::open(path).map_err(|e| Error::audio(path, describe(&e)))?;
    let header = reader.spec();
    let format =
        WavFormat { bits: header.bits_per_sample, float: header.sample_format == SampleFormat::Float };
    if !(matches!(format.bits, 8 | 16 | 24 | 32) && (!format.float || format.bits == 32)) {
        let kind = if format.float { "floats" } else { "integers" };
        return Err(Error::audio(path, format!("WAV of {} bit {kind} is not supported", format.bits)));
    }
    let frames = u64::from(reader.duration());
    let spec = Spec {
        sample_rate: header.sample_rate,
        channels: usize::from(header.channels),
        frames: Some(frames),
        format,
    };
    Ok((spec, Box::new(WavSource { reader, format })))
}

struct WavSource {
    reader: hound::WavReader<BufReader<File>>,
    format: WavFormat,
}

impl Source for WavSource {
    fn read(&mut self, max: usize, channels: &mut [Vec<f32>]) -> std::result::Result<(), String> {
        let n = channels.len();
        let take = max * n;
        let mut put = |i: usize, sample: f32| channels[i % n].push(sample);
        if self.format.float {
            for (i, sample) in self.reader.samples::<f32>().take(take).enumerate() {
                put(i, sample.map_err(|e| describe(&e))?);
            }
        } else {
            let scale = self.format.scale();
            for (i, sample) in self.reader.samples::<i32>().take(take).enumerate() {
                put(i, (f64::from(sample.map_err(|e| describe(&e))?) / scale) as f32);
            }
        }
        let frames = channels[n - 1].len();
        match channels.iter().all(|c| c.len() == frames) {
            true => Ok(()),
            false => Err("the file ends in the middle of a frame".into()),
        }
    }
}

fn describe(error: &hound::Error) -> String {
    match error {
        hound::Error::FormatError(reason) => format!("not a valid WAV file: {reason}"),
        hound::Error::Unsupported => "this kind of WAV file is not supported".into(),
        // hound reports the end of the file as an error without a kind.
        hound::Error::IoError(e)
            if matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::Other) =>
        {
            "the file is truncated".into()
        }
        other => other.to_string(),
    }
}

/// Writes a WAV file whole or not at all.
pub struct WavWriter {
    path: PathBuf,
    file: SharedFile,
    writer: hound::WavWriter<SharedFile>,
    format: WavFormat,
    clipped: u64,
}

impl WavWriter {
    /// Starts a file; nothing stands at `path` before [`WavWriter::finish`].
    ///
    /// # Errors
    /// Folders that cannot be written to.
    pub fn create(path: &Path, sample_rate: u32, channels: usize, format: WavFormat) -> Result<Self> {
        let spec = hound::WavSpec {
            channels: channels as u16,
            sample_rate,
            bits_per_sample: format.bits,
            sample_format: if format.float { SampleFormat::Float } else { SampleFormat::Int },
        };
        let file = SharedFile(Arc::new(Mutex::new(AtomicFile::create(path)?)));
        let writer = hound::WavWriter::new(file.clone(), spec).map_err(|e| Error::audio(path, e))?;
        Ok(Self { path: path.to_path_buf(), file, writer, format, clipped: 0 })
    }

    /// Appends frames. Integers are rounded and, beyond full scale, clipped.
    ///
    /// # Errors
    /// A full disk.
    pub fn write(&mut self, channels: &[Vec<f32>]) -> Result<()> {
        let frames = channels.first().map_or(0, Vec::len);
        let scale = self.format.scale();
        for i in 0..frames {
            for samples in channels {
                let x = samples[i];
                let written = if self.format.float {
                    self.writer.write_sample(x)
                } else {
                    let value = (f64::from(x) * scale).round();
                    let limited = value.clamp(-scale, scale - 1.0);
                    self.clipped += u64::from(limited != value);
                    self.writer.write_sample(limited as i32)
                };
                written.map_err(|e| Error::audio(&self.path, e))?;
            }
        }
        Ok(())
    }

    /// Samples that were beyond full scale.
    pub fn clipped(&self) -> u64 {
        self.clipped
    }

    /// Completes the header. The file still has its temporary name: commit it, or hand it to a job's claim.
    ///
    /// # Errors
    /// A full disk.
    pub fn into_file(self) -> Result<AtomicFile> {
        self.writer.finalize().map_err(|e| Error::audio(&self.path, e))?;
        let file = Arc::into_inner(self.file.0).expect("the finalized writer has given its handle back");
        Ok(file.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(self) -> Result<()> {
        Ok(self.into_file()?.commit()?)
    }
}

/// hound keeps the file that it writes to; this handle brings it back.
#[derive(Clone)]
struct SharedFile(Arc<Mutex<AtomicFile>>);

impl SharedFile {
    fn lock(&self) -> MutexGuard<'_, AtomicFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for SharedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.lock().seek(to)
    }
}

/// Writes a whole file.
///
/// # Errors
/// As [`WavWriter`].
pub fn write_wav(path: &Path, audio: &Audio, format: WavFormat) -> Result<()> {
    let mut writer = WavWriter::create(path, audio.sample_rate, audio.channels.len(), format)?;
    writer.write(&audio.channels)?;
    writer.finish()
}
