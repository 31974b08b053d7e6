//! A picture of a forecast: history, forecast and intervals of each variable, one panel below the other.

use crate::forecast::Forecast;
use crate::table::{Frequency, local};
use mamba_core::plot::{self, COLORS, DrawResult, DrawingArea, DrawingBackend, INK, Picture, Shift, font};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::ops::Range;

/// Pixels of a panel, and of what stands above and below all of them.
const PANEL: u32 = 230;
const WIDTH: u32 = 1000;
const HEAD: u32 = 44;
/// Panels at most; more could not be read.
pub const MAX_PANELS: usize = 6;

const HISTORY: RGBColor = INK;
const FORECAST: RGBColor = COLORS[0];
const ACTUAL: RGBColor = COLORS[1];

/// What is drawn.
pub struct ForecastPicture<'a> {
    /// Heading.
    pub title: String,
    /// Names of all variables, and which of them are shown.
    pub columns: &'a [String],
    /// Places of the variables that are shown.
    pub shown: Vec<usize>,
    /// Times of the history.
    pub times: &'a [i64],
    /// Its values, row after row.
    pub values: &'a [f64],
    /// What the model says.
    pub forecast: &'a Forecast,
    /// What came, where it is known: values of the forecast rows, row after row.
    pub actual: Option<&'a [f64]>,
    /// Time between rows.
    pub frequency: Frequency,
    /// Zone of the times, if one is given.
    pub zone: Option<chrono_tz::Tz>,
}

impl ForecastPicture<'_> {
    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (WIDTH, HEAD + PANEL * self.shown.len() as u32)
    }
}

impl Picture for ForecastPicture<'_> {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let (head, panels) = area.split_vertically(HEAD);
        head.draw_text(&self.title, &font(21), (20, 14))?;
        self.legend(&head)?;
        for (panel, &column) in panels.split_evenly((self.shown.len(), 1)).iter().zip(&self.shown) {
            self.panel(panel, column)?;
        }
        Ok(())
    }
}

impl ForecastPicture<'_> {
    /// What the colours mean, once for all panels, at the right of the heading.
    fn legend<B: DrawingBackend>(&self, head: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        let mut levels: Vec<u8> = self.forecast.intervals.iter().map(|i| i.level).collect();
        levels.sort_unstable_by_key(|&level| std::cmp::Reverse(level));
        let bands =
            levels.iter().enumerate().map(|(rank, level)| (format!("{level} %"), band_color(rank), 12));
        let mut entries =
            vec![("history".to_string(), HISTORY.mix(1.0), 2), ("forecast".into(), FORECAST.mix(1.0), 2)];
        entries.extend(self.actual.map(|_| ("what came".into(), ACTUAL.mix(1.0), 2)));
        entries.extend(bands);
        let width = |text: &str| 40 + 8 * text.len() as i32;
        let mut x = WIDTH as i32 - 20 - entries.iter().map(|(text, ..)| width(text)).sum::<i32>();
        for (text, color, height) in entries {
            let middle = 24;
            let key = [(x, middle - height / 2), (x + 22, middle + (height + 1) / 2)];
            head.draw(&Rectangle::new(key, color.filled()))?;
            head.draw_text(&text, &font(15), (x + 28, 17))?;
            x += width(&text);
        }
        Ok(())
    }

    fn panel<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, column: usize) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        let n = self.columns.len();
        let of = |values: &[f64]| -> Vec<f64> { values.iter().skip(column).step_by(n).copied().collect() };
        let (history, forecast) = (of(self.values), of(&self.forecast.values));
        let actual = self.actual.map(of);
        let bands: Vec<(u8, Vec<f64>, Vec<f64>)> =
            self.forecast.intervals.iter().map(|i| (i.level, of(&i.lower), of(&i.upper))).collect();
        let start = history.len();
        let all = history.iter().chain(&forecast).chain(actual.iter().flatten());
        let all = all.chain(bands.iter().flat_map(|(_, lower, upper)| lower.iter().chain(upper)));
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        let air = if high > low { (high - low) * 0.08 } else { 1.0 };
        let (low, high) = (low - air, high + air);
        let last = (start + forecast.len() - 1) as f64;

        let times: Vec<i64> = self.times.iter().chain(&self.forecast.times).copied().collect();
        let axis = TimeAxis { last, ticks: ticks(&times, self.frequency, self.zone) };
        let mut chart = ChartBuilder::on(area)
            .margin_left(12)
            .margin_right(28)
            .margin_top(26)
            .margin_bottom(4)
            .x_label_area_size(30)
            .y_label_area_size(66)
            .build_cartesian_2d(axis, low..high)?;
        chart
            .configure_mesh()
            .bold_line_style(RGBColor(226, 226, 226))
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .y_labels(5)
            .y_label_formatter(&|y| short(*y, high - low))
            .label_style(font(15))
            .draw()?;
        area.draw_text(&self.columns[column], &font(17), (80, 4))?;

        // The widest band first, so that narrower ones lie on it.
        let point = |i: usize, v: &f64| ((start + i) as f64, *v);
        let mut widest_first: Vec<_> = bands.iter().collect();
        widest_first.sort_by_key(|(level, ..)| std::cmp::Reverse(*level));
        for (rank, (_, lower, upper)) in widest_first.into_iter().enumerate() {
            let color = band_color(rank);
            let up = upper.iter().enumerate().map(|(i, v)| point(i, v));
            let down = lower.iter().enumerate().rev().map(|(i, v)| point(i, v));
            let polygon: Vec<(f64, f64)> = up.chain(down).collect();
            chart.draw_series(std::iter::once(Polygon::new(polygon, color.filled())))?;
        }
        // The line of the past leads into that of the forecast.
        let joined = |values: &[f64]| -> Vec<(f64, f64)> {
            let bridge = history.last().map(|v| ((start - 1) as f64, *v));
            bridge.into_iter().chain(values.iter().enumerate().map(|(i, v)| point(i, v))).collect()
        };
        let past: Vec<(f64, f64)> = history.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
        let mut lines = vec![(past, HISTORY)];
        lines.extend(actual.as_ref().map(|actual| (joined(actual), ACTUAL)));
        lines.push((joined(&forecast), FORECAST));
        for (points, color) in lines {
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        }
        let now = start as f64 - 1.0;
        chart.draw_series(std::iter::once(PathElement::new(vec![(now, low), (now, high)], INK.mix(0.5))))?;
        Ok(())
    }
}

/// Bands lie on each other, the widest lowest.
fn band_color(rank: usize) -> RGBAColor {
    FORECAST.mix(0.16 + 0.12 * rank as f64)
}

/// Rows from the first of the history, labelled at round times.
struct TimeAxis {
    last: f64,
    ticks: Vec<(f64, String)>,
}

impl Ranged for TimeAxis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (value / self.last.max(1.0) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(at, _)| *at).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..self.last
    }
}

impl ValueFormatter<f64> for TimeAxis {
    fn format_ext(&self, value: &f64) -> String {
        let known = self.ticks.iter().find(|(at, _)| at == value);
        known.map_or_else(String::new, |(_, text)| text.clone())
    }
}

/// Places and labels on the time axis: at most nine, at round times.
fn ticks(times: &[i64], frequency: Frequency, zone: Option<chrono_tz::Tz>) -> Vec<(f64, String)> {
    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;
    const MOST: usize = 9;
    let every = |n: usize| {
        let at = |i: &usize| i.is_multiple_of(n);
        (0..times.len()).filter(at).map(|i| (i as f64, frequency.format(times[i], zone))).collect::<Vec<_>>()
    };
    let evenly = || every(times.len().div_ceil(MOST - 1).max(1));
    let Frequency::Milliseconds(_) = frequency else {
        let months = matches!(frequency, Frequency::Months(_));
        return evenly()
            .into_iter()
            .map(|(at, text)| (at, if months { text[..7].to_owned() } else { text }))
            .collect();
    };
    let steps = [
        1_000,
        10_000,
        60_000,
        300_000,
        900_000,
        HOUR,
        3 * HOUR,
        6 * HOUR,
        12 * HOUR,
        DAY,
        2 * DAY,
        7 * DAY,
        28 * DAY,
    ];
    // by the clocks of the zone
    let times: Vec<_> = times.iter().map(|&time| local(time, zone)).collect();
    let clock = |i: usize| times[i].and_utc().timestamp_millis();
    for step in steps {
        // Weeks begin on Mondays; 1970-01-05 was one.
        let origin = if step >= 7 * DAY { 4 * DAY } else { 0 };
        let round: Vec<usize> = (0..times.len()).filter(|&i| (clock(i) - origin) % step == 0).collect();
        if (2..=MOST).contains(&round.len()) {
            let label = |i: usize| {
                let midnight = clock(i) % DAY == 0;
                times[i].format(if midnight { "%b %-d" } else { "%H:%M" }).to_string()
            };
            return round.into_iter().map(|i| (i as f64, label(i))).collect();
        }
    }
    evenly()
}

/// A number with as many decimals as the range of the axis asks for.
fn short(value: f64, range: f64) -> String {
    let decimals = (1.5 - range.abs().max(1e-12).log10()).ceil().clamp(0.0, 6.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Writes the picture; the extension, `svg` or `png`, decides the format.
pub fn save(path: &std::path::Path, picture: &ForecastPicture<'_>) -> mamba_core::Result<()> {
    plot::save(path, picture.size(), picture)
}
