//! `separate FILE…`: one file for each talker, whatever the length of the recording.

use super::super::recordings::{Recording, Totals, batch, below};
use super::FilesArgs;
use anyhow::{Context, Result, bail};
use mamba_core::cli::HintExt;
use mamba_core::progress::Progress;
use mamba_datasets::job::{Claim, Claimed, Fingerprint, Job};
use mamba_datasets::registry::resolve_all;
use mamba_speech::SeparatorCheckpoint;
use mamba_speech::audio::{Audio, Reader, Resampler, WavWriter};
use mamba_speech::enhance::ChunkConfig;
use mamba_speech::separation::{Separator, Stitch};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Separates every recording.
pub(super) fn run(args: FilesArgs) -> Result<ExitCode> {
    let device = args.common.start()?;
    if !(args.chunk > 0.0 && args.chunk.is_finite()) {
        return Err(mamba_core::Error::Config("--chunk must be above 0".into()).into());
    }
    let (Some(checkpoint), Some(out)) = (&args.checkpoint, &args.out) else {
        bail!("--checkpoint and --out are missing")
    };
    let checkpoint = SeparatorCheckpoint::open(checkpoint)
        .hint("name the folder of a run of `mamba-speech separate train`")?;
    let separator = checkpoint.separator(args.common.dtype(), &device)?;
    let model = checkpoint.hash()?;
    let results = |output: PathBuf| talkers_of(&output, separator.talkers());
    let recordings = below(&resolve_all(&args.inputs)?, out, results)?;
    batch(&recordings, args.shard, &args.common, |recording| match claim(&args, recording, &model)? {
        Claimed::Finished(_) => Ok(None),
        Claimed::Open(claim) => {
            let progress = |seconds| args.common.progress(seconds, "s of sound");
            separate(recording, claim, &separator, args.chunk, progress).map(Some)
        }
    })
}

/// `NAME_1.wav`, `NAME_2.wav` …
fn talkers_of(output: &Path, talkers: usize) -> Vec<PathBuf> {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    (1..=talkers).map(|i| output.with_file_name(format!("{stem}_{i}.wav"))).collect()
}

/// The right to make the files of one recording, unless they stand already.
fn claim(args: &FilesArgs, recording: &Recording, model: &str) -> Result<Claimed> {
    let mut fingerprint = Fingerprint::new();
    fingerprint.add_input(&recording.input)?.add_hash("model", model);
    fingerprint.set_config(&serde_json::json!({ "chunk": args.chunk }))?;
    if let Some(folder) = recording.outputs[0].parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let job = Job::new("mamba-speech separate", fingerprint).overwrite(args.overwrite);
    Ok(job.claim(&recording.outputs[0], &recording.outputs[1..], None)?)
}

/// Decodes, mixes down, resamples, separates, resamples back and encodes, in memory that does not grow.
fn separate(
    Recording { input, outputs }: &Recording,
    claim: Claim,
    separator: &Separator,
    chunk: f64,
    progress: impl FnOnce(Option<u64>) -> Progress,
) -> Result<Totals> {
    let clock = Instant::now();
    let mut reader = Reader::open(input)?;
    let (spec, rate) = (reader.spec(), separator.sample_rate());
    let mut progress = progress(spec.seconds());
    let writer = |path: &PathBuf| WavWriter::create(path, spec.sample_rate, 1, spec.format);
    let mut writers = outputs.iter().map(writer).collect::<mamba_speech::Result<Vec<_>>>()?;
    let mut down = Resampler::new(spec.sample_rate, rate)?;
    let up = |_: &PathBuf| Resampler::new(rate, spec.sample_rate);
    let mut up = outputs.iter().map(up).collect::<mamba_speech::Result<Vec<_>>>()?;
    let length = ChunkConfig::seconds(chunk, rate).length;
    let chunks = ChunkConfig { length, overlap: length / 3 };
    let mut stitch = Stitch::new(|samples: &[f32]| separator.separate(samples), outputs.len(), chunks);
    let mut seconds = 0;
    while let Some(channels) = reader.next_block()? {
        let mono = Audio { sample_rate: spec.sample_rate, channels }.mix_down();
        let talkers = stitch.push(&down.push(&mono)?)?;
        for ((writer, up), talker) in writers.iter_mut().zip(&mut up).zip(talkers) {
            writer.write(&[up.push(&talker)?])?;
        }
        let done = reader.frames() / u64::from(spec.sample_rate);
        progress.inc(done - seconds);
        seconds = done;
    }
    let mut last = stitch.push(&down.finish()?)?;
    last.iter_mut().zip(stitch.finish()?).for_each(|(talker, end)| talker.extend(end));
    for ((writer, mut up), talker) in writers.iter_mut().zip(up).zip(last) {
        let given = up.given();
        let mut samples = up.push(&talker)?;
        samples.extend(up.finish()?);
        // There and back, lengths may be rounded by a sample.
        samples.resize((reader.frames() - given) as usize, 0.0);
        writer.write(&[samples])?;
    }
    progress.finish();
    let clipped = writers.iter().map(WavWriter::clipped).sum();
    let files = writers.into_iter().map(WavWriter::into_file).collect::<mamba_speech::Result<_>>()?;
    claim.commit(files, reader.frames())?;
    let seconds = reader.frames() as f64 / f64::from(spec.sample_rate);
    Ok(Totals { recordings: 1, seconds, took: clock.elapsed().as_secs_f64(), clipped })
}
