use super::*;
use crate::tokenizer::{A, BASES, reverse_complement};
use crate::{CaduceusConfig, CaduceusForMaskedLm};
use mamba_core::{Params, checkpoint};

fn embedder(rcps: bool, d_model: usize, pooling: Pool, strand: StrandChoice, layer: Layer) -> Embedder {
    let config = CaduceusConfig { rcps, d_model, n_layer: 3, ..CaduceusConfig::default() };
    let params = Params::fresh(7, DType::F32, &Device::Cpu);
    CaduceusForMaskedLm::new(&config, &params.builder()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    checkpoint::save_dir(dir.path(), &config, &params.to_tensors()).unwrap();
    let checkpoint = CaduceusCheckpoint::open(Some(dir.path())).unwrap();
    let options = EmbedOptions { pooling, layer, strand };
    Embedder::new(&checkpoint, options, DType::F32, &Device::Cpu).unwrap()
}

fn sequence(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| BASES[(i * i / 3 + i * seed + i / 7) % 4]).collect()
}

#[test]
fn a_vector_has_the_same_bits_in_any_batch() {
    // Widths on both sides of the matrix kernels' tiles, and odd ones.
    for (rcps, d_model) in [(true, 16), (true, 24), (true, 64), (true, 130), (false, 64), (true, 256)] {
        let embedder = embedder(rcps, d_model, Pool::Mean, StrandChoice::Both, Layer::Last);
        for len in [1, 2, 65, 700] {
            let wanted = sequence(len, 1);
            let alone = embedder.embed(&[&wanted]).unwrap().remove(0);
            for (others, other_len, threads) in
                [(1, len, 1), (2, 1, 3), (3, len + 7, 2), (20, 30, 2), (1, 900, 2)]
            {
                let mut batch: Vec<Vec<u8>> = (0..others).map(|i| sequence(other_len, i + 2)).collect();
                batch.push(wanted.clone());
                let batch: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let vectors = pool.install(|| embedder.embed(&batch)).unwrap();
                assert_eq!(
                    vectors[others], alone,
                    "{rcps} {d_model}, {len} bases beside {others} of {other_len}"
                );
            }
        }
    }
}

#[test]
fn a_large_batch_goes_through_in_passes_with_the_same_bits() {
    let mut embedder = embedder(true, 16, Pool::Mean, StrandChoice::Both, Layer::Last);
    assert_eq!(embedder.most_bases, (2 << 30) / (4 * 32 * 4));
    let sequences: Vec<Vec<u8>> = (0..7).map(|i| sequence(20 + 9 * i, i)).collect();
    let sequences: Vec<&[u8]> = sequences.iter().map(Vec::as_slice).collect();
    let whole = embedder.embed(&sequences).unwrap();
    for most_bases in [1, 80, 150] {
        embedder.most_bases = most_bases;
        assert_eq!(embedder.embed(&sequences).unwrap(), whole, "{most_bases}");
    }
}

#[test]
fn both_strands_make_a_vector_that_the_reverse_complement_shares() {
    let text = sequence(75, 3);
    let other = reverse_complement(&text);
    for rcps in [true, false] {
        for pooling in [Pool::Mean, Pool::Max] {
            // Layer 1: an odd number of layers leaves fused PS strands swapped.
            for layer in [Layer::Last, Layer::After(0), Layer::After(1), Layer::After(2)] {
                let vectors = |strand| {
                    let vectors = embedder(rcps, 16, pooling, strand, layer).embed(&[&text, &other]).unwrap();
                    (vectors[0].clone(), vectors[1].clone())
                };
                let (a, b) = vectors(StrandChoice::Both);
                assert_eq!(a, b, "{rcps} {pooling:?} {layer}");
                let (a, b) = vectors(StrandChoice::Concat);
                assert_eq!([&a[16..], &a[..16]].concat(), b, "{rcps} {pooling:?} {layer}");
                let (given, _) = vectors(StrandChoice::Forward);
                assert_eq!(given, a[..16]);
            }
        }
    }
}

#[test]
fn cores_of_pieces_merge_to_the_whole() {
    let text = sequence(50, 5);
    for pooling in [Pool::Mean, Pool::Max, Pool::None] {
        for strand in [StrandChoice::Both, StrandChoice::Forward, StrandChoice::Concat] {
            let embedder = embedder(true, 16, pooling, strand, Layer::Last);
            let pieces = [0..20, 20..21, 21..50].map(|core| Piece { ids: &text, core });
            let whole = embedder.embed(&[&text]).unwrap().remove(0);
            let mut parts = embedder.pool(&pieces).unwrap().into_iter();
            let mut merged = parts.next().unwrap();
            parts.for_each(|part| merged.merge(part));
            assert_eq!(merged.bases(), 50);
            let merged = embedder.vectors(merged);
            assert_eq!(merged.len(), whole.len());
            let far = merged.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-6, "{pooling:?} {strand:?}: {far}");
        }
    }
}

#[test]
fn rows_of_bases_put_both_strands_at_the_same_base() {
    let text = sequence(30, 2);
    let rows = |ids: &[u8], strand| {
        embedder(true, 16, Pool::None, strand, Layer::Last).embed(&[ids]).unwrap().remove(0)
    };
    let forward = rows(&text, StrandChoice::Forward);
    let reverse = rows(&reverse_complement(&text), StrandChoice::Forward);
    let both = rows(&text, StrandChoice::Both);
    for base in 0..30 {
        let row = |rows: &[f32], base: usize| rows[base * 16..(base + 1) * 16].to_vec();
        let mean = row(&forward, base).into_iter().zip(row(&reverse, 29 - base));
        let mean: Vec<f32> = mean.map(|(a, b)| ((f64::from(a) + f64::from(b)) / 2.0) as f32).collect();
        assert_eq!(row(&both, base), mean, "base {base}");
    }
}

#[test]
fn impossible_requests_are_refused() {
    let checkpoint = CaduceusCheckpoint::bundled().unwrap();
    let options = EmbedOptions { layer: Layer::After(99), ..EmbedOptions::default() };
    let error = Embedder::new(&checkpoint, options, DType::F32, &Device::Cpu).unwrap_err();
    assert!(matches!(&error, Error::Config(message) if message.starts_with("layer 99: the model has")));
    let embedder = Embedder::new(&checkpoint, EmbedOptions::default(), DType::F32, &Device::Cpu).unwrap();
    assert!(embedder.embed(&[]).unwrap().is_empty());
    let error = embedder.embed(&[&[A], &[]]).unwrap_err();
    assert_eq!(error.to_string(), "embed: piece 1 has 0 bases, of which 0..0 count");
    assert_eq!("last".parse::<Layer>(), Ok(Layer::Last));
    assert_eq!("12".parse::<Layer>(), Ok(Layer::After(12)));
    assert!("-1".parse::<Layer>().is_err());
}

#[test]
fn a_value_that_is_no_number_stays_in_a_maximum() {
    assert!(max(max(1.0, f32::NAN), 2.0).is_nan());
    assert_eq!(max(f32::NEG_INFINITY, -3.0), -3.0);
}
