//! Columns as text: the types that a table or an id file can hold.

use std::fmt::{Debug, Write};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;

/// How text fields are separated, and how a field that holds a separator is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// RFC 4180: quoted where needed, quotes doubled.
    Csv,
    /// Linear TSV: tab, line break, carriage return and backslash as `\t`, `\n`, `\r`, `\\`.
    Tsv,
}

impl Dialect {
    pub(super) fn separator(self) -> char {
        match self {
            Dialect::Csv => ',',
            Dialect::Tsv => '\t',
        }
    }

    /// Appends a field.
    pub(super) fn push(self, field: &str, line: &mut String) {
        match self {
            Dialect::Csv if field.contains([',', '"', '\n', '\r']) => {
                line.push('"');
                line.push_str(&field.replace('"', "\"\""));
                line.push('"');
            }
            Dialect::Csv => line.push_str(field),
            Dialect::Tsv => {
                for c in field.chars() {
                    match c {
                        '\t' => line.push_str("\\t"),
                        '\n' => line.push_str("\\n"),
                        '\r' => line.push_str("\\r"),
                        '\\' => line.push_str("\\\\"),
                        c => line.push(c),
                    }
                }
            }
        }
    }
}

/// Whether [`push_value`] knows the type.
pub(super) fn is_supported(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(data_type, Utf8 | LargeUtf8 | Boolean | Float32 | Float64) || data_type.is_integer()
}

/// Appends one value of a supported column; a null is an empty field.
pub(super) fn push_value(column: &ArrayRef, row: usize, dialect: Dialect, line: &mut String) {
    if column.is_null(row) {
        return;
    }
    macro_rules! number {
        ($type:ty) => {
            write!(line, "{}", column.as_primitive::<$type>().value(row))
        };
    }
    let written = match column.data_type() {
        DataType::Utf8 => {
            dialect.push(column.as_string::<i32>().value(row), line);
            Ok(())
        }
        DataType::LargeUtf8 => {
            dialect.push(column.as_string::<i64>().value(row), line);
            Ok(())
        }
        DataType::Boolean => write!(line, "{}", column.as_boolean().value(row)),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => write_float(column.as_primitive::<Float32Type>().value(row), line),
        DataType::Float64 => write_float(column.as_primitive::<Float64Type>().value(row), line),
        other => unreachable!("the sink was made for supported types only, not {other}"),
    };
    written.expect("writing to a string cannot fail");
}

/// Writes a float with the fewest digits that read back as the same number, very large and small ones as `1e-30`.
fn write_float(value: impl Debug, line: &mut String) -> std::fmt::Result {
    write!(line, "{value:?}")
}
