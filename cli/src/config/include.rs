//! `include = ["prices/openai.toml"]`: price books, and models that take their price from one.
//!
//! A model of an upstream that says `price = "openai"` costs what the included books say of it under that provider
//! (`price = "openai/gpt-5.4"` where the book names it otherwise); its context, output and classes come from there too
//! where it gives none. What a book holds is put in the model's place before anything is read, so that all else is
//! read as if it had been written there, and a mistake names the book and its line.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::File,
    io::{self, Read},
    path::Path,
    rc::Rc,
};

use seatbelt_gateway::config::CLASSES_MAX;
use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, ids::ModelId};

use super::{
    price::read_price,
    reader::{Mistake, Mistakes, Section, quoted},
    tree::{self, Node, Origin, Value},
    upstreams::read_class,
};

/// Most included files.
const FILES_MAX: usize = 64;
/// Most models of one file.
pub(crate) const PRICES_MAX: usize = 10_000;
/// Largest file; LiteLLM's whole list makes a book of 1 MB.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Fields of a book's entry that a model takes over where it has none itself.
const TAKEN_OVER: [&str; 3] = ["context", "output", "class"];

/// The entries of all books, by provider and model.
type Books = BTreeMap<(String, String), BTreeMap<String, Node>>;

/// Reads the books that `root` includes, and puts what they say in the place of models that refer to them.
pub(super) fn apply(root: &mut Node, folder: &Path, mistakes: &Mistakes) {
    let Value::Table(fields) = &mut root.value else {
        return;
    };
    let mut books = Books::new();
    for (place, file, origin) in files(fields, mistakes) {
        match text(&folder.join(&file)) {
            Ok(text) => read_book(&file, &text, &mut books, mistakes),
            Err(error) => {
                let problem = format!("{} cannot be read: {error}", quoted(&file));
                mistakes.add(Mistake::new(place, &origin, problem));
            }
        }
    }
    if let Some(upstreams) = fields.get_mut("upstreams") {
        each_model(upstreams, &mut |place, model| {
            take_over(place, model, &books, mistakes);
        });
    }
}

/// The included files, with where each is named.
fn files(
    fields: &mut BTreeMap<String, Node>,
    mistakes: &Mistakes,
) -> Vec<(String, String, Origin)> {
    let Some(mut include) = fields.remove("include") else {
        return Vec::new();
    };
    expand(&mut include);
    let wrong = |place: &str, origin: &Origin, problem: &str| {
        mistakes.add(Mistake::new(place, origin, problem.to_owned()));
    };
    let items = match include.value {
        Value::Array(items) if items.len() <= FILES_MAX => items,
        Value::Array(_) => {
            wrong(
                "include",
                &include.origin,
                &format!("names more than {FILES_MAX} files"),
            );
            return Vec::new();
        }
        _ => {
            wrong(
                "include",
                &include.origin,
                "is not a list: write [\"prices/openai.toml\"]",
            );
            return Vec::new();
        }
    };
    let mut files: Vec<(String, String, Origin)> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let place = format!("include[{index}]");
        match item.value {
            Value::Text(file) if files.iter().any(|(_, known, _)| *known == file) => {
                wrong(
                    &place,
                    &item.origin,
                    &format!("{} is included already", quoted(&file)),
                );
            }
            Value::Text(file) if !file.is_empty() => files.push((place, file, item.origin)),
            _ => wrong(
                &place,
                &item.origin,
                "is not the path of a file: write \"...\"",
            ),
        }
    }
    files
}

fn text(path: &Path) -> io::Result<String> {
    // a pipe would keep the start waiting for whoever writes it
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    File::open(path)?
        .take(BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::other(format!(
            "it has more than {BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

/// Reads one book; every entry is checked, whether a model refers to it or not.
fn read_book(file: &str, text: &str, books: &mut Books, mistakes: &Mistakes) {
    let (mut root, errors) = tree::parse(text);
    let file: Rc<str> = file.into();
    included(&mut root, &file);
    for mut error in errors {
        error.origin.include(&file);
        mistakes.add(Mistake::new(error.place, &error.origin, error.problem));
    }
    let entries = match &root.value {
        Value::Table(fields) => match fields.get("prices").map(|node| &node.value) {
            Some(Value::Array(entries)) => entries.clone(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    let mut section = Section::root(root, mistakes);
    let names = section
        .sections("prices", PRICES_MAX)
        .into_iter()
        .map(read_entry);
    for (name, entry) in names.zip(entries) {
        let (Some((provider, model)), Value::Table(fields)) = (name, entry.value) else {
            continue;
        };
        match books.entry((provider, model)) {
            Entry::Vacant(vacant) => {
                vacant.insert(fields);
            }
            Entry::Occupied(known) => {
                let (provider, model) = known.key();
                let there = known
                    .get()
                    .get("model")
                    .map_or(&Origin::Absent, |node| &node.origin);
                let problem =
                    format!("{model:?} of {provider:?} is priced in {there} too: keep one of them");
                let here = fields
                    .get("model")
                    .map_or(&entry.origin, |node| &node.origin);
                mistakes.add(Mistake::new("prices", here, problem));
            }
        }
    }
    section.finish();
}

/// Reads one entry for its mistakes; its provider and model where it has both.
fn read_entry(mut entry: Section) -> Option<(String, String)> {
    let provider = entry.required("provider", |entry| {
        entry.text_with("provider", |text| match text {
            "" => Err("is empty".to_owned()),
            text if text.contains('/') => {
                Err("has a slash, which parts it from the model".to_owned())
            }
            text => Ok(text.to_owned()),
        })
    });
    let model = entry.required("model", |entry| {
        entry.text_with("model", |text| {
            ModelId::new(text).map_err(|error| error.to_string())
        })
    });
    for limit in ["context", "output"] {
        entry.number(limit, 1, TOKENS_PER_REQUEST_MAX);
    }
    if !entry.has("price") {
        entry.missing("price");
    }
    let price = read_price(&mut entry, model.as_ref(), false);
    let mut ids = BTreeSet::new();
    for class in entry.sections("class", CLASSES_MAX) {
        read_class(class, price.as_ref(), false, &mut ids);
    }
    entry.finish();
    Some((provider?, model?.as_str().to_owned()))
}

/// What a model says instead of a price.
struct Reference {
    /// The model's own id.
    id: String,
    /// Provider and model, as a book names them.
    named: (String, String),
    origin: Origin,
}

impl Reference {
    fn of(model: &BTreeMap<String, Node>) -> Option<Self> {
        let price = model.get("price")?;
        let (Value::Text(named) | Value::Override(named)) = &price.value else {
            return None;
        };
        // a variable may hold the price itself
        if named.trim_start().starts_with('{') {
            return None;
        }
        let id = match model.get("id").map(|node| &node.value) {
            Some(Value::Text(id) | Value::Override(id)) => id.clone(),
            _ => String::new(),
        };
        let (provider, listed) = named.split_once('/').unwrap_or((named, &id));
        Some(Self {
            named: (provider.to_owned(), listed.to_owned()),
            origin: price.origin.clone(),
            id,
        })
    }
}

/// Which entry of a book each model takes its price from, by the model's id: provider and model there.
pub(super) fn references(root: &mut Node) -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    let Value::Table(fields) = &mut root.value else {
        return found;
    };
    if let Some(upstreams) = fields.get_mut("upstreams") {
        each_model(upstreams, &mut |_, model| {
            found.extend(Reference::of(model).map(|reference| (reference.id, reference.named)));
        });
    }
    found
}

/// Each model of each upstream, with its place.
fn each_model(upstreams: &mut Node, act: &mut dyn FnMut(&str, &mut BTreeMap<String, Node>)) {
    each(upstreams, "upstreams", &mut |place, upstream| {
        if let Some(models) = upstream.get_mut("models") {
            each(models, &format!("{place}.models"), act);
        }
    });
}

/// Puts a book's entry in the place of a model that refers to it.
fn take_over(place: &str, model: &mut BTreeMap<String, Node>, books: &Books, mistakes: &Mistakes) {
    let Some(Reference { named, origin, .. }) = Reference::of(model) else {
        return;
    };
    let Some(entry) = books.get(&named) else {
        let (provider, listed) = named;
        let problem = format!(
            "names {listed:?} of {provider:?}, and no included file has its price: include one that has, or write {{ input = \"...\", ... }}"
        );
        mistakes.add(Mistake::new(format!("{place}.price"), &origin, problem));
        // told once, and not as text that is no table
        model.remove("price");
        return;
    };
    match entry.get("price").cloned() {
        Some(price) => model.insert("price".to_owned(), price),
        // told where it is missing
        None => model.remove("price"),
    };
    for field in TAKEN_OVER {
        if let (false, Some(node)) = (model.contains_key(field), entry.get(field)) {
            model.insert(field.to_owned(), node.clone());
        }
    }
}

/// Each table of a list, with its place.
fn each(list: &mut Node, place: &str, act: &mut dyn FnMut(&str, &mut BTreeMap<String, Node>)) {
    expand(list);
    let Value::Array(items) = &mut list.value else {
        return;
    };
    for (index, item) in items.iter_mut().enumerate() {
        expand(item);
        if let Value::Table(fields) = &mut item.value {
            act(&format!("{place}[{index}]"), fields);
        }
    }
}

/// A list or table that a variable holds.
fn expand(node: &mut Node) {
    if let Value::Override(text) = &node.value
        && let Some(read) = tree::parse_value(text, &node.origin)
    {
        *node = read;
    }
}

fn included(node: &mut Node, file: &Rc<str>) {
    node.origin.include(file);
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| included(item, file)),
        Value::Table(fields) => fields.values_mut().for_each(|field| included(field, file)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
