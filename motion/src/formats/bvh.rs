//! Biovision hierarchies: a tree of joints with their channels, and a line of numbers for each frame.
//!
//! Channels may come in any order and number; a position channel takes the place of that coordinate of the offset, as
//! animation programs read it. Rotations are degrees, and turn in the order in which they are listed.
//!
//! ```
//! use mamba_motion::formats::bvh::Bvh;
//! let text = "HIERARCHY\nROOT hips\n{\n OFFSET 0 0 0\n CHANNELS 3 Zrotation Xrotation Yrotation\n \
//!     End Site\n {\n  OFFSET 0 10 0\n }\n}\nMOTION\nFrames: 1\nFrame Time: 0.05\n90 0 0\n";
//! let bvh = Bvh::parse(text, "turn.bvh".as_ref())?;
//! assert_eq!(bvh.fps(), 20.0);
//! assert_eq!(Bvh::parse(&bvh.to_string(), "again.bvh".as_ref())?, bvh);
//! # Ok::<(), mamba_motion::Error>(())
//! ```

use crate::quaternion::{Quat, Vec3, about, add, mul, rotate};
use crate::{Error, Result};
use std::fmt;
use std::path::Path;

/// What one number of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Turn about the axis instead of move along it.
    pub rotation: bool,
    /// 0, 1, 2 for x, y, z.
    pub axis: usize,
}

impl Channel {
    /// The three rotations in the order z, x, y.
    pub const ZXY: [Self; 3] = [Self::turn(2), Self::turn(0), Self::turn(1)];
    /// The three positions.
    pub const XYZ: [Self; 3] = [Self::shift(0), Self::shift(1), Self::shift(2)];

    const fn turn(axis: usize) -> Self {
        Self { rotation: true, axis }
    }

    const fn shift(axis: usize) -> Self {
        Self { rotation: false, axis }
    }

    fn parse(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let axis = "xyz".find(word.chars().next()?)?;
        match &word[1..] {
            "rotation" => Some(Self::turn(axis)),
            "position" => Some(Self::shift(axis)),
            _ => None,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axis = ["X", "Y", "Z"][self.axis];
        write!(f, "{axis}{}", if self.rotation { "rotation" } else { "position" })
    }
}

/// A joint.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    /// Its name, without line breaks and braces.
    pub name: String,
    /// Its parent, which stands before it; none for the root.
    pub parent: Option<usize>,
    /// Its place relative to the parent at rest.
    pub offset: Vec3,
    /// Its numbers in a frame.
    pub channels: Vec<Channel>,
    /// End of the bone beyond a joint without children.
    pub end: Option<Vec3>,
}

/// A skeleton and its motion.
#[derive(Clone, Debug, PartialEq)]
pub struct Bvh {
    /// Joints in the order of the file: depth first, each before its children.
    pub joints: Vec<Joint>,
    /// Seconds from one frame to the next.
    pub frame_time: f64,
    /// The numbers of each frame: the channels of all joints in order.
    pub frames: Vec<Vec<f64>>,
}

/// Place and orientation of a joint in space.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    /// Where it is.
    pub position: Vec3,
    /// How it is turned.
    pub rotation: Quat,
}

impl Bvh {
    /// Reads a file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&super::read_text(path)?, path)
    }

    /// Reads a text; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        Parser { path, lines: text.lines().enumerate(), words: Vec::new(), line: 0 }.parse()
    }

    /// Writes the file whole or not at all.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        super::write_whole(path.as_ref(), self.to_string().as_bytes())
    }

    /// Frames per second. Frame times are written with few digits: one within 0.1 % of a whole rate means that rate.
    pub fn fps(&self) -> f64 {
        let fps = 1.0 / self.frame_time;
        if (fps - fps.round()).abs() < 1e-3 * fps { fps.round() } else { fps }
    }

    /// Channels of all joints.
    pub fn n_channels(&self) -> usize {
        self.joints.iter().map(|joint| joint.channels.len()).sum()
    }

    /// Places of all joints in a frame (forward kinematics).
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn places(&self, frame: usize) -> Vec<Placed> {
        let mut numbers = self.frames[frame].iter();
        let mut places: Vec<Placed> = Vec::with_capacity(self.joints.len());
        for joint in &self.joints {
            let (mut offset, mut rotation) = (joint.offset, crate::quaternion::IDENTITY);
            for (channel, &number) in joint.channels.iter().zip(&mut numbers) {
                if channel.rotation {
                    let mut axis = [0.0; 3];
                    axis[channel.axis] = 1.0;
                    rotation = mul(rotation, about(axis, number.to_radians()));
                } else {
                    offset[channel.axis] = number;
                }
            }
            places.push(match joint.parent {
                None => Placed { position: offset, rotation },
                Some(parent) => {
                    let Placed { position, rotation: above } = places[parent];
                    Placed { position: add(position, rotate(above, offset)), rotation: mul(above, rotation) }
                }
            });
        }
        places
    }
}

impl fmt::Display for Bvh {
    /// The file's text, with six digits behind the point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "HIERARCHY")?;
        self.write_hierarchy(f)?;
        writeln!(f, "MOTION\nFrames: {}\nFrame Time: {:.8}", self.frames.len(), self.frame_time)?;
        for frame in &self.frames {
            let numbers: Vec<String> = frame.iter().map(|x| format!("{x:.6}")).collect();
            writeln!(f, "{}", numbers.join(" "))?;
        }
        Ok(())
    }
}

impl Bvh {
    /// Joints are written in the order of the list, which is that of the numbers: depth first.
    fn write_hierarchy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let triple = |v: Vec3| format!("{:.6} {:.6} {:.6}", v[0], v[1], v[2]);
        let mut open: Vec<usize> = Vec::new();
        for (i, joint) in self.joints.iter().enumerate() {
            while open.last().copied() != joint.parent && open.pop().is_some() {
                writeln!(f, "{}}}", "\t".repeat(open.len()))?;
            }
            let indent = "\t".repeat(open.len());
            let kind = if joint.parent.is_none() { "ROOT" } else { "JOINT" };
            let channels: Vec<String> = joint.channels.iter().map(Channel::to_string).collect();
            writeln!(f, "{indent}{kind} {}\n{indent}{{", joint.name)?;
            writeln!(f, "{indent}\tOFFSET {}", triple(joint.offset))?;
            writeln!(f, "{indent}\tCHANNELS {} {}", channels.len(), channels.join(" "))?;
            if let Some(end) = joint.end {
                writeln!(f, "{indent}\tEnd Site\n{indent}\t{{")?;
                writeln!(f, "{indent}\t\tOFFSET {}\n{indent}\t}}", triple(end))?;
            }
            open.push(i);
        }
        while open.pop().is_some() {
            writeln!(f, "{}}}", "\t".repeat(open.len()))?;
        }
        Ok(())
    }
}

/// Most joints and channels that a file may have; more is a broken file.
const MOST: usize = 10_000;

struct Parser<'a> {
    path: &'a Path,
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    /// Words of the present line that are still to read, last first.
    words: Vec<&'a str>,
    /// The present line, 1-based.
    line: usize,
}

impl<'a> Parser<'a> {
    fn parse(mut self) -> Result<Bvh> {
        self.keyword("HIERARCHY")?;
        self.keyword("ROOT")?;
        let joints = self.hierarchy()?;
        self.label("Frames:")?;
        let count = self.word("the number of frames")?;
        let count: usize =
            count.parse().map_err(|_| self.fail(format!("{count:?} is no number of frames")))?;
        self.keyword("Frame")?;
        self.label("Time:")?;
        let frame_time = self.number("the frame time")?;
        if let Some(problem) = super::frame_time_problem(frame_time) {
            return Err(self.fail(format!("the frame time is {problem}")));
        }
        let n_channels = joints.iter().map(|joint: &Joint| joint.channels.len()).sum();
        let frames = self.frames(count, n_channels)?;
        Ok(Bvh { joints, frame_time, frames })
    }

    /// Joints up to the word MOTION, after ROOT.
    fn hierarchy(&mut self) -> Result<Vec<Joint>> {
        let mut joints: Vec<Joint> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        self.joint(None, &mut joints, &mut open)?;
        loop {
            let word = self.word("JOINT, End Site, } or MOTION")?;
            match word.to_ascii_uppercase().as_str() {
                "JOINT" if open.is_empty() => return Err(self.fail("JOINT outside of the root's braces")),
                "JOINT" => {
                    let parent = open.last().copied();
                    self.joint(parent, &mut joints, &mut open)?;
                }
                "END" => {
                    self.keyword("Site")?;
                    self.keyword("{")?;
                    let end = self.triple()?;
                    self.keyword("}")?;
                    match open.last() {
                        Some(&joint) => joints[joint].end = Some(end),
                        None => return Err(self.fail("End Site outside of the root's braces")),
                    }
                }
                "}" => {
                    if open.pop().is_none() {
                        return Err(self.fail("a } too many"));
                    }
                }
                "MOTION" if open.is_empty() => return Ok(joints),
                "MOTION" => {
                    return Err(self.fail(format!("MOTION, but {} joints lack their }}", open.len())));
                }
                "ROOT" => return Err(self.fail("a second ROOT; one skeleton a file is read")),
                _ => return Err(self.fail(format!("expected JOINT, End Site, }} or MOTION, found {word:?}"))),
            }
        }
    }

    /// A joint's name, offset and channels, up to its first child.
    fn joint(&mut self, parent: Option<usize>, joints: &mut Vec<Joint>, open: &mut Vec<usize>) -> Result<()> {
        let mut name = vec![self.word("a joint's name")?];
        // Some programs write names with spaces.
        while let Some(word) = self.words.pop_if(|word| *word != "{") {
            name.push(word);
        }
        let name = name.join(" ");
        if name.contains(['{', '}']) {
            return Err(self.fail(format!("the name {name:?} has a brace in it")));
        }
        if joints.len() == MOST {
            return Err(self.fail(format!("more than {MOST} joints")));
        }
        self.keyword("{")?;
        let offset = self.triple()?;
        self.keyword("CHANNELS")?;
        let count = self.word("the number of channels")?;
        let number: usize = match count.parse() {
            Ok(number) if number <= MOST => number,
            _ => return Err(self.fail(format!("{count:?} is no number of channels"))),
        };
        let mut channels = Vec::with_capacity(number);
        for _ in 0..number {
            let word = self.word("a channel")?;
            let channel = Channel::parse(word);
            channels.push(channel.ok_or_else(|| {
                self.fail(format!("{word:?} is no channel, expected Xposition to Zrotation"))
            })?);
        }
        open.push(joints.len());
        joints.push(Joint { name, parent, offset, channels, end: None });
        Ok(())
    }

    /// One line of `n_channels` numbers for each frame.
    fn frames(&mut self, count: usize, n_channels: usize) -> Result<Vec<Vec<f64>>> {
        if let Some(word) = self.words.pop() {
            return Err(self.fail(format!("{word:?} after the frame time")));
        }
        let mut frames = Vec::new();
        while self.next_line() {
            let mut frame = Vec::with_capacity(n_channels.min(self.words.len()));
            while !self.words.is_empty() {
                frame.push(self.number("a channel")?);
            }
            if frames.len() == count {
                return Err(self.fail(format!("a line after the {count} frames that are announced")));
            }
            if frame.len() != n_channels {
                let (n, got) = (frames.len() + 1, frame.len());
                return Err(self.fail(format!("frame {n} has {got} numbers, expected {n_channels}")));
            }
            frames.push(frame);
        }
        if frames.len() != count {
            let got = frames.len();
            return Err(self.fail(format!("the file ends after {got} frames of {count}")));
        }
        Ok(frames)
    }

    fn triple(&mut self) -> Result<Vec3> {
        self.keyword("OFFSET")?;
        Ok([self.number("an offset")?, self.number("an offset")?, self.number("an offset")?])
    }

    fn number(&mut self, what: &str) -> Result<f64> {
        let word = self.word(what)?;
        match word.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(self.fail(format!("{what} is {word:?}, expected a number"))),
        }
    }

    fn keyword(&mut self, keyword: &str) -> Result<()> {
        let word = self.word(keyword)?;
        if word.eq_ignore_ascii_case(keyword) {
            return Ok(());
        }
        Err(self.fail(format!("expected {keyword}, found {word:?}")))
    }

    /// A keyword that ends in a colon, after which some programs leave no space.
    fn label(&mut self, label: &str) -> Result<()> {
        let word = self.word(label)?;
        match word.split_at_checked(label.len()) {
            Some((start, rest)) if start.eq_ignore_ascii_case(label) => {
                self.words.extend(Some(rest).filter(|rest| !rest.is_empty()));
                Ok(())
            }
            _ => Err(self.fail(format!("expected {label}, found {word:?}"))),
        }
    }

    fn word(&mut self, expected: &str) -> Result<&'a str> {
        loop {
            if let Some(word) = self.words.pop() {
                return Ok(word);
            }
            if !self.next_line() {
                return Err(self.fail(format!("the file ends where {expected} is expected")));
            }
        }
    }

    /// Goes to the next line that is not empty.
    fn next_line(&mut self) -> bool {
        for (i, line) in self.lines.by_ref() {
            self.line = i + 1;
            self.words = line.split_whitespace().rev().collect();
            if !self.words.is_empty() {
                return true;
            }
        }
        false
    }

    fn fail(&self, message: impl ToString) -> Error {
        Error::line(self.path, self.line.max(1), message)
    }
}
