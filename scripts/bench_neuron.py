#!/usr/bin/env python3
"""Measures a neuron beside onnxruntime-genai: the same files of SmolLM2, the same ONNX Runtime, one thread each, in turns.

Prints a table of ratios, of which alone anything follows on a machine that does other things too, and there rather of those of the
processor's time than of the clock's. onnxruntime-genai is given one
static batch in its process; the neuron is asked over HTTP, each request by itself. Made by `make bench-neuron`, which
sees to the binary and the models; the packages of scripts/bench-requirements.txt, with their hashes, come into an
environment of their own, .deps/bench-venv. Needs Python 3.11.
"""

import argparse
import http.client
import json
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "gpu_proof")]

import setup
from neuron import Neuron, together
from proof import Programs, tokens

INSIDE = "SEATBELT_BENCH_INSIDE"
REQUIREMENTS = ROOT / "scripts" / "bench-requirements.txt"
SAMPLINGS = {
    "greedy": ({"do_sample": False}, {"temperature": 0}),
    "top_p 0.95": (
        {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0},
        {"temperature": 1.0, "top_p": 0.95, "seed": 1},
    ),
}
CASES = [("greedy", 1), ("greedy", 8), ("greedy", 16), ("top_p 0.95", 8)]
TOGETHER = 16
# No end of a text cuts an answer short.
ENDLESS = {"ignore_eos": True}


def in_environment():
    """Goes on in the environment that has the packages."""
    if os.environ.get(INSIDE) is not None:
        return
    python = setup.DEPS / "bench-venv" / "bin" / "python"
    setup.DEPS.mkdir(exist_ok=True)
    with setup.one_at_a_time():
        stamp = setup.Stamp("bench-venv", [REQUIREMENTS], f"{setup.machine()} {platform.python_version()} {sys.executable}")
        if not stamp.holds([python]):
            print("bench: installing onnxruntime-genai", flush=True)
            setup.install_environment(python, REQUIREMENTS, "install onnxruntime-genai")
            stamp.write()
    os.execve(python, [str(python), *sys.argv], {**os.environ, INSIDE: "1"})


class Genai:
    """The other side, in this process."""

    def __init__(self, folder, threads):
        import numpy
        import onnxruntime_genai

        self.genai, self.array = onnxruntime_genai, numpy.array
        config = onnxruntime_genai.Config(str(folder))
        config.clear_providers()
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = onnxruntime_genai.Model(config)

    def generate(self, batch, prompt, count, sampling):
        """Seconds to the first token and to the last of `count`."""
        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(
            min_length=prompt + count, max_length=prompt + count, batch_size=batch, **SAMPLINGS[sampling][0]
        )
        generator = self.genai.Generator(self.model, parameters)
        prompts = [tokens(prompt, of) for of in range(batch)]
        start = time.monotonic()
        generator.append_tokens(self.array(prompts if batch > 1 else prompts[0], dtype="int32"))
        generator.generate_next_token()
        first = time.monotonic() - start
        for _ in range(count - 1):
            generator.generate_next_token()
        return first, time.monotonic() - start


def first_byte(neuron, body):
    """Seconds until a stream begins, which it does with its first token; all of it is read."""
    connection = http.client.HTTPConnection(neuron.address, timeout=600)
    start = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    response.read(1)
    took = time.monotonic() - start
    response.read()
    connection.close()
    return took


def own_processor():
    return time.process_time()


def processor_of(process):
    """Seconds of the processor that a process took."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, arguments, precision):
        folder = arguments.models / precision
        programs = Programs(arguments.binary.resolve(), arguments.onnxruntime.resolve(), arguments.nats_server.resolve())
        model = {"path": str(folder.resolve()), "slots": TOGETHER, "context": 512}
        self.options, self.precision = arguments, precision
        self.genai = Genai(folder, arguments.threads)
        self.neuron = Neuron(programs, model, arguments.threads)
        self.turn = self.rounds = 0

    def seconds(self, batch, sampling):
        """What each side takes for a batch of answers."""
        count, prompt = self.options.tokens, self.options.prompt
        fields = {**SAMPLINGS[sampling][1], **ENDLESS}

        def neuron():
            self.turn += 1
            start = time.monotonic()
            together([
                lambda of=of: self.neuron.complete(tokens(prompt, of + TOGETHER * self.turn), count, **fields)
                for of in range(batch)
            ])
            return time.monotonic() - start

        return self.both(lambda: self.genai.generate(batch, prompt, count, sampling)[1], neuron)

    def first_tokens(self):
        """What each side takes to the first token of many that come together, in the mean."""
        prompt = self.options.prompt

        def neuron():
            self.turn += 1
            bodies = [
                {"model": "m", "prompt": tokens(prompt, of + TOGETHER * self.turn), "max_tokens": 8, "stream": True,
                 "temperature": 0, **ENDLESS}
                for of in range(TOGETHER)
            ]
            with ThreadPoolExecutor(max_workers=TOGETHER) as pool:
                return statistics.mean(pool.map(lambda body: first_byte(self.neuron, body), bodies))

        return self.both(lambda: self.genai.generate(TOGETHER, prompt, 8, "greedy")[0], neuron)

    def both(self, genai, neuron):
        """Seconds of each, and seconds of the processor; who begins changes, since the machine does not stay as fast as it is."""

        def ran(side, process):
            before = process()
            seconds = side()
            return seconds, process() - before

        sides = [(genai, own_processor), (neuron, lambda: processor_of(self.neuron.process.pid))]
        self.rounds += 1
        order = [1, 0] if self.rounds % 2 else [0, 1]
        results = {side: ran(*sides[side]) for side in order}
        return results[0], results[1]

    def measure(self, name, once, work=None):
        """A row: the median of each side, of the ratios, and of those of the processor's time; above 1 the neuron is the better,
        of times below."""
        rounds = [once() for _ in range(self.options.rounds + 1)][1:]
        theirs, mine = (statistics.median(seconds for seconds, _ in side) for side in zip(*rounds))
        better = (lambda a, b: a / b) if work else (lambda a, b: b / a)
        ratio, processor = (
            statistics.median(better(a[part], max(b[part], 0.01)) for a, b in rounds) for part in (0, 1)
        )
        show = (lambda seconds: f"{work / seconds:,.1f}") if work else (lambda seconds: f"{seconds:.3f} s")
        processor = f"{processor:.2f}" if work else ""
        print(f"| {self.precision} | {name} | {show(theirs)} | {show(mine)} | {ratio:.2f} | {processor} |", flush=True)

    def run(self):
        with self.neuron:
            if not self.neuron.ready():
                raise SystemExit(self.neuron.log()[-2000:])
            for sampling, batch in CASES:
                name = f"{sampling}, {batch} at once, tokens/s"
                work = batch * self.options.tokens
                self.measure(name, lambda: self.seconds(batch, sampling), work)
            self.measure(f"first token of {TOGETHER} that come together", self.first_tokens)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True, help="seatbelt")
    parser.add_argument("--models", type=Path, default=setup.DEPS / "models" / "smollm2")
    parser.add_argument("--onnxruntime", type=Path, default=setup.DEPS / "onnxruntime" / "libonnxruntime.so")
    parser.add_argument("--nats-server", type=Path, default=setup.DEPS / "nats-server" / "nats-server")
    parser.add_argument("--precisions", nargs="+", default=["int4", "fp32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5, help="besides the first, which does not count")
    return parser.parse_args()


def main():
    arguments = parse()
    try:
        in_environment()
    except setup.SetupError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load before: {load}\n\n| weights | what | onnxruntime-genai | neuron | ratio | of processor time |\n|---|---|---|---|---|---|", flush=True)
    for precision in arguments.precisions:
        Bench(arguments, precision).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
