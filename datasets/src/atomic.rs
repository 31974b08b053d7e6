//! Files that appear whole or not at all.
//!
//! An [`AtomicFile`] is written as `NAME.tmp-XXXXXXXXXXXXXXXX` beside its target. [`AtomicFile::commit`] flushes it,
//! waits until it is on the disk, renames it to the target and waits for the folder too: a reader sees the old file
//! or the new one, and after a power cut the same holds. Dropped without a commit, it is removed.
//!
//! A process killed by `kill -9` leaves its temporary file; [`remove_leftovers`] clears those whose writer is gone.
//! It knows by a file lock that every writer holds, which the system releases when a process dies.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file under a temporary name, renamed to its target by [`commit`](AtomicFile::commit).
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<File>,
    temporary: PathBuf,
    // The name as it was asked for, and the file that it stands for.
    target: PathBuf,
    resolved: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Starts a new file that will replace `target`, if there is one, when it is committed.
    ///
    /// A target that is a symbolic link is followed; one that is a folder, device or pipe is an error.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_owned();
        let resolved = follow(&target)?;
        loop {
            let temporary = sibling(&resolved, &format!(".tmp-{:016x}", RandomState::new().hash_one(0)))?;
            let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                opened => opened.map_err(Error::io("create", &temporary))?,
            };
            // Where a file system knows no locks, leftovers are merely never taken for abandoned by others.
            let locked = file.lock().is_ok();
            if locked && !temporary.exists() {
                continue; // another process cleared it away before it was locked
            }
            let writer = BufWriter::with_capacity(1 << 18, file);
            return Ok(Self { writer, temporary, target, resolved, committed: false });
        }
    }

    /// The name that the file will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The name that the file has until it is committed.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Writes everything out and waits until it is on the disk; the name stays temporary.
    pub fn sync(&mut self) -> Result<()> {
        let flushed = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        flushed.map_err(Error::io("write", &self.target))
    }

    /// Writes everything out and gives the file its name.
    pub fn commit(mut self) -> Result<()> {
        self.sync()?;
        std::fs::rename(&self.temporary, &self.resolved).map_err(Error::io("create", &self.target))?;
        self.committed = true;
        sync_folder(&self.resolved)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here, and the next run clears the file away.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.writer.seek(to)
    }
}

/// Removes temporary files of `target` whose writer is no longer running; returns how many.
pub fn remove_leftovers(target: impl AsRef<Path>) -> Result<usize> {
    let target = follow(target.as_ref())?;
    let prefix = sibling(&target, ".tmp-")?;
    let prefix = prefix.file_name().unwrap_or_default().as_encoded_bytes();
    let folder = folder_of(&target);
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(Error::io("read", folder))?,
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(prefix) && is_abandoned(&path) && std::fs::remove_file(&path).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether nobody holds the lock of a temporary file. In doubt the answer is no.
fn is_abandoned(path: &Path) -> bool {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
        },
        Err(_) => false,
    }
}

/// The file behind a symbolic link, so that a rename replaces the file and not the link.
fn follow(target: &Path) -> Result<PathBuf> {
    match std::fs::metadata(target) {
        Ok(meta) if !meta.is_file() => Err(Error::NotAFile { path: target.to_owned() }),
        Ok(_) if target.is_symlink() => std::fs::canonicalize(target).map_err(Error::io("read", target)),
        _ => Ok(target.to_owned()),
    }
}

/// `path` with `suffix` added to its file name.
pub(crate) fn sibling(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name: &OsStr = path.file_name().ok_or_else(|| Error::NotAFile { path: path.to_owned() })?;
    let mut name: OsString = name.to_owned();
    name.push(suffix);
    Ok(path.with_file_name(name))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until the folder's entry for `path` is on the disk.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    // Folders can be opened and synced on Unix only; elsewhere the rename itself is all there is.
    if cfg!(unix) {
        let folder = folder_of(path);
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("write", folder))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An atomic file on a device that is always full.
    #[cfg(target_os = "linux")]
    pub(crate) fn on_full_device(target: &Path) -> AtomicFile {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let temporary = sibling(target, ".tmp-full").unwrap();
        std::fs::write(&temporary, b"").unwrap();
        let writer = BufWriter::with_capacity(64, file);
        let target = target.to_owned();
        AtomicFile { writer, temporary, resolved: target.clone(), target, committed: false }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_commit_replaces_the_target_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.txt");
        std::fs::write(&target, "old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert!(file.temporary().exists());
        file.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["out.txt"]);
    }

    #[test]
    fn a_drop_without_commit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(dir.path().join("out.txt")).unwrap();
        file.write_all(&[7; 1 << 20]).unwrap();
        drop(file);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn leftovers_of_dead_writers_go_and_those_of_living_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.txt");
        std::fs::write(dir.path().join("out.txt.tmp-0123456789abcdef"), "left by kill -9").unwrap();
        std::fs::write(dir.path().join("out.txt2.tmp-0123456789abcdef"), "another target's").unwrap();
        let living = AtomicFile::create(&target).unwrap();
        assert_eq!(remove_leftovers(&target).unwrap(), 1);
        assert!(living.temporary().exists());
        living.commit().unwrap();
        assert_eq!(names(dir.path()), ["out.txt", "out.txt2.tmp-0123456789abcdef"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_a_device_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("real"), "old").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let mut file = AtomicFile::create(dir.path().join("link")).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(dir.path().join("link").is_symlink());
        assert_eq!(std::fs::read(dir.path().join("real")).unwrap(), b"new");
        assert_eq!(
            AtomicFile::create("/dev/null").unwrap_err().to_string(),
            "/dev/null is not a regular file"
        );
    }

    #[test]
    fn a_missing_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = AtomicFile::create(dir.path().join("no/out.txt")).unwrap_err().to_string();
        assert!(message.starts_with("cannot create ") && message.contains("out.txt"), "{message}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_reported_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.txt");
        let mut file = on_full_device(&target);
        file.write_all(b"fits the buffer").unwrap();
        let message = file.commit().unwrap_err().to_string();
        assert_eq!(message, format!("no space left on device while writing {}", target.display()));
        assert!(names(dir.path()).is_empty());
    }
}
