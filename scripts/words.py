"""One word, one meaning, for scripts/check_layers.py: a type that a crate shows has a name that no other crate shows,
and words that once meant several things mean one.
"""

import re

import crate_map

# Shown twice, for it is the same thing: what NATS has of it, and what is made of that.
SAME = {"FeedEntry", "FeedMessage"}
# Each stood for three or four things. Now at most one type of any visibility has it, in all crates.
ONCE = {"Waiting", "Trouble", "Place", "Refused", "Request", "Known", "Counted", "ApiError"}

TYPE = re.compile(r"^( *)(pub(?:\([^)]*\))? )?(struct|enum|trait|union|type) (\w+)", re.M)


def twice(sources):
    """Names that mean two things; `sources` are all files by path."""
    declared = {}
    for path, text in sorted(sources.items()):
        if crate_map.is_test(path) or crate_map.only_for_tests(path, sources):
            continue
        code = crate_map.product_code(text)
        for found in TYPE.finditer(code):
            # a `type` that is indented belongs to a trait
            if not (found[3] == "type" and found[1]):
                line = code[:found.start()].count("\n") + 1
                declared.setdefault(found[4], []).append((f"{path}:{line}", found[2] == "pub "))
    problems = []
    for name, places in sorted(declared.items()):
        counted = places if name in ONCE else [place for place in places if place[1]]
        if len(counted) > 1 and name not in SAME:
            problems.append(f"{name} means two things: {', '.join(where for where, _ in counted)}")
    return problems


def self_test(noticed):
    sound = {
        "bus/src/a.rs": "pub struct Nats;\nstruct Seen;\npub struct FeedEntry;\npub trait Post {\n    type Answer;\n}\n",
        "ledger/src/b.rs": "struct Seen;\npub struct FeedEntry;\npub(crate) struct Nats;\npub trait Way {\n    type Answer;\n}\n",
        "ledger/src/b/tests.rs": "pub struct Nats;",
    }
    if found := twice(sound):
        raise SystemExit(f"layers: self-test: names that are not shown twice are not accepted: {found}")
    noticed("a name shown twice", twice({**sound, "cli/src/c.rs": "pub enum Nats {"}), "Nats means two things: bus/src/a.rs:1, cli/src/c.rs:1")
    noticed("an old word", twice({"bus/src/a.rs": "struct Place;", "ledger/src/b.rs": "enum Place {"}), "Place means two things")
