//! Which input pixels meet which taps, along each axis: worked out once, for a convolution and for its transpose alike.

use super::Conv2d;

/// Taps that lie side by side in the input, so that they are one matrix product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Column of the first tap for the phase's first output, possibly in the padding.
    pub(super) column: isize,
    /// Kernel columns, in the order of the input's.
    pub(super) taps: Vec<usize>,
}

/// Output columns `first, first + step, …` whose taps are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    pub(super) first: usize,
    pub(super) step: usize,
    pub(super) count: usize,
    /// Input columns from one of these outputs to the next.
    pub(super) input_step: usize,
    pub(super) groups: Vec<Group>,
}

/// How outputs are made of inputs.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) phases: Vec<Phase>,
    /// For each output row, pairs of a kernel row and an input row.
    pub(super) rows: Vec<Vec<(usize, usize)>>,
    /// Columns of zeros that rows need on the left and on the right.
    pub(super) margin: (usize, usize),
    pub(super) kernel: (usize, usize),
}

impl Plan {
    /// From the big side to the small side: the convolution.
    pub(super) fn gather(
        conv: Conv2d,
        kernel: (usize, usize),
        big: (usize, usize),
        small: (usize, usize),
    ) -> Self {
        let taps =
            (0..kernel.1).map(|l| ((l * conv.dilation.1) as isize - conv.pad_w.0 as isize, l)).collect();
        let phase =
            Phase { first: 0, step: 1, count: small.1, input_step: conv.stride.1, groups: group(taps) };
        let rows = (0..small.0).map(|i| {
            let row = |k: usize| (i * conv.stride.0 + k * conv.dilation.0).checked_sub(conv.pad_h.0);
            (0..kernel.0).filter_map(|k| Some((k, row(k).filter(|&row| row < big.0)?))).collect()
        });
        Self::new(vec![phase], rows.collect(), kernel, big.1)
    }

    /// From the small side to the big side: the transpose.
    pub(super) fn scatter(
        conv: Conv2d,
        kernel: (usize, usize),
        big: (usize, usize),
        small: (usize, usize),
    ) -> Self {
        let step = conv.stride.1;
        let phases = (0..step.min(big.1)).map(|first| {
            let reached = |l: usize| {
                let at = (first + conv.pad_w.0) as isize - (l * conv.dilation.1) as isize;
                (at.rem_euclid(step as isize) == 0).then_some((at.div_euclid(step as isize), l))
            };
            let groups = group((0..kernel.1).filter_map(reached).collect());
            Phase { first, step, count: (big.1 - first).div_ceil(step), input_step: 1, groups }
        });
        let rows = (0..big.0).map(|h| {
            let row = |k: usize| {
                let at = (h + conv.pad_h.0).checked_sub(k * conv.dilation.0)?;
                (at % conv.stride.0 == 0).then_some(at / conv.stride.0).filter(|&row| row < small.0)
            };
            (0..kernel.0).filter_map(|k| Some((k, row(k)?))).collect()
        });
        Self::new(phases.collect(), rows.collect(), kernel, small.1)
    }

    fn new(
        phases: Vec<Phase>,
        rows: Vec<Vec<(usize, usize)>>,
        kernel: (usize, usize),
        columns: usize,
    ) -> Self {
        let groups = phases.iter().flat_map(|phase| phase.groups.iter().map(move |group| (phase, group)));
        let (mut left, mut right) = (0, 0);
        for (phase, group) in groups {
            let last = group.column + ((phase.count - 1) * phase.input_step + group.taps.len() - 1) as isize;
            left = left.max(-group.column);
            right = right.max(last + 1 - columns as isize);
        }
        Self { phases, rows, margin: (left as usize, right as usize), kernel }
    }
}

/// Sorts taps by input column and joins neighbours.
fn group(mut taps: Vec<(isize, usize)>) -> Vec<Group> {
    taps.sort_unstable();
    let mut groups: Vec<Group> = Vec::new();
    for (column, tap) in taps {
        match groups.last_mut() {
            Some(last) if last.column + last.taps.len() as isize == column => last.taps.push(tap),
            _ => groups.push(Group { column, taps: vec![tap] }),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_taps_are_one_product_and_dilated_ones_are_not() {
        let conv = Conv2d { pad_w: (1, 1), ..Conv2d::default() };
        let plan = Plan::gather(conv, (1, 3), (1, 5), (1, 5));
        assert_eq!(plan.phases[0].groups, [Group { column: -1, taps: vec![0, 1, 2] }]);
        assert_eq!(plan.margin, (1, 1));
        let conv = Conv2d { dilation: (1, 2), ..Conv2d::default() };
        assert_eq!(Plan::gather(conv, (1, 3), (1, 9), (1, 5)).phases[0].groups.len(), 3);
    }

    #[test]
    fn a_transpose_of_stride_two_has_a_phase_for_even_and_one_for_odd_columns() {
        let conv = Conv2d { stride: (1, 2), ..Conv2d::default() };
        let plan = Plan::scatter(conv, (1, 3), (1, 7), (1, 3));
        assert_eq!(plan.phases[0].groups, [Group { column: -1, taps: vec![2, 0] }]);
        assert_eq!(plan.phases[1].groups, [Group { column: 0, taps: vec![1] }]);
        assert_eq!((plan.phases[0].count, plan.phases[1].count), (4, 3));
    }
}
