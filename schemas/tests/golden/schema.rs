//! Checks JSON values against the written JSON Schemas: the part of draft 2020-12 that they use, and
//! an error for every other keyword, so that a mistyped one is found. On top of the standard, a field
//! that no schema describes is an error, unless the value comes from a later build.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::OnceLock,
};

use seatbelt_schemas::{
    event::KINDS,
    ids::{AccountId, NeuronId},
    names::Names,
};
use serde_json::{Map, Value};

type Schemas = BTreeMap<String, Value>;

fn crate_file(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn schemas() -> &'static Schemas {
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("json/v1");
        let names = fs::read_dir(folder).unwrap();
        let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
        names
            .map(|name| (name.clone(), crate_file(&format!("json/v1/{name}"))))
            .collect()
    })
}

/// Whether `value` fits the schema of this name; with `later`, fields of a later build are skipped.
pub(crate) fn fits(name: &str, value: &Value, later: bool) -> Result<(), String> {
    let file = format!("{name}.schema.json");
    let schema = schemas().get(&file).ok_or(format!("no schema {file}"))?;
    Check { file: &file, later }.value(schema, value, "")
}

struct Check<'a> {
    file: &'a str,
    later: bool,
}

impl Check<'_> {
    fn value(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = schema.as_object().expect("a schema is an object");
        for (keyword, rule) in schema {
            self.keyword(schema, keyword, rule, value)
                .map_err(|error| match error.strip_prefix('/') {
                    Some(_) => error,
                    None => format!("{at}/ {error}"),
                })?;
        }
        Ok(())
    }

    fn keyword(
        &self,
        schema: &Map<String, Value>,
        keyword: &str,
        rule: &Value,
        value: &Value,
    ) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{value} is not {what} {rule}"));
        let number = || {
            rule.as_u64()
                .and_then(|rule| usize::try_from(rule).ok())
                .unwrap()
        };
        match keyword {
            "$schema" | "$id" | "$defs" | "title" | "description" | "then" => Ok(()),
            "$ref" => self.follow(rule.as_str().unwrap(), value),
            "type" if has_type(value, rule.as_str().unwrap()) => Ok(()),
            "const" if value == rule => Ok(()),
            "enum" if rule.as_array().unwrap().contains(value) => Ok(()),
            "type" | "const" | "enum" => wrong(keyword),
            "minimum" if compare(value, rule).is_none_or(|order| order.is_ge()) => Ok(()),
            "maximum" if compare(value, rule).is_none_or(|order| order.is_le()) => Ok(()),
            "minLength"
                if value
                    .as_str()
                    .is_none_or(|text| text.chars().count() >= number()) =>
            {
                Ok(())
            }
            "maxLength"
                if value
                    .as_str()
                    .is_none_or(|text| text.chars().count() <= number()) =>
            {
                Ok(())
            }
            "minItems" if value.as_array().is_none_or(|items| items.len() >= number()) => Ok(()),
            "maxItems" if value.as_array().is_none_or(|items| items.len() <= number()) => Ok(()),
            "pattern"
                if value
                    .as_str()
                    .is_none_or(|text| matches(text, rule.as_str().unwrap())) =>
            {
                Ok(())
            }
            "minimum" | "maximum" | "minLength" | "maxLength" | "minItems" | "maxItems"
            | "pattern" => wrong(keyword),
            _ => self.keyword_of_parts(schema, keyword, rule, value),
        }
    }

    /// Keywords that are schemas of their own, or of what is inside.
    fn keyword_of_parts(
        &self,
        schema: &Map<String, Value>,
        keyword: &str,
        rule: &Value,
        value: &Value,
    ) -> Result<(), String> {
        match keyword {
            "required" => {
                let names = rule
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|name| name.as_str().unwrap());
                let absent =
                    |name: &&str| value.as_object().is_some_and(|o| !o.contains_key(*name));
                names
                    .into_iter()
                    .find(absent)
                    .map_or(Ok(()), |name| Err(format!("{name} is missing")))
            }
            "properties" => self.properties(schema, rule, value),
            "items" => value
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
                .try_for_each(|(index, item)| self.value(rule, item, &format!("/{index}"))),
            "allOf" => rule
                .as_array()
                .unwrap()
                .iter()
                .try_for_each(|part| self.value(part, value, "")),
            "oneOf" => {
                let parts = rule.as_array().unwrap().iter();
                match parts
                    .filter(|part| self.value(part, value, "").is_ok())
                    .count()
                {
                    1 => Ok(()),
                    count => Err(format!("{value} fits {count} alternatives instead of one")),
                }
            }
            "if" if self.value(rule, value, "").is_ok() => self.value(&schema["then"], value, ""),
            "if" => Ok(()),
            other => panic!("{}: keyword {other:?} is not known here", self.file),
        }
    }

    fn properties(
        &self,
        schema: &Map<String, Value>,
        rule: &Value,
        value: &Value,
    ) -> Result<(), String> {
        let Some(fields) = value.as_object() else {
            return Ok(());
        };
        for (name, field) in fields {
            match rule.get(name) {
                Some(part) => self.value(part, field, &format!("/{name}"))?,
                // a part of `allOf` or `if` says only something of some fields
                None if self.later || !schema.contains_key("type") => {}
                None => return Err(format!("{name} is not described")),
            }
        }
        Ok(())
    }

    fn follow(&self, reference: &str, value: &Value) -> Result<(), String> {
        let (file, schema) = resolve(self.file, reference);
        Check {
            file: &file,
            later: self.later,
        }
        .value(schema, value, "")
    }
}

fn resolve(from: &str, reference: &str) -> (String, &'static Value) {
    let (file, pointer) = reference.split_once('#').unwrap_or((reference, ""));
    let file = if file.is_empty() { from } else { file };
    let whole = schemas()
        .get(file)
        .unwrap_or_else(|| panic!("{from}: no schema {file}"));
    let part = whole
        .pointer(pointer)
        .unwrap_or_else(|| panic!("{from}: no part {reference}"));
    (file.to_owned(), part)
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other:?} is not known here"),
    }
}

fn compare(value: &Value, rule: &Value) -> Option<std::cmp::Ordering> {
    let whole = |number: &Value| {
        let signed = number.as_i64().map(i128::from);
        signed.or(number.as_u64().map(i128::from))
    };
    Some(whole(value)?.cmp(&whole(rule).expect("bounds are whole numbers")))
}

/// The patterns that the schemas use, each by hand.
fn matches(text: &str, pattern: &str) -> bool {
    let all = |lengths: std::ops::RangeInclusive<usize>, fits: fn(u8) -> bool| {
        lengths.contains(&text.len()) && text.bytes().all(fits)
    };
    match pattern {
        "^[A-Za-z0-9_-]{1,64}$" => all(1..=64, |b| {
            b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
        }),
        "^[0-9a-f]{64}$" => all(64..=64, |b| {
            b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
        }),
        "^[0-7][0-9A-HJKMNP-TV-Z]{25}$" => {
            let crockford =
                |b: u8| b.is_ascii_digit() || (b.is_ascii_uppercase() && !b"ILOU".contains(&b));
            all(26..=26, crockford) && text.as_bytes()[0] <= b'7'
        }
        "^[^\\u0000-\\u001f\\u007f-\\u009f]+$" => {
            !text.is_empty() && !text.chars().any(char::is_control)
        }
        other => panic!("pattern {other:?} is not known here"),
    }
}

/// Fields that a kind's schema describes and none of these `data` has, at any depth.
pub(crate) fn absent_fields(kind: &str, data: &[Value]) -> BTreeSet<String> {
    let file = format!("{kind}.schema.json");
    let mut absent = BTreeSet::new();
    let data: Vec<&Value> = data.iter().collect();
    look_for(&file, &schemas()[&file], &data, "", &mut absent);
    absent
}

fn look_for(
    file: &str,
    schema: &Value,
    values: &[&Value],
    at: &str,
    absent: &mut BTreeSet<String>,
) {
    if let Some(reference) = schema.get("$ref") {
        let (file, schema) = resolve(file, reference.as_str().unwrap());
        look_for(&file, schema, values, at, absent);
    }
    if let Some(items) = schema.get("items") {
        let inner: Vec<&Value> = values
            .iter()
            .filter_map(|v| v.as_array())
            .flatten()
            .collect();
        look_for(file, items, &inner, at, absent);
    }
    for (name, part) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let at = format!("{at}/{name}");
        let inner: Vec<&Value> = values.iter().filter_map(|value| value.get(name)).collect();
        if inner.is_empty() {
            absent.insert(at);
        } else {
            look_for(file, part, &inner, &at, absent);
        }
    }
}

/// The AsyncAPI document against the names in code, the kinds, and the files it refers to.
pub(crate) fn check_feed_document() {
    let document = crate_file("asyncapi.json");
    assert_eq!(document["asyncapi"], "3.0.0");
    references_resolve(&document, &document);

    let names = Names::default();
    let (account, neuron) = (
        AccountId::new("ACCOUNT").unwrap(),
        NeuronId::new("NEURON").unwrap(),
    );
    let address = |channel: &str| document["channels"][channel]["address"].as_str().unwrap();
    let spend = address("spend")
        .replace("{account}", "ACCOUNT")
        .replace("{kind}", "settled");
    assert_eq!(spend, names.feed_subject(&account, "settled"));
    assert_eq!(
        address("usage").replace("{neuron}", "NEURON"),
        names.usage_subject(&neuron)
    );

    let channel = &document["channels"]["spend"];
    assert_eq!(channel["parameters"]["kind"]["enum"], Value::from(KINDS));
    for kind in KINDS {
        let message = &document["components"]["messages"][kind];
        assert_eq!(
            channel["messages"][kind]["$ref"],
            format!("#/components/messages/{kind}")
        );
        assert_eq!(message["name"], names.feed_type(kind));
        assert_eq!(message["contentType"], "application/msgpack");
        let data = &message["payload"]["allOf"][1]["properties"]["data"]["$ref"];
        assert_eq!(*data, format!("json/v1/{kind}.schema.json"));
    }
    let headers = &document["components"]["schemas"]["feedHeaders"];
    let contract = [
        "ce-id",
        "ce-type",
        "ce-source",
        "ce-subject",
        "ce-time",
        "content-type",
        "Nats-Msg-Id",
    ];
    for header in contract {
        assert!(headers["properties"].get(header).is_some(), "{header}");
        assert!(
            headers["required"]
                .as_array()
                .unwrap()
                .contains(&header.into()),
            "{header}"
        );
    }
}

fn references_resolve(document: &Value, part: &Value) {
    match part {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, inner)| match inner.as_str() {
                Some(reference) if name == "$ref" => match reference.strip_prefix('#') {
                    Some(pointer) => assert!(document.pointer(pointer).is_some(), "{reference}"),
                    None => {
                        let file = reference.strip_prefix("json/v1/").expect(reference);
                        assert!(schemas().contains_key(file), "{reference}");
                    }
                },
                _ => references_resolve(document, inner),
            }),
        Value::Array(items) => items
            .iter()
            .for_each(|item| references_resolve(document, item)),
        _ => {}
    }
}
