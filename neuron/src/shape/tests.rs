use serde_json::json;

use super::*;
use crate::model::{Model, tests::tiny_config};

fn shapes() -> Shapes {
    let model = Model::load(&tiny_config(1)).unwrap();
    Shapes::new(model.tokenizer, model.vocab, model.eos)
}

/// What comes out where every token is as likely as any, but those of `liked`, each more than the ones after.
fn written(shape: &Shape, liked: &str, most: usize) -> String {
    let (shapes, guides) = (shapes(), Guides::start().unwrap());
    let mut guide = shapes.guides(shape, 1).unwrap().remove(0);
    let mut text = String::new();
    for _ in 0..most {
        let Some(next) = step(&mut guide, shapes.vocab, liked) else {
            return text;
        };
        text.push(next);
        guide.came(next.into(), &guides);
    }
    text
}

/// The most liked of what may come next; none where the text ends.
fn step(guide: &mut Guide, vocab: u32, liked: &str) -> Option<char> {
    let mut row = vec![0.0f32; vocab as usize];
    for (n, byte) in (0u8..).zip(liked.bytes()) {
        row[usize::from(byte)] = 100.0 - f32::from(n);
    }
    row[257] = 200.0;
    guide.next().unwrap().apply(&mut row);
    let best = (0u32..)
        .zip(&row)
        .max_by(|a, b| a.1.total_cmp(b.1))
        .unwrap();
    assert!(best.1.is_finite(), "something may always come");
    (best.0 != 257).then(|| char::from(u8::try_from(best.0).unwrap()))
}

#[test]
fn answers_of_one_reading_go_ways_of_their_own() {
    let (shapes, guides) = (shapes(), Guides::start().unwrap());
    let shape = Shape::Json(json!({ "enum": ["aab", "abb", "bba"] }));
    let mut all = shapes.guides(&shape, 3).unwrap();
    let mut texts = vec![String::new(); 3];
    for turn in 0..12 {
        let n = turn % 3;
        let liked = ["a", "b", if turn < 6 { "ab" } else { "ba" }][n];
        if let Some(next) = step(&mut all[n], shapes.vocab, liked) {
            texts[n].push(next);
            all[n].came(next.into(), &guides);
        }
    }
    assert_eq!(texts, ["\"aab", "\"bba", "\"abb"]);
}

#[test]
fn only_what_the_schema_has_is_written() {
    let schema = json!({
        "type": "object",
        "properties": { "name": { "$ref": "#/$defs/word" }, "count": { "type": "integer", "maximum": 99 } },
        "required": ["name", "count"],
        "additionalProperties": false,
        "$defs": { "word": { "type": "string", "maxLength": 5 } },
    });
    let text = written(&Shape::Json(schema), "xyz7\"", 200);
    let read: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(read["name"], "xxxxx", "{text}");
    assert!(read["count"].is_i64(), "{text}");
}

#[test]
fn spaces_do_not_go_on_for_ever() {
    let schema = json!({ "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"], "additionalProperties": false });
    let text = written(&Shape::Json(schema), " ", 400);
    assert!(text.len() < 250, "{text:?}");
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        json!({ "a": 1 })
    );
}

#[test]
fn a_call_stands_in_its_tags_and_is_one_of_the_tools() {
    let call = |name: &str| json!({ "type": "object", "properties": { "name": { "const": name } }, "required": ["name"], "additionalProperties": false });
    let shape = Shape::Wrapped {
        before: "<tool_call>\n",
        schemas: vec![call("f"), call("g")],
        after: "\n</tool_call>",
    };
    let text = written(&shape, "g", 100);
    assert_eq!(text, "<tool_call>\n{\"name\":\"g\"}\n</tool_call>");
}

#[test]
fn what_cannot_be_is_told_at_once() {
    let shapes = shapes();
    let refused = |schema: Value| {
        let error = shapes.guides(&Shape::Json(schema), 1).unwrap_err();
        assert!(matches!(error, ShapeError::Impossible(_)), "{error}");
        error.to_string()
    };
    refused(json!(true));
    refused(json!({ "type": "no such type" }));
    refused(json!({ "type": "object", "properties": { "a": false }, "required": ["a"] }));
    refused(json!({ "$ref": "https://example.com/schema" }));
    refused(json!({ "type": "integer", "minimum": 5, "maximum": 4 }));
    let never = refused(json!({ "not": { "type": "string" } }));
    assert!(never.contains("not"), "{never}");
    let large = refused(json!({ "enum": ["x".repeat(sound::SCHEMA_BYTES_MAX)] }));
    assert!(large.contains("256 KiB"), "{large}");
}

#[test]
fn a_shape_that_would_take_for_ever_is_refused_in_time() {
    let shapes = shapes();
    let began = std::time::Instant::now();
    let hard = json!({ "type": "string", "pattern": "^(a|aa|aaa)*(x+x+)+y.{1000,9000}[a-z]{2000,9000}z$" });
    let nested = (0..12).fold(json!({ "type": "string" }), |inner, n| {
        json!({ "anyOf": [{ "type": "object", "properties": { format!("p{n}"): inner } }, inner] })
    });
    for schema in [hard, nested] {
        // Either way, but soon.
        let _ = shapes.guides(&Shape::Json(schema), 1);
    }
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

/// So many definitions, each of which refers to the next.
fn chain(length: usize, link: impl Fn(Value) -> Value) -> Value {
    let mut definitions: serde_json::Map<String, Value> = (0..length)
        .map(|n| {
            let next = json!({ "$ref": format!("#/$defs/d{}", n + 1) });
            (format!("d{n}"), link(next))
        })
        .collect();
    definitions.insert(format!("d{length}"), json!({ "type": "integer" }));
    json!({ "$defs": definitions, "$ref": "#/$defs/d0" })
}

#[test]
fn references_as_deep_as_they_may_be_end_no_process() {
    let shapes = shapes();
    let most = sound::LEVELS_MAX;
    let object = |next: Value| json!({ "type": "object", "properties": { "a": next, "b": next } });
    for schema in [
        chain(most / 2 - 10, |next| next),
        chain(most / 4 - 10, |next| json!({ "allOf": [next] })),
        chain(
            most / 4 - 10,
            |next| json!({ "anyOf": [next, { "type": "null" }] }),
        ),
        chain(most / 4 - 10, object),
    ] {
        assert_eq!(sound::beyond(&schema), None);
        // Whatever comes of it.
        let _ = shapes.guides(&Shape::Json(schema), 1);
    }
    for schema in [chain(most, |next| next), chain(most, object)] {
        let error = shapes
            .guides(&Shape::Json(schema), 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("levels") || error.contains("KiB"), "{error}");
    }
}

#[test]
fn an_object_of_many_optional_properties_can_be_followed() {
    let names = (0..900).map(|n| (format!("p{n}"), json!({ "type": "integer" })));
    let properties: serde_json::Map<String, Value> = names.collect();
    let schema =
        json!({ "type": "object", "properties": properties, "additionalProperties": false });
    let text = written(&Shape::Json(schema), "}", 50);
    assert_eq!(text, "{}");
}

#[test]
fn no_words_of_a_panic_are_shown() {
    let bounds = json!({ "type": "integer", "minimum": -9_007_199_254_740_991i64, "maximum": 9_007_199_254_740_991i64 });
    if let Err(error) = shapes().guides(&Shape::Json(bounds), 1) {
        assert!(!error.to_string().contains("panic"), "{error}");
    }
    let grammar = "at 2(8): failed to compile JSON schema: no such type\n\n1 | start: (call0)\n";
    assert_eq!(shortened(grammar), "no such type");
    assert!(!shortened("panic: attempt to negate <backtrace>").contains("panic"));
}
