//! The caller's own ids, and their places.

use std::collections::HashMap;
use std::fmt;

/// Ids of one kind, as the caller has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Whole numbers.
    Int(Vec<i64>),
    /// Any text.
    Text(Vec<String>),
}

impl Default for Ids {
    fn default() -> Self {
        Self::Int(Vec::new())
    }
}

/// One id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id<'a> {
    /// A whole number.
    Int(i64),
    /// Any text.
    Text(&'a str),
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(id) => id.fmt(f),
            Self::Text(id) => id.fmt(f),
        }
    }
}

/// The number that a text stands for, if writing that number gives the same text.
pub(crate) fn canonical_int(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits.bytes().all(|b| b.is_ascii_digit())
        && (digits == "0" && digits == text || !digits.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

impl Ids {
    /// Number of ids.
    pub fn len(&self) -> usize {
        match self {
            Self::Int(ids) => ids.len(),
            Self::Text(ids) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id at a place.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, place: usize) -> Id<'_> {
        match self {
            Self::Int(ids) => Id::Int(ids[place]),
            Self::Text(ids) => Id::Text(&ids[place]),
        }
    }

    /// Ids from text: numbers if all of them are.
    pub fn from_text(ids: Vec<String>) -> Self {
        match ids.iter().map(|id| canonical_int(id)).collect() {
            Some(numbers) => Self::Int(numbers),
            None => Self::Text(ids),
        }
    }

    /// These ids and others behind them; as text where the kinds differ.
    pub fn append(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Int(ids), Self::Int(other)) => ids.extend(other),
            (Self::Text(ids), other) => ids.extend(other.into_text()),
            (Self::Int(_), Self::Text(other)) => {
                let mut ids = std::mem::replace(self, Self::Int(Vec::new())).into_text();
                ids.extend(other);
                *self = Self::Text(ids);
            }
        }
    }

    fn into_text(self) -> Vec<String> {
        match self {
            Self::Int(ids) => ids.iter().map(i64::to_string).collect(),
            Self::Text(ids) => ids,
        }
    }

    /// The ids at these places.
    pub fn select(&self, places: impl Iterator<Item = usize>) -> Self {
        match self {
            Self::Int(ids) => Self::Int(places.map(|place| ids[place]).collect()),
            Self::Text(ids) => Self::Text(places.map(|place| ids[place].clone()).collect()),
        }
    }

    /// The different ids in order of first appearance, and for each id its place among them.
    pub fn encode(&self) -> (Self, Vec<u32>) {
        fn first_places<K: std::hash::Hash + Eq>(keys: impl Iterator<Item = K>) -> (Vec<usize>, Vec<u32>) {
            let (mut places, mut firsts) = (HashMap::new(), Vec::new());
            let codes = keys
                .enumerate()
                .map(|(i, key)| {
                    *places.entry(key).or_insert_with(|| {
                        firsts.push(i);
                        (firsts.len() - 1) as u32
                    })
                })
                .collect();
            (firsts, codes)
        }
        let (firsts, codes) = match self {
            Self::Int(ids) => first_places(ids.iter()),
            Self::Text(ids) => first_places(ids.iter()),
        };
        (self.select(firsts.into_iter()), codes)
    }
}

/// The items of a model: item `i` (from 1; 0 is padding) has the id at place `i - 1`.
#[derive(Clone, Debug)]
pub struct ItemMap {
    ids: Ids,
    ints: HashMap<i64, u32>,
    texts: HashMap<String, u32>,
}

impl ItemMap {
    /// From the ids of items 1, 2, …
    pub fn new(ids: Ids) -> Self {
        let (mut ints, mut texts) = (HashMap::new(), HashMap::new());
        match &ids {
            Ids::Int(ids) => ints = ids.iter().zip(1u32..).map(|(&id, item)| (id, item)).collect(),
            Ids::Text(ids) => texts = ids.iter().zip(1u32..).map(|(id, item)| (id.clone(), item)).collect(),
        }
        Self { ids, ints, texts }
    }

    /// The ids of items 1, 2, …
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Rows of an item table: the items and padding.
    pub fn n_items(&self) -> usize {
        self.ids.len() + 1
    }

    /// The id of an item.
    ///
    /// # Panics
    /// For padding and for an item that does not exist.
    pub fn id(&self, item: u32) -> Id<'_> {
        self.ids.get(item as usize - 1)
    }

    /// The item of an id; numbers and their text are the same.
    pub fn item(&self, id: Id<'_>) -> Option<u32> {
        match (id, &self.ids) {
            (Id::Int(id), Ids::Int(_)) => self.ints.get(&id).copied(),
            (Id::Text(id), Ids::Int(_)) => self.ints.get(&canonical_int(id)?).copied(),
            (Id::Int(id), Ids::Text(_)) => self.texts.get(&id.to_string()).copied(),
            (Id::Text(id), Ids::Text(_)) => self.texts.get(id).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_that_reads_back_is_a_number() {
        let numbers = ["0", "7", "-12", "9223372036854775807"];
        assert!(numbers.iter().all(|text| canonical_int(text).is_some_and(|n| n.to_string() == **text)));
        for text in ["", "-", "007", "-0", "+1", "1.0", " 1", "9223372036854775808", "a"] {
            assert_eq!(canonical_int(text), None, "{text:?}");
        }
    }

    #[test]
    fn items_count_from_one_and_kinds_meet() {
        let map = ItemMap::new(Ids::Int(vec![30, 10]));
        assert_eq!((map.n_items(), map.id(1), map.item(Id::Int(10))), (3, Id::Int(30), Some(2)));
        assert_eq!((map.item(Id::Text("30")), map.item(Id::Text("030"))), (Some(1), None));
        let map = ItemMap::new(Ids::Text(vec!["b7".into(), "12".into()]));
        assert_eq!((map.item(Id::Int(12)), map.item(Id::Text("b7"))), (Some(2), Some(1)));
    }

    #[test]
    fn codes_follow_first_appearance() {
        let (ids, codes) = Ids::Int(vec![5, 3, 5, 9, 3]).encode();
        assert_eq!((ids, codes), (Ids::Int(vec![5, 3, 9]), vec![0, 1, 0, 2, 1]));
    }

    #[test]
    fn mixed_kinds_become_text() {
        let mut ids = Ids::Int(vec![5]);
        ids.append(Ids::Text(vec!["x".into()]));
        ids.append(Ids::Int(vec![6]));
        assert_eq!(ids, Ids::Text(vec!["5".into(), "x".into(), "6".into()]));
    }
}
