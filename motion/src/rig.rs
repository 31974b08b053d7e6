//! Poses to a rig that animation programs open: joint rotations by inverse kinematics, written as BVH.
//!
//! The rig rests in a T-pose, arms along x, facing z. Bones have the reference lengths, so they never stretch. Pelvis and
//! upper spine, from which several bones go out, are turned by the directions across and along the body; every other joint
//! turns its bone the shortest way. Angles are chosen next to those of the frame before, so that curves do not jump.

use crate::formats::bvh::{Bvh, Channel, Joint};
use crate::quaternion::{
    Mat3, Vec3, add, apply, between, compose, cross, dot, norm, normalize, scale, sub, to_matrix, transpose,
};
use crate::skeleton::{Bones, N_JOINTS, NAMES, PARENTS, Pose};
use std::f64::consts::{PI, TAU};

/// Rest direction of the bone from the parent to each joint. Those from pelvis and upper spine are replaced by the mean of
/// the motion.
const REST: Pose = [
    [0.0, 0.0, 0.0],
    [0.6, -0.8, 0.0],
    [-0.6, -0.8, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, -0.4, 0.9165],
    [0.0, -0.4, 0.9165],
    [0.0, 1.0, 0.0],
    [0.6, 0.8, 0.0],
    [-0.6, 0.8, 0.0],
    [0.0, 1.0, 0.0],
    [1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0],
    [1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0],
    [1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0],
];

/// Joints from which several bones go out: itself, left, right, up.
const FORKS: [[usize; 4]; 2] = [[0, 1, 2, 3], [9, 13, 14, 12]];
/// Joints in the order of a file, depth first.
const ORDER: [usize; N_JOINTS] =
    [0, 1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12, 15, 13, 16, 18, 20, 14, 17, 19, 21];
/// Beyond the last joints of arms, legs and spine, in metres.
const ENDS: [(usize, Vec3); 5] = [
    (10, [0.0, 0.0, 0.05]),
    (11, [0.0, 0.0, 0.05]),
    (15, [0.0, 0.12, 0.0]),
    (20, [0.08, 0.0, 0.0]),
    (21, [-0.08, 0.0, 0.0]),
];

/// A BVH file of poses at `fps` frames a second; `unit` is how many units a metre has (100 writes centimetres).
///
/// # Panics
/// Without any pose.
pub fn to_bvh(poses: &[Pose], fps: f64, unit: f64) -> Bvh {
    with_offsets(poses, &offsets(poses.iter()), fps, unit)
}

fn with_offsets(poses: &[Pose], offsets: &Pose, fps: f64, unit: f64) -> Bvh {
    let mut before = [[0.0; 3]; N_JOINTS];
    let frames = poses.iter().map(|pose| {
        let rotations = local_rotations(pose, offsets);
        let mut frame = Vec::with_capacity(3 + 3 * N_JOINTS);
        frame.extend(scale(pose[0], unit));
        for joint in ORDER {
            before[joint] = euler_zxy(rotations[joint], before[joint]);
            frame.extend(before[joint].map(f64::to_degrees));
        }
        frame
    });
    let frames = frames.collect();
    let joint = |j: usize| Joint {
        name: NAMES[j].to_string(),
        parent: (j != 0).then(|| ORDER.iter().position(|&k| k == PARENTS[j])).flatten(),
        offset: scale(offsets[j], unit),
        channels: match j {
            0 => Channel::XYZ.into_iter().chain(Channel::ZXY).collect(),
            _ => Channel::ZXY.to_vec(),
        },
        end: ENDS.iter().find(|(end, _)| *end == j).map(|(_, end)| scale(*end, unit)),
    };
    Bvh { joints: ORDER.into_iter().map(joint).collect(), frame_time: 1.0 / fps, frames }
}

/// Rest offsets of the joints. Bones that go out from one joint are rigid to each other: they rest in their mean place.
fn offsets<'a>(poses: impl Iterator<Item = &'a Pose> + Clone) -> Pose {
    let mut offsets: Pose = std::array::from_fn(|j| scale(normalize(REST[j]), Bones::REFERENCE.length(j)));
    for fork in FORKS {
        for &child in &fork[1..] {
            let sum = poses.clone().fold([0.0; 3], |sum, pose| {
                let bone = normalize(sub(pose[child], pose[fork[0]]));
                add(sum, apply(transpose(fork_frame(pose, fork)), bone))
            });
            if norm(sum) > 0.0 {
                offsets[child] = scale(normalize(sum), Bones::REFERENCE.length(child));
            }
        }
    }
    offsets
}

/// The frame of a fork: x from right to left, y as near as can be to up, z ahead.
fn fork_frame(pose: &Pose, [joint, left, right, up]: [usize; 4]) -> Mat3 {
    let x = normalize(sub(pose[left], pose[right]));
    let up = sub(pose[up], pose[joint]);
    let y = normalize(sub(up, scale(x, dot(up, x))));
    transpose([x, y, cross(x, y)])
}

/// Rotation of each joint relative to its parent.
fn local_rotations(pose: &Pose, offsets: &Pose) -> [Mat3; N_JOINTS] {
    const NONE: Mat3 = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let (mut local, mut global) = ([NONE; N_JOINTS], [NONE; N_JOINTS]);
    for joint in ORDER {
        let above = if joint == 0 { NONE } else { global[PARENTS[joint]] };
        let mut children = (1..N_JOINTS).filter(|&child| PARENTS[child] == joint);
        local[joint] = match (FORKS.iter().find(|fork| fork[0] == joint), children.next()) {
            (Some(fork), _) => compose(transpose(above), fork_frame(pose, *fork)),
            (None, Some(child)) => {
                let bone = apply(transpose(above), normalize(sub(pose[child], pose[joint])));
                to_matrix(between(offsets[child], bone))
            }
            (None, None) => NONE,
        };
        global[joint] = compose(above, local[joint]);
    }
    local
}

/// Angles about z, x, y, in this order, of a rotation: of all that describe it, those nearest to `before`.
fn euler_zxy(m: Mat3, before: Vec3) -> Vec3 {
    let sin = m[2][1].clamp(-1.0, 1.0);
    if sin.abs() > 1.0 - 1e-9 {
        // z and y turn about one axis: z stays, y does the rest.
        let whole = m[0][2].atan2(m[0][0]);
        let y = if sin > 0.0 { whole - before[0] } else { whole + before[0] };
        return near([before[0], sin.asin(), y], before);
    }
    let (z, x, y) = ((-m[0][1]).atan2(m[1][1]), sin.asin(), (-m[2][0]).atan2(m[2][2]));
    let [a, b] = [near([z, x, y], before), near([z + PI, PI - x, y + PI], before)];
    let far = |angles: Vec3| norm(sub(angles, before));
    if far(a) <= far(b) { a } else { b }
}

/// Angles moved by whole turns next to others.
fn near(angles: Vec3, before: Vec3) -> Vec3 {
    [0, 1, 2].map(|i| angles[i] - ((angles[i] - before[i]) / TAU).round() * TAU)
}

/// The poses that a file of [`to_bvh`] shows.
pub fn poses_of(bvh: &Bvh, unit: f64) -> Vec<Pose> {
    let pose = |frame: usize| {
        let places = bvh.places(frame);
        let mut pose = [[0.0; 3]; N_JOINTS];
        for (place, joint) in places.iter().zip(ORDER) {
            pose[joint] = scale(place.position, 1.0 / unit);
        }
        pose
    };
    (0..bvh.frames.len()).map(pose).collect()
}

/// Poses with the bones of the rig: constant lengths, rigid pelvis and chest. What is shown and written. Poses that are
/// `kept` come out as they are, if they have such bones: then theirs are the ones that all get.
pub fn rigid(poses: &[Pose], kept: &[bool]) -> Vec<Pose> {
    if poses.is_empty() {
        return Vec::new();
    }
    let own = || poses.iter().zip(kept).filter(|(_, kept)| **kept).map(|(pose, _)| pose);
    let offsets = if kept.contains(&true) { offsets(own()) } else { offsets(poses.iter()) };
    poses_of(&with_offsets(poses, &offsets, crate::features::FPS, 1.0), 1.0)
}
