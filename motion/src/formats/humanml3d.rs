//! Folders in the layout of HumanML3D: `new_joint_vecs/ID.npy` (frames, 263), `new_joints/ID.npy` (frames, 22, 3),
//! `texts/ID.txt`, and lists of ids.

use crate::features::N_FEATURES;
use crate::formats::npy;
use crate::skeleton::{N_JOINTS, Pose};
use crate::{Error, Result};
use std::path::Path;

/// What a text says of a clip, or of a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    /// The sentence.
    pub text: String,
    /// Words with their part of speech, `word/TAG`.
    pub tokens: Vec<String>,
    /// The part of the clip in seconds; none for all of it.
    pub part: Option<(f64, f64)>,
}

/// Features `(frames, 263)`.
pub fn read_features(path: impl AsRef<Path>) -> Result<Vec<f32>> {
    let path = path.as_ref();
    let array = npy::read(path)?;
    match array.shape[..] {
        [frames, N_FEATURES] if frames > 0 => Ok(array.values),
        _ => Err(Error::file(path, format!("shape {:?}, expected (frames, {N_FEATURES})", array.shape))),
    }
}

/// Poses `(frames, 22, 3)`.
pub fn read_joints(path: impl AsRef<Path>) -> Result<Vec<Pose>> {
    let path = path.as_ref();
    let array = npy::read(path)?;
    match array.shape[..] {
        [frames, N_JOINTS, 3] if frames > 0 => Ok(poses_of(&array.values)),
        _ => Err(Error::file(path, format!("shape {:?}, expected (frames, {N_JOINTS}, 3)", array.shape))),
    }
}

/// Poses of a flat list of coordinates; a rest that makes no pose is left out.
pub fn poses_of(values: &[f32]) -> Vec<Pose> {
    let joint = |chunk: &[f32], j: usize| [0, 1, 2].map(|axis| f64::from(chunk[3 * j + axis]));
    let chunks = values.chunks_exact(3 * N_JOINTS);
    chunks.map(|chunk| std::array::from_fn(|j| joint(chunk, j))).collect()
}

/// The coordinates of poses in a row.
pub fn values_of(poses: &[Pose]) -> Vec<f32> {
    poses.iter().flatten().flatten().map(|&x| x as f32).collect()
}

/// Reads a file of captions: `sentence#word/TAG word/TAG#from#to`, one a line; from and to both 0 mean the whole clip.
pub fn read_captions(path: impl AsRef<Path>) -> Result<Vec<Caption>> {
    let path = path.as_ref();
    parse_captions(&super::read_text(path)?, path)
}

/// The same from a text; `path` is named in errors.
pub fn parse_captions(text: &str, path: &Path) -> Result<Vec<Caption>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| caption(line).map_err(|message| Error::line(path, i + 1, message))).collect()
}

fn caption(line: &str) -> Result<Caption, String> {
    let parts: Vec<&str> = line.trim().split('#').collect();
    let &[text, tokens, from, to] = &parts[..] else {
        return Err(format!("{} parts between #, expected sentence#tokens#from#to", parts.len()));
    };
    let text = text.trim();
    if text.is_empty() {
        return Err("the sentence is empty".into());
    }
    // Upstream's files have nan where there is no time.
    let seconds = |word: &str| match word.trim().parse::<f64>() {
        Ok(x) if x.is_nan() => Ok(0.0),
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err(format!("time {word:?} is no number of seconds")),
    };
    let (from, to) = (seconds(from)?, seconds(to)?);
    if from > to {
        return Err(format!("the part begins at {from} and ends at {to}"));
    }
    let part = (to > 0.0).then_some((from, to));
    Ok(Caption { text: text.into(), tokens: tokens.split_whitespace().map(str::to_owned).collect(), part })
}

/// The ids of a list such as `train.txt`, one a line.
pub fn read_ids(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let text = super::read_text(path.as_ref())?;
    Ok(text.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_split_at_their_marks() {
        let text = "a man walks.#a/DET man/NOUN walk/VERB#0.0#0.0\n\nhe stops#he/PRON stop/VERB#1.5#nan\nx#y#2#4.25\n";
        let captions = parse_captions(text, Path::new("000001.txt"));
        let message = captions.unwrap_err().to_string();
        assert_eq!(message, "000001.txt:3: the part begins at 1.5 and ends at 0");
        let captions = parse_captions(&text.replace("1.5", "nan"), Path::new("000001.txt")).unwrap();
        assert_eq!(captions[0].text, "a man walks.");
        assert_eq!(captions[0].tokens, ["a/DET", "man/NOUN", "walk/VERB"]);
        assert_eq!([captions[0].part, captions[1].part, captions[2].part], [None, None, Some((2.0, 4.25))]);
    }

    #[test]
    fn wrong_captions_are_named_by_line() {
        let message = |text: &str| parse_captions(text, Path::new("t.txt")).unwrap_err().to_string();
        assert_eq!(message("only words"), "t.txt:1: 1 parts between #, expected sentence#tokens#from#to");
        assert_eq!(message("a#b#0#-1"), "t.txt:1: time \"-1\" is no number of seconds");
        assert_eq!(message(" #b#0#0"), "t.txt:1: the sentence is empty");
    }
}
