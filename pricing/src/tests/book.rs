//! What is written and asked for: books, selections, lists that are none.

use super::{book, day, genai, litellm};
use crate::{Format, ListError, Selection, read};

#[test]
fn a_book_says_where_it_is_from_and_what_it_lacks() {
    let list = genai(
        r#"{"id": "m", "context_window": 1000, "prices": {"input_mtok": 2, "output_mtok": 8}},
           {"id": "tts", "prices": {"input_mchars": 15}}"#,
    );
    let expected = "\
# Prices as `seatbelt prices import` read them: USD per million tokens. No list is always right:
# compare them with the provider's own page before you rely on them.
# source: list.json (format genai-prices), sha256 00
# day: 2026-11-26

# the list tells a context window of 1000
[[prices]]
provider = \"p\"
model = \"m\"
price = { input = \"2\", output = \"8\" }

# Not imported:
# p tts: has no price of input
";
    assert_eq!(book(list), expected);
}

#[test]
fn names_and_texts_of_a_list_cannot_write_prices() {
    let list = genai(
        r#"{"id": "m\" [[prices]] x = \"\\", "context_window": "1\n[[prices]]\r", "prices": {"input_mtok": 2, "output_mtok": 8}},
           {"id": "n\n[[prices]]", "prices": {"input_mtok\n[[prices]]": 2}}"#,
    );
    let book = book(list);
    let read: toml::Table = toml::from_str(&book).unwrap();
    let prices = read["prices"].as_array().unwrap();
    assert_eq!((read.len(), prices.len()), (1, 1), "{book}");
    assert_eq!(prices[0]["model"].as_str(), Some("m\" [[prices]] x = \"\\"));
}

#[test]
fn a_model_without_limits_is_imported_only_when_that_is_asked_for() {
    let list = || {
        litellm(
            r#""a": {"litellm_provider": "p", "mode": "chat", "max_input_tokens": 10, "max_output_tokens": 5, "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
               "b": {"litellm_provider": "p", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
               "c": {"litellm_provider": "q", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}"#,
        )
    };
    let names = |selection: &Selection| -> Vec<_> {
        selection
            .of(list())
            .models
            .into_iter()
            .map(|listed| listed.name.to_string())
            .collect()
    };
    let mut selection = Selection::default();
    assert_eq!(names(&selection), ["p a"]);
    assert!(
        selection.of(list()).left_out[0]
            .reason
            .contains("the most tokens")
    );
    selection.without_limits = true;
    assert_eq!(names(&selection), ["p a", "p b", "q c"]);
    selection.providers = vec!["q".to_owned()];
    assert_eq!(names(&selection), ["q c"]);
    selection.models = vec!["b".to_owned(), "c".to_owned()];
    assert_eq!(selection.missing(&selection.of(list())), ["b"]);
}

#[test]
fn what_is_no_list_is_told() {
    let error = |text: &[u8], format| read(text, format, day()).unwrap_err();
    assert!(matches!(
        error(b"{}", None),
        ListError::OtherFormat(Format::LiteLlm)
    ));
    assert!(matches!(error(b"3", None), ListError::OtherFormat(_)));
    assert!(matches!(
        error(b"[]", Some(Format::LiteLlm)),
        ListError::OtherFormat(Format::LiteLlm)
    ));
    assert!(matches!(error(b"[", None), ListError::NotJson(_)));
    assert!(matches!(error(b"\xff", None), ListError::NotText));
    assert!(matches!(
        error(br#"{"a": {}, "a": {}}"#, None),
        ListError::NotJson(_)
    ));
}

#[test]
fn what_no_configuration_could_name_is_left_out_by_itself() {
    let long = "m".repeat(240);
    let models = ["", "a\\u0007b", &"m".repeat(300), &long, "good"].map(|id| {
        format!(
            r#"{{"id": "{id}", "prices": {{"input_mtok": 1, "output_mtok": 2}}, "price_variants": [
                {{"when": {{"service_tier": "priority"}}, "prices": {{"input_mtok": 2, "output_mtok": 4}}}}]}}"#
        )
    });
    let list = genai(&models.join(","));
    let classes = list
        .models
        .iter()
        .map(|listed| (listed.name.model.as_str(), listed.classes.len()));
    assert_eq!(
        classes.collect::<Vec<_>>(),
        [("good", 1), (long.as_str(), 0)]
    );
    assert_eq!(list.left_out.len(), 3);
    for provider in ["", "a/b"] {
        let text = format!(
            r#"[{{"id": "{provider}", "models": [{{"id": "m", "prices": {{"input_mtok": 1, "output_mtok": 2}}}}]}}]"#
        );
        let list = read(text.as_bytes(), None, day()).unwrap();
        assert_eq!(
            (list.models.len(), list.left_out.len()),
            (0, 1),
            "{provider}"
        );
    }
}
