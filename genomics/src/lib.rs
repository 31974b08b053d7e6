//! DNA language models: the data side of training and embedding with Caduceus.
//!
//! Sequences come from FASTA files (plain, gzip or bgzip, or standard input) and are turned into
//! token ids while they are read, in chunks of bounded memory:
//!
//! - [`tokenizer`]: the Caduceus vocabulary, what becomes of every byte of a sequence line, reverse complement;
//! - [`fasta`]: streaming reader, `.fai` index, random access;
//! - [`regions`]: BED files and `chr:start-end` lists;
//! - [`windows`]: overlapping windows over long records, whose core parts cover every base exactly once;
//! - [`genome`], [`sampler`], [`mask`]: a genome in memory, training windows, masked-language-model corruption;
//! - [`model`], [`config`]: Caduceus;
//! - [`long`]: records without windows, in chunks;
//! - [`variants`]: VCF files and what the model says about them;
//! - [`protein`]: amino acids, and the models that read them;
//! - [`task`]: masked-language-model pre-training and its evaluation;
//! - [`labelled`]: labelled sequences from tables and FASTA files, and their splits;
//! - [`finetune`]: classification and regression of sequences, prediction;
//! - [`metrics`]: of classification and regression, with bootstrap intervals;
//! - [`count_model`]: the context count models that a trained model's cross-entropy is compared with.
//!
//! Everything random is a pure function of `(seed, step, row)`, so that a run can be resumed or sharded without
//! saving the state of a generator.
//!
//! ```
//! use mamba_genomics::fasta::{FastaOptions, FastaReader};
//! use mamba_genomics::tokenizer;
//! use mamba_genomics::windows::{WindowSpec, Windows};
//!
//! let text = b">phage first lines\nACGTac\nGUN\n";
//! let reader = FastaReader::from_reader("phage.fa", &text[..], FastaOptions::default())?;
//! let windows: Vec<_> = Windows::new(reader, WindowSpec::new(6, 2)?).collect::<Result<_, _>>()?;
//! assert_eq!(tokenizer::decode(&windows[1].ids), "TACGTN");
//! assert_eq!((windows[1].window.start0, windows[1].window.core_start0), (3, 4));
//! # Ok::<(), mamba_genomics::Error>(())
//! ```
//!
//! Positions say their base in their name: `start0`, `end0` are 0-based and half-open, `position1` is 1-based.

pub mod checkpoint;
pub mod config;
pub mod count_model;
pub mod embed;
pub mod error;
pub mod fasta;
pub mod finetune;
pub mod genome;
pub mod labelled;
pub mod long;
pub mod mask;
pub mod metrics;
pub mod model;
pub mod protein;
pub mod regions;
mod rng;
pub mod sampler;
pub mod task;
pub mod tokenizer;
pub mod variants;
pub mod windows;

pub use checkpoint::CaduceusCheckpoint;
pub use config::CaduceusConfig;
pub use error::{Error, Result};
pub use model::{Caduceus, CaduceusForMaskedLm, CaduceusForSequenceClassification, Pooling, Strands};
