//! Audio files in and out, block by block: WAV through hound; FLAC, Ogg Vorbis and MP3 in through symphonia.
//!
//! ```
//! use mamba_speech::audio::{Audio, WavFormat, read, write_wav};
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("tone.wav");
//! let tone = (0..1600).map(|i| (i as f32 * 0.1).sin() * 0.5).collect();
//! write_wav(&path, &Audio::mono(16_000, tone), WavFormat::PCM16)?;
//! assert_eq!(read(&path)?.frames(), 1600);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compressed;
mod resample;
mod wav;

pub use resample::{Resampler, resample};
pub use wav::{WavFormat, WavWriter, write_wav};

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// File names that are taken for audio, in lower case.
pub const EXTENSIONS: [&str; 5] = ["wav", "flac", "ogg", "oga", "mp3"];

/// Sample rates that files and streams may have, in Hz.
pub const SAMPLE_RATES: std::ops::RangeInclusive<u32> = 1..=1_000_000;

/// Frames that are read at once.
pub const BLOCK_FRAMES: usize = 1 << 15;

/// Sound in memory: a list of samples for each channel, full scale ±1.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    /// Frames in a second.
    pub sample_rate: u32,
    /// Samples of each channel; all have the same length.
    pub channels: Vec<Vec<f32>>,
}

impl Audio {
    /// One channel.
    pub fn mono(sample_rate: u32, samples: Vec<f32>) -> Self {
        Self { sample_rate, channels: vec![samples] }
    }

    /// Samples of each channel.
    pub fn frames(&self) -> usize {
        self.channels.first().map_or(0, Vec::len)
    }

    /// The mean of all channels.
    pub fn mix_down(mut self) -> Vec<f32> {
        if self.channels.len() == 1 {
            return self.channels.swap_remove(0);
        }
        let n = self.channels.len() as f32;
        (0..self.frames()).map(|i| self.channels.iter().map(|c| c[i]).sum::<f32>() / n).collect()
    }
}

/// What a file's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Frames in a second.
    pub sample_rate: u32,
    /// Number of channels.
    pub channels: usize,
    /// Frames in the file, where its header tells.
    pub frames: Option<u64>,
    /// How to write the like of it.
    pub format: WavFormat,
}

impl Spec {
    /// Whole seconds in the file, where its header tells of one or more.
    pub fn seconds(&self) -> Option<u64> {
        self.frames.map(|frames| frames / u64::from(self.sample_rate)).filter(|seconds| *seconds > 0)
    }
}

/// Reads a file from its beginning to its end.
pub struct Reader {
    path: PathBuf,
    spec: Spec,
    source: Box<dyn Source>,
    frames: u64,
}

/// Where a [`Reader`]'s samples come from.
trait Source: Send {
    /// Appends some frames, at most about `max`, to the channels; appends nothing at the end.
    fn read(&mut self, max: usize, channels: &mut [Vec<f32>]) -> std::result::Result<(), String>;
}

impl Reader {
    /// Opens a file; what it is, is told by its first bytes.
    ///
    /// # Errors
    /// Files that cannot be opened or are no audio.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut head = [0; 12];
        let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
        let n = read_up_to(&mut file, &mut head).map_err(Error::io(path))?;
        if n == 0 {
            return Err(Error::audio(path, "the file is empty"));
        }
        let is_wav = &head[..4] == b"RIFF" && &head[8..] == b"WAVE";
        let (spec, source) = match is_wav {
            true => wav::open(path)?,
            false => compressed::open(path)?,
        };
        if spec.channels == 0 {
            return Err(Error::audio(path, "the header tells of no channels"));
        }
        if !SAMPLE_RATES.contains(&spec.sample_rate) {
            let (got, lowest, highest) = (spec.sample_rate, SAMPLE_RATES.start(), SAMPLE_RATES.end());
            let reason = format!("the header tells {got} Hz, expected {lowest} to {highest} Hz");
            return Err(Error::audio(path, reason));
        }
        Ok(Self { path: path.to_path_buf(), spec, source, frames: 0 })
    }

    /// What the header says.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Frames read so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The next block of samples for each channel; none at the end.
    ///
    /// # Errors
    /// Damaged or truncated files, and samples that are not finite.
    pub fn next_block(&mut self) -> Result<Option<Vec<Vec<f32>>>> {
        let mut channels = vec![Vec::with_capacity(BLOCK_FRAMES); self.spec.channels];
        let seconds = |frame: u64| frame as f64 / f64::from(self.spec.sample_rate);
        if let Err(reason) = self.source.read(BLOCK_FRAMES, &mut channels) {
            let good = seconds(self.frames + channels.last().map_or(0, Vec::len) as u64);
            return Err(Error::audio(&self.path, format!("{reason} after {good:.3} s")));
        }
        for (c, samples) in channels.iter().enumerate() {
            if let Some(i) = samples.iter().position(|x| !x.is_finite()) {
                let frame = self.frames + i as u64;
                let reason =
                    format!("sample {frame} of channel {c} is {} (at {:.3} s)", samples[i], seconds(frame));
                return Err(Error::audio(&self.path, reason));
            }
        }
        let frames = channels[0].len();
        self.frames += frames as u64;
        if frames == 0 && self.frames == 0 {
            return Err(Error::audio(&self.path, "the file has no samples"));
        }
        Ok((frames > 0).then_some(channels))
    }
}

fn read_up_to(reader: &mut impl std::io::Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match reader.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// A whole file.
///
/// # Errors
/// As [`Reader`].
pub fn read(path: impl AsRef<Path>) -> Result<Audio> {
    let mut reader = Reader::open(path)?;
    let mut channels = vec![Vec::new(); reader.spec.channels];
    while let Some(block) = reader.next_block()? {
        channels.iter_mut().zip(block).for_each(|(all, more)| all.extend(more));
    }
    Ok(Audio { sample_rate: reader.spec.sample_rate, channels })
}

/// A whole file as one channel at the given rate.
///
/// # Errors
/// As [`Reader`] and [`resample`].
pub fn read_mono(path: impl AsRef<Path>, sample_rate: u32) -> Result<Vec<f32>> {
    let audio = read(path)?;
    let from = audio.sample_rate;
    resample(&audio.mix_down(), from, sample_rate)
}

/// All audio files in a folder and the folders below it, sorted.
///
/// # Errors
/// Folders that cannot be read, or hold no audio file.
pub fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    files_in_except(folder, None)
}

/// [`files_in`] without what lies in one of the folders below, be it there or not.
///
/// # Errors
/// As [`files_in`].
pub fn files_in_except(folder: &Path, except: Option<&Path>) -> Result<Vec<PathBuf>> {
    let except = except.and_then(|path| path.canonicalize().ok());
    let mut found = Vec::new();
    collect(folder, except.as_deref(), &mut Vec::new(), &mut found)?;
    found.sort();
    if found.is_empty() { Err(Error::NoAudio { path: folder.to_path_buf() }) } else { Ok(found) }
}

/// `above` are the folders that this one lies in: a link to one of them would lead around for ever.
fn collect(
    folder: &Path,
    except: Option<&Path>,
    above: &mut Vec<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> Result<()> {
    let real = folder.canonicalize().map_err(Error::io(folder))?;
    if above.contains(&real) || (!above.is_empty() && except == Some(&real)) {
        return Ok(());
    }
    above.push(real);
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            collect(&path, except, above, found)?;
        } else if is_audio(&path) {
            found.push(path);
        }
    }
    above.pop();
    Ok(())
}

/// Whether a file's name is that of audio.
pub fn is_audio(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}
