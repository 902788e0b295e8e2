"""The crate map of ARCHITECTURE.md held against the code, for scripts/check_layers.py: its rows are the members,
the modules that it names are there, and what it calls absent is absent from the product's code (tests may name it).
"""

import re

CLOCK = r"(?:SystemTime|Instant)::now|UtcDateTime::now|OffsetDateTime::now|chrono::"
WAITING = r"\basync\b|\.await\b|\btokio::"
OUTSIDE = r"std::(?:net|process)\b|\breqwest\b|\basync_nats\b"
# Who decides about money. Bounds of what may be asked are for those who ask.
DECIDING = r"seatbelt_ledger::(?:\{[^;]*\b)?(?:decide(?!::validate)|writer|host|cluster)\b"
# Fields by which vendors say what a request asks for and what an answer used.
VENDORS = "choices|usage|max_\\w+|stream\\w*|tool\\w*|input\\w*|output\\w*|content|system|delta|metadata|thinking|stop\\w*"
# Members with what no line of theirs may name. What a member could only reach through a crate that it does not
# depend on is proved by the directions already.
ABSENT = {
    "schemas": [("a clock", CLOCK), ("waiting", WAITING), ("a client", OUTSIDE)],
    "tokens": [("waiting", WAITING), ("a client", OUTSIDE)],
    "dialects": [
        ("a clock", CLOCK),
        ("waiting", WAITING),
        ("a client", OUTSIDE),
        ("limits or prices", r"seatbelt_schemas::(?:\{[^;]*\b)?(?:cap|budget|price|window)\b"),
    ],
    "pricing": [("a clock", CLOCK), ("waiting", WAITING), ("a file", r"std::(?:fs|env)\b"), ("a client", OUTSIDE)],
    "ledger": [("HTTP", r"\b(?:axum|hyper|reqwest|http_body\w*)::")],
    "gateway": [
        ("decisions about money", DECIDING),
        ("vendor JSON", rf"\.(?:get|get_mut|remove|insert)\(\"(?:{VENDORS})\""),
    ],
    "projector": [("decisions", DECIDING), ("HTTP", r"\b(?:axum|hyper|reqwest)::")],
    "neuron": [("caps and prices", r"seatbelt_schemas::(?:\{[^;]*\b)?(?:cap|budget|price|window|command|event)\b")],
    "cli": [("decisions", r"seatbelt_ledger::(?:\{[^;]*\b)?decide\b"), ("vendor JSON", r"\bseatbelt_dialects\b")],
}
# What is said with its exception: this file of this member alone.
BUT = {("tokens", "a clock"): ("tokens/src/builtins.rs", CLOCK)}


def is_test(path):
    """Whether a file of a crate (its path as text) is for tests alone."""
    parts = path.split("/")
    name = parts[-1].removesuffix(".rs")
    return parts[1] != "src" or parts[0] == "tests" or bool({"tests", "testing"} & {*parts[2:-1], name})


def without_tests(text):
    """Without the tests that stand at a file's end."""
    return re.split(r"^#\[cfg\(test\)\]\nmod \w+ \{", text, maxsplit=1, flags=re.M)[0]


def product_code(text):
    """Without comments, and without what only a test is compiled with."""
    return re.sub(r"//.*", "", without_tests(text))


def named_absent(sources):
    """What is found where the map says that it is absent; `sources` are all files by path."""
    problems = []
    for path, text in sorted(sources.items()):
        member = path.split("/")[0]
        rules = ABSENT.get(member, []) + [
            (what, pattern) for (owner, what), (but, pattern) in BUT.items() if owner == member and but != path
        ]
        if not rules or is_test(path) or only_for_tests(path, sources):
            continue
        code = product_code(text)
        problems += [
            f"{path}:{code[:found.start()].count(chr(10)) + 1} names `{found[0]}`: {what} is absent from {member}"
            for what, pattern in rules
            if (found := re.search(pattern, code))
        ]
    return problems


def only_for_tests(path, sources):
    """Whether the module that a file is, or one that it lies in, is declared under `#[cfg(test)]`."""
    parts = path.removesuffix(".rs").split("/")
    for depth in range(2, len(parts)):
        parent = "/".join(parts[:depth])
        texts = [sources.get(f"{parent}{end}", "") for end in (".rs", "/lib.rs", "/main.rs")]
        if re.search(rf"#\[cfg\((?:test|any\(test[^\n]*)\)\]\n(?:pub(?:\([^)]*\))? )?mod {parts[depth]};", "\n".join(texts)):
            return True
    return False


def wrong_rows(architecture, members, sources):
    """Rows of the map against the members, and the modules that a row names against its crate's files."""
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \| .* \|$", architecture, re.M))
    problems = [f"ARCHITECTURE.md has no row for {name}" for name in sorted(set(members) - set(rows))]
    problems += [f"ARCHITECTURE.md has a row for {name}, which is no member" for name in sorted(set(rows) - set(members))]
    for name in sorted(set(rows) & set(members)):
        for module in re.findall(r"`(\w+)`", rows[name]):
            if module not in members and not any(f"{name}/src/{module}{end}" in sources for end in (".rs", "/mod.rs")):
                problems.append(f"ARCHITECTURE.md names module {module} of {name}, which is not there")
    return problems


def self_test(noticed):
    whole = {"ledger/src/lib.rs": "mod decide;", "ledger/src/decide.rs": "", "dialects/src/lib.rs": "#[cfg(test)]\nmod golden;"}
    row = "| `ledger` | `decide`, on `dialects` | HTTP |\n"
    if wrong_rows(row + "| `dialects` | JSON | HTTP |\n", {"ledger", "dialects"}, whole):
        raise SystemExit("layers: self-test: a true map is not accepted")
    noticed("a row that is missing", wrong_rows(row, {"ledger", "dialects"}, whole), "no row for dialects")
    noticed("a row too many", wrong_rows(row, {"dialects"}, whole), "row for ledger, which is no member")
    noticed("a module that is gone", wrong_rows(row.replace("decide", "chain"), {"ledger", "dialects"}, whole), "names module chain")
    sound = {
        "dialects/src/golden.rs": "use seatbelt_schemas::price::Price;",
        "dialects/src/tests.rs": "let now = Instant::now();",
        "dialects/src/ask.rs": "// Instant::now()\nfn f() {}\n#[cfg(test)]\nmod tests {\n    use seatbelt_schemas::cap;\n}\n",
        "tokens/src/builtins.rs": "SystemTime::now()",
    }
    if found := named_absent({**whole, **sound}):
        raise SystemExit(f"layers: self-test: tests are held to what the product may not name: {found}")
    for path, line, what in [
        ("dialects/src/ask.rs", "use seatbelt_schemas::{\n    ids::X,\n    cap::CapSpec,\n};", "limits or prices"),
        ("dialects/src/ask.rs", "async fn f() {}", "waiting"),
        ("schemas/src/time.rs", "let t = SystemTime::now();", "a clock"),
        ("tokens/src/chat.rs", "let t = SystemTime::now();", "a clock"),
        ("pricing/src/list.rs", "std::fs::read(path)", "a file"),
        ("ledger/src/host.rs", "use axum::Router;", "HTTP"),
        ("gateway/src/gate.rs", "use seatbelt_ledger::{api::X, decide::decide};", "decisions about money"),
        ("gateway/src/run.rs", "let usage = value.get(\"usage\");", "vendor JSON"),
        ("projector/src/feed.rs", "use seatbelt_ledger::writer::Writer;", "decisions"),
        ("neuron/src/http.rs", "use seatbelt_schemas::cap::CapSpec;", "caps and prices"),
        ("cli/src/roles.rs", "seatbelt_ledger::decide::decide()", "decisions"),
    ]:
        noticed(line, named_absent({**whole, path: line}), f"{what} is absent from {path.split('/')[0]}")
