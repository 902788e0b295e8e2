//! A body looked over before it is parsed: how many values it has and how deep they lie, so that what
//! parsing makes of it is bounded beforehand.
//!
//! Only what stands outside of strings is counted. Of a body that is no JSON the count is as wrong as
//! the body; parsing says so, and makes no more of it than was counted up to there.

use std::slice::Iter;

use crate::{
    config::{CONTAINER_BYTES, DEPTH_MAX, VALUE_BYTES},
    error::ApiError,
};

/// What parsing a body takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// At least as many as there are.
    values: usize,
    /// Objects and arrays.
    containers: usize,
}

impl Weight {
    /// How much memory the parsed body takes besides its own length, at most.
    pub(super) fn bytes(self) -> usize {
        let values = self.values.saturating_mul(VALUE_BYTES);
        values.saturating_add(self.containers.saturating_mul(CONTAINER_BYTES))
    }
}

/// Weighs a body of at most so many values.
pub(super) fn weigh(body: &[u8], values_max: usize) -> Result<Weight, ApiError> {
    let mut weight = Weight {
        values: 1,
        containers: 0,
    };
    let mut depth = 0_usize;
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'{' | b'[' => {
                weight.containers += 1;
                weight.values += 1;
                depth += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => weight.values += 1,
            _ => continue,
        }
        if depth > DEPTH_MAX {
            return Err(ApiError::invalid_body(format_args!(
                "its values lie deeper than {DEPTH_MAX} levels: send flatter ones"
            )));
        }
        if weight.values > values_max {
            return Err(ApiError::invalid_body(format_args!(
                "it has more than {values_max} values: send fewer"
            )));
        }
    }
    Ok(weight)
}

/// Goes to the end of a string whose first quote was seen.
fn skip_string(bytes: &mut Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn values(body: &str) -> usize {
        weigh(body.as_bytes(), usize::MAX).unwrap().values
    }

    #[test]
    fn what_stands_in_a_string_is_no_value() {
        assert_eq!(values(r#"{"a":"[,{\",[\\"}"#), 2);
        assert_eq!(values(r#"{"a,\"[":[1,2,{"b":null}]}"#), 6);
        assert_eq!(values("\"never ended,[["), 1);
        assert_eq!(values("\"never ended\\"), 1);
    }

    #[test]
    fn the_bounds_are_those_that_are_named() {
        let many = |n: usize| format!("[{}0]", "0,".repeat(n - 2));
        assert!(weigh(many(100).as_bytes(), 100).is_ok());
        assert_eq!(
            weigh(many(101).as_bytes(), 100).unwrap_err().code(),
            "invalid_body"
        );
        let deep = |n: usize| "[".repeat(n);
        assert!(weigh(deep(DEPTH_MAX).as_bytes(), usize::MAX).is_ok());
        assert!(weigh(deep(DEPTH_MAX + 1).as_bytes(), usize::MAX).is_err());
    }

    #[test]
    fn what_may_be_as_deep_as_is_named_is_parsed() {
        let deep = "[".repeat(DEPTH_MAX) + &"]".repeat(DEPTH_MAX);
        assert!(serde_json::from_str::<Value>(&deep).is_ok());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(|n| json!(n)),
            "[\\PC\"\\\\,{}\\[\\]]{0,8}".prop_map(Value::String),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            let name = "[a-c\",\\[{\\\\]{0,3}";
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::vec((name, inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn count(value: &Value) -> (usize, usize) {
        let (inner, container): (Vec<&Value>, usize) = match value {
            Value::Array(values) => (values.iter().collect(), 1),
            Value::Object(fields) => (fields.values().collect(), 1),
            _ => (Vec::new(), 0),
        };
        let inner = inner.into_iter().map(count);
        inner.fold((1, container), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    proptest! {
        #[test]
        fn there_are_never_more_values_than_were_counted(value in any_json()) {
            let weight = weigh(value.to_string().as_bytes(), usize::MAX).unwrap();
            let (values, containers) = count(&value);
            prop_assert!(weight.values >= values);
            prop_assert_eq!(weight.containers, containers);
        }
    }
}
