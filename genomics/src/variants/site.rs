//! Alleles against the reference: what is scored, in which window, and why some are not.

use std::fmt;

use crate::error::{Error, Result};
use crate::fasta::IndexedFasta;
use crate::tokenizer;
use crate::variants::VcfRecord;

/// Why an allele has no score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// `.`: nothing was called.
    NoAlternate,
    /// `<DEL>` and the like, or a breakend: no sequence is written.
    Symbolic,
    /// `*`: deleted by a variant upstream of it.
    Overlapping,
    /// N or an IUPAC code in REF, ALT or the reference.
    Ambiguous,
    /// More bases than the limit, after trimming.
    TooLong,
    /// ALT is REF.
    SameAsReference,
    /// REF is not what the reference has there.
    ReferenceMismatch,
    /// The reference has no record of that name.
    UnknownChromosome,
}

impl Skip {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NoAlternate,
        Self::Symbolic,
        Self::Overlapping,
        Self::Ambiguous,
        Self::TooLong,
        Self::SameAsReference,
        Self::ReferenceMismatch,
        Self::UnknownChromosome,
    ];

    /// The word that stands in the output.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoAlternate => "no_alternate",
            Self::Symbolic => "symbolic",
            Self::Overlapping => "overlapping_deletion",
            Self::Ambiguous => "ambiguous_base",
            Self::TooLong => "too_long",
            Self::SameAsReference => "same_as_reference",
            Self::ReferenceMismatch => "reference_mismatch",
            Self::UnknownChromosome => "unknown_chromosome",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// An alternate allele in its window. Token ids; all alleles are of A, C, G, T.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// What stands before the alleles.
    pub left: Vec<u8>,
    /// The reference allele, trimmed: empty for an insertion.
    pub reference: Vec<u8>,
    /// The alternate allele, trimmed: empty for a deletion.
    pub alternate: Vec<u8>,
    /// What stands after the alleles.
    pub right: Vec<u8>,
}

impl Site {
    /// The alleles exchanged: the same change, seen from a genome that has the alternate allele.
    pub fn swapped(&self) -> Self {
        Self { reference: self.alternate.clone(), alternate: self.reference.clone(), ..self.clone() }
    }

    /// The same change on the other strand.
    pub fn reverse_complement(&self) -> Self {
        let rc = |ids: &[u8]| tokenizer::reverse_complement(ids);
        Self {
            left: rc(&self.right),
            reference: rc(&self.reference),
            alternate: rc(&self.alternate),
            right: rc(&self.left),
        }
    }
}

/// What is done about alleles and the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SiteOptions {
    /// Bases on either side of an allele, fewer at the ends of a record.
    pub flank: usize,
    /// Most bases of a trimmed allele.
    pub longest: usize,
    /// Whether names that differ by a leading `chr` only, or `M` and `MT`, are the same.
    pub match_chr: bool,
    /// Whether a REF that the reference does not have is passed over, instead of an error.
    pub skip_mismatches: bool,
    /// Whether a chromosome that the reference does not have is passed over, instead of an error.
    pub skip_unknown: bool,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self { flank: 512, longest: 50, match_chr: false, skip_mismatches: false, skip_unknown: false }
    }
}

/// Trimmed alleles, and where they begin.
struct Change {
    start0: u64,
    reference: Vec<u8>,
    alternate: Vec<u8>,
}

/// A reference genome that variants are held against.
pub struct Reference {
    fasta: IndexedFasta,
    path: String,
    options: SiteOptions,
}

impl Reference {
    /// With the name of the genome in messages.
    pub fn new(fasta: IndexedFasta, path: impl Into<String>, options: SiteOptions) -> Self {
        Self { fasta, path: path.into(), options }
    }

    /// One site for each alternate allele of a record, or why there is none. `vcf` is the name of the file.
    ///
    /// # Errors
    /// An unknown chromosome, a position outside it, or a REF that the reference does not have, with the line; a
    /// reference that cannot be read.
    pub fn sites(&mut self, vcf: &str, record: &VcfRecord) -> Result<Vec<std::result::Result<Site, Skip>>> {
        let problem = |reason: String| Error::Vcf { path: vcf.into(), line: record.line, reason };
        let all = |skip: Skip| Ok(vec![Err(skip); record.alternates.len().max(1)]);
        let Some(number) = self.find(&record.chrom) else {
            if self.options.skip_unknown {
                return all(Skip::UnknownChromosome);
            }
            return Err(Error::UnknownChromosome {
                path: vcf.into(),
                line: record.line,
                reason: format!(
                    "chromosome {:?} is not in {}, which has {}",
                    record.chrom,
                    self.path,
                    self.some_names()
                ),
                alike: self.alike(&record.chrom).map(|(name, _)| name),
            });
        };
        let (name, length) = self.fasta.records().get(number);
        let (start0, span) = (record.pos1.wrapping_sub(1), record.reference.len() as u64);
        if record.pos1 == 0 || start0.checked_add(span).is_none_or(|end| end > length) {
            let telomere = record.pos1 == 0 || record.pos1 == length + 1;
            if telomere && record.alternates.iter().all(|alt| skip_by_text(alt).is_some()) {
                return all(Skip::Symbolic);
            }
            return Err(problem(format!(
                "POS {} with a REF of {span} lies outside {name:?}, which has {length} bases in {}",
                record.pos1, self.path
            )));
        }
        let mut found = Vec::new();
        self.fasta.read(number, start0, start0 + span, &mut found)?;
        let Some(reference) = bases(&record.reference) else {
            return match record.reference.bytes().all(|byte| tokenizer::token(byte).is_some()) {
                true => all(Skip::Ambiguous),
                false => Err(problem(format!("REF is {:?}, which is no DNA", record.reference))),
            };
        };
        if found != reference {
            // VCF lets REF resolve an ambiguity code of the reference.
            if found.iter().zip(&reference).all(|(&has, &want)| has == want || has == tokenizer::N) {
                return all(Skip::Ambiguous);
            }
            if self.options.skip_mismatches {
                return all(Skip::ReferenceMismatch);
            }
            return Err(Error::ReferenceMismatch {
                path: vcf.into(),
                line: record.line,
                reason: format!(
                    "REF is {:?} at {}:{}, where {} has {:?}",
                    record.reference,
                    record.chrom,
                    record.pos1,
                    self.path,
                    tokenizer::decode(&found)
                ),
            });
        }
        if record.alternates.is_empty() {
            return all(Skip::NoAlternate);
        }
        let mut sites = Vec::with_capacity(record.alternates.len());
        for alternate in &record.alternates {
            sites.push(match self.change(start0, &reference, alternate) {
                Err(skip) => Err(skip),
                Ok(None) => return Err(problem(format!("ALT is {alternate:?}, which is no DNA"))),
                Ok(Some(Change { start0, reference, alternate })) => {
                    let end0 = start0 + reference.len() as u64;
                    let flank = self.options.flank as u64;
                    let left = self.read(number, start0.saturating_sub(flank), start0)?;
                    let right = self.read(number, end0, end0.saturating_add(flank).min(length))?;
                    Ok(Site { left, reference, alternate, right })
                }
            });
        }
        Ok(sites)
    }

    /// The trimmed alleles; `None` if the text of ALT cannot be understood.
    fn change(&self, start0: u64, reference: &[u8], text: &str) -> std::result::Result<Option<Change>, Skip> {
        if let Some(skip) = skip_by_text(text) {
            return Err(skip);
        }
        let Some(alternate) = bases(text) else {
            return match text.bytes().all(|byte| tokenizer::token(byte).is_some()) {
                true => Err(Skip::Ambiguous),
                false => Ok(None),
            };
        };
        let (prefix, reference, alternate) = trim(reference, &alternate);
        if reference.is_empty() && alternate.is_empty() {
            return Err(Skip::SameAsReference);
        }
        if reference.len().max(alternate.len()) > self.options.longest {
            return Err(Skip::TooLong);
        }
        let (reference, alternate) = (reference.to_vec(), alternate.to_vec());
        Ok(Some(Change { start0: start0 + prefix as u64, reference, alternate }))
    }

    fn read(&mut self, record: usize, start0: u64, end0: u64) -> Result<Vec<u8>> {
        let mut ids = Vec::new();
        if start0 < end0 {
            self.fasta.read(record, start0, end0, &mut ids)?;
        }
        Ok(ids)
    }

    fn find(&self, chrom: &str) -> Option<usize> {
        let exact = self.fasta.records().find(chrom);
        exact.or_else(|| self.alike(chrom).filter(|_| self.options.match_chr).map(|(_, number)| number))
    }

    /// The record that the same chromosome goes by in other assemblies' naming.
    fn alike(&self, chrom: &str) -> Option<(String, usize)> {
        let bare = chrom.strip_prefix("chr").unwrap_or(chrom);
        let mitochondrion: &[&str] = &["MT", "chrM", "M", "chrMT"];
        let names: Vec<String> = match ["M", "MT"].contains(&bare) {
            true => mitochondrion.iter().map(|name| name.to_string()).collect(),
            false => vec![bare.to_owned(), format!("chr{bare}")],
        };
        names.into_iter().find_map(|name| {
            let number = self.fasta.records().find(&name)?;
            Some((name, number))
        })
    }

    fn some_names(&self) -> String {
        let records = self.fasta.records();
        let mut names: Vec<&str> = (0..records.len().min(4)).map(|i| records.get(i).0).collect();
        if records.len() > names.len() {
            names.push("...");
        }
        names.join(", ")
    }
}

/// Alleles whose text alone says that they are not scored.
fn skip_by_text(text: &str) -> Option<Skip> {
    match text {
        "*" => Some(Skip::Overlapping),
        "." => Some(Skip::NoAlternate),
        _ if text.starts_with('<') || text.contains(['[', ']']) => Some(Skip::Symbolic),
        // A single breakend.
        _ if text.len() > 1 && (text.starts_with('.') || text.ends_with('.')) => Some(Skip::Symbolic),
        _ => None,
    }
}

/// Token ids of a text of A, C, G, T in either case.
fn bases(text: &str) -> Option<Vec<u8>> {
    let base = |byte: u8| match byte.to_ascii_uppercase() {
        b'A' | b'C' | b'G' | b'T' => tokenizer::token(byte),
        _ => None,
    };
    text.bytes().map(base).collect()
}

/// Both alleles without what they share at the end and then at the beginning, and how much that is at the beginning.
pub fn trim<'a>(reference: &'a [u8], alternate: &'a [u8]) -> (usize, &'a [u8], &'a [u8]) {
    let same = |(a, b): &(&u8, &u8)| a == b;
    let suffix = reference.iter().rev().zip(alternate.iter().rev()).take_while(same).count();
    let (reference, alternate) =
        (&reference[..reference.len() - suffix], &alternate[..alternate.len() - suffix]);
    let prefix = reference.iter().zip(alternate).take_while(same).count();
    (prefix, &reference[prefix..], &alternate[prefix..])
}
