//! Lists as texts, and what was read of them.

use crate::{Day, List, Listed, Origin, Selection, read, write};

mod book;
mod diff;
mod genai;
mod litellm;

fn day() -> Day {
    "2026-11-26".parse().unwrap()
}

/// One provider's list in the format of genai-prices.
fn genai(models: &str) -> List {
    let text = format!(r#"[{{"id": "p", "models": [{models}]}}]"#);
    read(text.as_bytes(), None, day()).unwrap()
}

/// LiteLLM's list.
fn litellm(models: &str) -> List {
    read(format!("{{{models}}}").as_bytes(), None, day()).unwrap()
}

/// The only model of a list.
fn only(list: List) -> Listed {
    assert_eq!(list.left_out, [], "left out");
    let [model] = <[_; 1]>::try_from(list.models).unwrap();
    model
}

/// Why the only model of a list was left out.
fn reason(list: List) -> String {
    assert_eq!(list.models, [], "imported");
    list.left_out.into_iter().next().unwrap().reason
}

/// What a list's book says, as TOML reads it.
fn book(list: List) -> String {
    let all = Selection {
        without_limits: true,
        ..Selection::default()
    };
    let origin = Origin {
        source: "list.json".to_owned(),
        sha256: "00".to_owned(),
        day: day(),
    };
    write(&all.of(list), &origin)
}

/// The line of a book that has the model's own price.
fn price(list: List) -> String {
    let book = book(list);
    let mut lines = book.lines().filter(|line| line.starts_with("price = "));
    lines.next().unwrap_or(&book).to_owned()
}
