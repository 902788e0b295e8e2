#!/usr/bin/env python3
"""Runs cargo-deny: licences, banned crates and sources always; advisories when their database can be had.

cargo-deny is built once into .deps/cargo-deny from its pinned version (without optimization, a minute or
two). The advisory database is a git repository outside the package registries: where it cannot be fetched,
the check says plainly that it was NOT run. A finding fails; not having looked does not, unless --advisories.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.20.2"
TOOL = ROOT / ".deps" / "cargo-deny"
FETCH_SECONDS = 120


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--advisories", action="store_true", help="fail if the advisory database cannot be fetched")
    arguments = parser.parse_args()
    program = installed() or build()
    if program is None:
        return 1
    # The notes on crates present in two versions are many; only what fails is shown.
    check = [program, "--log-level", "error", "--locked", "check", "--hide-inclusion-graph"]
    if subprocess.run(check + ["licenses", "bans", "sources"], cwd=ROOT).returncode != 0:
        return 1
    return advisories(check, arguments.advisories)


def advisories(check, required):
    fetch = [check[0], "fetch", "db"]
    try:
        fetched = subprocess.run(
            fetch, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_SECONDS,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        )
        why = None if fetched.returncode == 0 else last_line(fetched.stderr)
    except subprocess.TimeoutExpired:
        why = f"no answer within {FETCH_SECONDS} s"
    if why is not None:
        print(f"deny: advisories NOT checked: their database could not be fetched ({why})", flush=True)
        return 1 if required else 0
    return subprocess.run(check + ["advisories"], cwd=ROOT).returncode


def installed():
    """The pinned version from .deps/, or the same one from the search path."""
    for program in (str(TOOL / "bin" / "cargo-deny"), "cargo-deny"):
        try:
            done = subprocess.run([program, "--version"], capture_output=True, text=True)
        except OSError:
            continue
        if done.stdout.split() == ["cargo-deny", VERSION]:
            return program
    return None


def build():
    print(f"deny: building cargo-deny {VERSION} into {TOOL.relative_to(ROOT)}", flush=True)
    command = ["cargo", "install", "cargo-deny", "--version", VERSION, "--locked", "--debug", "--quiet"]
    # Its own target folder, and no debug information: neither shares anything with the project's build.
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(TOOL / "target"),
        "CARGO_PROFILE_DEV_DEBUG": "0",
        "CARGO_INCREMENTAL": "0",
    }
    if subprocess.run(command + ["--root", str(TOOL)], cwd=ROOT, env=environment).returncode != 0:
        print("deny: cargo-deny could not be built: see above; `make deny` tries again", file=sys.stderr)
        return None
    subprocess.run(["rm", "-rf", str(TOOL / "target")], check=False)
    return installed()


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


if __name__ == "__main__":
    sys.exit(main())
