"""What is asked, what is held against what, and what is said of it. Standard library only."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from neuron import Neuron

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Explain gravity to a child.",
    "List three fruits.",
    "What is 12 times 7?",
    "Tell me a joke.",
    "Translate 'good morning' to Spanish.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What is the boiling point of water?",
    "Write a short poem about the moon.",
    "Name five planets.",
    "How do plants grow?",
    "What is Rust programming language?",
    "Summarize the story of Cinderella.",
    "Why is the sky blue?",
]
# Sums of 16 bits come out in another order on another device, so near ties may fall the other way, late in a text.
SAME_TEXTS_SHARE_MIN = 0.75
COMMON_START_MIN = 12


@dataclass
class Programs:
    binary: Path
    onnxruntime: Path
    nats_server: Path

    def paths(self):
        return {"onnxruntime": self.onnxruntime, "nats_server": self.nats_server}


class Proof:
    """What was found, said at once."""

    def __init__(self, arguments):
        self.options = arguments
        self.programs = Programs(
            # the configuration lies elsewhere, and its paths are relative to it
            *(path.resolve() for path in (arguments.binary, arguments.onnxruntime, arguments.nats_server))
        )
        self.failed = 0
        self.expected = json.loads(arguments.expect.read_text(encoding="utf-8"))
        self.said = {}

    def check(self, holds, name, detail=""):
        self.failed += not holds
        print("PASS" if holds else "FAIL", name, detail, flush=True)

    def note(self, name, detail=""):
        print("INFO", name, detail, flush=True)

    def compare(self, name, of, texts):
        """Whether greedy texts are those that the CPU gave."""
        self.said.setdefault(of, texts)
        self.alike(name, texts, self.expected.get(of, []))

    def alike(self, name, texts, expected):
        same = sum(a == b for a, b in zip(texts, expected))
        starts = [common(a, b) for a, b in zip(texts, expected)]
        started = all(start >= min(len(text), COMMON_START_MIN) for start, text in zip(starts, expected))
        holds = len(texts) == len(expected) and same >= SAME_TEXTS_SHARE_MIN * len(texts) and started
        detail = f"{same}/{len(texts)}, shortest common start {min(starts, default=0)} characters; the first: {texts[0]!r}"
        self.check(holds, name, detail[:400])

    def write_said(self):
        if self.options.write_texts:
            text = json.dumps(self.said, indent=1, ensure_ascii=False) + "\n"
            self.options.write_texts.write_text(text, encoding="utf-8")

    def row(self, way, what, batch, speed=None, run=None, step=None):
        """Of the table: tokens a second, and milliseconds."""
        speed = "" if speed is None else f"{speed:,.0f}"
        run, step = ("" if number is None else f"{number:.2f}" for number in (run, step))
        print(f"| {way} | {what} | {batch} | {speed} | {run} | {step} |", flush=True)

    def on_gpu(self):
        return self.options.device == "cuda"

    def neuron(self, folder=None, environment=None, cuda=None, **changes):
        options = self.options
        model = {
            "path": str((folder or options.model).resolve()),
            "device": options.device,
            "slots": options.slots,
            "context": options.context,
            **changes,
        }
        if cuda and self.on_gpu():
            model["cuda"] = cuda
        return Neuron(self.programs, model, options.threads, environment)


def gpu(field):
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return "-"


def common(a, b):
    return len(os.path.commonprefix([a, b]))


def tokens(count, of):
    """Some prompt that is no other's."""
    return [(place * 7919 + of * 104729) % 40000 + 100 for place in range(count)]


def numbers(text):
    return [int(part) for part in text.split(",")]
