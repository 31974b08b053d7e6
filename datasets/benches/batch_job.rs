//! What a batch job does around its model, on named shapes: batches of like length from a stream of as many histories as
//! MovieLens-1M has, and the embeddings of a genome of 40 Mb (windows of 4,096 bases, 256 channels) written as Parquet.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mamba_datasets::job::{Fingerprint, Job, Part, arrow_array, embedding_schema, embeddings};
use mamba_datasets::{Error, Layout, Limits, stream};

/// Users, and the fewest and most ratings that they have.
const USERS: usize = 6040;
const RATINGS: (usize, usize) = (20, 2314);

fn batches(c: &mut Criterion) {
    // A high power of a uniform share: 163 ratings on average, as in the data.
    let share = |user: usize| ((user * 7919 % USERS) as f64 / USERS as f64).powi(15);
    let length = |user: usize| RATINGS.0 + (share(user) * (RATINGS.1 - RATINGS.0) as f64) as usize;
    let histories: Vec<Vec<u32>> = (0..USERS).map(|user| vec![1; length(user)]).collect();
    let mut group = c.benchmark_group("batches");
    for (name, layout) in [("packed", Layout::Packed), ("padded", Layout::Padded)] {
        let limits = Limits { max_tokens: 8192, max_items: 256, layout };
        group.throughput(Throughput::Elements(histories.iter().map(|history| history.len() as u64).sum()));
        group.bench_function(format!("{name}/ml1m"), |b| {
            b.iter(|| {
                let histories = histories.iter().map(Ok::<_, Error>);
                stream(histories, limits, 16, |history| history.len())
                    .expect("the limits are possible")
                    .count()
            });
        });
    }
    group.finish();
}

fn parquet(c: &mut Criterion) {
    const ROWS: usize = 10_000;
    const DIM: usize = 256;
    let schema = embedding_schema(["id"], ["start"], "embedding", DIM);
    let values = (0..ROWS * DIM).map(|i| (i * 7919 % 10_007) as f32 / 10_007.0 - 0.5).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["chr21"; ROWS])),
        Arc::new(UInt64Array::from_iter_values((0..ROWS as u64).map(|row| row * 4096))),
        embeddings(values, DIM).expect("rows of one width"),
    ];
    let rows = RecordBatch::try_new(schema.clone(), columns).expect("columns of the schema");
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let path = folder.path().join("embeddings.parquet");
    let job = || Job::new("bench", Fingerprint::new());
    let mut group = c.benchmark_group("job");
    group.sample_size(10).throughput(Throughput::Bytes((ROWS * DIM * 4) as u64));
    group.bench_function("parquet/embeddings_10k_256", |b| {
        b.iter(|| {
            for file in std::fs::read_dir(folder.path()).expect("the folder is there") {
                std::fs::remove_file(file.expect("an entry").path()).expect("it is ours");
            }
            let Part::Open(mut part) = job().file(&path, &schema)? else { panic!("it was removed") };
            part.write(&rows)?;
            part.finish()
        });
    });
    group.finish();
}

criterion_group!(benches, batches, parquet);
criterion_main!(benches);
