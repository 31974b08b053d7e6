//! The one error type of this crate's data side.

use std::io;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with sequence files, regions and settings. Every message about a file names it, and the line
/// (1-based) where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Reading failed after the file was opened.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The gzip stream ends in the middle of a member.
    #[error("{path}: gzip file is truncated")]
    TruncatedGzip {
        /// The file.
        path: String,
    },
    /// The bgzip file does not end with the empty block that marks its end.
    #[error("{path}: bgzip file is truncated (its end-of-file block is missing)")]
    TruncatedBgzf {
        /// The file.
        path: String,
    },
    /// The gzip stream cannot be decompressed, or its checksum is wrong.
    #[error("{path}: gzip file is corrupt")]
    CorruptGzip {
        /// The file.
        path: String,
        /// What the decompressor found.
        source: io::Error,
    },
    /// The file is compressed in a way that is not read.
    #[error("{path}: {format} files are not read")]
    UnsupportedCompression {
        /// The file.
        path: String,
        /// The format that the first bytes show.
        format: &'static str,
    },
    /// The file holds nothing, or white space only.
    #[error("{path}: file is empty")]
    EmptyFile {
        /// The file.
        path: String,
    },
    /// The first character is not `>`.
    #[error("{path}:{line}: not a FASTA file: expected '>', found {found}")]
    NotFasta {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// The character, quoted, or the byte in hexadecimal.
        found: String,
    },
    /// A header has no name directly after `>`.
    #[error("{path}:{line}: header has no name after '>'")]
    EmptyName {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
    },
    /// A header line is longer than any real one.
    #[error("{path}:{line}: header is longer than {limit} bytes")]
    HeaderTooLong {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// A record's name is not UTF-8.
    #[error("{path}:{line}: record name is not UTF-8")]
    NameNotUtf8 {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
    },
    /// A header is not followed by any base.
    #[error("{path}:{line}: record {record:?} has no sequence")]
    EmptyRecord {
        /// The file.
        path: String,
        /// Line of the header, 1-based.
        line: u64,
        /// The record's name.
        record: String,
    },
    /// Two records have the same name.
    #[error("{path}:{line}: record name {record:?} was used before at {first}")]
    DuplicateName {
        /// The file.
        path: String,
        /// Line of the second header, 1-based.
        line: u64,
        /// The name.
        record: String,
        /// `file:line` of the first record with that name.
        first: String,
    },
    /// The same, found in an index, where lines are not known.
    #[error("{path}: record name {record:?} was used before in {first}")]
    DuplicateRecord {
        /// The file.
        path: String,
        /// The name.
        record: String,
        /// The file that has the first record of that name.
        first: String,
    },
    /// A sequence line has a character that is neither a base, an IUPAC code nor a gap.
    #[error("{path}:{line}: record {record:?}: invalid character {character} at column {column}")]
    InvalidCharacter {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// Byte in the line, 1-based.
        column: u64,
        /// The record's name.
        record: String,
        /// The character, quoted, or the byte in hexadecimal.
        character: String,
    },
    /// The same, found by random access, where the line is not known.
    #[error("{path}: record {record:?}: invalid character {character} at base {position1}")]
    InvalidBase {
        /// The file, or `sequence` for one in memory.
        path: String,
        /// The record's name.
        record: String,
        /// Base, 1-based.
        position1: u64,
        /// The character, quoted, or the byte in hexadecimal.
        character: String,
    },
    /// A line of a `.fai` file cannot be understood.
    #[error("{path}:{line}: {reason}")]
    Index {
        /// The index file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A `.fai` index does not describe the FASTA file beside it.
    #[error("{path}: index does not match the file at record {record:?}: {reason}")]
    IndexMismatch {
        /// The FASTA file.
        path: String,
        /// The record's name.
        record: String,
        /// What was found instead.
        reason: String,
    },
    /// Sequence lines of one record differ in length, so that no `.fai` index can describe it.
    #[error("{path}:{line}: record {record:?} cannot be indexed: {reason}")]
    NotIndexable {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// The record's name.
        record: String,
        /// Which rule of the index the line breaks.
        reason: String,
    },
    /// Regions were asked of a stream, which can be read only once.
    #[error("regions cannot be taken from {path}: it can be read only once")]
    NotSeekable {
        /// The stream.
        path: String,
    },
    /// A region cannot be understood or lies outside its record.
    #[error("{origin}: {reason}")]
    Region {
        /// `file:line` of a BED file, or the text of an inline region.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A line of a VCF file cannot be understood, or does not fit the reference.
    #[error("{path}:{line}: {reason}")]
    Vcf {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A chromosome of a VCF file is not in the reference.
    #[error("{path}:{line}: {reason}")]
    UnknownChromosome {
        /// The VCF file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// Which, and what the reference has.
        reason: String,
        /// What the reference seems to call the chromosome.
        alike: Option<String>,
    },
    /// REF of a VCF file is not what the reference has.
    #[error("{path}:{line}: {reason}")]
    ReferenceMismatch {
        /// The VCF file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// Both, and where.
        reason: String,
    },
    /// A line of a protein file cannot be understood.
    #[error("{path}:{line}: {reason}")]
    Protein {
        /// The file.
        path: String,
        /// Line, 1-based.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A setting is out of range.
    #[error("{name} is {got}: expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// The value given.
        got: String,
        /// What would be accepted.
        expected: String,
    },
    /// No training interval is as long as one window.
    #[error("no training interval holds a window of {length} bases (the longest has {longest})")]
    NoTrainingWindow {
        /// Bases in a window.
        length: usize,
        /// Bases in the longest interval.
        longest: usize,
    },
    /// A count model needs at least one scored base.
    #[error("no A, C, G or T among the {count} {role} positions")]
    NoPositions {
        /// `validation` or `test`.
        role: &'static str,
        /// Positions given.
        count: usize,
    },
    /// A table of labelled sequences, or a row of it, cannot be understood.
    #[error("{place}: {reason}")]
    Table {
        /// The file, with the line or row (1-based) where there is one.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The genome cannot be split as asked.
    #[error(transparent)]
    Split(#[from] mamba_datasets::Error),
}

impl Error {
    /// What the user could do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TruncatedGzip { .. } | Self::TruncatedBgzf { .. } | Self::CorruptGzip { .. } => {
                Some("copy or download the file again, then check it with `gzip -t`".into())
            }
            Self::UnsupportedCompression { path, .. } => {
                Some(format!("decompress {path} first, or compress it with gzip or bgzip"))
            }
            Self::NotFasta { found, .. } if found == "'@'" => {
                Some("this looks like FASTQ or SAM: convert it, for example with `seqkit fq2fa`".into())
            }
            Self::NotFasta { found, .. } if found == "'L'" => {
                Some("this looks like GenBank: convert it to FASTA first".into())
            }
            Self::InvalidCharacter { character, .. } | Self::InvalidBase { character, .. }
                if matches!(
                    character.to_ascii_uppercase().as_str(),
                    "'E'" | "'F'" | "'I'" | "'J'" | "'L'" | "'O'" | "'P'" | "'Q'" | "'Z'" | "'*'"
                ) =>
            {
                Some("this looks like a protein sequence; a DNA or RNA sequence is expected".into())
            }
            Self::EmptyName { .. } => Some("the name must follow '>' with no space between".into()),
            Self::NotIndexable { .. } => {
                Some("give every line the same length with `seqkit seq -w 60`".into())
            }
            Self::IndexMismatch { path, .. } => {
                Some(format!("the index is older than the file: remove {path}.fai, or make it again"))
            }
            Self::UnknownChromosome { alike: Some(alike), .. } => Some(format!(
                "the reference calls it {alike:?}: --match-chr takes names that differ by \"chr\" for the same"
            )),
            Self::UnknownChromosome { .. } => {
                Some("give the reference that the variants were called against, or pass them over with --skip-unknown".into())
            }
            Self::ReferenceMismatch { .. } => Some(
                "the variants were called against another assembly, or the file was edited; --skip-mismatches passes such lines over"
                    .into(),
            ),
            Self::NotSeekable { .. } => Some("save the sequences to a file first".into()),
            _ => None,
        }
    }
}

/// `'x'` for a printable ASCII character, `byte 0x1b` for another.
pub(crate) fn quote_byte(byte: u8) -> String {
    match byte {
        b'\'' => "\"'\"".into(),
        b' '..=b'~' => format!("'{}'", char::from(byte)),
        _ => format!("byte {byte:#04x}"),
    }
}
