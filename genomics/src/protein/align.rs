//! Homologs in the columns of a query.
//!
//! Global alignment with affine gaps (Gotoh 1982) and the scores of BLOSUM62, ends free of charge: residues that the query
//! does not have are dropped, and what a homolog does not have is a gap, as in the match columns of an A3M file.

use crate::protein::alphabet::Alphabet;

/// BLOSUM62 (Henikoff and Henikoff 1992) for the residues in the order of the tokens: L A G V S E R T I D P K Q N F Y M H W C.
const BLOSUM62: [[i8; 20]; 20] = [
    [4, -1, -4, 1, -2, -3, -2, -1, 2, -4, -3, -2, -2, -3, 0, -1, 2, -3, -2, -1],
    [-1, 4, 0, 0, 1, -1, -1, 0, -1, -2, -1, -1, -1, -2, -2, -2, -1, -2, -3, 0],
    [-4, 0, 6, -3, 0, -2, -2, -2, -4, -1, -2, -2, -2, 0, -3, -3, -3, -2, -2, -3],
    [1, 0, -3, 4, -2, -2, -3, 0, 3, -3, -2, -2, -2, -3, -1, -1, 1, -3, -3, -1],
    [-2, 1, 0, -2, 4, 0, -1, 1, -2, 0, -1, 0, 0, 1, -2, -2, -1, -1, -3, -1],
    [-3, -1, -2, -2, 0, 5, 0, -1, -3, 2, -1, 1, 2, 0, -3, -2, -2, 0, -3, -4],
    [-2, -1, -2, -3, -1, 0, 5, -1, -3, -2, -2, 2, 1, 0, -3, -2, -1, 0, -3, -3],
    [-1, 0, -2, 0, 1, -1, -1, 5, -1, -1, -1, -1, -1, 0, -2, -2, -1, -2, -2, -1],
    [2, -1, -4, 3, -2, -3, -3, -1, 4, -3, -3, -3, -3, -3, 0, -1, 1, -3, -3, -1],
    [-4, -2, -1, -3, 0, 2, -2, -1, -3, 6, -1, -1, 0, 1, -3, -3, -3, -1, -4, -3],
    [-3, -1, -2, -2, -1, -1, -2, -1, -3, -1, 7, -1, -1, -2, -4, -3, -2, -2, -4, -3],
    [-2, -1, -2, -2, 0, 1, 2, -1, -3, -1, -1, 5, 1, 0, -3, -2, -1, -1, -3, -3],
    [-2, -1, -2, -2, 0, 2, 1, -1, -3, 0, -1, 1, 5, 0, -3, -1, 0, 0, -2, -3],
    [-3, -2, 0, -3, 1, 0, 0, 0, -3, 1, -2, 0, 0, 6, -3, -2, -2, 1, -4, -3],
    [0, -2, -3, -1, -2, -3, -3, -2, 0, -3, -4, -3, -3, -3, 6, 3, 0, -1, 1, -2],
    [-1, -2, -3, -1, -2, -2, -2, -2, -1, -3, -3, -2, -1, -2, 3, 7, -1, 2, 2, -2],
    [2, -1, -3, 1, -1, -2, -1, -1, 1, -3, -2, -1, 0, -2, 0, -1, 5, -2, -1, -1],
    [-3, -2, -2, -3, -1, 0, 0, -2, -3, -1, -2, -1, 0, 1, -1, 2, -2, 8, -2, -3],
    [-2, -3, -2, -3, -3, -3, -3, -2, -3, -4, -4, -3, -2, -4, 1, 2, -1, -2, 11, -2],
    [-1, 0, -3, -1, -1, -4, -3, -1, -1, -3, -3, -3, -3, -3, -2, -2, -1, -3, -2, 9],
];
/// Cost of the first residue of a gap.
const OPEN: i32 = 11;
/// Of each further one.
const EXTEND: i32 = 1;

fn similarity(alphabet: Alphabet, a: u32, b: u32) -> i32 {
    let place =
        |token: u32| alphabet.is_amino_acid(token).then(|| (token - alphabet.amino_acids().start) as usize);
    match (place(a), place(b)) {
        (Some(a), Some(b)) => i32::from(BLOSUM62[a][b]),
        _ => -1,
    }
}

/// Where a cell's best path comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Start,
    Match,
    Insert,
    Delete,
}

/// `homolog` in the columns of `query`, both residues without gaps: one token, or a gap, for each residue of the query.
pub fn to_query(query: &[u32], homolog: &[u32], alphabet: Alphabet) -> Vec<u32> {
    let (n, m) = (query.len(), homolog.len());
    const LOW: i32 = i32::MIN / 2;
    let at = |i: usize, j: usize| i * (m + 1) + j;
    // Best scores of paths that end in a pair, in a residue of the homolog alone, in one of the query alone.
    let size = (n + 1) * (m + 1);
    let (mut pair, mut insert, mut delete) = (vec![LOW; size], vec![LOW; size], vec![LOW; size]);
    let (mut pair_from, mut insert_from, mut delete_from) =
        (vec![From::Start; size], vec![From::Start; size], vec![From::Start; size]);
    let best = |options: [(i32, From); 3]| {
        options.into_iter().fold((LOW, From::Start), |best, next| if next.0 > best.0 { next } else { best })
    };
    pair[0] = 0;
    for i in 0..=n {
        for j in 0..=m {
            if i > 0 && j > 0 {
                let before = at(i - 1, j - 1);
                let (score, from) = best([
                    (pair[before], if before == 0 { From::Start } else { From::Match }),
                    (insert[before], From::Insert),
                    (delete[before], From::Delete),
                ]);
                pair[at(i, j)] = score + similarity(alphabet, query[i - 1], homolog[j - 1]);
                pair_from[at(i, j)] = from;
            }
            let here = at(i, j);
            // Ends are free: before the first and after the last residue of the other sequence.
            if j > 0 {
                let (open, extend) = if i == 0 || i == n { (0, 0) } else { (OPEN, EXTEND) };
                let before = at(i, j - 1);
                let (score, from) = best([
                    (pair[before] - open, From::Match),
                    (insert[before] - extend, From::Insert),
                    (delete[before] - open, From::Delete),
                ]);
                (insert[here], insert_from[here]) = (score, from);
            }
            if i > 0 {
                let (open, extend) = if j == 0 || j == m { (0, 0) } else { (OPEN, EXTEND) };
                let before = at(i - 1, j);
                let (score, from) = best([
                    (pair[before] - open, From::Match),
                    (insert[before] - open, From::Insert),
                    (delete[before] - extend, From::Delete),
                ]);
                (delete[here], delete_from[here]) = (score, from);
            }
        }
    }
    let (mut i, mut j) = (n, m);
    let end = at(n, m);
    let (_, mut state) =
        best([(pair[end], From::Match), (insert[end], From::Insert), (delete[end], From::Delete)]);
    let mut columns = vec![alphabet.gap(); n];
    while i > 0 || j > 0 {
        let here = at(i, j);
        match state {
            From::Match => {
                state = pair_from[here];
                (i, j) = (i - 1, j - 1);
                columns[i] = homolog[j];
            }
            From::Insert => {
                state = insert_from[here];
                j -= 1;
            }
            From::Delete => {
                state = delete_from[here];
                i -= 1;
            }
            From::Start => break,
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHABET: Alphabet = Alphabet::Homologs;

    fn tokens(text: &str) -> Vec<u32> {
        text.bytes().map(|byte| ALPHABET.token(byte).unwrap()).collect()
    }

    fn aligned(query: &str, homolog: &str) -> String {
        ALPHABET.decode(&to_query(&tokens(query), &tokens(homolog), ALPHABET))
    }

    #[test]
    fn blosum62_is_symmetric_and_likes_each_residue_best() {
        for (i, row) in BLOSUM62.iter().enumerate() {
            for (j, &score) in row.iter().enumerate() {
                assert_eq!(score, BLOSUM62[j][i]);
                assert!(i == j || score < row[i]);
            }
        }
    }

    #[test]
    fn homologs_fall_into_the_columns_of_the_query() {
        assert_eq!(aligned("HEAGAWGHEE", "HEAGAWGHEE"), "HEAGAWGHEE");
        assert_eq!(aligned("WWCCHHWWMM", "WWCCWWMM"), "WWCC--WWMM");
        assert_eq!(aligned("WWCCWWMM", "WWCCHHHWWMM"), "WWCCWWMM");
        assert_eq!(aligned("AAAAWCHWCH", "WCHWCH"), "----WCHWCH");
        assert_eq!(aligned("WCHWCH", "WCHWCHGGGG"), "WCHWCH");
        assert_eq!(aligned("WCHWCHAA", "WCHXCH"), "WCHXCH--");
        assert_eq!(aligned("W", "C").len(), 1);
    }
}
