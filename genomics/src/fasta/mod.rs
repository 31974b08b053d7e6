//! FASTA files: streamed in chunks of bounded memory, or read at random through a `.fai` index.
//!
//! [`FastaReader`] reads one file or stream, [`FastaFiles`] several in a row, [`IndexedFasta`] any part of a record.
//! Plain, gzip (also of several members) and bgzip are told apart by their first bytes. Lines may be of any length and
//! end in LF, CR LF or CR; blank lines, white space between bases and a byte order mark are skipped. The
//! [tokenizer](crate::tokenizer)'s table says what becomes of each base.

mod files;
mod index;
mod indexed;
mod input;
mod reader;

pub use files::FastaFiles;
pub use index::{FaiIndex, FaiRecord};
pub use indexed::{IndexedFasta, RegionChunks};
pub use input::Compression;
pub(crate) use input::Input;
pub use reader::{Duplicates, FastaOptions, FastaReader, SeqChunk, SeqRecord};
