//! Golden files: the stored bytes of every kind, which every build from now on must read.
//!
//! `golden/v1/<name>.msgpack` holds the bytes, `<name>.json` beside it what they say. Old files stay
//! for good and are never rewritten; a new kind or field gets new files from
//! `cargo test -p seatbelt-schemas --test golden -- --ignored`, which leaves existing ones alone and
//! fails where they differ from today's. Files named `foreign-*` were written by no build of ours:
//! other key order, other widths of integers, fields and kinds of a later version.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rmpv::Value as Raw;
use seatbelt_schemas::{
    commit::Commit,
    event::{Event, EventBody, KINDS, StoredEvent},
    usage::UsageEvent,
    wire,
};
use serde_json::{Value, json};

#[path = "golden/cases.rs"]
mod cases;
#[path = "golden/schema.rs"]
mod schema;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/v1")
}

/// The names of all files on disk, without `.msgpack`.
fn names() -> BTreeSet<String> {
    let files = fs::read_dir(folder()).expect("the golden folder is there");
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.strip_suffix(".msgpack").map(str::to_owned))
        .collect()
}

fn stored(name: &str) -> Bytes {
    let path = folder().join(format!("{name}.msgpack"));
    fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into()
}

fn told(name: &str) -> Value {
    let path = folder().join(format!("{name}.json"));
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn is_commit(name: &str) -> bool {
    name.starts_with("commit")
}

fn is_usage_event(name: &str) -> bool {
    name.starts_with("usage_event")
}

fn is_event(name: &str) -> bool {
    !is_commit(name) && !is_usage_event(name)
}

/// What stored bytes say, as the file beside them tells it.
fn tell(name: &str, bytes: &Bytes) -> Value {
    if is_commit(name) {
        tell_commit(&Commit::decode(bytes).unwrap())
    } else if is_usage_event(name) {
        serde_json::to_value(UsageEvent::decode(bytes).unwrap()).unwrap()
    } else {
        StoredEvent::read(bytes.clone()).unwrap().to_json().unwrap()
    }
}

fn tell_commit(commit: &Commit) -> Value {
    let events = commit.events.iter().map(|event| event.to_json().unwrap());
    json!({
        "v": Commit::VERSION,
        "partition": commit.partition,
        "epoch": commit.epoch,
        "first_position": commit.first_position,
        "prev": commit.prev.to_string(),
        "at_ms": commit.at_ms,
        "events": events.collect::<Vec<_>>(),
    })
}

/// The bytes as today's code writes them again.
fn encode_again(name: &str, bytes: &Bytes) -> Bytes {
    if is_commit(name) {
        Commit::decode(bytes).unwrap().encode()
    } else if is_usage_event(name) {
        UsageEvent::decode(bytes).unwrap().encode()
    } else {
        Event::decode(bytes).unwrap().encode()
    }
}

/// Everything that today's code writes, by file name.
fn written_today() -> Vec<(String, Bytes)> {
    let events = cases::events().into_iter().chain(cases::every_cap());
    let events = events.chain([
        cases::refused_merged(),
        cases::refused_terms(),
        cases::adopted(),
        cases::skipped(),
    ]);
    let events = events
        .chain(cases::budgets())
        .chain(cases::nested_budgets())
        .chain(cases::priced_in_full())
        .chain(cases::tool_calls())
        .chain(cases::multiplied())
        .chain(cases::exchanged())
        .chain(cases::uncovered());
    let events = events.map(|(name, event)| (name, event.encode()));
    let commits = cases::commits()
        .into_iter()
        .map(|(name, commit)| (name, commit.encode()));
    let usage = cases::usage_events()
        .into_iter()
        .map(|(name, event)| (name, event.encode()));
    events.chain(commits).chain(usage).collect()
}

#[test]
fn every_golden_file_is_read_and_says_what_it_said() {
    let names = names();
    assert!(names.len() > 2 * KINDS.len(), "only {} files", names.len());
    for name in names {
        assert_eq!(tell(&name, &stored(&name)), told(&name), "{name}");
    }
}

#[test]
fn what_this_build_knows_is_written_again_to_the_same_bytes() {
    for name in names().iter().filter(|name| !name.starts_with("foreign-")) {
        let bytes = stored(name);
        assert_eq!(encode_again(name, &bytes), bytes, "{name}");
    }
}

#[test]
fn every_kind_has_a_basic_and_a_full_file() {
    let names = names();
    for kind in KINDS.iter().copied().chain(["commit", "usage_event"]) {
        assert!(names.contains(kind), "{kind}");
        assert!(names.contains(&format!("{kind}-full")), "{kind}-full");
    }
    for (name, _) in cases::events() {
        let event = Event::decode(&stored(&name)).unwrap();
        let kind = name.strip_suffix("-full").unwrap_or(&name);
        assert_eq!(event.body.kind(), kind);
    }
}

#[test]
fn today_writes_what_the_golden_files_hold() {
    for (name, bytes) in written_today() {
        assert_eq!(
            hex::encode(&bytes),
            hex::encode(stored(&name)),
            "{name}: the bytes of version 1 changed"
        );
    }
}

#[test]
fn every_field_of_a_kind_is_in_one_of_its_files() {
    let names = names();
    for kind in KINDS {
        let files = names
            .iter()
            .filter(|name| is_event(name))
            .map(|name| told(name));
        let data: Vec<Value> = files
            .filter(|event| event["kind"] == **kind)
            .map(|mut event| event["data"].take())
            .collect();
        let absent = schema::absent_fields(kind, &data);
        assert!(absent.is_empty(), "no file of {kind} has {absent:?}");
    }
}

// --- what other builds write ---

fn raw(bytes: &[u8]) -> Raw {
    wire::decode("raw value", bytes).unwrap()
}

fn bytes_of(value: &Raw) -> Bytes {
    wire::encode(value).into()
}

fn fields(value: &mut Raw) -> &mut Vec<(Raw, Raw)> {
    match value {
        Raw::Map(fields) => fields,
        other => panic!("{other} is no map"),
    }
}

fn field<'a>(value: &'a mut Raw, name: &str) -> &'a mut Raw {
    let found = fields(value)
        .iter_mut()
        .find(|(key, _)| key.as_str() == Some(name));
    &mut found.unwrap_or_else(|| panic!("no field {name}")).1
}

fn basic_and_full() -> impl Iterator<Item = (String, Event, Raw)> {
    cases::events()
        .into_iter()
        .chain(cases::every_cap())
        .map(|(name, event)| {
            let value = raw(&event.encode());
            (name, event, value)
        })
}

fn sort_fields(value: &mut Raw, by: fn(&(Raw, Raw)) -> String) {
    match value {
        Raw::Map(fields) => {
            fields.sort_by_key(by);
            fields
                .iter_mut()
                .for_each(|(_, value)| sort_fields(value, by));
        }
        Raw::Array(items) => items.iter_mut().for_each(|item| sort_fields(item, by)),
        _ => {}
    }
}

/// Every integer in nine bytes, as some encoders write it.
fn wide(value: &Raw) -> Vec<u8> {
    let mut out = Vec::new();
    write_wide(&mut out, value);
    out
}

fn write_wide(out: &mut Vec<u8>, value: &Raw) {
    let long = |len: usize| u32::try_from(len).unwrap().to_be_bytes();
    match value {
        Raw::Integer(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => {
                out.push(0xcf);
                out.extend(number.to_be_bytes());
            }
            (None, Some(number)) => {
                out.push(0xd3);
                out.extend(number.to_be_bytes());
            }
            (None, None) => unreachable!("an integer has 64 bits"),
        },
        Raw::String(text) => {
            out.push(0xdb);
            out.extend(long(text.as_bytes().len()));
            out.extend(text.as_bytes());
        }
        Raw::Array(items) => {
            out.push(0xdd);
            out.extend(long(items.len()));
            items.iter().for_each(|item| write_wide(out, item));
        }
        Raw::Map(fields) => {
            out.push(0xdf);
            out.extend(long(fields.len()));
            for (key, value) in fields {
                write_wide(out, key);
                write_wide(out, value);
            }
        }
        other => rmpv::encode::write_value(out, other).unwrap(),
    }
}

/// Reads foreign bytes: the event is the expected one, and its bytes stay what they are.
#[track_caller]
fn reads_as(name: &str, bytes: &Bytes, expected: &Event) {
    let stored = StoredEvent::read(bytes.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(stored.event, *expected, "{name}");
    assert_eq!(stored.bytes, *bytes, "{name}");
}

/// Puts a field that no build knows into the map at this place among all of them; what it is to be called.
fn with_unknown(value: &mut Raw, place: &mut usize, path: &str) -> Option<String> {
    let name = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Raw::Map(fields) if *place == 0 => {
            let later = Raw::Array(vec![Raw::from(7), Raw::Map(vec![("x".into(), Raw::Nil)])]);
            fields.push(("later".into(), later));
            Some(name("later"))
        }
        Raw::Map(fields) => {
            *place -= 1;
            let mut inner = fields.iter_mut();
            inner.find_map(|(key, value)| with_unknown(value, place, &name(key.as_str().unwrap())))
        }
        Raw::Array(items) => {
            let mut items = items.iter_mut();
            items.find_map(|item| with_unknown(item, place, path))
        }
        _ => None,
    }
}

/// Nothing of what a release wrote is taken for something that this build does not know; and whatever is,
/// wherever it stands, is noticed and named.
#[test]
fn a_field_that_is_not_known_is_noticed_wherever_it_stands() {
    let mut places = 0;
    for name in names().iter().filter(|name| is_event(name)) {
        let bytes = stored(name);
        let event = StoredEvent::read(bytes.clone()).unwrap();
        let foreign = name.starts_with("foreign-");
        assert!(foreign || event.unknown.is_none(), "{name}");
        if foreign {
            continue;
        }
        for place in 0.. {
            let mut value = raw(&bytes);
            let Some(path) = with_unknown(&mut value, &mut place.clone(), "") else {
                break;
            };
            let noticed = |value: &Raw| {
                let read = StoredEvent::read(bytes_of(value)).unwrap();
                assert_eq!(read.event, event.event, "{name}: {path}");
                read.unknown.map(|field| field.to_string())
            };
            assert_eq!(noticed(&value), Some(path.clone()), "{name}");
            // with `data` before `kind`, too
            sort_fields(&mut value, |(key, _)| key.to_string());
            assert_eq!(noticed(&value), Some(path), "{name}, sorted");
            places += 1;
        }
    }
    assert!(places > 200, "only {places}");
}

#[test]
fn a_commits_own_unknown_field_is_noticed_too() {
    for name in names().iter().filter(|name| is_commit(name)) {
        let bytes = stored(name);
        assert_eq!(Commit::decode(&bytes).unwrap().unknown, None, "{name}");
        let mut value = raw(&bytes);
        fields(&mut value).push(("later".into(), Raw::from(true)));
        let commit = Commit::decode(&bytes_of(&value)).unwrap();
        let found = commit.unknown.map(|field| field.to_string());
        assert_eq!(found.as_deref(), Some("later"), "{name}");
    }
}

#[test]
fn fields_in_any_order_are_read_also_with_data_before_kind() {
    for (name, event, mut value) in basic_and_full() {
        sort_fields(&mut value, |(key, _)| key.to_string());
        assert_eq!(fields(&mut value)[4].0.as_str(), Some("data"));
        reads_as(&name, &bytes_of(&value), &event);
        sort_fields(&mut value, |(key, _)| {
            key.to_string().chars().rev().collect()
        });
        reads_as(&name, &bytes_of(&value), &event);
    }
}

#[test]
fn integers_and_lengths_of_any_width_are_read() {
    for (name, event, mut value) in basic_and_full() {
        reads_as(&name, &wide(&value).into(), &event);
        sort_fields(&mut value, |(key, _)| key.to_string());
        reads_as(&name, &wide(&value).into(), &event);
    }
}

fn later_field() -> (Raw, Raw) {
    let inner = vec![
        (
            Raw::from("list"),
            Raw::Array(vec![Raw::from(-1), Raw::Nil, Raw::from(1.5)]),
        ),
        (Raw::from("yes"), Raw::from(true)),
    ];
    (Raw::from("later"), Raw::Map(inner))
}

#[test]
fn unknown_fields_are_skipped_by_the_view_and_kept_in_the_bytes() {
    for (name, event, mut value) in basic_and_full() {
        fields(&mut value).insert(0, later_field());
        fields(field(&mut value, "data")).push(later_field());
        let bytes = bytes_of(&value);
        reads_as(&name, &bytes, &event);
        let json = StoredEvent::read(bytes).unwrap().to_json().unwrap();
        let later = json!({ "list": [-1, null, 1.5], "yes": true });
        assert_eq!(
            (&json["later"], &json["data"]["later"]),
            (&later, &later),
            "{name}"
        );
    }
}

#[test]
fn unknown_fields_inside_parts_are_skipped_too() {
    for (name, event, mut value) in basic_and_full() {
        let data = field(&mut value, "data");
        for (_, part) in fields(data).iter_mut() {
            match part {
                Raw::Map(fields) => fields.push(later_field()),
                Raw::Array(parts) => parts
                    .iter_mut()
                    .filter(|part| part.is_map())
                    .for_each(|part| fields(part).push(later_field())),
                _ => {}
            }
        }
        reads_as(&name, &bytes_of(&value), &event);
    }
}

#[test]
fn an_event_of_an_unknown_kind_is_kept_whole() {
    for (name, _, mut value) in basic_and_full() {
        *field(&mut value, "kind") = Raw::from("of_a_later_build");
        let data = field(&mut value, "data").clone();
        for order in [
            |(_, _): &(Raw, Raw)| String::new(),
            |(key, _): &(Raw, Raw)| key.to_string(),
        ] {
            sort_top(&mut value, order);
            let bytes = bytes_of(&value);
            let stored = StoredEvent::read(bytes.clone()).unwrap();
            let EventBody::Unknown { kind, data: kept } = &stored.event.body else {
                panic!("{name}: known");
            };
            assert_eq!((kind.as_str(), kept), ("of_a_later_build", &data), "{name}");
            assert_eq!(stored.bytes, bytes);
            let json = stored.to_json().unwrap();
            assert_eq!(json["kind"], "of_a_later_build");
            assert_eq!(json["data"], serde_json::to_value(&data).unwrap());
        }
    }
}

fn sort_top(value: &mut Raw, by: fn(&(Raw, Raw)) -> String) {
    fields(value).sort_by_key(by);
}

#[test]
fn an_event_of_an_unknown_kind_is_written_again_to_the_same_bytes() {
    let bytes = stored("foreign-kind");
    assert_eq!(Event::decode(&bytes).unwrap().encode(), bytes);
}

#[test]
fn an_envelope_without_one_of_its_fields_is_refused() {
    let (_, _, value) = basic_and_full().next().unwrap();
    for index in 0..8 {
        let mut less = value.clone();
        let (name, _) = fields(&mut less).remove(index);
        let error = Event::decode(&bytes_of(&less)).unwrap_err().to_string();
        assert!(error.contains(name.as_str().unwrap()), "{error}");
    }
}

#[test]
fn another_version_of_the_envelope_is_refused_by_name() {
    let (_, _, mut value) = basic_and_full().next().unwrap();
    *field(&mut value, "v") = Raw::from(2);
    let error = Event::decode(&bytes_of(&value)).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
}

// --- schemas ---

#[test]
fn every_golden_file_fits_its_schema() {
    for name in names() {
        let value = told(&name);
        if is_event(&name) {
            schema::fits("event", &value, name.starts_with("foreign-"))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        } else if is_usage_event(&name) {
            schema::fits("usage_event", &value, false).unwrap_or_else(|e| panic!("{name}: {e}"));
        } else {
            schema::fits("commit", &value, false).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn a_schema_requires_what_a_reader_requires() {
    for (name, event) in cases::events() {
        if name.ends_with("-full") {
            continue;
        }
        let whole = StoredEvent::new(event).to_json().unwrap();
        for field in whole["data"].as_object().unwrap().keys() {
            let mut less = whole.clone();
            less["data"].as_object_mut().unwrap().shift_remove(field);
            let read = Event::decode(&wire::encode(&less)).is_ok();
            let fits = schema::fits("event", &less, false).is_ok();
            assert_eq!(fits, read, "{name} without {field}");
        }
    }
}

#[test]
fn a_schema_refuses_what_a_reader_refuses() {
    for (name, event) in cases::events() {
        let whole = StoredEvent::new(event).to_json().unwrap();
        for field in whole["data"].as_object().unwrap().keys() {
            for wrong in [json!(-1.5), json!([1]), json!("\u{7}")] {
                let mut other = whole.clone();
                other["data"][field] = wrong;
                if Event::decode(&wire::encode(&other)).is_err() {
                    assert!(
                        schema::fits("event", &other, false).is_err(),
                        "{name}: {field} {}",
                        other["data"][field]
                    );
                }
            }
        }
    }
}

#[test]
fn the_feed_document_names_every_kind_and_every_header() {
    schema::check_feed_document();
}

// --- the generator ---

/// Writes a new file; one that exists must be the same.
fn keep(path: &Path, content: &[u8]) {
    match fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
    {
        Ok(mut file) => file.write_all(content).unwrap(),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => assert!(
            fs::read(path).unwrap() == content,
            "{} differs from what would be written: golden files stay for good, give the new shape a new name",
            path.display()
        ),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn foreign() -> Vec<(String, Bytes)> {
    let pick = |wanted: &str| {
        let (_, _, value) = basic_and_full().find(|(name, ..)| name == wanted).unwrap();
        value
    };
    let mut kind = pick("settled");
    *field(&mut kind, "kind") = Raw::from("of_a_later_build");
    fields(field(&mut kind, "data")).push(later_field());
    let mut more = pick("reserved-full");
    fields(&mut more).insert(0, later_field());
    fields(field(&mut more, "data")).push(later_field());
    let mut order = pick("settled-full");
    sort_fields(&mut order, |(key, _)| key.to_string());
    let widths = wide(&pick("refused-full")).into();
    vec![
        ("foreign-kind".to_owned(), bytes_of(&kind)),
        ("foreign-fields".to_owned(), bytes_of(&more)),
        ("foreign-order".to_owned(), bytes_of(&order)),
        ("foreign-widths".to_owned(), widths),
    ]
}

#[test]
#[ignore = "writes the golden files that are missing"]
fn regenerate() {
    fs::create_dir_all(folder()).unwrap();
    for (name, bytes) in written_today().into_iter().chain(foreign()) {
        let told = serde_json::to_string_pretty(&tell(&name, &bytes)).unwrap() + "\n";
        keep(&folder().join(format!("{name}.msgpack")), &bytes);
        keep(&folder().join(format!("{name}.json")), told.as_bytes());
    }
}
