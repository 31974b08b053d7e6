//! Pictures as SVG or PNG, drawn with [`plotters`] and labelled with a font of their own, so that they look the same on
//! every machine. Both kinds are written whole or not at all.
//!
//! ```
//! use mamba_core::plot::{self, DrawResult, DrawingArea, DrawingBackend, Picture, Shift};
//! use plotters::prelude::*;
//!
//! struct Line(Vec<(f64, f64)>);
//!
//! impl Picture for Line {
//!     fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
//!     where
//!         B::ErrorType: 'static,
//!     {
//!         area.fill(&WHITE)?;
//!         let mut chart = ChartBuilder::on(area).margin(8).build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
//!         chart.draw_series(LineSeries::new(self.0.iter().copied(), plot::COLORS[0]))?;
//!         Ok(())
//!     }
//! }
//!
//! # let folder = tempfile::tempdir()?;
//! plot::save(&folder.path().join("line.png"), (640, 400), &Line(vec![(0.0, 0.0), (1.0, 1.0)]))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::files::atomic_write;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::io::Write;
use std::path::Path;
use std::sync::Once;

pub use plotters::coord::Shift;
pub use plotters::prelude::{DrawingArea, DrawingBackend};

/// What a drawing gives: plotters has an error type for every backend.
pub type DrawResult = std::result::Result<(), Box<dyn std::error::Error>>;

/// Colours for series, easy to tell apart, also for the colour-blind and on white.
pub const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 93, 14),
    RGBColor(44, 140, 90),
    RGBColor(150, 75, 160),
    RGBColor(190, 150, 20),
    RGBColor(110, 110, 110),
];
/// For axes and letters.
pub const INK: RGBColor = RGBColor(60, 60, 60);

/// Something that can be drawn on any backend.
pub trait Picture {
    /// Draws on the whole of `area`, whose size is in pixels.
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static;
}

/// Letters of `size` pixels, in [`INK`].
pub fn font(size: u32) -> TextStyle<'static> {
    load_font();
    ("sans-serif", size).into_font().color(&INK)
}

/// Draws `picture` in `size` (width, height) pixels; the extension of `path`, `svg` or `png`, decides the format.
pub fn save(path: &Path, size: (u32, u32), picture: &impl Picture) -> Result<()> {
    load_font();
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => svg(size, picture)?.into_bytes(),
        Some("png") => {
            let mut bytes = Vec::new();
            encode_png(&mut bytes, size, &rgb(size, picture)?).map_err(|e| Error::other(e.to_string()))?;
            bytes
        }
        _ => return Err(Error::other(format!("{}: a picture's name ends in .svg or .png", path.display()))),
    };
    atomic_write(path, |w: &mut dyn Write| w.write_all(&bytes).map_err(|e| Error::io(path, e)))
}

/// The picture as text of an SVG file.
pub fn svg(size: (u32, u32), picture: &impl Picture) -> Result<String> {
    load_font();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        finish(picture.draw(&area).and_then(|()| Ok(area.present()?)))?;
    }
    Ok(text)
}

/// The picture as pixels: rows from the top, three bytes each (red, green, blue).
pub fn rgb(size: (u32, u32), picture: &impl Picture) -> Result<Vec<u8>> {
    load_font();
    let mut pixels = vec![255; size.0 as usize * size.1 as usize * 3];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        finish(picture.draw(&area).and_then(|()| Ok(area.present()?)))?;
    }
    Ok(pixels)
}

/// Writes pixels, as [`rgb`] returns them, as a PNG file.
pub fn encode_png(
    writer: impl Write,
    size: (u32, u32),
    rgb: &[u8],
) -> std::result::Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(writer, size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(rgb)
}

fn finish(drawn: DrawResult) -> Result<()> {
    drawn.map_err(|e| Error::other(e.to_string()))
}

fn load_font() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let loaded = register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
        debug_assert!(loaded.is_ok(), "the bundled font is a font");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cross;

    impl Picture for Cross {
        fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
        where
            B::ErrorType: 'static,
        {
            area.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(area)
                .x_label_area_size(30)
                .y_label_area_size(40)
                .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
            chart.configure_mesh().x_desc("across").label_style(font(14)).draw()?;
            chart.draw_series(LineSeries::new([(0.0, 0.0), (1.0, 1.0)], COLORS[0]))?;
            Ok(())
        }
    }

    #[test]
    fn a_picture_is_written_as_svg_and_as_png_and_as_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (svg, png) = (folder.path().join("a.svg"), folder.path().join("a.png"));
        save(&svg, (320, 200), &Cross).unwrap();
        save(&png, (320, 200), &Cross).unwrap();
        assert!(std::fs::read_to_string(&svg).unwrap().contains("across"));
        let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&png).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (320, 200));
        assert!(pixels.iter().filter(|&&p| p < 100).count() > 200, "axes and letters are dark");
        let refused = save(&folder.path().join("a.bmp"), (320, 200), &Cross).unwrap_err();
        assert!(refused.to_string().contains(".svg or .png"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }
}
