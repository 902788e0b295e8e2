#!/usr/bin/env python3
"""Turns the GGUF file of SmolLM2-135M-Instruct into a folder in the layout of the onnxruntime-genai model builder.

Real weights for tests, measurements and `make up MODEL=smollm2`, without a model hub and without PyTorch. The graph has
only operators that the real builder writes: fused rotary embedding in GroupQueryAttention, past and present caches that
share one buffer. Precisions: fp32, int4 (MatMulNBits, blocks of 32, for CPUs) and fp16 (for GPUs); `--last-row` prunes
the output projection to the row of the last token, as the builder's option of that kind does.

Needs numpy and onnx and nothing of this repository, so that it also runs alone on another machine.
"""

import argparse
import json
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
BLOCK = 32
END_OF_TEXT, IM_START, IM_END = 0, 1, 2
CONTROL_TOKEN = 3


class Gguf:
    """A GGUF file: its metadata, and its tensors as float32 arrays. Format: ggml/docs/gguf.md of llama.cpp."""

    TEXT, ARRAY = 8, 9
    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    F32, Q4_1, Q8_0 = 0, 3, 8

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.place = 0
        magic, _version = self.number("I"), self.number("I")
        if magic != int.from_bytes(b"GGUF", "little"):
            raise SystemExit(f"{path} is no GGUF file")
        tensors, fields = self.number("Q"), self.number("Q")
        self.fields = {self.text(): self.value(self.number("I")) for _ in range(fields)}
        self.tensors = dict(self.tensor_entry() for _ in range(tensors))
        alignment = self.fields.get("general.alignment", 32)
        self.start = -(-self.place // alignment) * alignment

    def number(self, letter):
        value = struct.unpack_from("<" + letter, self.data, self.place)[0]
        self.place += struct.calcsize("<" + letter)
        return value

    def text(self):
        size = self.number("Q")
        self.place += size
        return self.data[self.place - size : self.place].decode("utf-8", "replace")

    def value(self, kind):
        if kind == self.TEXT:
            return self.text()
        if kind == self.ARRAY:
            element, count = self.number("I"), self.number("Q")
            return [self.value(element) for _ in range(count)]
        return self.number(self.SCALARS[kind])

    def tensor_entry(self):
        name, dimensions = self.text(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        return name, (shape, self.number("I"), self.number("Q"))

    def tensor(self, name):
        shape, kind, offset = self.tensors[name]
        count, place = int(np.prod(shape)), self.start + offset
        if kind == self.F32:
            values = np.frombuffer(self.data, "<f4", count, place)
        elif kind == self.Q8_0:
            layout = np.dtype([("scale", "<f2"), ("steps", "i1", BLOCK)])
            blocks = np.frombuffer(self.data, layout, count // BLOCK, place)
            values = blocks["scale"].astype(np.float32)[:, None] * blocks["steps"]
        elif kind == self.Q4_1:
            layout = np.dtype([("scale", "<f2"), ("least", "<f2"), ("steps", "u1", BLOCK // 2)])
            blocks = np.frombuffer(self.data, layout, count // BLOCK, place)
            steps = np.concatenate([blocks["steps"] & 15, blocks["steps"] >> 4], axis=1)
            values = blocks["scale"].astype(np.float32)[:, None] * steps + blocks["least"].astype(np.float32)[:, None]
        else:
            raise SystemExit(f"tensor {name} has type {kind}, which is not read here")
        return np.asarray(values, np.float32).reshape(shape)


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    vocab: int
    context: int
    rope_base: float
    epsilon: float

    @classmethod
    def of(cls, gguf):
        field = lambda name: gguf.fields["llama." + name]
        heads = field("attention.head_count")
        return cls(
            layers=field("block_count"),
            hidden=field("embedding_length"),
            heads=heads,
            kv_heads=field("attention.head_count_kv"),
            head=field("embedding_length") // heads,
            vocab=len(gguf.fields["tokenizer.ggml.tokens"]),
            context=field("context_length"),
            rope_base=field("rope.freq_base"),
            epsilon=field("attention.layer_norm_rms_epsilon"),
        )


class Graph:
    """Collects nodes and weights; every method returns the name of what it adds."""

    def __init__(self, precision):
        self.half = precision == "fp16"
        self.quantised = precision == "int4"
        self.element = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        self.nodes, self.weights = [], []

    def constant(self, name, array):
        if self.half and array.dtype == np.float32:
            array = array.astype(np.float16)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op, inputs, outputs, domain="", **attributes):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"/{outputs[0]}", domain=domain, **attributes))
        return outputs[0]

    def project(self, x, name, weight):
        """`x` times the transposed `weight`, which has a row for each output."""
        if not self.quantised:
            return self.add("MatMul", [x, self.constant(f"{name}.weight", weight.T)], name)
        steps, scales, zeros = quantise(weight)
        inputs = [x]
        for part, array in (("steps", steps), ("scales", scales), ("zeros", zeros)):
            inputs.append(self.constant(f"{name}.{part}", array))
        outputs, inner = weight.shape
        # Without an accuracy level: with level 4, activations as int8, one row alone goes another way than several
        # together, and its logits move by 2 to 6 % of their range.
        attributes = {"K": inner, "N": outputs, "bits": 4, "block_size": BLOCK}
        return self.add("MatMulNBits", inputs, name, MICROSOFT, **attributes)


def quantise(weight):
    """Four bits a weight, a scale and a zero point for each block of a row; two neighbours share a byte, the first low."""
    rows, inner = weight.shape
    blocks = weight.reshape(rows, inner // BLOCK, BLOCK)
    least, most = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    scales = np.where(most > least, (most - least) / 15, 1).astype(np.float32)
    zeros = np.clip(np.rint(-least / scales), 0, 15).astype(np.uint8)
    steps = np.clip(np.rint(blocks / scales[:, :, None]) + zeros[:, :, None], 0, 15).astype(np.uint8)
    return pairs(steps), scales, pairs(zeros)


def pairs(nibbles):
    if nibbles.shape[-1] % 2:
        nibbles = np.concatenate([nibbles, np.zeros_like(nibbles[..., :1])], axis=-1)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def lengths(g):
    """What GroupQueryAttention wants to know, from the attention mask: its row sums less one, and its width."""
    one_axis = g.constant("one_axis", np.array([1], np.int64))
    axis = g.constant("axis", np.array(1, np.int64))
    sums = g.add("ReduceSum", ["attention_mask", one_axis], "mask_sum", keepdims=0)
    g.add("Cast", [g.add("Sub", [sums, one_axis], "mask_last")], "seqlens_k", to=TensorProto.INT32)
    width = g.add("Gather", [g.add("Shape", ["attention_mask"], "mask_shape"), axis], "mask_width", axis=0)
    g.add("Cast", [width], "total_seq_len", to=TensorProto.INT32)


def rotary(g, shape):
    frequency = 1 / shape.rope_base ** (np.arange(0, shape.head, 2) / shape.head)
    angle = np.outer(np.arange(shape.context), frequency)
    g.constant("cos_cache", np.cos(angle).astype(np.float32))
    g.constant("sin_cache", np.sin(angle).astype(np.float32))


def halves(weight, heads, shape):
    """GGUF has the two numbers that a rotation turns side by side; the operator wants one in each half of the head."""
    return weight.reshape(heads, shape.head // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def attention(g, i, x, gguf, shape):
    part = lambda name: gguf.tensor(f"blk.{i}.attn_{name}.weight")
    query, key = halves(part("q"), shape.heads, shape), halves(part("k"), shape.kv_heads, shape)
    qkv = g.project(x, f"layers.{i}.qkv", np.concatenate([query, key, part("v")]))
    past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
    inputs = [qkv, "", "", *past, "seqlens_k", "total_seq_len", "cos_cache", "sin_cache"]
    outputs = [f"layers.{i}.attention", f"present.{i}.key", f"present.{i}.value"]
    g.add(
        "GroupQueryAttention", inputs, outputs, MICROSOFT,
        num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=1, rotary_interleaved=0,
        scale=float(shape.head**-0.5),
    )
    return g.project(outputs[0], f"layers.{i}.o", part("output"))


def feed_forward(g, i, x, gguf):
    part = lambda name: gguf.tensor(f"blk.{i}.ffn_{name}.weight")
    gate = g.project(x, f"layers.{i}.gate", part("gate"))
    up = g.project(x, f"layers.{i}.up", part("up"))
    silu = g.add("Mul", [gate, g.add("Sigmoid", [gate], f"layers.{i}.sigmoid")], f"layers.{i}.silu")
    return g.project(g.add("Mul", [silu, up], f"layers.{i}.mixed"), f"layers.{i}.down", part("down"))


def normed(g, name, residual, delta, weight, shape):
    scale = g.constant(f"{name}.weight", weight)
    outputs = [f"{name}.out", "", "", f"{name}.residual"]
    g.add("SkipSimplifiedLayerNormalization", [residual, delta, scale], outputs, MICROSOFT, epsilon=shape.epsilon)
    return outputs[0], outputs[3]


def decoder(gguf, shape, precision, last_row):
    g = Graph(precision)
    lengths(g)
    rotary(g, shape)
    embedding = gguf.tensor("token_embd.weight")
    residual = g.add("Gather", [g.constant("embed.weight", embedding), "input_ids"], "embedded")
    first = g.constant("first_norm.weight", gguf.tensor("blk.0.attn_norm.weight"))
    x = g.add(
        "SimplifiedLayerNormalization", [residual, first], "first_norm", axis=-1, epsilon=shape.epsilon, stash_type=1
    )
    for i in range(shape.layers):
        following = f"blk.{i + 1}.attn_norm.weight" if i + 1 < shape.layers else "output_norm.weight"
        mid, end = gguf.tensor(f"blk.{i}.ffn_norm.weight"), gguf.tensor(following)
        x, residual = normed(g, f"layers.{i}.mid_norm", residual, attention(g, i, x, gguf, shape), mid, shape)
        x, residual = normed(g, f"layers.{i}.end_norm", residual, feed_forward(g, i, x, gguf), end, shape)
    if last_row:
        x = g.add("Gather", [x, g.constant("last", np.array([-1], np.int64))], "last_hidden", axis=1)
    g.project(x, "logits", embedding)
    return onnx_model(g, shape, last_row)


def onnx_model(g, shape, last_row):
    tensor = helper.make_tensor_value_info
    rows = 1 if last_row else "sequence_length"
    inputs = [
        tensor("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        tensor("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    outputs = [tensor("logits", g.element, ["batch_size", rows, shape.vocab])]
    for i in range(shape.layers):
        for part in ("key", "value"):
            past = ["batch_size", shape.kv_heads, "past_sequence_length", shape.head]
            present = ["batch_size", shape.kv_heads, "total_sequence_length", shape.head]
            inputs.append(tensor(f"past_key_values.{i}.{part}", g.element, past))
            outputs.append(tensor(f"present.{i}.{part}", g.element, present))
    graph = helper.make_graph(g.nodes, "main_graph", inputs, outputs, g.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="smollm2")
    model.ir_version = 10
    return model


def genai_config(shape):
    return {
        "model": {
            "bos_token_id": IM_START,
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
            "eos_token_id": [IM_END, END_OF_TEXT],
            "pad_token_id": IM_END,
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
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def tokenizer(gguf):
    tokens = gguf.fields["tokenizer.ggml.tokens"]
    kinds = gguf.fields["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **flags}
            for number, (token, kind) in enumerate(zip(tokens, kinds))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in gguf.fields["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(gguf):
    return {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer",
        "chat_template": gguf.fields["tokenizer.chat_template"],
    }


def convert(gguf, folder, precision, last_row=False):
    shape = Shape.of(gguf)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(decoder(gguf, shape, precision, last_row), str(folder / "model.onnx"))
    texts = {
        "genai_config.json": genai_config(shape),
        "tokenizer.json": tokenizer(gguf),
        "tokenizer_config.json": tokenizer_config(gguf),
    }
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=["fp32", "int4", "fp16"], default="fp32")
    parser.add_argument("--last-row", action="store_true", help="the graph gives the logits of the last token alone")
    arguments = parser.parse_args()
    convert(Gguf(arguments.gguf), arguments.folder, arguments.precision, arguments.last_row)


if __name__ == "__main__":
    main()
