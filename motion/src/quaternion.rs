//! Vectors, rotations and their conversions, in f64. Quaternions are `[w, x, y, z]`, matrices are rows.

/// A point or a direction.
pub type Vec3 = [f64; 3];
/// A rotation, of length 1.
pub type Quat = [f64; 4];
/// A rotation matrix by rows.
pub type Mat3 = [[f64; 3]; 3];

/// No rotation.
pub const IDENTITY: Quat = [1.0, 0.0, 0.0, 0.0];

/// `a + b`.
pub fn add(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

/// `a - b`.
pub fn sub(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

/// `s · a`.
pub fn scale(a: Vec3, s: f64) -> Vec3 {
    a.map(|x| s * x)
}

/// The inner product.
pub fn dot(a: Vec3, b: Vec3) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// The vector product.
pub fn cross(a: Vec3, b: Vec3) -> Vec3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// The length.
pub fn norm(a: Vec3) -> f64 {
    dot(a, a).sqrt()
}

/// `a` with length 1; a null vector stays null.
pub fn normalize(a: Vec3) -> Vec3 {
    let n = norm(a);
    if n > 0.0 { scale(a, 1.0 / n) } else { a }
}

/// The point at `t` (0 to 1) between `a` and `b`.
pub fn mix(a: Vec3, b: Vec3, t: f64) -> Vec3 {
    add(scale(a, 1.0 - t), scale(b, t))
}

/// The rotation `b`, then `a`.
pub fn mul(a: Quat, b: Quat) -> Quat {
    let ([aw, ax, ay, az], [bw, bx, by, bz]) = (a, b);
    [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ]
}

/// The opposite rotation.
pub fn inverse(q: Quat) -> Quat {
    [q[0], -q[1], -q[2], -q[3]]
}

/// `v` rotated by `q`.
pub fn rotate(q: Quat, v: Vec3) -> Vec3 {
    let axis = [q[1], q[2], q[3]];
    let uv = cross(axis, v);
    let uuv = cross(axis, uv);
    add(v, scale(add(scale(uv, q[0]), uuv), 2.0))
}

/// The inner product of two quaternions.
pub fn dot4(a: Quat, b: Quat) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `q` with length 1; a null quaternion becomes the identity.
pub fn unit(q: Quat) -> Quat {
    let n = dot4(q, q).sqrt();
    if n > 0.0 { q.map(|x| x / n) } else { IDENTITY }
}

/// The shortest rotation from the direction of `from` to that of `to`. Between opposite directions there are many; then it
/// is a half turn about an axis across them.
pub fn between(from: Vec3, to: Vec3) -> Quat {
    let lengths = (dot(from, from) * dot(to, to)).sqrt();
    let (v, w) = (cross(from, to), lengths + dot(from, to));
    if lengths > 0.0 && w < 1e-12 * lengths && norm(v) < 1e-9 * lengths {
        let across = if from[0].abs() < 0.9 * norm(from) { [1.0, 0.0, 0.0] } else { [0.0, 1.0, 0.0] };
        let axis = normalize(cross(from, across));
        return [0.0, axis[0], axis[1], axis[2]];
    }
    unit([w, v[0], v[1], v[2]])
}

/// The rotation by `angle` radians about `axis`.
pub fn about(axis: Vec3, angle: f64) -> Quat {
    let (sin, cos) = (angle / 2.0).sin_cos();
    let axis = normalize(axis);
    [cos, sin * axis[0], sin * axis[1], sin * axis[2]]
}

/// The rotation of an exponential map: axis times angle in radians.
pub fn from_exponential(v: Vec3) -> Quat {
    let angle = norm(v);
    if angle < 1e-12 { unit([1.0, v[0] / 2.0, v[1] / 2.0, v[2] / 2.0]) } else { about(v, angle) }
}

/// The matrix of a rotation; `q` may have any length.
pub fn to_matrix(q: Quat) -> Mat3 {
    let [w, x, y, z] = q;
    let s = 2.0 / dot4(q, q);
    [
        [1.0 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1.0 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1.0 - s * (x * x + y * y)],
    ]
}

/// The rotation of a matrix, with `w ≥ 0`.
pub fn from_matrix(m: Mat3) -> Quat {
    let trace = m[0][0] + m[1][1] + m[2][2];
    // The largest of the four squares decides, so that nothing small is divided by.
    let squares = [trace, 2.0 * m[0][0] - trace, 2.0 * m[1][1] - trace, 2.0 * m[2][2] - trace];
    let largest = (0..4).max_by(|&a, &b| squares[a].total_cmp(&squares[b])).unwrap_or(0);
    let (a, b, c) = (m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]);
    let (d, e, f) = (m[1][0] + m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2]);
    let own = 1.0 + squares[largest];
    let q = unit(match largest {
        0 => [own, a, b, c],
        1 => [a, own, d, e],
        2 => [b, d, own, f],
        _ => [c, e, f, own],
    });
    if q[0] < 0.0 { q.map(|x| -x) } else { q }
}

/// `m · v`.
pub fn apply(m: Mat3, v: Vec3) -> Vec3 {
    m.map(|row| dot(row, v))
}

/// `a · b`.
pub fn compose(a: Mat3, b: Mat3) -> Mat3 {
    a.map(|row| [0, 1, 2].map(|j| row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j]))
}

/// The transpose, which is the opposite rotation.
pub fn transpose(m: Mat3) -> Mat3 {
    [0, 1, 2].map(|i| [m[0][i], m[1][i], m[2][i]])
}

/// The continuous six numbers of a rotation: the first two columns of its matrix (Zhou et al. 2019, arXiv 1812.07035).
pub fn to_cont6d(q: Quat) -> [f64; 6] {
    let m = to_matrix(q);
    [m[0][0], m[1][0], m[2][0], m[0][1], m[1][1], m[2][1]]
}

/// The matrix of six numbers, by Gram and Schmidt.
pub fn cont6d_to_matrix(c: [f64; 6]) -> Mat3 {
    let x = normalize([c[0], c[1], c[2]]);
    let z = normalize(cross(x, [c[3], c[4], c[5]]));
    transpose([x, cross(z, x), z])
}

/// Flips signs so that no quaternion lies opposite to the one before: the same rotations, without jumps.
pub fn make_continuous(quats: &mut [Quat]) {
    for i in 1..quats.len() {
        if dot4(quats[i - 1], quats[i]) < 0.0 {
            quats[i] = quats[i].map(|x| -x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quats() -> impl Strategy<Value = Quat> {
        [-1.0..1.0f64, -1.0..1.0, -1.0..1.0, -1.0..1.0]
            .prop_filter("not null", |q| dot4(*q, *q) > 1e-2)
            .prop_map(unit)
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    proptest! {
        #[test]
        fn all_forms_rotate_alike(q in quats(), v in [-2.0..2.0f64, -2.0..2.0, -2.0..2.0]) {
            let want = rotate(q, v);
            prop_assert!(close(&apply(to_matrix(q), v), &want));
            prop_assert!(close(&rotate(from_matrix(to_matrix(q)), v), &want));
            prop_assert!(close(&apply(cont6d_to_matrix(to_cont6d(q)), v), &want));
            prop_assert!(close(&rotate(inverse(q), want), &v));
        }

        #[test]
        fn the_rotation_between_two_directions_takes_one_to_the_other(
            a in [-2.0..2.0f64, -2.0..2.0, -2.0..2.0], b in [-2.0..2.0f64, -2.0..2.0, -2.0..2.0]
        ) {
            prop_assume!(norm(a) > 0.1 && norm(b) > 0.1);
            prop_assert!(close(&rotate(between(a, b), normalize(a)), &normalize(b)));
        }
    }

    #[test]
    fn opposite_directions_are_half_a_turn_apart() {
        for v in [[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.3, -2.0, 0.1]] {
            let turned = rotate(between(v, scale(v, -1.0)), v);
            assert!(close(&turned, &scale(v, -1.0)), "{v:?} became {turned:?}");
        }
    }

    #[test]
    fn an_exponential_map_is_axis_times_angle() {
        let q = from_exponential([0.0, std::f64::consts::FRAC_PI_2, 0.0]);
        assert!(close(&rotate(q, [0.0, 0.0, 1.0]), &[1.0, 0.0, 0.0]));
        assert_eq!(from_exponential([0.0; 3]), IDENTITY);
    }
}
