//! Files come back as they were written, and damaged ones are refused in words.

use mamba_speech::audio::{
    Audio, Reader, Resampler, WavFormat, files_in, files_in_except, read, read_mono, resample, write_wav,
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
    assert!(message(&whole[..whole.len() - 801]).ends_with("the file is truncated after 0.287 s"));
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

/// A WAV header of 16 bit mono at a rate, with the sizes that it tells, and what follows.
fn wav(rate: u32, riff: u32, data: u32, samples: &[u8]) -> Vec<u8> {
    let fmt = [1u16.to_le_bytes(), 1u16.to_le_bytes()].concat();
    let fmt = [&fmt[..], &rate.to_le_bytes(), &rate.wrapping_mul(2).to_le_bytes(), &[2, 0, 16, 0]].concat();
    [
        b"RIFF",
        &riff.to_le_bytes()[..],
        b"WAVEfmt ",
        &[16, 0, 0, 0],
        &fmt,
        b"data",
        &data.to_le_bytes(),
        samples,
    ]
    .concat()
}

#[test]
fn headers_that_do_not_tell_the_length_stand_for_the_rest_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("piped.wav");
    let frames = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        let frames = read(&path).map(|audio| audio.frames() as u64);
        assert!(
            frames.is_err() || Reader::open(&path).unwrap().spec().frames == frames.as_ref().ok().copied()
        );
        frames.map_err(|e| e.to_string())
    };
    let samples = [1, 0].repeat(1000);
    for (riff, size) in [(0xFFFF_FFFF, 0xFFFF_FFFF), (36, 0), (0x7FFF_F024, 0x7FFF_F000), (36, 2000)] {
        assert_eq!(frames(wav(16_000, riff, size, &samples)), Ok(1000), "{size:x}");
    }
    // The byte of padding counted, and half a sample that nobody can hear.
    assert_eq!(frames(wav(16_000, 2037, 2001, &[&samples[..], &[0]].concat())), Ok(1000));
    assert_eq!(frames(wav(16_000, 0, 0, &[&samples[..], &[7]].concat())), Ok(1000));
    // No samples where the sizes agree on it, and a chunk of odd size in front.
    assert!(frames(wav(16_000, 36, 0, &[])).unwrap_err().contains("the file has no samples"));
    let mut odd = wav(16_000, 2048, 2000, &samples);
    odd.splice(36..36, *b"LIST\x03\0\0\0abc\0");
    assert_eq!(frames(odd), Ok(1000));
}

#[test]
fn rates_and_samples_that_no_recording_has_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    for rate in [0, 1_000_001, 2_000_000_011] {
        std::fs::write(&path, wav(rate, 2036, 2000, &[0; 2000])).unwrap();
        let expected = format!("a.wav: the header tells {rate} Hz, expected 1 to 1000000 Hz");
        assert!(read(&path).unwrap_err().to_string().ends_with(&expected));
    }
    let mut doubles = wav(16_000, 2036, 2000, &[0; 2000]);
    (doubles[20], doubles[32], doubles[34]) = (3, 8, 64);
    std::fs::write(&path, doubles).unwrap();
    assert!(
        read(&path).unwrap_err().to_string().contains("WAV of 64 bit floats is not supported: convert it")
    );
}

/// A FLAC file of one channel, 16 bits and 16 kHz: frames of 4096 samples as they are.
fn flac(samples: &[i16]) -> Vec<u8> {
    let crc = |bytes: &[u8], bits: u32, polynomial: u32| {
        bytes.iter().fold(0u32, |mut crc, &byte| {
            crc ^= u32::from(byte) << (bits - 8);
            for _ in 0..8 {
                crc = if crc >> (bits - 1) & 1 == 1 { crc << 1 ^ polynomial } else { crc << 1 };
            }
            crc & ((1 << bits) - 1)
        })
    };
    let mut out = b"fLaC\x80\0\0\x22\x10\0\x10\0\0\0\0\0\0\0".to_vec();
    out.extend((16_000u64 << 44 | 15 << 36 | samples.len() as u64).to_be_bytes());
    out.extend([0; 16]);
    for (i, block) in samples.chunks(4096).enumerate() {
        let mut frame = vec![0xFF, 0xF8, 0x75, 0x08, i as u8];
        frame.extend((block.len() as u16 - 1).to_be_bytes());
        frame.push(crc(&frame, 8, 0x07) as u8);
        frame.push(2);
        block.iter().for_each(|x| frame.extend(x.to_be_bytes()));
        frame.extend((crc(&frame, 16, 0x8005) as u16).to_be_bytes());
        out.extend(frame);
    }
    out
}

#[test]
fn flac_files_that_lack_samples_are_refused() {
    const FRAME: usize = 8202;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.flac");
    let samples: Vec<i16> = tone(16_000, 6 * 4096, 300.0).iter().map(|x| (x * 32767.0) as i16).collect();
    let whole = flac(&samples);
    let read_bytes = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    };
    assert_eq!(read_bytes(&whole).unwrap().frames(), samples.len());
    for cut in [42 + 4 * FRAME, 42 + 4 * FRAME + 4000] {
        let error = read_bytes(&whole[..cut]).unwrap_err().to_string();
        assert!(error.contains("the file is truncated after"), "{error}");
    }
    for (place, what) in [(2 * FRAME + 500, "a sample"), (2 * FRAME + 2, "a frame's header")] {
        let mut damaged = whole.clone();
        damaged[42 + place] ^= 0x55;
        let error = read_bytes(&damaged).unwrap_err().to_string();
        assert!(error.contains("of 24576 samples could be decoded"), "{what} is damaged: {error}");
    }
}

#[cfg(unix)]
#[test]
fn links_that_lead_around_and_the_folder_of_results_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::create_dir_all(dir.join("a/out")).unwrap();
    for name in ["one.wav", "a/two.flac", "a/out/three.wav"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    std::os::unix::fs::symlink("..", dir.join("a/up")).unwrap();
    std::os::unix::fs::symlink(dir, dir.join("self")).unwrap();
    let names = |found: Vec<std::path::PathBuf>| -> Vec<String> {
        found.iter().map(|p| p.strip_prefix(dir).unwrap().display().to_string()).collect()
    };
    assert_eq!(names(files_in(dir).unwrap()), ["a/out/three.wav", "a/two.flac", "one.wav"]);
    let out = dir.join("a/../a/out");
    assert_eq!(names(files_in_except(dir, Some(&out)).unwrap()), ["a/two.flac", "one.wav"]);
    assert_eq!(names(files_in_except(&out, Some(&out)).unwrap()).len(), 1);
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
    // Chunks of a few frames, where each becomes thousands.
    let mut slow = Resampler::new(1, 16_000).unwrap();
    assert!(!slow.push(&[0.25; 200]).unwrap().is_empty());
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
