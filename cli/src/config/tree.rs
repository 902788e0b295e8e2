//! The configuration as a tree of values, each with the place it came from: a line of the file or a
//! variable of the environment.
//!
//! `SEATBELT__SECTION__KEY` overrides one value; a number names an element of a list, such as
//! `SEATBELT__ENTITLEMENTS__KEYS__0__HARD_CAP` (an existing element, or the next one to append).
//! What a value means is not known here.

use std::{collections::BTreeMap, fmt, rc::Rc};

use toml::de::{DeTable, DeValue};

/// Variables that begin so override the file.
pub(crate) const ENV_PREFIX: &str = "SEATBELT__";
/// Deepest override: section, list, index, list, index, table, key and one to spare.
const ENV_DEPTH_MAX: usize = 8;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A line of the file, from 1.
    Line(usize),
    /// A line of a file that it includes.
    Included(Rc<str>, usize),
    /// A variable of the environment.
    Environment(String),
    /// Nowhere: it is absent.
    Absent,
}

impl Origin {
    /// A line becomes one of the included file.
    pub(crate) fn include(&mut self, file: &Rc<str>) {
        if let Self::Line(line) = self {
            *self = Self::Included(Rc::clone(file), *line);
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Included(file, line) => write!(f, "{file} line {line}"),
            Self::Environment(name) => f.write_str(name),
            Self::Absent => f.write_str("no place"),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    /// An integer that fits `i128`.
    Integer(i128),
    Bool(bool),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
    /// Anything that no field takes: floats, dates, integers beyond `i128`.
    Other(&'static str),
    /// Text from the environment: read as whatever the field asks for.
    Override(String),
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// What kept the tree from being built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeError {
    pub(crate) place: String,
    pub(crate) origin: Origin,
    pub(crate) problem: String,
}

/// Where the lines of a text begin, so that the place of each of its values is found without reading it again.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(breaks.map(|(at, _)| at).collect())
    }

    /// The line of a byte, from 1.
    fn at(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|line_break| *line_break < offset)
    }
}

/// Reads the file's text; every syntax error is returned, with what could be read.
pub(crate) fn parse(text: &str) -> (Node, Vec<TreeError>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    let errors = errors.iter().map(|error| TreeError {
        place: "file".to_owned(),
        origin: Origin::Line(lines.at(error.span().map_or(0, |span| span.start))),
        // the message alone: the error's own display would quote the line, secrets included
        problem: error.message().to_owned(),
    });
    let errors = errors.collect();
    let root = Node {
        value: table_value(&lines, table.get_ref()),
        origin: Origin::Line(1),
    };
    (root, errors)
}

/// Reads one value from the environment as TOML, for fields that are lists or tables.
pub(crate) fn parse_value(text: &str, origin: &Origin) -> Option<Node> {
    let value = DeValue::parse(text).ok()?;
    let mut node = node(&Lines::of(""), value.get_ref(), 0);
    stamp(&mut node, origin);
    Some(node)
}

fn stamp(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| stamp(item, origin)),
        Value::Table(fields) => fields.values_mut().for_each(|field| stamp(field, origin)),
        _ => {}
    }
}

fn table_value(lines: &Lines, table: &DeTable<'_>) -> Value {
    let fields = table.iter().map(|(name, value)| {
        let start = name.span().start;
        (
            name.get_ref().to_string(),
            node(lines, value.get_ref(), start),
        )
    });
    Value::Table(fields.collect())
}

fn node(lines: &Lines, value: &DeValue<'_>, start: usize) -> Node {
    let value = match value {
        DeValue::String(string) => Value::Text(string.to_string()),
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix())
            .map_or(Value::Other("a number too large"), Value::Integer),
        DeValue::Float(_) => Value::Other("a fraction"),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| node(lines, item.get_ref(), item.span().start))
                .collect(),
        ),
        DeValue::Table(table) => table_value(lines, table),
    };
    Node {
        value,
        origin: Origin::Line(lines.at(start)),
    }
}

/// Lays the environment over the tree.
pub(crate) fn override_from(
    root: &mut Node,
    environment: &BTreeMap<String, String>,
) -> Vec<TreeError> {
    let mut errors = Vec::new();
    for (name, text) in environment {
        let Some(path) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        if let Err(problem) = set(root, &path, name, text) {
            errors.push(TreeError {
                place: path.join("."),
                origin: Origin::Environment(name.clone()),
                problem,
            });
        }
    }
    errors
}

fn set(at: &mut Node, path: &[String], name: &str, text: &str) -> Result<(), String> {
    if path.len() > ENV_DEPTH_MAX || path.iter().any(String::is_empty) {
        return Err(format!("write {ENV_PREFIX}SECTION__KEY"));
    }
    let origin = Origin::Environment(name.to_owned());
    let Some((step, rest)) = path.split_first() else {
        *at = Node {
            value: Value::Override(text.to_owned()),
            origin,
        };
        return Ok(());
    };
    set(child(&mut at.value, step, origin)?, rest, name, text)
}

/// The element of a list where `step` is a number, else the field of that name; made where absent.
fn child<'a>(value: &'a mut Value, step: &str, origin: Origin) -> Result<&'a mut Node, String> {
    let empty = Node {
        value: Value::Table(BTreeMap::new()),
        origin,
    };
    let index = step.parse::<usize>().ok();
    if let (Some(0), Value::Table(fields)) = (index, &*value)
        && fields.is_empty()
    {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(items) => {
            let length = items.len();
            let index = index.ok_or(format!("{step:?} is not a number, and this is a list"))?;
            if index == length {
                items.push(empty);
            }
            let problem =
                format!("element {index} cannot be set: use 0 to {length} (the next one)");
            items.get_mut(index).ok_or(problem)
        }
        Value::Table(fields) => Ok(fields.entry(step.to_owned()).or_insert(empty)),
        _ => Err(format!("{step:?} cannot be set inside a plain value")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_value_is_told_by_the_line_that_it_begins_on() {
        let lines = Lines::of("a\n\nbc\n");
        let found = [0, 1, 2, 3, 4, 5, 6, 9].map(|offset| lines.at(offset));
        assert_eq!(found, [1, 1, 2, 3, 3, 3, 4, 4]);
        let (root, errors) = parse("a = 1\n\nb = [\n  2,\n]\nc =\n");
        let Value::Table(fields) = &root.value else {
            panic!("{root:?}")
        };
        assert_eq!(fields["b"].origin, Origin::Line(3));
        let Value::Array(items) = &fields["b"].value else {
            panic!("{root:?}")
        };
        assert_eq!(items[0].origin, Origin::Line(4));
        assert_eq!(errors[0].origin, Origin::Line(6));
    }

    #[test]
    fn a_large_text_takes_no_longer_for_each_of_its_values() {
        let text = "[[prices]]\nmodel = \"m\"\nprice = { input = \"1\" }\n".repeat(50_000);
        let began = Instant::now();
        let (root, errors) = parse(&text);
        let Value::Table(fields) = &root.value else {
            panic!("{errors:?}")
        };
        assert!(matches!(&fields["prices"].value, Value::Array(items) if items.len() == 50_000));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}: it was minutes");
    }
}
