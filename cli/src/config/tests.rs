use seatbelt_gateway::{ImageRule, MediaLimits, Profile, TokenizerName};
use seatbelt_schemas::{ids::TeamId, scope::Scope};
use seatbelt_tokens::Encoding;
use secrecy::ExposeSecret;

use super::*;

const WHOLE: &str = r#"
[nats]
data_dir = "data"
partitions = 4
replicas = 1
durability = "fsync"

[gateway]
listen = "127.0.0.1:8080"
metrics_listen = "127.0.0.1:9090"
require_auth = true
admin_token = "hush-hush"
budget_wait_ms = 2000

[[entitlements.keys]]
key = "sk-cap"
account_id = "acct-cap"
key_id = "key-cap"
hard_cap = 100
window = { kind = "rolling", seconds = 3600 }
caps = [{ meter = "cost", limit = "25.00", window = { kind = "calendar", period = "month" }, scope = "account" }]

[[upstreams]]
name = "mock"
kind = "openai"
base_url = "http://127.0.0.1:9000/v1"
api_key_env = "MOCK_KEY"
models = [{ id = "test-model", context = 8192, output = 4096, price = { input = "0.15", output = "0.60" } }]

[neuron]
listen = "127.0.0.1:0"
models = [{ id = "tiny", path = "models/tiny", device = "cpu", slots = 8 }]
"#;

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter().map(|(name, value)| (*name, *value));
    pairs
        .chain([("MOCK_KEY", "sk-upstream")])
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn read(text: &str, pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_text(text, &environment(pairs), Path::new("/etc/seatbelt"))
}

/// The mistakes, one line each.
#[track_caller]
fn mistakes(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    match read(text, pairs) {
        Err(ConfigError::Mistakes { mistakes }) => {
            mistakes.iter().map(ToString::to_string).collect()
        }
        other => panic!("expected mistakes, found {other:?}"),
    }
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(mistakes(text, &[]), expected);
}

#[test]
fn the_whole_example_reads_as_it_is_meant() {
    let config = read(WHOLE, &[]).unwrap();
    assert_eq!(config.nats.data_dir, Path::new("/etc/seatbelt/data"));
    assert_eq!(config.gateway.listen.port(), 8080);
    let key = &config.keys[0];
    assert_eq!(key.secret.expose_secret(), "sk-cap");
    let caps: Vec<_> = key
        .caps
        .iter()
        .map(|cap| (cap.cap.as_str(), cap.limit))
        .collect();
    assert_eq!(
        caps,
        [
            ("account/cost/month", 25_000_000_000),
            ("key/key-cap/tokens/rolling-3600", 100),
        ]
    );
    let upstream = &config.upstreams[0];
    assert_eq!(
        upstream.api_key.as_ref().unwrap().expose_secret(),
        "sk-upstream"
    );
    assert_eq!(
        upstream.models[0].price.as_ref().unwrap().rates.input,
        150_000
    );
    assert_eq!(config.prices().len(), 1);
    let neuron = config.neuron.unwrap();
    assert!(!neuron.open, "only who says so serves anybody");
    assert_eq!(
        neuron.models[0].path,
        Path::new("/etc/seatbelt/models/tiny")
    );
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = read("", &[]).unwrap();
    assert_eq!(config.nats.durability, seatbelt_bus::Durability::Fsync);
    assert_eq!(u8::from(config.nats.partitions), 4);
    assert!(config.gateway.require_auth && config.neuron.is_none());
}

#[test]
fn the_environment_overrides_values_lists_and_tables() {
    let config = read(
        WHOLE,
        &[
            ("SEATBELT__GATEWAY__LISTEN", "127.0.0.1:0"),
            ("SEATBELT__GATEWAY__REQUIRE_AUTH", "false"),
            ("SEATBELT__GATEWAY__ADMIN_TOKEN", "12345"),
            ("SEATBELT__ENTITLEMENTS__KEYS__0__HARD_CAP", "7"),
            (
                "SEATBELT__ENTITLEMENTS__KEYS__0__WINDOW",
                "{ kind = \"balance\" }",
            ),
            ("SEATBELT__NEURON__OPEN", "true"),
            ("SEATBELT__NEURON__MODELS__1__ID", "second"),
            ("SEATBELT__NEURON__MODELS__1__PATH", "/m"),
            ("SEATBELT_LOG", "debug"),
        ],
    )
    .unwrap();
    assert_eq!(config.gateway.listen.port(), 0);
    assert!(!config.gateway.require_auth);
    assert_eq!(config.gateway.admin_token.unwrap().expose_secret(), "12345");
    assert_eq!(
        config.keys[0].caps[1].cap.as_str(),
        "key/key-cap/tokens/balance"
    );
    assert_eq!(config.keys[0].caps[1].limit, 7);
    let neuron = config.neuron.unwrap();
    assert!(neuron.open);
    assert_eq!(neuron.models[1].path, Path::new("/m"));
}

#[test]
fn a_mistake_from_the_environment_names_its_variable() {
    let found = mistakes(
        WHOLE,
        &[
            ("SEATBELT__GATEWAY__LISTEN", "nowhere"),
            ("SEATBELT__UPSTREAMS__5__NAME", "x"),
            ("SEATBELT__NATS__URI", "x"),
        ],
    );
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().any(|line| {
        line.starts_with("gateway.listen (from SEATBELT__GATEWAY__LISTEN): \"nowhere\"")
    }));
    assert!(
        found
            .iter()
            .any(|line| line.contains("element 5 cannot be set: use 0 to 1"))
    );
    assert!(
        found
            .iter()
            .any(|line| line.contains("nats.uri") && line.contains("is not known"))
    );
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place_and_line() {
    check(
        r#"
[nats]
durability = "maybe"
partitions = 0
datadir = "x"
[gateway]
listen = 8080
budget_wait_ms = -1
[[entitlements.keys]]
account_id = "a.b"
key_id = "k"
hard_cap = 1.5
[[upstreams]]
name = "u"
kind = "other"
base_url = "ftp://x"
models = [{ id = "m", context = 10, output = 20, price = { input = 1 } }]
[nowhere]
"#,
        &[
            "nats.durability (line 3): \"maybe\" is not known: use \"fsync\" or \"relaxed\"",
            "nats.partitions (line 4): is 0: use 1 to 100",
            "nats.datadir (line 5): is not known: use one of url, partitions, prefix, data_dir, port, server, server_memory_bytes, monitor_url, replicas, durability, checkpoint, users",
            "gateway.listen (line 7): is a number, not text: write \"...\"",
            "gateway.budget_wait_ms (line 8): is -1: use 0 to 60000",
            "entitlements.keys[0].key (line 9): is missing",
            "entitlements.keys[0].account_id (line 10): account id \"a.b\" is not valid: use 1 to 64 characters of A-Z a-z 0-9 _ -",
            "entitlements.keys[0].hard_cap (line 12): is a fraction, not a whole number: use 0 to 4611686018427387904",
            "upstreams[0].kind (line 15): \"other\" is not known: use \"openai\" or \"anthropic\"",
            "upstreams[0].base_url (line 16): does not begin with http:// or https://",
            "upstreams[0].models[0].output (line 17): is above the model's context, which holds input and output",
            "upstreams[0].models[0].price.input (line 17): is a number, not text: write \"...\"",
            "upstreams[0].models[0].price.output (line 17): is missing",
            "nowhere (line 18): is not known: use one of nats, ledger, gateway, entitlements, upstreams, neuron, include",
        ],
    );
}

#[test]
fn a_retired_key_is_no_key_that_is_in_use() {
    let key = "[[entitlements.keys]]\nkey = \"sk\"\naccount_id = \"a\"\nkey_id = \"k\"\n";
    let retired = |id: &str| {
        format!("{key}[[entitlements.retired_keys]]\naccount_id = \"a\"\nkey_id = \"{id}\"\n")
    };
    let config = read(&retired("old"), &[]).unwrap();
    assert_eq!(config.retired_keys[0].key.as_str(), "old");
    check(
        &retired("k"),
        &[
            "entitlements.retired_keys[0].key_id (line 5): is in use in entitlements.keys[0]: leave one of them out",
        ],
    );
}

#[test]
fn an_upstream_names_its_other_addresses() {
    let upstream = |more: &str, deployment: &str| {
        format!(
            "[[upstreams]]\nname = \"u\"\nkind = \"openai\"\nbase_url = \"https://x/v1\"\n{more}\nmodels = []\n\
             [[upstreams.deployments]]\nname = \"v\"\nbase_url = \"https://y/v1\"\n{deployment}\n"
        )
    };
    let told = upstream("weight = 3", "priority = 9\napi_key_env = \"Y\"");
    let config = read(&told, &[("Y", "sk-y")]).unwrap();
    let read_as = &config.upstreams[0];
    let other = &read_as.deployments[0];
    assert_eq!(
        (read_as.weight, read_as.priority, read_as.attempts),
        (3, 0, None)
    );
    assert_eq!(
        (other.name.as_str(), other.weight, other.priority),
        ("v", 1, 9)
    );
    assert!(other.api_key.is_some());
    let wrong = upstream("attempts = 6", "weight = 0");
    let wrong = mistakes(&wrong.replace("\"v\"", "\"u\""), &[]);
    for said in ["attempts", "weight", "is used by another upstream"] {
        assert!(
            wrong.iter().any(|mistake| mistake.contains(said)),
            "{wrong:?}"
        );
    }
}

#[test]
fn an_upstream_says_whose_fields_it_takes_and_which_more() {
    let upstream = |kind: &str, more: &str| {
        let text = format!(
            "[[upstreams]]\nname = \"u\"\nkind = \"{kind}\"\nbase_url = \"https://x/v1\"\n{more}\nmodels = [{{ id = \"m\", \
             context = 10, output = 5, allow_fields = [\"documents\"], price = {{ input = \"1\", output = \"2\" }} }}]\n"
        );
        format!("{WHOLE}{text}")
    };
    let more = "profile = \"openai\"\nallow_fields = [\"a\", \"messages[].b\"]\nerrors_are_free = true\nresponses = true";
    let config = read(&upstream("openai", more), &[]).unwrap();
    let read_as = &config.upstreams[1];
    assert_eq!(read_as.profile, Some(Profile::OpenAi));
    assert_eq!(read_as.allow_fields, ["a", "messages[].b"]);
    assert!(read_as.errors_are_free && read_as.responses);
    assert_eq!(read_as.models[0].allow_fields, ["documents"]);
    let price = |config: &Config| config.upstreams[1].models[0].price.as_ref().unwrap().rates;
    assert_eq!(price(&config).cache_write, price(&config).input);
    let native = read(&upstream("anthropic", ""), &[]).unwrap();
    assert_eq!(native.upstreams[1].profile, None);
    assert_eq!(price(&native).cache_write, 2 * price(&native).input);
    let wrong = mistakes(
        &upstream(
            "anthropic",
            "profile = \"openai\"\nallow_fields = [5]\nresponses = true",
        ),
        &[],
    );
    assert!(
        wrong[0].contains("profile") && wrong[0].contains("of another kind"),
        "{wrong:?}"
    );
    assert!(
        wrong[2].contains("allow_fields[0]") && wrong[2].contains("is not text"),
        "{wrong:?}"
    );
    assert!(wrong[1].contains("responses"), "{wrong:?}");
}

#[test]
fn a_class_of_service_has_a_price_and_an_id_of_its_own() {
    let upstream = |classes: &str| {
        let model = "[[upstreams.models]]\nid = \"m\"\ncontext = 10\noutput = 5\nprice = { input = \"1\", output = \"2\", multiplier = \"1.1\" }";
        let text = format!(
            "[[upstreams]]\nname = \"u\"\nkind = \"openai\"\nbase_url = \"https://x/v1\"\n{model}\n{classes}"
        );
        format!("{WHOLE}{text}")
    };
    let class = |lines: &str| format!("[[upstreams.models.class]]\n{lines}\n");
    let twice = class("service_tier = \"priority\"\nmultiplier = \"2\"\nanswers_as = [\"prio\"]");
    let fast = class("speed = \"fast\"\nprice = { input = \"6\", output = \"12\" }");
    let config = read(&upstream(&format!("{twice}{fast}")), &[]).unwrap();
    let prices = config.prices();
    let of = |id: &str| {
        prices
            .iter()
            .find(|price| price.model.as_str() == id)
            .unwrap()
    };
    assert_eq!(
        of("m+service_tier=priority").multiplier_ppm,
        Some(2_200_000)
    );
    assert_eq!(of("m+service_tier=priority").rates, of("m").rates);
    assert_eq!(of("m+speed=fast").rates.input, 6_000_000);
    let classes = &config.upstreams[1].models[0].classes;
    assert_eq!(
        (
            classes[0].class.value.as_str(),
            classes[0].class.answers_as.len()
        ),
        ("priority", 1)
    );
    for (lines, problem) in [
        (
            "service_tier = \"flex\"\nmultiplier = \"0.5\"",
            "costs less than its model",
        ),
        (
            "service_tier = \"flex\"\nprice = { input = \"9\", output = \"2\" }",
            "costs less than its model",
        ),
        (
            "service_tier = \"default\"\nmultiplier = \"2\"",
            "the model's own price",
        ),
        ("service_tier = \"flex\"", "has no price"),
        ("multiplier = \"2\"", "must say one of"),
        (
            "speed = \"fast\"\ninference_geo = \"us\"\nmultiplier = \"2\"",
            "must say one of",
        ),
        (
            "service_tier = \"a b\"\nmultiplier = \"2\"",
            "is not one word",
        ),
        (
            "service_tier = \"flex\"\nmultiplier = \"99\"",
            "has no price that can be",
        ),
    ] {
        let found = mistakes(&upstream(&class(lines)), &[]);
        assert!(found.concat().contains(problem), "{lines}: {found:?}");
    }
    let again = mistakes(&upstream(&format!("{twice}{twice}")), &[]);
    assert!(again.concat().contains("another class"), "{again:?}");
}

#[test]
fn tools_that_a_provider_runs_have_a_fee_and_bounds() {
    let upstream = |kind: &str, tools: &str| {
        format!(
            "{WHOLE}[[upstreams]]\nname = \"u\"\nkind = {kind}\nbase_url = \"https://x/v1\"\n[[upstreams.models]]\nid = \"m\"\n\
             context = 10\noutput = 5\nprice = {{ input = \"1\", output = \"2\" }}\n{tools}"
        )
    };
    let tool = |kind: &str, fee: &str| {
        format!(
            "[[upstreams.models.tool]]\ntype = \"{kind}\"\nper_call = \"{fee}\"\ncalls_max = 5\ninput_max = 900\n"
        )
    };
    let (search, fetch) = (
        tool("web_search_20250305", "0.01"),
        tool("web_fetch_20250910", "0"),
    );
    let class = "[[upstreams.models.class]]\nspeed = \"fast\"\nprice = { input = \"6\", output = \"12\" }\n";
    let text = upstream("\"anthropic\"", &format!("{search}{fetch}{class}"));
    let config = read(&text, &[]).unwrap();
    let model = &config.upstreams[1].models[0];
    assert_eq!(
        model
            .tools
            .iter()
            .map(|tool| tool.charged)
            .collect::<Vec<_>>(),
        [true, false]
    );
    assert_eq!(
        (model.tools[0].calls_max, model.tools[0].input_max),
        (5, 900)
    );
    assert_eq!(
        model.price.as_ref().unwrap().fee_per_tool_call,
        Some(10_000_000)
    );
    assert_eq!(model.classes[0].price.fee_per_tool_call, Some(10_000_000));
    let no_bound = "[[upstreams.models.tool]]\ntype = \"web_search\"\nper_call = \"0.01\"\n";
    for (kind, tools, problem) in [
        ("\"anthropic\"", no_bound.to_owned(), "input_max"),
        (
            "\"anthropic\"",
            format!("{search}{search}"),
            "name each once",
        ),
        (
            "\"anthropic\"",
            format!("{search}{}", tool("other", "0.02")),
            "one fee per call",
        ),
        ("\"openai\"", tool("web_search", "0.01"), "responses = true"),
        (
            "\"openai\"\nresponses = true",
            tool("web_search", "0.01"),
            "profile = \"openai\"",
        ),
    ] {
        let found = mistakes(&upstream(kind, &tools), &[]);
        assert!(found.concat().contains(problem), "{tools}: {found:?}");
    }
    let openai = "\"openai\"\nresponses = true\nprofile = \"openai\"";
    assert!(read(&upstream(openai, &tool("web_search", "0.01")), &[]).is_ok());
}

#[test]
fn a_model_says_how_its_images_and_sounds_are_counted() {
    let upstream = |more: &str| {
        let text = format!(
            "[[upstreams]]\nname = \"u\"\nkind = \"openai\"\nbase_url = \"https://x/v1\"\nmodels = [{{ id = \"m\", \
             context = 10, output = 5, {more} price = {{ input = \"1\", output = \"2\" }} }}]\n"
        );
        format!("{WHOLE}{text}")
    };
    let media = |more: &str| read(&upstream(more), &[]).unwrap().upstreams[1].models[0].media;
    assert_eq!(media(""), MediaLimits::default());
    let patches = media(
        "image = { rule = \"patches\", multiplier = \"1.2\", max_tokens = 3000, detail = \"high\" }, audio = { tokens_per_second = 32 },",
    );
    let image = patches.image.unwrap();
    let per_million = 1_200_000;
    assert_eq!(image.rule, ImageRule::Patches { per_million });
    assert_eq!((image.max_tokens, image.pins_detail), (3000, true));
    assert_eq!(patches.audio.unwrap().tokens_per_second, 32);
    let tiles = media("image = { rule = \"tiles\", base = 85, tile = 170, max_tokens = 1445 },");
    let rule = ImageRule::Tiles {
        base: 85,
        tile: 170,
    };
    assert_eq!((tiles.image.unwrap().rule, tiles.audio), (rule, None));
    for (wrong, problem) in [
        ("image = { rule = \"grid\" },", "max_tokens"),
        ("image = { max_tokens = 5 },", "rule"),
        (
            "image = { rule = \"patches\", max_tokens = 5 },",
            "multiplier",
        ),
        (
            "image = { rule = \"tiles\", max_tokens = 5, base = 1 },",
            "tile",
        ),
        ("image = { rule = \"cubes\", max_tokens = 5 },", "rule"),
        (
            "image = { rule = \"fixed\", max_tokens = 5, detail = \"low\" },",
            "detail",
        ),
        (
            "image = { rule = \"fixed\", max_tokens = 5, base = 1 },",
            "base",
        ),
        ("audio = { tokens_per_second = 0 },", "tokens_per_second"),
    ] {
        let found = mistakes(&upstream(wrong), &[]).concat();
        assert!(found.contains(problem), "{wrong}: {found}");
    }
}

#[test]
fn threads_are_kept_where_one_address_speaks_responses() {
    let upstream = |more: &str| {
        let text = format!(
            "[[upstreams]]\nname = \"u\"\nkind = \"openai\"\nprofile = \"openai\"\nbase_url = \"https://x/v1\"\n{more}\nmodels = [{{ id = \"m\", \
             context = 10, output = 5, price = {{ input = \"1\", output = \"2\" }} }}]\n"
        );
        format!("{WHOLE}{text}")
    };
    let config = read(&upstream("responses = true\nthreads = true"), &[]).unwrap();
    assert!(config.upstreams[1].threads);
    let another = "responses = true\nthreads = true\ndeployments = [{ name = \"v\", base_url = \"https://y/v1\" }]";
    for wrong in ["threads = true", another] {
        let found = mistakes(&upstream(wrong), &[]).concat();
        assert!(found.contains("threads"), "{found}");
    }
}

#[test]
fn an_account_may_pay_by_a_multiplier() {
    let account = |id: &str, multiplier: &str| {
        format!("[[entitlements.accounts]]\naccount_id = \"{id}\"\nmultiplier = \"{multiplier}\"\n")
    };
    let config = read(&format!("{WHOLE}{}", account("acct-a", "1.1")), &[]).unwrap();
    let terms = &config.accounts[0];
    assert_eq!(
        (terms.account.as_str(), terms.multiplier_ppm),
        ("acct-a", 1_100_000)
    );
    for (lines, problem) in [
        (account("acct-a", "0"), "above 0"),
        (account("acct-a", "101"), "at most 100"),
        (account("a b", "2"), "account_id"),
        (
            account("acct-a", "2") + &account("acct-a", "3"),
            "listed twice",
        ),
        (
            "[[entitlements.accounts]]\naccount_id = \"a\"\n".to_owned(),
            "multiplier",
        ),
    ] {
        let found = mistakes(&format!("{WHOLE}{lines}"), &[]);
        assert!(found.concat().contains(problem), "{lines}: {found:?}");
    }
}

#[test]
fn a_model_of_an_upstream_may_name_its_tokenizer() {
    let upstream = |kind: &str, tokenizer: &str| {
        format!(
            "[[upstreams]]\nname = \"u\"\nkind = \"{kind}\"\nbase_url = \"http://h/v1\"\nmodels = [{{ id = \"m\", \
             context = 10, output = 5, tokenizer = \"{tokenizer}\", price = {{ input = \"1\", output = \"2\" }} }}]\n"
        )
    };
    let named = |tokenizer| {
        let config = read(&upstream("openai", tokenizer), &[]).unwrap();
        config.upstreams[0].models[0].tokenizer.clone().unwrap()
    };
    assert_eq!(
        named("o200k_base"),
        TokenizerName::Encoding(Encoding::O200k)
    );
    assert_eq!(
        named("cl100k_base"),
        TokenizerName::Encoding(Encoding::Cl100k)
    );
    let file = Path::new("/etc/seatbelt/models/q/tokenizer.json").to_owned();
    assert_eq!(named("models/q/tokenizer.json"), TokenizerName::File(file));
    let wrong = |kind, tokenizer| mistakes(&upstream(kind, tokenizer), &[]).join("\n");
    let unknown = wrong("openai", "gpt2");
    assert!(
        unknown.contains("tokenizer") && unknown.contains("o200k_base"),
        "{unknown}"
    );
    let none = wrong("anthropic", "o200k_base");
    assert!(none.contains("publishes none"), "{none}");
}

#[test]
fn text_that_is_not_toml_is_reported_by_line_without_quoting_it() {
    let found = mistakes(
        "[nats]\ndata_dir = sk-very-secret\n[gateway]\nlisten = \"nowhere\"\n",
        &[],
    );
    assert!(found[0].starts_with("file (line 2): "), "{found:?}");
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("gateway.listen (line 4)")),
        "{found:?}"
    );
    assert!(!found.concat().contains("secret"), "{found:?}");
}

#[test]
fn secrets_are_never_quoted() {
    let text = r#"
[[entitlements.keys]]
key = "sk secret one"
account_id = "a"
key_id = "k"
[[entitlements.keys]]
key = "sk-secret-two"
account_id = "a"
key_id = "k2"
[[entitlements.keys]]
key = "sk-secret-two"
account_id = "a"
key_id = "k3"
"#;
    let found = mistakes(text, &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("entitlements.keys[0].key (line 3)"),
        "{found:?}"
    );
    assert!(
        found[1].contains("is the same as in entitlements.keys[1]"),
        "{found:?}"
    );
    assert!(!found.concat().contains("secret"), "{found:?}");
    let config = read(WHOLE, &[]).unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains("sk-") && !shown.contains("hush"), "{shown}");
}

#[test]
fn what_is_declared_twice_is_a_mistake_and_what_is_shared_is_not() {
    let key = |n: u8, limit: &str| {
        format!(
            "[[entitlements.keys]]\nkey = \"sk-{n}\"\naccount_id = \"a\"\nkey_id = \"k{n}\"\n\
             caps = [{{ meter = \"cost\", limit = \"{limit}\", scope = \"account\" }}]\n"
        )
    };
    let shared = read(&(key(1, "5") + &key(2, "5")), &[]).unwrap();
    assert_eq!(shared.keys[0].caps, shared.keys[1].caps);
    let found = mistakes(&(key(1, "5") + &key(2, "6")), &[]);
    assert!(
        found[0].contains("differs from the one in entitlements.keys[0]"),
        "{found:?}"
    );
    let found = mistakes(&(key(1, "5") + &key(1, "5")), &[]);
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_key_without_a_team_may_have_teams_that_its_requests_name() {
    let key = |rest: &str| {
        format!("[[entitlements.keys]]\nkey = \"s\"\naccount_id = \"a\"\nkey_id = \"k\"\n{rest}\n")
    };
    let caps = "caps = [{ meter = \"tokens\", limit = 5, scope = \"team\", team = \"red\" }]";
    let config = read(&key(&format!("teams = [\"blue\", \"red\"]\n{caps}")), &[]).unwrap();
    let teams: Vec<_> = config.keys[0].teams.iter().map(TeamId::as_str).collect();
    assert_eq!(teams, ["blue", "red"]);
    let red = Scope::Team(TeamId::new("red").unwrap());
    assert_eq!(config.keys[0].caps[0].scope, red);
    for (bad, part) in [
        (
            "team = \"t\"\nteams = [\"blue\"]",
            "without a team of their own",
        ),
        ("teams = [\"blue\", \"blue\"]", "twice"),
        ("teams = [\"b lue\"]", "b lue"),
    ] {
        let found = mistakes(&key(bad), &[]);
        assert!(
            found[0].contains("teams") && found[0].contains(part),
            "{found:?}"
        );
    }
}

#[test]
fn a_named_variable_that_is_not_set_is_a_mistake() {
    let text = WHOLE.replace("MOCK_KEY", "UNSET_KEY");
    let found = mistakes(&text, &[]);
    assert!(
        found[0].contains("api_key_env (line") && found[0].contains("UNSET_KEY"),
        "{found:?}"
    );
}

#[test]
fn a_model_has_one_price() {
    let text = WHOLE.replace(
        "slots = 8 }",
        "slots = 8, price = { input = \"1\", output = \"2\" } }, { id = \"test-model\", path = \"m\", price = { input = \"9\", output = \"9\" } }",
    );
    let found = mistakes(&text, &[]);
    assert!(
        found[0].contains("test-model has two different prices"),
        "{found:?}"
    );
}

#[test]
fn cost_is_decimal_text_and_windows_are_complete() {
    let cap = |cap: &str| {
        format!(
            "[[entitlements.keys]]\nkey = \"s\"\naccount_id = \"a\"\nkey_id = \"k\"\ncaps = [{cap}]\n"
        )
    };
    for (bad, part) in [
        (
            "{ meter = \"cost\", limit = 25 }",
            "caps[0].limit (line 5): is a number, not text",
        ),
        ("{ meter = \"cost\", limit = \"1e3\" }", "is not an amount"),
        (
            "{ meter = \"tokens\", limit = 5, window = { kind = \"rolling\" } }",
            "caps[0].window.seconds (line 5): is missing",
        ),
        (
            "{ meter = \"tokens\", limit = 5, window = { kind = \"calendar\", period = \"year\" } }",
            "\"year\" is not known",
        ),
        (
            "{ meter = \"tokens\", limit = 5, scope = \"team\" }",
            "the key has none",
        ),
        (
            "{ meter = \"tokens\", limit = 5, scope = \"team\", team = \"blue\" }",
            "neither the key's team nor among its teams",
        ),
        (
            "{ meter = \"tokens\", limit = 5, team = \"blue\" }",
            "set scope = \"team\"",
        ),
        (
            "{ meter = \"tokens\", limit = 5, thresholds = [80, 50] }",
            "are not ascending",
        ),
        (
            "{ meter = \"tokens\", limit = 5, thresholds = [0] }",
            "thresholds[0]",
        ),
    ] {
        let found = mistakes(&cap(bad), &[]);
        assert!(
            found.iter().any(|line| line.contains(part)),
            "{bad}: {found:?}"
        );
    }
}

#[test]
fn a_scope_has_a_bounded_number_of_caps() {
    let caps = |count: u64| {
        let caps = (1..=count).map(|seconds| {
            format!("{{ meter = \"tokens\", limit = 5, window = {{ kind = \"rolling\", seconds = {seconds} }} }}")
        });
        let caps: Vec<_> = caps.collect();
        format!(
            "[[entitlements.keys]]\nkey = \"s\"\naccount_id = \"a\"\nkey_id = \"k\"\ncaps = [{}]\n",
            caps.join(", ")
        )
    };
    assert!(read(&caps(8), &[]).is_ok());
    let found = mistakes(&caps(9), &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("more than 8 for key k"), "{found:?}");
}

#[test]
fn a_price_says_all_that_providers_charge_for() {
    let text = |price: &str| {
        format!(
            "{WHOLE}[[upstreams]]\nname = \"second\"\nkind = \"anthropic\"\nbase_url = \"http://h\"\n\
             models = [{{ id = \"other\", context = 10, output = 5, price = {price} }}]\n"
        )
    };
    let full = "{ input = \"3\", output = \"15\", cache_write = \"3.75\", multiplier = \"1.1\", per_request = \"0.01\", \
                tiers = [{ above_input_tokens = 200000, input = \"6\", output = \"22.5\", cache_write_long = \"13\" }, \
                { above_input_tokens = 500000, input = \"9\", output = \"30\" }] }";
    let config = read(&text(full), &[]).unwrap();
    let price = config.upstreams[1].models[0].price.clone().unwrap();
    assert_eq!(
        price.rates.cache_write_long,
        Some(6_000_000),
        "twice the input"
    );
    assert_eq!(price.multiplier_ppm, Some(1_100_000));
    assert_eq!(price.fee_per_request, Some(10_000_000));
    let first = price.long_context.unwrap();
    assert_eq!(
        (first.above_input_tokens, first.rates.cache_write_long),
        (200_000, Some(13_000_000))
    );
    assert_eq!(price.tiers.len(), 1);
    assert_eq!(
        config
            .prices()
            .iter()
            .find(|known| known.model == price.model),
        Some(&price)
    );
    let wrong = "{ input = \"3\", output = \"15\", multiplier = \"0\", per_request = \"1001\", \
                 tiers = [{ above_input_tokens = 9, input = \"6\", output = \"2\" }, { above_input_tokens = 9, input = \"9\", output = \"3\" }, \
                 { input = \"9\" }] }";
    let wrong = mistakes(&text(wrong), &[]).join("\n");
    for name in [
        "multiplier",
        "per_request",
        "tiers[1].above_input_tokens",
        "tiers[2].above_input_tokens",
        "tiers[2].output",
    ] {
        assert!(wrong.contains(&format!("price.{name} ")), "{name}: {wrong}");
    }
}

#[test]
fn who_audits_needs_no_secret_of_a_provider_and_no_right_rest() {
    let text = WHOLE.replace("MOCK_KEY", "NOT_SET") + "\n[nowhere]\n";
    let at = Path::new("/etc/seatbelt");
    assert!(Config::from_text(&text, &BTreeMap::new(), at).is_err());
    let environment = [
        ("SEATBELT__NATS__PARTITIONS", "2"),
        ("SEATBELT__NOWHERE__X", "1"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let nats = Config::nats_from_text(&text, &environment.into(), at).unwrap();
    assert_eq!(nats.data_dir, Path::new("/etc/seatbelt/data"));
    assert_eq!(u8::from(nats.partitions), 2);
    let wrong = text.replace("replicas = 1", "replicas = 2");
    assert!(Config::nats_from_text(&wrong, &BTreeMap::new(), at).is_err());
}

#[test]
fn a_window_without_a_cap_is_a_mistake_and_a_key_without_one_is_known() {
    let key = |fields: &str| {
        format!(
            "[[entitlements.keys]]\nkey = \"sk-2\"\naccount_id = \"b\"\nkey_id = \"k\"\n{fields}\n"
        )
    };
    let window = "window = { kind = \"rolling\", seconds = 60 }";
    let found = mistakes(&key(window), &[]);
    assert!(
        found[0].contains("keys[0].window") && found[0].contains("hard_cap"),
        "{found:?}"
    );
    assert!(read(&key(&format!("{window}\nhard_cap = 1")), &[]).is_ok());
    let unlimited = |text: &str| read(text, &[]).unwrap().unlimited().len();
    assert_eq!(unlimited(&key("")), 1);
    assert_eq!(unlimited(&key("hard_cap = 1")), 0);
    let soft = "caps = [{ meter = \"tokens\", limit = 1, hard = false }]";
    assert_eq!(unlimited(&key(soft)), 1);
    // the cap of the account that another key declares is this one's too
    let account = "[[entitlements.keys]]\nkey = \"sk-3\"\naccount_id = \"b\"\nkey_id = \"l\"\n\
        caps = [{ meter = \"tokens\", limit = 1, scope = \"account\" }]\n";
    assert_eq!(unlimited(&(key("") + account)), 0);
}

#[test]
fn a_model_of_the_neuron_and_of_an_upstream_is_named_once() {
    let both = WHOLE.replace("id = \"tiny\"", "id = \"test-model\"");
    let found = mistakes(&both, &[]);
    assert!(
        found.len() == 1 && found[0].contains("test-model") && found[0].contains("neuron.models"),
        "{found:?}"
    );
}

/// The start would end at the cap that is one too many, after others were declared.
#[test]
fn an_account_that_its_caps_fill_is_a_mistake() {
    let declared = |keys: usize| {
        let caps: Vec<String> = (1..=8)
            .map(|seconds| {
                format!("{{ meter = \"tokens\", limit = 1, window = {{ kind = \"rolling\", seconds = {seconds} }} }}")
            })
            .collect();
        let key = |n| {
            format!(
                "[[entitlements.keys]]\nkey = \"sk-{n}\"\naccount_id = \"full\"\nkey_id = \"k{n}\"\ncaps = [{}]\n",
                caps.join(", ")
            )
        };
        let keys: String = (0..keys).map(key).collect();
        format!("{WHOLE}\n{keys}")
    };
    read(&declared(1250), &[]).unwrap();
    let found = mistakes(&declared(1251), &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("more than 10000 for account full"),
        "{found:?}"
    );
}

#[test]
fn a_model_is_not_its_own_fallback() {
    let with = |models: &str| {
        WHOLE.replace(
            "output = 4096,",
            &format!("output = 4096, fallback = {models},"),
        )
    };
    let found = mistakes(&with(r#"["test-model"]"#), &[]);
    assert!(found[0].contains("is the model itself"), "{found:?}");
    // beside another mistake, with its line
    let unknown = with(r#"["unknown"]"#).replace("context = 8192", "context = 0");
    let found = mistakes(&unknown, &[]);
    let fallback = found
        .iter()
        .find(|found| found.contains("\"unknown\" is no model"));
    assert!(
        fallback.is_some_and(|found| found.contains("fallback (line")),
        "{found:?}"
    );
    assert!(found.len() > 1, "{found:?}");
    let other = "models = [{ id = \"other\", context = 9, output = 9 }, ";
    let two = |models: &str| with(models).replacen("models = [", other, 1);
    let found = mistakes(&two(r#"["other", "other"]"#), &[]);
    assert!(found[0].contains("named twice"), "{found:?}");
    let config = read(&two(r#"["other"]"#), &[]).unwrap();
    assert_eq!(config.upstreams[0].models[1].fallback[0].as_str(), "other");
}
