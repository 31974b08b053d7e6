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
/// How far beyond the leg's reach a place may lie before the foot leaves it, in metres.
const SLACK: f64 = 0.06;
/// Frames over which a correction fades.
const FADE: usize = 6;
/// Frames of a step that the features do not know of.
const STEP: usize = 2 * FADE;

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
        let reaches = |i: usize, place: Vec3| {
            let pose = &poses[i];
            let ankle = add(pose[leg[2]], sub(place, toes[i]));
            let length = bone(pose, leg[0], leg[1]) + bone(pose, leg[1], leg[2]);
            norm(sub(ankle, pose[leg[0]])) <= length + SLACK
        };
        let moves = corrections(&toes, kept, stands, reaches);
        for (pose, by) in poses.iter_mut().zip(moves).filter(|(_, by)| *by != [0.0; 3]) {
            move_foot(pose, leg, by);
        }
    }
    poses
}

/// How far to move the toes in each frame. `stands` says whether they stand, `reaches` whether the leg can bring them near a
/// place.
fn corrections(
    toes: &[Vec3],
    kept: &[bool],
    stands: impl Fn(usize) -> bool,
    reaches: impl Fn(usize, Vec3) -> bool,
) -> Vec<Vec3> {
    let n = toes.len();
    let mut moves = vec![[0.0; 3]; n];
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    while let Some(first) = (start..n).find(|&i| stands(i) && !kept[i]) {
        let end = (first..n).find(|&i| !stands(i) || kept[i]).unwrap_or(n);
        start = end;
        if end - first < SHORTEST {
            continue;
        }
        // A foot that stands in a kept frame stays where it is there; another one where it came down.
        let beside = |i: Option<usize>| i.filter(|&i| i < n && kept[i] && stands(i)).map(|i| toes[i]);
        let (before, after) = (beside(first.checked_sub(1)), beside(Some(end)));
        let down = toes[first..first + SHORTEST].iter().fold([0.0; 3], |sum, toe| add(sum, *toe));
        let down = scale(down, 1.0 / SHORTEST as f64);
        let (from, to) = (before.or(after).unwrap_or(down), after.or(before).unwrap_or(down));
        let place = |i: usize| {
            let t = (i - first + 1) as f64 / (end - first + 1) as f64;
            let place = add(scale(from, 1.0 - t), scale(to, t));
            [place[0], place[1].max(0.0), place[2]]
        };
        // Whoever moves on has to take a step, also where the features know of none.
        let left = (first..end).find(|&i| !reaches(i, place(i))).unwrap_or(end);
        for (i, by) in moves.iter_mut().enumerate().take(left).skip(first) {
            *by = sub(place(i), toes[i]);
        }
        if left > first {
            ranges.push(first..left);
        }
        if left < end {
            start = left + STEP;
        }
    }
    // Before and after a stand, what it needs fades out.
    let mut free: Vec<bool> = kept.iter().map(|kept| !kept).collect();
    ranges.iter().for_each(|range| free[range.clone()].fill(false));
    for range in ranges {
        let sides = [(range.start, range.start.checked_sub(1), -1), (range.end - 1, Some(range.end), 1)];
        for (edge, next, way) in sides {
            for far in 1..FADE {
                let Some(i) = next.and_then(|i| i.checked_add_signed(way * (far as isize - 1))) else {
                    break;
                };
                if i >= n || kept[i] {
                    break;
                }
                if free[i] {
                    let rest = 1.0 - far as f64 / FADE as f64;
                    moves[i] = add(moves[i], scale(moves[edge], rest * rest * (3.0 - 2.0 * rest)));
                }
            }
        }
    }
    moves
}

/// The length of a bone.
fn bone(pose: &Pose, from: usize, to: usize) -> f64 {
    norm(sub(pose[to], pose[from]))
}

/// Moves a foot, as far as the leg reaches, and bends the knee for it in the plane in which it was bent.
fn move_foot(pose: &mut Pose, [hip, knee, ankle, toes]: [usize; 4], by: Vec3) {
    let (thigh, shin) = (bone(pose, hip, knee), bone(pose, knee, ankle));
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

    /// A walk over a floor that swings to and fro.
    fn sliding() -> (Vec<Frame>, Vec<Pose>) {
        let data = MotionData::bundled(&SourceConfig::standard()).unwrap();
        let walk = data.clips.iter().find(|clip| clip.name == "walk").unwrap();
        let mut poses = to_poses(&walk.frames);
        for (i, pose) in poses.iter_mut().enumerate() {
            pose.iter_mut().for_each(|joint| joint[0] += 0.12 * (0.3 * i as f64).sin());
        }
        (walk.frames.clone(), poses)
    }

    #[test]
    fn standing_feet_stop_sliding_and_bones_keep_their_lengths() {
        let (frames, poses) = sliding();
        // Of the walk itself the measure counts toes that swing low over the floor.
        let walk = foot_skating(&to_poses(&frames));
        let before = foot_skating(&poses);
        let still = still_feet(&poses, &frames, &vec![false; poses.len()]);
        let after = foot_skating(&still);
        assert!(before > walk + 0.3 && after < walk + 0.06, "{before} to {after}, {walk} without sliding");
        assert!(bone_error(&still) < 1e-9, "{}", bone_error(&still));
        for (a, b) in poses.iter().zip(&still) {
            for joint in (0..22).filter(|j| ![4, 5, 7, 8, 10, 11].contains(j)) {
                assert_eq!(a[joint], b[joint], "only legs move");
            }
        }
    }

    #[test]
    fn who_walks_on_takes_a_step_whatever_the_features_say() {
        let (mut frames, poses) = sliding();
        frames.iter_mut().for_each(|frame| frame[CONTACTS].fill(1.0));
        let still = still_feet(&poses, &frames, &vec![false; poses.len()]);
        let hips_ahead = |poses: &[Pose]| poses.last().unwrap()[0][2] - poses.last().unwrap()[10][2];
        assert!(hips_ahead(&still).abs() < 0.6, "the foot is left behind by {} m", hips_ahead(&still));
        assert!(bone_error(&still) < 1e-9);
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
