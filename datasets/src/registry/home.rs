//! Where data sets are on this machine.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{DataFile, DataSet, Digest, import};
use crate::{AtomicFile, Error, Result};

/// The folders that data sets are in: a cache that this crate fills, and perhaps a folder that others filled.
#[derive(Clone, Debug)]
pub struct Home {
    cache: PathBuf,
    data: Option<PathBuf>,
}

/// Where a data set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the cache, complete; this is its folder.
    Cache(PathBuf),
    /// In `$MAMBA_DATA`, with every file at its place; this is its folder.
    Data(PathBuf),
    /// Compiled into the program.
    Bundled,
    /// In this folder of `$MAMBA_DATA`, but incomplete or packed: using it unpacks it.
    Packed(PathBuf),
    /// Nowhere.
    Absent,
}

impl Home {
    /// A cache folder, and a folder laid out by [`DataSet::folder`] that is looked in too.
    pub fn new(cache: impl Into<PathBuf>, data: Option<PathBuf>) -> Self {
        Self { cache: cache.into(), data }
    }

    /// `$MAMBA_DATA_HOME`, or `mamba-zoo` in the platform's cache folder; and `$MAMBA_DATA`.
    pub fn from_env() -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let platform = || dirs::cache_dir().map(|dir| dir.join("mamba-zoo"));
        let cache = variable("MAMBA_DATA_HOME").or_else(platform).ok_or(Error::NoHome)?;
        Ok(Self::new(cache, variable("MAMBA_DATA")))
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The set's folder in the cache.
    pub fn folder(&self, set: &DataSet) -> PathBuf {
        self.cache.join(&set.domain).join(&set.name)
    }

    /// Where the set is, by names and sizes; [`verify`](Self::verify) reads the files.
    pub fn find(&self, set: &DataSet) -> Place {
        let cached = self.folder(set);
        if set.files.iter().all(|file| is_there(&cached, file)) {
            return Place::Cache(cached);
        }
        if set.is_bundled() {
            return Place::Bundled;
        }
        match self.data.as_ref().map(|data| data.join(&set.folder)) {
            // In a folder that sets share, only a single file can be told from the others' files.
            Some(folder) if set.files.iter().all(|file| is_there(&folder, file)) => {
                if set.own_folder || !set.main_path().is_empty() {
                    Place::Data(folder)
                } else {
                    Place::Packed(folder)
                }
            }
            Some(folder) if folder.is_dir() => Place::Packed(folder),
            _ => Place::Absent,
        }
    }

    /// The path of a set's main file or folder, or of the `part` of the set (`""`: no part). Files in `$MAMBA_DATA`
    /// are checked, and packed ones unpacked into the cache.
    pub fn resolve(&self, set: &DataSet, part: &str) -> Result<PathBuf> {
        let folder = match self.find(set) {
            Place::Cache(folder) => folder,
            Place::Data(folder) => {
                for file in &set.files {
                    check(&folder.join(&file.path), &file.digest)?;
                }
                folder
            }
            Place::Bundled => {
                let sample = crate::sample(&set.name)?;
                self.place(set, &set.files[0], &sample.bytes())?;
                self.folder(set)
            }
            Place::Packed(folder) => match import(set, &folder, self) {
                Ok(()) => self.folder(set),
                Err(error) => return Err(self.missing(set, format!(" ({error})"))),
            },
            Place::Absent => {
                let looked: Vec<_> =
                    self.data.iter().map(|data| data.join(&set.folder)).chain([self.folder(set)]).collect();
                let looked: Vec<_> = looked.iter().map(|path| path.display().to_string()).collect();
                return Err(self.missing(set, format!(" (looked in {})", looked.join(" and "))));
            }
        };
        let part = if part.is_empty() { set.main_path() } else { part.trim_end_matches('/') };
        let known = |file: &DataFile| {
            part.is_empty()
                || file.path == part
                || file.path.strip_prefix(part).is_some_and(|rest| rest.starts_with('/'))
        };
        if !set.files.iter().any(known) {
            return Err(Error::NoSuchPart { name: set.name.clone(), part: part.to_owned() });
        }
        Ok(if part.is_empty() { folder } else { folder.join(part) })
    }

    /// Reads every file of a set that is on this machine and compares its checksum; returns where it is. Files that
    /// are absent, changed or unreadable are an error.
    pub fn verify(&self, set: &DataSet) -> Result<Place> {
        let place = self.find(set);
        match &place {
            Place::Cache(folder) | Place::Data(folder) => {
                for file in &set.files {
                    check(&folder.join(&file.path), &file.digest)?;
                }
                Ok(place)
            }
            Place::Bundled => Ok(place),
            // What can be unpacked is checked on the way, and then in the cache.
            Place::Packed(_) | Place::Absent => self.resolve(set, "").map(|_| self.find(set)),
        }
    }

    /// Writes a checked file to its place in the cache, whole or not at all.
    pub(super) fn place(&self, set: &DataSet, file: &DataFile, content: &[u8]) -> Result<()> {
        let path = self.folder(set).join(&file.path);
        let folder = path.parent().unwrap_or(&self.cache);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        crate::atomic::remove_leftovers(&path)?;
        let mut writer = AtomicFile::create(&path)?;
        writer.write_all(content).map_err(Error::io("write", &path))?;
        writer.commit()
    }

    fn missing(&self, set: &DataSet, reason: String) -> Error {
        let fetch = match set.is_fetchable() {
            true => format!("`datasets fetch {}` downloads it, ", set.name),
            false => "it cannot be downloaded, ".to_owned(),
        };
        Error::SetMissing { name: set.name.clone(), reason, fetch, import: set.import.clone() }
    }
}

/// Whether the file is in the folder, with its size where its digest covers all bytes.
fn is_there(folder: &Path, file: &DataFile) -> bool {
    let meta = folder.join(&file.path).metadata();
    meta.is_ok_and(|meta| meta.is_file() && (meta.len() == file.bytes || !file.digest.covers_all()))
}

/// An error unless the file has this digest.
fn check(path: &Path, digest: &Digest) -> Result<()> {
    let content = std::fs::read(path).map_err(Error::io("read", path))?;
    digest.check(&path.display().to_string(), &content)
}
