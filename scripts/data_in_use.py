#!/usr/bin/env python3
"""Exits 1, naming the process, if a running seatbelt holds the lock of the data folder given."""

import fcntl
import pathlib
import sys

path = pathlib.Path(sys.argv[1]) / "lock"
if path.exists():
    with open(path, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{sys.argv[1]} is in use by process {lock.read().strip()}: stop it first", file=sys.stderr)
            sys.exit(1)
