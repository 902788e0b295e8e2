//! Price books, as they are included: what a model takes over, and what every mistake is told with.

use std::path::PathBuf;

use tempfile::TempDir;

use super::super::{Config, ConfigError};
use super::*;

const BOOK: &str = r#"# a book
[[prices]]
provider = "openai"
model = "gpt"
context = 1000
output = 100
price = { input = "2", cached_input = "0.2", output = "8", tiers = [{ above_input_tokens = 500, input = "4", output = "9" }] }
[[prices.class]]
service_tier = "priority"
price = { input = "3", cached_input = "0.3", output = "12", tiers = [{ above_input_tokens = 500, input = "6", output = "13" }] }

[[prices]]
provider = "openrouter"
model = "openai/gpt"
price = { input = "2.5", output = "9" }
"#;

fn folder(books: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("prices")).unwrap();
    for (name, text) in books {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn configured(include: &str, models: &str) -> String {
    format!(
        "include = {include}\n[nats]\n[gateway]\n[[upstreams]]\nname = \"up\"\nkind = \"openai\"\nbase_url = \"http://up/v1\"\nmodels = [{models}]\n"
    )
}

fn load(folder: &TempDir, text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let pairs = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_text(text, &pairs.collect(), folder.path())
}

#[track_caller]
fn mistakes(folder: &TempDir, text: &str) -> Vec<String> {
    match load(folder, text, &[]) {
        Err(ConfigError::Mistakes { mistakes }) => {
            mistakes.iter().map(ToString::to_string).collect()
        }
        other => panic!("expected mistakes, found {other:?}"),
    }
}

#[test]
fn a_model_takes_what_it_does_not_give_itself_from_the_book() {
    let folder = folder(&[("prices/one.toml", BOOK)]);
    let text = configured(
        r#"["prices/one.toml"]"#,
        r#"{ id = "gpt", output = 50, price = "openai" }, { id = "mine", context = 10, output = 5, price = "openrouter/openai/gpt" }"#,
    );
    let config = load(&folder, &text, &[]).unwrap();
    let [gpt, mine] = &config.upstreams[0].models[..] else {
        panic!("two models")
    };
    assert_eq!((gpt.context, gpt.output), (1000, 50));
    let price = gpt.price.as_ref().unwrap();
    assert_eq!(
        (
            price.model.as_str(),
            price.rates.input,
            price.rates.cached_input
        ),
        ("gpt", 2_000_000, 200_000)
    );
    assert_eq!(price.long_context.unwrap().rates.output, 9_000_000);
    assert_eq!(
        gpt.classes[0].price.model.as_str(),
        "gpt+service_tier=priority"
    );
    assert_eq!(mine.price.as_ref().unwrap().rates.output, 9_000_000);
    assert_eq!(config.prices().len(), 3);
}

#[test]
fn a_variable_may_name_books_and_prices() {
    let folder = folder(&[("prices/one.toml", BOOK)]);
    let text = configured(
        r#"["lost.toml"]"#,
        r#"{ id = "gpt", price = { input = "1", output = "1" } }"#,
    );
    let config = load(
        &folder,
        &text,
        &[
            ("SEATBELT__INCLUDE", r#"["prices/one.toml"]"#),
            ("SEATBELT__UPSTREAMS__0__MODELS__0__PRICE", "openai"),
        ],
    );
    assert_eq!(
        config.unwrap().upstreams[0].models[0]
            .price
            .as_ref()
            .unwrap()
            .rates
            .output,
        8_000_000
    );
}

#[test]
fn a_model_priced_twice_names_both_places() {
    let twice = "[[prices]]\nprovider = \"openai\"\nmodel = \"gpt\"\nprice = { input = \"1\", output = \"1\" }\n";
    let folder = folder(&[("prices/one.toml", BOOK), ("prices/two.toml", twice)]);
    let text = configured(
        r#"["prices/one.toml", "prices/two.toml"]"#,
        r#"{ id = "gpt", price = "openai" }"#,
    );
    assert_eq!(
        mistakes(&folder, &text),
        [
            r#"prices (prices/two.toml line 3): "gpt" of "openai" is priced in prices/one.toml line 4 too: keep one of them"#
        ],
    );
}

#[test]
fn every_mistake_of_a_book_has_its_file_and_line() {
    let wrong = r#"
[nats]
[[prices]]
provider = "a/b"
model = "m"
price = { input = "1e3", output = "1" }
[[prices]]
provider = "p"
model = "n"
[[prices]]
provider = "p"
model = "o"
cost = 3
price = { input = "2", output = "2" }
[[prices.class]]
service_tier = "flex"
price = { input = "1", output = "1" }
"#;
    let folder = folder(&[
        ("prices/one.toml", wrong),
        ("prices/two.toml", "prices = \n"),
    ]);
    let text = configured(
        r#"["prices/one.toml", "prices/two.toml", "prices/lost.toml", "prices/one.toml", 3]"#,
        r#"{ id = "gpt", context = 9, output = 5, price = "openai" }"#,
    );
    let found = mistakes(&folder, &text);
    let expected = [
        "include[2] (line 1): \"prices/lost.toml\" cannot be read: ",
        "include[3] (line 1): \"prices/one.toml\" is included already",
        "include[4] (line 1): is not the path of a file",
        "upstreams[0].models[0].price (line 8): names \"gpt\" of \"openai\", and no included file has its price",
        "nats (prices/one.toml line 2): is not known: use one of prices",
        "prices[0].provider (prices/one.toml line 4): has a slash",
        "prices[0].price.input (prices/one.toml line 6): \"1e3\" is not an amount",
        "prices[1].price (prices/one.toml line 7): is missing",
        "prices[2].cost (prices/one.toml line 13): is not known",
        "prices[2].class[0] (prices/one.toml line 15): costs less than its model",
        "file (prices/two.toml line 1): ",
        "prices (prices/two.toml line 1): is text, not a list",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn the_books_that_are_shipped_price_their_models_at_every_kind_of_upstream() {
    let books = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../prices");
    let mut models = 0;
    for (provider, kind) in [
        ("openai", "openai"),
        ("anthropic", "anthropic"),
        ("google", "openai"),
        ("mistral", "openai"),
        ("deepseek", "openai"),
        ("x-ai", "openai"),
    ] {
        let text = std::fs::read_to_string(books.join(format!("{provider}.toml"))).unwrap();
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("model = "));
        let listed = names.map(|name| {
            format!("{{ id = {name}, context = 9, output = 5, price = {provider:?} }}")
        });
        let listed: Vec<_> = listed.collect();
        let text = configured(&format!("[\"{provider}.toml\"]"), &listed.join(", "));
        let text = text.replace("kind = \"openai\"", &format!("kind = {kind:?}"));
        let config = Config::from_text(&text, &BTreeMap::new(), &books).unwrap();
        let upstream = &config.upstreams[0];
        assert_eq!(upstream.models.len(), listed.len());
        assert!(
            upstream.models.iter().all(|model| model.price.is_some()),
            "{provider}"
        );
        models += listed.len();
    }
    assert!(models >= 55, "{models} models are shipped");
}
