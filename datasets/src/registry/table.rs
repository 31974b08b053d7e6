//! The table of data sets: one TOML file a domain for what people read, one TSV file for the list of files.

use std::sync::OnceLock;

use serde::Deserialize;

use super::Digest;
use crate::{Error, Result};

/// A public data set.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DataSet {
    /// Name on a command line.
    pub name: String,
    /// What it is, in one line.
    pub title: String,
    /// `genomics`, `recsys`, `speech`, `timeseries` or `motion`.
    pub domain: String,
    /// Its folder below `$MAMBA_DATA`.
    pub folder: String,
    /// Under what terms it may be used.
    pub licence: String,
    /// What to cite.
    pub citation: String,
    /// The address of those who made it.
    pub source: String,
    /// Which copies `import` takes.
    pub import: String,
    /// The file or folder of the set that its name stands for; `None`: its only file, or the whole folder.
    pub data: Option<String>,
    /// The archive that it is downloaded as, if not file by file.
    pub archive: Option<Archive>,
    /// The original that one of its files can be made from.
    pub convert: Option<Conversion>,
    /// Its files, sorted by path.
    pub files: Vec<DataFile>,
    /// Whether no other set has the same folder below `$MAMBA_DATA`.
    pub(super) own_folder: bool,
}

/// One file of a [`DataSet`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DataFile {
    /// Path in the set, with `/`.
    pub path: String,
    /// Size; for a file that is not known by all of its bytes, that of the copy that was measured.
    pub bytes: u64,
    /// Its checksum.
    pub digest: Digest,
    /// What the checksum was compared with.
    pub checked: Checked,
    /// Where it is downloaded from; an address in `.gz` is decompressed.
    pub url: Option<String>,
}

/// What a checksum was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checked {
    /// The file upstream: the object of that name in the repository and commit of its address.
    Upstream,
    /// A copy only: the file upstream was out of reach.
    Copy,
    /// The file is part of this crate.
    Bundled,
}

/// A zip or tar archive that holds a data set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Where it is downloaded from.
    pub url: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// An original in another form, and the file that is made from it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversion {
    /// How.
    pub how: Form,
    /// Name of the original.
    pub from: String,
    /// Size of the original.
    pub bytes: u64,
    /// SHA-256 of the original, in hexadecimal.
    pub sha256: String,
    /// Path in the set of the file that is made.
    pub to: String,
}

/// A form that can be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// `user::item::rating::timestamp` to a line per user.
    Movielens,
}

/// A list of data sets.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    sets: Vec<DataSet>,
}

/// `[[set]]` of a TOML file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    title: String,
    folder: String,
    licence: String,
    citation: String,
    source: String,
    import: String,
    url: Option<String>,
    data: Option<String>,
    archive: Option<Archive>,
    convert: Option<Conversion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    set: Vec<Entry>,
}

macro_rules! domains {
    ($($name:literal),*) => {
        [$((
            $name,
            include_str!(concat!("sets/", $name, ".toml")),
            include_str!(concat!("sets/", $name, ".tsv")),
        )),*]
    };
}

impl Registry {
    /// The sets that this crate knows.
    pub fn bundled() -> &'static Self {
        static BUNDLED: OnceLock<Registry> = OnceLock::new();
        BUNDLED.get_or_init(|| {
            let mut all = Self::default();
            for (domain, sets, files) in domains!("genomics", "recsys", "speech", "timeseries", "motion") {
                let more = Self::parse(domain, sets, files);
                all.sets.extend(more.expect("the bundled tables are valid: a test reads them").sets);
            }
            all
        })
    }

    /// The sets of one domain, from the text of a TOML file (the sets) and of a TSV file (their files).
    pub fn parse(domain: &str, sets: &str, files: &str) -> Result<Self> {
        let table = |name: &str, line: usize, reason: String| Error::DataTable {
            place: format!("{domain}.{name}:{line}"),
            reason,
        };
        let entries: Entries = toml::from_str(sets).map_err(|e| {
            let line = e.span().map_or(0, |span| sets[..span.start].matches('\n').count() + 1);
            table("toml", line, e.message().to_owned())
        })?;
        let mut urls = Vec::new();
        let mut all = Self::default();
        for entry in entries.set {
            if all.get(&entry.name).is_ok() {
                return Err(table("toml", 0, format!("two sets are named {:?}", entry.name)));
            }
            let Entry { name, title, folder, licence, citation, source, import, url, data, archive, convert } =
                entry;
            urls.push(url.unwrap_or_default());
            all.sets.push(DataSet {
                name,
                title,
                domain: domain.to_owned(),
                folder,
                licence,
                citation,
                source,
                import,
                data,
                archive,
                convert,
                files: Vec::new(),
                own_folder: true,
            });
        }
        for (number, line) in files.lines().enumerate().skip(1) {
            let wrong = |reason: String| table("tsv", number + 1, reason);
            let [name, path, bytes, digest, checked, url] = line.split('\t').collect::<Vec<_>>()[..] else {
                return Err(wrong("expected six columns".into()));
            };
            let set = all.sets.iter().position(|set| set.name == name);
            let set = set.ok_or_else(|| wrong(format!("no set is named {name:?}")))?;
            let url = match url {
                "" => None,
                whole if whole.contains("://") => Some(whole.to_owned()),
                below => Some(format!("{}{below}", urls[set])),
            };
            all.sets[set].files.push(DataFile {
                path: path.to_owned(),
                bytes: bytes.parse().map_err(|_| wrong(format!("size {bytes:?} is not a number")))?,
                digest: digest.parse().map_err(wrong)?,
                checked: match checked {
                    "upstream" => Checked::Upstream,
                    "copy" => Checked::Copy,
                    "bundled" => Checked::Bundled,
                    other => return Err(wrong(format!("{other:?} is not upstream, copy or bundled"))),
                },
                url,
            });
        }
        for at in 0..all.sets.len() {
            let folder = &all.sets[at].folder;
            all.sets[at].own_folder = all.sets.iter().filter(|set| set.folder == *folder).count() == 1;
        }
        Ok(all)
    }

    /// Every set.
    pub fn sets(&self) -> &[DataSet] {
        &self.sets
    }

    /// The set of this name, in any case.
    pub fn get(&self, name: &str) -> Result<&DataSet> {
        self.sets.iter().find(|set| set.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let lower = name.to_ascii_lowercase();
            let is_close = |known: &str| strsim::jaro_winkler(&lower, known) > 0.8;
            let close = self.sets.iter().map(|set| set.name.as_str()).filter(|known| is_close(known));
            Error::UnknownSet { name: name.to_owned(), close: close.map(str::to_owned).collect() }
        })
    }
}

impl DataSet {
    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Whether the set is part of this crate.
    pub fn is_bundled(&self) -> bool {
        self.files.iter().all(|file| file.checked == Checked::Bundled)
    }

    /// Whether [`fetch`](super::fetch) can download it.
    pub fn is_fetchable(&self) -> bool {
        self.archive.is_some() || self.files.iter().all(|file| file.url.is_some())
    }

    /// What in the set its name stands for: a path in it, or `""` for the whole folder.
    pub(super) fn main_path(&self) -> &str {
        match (&self.data, &self.files[..]) {
            (Some(data), _) => data,
            (None, [only]) => &only.path,
            (None, _) => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::DigestKind;

    #[test]
    fn every_set_has_files_and_everything_that_people_need() {
        let sets = Registry::bundled().sets();
        assert!(sets.len() >= 35, "{}", sets.len());
        for set in sets {
            for text in [&set.title, &set.licence, &set.citation, &set.source, &set.import, &set.folder] {
                assert!(!text.is_empty() && text.trim() == text, "{}", set.name);
            }
            assert!(!set.files.is_empty(), "{} has no files", set.name);
            assert!(set.source.starts_with("http"), "{}", set.name);
            assert!(set.folder.starts_with(&format!("{}/", set.domain)), "{}", set.name);
            assert!(set.files.is_sorted_by(|a, b| a.path < b.path), "{}: files out of order", set.name);
            for file in &set.files {
                let parts: Vec<&str> = file.path.split('/').collect();
                assert!(!parts.iter().any(|part| matches!(*part, "" | "." | "..")), "{}", file.path);
                let url = file.url.as_deref().unwrap_or("https://none");
                assert!(url.starts_with("https://"), "{url}");
            }
            if let Some(convert) = &set.convert {
                assert!(set.files.iter().any(|file| file.path == convert.to), "{}", set.name);
            }
            let main = set.main_path();
            assert!(set.files.iter().any(|file| file.path.starts_with(main)), "{}: {main}", set.name);
        }
    }

    #[test]
    fn bundled_sets_are_the_samples() {
        let bundled: Vec<_> = Registry::bundled().sets().iter().filter(|set| set.is_bundled()).collect();
        assert_eq!(bundled.len(), crate::samples().len());
        for set in bundled {
            let sample = crate::sample(&set.name).unwrap();
            assert_eq!(set.files[0].path, sample.file_name);
            assert_eq!(Digest::of(DigestKind::Sha256, &sample.bytes()), Some(set.files[0].digest.clone()));
        }
    }

    #[test]
    fn a_name_that_is_nearly_right_brings_the_right_one() {
        let message = Registry::bundled().get("ml1m").unwrap_err().to_string();
        assert!(message.starts_with("no data set is named \"ml1m\"; similar: ml-1"), "{message}");
        assert_eq!(Registry::bundled().get("ETTh1").unwrap().name, "etth1");
    }

    #[test]
    fn a_broken_table_names_the_line() {
        let toml = "[[set]]\nname = \"a\"\nlicense = \"MIT\"\n";
        let error = Registry::parse("test", toml, "").unwrap_err().to_string();
        assert!(error.starts_with("test.toml:3: unknown field `license`"), "{error}");
        let toml = "[[set]]\nname = \"a\"\ntitle=\"\"\nfolder=\"\"\nlicence=\"\"\ncitation=\"\"\nsource=\"\"\nimport=\"\"\n";
        for (line, reason) in [
            ("a\tx", "expected six columns"),
            ("b\tx\t1\tsha256:00\tcopy\t", "no set is named \"b\""),
            ("a\tx\tone\tsha256:00\tcopy\t", "size \"one\" is not a number"),
            ("a\tx\t1\tmd5:00\tcopy\t", "digest \"md5:00\""),
        ] {
            let error = Registry::parse("test", toml, &format!("header\n{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("test.tsv:2: {reason}")), "{error}");
        }
    }
}
