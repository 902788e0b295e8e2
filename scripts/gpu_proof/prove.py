#!/usr/bin/env python3
"""Proves a neuron on a device, and measures it.

Prints a line for each check and a table of speeds; exit code 1 if a check failed. With `--device cpu` the same checks run
on the CPU, but for those that only a GPU can fail. Standard library only.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from neuron import Neuron, together

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
SAME_TEXTS_MIN = 12
COMMON_START_MIN = 12
SAME_BATCHED_SHARE_MIN = 0.85
SLOT_FREED_SECONDS_MAX = 1.0
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "temperature 1": {"temperature": 1.0, "seed": 1},
    "top_p 0.95": {"temperature": 1.0, "top_p": 0.95, "seed": 1},
}


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

    def check(self, holds, name, detail=""):
        self.failed += not holds
        print("PASS" if holds else "FAIL", name, detail, flush=True)

    def note(self, name, detail=""):
        print("INFO", name, detail, flush=True)

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


def prove_refusals(proof):
    """What must not start says why."""
    with proof.neuron(environment={"CUDA_VISIBLE_DEVICES": ""}) as neuron:
        started = neuron.ready(60)
        words = neuron.last_words()
    refused = not started and 'device "cuda" cannot be used' in words
    proof.check(refused, "no visible GPU: the start is refused, the CPU is not used instead", words[:160])

    limit = 64 * 2**20
    with proof.neuron(cuda={"memory_bytes_max": limit, "check_on_cpu": False}) as neuron:
        started = neuron.ready(60)
        words = neuron.last_words()
    proof.check(not started and bool(words), "memory_bytes_max holds", words[:200])

    with proof.neuron(cuda={"device_id": 63, "check_on_cpu": False}) as neuron:
        started = neuron.ready(60)
        words = neuron.last_words()
    proof.check(not started, "device_id is obeyed", words[:160])


def common(a, b):
    return len(os.path.commonprefix([a, b]))


def prove_texts(proof, neuron):
    """Texts as on the CPU, and the same whatever runs beside them; returns them."""
    alone = [neuron.chat(question) for question in QUESTIONS]
    if proof.options.write_texts:
        text = json.dumps(alone, indent=1, ensure_ascii=False) + "\n"
        proof.options.write_texts.write_text(text, encoding="utf-8")
    compare_texts(proof, "greedy texts are the CPU's", alone)

    slots = proof.options.slots
    asked = [QUESTIONS[n % len(QUESTIONS)] for n in range(slots)]
    expected = [alone[n % len(QUESTIONS)] for n in range(slots)]
    batched = together([lambda question=question: neuron.chat(question) for question in asked])
    same = sum(a == b for a, b in zip(batched, expected))
    proof.check(same >= SAME_BATCHED_SHARE_MIN * slots, f"{slots} at once say what they say alone", f"{same}/{slots}")

    sampled = [[neuron.chat(q, temperature=0.9, top_p=0.95, seed=7) for q in QUESTIONS[:6]] for _ in range(2)]
    same = sum(a == b for a, b in zip(*sampled))
    detail = f"{same}/{len(sampled[0])}"
    if proof.on_gpu():
        # A GPU does not add up in one order each time, and a drawn text parts at the first token that it moves.
        proof.note("one seed gives one text", detail)
    else:
        proof.check(same == len(sampled[0]), "one seed gives one text", detail)
    again = [neuron.chat(question) for question in QUESTIONS]
    same = sum(a == b for a, b in zip(again, alone))
    proof.check(same >= len(QUESTIONS) - 1, "used slots say what fresh ones say", f"{same}/{len(QUESTIONS)}")


def compare_texts(proof, name, texts):
    expected = json.loads(proof.options.expect.read_text(encoding="utf-8"))
    same = sum(a == b for a, b in zip(texts, expected))
    starts = [common(a, b) for a, b in zip(texts, expected)]
    started = all(start >= min(len(text), COMMON_START_MIN) for start, text in zip(starts, expected))
    detail = f"{same}/{len(texts)}, shortest common start {min(starts)} characters; the first: {texts[0]!r}"
    proof.check(same >= SAME_TEXTS_MIN and started, name, detail)


def prove_long_prompt(proof, neuron):
    prompt = " ".join(f"{n} sheep" for n in range(proof.options.context // 8))
    answer = neuron.complete(prompt, 12)
    text = answer["choices"][0]["text"] if "choices" in answer else ""
    proof.check("sheep" in text, "a long prompt in pieces", f"{answer.get('usage')} {text!r}")


def prove_leaving(proof, neuron):
    try:
        endless = {"model": "m", "prompt": [5], "max_tokens": proof.options.context - 8, "temperature": 1.0}
        neuron.ask("POST", "/v1/completions", endless, timeout=0.5)
    except TimeoutError:
        pass
    start = time.monotonic()
    while 'seatbelt_neuron_active{model="m"} 0' not in neuron.metrics() and time.monotonic() - start < 10:
        time.sleep(0.01)
    took = time.monotonic() - start
    proof.check(took < SLOT_FREED_SECONDS_MAX, "a slot is free after its client left", f"{took * 1000:.0f} ms")


def tokens(count, of):
    """Some prompt that is no other's."""
    return [(place * 7919 + of * 104729) % 40000 + 100 for place in range(count)]


def measure_steps(proof, neuron, way, samplings):
    """Tokens a second by batch; a table's rows."""
    options = proof.options
    # Kernels are loaded when they are first used, and each number of rows uses others.
    together([lambda of=of: neuron.complete(tokens(16, of), 16) for of in range(options.slots)])
    for sampling in samplings:
        for batch in [batch for batch in options.batches if batch <= options.slots]:
            parameters = SAMPLINGS[sampling]
            before, start = neuron.steps(), time.monotonic()
            answers = together([
                lambda of=of: neuron.complete(tokens(16, of), options.tokens, **parameters) for of in range(batch)
            ])
            wall, after = time.monotonic() - start, neuron.steps()
            made = sum(answer["usage"]["completion_tokens"] for answer in answers)
            steps = max(after[1] - before[1], 1)
            run = (after[0] - before[0]) / steps * 1000
            print(f"| {way} | {sampling} | {batch} | {made / wall:,.0f} | {run:.2f} | {wall / steps * 1000:.2f} |", flush=True)


def measure_prefill(proof, neuron, way):
    for length in (512, min(1900, proof.options.context - 64)):
        times = []
        for of in range(3):
            start = time.monotonic()
            neuron.complete(tokens(length, of + 1), 1)
            times.append(time.monotonic() - start)
        best = min(times)
        print(f"| {way} | prefill {length} | 1 | {length / best:,.0f} | {best * 1000:.1f} | |", flush=True)


def measured(proof, way, samplings, neuron):
    measure_steps(proof, neuron, way, samplings)
    measure_prefill(proof, neuron, way)


def prove_plain(proof):
    before, start = gpu("memory.used"), time.monotonic()
    with proof.neuron() as neuron:
        if not neuron.ready():
            proof.check(False, f"starts on {proof.options.device}", neuron.log()[-2000:])
            return
        took = time.monotonic() - start
        proof.check(neuron.device() == proof.options.device, f"starts on {proof.options.device}",
                    f"{took:.1f} s, MiB in use {before} -> {gpu('memory.used')}")
        warnings = [line for line in neuron.log().splitlines() if "WARN" in line]
        proof.note("warnings", f"{len(warnings)} {[line[:200] for line in warnings[:3]]}")
        prove_texts(proof, neuron)
        prove_long_prompt(proof, neuron)
        measured(proof, "neuron", SAMPLINGS, neuron)
        prove_leaving(proof, neuron)
        proof.check(neuron.stop() == 0, "stops", f"MiB in use {gpu('memory.used')}")


def prove_other(proof, way, folder=None, cuda=None):
    """Another graph or other options give the same texts."""
    with proof.neuron(folder, cuda=cuda) as neuron:
        if not neuron.ready():
            proof.check(False, f"{way} starts", neuron.log()[-2000:])
            return
        compare_texts(proof, f"{way}: greedy texts are the CPU's", [neuron.chat(question) for question in QUESTIONS])
        prove_long_prompt(proof, neuron)
        measured(proof, way, ["greedy"], neuron)


def numbers(text):
    return [int(part) for part in text.split(",")]


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True, help="seatbelt")
    parser.add_argument("--onnxruntime", type=Path, required=True, help="libonnxruntime.so")
    parser.add_argument("--nats-server", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a folder of smollm2.py, fp16 for a GPU")
    parser.add_argument("--pruned", type=Path, help="the same with --last-row")
    parser.add_argument("--expect", type=Path, required=True, help="texts of the CPU, made with --write-texts")
    parser.add_argument("--write-texts", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64])
    return parser.parse_args()


def main():
    proof = Proof(parse())
    proof.note("device", gpu("name,driver_version,memory.total"))
    print("| what | sampling | batch | tokens/s | in Run, ms | a step in all, ms |\n|---|---|---|---|---|---|")
    prove_plain(proof)
    if proof.options.pruned:
        prove_other(proof, "pruned graph", folder=proof.options.pruned)
    if proof.on_gpu():
        prove_other(proof, "recorded steps", cuda={"graphs": True})
        prove_refusals(proof)
    print(f"{proof.failed} checks failed", flush=True)
    return 1 if proof.failed else 0


if __name__ == "__main__":
    sys.exit(main())
