//! What a DNA language model says about variants: VCF in, two scores for each alternate allele out.
//!
//! **Log-likelihood ratio** ([`Score::llr`], natural logarithm). After what REF and ALT share at their ends is trimmed, the
//! bases of an allele are masked in its own haplotype and the model is asked for them; probabilities are among A, C, G, T.
//!
//! ```text
//! llr = Σ ln p(ALT bases | around) - Σ ln p(REF bases | around) + (|ALT| - |REF|) · ln 4
//! ```
//!
//! For a substitution this is the masked marginal of Meier et al. 2021 (bioRxiv 2021.07.09.450648, "masked marginals").
//! The last term, 0 there, measures an insertion or deletion against bases that are drawn evenly, so that the ratio does
//! not merely count them. Exchanging the alleles changes the sign, exactly. Below 0 the model prefers the reference.
//!
//! **Embedding distance** ([`Score::distance`]): the Euclidean distance between the mean vectors of the two haplotypes,
//! unmasked, over the allele and `pool` bases on either side.
//!
//! **Strands.** Both are the mean over the two strands: Caduceus-PS sees both in one pass, Ph takes a second one, of the
//! reverse complement. A window reaches equally far on both sides, so a substitution and its reverse complement have the
//! same scores; an insertion or deletion inside a repeat is trimmed to its left end, as VCF writes it, which is the other
//! end for the other strand.
//!
//! - [`vcf`]: reading VCF line by line, and writing INFO fields without touching anything else;
//! - [`site`]: alleles against the reference, and why some are not scored;
//! - [`VariantScorer`]: the pure function from sites to scores.

pub mod score;
pub mod site;
pub mod vcf;

pub use score::{Score, ScoreOptions, VariantScorer};
pub use site::{Reference, Site, SiteOptions, Skip};
pub use vcf::{VcfReader, VcfRecord};
