//! What a recurrent model remembers of each user, between one job and the next.
//!
//! A state has the same size however long the history was, and says all that the model will ever know of it. A job that
//! starts from the states of the day before therefore reads the new events only, and gives what a pass over the whole,
//! untruncated history would.
//!
//! A folder of states holds `state-00000.safetensors` …, one for each part: the users, their seen items, their last vector,
//! and the states of every layer. Each says of which checkpoint, job and number of parts it is, so that the parts of two
//! jobs never mix. `state.json` says the same of the folder and is written last: a folder without it is not whole. It has
//! the users of one job only; of several folders the last one that has a user counts.

use super::users::{OwnedId, User, part_of};
use super::{Scored, Scorer};
use crate::checkpoint::RecCheckpoint;
use crate::error::{Error, Result};
use crate::models::Mamba4RecState;
use candle_core::{Device, Tensor};
use mamba_core::MixerState;
use mamba_core::checkpoint::save_safetensors;
use mamba_datasets::AtomicFile;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "state.json";
const VERSION: u32 = 2;
/// The key in the metadata of a part.
const META: &str = "states";

/// `state.json`, and what every part says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateManifest {
    /// Version of the layout.
    pub version: u32,
    /// [`RecCheckpoint::hash`] of the model whose states these are.
    pub checkpoint: String,
    /// Parts that users are divided into.
    pub parts: usize,
    /// Digest of all that decides these states: events, settings, earlier states.
    pub job: String,
}

impl StateManifest {
    /// Reads `state.json` of a folder.
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        if folder.is_dir() && !path.exists() {
            let problem =
                format!("no {MANIFEST}: the job that makes these states is not finished, run it again");
            return Err(Error::file(folder, problem));
        }
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let problem = |problem: String| Error::file(&path, problem);
        // The version first: another one may have other fields.
        let json: serde_json::Value = serde_json::from_slice(&text).map_err(|e| problem(e.to_string()))?;
        match json["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {
                serde_json::from_value(json).map_err(|e| problem(e.to_string()))
            }
            version => Err(problem(format!(
                "version {} is not {VERSION}, which this program knows: score all events anew",
                version.unwrap_or(0)
            ))),
        }
    }
}

/// What is remembered of one user.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Items seen, in time order.
    pub seen: Vec<u32>,
    /// The vector after the last item.
    pub hidden: Vec<f32>,
    /// States of all layers, one after the other: of Mamba-1 and Mamba-2 the convolution's, then the scan's.
    pub state: Vec<f32>,
}

/// What comes of going on with some users.
#[derive(Clone, Debug)]
pub struct Continued {
    /// The best items for each user.
    pub scored: Vec<Vec<Scored>>,
    /// What is remembered of each user from now on; none of whom nothing is known.
    pub memories: Vec<Option<Memory>>,
}

/// Folders of states to start from, the latest last.
#[derive(Clone, Debug)]
pub struct StateIn {
    folders: Vec<(PathBuf, StateManifest)>,
    parts: usize,
}

impl StateIn {
    /// Opens folders of states.
    ///
    /// # Errors
    /// States of another checkpoint, or divided otherwise; a part that is missing, or of another job.
    pub fn open(folders: &[PathBuf], checkpoint: &RecCheckpoint) -> mamba_core::Result<Option<Self>> {
        let mut parts = None;
        let mut opened = Vec::new();
        for folder in folders {
            let manifest = StateManifest::read(folder)?;
            let problem = |problem: String| mamba_core::Error::from(Error::file(folder, problem));
            if manifest.checkpoint != checkpoint.hash() {
                let of = checkpoint.path().display();
                return Err(problem(format!(
                    "states of another checkpoint than {of}: score all events anew"
                )));
            }
            if *parts.get_or_insert(manifest.parts) != manifest.parts {
                return Err(problem(format!("{} parts, the folders before have others", manifest.parts)));
            }
            for part in 0..manifest.parts {
                Rows::open_of(&part_path(folder, part), &manifest)?;
            }
            opened.push((folder.clone(), manifest));
        }
        Ok(parts.map(|parts| Self { folders: opened, parts }))
    }

    /// Parts that users are divided into.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// What is remembered of these users, who are all of one part; nothing else is read.
    ///
    /// # Errors
    /// A file that is missing, corrupt, or of another job than the rest.
    pub fn load(&self, part: usize, users: &[User]) -> Result<Vec<Option<Memory>>> {
        debug_assert!(users.iter().all(|user| part_of(user.id.get(), self.parts) == part));
        let places: HashMap<String, usize> =
            users.iter().enumerate().map(|(i, user)| (user.id.get().to_string(), i)).collect();
        let mut memories = vec![None; users.len()];
        for (folder, manifest) in self.folders.iter().rev() {
            let mut file = Rows::open_of(&part_path(folder, part), manifest)?;
            for (row, id) in file.users()?.iter().enumerate() {
                if let Some(&place) = places.get(id)
                    && memories[place].is_none()
                {
                    memories[place] = Some(file.memory(row)?);
                }
            }
        }
        Ok(memories)
    }
}

fn part_path(folder: &Path, part: usize) -> PathBuf {
    folder.join(format!("state-{part:05}.safetensors"))
}

/// The part of a file's name.
fn part_of_name(name: &str) -> Option<usize> {
    name.strip_prefix("state-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// A folder of states in the making, perhaps by several processes, each with parts of its own.
#[derive(Clone, Debug)]
pub struct StateOut {
    folder: PathBuf,
    manifest: StateManifest,
}

impl StateOut {
    /// Opens a folder for the states of a job, of which `job` is a digest; makes it where there is none. With `overwrite`,
    /// removes what another job left there, of the parts those that this process `owns`.
    ///
    /// # Errors
    /// A folder that cannot be written to; states of another job in it, where they are not to be overwritten.
    pub fn open(
        folder: &Path,
        checkpoint: &RecCheckpoint,
        parts: usize,
        job: &str,
        overwrite: bool,
        owns: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let (checkpoint, job) = (checkpoint.hash().to_string(), job.to_string());
        let manifest = StateManifest { version: VERSION, checkpoint, parts, job };
        let states = Self { folder: folder.to_owned(), manifest };
        let mut others = Vec::new();
        let path = folder.join(MANIFEST);
        if path.exists() && !StateManifest::read(folder).is_ok_and(|found| found == states.manifest) {
            others.push(path); // the first to go, so that the folder is not taken for whole
        }
        for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let path = entry.map_err(Error::io("read", folder))?.path();
            let part = path.file_name().and_then(|name| part_of_name(name.to_str()?));
            if part.is_some_and(|part| !states.has(part) && (owns(part) || !overwrite)) {
                others.push(path);
            }
        }
        if let (Some(path), false) = (others.first(), overwrite) {
            let problem = "states of another job: other events, settings or another checkpoint; \
                           --overwrite replaces them, another --state-out leaves them";
            return Err(Error::file(path, problem));
        }
        for path in others {
            match std::fs::remove_file(&path) {
                // another shard was faster
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
                removed => removed.map_err(Error::io("remove", &path))?,
            }
        }
        Ok(states)
    }

    /// Whether a part is there.
    pub fn has(&self, part: usize) -> bool {
        Rows::open_of(&part_path(&self.folder, part), &self.manifest).is_ok()
    }

    /// Writes `state.json` if all parts are there; says how many are not.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn finish(&self) -> mamba_core::Result<usize> {
        let missing = (0..self.manifest.parts).filter(|&part| !self.has(part)).count();
        if missing == 0 {
            let path = self.folder.join(MANIFEST);
            let text = serde_json::to_string_pretty(&self.manifest).map_err(mamba_core::Error::other)? + "\n";
            let mut file = AtomicFile::create(&path).map_err(mamba_core::Error::other)?;
            file.write_all(text.as_bytes()).map_err(Error::io("write", &path))?;
            file.commit().map_err(mamba_core::Error::other)?;
        }
        Ok(missing)
    }

    /// Writes one part, atomically; users without a memory are left out.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, part: usize, users: &[(OwnedId, Memory)]) -> mamba_core::Result<()> {
        let device = &Device::Cpu;
        let (mut ids, mut seen, mut seen_ends) = (Vec::<u8>::new(), Vec::<u32>::new(), Vec::<i64>::new());
        let (mut hidden, mut state) = (Vec::<f32>::new(), Vec::<f32>::new());
        for (id, memory) in users {
            ids.extend(id.get().to_string().bytes());
            ids.push(b'\n');
            seen.extend(&memory.seen);
            seen_ends.push(seen.len() as i64);
            hidden.extend(&memory.hidden);
            state.extend(&memory.state);
        }
        if users.iter().any(|(id, _)| id.get().to_string().contains('\n')) {
            return Err(Error::file(
                &self.folder,
                "a user's id has a line break in it, which states cannot hold",
            )
            .into());
        }
        let n = users.len();
        let width = |values: &[f32]| values.len() / n.max(1);
        let (hidden_width, state_width) = (width(&hidden), width(&state));
        let tensors = BTreeMap::from([
            ("users".to_string(), Tensor::new(ids, device)?),
            ("seen".to_string(), Tensor::new(seen, device)?),
            ("seen_ends".to_string(), Tensor::new(seen_ends, device)?),
            ("hidden".to_string(), Tensor::from_vec(hidden, (n, hidden_width), device)?),
            ("state".to_string(), Tensor::from_vec(state, (n, state_width), device)?),
        ]);
        let manifest = serde_json::to_string(&self.manifest).map_err(mamba_core::Error::other)?;
        let meta = BTreeMap::from([(META.to_string(), manifest)]);
        save_safetensors(part_path(&self.folder, part), &tensors, &meta)
    }
}

/// Random access to the rows of a part.
struct Rows {
    path: PathBuf,
    file: File,
    /// Of each tensor the columns of a row, and where its bytes begin and end.
    tensors: BTreeMap<String, (usize, u64, u64)>,
    /// What it says of itself, in JSON.
    manifest: Option<String>,
}

impl Rows {
    /// A part of the states that `manifest` describes.
    fn open_of(path: &Path, manifest: &StateManifest) -> Result<Self> {
        let rows = Self::open(path)?;
        let own = rows.manifest.as_ref().and_then(|text| serde_json::from_str::<StateManifest>(text).ok());
        match own.as_ref() == Some(manifest) {
            true => Ok(rows),
            false => Err(Error::file(path, format!("of another job than {MANIFEST} and the other parts"))),
        }
    }

    fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let bad = || Error::file(path, "not a file of states, or cut short");
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(Error::io("read", path))?;
        let length = u64::from_le_bytes(length);
        if length > size.saturating_sub(8) {
            return Err(bad());
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::io("read", path))?;
        let header: serde_json::Value = serde_json::from_slice(&header).map_err(|_| bad())?;
        let mut tensors = BTreeMap::new();
        for name in ["users", "seen", "seen_ends", "hidden", "state"] {
            let (shape, offsets) = (&header[name]["shape"], &header[name]["data_offsets"]);
            let columns = shape[1].as_u64().unwrap_or(1) as usize;
            let (Some(start), Some(end)) = (offsets[0].as_u64(), offsets[1].as_u64()) else {
                return Err(bad());
            };
            if start > end || end > size - 8 - length {
                return Err(bad());
            }
            tensors.insert(name.to_string(), (columns, 8 + length + start, 8 + length + end));
        }
        let manifest = header["__metadata__"][META].as_str().map(str::to_string);
        Ok(Self { path: path.to_owned(), file, tensors, manifest })
    }

    /// Bytes `from .. to` of a tensor; to its end where that is absent.
    fn bytes(&mut self, name: &str, from: u64, to: Option<u64>) -> Result<Vec<u8>> {
        let (_, start, end) = self.tensors[name];
        let (from, to) = (start + from, to.map_or(end, |to| start + to));
        if from > to || to > end {
            return Err(Error::file(&self.path, format!("{name} is cut short")));
        }
        let mut bytes = vec![0; (to - from) as usize];
        let read = self.file.seek(SeekFrom::Start(from)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    fn users(&mut self) -> Result<Vec<String>> {
        let bytes = self.bytes("users", 0, None)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(&self.path, "users are not text"))?;
        Ok(text.lines().map(str::to_string).collect())
    }

    fn floats(&mut self, name: &str, row: usize) -> Result<Vec<f32>> {
        let width = 4 * self.tensors[name].0 as u64;
        let bytes = self.bytes(name, row as u64 * width, Some((row as u64 + 1) * width))?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn memory(&mut self, row: usize) -> Result<Memory> {
        let first = row.saturating_sub(1) as u64;
        let ends = self.bytes("seen_ends", 8 * first, Some(8 * (row as u64 + 1)))?;
        let ends: Vec<u64> =
            ends.chunks_exact(8).map(|b| b.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))).collect();
        let (start, end) = if row == 0 { (0, ends[0]) } else { (ends[0], ends[1]) };
        let seen = self.bytes("seen", start.saturating_mul(4), Some(end.saturating_mul(4)))?;
        Ok(Memory {
            seen: seen.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            hidden: self.floats("hidden", row)?,
            state: self.floats("state", row)?,
        })
    }
}

impl Scorer {
    /// Goes on with users whose `history` holds their *new* items only: the best items for each, and what is remembered of
    /// them from now on. A user of whom nothing is known, not even now, gets popular items and no memory.
    ///
    /// # Errors
    /// A model without a state; memories of another model.
    pub fn top_k_from(&self, users: &[User], before: Vec<Option<Memory>>) -> mamba_core::Result<Continued> {
        let fresh: Vec<&[u32]> = users.iter().map(|user| &user.history[..]).collect();
        let mut memories = before;
        let mut done = 0;
        for batch in self.batches_of(&fresh, usize::MAX) {
            let range = done..done + batch.len();
            done = range.end;
            let moving: Vec<usize> = range.filter(|&i| !fresh[i].is_empty()).collect();
            if moving.is_empty() {
                continue;
            }
            let items: Vec<&[u32]> = moving.iter().map(|&i| fresh[i]).collect();
            let mut state = self.recommender().new_state()?;
            let states: Vec<Option<&[f32]>> =
                moving.iter().map(|&i| memories[i].as_ref().map(|memory| &memory.state[..])).collect();
            if states.iter().any(Option::is_some) {
                state = unpack(&states, &self.recommender().example_state()?)?;
            }
            let hidden = self.recommender().encode_from(&items, &mut state)?.to_vec2::<f32>()?;
            for ((i, hidden), state) in moving.into_iter().zip(hidden).zip(pack(&state)?) {
                let mut seen = memories[i].take().map_or(Vec::new(), |memory| memory.seen);
                seen.extend(fresh[i]);
                memories[i] = Some(Memory { seen, hidden, state });
            }
        }
        let known: Vec<&Memory> = memories.iter().flatten().collect();
        let width = known.first().map_or(0, |memory| memory.hidden.len());
        let hidden: Vec<f32> = known.iter().flat_map(|memory| &memory.hidden).copied().collect();
        let seen: Vec<&[u32]> = known.iter().map(|memory| &memory.seen[..]).collect();
        let mut ranked = match known.is_empty() {
            true => Vec::new(),
            false => self.rank(&Tensor::from_vec(hidden, (known.len(), width), &Device::Cpu)?, &seen)?,
        }
        .into_iter();
        let scored = memories.iter().map(|memory| match memory {
            Some(_) => ranked.next().unwrap_or_default(),
            None => self.popular(),
        });
        Ok(Continued { scored: scored.collect(), memories })
    }
}

/// One row of all layers' states for each sequence.
fn pack(state: &Mamba4RecState) -> candle_core::Result<Vec<Vec<f32>>> {
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for layer in &state.layers {
        for (_, tensor) in layer.parts() {
            let values = tensor.flatten_from(1)?.to_vec2::<f32>()?;
            rows.resize(values.len(), Vec::new());
            rows.iter_mut().zip(values).for_each(|(row, values)| row.extend(values));
        }
    }
    Ok(rows)
}

/// The states of all layers from rows; zeros, the beginning of a sequence, where there is none. `like` is any state of the
/// model.
fn unpack(rows: &[Option<&[f32]>], like: &Mamba4RecState) -> mamba_core::Result<Mamba4RecState> {
    let width: usize =
        like.layers.iter().flat_map(MixerState::parts).map(|(_, part)| part.elem_count()).sum();
    if let Some(row) = rows.iter().flatten().find(|row| row.len() != width) {
        let problem = format!("a state of {} values, the model's have {width}", row.len());
        return Err(Error::Empty(problem).into());
    }
    let mut start = 0;
    let mut part = |like: &Tensor| -> candle_core::Result<Tensor> {
        let end = start + like.elem_count();
        let zeros = vec![0f32; like.elem_count()];
        let values: Vec<f32> =
            rows.iter().flat_map(|row| row.map_or(&zeros[..], |row| &row[start..end])).copied().collect();
        start = end;
        let mut shape = like.dims().to_vec();
        shape[0] = rows.len();
        Tensor::from_vec(values, shape, &Device::Cpu)
    };
    let layers = like.layers.iter().map(|layer| {
        let parts = layer.parts().into_iter().map(|(name, like)| Ok((name.to_string(), part(like)?)));
        MixerState::from_parts(layer.kind(), parts.collect::<candle_core::Result<_>>()?)
    });
    Ok(Mamba4RecState { layers: layers.collect::<mamba_core::Result<_>>()? })
}
