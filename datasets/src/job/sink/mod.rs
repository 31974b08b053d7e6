//! Writers of rows: Parquet, NumPy with an id table, CSV and TSV.
//!
//! Each is a [`Sink`] over [`AtomicFile`]s: rows go out as they come, memory stays bounded, and the same rows give the
//! same bytes however they were cut into batches.

mod delimited;
mod npy;
mod parquet;
mod text;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

pub use self::delimited::DelimitedSink;
pub use self::npy::NpySink;
pub use self::parquet::ParquetSink;
use crate::atomic::sibling;
use crate::{AtomicFile, Error, Result};

/// Something that rows can be written to.
pub trait Sink: Debug + Send {
    /// Adds rows, all of one schema.
    fn write(&mut self, rows: &RecordBatch) -> Result<()>;

    /// Writes what is still held back and returns the files, complete but not yet committed. The first is the output,
    /// others belong beside it.
    fn finish(self: Box<Self>) -> Result<Vec<AtomicFile>>;
}

/// An output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Parquet with Snappy compression; any Arrow schema.
    Parquet,
    /// A NumPy matrix of the one embedding column, and the other columns in a table beside it: for `x.npy` that is
    /// `x.ids.tsv`.
    Npy,
    /// Comma-separated text with a header; an embedding column `e` becomes `e_0`, `e_1` …
    Csv,
    /// The same, separated by tabs.
    Tsv,
}

impl Format {
    const ALL: [Format; 4] = [Format::Parquet, Format::Npy, Format::Csv, Format::Tsv];

    /// The format that a file name's ending stands for.
    pub fn from_path(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let known = Self::ALL.into_iter().find(|f| f.extension().eq_ignore_ascii_case(ending));
        known.ok_or_else(|| Error::Format { path: path.to_owned() })
    }

    /// The usual ending, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Npy => "npy",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
        }
    }

    /// The files that belong to the output `path` beside it.
    pub fn files_beside(self, path: &Path) -> Result<Vec<PathBuf>> {
        match self {
            Format::Npy => Ok(vec![sibling(&path.with_extension(""), ".ids.tsv")?]),
            _ => Ok(Vec::new()),
        }
    }

    /// A sink of this format that will become the file `path`.
    pub fn sink(self, path: &Path, schema: &SchemaRef) -> Result<Box<dyn Sink>> {
        let output = AtomicFile::create(path)?;
        Ok(match self {
            Format::Parquet => Box::new(ParquetSink::new(output, schema)?),
            Format::Csv => Box::new(DelimitedSink::csv(output, schema)?),
            Format::Tsv => Box::new(DelimitedSink::tsv(output, schema)?),
            Format::Npy => {
                let ids = self.files_beside(path)?.remove(0);
                Box::new(NpySink::new(output, AtomicFile::create(ids)?, schema)?)
            }
        })
    }
}

/// The schema of a table of embeddings: columns of text, columns of whole numbers, then the vectors (`dim` values of
/// `f32`). No column has nulls.
pub fn embedding_schema<'a>(
    text: impl IntoIterator<Item = &'a str>,
    numbers: impl IntoIterator<Item = &'a str>,
    embedding: &str,
    dim: usize,
) -> SchemaRef {
    let text = text.into_iter().map(|name| Field::new(name, DataType::Utf8, false));
    let numbers = numbers.into_iter().map(|name| Field::new(name, DataType::UInt64, false));
    let vectors = DataType::FixedSizeList(value_field(), dim as i32);
    let fields: Vec<_> = text.chain(numbers).chain([Field::new(embedding, vectors, false)]).collect();
    Arc::new(Schema::new(fields))
}

/// A column of vectors for [`embedding_schema`], from `rows × dim` values in row order.
pub fn embeddings(values: Vec<f32>, dim: usize) -> Result<ArrayRef> {
    let values = Arc::new(Float32Array::from(values));
    let column = FixedSizeListArray::try_new(value_field(), dim as i32, values, None);
    Ok(Arc::new(column.map_err(|source| Error::Arrow { source })?))
}

fn value_field() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, false))
}

/// The number of values in each vector, if the type is a vector of `f32`.
fn vector_dim(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::FixedSizeList(item, dim) if *item.data_type() == DataType::Float32 => {
            usize::try_from(*dim).ok()
        }
        _ => None,
    }
}

/// An error about the rows or the schema of an output.
fn rows_error(output: &AtomicFile, reason: impl Into<String>) -> Error {
    Error::Rows { path: output.target().to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{BooleanArray, Int32Array, StringArray};

    const DIM: usize = 3;

    fn schema() -> SchemaRef {
        embedding_schema(["id"], ["start"], "embedding", DIM)
    }

    fn rows(n: usize) -> RecordBatch {
        let ids: StringArray = (0..n).map(|i| Some(format!("seq{i}"))).collect();
        let starts: arrow_array::UInt64Array = (0..n as u64).map(Some).collect();
        let vectors = embeddings((0..n * DIM).map(|i| i as f32 * 0.5).collect(), DIM).unwrap();
        RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(starts), vectors]).unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_sink_reports_a_full_disk() {
        use crate::atomic::tests::on_full_device;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let full = || on_full_device(&path);
        let spare = || AtomicFile::create(dir.path().join("spare")).unwrap();
        type Make<'a> = Box<dyn Fn() -> Result<Box<dyn Sink>> + 'a>;
        let makers: [(&str, Make); 4] = [
            ("parquet", Box::new(|| Ok(Box::new(ParquetSink::new(full(), &schema())?)))),
            ("csv", Box::new(|| Ok(Box::new(DelimitedSink::csv(full(), &schema())?)))),
            ("npy", Box::new(|| Ok(Box::new(NpySink::new(full(), spare(), &schema())?)))),
            ("ids", Box::new(|| Ok(Box::new(NpySink::new(spare(), full(), &schema())?)))),
        ];
        for (name, make) in makers {
            let outcome = make().and_then(|mut sink| {
                sink.write(&rows(100_000))?;
                sink.finish()?.iter_mut().try_for_each(AtomicFile::sync)
            });
            assert!(matches!(outcome, Err(Error::NoSpace { .. })), "{name}: {outcome:?}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
        }
    }

    #[test]
    fn formats_go_by_the_ending() {
        for (name, format) in
            [("a.parquet", Format::Parquet), ("a.b.NPY", Format::Npy), ("x/a.tsv", Format::Tsv)]
        {
            assert_eq!(Format::from_path(Path::new(name)).unwrap(), format);
        }
        for name in ["a", "a.txt", "parquet", ".npy"] {
            assert!(Format::from_path(Path::new(name)).is_err(), "{name}");
        }
        let beside = Format::Npy.files_beside(Path::new("d/a.b.npy")).unwrap();
        assert_eq!(beside, [Path::new("d/a.b.ids.tsv")]);
    }

    #[test]
    fn text_tables_escape_what_would_break_them() {
        let dir = tempfile::tempdir().unwrap();
        let column = |name: &str, data_type| Field::new(name, data_type, true);
        let schema = Arc::new(Schema::new(vec![
            column("id,x", DataType::Utf8),
            column("n", DataType::Int32),
            column("ok", DataType::Boolean),
            column("v", DataType::FixedSizeList(Arc::new(column("item", DataType::Float32)), 2)),
        ]));
        let vectors = FixedSizeListArray::from_iter_primitive::<arrow_array::types::Float32Type, _, _>(
            [Some([Some(0.1), Some(1e-30)]), Some([None, Some(f32::NAN)]), None],
            2,
        );
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(StringArray::from(vec![Some("a\t\"b\""), Some("c\\\nd,"), None])),
                Arc::new(Int32Array::from(vec![Some(-1), None, Some(3)])),
                Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
                Arc::new(vectors),
            ],
        )
        .unwrap();
        let mut texts = Vec::new();
        for format in [Format::Csv, Format::Tsv] {
            let mut sink = format.sink(&dir.path().join("t"), &schema).unwrap();
            sink.write(&batch).unwrap();
            sink.finish().unwrap().into_iter().for_each(|f| f.commit().unwrap());
            texts.push(std::fs::read_to_string(dir.path().join("t")).unwrap());
        }
        assert_eq!(
            texts[0],
            "\"id,x\",n,ok,v_0,v_1\n\"a\t\"\"b\"\"\",-1,true,0.1,1e-30\n\"c\\\nd,\",,,,NaN\n,3,false,,\n"
        );
        assert_eq!(
            texts[1],
            "id,x\tn\tok\tv_0\tv_1\na\\t\"b\"\t-1\ttrue\t0.1\t1e-30\nc\\\\\\nd,\t\t\t\tNaN\n\t3\tfalse\t\t\n"
        );
    }

    #[test]
    fn schemas_that_do_not_fit_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let binary = Arc::new(Schema::new(vec![Field::new("b", DataType::Binary, false)]));
        let two = embedding_schema(["id"], [], "a", 2);
        let two = Arc::new(Schema::new([two.fields().to_vec(), vec![two.fields()[1].clone()]].concat()));
        let alone = embedding_schema([], [], "a", 2);
        for (format, schema, reason) in [
            (Format::Csv, &binary, "a text table cannot hold column \"b\" (Binary)"),
            (Format::Npy, &binary, "a .npy file needs one column of vectors, found 0"),
            (Format::Npy, &two, "a .npy file needs one column of vectors, found 2"),
            (Format::Npy, &alone, "a .npy file needs a column of ids beside the vectors"),
        ] {
            let message = format.sink(&dir.path().join("x.npy"), schema).unwrap_err().to_string();
            assert!(message.ends_with(reason), "{message}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
