//! The commands as they are called, on files as they are.

use clap::Parser;
use tempfile::TempDir;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: PricesArgs,
}

/// What a command ended with, wrote, and told.
struct Ended {
    as_asked: bool,
    out: String,
    told: String,
}

fn seatbelt(folder: &TempDir, line: &str) -> Result<Ended, PricesError> {
    let words = line
        .split_whitespace()
        .map(|word| match word.strip_prefix("./") {
            Some(file) => folder.path().join(file).display().to_string(),
            None => word.to_owned(),
        });
    let args = Line::parse_from(["prices".to_owned()].into_iter().chain(words)).args;
    let (mut out, mut told) = (Vec::new(), Vec::new());
    let as_asked = carry_out(args, &mut out, &mut told)?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ok(Ended {
        as_asked,
        out: text(out),
        told: text(told),
    })
}

const GENAI: &str = r#"[{"id": "openai", "models": [
    {"id": "gpt", "context_window": 9, "prices": {"input_mtok": 0.075, "output_mtok": 0.3}},
    {"id": "tts", "prices": {"input_mchars": 15}}]}]"#;

fn files(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn a_book_is_written_with_its_source_and_what_was_left_out_is_told() {
    let folder = files(&[("list.json", GENAI)]);
    let ended = seatbelt(
        &folder,
        "import --from ./list.json --without-limits --day 2026-11-26",
    )
    .unwrap();
    assert!(ended.as_asked);
    assert!(
        ended
            .out
            .contains("price = { input = \"0.075\", output = \"0.3\" }"),
        "{}",
        ended.out
    );
    let hash = hex::encode(Sha256::digest(GENAI));
    let source =
        format!("# source: list.json (format genai-prices), sha256 {hash}\n# day: 2026-11-26\n");
    assert!(ended.out.contains(&source), "{}", ended.out);
    assert_eq!(
        ended.told,
        "not imported: openai tts: has no price of input\n1 models imported, 1 not\n"
    );
    let today = seatbelt(&folder, "import --from ./list.json --without-limits").unwrap();
    assert!(today.out.contains("# day: 2"), "{}", today.out);
}

#[test]
fn a_model_asked_for_by_name_and_not_imported_ends_with_a_failure() {
    let folder = files(&[("list.json", GENAI)]);
    let import =
        |more: &str| seatbelt(&folder, &format!("import --from ./list.json {more}")).unwrap();
    let limited = import("--model gpt");
    assert!(
        !limited.as_asked && limited.told.contains("the most tokens"),
        "{}",
        limited.told
    );
    assert!(import("--model gpt --without-limits").as_asked);
    let lost = import("--model gpt --model lost --without-limits");
    assert!(
        !lost.as_asked && lost.told.contains("lost: is not in the list"),
        "{}",
        lost.told
    );
    assert!(!import("--provider nobody --without-limits").as_asked);
}

#[test]
fn a_file_that_is_no_list_is_told_by_name() {
    let folder = files(&[("broken.json", "[{"), ("other.json", "{}")]);
    let error = |line: &str| seatbelt(&folder, line).err().unwrap();
    assert!(matches!(
        error("import --from ./lost.json"),
        PricesError::Unreadable { .. }
    ));
    assert!(matches!(
        error("import --from ./broken.json"),
        PricesError::List { .. }
    ));
    let other = error("import --from ./other.json --format genai-prices");
    let chain = format!("{other}: {}", std::error::Error::source(&other).unwrap());
    assert!(
        chain.contains("other.json") && chain.contains("format genai-prices"),
        "{chain}"
    );
}

const CONFIG: &str = r#"
include = ["books/one.toml"]
[[upstreams]]
name = "openai"
kind = "openai"
base_url = "https://api.openai.com/v1"
api_key_env = "A_KEY_THAT_IS_NOT_SET"
models = [
    { id = "gpt", context = 100, output = 10, price = { input = "0.05", output = "0.4" } },
    { id = "book", context = 100, output = 10, price = "openai" },
    { id = "lost", context = 100, output = 10, price = { input = "1", output = "1" } },
]
"#;

#[test]
fn the_prices_in_force_are_compared_without_a_secret_or_a_server() {
    let list = r#"[{"id": "openai", "models": [
        {"id": "gpt", "prices": {"input_mtok": 0.075, "output_mtok": 0.3}},
        {"id": "book", "prices": {"input_mtok": 2, "output_mtok": 8}},
        {"id": "new", "prices": {"input_mtok": 2, "output_mtok": 8}}]},
        {"id": "azure", "models": [{"id": "gpt", "prices": {"input_mtok": 9, "output_mtok": 9}}]}]"#;
    let folder = files(&[("list.json", list), ("seatbelt.toml", CONFIG)]);
    let day = "--day 2026-11-26";
    let made = seatbelt(
        &folder,
        &format!("import --from ./list.json --without-limits --model book {day}"),
    );
    std::fs::create_dir(folder.path().join("books")).unwrap();
    std::fs::write(folder.path().join("books/one.toml"), made.unwrap().out).unwrap();

    let line = format!("diff --from ./list.json --config ./seatbelt.toml {day}");
    let ended = seatbelt(&folder, &line).unwrap();
    let rates = "input 0.05 -> 0.075, cached_input 0.05 -> 0.075, cache_write 0.05 -> 0.075, cache_write_long 0.05 -> 0.075";
    let expected = format!(
        "dearer: gpt: {rates}, output 0.4 -> 0.3, reasoning 0.4 -> 0.3\ngone: lost: is not in the list\n\
         new: openai new\n3 prices in force against list.json (format genai-prices, day 2026-11-26): \
         1 dearer, 0 cheaper, 1 gone, 1 new\n"
    );
    assert_eq!(ended.out, expected);
    assert!(!ended.as_asked);

    let of_book = CONFIG
        .lines()
        .filter(|line| !line.contains("\"gpt\"") && !line.contains("\"lost\""));
    let of_book: Vec<_> = of_book.collect();
    std::fs::write(folder.path().join("seatbelt.toml"), of_book.join("\n")).unwrap();
    let same = seatbelt(&folder, &line).unwrap();
    assert!(same.as_asked, "{}", same.out);
    assert!(
        same.out.contains("0 dearer, 0 cheaper, 0 gone, 2 new"),
        "{}",
        same.out
    );
}

#[test]
fn a_model_under_an_alias_is_compared_with_the_entry_that_it_takes_its_price_from() {
    let list = |input: u64| {
        format!(
            r#"[{{"id": "openai", "models": [{{"id": "gpt", "prices": {{"input_mtok": {input}, "output_mtok": 8}}}}]}}]"#
        )
    };
    let config = r#"
include = ["one.toml"]
[[upstreams]]
name = "mine"
kind = "openai"
base_url = "https://api.openai.com/v1"
models = [{ id = "fast", context = 100, output = 10, price = "openai/gpt" }]
"#;
    let folder = files(&[("list.json", &list(2)), ("seatbelt.toml", config)]);
    let made = seatbelt(&folder, "import --from ./list.json --without-limits");
    std::fs::write(folder.path().join("one.toml"), made.unwrap().out).unwrap();
    let line = "diff --from ./list.json --config ./seatbelt.toml";
    let same = seatbelt(&folder, line).unwrap();
    assert!(same.as_asked, "{}", same.out);
    std::fs::write(folder.path().join("list.json"), list(3)).unwrap();
    let dearer = seatbelt(&folder, line).unwrap();
    assert!(
        dearer.out.starts_with("dearer: fast: input 2 -> 3"),
        "{}",
        dearer.out
    );
}

#[test]
fn a_book_of_a_list_with_odd_names_can_be_included() {
    let priced = r#""prices": {"input_mtok": 1, "output_mtok": 2}"#;
    let names = ["gpt", "a\\u0007b", "", &"m".repeat(300)];
    let models = names
        .map(|id| format!(r#"{{"id": "{id}", {priced}}}"#))
        .join(",");
    let list = format!(
        r#"[{{"id": "openai", "models": [{models}]}}, {{"id": "a/b", "models": [{{"id": "m", {priced}}}]}}]"#
    );
    let config = r#"
include = ["one.toml"]
[[upstreams]]
name = "openai"
kind = "openai"
base_url = "https://api.openai.com/v1"
models = [{ id = "gpt", context = 100, output = 10, price = "openai" }]
"#;
    let folder = files(&[("list.json", &list), ("seatbelt.toml", config)]);
    let made = seatbelt(&folder, "import --from ./list.json --without-limits").unwrap();
    assert!(
        made.told.ends_with("1 models imported, 4 not\n"),
        "{}",
        made.told
    );
    std::fs::write(folder.path().join("one.toml"), made.out).unwrap();
    let upstreams = Config::load_upstreams(&folder.path().join("seatbelt.toml")).unwrap();
    assert!(upstreams[0].models[0].price.is_some());
}
