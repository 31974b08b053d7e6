//! Recommendations: what is promised about order, batches, seen items, filters and cold users.

use crate::support::{small_config, small_data, small_echo, small_mamba2};
use candle_core::{DType, Device};
use mamba_core::Params;
use mamba_core::checkpoint::save_dir;
use mamba_datasets::job::arrow_array::builder::{LargeListBuilder, LargeStringBuilder, StringViewBuilder};
use mamba_datasets::job::arrow_array::cast::AsArray;
use mamba_datasets::job::arrow_array::types::{Float32Type, Int64Type};
use mamba_datasets::job::arrow_array::{
    Array, ArrayRef, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, UInt32Array,
};
use mamba_recsys::checkpoint::{CheckpointConfig, write_items};
use mamba_recsys::data::ReadOptions;
use mamba_recsys::score::users::{OwnedId, Parts, User};
use mamba_recsys::score::{Cold, ScoreConfig, Scored, Scorer, schema, to_rows};
use mamba_recsys::{Id, Ids, ItemMap, Model, ModelConfig, RecCheckpoint};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

fn checkpoint(dir: &Path) -> RecCheckpoint {
    checkpoint_of(small_config(2), dir)
}

fn checkpoint_of(model: ModelConfig, dir: &Path) -> RecCheckpoint {
    let data = small_data();
    let n_items = data.dataset.items.n_items();
    let params = Params::fresh(3, DType::F32, &Device::Cpu);
    Model::new(&model, n_items, 20, &params.builder()).unwrap();
    let config = CheckpointConfig { n_items, max_length: 20, model };
    save_dir(dir, &serde_json::to_value(config).unwrap(), &params.to_tensors()).unwrap();
    write_items(dir, &data.dataset.items, &data.popularity).unwrap();
    RecCheckpoint::open(dir).unwrap()
}

fn scorer(checkpoint: &RecCheckpoint, exclude_seen: bool, allowed: Option<Vec<u32>>) -> Scorer {
    let config = ScoreConfig { k: 5, exclude_seen, cold: Cold::Popular };
    Scorer::new(checkpoint, config, allowed, None, &Device::Cpu).unwrap()
}

fn histories() -> Vec<Vec<u32>> {
    (0..70usize).map(|i| (0..i % 31).map(|j| (i * 7 + j * 3) as u32 % 24 + 1).collect()).collect()
}

fn slices(histories: &[Vec<u32>]) -> Vec<&[u32]> {
    histories.iter().map(Vec::as_slice).collect()
}

#[test]
fn recommendations_do_not_depend_on_who_is_scored_beside() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let scorer = scorer(&checkpoint, false, None);
    let histories = histories();
    let all = scorer.top_k(&slices(&histories)).unwrap();
    for i in [1, 5, 30, 69] {
        let alone = scorer.top_k(&[&histories[i]]).unwrap().remove(0);
        assert_eq!(alone.len(), 5);
        for (a, b) in alone.iter().zip(&all[i]) {
            assert_eq!(a.item, b.item, "history {i}");
            assert_eq!(a.score, b.score, "history {i}");
        }
    }
}

#[test]
fn scores_fall_padding_is_never_recommended_and_filters_hold() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let histories = histories();
    let allowed: Vec<u32> = vec![2, 9, 4, 11, 20, 21, 22, 9];
    for (exclude_seen, allowed) in [(false, None), (true, None), (true, Some(allowed))] {
        let scorer = scorer(&checkpoint, exclude_seen, allowed.clone());
        let open = scorer.top_k(&slices(&histories)).unwrap();
        for (history, scored) in histories.iter().zip(open) {
            assert!(scored.windows(2).all(|pair| pair[0].score >= pair[1].score));
            assert!(scored.iter().all(|scored| scored.item > 0));
            if exclude_seen && !history.is_empty() {
                assert!(scored.iter().all(|scored| !history.contains(&scored.item)));
            }
            if let Some(allowed) = &allowed {
                assert!(scored.iter().all(|scored| allowed.contains(&scored.item)));
            }
        }
    }
}

#[test]
fn a_user_without_known_items_gets_popular_ones() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let cold = scorer(&checkpoint, true, None).top_k(&[&[]]).unwrap().remove(0);
    let counts: Vec<u64> = cold.iter().map(|scored| checkpoint.counts()[scored.item as usize]).collect();
    assert!(
        cold.iter().all(|scored| scored.score.is_none()) && counts.windows(2).all(|pair| pair[0] >= pair[1])
    );
    assert_eq!(counts[0], checkpoint.counts().iter().copied().max().unwrap());
    let users = [User { id: OwnedId::Int(7), history: vec![], candidates: None }];
    let rows = |policy| {
        let config = ScoreConfig { k: 3, exclude_seen: false, cold: policy };
        let scorer = Scorer::new(&checkpoint, config, None, None, &Device::Cpu).unwrap();
        to_rows(&scorer, &users, checkpoint.items(), &schema(false, checkpoint.items()))
    };
    assert_eq!(rows(Cold::Popular).unwrap().0.num_rows(), 3);
    let (skipped, n) = rows(Cold::Skip).unwrap();
    assert_eq!((skipped.num_rows(), n), (0, 1));
    let error = rows(Cold::Error).unwrap_err().to_string();
    assert_eq!(error, "user 7 has no item that the model knows");
}

#[test]
fn candidates_get_the_scores_that_top_k_gives() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let scorer = scorer(&checkpoint, false, None);
    let histories = [vec![3u32, 4, 5], vec![], vec![9]];
    let best = scorer.top_k(&slices(&histories)).unwrap();
    let asked: Vec<Vec<Option<u32>>> =
        best.iter().map(|scored| scored.iter().map(|s| Some(s.item)).chain([None]).collect()).collect();
    let asked: Vec<&[Option<u32>]> = asked.iter().map(Vec::as_slice).collect();
    for (scores, best) in scorer.candidates(&slices(&histories), &asked).unwrap().iter().zip(&best) {
        assert_eq!(scores.last(), Some(&None));
        for (score, Scored { score: want, .. }) in scores.iter().zip(best) {
            match (score, want) {
                (Some(a), Some(b)) => assert!((a - b).abs() < 1e-5, "{a} and {b}"),
                (a, b) => assert_eq!(a, b),
            }
        }
    }
}

#[test]
fn an_arrow_batch_gives_what_the_functions_give() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let scorer = scorer(&checkpoint, false, None);
    let ids =
        |items: &[u32]| items.iter().map(|&item| checkpoint.items().id(item).to_string()).collect::<Vec<_>>();
    let mut list = mamba_datasets::job::arrow_array::builder::ListBuilder::new(
        mamba_datasets::job::arrow_array::builder::StringBuilder::new(),
    );
    list.append_value(ids(&[3, 4, 5]).into_iter().map(Some));
    list.append_value([Some("never heard of".to_string())]);
    let list: ListArray = list.finish();
    let users: ArrayRef = Arc::new(Int64Array::from(vec![70, 80]));
    let batch = RecordBatch::try_from_iter([("user", users), ("items", Arc::new(list) as ArrayRef)]).unwrap();
    let rows = scorer.score_batch(&batch, checkpoint.items()).unwrap();
    let best = scorer.top_k(&[&[3, 4, 5]]).unwrap().remove(0);
    let items = rows.column(2).as_string::<i32>();
    for (i, scored) in best.iter().enumerate() {
        assert_eq!(items.value(i), checkpoint.items().id(scored.item).to_string());
        assert_eq!(Some(rows.column(3).as_primitive::<Float32Type>().value(i)), scored.score);
        assert_eq!(rows.column(0).as_primitive::<Int64Type>().value(i), 70);
    }
    assert!(rows.column(3).is_null(best.len()), "the second user is cold");
    // as polars exports them
    let mut views = LargeListBuilder::new(StringViewBuilder::new());
    let mut large = LargeListBuilder::new(LargeStringBuilder::new());
    for history in [ids(&[3, 4, 5]), vec!["never heard of".to_string()]] {
        views.append_value(history.iter().map(Some));
        large.append_value(history.iter().map(Some));
    }
    let lists: [ArrayRef; 2] = [Arc::new(views.finish()), Arc::new(large.finish())];
    let users: [ArrayRef; 2] =
        [Arc::new(Int32Array::from(vec![70, 80])), Arc::new(UInt32Array::from(vec![70, 80]))];
    for (users, lists) in users.into_iter().zip(lists) {
        let batch = RecordBatch::try_from_iter([("user", users), ("items", lists)]).unwrap();
        assert_eq!(scorer.score_batch(&batch, checkpoint.items()).unwrap(), rows);
    }
    let wrong =
        RecordBatch::try_from_iter([("user", Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]).unwrap();
    assert!(scorer.score_batch(&wrong, checkpoint.items()).is_err());
}

#[test]
fn a_candidate_that_has_no_place_among_numbers_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let scorer = scorer(&checkpoint(dir.path()), false, None);
    let items = ItemMap::new(Ids::Int((100..124).collect()));
    let candidates = ["105", "abc"].map(|id| OwnedId::Text(id.into()));
    let user = User { id: OwnedId::Int(7), history: vec![3], candidates: Some(candidates.to_vec()) };
    let error = to_rows(&scorer, &[user], &items, &schema(false, &items)).unwrap_err().to_string();
    assert_eq!(error, "candidate \"abc\" of user 7 is not a number, as the model's items are");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn parts_hold_every_user_once_with_events_in_time_order(
        events in prop::collection::vec((0u8..20, 1u8..26, 0u8..9), 1..200), parts in 1usize..6,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let row = |&(user, item, time): &(u8, u8, u8)| {
            // items 25 and above are unknown
            let id = if item < 25 { checkpoint.items().id(u32::from(item)).to_string() } else { "unknown".into() };
            format!("{},{id},{time}\n", if user % 5 == 0 { format!("u{user}") } else { user.to_string() })
        };
        let path = dir.path().join("a.csv");
        std::fs::write(&path, format!("user,item,time\n{}", events.iter().map(row).collect::<String>())).unwrap();
        let mut all = Parts::new(parts, dir.path(), |_| true).unwrap();
        all.add_events(&path, &ReadOptions::default(), checkpoint.items()).unwrap();
        let (mut seen, mut met, mut unknown) = (std::collections::BTreeMap::new(), 0, 0);
        for part in 0..parts {
            let (users, counts) = all.take(part).unwrap();
            met += counts.events;
            unknown += counts.unknown_items;
            for user in users {
                prop_assert_eq!(mamba_recsys::score::users::part_of(user.id.get(), parts), part);
                prop_assert!(seen.insert(user.id.get().to_string(), user.history).is_none());
            }
        }
        prop_assert_eq!(met as usize, events.len());
        prop_assert_eq!(unknown as usize, events.iter().filter(|e| e.1 >= 25).count());
        for user in 0u8..20 {
            let name = if user % 5 == 0 { format!("u{user}") } else { user.to_string() };
            let mut of: Vec<_> = events.iter().filter(|e| e.0 == user).collect();
            of.sort_by_key(|e| e.2);
            let want: Vec<u32> = of.iter().filter(|e| e.1 < 25).map(|e| u32::from(e.1)).collect();
            prop_assert_eq!(seen.get(&name).cloned(), (!of.is_empty()).then_some(want));
        }
    }
}

#[test]
fn a_number_and_its_text_are_one_user() {
    let part = mamba_recsys::score::users::part_of;
    assert!((0..100i64).all(|id| part(Id::Int(id), 13) == part(Id::Text(&id.to_string()), 13)));
    let spread: std::collections::BTreeSet<usize> = (0..100i64).map(|id| part(Id::Int(id), 8)).collect();
    assert_eq!(spread.len(), 8);
}

/// A user's events in any number of portions give what all of them at once give.
#[test]
fn a_day_at_a_time_is_the_whole_untruncated_history() {
    for model in [small_config(1), small_config(2), small_mamba2()] {
        days_are_the_whole(model);
    }
}

fn days_are_the_whole(model: ModelConfig) {
    use mamba_recsys::score::state::{Continued, StateIn, StateOut};
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_of(model, dir.path()); // reads 20 items at most; the histories are longer
    let scorer = scorer(&checkpoint, true, None);
    let whole = Scorer::new(&checkpoint, scorer.config().clone(), None, Some(1000), &Device::Cpu).unwrap();
    let user = |id: usize, history: Vec<u32>| User { id: OwnedId::Int(id as i64), history, candidates: None };
    // Few kinds of items, so that unseen ones are left to recommend.
    let item = |user: usize, event: usize| (user * 5 + event * event) as u32 % 15 + 1;
    for cuts in [vec![70], vec![1, 70], vec![33, 34, 70], vec![0, 10, 25, 69, 70]] {
        let mut folders = Vec::new();
        let mut last = Vec::new();
        for (day, &until) in cuts.iter().enumerate() {
            let from = if day == 0 { 0 } else { cuts[day - 1] };
            // On odd days only every other user has events, so that folders of several days are looked through.
            let users: Vec<User> = (0..12)
                .filter(|u| day % 2 == 0 || u % 2 == 0 || until == 70)
                .map(|u| {
                    let skipped = day > 0 && u % 2 == 1 && (day - 1) % 2 == 1 && until != from;
                    let from = if skipped { if day > 1 { cuts[day - 2] } else { 0 } } else { from };
                    user(u, (from..until).map(|event| item(u, event)).collect())
                })
                .collect();
            let before = match StateIn::open(&folders, &checkpoint).unwrap() {
                Some(state) => state.load(0, &users).unwrap(),
                None => vec![None; users.len()],
            };
            let Continued { scored, memories: after } = scorer.top_k_from(&users, before).unwrap();
            let folder = dir.path().join(format!("state-{}-{day}", cuts.len()));
            let states = StateOut::open(&folder, &checkpoint, 1, "", false, |_| true).unwrap();
            let memories: Vec<_> = users
                .iter()
                .zip(after)
                .filter_map(|(user, memory)| Some((user.id.clone(), memory?)))
                .collect();
            states.write(0, &memories).unwrap();
            assert_eq!(states.finish().unwrap(), 0);
            folders.push(folder);
            last = users.into_iter().zip(scored).collect();
        }
        let mut compared = 0;
        for (user, scored) in last {
            let OwnedId::Int(u) = user.id else { unreachable!() };
            let history: Vec<u32> = (0..70).map(|event| item(u as usize, event)).collect();
            let want = whole.top_k(&[&history]).unwrap().remove(0);
            assert_eq!(scored.len(), want.len());
            for (got, want) in scored.iter().zip(&want) {
                let (Some(a), Some(b)) = (got.score, want.score) else { panic!("user {u} is cold") };
                assert!((a - b).abs() < 1e-5, "cuts {cuts:?}, user {u}: {a}, all at once {b}");
                assert!(got.item == want.item || (a - b).abs() < 1e-5);
                compared += 1;
            }
        }
        assert!(compared >= 30, "{compared}");
    }
}

#[test]
fn a_model_that_reads_both_ways_scores_but_has_no_state() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_of(small_echo(), dir.path());
    let scorer = scorer(&checkpoint, false, None);
    assert_eq!(scorer.top_k(&[&[3, 4, 5]]).unwrap()[0].len(), 5);
    let user = User { id: OwnedId::Int(1), history: vec![3, 4, 5], candidates: None };
    let error = scorer.top_k_from(&[user], vec![None]).unwrap_err().to_string();
    assert!(error.contains("reads every history in both directions"), "{error}");
}

#[test]
fn states_of_another_checkpoint_and_broken_ones_are_refused() {
    use mamba_recsys::score::state::{Memory, StateIn, StateOut};
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let folder = dir.path().join("state");
    let states = StateOut::open(&folder, &checkpoint, 3, "", false, |_| true).unwrap();
    let users: Vec<User> = (0..40)
        .map(|id| User { id: OwnedId::Int(id), history: vec![], candidates: None })
        .filter(|user| mamba_recsys::score::users::part_of(user.id.get(), 3) == 1)
        .collect();
    let memory =
        |i: usize| Memory { seen: (0..i as u32).collect(), hidden: vec![i as f32; 2], state: vec![0.5; 5] };
    let memories: Vec<_> =
        users.iter().enumerate().skip(1).map(|(i, user)| (user.id.clone(), memory(i))).collect();
    assert_eq!(states.finish().unwrap(), 3);
    assert!(StateIn::open(std::slice::from_ref(&folder), &checkpoint).is_err());
    [(0, &memories[..0]), (1, &memories), (2, &memories[..0])]
        .iter()
        .for_each(|(part, memories)| states.write(*part, memories).unwrap());
    assert_eq!(states.finish().unwrap(), 0);
    let opened = StateIn::open(std::slice::from_ref(&folder), &checkpoint).unwrap().unwrap();
    assert_eq!(opened.parts(), 3);
    let read = opened.load(1, &users).unwrap();
    assert_eq!(read[0], None);
    assert!(read.iter().enumerate().skip(1).all(|(i, read)| read.as_ref() == Some(&memory(i))));

    let file = folder.join("state-00001.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for length in [0, 7, 20, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        assert!(opened.load(1, &users).is_err(), "{length} bytes");
    }
    let manifest = folder.join("state.json");
    let text = std::fs::read_to_string(&manifest).unwrap().replace(checkpoint.hash(), "0");
    std::fs::write(&manifest, text).unwrap();
    let error = StateIn::open(&[folder], &checkpoint).unwrap_err().to_string();
    assert!(error.contains("states of another checkpoint"), "{error}");
}
