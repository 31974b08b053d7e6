//! Writing files so that a crash never leaves half of one.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file whole or not at all.
///
/// The content goes to a temporary file beside `path`, which is flushed to the disk, renamed over `path`, and the
/// folder flushed too. Whenever the process or the machine stops, `path` holds either the old or the new content.
/// On an error the temporary file is removed; after a kill it stays as `.NAME.PID.tmp`.
pub fn atomic_write(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let name = path.file_name().ok_or_else(|| {
        Error::io(path, std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a file name"))
    })?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temporary = Temporary(folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())));
    let failed = |source| Error::io(path, source);

    let mut writer = BufWriter::with_capacity(1 << 20, File::create(&temporary.0).map_err(failed)?);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    drop(file);
    std::fs::rename(&temporary.0, path).map_err(failed)?;
    sync_folder(folder)
}

/// Removes the file when dropped; after the rename there is none left to remove.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes a rename in the folder durable.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        atomic_write(&path, |w| w.write_all(b"old").map_err(|e| Error::io("a.txt", e))).unwrap();
        let error = atomic_write(&path, |w| {
            w.write_all(b"half of the ne").map_err(|e| Error::io("a.txt", e))?;
            Err(Error::Config("no more".into()))
        });
        assert_eq!(error.unwrap_err().to_string(), "no more");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_the_target() {
        let error = atomic_write("/nonexistent/folder/a.txt", |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/folder/a.txt");
        assert!(std::error::Error::source(&error).is_some());
    }
}
