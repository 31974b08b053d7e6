//! FLAC, Ogg Vorbis and MP3, through symphonia.

use super::{Source, Spec, WavFormat};
use crate::{Error, Result};
use std::path::Path;
use symphonia::core::codecs::audio::well_known::CODEC_ID_MP3;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

/// Opens a compressed file for reading.
pub(super) fn open(path: &Path) -> Result<(Spec, Box<dyn Source>)> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut hint = Hint::new();
    if let Some(extension) = path.extension().and_then(|e| e.to_str()) {
        hint.with_extension(extension);
    }
    let stream = MediaSourceStream::new(Box::new(file), Default::default());
    let (options, metadata) = (FormatOptions::default(), MetadataOptions::default());
    let format = symphonia::default::get_probe()
        .probe(&hint, stream, options, metadata)
        .map_err(|e| Error::audio(path, format!("not a WAV, FLAC, Ogg Vorbis or MP3 file: {e}")))?;
    let track = format.default_track(TrackType::Audio);
    let no_audio = || Error::audio(path, "the file has no audio track");
    let track = track.ok_or_else(no_audio)?;
    let params = track.codec_params.as_ref().and_then(|p| p.audio()).ok_or_else(no_audio)?;
    let decoder = symphonia::default::get_codecs()
        .make_audio_decoder(params, &AudioDecoderOptions::default())
        .map_err(|e| Error::audio(path, format!("cannot decode this file: {e}")))?;
    let unknown = |what: &str| Error::audio(path, format!("the header does not tell the {what}"));
    let wide = params.bits_per_sample.is_some_and(|bits| bits > 16);
    let (track_id, frames) = (track.id, track.num_frames);
    let sample_rate = params.sample_rate.ok_or_else(|| unknown("sample rate"))?;
    let known_channels = params.channels.as_ref().map(|c| c.count());
    let mp3 = params.codec == CODEC_ID_MP3;
    // Of an MP3 file without an encoder's tag, the number of frames is an estimate.
    let told = track.start_ts.get() == 0 && (!mp3 || track.delay.is_some());
    let expected = frames.filter(|_| told);
    let first = Vec::new();
    let mut source =
        CompressedSource { format, decoder, track: track_id, first, mp3, damaged: 0, decoded: 0, expected };
    let channels = match known_channels {
        Some(channels) => channels,
        // Some containers tell only with the first packet.
        None => source.decode_first().map_err(|reason| Error::audio(path, reason))?,
    };
    let format = if wide { WavFormat::PCM24 } else { WavFormat::PCM16 };
    Ok((Spec { sample_rate, channels, frames, format }, Box::new(source)))
}

struct CompressedSource {
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    /// Decoded before anyone asked.
    first: Vec<Vec<f32>>,
    mp3: bool,
    /// Packets before the first one that could be decoded.
    damaged: u32,
    /// Frames so far.
    decoded: u64,
    /// Frames in the file, where its header tells for certain.
    expected: Option<u64>,
}

/// Packets at the start of an MP3 file that may be damaged before the file is given up.
const MOST_DAMAGED: u32 = 8;
/// Frames that an MP3 file may lack: encoders count a packet or two differently.
const MP3_MARGIN: u64 = 2 * 1152;

impl CompressedSource {
    fn decode_first(&mut self) -> std::result::Result<usize, String> {
        self.first = self.decode()?.unwrap_or_default();
        match self.first.len() {
            0 => Err("the file has no samples".into()),
            n => Ok(n),
        }
    }

    /// Samples of the next packet of our track.
    fn decode(&mut self) -> std::result::Result<Option<Vec<Vec<f32>>>, String> {
        loop {
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(None),
                Err(SymphoniaError::ResetRequired) => return Err("chained streams are not supported".into()),
                Err(SymphoniaError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err("the file is truncated".into());
                }
                Err(e) => return Err(format!("the file is damaged: {e}")),
            };
            if packet.track_id != self.track {
                continue;
            }
            match self.decoder.decode(&packet) {
                Ok(buffer) => {
                    let mut channels: Vec<Vec<f32>> = Vec::new();
                    buffer.copy_to_vecs_planar(&mut channels);
                    let frames = channels.first().map_or(0, Vec::len);
                    self.decoded += frames as u64;
                    if frames > 0 {
                        return Ok(Some(channels));
                    }
                }
                // The first packets of a cut MP3 file need others that are gone.
                Err(SymphoniaError::DecodeError(_))
                    if self.mp3 && self.decoded == 0 && self.damaged < MOST_DAMAGED =>
                {
                    self.damaged += 1;
                }
                Err(e) => return Err(format!("the file is damaged: {e}")),
            }
        }
    }

    /// Refuses a file whose end came too early: readers pass over what they do not understand.
    fn expect_all(&self) -> std::result::Result<(), String> {
        let margin = if self.mp3 { MP3_MARGIN } else { 0 };
        match self.expected {
            Some(expected) if self.decoded + margin < expected => Err(format!(
                "{} of {expected} samples could be decoded: the file is damaged, or ends",
                self.decoded
            )),
            _ => Ok(()),
        }
    }
}

impl Source for CompressedSource {
    fn read(&mut self, max: usize, channels: &mut [Vec<f32>]) -> std::result::Result<(), String> {
        let mut block = std::mem::take(&mut self.first);
        loop {
            if !block.is_empty() && block.len() != channels.len() {
                return Err(format!("{} channels in a file of {}", block.len(), channels.len()));
            }
            channels.iter_mut().zip(&block).for_each(|(all, more)| all.extend(more));
            if channels[0].len() >= max {
                return Ok(());
            }
            block = match self.decode()? {
                Some(block) => block,
                None => return self.expect_all(),
            };
        }
    }
}
