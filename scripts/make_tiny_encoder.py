#!/usr/bin/env python3
"""Writes models/tiny-encoder: an encoder with random weights, in the layout in which sentence-transformers are published.

It exists so that tests run a real encoder through ONNX Runtime without a download. The same seed gives the same bytes.
One layer of attention with a mask, so that a text's vector depends on the order and number of its tokens and on nothing
that pads it. Its tokenizer is that of models/tiny, with a token before and one behind each text.

The output is committed; run this only to change it:

    python3 -m venv /tmp/tiny && /tmp/tiny/bin/pip install numpy==2.4.6 onnx==1.23.2
    /tmp/tiny/bin/python scripts/make_tiny_encoder.py models/tiny models/tiny-encoder
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

VOCAB, WIDTH, CONTEXT, INNER = 272, 32, 128, 64
BOS, END = "<|bos|>", "<|end|>"


class Graph:
    """Collects nodes and weights; every method returns the name of what it adds."""

    def __init__(self):
        self.random = np.random.default_rng(7)
        self.nodes, self.weights = [], []

    def constant(self, name, array):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, name, *shape):
        return self.constant(name, (self.random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def add(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def attention(graph, x):
    """Every token looks at all of its text, and at nothing that pads it."""
    parts = {part: graph.add("MatMul", [x, graph.weight(f"{part}.weight", WIDTH, WIDTH)], part) for part in ("q", "k", "v")}
    turned = graph.add("Transpose", [parts["k"]], "k.turned", perm=[0, 2, 1])
    scores = graph.add("MatMul", [parts["q"], turned], "scores")
    seen = graph.add("Cast", ["attention_mask"], "seen", to=TensorProto.FLOAT)
    seen = graph.add("Unsqueeze", [seen, graph.constant("one", np.array([1], np.int64))], "seen.wide")
    hidden = graph.add("Sub", [seen, graph.constant("all", np.array(1, np.float32))], "hidden")
    hidden = graph.add("Mul", [hidden, graph.constant("far", np.array(1e9, np.float32))], "hidden.far")
    shares = graph.add("Softmax", [graph.add("Add", [scores, hidden], "scores.seen")], "shares", axis=-1)
    return graph.add("Add", [x, graph.add("MatMul", [shares, parts["v"]], "attended")], "attention")


def build(path):
    graph = Graph()
    words = graph.add("Gather", [graph.weight("words", VOCAB, WIDTH), "input_ids"], "embedded")
    length = graph.add("Gather", [graph.add("Shape", ["input_ids"], "shape"), graph.constant("at", np.array([1], np.int64))], "length")
    start = graph.constant("start", np.array([0], np.int64))
    places = graph.add("Slice", [graph.weight("places", CONTEXT, WIDTH), start, length], "placed")
    x = attention(graph, graph.add("Add", [words, places], "input"))
    inner = graph.add("Tanh", [graph.add("MatMul", [x, graph.weight("up", WIDTH, INNER)], "inner")], "inner.bent")
    graph.add("Add", [x, graph.add("MatMul", [inner, graph.weight("down", INNER, WIDTH)], "outer")], "last_hidden_state")
    takes = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size", "sequence_length"])
        for name in ("input_ids", "attention_mask")
    ]
    gives = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch_size", "sequence_length", WIDTH])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "encoder", takes, [gives], graph.weights),
        opset_imports=[helper.make_opsetid("", 21)],
    )
    model.ir_version = 10
    save(model, path)


def tokenizer(path):
    """The same with a beginning and an end."""
    told = json.loads(path.read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in told["added_tokens"]}
    special = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    sequence = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special(BOS), sequence("A", 0), special(END)],
        "pair": [special(BOS), sequence("A", 0), special(END), sequence("B", 1), special(END)],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (BOS, END)},
    }
    return json.dumps(told, indent=None, ensure_ascii=False)


def main():
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    build(target / "model.onnx")
    (target / "tokenizer.json").write_text(tokenizer(source / "tokenizer.json"), encoding="utf-8")
    config = {"hidden_size": WIDTH, "max_position_embeddings": CONTEXT, "vocab_size": VOCAB}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
