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


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(part)}" for name, part in value.items()) + " }"
    return json.dumps(value)


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

    def chat(self, question, **parameters):
        """The text of an answer to a question, or the error instead."""
        messages = [{"role": "user", "content": question}]
        body = {"model": "m", "messages": messages, "max_tokens": 48, "temperature": 0, **parameters}
        answer = json.loads(self.ask("POST", "/v1/chat/completions", body))
        return answer["choices"][0]["message"]["content"] if "choices" in answer else json.dumps(answer)

    def device(self):
        return json.loads(self.ask("GET", "/v1/models"))["data"][0]["device"]

    def metrics(self):
        return self.ask("GET", "/metrics")

    def steps(self):
        """Seconds spent in steps of decoding, and how many there were."""
        found = dict(STEP.findall(self.metrics()))
        return float(found["sum"]), float(found["count"])


def together(calls):
    """The results of calls made at once."""
    with ThreadPoolExecutor(max_workers=len(calls)) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]
