//! A report as a picture: confusion matrix and ROC curves, or predictions over labels.

use super::report::Report;
use crate::metrics::Confusion;
use mamba_core::plot::{self, COLORS, DrawResult, DrawingArea, DrawingBackend, INK, Picture, Shift};
use plotters::coord::ranged1d::SegmentedCoord;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

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

/// Characters of a class's name; a longer one is shown by its beginning and its end.
const NAME: usize = 10;

fn short(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= NAME {
        return name.into();
    }
    letters[..NAME / 2].iter().chain(&['…']).chain(&letters[letters.len() + 1 - NAME / 2..]).collect()
}

/// Letters of `size` pixels that lie on this side of their place.
fn anchored(size: u32, h: HPos, v: VPos) -> TextStyle<'static> {
    plot::font(size).pos(Pos::new(h, v))
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
    let names: Vec<String> = names.iter().map(|name| short(name)).collect();
    // Names are as small as the cells, down to what can be read; then not all of them are written.
    let cell = 330 / n.max(1) as u32;
    let size = cell.clamp(8, 13);
    let every = size.div_ceil(cell.max(1)) as usize;
    let widths = names.iter().map(|name| area.estimate_text_size(name, &plot::font(size)).map(|(w, _)| w));
    let widest = widths.collect::<Result<Vec<u32>, _>>()?.into_iter().max().unwrap_or(0);
    let turned = widest + 8 > cell;

    let axis = || -> SegmentedCoord<_> { (0..n as i32 - 1).into_segmented() };
    let mut chart = ChartBuilder::on(area)
        .caption("confusion matrix", plot::font(16))
        .margin(12)
        .x_label_area_size(if turned { 30 + widest } else { 40 })
        .y_label_area_size(30 + widest)
        .build_cartesian_2d(axis(), axis())?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("predicted")
        .y_desc("label")
        .axis_desc_style(plot::font(13))
        .x_labels(n)
        .y_labels(n)
        .x_label_formatter(&|_| String::new())
        .y_label_formatter(&|_| String::new())
        .draw()?;
    for (class, name) in names.iter().enumerate().step_by(every) {
        let below = match turned {
            true => anchored(size, HPos::Right, VPos::Center).transform(FontTransform::Rotate270),
            false => anchored(size, HPos::Center, VPos::Top),
        };
        let at = (SegmentValue::CenterOf(class as i32), SegmentValue::Exact(0));
        chart.draw_series([EmptyElement::at(at) + Text::new(name.clone(), (0, 8), below)])?;
        // The first class on top.
        let at = (SegmentValue::Exact(0), SegmentValue::CenterOf((n - 1 - class) as i32));
        let beside = anchored(size, HPos::Right, VPos::Center);
        chart.draw_series([EmptyElement::at(at) + Text::new(name.clone(), (-8, 0), beside)])?;
    }
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
            // White cannot be read on a blue that is half as dark.
            let colour = if share > 0.65 { WHITE } else { INK };
            let style = anchored((cell / 2).min(15), HPos::Center, VPos::Center).color(&colour);
            let text = count.to_string();
            let (width, height) = area.estimate_text_size(&text, &style)?;
            if width < cell && height > 6 {
                let at = (SegmentValue::CenterOf(x), SegmentValue::CenterOf(y));
                chart.draw_series([Text::new(text, at, style)])?;
            }
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
            .label(short(name))
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    // Of more curves some have the same colour.
    if report.curves.len() <= COLORS.len() {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font(plot::font(13))
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finetune::Target;

    /// Of ten sequences of each class, a share of which is predicted right.
    fn picture(names: &[String], right: f64) -> String {
        let n = names.len();
        let labels: Vec<f64> = (0..10 * n).map(|i| (i % n) as f64).collect();
        let prediction = |i: usize| {
            let class = if (i / n) as f64 / 10.0 < right { i % n } else { (i + 1) % n };
            (0..n).map(|k| f64::from(u8::from(k == class))).collect()
        };
        let predictions: Vec<Vec<f64>> = (0..10 * n).map(prediction).collect();
        let report = Report::new(&Target::Classes { names: names.to_vec() }, &labels, &predictions);
        plot::svg(ReportPicture::SIZE, &ReportPicture(&report)).unwrap()
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("enhancer of tissue {i:03}")).collect()
    }

    #[test]
    fn long_names_are_shortened_at_both_axes_and_in_the_legend() {
        assert_eq!(short("enhancer x"), "enhancer x");
        assert_eq!(short("enhancer of liver"), "enhan…iver");
        let svg = picture(&names(3), 1.0);
        assert_eq!(svg.matches("enhan… 002").count(), 3);
        assert!(!svg.contains("enhancer"), "{svg}");
    }

    #[test]
    fn many_classes_are_turned_and_have_no_legend() {
        let svg = picture(&names(12), 1.0);
        assert_eq!(svg.matches("enhan… 002").count(), 2);
        let turned = svg.lines().filter(|line| line.contains("<text") && line.contains("rotate(270"));
        // The names below, and the title of the other axis.
        assert_eq!(turned.count(), 12 + 2);
        let svg = picture(&names(100), 1.0);
        let shown = svg.matches("enhan…").count();
        assert!((20..=100).contains(&shown), "{shown}");
    }

    #[test]
    fn numbers_are_white_on_dark_cells_only() {
        let white = |svg: &str| svg.lines().filter(|l| l.contains("<text") && l.contains("#FFFFFF")).count();
        assert_eq!(white(&picture(&names(3), 0.6)), 0);
        assert_eq!(white(&picture(&names(3), 0.7)), 3);
    }
}
