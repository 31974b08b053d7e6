//! Plain text layouts: a line per user, pairs in time order, and MovieLens' `::`.

use super::Log;
use super::read::Each;
use crate::Ids;
use crate::error::{Error, Result};
use std::io::{BufRead, BufReader};
use std::path::Path;

/// What a line can end in: something wrong with it, or with what is done about it.
enum Problem {
    Line(String),
    Other(Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Calls `each` with the text of every line that is not blank.
fn for_each_line(path: &Path, mut each: impl FnMut(&str) -> std::result::Result<(), Problem>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(Error::io("read", path))? == 0 {
            break;
        }
        let bad = |problem: Problem| match problem {
            Problem::Line(problem) => Error::Line { path: path.to_owned(), line, problem },
            Problem::Other(error) => error,
        };
        let text =
            std::str::from_utf8(&bytes).map_err(|e| bad(Problem::Line(format!("not UTF-8 text: {e}"))))?;
        let text = text.strip_prefix('\u{feff}').filter(|_| line == 1).unwrap_or(text);
        if !text.trim().is_empty() {
            each(text.trim_end_matches(['\n', '\r'])).map_err(bad)?;
        }
    }
    Ok(())
}

/// Events on their way, handed on in chunks.
struct Chunks<'a> {
    user: Vec<String>,
    item: Vec<String>,
    time: Option<Vec<f64>>,
    size: usize,
    each: Each<'a>,
}

impl<'a> Chunks<'a> {
    fn new(with_time: bool, size: usize, each: Each<'a>) -> Self {
        Self { user: Vec::new(), item: Vec::new(), time: with_time.then(Vec::new), size, each }
    }

    fn push(&mut self, user: &str, item: &str, time: Option<f64>) -> Result<()> {
        self.user.push(user.to_string());
        self.item.push(item.to_string());
        if let (Some(times), Some(time)) = (&mut self.time, time) {
            times.push(time);
        }
        if self.user.len() >= self.size { self.hand_on() } else { Ok(()) }
    }

    fn hand_on(&mut self) -> Result<()> {
        if self.user.is_empty() {
            return Ok(());
        }
        let take = std::mem::take::<Vec<String>>;
        let time = self.time.as_mut().map(std::mem::take);
        (self.each)(Log {
            user: Ids::from_text(take(&mut self.user)),
            item: Ids::from_text(take(&mut self.item)),
            time,
            idle: Ids::default(),
        })
    }
}

/// `user item item …` in time order; a user may have several lines.
pub(super) fn read_lines(path: &Path, size: usize, each: Each<'_>) -> Result<()> {
    let mut chunks = Chunks::new(false, size, each);
    for_each_line(path, |text| {
        let mut fields = text.split_whitespace();
        let user = fields.next().unwrap_or_default();
        let mut any = false;
        for item in fields {
            any = true;
            chunks.push(user, item, None)?;
        }
        match any {
            true => Ok(()),
            false => Err(Problem::Line(format!("user {user:?} without an item"))),
        }
    })?;
    chunks.hand_on()
}

/// `user item`, events in time order.
pub(super) fn read_pairs(path: &Path, size: usize, each: Each<'_>) -> Result<()> {
    let mut chunks = Chunks::new(false, size, each);
    for_each_line(path, |text| {
        let mut fields = text.split_whitespace();
        let (Some(user), Some(item), None) = (fields.next(), fields.next(), fields.next()) else {
            let count = text.split_whitespace().count();
            return Err(Problem::Line(format!("{count} fields, expected a user and an item")));
        };
        Ok(chunks.push(user, item, None)?)
    })?;
    chunks.hand_on()
}

/// `user::item::rating::time`.
pub(super) fn read_dat(path: &Path, size: usize, each: Each<'_>) -> Result<()> {
    let mut chunks = Chunks::new(true, size, each);
    for_each_line(path, |text| {
        let bad = |problem: String| Err(Problem::Line(problem));
        let fields: Vec<&str> = text.split("::").map(str::trim).collect();
        let &[user, item, _, time] = &fields[..] else {
            return bad(format!("{} fields between \"::\", expected user, item, rating, time", fields.len()));
        };
        if user.is_empty() || item.is_empty() {
            return bad("an empty id".into());
        }
        match time.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(chunks.push(user, item, Some(value))?),
            _ => bad(format!("time {time:?} is not a finite number")),
        }
    })?;
    chunks.hand_on()
}
