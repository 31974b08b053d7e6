//! Convolutions on the CPU: one matrix product for each output row, kernel row and group of neighbouring taps.
#![allow(unsafe_code)] // gemm takes pointers

use super::Sizes;
use super::plan::{Group, Phase, Plan};
use crate::simd::Real;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// Tasks that share the rows of a weight gradient; fixed, so that its bits do not depend on the number of threads.
const GRADIENT_TASKS: usize = 16;
/// Pixels that one task adds up for the bias gradient.
const SUM_PIXELS: usize = 1024;

/// A channel-last image `(B, H, W, C)`.
#[derive(Clone, Copy)]
pub(super) struct Image<'a, T> {
    data: &'a [T],
    height: usize,
    width: usize,
    channels: usize,
}

impl<'a, T: Real> Image<'a, T> {
    pub(super) fn new(data: &'a [T], batch: usize, (height, width): (usize, usize), channels: usize) -> Self {
        assert_eq!(
            data.len(),
            batch * height * width * channels,
            "an image of {height} × {width} × {channels}"
        );
        Self { data, height, width, channels }
    }

    fn row(&self, b: usize, row: usize) -> &'a [T] {
        let len = self.width * self.channels;
        &self.data[(b * self.height + row) * len..][..len]
    }

    /// A row between `margin` columns of zeros: itself where there are none, else copied to `buffer`, whose margins are
    /// zero already.
    fn padded<'b>(&self, b: usize, row: usize, margin: (usize, usize), buffer: &'b mut [T]) -> &'b [T]
    where
        'a: 'b,
    {
        let row = self.row(b, row);
        if margin == (0, 0) {
            return row;
        }
        buffer[margin.0 * self.channels..][..row.len()].copy_from_slice(row);
        buffer
    }

    fn buffer(&self, margin: (usize, usize)) -> Vec<T> {
        vec![T::default(); (margin.0 + self.width + margin.1) * self.channels]
    }
}

/// Weights of one image, for every phase, kernel row and group: a matrix `(taps · input channels, output channels)`.
pub(super) struct Packed<T> {
    matrices: Vec<Vec<T>>,
}

/// Groups of all phases, in order.
fn groups(plan: &Plan) -> impl Iterator<Item = (&Phase, &Group)> {
    plan.phases.iter().flat_map(|phase| phase.groups.iter().map(move |group| (phase, group)))
}

/// Arranges weights `(small, big, K_h, K_w)` for each image of the big side. With `to_small` the big side's channels are
/// summed over, else the small side's.
pub(super) fn pack<T: Real>(plan: &Plan, weight: &[T], sizes: &Sizes, to_small: bool) -> Vec<Packed<T>> {
    let (kh, kw) = plan.kernel;
    let all: usize = sizes.big_channels.iter().sum();
    let small = sizes.small_channels;
    let at = |s: usize, b: usize, k: usize, l: usize| weight[((s * all + b) * kh + k) * kw + l];
    let mut first = 0;
    let pack_image = |&channels: &usize| {
        let big = first..first + channels;
        first += channels;
        let mut matrices = Vec::new();
        for (_, group) in groups(plan) {
            for k in 0..kh {
                let mut matrix = Vec::with_capacity(group.taps.len() * channels * small);
                for &l in &group.taps {
                    match to_small {
                        true => big.clone().for_each(|b| matrix.extend((0..small).map(|s| at(s, b, k, l)))),
                        false => (0..small).for_each(|s| matrix.extend(big.clone().map(|b| at(s, b, k, l)))),
                    }
                }
                matrices.push(matrix);
            }
        }
        Packed { matrices }
    };
    sizes.big_channels.iter().map(pack_image).collect()
}

/// `(B, H', W', C')`: what `plan` makes of the images, plus the bias.
pub(super) fn correlate<T: Real>(
    plan: &Plan,
    images: &[Image<'_, T>],
    packed: &[Packed<T>],
    bias: Option<&[T]>,
    (height, width): (usize, usize),
    channels: usize,
) -> Vec<T> {
    let batch = images[0].data.len() / (images[0].height * images[0].width * images[0].channels).max(1);
    let mut out = vec![T::default(); batch * height * width * channels];
    out.par_chunks_mut(width * channels).enumerate().for_each_init(
        || images.iter().map(|image| image.buffer(plan.margin)).collect::<Vec<_>>(),
        |buffers, (i, out)| {
            let (b, row) = (i / height, i % height);
            if let Some(bias) = bias {
                out.chunks_exact_mut(channels).for_each(|pixel| pixel.copy_from_slice(bias));
            }
            for ((image, packed), buffer) in images.iter().zip(packed).zip(buffers) {
                for &(k, input_row) in &plan.rows[row] {
                    let source = image.padded(b, input_row, plan.margin, buffer);
                    let matrices = packed.matrices.iter().skip(k).step_by(plan.kernel.0);
                    for ((phase, group), matrix) in groups(plan).zip(matrices) {
                        add_product(
                            out,
                            phase,
                            group,
                            plan.margin.0,
                            source,
                            image.channels,
                            matrix,
                            channels,
                        );
                    }
                }
            }
        },
    );
    out
}

/// Adds one group's product to the outputs of its phase.
fn add_product<T: Real>(
    out: &mut [T],
    phase: &Phase,
    group: &Group,
    margin: usize,
    source: &[T],
    c_in: usize,
    matrix: &[T],
    c_out: usize,
) {
    let (m, k) = (phase.count, group.taps.len() * c_in);
    let start = (margin as isize + group.column) as usize * c_in;
    let input_step = phase.input_step * c_in;
    assert!(start + (m - 1) * input_step + k <= source.len() && matrix.len() == k * c_out);
    assert!((phase.first + (m - 1) * phase.step + 1) * c_out <= out.len());
    let one = T::from_f64(1.0);
    // SAFETY: by the assertions, all elements that the sizes and strides reach lie in their slices; `out` is exclusive.
    unsafe {
        gemm(
            m,
            c_out,
            k,
            out.as_mut_ptr().add(phase.first * c_out),
            1,
            (phase.step * c_out) as isize,
            true,
            source.as_ptr().add(start),
            1,
            input_step as isize,
            matrix.as_ptr(),
            1,
            c_out as isize,
            one,
            one,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Adds the gradient of the weights `(small, big, K_h, K_w)` between one image of the big side, whose channels begin at
/// `first`, and the small side; `plan` is the gathering one.
pub(super) fn weight_gradient<T: Real>(
    plan: &Plan,
    big: &Image<'_, T>,
    small: &Image<'_, T>,
    sizes: &Sizes,
    first: usize,
    gradient: &mut [T],
) {
    let (kh, kw) = plan.kernel;
    let (c_big, c_small) = (big.channels, small.channels);
    let phase = &plan.phases[0];
    let rows = sizes.batch * small.height;
    let per_task = rows.div_ceil(GRADIENT_TASKS);
    // Every group and kernel row has a matrix (taps · big channels, small channels), one after another.
    let len = kh * kw * c_big * c_small;
    let partial: Vec<Vec<T>> = (0..rows.div_ceil(per_task))
        .into_par_iter()
        .map(|task| {
            let mut sums = vec![T::default(); len];
            let mut buffer = big.buffer(plan.margin);
            for i in task * per_task..((task + 1) * per_task).min(rows) {
                let (b, row) = (i / small.height, i % small.height);
                let small_row = small.row(b, row);
                for &(k, big_row) in &plan.rows[row] {
                    let source = big.padded(b, big_row, plan.margin, &mut buffer);
                    let mut offset = 0;
                    for group in &phase.groups {
                        let size = group.taps.len() * c_big * c_small;
                        let sums = &mut sums[offset + k * size..][..size];
                        add_outer_product(
                            sums,
                            phase,
                            group,
                            plan.margin.0,
                            source,
                            c_big,
                            small_row,
                            c_small,
                        );
                        offset += kh * size;
                    }
                }
            }
            sums
        })
        .collect();
    let all: usize = sizes.big_channels.iter().sum();
    for sums in &partial {
        let mut sums = sums.iter();
        for group in &phase.groups {
            for k in 0..kh {
                for &l in &group.taps {
                    for b in first..first + c_big {
                        for (s, sum) in (0..c_small).zip(&mut sums) {
                            gradient[((s * all + b) * kh + k) * kw + l] += *sum;
                        }
                    }
                }
            }
        }
    }
}

/// `sums (taps · big channels, small channels) += sourceᵀ · small_row`.
fn add_outer_product<T: Real>(
    sums: &mut [T],
    phase: &Phase,
    group: &Group,
    margin: usize,
    source: &[T],
    c_big: usize,
    small_row: &[T],
    c_small: usize,
) {
    let (m, k) = (group.taps.len() * c_big, phase.count);
    let start = (margin as isize + group.column) as usize * c_big;
    let input_step = phase.input_step * c_big;
    assert!(start + (k - 1) * input_step + m <= source.len());
    assert!(small_row.len() == k * c_small && sums.len() == m * c_small);
    let one = T::from_f64(1.0);
    // SAFETY: by the assertions, all elements that the sizes and strides reach lie in their slices; `sums` is exclusive.
    unsafe {
        gemm(
            m,
            c_small,
            k,
            sums.as_mut_ptr(),
            1,
            c_small as isize,
            true,
            source.as_ptr().add(start),
            input_step as isize,
            1,
            small_row.as_ptr(),
            1,
            c_small as isize,
            one,
            one,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Sums over all pixels, in an order that does not depend on the number of threads.
pub(super) fn sum_pixels<T: Real>(image: &[T], channels: usize) -> Vec<T> {
    let sums: Vec<Vec<T>> = image
        .par_chunks(SUM_PIXELS * channels)
        .map(|pixels| {
            let mut sum = vec![T::default(); channels];
            for pixel in pixels.chunks_exact(channels) {
                sum.iter_mut().zip(pixel).for_each(|(sum, &x)| *sum += x);
            }
            sum
        })
        .collect();
    let mut total = vec![T::default(); channels];
    for sum in &sums {
        total.iter_mut().zip(sum).for_each(|(total, &x)| *total += x);
    }
    total
}
