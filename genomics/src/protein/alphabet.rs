//! Amino-acid tokens of the published models.
//!
//! | | specials | residues | other |
//! |---|---|---|---|
//! | [`Alphabet::Homologs`] (ProtMamba, and ESM-2 before it) | `<cls>`0 `<pad>`1 `<eos>`2 `<unk>`3 | L4 … C23, X B U Z O, `.`29 `-`30 | `<null_1>`31 `<mask>`32 `<mask-1>`33 … `<mask-5>`37 |
//! | [`Alphabet::Modified`] (PTM-Mamba) | `<cls>` `<pad>` `<eos>` `<unk>` `.` `-` `<null_1>` `<mask>`7 | L8 … C27, X B U Z O | `PTM`33, then 25 modified residues such as `<Phosphoserine>` |
//!
//! | in a file | token |
//! |---|---|
//! | the 20 amino acids, `X B U Z O` | itself; lower case reads as upper case |
//! | `J` (leucine or isoleucine) | X |
//! | `*` at the end of a sequence | dropped; elsewhere an error |
//! | `-`, `.` | a gap: dropped by models of single sequences |
//! | `<Phosphoserine>` … | one token of [`Alphabet::Modified`]; an error for the others |

use serde::{Deserialize, Serialize};

/// The twenty amino acids, in the order of their tokens.
pub const AMINO_ACIDS: [u8; 20] = *b"LAGVSERTIDPKQNFYMHWC";
/// All letters that have a token, in the order of their tokens.
const RESIDUES: [u8; 25] = *b"LAGVSERTIDPKQNFYMHWCXBUZO";
/// Spans that can be taken out of one sequence: tokens `<mask-1>` to `<mask-5>`.
pub const SPANS: usize = 5;

/// Modified residues, in the order of their tokens.
const MODIFIED: [&str; 25] = [
    "N-linked (GlcNAc...) asparagine",
    "Pyrrolidone carboxylic acid",
    "Phosphoserine",
    "Phosphothreonine",
    "N-acetylalanine",
    "N-acetylmethionine",
    "N6-acetyllysine",
    "Phosphotyrosine",
    "S-diacylglycerol cysteine",
    "N6-(pyridoxal phosphate)lysine",
    "N-acetylserine",
    "N6-carboxylysine",
    "N6-succinyllysine",
    "S-palmitoyl cysteine",
    "O-(pantetheine 4'-phosphoryl)serine",
    "Sulfotyrosine",
    "O-linked (GalNAc...) threonine",
    "Omega-N-methylarginine",
    "N-myristoyl glycine",
    "4-hydroxyproline",
    "Asymmetric dimethylarginine",
    "N5-methylglutamine",
    "4-aspartylphosphate",
    "S-geranylgeranyl cysteine",
    "4-carboxyglutamate",
];

/// Which tokens a model knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alphabet {
    /// Of ProtMamba and MSAMamba.
    #[default]
    Homologs,
    /// Of PTM-Mamba.
    Modified,
}

/// `<cls>`, which begins every sequence.
pub const CLS: u32 = 0;
/// `<pad>`; as a label it means "not scored".
pub const PAD: u32 = 1;
/// `<eos>`.
pub const EOS: u32 = 2;

impl Alphabet {
    /// Number of tokens.
    pub fn len(self) -> usize {
        match self {
            Self::Homologs => 33 + SPANS,
            Self::Modified => 34 + MODIFIED.len(),
        }
    }

    /// Never.
    pub fn is_empty(self) -> bool {
        false
    }

    /// The first residue's token.
    fn first(self) -> u32 {
        match self {
            Self::Homologs => 4,
            Self::Modified => 8,
        }
    }

    /// `<mask>`.
    pub fn mask(self) -> u32 {
        match self {
            Self::Homologs => 32,
            Self::Modified => 7,
        }
    }

    /// `-`.
    pub fn gap(self) -> u32 {
        match self {
            Self::Homologs => 30,
            Self::Modified => 5,
        }
    }

    /// `<mask-1>` for span 0, up to `<mask-5>`; of [`Alphabet::Homologs`] only.
    pub fn span(self, number: usize) -> Option<u32> {
        (self == Self::Homologs && number < SPANS).then_some(33 + number as u32)
    }

    /// Tokens of the twenty amino acids, in order.
    pub fn amino_acids(self) -> std::ops::Range<u32> {
        self.first()..self.first() + AMINO_ACIDS.len() as u32
    }

    /// Whether a token is one of the twenty amino acids.
    pub fn is_amino_acid(self, token: u32) -> bool {
        self.amino_acids().contains(&token)
    }

    /// Whether a token is a residue of any kind, modified ones included.
    pub fn is_residue(self, token: u32) -> bool {
        let letters = self.first()..self.first() + RESIDUES.len() as u32;
        letters.contains(&token) || (self == Self::Modified && token > 33 && (token as usize) < self.len())
    }

    /// The token of a letter or gap.
    pub fn token(self, byte: u8) -> Option<u32> {
        let letter = match byte.to_ascii_uppercase() {
            b'J' => b'X',
            b'-' | b'.' => return Some(self.gap()),
            letter => letter,
        };
        let place = RESIDUES.iter().position(|&residue| residue == letter)?;
        Some(self.first() + place as u32)
    }

    /// The token of a modified residue by its name, without angle brackets.
    pub fn modified(self, name: &str) -> Option<u32> {
        let place = MODIFIED.iter().position(|&known| known == name)?;
        (self == Self::Modified).then_some(34 + place as u32)
    }

    /// The text of residues; other tokens in angle brackets.
    pub fn decode(self, tokens: &[u32]) -> String {
        let text = |&token: &u32| {
            if token == self.gap() {
                return "-".to_string();
            }
            let letter = token.checked_sub(self.first()).and_then(|i| RESIDUES.get(i as usize));
            match (letter, token) {
                (Some(&letter), _) => char::from(letter).to_string(),
                (None, CLS) => "<cls>".into(),
                (None, PAD) => "<pad>".into(),
                (None, EOS) => "<eos>".into(),
                (None, token) if token == self.mask() => "<mask>".into(),
                (None, token) if self == Self::Homologs && (33..38).contains(&token) => {
                    format!("<mask-{}>", token - 32)
                }
                (None, token) if self == Self::Modified && token > 33 => {
                    format!("<{}>", MODIFIED.get(token as usize - 34).copied().unwrap_or("unk"))
                }
                _ => "<unk>".into(),
            }
        };
        tokens.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_the_published_vocabularies() {
        let homologs = Alphabet::Homologs;
        let ids: Vec<_> = b"LACXO-.".iter().map(|&byte| homologs.token(byte)).collect();
        assert_eq!(ids, [4, 5, 23, 24, 28, 30, 30].map(Some));
        assert_eq!(
            (homologs.len(), homologs.mask(), homologs.span(0), homologs.span(4)),
            (38, 32, Some(33), Some(37))
        );
        assert_eq!((homologs.span(5), homologs.token(b'*'), homologs.token(b'1')), (None, None, None));
        let modified = Alphabet::Modified;
        assert_eq!(modified.token(b'l'), Some(8));
        assert_eq!((modified.token(b'O'), modified.modified("Phosphoserine")), (Some(32), Some(36)));
        assert_eq!((modified.modified(""), homologs.modified("Phosphoserine")), (None, None));
        assert_eq!(modified.decode(&[0, 8, 36, 7]), "<cls>L<Phosphoserine><mask>");
        for alphabet in [homologs, modified] {
            for &letter in &RESIDUES {
                let token = alphabet.token(letter).unwrap();
                assert!(alphabet.is_residue(token));
                assert_eq!(alphabet.decode(&[token]), char::from(letter).to_string());
            }
        }
    }
}
