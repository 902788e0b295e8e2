#!/usr/bin/env python3
"""What onnxruntime-genai does with the same folder, in static batches: rows for the table of prove.py."""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

from proof import numbers, tokens

SAMPLINGS = {
    "greedy": {"do_sample": False},
    "top_p 0.95": {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0},
}
PROMPT = 16
# onnxruntime-genai refuses more.
BATCH_MAX = 32


def generate(model, batch, count, sampling):
    """Steps taken, and seconds."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=PROMPT + count, batch_size=batch, **sampling)
    generator = genai.Generator(model, parameters)
    start, steps = time.monotonic(), 0
    prompts = [tokens(PROMPT, of) for of in range(batch)]
    generator.append_tokens(np.array(prompts if batch > 1 else prompts[0], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
        steps += 1
    return steps, time.monotonic() - start


def prefill(model, length, batch):
    """Seconds until each of the prompts has its first token."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length + 1, batch_size=batch, do_sample=False)
    generator = genai.Generator(model, parameters)
    prompts = [tokens(length, of + 1) for of in range(batch)]
    start = time.monotonic()
    generator.append_tokens(np.array(prompts if batch > 1 else prompts[0], np.int32))
    generator.generate_next_token()
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64])
    arguments = parser.parse_args()
    config = genai.Config(str(arguments.model))
    config.clear_providers()
    if arguments.device == "cuda":
        config.append_provider("cuda")
    model = genai.Model(config)
    for sampling, options in SAMPLINGS.items():
        for batch in [batch for batch in arguments.batches if batch <= BATCH_MAX]:
            # The first run of a shape is slower: the second counts.
            generate(model, batch, arguments.tokens, options)
            steps, wall = generate(model, batch, arguments.tokens, options)
            print(f"| genai | {sampling} | {batch} | {batch * steps / wall:,.0f} | | {wall / steps * 1000:.2f} |", flush=True)
    for length, batch in ((512, 1), (1900, 1), (512, 16)):
        best = min(prefill(model, length, batch) for _ in range(3))
        what = f"prompts of {length}, to the last first token"
        print(f"| genai | {what} | {batch} | {batch * length / best:,.0f} | {best * 1000:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
