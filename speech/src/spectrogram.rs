//! Pictures of sound: magnitudes over time and frequency, before and after enhancement.

use crate::Result;
use crate::stft::{Stft, StftConfig};
use mamba_core::plot::{self, DrawResult, DrawingArea, DrawingBackend, Picture, Shift};

/// Columns of a picture at most.
const COLUMNS: usize = 900;
/// Rows: one for each bin.
const ROWS: usize = 201;
/// Levels from black to white, in dB below the loudest.
const RANGE_DB: f32 = 80.0;

/// Two spectrograms, one above the other, on one scale of time, frequency and level.
pub struct BeforeAfter {
    seconds: f64,
    nyquist_khz: f64,
    panels: [(String, Panel); 2],
}

/// Levels in dB, columns of [`ROWS`].
struct Panel {
    levels: Vec<[f32; ROWS]>,
}

impl Panel {
    /// The mean power of every stretch of time.
    fn new(samples: &[f32], stft: &Stft<f32>) -> Self {
        let (re, im) = stft.spectrum(samples);
        let power: Vec<f32> = re.iter().zip(&im).map(|(re, im)| re * re + im * im).collect();
        let frames: Vec<&[f32]> = power.chunks_exact(ROWS).collect();
        let columns = frames.len().min(COLUMNS);
        let column = |i: usize| {
            let part = &frames[i * frames.len() / columns..((i + 1) * frames.len() / columns)];
            std::array::from_fn(|k| {
                let mean = part.iter().map(|frame| frame[k]).sum::<f32>() / part.len() as f32;
                10.0 * (mean + 1e-12).log10()
            })
        };
        Self { levels: (0..columns).map(column).collect() }
    }
}

impl BeforeAfter {
    /// Of two signals of one length and rate; those too short for a spectrum are followed by silence.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn new(before: &[f32], after: &[f32], sample_rate: u32) -> Result<Self> {
        let cfg = StftConfig { sampling_rate: sample_rate, ..StftConfig::default() };
        let stft = Stft::new(&cfg)?;
        let n = before.len().min(after.len()).max(stft.min_samples());
        let panel = |samples: &[f32]| {
            let mut samples = samples[..samples.len().min(n)].to_vec();
            samples.resize(n, 0.0);
            Panel::new(&samples, &stft)
        };
        Ok(Self {
            seconds: n as f64 / f64::from(sample_rate),
            nyquist_khz: f64::from(sample_rate) / 2000.0,
            panels: [("before".into(), panel(before)), ("after".into(), panel(after))],
        })
    }

    /// The picture as the bytes of a PNG file.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn png(&self) -> mamba_core::Result<Vec<u8>> {
        const SIZE: (u32, u32) = (1000, 640);
        let mut bytes = Vec::new();
        plot::encode_png(&mut bytes, SIZE, &plot::rgb(SIZE, self)?).map_err(mamba_core::Error::other)?;
        Ok(bytes)
    }
}

/// Black over violet and orange to pale yellow, for 0 to 1.
fn colour(level: f32) -> plotters::style::RGBColor {
    const STOPS: [[f32; 3]; 5] = [
        [0.0, 0.0, 8.0],
        [80.0, 18.0, 120.0],
        [182.0, 54.0, 121.0],
        [251.0, 136.0, 97.0],
        [252.0, 253.0, 191.0],
    ];
    let at = level.clamp(0.0, 1.0) * 4.0;
    let i = (at as usize).min(3);
    let mix = |c: usize| (STOPS[i][c] + (STOPS[i + 1][c] - STOPS[i][c]) * (at - i as f32)) as u8;
    plotters::style::RGBColor(mix(0), mix(1), mix(2))
}

impl Picture for BeforeAfter {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        use plotters::prelude::*;
        area.fill(&WHITE)?;
        let loudest =
            self.panels.iter().flat_map(|(_, p)| p.levels.iter().flatten()).copied().fold(-120.0, f32::max);
        for ((title, panel), area) in self.panels.iter().zip(area.split_evenly((2, 1))) {
            let mut chart = ChartBuilder::on(&area)
                .margin(8)
                .caption(title, plot::font(18))
                .x_label_area_size(32)
                .y_label_area_size(48)
                .build_cartesian_2d(0.0..self.seconds, 0.0..self.nyquist_khz)?;
            let (width, height) = (self.seconds / panel.levels.len() as f64, self.nyquist_khz / ROWS as f64);
            let cells = panel.levels.iter().enumerate().flat_map(|(i, column)| {
                column.iter().enumerate().map(move |(k, &level)| {
                    let (x, y) = (i as f64 * width, k as f64 * height);
                    let colour = colour(1.0 + (level - loudest) / RANGE_DB);
                    Rectangle::new([(x, y), (x + width, y + height)], colour.filled())
                })
            });
            chart.draw_series(cells)?;
            chart
                .configure_mesh()
                .disable_mesh()
                .x_desc("seconds")
                .y_desc("kHz")
                .label_style(plot::font(13))
                .axis_style(plot::INK)
                .draw()?;
        }
        Ok(())
    }
}
