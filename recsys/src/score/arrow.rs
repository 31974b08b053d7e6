//! Users and recommendations as Arrow batches.

use super::Scorer;
use super::users::{OwnedId, User};
use crate::error::{Error, Result};
use crate::{Id, Ids, ItemMap};
use mamba_datasets::job::arrow_array::cast::AsArray;
use mamba_datasets::job::arrow_array::types::{Int32Type, Int64Type, UInt32Type};
use mamba_datasets::job::arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, Float32Array, Int64Array, RecordBatch, StringArray, UInt32Array,
};
use mamba_datasets::job::arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::sync::Arc;

/// `user`, `rank`, `item`, `score`; ids have the type of the caller's.
pub fn schema(users_are_text: bool, items: &ItemMap) -> SchemaRef {
    let id = |text: bool| if text { DataType::Utf8 } else { DataType::Int64 };
    let items_are_text = matches!(items.ids(), Ids::Text(_));
    Arc::new(Schema::new(vec![
        Field::new("user", id(users_are_text), false),
        Field::new("rank", DataType::UInt32, false),
        Field::new("item", id(items_are_text), false),
        Field::new("score", DataType::Float32, true),
    ]))
}

/// A column of ids.
fn id_column<'a>(ids: impl Iterator<Item = Id<'a>>, text: bool) -> ArrayRef {
    match text {
        true => Arc::new(StringArray::from_iter_values(ids.map(|id| id.to_string()))),
        false => Arc::new(Int64Array::from_iter_values(ids.map(|id| match id {
            Id::Int(id) => id,
            Id::Text(_) => unreachable!("a column of numbers was asked for only where all ids are"),
        }))),
    }
}

/// The rows of some users, and how many of the users were cold.
///
/// # Errors
/// A cold user where that is an error; those of the model.
pub fn to_rows(
    scorer: &Scorer,
    users: &[User],
    items: &ItemMap,
    schema: &SchemaRef,
) -> mamba_core::Result<(RecordBatch, u64)> {
    let cold = users.iter().filter(|user| user.history.is_empty()).count() as u64;
    if let (super::Cold::Error, Some(user)) =
        (scorer.config().cold, users.iter().find(|user| user.history.is_empty()))
    {
        let problem = format!("user {} has no item that the model knows", user.id.get());
        return Err(Error::Empty(problem).into());
    }
    let skip = scorer.config().cold == super::Cold::Skip;
    let users: Vec<&User> = users.iter().filter(|user| !(skip && user.history.is_empty())).collect();
    let histories: Vec<&[u32]> = users.iter().map(|user| &user.history[..]).collect();
    let (mut user, mut rank, mut item, mut score) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    if users.iter().any(|user| user.candidates.is_some()) {
        let asked: Vec<Vec<Option<u32>>> = users
            .iter()
            .map(|user| user.candidates.iter().flatten().map(|id| items.item(id.get())).collect())
            .collect();
        let asked: Vec<&[Option<u32>]> = asked.iter().map(Vec::as_slice).collect();
        let scores = scorer.candidates(&histories, &asked)?;
        for (&of, scores) in users.iter().zip(scores) {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            // Best first; those without a score last, in the order in which they were asked for.
            order.sort_by(|&a, &b| match (scores[a], scores[b]) {
                (Some(a), Some(b)) => b.total_cmp(&a),
                (a, b) => b.is_some().cmp(&a.is_some()),
            });
            for (place, i) in (1u32..).zip(order) {
                user.push(of.id.get());
                rank.push(place);
                item.extend(of.candidates.iter().flatten().nth(i).map(|id| id.get()));
                score.push(scores[i]);
            }
        }
    } else {
        return Ok((top_k_rows(&users, scorer.top_k(&histories)?, items, schema)?, cold));
    }
    rows(user, rank, item, score, schema).map(|rows| (rows, cold))
}

/// The rows of users and what was recommended to them.
///
/// # Errors
/// Those of Arrow.
pub fn top_k_rows(
    users: &[&User],
    scored: Vec<Vec<super::Scored>>,
    items: &ItemMap,
    schema: &SchemaRef,
) -> mamba_core::Result<RecordBatch> {
    let (mut user, mut rank, mut item, mut score) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (&of, scored) in users.iter().zip(scored) {
        for (place, scored) in (1u32..).zip(scored) {
            user.push(of.id.get());
            rank.push(place);
            item.push(items.id(scored.item));
            score.push(scored.score);
        }
    }
    rows(user, rank, item, score, schema)
}

fn rows(
    user: Vec<Id<'_>>,
    rank: Vec<u32>,
    item: Vec<Id<'_>>,
    score: Vec<Option<f32>>,
    schema: &SchemaRef,
) -> mamba_core::Result<RecordBatch> {
    let is_text = |column: usize| *schema.field(column).data_type() == DataType::Utf8;
    let item = match is_text(2) {
        true => id_column(item.into_iter(), true),
        // A candidate that is no number is no item of this model; its row would have no place.
        false => {
            let number = |(id, user): (&Id<'_>, &Id<'_>)| match id {
                Id::Int(id) => Ok(*id),
                Id::Text(text) => crate::ids::canonical_int(text).ok_or_else(|| {
                    let problem = "is not a number, as the model's items are";
                    Error::Empty(format!("candidate {text:?} of user {user} {problem}"))
                }),
            };
            let numbers: Vec<i64> = item.iter().zip(&user).map(number).collect::<Result<_>>()?;
            Arc::new(Int64Array::from(numbers)) as ArrayRef
        }
    };
    let columns: Vec<ArrayRef> = vec![
        id_column(user.into_iter(), is_text(0)),
        Arc::new(UInt32Array::from(rank)),
        item,
        Arc::new(Float32Array::from(score)),
    ];
    RecordBatch::try_new(schema.clone(), columns).map_err(mamba_core::Error::other)
}

impl Scorer {
    /// Recommendations for an Arrow batch: column 0 the users (whole numbers of 32 or 64 bits, or text), column 1 their items
    /// in time order (lists of either), perhaps column 2 candidates (lists); text may be `Utf8`, `LargeUtf8` or `Utf8View`,
    /// lists `List` or `LargeList`. Out come `user`, `rank`, `item`, `score`. Items that the model does not know are passed
    /// over.
    ///
    /// # Errors
    /// Columns of other types; those of the model.
    pub fn score_batch(&self, batch: &RecordBatch, items: &ItemMap) -> mamba_core::Result<RecordBatch> {
        let wrong = |what: &str| Error::Empty(format!("{what}; the batch has {:?}", batch.schema().fields()));
        let ids_of = |column: &ArrayRef| {
            ids(column)
                .ok_or_else(|| wrong("ids must be whole numbers of 32 or 64 bits, or text, without nulls"))
        };
        let [users, histories, rest @ ..] = batch.columns() else {
            return Err(wrong("expected users and their items").into());
        };
        let lists = |column: &ArrayRef| -> Result<Vec<Vec<OwnedId>>> {
            let rows: Vec<Option<ArrayRef>> = match (column.as_list_opt::<i32>(), column.as_list_opt::<i64>())
            {
                (Some(lists), _) => lists.iter().collect(),
                (_, Some(lists)) => lists.iter().collect(),
                _ => return Err(wrong("items must be lists")),
            };
            rows.iter().map(|row| row.as_ref().map_or(Ok(Vec::new()), |row| ids_of(row).map(owned))).collect()
        };
        let users = ids_of(users)?;
        let is_text = matches!(users, Ids::Text(_));
        let candidates = rest.first().map(lists).transpose()?;
        let rows: Vec<User> = lists(histories)?
            .into_iter()
            .enumerate()
            .map(|(i, history)| User {
                id: users.get(i).into(),
                history: history.iter().filter_map(|id| items.item(id.get())).collect(),
                candidates: candidates.as_ref().map(|lists| lists[i].clone()),
            })
            .collect();
        Ok(to_rows(self, &rows, items, &schema(is_text, items))?.0)
    }
}

fn owned(ids: Ids) -> Vec<OwnedId> {
    (0..ids.len()).map(|i| ids.get(i).into()).collect()
}

fn ids(column: &ArrayRef) -> Option<Ids> {
    if column.null_count() > 0 {
        return None;
    }
    fn texts<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> Ids {
        Ids::Text(texts.flatten().map(str::to_string).collect())
    }
    fn numbers<T: ArrowPrimitiveType<Native: Into<i64>>>(column: &ArrayRef) -> Ids {
        Ids::Int(column.as_primitive::<T>().values().iter().map(|&id| id.into()).collect())
    }
    Some(match column.data_type() {
        DataType::Int64 => numbers::<Int64Type>(column),
        DataType::Int32 => numbers::<Int32Type>(column),
        DataType::UInt32 => numbers::<UInt32Type>(column),
        DataType::Utf8 => texts(column.as_string::<i32>().iter()),
        DataType::LargeUtf8 => texts(column.as_string::<i64>().iter()),
        DataType::Utf8View => texts(column.as_string_view().iter()),
        _ => return None,
    })
}
