//! The loss curve as SVG.

use crate::Result;
use crate::plot::{self, DrawResult, INK, Picture, Shift, font};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (840, 480);
const TRAIN: RGBColor = plot::COLORS[0];
const VALID: RGBColor = plot::COLORS[1];
/// More points than this do not show.
const MAX_POINTS: usize = 2000;

/// Draws loss over step: training as a line, validation as a line with dots. Points that are not finite are left out;
/// with none left nothing is written. `log_x` spaces the steps logarithmically.
pub fn loss_curve(path: &Path, train: &[(f64, f64)], valid: &[(f64, f64)], log_x: bool) -> Result<()> {
    let usable = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points
            .iter()
            .copied()
            .filter(|(x, y)| x.is_finite() && y.is_finite() && (!log_x || *x > 0.0))
            .collect()
    };
    let (train, valid) = (thin(usable(train)), usable(valid));
    let Some((x, y)) = ranges(&train, &valid) else { return Ok(()) };
    plot::save(path, SIZE, &Curve { train: &train, valid: &valid, x, y, log_x })
}

struct Curve<'a> {
    train: &'a [(f64, f64)],
    valid: &'a [(f64, f64)],
    x: Range,
    y: Range,
    log_x: bool,
}

impl Picture for Curve<'_> {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        match self.log_x {
            true => draw(area, (self.x.0.max(1.0)..self.x.1.max(2.0)).log_scale(), self),
            false => draw(area, self.x.0..self.x.1, self),
        }
    }
}

fn draw<B, X>(root: &DrawingArea<B, Shift>, x: X, curve: &Curve<'_>) -> DrawResult
where
    B: DrawingBackend,
    B::ErrorType: 'static,
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let Curve { train, valid, y, .. } = *curve;
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(root)
        .margin(16)
        .margin_right(28)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y.0..y.1)?;
    chart
        .configure_mesh()
        .bold_line_style(RGBColor(225, 225, 225))
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_desc("step")
        .y_desc("loss")
        .x_labels(8)
        .y_labels(7)
        .x_label_formatter(&|x| crate::progress::short(*x).replace(".00", ""))
        .y_label_formatter(&|y| format!("{y:.3}").trim_end_matches('0').trim_end_matches('.').to_string())
        .axis_desc_style(font(19))
        .label_style(font(16))
        .draw()?;
    let key = |color: RGBColor| {
        move |(x, y): (i32, i32)| PathElement::new(vec![(x, y), (x + 22, y)], color.stroke_width(2))
    };
    if !train.is_empty() {
        let line = LineSeries::new(train.iter().copied(), TRAIN.stroke_width(2));
        chart.draw_series(line)?.label("train").legend(key(TRAIN));
    }
    if !valid.is_empty() {
        let line = LineSeries::new(valid.iter().copied(), VALID.stroke_width(2)).point_size(3);
        chart.draw_series(line)?.label("valid").legend(key(VALID));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(12)
        .legend_area_size(30)
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(210, 210, 210))
        .label_font(font(16))
        .draw()?;
    Ok(())
}

type Range = (f64, f64);

/// The area that shows all points, with some air above and below.
fn ranges(train: &[(f64, f64)], valid: &[(f64, f64)]) -> Option<(Range, Range)> {
    let all = || train.iter().chain(valid);
    let low = |f: fn(&(f64, f64)) -> f64| all().map(f).reduce(f64::min);
    let high = |f: fn(&(f64, f64)) -> f64| all().map(f).reduce(f64::max);
    let (x, y) = ((low(|p| p.0)?, high(|p| p.0)?), (low(|p| p.1)?, high(|p| p.1)?));
    let air = if y.1 > y.0 { (y.1 - y.0) * 0.06 } else { y.1.abs().max(1.0) * 0.1 };
    let x = if x.1 > x.0 { x } else { (x.0, x.0 + 1.0) };
    Some((x, (y.0 - air, y.1 + air)))
}

/// Means over equal stretches, so that a long run stays a small file.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points;
    }
    let mean = |stretch: &[(f64, f64)]| {
        let n = stretch.len() as f64;
        (stretch.iter().map(|p| p.0).sum::<f64>() / n, stretch.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(points.len().div_ceil(MAX_POINTS)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_axes_a_legend_and_survives_odd_points() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        loss_curve(&path, &[(1.0, f64::NAN)], &[], false).unwrap();
        assert!(!path.exists(), "nothing to draw");
        let train: Vec<(f64, f64)> = (1..9000).map(|i| (i as f64, 3.0 / (i as f64).sqrt())).collect();
        for log_x in [false, true] {
            loss_curve(&path, &train, &[(0.0, 2.0), (400.0, f64::INFINITY), (800.0, 0.5)], log_x).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            for text in ["<svg", "step", "loss", "train", "valid", "</svg>"] {
                assert!(svg.contains(text), "{text}");
            }
            assert!(svg.len() < 100_000 && !svg.contains("NaN"), "{}", svg.len());
        }
        loss_curve(&path, &[(5.0, 1.0)], &[], true).unwrap();
    }
}
