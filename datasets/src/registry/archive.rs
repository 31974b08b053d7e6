//! Looking through files, folders and archives.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// Folders deeper than this are not entered: a link may lead in a circle.
const DEEPEST: usize = 16;

/// Goes through everything below `path` (a file, a folder, a zip, tar, tar.gz or gz file, and such files in a folder),
/// sorted by name. `wants` sees the size of each file, where it is known; `found` gets name and content of those that are
/// wanted and have at most `most` bytes.
pub(super) fn visit(
    path: &Path,
    most: u64,
    wants: &dyn Fn(Option<u64>) -> bool,
    found: &mut dyn FnMut(&str, Vec<u8>) -> Result<()>,
) -> Result<()> {
    Visitor { most, wants, found }.path(path, DEEPEST)
}

struct Visitor<'a> {
    most: u64,
    wants: &'a dyn Fn(Option<u64>) -> bool,
    found: &'a mut dyn FnMut(&str, Vec<u8>) -> Result<()>,
}

impl Visitor<'_> {
    fn path(&mut self, path: &Path, deeper: usize) -> Result<()> {
        let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if meta.is_dir() {
            let entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
            let mut inside = Vec::new();
            for entry in entries {
                inside.push(entry.map_err(Error::io("read", path))?.path());
            }
            inside.sort();
            for path in inside.iter().filter(|path| deeper > 0 && path.exists()) {
                self.path(path, deeper - 1)?;
            }
            Ok(())
        } else if meta.is_file() {
            self.file(path, meta.len())
        } else {
            Ok(()) // devices and pipes hold no data set
        }
    }

    fn file(&mut self, path: &Path, bytes: u64) -> Result<()> {
        self.open(path, bytes).map_err(|failure| match failure {
            Failure::Ours(error) => error,
            Failure::Io(error) => Error::io("read", path)(error),
            Failure::Archive(reason) => Error::Archive { path: path.to_owned(), reason },
        })
    }

    fn open(&mut self, path: &Path, bytes: u64) -> Result<(), Failure> {
        let mut file = File::open(path).map_err(Failure::Io)?;
        let name = path.display().to_string();
        let start = first_bytes(&mut file).map_err(Failure::Io)?;
        file.rewind().map_err(Failure::Io)?;
        if start.starts_with(b"PK\x03\x04") {
            return self.zip(&name, file);
        }
        if !start.starts_with(&[0x1f, 0x8b]) {
            let file = BufReader::new(file);
            return if is_tar(&start) { self.tar(&name, file) } else { self.one(&name, Some(bytes), file) };
        }
        let start = first_bytes(&mut MultiGzDecoder::new(BufReader::new(&file))).map_err(archive)?;
        file.rewind().map_err(Failure::Io)?;
        let content = MultiGzDecoder::new(BufReader::new(file));
        if is_tar(&start) { self.tar(&name, content) } else { self.one(&name, None, content) }
    }

    fn zip(&mut self, name: &str, file: File) -> Result<(), Failure> {
        let mut zip =
            zip::ZipArchive::new(BufReader::new(file)).map_err(|e| Failure::Archive(e.to_string()))?;
        for index in 0..zip.len() {
            let entry = zip.by_index(index).map_err(|e| Failure::Archive(e.to_string()))?;
            if entry.is_file() {
                let (inside, bytes) =
                    (format!("{name}:{}", String::from_utf8_lossy(entry.name_raw())), entry.size());
                self.one(&inside, Some(bytes), entry)?;
            }
        }
        Ok(())
    }

    fn tar(&mut self, name: &str, content: impl Read) -> Result<(), Failure> {
        let mut tar = tar::Archive::new(content);
        for entry in tar.entries().map_err(archive)? {
            let entry = entry.map_err(archive)?;
            if entry.header().entry_type().is_file() {
                let inside = format!("{name}:{}", String::from_utf8_lossy(&entry.path_bytes()));
                let bytes = entry.size();
                self.one(&inside, Some(bytes), entry)?;
            }
        }
        Ok(())
    }

    fn one(&mut self, name: &str, bytes: Option<u64>, content: impl Read) -> Result<(), Failure> {
        if !(self.wants)(bytes) || bytes.is_some_and(|bytes| bytes > self.most) {
            return Ok(());
        }
        let mut read = Vec::new();
        content.take(self.most + 1).read_to_end(&mut read).map_err(archive)?;
        if read.len() as u64 > self.most {
            return Ok(()); // a gzip file larger than any that is wanted
        }
        (self.found)(name, read).map_err(Failure::Ours)
    }
}

/// What stopped the look through one file.
enum Failure {
    Ours(Error),
    Io(std::io::Error),
    Archive(String),
}

fn archive(error: std::io::Error) -> Failure {
    Failure::Archive(error.to_string())
}

/// The first block of a tar file, or what there is of it.
fn first_bytes(content: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    content.take(512).read_to_end(&mut start)?;
    Ok(start)
}

fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn names_and_content(path: &Path, most: u64) -> Result<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        visit(path, most, &|_| true, &mut |name, content| {
            all.push((name.rsplit(['/', ':']).next().unwrap().to_owned(), content));
            Ok(())
        })?;
        Ok(all)
    }

    fn gz(content: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
        tar.into_inner().unwrap()
    }

    fn zip_of(name: &str, content: &[u8]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn files_lie_open_or_packed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        for (name, content) in [
            ("deep/a.txt", b"open".to_vec()),
            ("b.txt.gz", gz(b"gzip")),
            ("c.tar", tar_of("c/c.txt", b"tar")),
            ("d.tar.gz", gz(&tar_of("d/d.txt", b"tar.gz"))),
            ("e.zip", zip_of("e/e.txt", b"zip")),
        ] {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let all = names_and_content(dir.path(), 100).unwrap();
        let text: Vec<_> = all.iter().map(|(_, content)| String::from_utf8_lossy(content)).collect();
        assert_eq!(text, ["gzip", "tar", "tar.gz", "open", "zip"]);
        assert_eq!(all[2].0, "d.txt");
    }

    #[test]
    fn what_is_too_large_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.gz"), gz(&vec![0; 1 << 20])).unwrap();
        std::fs::write(dir.path().join("b"), vec![0; 1 << 20]).unwrap();
        assert!(names_and_content(dir.path(), 1000).unwrap().is_empty());
    }

    #[test]
    fn a_truncated_archive_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for (name, content) in [
            ("a.zip", zip_of("a", &noise)),
            ("a.gz", gz(&noise)),
            ("a.tar.gz", gz(&tar_of("a", &noise))),
            ("a.tar", tar_of("a", &noise)),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, &content[..content.len() / 2]).unwrap();
            let message = names_and_content(&path, 1 << 20).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("not a whole archive"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_well(kind in 0..4usize, cut in 0..600usize, at in 0..600usize, flip in any::<u8>()) {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = match kind {
                0 => zip_of("a", b"some content"),
                1 => gz(b"some content"),
                2 => gz(&tar_of("a", b"some content")),
                _ => tar_of("a", b"some content"),
            };
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.truncate(cut.max(1));
            let path = dir.path().join("x");
            std::fs::write(&path, bytes).unwrap();
            let _ = names_and_content(&path, 1 << 16);
        }
    }
}
