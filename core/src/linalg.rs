//! Small dense matrices in f64: what balancing a state needs.

use num_complex::Complex;

/// Rows of equal length.
pub(crate) type Matrix = Vec<Vec<f64>>;
/// A complex number.
pub(crate) type C64 = Complex<f64>;

pub(crate) fn multiply(a: &Matrix, b: &Matrix) -> Matrix {
    let columns = b.first().map_or(0, Vec::len);
    let row = |row: &Vec<f64>| {
        let mut out = vec![0.0; columns];
        for (x, b) in row.iter().zip(b) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += x * b);
        }
        out
    };
    a.iter().map(row).collect()
}

pub(crate) fn transpose(a: &Matrix) -> Matrix {
    (0..a.first().map_or(0, Vec::len)).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

/// The square root of a symmetric matrix without negative eigenvalues.
pub(crate) fn square_root(a: &Matrix) -> Matrix {
    let (values, vectors) = symmetric_eigen(a);
    let scaled: Matrix = vectors
        .iter()
        .map(|row| row.iter().zip(&values).map(|(v, value)| v * value.max(0.0).sqrt()).collect())
        .collect();
    multiply(&scaled, &transpose(&vectors))
}

/// Eigenvalues of a symmetric matrix and, as columns, its eigenvectors, by Jacobi's rotations.
pub(crate) fn symmetric_eigen(a: &Matrix) -> (Vec<f64>, Matrix) {
    let n = a.len();
    let mut a = a.clone();
    let mut vectors: Matrix = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _sweep in 0..100 {
        let off: f64 = (0..n).map(|i| (0..i).map(|j| a[i][j] * a[i][j]).sum::<f64>()).sum();
        let on: f64 = (0..n).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-32 * on {
            break;
        }
        for i in 0..n {
            for j in 0..i {
                if a[i][j] == 0.0 {
                    continue;
                }
                let theta = (a[j][j] - a[i][i]) / (2.0 * a[i][j]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                let turn = |x: f64, y: f64| (c * x - s * y, s * x + c * y);
                for row in a.iter_mut().chain(&mut vectors) {
                    (row[i], row[j]) = turn(row[i], row[j]);
                }
                let rows: Vec<(f64, f64)> = a[i].iter().zip(&a[j]).map(|(&x, &y)| turn(x, y)).collect();
                (a[i], a[j]) = rows.into_iter().unzip();
            }
        }
    }
    ((0..n).map(|i| a[i][i]).collect(), vectors)
}

/// The modes of `h' = A h + b u, y = c h`: eigenvalues `λ` of `A` and residues `ρ` with `c (s - A)⁻¹ b = Σ ρ / (s - λ)`, for
/// an `A` with distinct eigenvalues. By QR steps to a triangular matrix, whose eigenvectors are solved for.
pub(crate) fn modes(a: &Matrix, b: &[f64], c: &[f64]) -> Vec<(C64, C64)> {
    let n = a.len();
    let (t, q) = schur(a);
    // y = c h with h = Q g: the triangular system has Qᴴ b and c Q.
    let inputs: Vec<C64> = (0..n).map(|k| (0..n).map(|i| q[i][k].conj() * b[i]).sum()).collect();
    let outputs: Vec<C64> = (0..n).map(|k| (0..n).map(|i| q[i][k] * c[i]).sum()).collect();
    // Columns of V are eigenvectors of T, upper triangular with ones on the diagonal.
    let scale = t.iter().flatten().map(|x| x.norm_sqr()).fold(0.0, f64::max).sqrt();
    let mut v = vec![vec![C64::new(0.0, 0.0); n]; n];
    for k in 0..n {
        v[k][k] = C64::new(1.0, 0.0);
        for i in (0..k).rev() {
            let sum: C64 = (i + 1..=k).map(|j| t[i][j] * v[j][k]).sum();
            let gap = t[k][k] - t[i][i];
            let gap = if gap.norm_sqr() > 0.0 { gap } else { C64::new(1e-15 * scale, 0.0) };
            v[i][k] = sum / gap;
        }
    }
    let mut solved = inputs; // V⁻¹ Qᴴ b
    for k in (0..n).rev() {
        let later: C64 = (k + 1..n).map(|j| v[k][j] * solved[j]).sum();
        solved[k] -= later;
    }
    let output = |k: usize| -> C64 { (0..=k).map(|i| outputs[i] * v[i][k]).sum() };
    (0..n).map(|k| (t[k][k], output(k) * solved[k])).collect()
}

/// `A = Q T Qᴴ` with a unitary `Q` and an upper triangular `T`.
fn schur(a: &Matrix) -> (Vec<Vec<C64>>, Vec<Vec<C64>>) {
    let n = a.len();
    let real = |x: &f64| C64::new(*x, 0.0);
    let mut t: Vec<Vec<C64>> = a.iter().map(|row| row.iter().map(real).collect()).collect();
    let mut q: Vec<Vec<C64>> =
        (0..n).map(|i| (0..n).map(|j| C64::new(f64::from(u8::from(i == j)), 0.0)).collect()).collect();
    // To Hessenberg form: a similarity for each entry below the subdiagonal.
    for k in 0..n.saturating_sub(2) {
        for i in (k + 2..n).rev() {
            let turn = Rotation::annihilating(t[i - 1][k], t[i][k]);
            turn.rows(&mut t, i - 1);
            turn.columns(&mut t, i - 1);
            turn.columns(&mut q, i - 1);
        }
    }
    let mut end = n; // rows from here on are done
    let mut steps = 0;
    while end > 1 {
        let small = |i: usize, t: &[Vec<C64>]| {
            t[i][i - 1].norm_sqr().sqrt()
                <= f64::EPSILON * (t[i][i].norm_sqr().sqrt() + t[i - 1][i - 1].norm_sqr().sqrt())
        };
        if small(end - 1, &t) {
            t[end - 1][end - 2] = C64::new(0.0, 0.0);
            (end, steps) = (end - 1, 0);
            continue;
        }
        let start = (1..end).rev().find(|&i| small(i, &t)).unwrap_or(0);
        steps += 1;
        // Wilkinson's shift, and now and then another, which breaks cycles.
        let shift = match steps % 11 {
            0 => t[end - 1][end - 1] + t[end - 1][end - 2].norm_sqr().sqrt(),
            _ => wilkinson(&t, end),
        };
        if steps > 1000 {
            break; // never seen; the entry below the diagonal is then dropped
        }
        add_to_diagonal(&mut t, start..end, -shift);
        let turns: Vec<Rotation> = (start..end - 1)
            .map(|i| {
                let turn = Rotation::annihilating(t[i][i], t[i + 1][i]);
                turn.rows(&mut t, i);
                turn
            })
            .collect();
        for (i, turn) in (start..).zip(&turns) {
            turn.columns(&mut t, i);
            turn.columns(&mut q, i);
        }
        add_to_diagonal(&mut t, start..end, shift);
    }
    (t, q)
}

fn add_to_diagonal(t: &mut [Vec<C64>], part: std::ops::Range<usize>, x: C64) {
    for (i, row) in t.iter_mut().enumerate().take(part.end).skip(part.start) {
        row[i] += x;
    }
}

/// The eigenvalue of the last 2 × 2 block before `end` that is closer to its last entry.
fn wilkinson(t: &[Vec<C64>], end: usize) -> C64 {
    let (a, b, c, d) = (t[end - 2][end - 2], t[end - 2][end - 1], t[end - 1][end - 2], t[end - 1][end - 1]);
    let half = (a - d) / 2.0;
    let root = square_root_of(half * half + b * c);
    let (plus, minus) = (d + half + root, d + half - root);
    if (plus - d).norm_sqr() < (minus - d).norm_sqr() { plus } else { minus }
}

/// The square root with a real part that is not negative.
fn square_root_of(z: C64) -> C64 {
    let size = z.re.hypot(z.im);
    let (re, im) = (((size + z.re) / 2.0).max(0.0).sqrt(), ((size - z.re) / 2.0).max(0.0).sqrt());
    C64::new(re, if z.im < 0.0 { -im } else { im })
}

/// A unitary map of two coordinates: `(x, y)` to `(c x + s y, -s̄ x + c y)`.
struct Rotation {
    c: f64,
    s: C64,
}

impl Rotation {
    /// The one that takes `(x, y)` to `(·, 0)`.
    fn annihilating(x: C64, y: C64) -> Self {
        let (nx, ny) = (x.norm_sqr(), y.norm_sqr());
        let norm = (nx + ny).sqrt();
        if ny == 0.0 {
            return Self { c: 1.0, s: C64::new(0.0, 0.0) };
        }
        if nx == 0.0 {
            return Self { c: 0.0, s: y.conj() / norm };
        }
        let length = nx.sqrt();
        Self { c: length / norm, s: x / length * y.conj() / norm }
    }

    /// Applied to rows `i` and `i + 1`, from the left.
    fn rows(&self, m: &mut [Vec<C64>], i: usize) {
        let (above, below) = m.split_at_mut(i + 1);
        for (x, y) in above[i].iter_mut().zip(&mut below[0]) {
            (*x, *y) = (*x * self.c + self.s * *y, *y * self.c - self.s.conj() * *x);
        }
    }

    /// The inverse applied to columns `i` and `i + 1`, from the right.
    fn columns(&self, m: &mut [Vec<C64>], i: usize) {
        for row in m {
            let (x, y) = (row[i], row[i + 1]);
            (row[i], row[i + 1]) = (x * self.c + y * self.s.conj(), y * self.c - x * self.s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    /// `c (s - A)⁻¹ b` by elimination.
    fn response(a: &Matrix, b: &[f64], c: &[f64], s: C64) -> C64 {
        let n = b.len();
        let mut m: Vec<Vec<C64>> = (0..n)
            .map(|i| {
                let entry = |j: usize| if i == j { s - a[i][j] } else { C64::new(-a[i][j], 0.0) };
                (0..n).map(entry).chain([C64::new(b[i], 0.0)]).collect()
            })
            .collect();
        for i in 0..n {
            let pivot = (i..n).max_by(|&p, &q| m[p][i].norm_sqr().total_cmp(&m[q][i].norm_sqr()));
            m.swap(i, pivot.unwrap());
            let head = m[i].clone();
            for (_, row) in m.iter_mut().enumerate().filter(|(k, _)| *k != i) {
                let factor = row[i] / head[i];
                row.iter_mut().zip(&head).skip(i).for_each(|(x, h)| *x -= factor * h);
            }
        }
        (0..n).map(|i| m[i][n] / m[i][i] * c[i]).sum()
    }

    #[test]
    fn modes_add_up_to_the_response_and_come_in_conjugate_pairs() {
        for (n, seed) in [(1, 1), (2, 2), (3, 3), (8, 4), (17, 5), (32, 6)] {
            let mut rng = Rng::new(seed);
            let mut draw = |k: usize| (0..k).map(|_| rng.uniform_in(-1.0, 1.0)).collect::<Vec<f64>>();
            let a: Matrix = (0..n).map(|_| draw(n)).collect();
            let (b, c) = (draw(n), draw(n));
            let modes = modes(&a, &b, &c);
            let trace: C64 = modes.iter().map(|(pole, _)| *pole).sum();
            assert!((trace - (0..n).map(|i| a[i][i]).sum::<f64>()).norm_sqr().sqrt() < 1e-10);
            for s in [C64::new(0.0, 30.0), C64::new(20.0, 1.0), C64::new(-15.0, 7.0)] {
                let sum: C64 = modes.iter().map(|(pole, residue)| residue / (s - pole)).sum();
                let want = response(&a, &b, &c, s);
                assert!((sum - want).norm_sqr().sqrt() < 1e-9, "{n}: {sum}, expected {want}");
            }
            for (pole, _) in &modes {
                let closest =
                    modes.iter().map(|(p, _)| (p.conj() - pole).norm_sqr().sqrt()).fold(f64::MAX, f64::min);
                assert!(closest < 1e-9, "{pole} has no conjugate");
            }
        }
    }

    #[test]
    fn eigenvectors_of_a_symmetric_matrix_diagonalise_it() {
        let mut rng = Rng::new(9);
        let half: Matrix = (0..7).map(|_| (0..7).map(|_| rng.uniform_in(-1.0, 1.0)).collect()).collect();
        let a = multiply(&half, &transpose(&half));
        let (values, vectors) = symmetric_eigen(&a);
        let back = multiply(
            &vectors.iter().map(|r| r.iter().zip(&values).map(|(v, l)| v * l).collect()).collect(),
            &transpose(&vectors),
        );
        let root = square_root(&a);
        for (i, row) in a.iter().enumerate() {
            for (j, want) in row.iter().enumerate() {
                assert!((back[i][j] - want).abs() < 1e-12);
                assert!((multiply(&root, &root)[i][j] - want).abs() < 1e-12);
            }
        }
    }
}
