#!/usr/bin/env python3
"""Proves that docs/promises.md names tests that there are, and says of each promise what it does not cover.

A file in backticks must exist and hold at least one test, `file.rs::name` must be a test of that file, and a
folder must hold a file with one. A name without a folder is looked for beside the file that was named before
it. Every promise must name a test, and has a paragraph of the same number under "What the rows do not cover".
`--self-test` breaks each rule on purpose and fails if that is not noticed.
"""

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/promises.md")
ROW = re.compile(r"^\| \*\*(\d+)\. ([^*]+)\*\*.*\|(.*)\|$", re.MULTILINE)
REST = re.compile(r"^(\d+)\. \*\*([^*]+)\*\*: ", re.MULTILINE)
NAMED = re.compile(r"`((?:[\w-]+/)*[\w-]+(?:\.rs|/))(?:::(\w+))?`")
TEST = r"#\[(?:\w+::)*test\b|proptest! \{|^const \w+_CASES|harness"
ONE = r"(?:#\[[^\n]*\]\s*)*#\[(?:\w+::)*test\b[^\n]*\](?:\s*(?:#\[[^\n]*\]|//[^\n]*))*\s*(?:pub )?(?:async )?fn {name}\b"


def main():
    if "--self-test" in sys.argv:
        return self_test()
    problems = wrong(ROOT, (ROOT / PAGE).read_text())
    for problem in problems:
        print(f"promises: {problem}")
    if not problems:
        print("promises: every test that is named is there")
    return 1 if problems else 0


def wrong(root, text):
    """What is not true of the page."""
    problems, rows = [], ROW.findall(text)
    if not rows:
        return ["no row of a promise was found"]
    rests = dict(REST.findall(text))
    for number, name, tests in rows:
        if rests.get(number) != name.strip():
            problems.append(f"promise {number} ({name}) has no paragraph that says what it does not cover")
        if not NAMED.search(tests):
            problems.append(f"promise {number} ({name}) names no test")
    for number in rests.keys() - {number for number, _, _ in rows}:
        problems.append(f"what is not covered of promise {number} is told, but there is no such promise")
    return problems + missing(root, text)


def missing(root, text):
    """The files and tests that are named and not there."""
    problems, before = [], PAGE
    for path, test in NAMED.findall(text):
        places = [root / path, root / before.parent / path, root / before.with_suffix("") / path]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            problems.append(f"{path} is named and is not there")
            continue
        before = found.relative_to(root) if found.is_file() else before
        holds = [found] if found.is_file() else sorted(found.rglob("*.rs"))
        sources = [source.read_text() for source in holds]
        if not any(re.search(TEST, source, re.MULTILINE) for source in sources + beside(found)):
            problems.append(f"{path} is named and holds no test")
        elif test and not any(is_test(source, test) for source in sources):
            problems.append(f"{path} has no test {test}")
    return problems


def beside(found):
    """The tests of a module may stand in a folder of its name."""
    inside = found.with_suffix("")
    return [source.read_text() for source in inside.rglob("*.rs")] if inside.is_dir() else []


def is_test(source, name):
    in_macro = re.search(rf"(?:proptest! \{{|simulate!|check!)", source) and re.search(rf"\bfn {name}\b", source)
    return bool(in_macro or re.search(ONE.replace("{name}", name), source))


def self_test():
    good = (
        "| **1. Cap**: it holds | one writer | `a/tests.rs`, `b.rs::it_holds`, `c/` |\n\n"
        "1. **Cap**: a rest.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path, text in {
            "a/tests.rs": "#[test]\nfn one() {}",
            "a/b.rs": "#[tokio::test(flavor = \"multi_thread\")]\n// as said\nasync fn it_holds() {}\nfn helper() {}",
            "c/d/e.rs": "proptest! {\n}",
            "f.rs": "fn no_test() {}",
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        if problems := wrong(root, good):
            raise SystemExit(f"promises: self-test: a sound page is not accepted: {problems}")
        for broken, said in [
            (good.replace("a/tests.rs", "a/gone.rs"), "a/gone.rs is named and is not there"),
            (good.replace("it_holds", "it_held"), "b.rs has no test it_held"),
            (good.replace("it_holds", "helper"), "b.rs has no test helper"),
            (good.replace("c/", "f.rs"), "f.rs is named and holds no test"),
            (good.replace("1. **Cap**: a", "2. **Cap**: a"), "promise 1 (Cap) has no paragraph"),
            (good.replace("1. **Cap**: a", "2. **Cap**: a"), "there is no such promise"),
            (good.replace("`", ""), "promise 1 (Cap) names no test"),
            ("", "no row"),
        ]:
            if not any(said in problem for problem in wrong(root, broken)):
                raise SystemExit(f"promises: self-test: not noticed: {said}")
    print("promises: self-test: every broken rule is noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
