//! Still and moving pictures of motions: a contact sheet as PNG, an animation as GIF.

use crate::features::FPS;
use crate::quaternion::Vec3;
use crate::skeleton::{CHAINS, N_JOINTS, NAMES, PARENTS, Pose};
use crate::viewer::Named;
use crate::{Error, Result};
use mamba_core::plot::{self, DrawResult, DrawingArea, DrawingBackend, Picture, Shift};
use plotters::prelude::*;
use std::path::Path;

/// Turn of the camera about the vertical, and its height, in radians.
const CAMERA: (f64, f64) = (0.7, 0.22);
/// Colours of left limbs, right limbs, spine.
const COLORS: [RGBColor; 3] = [RGBColor(31, 119, 180), RGBColor(214, 93, 14), RGBColor(60, 60, 60)];
const PAPER: RGBColor = RGBColor(250, 250, 248);
const GRID: RGBColor = RGBColor(216, 216, 210);

/// Places on paper, in metres: right and up, from the side that [`CAMERA`] says. No perspective, so that sizes compare.
fn project(p: Vec3) -> (f64, f64) {
    let ((sy, cy), (sp, cp)) = (CAMERA.0.sin_cos(), CAMERA.1.sin_cos());
    let (right, ahead) = (p[0] * cy - p[2] * sy, p[0] * sy + p[2] * cy);
    (right, p[1] * cp - ahead * sp)
}

/// A row of frames for each motion.
struct Sheet<'a> {
    motions: &'a [Named<'a>],
    columns: usize,
}

/// Size of a cell in pixels.
const CELL: (u32, u32) = (132, 190);
/// Height of a row's title.
const TITLE: u32 = 22;

/// Writes a PNG with a row of `columns` frames, evenly over its length, for each motion.
///
/// # Errors
/// No motion, one without poses, or no columns.
pub fn contact_sheet(path: &Path, motions: &[Named<'_>], columns: usize) -> Result<()> {
    if motions.is_empty() || columns == 0 || motions.iter().any(|motion| motion.poses.is_empty()) {
        return Err(Error::Motion("a contact sheet needs motions with poses, and columns".into()));
    }
    let size = (CELL.0 * columns as u32, (CELL.1 + TITLE) * motions.len() as u32);
    Ok(plot::save(path, size, &Sheet { motions, columns })?)
}

impl Picture for Sheet<'_> {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        area.fill(&PAPER)?;
        for (row, motion) in self.motions.iter().enumerate() {
            let top = row as i32 * (CELL.1 + TITLE) as i32;
            let n = motion.poses.len();
            let title = format!("{}   {:.1} s", motion.name, n as f64 / FPS);
            area.draw(&Text::new(title, (6, top + 4), plot::font(15)))?;
            for column in 0..self.columns {
                let frame = if self.columns == 1 { 0 } else { column * (n - 1) / (self.columns - 1) };
                let left = column as i32 * CELL.0 as i32;
                let origin = (left + CELL.0 as i32 / 2, top + (TITLE + CELL.1) as i32 - 26);
                figure(area, &motion.poses[frame], origin, f64::from(CELL.1) / 2.35)?;
                let time = format!("{:.1}", frame as f64 / FPS);
                area.draw(&Text::new(time, (left + 4, top + (TITLE + CELL.1) as i32 - 16), plot::font(12)))?;
            }
        }
        Ok(())
    }
}

/// A pose over a piece of floor; `origin` is the pixel below the pelvis, `scale` pixels per metre.
fn figure<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    pose: &Pose,
    origin: (i32, i32),
    scale: f64,
) -> DrawResult
where
    B::ErrorType: 'static,
{
    let (x0, z0) = (pose[0][0], pose[0][2]);
    let pixel = |p: Vec3| {
        let (right, up) = project([p[0] - x0, p[1], p[2] - z0]);
        (origin.0 + (right * scale) as i32, origin.1 - (up * scale) as i32)
    };
    // Lines every half metre that stay where they are while the person moves on.
    let lines = |centre: f64| {
        let first = ((centre - 0.6) * 2.0).ceil() as i64;
        let last = ((centre + 0.6) * 2.0).floor() as i64;
        (first..=last).map(|i| i as f64 / 2.0)
    };
    for x in lines(x0) {
        area.draw(&PathElement::new([pixel([x, 0.0, z0 - 0.6]), pixel([x, 0.0, z0 + 0.6])], GRID))?;
    }
    for z in lines(z0) {
        area.draw(&PathElement::new([pixel([x0 - 0.6, 0.0, z]), pixel([x0 + 0.6, 0.0, z])], GRID))?;
    }
    let shadow = RGBColor(200, 200, 194);
    for joint in 1..N_JOINTS {
        let ends = [pose[PARENTS[joint]], pose[joint]].map(|p| pixel([p[0], 0.0, p[2]]));
        area.draw(&PathElement::new(ends, shadow.stroke_width(2)))?;
    }
    for chain in CHAINS {
        for bone in chain.windows(2) {
            let color = match NAMES[bone[1]].split('_').next() {
                Some("left") => COLORS[0],
                Some("right") => COLORS[1],
                _ => COLORS[2],
            };
            let ends = [pixel(pose[bone[0]]), pixel(pose[bone[1]])];
            area.draw(&PathElement::new(ends, color.stroke_width(3)))?;
        }
    }
    let head = pixel(pose[15]);
    area.draw(&Circle::new(
        (head.0, head.1 - (0.03 * scale) as i32),
        (0.09 * scale) as i32,
        COLORS[2].filled(),
    ))?;
    Ok(())
}

/// One frame of motions side by side.
struct Moment<'a> {
    motions: &'a [Named<'a>],
    frame: usize,
}

impl Picture for Moment<'_> {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> DrawResult
    where
        B::ErrorType: 'static,
    {
        area.fill(&PAPER)?;
        let height = area.dim_in_pixel().1 as i32;
        for (i, motion) in self.motions.iter().enumerate() {
            let left = i as i32 * GIF_CELL.0 as i32;
            let short: String = motion.name.chars().take(26).collect();
            area.draw(&Text::new(short, (left + 6, 4), plot::font(15)))?;
            let pose = &motion.poses[self.frame.min(motion.poses.len() - 1)];
            figure(area, pose, (left + GIF_CELL.0 as i32 / 2, height - 34), f64::from(GIF_CELL.1) / 2.3)?;
        }
        Ok(())
    }
}

/// Size of a motion in an animation.
const GIF_CELL: (u32, u32) = (220, 300);

/// Writes a GIF of motions side by side, at 20 frames a second, without end.
///
/// # Errors
/// No motion, more than fit, or one without poses.
pub fn animation(path: &Path, motions: &[Named<'_>]) -> Result<()> {
    let size = (GIF_CELL.0 * motions.len() as u32, GIF_CELL.1);
    let (Ok(width), Ok(height)) = (u16::try_from(size.0), u16::try_from(size.1)) else {
        return Err(Error::Motion(format!("{} motions do not fit side by side", motions.len())));
    };
    let frames = motions.iter().map(|motion| motion.poses.len()).max().unwrap_or(0);
    if motions.iter().any(|motion| motion.poses.is_empty()) || frames == 0 {
        return Err(Error::Motion("an animation needs motions with poses".into()));
    }
    let failed = |e: gif::EncodingError| Error::file(path, format!("GIF: {e}"));
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, width, height, &[]).map_err(failed)?;
    encoder.set_repeat(gif::Repeat::Infinite).map_err(failed)?;
    for frame in 0..frames {
        let pixels = plot::rgb(size, &Moment { motions, frame })?;
        let mut image = gif::Frame::from_rgb_speed(width, height, &pixels, 20);
        image.delay = (100.0 / FPS) as u16;
        encoder.write_frame(&image).map_err(failed)?;
    }
    drop(encoder);
    crate::formats::write_whole(path, &bytes)
}
