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
    let mut guide = shapes.guide(shape).unwrap();
    let mut text = String::new();
    for _ in 0..most {
        let mut row = vec![0.0f32; shapes.vocab as usize];
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
        if best.0 == 257 {
            return text;
        }
        text.push(char::from(u8::try_from(best.0).unwrap()));
        guide.came(best.0, &guides);
    }
    text
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
        let error = shapes.guide(&Shape::Json(schema)).unwrap_err();
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
    let large = refused(json!({ "enum": ["x".repeat(SCHEMA_BYTES_MAX)] }));
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
        let _ = shapes.guide(&Shape::Json(schema));
    }
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}
