//! The skeleton of 22 joints that HumanML3D uses (Guo et al. 2022, "Generating Diverse and Natural 3D Human Motions from
//! Text"): y is up, x is the left of a person who faces z, lengths are metres.
//!
//! Rotations in this layout are those of bones, not of joints: the rotation of joint `j` takes the rest direction of the
//! bone from its parent to `j` to the present one. Each of the five chains starts at the rotation of the root, also the
//! arms, which hang on the upper spine.

use crate::quaternion::{
    IDENTITY, Mat3, Quat, Vec3, add, apply, between, compose, cross, inverse, mul, norm, normalize, rotate,
    scale, sub,
};

/// Number of joints.
pub const N_JOINTS: usize = 22;

/// The joints of one frame.
pub type Pose = [Vec3; N_JOINTS];

/// Names of the joints.
pub const NAMES: [&str; N_JOINTS] = [
    "pelvis",
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
];

/// Parent of each joint; that of the root is itself.
pub const PARENTS: [usize; N_JOINTS] =
    [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19];

/// Right leg, left leg, spine, right arm, left arm.
pub const CHAINS: [&[usize]; 5] =
    [&[0, 2, 5, 8, 11], &[0, 1, 4, 7, 10], &[0, 3, 6, 9, 12, 15], &[9, 14, 17, 19, 21], &[9, 13, 16, 18, 20]];

/// Rest direction of the bone from the parent to each joint.
pub const DIRECTIONS: Pose = [
    [0.0, 0.0, 0.0],
    [1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, 0.0, 1.0],
    [0.0, 0.0, 1.0],
    [0.0, 1.0, 0.0],
    [1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0],
    [0.0, 0.0, 1.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
    [0.0, -1.0, 0.0],
];

/// Ankle and toes of the left foot.
pub const LEFT_FOOT: [usize; 2] = [7, 10];
/// Ankle and toes of the right foot.
pub const RIGHT_FOOT: [usize; 2] = [8, 11];
/// The thigh and shin of one leg, whose lengths scale a person.
const LEG: [usize; 2] = [5, 8];
const HIPS: [usize; 2] = [1, 2];
const SHOULDERS: [usize; 2] = [16, 17];
/// Standard deviation, in frames, of the smoothing of the facing direction.
const FACING_SIGMA: f64 = 20.0;

/// Lengths of the bones.
#[derive(Clone, Debug, PartialEq)]
pub struct Bones([f64; N_JOINTS]);

impl Bones {
    /// A grown-up of about 1.7 m, by rounded body proportions: what every motion is brought to.
    pub const REFERENCE: Self = Self([
        0.0, 0.10, 0.10, 0.11, 0.40, 0.40, 0.13, 0.41, 0.41, 0.06, 0.14, 0.14, 0.22, 0.14, 0.14, 0.12, 0.11,
        0.11, 0.27, 0.27, 0.25, 0.25,
    ]);

    /// Bones of given lengths; that of the root counts for nothing.
    pub fn new(lengths: [f64; N_JOINTS]) -> Self {
        Self(lengths)
    }

    /// The bones of a pose.
    pub fn of(pose: &Pose) -> Self {
        Self(std::array::from_fn(|j| norm(sub(pose[j], pose[PARENTS[j]]))))
    }

    /// Metres from the parent to joint `j`.
    pub fn length(&self, j: usize) -> f64 {
        self.0[j]
    }

    /// Thigh and shin together.
    pub fn leg(&self) -> f64 {
        LEG.iter().map(|&j| self.0[j]).sum()
    }
}

/// Bone rotations of some frames, relative to the parent bone's; that of the root turns the person to face z.
pub type Rotations = Vec<[Quat; N_JOINTS]>;

/// The direction that a pose faces, from hips and shoulders, horizontal and of length 1.
pub fn facing(pose: &Pose) -> Vec3 {
    let across = add(sub(pose[HIPS[1]], pose[HIPS[0]]), sub(pose[SHOULDERS[1]], pose[SHOULDERS[0]]));
    normalize(cross([0.0, 1.0, 0.0], normalize(across)))
}

/// Rotations of poses. `smooth` smooths the facing direction over time, as the features want it.
///
/// As upstream, on which the features depend: the hips count the wrong way round in the facing direction, so that the
/// shoulders lead; and the first frame's root is not turned.
pub fn inverse_kinematics(poses: &[Pose], smooth: bool) -> Rotations {
    let forward = |pose: &Pose| {
        let across = add(sub(pose[HIPS[0]], pose[HIPS[1]]), sub(pose[SHOULDERS[1]], pose[SHOULDERS[0]]));
        cross([0.0, 1.0, 0.0], normalize(across))
    };
    let mut forward: Vec<Vec3> = poses.iter().map(forward).collect();
    if smooth {
        forward = gaussian_smooth(&forward, FACING_SIGMA);
    }
    let turned = |(i, forward)| if i == 0 { IDENTITY } else { between(forward, [0.0, 0.0, 1.0]) };
    let roots = forward.into_iter().enumerate().map(turned);
    poses.iter().zip(roots).map(|(pose, root)| bone_rotations(pose, root)).collect()
}

/// Rotations of one pose, given that of its root.
fn bone_rotations(pose: &Pose, root: Quat) -> [Quat; N_JOINTS] {
    let mut rotations = [root; N_JOINTS];
    for chain in CHAINS {
        let mut global = root;
        for bone in chain.windows(2) {
            let (parent, joint) = (bone[0], bone[1]);
            let now = between(DIRECTIONS[joint], normalize(sub(pose[joint], pose[parent])));
            rotations[joint] = mul(inverse(global), now);
            global = mul(global, rotations[joint]);
        }
    }
    rotations
}

/// The pose of bone rotations, with the root at `root`.
pub fn forward_kinematics(rotations: &[Quat; N_JOINTS], bones: &Bones, root: Vec3) -> Pose {
    let mut pose = [root; N_JOINTS];
    for chain in CHAINS {
        let mut global = rotations[0];
        for bone in chain.windows(2) {
            let (parent, joint) = (bone[0], bone[1]);
            global = mul(global, rotations[joint]);
            let offset = scale(DIRECTIONS[joint], bones.length(joint));
            pose[joint] = add(pose[parent], rotate(global, offset));
        }
    }
    pose
}

/// The same from matrices.
pub fn forward_kinematics_matrices(rotations: &[Mat3; N_JOINTS], bones: &Bones, root: Vec3) -> Pose {
    let mut pose = [root; N_JOINTS];
    for chain in CHAINS {
        let mut global = rotations[0];
        for bone in chain.windows(2) {
            let (parent, joint) = (bone[0], bone[1]);
            global = compose(global, rotations[joint]);
            let offset = scale(DIRECTIONS[joint], bones.length(joint));
            pose[joint] = add(pose[parent], apply(global, offset));
        }
    }
    pose
}

/// Poses with other bones: every bone keeps its direction and takes its new length, and the root's path is scaled by
/// the length of the legs.
pub fn with_bones(poses: &[Pose], bones: &Bones) -> Vec<Pose> {
    let Some(first) = poses.first() else { return Vec::new() };
    let factor = bones.leg() / Bones::of(first).leg();
    let rotations = inverse_kinematics(poses, false);
    let roots = poses.iter().map(|pose| scale(pose[0], factor));
    rotations.iter().zip(roots).map(|(q, root)| forward_kinematics(q, bones, root)).collect()
}

/// A Gaussian filter over time that repeats the first and last value beyond the ends, cut off at four deviations.
fn gaussian_smooth(values: &[Vec3], sigma: f64) -> Vec<Vec3> {
    let radius = (4.0 * sigma + 0.5) as isize;
    let weights: Vec<f64> = (-radius..=radius).map(|k| (-0.5 * (k as f64 / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let last = values.len() as isize - 1;
    let at = |i: isize| {
        let taps = (i - radius..=i + radius).map(|k| values[k.clamp(0, last) as usize]);
        taps.zip(&weights).fold([0.0; 3], |sum, (v, w)| add(sum, scale(v, w / total)))
    };
    (0..=last).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_and_parents_tell_of_one_tree() {
        let mut reached = [false; N_JOINTS];
        reached[0] = true;
        for chain in CHAINS {
            for bone in chain.windows(2) {
                assert!(reached[bone[0]], "{} is reached before {}", NAMES[bone[0]], NAMES[bone[1]]);
                assert_eq!(PARENTS[bone[1]], bone[0], "parent of {}", NAMES[bone[1]]);
                reached[bone[1]] = true;
            }
        }
        assert_eq!(reached, [true; N_JOINTS]);
    }

    #[test]
    fn the_rest_pose_faces_z_and_smoothing_keeps_a_constant() {
        let rest = forward_kinematics(&[IDENTITY; N_JOINTS], &Bones::REFERENCE, [0.0, 0.9, 0.0]);
        let facing = facing(&rest);
        assert!(norm(sub(facing, [0.0, 0.0, 1.0])) < 1e-12, "{facing:?}");
        let smooth = gaussian_smooth(&[[1.0, 2.0, 3.0]; 5], 20.0);
        assert!(smooth.iter().all(|v| norm(sub(*v, [1.0, 2.0, 3.0])) < 1e-12));
        assert!(gaussian_smooth(&[], 20.0).is_empty());
    }
}
