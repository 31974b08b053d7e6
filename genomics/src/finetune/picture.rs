//! A report as a picture: confusion matrix and ROC curves, or predictions over labels.

use super::report::Report;
use crate::metrics::Confusion;
use mamba_core::plot::{self, COLORS, DrawResult, DrawingArea, DrawingBackend, INK, Picture, Shift};
use plotters::coord::ranged1d::SegmentedCoord;
use plotters::prelude::*;

/// Draws a [`Report`].
#[derive(Clone, Copy, Debug)]
pub struct ReportPicture<'a>(pub &'a Report);

impl ReportPicture<'_> {
    /// Width and height in pixels.
    pub const SIZE: (u32, u32) = (960, 460);
}

impl Picture for ReportPicture<'_> {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally((50).percent_width());
        match &self.0.confusion {
            Some(confusion) => {
                matrix(&left, confusion, &self.0.classes)?;
                curves(&right, self.0)
            }
            None => pairs(area, &self.0.pairs),
        }
    }
}

/// Labels downwards, predictions to the right; the darker, the larger the share of the label.
fn matrix<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    confusion: &Confusion,
    names: &[String],
) -> DrawResult
where
    B::ErrorType: 'static,
{
    let n = confusion.classes();
    let name = |axis: &SegmentValue<i32>| match axis {
        SegmentValue::CenterOf(i) => names.get(*i as usize).cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let axis = || -> SegmentedCoord<_> { (0..n as i32 - 1).into_segmented() };
    let mut chart = ChartBuilder::on(area)
        .caption("confusion matrix", plot::font(16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(axis(), axis())?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("predicted")
        .y_desc("label")
        .x_labels(n)
        .y_labels(n)
        .label_style(plot::font(13))
        .x_label_formatter(&name)
        // The first class on top.
        .y_label_formatter(&|value| match value {
            SegmentValue::CenterOf(i) => names.get(n - 1 - *i as usize).cloned().unwrap_or_default(),
            _ => String::new(),
        })
        .draw()?;
    for label in 0..n {
        let row: u64 = (0..n).map(|prediction| confusion.count(label, prediction)).sum();
        let y = (n - 1 - label) as i32;
        for prediction in 0..n {
            let (count, x) = (confusion.count(label, prediction), prediction as i32);
            let share = count as f64 / row.max(1) as f64;
            let corners = [
                (SegmentValue::Exact(x), SegmentValue::Exact(y)),
                (SegmentValue::Exact(x + 1), SegmentValue::Exact(y + 1)),
            ];
            chart.draw_series([Rectangle::new(corners, COLORS[0].mix(share).filled())])?;
            let colour = if share > 0.5 { WHITE } else { INK };
            let style = plot::font(15).color(&colour).pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Center,
                plotters::style::text_anchor::VPos::Center,
            ));
            let at = (SegmentValue::CenterOf(x), SegmentValue::CenterOf(y));
            chart.draw_series([Text::new(count.to_string(), at, style)])?;
        }
    }
    Ok(())
}

fn curves<B: DrawingBackend>(area: &DrawingArea<B, Shift>, report: &Report) -> DrawResult
where
    B::ErrorType: 'static,
{
    let title = match report.figures.get("auroc") {
        Some(figure) => format!("ROC, area {:.3} ({:.3} to {:.3})", figure.value, figure.low, figure.high),
        None => "ROC".into(),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, plot::font(16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc("false positive rate")
        .y_desc("true positive rate")
        .label_style(plot::font(13))
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series([PathElement::new(vec![(0.0, 0.0), (1.0, 1.0)], INK.mix(0.4))])?;
    for (i, (name, points)) in report.curves.iter().enumerate() {
        let colour = COLORS[i % COLORS.len()];
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(plot::font(13))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

fn pairs<B: DrawingBackend>(area: &DrawingArea<B, Shift>, pairs: &[(f64, f64)]) -> DrawResult
where
    B::ErrorType: 'static,
{
    let all = || pairs.iter().flat_map(|&(label, value)| [label, value]);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let edge = (0.05 * (high - low)).max(1e-9);
    let range = low - edge..high + edge;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(range.clone(), range.clone())?;
    chart
        .configure_mesh()
        .x_desc("label")
        .y_desc("predicted")
        .label_style(plot::font(13))
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series([PathElement::new(
        vec![(range.start, range.start), (range.end, range.end)],
        INK.mix(0.4),
    )])?;
    chart.draw_series(pairs.iter().map(|&at| Circle::new(at, 2, COLORS[0].mix(0.6).filled())))?;
    Ok(())
}
