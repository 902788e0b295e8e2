#!/usr/bin/env python3
"""Proves the layering: which member may depend on which, which room of the gateway may look into which, and
that the ledger's decisions are pure.

Directions are read from `cargo metadata` as resolved, over normal, build and dev dependencies and
transitively, and must stay within ALLOWED. What the gateway's modules `use` of each other must stay within
ROOMS. Decision code must not name anything that has a clock, a client or an await. The crate map of
ARCHITECTURE.md is held against the code (crate_map.py), files and functions to their length (sizes.py), and names
of types to one meaning (words.py).
`--self-test` breaks each rule on purpose and fails if that is not noticed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import crate_map
import sizes
import words

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = {"schemas", "bus", "connections", "tokens", "dialects", "pricing", "ledger", "gateway", "projector", "neuron", "cli"}

# What each member may reach, directly or through others. `tests` is at the top.
ALLOWED = {
    "schemas": set(),
    "dialects": {"schemas"},
    "tokens": {"schemas"},
    "connections": set(),
    "pricing": {"schemas"},
    "bus": {"schemas"},
    "ledger": {"schemas", "bus"},
    "gateway": {"schemas", "connections", "tokens", "dialects", "bus", "ledger"},
    "projector": {"schemas", "bus", "ledger"},
    "neuron": {"schemas", "connections", "tokens", "bus"},
    "cli": EVERYTHING - {"cli"},
    "tests": EVERYTHING,
    # what somebody outside would write: on what is said on the wire, and on the ledger's client
    "example-billing": {"schemas"},
    "example-run": {"schemas", "bus", "ledger"},
}

# One place knows each outside thing: crates that only these members may name.
OWNED = {
    "axum": {"connections", "gateway", "neuron", "tests", "cli"},
    "hyper": {"connections"},
    "hyper-util": {"connections"},
    "ort": {"neuron"},
    "llguidance": {"neuron"},
    "tokenizers": {"tokens"},
    "tiktoken-rs": {"tokens"},
    "minijinja": {"tokens"},
}
# The same, but that tests of any member may name them, to look at what came of it.
OWNED_BUT_IN_TESTS = {
    "async-nats": {"bus", "tests", "example-billing"},
}
# Members that only these may name themselves, though others reach them.
NAMED_BY = {"bus": {"ledger", "projector", "neuron", "cli", "tests", "example-run"}}
# Crates with which a member would wait, listen or ask: these read and write text.
PURE = {"tokens": {"axum", "hyper", "reqwest", "tokio", "tokio-util", "futures", "async-nats"},
        "dialects": {"axum", "hyper", "reqwest", "tokio", "tokio-util", "futures", "async-nats"},
        "pricing": {"axum", "hyper", "reqwest", "tokio", "tokio-util", "futures", "async-nats"}}

# Which room of the gateway may look into which; each is a module with all that is in its folder. What is not
# stated is forbidden, so that a request passes receive, plan, run and routes in one direction.
BASE = {"clock", "config", "metrics", "error", "ready"}
FIRST = {"receive", "bound", "upstream", "gate"}
ROOMS = {
    "clock": set(),
    "config": set(),
    "metrics": set(),
    "error": set(),
    "ready": set(),
    "receive": BASE,
    "bound": BASE,
    "upstream": BASE,
    "gate": BASE,
    "threads": BASE | {"receive", "upstream"},
    "repeats": BASE | {"receive", "gate"},
    "plan": BASE | FIRST | {"threads"},
    "run": BASE | FIRST | {"threads", "repeats", "plan"},
    "app": BASE | FIRST | {"repeats", "plan", "run", "ready"},
    "routes": BASE | FIRST | {"repeats", "app", "ready"},
    "server": BASE | FIRST | {"threads", "repeats", "plan", "run", "app", "routes", "ready"},
}

# All of ledger/src is decision code, held to be pure, but for these modules (file or folder of that name).
# A new module that has to await or to tell the time is added here, in sight of a reviewer. Tests may do both.
EDGES = {"lib", "api", "cluster", "directory", "host", "journal", "kept", "nats", "lease", "lookup", "recovery", "remote", "repository",
         "store", "testing", "tests"}
IMPURE = re.compile(r"\b(async|await|tokio|SystemTime|Instant|async_nats|reqwest|getrandom|std::(?:fs|net|env|thread))\b")


def main():
    if "--self-test" in sys.argv[1:]:
        return self_test()
    try:
        direct, outside, untested, turned_on = members()
    except subprocess.CalledProcessError as error:
        print(f"layers: cargo metadata failed:\n{error.stderr}", file=sys.stderr)
        return 1
    sources = {path.relative_to(ROOT): path.read_text() for path in decision_files(ROOT / "ledger" / "src")}
    gateway = ROOT / "gateway" / "src"
    rooms = {path.relative_to(gateway): path.read_text() for path in sorted(gateway.rglob("*.rs"))}
    problems = wrong_directions(direct) + wrong_owners(outside) + wrong_names(direct, untested) + test_code(turned_on) + wrong_rooms(rooms) + impurities(sources)
    every = {str(path.relative_to(ROOT)): path.read_text() for member in ALLOWED for path in sorted(folder(member).rglob("*.rs"))}
    problems += crate_map.named_absent(every) + sizes.too_long(every) + words.twice(every)
    problems += crate_map.wrong_rows((ROOT / "ARCHITECTURE.md").read_text(), {name for name in ALLOWED if not is_example(name)}, every)
    if Path("ledger/src/decide.rs") not in sources:
        problems.append("ledger/src/decide.rs is not there: the check of decision code would prove nothing")
    for problem in problems:
        print(f"layers: {problem}", file=sys.stderr)
    if not problems:
        print(f"layers: {len(direct)} members, {len(ROOMS)} rooms, {len(sources)} files of decision code, all as stated")
    return 1 if problems else 0


def members():
    """Per member: the members and the outside crates that it names, of any kind and for any target, and the
    outside crates and the features of members that it names for more than its tests."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--no-deps"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    packages = json.loads(done.stdout)["packages"]
    # Without --no-deps cargo would fetch the world; names are enough, as members are found by path.
    names = {package["name"]: short(package["name"]) for package in packages}
    direct, outside, untested, turned_on = {}, {}, {}, {}
    for package in packages:
        named = {dependency["name"] for dependency in package["dependencies"]}
        # A member's own name as a dev-dependency of itself is no direction.
        direct[short(package["name"])] = {names[name] for name in named if name in names} - {short(package["name"])}
        outside[short(package["name"])] = {name for name in named if name not in names}
        product = [dependency for dependency in package["dependencies"] if dependency["kind"] != "dev"]
        untested[short(package["name"])] = {dependency["name"] for dependency in product} - set(names)
        features = {(names.get(dependency["name"]), feature) for dependency in product for feature in dependency["features"]}
        turned_on[short(package["name"])] = features
    return direct, outside, untested, turned_on


def short(name):
    return name.removeprefix("seatbelt-")


def is_example(member):
    return member.startswith("example-")


def folder(member):
    return ROOT / member.replace("example-", "examples/")


def wrong_directions(direct):
    problems = [f"member {name} is not known here: say what it may depend on" for name in direct if name not in ALLOWED]
    problems += [f"member {name} is gone: its rule proves nothing" for name in ALLOWED if name not in direct]
    for member in sorted(set(direct) & set(ALLOWED)):
        for reached, path in sorted(reach(direct, member).items()):
            if reached not in ALLOWED[member]:
                problems.append(f"{member} may not depend on {reached}, but does: {' -> '.join(path)}")
    return problems


def reach(direct, start):
    """Every member reached from `start`, with the way there."""
    found, queue = {}, [[start]]
    while queue:
        path = queue.pop(0)
        for following in sorted(direct.get(path[-1], ())):
            if following not in found:
                found[following] = path + [following]
                queue.append(path + [following])
    return found


def wrong_owners(outside):
    impure = [
        f"{member} is pure and may not name {crate}"
        for member, crates in sorted(PURE.items())
        for crate in sorted(crates & outside.get(member, set()))
    ]
    return impure + [
        f"{member} names {crate}, which is for {', '.join(sorted(owners))} alone"
        for crate, owners in sorted(OWNED.items())
        for member, named in sorted(outside.items())
        if crate in named and member not in owners
    ]


def wrong_names(direct, untested):
    crates = [
        f"{member} names {crate}, which is for {', '.join(sorted(owners))} and for tests alone"
        for crate, owners in sorted(OWNED_BUT_IN_TESTS.items())
        for member, named in sorted(untested.items())
        if crate in named and member not in owners
    ]
    return crates + [
        f"{member} names {named}, which is for {', '.join(sorted(users))} alone"
        for named, users in sorted(NAMED_BY.items())
        for member, reached in sorted(direct.items())
        if named in reached and member not in users
    ]


def test_code(turned_on):
    """Test code is a feature of its crate, which nothing of the product turns on."""
    return [
        f"{member} turns on the test code of {of} outside its own tests"
        for member, features in sorted(turned_on.items())
        for of, feature in sorted(features, key=str)
        if feature == "testing" and of and member != "tests"
    ]


def wrong_rooms(sources):
    """What each file of the gateway looks into besides its own room, against ROOMS."""
    problems, found = [], set()
    for path, text in sorted(sources.items()):
        room = path.with_suffix("").parts[0]
        if room == "lib":
            continue  # names the rooms, and shows what the crate shows
        found.add(room)
        code = re.sub(r"//.*", "", text)
        if room not in ROOMS:
            problems.append(f"gateway/src/{path} is in no room that is known here: say what it may look into")
            continue
        # each way has one name: what leaves a room begins with `crate`, so that it is seen here
        if re.search(r"super::super\b", code) or (len(path.parts) == 1 and re.search(r"^(pub.* )?use super\b", code, re.M)):
            problems.append(f"gateway/src/{path} leaves its room through `super`: begin with `crate`")
        for reached in sorted(looked_into(code) - {room} - ROOMS[room]):
            problems.append(f"gateway/src/{path} may not look into {reached}")
    problems += [f"room {room} of the gateway is gone: its rule proves nothing" for room in sorted(set(ROOMS) - found)]
    return problems


def looked_into(code):
    """The first name of every path that begins with `crate`, in a `use` of any depth or elsewhere."""
    names = set()
    for match in re.finditer(r"\bcrate::\s*(\w+|\{)", code):
        if match[1] != "{":
            names.add(match[1])
            continue
        depth, item = 0, ""
        for c in code[match.end() - 1:]:
            depth += (c == "{") - (c == "}")
            if c in ",{}" and depth <= 1:
                names.add(item.strip().split("::")[0])
                item = ""
            elif depth == 1:
                item += c
            elif c == "{" and depth == 2:
                names.add(item.strip().split("::")[0])
                item = "\0"  # the rest of an item whose first name is known
            if depth == 0:
                break
    return {name for name in names if name and "\0" not in name}


def circle(rooms):
    """A way from a room back to itself, if there is one."""
    for room in sorted(rooms):
        found = reach(rooms, room)
        if room in found:
            return found[room]
    return None


def decision_files(folder):
    """Files no part of whose path below `folder` is an edge: `writer/queue.rs` is none, `decide/reserve.rs` is."""
    files = sorted(folder.rglob("*.rs"))
    return [path for path in files if EDGES.isdisjoint(path.relative_to(folder).with_suffix("").parts)]


def impurities(sources):
    problems = []
    for path, text in sorted(sources.items()):
        for number, line in enumerate(text.splitlines(), 1):
            # Comments may speak of clocks; only code is held to it.
            found = IMPURE.search(re.sub(r"//.*", "", line))
            if found:
                problems.append(f"{path}:{number} is decision code and names `{found[1]}` (if the module is no decision code: EDGES)")
                break
    return problems


def self_test():
    sound = {name: set(allowed) for name, allowed in ALLOWED.items()}

    def noticed(what, problems, expected):
        if not any(expected in problem for problem in problems):
            raise SystemExit(f"layers: self-test: {what} was not noticed (found {problems})")

    if wrong_directions(sound) or wrong_owners({"gateway": {"axum"}, "neuron": {"ort"}}):
        raise SystemExit("layers: self-test: the stated directions are not accepted")
    for member, forbidden in [
        ("schemas", "ledger"), ("schemas", "bus"), ("bus", "ledger"), ("dialects", "bus"), ("dialects", "ledger"), ("ledger", "dialects"), ("ledger", "gateway"), ("neuron", "ledger"),
        ("gateway", "projector"), ("gateway", "neuron"), ("projector", "gateway"),
        ("projector", "neuron"), ("neuron", "gateway"), ("neuron", "projector"), ("cli", "tests"),
    ]:
        broken = {**sound, member: sound[member] | {forbidden}}
        noticed(f"{member} on {forbidden}", wrong_directions(broken), f"{member} may not depend on {forbidden}")
    roundabout = {**sound, "gateway": {"schemas", "ledger", "helper"}, "helper": {"neuron"}}
    noticed("a way round", wrong_directions(roundabout), "gateway -> helper -> neuron")
    noticed("a new member", wrong_directions(roundabout), "helper is not known")
    noticed("a lost member", wrong_directions({"schemas": set()}), "ledger is gone")
    if wrong_names({"ledger": {"bus"}, "gateway": {"ledger"}}, {"bus": {"async-nats"}, "ledger": {"serde"}}):
        raise SystemExit("layers: self-test: the stated users of the bus are not accepted")
    noticed("a second client of NATS", wrong_names({}, {"ledger": {"async-nats"}}), "ledger names async-nats")
    noticed("a gateway on the bus", wrong_names({"gateway": {"bus"}}, {}), "gateway names bus")
    if test_code({"tests": {("ledger", "testing")}, "cli": {("ledger", "other"), (None, "testing")}}):
        raise SystemExit("layers: self-test: the stated features are not accepted")
    noticed("test code in the product", test_code({"cli": {("ledger", "testing")}}), "cli turns on the test code of ledger")
    noticed("an impure crate", wrong_owners({"dialects": {"serde", "tokio"}}), "dialects is pure and may not name tokio")
    noticed("a foreign crate", wrong_owners({"gateway": {"ort"}}), "gateway names ort")
    empty = {Path(f"{room}.rs"): "" for room in ROOMS}
    if wrong_rooms(empty) or circle(ROOMS):
        raise SystemExit(f"layers: self-test: the stated rooms are not accepted, or go round: {circle(ROOMS)}")
    noticed("a circle", [str(circle({"plan": {"run"}, "run": {"gate"}, "gate": {"plan"}}))], "['gate', 'plan', 'run', 'gate']")
    for path, line, reached in [
        ("run.rs", "use crate::app::App;", "app"),
        ("run/whole.rs", "use crate::{\n    config::{A, B},\n    routes::{self, key::{C, D}},\n};", "routes"),
        ("plan.rs", "fn f() { crate::run::start() }", "run"),
        ("gate.rs", "use crate::{error::ApiError, upstream};", "upstream"),
        ("error/table.rs", "use crate::gate::Gate;", "gate"),
        ("receive.rs", "use crate::Clock;", "Clock"),
    ]:
        broken = {**empty, Path(path): line}
        noticed(line, wrong_rooms(broken), f"{path} may not look into {reached}")
    sound_use = "use crate::{\n    config::{app, B},\n    error::{ApiError, run::X},\n};\nuse super::Y;\nmod tests {\n    use super::*;\n}"
    if wrong_rooms({**empty, Path("run/whole.rs"): "// as crate::app says\n" + sound_use}):
        raise SystemExit("layers: self-test: a room that keeps to its rule is not accepted")
    noticed("a way out through super", wrong_rooms({**empty, Path("run/whole.rs"): "use super::super::app::App;"}), "through `super`")
    noticed("the root through super", wrong_rooms({**empty, Path("run.rs"): "use super::app::App;"}), "through `super`")
    noticed("a new room", wrong_rooms({**empty, Path("cellar/wine.rs"): ""}), "cellar/wine.rs is in no room")
    noticed("a lost room", wrong_rooms({Path("run.rs"): ""}), "room plan of the gateway is gone")
    for line in ["pub async fn decide() {}", "use tokio::time;", "let now = SystemTime::now();",
                 "let t = std::time::Instant::now();", "use async_nats::Client;"]:
        noticed(line, impurities({Path("decide.rs"): line}), "decide.rs:1")
    if impurities({Path("decide.rs"): "// no async here\nfn instantly() {}\nlet asynchronous = 1;"}):
        raise SystemExit("layers: self-test: words in comments or longer names are taken for impure code")
    crate_map.self_test(noticed)
    sizes.self_test(noticed)
    words.self_test(noticed)
    print("layers: self-test: every broken rule is noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
