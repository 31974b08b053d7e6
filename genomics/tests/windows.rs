//! Windows: cores cover each base once, each base is taken where it is farthest from an edge, any chunking gives the same.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use std::sync::Arc;

use mamba_genomics::fasta::{SeqChunk, SeqRecord};
use mamba_genomics::windows::{SeqWindow, Window, WindowSpec, Windows};
use mamba_genomics::{Error, Result};
use proptest::prelude::*;

fn spans(spec: WindowSpec, len: u64) -> Vec<(u64, u64, u64, u64)> {
    spec.windows(len).map(|w| (w.start0, w.end0, w.core_start0, w.core_end0)).collect()
}

#[test]
fn windows_worked_by_hand() {
    let spec = WindowSpec::new(10, 4).unwrap();
    assert_eq!(spans(spec, 3), [(0, 3, 0, 3)]);
    assert_eq!(spans(spec, 10), [(0, 10, 0, 10)]);
    assert_eq!(spans(spec, 16), [(0, 10, 0, 8), (6, 16, 8, 16)]);
    // The third is moved left from 12 to 10.
    assert_eq!(spans(spec, 20), [(0, 10, 0, 8), (6, 16, 8, 13), (10, 20, 13, 20)]);
    assert_eq!(spans(spec, 0), []);
    assert_eq!(spans(WindowSpec::new(4, 0).unwrap(), 9), [(0, 4, 0, 4), (4, 8, 4, 6), (5, 9, 6, 9)]);
    let window = spec.window(1, 20);
    assert_eq!(window.core_range(), 2..7);
}

#[test]
fn impossible_windows_are_refused() {
    for (length, overlap) in [(0, 0), (5, 5), (5, 6), (usize::MAX, 0)] {
        assert!(matches!(WindowSpec::new(length, overlap), Err(Error::Setting { .. })));
    }
}

/// Chunks of the given sizes for records of the given lengths; base number p of a record has the id p % 251.
fn chunks(lengths: &[u64], sizes: &[u64]) -> Vec<Result<SeqChunk>> {
    let mut chunks = Vec::new();
    let mut sizes = sizes.iter().cycle();
    for (index, &len) in lengths.iter().enumerate() {
        let record = Arc::new(SeqRecord { index, name: format!("r{index}"), description: String::new() });
        let mut start0 = 0;
        while start0 < len {
            let end = len.min(start0 + sizes.next().unwrap());
            let ids = (start0..end).map(|p| (p % 251) as u8).collect();
            chunks.push(Ok(SeqChunk { record: Arc::clone(&record), start0, ids, last: end == len }));
            start0 = end;
        }
    }
    chunks
}

proptest! {
    #[test]
    fn cores_cover_each_base_once_and_take_it_where_it_is_farthest_from_an_edge(
        length in 1usize..40, overlap_share in 0.0..1.0f64, len in 1u64..300,
    ) {
        let spec = WindowSpec::new(length, (overlap_share * length as f64) as usize).unwrap();
        let windows: Vec<Window> = spec.windows(len).collect();
        let mut next = 0;
        for window in &windows {
            prop_assert!(window.start0 <= window.core_start0 && window.core_end0 <= window.end0);
            prop_assert!(window.core_start0 == next && window.core_end0 > next);
            prop_assert_eq!(window.end0 - window.start0, len.min(length as u64));
            next = window.core_end0;
        }
        prop_assert_eq!(next, len);
        let distance = |w: &Window, p: u64| (p - w.start0).min(w.end0 - 1 - p);
        for window in &windows {
            for p in window.core_start0..window.core_end0 {
                let best = windows.iter().filter(|w| (w.start0..w.end0).contains(&p)).map(|w| distance(w, p)).max();
                prop_assert_eq!(Some(distance(window, p)), best);
            }
        }
    }

    #[test]
    fn streamed_windows_are_those_of_the_whole_record(
        length in 1usize..40, overlap_share in 0.0..1.0f64,
        lengths in proptest::collection::vec(1u64..300, 1..5), sizes in proptest::collection::vec(1u64..60, 1..6),
    ) {
        let spec = WindowSpec::new(length, (overlap_share * length as f64) as usize).unwrap();
        let streamed: Vec<SeqWindow> =
            Windows::new(chunks(&lengths, &sizes).into_iter(), spec).collect::<Result<_>>().unwrap();
        let expected: Vec<(usize, Window, bool)> = lengths.iter().enumerate().flat_map(|(record, &len)| {
            let n = spec.count(len);
            spec.windows(len).enumerate().map(move |(i, window)| (record, window, i as u64 + 1 == n))
        }).collect();
        let got: Vec<_> = streamed.iter().map(|w| (w.record.index, w.window, w.last)).collect();
        prop_assert_eq!(got, expected);
        for window in &streamed {
            let ids: Vec<u8> = (window.window.start0..window.window.end0).map(|p| (p % 251) as u8).collect();
            prop_assert_eq!(&window.ids, &ids);
        }
    }
}

#[test]
fn an_error_of_the_source_is_passed_on() {
    let spec = WindowSpec::new(4, 0).unwrap();
    let mut source = chunks(&[3, 9], &[3]);
    source.insert(2, Err(Error::EmptyFile { path: "x".into() }));
    let windows: Vec<_> = Windows::new(source.into_iter(), spec).take(3).collect();
    assert!(windows[0].is_ok() && windows[1].is_err());
}
