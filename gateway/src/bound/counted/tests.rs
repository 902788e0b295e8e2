//! Random bodies, written out as servers write them and counted whole by the real tokenizers: no bound lies below.

use std::{fmt::Write as _, io, path::Path, sync::LazyLock};

use proptest::{collection::vec, prelude::*, sample::select};
use seatbelt_tokens::Encoding;
use serde::Serialize;
use serde_json::{json, ser::Formatter};

use super::*;
use crate::config::REQUEST_ALLOWANCE_GENERIC;

/// What is one token of its own in a prompt; texts beside it are tokenized each by itself.
const SPECIAL: char = '\u{10ffff}';

static O200K: LazyLock<TextCounter> = LazyLock::new(|| TextCounter::encoding(Encoding::O200k));
static CL100K: LazyLock<TextCounter> = LazyLock::new(|| TextCounter::encoding(Encoding::Cl100k));
/// A byte-level tokenizer that brings text into NFKC first: the worst that a file can hold.
static NFKC: LazyLock<TextCounter> = LazyLock::new(|| {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny/tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(tiny).unwrap()).unwrap();
    file["normalizer"] = json!({"type": "NFKC"});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    TextCounter::file(&path).unwrap()
});

/// Those of real models, from a folder of folders that `SEATBELT_TOKENIZERS` names.
static REAL: LazyLock<Vec<TextCounter>> = LazyLock::new(|| {
    let Some(folder) = std::env::var_os("SEATBELT_TOKENIZERS") else {
        return Vec::new();
    };
    let folders = std::fs::read_dir(folder).unwrap();
    let files = folders.map(|folder| folder.unwrap().path().join("tokenizer.json"));
    files
        .map(|file| TextCounter::file(&file).unwrap())
        .collect()
});

fn model(counter: &TextCounter) -> Limits {
    let mut limits = Limits::new(1 << 20, 4096);
    if counter.as_encoding().is_none() {
        limits.framing.request = REQUEST_ALLOWANCE_GENERIC;
    }
    limits
}

fn object(value: &Value) -> Fields {
    value.as_object().unwrap().clone()
}

fn bounds(api: Api, body: &Value, counter: &TextCounter) -> (u64, u64) {
    let (body, model) = (object(body), model(counter));
    let ask = api.ask(&body).unwrap();
    let tight = by_tokens(api, &ask, &body, &model, counter).unwrap();
    (
        tight.input_tokens,
        by_bytes(&ask, &model).unwrap().input_tokens,
    )
}

fn tokens(prompt: &str, counter: &TextCounter) -> u64 {
    let specials = prompt.matches(SPECIAL).count() as u64;
    let texts = prompt.split(SPECIAL).filter(|text| !text.is_empty());
    specials
        + texts
            .map(|text| counter.count(text, u64::MAX).unwrap())
            .sum::<u64>()
}

/// How JSON is printed: separators, indent, escapes.
#[derive(Debug, Clone, Copy)]
struct Printing {
    spaced: bool,
    indent: usize,
    ascii: bool,
    html: bool,
}

struct Printer {
    printing: Printing,
    level: usize,
    is_empty: bool,
}

impl Printer {
    fn open<W: io::Write + ?Sized>(&mut self, out: &mut W, with: &[u8]) -> io::Result<()> {
        (self.level, self.is_empty) = (self.level + 1, true);
        out.write_all(with)
    }

    fn line<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.is_empty = false;
        if !first {
            out.write_all(b",")?;
        }
        match self.printing.indent {
            0 if first || !self.printing.spaced => Ok(()),
            0 => out.write_all(b" "),
            indent => write!(out, "\n{}", " ".repeat(indent * self.level)),
        }
    }

    fn close<W: io::Write + ?Sized>(&mut self, out: &mut W, with: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if self.printing.indent > 0 && !self.is_empty {
            write!(out, "\n{}", " ".repeat(self.printing.indent * self.level))?;
        }
        self.is_empty = false;
        out.write_all(with)
    }
}

impl Formatter for Printer {
    fn begin_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }
    fn end_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.line(out, first)
    }
    fn begin_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }
    fn end_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }
    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.line(out, first)
    }
    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(if self.printing.spaced { b": " } else { b":" })
    }
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for character in fragment.chars() {
            let odd = matches!(character, '<' | '>' | '&' | '\'');
            if (self.printing.ascii && !character.is_ascii()) || (self.printing.html && odd) {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            } else {
                write!(out, "{character}")?;
            }
        }
        Ok(())
    }
}

fn print(value: &Value, printing: Printing) -> String {
    let mut out = Vec::new();
    let printer = Printer {
        printing,
        level: 0,
        is_empty: false,
    };
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, printer,
        ))
        .unwrap();
    String::from_utf8(out).unwrap()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| text(&part["text"]));
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn list<'a>(of: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    of[name].as_array().into_iter().flatten()
}

fn lines(out: &mut String, text: &str) {
    for line in text.split('\n') {
        let _ = writeln!(out, "// {line}");
    }
}

/// Tools as types, as OpenAI prints them.
fn as_types(out: &mut String, tools: &Value, printing: Printing) {
    out.push_str("# Tools\n\n## functions\n\nnamespace functions {\n\n");
    for tool in tools.as_array().into_iter().flatten() {
        let tool = &tool["function"];
        lines(out, &text(&tool["description"]));
        let _ = writeln!(out, "type {} = (_: {{", text(&tool["name"]));
        for (name, schema) in tool["parameters"]["properties"]
            .as_object()
            .into_iter()
            .flatten()
        {
            lines(out, &text(&schema["description"]));
            let choices = list(schema, "enum").map(|choice| print(choice, printing));
            let choices = choices.collect::<Vec<_>>().join(" | ");
            let _ = writeln!(
                out,
                "{name}?: {choices}, // default: {}",
                print(&schema["default"], printing)
            );
        }
        out.push_str("}) => any;\n\n");
    }
    out.push_str("} // namespace functions");
}

/// Tools as elements, as templates of coders print them.
fn as_elements(out: &mut String, tools: &Value, printing: Printing) {
    out.push_str("# Tools\n\nYou have access to the following tools:\n\n<tools>");
    for tool in tools.as_array().into_iter().flatten() {
        let tool = &tool["function"];
        let (name, about) = (text(&tool["name"]), text(&tool["description"]));
        let _ = write!(
            out,
            "\n<function>\n<name>{name}</name>\n<description>{about}</description>\n<parameters>"
        );
        for (name, schema) in tool["parameters"]["properties"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let _ = write!(out, "\n<parameter>\n<name>{name}</name>");
            for (name, value) in schema.as_object().into_iter().flatten() {
                let value = value
                    .as_str()
                    .map_or_else(|| print(value, printing), str::to_owned);
                let _ = write!(out, "\n<{name}>{value}</{name}>");
            }
            out.push_str("\n</parameter>");
        }
        out.push_str("\n</parameters>\n</function>");
    }
    out.push_str("\n</tools>");
}

#[derive(Debug, Clone, Copy)]
enum Style {
    /// As OpenAI frames messages and prints tools.
    OpenAi,
    /// As Llama and Qwen do: JSON.
    Json,
    /// As coders' templates do: XML.
    Xml,
}

/// The prompt that a server makes of a body.
fn prompt(body: &Value, style: Style, printing: Printing) -> String {
    let mut out = String::new();
    let tools = &body["tools"];
    if tools.as_array().is_some_and(|tools| !tools.is_empty()) {
        let _ = write!(out, "{SPECIAL}system{SPECIAL}");
        match style {
            Style::OpenAi => as_types(&mut out, tools, printing),
            Style::Json => {
                out.push_str("Given the following functions, please respond with a JSON for a function call.\n\n");
                for tool in list(body, "tools") {
                    let _ = write!(out, "{}\n\n", print(tool, printing));
                }
            }
            Style::Xml => as_elements(&mut out, tools, printing),
        }
        out.push(SPECIAL);
    }
    for message in list(body, "messages") {
        let (role, content) = (text(&message["role"]), &message["content"]);
        let name = message["name"]
            .as_str()
            .map_or(String::new(), |name| format!(":{name}"));
        let _ = writeln!(out, "{SPECIAL}{role}{name}{SPECIAL}");
        match (style, role.as_str()) {
            (Style::Json | Style::Xml, "tool") => out.push_str(&print(content, printing)),
            _ => out.push_str(&text(content)),
        }
        let _ = writeln!(out, "{SPECIAL}");
        for call in list(message, "tool_calls") {
            let (name, told) = (
                text(&call["function"]["name"]),
                text(&call["function"]["arguments"]),
            );
            let apart = serde_json::from_str::<Value>(&told);
            let arguments = apart.map_or(told.clone(), |apart| print(&apart, printing));
            match style {
                Style::OpenAi => {
                    let _ = write!(
                        out,
                        "{SPECIAL}assistant to=functions.{name}{SPECIAL}{told}{SPECIAL}"
                    );
                }
                Style::Json | Style::Xml => {
                    let _ = write!(
                        out,
                        "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>{SPECIAL}"
                    );
                }
            }
        }
    }
    let _ = write!(out, "{SPECIAL}assistant{SPECIAL}");
    out
}

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z]{1,8} ?",
        2 => "[ \n\t]{1,6}",
        2 => "[-=<>&'\"/\\\\{}\\[\\](),.;:|#*_]{1,8}",
        2 => "\\PC{1,5}",
        1 => "[\u{fb9}\u{fdfa}\u{301}\u{ac00}\u{1f600}]{1,4}",
        1 => "[0-9]{1,9}",
        1 => select(vec!["<|im_end|>", "<|endoftext|>", "<|end|>", "</tool_call>"]).prop_map(str::to_owned),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1e6..1e6).prop_map(Value::from),
        texts().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec(("[a-z_]{1,9}", inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn tools() -> impl Strategy<Value = Value> {
    let property = (texts(), vec(values(), 0..6), values()).prop_map(|(about, choices, default)| {
        json!({"type": "string", "description": about, "enum": choices, "default": default})
    });
    let tool = (
        "[a-z_]{1,20}",
        texts(),
        vec(("[a-zA-Z_]{1,12}", property), 0..5),
    );
    let tool = tool.prop_map(|(name, about, properties)| {
        let properties = Value::Object(properties.into_iter().collect());
        json!({"type": "function", "function": {"name": name, "description": about,
            "parameters": {"type": "object", "properties": properties}}})
    });
    vec(tool, 0..4).prop_map(Value::from)
}

fn messages() -> impl Strategy<Value = Value> {
    let content = prop_oneof![
        texts().prop_map(Value::from),
        vec(texts(), 0..4).prop_map(|parts| {
            let parts = parts
                .into_iter()
                .map(|text| json!({"type": "text", "text": text}));
            parts.collect::<Value>()
        }),
    ];
    let said = (
        select(vec!["user", "system", "developer", "assistant"]),
        content,
        proptest::option::of("[a-z_]{1,12}"),
    );
    let said = said.prop_map(|(role, content, name)| match name {
        Some(name) => vec![json!({"role": role, "content": content, "name": name})],
        None => vec![json!({"role": role, "content": content})],
    });
    let call = (
        "[a-z_]{1,20}",
        prop_oneof![values().prop_map(|value| value.to_string()), texts()],
    );
    let called = (vec(call, 1..4), texts()).prop_map(|(calls, answer)| {
        let mut messages = Vec::new();
        let calls: Vec<Value> = calls.into_iter().enumerate().map(|(n, (name, arguments))| {
            json!({"id": format!("call_{n}"), "type": "function", "function": {"name": name, "arguments": arguments}})
        }).collect();
        messages.push(json!({"role": "assistant", "content": null, "tool_calls": calls}));
        for call in &calls {
            messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": answer}));
        }
        messages
    });
    vec(prop_oneof![3 => said, 1 => called], 1..6).prop_map(|groups| Value::from(groups.concat()))
}

fn printings() -> impl Strategy<Value = Printing> {
    (
        any::<bool>(),
        select(vec![0, 2, 4]),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(spaced, indent, ascii, html)| Printing {
            spaced,
            indent,
            ascii,
            html,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bound_lies_below_what_openai_counts(messages in messages(), tools in tools(), printing in printings()) {
        let body = json!({"model": "m", "messages": messages, "tools": tools});
        let printing = Printing { ascii: false, html: false, ..printing };
        for counter in [&*O200K, &*CL100K] {
            let (tight, loose) = bounds(Api::Chat, &body, counter);
            prop_assert!(tight <= loose);
            for style in [Style::OpenAi, Style::Json] {
                let counted = tokens(&prompt(&body, style, printing), counter);
                prop_assert!(tight >= counted, "{style:?} {counter:?} {tight} {counted} {body}");
            }
        }
    }

    #[test]
    fn no_bound_lies_below_what_an_open_model_counts(messages in messages(), tools in tools(), printing in printings()) {
        let body = json!({"model": "m", "messages": messages, "tools": tools});
        // as encodings they stand for the vocabularies of open models, whose templates print as they like
        for counter in [&*NFKC, &*O200K].into_iter().chain(&*REAL) {
            let mut tokens_of = Tokens::new(counter, u64::MAX);
            (tokens_of.escapes, tokens_of.entry) = (Escapes::Every, ENTRY_TOKENS_XML);
            let counted = Api::Chat.ask_by(&object(&body), &mut tokens_of).unwrap();
            let tight = counted.text + framing(&counted, &model(&NFKC));
            for style in [Style::Json, Style::Xml] {
                let counted = tokens(&prompt(&body, style, printing), counter);
                prop_assert!(tight >= counted, "{style:?} {counter:?} {tight} {counted} {body}");
            }
        }
    }
}

/// 20,000 bytes of prompt of each kind, as agents send them. The ratios stand in docs/upstreams.md.
#[test]
fn the_prompts_of_agents_hold_about_a_quarter() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let cut = |text: String| text.chars().take(20_000).collect::<String>();
    let english = cut(read("ARCHITECTURE.md") + &read("docs/recovery.md") + &read("CHANGELOG.md"));
    let code = cut(read("dialects/src/ask.rs") + &read("gateway/src/plan.rs"));
    let schemas = ["common", "event", "refused", "reserved", "settled"];
    let schemas = schemas.map(|name| read(&format!("schemas/json/v1/{name}.schema.json")));
    let json = cut(schemas.concat());
    let user = |text: &str| json!({"messages": [{"role": "user", "content": text}]});
    let tool = |n: usize| {
        json!({"type": "function", "function": {"name": format!("tool_{n}"),
        "description": english[n * 300..n * 300 + 300].to_owned(), "parameters": {"type": "object",
        "properties": {"path": {"type": "string", "description": "The absolute path of the file to read, with its folder."},
            "limit": {"type": "integer", "description": "How many lines to read at most."},
            "mode": {"type": "string", "enum": ["text", "binary", "lines"]}}, "required": ["path"]}}})
    };
    let tools = json!({"messages": [{"role": "user", "content": "hi"}], "tools": (0..26).map(tool).collect::<Value>()});
    let call = |n: usize| {
        let call = json!({"id": "c", "type": "function", "function": {"name": "write",
            "arguments": json!({"path": "src/a.rs", "text": code[n * 1000..n * 1000 + 1000]}).to_string()}});
        [
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "c", "content": code[n * 1000 + 100..n * 1000 + 1000]}),
        ]
    };
    let history = json!({"messages": (0..10).flat_map(call).collect::<Value>()});
    for (name, body, at_least) in [
        ("English", user(&english), 3.5),
        ("code", user(&code), 3.2),
        ("JSON", user(&json), 3.0),
        ("tools", tools, 2.5),
        ("history of tools", history, 2.5),
    ] {
        for counter in [&*O200K, &*CL100K] {
            let (tight, loose) = bounds(Api::Chat, &body, counter);
            let ratio = loose as f64 / tight as f64;
            let told = format!("{name} {counter:?}: {loose} by bytes, {tight} counted");
            assert!(ratio >= at_least, "{told}, {ratio:.1} to 1");
        }
    }
}
