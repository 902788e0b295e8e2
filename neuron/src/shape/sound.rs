//! Schemas within bounds, found before the library sees them.
//!
//! The library reads a schema by calling itself, through references too: where its stack ends, the process ends. And what
//! some numbers make it do grows with them beyond the work that it counts. Nothing is read here but what those bounds need.

use std::{
    collections::{BTreeSet, HashMap},
    ptr,
};

use serde_json::{Map, Value};

/// Largest schema, as JSON.
pub(super) const SCHEMA_BYTES_MAX: usize = 256 * 1024;
/// How deep a schema may be with all that it refers to, each reference followed once.
pub(super) const LEVELS_MAX: usize = 4_000;
/// Stack of the thread that reads one. A level takes some three kilobytes of it in a build for tests.
pub(super) const STACK_BYTES: usize = 128 << 20;
/// Names of properties and of what is required, in all.
const NAMES_MAX: usize = 2_000;
/// Numbers that others are multiples of, multiplied with each other: so many states they take.
const MULTIPLES_MAX: u128 = 10_000;
/// Where numbers are exact, as JSON is read by others.
const NUMBER_MAX: f64 = 9_007_199_254_740_992.0;
/// Patterns for names of properties: each is held against each of the others.
const PATTERNS_MAX: usize = 32;

/// Why a schema is beyond the bounds; nothing where it is within them.
pub(super) fn beyond(schema: &Value) -> Option<String> {
    if schema.to_string().len() > SCHEMA_BYTES_MAX {
        return Some("the schema has more than 256 KiB".to_owned());
    }
    let mut found = Found::default();
    found.read(schema);
    found.beyond(schema)
}

#[derive(Default)]
struct Found<'a> {
    references: BTreeSet<&'a str>,
    multiples: BTreeSet<u128>,
    names: usize,
    patterns: usize,
    wrong: Option<String>,
}

impl<'a> Found<'a> {
    fn read(&mut self, value: &'a Value) {
        match value {
            Value::Object(fields) => self.read_fields(fields),
            Value::Array(items) => items.iter().for_each(|item| self.read(item)),
            _ => {}
        }
    }

    /// Data too, as that of `const` and `default`: a property may have such a name, and a reference may lead into it.
    fn read_fields(&mut self, fields: &'a Map<String, Value>) {
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("$ref", Value::String(reference)) => {
                    self.references.insert(reference);
                }
                ("multipleOf", Value::Number(_)) => self.multiple(value),
                ("minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum", number) => {
                    self.bound(name, number);
                }
                ("properties", Value::Object(properties)) => self.names += properties.len(),
                ("required", Value::Array(required)) => self.names += required.len(),
                ("patternProperties", Value::Object(patterns)) => self.patterns += patterns.len(),
                _ => {}
            }
            self.read(value);
        }
    }

    fn multiple(&mut self, number: &Value) {
        // Without an exponent, so that the digits are the states.
        let digits = number
            .as_f64()
            .map(|number| number.abs().to_string().replace('.', ""));
        match digits.and_then(|digits| digits.parse().ok()) {
            Some(states) => {
                self.multiples.insert(states);
            }
            None => self.wrong(format!(
                "multipleOf {number} is no number that can be followed"
            )),
        }
    }

    fn bound(&mut self, name: &str, number: &Value) {
        if number
            .as_f64()
            .is_some_and(|number| number.abs() > NUMBER_MAX)
        {
            self.wrong(format!("{name} {number} is beyond 2^53"));
        }
    }

    fn wrong(&mut self, words: String) {
        self.wrong.get_or_insert(words);
    }

    fn beyond(self, schema: &Value) -> Option<String> {
        if self.wrong.is_some() {
            return self.wrong;
        }
        if self.names > NAMES_MAX {
            return Some(format!("the schema names more than {NAMES_MAX} properties"));
        }
        if self.patterns > PATTERNS_MAX {
            return Some(format!(
                "the schema has more than {PATTERNS_MAX} patterns for names of properties"
            ));
        }
        let states = (self.multiples.iter()).try_fold(1u128, |all, one| all.checked_mul(*one));
        if states.is_none_or(|states| states > MULTIPLES_MAX) {
            return Some(format!(
                "what multipleOf asks for takes more than {MULTIPLES_MAX} states: say smaller numbers, or fewer different ones"
            ));
        }
        let whole = levels(schema);
        // Many may refer to one.
        let mut known = HashMap::new();
        let referred = self.references.iter().map(|reference| {
            let target = reference
                .strip_prefix('#')
                .and_then(|path| schema.pointer(path));
            let depth = |target: &Value| {
                *known
                    .entry(ptr::from_ref(target))
                    .or_insert_with(|| levels(target))
            };
            1 + target.map_or(whole, depth)
        });
        (whole + referred.sum::<usize>() > LEVELS_MAX).then(|| {
            format!("the schema is more than {LEVELS_MAX} levels deep with all that it refers to")
        })
    }
}

fn levels(value: &Value) -> usize {
    let inner = match value {
        Value::Object(fields) => fields.values().map(levels).max(),
        Value::Array(items) => items.iter().map(levels).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ordinary_schemas_are_within() {
        let definitions: Map<String, Value> = (0..300)
            .map(|n| {
                let next = json!({ "$ref": format!("#/$defs/d{}", (n + 1) % 300) });
                let list = json!({ "type": "array", "items": next });
                (format!("d{n}"), json!({ "type": "object", "properties": { "a": list, "b": { "multipleOf": 0.01 } } }))
            })
            .collect();
        let schema = json!({
            "$defs": definitions, "$ref": "#/$defs/d0",
            "properties": { "c": { "multipleOf": 5 }, "e": { "minimum": -1, "maximum": 1e15 }, "f": { "enum": [1e30] } },
        });
        assert_eq!(beyond(&schema), None);
    }

    #[test]
    fn what_has_no_bound_of_its_own_is_refused() {
        let chain: Map<String, Value> = (0..5_000)
            .map(|n| {
                (
                    format!("d{n}"),
                    json!({ "$ref": format!("#/$defs/d{}", n + 1) }),
                )
            })
            .collect();
        let names: Vec<String> = (0..3_000).map(|n| format!("p{n}")).collect();
        let patterns: Map<String, Value> = (0..50).map(|n| (format!("^p{n}"), json!({}))).collect();
        for (schema, words) in [
            (json!({ "$defs": chain, "$ref": "#/$defs/d0" }), "levels"),
            (json!({ "required": names }), "properties"),
            (json!({ "multipleOf": 99_999_989 }), "multipleOf"),
            (
                json!({ "allOf": [{ "multipleOf": 997 }, { "multipleOf": 0.991 }] }),
                "multipleOf",
            ),
            (json!({ "multipleOf": 1e300 }), "multipleOf"),
            (
                json!({ "properties": { "default": { "multipleOf": 99_999_989 } } }),
                "multipleOf",
            ),
            (
                json!({ "$ref": "#/const/m", "const": { "m": { "multipleOf": 99_999_989 } } }),
                "multipleOf",
            ),
            (json!({ "patternProperties": patterns }), "patterns"),
            (json!({ "items": { "minimum": -1e30 } }), "2^53"),
            (json!({ "enum": ["x".repeat(SCHEMA_BYTES_MAX)] }), "256 KiB"),
        ] {
            let refused = beyond(&schema).unwrap_or_default();
            assert!(refused.contains(words), "{refused:?}");
        }
    }
}
