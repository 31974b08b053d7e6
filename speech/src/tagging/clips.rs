//! Labelled clips: from the names of files, or from a table.

use crate::audio::files_in;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A clip and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clip {
    /// The file.
    pub path: PathBuf,
    /// Its class.
    pub label: String,
    /// What it shares with others that must be held out together: its speaker.
    pub group: Option<String>,
}

/// How names of files tell class and group: `{label}_{group}_{}` reads class `7` and group `theo` out of `7_theo_3.wav`;
/// `{label}/{group}_nohash_{}` reads the folder and the beginning of the name. A place stands for one character or more,
/// as few as possible, none of them a `/`. The extension is not part of the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    /// From the last part of the path to the first that the pattern names.
    parts: Vec<Vec<Piece>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Label,
    Group,
    Any,
}

impl Default for NamePattern {
    fn default() -> Self {
        "{label}_{group}_{}".parse().expect("the pattern names a label")
    }
}

impl std::fmt::Display for NamePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let part = |part: &str| -> std::result::Result<Vec<Piece>, String> {
            let (mut pieces, mut rest) = (Vec::new(), part);
            while !rest.is_empty() {
                let (literal, after) = rest.split_once('{').unwrap_or((rest, ""));
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(literal.into()));
                }
                if literal.len() == rest.len() {
                    break;
                }
                let Some((name, after)) = after.split_once('}') else {
                    return Err(format!("{text}: a {{ is not closed"));
                };
                pieces.push(match name {
                    "label" => Piece::Label,
                    "group" => Piece::Group,
                    "" => Piece::Any,
                    other => {
                        return Err(format!("{text}: {{{other}}} is none of {{label}}, {{group}} and {{}}"));
                    }
                });
                rest = after;
            }
            Ok(pieces)
        };
        let parts = text.rsplit('/').map(part).collect::<std::result::Result<Vec<_>, _>>()?;
        let count = |piece: Piece| parts.iter().flatten().filter(|&p| *p == piece).count();
        match (count(Piece::Label), count(Piece::Group)) {
            (1, 0 | 1) => Ok(Self { text: text.into(), parts }),
            (0, _) => Err(format!("{text}: there is no {{label}}")),
            _ => Err(format!("{text}: {{label}} or {{group}} stands there twice")),
        }
    }
}

impl NamePattern {
    /// Class and group of a file, if its name fits.
    pub fn read(&self, path: &Path) -> Option<(String, Option<String>)> {
        let path = path.with_extension("");
        let mut names = path.components().rev().map(|c| c.as_os_str().to_string_lossy());
        let (mut label, mut group) = (None, None);
        for pieces in &self.parts {
            let name = names.next()?;
            if !fit(pieces, &name, &mut |piece, value| match piece {
                Piece::Label => label = Some(value.to_string()),
                Piece::Group => group = Some(value.to_string()),
                _ => (),
            }) {
                return None;
            }
        }
        Some((label?, group))
    }
}

/// Fits `pieces` to all of `name` and tells `found` what their places stand for.
fn fit(pieces: &[Piece], name: &str, found: &mut dyn FnMut(&Piece, &str)) -> bool {
    let Some((first, rest)) = pieces.split_first() else { return name.is_empty() };
    if let Piece::Literal(literal) = first {
        return name.strip_prefix(literal.as_str()).is_some_and(|name| fit(rest, name, found));
    }
    let ends = name.char_indices().map(|(i, c)| i + c.len_utf8());
    for end in ends {
        if fit(rest, &name[end..], found) {
            found(first, &name[..end]);
            return true;
        }
    }
    false
}

/// Clips in a settled order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clips {
    /// The clips.
    pub clips: Vec<Clip>,
}

impl Clips {
    /// Of a folder, whose files are named by `pattern`, or of a table (`.csv`, `.tsv`).
    ///
    /// # Errors
    /// As [`Clips::of_folder`] and [`Clips::of_table`].
    pub fn load(path: &Path, pattern: &NamePattern) -> Result<Self> {
        let table =
            path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv") || e.eq_ignore_ascii_case("tsv"));
        if table { Self::of_table(path) } else { Self::of_folder(path, pattern) }
    }

    /// All audio files of a folder and the folders below it.
    ///
    /// # Errors
    /// A file whose name does not fit, or fewer than two classes.
    pub fn of_folder(folder: &Path, pattern: &NamePattern) -> Result<Self> {
        let clip = |path: PathBuf| match pattern.read(&path) {
            Some((label, group)) => Ok(Clip { path, label, group }),
            None => Err(Error::audio(
                &path,
                format!(
                    "the name does not fit {pattern}: give another pattern, or a table of path and label"
                ),
            )),
        };
        let clips = files_in(folder)?.into_iter().map(clip).collect::<Result<_>>()?;
        Self { clips }.checked(folder)
    }

    /// A table with the columns `path` and `label`, and `group` if it likes, in any order. Paths count from the table's
    /// folder. A name that ends in `.tsv` has tabs between its columns, any other commas.
    ///
    /// # Errors
    /// Missing columns, empty cells, files that are not there, fewer than two classes.
    pub fn of_table(path: &Path) -> Result<Self> {
        let tabs = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
        let line = |line: u64, reason: String| Error::Line { path: path.to_owned(), line, reason };
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        let mut reader =
            csv::ReaderBuilder::new().delimiter(if tabs { b'\t' } else { b',' }).from_reader(file);
        let at = |e: &csv::Error| e.position().map_or(1, |p| p.line());
        let header = reader.headers().map_err(|e| line(at(&e), e.to_string()))?.clone();
        let column = |name: &str| header.iter().position(|h| h.trim() == name);
        let need = |name: &str| {
            let have = header.iter().collect::<Vec<_>>().join(", ");
            column(name).ok_or_else(|| line(1, format!("there is no column {name:?} among {have}")))
        };
        let (path_at, label_at, group_at) = (need("path")?, need("label")?, column("group"));
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut clips = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|e| line(at(&e), e.to_string()))?;
            let number = record.position().map_or(0, |p| p.line());
            let cell = |i: usize, name: &str| match record.get(i).map(str::trim) {
                Some(text) if !text.is_empty() => Ok(text.to_string()),
                _ => Err(line(number, format!("{name} is empty"))),
            };
            let clip = folder.join(cell(path_at, "path")?);
            if !clip.is_file() {
                return Err(line(number, format!("{} is not there", clip.display())));
            }
            let group = group_at.map(|i| cell(i, "group")).transpose()?;
            clips.push(Clip { path: clip, label: cell(label_at, "label")?, group });
        }
        Self { clips }.checked(path)
    }

    fn checked(self, path: &Path) -> Result<Self> {
        let labels = self.labels();
        if labels.len() < 2 {
            let reason =
                format!("classes are needed, at least 2: {} clips are of {labels:?}", self.clips.len());
            return Err(Error::audio(path, reason));
        }
        Ok(self)
    }

    /// The classes, sorted.
    pub fn labels(&self) -> Vec<String> {
        self.clips.iter().map(|c| c.label.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The groups, sorted; empty if there are none.
    pub fn groups(&self) -> Vec<String> {
        self.clips.iter().filter_map(|c| c.group.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The clips that `keep` says, and the others.
    pub fn partition(&self, keep: impl Fn(&Clip) -> bool) -> (Self, Self) {
        let (kept, others) = self.clips.iter().cloned().partition(keep);
        (Self { clips: kept }, Self { clips: others })
    }

    /// The clips of some groups, and all others.
    ///
    /// # Errors
    /// A group that no clip belongs to.
    pub fn by_groups(&self, groups: &[String]) -> Result<(Self, Self)> {
        let known = self.groups();
        if let Some(unknown) = groups.iter().find(|g| !known.contains(g)) {
            let expected = match known.is_empty() {
                true => "no group: these clips have none".to_string(),
                false => format!("one of {}", known.join(", ")),
            };
            return Err(Error::Setting { name: "group", got: unknown.clone(), expected });
        }
        Ok(self.partition(|clip| clip.group.as_ref().is_some_and(|g| groups.contains(g))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pattern: &str, path: &str) -> Option<(String, Option<String>)> {
        pattern.parse::<NamePattern>().unwrap().read(Path::new(path))
    }

    #[test]
    fn patterns_read_names() {
        let both = |a: &str, b: &str| Some((a.to_string(), Some(b.to_string())));
        assert_eq!(read("{label}_{group}_{}", "x/7_theo_3.wav"), both("7", "theo"));
        assert_eq!(read("{label}_{group}_{}", "x/7_theo.wav"), None);
        assert_eq!(read("{label}/{group}_nohash_{}", "a/yes/0c_a_nohash_1.wav"), both("yes", "0c_a"));
        assert_eq!(read("{label}/{}", "dog/bark 1.mp3"), Some(("dog".into(), None)));
        assert_eq!(read("{}-{label}", "ä-ö.flac"), Some(("ö".into(), None)));
        assert_eq!(read("{label}/{}", "bark.mp3"), None);
        let error = |text: &str| text.parse::<NamePattern>().unwrap_err();
        assert_eq!(error("{group}"), "{group}: there is no {label}");
        assert_eq!(error("{label"), "{label: a { is not closed");
        assert_eq!(error("{class}"), "{class}: {class} is none of {label}, {group} and {}");
        assert_eq!(error("{label}{label}"), "{label}{label}: {label} or {group} stands there twice");
    }

    #[test]
    fn tables_name_the_line_of_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        for name in ["a/x.wav", "y.wav"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let table = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Clips::of_table(&path)
        };
        let clips = table("a.csv", "label,path,group\n\"cat, big\",a/x.wav,1\ndog,y.wav,2\n").unwrap();
        assert_eq!(
            (clips.labels(), clips.groups()),
            (vec!["cat, big".into(), "dog".into()], vec!["1".into(), "2".into()])
        );
        assert_eq!(clips.clips[0].path, folder.path().join("a/x.wav"));
        assert_eq!(clips.by_groups(&["2".into()]).unwrap().0.clips[0].label, "dog");
        let error = clips.by_groups(&["3".into()]).unwrap_err().to_string();
        assert_eq!(error, "group is 3: expected one of 1, 2");
        assert_eq!(
            table("b.tsv", "path\tlabel\ny.wav\ta\na/x.wav\tb\n").unwrap().groups(),
            Vec::<String>::new()
        );
        let error = |text: &str| {
            let message = table("c.csv", text).unwrap_err().to_string();
            message.rsplit_once('/').unwrap().1.to_string()
        };
        assert_eq!(error("file,label\ny.wav,a\n"), "c.csv:1: there is no column \"path\" among file, label");
        assert_eq!(error("path,label\ny.wav,a\ny.wav,\n"), "c.csv:3: label is empty");
        assert_eq!(error("path,label\nz.wav,a\n"), "z.wav is not there");
        assert!(error("path,label\ny.wav,a,b\n").starts_with("c.csv:2: "));
        assert!(error("path,label\ny.wav,a\n").contains("at least 2: 1 clips are of [\"a\"]"));
    }
}
