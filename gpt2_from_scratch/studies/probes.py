"""Linear probes: what logistic regression can predict from a frozen model's states at each layer.

A probe is fitted on one state per text. A single pass over the texts gives the states of all
layers, for every pooling. They are the residual stream after the embeddings and after each block,
both unchanged (raw) and after the model's final norm. The model itself is not trained.

Source: Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes".

U rows in a batch (one row per token), B texts in a rectangle (texts of similar length), T tokens of
its longest text, C = n_embd, N texts, L = n_layer + 1 layers.
"""

import logging
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gpt2_from_scratch.classifier.freezing import plain_depth
from gpt2_from_scratch.classifier.heads import pool, read_positions
from gpt2_from_scratch.classifier.settings import OF_PADS, POOLINGS, Pooling
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.baselines import class_numbers
from gpt2_from_scratch.evaluation.metrics import text_table, wilson_interval
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.reports.plots import BLUE, DARK, VERMILION
from gpt2_from_scratch.speed.batching import encode_texts, end_tokens
from gpt2_from_scratch.speed.devices import arithmetic
from gpt2_from_scratch.speed.frozen_trunk import Trunk

log = logging.getLogger(__name__)

# the default: they read no padding; `last_position` and `mean_position` pad every text, which is up
# to six times the work
WITHOUT_PADDING: tuple[Pooling, ...] = ("last_token", "first_token", "mean")
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
TOLERANCE, MOST_STEPS = 1e-6, 10_000  # for fitting logistic regression
ROUNDING_NOISE = 1e-5  # a feature with less variation, relative to its size, counts as constant


@dataclass(frozen=True)
class Probe:
    """One probe: the states it reads, and its scores."""

    layer: int  # number of blocks before the states it reads; 0: after the embeddings
    final_norm: bool  # states after ln_f; False: the residual stream itself
    pooling: Pooling
    l2: float  # the penalty, selected on the validation set
    n_train: int
    train_accuracy: float
    val_accuracy: float
    correct: int  # correct test texts
    total: int
    interval: tuple[float, float]  # 95% Wilson interval of the accuracy
    majority: float  # test accuracy of always predicting the most common training label

    @property
    def accuracy(self) -> float:
        """The proportion of correct predictions on the test set."""
        return self.correct / self.total


def probe_layers(
    model: GPT2,
    tokenizer: Tokenizer,
    split: Split,
    *,
    poolings: Sequence[Pooling] = WITHOUT_PADDING,
    penalties: Sequence[float] = PENALTIES,
    dtype: torch.dtype = torch.float32,
) -> list[Probe]:
    """Fit a probe at every layer, with raw states and after the final norm, for each pooling.

    Args:
        model: GPT-2 with its own blocks.
        tokenizer: The model's tokenizer.
        split: Labelled texts. Probes are fitted on the training set, their penalty is selected by
            the cross-entropy on the validation set, and they are scored on the test set.
        poolings: Where a text is read. For `last_position` and `mean_position`, texts are padded
            with <|endoftext|> to the longest text of the training set, and longer texts are cut.
        penalties: The penalties to select from, above 0.
        dtype: Precision of the forward pass.

    Returns:
        One probe per pooling, norm and layer. The states of all layers need 8 N L C bytes of memory
        per pooling.

    Raises:
        UsageError: A pooling is unknown, a penalty is not above 0, or the model has parts that are
            not GPT-2's.
        DataError: A set is empty, a label is not a string, or the validation or test set has a
            label that the training set does not have.
    """
    if isinstance(poolings, str) or not poolings or len(set(poolings)) != len(poolings):
        raise UsageError(
            f"poolings must be one or more of {', '.join(POOLINGS)}, without repetition"
        )
    for pooling in poolings:
        if pooling not in POOLINGS:
            raise UsageError(f"unknown pooling {pooling!r}; choose from: {', '.join(POOLINGS)}")
    depth, reason = plain_depth(model)
    if depth < len(model.blocks):
        raise UsageError(f"probes need GPT-2's own blocks: {reason}")
    y_train, y_val, y_test = _labels_of(split)
    texts = [message.text for part in (split.train, split.val, split.test) for message in part]
    trunk = Trunk(model, len(model.blocks), arithmetic(dtype, model.wte.weight.device))
    found: dict[tuple[Pooling, bool], Tensor] = {}
    for is_end in {pooling == "end_token" for pooling in poolings}:
        group = [pooling for pooling in poolings if (pooling == "end_token") is is_end]
        end = end_tokens(tokenizer) if is_end else []
        encoded, cut = encode_texts(texts, tokenizer, model.config.n_ctx, end=end)
        if any(cut):
            log.warning(
                f"{sum(cut)} of {len(cut)} texts are longer than {model.config.n_ctx} tokens and "
                "were cut"
            )
        pad_to = max(len(ids) for ids in encoded[: len(y_train)])
        found |= pooled_states(trunk, model.ln_f, encoded, group, tokenizer.end_of_text_id, pad_to)
    states = {(p, norm): found[p, norm] for p in poolings for norm in (False, True)}
    majority = float((y_test == np.bincount(y_train).argmax()).mean())
    probes = []
    with progress_bar(total=len(states) * (trunk.depth + 1), desc="probes") as bar:
        for (pooling, final_norm), layers in states.items():  # layers (L, N, C)
            for layer, x in enumerate(layers.numpy()):
                train, val, test = np.split(x, [len(y_train), len(y_train) + len(y_val)])
                probe, l2 = fit_logistic((train, y_train), (val, y_val), penalties)
                train_accuracy, val_accuracy = probe.score(train, y_train), probe.score(val, y_val)
                correct = int((probe.predict(test) == y_test).sum())
                interval = wilson_interval(correct, len(y_test))
                probes.append(
                    Probe(
                        layer,
                        final_norm,
                        pooling,
                        l2,
                        len(y_train),
                        float(train_accuracy),
                        float(val_accuracy),
                        correct,
                        len(y_test),
                        interval,
                        majority,
                    )
                )
                bar.update()
    return probes


def _labels_of(split: Split) -> list[np.ndarray]:
    """Class numbers (N,) of the training, validation and test set; labels in alphabetical order."""
    sets = {"training": split.train, "validation": split.val, "test": split.test}
    for name, messages in sets.items():
        if not messages:
            raise DataError(f"the {name} set has no texts; probes need all three sets")
        for message in messages:
            if not isinstance(message.label, str):
                raise DataError(
                    f"probes are for classes: a label must be a string, not {message.label!r:.80}"
                )
    names = sorted({str(message.label) for message in split.train})
    if len(names) < 2:
        raise DataError(f"the training set has only one label, {names}")
    return [class_numbers(messages, names) for messages in sets.values()]


def fit_logistic(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    penalties: Sequence[float],
) -> tuple[Any, float]:
    """Fit logistic regression on standardised features; select the penalty on the validation set.

    The loss is the mean cross-entropy plus penalty / 2 times the squared norms of the K weight
    vectors. The penalty with the lowest cross-entropy on the validation set is selected; on a tie,
    the strongest.

    Args:
        train: Features (N, C) and class numbers (N,), with at least two classes.
        val: Features and class numbers of the validation set.
        penalties: The penalties to select from, above 0.

    Returns:
        A fitted scikit-learn model for features (N, C), and its penalty.

    Raises:
        UsageError: A penalty is not above 0, or there is none.
        DataError: A feature is NaN or infinite, or `val` has a class that `train` does not have.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    if not penalties or not all(0 < penalty < float("inf") for penalty in penalties):
        raise UsageError(f"penalties {[*penalties]} must be one or more numbers above 0")
    (x, y), (x_val, y_val) = train, val
    if not np.isfinite(x).all() or not np.isfinite(x_val).all():
        raise DataError("features for logistic regression must be finite numbers")
    if not np.isin(y_val, y).all():
        raise DataError("the validation set has a label that the training set does not have")
    spread, size = x.std(axis=0, dtype=np.float64), np.abs(x).max(axis=0)
    # (C,): features that are not constant; scaling would magnify the noise of the others
    varies = spread > ROUNDING_NOISE * size

    def clean(features: np.ndarray) -> np.ndarray:
        return np.where(varies, features.astype(np.float64), 0.0)

    scale = make_pipeline(FunctionTransformer(clean), StandardScaler()).fit(x)
    x, x_val = scale.transform(x), scale.transform(x_val)
    # for two classes scikit-learn fits the difference of the vectors, so the penalty is halved
    factor = 2 if len(np.unique(y)) == 2 else 1
    logistic = LogisticRegression(tol=TOLERANCE, max_iter=MOST_STEPS, warm_start=True)
    fits = []
    for penalty in sorted(penalties, reverse=True):
        logistic.set_params(C=factor / (penalty * len(x))).fit(x, y)
        loss = log_loss(y_val, logistic.predict_proba(x_val), labels=logistic.classes_)
        fits.append((loss, penalty, deepcopy(logistic)))
    _, penalty, best = min(fits, key=lambda fit: fit[0])
    return make_pipeline(scale, best), penalty


@torch.no_grad()
def pooled_states(
    trunk: Trunk,
    ln_f: Callable[[Tensor], Tensor],
    encoded: Sequence[Sequence[int]],
    poolings: Sequence[Pooling],
    pad_id: int,
    pad_to: int,
) -> dict[tuple[Pooling, bool], Tensor]:
    """Compute the states of all layers in one pass over the texts.

    Attention only looks back, so padding does not change the states of a text's real tokens. One
    pass over the padded texts therefore serves every pooling.

    Args:
        trunk: The model's blocks.
        ln_f: The model's final norm.
        encoded: The token ids of N texts.
        poolings: Where texts are read.
        pad_id: The id of padding.
        pad_to: The length of padded texts.

    Returns:
        {(pooling, whether after the final norm): states (L, N, C)}, on the CPU.
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
        for numbers in trunk.batches(texts):
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
    """Pool the states x (U, C) of a batch to one state per text, (B, C).

    `rows` (B, T) are the places of each text's tokens in x, and `lengths` (B,) its real tokens.
    """
    if pooling == "mean":
        return pool(x[rows], lengths, pooling)
    if pooling == "mean_position":
        return pool(x[rows[:, :pad_to]], lengths, pooling)
    at = read_positions(lengths, pad_to, pooling)
    return x[rows.gather(1, at[:, None]).flatten()]


# --- Table and picture ---


def format_probes(probes: Sequence[Probe]) -> str:
    """Format the test accuracies: one row per layer, two columns per pooling (raw, normed)."""
    poolings = list(dict.fromkeys(probe.pooling for probe in probes))
    columns = [(pooling, final_norm) for pooling in poolings for final_norm in (False, True)]
    headers = [f"{pooling}\n{'normed' if norm else 'raw'}" for pooling, norm in columns]
    found = {(p.layer, p.pooling, p.final_norm): f"{100 * p.accuracy:.1f}" for p in probes}
    rows = [
        [layer, *(found[layer, *column] for column in columns)]
        for layer in sorted({probe.layer for probe in probes})
    ]
    widest = max(probe.interval[1] - probe.interval[0] for probe in probes)
    return "\n".join(
        [
            f"test accuracy of a probe at each layer, % of {probes[0].total:,} texts; "
            f"always predicting the most common label: {100 * probes[0].majority:.1f}",
            "",
            *text_table(["layer", *headers], rows, left=0),
            "",
            f"95% intervals extend by up to {50 * widest:.1f} points on either side",
        ]
    )


def plot_probes(probes: Sequence[Probe]) -> Figure:
    """Draw the test accuracy at each layer with its 95% interval, one panel per pooling.

    Each panel has a curve for raw states and one for states after the final norm. The dashed line
    is the accuracy of always predicting the most common label. Raises DataError if there are no
    probes.
    """
    if not probes:
        raise DataError("there are no probes to draw")
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
            label="always predicting the most common label",
        )
        for final_norm, aside in ((False, -0.1), (True, 0.1)):
            found = [p for p in probes if (p.pooling, p.final_norm) == (pooling, final_norm)]
            _draw_probes(axes, found, final_norm, aside)
        axes.set_title(pooling.replace("_", " "), fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"A probe at each layer: {probes[0].n_train:,} training texts, {probes[0].total:,} test texts"
    )
    for axes in panels[-1]:
        axes.set_xlabel("layer" if columns > 2 else "layer (0: after the embeddings)")
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    return figure


def _draw_probes(axes: Axes, probes: Sequence[Probe], final_norm: bool, aside: float) -> None:
    """Draw one curve with intervals, shifted so that two curves do not overlap."""
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
