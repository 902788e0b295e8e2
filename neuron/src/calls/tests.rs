use proptest::prelude::*;
use serde_json::json;

use super::*;

fn tools() -> Vec<String> {
    vec!["weather".to_owned(), "now".to_owned()]
}

/// Neighbouring texts as one.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match (all.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(text)) => before.push_str(&text),
            (_, part) => all.push(part),
        }
    }
    all
}

fn read(format: CallFormat, pieces: &[&str]) -> Vec<Part> {
    let mut reader = CallReader::new(format, tools());
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    joined(parts)
}

fn says(text: &str) -> Part {
    Part::Text(text.to_owned())
}

fn calls(name: &str, arguments: Value) -> Part {
    Part::Call(Call {
        name: name.to_owned(),
        arguments,
    })
}

/// The same whole, and letter by letter.
#[track_caller]
fn check(format: CallFormat, text: &str, expected: &[Part]) {
    assert_eq!(read(format, &[text]), expected, "whole: {text}");
    let letters: Vec<String> = text.chars().map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    assert_eq!(read(format, &letters), expected, "by letters: {text}");
}

#[test]
fn calls_in_tags_stand_among_text() {
    use CallFormat::Tagged;
    let call =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
    let bern = calls("weather", json!({ "city": "Bern" }));
    check(Tagged, call, std::slice::from_ref(&bern));
    check(
        Tagged,
        &format!("I look.\n{call}\n{call}\n"),
        &[says("I look."), bern.clone(), bern.clone()],
    );
    check(
        Tagged,
        &format!("{call}\n Done. "),
        &[bern.clone(), says("Done. ")],
    );
    check(Tagged, "2 <tool 3 < 4 ", &[says("2 <tool 3 < 4 ")]);
    let quoting = |text: &str| {
        format!(
            "<tool_call>\n{{\"name\": \"say\", \"arguments\": {{\"text\": {text}}}}}\n</tool_call>"
        )
    };
    let quoted = "see </tool_call> here";
    check(
        Tagged,
        &format!("{}\n{call}", quoting(&json!(quoted).to_string())),
        &[calls("say", json!({ "text": quoted })), bern.clone()],
    );
    let open = quoting("\"never closed");
    check(Tagged, &open, &[says(&open)]);
    let unclosed = call.trim_end_matches("</tool_call>");
    check(Tagged, unclosed, &[bern]);
    let broken = "<tool_call>{\"name\": </tool_call>";
    check(Tagged, broken, &[says(broken)]);
    check(Tagged, "x <tool_call>{", &[says("x<tool_call>{")]);
}

#[test]
fn calls_of_llama_are_the_whole_of_an_answer() {
    use CallFormat::Json;
    let bern = calls("weather", json!({ "city": "Bern" }));
    let call = r#"{"name": "weather", "parameters": {"city": "Bern"}}"#;
    check(Json, call, std::slice::from_ref(&bern));
    check(
        Json,
        &format!("<|python_tag|>{call}"),
        std::slice::from_ref(&bern),
    );
    let two = format!("{call}; {{\"name\": \"now\", \"parameters\": {{}}}}");
    check(Json, &two, &[bern, calls("now", json!({}))]);
    for text in [
        r#"{"name": "Bern", "parameters": {}}"#,
        r#"{"a": 1}"#,
        "{ is a brace",
        "Plain text {",
        "<|py",
    ] {
        check(Json, text, &[says(text)]);
    }
}

#[test]
fn calls_in_python_are_read_without_running_it() {
    use CallFormat::Pythonic;
    let text =
        r#"[weather(city="Bern", days=-3, now=True, of=['a', {"k": None}], share=1.5), now()]"#;
    let arguments = json!({ "city": "Bern", "days": -3, "now": true, "of": ["a", { "k": null }], "share": 1.5 });
    check(
        Pythonic,
        text,
        &[calls("weather", arguments), calls("now", json!({}))],
    );
    let quoted = r#"[weather(city='it\'s "x"\n')]"#;
    check(
        Pythonic,
        quoted,
        &[calls("weather", json!({ "city": "it's \"x\"\n" }))],
    );
    for text in [
        "[1, 2]",
        "[weather(city)]",
        "[weather(city=open('x'))]",
        "[other()]",
        "[weather()] and text",
        "[]",
        "[weather(city=\"Bern\"",
        "Text [now()]",
    ] {
        check(Pythonic, text, &[says(text)]);
    }
    let deep = format!("[weather(of={}1{})]", "[".repeat(5_000), "]".repeat(5_000));
    check(Pythonic, &deep, &[says(&deep)]);
}

#[test]
fn calls_of_mistral_are_read_with_their_mark_or_without() {
    use CallFormat::Mistral;
    let bern = calls("weather", json!({ "city": "Bern" }));
    let now = calls("now", json!({}));
    let list =
        r#"[{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "now", "arguments": {}}]"#;
    let spaced = list.replace('[', "[ ").replace(']', "\n]");
    for text in [list.to_owned(), format!("[TOOL_CALLS] {list}"), spaced] {
        check(Mistral, &text, &[bern.clone(), now.clone()]);
    }
    let named = r#"[TOOL_CALLS]weather[ARGS]{"city": "Bern"}[TOOL_CALLS]now[ARGS]{}"#;
    check(Mistral, named, &[bern.clone(), now.clone()]);
    check(
        Mistral,
        r#"weather{"city": "Bern"}now{}"#,
        &[bern.clone(), now],
    );
    let after = format!("I look. {}", "[TOOL_CALLS]weather{\"city\": \"Bern\"}");
    check(Mistral, &after, &[says("I look."), bern]);
    for text in ["weather is fine", "[1, 2]", "[{\"name\": \"x\"}]", "now"] {
        check(Mistral, text, &[says(text)]);
    }
}

#[test]
fn the_way_is_found_by_what_the_template_says() {
    use CallFormat::{Json, Mistral, Pythonic, Tagged};
    let found = CallFormat::of_template;
    assert_eq!(
        found("within <tool_call></tool_call> XML tags"),
        Some(Tagged)
    );
    assert_eq!(found("{{ '[TOOL_CALLS]' }}"), Some(Mistral));
    let llama = r#"in the format {"name": function name, "parameters": dictionary of argument name and its value}"#;
    assert_eq!(found(llama), Some(Json));
    assert_eq!(
        found("[func_name1(params_name1=params_value1)]"),
        Some(Pythonic)
    );
    assert_eq!(found("<tool_call><function=f></tool_call>"), None);
    assert_eq!(found("{{ messages }}"), None);
}

proptest! {
    /// Nothing is lost of what is no call, and nothing depends on where pieces end.
    #[test]
    fn text_comes_out_as_it_went_in(text in r#"([a-z<>\[\]{}"_ ]|<tool_call>|</tool_call>|\[TOOL_CALLS\]){0,30}"#, cuts in proptest::collection::vec(0usize..200, 0..6)) {
        for format in [CallFormat::Tagged, CallFormat::Json, CallFormat::Pythonic, CallFormat::Mistral] {
            let whole = read(format, &[&text]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&read(format, &pieces), &whole);
            let squeezed = |text: &str| text.split_whitespace().collect::<String>();
            let said: String = whole.iter().map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Call(_) => "",
            }).collect();
            if whole.iter().all(|part| matches!(part, Part::Text(_))) {
                prop_assert_eq!(squeezed(&said), squeezed(&text));
            }
        }
    }
}
