//! WAV files: 8, 16, 24 and 32 bit integers and 32 bit floats.

use super::{Audio, Source, Spec};
use crate::{Error, Result};
use hound::SampleFormat;
use mamba_datasets::AtomicFile;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom, Write};
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
    let bytes = repaired(path)?;
    let reader = hound::WavReader::new(bytes).map_err(|e| Error::audio(path, describe(&e)))?;
    let header = reader.spec();
    let format =
        WavFormat { bits: header.bits_per_sample, float: header.sample_format == SampleFormat::Float };
    if !(matches!(format.bits, 8 | 16 | 24 | 32) && (!format.float || format.bits == 32)) {
        return Err(unsupported(path, format));
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

fn unsupported(path: &Path, WavFormat { bits, float }: WavFormat) -> Error {
    let kind = if float { "floats" } else { "integers" };
    let reason = format!(
        "WAV of {bits} bit {kind} is not supported: convert it to 16 or 24 bit integers, or to 32 bit floats"
    );
    Error::audio(path, reason)
}

/// A header in memory, and the samples behind it.
type Repaired = io::Chain<Cursor<Vec<u8>>, BufReader<File>>;

/// Sizes of a data chunk that, like 0, stand for an unknown one: who writes into a pipe cannot come back to fill it in.
fn is_placeholder(size: u32) -> bool {
    matches!(size, 0x7FFF_F000..=0x7FFF_FFFF | 0xFFFF_F000..)
}

/// The file behind a header without other chunks, in which the data chunk has its true size: the rest of the file where
/// the header does not tell, and whole frames.
fn repaired(path: &Path) -> Result<Repaired> {
    let truncated = |_| Error::audio(path, "the file is truncated in its header");
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let len = file.get_ref().metadata().map_err(Error::io(path))?.len();
    let mut header = vec![0; 12];
    file.read_exact(&mut header).map_err(truncated)?;
    let covers_all = u64::from(u32_at(&header, 4)) + 8 == len;
    let mut frame_bytes = 1;
    loop {
        let mut head = [0; 8];
        file.read_exact(&mut head).map_err(truncated)?;
        let size = u32_at(&head, 4);
        // Chunks begin at even places.
        let padding = i64::from(size % 2);
        match &head[..4] {
            b"data" => {
                let rest = len.saturating_sub(file.stream_position().map_err(Error::io(path))?);
                let unknown = match size {
                    0 => !covers_all,
                    _ => is_placeholder(size) && u64::from(size) > rest,
                };
                let bytes = if unknown { rest } else { u64::from(size) };
                let Ok(bytes) = u32::try_from(bytes / frame_bytes * frame_bytes) else {
                    let reason =
                        "the header does not tell the length, and 4 GiB is the most: convert it to FLAC";
                    return Err(Error::audio(path, reason));
                };
                header.extend(b"data");
                header.extend(bytes.to_le_bytes());
                return Ok(Cursor::new(header).chain(file));
            }
            b"fmt " if size <= 1024 => {
                let mut body = vec![0; size as usize];
                file.read_exact(&mut body).map_err(truncated)?;
                if body.len() >= 16 {
                    let value = |at: usize| u16::from_le_bytes([body[at], body[at + 1]]);
                    frame_bytes = u64::from(value(12)).max(1);
                    if (value(0), value(14)) == (IEEE_FLOAT, 64) {
                        return Err(unsupported(path, WavFormat { bits: 64, float: true }));
                    }
                }
                header.extend(head);
                header.extend(body);
                file.seek_relative(padding).map_err(Error::io(path))?;
            }
            _ => file.seek_relative(i64::from(size) + padding).map_err(Error::io(path))?,
        }
    }
}

/// The tag of floating point samples in a header.
const IEEE_FLOAT: u16 = 3;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

struct WavSource {
    reader: hound::WavReader<Repaired>,
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
    /// Bytes of samples so far.
    bytes: u64,
}

/// Bytes of samples that a WAV file holds at most: its size is told in 32 bits, the header included.
const MOST_BYTES: u64 = u32::MAX as u64 - 128;

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
        Ok(Self { path: path.to_path_buf(), file, writer, format, clipped: 0, bytes: 0 })
    }

    /// Appends frames. Integers are rounded and, beyond full scale, clipped.
    ///
    /// # Errors
    /// A full disk, and more than the 4 GiB that a WAV file holds.
    pub fn write(&mut self, channels: &[Vec<f32>]) -> Result<()> {
        let frames = channels.first().map_or(0, Vec::len);
        self.bytes += (frames * channels.len()) as u64 * u64::from(self.format.bits / 8);
        if self.bytes > MOST_BYTES {
            let reason = "the result is larger than the 4 GiB that a WAV file holds: split the recording, or store \
                          fewer bits of each sample";
            return Err(Error::audio(&self.path, reason));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_4_gib_is_refused_before_its_size_wraps() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("long.wav");
        let mut writer = WavWriter::create(&path, 16_000, 1, WavFormat::PCM16).expect("a file");
        writer.bytes = MOST_BYTES - 20;
        writer.write(&[vec![0.0; 10]]).expect("room for ten samples");
        let error = writer.write(&[vec![0.0]]).expect_err("no room").to_string();
        assert!(error.contains("long.wav: the result is larger than the 4 GiB"), "{error}");
    }
}
