//! Reads typed fields out of the tree and collects every mistake with its place, instead of
//! stopping at the first.
//!
//! A field that is missing or wrong yields its default (or an unused stand-in), so reading goes on;
//! whoever reads must look at the mistakes before using anything. Secrets are never quoted.

use std::{
    cell::RefCell, collections::BTreeMap, fmt, net::SocketAddr, rc::Rc, str::FromStr,
    time::Duration,
};

use seatbelt_schemas::setting::{Setting, count};

use super::tree::{self, Node, Origin, Value};

/// Longest quotation of a wrong value.
const QUOTE_CHARS_MAX: usize = 60;

/// One mistake and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Such as `entitlements.keys[2].hard_cap`.
    pub place: String,
    /// The included file that it is in; none where it is in the configuration itself.
    pub file: Option<String>,
    /// Line of the file, where it has one.
    pub line: Option<usize>,
    /// Variable of the environment, where it came from there.
    pub variable: Option<String>,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl Mistake {
    pub(crate) fn new(place: impl Into<String>, origin: &Origin, problem: String) -> Self {
        let (file, line, variable) = match origin {
            Origin::Line(line) => (None, Some(*line), None),
            Origin::Included(file, line) => (Some(file.to_string()), Some(*line), None),
            Origin::Environment(name) => (None, None, Some(name.clone())),
            Origin::Absent => (None, None, None),
        };
        Self {
            place: place.into(),
            file,
            line,
            variable,
            problem,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        match (&self.file, &self.line, &self.variable) {
            (Some(file), Some(line), _) => write!(f, " ({file} line {line})")?,
            (_, Some(line), _) => write!(f, " (line {line})")?,
            (_, None, Some(name)) => write!(f, " (from {name})")?,
            (_, None, None) => {}
        }
        write!(f, ": {}", self.problem)
    }
}

/// All mistakes found so far, shared by every section.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mistakes(Rc<RefCell<Vec<Mistake>>>);

impl Mistakes {
    pub(crate) fn add(&self, mistake: Mistake) {
        self.0.borrow_mut().push(mistake);
    }

    /// All of them, in the order of the file, and then of those that it includes.
    pub(crate) fn take(&self) -> Vec<Mistake> {
        let mut all = self.0.take();
        let key = |mistake: &Mistake| {
            let line = mistake.line.unwrap_or(usize::MAX);
            (mistake.file.clone(), line, mistake.place.clone())
        };
        all.sort_by_key(key);
        all
    }
}

/// A table being read, field by field.
#[derive(Debug)]
pub(crate) struct Section {
    place: String,
    origin: Origin,
    fields: BTreeMap<String, Node>,
    known: Vec<&'static str>,
    mistakes: Mistakes,
}

/// What is in a list; what is none, itself.
fn each(node: &Node) -> &[Node] {
    match &node.value {
        Value::Array(nodes) => nodes,
        _ => std::slice::from_ref(node),
    }
}

/// One field, found or not.
struct Field {
    place: String,
    node: Option<Node>,
}

impl Section {
    /// The whole configuration.
    pub(crate) fn root(node: Node, mistakes: &Mistakes) -> Self {
        Self::of(String::new(), node, mistakes)
    }

    fn of(place: String, node: Node, mistakes: &Mistakes) -> Self {
        let node = as_toml(node);
        let fields = match node.value {
            Value::Table(fields) => fields,
            other => {
                mistakes.add(Mistake::new(
                    &*place,
                    &node.origin,
                    format!("is {}, not a table: write {{ ... }}", kind(&other)),
                ));
                BTreeMap::new()
            }
        };
        Self {
            place,
            origin: node.origin,
            fields,
            known: Vec::new(),
            mistakes: mistakes.clone(),
        }
    }

    fn field(&mut self, name: &'static str) -> Field {
        self.known.push(name);
        let place = match self.place.as_str() {
            "" => name.to_owned(),
            place => format!("{place}.{name}"),
        };
        let node = self.fields.remove(name);
        Field { place, node }
    }

    /// Reports a mistake about the field `name`, or about the whole section where it is empty.
    pub(crate) fn mistake(&self, name: &str, problem: impl Into<String>) {
        let place = match (self.place.as_str(), name) {
            (place, "") => place.to_owned(),
            ("", name) => name.to_owned(),
            (place, name) => format!("{place}.{name}"),
        };
        self.mistakes
            .add(Mistake::new(place, &self.origin, problem.into()));
    }

    /// Where this section is, such as `upstreams[0]`.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Whether a field is given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// A table inside this one; empty where absent.
    pub(crate) fn section(&mut self, name: &'static str) -> Self {
        let field = self.field(name);
        let absent = || Node {
            value: Value::Table(BTreeMap::new()),
            origin: Origin::Absent,
        };
        Self::of(
            field.place,
            field.node.unwrap_or_else(absent),
            &self.mistakes,
        )
    }

    /// The tables of a list, at most `most`.
    pub(crate) fn sections(&mut self, name: &'static str, most: usize) -> Vec<Self> {
        let items = self.list(name, most).into_iter();
        items
            .map(|(place, node)| Self::of(place, node, &self.mistakes))
            .collect()
    }

    fn list(&mut self, name: &'static str, most: usize) -> Vec<(String, Node)> {
        let field = self.field(name);
        let Some(node) = field.node.map(as_toml) else {
            return Vec::new();
        };
        let problem = match node.value {
            Value::Array(items) if items.len() <= most => {
                let items = items.into_iter().enumerate();
                return items
                    .map(|(index, item)| (format!("{}[{index}]", field.place), item))
                    .collect();
            }
            Value::Array(items) => format!("has {} elements: use at most {most}", items.len()),
            other => format!("is {}, not a list: write [ ... ]", kind(&other)),
        };
        self.mistakes
            .add(Mistake::new(field.place, &node.origin, problem));
        Vec::new()
    }

    /// Text, parsed; `None` where it is absent or wrong (and then reported, quoting it).
    pub(crate) fn parsed<T: FromStr>(&mut self, name: &'static str, expect: &str) -> Option<T> {
        self.text_with(name, |text| {
            text.parse()
                .map_err(|_| format!("{} is not {expect}", quoted(text)))
        })
    }

    /// Text, read by a function whose error becomes the mistake.
    pub(crate) fn text_with<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let field = self.field(name);
        let node = field.node?;
        let problem = match &node.value {
            Value::Text(text) | Value::Override(text) => match read(text) {
                Ok(value) => return Some(value),
                Err(problem) => problem,
            },
            other => format!("is {}, not text: write \"...\"", kind(other)),
        };
        self.mistakes
            .add(Mistake::new(field.place, &node.origin, problem));
        None
    }

    /// Any text but none at all.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        self.text_with(name, |text| match text {
            "" => Err("is empty".to_owned()),
            text => Ok(text.to_owned()),
        })
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        self.text_with(name, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                format!("{} is not known: use {}", quoted(text), all.join(" or "))
            })
        })
    }

    /// A whole number within bounds.
    pub(crate) fn number(&mut self, name: &'static str, least: u64, most: u64) -> Option<u64> {
        let field = self.field(name);
        let node = field.node?;
        let found = match &node.value {
            Value::Integer(number) => Ok(*number),
            Value::Override(text) => text.parse().map_err(|_| quoted(text)),
            other => Err(kind(other).to_owned()),
        };
        let problem = match found {
            Ok(number) => match u64::try_from(number) {
                Ok(number) if (least..=most).contains(&number) => return Some(number),
                _ => format!("is {number}: use {least} to {most}"),
            },
            Err(found) => format!("is {found}, not a whole number: use {least} to {most}"),
        };
        self.mistakes
            .add(Mistake::new(field.place, &node.origin, problem));
        None
    }

    /// A number that may be set: its default where it is not.
    pub(crate) fn setting(&mut self, name: &'static str, setting: Setting) -> u64 {
        let (least, most) = setting.bounds();
        self.number(name, least, most).unwrap_or(setting.default())
    }

    /// A number of things that may be set.
    pub(crate) fn count(&mut self, name: &'static str, setting: Setting) -> usize {
        count(self.setting(name, setting))
    }

    /// A span in milliseconds that may be set.
    pub(crate) fn millis(&mut self, name: &'static str, setting: Setting) -> Duration {
        Duration::from_millis(self.setting(name, setting))
    }

    /// An address to listen on.
    pub(crate) fn address(&mut self, name: &'static str, default: SocketAddr) -> SocketAddr {
        let expect = "an address: write one such as \"127.0.0.1:8080\"";
        self.parsed(name, expect).unwrap_or(default)
    }

    /// True or false.
    pub(crate) fn flag(&mut self, name: &'static str) -> Option<bool> {
        let field = self.field(name);
        let node = field.node?;
        let found = match &node.value {
            Value::Bool(flag) => return Some(*flag),
            Value::Override(text) if text == "true" => return Some(true),
            Value::Override(text) if text == "false" => return Some(false),
            other => kind(other),
        };
        self.mistakes.add(Mistake::new(
            field.place,
            &node.origin,
            format!("is {found}: use true or false"),
        ));
        None
    }

    /// A list of texts, none of them empty.
    pub(crate) fn texts(&mut self, name: &'static str, count: usize) -> Vec<String> {
        if !self.has(name) {
            self.known.push(name);
            return Vec::new();
        }
        let mut texts = Vec::new();
        for (place, node) in self.list(name, count) {
            match node.value {
                Value::Text(text) | Value::Override(text) if !text.is_empty() => texts.push(text),
                _ => self.mistakes.add(Mistake::new(
                    place,
                    &node.origin,
                    "is not text: write \"...\"".to_owned(),
                )),
            }
        }
        texts
    }

    /// The texts at a path of names, in every table of every list on the way: looked at, and read by nobody yet.
    pub(crate) fn texts_at(&self, path: &[&str]) -> impl Iterator<Item = String> + use<> {
        let mut at: Vec<&Node> = Vec::new();
        let mut names = path.iter();
        at.extend(names.next().and_then(|name| self.fields.get(*name)));
        for name in names {
            let tables = at.into_iter().flat_map(each);
            let within = tables.filter_map(|node| match &node.value {
                Value::Table(fields) => fields.get(*name),
                _ => None,
            });
            at = within.collect();
        }
        let texts = at.into_iter().filter_map(|node| match &node.value {
            Value::Text(text) | Value::Override(text) => Some(text.clone()),
            _ => None,
        });
        texts.collect::<Vec<_>>().into_iter()
    }

    /// A list of whole numbers within bounds.
    pub(crate) fn numbers(
        &mut self,
        name: &'static str,
        (least, most): (u64, u64),
        count: usize,
    ) -> Option<Vec<u64>> {
        if !self.has(name) {
            self.known.push(name);
            return None;
        }
        let mut numbers = Vec::new();
        for (place, node) in self.list(name, count) {
            match node.value {
                Value::Integer(number) if (least.into()..=most.into()).contains(&number) => {
                    numbers.extend(u64::try_from(number));
                }
                _ => self.mistakes.add(Mistake::new(
                    place,
                    &node.origin,
                    format!("is not a whole number from {least} to {most}"),
                )),
            }
        }
        Some(numbers)
    }

    /// Reports that a field without default is not given.
    pub(crate) fn missing(&self, name: &str) {
        self.mistake(name, "is missing");
    }

    /// A field that must be given: reports where it is not. Wrong ones were reported already.
    pub(crate) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        if !self.has(name) {
            self.known.push(name);
            self.missing(name);
            return None;
        }
        read(self)
    }

    /// A field that was read before: it is none of those that nobody asked for, and is named among those to use.
    pub(crate) fn knows(&mut self, name: &'static str) {
        self.known.push(name);
    }

    /// Reports all fields that nobody asked for.
    pub(crate) fn finish(self) {
        for (name, node) in &self.fields {
            let place = match self.place.as_str() {
                "" => name.clone(),
                place => format!("{place}.{name}"),
            };
            let problem = format!("is not known: use one of {}", self.known.join(", "));
            self.mistakes
                .add(Mistake::new(place, &node.origin, problem));
        }
    }
}

fn as_toml(node: Node) -> Node {
    match &node.value {
        Value::Override(text) => tree::parse_value(text, &node.origin).unwrap_or(node),
        _ => node,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Text(_) => "text",
        Value::Integer(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
        Value::Other(kind) => kind,
        Value::Override(_) => "text that does not fit",
    }
}

/// A value as quoted in a mistake, cut to a bearable length.
pub(crate) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(QUOTE_CHARS_MAX).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}
