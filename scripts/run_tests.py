#!/usr/bin/env python3
"""Builds the binaries, runs every test of the workspace in the dev profile and the quick clients, and counts.

The last line is `N passed, N failed`, alone. Exit code 0 only if cargo says so, nothing failed and
something ran. The output of the tests passes through as it comes.
"""

import os
import re
import subprocess
import sys

RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;")
# A test binary that is killed or aborts prints no result line; cargo names it once instead.
LOST = re.compile(r"^error: test failed, to rerun pass|process didn't exit successfully")
CLIENTS = re.compile(r"^(\d+) passed, (\d+) failed$")


def main():
    # The end-to-end tests start the binary, which `cargo test` alone would not build for them.
    if subprocess.run(["cargo", "build", "--workspace", "--bins", "--locked"]).returncode != 0:
        print("0 passed, 1 failed")
        return 1
    command = ["cargo", "test", "--workspace", "--locked", "--no-fail-fast"] + sys.argv[1:]
    passed, failed, lost = 0, 0, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as run:
        for line in run.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if found := RESULT.match(line):
                passed += int(found[1])
                failed += int(found[2])
            elif LOST.search(line):
                lost += 1
    broke = run.returncode != 0 or passed == 0
    if broke and failed == 0:
        # Something did not build, crashed, or nothing ran: never call that "0 failed".
        failed = max(lost, 1)
    if not sys.argv[1:]:
        driven, stumbled = clients()
        passed, failed = passed + driven, failed + stumbled
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if broke or failed else 0


def clients():
    """The official SDKs for Python, driven as they are: how many steps passed and failed."""
    command = [sys.executable, "tests/clients/run.py", "--quick"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as run:
        counted = None
        for line in run.stdout:
            counted = CLIENTS.match(line) or counted
            # the last line of all is the one that counts
            sys.stdout.write(line if not CLIENTS.match(line) else f"clients: {line}")
            sys.stdout.flush()
    return (int(counted[1]), int(counted[2])) if counted else (0, 1)


if __name__ == "__main__":
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    sys.exit(main())
