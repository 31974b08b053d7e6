//! From event files of any size to users, a part at a time.
//!
//! The events of one user may lie anywhere in the input, so they are first sorted out by a hash of the user into the parts
//! of a temporary file; then one part at a time is read back and its events are gathered by user. Memory is bounded by the
//! largest part, whatever the size of the input. Which users make a part depends on their ids and the number of parts
//! only; within a part users stand in the order of their first appearance.

use crate::data::{ReadOptions, for_each_chunk};
use crate::error::{Error, Result};
use crate::ids::canonical_int;
use crate::{Id, Ids, ItemMap};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An id of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OwnedId {
    /// A whole number.
    Int(i64),
    /// Any text.
    Text(String),
}

impl OwnedId {
    /// A view of it.
    pub fn get(&self) -> Id<'_> {
        match self {
            Self::Int(id) => Id::Int(*id),
            Self::Text(id) => Id::Text(id),
        }
    }
}

impl From<Id<'_>> for OwnedId {
    fn from(id: Id<'_>) -> Self {
        match id {
            Id::Int(id) => Self::Int(id),
            Id::Text(id) => Self::Text(id.to_string()),
        }
    }
}

/// A user to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The caller's id.
    pub id: OwnedId,
    /// Known items in time order.
    pub history: Vec<u32>,
    /// Items to score, where these were given.
    pub candidates: Option<Vec<OwnedId>>,
}

/// What was met on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events read.
    pub events: u64,
    /// Events among them with an item that the model does not know.
    pub unknown_items: u64,
    /// Candidates read.
    pub candidates: u64,
    /// Candidates among them that are no items of the model.
    pub unknown_candidates: u64,
}

/// The part of a user, among `parts`.
pub fn part_of(user: Id<'_>, parts: usize) -> usize {
    (hash(user) % parts as u64) as usize
}

/// FNV-1a over the id's text, so that a number and its text are one user.
fn hash(user: Id<'_>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in user.to_string().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // FNV's low bits alone are poor; fold the high ones in.
    hash ^ (hash >> 29)
}

/// Bytes that parts together hold back before they go to the temporary file, or 4 KiB each if there are many.
const WAITING: usize = 1 << 26;

/// Records of many parts in one temporary file: a file for each part would run into the system's limit of open files.
#[derive(Debug)]
struct Spill {
    file: File,
    folder: PathBuf,
    /// Bytes in the file.
    end: u64,
    /// Bytes that a part holds back.
    waiting: usize,
    parts: Vec<Spilled>,
}

/// The records of a part.
#[derive(Clone, Debug, Default)]
struct Spilled {
    /// Where they lie in the file.
    extents: Vec<(u64, usize)>,
    /// Those that are not there yet.
    waiting: Vec<u8>,
}

impl Spill {
    fn new(parts: usize, folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(Error::io("make a temporary file in", folder))?;
        let waiting = (WAITING / parts.max(1)).clamp(1 << 12, 1 << 16);
        Ok(Self { file, folder: folder.to_owned(), end: 0, waiting, parts: vec![Spilled::default(); parts] })
    }

    fn put(&mut self, part: usize, record: &[u8]) -> Result<()> {
        let part = &mut self.parts[part];
        part.waiting.extend(record);
        if part.waiting.len() >= self.waiting {
            let written = self.file.write_all(&part.waiting);
            written.map_err(Error::io("write a temporary file in", &self.folder))?;
            part.extents.push((self.end, part.waiting.len()));
            self.end += part.waiting.len() as u64;
            part.waiting.clear();
        }
        Ok(())
    }

    /// The records of a part, which is emptied; nothing can be put after that.
    fn take(&mut self, part: usize) -> Result<Vec<u8>> {
        let Spilled { extents, waiting } = std::mem::take(&mut self.parts[part]);
        let mut bytes =
            Vec::with_capacity(extents.iter().map(|extent| extent.1).sum::<usize>() + waiting.len());
        for (start, len) in extents {
            let end = bytes.len();
            bytes.resize(end + len, 0);
            let read =
                self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.read_exact(&mut bytes[end..]));
            read.map_err(Error::io("read back a temporary file in", &self.folder))?;
        }
        bytes.extend(waiting);
        Ok(bytes)
    }
}

/// Events sorted out by part.
#[derive(Debug)]
pub struct Parts {
    wanted: Vec<bool>,
    records: Spill,
    counts: Vec<Counts>,
    /// Whether any user was met, of a wanted part or not.
    any: bool,
    /// Whether some user's id is text, not a number.
    text: bool,
    /// A candidate that is no item of the model, and its file.
    unknown_candidate: Option<(PathBuf, String)>,
    /// Whether events have times; not known before the first.
    times: Option<bool>,
    /// Linear counting of users (Whang and others 1990): one bit for each value of a hash.
    met: Vec<u64>,
}

/// Bits of the users' count; good for a hundred million of them.
const MET_BITS: u64 = 1 << 24;

/// What a record is.
const EVENT: u8 = 0;
const CANDIDATE: u8 = 1;
/// A user is there, without an event.
const IDLE: u8 = 2;

impl Parts {
    /// Parts that `wanted` says are to be made, with a temporary file in `folder`; it has no name, and is gone when this is
    /// dropped or the process dies.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn new(parts: usize, folder: &Path, wanted: impl Fn(usize) -> bool) -> Result<Self> {
        Ok(Self {
            wanted: (0..parts).map(wanted).collect(),
            records: Spill::new(parts, folder)?,
            counts: vec![Counts::default(); parts],
            any: false,
            text: false,
            unknown_candidate: None,
            times: None,
            met: vec![0; (MET_BITS / 64) as usize],
        })
    }

    /// Sorts out the events of a file.
    ///
    /// # Errors
    /// Those of reading and writing; a file that has times where others have none.
    pub fn add_events(&mut self, path: &Path, options: &ReadOptions, items: &ItemMap) -> Result<()> {
        for_each_chunk(path, options, 1 << 17, &mut |log| {
            if *self.times.get_or_insert(log.time.is_some()) != log.time.is_some() {
                return Err(Error::file(path, "it and the files before differ in whether events have times"));
            }
            for event in 0..log.len() {
                let time = log.time.as_ref().map_or(0.0, |times| times[event]);
                let item = items.item(log.item.get(event));
                let part = self.put(log.user.get(event), |record| {
                    record.push(EVENT);
                    record.extend(item.unwrap_or(0).to_le_bytes());
                    record.extend(time.to_le_bytes());
                })?;
                if let Some(part) = part {
                    self.counts[part].events += 1;
                    self.counts[part].unknown_items += u64::from(item.is_none());
                }
            }
            for user in 0..log.idle.len() {
                self.put(log.idle.get(user), |record| record.push(IDLE))?;
            }
            Ok(())
        })
    }

    /// Sorts out candidates: rows of user and item to score. One that is text where the model's items are numbers is only
    /// counted, for its row would have no place among theirs.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn add_candidates(&mut self, path: &Path, options: &ReadOptions, items: &ItemMap) -> Result<()> {
        let numbers = matches!(items.ids(), Ids::Int(_));
        for_each_chunk(path, options, 1 << 17, &mut |log| {
            for row in 0..log.len() {
                let (user, item) = (log.user.get(row), log.item.get(row));
                let unknown = items.item(item).is_none();
                let part = match item {
                    Id::Text(text) if numbers && canonical_int(text).is_none() => self.meet(user),
                    _ => self.put(user, |record| {
                        record.push(CANDIDATE);
                        put_id(record, item);
                    })?,
                };
                if let Some(part) = part {
                    self.counts[part].candidates += 1;
                    self.counts[part].unknown_candidates += u64::from(unknown);
                    if unknown && self.unknown_candidate.is_none() {
                        self.unknown_candidate = Some((path.to_owned(), item.to_string()));
                    }
                }
            }
            Ok(())
        })
    }

    /// A candidate that is no item of the model, and its file.
    pub fn unknown_candidate(&self) -> Option<(&Path, &str)> {
        self.unknown_candidate.as_ref().map(|(path, item)| (path.as_path(), item.as_str()))
    }

    /// The user's part, if that is wanted. What kind of ids there are is noted in any case, so that all parts of an output
    /// have the same columns whoever makes them.
    fn meet(&mut self, user: Id<'_>) -> Option<usize> {
        self.any = true;
        self.text |= matches!(user, Id::Text(_));
        Some(part_of(user, self.wanted.len())).filter(|&part| self.wanted[part])
    }

    /// Writes a record to the user's part, if that is wanted.
    fn put(&mut self, user: Id<'_>, fill: impl FnOnce(&mut Vec<u8>)) -> Result<Option<usize>> {
        let Some(part) = self.meet(user) else { return Ok(None) };
        let bit = hash(user).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        self.met[(bit / 64) as usize] |= 1 << (bit % 64);
        let mut record = Vec::with_capacity(48);
        put_id(&mut record, user);
        fill(&mut record);
        self.records.put(part, &record)?;
        Ok(Some(part))
    }

    /// Whether no user was met, of a wanted part or not.
    pub fn is_empty(&self) -> bool {
        !self.any
    }

    /// Whether users' ids are text: some of them is no number.
    pub fn users_are_text(&self) -> bool {
        self.text
    }

    /// About how many users there are, within a percent.
    pub fn about_users(&self) -> u64 {
        let unmet: u64 = self.met.iter().map(|word| u64::from(word.count_zeros())).sum();
        let bits = MET_BITS as f64;
        (-bits * (unmet.max(1) as f64 / bits).ln()).round() as u64
    }

    /// The users of a part, which is emptied.
    ///
    /// # Errors
    /// A temporary file that cannot be read back.
    pub fn take(&mut self, part: usize) -> Result<(Vec<User>, Counts)> {
        let users = gather(&self.records.take(part)?, self.text)
            .ok_or_else(|| Error::file(&self.records.folder, "a temporary file in it was changed"))?;
        Ok((users, self.counts[part]))
    }
}

fn put_id(record: &mut Vec<u8>, id: Id<'_>) {
    match id {
        Id::Int(id) => {
            record.push(0);
            record.extend(id.to_le_bytes());
        }
        Id::Text(id) => {
            record.push(1);
            record.extend((id.len() as u32).to_le_bytes());
            record.extend(id.as_bytes());
        }
    }
}

/// Reads records.
struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn id(&mut self) -> Option<Id<'a>> {
        match self.array()? {
            [0u8] => Some(Id::Int(i64::from_le_bytes(self.array()?))),
            _ => {
                let len = u32::from_le_bytes(self.array()?);
                Some(Id::Text(std::str::from_utf8(self.bytes(len as usize)?).ok()?))
            }
        }
    }
}

/// Gathers records by user; as text, a number is its text.
fn gather(bytes: &[u8], text: bool) -> Option<Vec<User>> {
    let mut places: HashMap<OwnedId, usize> = HashMap::new();
    let mut users: Vec<(User, Vec<(f64, u32)>)> = Vec::new();
    let mut records = Records(bytes);
    while !records.0.is_empty() {
        let id = match records.id()? {
            Id::Int(id) if text => OwnedId::Text(id.to_string()),
            id => id.into(),
        };
        let place = *places.entry(id).or_insert_with_key(|id| {
            users.push((User { id: id.clone(), history: Vec::new(), candidates: None }, Vec::new()));
            users.len() - 1
        });
        let (user, events) = &mut users[place];
        match records.array()? {
            [EVENT] => {
                let item = u32::from_le_bytes(records.array()?);
                let time = f64::from_le_bytes(records.array()?);
                if item > 0 {
                    events.push((time, item));
                }
            }
            [IDLE] => {}
            _ => user.candidates.get_or_insert_default().push(records.id()?.into()),
        }
    }
    let ordered = users.into_iter().map(|(mut user, mut events)| {
        events.sort_by(|a, b| a.0.total_cmp(&b.0));
        user.history = events.into_iter().map(|(_, item)| item).collect();
        user
    });
    Some(ordered.collect())
}
