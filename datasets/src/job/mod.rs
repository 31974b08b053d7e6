//! Restartable batch jobs: rows in, files out, and a rerun that does only what is missing.
//!
//! A [`Job`] is a [`Fingerprint`] (input, model, configuration) and the place where its output goes. Each output is
//! claimed before it is made: a finished one is skipped, one made from something else is refused with a list of what
//! changed, and everything else is written under a temporary name and renamed when it is whole. Beside each output
//! `NAME` stands `NAME.manifest.json` ([`Manifest`]): its presence says that the output is finished.
//!
//! ```
//! use std::sync::Arc;
//! use mamba_datasets::job::{Fingerprint, Job, Part, arrow_array, embedding_schema, embeddings};
//! use arrow_array::{RecordBatch, StringArray};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let out = dir.path().join("phages.parquet");
//! let mut fingerprint = Fingerprint::new();
//! fingerprint.add_hash("model", "9f86d0…").set_config(&serde_json::json!({ "pooling": "mean" }))?;
//! let job = Job::new("mamba-genomics embed", fingerprint);
//!
//! let schema = embedding_schema(["id"], [], "embedding", 2);
//! if let Part::Open(mut part) = job.file(&out, &schema)? {
//!     let ids = StringArray::from(vec!["lambda", "phix174"]);
//!     let vectors = embeddings(vec![0.1, 0.2, 0.3, 0.4], 2)?;
//!     part.write(&RecordBatch::try_new(schema.clone(), vec![Arc::new(ids), vectors]).unwrap())?;
//!     assert_eq!(part.finish()?.rows, 2);
//! }
//! assert!(matches!(job.file(&out, &schema)?, Part::Finished(_)));
//! # Ok::<(), mamba_datasets::Error>(())
//! ```
//!
//! **Parts and shards.** A directory output is a row of parts, `part-00000.parquet`, `part-00001.parquet` …; what goes
//! into a part is the caller's choice and must not depend on how many machines run. A [`Shard`] `I/N` makes every part
//! whose number leaves `I` when divided by `N`, so any scheduler can fan a job out and the bytes stay the same.
//!
//! **What a crash leaves.** Killed at any instant, a job leaves each output whole or absent, and temporary files that
//! the next run removes. An unfinished part starts again from its beginning.

mod fingerprint;
mod manifest;
mod part;
mod shard;
pub mod sink;

use std::path::{Path, PathBuf};

use arrow_schema::SchemaRef;

pub use crate::hash::{sha256, sha256_file};
pub use arrow_array;
pub use arrow_schema;
pub use fingerprint::{Fingerprint, InputFile};
pub use manifest::{FileEntry, Manifest};
pub use part::{Claim, Claimed, Part, PartWriter};
pub use shard::Shard;
pub use sink::{Format, Sink, embedding_schema, embeddings};

use crate::{Error, Result};

/// A batch job: what it is made from, and whether it may replace what stands in its way.
#[derive(Debug, Clone)]
pub struct Job {
    program: String,
    fingerprint: Fingerprint,
    overwrite: bool,
}

impl Job {
    /// A job of this program (a name for the manifest), made from what the fingerprint says.
    pub fn new(program: impl Into<String>, fingerprint: Fingerprint) -> Self {
        Self { program: program.into(), fingerprint, overwrite: false }
    }

    /// Whether output that was made from something else is replaced; without it, that is an error.
    pub fn overwrite(mut self, yes: bool) -> Self {
        self.overwrite = yes;
        self
    }

    /// One output file of rows, in the format that its name ends in.
    pub fn file(&self, path: &Path, schema: &SchemaRef) -> Result<Part> {
        let format = Format::from_path(path)?;
        self.part_at(path, None, format, schema)
    }

    /// A directory of parts. Checks every part there before any work is done, so that parts of two jobs never
    /// mix; with [`overwrite`](Job::overwrite), removes this shard's parts of another job.
    pub fn directory(&self, dir: &Path, format: Format, shard: Shard) -> Result<Directory> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        for (part, path) in manifest::parts_in(dir)? {
            let Some(manifest) = Manifest::read_any(&path)? else { continue };
            let changes = self.fingerprint.changes_since(&manifest.fingerprint);
            if changes.is_empty() {
                continue;
            }
            if !self.overwrite {
                return Err(Error::Changed { path, changes });
            }
            if shard.owns(part) {
                manifest.remove_with_files(&path)?;
            }
        }
        Ok(Directory { job: self.clone(), dir: dir.to_owned(), format, shard })
    }

    /// The lowest layer: claims the file `path` and the files beside it that belong to it, for output that no [`Sink`]
    /// writes. The caller makes [`AtomicFile`](crate::AtomicFile)s and gives them to [`Claim::commit`].
    pub fn claim(&self, path: &Path, beside: &[PathBuf], part: Option<usize>) -> Result<Claimed> {
        part::claim(self, path, beside, part)
    }

    fn part_at(&self, path: &Path, part: Option<usize>, format: Format, schema: &SchemaRef) -> Result<Part> {
        match self.claim(path, &format.files_beside(path)?, part)? {
            Claimed::Finished(manifest) => Ok(Part::Finished(manifest)),
            Claimed::Open(claim) => Ok(Part::Open(PartWriter::new(claim, format, schema)?)),
        }
    }
}

/// A directory of parts, of which one shard makes its own.
#[derive(Debug)]
pub struct Directory {
    job: Job,
    dir: PathBuf,
    format: Format,
    shard: Shard,
}

impl Directory {
    /// Whether this shard makes the part.
    pub fn owns(&self, part: usize) -> bool {
        self.shard.owns(part)
    }

    /// Where the part's rows go: `part-00000.parquet` …
    pub fn path(&self, part: usize) -> PathBuf {
        self.dir.join(format!("part-{part:05}.{}", self.format.extension()))
    }

    /// Opens a part of this shard, or says that it is finished.
    pub fn part(&self, part: usize, schema: &SchemaRef) -> Result<Part> {
        if !self.owns(part) {
            return Err(Error::OtherShard { part, shard: self.shard.to_string() });
        }
        self.job.part_at(&self.path(part), Some(part), self.format, schema)
    }
}
