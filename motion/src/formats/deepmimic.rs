//! The text clips of DeepMimic (Peng et al. 2018): JSON with a list of frames, each 44 numbers.
//!
//! A frame is its duration in seconds, place (3) and orientation (4) of the root, then for each joint of the humanoid a
//! quaternion `w x y z` or, for knees and elbows, an angle in radians about z. The humanoid's bones stand in
//! `skeletons/deepmimic.json`; it looks along x, y is up, lengths are metres.

use crate::quaternion::{Quat, Vec3, about, add, dot4, mul, norm, rotate, scale, sub, unit};
use crate::retarget::NamedMotion;
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;
use std::sync::OnceLock;

/// Frames per second that clips are brought to.
const FPS: f64 = 60.0;
/// Farthest that a joint may be, in metres, from where it would have to be for a clip to go on at its beginning.
const SEAM: f64 = 0.1;

/// A clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Whether the end goes on at the beginning, moved on by the way of the root.
    pub wraps: bool,
    /// Duration and numbers of each frame.
    pub frames: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "Loop", default)]
    looping: Option<String>,
    #[serde(rename = "Frames")]
    frames: Vec<Vec<f64>>,
}

/// A joint of the humanoid.
#[derive(Deserialize)]
struct Joint {
    name: String,
    parent: Option<usize>,
    offset: Vec3,
    rotation: Rotation,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Rotation {
    Quaternion,
    Angle,
    None,
}

impl Rotation {
    fn size(self) -> usize {
        match self {
            Self::Quaternion => 4,
            Self::Angle => 1,
            Self::None => 0,
        }
    }
}

fn humanoid() -> &'static [Joint] {
    #[derive(Deserialize)]
    struct Skeleton {
        joints: Vec<Joint>,
    }
    static JOINTS: OnceLock<Vec<Joint>> = OnceLock::new();
    JOINTS.get_or_init(|| {
        let skeleton: Skeleton = serde_json::from_str(include_str!("../../skeletons/deepmimic.json"))
            .expect("the bundled skeleton is well-formed");
        skeleton.joints
    })
}

/// Numbers of a frame: duration, root, joints.
fn frame_size() -> usize {
    4 + humanoid().iter().map(|joint| joint.rotation.size()).sum::<usize>()
}

impl Clip {
    /// Reads a file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&super::read_text(path)?, path)
    }

    /// Reads a text; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let file: File = serde_json::from_str(text)
            .map_err(|e| Error::line(path, e.line().max(1), format!("not a DeepMimic clip: {e}")))?;
        let wraps = match file.looping.as_deref() {
            None | Some("none") => false,
            Some("wrap") => true,
            Some(other) => {
                return Err(Error::file(path, format!("Loop is {other:?}, expected wrap or none")));
            }
        };
        let clip = Self { wraps, frames: file.frames };
        match clip.problem() {
            Some(problem) => Err(Error::file(path, problem)),
            None => Ok(clip),
        }
    }

    fn problem(&self) -> Option<String> {
        if self.frames.len() < 2 {
            return Some(format!("{} frames, expected at least 2", self.frames.len()));
        }
        for (i, frame) in self.frames.iter().enumerate() {
            let n = i + 1;
            if frame.len() != frame_size() {
                let (got, want) = (frame.len(), frame_size());
                return Some(format!("frame {n} has {got} numbers, expected {want}"));
            }
            if let Some(x) = frame.iter().find(|x| !x.is_finite()) {
                return Some(format!("frame {n} holds {x}"));
            }
            // The last frame has no successor; some files say 0 there.
            let last = n == self.frames.len() && frame[0] == 0.0;
            if let Some(problem) = super::frame_time_problem(frame[0]).filter(|_| !last) {
                return Some(format!("frame {n} lasts {problem}"));
            }
            let mut at = 4;
            for joint in humanoid() {
                let q = &frame[at..at + joint.rotation.size()];
                let length = q.iter().map(|x| x * x).sum::<f64>();
                if joint.rotation == Rotation::Quaternion && !(0.25..4.0).contains(&length) {
                    return Some(format!("frame {n}: the quaternion of {} is {q:?}", joint.name));
                }
                at += joint.rotation.size();
            }
        }
        None
    }

    /// Seconds from the first to the last frame.
    pub fn seconds(&self) -> f64 {
        self.frames.iter().take(self.frames.len() - 1).map(|frame| frame[0]).sum()
    }

    /// Whether a clip that wraps ends in the pose in which it begins. Not all do that say so: some have turned.
    fn closes(&self) -> bool {
        let (first, last) = (&self.frames[0], &self.frames[self.frames.len() - 1]);
        let (first, last) = (places(first, first, 0.0, self.way()), places(last, last, 0.0, [0.0; 3]));
        self.wraps && first.iter().zip(last).all(|(&a, b)| norm(sub(a, b)) < SEAM)
    }

    /// The way of the root over the floor.
    fn way(&self) -> Vec3 {
        let step = sub(self.root(self.frames.len() - 1), self.root(0));
        [step[0], 0.0, step[2]]
    }

    /// Places of the humanoid's joints at 60 frames a second. A clip that wraps, and ends as it begins, is played until
    /// it is at least `seconds` long.
    pub fn motion(&self, seconds: f64) -> NamedMotion {
        let length = self.seconds();
        let rounds = if self.closes() { (seconds / length).ceil().clamp(1.0, 1000.0) } else { 1.0 };
        let way = self.way();
        let count = (rounds * length * FPS).floor() as usize + 1;
        let frames = (0..count).map(|i| {
            let time = i as f64 / FPS;
            let round = (time / length).floor().min(rounds - 1.0);
            let (before, after, t) = self.around(time - round * length);
            places(&self.frames[before], &self.frames[after], t, scale(way, round))
        });
        let names = humanoid().iter().map(|joint| joint.name.clone()).collect();
        NamedMotion { names, fps: FPS, frames: frames.collect() }
    }

    fn root(&self, frame: usize) -> Vec3 {
        let frame = &self.frames[frame];
        [frame[1], frame[2], frame[3]]
    }

    /// The frames around a time, and where between them it lies.
    fn around(&self, time: f64) -> (usize, usize, f64) {
        let mut start = 0.0;
        for (i, frame) in self.frames.iter().take(self.frames.len() - 1).enumerate() {
            if time < start + frame[0] {
                return (i, i + 1, (time - start) / frame[0]);
            }
            start += frame[0];
        }
        (self.frames.len() - 1, self.frames.len() - 1, 0.0)
    }
}

/// Places of the joints at `t` between two frames, moved by `way`.
fn places(a: &[f64], b: &[f64], t: f64, way: Vec3) -> Vec<Vec3> {
    let number = |i: usize| a[i] * (1.0 - t) + b[i] * t;
    let quat = |at: usize| {
        let [p, q]: [Quat; 2] = [a, b].map(|frame| std::array::from_fn(|i| frame[at + i]));
        let sign = if dot4(p, q) < 0.0 { -1.0 } else { 1.0 };
        unit(std::array::from_fn(|i| p[i] * (1.0 - t) + sign * q[i] * t))
    };
    let mut at = 4;
    let mut placed: Vec<(Vec3, Quat)> = Vec::with_capacity(humanoid().len());
    for joint in humanoid() {
        let local = match joint.rotation {
            Rotation::Quaternion => quat(at),
            Rotation::Angle => about([0.0, 0.0, 1.0], number(at)),
            Rotation::None => crate::quaternion::IDENTITY,
        };
        at += joint.rotation.size();
        placed.push(match joint.parent {
            None => (add([number(1), number(2), number(3)], way), local),
            Some(parent) => {
                let (position, above) = placed[parent];
                (add(position, rotate(above, joint.offset)), mul(above, local))
            }
        });
    }
    placed.into_iter().map(|(position, _)| position).collect()
}
