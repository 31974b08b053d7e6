//! The 263 numbers per frame of HumanML3D (Guo et al. 2022), and their inverse.
//!
//! | range | holds |
//! |---|---|
//! | 0 | turn of the root since the frame before, half the angle in radians |
//! | 1..3 | velocity of the root along x and z, as it faces, metres per frame |
//! | 3 | height of the root |
//! | 4..67 | positions of the other 21 joints, relative to the root's place and facing |
//! | 67..193 | six numbers of each bone's rotation |
//! | 193..259 | velocities of the 22 joints, as the root faces, metres per frame |
//! | 259..263 | whether left ankle, left toes, right ankle, right toes stand still |
//!
//! Frames come at 20 a second, the motion begins at the origin facing z, and the lowest joint touches the floor.

use crate::quaternion::{
    Quat, Vec3, between, cont6d_to_matrix, inverse, mul, rotate, sub, to_cont6d, to_matrix,
};
use crate::skeleton::{
    Bones, LEFT_FOOT, N_JOINTS, Pose, RIGHT_FOOT, facing, forward_kinematics_matrices, inverse_kinematics,
    with_bones,
};
use crate::{Error, Result};
use std::ops::Range;

/// Numbers per frame.
pub const N_FEATURES: usize = 263;
/// Frames per second.
pub const FPS: f64 = 20.0;
/// Largest squared way per frame of a foot that stands still, in m².
pub const FOOT_STILL: f64 = 0.002;
/// Positions of the joints but the root.
pub const POSITIONS: Range<usize> = 4..67;
/// Rotations of the bones.
pub const ROTATIONS: Range<usize> = 67..193;
/// Velocities of the joints.
pub const VELOCITIES: Range<usize> = 193..259;
/// Foot contacts.
pub const CONTACTS: Range<usize> = 259..263;

/// One frame's numbers.
pub type Frame = [f64; N_FEATURES];

/// Brings poses to the place where features begin: bones of `bones`, lowest joint on the floor, first root at the
/// origin, first facing z.
pub fn canonical(poses: &[Pose], bones: &Bones) -> Vec<Pose> {
    let mut poses = with_bones(poses, bones);
    let floor = poses.iter().flatten().map(|joint| joint[1]).fold(f64::INFINITY, f64::min);
    let Some(first) = poses.first() else { return poses };
    let origin = [first[0][0], floor, first[0][2]];
    let turn = between(facing(first), [0.0, 0.0, 1.0]);
    for joint in poses.iter_mut().flatten() {
        *joint = rotate(turn, sub(*joint, origin));
    }
    poses
}

/// Features of poses at 20 frames a second: one frame less than there are poses. `still` is [`FOOT_STILL`].
///
/// # Errors
/// Fewer than two poses, coordinates that are not finite, or a bone of no length.
pub fn from_poses(poses: &[Pose], bones: &Bones, still: f64) -> Result<Vec<Frame>> {
    check(poses)?;
    Ok(from_canonical(&canonical(poses, bones), still))
}

fn check(poses: &[Pose]) -> Result<()> {
    if poses.len() < 2 {
        return Err(Error::Motion(format!("features need at least 2 poses, got {}", poses.len())));
    }
    for (i, pose) in poses.iter().enumerate() {
        if let Some(joint) = pose.iter().position(|joint| joint.iter().any(|x| !x.is_finite())) {
            let name = crate::skeleton::NAMES[joint];
            return Err(Error::Motion(format!("frame {}: {name} is at {:?}", i + 1, pose[joint])));
        }
        let bones = Bones::of(pose);
        if let Some(joint) = (1..N_JOINTS).find(|&joint| bones.length(joint) < 1e-9) {
            let (name, parent) = (crate::skeleton::NAMES[joint], crate::skeleton::PARENTS[joint]);
            let parent = crate::skeleton::NAMES[parent];
            return Err(Error::Motion(format!("frame {}: {name} lies on its parent {parent}", i + 1)));
        }
    }
    Ok(())
}

/// Features of poses that are [`canonical`].
pub fn from_canonical(poses: &[Pose], still: f64) -> Vec<Frame> {
    let rotations = inverse_kinematics(poses, true);
    let frames = poses.windows(2).zip(rotations.windows(2));
    frames.map(|(poses, q)| frame([&poses[0], &poses[1]], [&q[0], &q[1]], still)).collect()
}

fn frame([now, next]: [&Pose; 2], [q, q_next]: [&[Quat; N_JOINTS]; 2], still: f64) -> Frame {
    let mut frame = [0.0; N_FEATURES];
    // Upstream takes no heed of the sign of w: a person who turns past -z then turns the wrong way for a frame.
    let turn = mul(q_next[0], inverse(q[0]));
    frame[0] = (turn[2] * turn[0].signum()).clamp(-1.0, 1.0).asin();
    let velocity = rotate(q_next[0], sub(next[0], now[0]));
    (frame[1], frame[2], frame[3]) = (velocity[0], velocity[2], now[0][1]);
    let place = [now[0][0], 0.0, now[0][2]];
    for joint in 1..N_JOINTS {
        let position = rotate(q[0], sub(now[joint], place));
        frame[POSITIONS][3 * (joint - 1)..][..3].copy_from_slice(&position);
        frame[ROTATIONS][6 * (joint - 1)..][..6].copy_from_slice(&to_cont6d(q[joint]));
    }
    for joint in 0..N_JOINTS {
        let velocity = rotate(q[0], sub(next[joint], now[joint]));
        frame[VELOCITIES][3 * joint..][..3].copy_from_slice(&velocity);
    }
    for (contact, joint) in frame[CONTACTS].iter_mut().zip(LEFT_FOOT.into_iter().chain(RIGHT_FOOT)) {
        let way = sub(next[joint], now[joint]);
        *contact = f64::from(u8::from(crate::quaternion::dot(way, way) < still));
    }
    frame
}

/// The root's turning (from facing to z) and place in each frame, by summing up its velocities.
pub fn root_path(frames: &[Frame]) -> (Vec<Quat>, Vec<Vec3>) {
    let (mut angle, mut place) = (0.0f64, [0.0; 3]);
    let mut path = (Vec::with_capacity(frames.len()), Vec::with_capacity(frames.len()));
    for (i, frame) in frames.iter().enumerate() {
        let before = if i == 0 { [0.0; 3] } else { [frames[i - 1][0], frames[i - 1][1], frames[i - 1][2]] };
        angle += before[0];
        let turn = [angle.cos(), 0.0, angle.sin(), 0.0];
        let way = rotate(inverse(turn), [before[1], 0.0, before[2]]);
        place = [place[0] + way[0], frame[3], place[2] + way[2]];
        path.0.push(turn);
        path.1.push(place);
    }
    path
}

/// Poses from the joint positions in the features.
pub fn to_poses(frames: &[Frame]) -> Vec<Pose> {
    let (turns, places) = root_path(frames);
    let pose = |(frame, (turn, place)): (&Frame, (Quat, Vec3))| {
        let mut pose = [place; N_JOINTS];
        for (joint, position) in pose[1..].iter_mut().zip(frame[POSITIONS].chunks_exact(3)) {
            let position = rotate(inverse(turn), [position[0], position[1], position[2]]);
            *joint = [position[0] + place[0], position[1], position[2] + place[2]];
        }
        pose
    };
    frames.iter().zip(turns.into_iter().zip(places)).map(pose).collect()
}

/// Poses from the bone rotations in the features.
pub fn to_poses_by_rotations(frames: &[Frame], bones: &Bones) -> Vec<Pose> {
    let (turns, places) = root_path(frames);
    let pose = |(frame, (turn, place)): (&Frame, (Quat, Vec3))| {
        let mut rotations = [to_matrix(turn); N_JOINTS];
        for (matrix, six) in rotations[1..].iter_mut().zip(frame[ROTATIONS].chunks_exact(6)) {
            *matrix = cont6d_to_matrix(std::array::from_fn(|i| six[i]));
        }
        forward_kinematics_matrices(&rotations, bones, place)
    };
    frames.iter().zip(turns.into_iter().zip(places)).map(pose).collect()
}

/// Frames of a flat list of numbers.
///
/// # Errors
/// A number of values that makes no whole frames.
pub fn frames_of(values: &[f32]) -> Result<Vec<Frame>> {
    let chunks = values.chunks_exact(N_FEATURES);
    if !chunks.remainder().is_empty() {
        let n = values.len();
        return Err(Error::Motion(format!("{n} values make no whole frames of {N_FEATURES}")));
    }
    Ok(chunks.map(|chunk| std::array::from_fn(|i| f64::from(chunk[i]))).collect())
}

/// Refuses numbers that are not finite, or that no motion has.
///
/// # Errors
/// The first frame that has one.
pub fn check_numbers(frames: &[Frame]) -> Result<()> {
    // In metres and metres per frame, what is off by a wrong unit is still within.
    const LARGEST: f64 = 1e6;
    for (i, frame) in frames.iter().enumerate() {
        if let Some(x) = frame.iter().find(|x| x.is_nan() || x.abs() > LARGEST) {
            return Err(Error::Motion(format!("frame {} holds {x:?}", i + 1)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skeleton::DIRECTIONS;

    #[test]
    fn the_ranges_cover_a_frame() {
        let parts = [0..4, POSITIONS, ROTATIONS, VELOCITIES, CONTACTS];
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(parts[4].end, N_FEATURES);
    }

    #[test]
    fn left_and_right_bones_mirror_each_other() {
        for (left, right) in [(1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21)] {
            let [x, y, z] = DIRECTIONS[right];
            assert_eq!(DIRECTIONS[left], [-x, y, z], "{left} and {right}");
        }
    }

    #[test]
    fn too_few_and_broken_poses_are_refused() {
        let pose = crate::skeleton::forward_kinematics(
            &[crate::quaternion::IDENTITY; N_JOINTS],
            &Bones::REFERENCE,
            [0.0, 1.0, 0.0],
        );
        let message = |poses: &[Pose]| {
            from_poses(poses, &Bones::REFERENCE, FOOT_STILL).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(message(&[pose]), "features need at least 2 poses, got 1");
        let mut broken = pose;
        broken[4][1] = f64::NAN;
        assert!(message(&[pose, broken]).starts_with("frame 2: left_knee is at [0.1, NaN"));
        broken = pose;
        broken[15] = broken[12];
        assert_eq!(message(&[broken, pose]), "frame 1: head lies on its parent neck");
        assert_eq!(message(&[pose, pose]), "");
    }

    #[test]
    fn numbers_of_no_motion_are_refused() {
        let good = [1.0; N_FEATURES];
        check_numbers(&[good, good]).unwrap();
        for x in [f64::NAN, f64::NEG_INFINITY, 1e29] {
            let mut bad = good;
            bad[200] = x;
            assert_eq!(check_numbers(&[good, bad]).unwrap_err().to_string(), format!("frame 2 holds {x:?}"));
        }
    }
}
