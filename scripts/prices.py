#!/usr/bin/env python3
"""Makes the price books in prices/ from the pinned wheel of genai-prices, with `seatbelt prices import`.

The wheel holds its data as Python literals. They are read as text (nothing of the wheel is run) and written as
the JSON that genai-prices publishes, numbers as they stand, so that the command reads the same as from there.
`--check` makes the books anew and fails where one differs. `--wheel FILE` uses a wheel at hand, whose hash must
be the pinned one; else pip fetches it.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOKS = ROOT / "prices"
PINS = ROOT / "scripts" / "prices-requirements.txt"
# The day whose prices are taken: change it together with the pinned wheel.
DAY = "2026-11-26"

# The text models that each provider sells and has not announced to retire within a month, by the names of its API.
MODELS = {
    "openai": [
        "gpt-4.1", "gpt-4.1-mini", "gpt-4o", "gpt-4o-mini", "gpt-5.1", "gpt-5.2", "gpt-5.3-codex", "gpt-5.4",
        "gpt-5.4-mini", "gpt-5.4-nano", "gpt-5.4-pro", "gpt-5.5", "gpt-5.5-pro", "gpt-5.6-luna", "gpt-5.6-sol",
        "gpt-5.6-terra", "gpt-6-astra", "gpt-6-luna", "gpt-6-sol", "gpt-6.1-sol", "gpt-6.1-terra",
    ],
    "anthropic": [
        "claude-fable-5", "claude-fable-5-1", "claude-fable-5-2", "claude-haiku-4-5", "claude-haiku-5-5",
        "claude-mythos-5-2", "claude-opus-4-5", "claude-opus-4-6", "claude-opus-4-7", "claude-opus-4-8",
        "claude-opus-5", "claude-opus-5-5", "claude-sonnet-4-6", "claude-sonnet-5", "claude-sonnet-5-5",
    ],
    "google": [
        "gemini-2.5-flash-lite", "gemini-3.1-flash-lite", "gemini-3.1-pro-preview", "gemini-3.5-flash",
        "gemini-3.5-flash-lite", "gemini-3.6-flash", "gemini-3.7-flash", "gemini-3.8-flash", "gemini-4-argon",
    ],
    "mistral": [
        "codestral-2508", "ministral-3b-2512", "ministral-8b-2512", "ministral-14b-2512", "mistral-large-2512",
        "mistral-large-4", "mistral-medium-3-5", "mistral-small-2603",
    ],
    "deepseek": ["deepseek-flash", "deepseek-v4-flash", "deepseek-v4-pro"],
    "x-ai": ["grok-4.20", "grok-4.3", "grok-4.5", "grok-4.6", "grok-4.7"],
}


class PricesError(Exception):
    """What failed, and what the reader can do about it."""


class Number(str):
    """A number as it is written."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a book is another")
    parser.add_argument("--wheel", type=Path, help="the pinned wheel, where it is at hand")
    parser.add_argument("--json", type=Path, help="only write the list as JSON there")
    parser.add_argument("--seatbelt", type=Path, help="the program; else cargo builds it")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="prices-") as folder:
            wheel = pinned(arguments.wheel) if arguments.wheel else fetched(Path(folder))
            text = as_json(wheel)
            if arguments.json:
                arguments.json.write_text(text)
                return 0
            name = "-".join(wheel.name.split("-")[:2]) + ".json"
            Path(folder, name).write_text(text)
            return books(Path(folder, name), arguments.seatbelt or built(), arguments.check)
    except PricesError as error:
        print(f"prices: {error}", file=sys.stderr)
        return 1


def fetched(folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--require-hashes", "-r", str(PINS), "--dest", str(folder)]
    if subprocess.run(command).returncode != 0:
        raise PricesError(f"pip cannot fetch the wheel of {PINS.name}: give one at hand with --wheel")
    return pinned(next(folder.glob("genai_prices-*.whl")))


def pinned(wheel):
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if f"sha256:{found}" not in PINS.read_text():
        raise PricesError(f"{wheel.name} has the hash {found}, which {PINS.name} does not name")
    return wheel


def as_json(wheel):
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read("genai_prices/data.py").decode())
    for statement in module.body:
        if isinstance(statement, ast.AnnAssign) and statement.target.id == "providers":
            return written(value(statement.value)) + "\n"
    raise PricesError(f"{wheel.name} has no list of providers")


# What says how names are matched and answers are read; no prices.
LEFT_OUT = {"match", "model_match", "provider_match", "extractors", "api_pattern", "pricing_urls"}


def value(node):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List):
        return [value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {value(key): value(item) for key, item in zip(node.keys, node.values)}
    if not isinstance(node, ast.Call):
        raise PricesError(f"line {node.lineno} of the data is not understood")
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    plain = [value(argument) for argument in node.args]
    if name == "Decimal":
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?", plain[0]):
            raise PricesError(f"line {node.lineno} of the data has no number: {plain[0]}")
        return Number(plain[0])
    if name == "date":
        return "{:04}-{:02}-{:02}".format(*plain)
    if name == "time":
        return "{:02}:{:02}:00Z".format(*plain)
    named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg not in LEFT_OUT}
    # None is what is not given
    read = {key: value(item) for key, item in named.items()}
    return {key: item for key, item in read.items() if item is not None}


def written(item):
    if isinstance(item, Number):
        return str(item)
    if isinstance(item, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{written(part)}" for key, part in item.items()) + "}"
    if isinstance(item, list):
        return "[" + ",".join(written(part) for part in item) + "]"
    return json.dumps(item)


def built():
    command = ["cargo", "build", "--quiet", "--locked", "-p", "seatbelt-cli"]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise PricesError("cargo cannot build the program")
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug" / "seatbelt"


def books(source, seatbelt, check):
    BOOKS.mkdir(exist_ok=True)
    other = []
    for provider, models in MODELS.items():
        command = [str(seatbelt), "prices", "import", "--from", str(source), "--provider", provider, "--day", DAY,
                   "--without-limits"]
        for model in models:
            command += ["--model", model]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if made.returncode != 0:
            print(made.stderr.decode(), file=sys.stderr)
            raise PricesError(f"the book of {provider} cannot be made: each of its models must be in the list")
        book = BOOKS / f"{provider}.toml"
        if check:
            if not book.exists() or book.read_bytes() != made.stdout:
                other.append(book.name)
        else:
            book.write_bytes(made.stdout)
    if other:
        raise PricesError(f"not what the command makes of the pinned wheel: {', '.join(other)}; run scripts/prices.py")
    print(f"prices: {sum(map(len, MODELS.values()))} models in {len(MODELS)} books")
    return 0


if __name__ == "__main__":
    sys.exit(main())
