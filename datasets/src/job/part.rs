//! One output of a job: claimed, written, committed.

use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use super::fingerprint::file_name;
use super::manifest::{FileEntry, Found, Manifest};
use super::sink::{Format, Sink};
use super::{Fingerprint, Job};
use crate::atomic::remove_leftovers;
use crate::hash::sha256_file;
use crate::{AtomicFile, Error, Result};

/// What became of a claim.
#[derive(Debug)]
pub enum Claimed {
    /// The output stands and was made from the same things: nothing to do.
    Finished(Manifest),
    /// The output is to be made.
    Open(Claim),
}

/// What became of opening an output for rows.
#[derive(Debug)]
pub enum Part {
    /// The output stands and was made from the same things: nothing to do.
    Finished(Manifest),
    /// The output is to be made.
    Open(PartWriter),
}

/// The right to make one output. Dropped without a [`commit`](Claim::commit), it changes nothing.
#[derive(Debug)]
pub struct Claim {
    output: PathBuf,
    manifest: Manifest,
}

/// What stands at an output's place.
enum Standing {
    Nothing,
    /// Files that no manifest of ours accounts for.
    Foreign(PathBuf),
    /// A finished output.
    Whole(Manifest),
    /// Ours, but its files are gone or a commit was cut short.
    Broken(Fingerprint),
    /// Ours, and changed by someone since.
    Altered,
}

pub(super) fn claim(job: &Job, output: &Path, beside: &[PathBuf], part: Option<usize>) -> Result<Claimed> {
    remove_leftovers(output)?;
    beside.iter().try_for_each(|path| remove_leftovers(path).map(drop))?;
    remove_leftovers(Manifest::pending_path_for(output)?)?;
    let standing = look(output, beside)?;
    let changed = |earlier: &Fingerprint| job.fingerprint.changes_since(earlier);
    match standing {
        Standing::Whole(manifest) if changed(&manifest.fingerprint).is_empty() => {
            return Ok(Claimed::Finished(manifest));
        }
        _ if job.overwrite => {}
        Standing::Nothing => {}
        Standing::Foreign(path) => return Err(Error::Exists { path }),
        Standing::Altered => return Err(Error::Altered { path: output.to_owned() }),
        Standing::Whole(Manifest { fingerprint: earlier, .. }) | Standing::Broken(earlier) => {
            let changes = changed(&earlier);
            if !changes.is_empty() {
                return Err(Error::Changed { path: output.to_owned(), changes });
            }
        }
    }
    let manifest = Manifest::new(&job.program, part, &job.fingerprint);
    Ok(Claimed::Open(Claim { output: output.to_owned(), manifest }))
}

fn look(output: &Path, beside: &[PathBuf]) -> Result<Standing> {
    let finished = Manifest::read_beside(output)?;
    if let Some(pending) = Manifest::read_pending(output)? {
        // A commit was cut short. Either all its files have their names, and it only lacks the last step …
        if pending.check_files(output)? == Found::Whole {
            Manifest::promote_pending(output)?;
            return Ok(Standing::Whole(pending));
        }
        // … or the output before it still stands, or neither is whole.
        if let Some(finished) = finished
            && finished.check_files(output)? == Found::Whole
        {
            Manifest::discard_pending(output)?;
            return Ok(Standing::Whole(finished));
        }
        return Ok(Standing::Broken(pending.fingerprint));
    }
    if let Some(finished) = finished {
        return Ok(match finished.check_files(output)? {
            Found::Whole => Standing::Whole(finished),
            Found::Missing => Standing::Broken(finished.fingerprint),
            Found::Altered => Standing::Altered,
        });
    }
    let foreign = std::iter::once(output).chain(beside.iter().map(PathBuf::as_path)).find(|p| p.exists());
    Ok(foreign.map_or(Standing::Nothing, |path| Standing::Foreign(path.to_owned())))
}

impl Claim {
    /// Notes a count for the manifest, such as rows skipped.
    pub fn count(&mut self, name: impl Into<String>, n: u64) {
        *self.manifest.counts.entry(name.into()).or_default() += n;
    }

    /// The output's path.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Gives the finished files their names and writes the manifest.
    ///
    /// The order makes every instant safe: all content is on the disk and hashed, a pending manifest says what is
    /// about to stand, the files are renamed, the pending manifest becomes the manifest. A rerun after a crash in
    /// between finds by the hashes which of the two states, before or after, is whole.
    pub fn commit(mut self, mut files: Vec<AtomicFile>, rows: u64) -> Result<Manifest> {
        for file in &mut files {
            file.sync()?;
            let (bytes, sha256) = sha256_file(file.temporary())?;
            self.manifest.files.push(FileEntry { name: file_name(file.target()), bytes, sha256 });
        }
        self.manifest.rows = rows;
        self.manifest.write_pending(&self.output)?;
        files.into_iter().try_for_each(AtomicFile::commit)?;
        Manifest::promote_pending(&self.output)?;
        Ok(self.manifest)
    }
}

/// Writes the rows of one output. Dropped without [`finish`](PartWriter::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct PartWriter {
    claim: Claim,
    schema: SchemaRef,
    sink: Box<dyn Sink>,
    rows: u64,
}

impl PartWriter {
    pub(super) fn new(claim: Claim, format: Format, schema: &SchemaRef) -> Result<Self> {
        let sink = format.sink(&claim.output, schema)?;
        Ok(Self { claim, schema: schema.clone(), sink, rows: 0 })
    }

    /// Adds rows; how they are cut into batches does not change the output's bytes.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        if rows.schema_ref().fields() != self.schema.fields() {
            let names = |schema: &SchemaRef| {
                let fields = schema.fields().iter();
                fields.map(|f| format!("{} {}", f.name(), f.data_type())).collect::<Vec<_>>().join(", ")
            };
            let reason = format!("rows have ({}), not ({})", names(rows.schema_ref()), names(&self.schema));
            return Err(Error::Rows { path: self.claim.output.clone(), reason });
        }
        self.sink.write(rows)?;
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    /// Notes a count for the manifest, such as rows skipped.
    pub fn count(&mut self, name: impl Into<String>, n: u64) {
        self.claim.count(name, n);
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The output's path.
    pub fn output(&self) -> &Path {
        self.claim.output()
    }

    /// Finishes the output: it gets its name and its manifest.
    pub fn finish(self) -> Result<Manifest> {
        let files = self.sink.finish()?;
        self.claim.commit(files, self.rows)
    }
}
