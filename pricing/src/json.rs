//! JSON whose numbers stay the text that they were, and whose objects have each name once.

use std::collections::BTreeSet;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Error, value::RawValue};

/// Deepest nesting that is read; price lists have eight.
const DEPTH_MAX: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    Text(String),
    List(Vec<Json>),
    /// In the order of the file.
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        Self::read(serde_json::from_str(text)?, 0)
    }

    fn read(raw: &RawValue, depth: usize) -> Result<Self, Error> {
        if depth > DEPTH_MAX {
            return Err(Error::custom("nested too deep"));
        }
        let text = raw.get();
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let members: Members<'_> = serde_json::from_str(text)?;
                let read = |(name, raw)| Ok((name, Self::read(raw, depth + 1)?));
                Self::Object(
                    members
                        .0
                        .into_iter()
                        .map(read)
                        .collect::<Result<_, Error>>()?,
                )
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                let read = |raw| Self::read(raw, depth + 1);
                Self::List(items.into_iter().map(read).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Self::Text(serde_json::from_str(text)?),
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'n') => Self::Null,
            _ => Self::Number(text.to_owned()),
        })
    }

    /// The member of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        let found = self.members().iter().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value)
            .filter(|value| **value != Self::Null)
    }

    pub(crate) fn members(&self) -> &[(String, Self)] {
        match self {
            Self::Object(members) => members,
            _ => &[],
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// The text of a number; one list writes some of its numbers as strings.
    pub(crate) fn number(&self) -> Option<&str> {
        match self {
            Self::Number(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The members of an object; one that is named twice would have the last price win in silence.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut members, mut names) = (Vec::new(), BTreeSet::new());
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if !names.insert(name.clone()) {
                        let cut: String = name.chars().take(80).collect();
                        return Err(A::Error::custom(format_args!("{cut:?} is given twice")));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_as_they_were_written() {
        let read = Json::parse(r#"{"a": [3.0001999999999996E-7, null, true], "b": "x"}"#).unwrap();
        let items = read.get("a").and_then(Json::list).unwrap();
        assert_eq!(items[0].number(), Some("3.0001999999999996E-7"));
        assert_eq!(read.get("b").and_then(Json::text), Some("x"));
    }

    #[test]
    fn a_name_given_twice_and_deep_nesting_are_refused() {
        let twice = Json::parse(r#"{"a": {"b": 1, "b": 2}}"#).unwrap_err();
        assert!(
            twice.to_string().contains("\"b\" is given twice"),
            "{twice}"
        );
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert!(
            Json::parse(&deep)
                .unwrap_err()
                .to_string()
                .contains("too deep")
        );
        for bad in ["", "{", "[1,]", "{\"a\":NaN}", "1 2"] {
            assert!(Json::parse(bad).is_err(), "{bad}");
        }
    }
}
