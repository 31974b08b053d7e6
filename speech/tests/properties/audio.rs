//! Files come back as they were written, and damaged ones are refused in words.

use mamba_speech::audio::{
    Audio, Reader, Resampler, WavFormat, files_in, read, read_mono, resample, write_wav,
};
use proptest::prelude::*;

const EIGHT_BITS: WavFormat = WavFormat { bits: 8, float: false };
const THIRTY_TWO_BITS: WavFormat = WavFormat { bits: 32, float: false };

fn tone(rate: u32, frames: usize, hz: f64) -> Vec<f32> {
    let step = std::f64::consts::TAU * hz / f64::from(rate);
    (0..frames).map(|i| (0.5 * (step * i as f64).sin()) as f32).collect()
}

#[test]
fn every_width_comes_back_within_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    for format in [EIGHT_BITS, WavFormat::PCM16, WavFormat::PCM24, THIRTY_TWO_BITS, WavFormat::FLOAT] {
        for channels in [1, 2, 3] {
            let audio = Audio {
                sample_rate: 22_050,
                channels: (0..channels).map(|c| tone(22_050, 70_000, 100.0 + 50.0 * c as f64)).collect(),
            };
            write_wav(&path, &audio, format).unwrap();
            let spec = Reader::open(&path).unwrap().spec();
            assert_eq!((spec.format, spec.channels, spec.frames), (format, channels, Some(70_000)));
            let back = read(&path).unwrap();
            assert_eq!((back.sample_rate, back.frames()), (22_050, 70_000));
            let step = if format.float { 0.0 } else { 1.0 / f64::from(1u32 << (format.bits - 1)) };
            for (a, b) in audio.channels.iter().flatten().zip(back.channels.iter().flatten()) {
                assert!(f64::from((a - b).abs()) <= 0.5 * step + 6e-8, "{format:?}: {a} and {b}");
            }
        }
    }
}

#[test]
fn loud_samples_are_limited_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("loud.wav");
    write_wav(&path, &Audio::mono(8000, vec![2.0, -2.0, 0.5]), WavFormat::PCM16).unwrap();
    let back = read(&path).unwrap();
    assert_eq!(back.channels[0], [32767.0 / 32768.0, -1.0, 0.5]);
    write_wav(&path, &Audio::mono(8000, vec![2.0, -2.0, 0.5]), WavFormat::FLOAT).unwrap();
    assert_eq!(read(&path).unwrap().channels[0], [2.0, -2.0, 0.5]);
}

#[test]
fn damaged_files_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("a.wav"), "{error}");
        error
    };
    write_wav(&path, &Audio::mono(16_000, tone(16_000, 5_000, 440.0)), WavFormat::PCM16).unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert!(message(&whole[..whole.len() - 801]).contains("truncated"));
    assert!(
        message(&whole[..20]).contains("not a valid WAV file") || message(&whole[..20]).contains("truncated")
    );
    assert!(message(b"").ends_with("the file is empty"));
    assert!(message(b"hello, this is text and no sound").contains("not a WAV, FLAC, Ogg Vorbis or MP3 file"));
    write_wav(&path, &Audio::mono(16_000, Vec::new()), WavFormat::PCM16).unwrap();
    assert!(read(&path).unwrap_err().to_string().ends_with("the file has no samples"));
    write_wav(&path, &Audio::mono(16_000, vec![0.0, 0.1, f32::NAN]), WavFormat::FLOAT).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("sample 2 of channel 0 is NaN (at 0.000 s)"));
    assert!(read(folder.path().join("nowhere.wav")).unwrap_err().to_string().contains("nowhere.wav"));
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(files_in(&empty).unwrap_err().to_string().contains("no audio file"));
}

#[test]
fn compressed_files_of_the_noise_sets_are_read() {
    let Some(data) = std::env::var_os("MAMBA_DATA").map(std::path::PathBuf::from) else {
        eprintln!("skipped: MAMBA_DATA is not set");
        return;
    };
    for (file, seconds) in [("noise_blanket/rain.ogg", 1.0), ("noise_moodist/things_dryer.mp3", 1.0)] {
        let path = data.join("speech").join(file);
        let samples = read_mono(&path, 16_000).unwrap();
        assert!(samples.len() as f64 > 16_000.0 * seconds, "{file}: {} samples", samples.len());
        assert!(samples.iter().any(|x| x.abs() > 1e-3), "{file} is silent");
        let cut = std::fs::read(&path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut").with_extension(path.extension().unwrap());
        std::fs::write(&path, &cut[..200]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("cut."), "{error}");
    }
}

#[test]
fn resampling_keeps_a_tone_and_its_place() {
    for (from, to) in [(8_000, 16_000), (44_100, 16_000), (16_000, 48_000), (11_025, 16_000)] {
        let got = resample(&tone(from, from as usize, 300.0), from, to).unwrap();
        let want = tone(to, to as usize, 300.0);
        assert_eq!(got.len(), want.len());
        let inner = to as usize / 10..to as usize * 9 / 10;
        let error =
            got[inner.clone()].iter().zip(&want[inner]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 2e-3, "{from} to {to}: {error}");
    }
    assert!(Resampler::new(0, 16_000).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn resampled_lengths_are_exact_however_the_signal_arrives(
        from in 4_000u32..50_000, to in 4_000u32..50_000, frames in 0usize..5_000, block in 1usize..3_000,
    ) {
        let signal = vec![0.25f32; frames];
        let mut resampler = Resampler::new(from, to).unwrap();
        let mut out = Vec::new();
        for samples in signal.chunks(block) {
            out.extend(resampler.push(samples).unwrap());
        }
        let want = resampler.output_len(frames as u64);
        out.extend(resampler.finish().unwrap());
        prop_assert_eq!(out.len() as u64, want);
        prop_assert!((want as f64 - frames as f64 * f64::from(to) / f64::from(from)).abs() <= 0.5);
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0..4) {
        let head: &[u8] = match kind {
            0 => b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0\x44\xac\0\0\x10\xb1\x02\0\x04\0\x10\0data",
            1 => b"fLaC\0\0\0\x22",
            2 => b"OggS\0\x02",
            _ => b"",
        };
        bytes.splice(..0, head.iter().copied());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any.wav");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(audio) = read(&path) {
            prop_assert!(audio.frames() > 0);
            prop_assert!(audio.channels.iter().flatten().all(|x| x.is_finite()));
        }
    }
}
