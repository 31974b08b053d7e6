//! A web page that shows motions: one file, no network; it plays, turns, scrubs, and sets two motions side by side.

use crate::features::FPS;
use crate::skeleton::{NAMES, PARENTS, Pose};
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

/// A motion with the name that it is shown under.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<'a> {
    /// The name.
    pub name: &'a str,
    /// Its poses, at 20 frames a second.
    pub poses: &'a [Pose],
}

/// Where the motions stand in the page.
const PLACE: &str = "/*DATA*/";

/// The page.
///
/// # Errors
/// No motion, or one without poses.
pub fn page(motions: &[Named<'_>]) -> Result<String> {
    if motions.is_empty() || motions.iter().any(|motion| motion.poses.is_empty()) {
        return Err(Error::Motion("a page needs motions with at least one pose each".into()));
    }
    let clip = |motion: &Named<'_>| {
        // Where the root is over the floor, in metres, and the joints from there in millimetres.
        let roots = motion.poses.iter().flat_map(|pose| [pose[0][0], pose[0][2]]);
        let path: Vec<u8> = roots.flat_map(|x| (x as f32).to_le_bytes()).collect();
        let from_root = motion.poses.iter().flat_map(|pose| {
            pose.iter().flat_map(|joint| [joint[0] - pose[0][0], joint[1], joint[2] - pose[0][2]])
        });
        let joints: Vec<u8> = from_root.flat_map(|x| ((x * 1000.0).round() as i16).to_le_bytes()).collect();
        json!({ "name": motion.name, "frames": motion.poses.len(), "path": base64(&path), "joints": base64(&joints) })
    };
    let sides = NAMES.map(|name| match name.split('_').next() {
        Some("left") => 0,
        Some("right") => 1,
        _ => 2,
    });
    let clips: Vec<_> = motions.iter().map(clip).collect();
    let data = json!({ "fps": FPS, "parents": PARENTS, "sides": sides, "clips": clips }).to_string();
    // In a script only this could end it early.
    Ok(include_str!("viewer.html").replacen(PLACE, &data.replace("</", "<\\/"), 1))
}

/// Writes the page, whole or not at all.
pub fn write(path: &Path, motions: &[Named<'_>]) -> Result<()> {
    crate::formats::write_whole(path, page(motions)?.as_bytes())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let number = three.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= three.len() { digit as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, coded) in cases {
            assert_eq!(base64(text.as_bytes()), coded);
        }
    }

    #[test]
    fn a_page_holds_all_it_needs() {
        let poses = [[[0.5, 1.0, -0.25]; 22]; 2];
        let page = page(&[Named { name: "a </script> b", poses: &poses }]).unwrap();
        assert!(!page.contains(PLACE) && !page.contains("http"), "no network");
        assert_eq!(page.matches("</script>").count(), 1, "the name cannot end the script");
        assert!(page.contains("\"frames\":2"));
        assert!(super::page(&[]).is_err());
    }
}
