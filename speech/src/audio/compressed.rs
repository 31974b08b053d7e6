//! FLAC, Ogg Vorbis and MP3, through symphonia.

use super::{Source, Spec, WavFormat};
use crate::{Error, Result};
use std::path::Path;
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
    let mut source = CompressedSource { format, decoder, track: track_id, first: Vec::new(), damaged: 0 };
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
    /// Packets in a row that could not be decoded.
    damaged: u32,
}

/// Packets in a row that may be damaged before the file is given up.
const MOST_DAMAGED: u32 = 8;

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
                    self.damaged = 0;
                    let mut channels: Vec<Vec<f32>> = Vec::new();
                    buffer.copy_to_vecs_planar(&mut channels);
                    if channels.first().is_some_and(|c| !c.is_empty()) {
                        return Ok(Some(channels));
                    }
                }
                // MP3 decoders meet such packets at the start of a cut file and go on.
                Err(SymphoniaError::DecodeError(_)) if self.damaged < MOST_DAMAGED => self.damaged += 1,
                Err(e) => return Err(format!("the file is damaged: {e}")),
            }
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
                None => return Ok(()),
            };
        }
    }
}
