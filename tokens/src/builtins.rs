//! What chat templates find besides Jinja's own: what the Python library that they are written for gives
//! them.

use std::{
    fmt,
    io::{self, Write},
    time::SystemTime,
};

use minijinja::{Error, ErrorKind, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};
use time::{UtcDateTime, format_description::parse_strftime_borrowed};

/// Bytes of JSON that one call may write. What is given back costs the rendering fuel by its size.
const JSON_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Widest indentation of JSON.
const INDENT_MAX: usize = 16;
/// Longest format of a date.
const FORMAT_BYTES_MAX: usize = 256;

/// The time of day, in UTC.
pub(crate) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(format, SystemTime::now().into())
}

fn strftime(format: &str, at: UtcDateTime) -> Result<String, Error> {
    let wrong = |error: &dyn fmt::Display| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now({format:?}): {error}"),
        )
    };
    if format.len() > FORMAT_BYTES_MAX {
        return Err(wrong(&"the format is too long"));
    }
    let items = parse_strftime_borrowed(format).map_err(|error| wrong(&error))?;
    at.format(&items).map_err(|error| wrong(&error))
}

/// JSON as Python writes it: `", "` and `": "` between its parts, nothing escaped that need not be.
#[expect(clippy::needless_pass_by_value, reason = "as filters are called")]
pub(crate) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    // What these ask for is what is done, or what nobody asks for.
    for known in ["ensure_ascii", "sort_keys", "separators"] {
        let _ = options.get::<Option<Value>>(known)?;
    }
    options.assert_all_used()?;
    let json = match indent {
        None => written(value, Spaced(CompactFormatter)),
        Some(indent) => {
            let spaces = " ".repeat(indent.min(INDENT_MAX));
            written(value, PrettyFormatter::with_indent(spaces.as_bytes()))
        }
    }?;
    Ok(Value::from_safe_string(json))
}

fn written(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(Bounded(&mut bytes), formatter);
    value.serialize(&mut serializer).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "cannot be written as JSON").with_source(error)
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Bounded<'a>(&'a mut Vec<u8>);

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > JSON_BYTES_MAX {
            return Err(io::Error::other("it is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// On one line, with a space after each comma and colon.
struct Spaced(CompactFormatter);

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_array(w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_python_writes_it() {
        let at = UtcDateTime::from_unix_timestamp(1_795_651_200).unwrap();
        assert_eq!(strftime("%d %b %Y", at).unwrap(), "26 Nov 2026");
        assert_eq!(
            strftime("%A, %B %-d, %H:%M", at).unwrap(),
            "Thursday, November 26, 00:00"
        );
        assert_eq!(strftime("", at).unwrap(), "");
        assert!(strftime("%?", at).is_err());
        assert!(strftime(&"x".repeat(300), at).is_err());
    }
}
