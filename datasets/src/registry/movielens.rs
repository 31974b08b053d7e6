//! From `ratings.dat` of MovieLens to a line per user.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// Turns lines `user::item::rating::timestamp` into one line per user, `user item item …`: users in ascending order,
/// items in order of time, ties in the order of the file. `name` is for messages.
pub fn histories(name: &str, ratings: &[u8]) -> Result<String> {
    let mut users: BTreeMap<u64, Vec<(i64, u64)>> = BTreeMap::new();
    for (number, line) in ratings.split(|&b| b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(line);
        let wrong = |reason: String| Error::DataTable { place: format!("{name}:{}", number + 1), reason };
        let [user, item, _, time] = text.split("::").collect::<Vec<_>>()[..] else {
            return Err(wrong(format!("expected user::item::rating::timestamp, found {text:?}")));
        };
        let not = |what: &str, value: &str| wrong(format!("{what} {value:?} is not a whole number"));
        let user = user.parse().map_err(|_| not("user", user))?;
        let item = item.parse().map_err(|_| not("item", item))?;
        let time = time.parse().map_err(|_| not("timestamp", time))?;
        users.entry(user).or_default().push((time, item));
    }
    let mut text = String::new();
    for (user, mut items) in users {
        items.sort_by_key(|&(time, _)| time); // stable
        push_line(&mut text, user, items.iter().map(|&(_, item)| item));
    }
    Ok(text)
}

/// Histories with users and items in ascending order; `None` if it is not lines of numbers.
pub(super) fn canonical(histories: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(histories).ok()?;
    let mut users = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut numbers = line.split_ascii_whitespace().map(|n| n.parse::<u64>().ok());
        let user = numbers.next()??;
        let mut items = numbers.collect::<Option<Vec<u64>>>()?;
        items.sort_unstable();
        users.push((user, items));
    }
    users.sort_unstable();
    let mut text = String::new();
    for (user, items) in users {
        push_line(&mut text, user, items.into_iter());
    }
    Some(text)
}

fn push_line(text: &mut String, user: u64, items: impl Iterator<Item = u64>) {
    text.push_str(&user.to_string());
    for item in items {
        text.push(' ');
        text.push_str(&item.to_string());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn items_come_in_time_order_and_ties_in_file_order() {
        let ratings = b"2::10::5::100\n1::30::1::7\n1::20::3::5\r\n1::40::2::5\n10::1::4::0\n";
        assert_eq!(histories("ratings.dat", ratings).unwrap(), "1 20 40 30\n2 10\n10 1\n");
        assert_eq!(histories("ratings.dat", b"").unwrap(), "");
    }

    #[test]
    fn a_bad_line_is_named() {
        for (line, message) in [
            ("1::2::3", "r.dat:2: expected user::item::rating::timestamp, found \"1::2::3\""),
            ("x::2::3::4", "r.dat:2: user \"x\" is not a whole number"),
            ("1::2.5::3::4", "r.dat:2: item \"2.5\" is not a whole number"),
            ("1::2::3::", "r.dat:2: timestamp \"\" is not a whole number"),
        ] {
            let text = format!("1::1::1::1\n{line}\n");
            assert_eq!(histories("r.dat", text.as_bytes()).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_result_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = histories("r.dat", &bytes);
            let _ = canonical(&bytes);
        }

        #[test]
        fn nothing_is_lost(rows in proptest::collection::vec((0..9u64, 0..99u64, 0..5i64), 0..60)) {
            let text: String = rows.iter().map(|(u, i, t)| format!("{u}::{i}::5::{t}\n")).collect();
            let converted = histories("r.dat", text.as_bytes()).unwrap();
            let mut expected: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for (user, item, _) in rows {
                expected.entry(user).or_default().push(item);
            }
            let mut lines = String::new();
            for (user, items) in expected {
                push_line(&mut lines, user, items.into_iter());
            }
            prop_assert_eq!(canonical(converted.as_bytes()), canonical(lines.as_bytes()));
        }
    }
}
