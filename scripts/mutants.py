#!/usr/bin/env python3
"""Proves that the simulations find what they are for: takes one cure of scripts/mutants.toml out after the
other, and the simulation that it names must then fail within so many runs.

The edits are made on a copy of the tracked files. What is built lies in one target folder of their own, so that
a mutant costs one crate and one test. A mutant that cannot be applied or built is an error, never a find.

    scripts/mutants.py [NAME ...]     all of them, or these
    scripts/mutants.py --check        only that each can be applied
    scripts/mutants.py --list         what there is
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".toml")
PROCESSES = ["-p", "seatbelt-projector", "--test", "processes"]
SIMULATIONS = {
    "processes": (PROCESSES, "no_misfortune_breaks_a_promise"),
    "shrinks": (PROCESSES, "nobody_goes_on_from_a_journal_that_shrank"),
    "writers": (["-p", "seatbelt-ledger", "--test", "simulation"], "no_fault_breaks_a_promise"),
}
BUILD_SECONDS_MAX = 1800
RUN_SECONDS_MAX = 3600
FOUND = re.compile(r"^seed (\d+): (.*)$", re.MULTILINE)


class Unusable(Exception):
    """The mutant says nothing about the simulation."""


def main():
    mutants = tomllib.loads(TABLE.read_text())["mutant"]
    asked = arguments().parse_args()
    if asked.list:
        for mutant in mutants:
            print(f"{mutant['name']:44} {mutant['simulation']:10} {mutant['why']}")
        return 0
    if asked.check:
        return check(mutants)
    wanted = set(asked.name) or {mutant["name"] for mutant in mutants}
    if unknown := wanted - {mutant["name"] for mutant in mutants}:
        sys.exit(f"mutants: {', '.join(sorted(unknown))}: no such mutant (see --list)")
    found = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        copy_tracked(copy)
        for mutant in mutants:
            if mutant["name"] in wanted:
                found += report(copy, mutant)
    print(f"mutants: {found} of {len(wanted)} found")
    return 0 if found == len(wanted) else 1


def arguments():
    parser = argparse.ArgumentParser(
        prog="mutants.py",
        description=__doc__.partition("\n\n    scripts/")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 if each is found, 1 if one is not or cannot be used. All of them take some "
        "ten minutes on a quiet machine with its dependencies built.",
    )
    parser.add_argument("name", nargs="*", help="a mutant by its name; all of them where none is named")
    parser.add_argument("--check", action="store_true", help="only whether each can be applied")
    parser.add_argument("--list", action="store_true", help="name each, what must find it, and why")
    return parser


def check(mutants):
    broken = 0
    for mutant in mutants:
        try:
            mutated(ROOT, mutant)
        except Unusable as reason:
            broken += 1
            print(f"{mutant['name']}: {reason}")
    print(f"mutants: {len(mutants) - broken} of {len(mutants)} can be applied")
    return 1 if broken else 0


def report(copy, mutant):
    begun = time.monotonic()
    try:
        found = attempt(copy, mutant)
        told = f"seed {found[0]}: {found[1][:90]}" if found else "NOT FOUND"
    except Unusable as reason:
        found, told = None, f"UNUSABLE: {reason}"
    print(f"{mutant['name']:44} {time.monotonic() - begun:6.0f} s  {told}", flush=True)
    return found is not None


def copy_tracked(copy):
    """Tracked files as they stand, so that a mutant can be tried on what is not committed yet."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, copy / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())


def mutated(root, mutant):
    """The texts of the files that a mutant changes, each with all of its edits."""
    texts = {}
    for edit in mutant["edit"]:
        path = root / edit["file"]
        text = texts.get(path) or path.read_text()
        if (times := text.count(edit["was"])) != 1:
            raise Unusable(f"{edit['file']} has {edit['was'].strip()[:60]!r} {times} times")
        texts[path] = text.replace(edit["was"], edit["becomes"])
    return texts


def attempt(copy, mutant):
    """The first seed that finds it and what that says, or None."""
    target, test = SIMULATIONS[mutant["simulation"]]
    texts = mutated(copy, mutant)
    before = {path: path.read_text() for path in texts}
    # a folder of their own: a mutant must never be taken for what is tested elsewhere
    folder = os.environ.get("CARGO_TARGET_DIR", "target")
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(ROOT / folder / "mutants"),
        "SEATBELT_SIM_RUNS": str(mutant["runs"]),
        "RUST_BACKTRACE": "0",
    }
    command = ["cargo", "test", "--locked", "-q", *target]
    try:
        for path, text in texts.items():
            path.write_text(text)
        run(copy, environment, [*command, "--no-run"], BUILD_SECONDS_MAX, must_hold=True)
        told = run(copy, environment, [*command, test], RUN_SECONDS_MAX, must_hold=False)
    finally:
        for path, text in before.items():
            path.write_text(text)
    if told is None:
        return None
    if not (found := FOUND.search(told)):
        raise Unusable(f"it fails without a seed: {told.strip()[-200:]}")
    return found.groups()


def run(copy, environment, command, seconds_max, must_hold):
    """What it says where it fails; None where it holds."""
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds_max
        )
    except subprocess.TimeoutExpired as error:
        raise Unusable(f"it ran for more than {seconds_max} s") from error
    if done.returncode and must_hold:
        raise Unusable(f"it does not build: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr if done.returncode else None


if __name__ == "__main__":
    sys.exit(main())
