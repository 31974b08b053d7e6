//! Foot-skate clean-up: a foot that stands does not slide (Kovar et al. 2002, "Footskate Cleanup for Motion Capture Editing").
//!
//! The features say when a foot stands. Its toes are then held at one place, the foot goes with them, and the knee gives way:
//! hip and lengths of the bones stay. What is moved fades out over a few frames before and after.

use crate::features::{CONTACTS, Frame};
use crate::quaternion::{Vec3, add, dot, norm, normalize, scale, sub};
use crate::skeleton::{Pose, facing};
use std::ops::Range;

/// Hip, knee, ankle and toes of each leg, and the place of its toes among the contacts.
const LEGS: [([usize; 4], usize); 2] = [([1, 4, 7, 10], 1), ([2, 5, 8, 11], 3)];
/// Toes above this do not stand, in metres.
const HEIGHT: f64 = 0.08;
/// Fewest frames of a stand.
const SHORTEST: usize = 3;
/// Frames over which a correction fades.
const FADE: usize = 6;

/// Poses of a motion (frame by frame those of `frames`) with feet that stand still while they stand. Where `kept`, a pose
/// stays as it is.
///
/// # Panics
/// If the three do not have one length.
pub fn still_feet(poses: &[Pose], frames: &[Frame], kept: &[bool]) -> Vec<Pose> {
    assert!(poses.len() == frames.len() && poses.len() == kept.len(), "one pose and one mark for each frame");
    let mut poses = poses.to_vec();
    for (leg, contact) in LEGS {
        let toes: Vec<Vec3> = poses.iter().map(|pose| pose[leg[3]]).collect();
        let stands = |i: usize| frames[i][CONTACTS][contact] > 0.5 && toes[i][1] < HEIGHT;
        let moves = corrections(&toes, kept, stands);
        for (pose, by) in poses.iter_mut().zip(moves).filter(|(_, by)| *by != [0.0; 3]) {
            move_foot(pose, leg, by);
        }
    }
    poses
}

/// How far to move the toes in each frame.
fn corrections(toes: &[Vec3], kept: &[bool], stands: impl Fn(usize) -> bool) -> Vec<Vec3> {
    let n = toes.len();
    let mut moves = vec![[0.0; 3]; n];
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for i in (0..n).filter(|&i| stands(i) && !kept[i]) {
        match ranges.last_mut() {
            Some(last) if last.end == i => last.end = i + 1,
            _ => ranges.push(i..i + 1),
        }
    }
    ranges.retain(|range| range.len() >= SHORTEST);
    for range in &ranges {
        // A foot that stands in a kept frame stays where it is there.
        let beside = |i: Option<usize>| i.filter(|&i| i < n && kept[i] && stands(i)).map(|i| toes[i]);
        let (before, after) = (beside(range.start.checked_sub(1)), beside(Some(range.end)));
        let sum = toes[range.clone()].iter().fold([0.0; 3], |sum, toe| add(sum, *toe));
        let mean = scale(sum, 1.0 / range.len() as f64);
        let (from, to) = (before.or(after).unwrap_or(mean), after.or(before).unwrap_or(mean));
        for i in range.clone() {
            let t = (i - range.start + 1) as f64 / (range.len() + 1) as f64;
            let place = add(scale(from, 1.0 - t), scale(to, t));
            moves[i] = sub([place[0], place[1].max(0.0), place[2]], toes[i]);
        }
    }
    // Between two stands, what each needs fades out.
    let standing = |i: usize| ranges.iter().any(|range| range.contains(&i));
    let at_edges = moves.clone();
    for i in (0..n).filter(|&i| !standing(i) && !kept[i]) {
        for range in &ranges {
            let (edge, far) = if i < range.start {
                (range.start, range.start - i)
            } else {
                (range.end - 1, i + 1 - range.end)
            };
            if far < FADE {
                let rest = 1.0 - far as f64 / FADE as f64;
                moves[i] = add(moves[i], scale(at_edges[edge], rest * rest * (3.0 - 2.0 * rest)));
            }
        }
    }
    moves
}

/// Moves a foot, as far as the leg reaches, and bends the knee for it in the plane in which it was bent.
fn move_foot(pose: &mut Pose, [hip, knee, ankle, toes]: [usize; 4], by: Vec3) {
    let (thigh, shin) = (norm(sub(pose[knee], pose[hip])), norm(sub(pose[ankle], pose[knee])));
    let way = sub(add(pose[ankle], by), pose[hip]);
    // A hair less than straight, or than folded: the knee keeps a side to bend to.
    let reach = norm(way).clamp((thigh - shin).abs() * 1.001 + 1e-6, (thigh + shin) * 0.9999);
    let along = normalize(way);
    let bent = sub(pose[knee], pose[hip]);
    let aside = sub(bent, scale(along, dot(bent, along)));
    let aside = if norm(aside) > 1e-6 { aside } else { facing(pose) };
    let aside = normalize(sub(aside, scale(along, dot(aside, along))));
    let x = (thigh * thigh - shin * shin + reach * reach) / (2.0 * reach);
    let y = (thigh * thigh - x * x).max(0.0).sqrt();
    let foot = sub(pose[toes], pose[ankle]);
    pose[knee] = add(pose[hip], add(scale(along, x), scale(aside, y)));
    pose[ankle] = add(pose[hip], scale(along, reach));
    pose[toes] = add(pose[ankle], foot);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{MotionData, SourceConfig};
    use crate::features::to_poses;
    use crate::metrics::foot_skating;
    use crate::retarget::bone_error;

    /// A walk over a floor that moves, as unwary models make it.
    fn sliding() -> (Vec<Frame>, Vec<Pose>) {
        let data = MotionData::bundled(&SourceConfig::standard()).unwrap();
        let walk = data.clips.iter().find(|clip| clip.name == "walk").unwrap();
        let mut poses = to_poses(&walk.frames);
        for (i, joint) in
            poses.iter_mut().enumerate().flat_map(|(i, pose)| pose.iter_mut().map(move |j| (i, j)))
        {
            joint[0] += 0.03 * i as f64;
        }
        (walk.frames.clone(), poses)
    }

    #[test]
    fn standing_feet_stop_sliding_and_bones_keep_their_lengths() {
        let (frames, poses) = sliding();
        let before = foot_skating(&poses);
        let still = still_feet(&poses, &frames, &vec![false; poses.len()]);
        let after = foot_skating(&still);
        assert!(before > 0.5 && after < 0.25 * before, "{before} to {after}");
        assert!(bone_error(&still) < 1e-9, "{}", bone_error(&still));
        for (a, b) in poses.iter().zip(&still) {
            for joint in (0..22).filter(|j| ![4, 5, 7, 8, 10, 11].contains(j)) {
                assert_eq!(a[joint], b[joint], "only legs move");
            }
        }
    }

    #[test]
    fn kept_poses_stay_and_nothing_is_done_to_feet_that_do_not_stand() {
        let (mut frames, poses) = sliding();
        let kept: Vec<bool> = (0..poses.len()).map(|i| i < 40).collect();
        let still = still_feet(&poses, &frames, &kept);
        assert_eq!(still[..40], poses[..40]);
        assert_ne!(still[40..], poses[40..]);
        frames.iter_mut().for_each(|frame| frame[CONTACTS].fill(0.0));
        assert_eq!(still_feet(&poses, &frames, &vec![false; poses.len()]), poses);
    }
}
