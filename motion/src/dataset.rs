//! Clips with labels or captions, brought to features; what is held out; standardisation.

use crate::features::{self, CONTACTS, FOOT_STILL, Frame, N_FEATURES, POSITIONS, ROTATIONS, VELOCITIES};
use crate::formats::bvh::Bvh;
use crate::formats::{deepmimic, humanml3d};
use crate::retarget::{NamedMotion, SkeletonMap};
use crate::skeleton::{Bones, N_JOINTS, NAMES, Pose};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// What part a clip plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Trained on.
    Train,
    /// Decides which weights are best.
    Valid,
    /// Held out until the end.
    Test,
}

/// One motion.
#[derive(Clone, Debug)]
pub struct Clip {
    /// Name of its file, without folder and extension; mirrored ones end in `~`.
    pub name: String,
    /// Its value in each group of labels.
    pub labels: Vec<Option<usize>>,
    /// What texts say of it.
    pub captions: Vec<String>,
    /// Its features.
    pub frames: Vec<Frame>,
    /// The part that it plays.
    pub role: Role,
}

/// Values that a label can take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelGroup {
    /// Its name: content, style.
    pub name: String,
    /// The values, sorted.
    pub values: Vec<String>,
}

/// Clips and what their labels mean.
#[derive(Clone, Debug)]
pub struct MotionData {
    /// The groups of labels.
    pub groups: Vec<LabelGroup>,
    /// The clips, sorted by name.
    pub clips: Vec<Clip>,
    /// What was passed over, and why.
    pub skipped: Vec<String>,
}

/// Where clips come from, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// How file names tell labels, for example `dataset-2_{content}_{style}_{take}`: parts between `_` are literal, `*`
    /// for anything, or a label's name in braces; `{take}` tells repetitions apart. Null guesses.
    pub names: Option<String>,
    /// A skeleton map's name, file or text; null guesses by the joints' names.
    pub skeleton: Option<String>,
    /// Add the mirror image of every training clip, with left and right exchanged in its labels, where such labels exist.
    pub mirror: bool,
    /// Every so many-th clip of the same labels is held out for the test; 0 for none.
    pub hold_out_every: usize,
    /// Every so many-th clip of the rest decides which weights are best, but never all that are left of the same labels; 0
    /// for none.
    pub valid_every: usize,
}

impl SourceConfig {
    /// Mirrored, the fourth of each for the test, every twelfth of the rest for validation.
    pub fn standard() -> Self {
        Self { names: None, skeleton: None, mirror: true, hold_out_every: 4, valid_every: 12 }
    }
}

/// A clip's motion and what its file says of it.
struct Loaded {
    name: String,
    /// Value of each label, `take` included.
    fields: BTreeMap<String, String>,
    /// The name without the take.
    kind: String,
    captions: Vec<String>,
    /// Captions that were passed over: those of a part of the clip.
    of_parts: usize,
    poses: Vec<Pose>,
}

impl MotionData {
    /// The clips of files and folders: BVH, DeepMimic text, folders in the layout of HumanML3D.
    ///
    /// # Errors
    /// No clip at all, or a file that cannot be read. A clip too short for features is passed over.
    pub fn load(paths: &[PathBuf], cfg: &SourceConfig) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            collect(path, &mut files)?;
        }
        if files.is_empty() {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let what = "no motion (.bvh, DeepMimic .txt, new_joint_vecs/*.npy); exponential maps, as of cmu-expmap, \
                are not read";
            return Err(Error::Motion(format!("{}: {what}", names.join(", "))));
        }
        files.sort();
        // A file that is given twice, also through a link, would be trained on and held out.
        let mut seen = BTreeSet::new();
        let mut once = Vec::new();
        for file in files {
            if seen.insert(file.canonicalize().map_err(Error::read(&file))?) {
                once.push(file);
            }
        }
        let loaded: Vec<Loaded> = once.par_iter().map(|file| load(file, cfg)).collect::<Result<_>>()?;
        Self::new(loaded, cfg)
    }

    /// The clips that come with the crate: DeepMimic's, under the MIT licence. Each label has one clip, so none is held
    /// out, whatever the settings say.
    pub fn bundled(cfg: &SourceConfig) -> Result<Self> {
        let cfg = &SourceConfig { hold_out_every: 0, valid_every: 0, ..cfg.clone() };
        let name = Path::new("samples/deepmimic.json.gz");
        let mut text = String::new();
        let compressed = &include_bytes!("../samples/deepmimic.json.gz")[..];
        flate2::read::GzDecoder::new(compressed).read_to_string(&mut text).map_err(Error::read(name))?;
        let clips: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&text).map_err(|e| Error::file(name, e))?;
        let loaded = clips.into_par_iter().map(|(content, clip)| {
            let clip = deepmimic::Clip::parse(&clip.to_string(), name)?;
            let fields = BTreeMap::from([("content".to_string(), content.clone())]);
            let poses = SkeletonMap::open("deepmimic")?.retarget(&clip.motion(LOOP_SECONDS))?;
            let (kind, captions) = (content.clone(), Vec::new());
            Ok(Loaded { kind, name: content, fields, captions, of_parts: 0, poses })
        });
        Self::new(loaded.collect::<Result<_>>()?, cfg)
    }

    fn new(loaded: Vec<Loaded>, cfg: &SourceConfig) -> Result<Self> {
        let (loaded, short): (Vec<_>, Vec<_>) =
            loaded.into_iter().partition(|clip| clip.poses.len() > MIN_FRAMES);
        let n_short = short.len();
        let skipped = short.iter().map(|Loaded { name, poses, .. }| {
            format!("{name}: {} frames at 20 a second, expected {}", poses.len(), MIN_FRAMES + 1)
        });
        let mut skipped: Vec<String> = skipped.collect();
        let of_parts: usize = loaded.iter().map(|clip| clip.of_parts).sum();
        if of_parts > 0 {
            skipped.push(format!("{of_parts} captions with times: they tell of parts of clips"));
        }
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in loaded.iter().flat_map(|clip| &clip.fields).filter(|(name, _)| *name != TAKE) {
            values.entry(name.clone()).or_default().push(value.clone());
        }
        let group = |(name, mut values): (String, Vec<String>)| {
            values.sort();
            values.dedup();
            LabelGroup { name, values }
        };
        let groups: Vec<LabelGroup> = values.into_iter().map(group).collect();
        let mut data = Self { groups, clips: Vec::new(), skipped };
        let (mut of_kind, mut kept): (BTreeMap<String, usize>, usize) = (BTreeMap::new(), 0);
        // Clips of each kind that are not held out, less those for validation.
        let mut left: BTreeMap<String, usize> = BTreeMap::new();
        for clip in &loaded {
            *left.entry(clip.kind.clone()).or_default() += 1;
        }
        if cfg.hold_out_every > 0 {
            left.values_mut().for_each(|n| *n -= *n / cfg.hold_out_every);
        }
        for clip in loaded {
            let number = of_kind.entry(clip.kind.clone()).and_modify(|n| *n += 1).or_insert(1);
            let role = if cfg.hold_out_every > 0 && *number % cfg.hold_out_every == 0 {
                Role::Test
            } else {
                kept += 1;
                let left = left.entry(clip.kind.clone()).or_default();
                let labelled = clip.fields.keys().any(|name| name != TAKE);
                if cfg.valid_every > 0 && kept % cfg.valid_every == 0 && (*left > 1 || !labelled) {
                    *left = left.saturating_sub(1);
                    Role::Valid
                } else {
                    Role::Train
                }
            };
            let fields: BTreeMap<String, String> =
                clip.fields.iter().map(|(name, value)| (name.clone(), exchange_sides(value))).collect();
            // Where no clip waves the right hand, there is no label for the mirror image of waving the left.
            let named = data
                .groups
                .iter()
                .all(|group| fields.get(&group.name).is_none_or(|value| group.values.contains(value)));
            if cfg.mirror && role == Role::Train && named {
                let name = format!("{}~", clip.name);
                let captions = clip.captions.iter().map(|text| exchange_sides(text)).collect();
                let poses = clip.poses.iter().map(mirror).collect();
                data.push(Loaded { name, fields, captions, of_parts: 0, poses, kind: String::new() }, role)?;
            }
            data.push(clip, role)?;
        }
        match data.clips.iter().any(|clip| clip.role == Role::Train) {
            true => Ok(data),
            false => Err(Error::Motion(format!(
                "no clip to train on: {n_short} passed over for being shorter than {MIN_FRAMES} frames, {} held out",
                data.clips.len()
            ))),
        }
    }

    fn push(&mut self, clip: Loaded, role: Role) -> Result<()> {
        let frames = features::from_poses(&clip.poses, &Bones::REFERENCE, FOOT_STILL)
            .map_err(|e| Error::Motion(format!("{}: {e}", clip.name)))?;
        let label = |group: &LabelGroup| {
            let value = clip.fields.get(&group.name)?;
            group.values.iter().position(|known| known == value)
        };
        let labels = self.groups.iter().map(label).collect();
        self.clips.push(Clip { name: clip.name, labels, captions: clip.captions, frames, role });
        Ok(())
    }

    /// The clips of a role.
    pub fn of_role(&self, role: Role) -> Vec<&Clip> {
        self.clips.iter().filter(|clip| clip.role == role).collect()
    }

    /// SHA-256 over labels, roles and features: what a resumed run must share.
    pub fn fingerprint(&self) -> String {
        let mut bytes = format!("{:?}", self.groups).into_bytes();
        for clip in &self.clips {
            bytes.extend(
                format!("{} {:?} {:?} {:?}", clip.name, clip.labels, clip.captions, clip.role).into_bytes(),
            );
            bytes.extend(clip.frames.iter().flatten().flat_map(|&x| (x as f32).to_le_bytes()));
        }
        mamba_datasets::job::sha256(&bytes)
    }
}

/// Fewest frames of a clip.
pub const MIN_FRAMES: usize = 16;
/// The field of a file name that tells repetitions apart.
const TAKE: &str = "take";
/// Clips that wrap are played until they are at least so long.
const LOOP_SECONDS: f64 = 6.0;

/// Motion files below a path; a file itself is taken whatever its name.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let vectors = path.join("new_joint_vecs");
    let folder = if vectors.is_dir() { vectors.as_path() } else { path };
    let entries = std::fs::read_dir(folder).map_err(Error::read(folder))?;
    for entry in entries {
        let entry = entry.map_err(Error::read(folder))?.path();
        let extension = entry.extension().unwrap_or_default().to_ascii_lowercase();
        if entry.is_dir() {
            collect(&entry, files)?;
        } else if extension == "bvh"
            || (extension == "npy" && vectors.is_dir())
            || (extension == "txt" && is_deepmimic(&entry))
        {
            files.push(entry);
        }
    }
    Ok(())
}

/// Whether a text file starts like JSON: licences and lists in the same folder do not.
fn is_deepmimic(path: &Path) -> bool {
    let mut start = [0; 64];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    start[..read].trim_ascii_start().starts_with(b"{")
}

fn load(path: &Path, cfg: &SourceConfig) -> Result<Loaded> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let named = |e: Error| match e {
        Error::Motion(message) => Error::file(path, message),
        other => other,
    };
    let (poses, captions, of_parts) = match extension.as_str() {
        "npy" => {
            let values = humanml3d::read_features(path)?;
            let poses = features::to_poses(&features::frames_of(&values)?);
            let text =
                path.ancestors().nth(2).unwrap_or(Path::new("")).join("texts").join(format!("{name}.txt"));
            let captions = if text.exists() { humanml3d::read_captions(&text)? } else { Vec::new() };
            let all = captions.len();
            let whole = captions.into_iter().filter(|caption| caption.part.is_none());
            let whole: Vec<String> = whole.map(|caption| caption.text).collect();
            let of_parts = all - whole.len();
            (poses, whole, of_parts)
        }
        "txt" => {
            let motion = deepmimic::Clip::read(path)?.motion(LOOP_SECONDS);
            let map = SkeletonMap::open(cfg.skeleton.as_deref().unwrap_or("deepmimic"))?;
            (map.retarget(&motion).map_err(named)?, vec![], 0)
        }
        _ => (poses_of_bvh(path, cfg.skeleton.as_deref())?, vec![], 0),
    };
    let (fields, kind) = match extension.as_str() {
        "npy" => (BTreeMap::new(), name.clone()),
        _ => fields_of(&name, cfg.names.as_deref()).map_err(|message| Error::file(path, message))?,
    };
    Ok(Loaded { name, fields, kind, captions, of_parts, poses })
}

/// The motion of a BVH file that is set beside a training: by the training's map, or else by one of the crate's, as files need
/// that were generated.
///
/// # Errors
/// A file that cannot be read, or that neither map fits.
pub fn poses_beside(path: &Path, skeleton: Option<&str>) -> Result<Vec<Pose>> {
    poses_of_bvh(path, skeleton).or_else(|error| poses_of_bvh(path, None).map_err(|_| error))
}

/// The motion of a BVH file on the 22 joints; without a map, by the first of the crate's that knows its joints.
pub fn poses_of_bvh(path: &Path, skeleton: Option<&str>) -> Result<Vec<Pose>> {
    let motion = NamedMotion::of_bvh(&Bvh::read(path)?);
    let map = match skeleton {
        Some(name) => SkeletonMap::open(name)?,
        None => SkeletonMap::guess(&motion.names).ok_or_else(|| {
            let names = motion.names.join(", ");
            Error::file(path, format!("no known skeleton has the joints {names}; name a map file"))
        })?,
    };
    map.retarget(&motion).map_err(|e| Error::file(path, e))
}

/// The features of a motion file: BVH or a DeepMimic clip, brought to the 22 joints, or an array `(frames, 263)` as it is.
/// Where the map does not fit, one of the crate's that does.
///
/// # Errors
/// A file that cannot be read, that has fewer than 2 frames, or numbers of no motion.
pub fn frames_of_file(path: &Path, skeleton: Option<&str>) -> Result<Vec<Frame>> {
    let frames = match path.extension().unwrap_or_default().to_ascii_lowercase().to_str() {
        Some("npy") => features::frames_of(&humanml3d::read_features(path)?)?,
        _ => {
            let cfg = SourceConfig { skeleton: skeleton.map(str::to_owned), ..SourceConfig::default() };
            let guess = |error| load(path, &SourceConfig::default()).map_err(|_| error);
            let poses = load(path, &cfg).or_else(guess)?.poses;
            features::from_poses(&poses, &Bones::REFERENCE, FOOT_STILL).map_err(|e| Error::file(path, e))?
        }
    };
    match frames.len() {
        0 | 1 => Err(Error::file(path, "the motion has fewer than 2 frames at 20 a second")),
        _ => features::check_numbers(&frames).map_err(|e| Error::file(path, e)).map(|()| frames),
    }
}

/// Labels that a file's name tells, and the name without its take.
fn fields_of(name: &str, pattern: Option<&str>) -> Result<(BTreeMap<String, String>, String), String> {
    let pieces: Vec<&str> = name.split('_').collect();
    let digits = |piece: &str| !piece.is_empty() && piece.bytes().all(|b| b.is_ascii_digit());
    let guess = match pieces[..] {
        [first, _, _, take] if first.starts_with("dataset-") && digits(take) => {
            "*_{content}_{style}_{take}".into()
        }
        ["humanoid3d", ..] => format!("*_{}", "{content}"),
        [.., take] if pieces.len() > 1 && digits(take) => "{content}_{take}".to_string(),
        _ => "{content}".to_string(),
    };
    let pattern = pattern.unwrap_or(&guess);
    let parts: Vec<&str> = pattern.split('_').collect();
    if parts.len() > pieces.len() {
        return Err(format!("the name {name:?} has fewer parts than {pattern:?}"));
    }
    let (mut fields, mut kind) = (BTreeMap::new(), Vec::new());
    // A name with more parts than the pattern has a label with `_` in it: the first field takes the surplus.
    let surplus = pieces.len() - parts.len();
    let wide = parts.iter().position(|part| part.starts_with('{') && *part != "{take}").unwrap_or(0);
    let mut at = 0;
    for (i, part) in parts.iter().enumerate() {
        let count = if i == wide { 1 + surplus } else { 1 };
        let value = pieces[at..at + count].join("_");
        at += count;
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(TAKE) => {
                fields.insert(TAKE.to_string(), value);
                continue;
            }
            Some(field) => {
                fields.insert(field.to_string(), value.clone());
            }
            None if *part == "*" || *part == value => (),
            None => return Err(format!("{value:?} in the name {name:?} is not the {part:?} of {pattern:?}")),
        }
        kind.push(value);
    }
    Ok((fields, kind.join("_")))
}

/// What a word of sides is in the mirror.
fn other_side(word: &str) -> Option<&'static str> {
    Some(match word {
        "left" => "right",
        "right" => "left",
        "leftward" => "rightward",
        "rightward" => "leftward",
        "leftwards" => "rightwards",
        "rightwards" => "leftwards",
        "clockwise" => "counterclockwise",
        "counterclockwise" | "anticlockwise" => "clockwise",
        _ => return None,
    })
}

/// A text with left and right exchanged, and the two ways round, where they are words of their own: `upright` stays.
fn exchange_sides(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let one_word = |a: &char, b: &char| {
        a.is_alphabetic() && b.is_alphabetic() && !(a.is_lowercase() && b.is_uppercase())
    };
    let mut words: Vec<String> = Vec::new();
    for word in letters.chunk_by(one_word) {
        let word: String = word.iter().collect();
        let counter = |at: usize| matches!(words[at].to_lowercase().as_str(), "counter" | "anti");
        match (words.len().checked_sub(2), other_side(&word.to_lowercase())) {
            // "counter-clockwise", "anti clockwise"
            (Some(at), Some("counterclockwise")) if counter(at) => words.splice(at.., [word]).for_each(drop),
            (_, Some(other)) if word.starts_with(char::is_uppercase) => {
                words.push(other[..1].to_uppercase() + &other[1..]);
            }
            (_, Some(other)) => words.push(other.to_string()),
            (_, None) => words.push(word),
        }
    }
    words.concat()
}

/// The mirror image of a pose.
pub fn mirror(pose: &Pose) -> Pose {
    static OTHERS: LazyLock<[usize; N_JOINTS]> = LazyLock::new(|| {
        let place = |name: &str| NAMES.iter().position(|&other| other == exchange_sides(name));
        std::array::from_fn(|j| place(NAMES[j]).unwrap_or(j))
    });
    OTHERS.map(|j| [-pose[j][0], pose[j][1], pose[j][2]])
}

/// Mean and spread of each feature; the spread is averaged over each kind of feature, as upstream does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standard {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Standard {
    /// Of some clips.
    pub fn of(clips: &[&Clip]) -> Self {
        let n = clips.iter().map(|clip| clip.frames.len()).sum::<usize>().max(1) as f64;
        let over = |f: &dyn Fn(&Frame, usize) -> f64| -> Vec<f64> {
            (0..N_FEATURES)
                .map(|i| clips.iter().flat_map(|clip| &clip.frames).map(|frame| f(frame, i)).sum::<f64>() / n)
                .collect()
        };
        let mean = over(&|frame, i| frame[i]);
        let mut std: Vec<f64> =
            over(&|frame, i| (frame[i] - mean[i]).powi(2)).iter().map(|v| v.sqrt()).collect();
        for kind in [0..1, 1..3, 3..4, POSITIONS, ROTATIONS, VELOCITIES, CONTACTS] {
            let average = std[kind.clone()].iter().sum::<f64>() / kind.len() as f64;
            std[kind].fill(average.max(1e-4));
        }
        Self { mean: mean.iter().map(|&x| x as f32).collect(), std: std.iter().map(|&x| x as f32).collect() }
    }

    /// Standardised features in a row.
    pub fn forward<'a>(&self, frames: impl IntoIterator<Item = &'a Frame>) -> Vec<f32> {
        let frame =
            |frame: &'a Frame| (0..N_FEATURES).map(|i| (frame[i] as f32 - self.mean[i]) / self.std[i]);
        frames.into_iter().flat_map(frame).collect()
    }

    /// Features from standardised ones.
    ///
    /// # Errors
    /// A number of values that makes no whole frames, or values of no motion.
    pub fn inverse(&self, values: &[f32]) -> Result<Vec<Frame>> {
        let mut frames = features::frames_of(values)?;
        features::check_numbers(&frames).map_err(|e| {
            Error::Motion(format!(
                "what the model makes is no motion: {e}; guidance nearer to 1 keeps numbers small"
            ))
        })?;
        for frame in &mut frames {
            for (i, x) in frame.iter_mut().enumerate() {
                *x = *x * f64::from(self.std[i]) + f64::from(self.mean[i]);
            }
        }
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(name: &str, pattern: Option<&str>) -> Result<(Vec<String>, String), String> {
        let (fields, kind) = fields_of(name, pattern)?;
        Ok((fields.into_iter().map(|(k, v)| format!("{k}={v}")).collect(), kind))
    }

    #[test]
    fn names_tell_labels() {
        let (labels, kind) = fields("dataset-2_wave-left-hand_elderly_004", None).unwrap();
        assert_eq!(labels, ["content=wave-left-hand", "style=elderly", "take=004"]);
        assert_eq!(kind, "dataset-2_wave-left-hand_elderly");
        assert_eq!(fields("humanoid3d_dance_a", None).unwrap().0, ["content=dance_a"]);
        assert_eq!(fields("walk_07", None).unwrap().0, ["content=walk", "take=07"]);
        assert_eq!(fields("walk", None).unwrap().0, ["content=walk"]);
        assert_eq!(fields("s1_jump", Some("{who}_{content}")).unwrap().0, ["content=jump", "who=s1"]);
        assert!(fields("walk", Some("{content}_{take}")).unwrap_err().contains("fewer parts"));
        assert!(fields("a_b", Some("x_{content}")).unwrap_err().contains("is not the \"x\""));
    }

    #[test]
    fn mirroring_twice_changes_nothing_and_once_exchanges_sides() {
        let pose: Pose = std::array::from_fn(|j| [j as f64, 1.0, 2.0 * j as f64]);
        assert_eq!(mirror(&mirror(&pose)), pose);
        assert_eq!(mirror(&pose)[1], [-2.0, 1.0, 4.0]);
    }

    #[test]
    fn sides_are_exchanged_in_whole_words() {
        for (text, mirrored) in [
            ("wave-left-hand, then right", "wave-right-hand, then left"),
            ("stand upright_left", "stand upright_right"),
            ("Left of turnRight, leftwards", "Right of turnLeft, rightwards"),
            ("turns clockwise", "turns counterclockwise"),
            ("anticlockwise, counterclockwise", "clockwise, clockwise"),
            ("counter-clockwise or Anti clockwise", "clockwise or clockwise"),
        ] {
            assert_eq!(exchange_sides(text), mirrored);
        }
    }

    /// Clips of these kinds, the first without captions of parts, each other with one more.
    fn of_kinds(kinds: &[&str], cfg: &SourceConfig) -> MotionData {
        let walk = MotionData::bundled(cfg).unwrap().clips.swap_remove(0);
        let poses = features::to_poses(&walk.frames);
        let clip = |(i, kind): (usize, &&str)| Loaded {
            name: format!("{kind}_{i}"),
            fields: BTreeMap::from([("content".to_string(), kind.to_string())]),
            kind: kind.to_string(),
            captions: Vec::new(),
            of_parts: i,
            poses: poses.clone(),
        };
        MotionData::new(kinds.iter().enumerate().map(clip).collect(), cfg).unwrap()
    }

    #[test]
    fn no_label_loses_its_last_clip_to_validation() {
        let cfg = SourceConfig { valid_every: 2, hold_out_every: 0, ..SourceConfig::default() };
        let data = of_kinds(&["run", "walk", "jump", "jump"], &cfg);
        let roles: Vec<Role> = data.clips.iter().map(|clip| clip.role).collect();
        assert_eq!(roles, [Role::Train, Role::Train, Role::Train, Role::Valid]);
        let every = SourceConfig { valid_every: 1, ..cfg };
        assert_eq!(of_kinds(&["run", "run", "run"], &every).of_role(Role::Train).len(), 1);
        assert_eq!(data.skipped, ["6 captions with times: they tell of parts of clips"]);
    }

    #[test]
    fn the_bundled_clips_are_humans_on_the_floor() {
        let data = MotionData::bundled(&SourceConfig::standard()).unwrap();
        assert!(data.groups[0].values.len() >= 14, "{:?}", data.groups);
        for clip in &data.clips {
            let poses = features::to_poses(&clip.frames);
            let lowest = poses.iter().flatten().map(|joint| joint[1]).fold(f64::INFINITY, f64::min);
            assert!((-0.01..0.2).contains(&lowest), "{}: {lowest}", clip.name);
            assert!(crate::retarget::bone_error(&poses) < 1e-6, "{}", clip.name);
        }
        let walk = data.clips.iter().find(|clip| clip.name == "walk").unwrap();
        let path = features::root_path(&walk.frames).1;
        assert!(path.last().unwrap()[2] > 3.0, "six seconds of walking lead forward: {:?}", path.last());
        assert!((0.8..1.0).contains(&path[0][1]), "{:?}", path[0]);
        let contacts = walk.frames.iter().filter(|frame| frame[CONTACTS].contains(&1.0)).count();
        assert!(contacts * 10 > walk.frames.len() * 9, "one foot stands at nearly any time: {contacts}");
    }

    #[test]
    fn standardising_is_undone() {
        let data = MotionData::bundled(&SourceConfig::standard()).unwrap();
        let clips = data.of_role(Role::Train);
        let standard = Standard::of(&clips);
        let back = standard.inverse(&standard.forward(&clips[0].frames)).unwrap();
        let error = back.iter().flatten().zip(clips[0].frames.iter().flatten());
        assert!(error.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-5);
    }
}
