//! Protein language models beside Caduceus: the same data path with amino acids for tokens.
//!
//! | model | reads | learns | scores |
//! |---|---|---|---|
//! | [`ProtMamba`] | homologs of a family, one after the other | the next residue, and spans that were taken out (fill in the middle) | likelihood, substitutions, new sequences |
//! | [`PtmMamba`] | one protein, modified residues as tokens of their own | masked residues | masked likelihood, substitutions |
//! | [`MsaMamba`] | an alignment: the query and other rows | masked residues of the query | masked likelihood, substitutions |
//!
//! - [`alphabet`]: tokens; [`reader`]: FASTA and A3M; [`align`]: homologs to the columns of a query;
//! - [`fim`]: what ProtMamba reads;
//! - [`task`]: training, and the frequency baselines that a model is measured by;
//! - [`score`]: likelihoods and substitutions; [`infill`]: new residues;
//! - [`ProteinModel`]: whichever of the three a checkpoint holds.

pub mod align;
pub mod alphabet;
pub mod fim;
pub mod infill;
mod model;
pub mod msa_mamba;
pub mod prot_mamba;
pub mod ptm_mamba;
pub mod reader;
pub mod score;
pub mod task;

pub use model::{ProteinConfig, ProteinModel};
pub use msa_mamba::{MsaMamba, MsaMambaConfig};
pub use prot_mamba::{ProtMamba, ProtMambaConfig};
pub use ptm_mamba::{PtmMamba, PtmMambaConfig};
