//! The text field of JSONL files.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::error::DataError;

/// Bytes of one line; a longer one is surely no record.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Gives the text of each record to `sink`. Empty lines are passed over; anything else that is no
/// object with this field is an error that names the line.
pub(super) fn read(
    path: &Path,
    field: &str,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut input = BufReader::new(File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    let mut line = 0;
    loop {
        bytes.clear();
        line += 1;
        let count =
            (&mut input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        let wrong = |reason| DataError::Jsonl { path: path.to_owned(), line, reason };
        if count as u64 > LINE_BYTES_MAX {
            return Err(wrong(format!("the line is longer than {LINE_BYTES_MAX} bytes")));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let text = text_of(&bytes, field).map_err(wrong)?;
        if !text.is_empty() {
            sink(text.as_bytes())?;
        }
    }
}

fn text_of(line: &[u8], field: &str) -> Result<String, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        // The error's own line number counts within this one line.
        let column = error.column();
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        format!("no JSON: {reason} (column {column})")
    })?;
    let Value::Object(mut object) = value else {
        return Err(format!("a record must be an object with the field {field:?}"));
    };
    match object.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => {
            let kind = match other {
                Value::Null => "null",
                Value::Bool(_) => "a truth value",
                Value::Number(_) => "a number",
                Value::Array(_) => "a list",
                _ => "an object",
            };
            Err(format!("the field {field:?} is {kind}, it must be text"))
        }
        None => {
            let names: Vec<String> =
                object.keys().take(8).map(|name| format!("{name:?}")).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(format!("no field {field:?} (fields here: {names}); set data.field"))
        }
    }
}
