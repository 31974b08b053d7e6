//! From any skeleton with named joints to the 22 joints of HumanML3D.
//!
//! A map file names, for each of the 22 joints, the joints of the source whose weighted mean is its place. Bones then keep
//! their directions and take the lengths of one reference skeleton, so units and sizes of the source do not matter.

use crate::features::{FPS, canonical};
use crate::formats::FRAME_TIMES;
use crate::quaternion::{Vec3, add, scale};
use crate::skeleton::{Bones, N_JOINTS, NAMES, Pose};
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Places of named joints over time.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedMotion {
    /// Names of the joints.
    pub names: Vec<String>,
    /// Frames per second.
    pub fps: f64,
    /// The joints' places in each frame.
    pub frames: Vec<Vec<Vec3>>,
}

impl NamedMotion {
    /// The motion of a BVH file.
    pub fn of_bvh(bvh: &crate::formats::bvh::Bvh) -> Self {
        let places = |i: usize| bvh.places(i).into_iter().map(|placed| placed.position).collect();
        let names = bvh.joints.iter().map(|joint| joint.name.clone()).collect();
        Self { names, fps: bvh.fps(), frames: (0..bvh.frames.len()).map(places).collect() }
    }
}

/// Which axis of the source points up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Up {
    #[default]
    Y,
    Z,
}

/// How a source's joints become the 22.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkeletonMap {
    /// What it is for.
    #[serde(default)]
    pub about: String,
    #[serde(default)]
    up: Up,
    /// Joints of a source that its files do not describe; only those files' reader looks at it.
    #[serde(default, rename = "joints")]
    _joints: serde_json::Value,
    map: BTreeMap<String, BTreeMap<String, f64>>,
}

/// The maps that come with the crate, by name.
const BUNDLED: [(&str, &str); 3] = [
    ("bandai_namco", include_str!("../skeletons/bandai_namco.json")),
    ("deepmimic", include_str!("../skeletons/deepmimic.json")),
    ("humanml3d", include_str!("../skeletons/humanml3d.json")),
];

impl SkeletonMap {
    /// A map that comes with the crate, by name, one in a file, or one that is given by its text.
    ///
    /// # Errors
    /// A name that is neither, a text that is no map, or a map that lacks a joint.
    pub fn open(map: &str) -> Result<Self> {
        let (text, path) = Self::find(map)?;
        Self::parse(&text, &path)
    }

    /// A map for [`open`](Self::open) that needs no file: the name of one of the crate's, or the text of another.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn without_file(map: &str) -> Result<String> {
        let (text, path) = Self::find(map)?;
        Self::parse(&text, &path)?;
        let bundled = BUNDLED.iter().any(|(name, _)| *name == map);
        Ok(if bundled { map.to_string() } else { text })
    }

    /// A map's text, and what it is called in errors.
    fn find(map: &str) -> Result<(String, PathBuf)> {
        if let Some((name, text)) = BUNDLED.iter().find(|(name, _)| *name == map) {
            return Ok((text.to_string(), name.into()));
        }
        if map.trim_start().starts_with('{') {
            return Ok((map.to_string(), "skeleton map".into()));
        }
        let path = PathBuf::from(map);
        if !path.exists() {
            let known = BUNDLED.map(|(name, _)| name).join(", ");
            return Err(Error::Motion(format!("{map} is no map file, and none of {known}")));
        }
        Ok((crate::formats::read_text(&path)?, path))
    }

    /// The first map of the crate that knows all that it needs among `names`.
    pub fn guess(names: &[String]) -> Option<Self> {
        let maps = BUNDLED.iter().filter_map(|(name, text)| Self::parse(text, Path::new(name)).ok());
        maps.into_iter().find(|map| map.missing(names).is_empty())
    }

    /// Reads a text; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let map: Self = serde_json::from_str(text).map_err(|e| Error::line(path, e.line().max(1), e))?;
        for name in NAMES {
            let Some(parts) = map.map.get(name) else {
                return Err(Error::file(path, format!("the map lacks {name}")));
            };
            let total: f64 = parts.values().sum();
            if !(0.999..1.001).contains(&total) {
                return Err(Error::file(
                    path,
                    format!("the weights of {name} add up to {total}, expected 1"),
                ));
            }
        }
        match map.map.keys().find(|name| !NAMES.contains(&name.as_str())) {
            Some(name) => Err(Error::file(path, format!("{name} is none of the 22 joints"))),
            None => Ok(map),
        }
    }

    /// Joints of the source that the map needs and `names` lacks.
    fn missing(&self, names: &[String]) -> Vec<&str> {
        let needed = self.map.values().flat_map(BTreeMap::keys);
        let mut missing: Vec<&str> =
            needed.filter(|joint| !names.contains(joint)).map(String::as_str).collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// The 22 joints in every frame of a source, in its size and at its rate.
    ///
    /// # Errors
    /// Joints that the source lacks.
    pub fn poses(&self, motion: &NamedMotion) -> Result<Vec<Pose>> {
        let missing = self.missing(&motion.names);
        if !missing.is_empty() {
            return Err(Error::Motion(format!("the skeleton lacks joints {}", missing.join(", "))));
        }
        let index = |joint: &String| motion.names.iter().position(|name| name == joint).unwrap_or(0);
        let parts: Vec<Vec<(usize, f64)>> = NAMES
            .iter()
            .map(|name| self.map[*name].iter().map(|(joint, &weight)| (index(joint), weight)).collect())
            .collect();
        let place = |frame: &[Vec3], j: usize| {
            let place = parts[j].iter().fold([0.0; 3], |sum, &(i, w)| add(sum, scale(frame[i], w)));
            match self.up {
                Up::Y => place,
                Up::Z => [place[0], place[2], -place[1]],
            }
        };
        Ok(motion.frames.iter().map(|frame| std::array::from_fn(|j| place(frame, j))).collect())
    }

    /// The motion as features want it: 22 joints, reference bones, 20 frames a second, on the floor, facing z.
    ///
    /// # Errors
    /// Joints that the source lacks, fewer than two frames, or poses without extent.
    pub fn retarget(&self, motion: &NamedMotion) -> Result<Vec<Pose>> {
        let poses = self.poses(motion)?;
        let first = poses.first().ok_or_else(|| Error::Motion("the motion has no frames".into()))?;
        let leg = Bones::of(first).leg();
        if !(leg > 0.0 && leg.is_finite()) {
            return Err(Error::Motion(format!("the legs of the first frame are {leg} long")));
        }
        let poses = resample(&poses, motion.fps, FPS)?;
        Ok(canonical(&poses, &Bones::REFERENCE))
    }
}

/// Poses at another rate, by cubic interpolation (Catmull and Rom).
///
/// # Errors
/// A rate outside of 1 to 10 000.
pub fn resample(poses: &[Pose], from: f64, to: f64) -> Result<Vec<Pose>> {
    if [from, to].iter().any(|rate| !FRAME_TIMES.contains(&rate.recip())) {
        let message = format!("cannot go from {from} to {to} frames a second, expected 1 to 10000");
        return Err(Error::Motion(message));
    }
    let Some(last) = poses.len().checked_sub(1) else { return Ok(Vec::new()) };
    let count = (last as f64 / from * to + 1e-9).floor() as usize + 1;
    let at = |i: isize| &poses[i.clamp(0, last as isize) as usize];
    let pose = |i: usize| {
        let place = i as f64 * from / to;
        let (k, t) = (place.floor() as isize, place.fract());
        // A rate that is no whole multiple leaves rounding: what lies on a frame is that frame.
        if !(1e-9..=1.0 - 1e-9).contains(&t) {
            return *at(place.round() as isize);
        }
        let near = [at(k - 1), at(k), at(k + 1), at(k + 2)];
        std::array::from_fn(|j| [0, 1, 2].map(|axis| cubic(near.map(|pose: &Pose| pose[j][axis]), t)))
    };
    Ok((0..count).map(pose).collect())
}

fn cubic([a, b, c, d]: [f64; 4], t: f64) -> f64 {
    b + 0.5 * t * (c - a + t * (2.0 * a - 5.0 * b + 4.0 * c - d + t * (3.0 * (b - c) + d - a)))
}

/// Largest difference of a bone's length from that of the reference over all poses, in metres.
pub fn bone_error(poses: &[Pose]) -> f64 {
    let error = |pose: &Pose| {
        let bones = Bones::of(pose);
        (1..N_JOINTS).map(|j| (bones.length(j) - Bones::REFERENCE.length(j)).abs()).fold(0.0, f64::max)
    };
    poses.iter().map(error).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_maps_are_whole() {
        for (name, _) in BUNDLED {
            assert!(!SkeletonMap::open(name).unwrap().about.is_empty());
        }
        let error = SkeletonMap::open("nobody").unwrap_err().to_string();
        assert_eq!(error, "nobody is no map file, and none of bandai_namco, deepmimic, humanml3d");
    }

    #[test]
    fn a_map_in_a_file_is_kept_by_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("map.json");
        std::fs::write(&file, BUNDLED[0].1).unwrap();
        let kept = SkeletonMap::without_file(file.to_str().unwrap()).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(SkeletonMap::open(&kept).unwrap().map, SkeletonMap::open(BUNDLED[0].0).unwrap().map);
        assert_eq!(SkeletonMap::without_file("deepmimic").unwrap(), "deepmimic");
        assert!(SkeletonMap::without_file(file.to_str().unwrap()).is_err());
    }

    #[test]
    fn resampling_keeps_frames_that_both_rates_share_and_parabolas() {
        let pose = |i: usize| [[i as f64, (i * i) as f64, 0.0]; N_JOINTS];
        let poses: Vec<Pose> = (0..10).map(pose).collect();
        let resampled = resample(&poses, 30.0, 20.0).unwrap();
        assert_eq!(resampled.len(), 7);
        for (i, pose) in resampled.iter().enumerate() {
            let place = 1.5 * i as f64;
            assert!((pose[0][0] - place).abs() < 1e-12);
            if i < 6 {
                assert!((pose[0][1] - place * place).abs() < 0.13, "{i}: {}", pose[0][1]);
            }
        }
        assert_eq!(resample(&poses, 20.0, 20.0).unwrap(), poses);
        for rate in [0.0, 1e-300, 1e300, f64::NAN] {
            assert!(resample(&poses, rate, 20.0).is_err(), "{rate}");
        }
    }

    #[test]
    fn a_map_that_is_not_whole_is_refused() {
        let parse = |text: &str| SkeletonMap::parse(text, Path::new("m.json")).unwrap_err().to_string();
        assert_eq!(parse(r#"{"map": {}}"#), "m.json: the map lacks pelvis");
        assert!(parse("{\"map\":\n 3}").starts_with("m.json:2: "));
        let whole = BUNDLED[2].1.replace("\"pelvis\": 1", "\"pelvis\": 2");
        assert_eq!(parse(&whole), "m.json: the weights of pelvis add up to 2, expected 1");
        let more = BUNDLED[2].1.replace("\"pelvis\": {", "\"tail\": {\"x\": 1}, \"pelvis\": {");
        assert_eq!(parse(&more), "m.json: tail is none of the 22 joints");
    }
}
