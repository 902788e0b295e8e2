"""One `seatbelt up` in a temporary folder, with the mock upstreams and the tiny neuron behind it."""

import json
import os
import re
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# How long anything is waited for, seconds.
PATIENCE = 60
# The window of the keys `...-window`, seconds: a client is told to wait so long at most. An agent's has to be longer
# than it takes from one request to its next, on a machine with much to do.
WINDOW, AGENTS_WINDOW = 2, 15

PRICE = '{ input = "1", output = "4" }'


class StackError(Exception):
    """What did not happen."""


class Stack:
    """Each client has three keys: with room for all it does, with a balance for one request, and with a window for
    one. All are in accounts of their own. `windows` says how long each client's window is."""

    def __init__(self, program, openai, anthropic, windows):
        self.folder = tempfile.TemporaryDirectory(prefix="seatbelt-clients-")
        self.config = Path(self.folder.name, "seatbelt.toml")
        self.config.write_text(configuration(openai.address, anthropic.address, windows))
        self.program = str(program)
        self.log = open(Path(self.folder.name, "log"), "w+")
        self.process = subprocess.Popen(
            [self.program, "up", "--config", str(self.config)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        # a start that hangs is ended, so that the line below comes in any case
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            raise StackError(f"seatbelt did not start:\n{self.logged()}")
        ready = json.loads(line)
        self.gateway, self.metrics = ready["gateway"], ready["metrics"]

    def logged(self):
        return Path(self.log.name).read_text(errors="replace")[-4000:]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise StackError(f"seatbelt does not end:\n{self.logged()}") from None
        finally:
            self.log.close()
            self.folder.cleanup()

    def verify(self):
        """`seatbelt audit verify` must pass."""
        done = subprocess.run(
            [self.program, "audit", "verify", "--config", str(self.config)],
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
        )
        if done.returncode != 0:
            raise StackError(f"audit verify: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def standing(self, key):
        """What the key has spent and what is held, by meter."""
        caps = json.loads(fetched(f"{self.gateway}/v1/key", key))["caps"]
        return {cap["meter"]: (cap["spent"], cap["held"]) for cap in caps}

    def settled(self, key):
        """What the key has spent once nothing of it is held."""
        deadline = time.monotonic() + PATIENCE
        while True:
            standing = self.standing(key)
            if not any(held for _, held in standing.values()):
                return {meter: spent for meter, (spent, _) in standing.items()}
            if time.monotonic() > deadline:
                raise StackError(f"{key} still holds {standing}")
            time.sleep(0.05)

    def spend_one(self, key, model):
        """One request of the key, not by a client."""
        body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say something."}]}
        fetched(f"{self.gateway}/v1/chat/completions", key, body)

    def counted(self):
        """Requests that were sent to be worked on, as the gateway counted them: (route, status) to number."""
        row = re.compile(r'^seatbelt_gateway_requests_total\{route="([^"]+)",status="(\d+)"\} (\d+)', re.M)
        rows = row.findall(fetched(f"{self.metrics}/metrics"))
        quiet = ("/v1/key", "/v1/models", "/v1/models/{*id}", "/health/ready")
        return {(route, int(status)): int(number) for route, status, number in rows if route not in quiet}


def configuration(openai, anthropic, windows):
    keys = "".join(
        key(client, 'caps = [{ meter = "tokens", limit = 100000000 }, { meter = "cost", limit = "1000" }]')
        + key(f"{client}-spent", 'caps = [{ meter = "requests", limit = 1 }]')
        + key(f"{client}-window", f'caps = [{{ meter = "requests", limit = 1, window = {{ kind = "rolling", seconds = {windows[client]} }} }}]')
        for client in windows
    )
    tiny = ROOT / "models" / "tiny"
    return f"""
[nats]
data_dir = "data"
partitions = 2

[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"

[[upstreams]]
name = "openai"
kind = "openai"
profile = "openai"
responses = true
base_url = "{openai}/v1"
models = [{model("gpt-mock", IMAGE)}, {model("embed-mock")}]

[[upstreams]]
name = "generic"
kind = "openai"
profile = "generic"
base_url = "{openai}/v1"
models = [{model("generic-mock", IMAGE)}]

[[upstreams]]
name = "anthropic"
kind = "anthropic"
profile = "anthropic"
base_url = "{anthropic}"
models = [{model("claude-mock", IMAGE)}]

[neuron]
listen = "127.0.0.1:0"
models = [{{ id = "tiny", path = "{tiny}", device = "cpu", slots = 8, price = {PRICE} }}]

{keys}"""


# Bounds an image, so that a key with caps may send one.
IMAGE = 'image = { rule = "grid", max_tokens = 4784 }, '


def model(name, more=""):
    return f'{{ id = "{name}", context = 200000, output = 32000, {more}price = {PRICE} }}'


def key(name, caps):
    return f'[[entitlements.keys]]\nkey = "sk-{name}"\naccount_id = "acct-{name}"\nkey_id = "key-{name}"\n{caps}\n\n'


def fetched(url, key=None, body=None):
    """What is there; an error where that is no success."""
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, headers=headers, data=json.dumps(body).encode() if body else None)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise StackError(f"{url}: {error.code}: {error.read().decode(errors='replace')}") from None
    except OSError as error:
        raise StackError(f"{url}: {error}") from None


def environment(**more):
    """The environment of a client: no proxy, no key and no home of whoever runs this."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return {**kept, "NO_PROXY": "*", "PYTHONUNBUFFERED": "1", **more}
