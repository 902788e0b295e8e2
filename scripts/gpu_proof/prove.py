#!/usr/bin/env python3
"""Proves a neuron on a device, and measures it.

Prints a line for each check and a table of speeds; exit code 1 if a check failed. With `--device cpu` the same checks run
on the CPU, but for those that only a GPU can fail. Standard library only.
"""

import argparse
import sys
import time
from pathlib import Path

from neuron import together
from powers import NUMBERS, PENALTIES, prove_powers, shape
from proof import QUESTIONS, Proof, gpu, numbers, tokens

SAME_BATCHED_SHARE_MIN = 0.85
SLOT_FREED_SECONDS_MAX = 1.0
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "temperature 1": {"temperature": 1.0, "seed": 1},
    "top_p 0.95": {"temperature": 1.0, "top_p": 0.95, "seed": 1},
    "greedy, penalties": {"temperature": 0, **PENALTIES},
    "greedy, JSON schema": {"temperature": 0, **shape(NUMBERS)},
}


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


def prove_texts(proof, neuron, way):
    """Texts as on the CPU, and the same whatever runs beside them."""
    alone = [neuron.chat(question) for question in QUESTIONS]
    proof.compare(f"{way}: greedy texts are the CPU's", "answers", alone)

    slots = proof.options.slots
    asked = [QUESTIONS[n % len(QUESTIONS)] for n in range(slots)]
    expected = [alone[n % len(QUESTIONS)] for n in range(slots)]
    batched = together([lambda question=question: neuron.chat(question) for question in asked])
    same = sum(a == b for a, b in zip(batched, expected))
    proof.check(same >= SAME_BATCHED_SHARE_MIN * slots, f"{way}: {slots} at once say what they say alone", f"{same}/{slots}")

    sampled = [[neuron.chat(q, temperature=0.9, top_p=0.95, seed=7) for q in QUESTIONS[:6]] for _ in range(2)]
    same = sum(a == b for a, b in zip(*sampled))
    detail = f"{same}/{len(sampled[0])}"
    if proof.on_gpu():
        # A GPU does not add up in one order each time, and a drawn text parts at the first token that it moves.
        proof.note(f"{way}: one seed gives one text", detail)
    else:
        proof.check(same == len(sampled[0]), f"{way}: one seed gives one text", detail)
    again = [neuron.chat(question) for question in QUESTIONS]
    same = sum(a == b for a, b in zip(again, alone))
    proof.check(same >= len(QUESTIONS) - 1, f"{way}: used slots say what fresh ones say", f"{same}/{len(QUESTIONS)}")


def prove_long_prompt(proof, neuron, way):
    prompt = " ".join(f"{n} sheep" for n in range(proof.options.context // 8))
    answer = neuron.complete(prompt, 12)
    text = answer["choices"][0]["text"] if "choices" in answer else ""
    proof.check("sheep" in text, f"{way}: a long prompt in pieces", f"{answer.get('usage')} {text!r}")


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


def measure_steps(proof, neuron, way, samplings):
    """Tokens a second by batch; a table's rows."""
    options = proof.options
    # Kernels are loaded when they are first used, and each number of rows uses others.
    together([lambda of=of: neuron.complete(tokens(16, of), 16) for of in range(options.slots)])
    for sampling in samplings:
        parameters = SAMPLINGS[sampling]
        # The first answer with a shape prepares the vocabulary.
        neuron.complete(tokens(16, 0), 4, **parameters)
        for batch in [batch for batch in options.batches if batch <= options.slots]:
            before, start = neuron.steps(), time.monotonic()
            answers = together([
                lambda of=of: neuron.complete(tokens(16, of), options.tokens, **parameters) for of in range(batch)
            ])
            wall, after = time.monotonic() - start, neuron.steps()
            made = sum(answer["usage"]["completion_tokens"] for answer in answers)
            steps = max(after[1] - before[1], 1)
            run = (after[0] - before[0]) / steps * 1000
            proof.row(way, sampling, batch, made / wall, run, wall / steps * 1000)


def measure_prefill(proof, neuron, way):
    several = min(16, proof.options.slots // 4)
    for length, batch in ((512, 1), (min(1900, proof.options.context - 64), 1), (512, several)):
        times = []
        for of in range(3):
            start = time.monotonic()
            together([lambda n=n: neuron.complete(tokens(length, of * batch + n + 1), 1) for n in range(batch)])
            times.append(time.monotonic() - start)
        best = min(times)
        proof.row(way, f"prompts of {length}, to the last first token", batch, batch * length / best, best * 1000)


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
        prove_texts(proof, neuron, "neuron")
        prove_long_prompt(proof, neuron, "neuron")
        measured(proof, "neuron", SAMPLINGS, neuron)
        prove_powers(proof, neuron, "neuron")
        prove_leaving(proof, neuron)
        proof.check(neuron.stop() == 0, "stops", f"MiB in use {gpu('memory.used')}")


def prove_other(proof, way, folder=None, cuda=None, powers=False):
    """Another graph or other options give the same texts; with its powers, all of what the plain one does."""
    with proof.neuron(folder, cuda=cuda) as neuron:
        if not neuron.ready():
            proof.check(False, f"{way} starts", neuron.log()[-2000:])
            return
        prove_texts(proof, neuron, way)
        prove_long_prompt(proof, neuron, way)
        measured(proof, way, SAMPLINGS if powers else ["greedy"], neuron)
        if powers:
            prove_powers(proof, neuron, way)


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
    print("| what | of | batch | tokens/s | in Run, ms | a step in all, ms |\n|---|---|---|---|---|---|")
    prove_plain(proof)
    if proof.options.pruned:
        prove_other(proof, "pruned graph", folder=proof.options.pruned)
    if proof.on_gpu():
        prove_other(proof, "recorded steps", cuda={"graphs": True}, powers=True)
        prove_refusals(proof)
    proof.write_said()
    print(f"{proof.failed} checks failed", flush=True)
    return 1 if proof.failed else 0


if __name__ == "__main__":
    sys.exit(main())
