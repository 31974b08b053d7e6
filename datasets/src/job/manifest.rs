//! The record beside a finished output: what it was made from and what it holds.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use crate::atomic::sibling;
use crate::hash::sha256_file;
use crate::{AtomicFile, Error, Result};

/// Manifest version that this program writes and reads.
const VERSION: u32 = 1;
const SUFFIX: &str = ".manifest.json";
/// A manifest whose files are being renamed; see [`Claim::commit`](super::Claim::commit).
const PENDING: &str = ".manifest.json.pending";

/// An output file as it was when its job finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// File name; the file stands in the manifest's folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

/// What `NAME.manifest.json` says about the finished output `NAME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// The program that wrote the output.
    pub program: String,
    /// The part's number in a directory output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<usize>,
    /// Rows written.
    pub rows: u64,
    /// Other counts that the program keeps: rows skipped, ambiguous bases …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
    /// The output and the files beside it that belong to it.
    pub files: Vec<FileEntry>,
    /// What the output was made from.
    pub fingerprint: Fingerprint,
}

/// How the files that a manifest lists look now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// All there, with the listed content.
    Whole,
    /// At least one is gone, none has other content.
    Missing,
    /// At least one has other content.
    Altered,
}

impl Manifest {
    pub(super) fn new(program: &str, part: Option<usize>, fingerprint: &Fingerprint) -> Self {
        Self {
            version: VERSION,
            program: program.to_owned(),
            part,
            rows: 0,
            counts: BTreeMap::new(),
            files: Vec::new(),
            fingerprint: fingerprint.clone(),
        }
    }

    /// Where the manifest of an output stands: `NAME.manifest.json`.
    pub fn path_for(output: &Path) -> Result<PathBuf> {
        sibling(output, SUFFIX)
    }

    /// Reads the manifest of an output; `None` if it has none.
    pub fn read_beside(output: &Path) -> Result<Option<Self>> {
        Self::read(&Self::path_for(output)?)
    }

    /// Where the manifest stands while its files are being renamed.
    pub(super) fn pending_path_for(output: &Path) -> Result<PathBuf> {
        sibling(output, PENDING)
    }

    pub(super) fn read_pending(output: &Path) -> Result<Option<Self>> {
        Self::read(&Self::pending_path_for(output)?)
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let text = match std::fs::read(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::io("read", path))?,
        };
        let malformed = |source: serde_json::Error| Error::Manifest {
            path: path.to_owned(),
            line: source.line(),
            source,
        };
        // The version first: another one may have other fields.
        let Version { version: found } = serde_json::from_slice(&text).map_err(malformed)?;
        if found != VERSION {
            return Err(Error::ManifestVersion { path: path.to_owned(), found, known: VERSION });
        }
        serde_json::from_slice(&text).map(Some).map_err(malformed)
    }

    /// Writes `NAME.manifest.json.pending`, atomically.
    pub(super) fn write_pending(&self, output: &Path) -> Result<()> {
        let path = Self::pending_path_for(output)?;
        let mut text = serde_json::to_vec_pretty(self).map_err(|source| Error::Config { source })?;
        text.push(b'\n');
        let mut file = AtomicFile::create(&path)?;
        file.write_all(&text).map_err(Error::io("write", &path))?;
        file.commit()
    }

    /// Makes the pending manifest the manifest.
    pub(super) fn promote_pending(output: &Path) -> Result<()> {
        let path = Self::path_for(output)?;
        std::fs::rename(Self::pending_path_for(output)?, &path).map_err(Error::io("create", &path))?;
        crate::atomic::sync_folder(&path)
    }

    /// Reads the manifest of an output, or the pending one if a commit was cut short before there was any.
    pub(super) fn read_any(output: &Path) -> Result<Option<Self>> {
        Ok(Self::read_beside(output)?.or(Self::read_pending(output)?))
    }

    /// Removes the pending manifest.
    pub(super) fn discard_pending(output: &Path) -> Result<()> {
        remove(&Self::pending_path_for(output)?)
    }

    /// Removes the manifest and then its files.
    pub(super) fn remove_with_files(&self, output: &Path) -> Result<()> {
        remove(&Self::path_for(output)?)?;
        Self::discard_pending(output)?;
        self.files.iter().try_for_each(|file| remove(&output.with_file_name(&file.name)))
    }

    /// Compares the listed files with those beside `output`, by content.
    pub(super) fn check_files(&self, output: &Path) -> Result<Found> {
        let mut found = Found::Whole;
        for entry in &self.files {
            let path = output.with_file_name(&entry.name);
            match std::fs::metadata(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => found = Found::Missing,
                Err(e) => return Err(Error::io("read", &path)(e)),
                // The size first: it is cheap and settles most cases.
                Ok(meta) if meta.len() != entry.bytes => return Ok(Found::Altered),
                Ok(_) if sha256_file(&path)?.1 != entry.sha256 => return Ok(Found::Altered),
                Ok(_) => {}
            }
        }
        Ok(found)
    }
}

/// One line for people: `out.parquet: 4821 rows, 1048576 bytes, skipped 3`.
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.files.iter().map(|file| file.name.as_str()).collect();
        let bytes: u64 = self.files.iter().map(|file| file.bytes).sum();
        write!(f, "{}: {} rows, {bytes} bytes", names.join(" + "), self.rows)?;
        self.counts.iter().try_for_each(|(name, count)| write!(f, ", {name} {count}"))
    }
}

/// The parts in a folder that have a manifest, be it a pending one: number and output path, in order.
pub(super) fn parts_in(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let output = name.and_then(|n| n.strip_suffix(SUFFIX).or_else(|| n.strip_suffix(PENDING)));
        let Some(output) = output else { continue };
        let number = output.strip_prefix("part-").and_then(|rest| rest.split('.').next());
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            parts.push((number, dir.join(output)));
        }
    }
    parts.sort();
    parts.dedup();
    Ok(parts)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message_for(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("o.npy");
        std::fs::write(Manifest::path_for(&output).unwrap(), text).unwrap();
        let message = Manifest::read_beside(&output).unwrap_err().to_string();
        message.replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn a_damaged_manifest_says_which_line() {
        assert_eq!(message_for("{\n\"version\": 1,\noops"), "DIR/o.npy.manifest.json:3: not a job manifest");
        assert_eq!(message_for(""), "DIR/o.npy.manifest.json:1: not a job manifest");
    }

    #[test]
    fn another_version_is_named() {
        assert_eq!(
            message_for("{\"version\": 7, \"new\": true}"),
            "DIR/o.npy.manifest.json: manifest version 7 is not supported (this program knows 1)"
        );
    }

    #[test]
    fn parts_are_found_by_their_manifests() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "part-00010.npy.manifest.json",
            "part-00002.npy.manifest.json",
            "part-00002.npy.manifest.json.pending",
            "part-00004.npy.manifest.json.pending",
            "part-00003.npy",
            "part-x.npy.manifest.json",
            "notes.txt",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let parts = parts_in(dir.path()).unwrap();
        assert_eq!(parts, [2, 4, 10].map(|n| (n, dir.path().join(format!("part-{n:05}.npy")))));
    }
}
