"""Coding agents that run without a terminal, each in a home of its own: a task that needs a tool, a spent balance, a
spent window, and an end in the middle of a stream."""

import json
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import mock
from stack import PATIENCE, ROOT, StackError, environment

NODE = ROOT / ".deps" / "clients" / "node" / "node_modules"


class Agent:
    """How one is started: `write` puts its settings into a home, `command` is what runs there, `asks` says how often it
    asks a balance that is spent; None where it is not tried, for another does it in the same way."""

    def __init__(self, command, write, model, asks=1, **variables):
        self.command, self.write, self.model, self.asks, self.variables = command, write, model, asks, variables

    def start(self, gateway, key, prompt, home):
        self.write(home, gateway)
        more = {name: value.format(gateway=gateway, key=key, home=home) for name, value in self.variables.items()}
        path = f"{NODE / '.bin'}:/usr/bin:/bin"
        try:
            return subprocess.Popen(
                [*map(str, self.command), prompt], cwd=home / "work", text=True, errors="replace",
                env=environment(HOME=str(home), **{**more, "PATH": path}),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise StackError(f"{self.command[0]}: {error}: run `make setup-clients` first") from None


def codex(model):
    command = [NODE / ".bin" / "codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    # tools under a common name have no counterpart in chat completions
    command += ["--disable", "multi_agent"] if model == "generic-mock" else []
    return Agent(
        command, lambda home, gateway: codex_settings(home, gateway, model), model,
        CODEX_HOME="{home}", SEATBELT_KEY="{key}",
    )


def codex_settings(home, gateway, model):
    (home / "config.toml").write_text(f"""
model = "{model}"
model_provider = "seatbelt"
web_search = "disabled"

[model_providers.seatbelt]
name = "Seatbelt"
base_url = "{gateway}/v1"
env_key = "SEATBELT_KEY"
wire_api = "responses"
""")


def opencode(provider, package, model):
    def write(home, gateway):
        options = {"baseURL": f"{gateway}/v1", "apiKey": "{env:SEATBELT_KEY}"}
        settings = {
            "autoupdate": False, "share": "disabled", "permission": {"bash": "allow"}, "enabled_providers": [provider],
            "model": f"{provider}/{model}",
            # or else each session asks for a title besides
            "agent": {"title": {"disable": True}},
            "provider": {provider: {"npm": package, "name": provider, "options": options, "models": {model: {"name": model}}}},
        }
        (home / "work" / "opencode.json").write_text(json.dumps(settings))

    return write


OPENCODE = [NODE / "opencode-linux-x64-baseline" / "bin" / "opencode", "run"]
# It asks nobody for a list of models, a newer version, or a language server.
OPENCODE_ALONE = {
    "SEATBELT_KEY": "{key}", "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1", "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
}
CLAUDE = NODE / "@anthropic-ai" / "claude-code-linux-x64" / "claude"
CLAUDE_ALONE = {
    "ANTHROPIC_BASE_URL": "{gateway}", "ANTHROPIC_API_KEY": "{key}", "CLAUDE_CONFIG_DIR": "{home}/settings",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
    # or else it asks before each tool where root runs it
    "IS_SANDBOX": "1",
}


def claude(model, **more):
    command = [CLAUDE, "-p", "--dangerously-skip-permissions", "--model", model]
    return Agent(command, lambda *_: None, model, **CLAUDE_ALONE, **more)


AGENTS = {
    "claude-code": claude("claude-mock"),
    # tools that are written out once they were looked for have no counterpart in chat completions
    "claude-code-over-chat": claude("generic-mock", ENABLE_TOOL_SEARCH="false"),
    "codex": codex("gpt-mock"),
    "codex-over-chat": codex("generic-mock"),
    # as the AI SDK that it is made with, it takes each 429 for one to ask after again, with growing pauses
    "opencode": Agent(
        OPENCODE, opencode("seatbelt", "@ai-sdk/openai-compatible", "gpt-mock"), "gpt-mock", asks=6, **OPENCODE_ALONE
    ),
    "opencode-anthropic": Agent(
        OPENCODE, opencode("seatbelt", "@ai-sdk/anthropic", "claude-mock"), "claude-mock", asks=None, **OPENCODE_ALONE
    ),
}
# What npm has of the others is pinned for one kind of machine alone.
if platform.machine() != "x86_64":
    AGENTS = {name: agent for name, agent in AGENTS.items() if name.startswith("codex")}


def checks(stack, name, agent, mocks):
    """What is to be checked of an agent, by name."""
    at = Place(stack, name, agent, mocks)
    balance = [("a spent balance", at.balance)] if agent.asks else []
    return [("a task with a tool", at.task), *balance, ("a spent window", at.window), ("ended in a stream", at.ended)]


class Place:
    """An agent, where it runs and what it reaches."""

    def __init__(self, stack, name, agent, mocks):
        self.stack, self.name, self.agent, self.mocks = stack, name, agent, mocks

    def run(self, key, prompt, then=lambda process, home: None):
        """Runs it to its end. What it printed, whether the tool's proof is there, and its exit code."""
        with tempfile.TemporaryDirectory(prefix="seatbelt-agent-", dir="/var/tmp") as folder:
            home = Path(folder)
            (home / "work").mkdir()
            with self.agent.start(self.stack.gateway, key, prompt, home) as process:
                try:
                    then(process, home)
                    said, _ = process.communicate(timeout=2 * PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise StackError(f"{self.name} does not end: {process.communicate()[0][-2000:]}") from None
            return said, (home / "work" / "proof.txt").is_file(), process.returncode

    def asked(self, before):
        """What the gateway answered since, by status."""
        statuses = {}
        for row, number in self.stack.counted().items():
            statuses[row[1]] = statuses.get(row[1], 0) + number - before.get(row, 0)
        return {status: number for status, number in statuses.items() if number}

    def task(self):
        key = f"sk-{self.name}"
        before, counted = self.stack.settled(key), self.stack.counted()
        said, proof, code = self.run(key, "Use the tool.")
        assert code == 0 and proof and "The tool said:" in said, f"exit {code}: {said[-2000:]}"
        charged = self.stack.settled(key)["tokens"] - before["tokens"]
        asked = self.asked(counted)
        assert asked == {200: 2}, f"the gateway answered {asked}: {said[-2000:]}"
        assert charged == 2 * (mock.INPUT + mock.OUTPUT), f"{charged} tokens were charged"

    def balance(self):
        key = f"sk-{self.name}-spent"
        self.stack.spend_one(key, self.agent.model)
        counted = self.stack.counted()
        said, _, code = self.run(key, "Say something.")
        asked = self.asked(counted)
        assert mock.TEXT not in said, said[-2000:]
        assert asked == {429: self.agent.asks}, f"the gateway answered {asked}, exit {code}: {said[-2000:]}"

    def window(self):
        """The window has room for one request, and the task needs two, the second at once."""
        counted = self.stack.counted()
        said, _, code = self.run(f"sk-{self.name}-window", "Use the tool.")
        asked = self.asked(counted)
        assert code == 0 and "The tool said:" in said, f"exit {code}: {said[-2000:]}"
        assert asked.get(200) == 2 and asked.get(429) == 1, f"the gateway answered {asked}"

    def ended(self):
        key = f"sk-{self.name}"
        before = self.stack.settled(key)["tokens"]
        for one in self.mocks:
            one.hold()
        try:
            self.run(key, "Speak slowly.", self.end)
        finally:
            for one in self.mocks:
                one.let_go()
        charged = self.stack.settled(key)["tokens"] - before
        assert charged == mock.INPUT + mock.OUTPUT, f"{charged} tokens were charged"

    def end(self, process, _):
        """Ends it once a stream has begun."""
        deadline = time.monotonic() + PATIENCE
        while not any(one.held for one in self.mocks):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StackError(f"{self.name} asked for no stream: {process.communicate()[0][-2000:]}")
            time.sleep(0.05)
        process.terminate()
