"""Probes: what can be read off a frozen model at each layer, by a linear classifier.

A probe is a logistic regression on one state a text. One pass over the texts gives the states of
every layer: the residual stream behind the embeddings and behind each block, as it is (raw) and
through the model's final norm, read in each way of `config.POOLINGS`. Nothing of the model trains.

Source: Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes".

U rows of a batch, B texts of a rectangle, T tokens of its longest, C = n_embd, N texts, L = n_layer
+ 1 layers, K classes.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gpt2_from_scratch.classifier.freezing import plain_depth
from gpt2_from_scratch.classifier.heads import pool, read_positions
from gpt2_from_scratch.classifier.settings import OF_PADS, POOLINGS, Pooling
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.reports.plots import BLUE, DARK, VERMILION
from gpt2_from_scratch.speed.batching import encode_texts
from gpt2_from_scratch.speed.devices import arithmetic
from gpt2_from_scratch.speed.frozen_trunk import Trunk, batches
from gpt2_from_scratch.studies.logistic_regression import fit_logistic, standardize, with_ones

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """One probe: where it read the model, and how often it was right."""

    layer: int  # blocks in front of the point it reads; 0: behind the embeddings
    final_norm: bool  # it read through ln_f; False: the residual stream as it is
    pooling: Pooling
    l2: float  # the penalty, chosen on the validation part
    n_train: int
    train_accuracy: float
    val_accuracy: float
    correct: int  # of the test part
    total: int
    interval: tuple[float, float]  # 95 % Wilson interval of the accuracy
    majority: float  # what always giving the commonest label of the training part gets there

    @property
    def accuracy(self) -> float:
        """The share of right answers on the test part."""
        return self.correct / self.total


def format_probes(probes: Sequence[Probe]) -> str:
    """The test accuracies as a table: a row a layer, and of each pooling raw and final-normed."""
    poolings = list(dict.fromkeys(probe.pooling for probe in probes))
    found = {(p.layer, p.pooling, p.final_norm): 100 * p.accuracy for p in probes}
    lines = [
        f"test accuracy of a probe at each layer, % of {probes[0].total:,} texts; "
        f"always the commonest label: {100 * probes[0].majority:.1f}",
        "",
        "       " + "".join(f"  {pooling:>15}" for pooling in poolings),
        "  layer" + "      raw  normed" * len(poolings),
    ]
    for layer in sorted({probe.layer for probe in probes}):
        pairs = [(found[layer, p, False], found[layer, p, True]) for p in poolings]
        lines.append(
            f"{layer:7d}" + "".join(f"  {raw:7.1f} {normed:7.1f}" for raw, normed in pairs)
        )
    widest = max(probes, key=lambda p: p.interval[1] - p.interval[0])
    half = 50 * (widest.interval[1] - widest.interval[0])
    lines += ["", f"95 % intervals reach up to {half:.1f} points to either side"]
    return "\n".join(lines)


# all but those that read pads, for which every text is padded: on short messages six times the work
WITHOUT_PADS: tuple[Pooling, ...] = ("last_token", "first_token", "mean")
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
AT_ONCE = 8  # probes that are fitted together: some 20 MB of states each at 124M's width


@dataclass(frozen=True)
class Parts:
    """Labels of a split's texts, in the order train, val, test."""

    labels: Tensor  # (N,) class numbers
    sizes: tuple[int, int, int]
    num_classes: int
    majority: float  # of the test part, what the commonest training label gets right


def probe_layers(
    model: GPT2,
    tokenizer: Tokenizer,
    split: Split,
    *,
    poolings: Sequence[Pooling] = WITHOUT_PADS,
    penalties: Sequence[float] = PENALTIES,
    dtype: torch.dtype = torch.float32,
) -> list[Probe]:
    """A probe at every layer, raw and final-normed, for each pooling: fitted on the training part,
    its penalty chosen by the validation part's cross-entropy, scored on the test part.

    For `last_position` and `mean_position` texts are padded with <|endoftext|> to the longest of the training part, and
    longer ones cut to it, as the lecture does; no other pooling sees that. All states are held in
    memory: 8 N L C bytes a pooling. Raises UsageError for an unknown pooling, a penalty that is not
    above 0, and a model with parts that are not GPT-2's; DataError for an empty part, for labels
    that are no strings, and for one that the training part does not have.
    """
    _check_settings(model, poolings, penalties)
    parts = _labels_of(split)
    texts = [message.text for part in (split.train, split.val, split.test) for message in part]
    encoded, cut = encode_texts(texts, tokenizer, model.config.n_ctx)
    if any(cut):
        log.warning(
            f"{sum(cut)} of {len(cut)} texts are longer than {model.config.n_ctx} tokens and were cut"
        )
    pad_to = max(len(ids) for ids in encoded[: parts.sizes[0]])
    trunk = Trunk(model, len(model.blocks), arithmetic(dtype, model.wte.weight.device))
    states = pooled_states(trunk, model.ln_f, encoded, poolings, tokenizer.end_of_text_id, pad_to)
    with progress_bar(total=len(states) * (trunk.depth + 1), desc="probes") as bar:
        probes = []
        for (pooling, final_norm), x in states.items():  # x (L, N, C)
            for first in range(0, len(x), AT_ONCE):
                layers = range(first, min(first + AT_ONCE, len(x)))
                scores = _fit(x[layers.start : layers.stop], parts, sorted(penalties, reverse=True))
                probes += [
                    _probe(n, final_norm, pooling, parts, *score)
                    for n, score in zip(layers, scores, strict=True)
                ]
                bar.update(len(layers))
    return probes


@torch.no_grad()
def pooled_states(
    trunk: Trunk,
    ln_f: Callable[[Tensor], Tensor],
    encoded: Sequence[Sequence[int]],
    poolings: Sequence[Pooling],
    pad_id: int,
    pad_to: int,
) -> dict[tuple[Pooling, bool], Tensor]:
    """{(pooling, final-normed): one state of each text at each layer (L, N, C)}, from one pass.

    A padded text is a longer text, and attention looks back only: what stands at its real tokens is
    what stands there without pads. So one pass over the padded texts serves every pooling.
    """
    texts = encoded
    if {*OF_PADS} & {*poolings}:
        texts = [[*ids, *[pad_id] * (pad_to - len(ids))] for ids in encoded]
    lengths = torch.tensor([len(ids) for ids in encoded], device=trunk.device)
    size = (trunk.depth + 1, len(encoded), trunk.wte.shape[1])
    states = {(p, final_norm): torch.empty(size) for p in poolings for final_norm in (False, True)}
    with progress_bar(
        total=sum(map(len, texts)), desc="states", unit=" tokens", unit_scale=True
    ) as bar:
        for numbers in batches(texts, trunk.tokens):
            packed = trunk.pack([texts[n] for n in numbers])
            which = [(r.rows, [numbers[n] for n in r.texts]) for r in packed.rectangles]
            for layer, x in enumerate(trunk.layers(packed)):
                normed = ln_f(x)  # (U, C)
                for (pooling, final_norm), found in states.items():
                    for rows, batch in which:
                        found[layer, batch] = _pooled(
                            normed if final_norm else x, rows, lengths[batch], pooling, pad_to
                        ).cpu()
            bar.update(sum(len(texts[n]) for n in numbers))
    return states


def _pooled(x: Tensor, rows: Tensor, lengths: Tensor, pooling: Pooling, pad_to: int) -> Tensor:
    """One state a text: x (U, C), the rows of each text (B, T), its real tokens (B,) -> (B, C)."""
    if pooling == "mean":
        return pool(x[rows], lengths, pooling)
    if pooling == "mean_position":
        return pool(x[rows[:, :pad_to]], lengths, pooling)
    at = read_positions(lengths, pad_to, pooling)
    return x[rows.gather(1, at[:, None]).flatten()]


def _fit(
    x: Tensor, parts: Parts, penalties: Sequence[float]
) -> list[tuple[float, float, float, int]]:
    """(penalty, training accuracy, validation accuracy, right test answers) of each layer's probe.

    x (P, N, C). From the strongest penalty to the weakest, each from where the one before ended; of
    equals the strongest is kept.
    """
    x = standardize(x, parts.sizes[0])
    train, val, test = x.split(parts.sizes, dim=1)
    y_train, y_val, y_test = parts.labels.split(parts.sizes)
    best: list[tuple[float, tuple[float, float, float, int]]] = []
    weights = None
    for l2 in penalties:
        weights = fit_logistic(train, y_train, parts.num_classes, l2, start=weights)
        fitted, chosen, scored = (with_ones(part) @ weights for part in (train, val, test))
        losses = [F.cross_entropy(logits, y_val).item() for logits in chosen]
        right = zip(
            losses,
            _right(fitted, y_train),
            _right(chosen, y_val),
            _right(scored, y_test),
            strict=True,
        )
        now = [(loss, (l2, a / len(y_train), b / len(y_val), c)) for loss, a, b, c in right]
        best = [min(pair, key=lambda p: p[0]) for pair in zip(best or now, now, strict=True)]
    return [score for _, score in best]


def _right(logits: Tensor, labels: Tensor) -> list[int]:
    """How many answers of each probe are right: (P, N, K), (N,) -> P numbers."""
    return (logits.argmax(dim=2) == labels).sum(dim=1).tolist()


def _probe(
    layer: int,
    final_norm: bool,
    pooling: Pooling,
    parts: Parts,
    l2: float,
    train_accuracy: float,
    val_accuracy: float,
    correct: int,
) -> Probe:
    total = parts.sizes[2]
    return Probe(
        layer,
        final_norm,
        pooling,
        l2,
        parts.sizes[0],
        train_accuracy,
        val_accuracy,
        correct,
        total,
        wilson_interval(correct, total),
        parts.majority,
    )


def _labels_of(split: Split) -> Parts:
    parts = {"training": split.train, "validation": split.val, "test": split.test}
    for name, messages in parts.items():
        if not messages:
            raise DataError(f"the {name} part has no texts; probes need all three parts")
        for message in messages:
            if not isinstance(message.label, str):
                raise DataError(
                    f"probes tell classes apart: a label must be a string, not {message.label!r:.80}"
                )
    counts = Counter(message.label for message in split.train)
    names = sorted(counts)
    if len(names) < 2:
        raise DataError(f"the training part has one label only, {names}: nothing to tell apart")
    unknown = sorted({m.label for m in [*split.val, *split.test]} - counts.keys())
    if unknown:
        raise DataError(f"labels {unknown} are not in the training part, which has {names}")
    labels = [names.index(m.label) for messages in parts.values() for m in messages]
    commonest = max(names, key=lambda name: counts[name])
    majority = sum(m.label == commonest for m in split.test) / len(split.test)
    sizes = (len(split.train), len(split.val), len(split.test))
    return Parts(torch.tensor(labels), sizes, len(names), majority)


def _check_settings(model: GPT2, poolings: Sequence[Pooling], penalties: Sequence[float]) -> None:
    if isinstance(poolings, str) or not poolings or len(set(poolings)) != len(poolings):
        raise UsageError(f"poolings must be some different ones of {', '.join(POOLINGS)}")
    for pooling in poolings:
        if pooling not in POOLINGS:
            raise UsageError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    if not penalties:
        raise UsageError("penalties must be at least one number above 0")
    depth, reason = plain_depth(model)
    if depth < len(model.blocks):
        raise UsageError(f"probes need GPT-2's own blocks: {reason}")


def plot_probes(probes: Sequence[Probe]) -> Figure:
    """Test accuracy of a probe at each layer with its 95 % interval: a panel a pooling, raw and
    final-normed beside each other, the share of the commonest label dashed.

    Raises DataError for no probes.
    """
    if not probes:
        raise DataError("there is nothing to draw: no probes")
    poolings = list(dict.fromkeys(probe.pooling for probe in probes))
    columns = len(poolings) if len(poolings) < 4 else 2
    rows = math.ceil(len(poolings) / columns)
    figure = Figure(figsize=(min(9.5, 5.5 + 1.5 * columns), 1.1 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(poolings) :]:
        axes.set_visible(False)
    for axes, pooling in zip(panels.flat, poolings, strict=False):
        axes.axhline(
            100 * probes[0].majority,
            color=DARK,
            linestyle="--",
            linewidth=1,
            label="always the commonest label",
        )
        for final_norm, aside in ((False, -0.1), (True, 0.1)):
            found = [p for p in probes if (p.pooling, p.final_norm) == (pooling, final_norm)]
            _draw_probes(axes, found, final_norm, aside)
        axes.set_title(pooling, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"A probe at each layer: {probes[0].n_train:,} texts to fit on, {probes[0].total:,} to test"
    )
    for axes in panels[-1]:
        axes.set_xlabel("layer" if columns > 2 else "layer (0: behind the embeddings)")
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    return figure


def _draw_probes(axes: Axes, probes: Sequence[Probe], final_norm: bool, aside: float) -> None:
    """One curve with its intervals, moved aside so that two of them can be told apart."""
    layers = [probe.layer + aside for probe in probes]
    accuracies = [100 * probe.accuracy for probe in probes]
    below = [100 * (p.accuracy - p.interval[0]) for p in probes]
    above = [100 * (p.interval[1] - p.accuracy) for p in probes]
    colour, mark, name = (VERMILION, "s", "final-normed") if final_norm else (BLUE, "o", "raw")
    axes.errorbar(
        layers,
        accuracies,
        yerr=[below, above],
        color=colour,
        marker=mark,
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        label=name,
    )


# --- What probes found, and how a person reads it. ---
