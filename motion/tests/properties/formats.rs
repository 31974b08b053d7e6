//! Readers and writers: round trips, and errors that name the place.

use mamba_motion::formats::bvh::{Bvh, Channel, Joint};
use mamba_motion::formats::npy::{self, Array};
use mamba_motion::formats::{deepmimic, humanml3d};
use proptest::prelude::*;
use std::path::Path;

/// A random tree in depth-first order, with random channels, and random frames.
fn bvhs() -> impl Strategy<Value = Bvh> {
    let joint = ("[A-Za-z][A-Za-z0-9_]{0,8}( [a-z]{1,3})?", 0usize..4, prop::array::uniform3(-50.0..50.0f64));
    let channels = Just(Channel::XYZ.into_iter().chain(Channel::ZXY).collect::<Vec<_>>()).prop_shuffle();
    let joints = prop::collection::vec((joint, channels, 0usize..=6), 1..8);
    (joints, 0usize..4, 0.001..0.2f64, any::<u64>()).prop_map(|(parts, n_frames, frame_time, seed)| {
        let mut joints: Vec<Joint> = Vec::new();
        let mut path: Vec<usize> = Vec::new();
        for (i, ((name, up, offset), channels, count)) in parts.into_iter().enumerate() {
            // Going up by `up` from the joint before keeps the order depth first.
            path.truncate(path.len().saturating_sub(up).max(1));
            let parent = path.last().copied();
            joints.push(Joint { name, parent, offset, channels: channels[..count].to_vec(), end: None });
            path.push(i);
        }
        let leaf = joints.len() - 1;
        joints[leaf].end = Some([1.0, -2.0, 0.5]);
        let n: usize = joints.iter().map(|joint| joint.channels.len()).sum();
        let mut rng = mamba_core::Rng::new(seed);
        let frames = (0..n_frames).map(|_| (0..n).map(|_| rng.uniform_in(-180.0, 180.0)).collect()).collect();
        Bvh { joints, frame_time, frames }
    })
}

fn near(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_as_bvh_is_read_again(bvh in bvhs()) {
        prop_assume!(bvh.n_channels() > 0 || bvh.frames.is_empty());
        let again = Bvh::parse(&bvh.to_string(), Path::new("a.bvh")).unwrap();
        prop_assert_eq!(again.joints.len(), bvh.joints.len());
        for (a, b) in again.joints.iter().zip(&bvh.joints) {
            prop_assert_eq!((&a.name, a.parent, &a.channels, a.end), (&b.name, b.parent, &b.channels, b.end));
            prop_assert!(near(&a.offset, &b.offset, 1e-6));
        }
        prop_assert_eq!(again.frames.len(), bvh.frames.len());
        prop_assert!(again.frames.iter().zip(&bvh.frames).all(|(a, b)| near(a, b, 1e-6)));
        prop_assert!((again.frame_time - bvh.frame_time).abs() < 1e-7);
    }

    #[test]
    fn a_broken_bvh_is_an_error_with_a_line_and_never_a_panic(
        bvh in bvhs(), at in 0.0..1.0f64, cut in 0usize..6, bytes in "[ -~\n{}]{0,6}"
    ) {
        let text = bvh.to_string();
        let start = ((text.len() as f64 * at) as usize).min(text.len());
        let end = (start + cut).min(text.len());
        let broken = format!("{}{bytes}{}", &text[..start], &text[end..]);
        match Bvh::parse(&broken, Path::new("x.bvh")) {
            Ok(read) => prop_assert!(read.frames.iter().all(|frame| frame.len() == read.n_channels())),
            Err(error) => {
                let message = error.to_string();
                let line = message.strip_prefix("x.bvh:").and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
                prop_assert!(line.is_some_and(|line| line <= broken.lines().count().max(1)), "{}", message);
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let path = Path::new("any.txt");
        prop_assert!(Bvh::parse(&text, path).is_err());
        let _ = deepmimic::Clip::parse(&text, path);
        let _ = humanml3d::parse_captions(&text, path);
    }

    #[test]
    fn arrays_are_read_as_they_were_written(values in prop::collection::vec(-1e6..1e6f32, 0..60)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let array = Array { shape: vec![values.len() / 3, 3], values: values[..values.len() / 3 * 3].to_vec() };
        npy::write(&path, &array).unwrap();
        prop_assert_eq!(npy::read(&path).unwrap(), array);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        prop_assert!(npy::read(&path).is_err());
    }
}

fn line_error(text: &str) -> String {
    Bvh::parse(text, Path::new("x.bvh")).unwrap_err().to_string()
}

const GOOD: &str = "HIERARCHY\nROOT a\n{\nOFFSET 0 0 0\nCHANNELS 3 Xposition Yrotation Zposition\nJOINT b\n{\n\
    OFFSET 1 2 3\nCHANNELS 1 Xrotation\nEnd Site\n{\nOFFSET 0 1 0\n}\n}\n}\nMOTION\nFrames: 2\nFrame Time: 0.1\n\
    1 2 3 4\n5 6 7 8\n";

#[test]
fn bvh_errors_say_what_and_where() {
    assert!(Bvh::parse(GOOD, Path::new("x.bvh")).is_ok());
    let cases = [
        ("HIERARCHY", "HIERARCHIE", "x.bvh:1: expected HIERARCHY, found \"HIERARCHIE\""),
        ("OFFSET 1 2 3", "OFFSET 1 two 3", "x.bvh:8: an offset is \"two\", expected a number"),
        ("1 Xrotation", "1 Xrot", "x.bvh:9: \"Xrot\" is no channel, expected Xposition to Zrotation"),
        ("1 2 3 4\n", "1 2 3\n", "x.bvh:19: frame 1 has 3 numbers, expected 4"),
        ("1 2 3 4\n", "1 2 NaN 4\n", "x.bvh:19: a channel is \"NaN\", expected a number"),
        ("5 6 7 8\n", "", "x.bvh:19: the file ends after 1 frames of 2"),
        ("5 6 7 8\n", "5 6 7 8\n9 9 9 9\n", "x.bvh:21: a line after the 2 frames that are announced"),
        ("}\n}\n}\nMOTION", "}\n}\nMOTION", "x.bvh:15: MOTION, but 1 joints lack their }"),
        ("Time: 0.1", "Time: 0", "x.bvh:18: the frame time is 0.0 seconds, expected 0.0001 to 1"),
        ("Time: 0.1", "Time: 1e9", "x.bvh:18: the frame time is 1000000000.0 seconds, expected 0.0001 to 1"),
        (
            "Time: 0.1",
            "Time: 33.3",
            "x.bvh:18: the frame time is 33.3 seconds, expected 0.0001 to 1; as milliseconds it would be 0.0333",
        ),
        ("Frames: 2", "Framed: 2", "x.bvh:17: expected Frames:, found \"Framed:\""),
        ("Frames: 2", "Frames: -2", "x.bvh:17: \"-2\" is no number of frames"),
        ("CHANNELS 1 X", "CHANNELS 99999999999 X", "x.bvh:9: \"99999999999\" is no number of channels"),
    ];
    for (from, to, message) in cases {
        assert_eq!(line_error(&GOOD.replacen(from, to, 1)), message, "{from} → {to}");
    }
    assert_eq!(line_error(""), "x.bvh:1: the file ends where HIERARCHY is expected");
}

#[test]
fn a_byte_order_mark_and_missing_spaces_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bvh");
    let text = GOOD.replace("Frames: 2", "Frames:2").replace("Time: 0.1", "Time:0.1");
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert_eq!(Bvh::read(&path).unwrap(), Bvh::parse(GOOD, Path::new("x.bvh")).unwrap());
}

#[test]
fn channels_may_come_in_any_order_and_positions_replace_offsets() {
    let bvh = Bvh::parse(GOOD, Path::new("x.bvh")).unwrap();
    let places = bvh.places(0);
    assert_eq!(places[0].position, [1.0, 0.0, 3.0], "x and z from the frame, y from the offset");
    // 2° about y take the offset (1, 2, 3) along.
    let (sin, cos) = 2f64.to_radians().sin_cos();
    let want = [1.0 + cos + 3.0 * sin, 2.0, 3.0 - sin + 3.0 * cos];
    assert!(near(&places[1].position, &want, 1e-12), "{:?}", places[1]);
}

#[test]
fn deepmimic_errors_say_what_and_where() {
    let frame = |numbers: &str| format!("{{\"Loop\": \"wrap\", \"Frames\": [[{numbers}], [{numbers}]]}}");
    let message = |text: &str| deepmimic::Clip::parse(text, Path::new("c.txt")).unwrap_err().to_string();
    assert!(message("{\n\"Frames\": 3}").starts_with("c.txt:2: not a DeepMimic clip"));
    assert_eq!(message(&frame("0.1, 0")), "c.txt: frame 1 has 2 numbers, expected 44");
    assert_eq!(message(r#"{"Frames": [[0.1]]}"#), "c.txt: 1 frames, expected at least 2");
    assert_eq!(
        message(&frame("1").replace("wrap", "spin")),
        "c.txt: Loop is \"spin\", expected wrap or none"
    );
    let zeros = vec!["0.1"; 4].into_iter().chain(vec!["0"; 40]).collect::<Vec<_>>().join(",");
    assert_eq!(message(&frame(&zeros)), "c.txt: frame 1: the quaternion of root is [0.0, 0.0, 0.0, 0.0]");
    let long = zeros.replacen("0.1", "1e300", 1);
    assert_eq!(message(&frame(&long)), "c.txt: frame 1 lasts 1e300 seconds, expected 0.0001 to 1");
}

#[test]
fn real_files_are_read() {
    let Some(data) = std::env::var_os("MAMBA_DATA").map(std::path::PathBuf::from) else {
        eprintln!("MAMBA_DATA is not set: the files of HumanML3D and DeepMimic are not read");
        return;
    };
    let folder = data.join("motion/humanml3d");
    let features = humanml3d::read_features(folder.join("new_joint_vecs/012314.npy")).unwrap();
    let joints = humanml3d::read_joints(folder.join("new_joints/012314.npy")).unwrap();
    let poses = mamba_motion::features::to_poses(&mamba_motion::features::frames_of(&features).unwrap());
    let error = poses.iter().zip(&joints).flat_map(|(a, b)| a.iter().flatten().zip(b.iter().flatten()));
    let error = error.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(error < 1e-5, "{error}");
    let captions = humanml3d::read_captions(folder.join("texts/000000.txt")).unwrap();
    assert_eq!(captions.len(), 4);
    assert!(captions[0].text.starts_with("a man kicks") && captions[0].part.is_none());
    assert_eq!(humanml3d::read_ids(folder.join("test.txt")).unwrap().len(), 4384);
    for entry in std::fs::read_dir(data.join("motion/deepmimic")).unwrap() {
        deepmimic::Clip::read(entry.unwrap().path()).unwrap();
    }
}
