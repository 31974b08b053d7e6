//! Features, rig and metrics on real motion.

use mamba_motion::dataset::{Clip, MotionData, Role, SourceConfig, Standard};
use mamba_motion::features::{self, FOOT_STILL, FPS, Frame, N_FEATURES};
use mamba_motion::quaternion::{about, add, norm, rotate, scale, sub};
use mamba_motion::skeleton::{Bones, N_JOINTS, Pose, facing};
use mamba_motion::{retarget, rig};
use proptest::prelude::*;
use std::sync::OnceLock;

fn clips() -> &'static [Clip] {
    static DATA: OnceLock<MotionData> = OnceLock::new();
    &DATA.get_or_init(|| MotionData::bundled(&SourceConfig::standard()).unwrap()).clips
}

fn distance(a: &[Pose], b: &[Pose]) -> f64 {
    let joints = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    joints.map(|(a, b)| norm(sub(*a, *b))).fold(0.0, f64::max)
}

fn frame_distance(a: &[Frame], b: &[Frame]) -> f64 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn features_to_joints_to_features_is_a_round_trip() {
    for clip in clips() {
        let poses = features::to_poses(&clip.frames);
        let again = features::from_canonical(&poses, FOOT_STILL);
        // Smoothing looks ahead, so that the last frames depend on one frame that features do not have.
        let kept = clip.frames.len().saturating_sub(100);
        assert!(
            frame_distance(&again[..kept], &clip.frames[..kept]) < 1e-3,
            "{}: {}",
            clip.name,
            frame_distance(&again[..kept], &clip.frames[..kept])
        );
        assert!(distance(&features::to_poses(&again), &poses[..again.len()]) < 1e-6, "{}", clip.name);
    }
}

#[test]
fn both_ways_back_to_joints_agree() {
    for clip in clips() {
        let by_positions = features::to_poses(&clip.frames);
        let by_rotations = features::to_poses_by_rotations(&clip.frames, &Bones::REFERENCE);
        assert!(
            distance(&by_positions, &by_rotations) < 0.02,
            "{}: {}",
            clip.name,
            distance(&by_positions, &by_rotations)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn features_do_not_depend_on_place_facing_or_size(
        which in 0usize..20, turn in -3.1..3.1f64, size in 0.3..300.0f64, x in -5.0..5.0f64, z in -5.0..5.0f64
    ) {
        let clips = clips();
        let poses = features::to_poses(&clips[which % clips.len()].frames);
        let moved: Vec<Pose> = poses
            .iter()
            .map(|pose| pose.map(|p| scale(add(rotate(about([0.0, 1.0, 0.0], turn), p), [x, 0.7, z]), size)))
            .collect();
        let [a, b] = [&poses, &moved].map(|p| features::from_poses(p, &Bones::REFERENCE, FOOT_STILL).unwrap());
        // A foot whose speed is at the threshold may fall on either side.
        let without = |frames: &[Frame]| -> Vec<Frame> {
            frames.iter().map(|frame| { let mut f = *frame; f[features::CONTACTS].fill(0.0); f }).collect()
        };
        prop_assert!(frame_distance(&without(&a), &without(&b)) < 1e-6);
    }
}

#[test]
fn canonical_motion_begins_at_the_origin_facing_z_on_the_floor() {
    for clip in clips() {
        let poses = features::canonical(&features::to_poses(&clip.frames), &Bones::REFERENCE);
        let lowest = poses.iter().flatten().map(|p| p[1]).fold(f64::INFINITY, f64::min);
        assert!(lowest.abs() < 1e-9 && poses[0][0][0].abs() < 1e-9 && poses[0][0][2].abs() < 1e-9);
        assert!(norm(sub(facing(&poses[0]), [0.0, 0.0, 1.0])) < 1e-9);
        assert!(retarget::bone_error(&poses) < 1e-9);
    }
}

#[test]
fn the_rig_shows_the_poses_with_constant_bones_and_curves_without_jumps() {
    for clip in clips() {
        let poses = features::to_poses(&clip.frames);
        let bvh = rig::to_bvh(&poses, FPS, 100.0);
        let shown = rig::poses_of(&bvh, 100.0);
        // Source skeletons have a rigid pelvis and chest, so only rounding is lost.
        assert!(distance(&shown, &poses) < 0.02, "{}: {}", clip.name, distance(&shown, &poses));
        assert!(retarget::bone_error(&shown) < 1e-9, "{}", clip.name);
        let rigid = rig::rigid(&poses, &vec![false; poses.len()]);
        assert!(distance(&rigid, &shown) < 1e-9);
        let jump = |pair: &[Vec<f64>]| {
            pair[0].iter().zip(&pair[1]).skip(3).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        let largest = bvh.frames.windows(2).map(jump).fold(0.0, f64::max);
        assert!(largest < 181.0, "{}: an angle jumps by {largest} degrees", clip.name);
        let again = mamba_motion::formats::bvh::Bvh::parse(&bvh.to_string(), "r.bvh".as_ref()).unwrap();
        assert!(distance(&rig::poses_of(&again, 100.0), &shown) < 1e-5);
    }
}

#[test]
fn kept_poses_come_out_of_the_rig_as_they_are_whatever_is_made_beside_them() {
    let clip = |name: &str| clips().iter().find(|clip| clip.name == name).unwrap();
    let walk = features::to_poses(&clip("walk").frames);
    let walk = rig::rigid(&walk, &vec![false; walk.len()]);
    // Whoever is made has lower hips.
    let low = |pose: &Pose| {
        let mut pose = *pose;
        pose[1..3].iter_mut().for_each(|hip| hip[1] -= 0.05);
        pose
    };
    let poses: Vec<Pose> = walk.iter().copied().chain(walk.iter().map(low)).collect();
    let kept: Vec<bool> = (0..poses.len()).map(|i| i < walk.len()).collect();
    let rigid = rig::rigid(&poses, &kept);
    assert!(distance(&rigid[..walk.len()], &walk) < 1e-9, "{}", distance(&rigid[..walk.len()], &walk));
    assert!(distance(&rig::rigid(&poses, &vec![false; poses.len()])[..walk.len()], &walk) > 1e-3);
}

#[test]
fn a_written_file_retargets_to_the_same_features() {
    let clip = &clips()[0];
    let bvh = rig::to_bvh(&features::to_poses(&clip.frames), FPS, 100.0);
    let motion = retarget::NamedMotion::of_bvh(&bvh);
    let map = retarget::SkeletonMap::guess(&motion.names).unwrap();
    let poses = map.retarget(&motion).unwrap();
    let want = features::canonical(&features::to_poses(&clip.frames), &Bones::REFERENCE);
    assert!(distance(&poses, &want) < 0.02, "{}", distance(&poses, &want));
}

#[test]
fn what_is_held_out_is_the_fourth_of_each_and_never_its_mirror() {
    let data = MotionData::bundled(&SourceConfig::standard()).unwrap();
    assert!(data.of_role(Role::Test).is_empty(), "one clip of each label");
    let folder = tempfile::tempdir().unwrap();
    let bvh = rig::to_bvh(&features::to_poses(&data.clips[0].frames), FPS, 100.0);
    for (kind, takes) in
        [("dataset-1_walk_happy", 2), ("dataset-2_walk_happy", 4), ("dataset-2_wave-left-hand_sad", 5)]
    {
        for take in 1..=takes {
            bvh.write(folder.path().join(format!("{kind}_{take:03}.bvh"))).unwrap();
        }
    }
    let cfg = SourceConfig { valid_every: 3, ..SourceConfig::standard() };
    let data = MotionData::load(&[folder.path().to_path_buf()], &cfg).unwrap();
    let names = |role| data.of_role(role).iter().map(|clip| clip.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(Role::Test), ["dataset-2_walk_happy_004", "dataset-2_wave-left-hand_sad_004"]);
    assert_eq!(names(Role::Valid).len(), 3);
    let mirrored: Vec<String> = names(Role::Train).into_iter().filter(|name| name.ends_with('~')).collect();
    assert!(!mirrored.is_empty() && mirrored.iter().all(|name| name.contains("walk")), "{mirrored:?}");
    assert!(
        mirrored.iter().all(|name| !name.contains("_004")),
        "the mirror image of a test clip would be the test"
    );
    let groups: Vec<&str> = data.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["content", "style"]);
    // A file counts once, however it is named.
    let other_name = folder.path().join("../").join(folder.path().file_name().unwrap());
    let twice = MotionData::load(&[folder.path().to_path_buf(), other_name], &cfg).unwrap();
    assert_eq!(twice.fingerprint(), data.fingerprint());
}

#[test]
fn standardised_training_features_have_mean_zero() {
    let train: Vec<&Clip> = clips().iter().filter(|clip| clip.role == Role::Train).collect();
    let values = Standard::of(&train).forward(train.iter().flat_map(|clip| &clip.frames));
    for feature in 0..N_FEATURES {
        let column: Vec<f32> = values.iter().skip(feature).step_by(N_FEATURES).copied().collect();
        let mean = column.iter().sum::<f32>() / column.len() as f32;
        assert!(mean.abs() < 1e-2, "feature {feature}: {mean}");
    }
    assert_eq!(N_JOINTS * 12 - 1, N_FEATURES);
}

#[test]
fn bandai_namco_files_become_people_on_the_floor() {
    let archive = std::env::var_os("MAMBA_DATA")
        .map(|data| std::path::PathBuf::from(data).join("motion/bandai_namco/bandai_namco_subset.tar.gz"));
    let Some(archive) = archive.filter(|archive| archive.exists()) else {
        eprintln!("MAMBA_DATA is not set or has no bandai_namco: its files are not read");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("tar")
        .arg("xzf")
        .arg(&archive)
        .arg("-C")
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    let cfg = SourceConfig { mirror: false, ..SourceConfig::standard() };
    let data = MotionData::load(&[folder.path().to_path_buf()], &cfg).unwrap();
    assert_eq!(data.clips.len() + data.skipped.len(), 453);
    assert!(
        data.of_role(Role::Test).len() > 60
            && data.of_role(Role::Test).iter().all(|clip| clip.name.starts_with("dataset-2"))
    );
    for clip in &data.clips {
        let poses = features::to_poses(&clip.frames);
        let heads = poses.iter().filter(|pose| pose[15][1] > pose[0][1] && pose[0][1] > 0.4).count();
        assert!(heads * 10 > poses.len() * 9, "{}: the head is above the pelvis", clip.name);
        assert!(retarget::bone_error(&poses) < 1e-6);
    }
    // Walking leads to where the person faces.
    for clip in data.clips.iter().filter(|clip| clip.name.starts_with("dataset-2_walk_")) {
        let ahead: f64 = clip.frames.iter().map(|frame| frame[2]).sum();
        let aside: f64 = clip.frames.iter().map(|frame| frame[1]).sum();
        assert!(ahead > 1.0 && ahead > aside.abs(), "{}: {ahead} ahead, {aside} aside", clip.name);
    }
}
