//! How a file is known again.

use std::fmt;
use std::str::FromStr;

use super::movielens;
use crate::Error;
use crate::hash::sha256;

/// What of a file its checksum covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestKind {
    /// All bytes.
    Sha256,
    /// Text, whether its lines end with LF or CR LF.
    Text,
    /// The bases of a FASTA file in upper case, whatever its headers and line lengths.
    Bases,
    /// Lines of a user and her items: the items of each user, in any order.
    Histories,
}

const NAMES: [(DigestKind, &str); 4] = [
    (DigestKind::Sha256, "sha256"),
    (DigestKind::Text, "text"),
    (DigestKind::Bases, "bases"),
    (DigestKind::Histories, "histories"),
];

/// A checksum: SHA-256 of all or of the essential part of a file. As text, `KIND:HEXADECIMAL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// What it covers.
    pub kind: DigestKind,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Digest {
    /// The checksum of a file's content; `None` if the content is not of the form that the kind needs.
    pub fn of(kind: DigestKind, content: &[u8]) -> Option<Self> {
        let sha256 = match kind {
            DigestKind::Sha256 => sha256(content),
            DigestKind::Text => sha256(&content.iter().copied().filter(|&b| b != b'\r').collect::<Vec<_>>()),
            DigestKind::Bases => sha256(&bases(content)?),
            DigestKind::Histories => sha256(movielens::canonical(content)?.as_bytes()),
        };
        Some(Self { kind, sha256 })
    }

    /// Whether it is the checksum of this content.
    pub fn matches(&self, content: &[u8]) -> bool {
        Self::of(self.kind, content).as_ref() == Some(self)
    }

    /// An error that names `what` unless it is the checksum of this content.
    pub fn check(&self, what: &str, content: &[u8]) -> Result<(), Error> {
        let found = Self::of(self.kind, content);
        if found.as_ref() == Some(self) {
            return Ok(());
        }
        let kind = match self.kind {
            DigestKind::Sha256 => "SHA-256",
            DigestKind::Text => "SHA-256 of the text",
            DigestKind::Bases => "SHA-256 of the bases",
            DigestKind::Histories => "SHA-256 of the histories",
        };
        let found = found.map_or("none: it is of another form".to_owned(), |found| found.sha256);
        Err(Error::Checksum { what: what.to_owned(), kind, found, expected: self.sha256.clone() })
    }

    /// Whether files with this checksum are equal byte for byte.
    pub(super) fn covers_all(&self) -> bool {
        self.kind == DigestKind::Sha256
    }
}

/// Every base of a FASTA file, in upper case.
fn bases(fasta: &[u8]) -> Option<Vec<u8>> {
    let lines = fasta.split(|&b| b == b'\n');
    let bases = lines.filter(|line| !line.starts_with(b">")).flatten();
    fasta
        .starts_with(b">")
        .then(|| bases.filter(|b| !b.is_ascii_whitespace()).map(u8::to_ascii_uppercase).collect())
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, name)| name);
        write!(f, "{name}:{}", self.sha256)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, hex) = text.split_once(':').unwrap_or((text, ""));
        let kind = NAMES.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind);
        let is_sha256 = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match kind {
            Some(kind) if is_sha256 => Ok(Self { kind, sha256: hex.to_owned() }),
            _ => Err(format!(
                "digest {text:?} is not sha256, text, bases or histories and 64 hexadecimal digits"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(kind: DigestKind, a: &str, b: &str) -> bool {
        Digest::of(kind, a.as_bytes()).unwrap().matches(b.as_bytes())
    }

    #[test]
    fn each_kind_covers_what_it_says() {
        assert!(!same(DigestKind::Sha256, "a\nb\n", "a\r\nb\r\n"));
        assert!(same(DigestKind::Text, "a\nb\n", "a\r\nb\r\n"));
        assert!(!same(DigestKind::Text, "a\nb\n", "a\nc\n"));
        assert!(same(DigestKind::Bases, ">x\nACGT\nAC\n", ">other name\r\nac\r\ngtac"));
        assert!(!same(DigestKind::Bases, ">x\nACGT\n", ">x\nACGA\n"));
        assert!(same(DigestKind::Histories, "2 7\n1 5 3 9\n", "1 9 5 3\n2 7"));
        assert!(!same(DigestKind::Histories, "1 5 3\n2 7\n", "1 5\n2 7 3\n"));
    }

    #[test]
    fn content_of_another_form_has_no_digest() {
        assert_eq!(Digest::of(DigestKind::Bases, b"ACGT"), None);
        assert_eq!(Digest::of(DigestKind::Histories, b"1 a"), None);
        assert!(!Digest { kind: DigestKind::Bases, sha256: sha256(b"") }.matches(b""));
    }

    #[test]
    fn it_reads_what_it_writes() {
        let digest = Digest::of(DigestKind::Bases, b">a\nA").unwrap();
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("sha256:ABC".parse::<Digest>().is_err());
    }
}
