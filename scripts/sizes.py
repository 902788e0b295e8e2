"""How long files and functions may be, for scripts/check_layers.py."""

import re

import crate_map

# What is longer has two stories in it. Files are counted outside tests, functions everywhere.
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# The head of a function as rustfmt writes it; it ends with a brace at the same indentation.
HEAD = re.compile(r'^( *)(?:pub(?:\([^)]*\))? )?(?:const |async |unsafe |extern "C" )*fn (\w+)')


def too_long(sources):
    """Files of the product and functions anywhere that are too long; `sources` are all files by path."""
    problems = []
    for path, text in sorted(sources.items()):
        lines = text.splitlines()
        is_test = crate_map.is_test(path) or crate_map.only_for_tests(path, sources)
        if len(lines) > FILE_LINES_MAX and not is_test:
            problems.append(f"{path} has {len(lines)} lines, {FILE_LINES_MAX} are the most: which stories are in it?")
        problems += [
            f"{path}:{begin + 1} `{name}` has {length} lines, {FUNCTION_LINES_MAX} are the most"
            for begin, name, length in functions(lines)
            if length > FUNCTION_LINES_MAX
        ]
    return problems


def functions(lines):
    """Where each function with a body begins, its name, and how many lines it has."""
    for begin, line in enumerate(lines):
        head = HEAD.match(line)
        if not head:
            continue
        for end in range(begin, len(lines)):
            own = lines[end].startswith(head[1]) and not lines[end].startswith(head[1] + " ")
            if own and lines[end].endswith(";"):
                break  # of a trait, without a body
            if lines[end] == head[1] + "}" or (end == begin and line.endswith("}")):
                yield begin, head[2], end - begin + 1
                break


def self_test(noticed):
    def function(lines, indent=""):
        return f"{indent}pub(crate) async fn f(\n{indent}    a: u8,\n{indent}) -> u8 {{\n" + f"{indent}    1;\n" * (lines - 4) + indent + "}\n"

    sound = {
        "ledger/src/a.rs": "trait T {\n    fn g(\n        a: u8,\n    ) -> u8;\n" + function(70, "    ") + "}\n" + "\n" * 500,
        "ledger/src/a/tests.rs": function(70) + "\n" * 600,
        "ledger/tests/b.rs": "\n" * 601,
    }
    if found := too_long(sound):
        raise SystemExit(f"layers: self-test: what is short enough, or a test, is not accepted: {found}")
    noticed("a long file", too_long({"ledger/src/a.rs": "\n" * 601}), "a.rs has 601 lines")
    noticed("a long test", too_long({"ledger/tests/b.rs": function(71)}), "b.rs:1 `f` has 71 lines")
    noticed("a long function", too_long({"ledger/src/a.rs": "\n" + function(71)}), "a.rs:2 `f` has 71 lines")
    noticed("a long method", too_long({"ledger/src/a.rs": "impl A {\n" + function(71, "    ") + "}\n"}), "`f` has 71 lines")
