"""A classifier as an ONNX graph, from token ids to logits and probabilities.

The graph has the inputs that tokenizers and servers use: `input_ids` and `attention_mask`, which is 1
for tokens and 0 for padding. Padding may be on either side, and the ids at padding are ignored. The
graph moves the tokens of each text to the front, counts them, and reads each text where its head
does. An empty row is read as <|endoftext|>, and a temperature or the units of values are applied. The
end token is the tokenizer's work, because it must come after the cut of a long text.

The graph is written node by node. torch.onnx.export would need another package and 9 seconds for the
miniature, and its graph computes every token in the last block. This one computes only the token
that is read, if the heads read one (see `partial_blocks`).

B texts, T tokens in the longest text, C = n_embd, H = n_head, D = C / H, K outputs of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.heads import layer_read, layers_by_name
from gpt2_from_scratch.classifier.hugging_face import (
    heads_of_export,
    merged_parameters,
    refuse_infinite_weights,
    tokenizer_json,
    whitespace_only,
)
from gpt2_from_scratch.classifier.settings import READ_ALL, READ_LAST, HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import logit_per_class
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.model import LAYER_NORM_EPS
from gpt2_from_scratch.gpt2.tokenizer import END_OF_TEXT

OPSET, IR_VERSION = 20, 9  # the first opset with GPT-2's GELU; onnxruntime 1.17 reads both
ACTIVATIONS = {nn.Tanh: "Tanh", nn.ReLU: "Relu", nn.GELU: "Gelu"}
# {task: the function that turns logits into probabilities; empty for a task whose answers are values}
PROBABILITIES = {
    "classification": "Softmax",
    "token-classification": "Softmax",
    "multi-label": "Sigmoid",
    "regression": "",
}


@dataclass
class Graph:
    """Nodes and weights under construction. A call adds a node and returns its output's name."""

    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __call__(
        self, op: str, *inputs: str, output: str = "", n: int = 1, **attributes: Any
    ) -> Any:
        """Add a node of type `op` with `n` outputs; `output` names an output of the whole graph."""
        from onnx import helper

        name = output or f"{op}_{len(self.nodes)}"
        outputs = [name] if n == 1 else [f"{name}.{k}" for k in range(n)]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return name if n == 1 else outputs

    def constant(self, *values: int | float, dtype: type = np.int64, scalar: bool = False) -> str:
        """The name of a constant vector, or of a scalar."""
        name = f"{np.dtype(dtype).name}{'' if scalar else 's'} {' '.join(map(str, values))}"
        self.weights[name] = np.array(values[0] if scalar else values, dtype)
        return name


@dataclass(frozen=True)
class Texts:
    """Names of values in the graph that describe a batch of texts."""

    ids: str  # (B, T) the tokens of each text first, then <|endoftext|>
    T: str  # (1,)
    lengths: str  # (B,) at least 1
    real: str  # (B, T) bool
    rank: str  # (B, T) where each column of the attention mask is in `ids`


def to_onnx(classifier: Classifier, head_name: str = "") -> tuple[Any, dict[str, Any]]:
    """Convert a classifier with all its heads, or one of them, to ONNX.

    The classifier does not change. Returns the model, an `onnx.ModelProto`, and what a program needs
    to know to use it, as JSON. Raises UsageError for what the graph cannot compute, and
    CheckpointError for NaN and infinite numbers.
    """
    from onnx import TensorProto, helper, numpy_helper

    heads = heads_to_export(classifier, head_name)
    model, description = classifier.model, classifier.description
    weights = merged_parameters(model)
    refuse_infinite_weights(weights)
    g = Graph()
    texts = _texts(g, classifier.tokenizer.end_of_text_id, description.pad_to)
    at = {head.name: layer_read(head, model) for head in heads}
    top = max(at.values())
    n_ctx = description.pad_to or description.max_tokens
    for name, value in weights.items():
        if name.startswith(("wte.", *(f"blocks.{n}." for n in range(top)))):
            g.weights[name] = _as_factor(name, value)
    g.weights["wpe.weight"] = _array(weights["wpe.weight"][:n_ctx])
    states = _States(g, texts, model.config.n_head, description.causal_mask, top)
    x = g(
        "Add",
        g("Gather", "wte.weight", texts.ids),
        g("Slice", "wpe.weight", g.constant(0), texts.T),
    )
    read_at_top = [head for head in heads if at[head.name] == top]
    poolings = {head.pooling if head.reads_one_state else "" for head in read_at_top}
    alone = len(poolings) == 1 and not poolings & {"", *READ_ALL}
    outputs: dict[str, dict[str, str]] = {}
    for n in range(top + 1):
        for head in (head for head in heads if at[head.name] == n):
            state = states.read(head, x, weights, one_position=alone and n == top > 0)
            outputs[head.name] = _outputs(g, classifier, head, state, texts, len(heads) > 1)
        if n < top:
            only = read_at_top[0].pooling if alone and n == top - 1 else ""
            x = states.block(n, x, only)
    how = _how_to_use(classifier, heads, outputs)
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for head in heads
        for name, kind, shape in _shapes(head, outputs[head.name], TensorProto)
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in g.weights.items()]
    graph = helper.make_graph(g.nodes, "gpt2_classifier", inputs, values, initializers)
    proto = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="gpt2_from_scratch",
    )
    return proto, how


def heads_to_export(classifier: Classifier, name: str = "") -> list[HeadConfig]:
    """The heads to export. Raises UsageError if the graph cannot give the same answers."""
    chosen = heads_of_export(classifier, name, "the graph")
    if others := [head for head in chosen if head.task not in PROBABILITIES]:
        raise UsageError(
            f"head {others[0].name!r} is for {others[0].task}, whose answers are not computed by the "
            f"network alone; --to onnx exports {', '.join(PROBABILITIES)}."
        )
    return chosen


def expected_outputs(head: HeadConfig, outputs: Tensor) -> Tensor:
    """What the graph's logits or values must be, from a head's outputs in PyTorch."""
    outputs = logit_per_class(head, outputs.double().cpu()) / head.temperature
    unit = torch.tensor(head.scale or 1.0, dtype=torch.float64)  # only values have another unit
    return outputs * unit + torch.tensor(head.center or 0.0, dtype=torch.float64)


def gives_values(head: HeadConfig) -> bool:
    """Whether a head's answers are numbers instead of labels with probabilities."""
    return not PROBABILITIES[head.task]


def padding_tokenizer(classifier: Classifier) -> dict[str, Any]:
    """tokenizer.json of a tokenizer that also cuts and pads, so it needs no other settings.

    The string <|endoftext|> in a text is ordinary text for it. Without an end token, texts of white
    space alone have no tokens, and the graph reads them as <|endoftext|>.
    """
    contents = tokenizer_json(classifier)
    truncation = {
        "direction": "Right",
        "max_length": classifier.description.max_tokens,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    padding = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": classifier.tokenizer.end_of_text_id,
        "pad_type_id": 0,
        "pad_token": END_OF_TEXT,
    }
    normalizer = contents["normalizer"] or whitespace_only()
    return contents | {
        "truncation": truncation,
        "padding": padding,
        "normalizer": normalizer,
        "added_tokens": [],
    }


def _how_to_use(
    classifier: Classifier, heads: Sequence[HeadConfig], outputs: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """What a program needs to know to use the graph."""
    description = classifier.description
    return {
        "opset": OPSET,
        "inputs": ["input_ids", "attention_mask"],
        "max_tokens": description.max_tokens,
        "reads_end_token": description.reads_end_token,
        "heads": [
            {
                "name": head.name,
                "task": head.task,
                "labels": [*head.labels],
                **({"thresholds": [*head.thresholds]} if head.thresholds else {}),
                "outputs": outputs[head.name],
            }
            for head in heads
        ],
    }


def _shapes(head: HeadConfig, outputs: dict[str, str], kinds: Any) -> list[tuple[str, Any, list]]:
    axes = ["batch"] if head.reads_one_state else ["batch", "sequence"]
    number = kinds.DOUBLE if gives_values(head) else kinds.FLOAT
    return [(name, number, [*axes, len(head.labels)]) for name in outputs.values()]


# --- weights ---


def _array(value: Tensor) -> np.ndarray:
    return value.float().cpu().contiguous().numpy()


def _as_factor(name: str, value: Tensor) -> np.ndarray:
    """A weight as the right factor of MatMul; embeddings, gains and biases as they are."""
    return _array(value.t() if value.dim() == 2 and not name.startswith("wte.") else value)


# --- parts of the graph ---


def _texts(g: Graph, end_of_text: int, pad_to: int | None) -> Texts:
    """Move the tokens of each text to the front, as `heads.pad_right` does, and count them."""
    B, T = g("Shape", "input_ids", start=0, end=1), g("Shape", "input_ids", start=1, end=2)
    # columns of padding: up to `pad_to`, or one if no text of the batch has a token
    more = g("Concat", B, g.constant(pad_to or 1), axis=0)
    T = g.constant(pad_to) if pad_to else g("Max", T, g.constant(1))
    padded = []
    for name, filler in (("input_ids", end_of_text), ("attention_mask", 0)):
        filled = g("Expand", g.constant(filler), more)
        joined = g("Concat", name, filled, axis=1)
        padded.append(g("Slice", joined, g.constant(0), T, g.constant(1)))
    ids, mask = padded
    zero, one = g.constant(0, scalar=True), g.constant(1, scalar=True)
    columns = g("Range", zero, g("Squeeze", T), one)  # (T,)
    # tokens come first, in their order: their keys are T, T - 1, ..., and those of padding are lower
    keys = g("Sub", g("Mul", mask, T), columns)
    _, order = g("TopK", keys, T, axis=1, n=2)
    ids = g("GatherElements", ids, order, axis=1)
    count = g("ReduceSum", mask, g.constant(1), keepdims=1)  # (B, 1)
    ids = g("Where", g("Less", columns, count), ids, g.constant(end_of_text))
    lengths = g("Max", count, g.constant(1))
    rank = g("Sub", g("CumSum", mask, one), g.constant(1))
    rank = g("Max", rank, g.constant(0))
    real = g("Less", columns, lengths)
    return Texts(ids, T, g("Squeeze", lengths, g.constant(1)), real, rank)


class _States:
    """The residual stream: blocks on it, and the states that heads read from it."""

    def __init__(self, g: Graph, texts: Texts, n_head: int, causal_mask: bool, top: int):
        self.g, self.texts, self.n_head = g, texts, n_head
        zero, never = (g.constant(x, dtype=np.float32) for x in (0.0, -np.inf))
        columns = g(
            "Range",
            g.constant(0, scalar=True),
            g("Squeeze", texts.T),
            g.constant(1, scalar=True),
        )
        earlier = g("LessOrEqual", columns, g("Unsqueeze", columns, g.constant(1)))
        # added to the scores: 0 for positions that are read, and -inf for others
        self.causal = g("Where", earlier, zero, never)  # (T, T)
        self.whole = ""
        if not causal_mask and top > 1:
            whole = g("Where", texts.real, zero, never)
            self.whole = g("Unsqueeze", whole, g.constant(1, 2))  # (B, 1, 1, T)
        self.top = top

    def block(self, n: int, x: str, only: str = "") -> str:
        """Run block n: (B, T, C) -> (B, T, C), or (B, 1, C) at the one position of pooling `only`."""
        g, name = self.g, f"blocks.{n}"
        qkv = self.linear(f"{name}.attn.c_attn", self.norm(f"{name}.ln_1", x))
        q, k, v = g("Split", qkv, axis=2, num_outputs=3, n=3)
        # without the causal mask, the last block still has it
        seen = self.whole if self.whole and n < self.top - 1 else self.causal
        if only:
            q, x = self.at(q, only), self.at(x, only)
            rows = g("Gather", self.causal, self.positions(only))  # (B, T)
            seen = g("Unsqueeze", rows, g.constant(1, 2))
        D = self.g.weights[f"{name}.attn.c_proj.weight"].shape[0] // self.n_head
        q, k, v = (
            g("Transpose", g("Reshape", part, g.constant(0, 0, self.n_head, D)), perm=perm)
            for part, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        scores = g("Mul", g("MatMul", q, k), g.constant(D**-0.5, dtype=np.float32))
        w = g("Softmax", g("Add", scores, seen), axis=3)  # (B, H, T, T) or (B, H, 1, T)
        y = g("Transpose", g("MatMul", w, v), perm=[0, 2, 1, 3])
        y = g("Reshape", y, g.constant(0, 0, self.n_head * D))
        x = g("Add", x, self.linear(f"{name}.attn.c_proj", y))
        wide = self.linear(f"{name}.mlp.c_fc", self.norm(f"{name}.ln_2", x))
        wide = g("Gelu", wide, approximate="tanh")
        return g("Add", x, self.linear(f"{name}.mlp.c_proj", wide))

    def read(
        self, head: HeadConfig, x: str, weights: dict[str, Tensor], *, one_position: bool
    ) -> str:
        """The states that a head reads: (B, C), or (B, T, C) for a head that answers every token."""
        g = self.g
        if head.reads_one_state and head.pooling not in READ_ALL:
            x = g("Squeeze", x if one_position else self.at(x, head.pooling), g.constant(1))
        if head.final_norm:
            g.weights |= {
                f"ln_f.{name}": _array(weights[f"ln_f.{name}"]) for name in ("weight", "bias")
            }
            x = self.norm("ln_f", x)
        if head.reads_one_state and head.pooling == "mean_position":
            x = g("ReduceMean", x, g.constant(1), keepdims=0)
        elif head.reads_one_state and head.pooling == "mean":
            real = g("Unsqueeze", g("Cast", self.texts.real, to=1), g.constant(2))
            total = g("ReduceSum", g("Mul", x, real), g.constant(1), keepdims=0)
            lengths = g("Cast", self.texts.lengths, to=1)
            x = g("Div", total, g("Unsqueeze", lengths, g.constant(1)))
        return x

    def at(self, x: str, pooling: str) -> str:
        """One position of each text: (B, T, C) -> (B, 1, C)."""
        g = self.g
        rows = g("Unsqueeze", self.positions(pooling), g.constant(1, 2))  # (B, 1, 1)
        return g("GatherND", x, rows, batch_dims=1)

    def positions(self, pooling: str) -> str:
        """The one position at which each text is read, as `heads.read_positions`: (B,)."""
        g, lengths = self.g, self.texts.lengths
        if pooling in READ_LAST:
            return g("Sub", lengths, g.constant(1))
        zeros = g("Mul", lengths, g.constant(0))
        if pooling == "last_position":
            return g("Add", zeros, g("Sub", self.texts.T, g.constant(1)))
        return zeros  # first_token

    def norm(self, name: str, x: str) -> str:
        return self.g(
            "LayerNormalization", x, f"{name}.weight", f"{name}.bias", epsilon=LAYER_NORM_EPS
        )

    def linear(self, name: str, x: str) -> str:
        return self.g("Add", self.g("MatMul", x, f"{name}.weight"), f"{name}.bias")


def _outputs(
    g: Graph, classifier: Classifier, head: HeadConfig, x: str, texts: Texts, several: bool
) -> dict[str, str]:
    """Run a head's layers, and return the names of the graph's outputs: {what: name}."""
    model = classifier.model
    layers = layers_by_name(model, classifier.description.heads)[head.name]
    weights = merged_parameters(layers)
    for name, part in layers.named_modules():
        if type(part) in ACTIVATIONS:
            x = g(ACTIVATIONS[type(part)], x)
        elif f"{name}.weight".lstrip(".") in weights:
            ends = [f"{name}.{end}".lstrip(".") for end in ("weight", "bias")]
            names = [f"head.{head.name}.{end}" for end in ends]
            g.weights |= {
                full: _as_factor(end, weights[end]) for end, full in zip(ends, names, strict=True)
            }
            x = g("Add", g("MatMul", x, names[0]), names[1])
    prefix = f"{head.name}_" if several else ""
    if gives_values(head):
        wide = g("Cast", x, to=11)  # float64, because float32 rounds dates in seconds
        scaled = g("Mul", wide, g.constant(*(head.scale or [1.0]), dtype=np.float64))
        center = g.constant(*(head.center or [0.0]), dtype=np.float64)
        return {"values": g("Add", scaled, center, output=f"{prefix}values")}
    if head.one_output:  # a sigmoid of z is a softmax of 0 and z
        x = g("Concat", g("Mul", x, g.constant(0.0, dtype=np.float32)), x, axis=1)
    if not head.reads_one_state:  # back to the columns of the attention mask
        x = g("GatherND", x, g("Unsqueeze", texts.rank, g.constant(2)), batch_dims=1)
    x = g("Div", x, g.constant(head.temperature, dtype=np.float32), output=f"{prefix}logits")
    function = PROBABILITIES[head.task]
    axis = {"axis": -1} if function == "Softmax" else {}
    return {"logits": x, "probabilities": g(function, x, output=f"{prefix}probabilities", **axis)}
