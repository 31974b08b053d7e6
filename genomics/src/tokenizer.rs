//! The Caduceus character vocabulary, and what becomes of every byte of a sequence line.
//!
//! Seven special tokens (`[CLS]`0 `[SEP]`1 `[BOS]`2 `[MASK]`3 `[PAD]`4 `[RESERVED]`5 `[UNK]`6), then A7 C8 G9 T10 N11.
//! The twelve ids are padded to sixteen in the model's embedding.
//!
//! | In the file | Token | Counted as |
//! |---|---|---|
//! | `A C G T N` | itself | `bases` |
//! | lower case (soft-masked) | as upper case | `soft_masked` too |
//! | `U` | T | `uracil` too |
//! | `R Y S W K M B D H V`, and `X` (unknown or masked base) | N | `ambiguous` too, by code |
//! | `-` and `.` (gap) | N, so that positions stay those of the file, as in `samtools faidx` | `gaps` too |
//! | space, tab, line ends | skipped | |
//! | anything else, `*` (a stop codon) included | an error | |

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, quote_byte};

/// `[CLS]`.
pub const CLS: u8 = 0;
/// `[SEP]`.
pub const SEP: u8 = 1;
/// `[BOS]`.
pub const BOS: u8 = 2;
/// `[MASK]`.
pub const MASK: u8 = 3;
/// `[PAD]`; as a label it means "not scored".
pub const PAD: u8 = 4;
/// `[RESERVED]`.
pub const RESERVED: u8 = 5;
/// `[UNK]`.
pub const UNK: u8 = 6;
/// Adenine.
pub const A: u8 = 7;
/// Cytosine.
pub const C: u8 = 8;
/// Guanine.
pub const G: u8 = 9;
/// Thymine (or uracil).
pub const T: u8 = 10;
/// Any base.
pub const N: u8 = 11;

/// Ids in use.
pub const VOCAB_SIZE: usize = 12;
/// Ids in use, padded to a multiple of eight.
pub const PADDED_VOCAB_SIZE: usize = 16;
/// The four bases, in id order.
pub const BASES: [u8; 4] = [A, C, G, T];

/// The complement of every id: A with T, C with G, all others their own. An involution.
pub const COMPLEMENT_MAP: [u8; PADDED_VOCAB_SIZE] = [0, 1, 2, 3, 4, 5, 6, T, G, C, A, N, 12, 13, 14, 15];

/// The text of every id.
pub const TOKENS: [&str; VOCAB_SIZE] =
    ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N"];

/// IUPAC codes that are read as N, in the order of [`SequenceCounts::ambiguous`].
pub const AMBIGUITY_CODES: [u8; 11] = *b"RYSWKMBDHVX";

/// A byte of a sequence line that is skipped: space or tab.
pub(crate) const SPACE: u8 = 0xf0;
/// A byte that ends a line.
pub(crate) const NEWLINE: u8 = 0xf1;
/// A byte that must not stand in a sequence line.
pub(crate) const INVALID: u8 = 0xff;

/// Token id (below [`VOCAB_SIZE`]), [`SPACE`], [`NEWLINE`] or [`INVALID`] of every byte.
pub(crate) const CLASS: [u8; 256] = byte_classes();

const fn byte_classes() -> [u8; 256] {
    let mut class = [INVALID; 256];
    let mut i = 0;
    while i < AMBIGUITY_CODES.len() {
        class[AMBIGUITY_CODES[i] as usize] = N;
        i += 1;
    }
    class[b'A' as usize] = A;
    class[b'C' as usize] = C;
    class[b'G' as usize] = G;
    class[b'T' as usize] = T;
    class[b'U' as usize] = T;
    class[b'N' as usize] = N;
    let mut letter = b'A' as usize;
    while letter <= b'Z' as usize {
        class[letter + 32] = class[letter];
        letter += 1;
    }
    class[b'-' as usize] = N;
    class[b'.' as usize] = N;
    class[b' ' as usize] = SPACE;
    class[b'\t' as usize] = SPACE;
    class[b'\n' as usize] = NEWLINE;
    class[b'\r' as usize] = NEWLINE;
    class
}

/// The token of one byte; `None` where the byte is not a base, an IUPAC code or a gap.
pub fn token(byte: u8) -> Option<u8> {
    let class = CLASS[usize::from(byte)];
    (usize::from(class) < VOCAB_SIZE).then_some(class)
}

/// Whether an id is one of A, C, G, T.
pub fn is_base(id: u8) -> bool {
    (A..=T).contains(&id)
}

/// Encodes a sequence in memory: one id per byte, no special tokens. White space is an error here.
pub fn encode(sequence: &[u8], counts: &mut SequenceCounts) -> Result<Vec<u8>> {
    let mut seen = ByteHistogram::default();
    let mut ids = Vec::with_capacity(sequence.len());
    for (i, &byte) in sequence.iter().enumerate() {
        ids.push(token(byte).ok_or_else(|| Error::InvalidBase {
            path: "sequence".into(),
            record: String::new(),
            position1: i as u64 + 1,
            character: quote_byte(byte),
        })?);
        seen.add(byte);
    }
    counts.merge(&seen.counts());
    Ok(ids)
}

/// The text of ids: bases as letters, special tokens by name, ids outside the vocabulary as `[UNK]`.
pub fn decode(ids: &[u8]) -> String {
    ids.iter().map(|&id| TOKENS.get(usize::from(id)).copied().unwrap_or(TOKENS[usize::from(UNK)])).collect()
}

/// The complement of one id.
pub fn complement(id: u8) -> u8 {
    COMPLEMENT_MAP.get(usize::from(id)).copied().unwrap_or(id)
}

/// Reverses and complements ids in place.
pub fn reverse_complement_in_place(ids: &mut [u8]) {
    ids.reverse();
    for id in ids {
        *id = complement(*id);
    }
}

/// The reverse complement of ids.
pub fn reverse_complement(ids: &[u8]) -> Vec<u8> {
    ids.iter().rev().map(|&id| complement(id)).collect()
}

/// The complement of one nucleotide letter, IUPAC codes included; case is kept, U gives A, other bytes give themselves.
pub fn complement_byte(byte: u8) -> u8 {
    let upper = match byte.to_ascii_uppercase() {
        b'A' => b'T',
        b'C' => b'G',
        b'G' => b'C',
        b'T' | b'U' => b'A',
        b'R' => b'Y',
        b'Y' => b'R',
        b'K' => b'M',
        b'M' => b'K',
        b'B' => b'V',
        b'V' => b'B',
        b'D' => b'H',
        b'H' => b'D',
        _ => return byte,
    };
    if byte.is_ascii_lowercase() { upper.to_ascii_lowercase() } else { upper }
}

/// The reverse complement of a sequence of letters (see [`complement_byte`]).
pub fn reverse_complement_bytes(sequence: &[u8]) -> Vec<u8> {
    sequence.iter().rev().map(|&byte| complement_byte(byte)).collect()
}

/// What was met in sequence lines, so that a run can report what the policy above changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceCounts {
    /// Tokens made, whatever they were made of.
    pub bases: u64,
    /// Lower-case letters.
    pub soft_masked: u64,
    /// `N`.
    pub n: u64,
    /// Codes read as N, in the order of [`AMBIGUITY_CODES`].
    pub ambiguous: [u64; AMBIGUITY_CODES.len()],
    /// `U` read as T.
    pub uracil: u64,
    /// `-` and `.` read as N.
    pub gaps: u64,
}

impl SequenceCounts {
    /// Adds another file's or record's counts.
    pub fn merge(&mut self, other: &Self) {
        self.bases += other.bases;
        self.soft_masked += other.soft_masked;
        self.n += other.n;
        self.uracil += other.uracil;
        self.gaps += other.gaps;
        for (mine, theirs) in self.ambiguous.iter_mut().zip(other.ambiguous) {
            *mine += theirs;
        }
    }

    /// All codes read as N together.
    pub fn ambiguous_total(&self) -> u64 {
        self.ambiguous.iter().sum()
    }
}

impl fmt::Display for SequenceCounts {
    /// `48502 bases; 12 soft-masked; 3 ambiguous (R 2, Y 1); 1 U read as T`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bases", self.bases)?;
        for (count, what) in [(self.soft_masked, "soft-masked"), (self.n, "N")] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        if self.ambiguous_total() > 0 {
            let codes = AMBIGUITY_CODES.iter().zip(self.ambiguous).filter(|&(_, count)| count > 0);
            let codes: Vec<_> = codes.map(|(&code, count)| format!("{} {count}", char::from(code))).collect();
            write!(f, "; {} ambiguous read as N ({})", self.ambiguous_total(), codes.join(", "))?;
        }
        for (count, what) in [(self.uracil, "U read as T"), (self.gaps, "gaps read as N")] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// How often each byte became a token: one addition per base in the reader's inner loop, sorted out afterwards.
#[derive(Clone)]
pub(crate) struct ByteHistogram([u64; 256]);

impl Default for ByteHistogram {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl ByteHistogram {
    pub(crate) fn add(&mut self, byte: u8) {
        self.0[usize::from(byte)] += 1;
    }

    pub(crate) fn counts(&self) -> SequenceCounts {
        let letter = |byte: u8| {
            self.0[usize::from(byte)]
                + if byte.is_ascii_uppercase() { self.0[usize::from(byte.to_ascii_lowercase())] } else { 0 }
        };
        SequenceCounts {
            bases: self.0.iter().sum(),
            soft_masked: (b'a'..=b'z').map(letter).sum(),
            n: letter(b'N'),
            ambiguous: AMBIGUITY_CODES.map(letter),
            uracil: letter(b'U'),
            gaps: letter(b'-') + letter(b'.'),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(text: &str) -> Vec<u8> {
        encode(text.as_bytes(), &mut SequenceCounts::default()).unwrap()
    }

    #[test]
    fn ids_are_those_of_the_published_vocabulary() {
        assert_eq!(ids("ACGTN"), [7, 8, 9, 10, 11]);
        assert_eq!(decode(&[0, 3, 7, 11, 4, 200]), "[CLS][MASK]AN[PAD][UNK]");
        assert_eq!(
            [COMPLEMENT_MAP[7], COMPLEMENT_MAP[8], COMPLEMENT_MAP[9], COMPLEMENT_MAP[10]],
            [10, 9, 8, 7]
        );
        assert_eq!(COMPLEMENT_MAP[MASK as usize], MASK);
        assert_eq!(COMPLEMENT_MAP[15], 15);
    }

    #[test]
    fn every_policy_is_counted() {
        let mut counts = SequenceCounts::default();
        let ids = encode(b"ACgtnURyX-.x", &mut counts).unwrap();
        assert_eq!(decode(&ids), "ACGTNTNNNNNN");
        assert_eq!(
            (counts.bases, counts.soft_masked, counts.n, counts.uracil, counts.gaps),
            (12, 5, 1, 1, 2)
        );
        assert_eq!(counts.ambiguous, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(
            counts.to_string(),
            "12 bases; 5 soft-masked; 1 N; 4 ambiguous read as N (R 1, Y 1, X 2); 1 U read as T; 2 gaps read as N"
        );
        let mut twice = counts.clone();
        twice.merge(&counts);
        assert_eq!((twice.bases, twice.ambiguous[10], twice.gaps), (24, 4, 4));
    }

    #[test]
    fn protein_and_stop_characters_are_refused_with_their_position() {
        for (text, expected) in
            [("ACE", "invalid character 'E' at base 3"), ("*", "'*' at base 1"), ("A\x1b", "byte 0x1b")]
        {
            let error = encode(text.as_bytes(), &mut SequenceCounts::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn reverse_complement_of_letters_knows_iupac_and_keeps_case() {
        assert_eq!(reverse_complement_bytes(b"ACGTRYSWKMBDHVNX-uacgt"), b"acgta-XNBDHVKMWSRYACGT");
        assert_eq!(decode(&reverse_complement(&ids("AACGTN"))), "NACGTT");
    }

    proptest! {
        #[test]
        fn encoding_accepts_exactly_the_table(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut counts = SequenceCounts::default();
            match encode(&bytes, &mut counts) {
                Ok(ids) => {
                    prop_assert_eq!(ids.len(), bytes.len());
                    prop_assert_eq!(counts.bases as usize, bytes.len());
                    prop_assert!(bytes.iter().all(|b| b"ACGTUNRYSWKMBDHVX-.".contains(&b.to_ascii_uppercase())));
                }
                Err(_) => {
                    prop_assert!(bytes.iter().any(|b| !b"ACGTUNRYSWKMBDHVX-.".contains(&b.to_ascii_uppercase())));
                    prop_assert_eq!(counts, SequenceCounts::default());
                }
            }
        }

        #[test]
        fn reverse_complement_is_an_involution_on_both_forms(text in "[ACGTNRYSWKMBDHVacgtn]{0,60}") {
            let encoded = ids(&text);
            prop_assert_eq!(&reverse_complement(&reverse_complement(&encoded)), &encoded);
            let mut in_place = encoded.clone();
            reverse_complement_in_place(&mut in_place);
            prop_assert_eq!(&in_place, &reverse_complement(&encoded));
            let letters = reverse_complement_bytes(text.as_bytes());
            prop_assert_eq!(reverse_complement_bytes(&letters), text.as_bytes());
            // N stands for the ambiguity codes, which complement among themselves: both roads meet.
            prop_assert_eq!(encode(&letters, &mut SequenceCounts::default()).unwrap(), in_place);
        }

        #[test]
        fn decoding_undoes_encoding(text in "[ACGTN]{0,60}") {
            prop_assert_eq!(decode(&ids(&text)), text);
        }
    }
}
