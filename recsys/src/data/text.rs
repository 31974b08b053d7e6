//! Plain text layouts: a line per user, pairs in time order, and MovieLens' `::`.

use super::Log;
use crate::Ids;
use crate::error::{Error, Result};
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Calls `each` with the number (from 1) and the text of every line that is not blank.
fn for_each_line(path: &Path, mut each: impl FnMut(usize, &str) -> std::result::Result<(), String>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(Error::io("read", path))? == 0 {
            return Ok(());
        }
        let bad = |problem: String| Error::Line { path: path.to_owned(), line, problem };
        let text = std::str::from_utf8(&bytes).map_err(|e| bad(format!("not UTF-8 text: {e}")))?;
        let text = text.strip_prefix('\u{feff}').filter(|_| line == 1).unwrap_or(text);
        if !text.trim().is_empty() {
            each(line, text.trim_end_matches(['\n', '\r'])).map_err(bad)?;
        }
    }
    Ok(())
}

fn log(user: Vec<String>, item: Vec<String>, time: Option<Vec<f64>>) -> Log {
    Log { user: Ids::from_text(user), item: Ids::from_text(item), time }
}

/// `user item item …` in time order; a user may have several lines.
pub(super) fn read_lines(path: &Path) -> Result<Log> {
    let (mut users, mut items) = (Vec::new(), Vec::new());
    for_each_line(path, |_, text| {
        let mut fields = text.split_whitespace();
        let user = fields.next().unwrap_or_default();
        let before = items.len();
        items.extend(fields.map(str::to_string));
        if items.len() == before {
            return Err(format!("user {user:?} without an item"));
        }
        users.extend(std::iter::repeat_n(user.to_string(), items.len() - before));
        Ok(())
    })?;
    Ok(log(users, items, None))
}

/// `user item`, events in time order.
pub(super) fn read_pairs(path: &Path) -> Result<Log> {
    let (mut users, mut items) = (Vec::new(), Vec::new());
    for_each_line(path, |_, text| {
        let mut fields = text.split_whitespace();
        let (Some(user), Some(item), None) = (fields.next(), fields.next(), fields.next()) else {
            return Err(format!("{} fields, expected a user and an item", text.split_whitespace().count()));
        };
        users.push(user.to_string());
        items.push(item.to_string());
        Ok(())
    })?;
    Ok(log(users, items, None))
}

/// `user::item::rating::time`.
pub(super) fn read_dat(path: &Path) -> Result<Log> {
    let (mut users, mut items, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for_each_line(path, |_, text| {
        let fields: Vec<&str> = text.split("::").map(str::trim).collect();
        let &[user, item, _, time] = &fields[..] else {
            return Err(format!("{} fields between \"::\", expected user, item, rating, time", fields.len()));
        };
        if user.is_empty() || item.is_empty() {
            return Err("an empty id".into());
        }
        let time: f64 = time.parse().map_err(|_| format!("time {time:?} is not a number"))?;
        if !time.is_finite() {
            return Err(format!("time {time} is not finite"));
        }
        users.push(user.to_string());
        items.push(item.to_string());
        times.push(time);
        Ok(())
    })?;
    Ok(log(users, items, Some(times)))
}

/// The first line of delimited text with another number of fields than the first line, as an error. Text with quoted
/// line breaks is not judged.
pub(super) fn ragged_line(path: &Path, reader: impl BufRead, separator: u8) -> Option<Error> {
    let mut expected = None;
    for (i, line) in reader.split(b'\n').enumerate() {
        let line = line.ok()?;
        if line.iter().filter(|&&b| b == b'"').count() % 2 == 1 {
            return None;
        }
        let mut quoted = false;
        let separators = line.iter().filter(|&&b| {
            quoted ^= b == b'"';
            b == separator && !quoted
        });
        let fields = separators.count() + 1;
        let expected = *expected.get_or_insert(fields);
        if fields != expected && !line.is_empty() {
            let problem = format!("{fields} fields, expected {expected} as in the first line");
            return Some(Error::Line { path: path.to_owned(), line: i + 1, problem });
        }
    }
    None
}
