#!/usr/bin/env python3
"""Writes models/tiny: a decoder with random weights in the folder layout of the onnxruntime-genai model builder.

It exists so that every test and the first `make up` run a real model through ONNX Runtime without a download.
The same seed gives the same bytes. The model says nothing sensible: it strings printable letters together, and
practically never chooses the end token, so that a request runs to its output ceiling.

Not here: any trained weight, and any operator that the real builder would not write for a CPU decoder.

The output is committed; run this only to change it:

    python3 -m venv /tmp/tiny && /tmp/tiny/bin/pip install numpy==2.4.6 onnx==1.23.2
    /tmp/tiny/bin/python scripts/make_tiny_model.py models/tiny
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SPECIALS = ["<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
BYTES = 256
BOS, END, PAD = BYTES, BYTES + 1, BYTES + 2

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set role = 'system' if message.role == 'developer' else message.role -%}
{%- if role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('unknown role ' ~ role) -}}
{%- endif -%}
{{- '<|' ~ role ~ '|>' ~ (message.content or '') ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Shape:
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 128
    vocab: int = 272  # 256 bytes and the specials, rounded up to a multiple of 16
    context: int = 1024

    @property
    def head(self) -> int:
        return self.hidden // self.heads


class Graph:
    """Collects nodes and weights; every method returns the name of what it adds."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def constant(self, name, array):
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name, rows, columns, scale=None):
        values = self.random.standard_normal((rows, columns)) * (scale or 1 / np.sqrt(rows))
        return self.constant(name, values.astype(np.float32))

    def add(self, op, inputs, outputs, domain="", **attributes):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"/{outputs[0]}", domain=domain, **attributes))
        return outputs[0]


def lengths(g):
    """What GroupQueryAttention wants to know, from the attention mask: its row sums less one, and its width."""
    one_axis = g.constant("one_axis", np.array([1], np.int64))
    axis = g.constant("axis", np.array(1, np.int64))
    sums = g.add("ReduceSum", ["attention_mask", one_axis], "mask_sum", keepdims=0)
    last = g.add("Sub", [sums, one_axis], "mask_last")
    g.add("Cast", [last], "seqlens_k", to=TensorProto.INT32)
    width = g.add("Gather", [g.add("Shape", ["attention_mask"], "mask_shape"), axis], "mask_width", axis=0)
    g.add("Cast", [width], "total_seq_len", to=TensorProto.INT32)


def rotary(g, shape):
    frequency = 1 / 10_000 ** (np.arange(0, shape.head, 2) / shape.head)
    angle = np.outer(np.arange(shape.context), frequency)
    g.constant("cos_cache", np.cos(angle).astype(np.float32))
    g.constant("sin_cache", np.sin(angle).astype(np.float32))


def normed(g, name, residual, delta, hidden):
    scale = g.constant(f"{name}.weight", np.ones(hidden, np.float32))
    outputs = [f"{name}.out", "", "", f"{name}.residual"]
    g.add("SkipSimplifiedLayerNormalization", [residual, delta, scale], outputs, "com.microsoft", epsilon=1e-5)
    return outputs[0], outputs[3]


def attention(g, i, x, shape):
    width = shape.hidden + 2 * shape.kv_heads * shape.head
    qkv = g.add("MatMul", [x, g.weight(f"layers.{i}.qkv.weight", shape.hidden, width)], f"layers.{i}.qkv")
    past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
    inputs = [qkv, "", "", *past, "seqlens_k", "total_seq_len", "cos_cache", "sin_cache"]
    outputs = [f"layers.{i}.attention", f"present.{i}.key", f"present.{i}.value"]
    g.add(
        "GroupQueryAttention", inputs, outputs, "com.microsoft",
        num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=1, rotary_interleaved=0,
        scale=float(1 / np.sqrt(shape.head)),
    )
    return g.add("MatMul", [outputs[0], g.weight(f"layers.{i}.o.weight", shape.hidden, shape.hidden)], f"layers.{i}.o")


def feed_forward(g, i, x, shape):
    gate = g.add("MatMul", [x, g.weight(f"layers.{i}.gate.weight", shape.hidden, shape.ffn)], f"layers.{i}.gate")
    up = g.add("MatMul", [x, g.weight(f"layers.{i}.up.weight", shape.hidden, shape.ffn)], f"layers.{i}.up")
    silu = g.add("Mul", [gate, g.add("Sigmoid", [gate], f"layers.{i}.sigmoid")], f"layers.{i}.silu")
    mixed = g.add("Mul", [silu, up], f"layers.{i}.mixed")
    return g.add("MatMul", [mixed, g.weight(f"layers.{i}.down.weight", shape.ffn, shape.hidden)], f"layers.{i}.down")


def letter_bias(shape):
    """Printable ASCII wins over all else, lower case and the space most; the specials are out of reach."""
    bias = np.full(shape.vocab, -60.0, np.float32)
    bias[0x20:0x7F] = 0.0
    bias[ord("a"):ord("z") + 1] = 4.0
    bias[ord(" ")] = 5.0
    return bias


def decoder(shape, seed=7):
    g = Graph(seed)
    lengths(g)
    rotary(g, shape)
    residual = g.add("Gather", [g.weight("embed.weight", shape.vocab, shape.hidden, scale=1.0), "input_ids"], "embedded")
    first = g.constant("first_norm.weight", np.ones(shape.hidden, np.float32))
    x = g.add("SimplifiedLayerNormalization", [residual, first], "first_norm", axis=-1, epsilon=1e-5, stash_type=1)
    for i in range(shape.layers):
        x, residual = normed(g, f"layers.{i}.mid_norm", residual, attention(g, i, x, shape), shape.hidden)
        x, residual = normed(g, f"layers.{i}.end_norm", residual, feed_forward(g, i, x, shape), shape.hidden)
    scores = g.add("MatMul", [x, g.weight("lm_head.weight", shape.hidden, shape.vocab, scale=0.5)], "scores")
    g.add("Add", [scores, g.constant("lm_head.bias", letter_bias(shape))], "logits")
    return onnx_model(g, shape)


def onnx_model(g, shape):
    def tensor(name, kind, dims):
        return helper.make_tensor_value_info(name, kind, dims)

    inputs = [
        tensor("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        tensor("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    outputs = [tensor("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", shape.vocab])]
    for i in range(shape.layers):
        for part in ("key", "value"):
            past = ["batch_size", shape.kv_heads, "past_sequence_length", shape.head]
            present = ["batch_size", shape.kv_heads, "total_sequence_length", shape.head]
            inputs.append(tensor(f"past_key_values.{i}.{part}", TensorProto.FLOAT, past))
            outputs.append(tensor(f"present.{i}.{part}", TensorProto.FLOAT, present))
    graph = helper.make_graph(g.nodes, "main_graph", inputs, outputs, g.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="make_tiny_model")
    model.ir_version = 10
    return model


def genai_config(shape):
    return {
        "model": {
            "bos_token_id": BOS,
            "context_length": shape.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": shape.head,
                "hidden_size": shape.hidden,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": shape.heads,
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
            },
            "eos_token_id": [END],
            "pad_token_id": PAD,
            "type": "llama",
            "vocab_size": shape.vocab,
        },
        "search": {
            "do_sample": False,
            "max_length": shape.context,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def byte_letters():
    """The letter that byte-level tokenizers write for each byte (printable ones stand for themselves)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(BYTES) if b not in kept]
    letters = {b: chr(b) for b in kept} | {b: chr(BYTES + n) for n, b in enumerate(moved)}
    return [letters[b] for b in range(BYTES)]


def tokenizer():
    def added(number, content):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {"id": number, "content": content, **flags}

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(BYTES + n, content) for n, content in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: number for number, letter in enumerate(byte_letters())},
            "merges": [],
        },
    }


def tokenizer_config(shape):
    return {
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": shape.context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def main(folder):
    shape = Shape()
    folder.mkdir(parents=True, exist_ok=True)
    model = decoder(shape)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    texts = {
        "genai_config.json": genai_config(shape),
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": tokenizer_config(shape),
    }
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "models/tiny"))
