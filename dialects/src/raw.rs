//! JSON that is looked into without being believed: each field by itself, however often it comes, so that
//! an odd one spoils no other.
//!
//! Only the shape is read. What stands in a value that nobody asks for (a number out of range, half of a
//! surrogate pair, a thousand brackets) is not looked at. Not here: what the fields mean.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The fields of an object as they came, those that come twice too.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Pairs<'a> {
    /// Those of an object; `None` where the text is none.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Those of a value; none where it is no object.
    pub(crate) fn of(raw: &'a RawValue) -> Self {
        Self::read(raw.get()).unwrap_or_default()
    }

    /// Every value under a name that is not null.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &'a RawValue> {
        let named = self.0.iter().filter(move |(found, _)| found == name);
        named.map(|(_, raw)| *raw).filter(|raw| !is_null(raw))
    }

    /// The last of them.
    pub(crate) fn last(&self, name: &str) -> Option<&'a RawValue> {
        self.all(name).last()
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(name, raw)| (name.as_str(), *raw))
    }
}

pub(crate) fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// The items of an array; none where it is no array.
pub(crate) fn items(raw: &RawValue) -> Vec<&RawValue> {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut pairs = Vec::new();
        while let Some(name) = map.next_key_seed(Name)? {
            pairs.push((name, map.next_value()?));
        }
        Ok(Pairs(pairs))
    }
}

/// A name, read as bytes: half of a surrogate pair in it is no error then.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Name {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_spoils_nothing() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        let text = format!(
            r#"{{"a": 1, "\ud83d": 1e400, "deep": {deep}, "half": "\ud83d", "a": 2, "a": null}}"#
        );
        let pairs = Pairs::read(&text).unwrap();
        let found: Vec<_> = pairs.all("a").map(RawValue::get).collect();
        assert_eq!(found, ["1", "2"]);
        assert_eq!(pairs.last("a").map(RawValue::get), Some("2"));
        assert!(pairs.last("b").is_none());
        assert!(Pairs::read("[1]").is_none());
        assert!(Pairs::read(r#"{"a": 1"#).is_none());
    }

    #[test]
    fn a_value_of_another_shape_has_no_fields_and_no_items() {
        let raw: &RawValue = serde_json::from_str("[1, {}]").unwrap();
        assert_eq!(items(raw).len(), 2);
        assert_eq!(Pairs::of(raw).iter().count(), 0);
        assert!(items(items(raw)[1]).is_empty());
    }
}
