#!/usr/bin/env python3
"""Writes neuron/tests/smollm2/golden.json: what onnxruntime-genai answers, greedily, to the prompts beside it.

The neuron must give the same texts from the same files, so this runs another engine on purpose, with the very ONNX
Runtime that `make setup` fetches. The output is committed; run this only to change the model or the prompts:

    make model
    python3 -m venv /tmp/golden
    /tmp/golden/bin/pip install numpy==2.4.6 onnxruntime==1.32.0 onnxruntime-genai==0.18.0
    /tmp/golden/bin/python scripts/make_golden_texts.py
"""

import json
from pathlib import Path

import onnxruntime_genai as genai

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "neuron" / "tests" / "smollm2"
MODELS = ROOT / ".deps" / "models" / "smollm2"
PRECISIONS = ["fp32", "int4"]
OUTPUT_TOKENS = 48


def answer(model, tokenizer, prompt):
    messages = json.dumps([{"role": "user", "content": prompt}])
    tokens = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(tokens) + OUTPUT_TOKENS, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    return tokenizer.decode(generator.get_sequence(0)[len(tokens) :])


def answers(precision, prompts):
    model = genai.Model(str(MODELS / precision))
    tokenizer = genai.Tokenizer(model)
    return [answer(model, tokenizer, prompt) for prompt in prompts]


def main():
    prompts = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    golden = {"max_tokens": OUTPUT_TOKENS, **{precision: answers(precision, prompts) for precision in PRECISIONS}}
    text = json.dumps(golden, indent=2, ensure_ascii=False) + "\n"
    (FOLDER / "golden.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
