//! Downloading a data set.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::MultiGzDecoder;

use super::{Client, DataFile, DataSet, Home, Place, import};
use crate::hash::sha256_file;
use crate::{Error, Result};

/// What [`fetch`] reports on its way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A download is about to begin: say what it is and under what licence.
    Begin {
        /// The set.
        set: &'a DataSet,
        /// Bytes that are left to download.
        bytes: u64,
    },
    /// A file begins.
    File {
        /// Its path in the set, or the name of the archive.
        path: &'a str,
        /// Its size; for a compressed file, that of its content.
        bytes: u64,
    },
    /// So much of the current file is here.
    Bytes {
        /// In bytes, with what an earlier run left.
        done: u64,
    },
    /// The download of a file failed and will be tried again.
    Retry {
        /// Its address.
        url: &'a str,
        /// What happened.
        reason: &'a str,
        /// How long from now.
        pause: Duration,
    },
}

/// Downloads what the cache lacks of a data set, and says how to import it where that fails.
///
/// A file is kept when its checksum is right. A download that was cut, even with its process, goes on where it stopped.
pub fn fetch(set: &DataSet, home: &Home, client: &Client, report: &mut dyn FnMut(Event)) -> Result<PathBuf> {
    match home.find(set) {
        Place::Cache(folder) => return Ok(folder),
        Place::Bundled => return home.resolve(set, "").map(|_| home.folder(set)),
        Place::Data(_) | Place::Packed(_) | Place::Absent => {}
    }
    let failed = |source: Option<Error>| Error::Fetch {
        name: set.name.clone(),
        import: set.import.clone(),
        source: source.map(Box::new),
    };
    if !set.is_fetchable() {
        return Err(failed(None));
    }
    let parts = home.cache().join("downloads").join(&set.name);
    std::fs::create_dir_all(&parts).map_err(Error::io("create", &parts))?;
    let fetched = match &set.archive {
        Some(archive) => whole(set, archive, home, client, &parts, report),
        None => each(set, home, client, &parts, report),
    };
    fetched.map_err(|error| match error {
        Error::Download { .. } | Error::Checksum { .. } | Error::Import { .. } | Error::Archive { .. } => {
            failed(Some(error))
        }
        ours => ours,
    })?;
    let _ = std::fs::remove_dir(&parts); // empty, unless another process is at work in it
    Ok(home.folder(set))
}

/// A set that comes as one archive.
fn whole(
    set: &DataSet,
    archive: &super::Archive,
    home: &Home,
    client: &Client,
    parts: &Path,
    report: &mut dyn FnMut(Event),
) -> Result<()> {
    let name = archive.url.rsplit('/').next().unwrap_or(&archive.url);
    let part = parts.join(format!("{name}.part"));
    report(Event::Begin { set, bytes: archive.bytes - size(&part).min(archive.bytes) });
    report(Event::File { path: name, bytes: archive.bytes });
    again_if_stale(&part, |part| {
        client.download(&archive.url, part, Some(archive.bytes), report)?;
        let (_, found) = sha256_file(part)?;
        if found != archive.sha256 {
            let expected = archive.sha256.clone();
            return Err(Error::Checksum { what: archive.url.clone(), kind: "SHA-256", found, expected });
        }
        Ok(())
    })?;
    import(set, &part, home)?;
    std::fs::remove_file(&part).map_err(Error::io("remove", &part))
}

/// A set that comes file by file.
fn each(
    set: &DataSet,
    home: &Home,
    client: &Client,
    parts: &Path,
    report: &mut dyn FnMut(Event),
) -> Result<()> {
    let folder = home.folder(set);
    let is_here = |file: &DataFile| {
        std::fs::read(folder.join(&file.path)).is_ok_and(|content| file.digest.matches(&content))
    };
    let part = |index: usize| parts.join(format!("{index:05}.part"));
    let missing: Vec<_> = set.files.iter().enumerate().filter(|(_, file)| !is_here(file)).collect();
    let left = missing.iter().map(|&(index, file)| file.bytes.saturating_sub(size(&part(index))));
    report(Event::Begin { set, bytes: left.sum() });
    for (index, file) in missing {
        let url =
            file.url.as_deref().expect("a set without an archive is fetchable if each file has an address");
        let packed = url.ends_with(".gz") && !file.path.ends_with(".gz");
        let expected = Some(file.bytes).filter(|_| !packed && file.digest.covers_all());
        let part = part(index);
        report(Event::File { path: &file.path, bytes: file.bytes });
        again_if_stale(&part, |part| {
            client.download(url, part, expected, report)?;
            let mut content = std::fs::read(part).map_err(Error::io("read", part))?;
            if packed {
                content = unpacked(url, &content, 2 * file.bytes)?;
            }
            file.digest.check(url, &content)?;
            home.place(set, file, &content)
        })?;
        std::fs::remove_file(&part).map_err(Error::io("remove", &part))?;
    }
    Ok(())
}

/// Downloads and checks; what is wrong is removed. Where an earlier run had begun the file, which may have changed
/// since, it is downloaded once more from its beginning.
fn again_if_stale(part: &Path, mut download: impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let mut begun = size(part) > 0;
    loop {
        match download(part) {
            Err(Error::Checksum { .. } | Error::Archive { .. }) if begun => remove(part)?,
            Err(error @ (Error::Checksum { .. } | Error::Archive { .. })) => {
                remove(part)?;
                return Err(error);
            }
            other => return other,
        }
        begun = false;
    }
}

fn remove(part: &Path) -> Result<()> {
    std::fs::remove_file(part).map_err(Error::io("remove", part))
}

fn unpacked(url: &str, gzip: &[u8], most: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = MultiGzDecoder::new(gzip).take(most).read_to_end(&mut content);
    read.map_err(|e| Error::Archive { path: url.into(), reason: e.to_string() })?;
    Ok(content)
}

fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}
