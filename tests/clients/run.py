#!/usr/bin/env python3
"""Drives clients, as they are installed, against `seatbelt up` with two mock providers and the tiny neuron.

Each client has a driver (python/, node/) that runs one step at a time: a text, a stream, a tool's round trip and so on,
once for every model that its API reaches. After each step the gateway must have had as many requests as the step
needs, none more, and have charged what the mock told; a spent balance is asked for once, a spent window is waited for,
a stream that is left is settled. At the end of a client nothing is held and `seatbelt audit verify` passes.
The last line is `N passed, N failed`.
"""

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import agents
import mock
from stack import AGENTS_WINDOW, PATIENCE, ROOT, WINDOW, Stack, StackError, environment

HERE = Path(__file__).resolve().parent
DEPS = ROOT / ".deps"
BUILT = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")

# The first is who is asked for a spent balance and window.
MODELS = {
    "chat": ["gpt-mock", "claude-mock", "tiny"],
    "messages": ["claude-mock", "generic-mock", "tiny"],
    "responses": ["gpt-mock", "generic-mock", "claude-mock", "tiny"],
    "completions": ["gpt-mock", "tiny"],
    "embeddings": ["embed-mock"],
    "count": ["claude-mock", "generic-mock", "tiny"],
    "models": ["gpt-mock", "claude-mock", "tiny"],
}
# What the tiny model says is nobody's to foresee, and no call of a tool is among it.
TINY = ("text", "stream", "cancelled", "count", "one")
SAYS, USES = "Say something.", "Use the tool."
ANSWERED = "The tool said: 21 degrees in Paris"
# Of each step: what is said, what it must come to (None: the model's own name), how many requests it needs.
STEPS = {
    "text": (SAYS, mock.TEXT, 1),
    "stream": (SAYS, mock.TEXT, 1),
    "helper": (SAYS, mock.TEXT, 1),
    "tools": (USES, ANSWERED, 2),
    "runner": (USES, ANSWERED, 2),
    "streamed_tools": (USES, "21 degrees in Paris", 1),
    "parse": ("Report the weather.", "Paris 21", 1),
    "thinking": ("Think, then use the tool.", ANSWERED, 2),
    "image": (SAYS, mock.TEXT, 1),
    "cancelled": ("Speak slowly.", "All", 1),
    "vector": (SAYS, "[0.5, -0.25, 1.0]", 1),
    "count": (SAYS, "True", 1),
    "one": (SAYS, None, 0),
}
FREE = ("count", "one")
# These leave it to their caller to wait for a window.
DOES_NOT_WAIT = (("litellm", "messages"), ("litellm", "responses"))
# Sends what failed six times again, with growing pauses, whatever the answer says of that.
FAILS_FOR_LONG = ("langchain-node",)
# The AI SDK of Vercel sends whatever is answered with 429 or 500 twice again, whatever the answer says of that.
ASKS_AGAIN = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seatbelt", type=Path, default=BUILT / "debug" / "seatbelt", help="the program")
    parser.add_argument("--only", action="append", metavar="CLIENT", help="this client alone; may be given again")
    parser.add_argument("--quick", action="store_true", help="what `make test` runs: the official SDKs for Python")
    parser.add_argument("--step", help="this step alone")
    arguments = parser.parse_args()
    known = {**drivers(), **agents.AGENTS}
    chosen = arguments.only or ([name for name in known if name in QUICK] if arguments.quick else list(known))
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"no client {', '.join(unknown)}: known are {', '.join(known)}")
    if not arguments.seatbelt.is_file():
        parser.error(f"no program {arguments.seatbelt}: run `cargo build -p seatbelt-cli` first")
    run = Run(arguments.seatbelt.resolve(), chosen)
    try:
        for name in chosen:
            run.client(name, known[name], arguments.step)
    finally:
        run.stop()
    print(f"{run.passed} passed, {len(run.failed)} failed", flush=True)
    return 1 if run.failed or not run.passed else 0


QUICK = ("openai-python", "anthropic-python")


def drivers():
    """Every client that is driven step by step: its command, without the gateway's address."""
    quick, python, node = (DEPS / part for part in ("venv/bin/python", "clients/venv/bin/python", "clients/node"))
    own_node = node / "node_modules" / ".bin" / "node"
    # a script finds its packages beside itself
    for script in (HERE / "node").glob("*.mjs") if node.is_dir() else ():
        shutil.copy(script, node)
    scripts = {
        "openai-python": [quick, "python/openai_sdk.py"],
        "anthropic-python": [quick, "python/anthropic_sdk.py"],
        "langchain-python": [python, "python/langchain_models.py"],
        "litellm": [python, "python/litellm_calls.py"],
        "pydantic-ai": [python, "python/pydantic_agents.py"],
        "openai-node": [own_node, "openai.mjs"],
        "anthropic-node": [own_node, "anthropic.mjs"],
        "vercel-openai": [own_node, "vercel.mjs", "openai"],
        "vercel-compatible": [own_node, "vercel.mjs", "compatible"],
        "vercel-anthropic": [own_node, "vercel.mjs", "anthropic"],
        "langchain-node": [own_node, "langchain.mjs"],
    }
    folders = {quick: HERE, python: HERE, own_node: node}
    return {name: [str(program), str(folders[program] / script), *more] for name, (program, script, *more) in scripts.items()}


class Run:
    """One stack, and what came of every step."""

    def __init__(self, program, clients):
        self.openai, self.anthropic = mock.openai(), mock.anthropic()
        self.passed, self.failed = 0, []
        windows = {name: AGENTS_WINDOW if name in agents.AGENTS else WINDOW for name in clients}
        self.stack = Stack(program, self.openai, self.anthropic, windows)

    def stop(self):
        self.openai.stop()
        self.anthropic.stop()
        self.stack.stop()

    def client(self, name, how, only):
        if name in agents.AGENTS:
            for step, check in agents.checks(self.stack, name, how, (self.openai, self.anthropic)):
                if only in (None, step):
                    self.check(name, step, check)
        else:
            self.driven(name, how, only)
        self.check(name, "nothing is held", lambda: self.at_rest(name))

    def driven(self, name, command, only):
        try:
            driver = Driver([command[0], command[1], self.stack.gateway, *command[2:]])
        except StackError as error:
            return self.note(name, "start", error)
        versions = ", ".join(f"{package} {version}" for package, version in driver.versions.items())
        print(f"{name}: {versions}", flush=True)
        steps = [step for step in driver.steps if only in (None, step)]
        for step in steps:
            for model in MODELS[step.split(".")[0]]:
                kind = step.split(".")[1]
                if model != "tiny" or kind in TINY:
                    self.check(name, f"{step} {model}", lambda: self.step(driver, name, step, model))
        for step in steps:
            if step.endswith(".text"):
                model = MODELS[step.split(".")[0]][0]
                if name not in FAILS_FOR_LONG:
                    self.check(name, f"{step} where the upstream fails", lambda: self.failure(driver, name, step, model))
                self.check(name, f"{step} on a spent balance", lambda: self.balance(driver, name, step, model))
                self.check(name, f"{step} on a spent window", lambda: self.window(driver, name, step, model))
        driver.stop()

    def check(self, name, what, action):
        begun = time.monotonic()
        try:
            action()
        except (AssertionError, StackError, OSError) as error:
            self.note(name, what, error)
        else:
            self.passed += 1
            print(f"ok    {name}: {what} ({time.monotonic() - begun:.1f} s)", flush=True)

    def note(self, name, what, error):
        self.failed.append((name, what))
        print(f"FAIL  {name}: {what}: {error}", flush=True)

    def step(self, driver, name, step, model):
        """One step, with room for it: what it comes to, how many requests it takes, and what they are charged."""
        api, kind = step.split(".")
        prompt, expected, needs = STEPS[kind]
        key = f"sk-{name}"
        before, counted = self.stack.settled(key), self.stack.counted()
        if kind == "cancelled":
            self.openai.hold(), self.anthropic.hold()
        try:
            told = driver.ask(step=step, key=key, model=model, prompt=prompt)
        finally:
            self.openai.let_go(), self.anthropic.let_go()
        assert "error" not in told, told
        if expected is None:
            assert told["text"] == model, told
        elif model != "tiny" or kind == "count":
            assert told["text"].strip() == expected, told
        charged = self.stack.settled(key).get("tokens", 0) - before.get("tokens", 0)
        more = difference(self.stack.counted(), counted)
        if kind == "runner" and api == "messages":
            # the SDK first asks for a conversation that the provider keeps, and is told that there is none
            more.pop(("/v1/messages", 400), None)
        assert sum(more.values()) == needs, f"the gateway had {more} where {needs} are needed"
        each = 0 if kind in FREE else mock.INPUT + (0 if kind == "vector" else mock.OUTPUT)
        if model == "tiny" and each:
            assert charged > 0, "nothing was charged"
        else:
            assert charged == each * needs, f"{charged} tokens were charged for {needs} requests of {each}"

    def failure(self, driver, name, step, model):
        """What fails after work was begun is charged, and so is not asked for again."""
        key = f"sk-{name}"
        before, counted = self.stack.settled(key)["tokens"], self.stack.counted()
        told = driver.ask(step=step, key=key, model=model, prompt="Please fail with 500.")
        more = difference(self.stack.counted(), counted)
        assert "error" in told, told
        asks = ASKS_AGAIN if name.startswith("vercel-") else 1
        assert list(more.values()) == [asks], f"the gateway had {more} where {asks} were to be expected: {told}"
        assert self.stack.settled(key)["tokens"] > before, "nothing was charged"

    def balance(self, driver, name, step, model):
        """A balance that is spent is final: one request, an error that says so, and nothing charged."""
        key = f"sk-{name}-spent"
        if self.stack.settled(key)["requests"] == 0:
            self.stack.spend_one(key, model)
        counted = self.stack.counted()
        told = driver.ask(step=step, key=key, model=model, prompt=SAYS)
        more = difference(self.stack.counted(), counted)
        assert told.get("status") == 429, told
        asks = ASKS_AGAIN if name.startswith("vercel-") else 1
        assert list(more.values()) == [asks], f"the gateway had {more} where {asks} were to be expected"

    def window(self, driver, name, step, model):
        """A window that is spent is waited for as the gateway says, and then served."""
        key = f"sk-{name}-window"
        while self.stack.settled(key)["requests"]:
            time.sleep(0.1)
        self.stack.spend_one(key, model)
        counted, begun = self.stack.counted(), time.monotonic()
        told = driver.ask(step=step, key=key, model=model, prompt=SAYS)
        took = time.monotonic() - begun
        if (name, step.split(".")[0]) in DOES_NOT_WAIT:
            assert told.get("status") == 429, told
            return
        statuses = {}
        for (_, status), number in difference(self.stack.counted(), counted).items():
            statuses[status] = statuses.get(status, 0) + number
        assert told.get("text", "").strip() == mock.TEXT, told
        assert statuses.get(200) == 1, f"the gateway answered {statuses}"
        assert statuses.get(429, 0) <= 1, f"the gateway answered {statuses}: it was asked again too early"
        assert took < WINDOW + 20, f"it waited for {took:.0f} s where the window has {WINDOW} s"

    def at_rest(self, name):
        for key in (f"sk-{name}", f"sk-{name}-spent", f"sk-{name}-window"):
            self.stack.settled(key)
        self.stack.verify()


class Driver:
    """A client's process, asked for one step at a time."""

    def __init__(self, command):
        try:
            self.process = subprocess.Popen(
                command, env=environment(), text=True, errors="replace",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise StackError(f"{command[0]}: {error}: run `make setup-clients` first") from None
        self.lines, self.complaints = queue.Queue(), []
        threading.Thread(target=self.read, daemon=True).start()
        threading.Thread(target=lambda: self.complaints.extend(self.process.stderr), daemon=True).start()
        head = self.line()
        self.versions, self.steps = head["versions"], head["steps"]

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def line(self):
        """The next line that is JSON; some libraries write others there."""
        while True:
            try:
                line = self.lines.get(timeout=2 * PATIENCE)
            except queue.Empty:
                self.process.kill()
                raise StackError(f"no answer of the driver in {2 * PATIENCE} s") from None
            if line is None:
                raise StackError(f"the driver ended:\n{''.join(self.complaints)[-4000:]}")
            if line.startswith("{"):
                return json.loads(line)

    def ask(self, **what):
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise StackError(f"the driver ended:\n{''.join(self.complaints)[-4000:]}") from None
        return self.line()

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def difference(now, before):
    return {row: number - before.get(row, 0) for row, number in now.items() if number != before.get(row, 0)}


if __name__ == "__main__":
    sys.exit(main())
