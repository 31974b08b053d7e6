//! Motions one after the other, as one motion with transitions: what long motion is trained and measured on.

use crate::features::{FOOT_STILL, Frame, from_canonical, to_poses};
use crate::quaternion::{about, add, rotate, scale, sub};
use crate::skeleton::{Bones, N_JOINTS, Pose, facing, with_bones};
use crate::{Error, Result};

/// Frames over which a transition fades.
pub const BLEND: usize = 10;

/// Parts of clips as one motion of as many frames. Each part begins where and as the one before would have gone on, facing
/// the same way; the difference between the two poses fades over [`BLEND`] frames.
///
/// # Errors
/// No part, or one of fewer than two frames.
pub fn join(parts: &[&[Frame]]) -> Result<Vec<Frame>> {
    if parts.is_empty() || parts.iter().any(|part| part.len() < 2) {
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        return Err(Error::Motion(format!("parts of {lengths:?} frames, expected some of at least 2 each")));
    }
    let mut poses: Vec<Pose> = Vec::new();
    for part in parts {
        let next = to_poses(part);
        match poses.last_chunk() {
            Some([before, last]) => poses.extend(follow(&go_on(before, last), next)),
            None => poses = next,
        }
    }
    // The features of a frame need the pose after it.
    if let Some([before, last]) = poses.last_chunk() {
        poses.push(go_on(before, last));
    }
    Ok(from_canonical(&with_bones(&poses, &Bones::REFERENCE), FOOT_STILL))
}

/// The pose after two poses, if all joints keep their velocities.
fn go_on(before: &Pose, last: &Pose) -> Pose {
    std::array::from_fn(|j| sub(scale(last[j], 2.0), before[j]))
}

/// A motion moved and turned to begin at `start`, from which it departs smoothly.
fn follow(start: &Pose, motion: Vec<Pose>) -> Vec<Pose> {
    let angle = |pose: &Pose| {
        let ahead = facing(pose);
        ahead[0].atan2(ahead[2])
    };
    let turn = about([0.0, 1.0, 0.0], angle(start) - angle(&motion[0]));
    let from = motion[0][0];
    let to = [start[0][0], 0.0, start[0][2]];
    let moved = |p| add(rotate(turn, sub(p, [from[0], 0.0, from[2]])), to);
    let motion: Vec<Pose> = motion.into_iter().map(|pose| pose.map(moved)).collect();
    let offset: Pose = std::array::from_fn(|j| sub(start[j], motion[0][j]));
    let faded = |(i, pose): (usize, Pose)| -> Pose {
        let rest = 1.0 - (i as f64 / BLEND as f64).min(1.0);
        let weight = rest * rest * (3.0 - 2.0 * rest);
        std::array::from_fn::<_, N_JOINTS, _>(|j| add(pose[j], scale(offset[j], weight)))
    };
    motion.into_iter().enumerate().map(faded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{MotionData, SourceConfig};
    use crate::features::FPS;
    use crate::quaternion::norm;

    #[test]
    fn joined_motion_keeps_lengths_bones_and_does_not_jump() {
        let data = MotionData::bundled(&SourceConfig::standard()).unwrap();
        let clip = |name: &str| &data.clips.iter().find(|clip| clip.name == name).unwrap().frames;
        let parts = [&clip("walk")[..60], &clip("stealthy_walk")[10..50], &clip("walk")[30..80]];
        let joined = join(&parts).unwrap();
        assert_eq!(joined.len(), 150);
        let poses = to_poses(&joined);
        assert!(crate::retarget::bone_error(&poses) < 1e-6);
        let fastest = |poses: &[Pose]| {
            let way =
                |pair: &[Pose]| (0..N_JOINTS).map(|j| norm(sub(pair[1][j], pair[0][j]))).fold(0.0, f64::max);
            poses.windows(2).map(way).fold(0.0, f64::max) * FPS
        };
        let alone = parts.map(|part| fastest(&to_poses(part))).into_iter().fold(0.0, f64::max);
        assert!(fastest(&poses) < 1.5 * alone, "{} m/s, {alone} in the parts", fastest(&poses));
        assert!(poses[149][0][0].hypot(poses[149][0][2]) > 3.0, "walking on: {:?}", poses[149][0]);
        assert_eq!(
            join(&[&clip("walk")[..1]]).unwrap_err().to_string(),
            "parts of [1] frames, expected some of at least 2 each"
        );
    }
}
