"""A neuron of its own in a temporary folder, asked over HTTP. Standard library only."""

import http.client
import json
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CONFIGURATION = """
[nats]
data_dir = "{folder}/data"
partitions = 1
durability = "relaxed"
server = "{nats_server}"

[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"

[[entitlements.keys]]
key = "sk-proof"
account_id = "proof"
key_id = "proof"
hard_cap = 1000000000

[neuron]
listen = "127.0.0.1:0"
open = true
onnxruntime = "{onnxruntime}"
threads = {threads}
queue = 256
models = [{{ id = "m", {model} }}]
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ADDRESS = re.compile(r'neuron serves.*?address[=":]+\s*"?([\d.]+:\d+)')
STEP = re.compile(r"seatbelt_neuron_decode_step_seconds_(sum|count)\S* (\S+)")
STOP_TIME_MAX = 60
# What an open neuron believes: an account goes on with what it asked before, and nobody else does.
ACCOUNT = "x-seatbelt-account"


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(part)}" for name, part in value.items()) + " }"
    return json.dumps(value)


@dataclass
class Streamed:
    text: str
    usage: dict
    # when each piece of the text came, in seconds after the request
    moments: list

    def first(self):
        return self.moments[0] if self.moments else float("nan")

    def cached(self):
        return self.usage["prompt_tokens_details"]["cached_tokens"]


class Neuron:
    def __init__(self, programs, model, threads=1, environment=None):
        self.folder = Path(tempfile.mkdtemp(prefix="gpu-proof-"))
        fields = ", ".join(f"{name} = {toml(value)}" for name, value in model.items())
        text = CONFIGURATION.format(folder=self.folder, threads=threads, model=fields, **programs.paths())
        configuration = self.folder / "seatbelt.toml"
        configuration.write_text(text, encoding="utf-8")
        self.address = None
        self.log_file = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(
            [str(programs.binary), "up", "--config", str(configuration)],
            stdout=subprocess.PIPE,
            stderr=self.log_file,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def log(self):
        return COLOURS.sub("", (self.folder / "log").read_text(encoding="utf-8", errors="replace"))

    def last_words(self):
        lines = self.log().strip().splitlines()
        return lines[-1] if lines else ""

    def ready(self, seconds=180):
        """Waits until it serves; false where it ended or took too long."""
        end, seen = time.monotonic() + seconds, b""
        while time.monotonic() < end and self.process.poll() is None:
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                seen += os.read(self.process.stdout.fileno(), 65536)
            if b'"ready"' in seen and (found := ADDRESS.search(self.log())):
                self.address = found[1]
                return True
        return False

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIME_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.log_file.close()
        return self.process.returncode

    def ask(self, method, path, body=None, timeout=300):
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            headers = {"content-type": "application/json"}
            connection.request(method, path, body and json.dumps(body), headers)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def complete(self, prompt, max_tokens, **parameters):
        """A completion of a text or of tokens, as its JSON."""
        body = {"model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **parameters}
        return json.loads(self.ask("POST", "/v1/completions", body))

    def answer(self, question, **parameters):
        """The first choice of the answer to a question, or all of an error."""
        messages = [{"role": "user", "content": question}]
        body = {"model": "m", "messages": messages, "max_tokens": 48, "temperature": 0, **parameters}
        answer = json.loads(self.ask("POST", "/v1/chat/completions", body))
        return answer["choices"][0] if "choices" in answer else answer

    def chat(self, question, **parameters):
        """The text of an answer to a question, or the error instead."""
        choice = self.answer(question, **parameters)
        return choice["message"]["content"] if "message" in choice else json.dumps(choice)

    def stream(self, messages, account=None, on_piece=None, **parameters):
        """The answer to a chat, and when its pieces came; each is told at once, by how many there were."""
        body = {"model": "m", "messages": messages, "max_tokens": 32, "temperature": 0, "stream": True, **parameters}
        body["stream_options"] = {"include_usage": True}
        headers = {"content-type": "application/json", **({ACCOUNT: account} if account else {})}
        connection = http.client.HTTPConnection(self.address, timeout=300)
        try:
            start = time.monotonic()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            return read_events(connection.getresponse(), start, on_piece)
        finally:
            connection.close()

    def device(self):
        return json.loads(self.ask("GET", "/v1/models"))["data"][0]["device"]

    def metrics(self):
        return self.ask("GET", "/metrics")

    def steps(self):
        """Seconds spent in steps of decoding, and how many there were."""
        found = dict(STEP.findall(self.metrics()))
        return float(found["sum"]), float(found["count"])


def read_events(response, start, on_piece):
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {response.read().decode()}")
    text, usage, moments = [], None, []
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(f"the stream broke off: {event}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            if piece := choice["delta"].get("content"):
                text.append(piece)
                moments.append(time.monotonic() - start)
                if on_piece:
                    on_piece(len(moments))
    if usage is None:
        raise RuntimeError("the stream ended without its usage")
    return Streamed("".join(text), usage, moments)


def together(calls):
    """The results of calls made at once."""
    with ThreadPoolExecutor(max_workers=len(calls)) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]
