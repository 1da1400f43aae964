"""The files of an export to ONNX: the graph, its int8 version, and how close both are.

A graph is only written if onnxruntime gives PyTorch's answers. int8 weights change answers, so
onnxruntime's quantizer is measured on the run's validation set, and the measurement is reported.

M decisions, one per text or one per token; K outputs of a head.
"""

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.onnx_graph import (
    expected_outputs,
    gives_values,
    heads_to_export,
    padding_tokenizer,
    to_onnx,
)
from gpt2_from_scratch.classifier.settings import OF_PADS, HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.multi_label import label_probabilities, thresholds_of
from gpt2_from_scratch.classifier.tasks.task import Batch
from gpt2_from_scratch.data.formats import load_examples
from gpt2_from_scratch.data.messages import DataConfig, Message
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.evaluation.significance import compare_paired
from gpt2_from_scratch.runs.folder import CONFIG, RunConfig, read_test_part, test_part
from gpt2_from_scratch.runs.results import Run
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.storage.files import write_json, write_text

log = logging.getLogger(__name__)

FLOAT, INT8 = "model.onnx", "model_int8.onnx"
SCRIPT = "classify.py"
LARGEST_ERROR = 1e-4  # of a logit, in units of the largest logit, or of 1 if that is larger
MOST_CHANGED = 0.01  # proportion of labels; if int8 changes more, a warning is logged
MOST_LOST = 0.01  # of the score; an int8 graph that loses more is refused
MOST_TEXTS, MOST_TOKENS = 500, 50_000  # that are compared; more would take minutes
MOST_TIMED, ROUNDS = 4_000, 5  # tokens of the texts that are timed, and how often
BATCH = 32
IN_ONE_FILE = 1_900_000_000  # bytes; protobuf's limit is 2 GiB
KEY = "classifier"  # of the graph's metadata


@dataclass(frozen=True)
class Agreement:
    """How close a graph's answers are to PyTorch's."""

    texts: int
    source: str
    largest_difference: float  # of a logit or a value
    decisions: int  # 0 for values
    equal: int

    def in_words(self) -> str:
        """Format as one line."""
        equal = f"{self.equal} of {self.decisions} answers are equal, " if self.decisions else ""
        return (
            f"{FLOAT} against PyTorch on {self.texts} {self.source}: {equal}largest difference of an "
            f"output {self.largest_difference:.1e}"
        )


@dataclass(frozen=True)
class Change:
    """How int8 weights change a graph's answers to labelled texts."""

    texts: int
    source: str
    decisions: int  # 0 for values
    equal: int
    equal_in_batches: int  # answers of int8 that stay equal in batches of BATCH, in the given order
    equal_in_sorted: int  # the same for batches of similar length, which have little padding
    largest_difference: float  # of a logit or a value
    measure: str  # the name of the scores
    score: float
    score_int8: float  # one text at a time
    score_in_batches: float  # of int8, in batches of BATCH in the given order
    score_interval: tuple[float, float] | None  # 95% interval of the difference, for accuracies
    loss: float
    loss_int8: float
    loss_interval: tuple[float, float]  # 95% interval of the difference

    @property
    def is_large(self) -> bool:
        """Whether more answers change than MOST_CHANGED, by int8 or by a batch."""
        fewest = min(self.equal, self.equal_in_batches, self.equal_in_sorted)
        return self.decisions - fewest > MOST_CHANGED * self.decisions

    @property
    def loses(self) -> bool:
        """Whether the score falls by more than MOST_LOST, one text at a time or in batches."""
        return self.score - min(self.score_int8, self.score_in_batches) > MOST_LOST

    def in_words(self) -> list[str]:
        """Format as lines."""
        lines = []
        if self.decisions:
            lines += [
                f"{self.equal} of {self.decisions} answers are equal "
                f"({100 * self.equal / self.decisions:.1f}%)",
                f"{self.equal_in_sorted} of {self.decisions} stay equal in batches of {BATCH} texts of "
                "similar length, with little padding",
                f"{self.equal_in_batches} of {self.decisions} stay equal in batches of {BATCH} texts in "
                "the order of the data, with more padding",
            ]
        interval = ""
        if self.score_interval:
            low, high = (100 * bound for bound in self.score_interval)
            interval = f", 95% interval of the difference {low:+.1f} to {high:+.1f} points"
        low, high = self.loss_interval
        return [
            *lines,
            f"{self.measure} {self.score:.4f} to {self.score_int8:.4f}{interval}; in batches "
            f"{self.score_in_batches:.4f}",
            f"loss {self.loss:.4f} to {self.loss_int8:.4f}, 95% interval of the difference "
            f"{low:+.4f} to {high:+.4f}",
            f"largest difference of an output {self.largest_difference:.2g}",
        ]


@dataclass(frozen=True)
class Quantized:
    """The int8 version of a graph: its size, its speed on this machine, and its answers."""

    megabytes: float
    megabytes_int8: float
    speed: float  # median ratio of texts per second, for one text at a time
    threads: int
    change: Change | None  # None if there are no labelled texts
    reason: str  # why `change` is None

    def in_words(self) -> list[str]:
        """Format as lines."""
        lines = [
            f"{self.megabytes:.1f} MB to {self.megabytes_int8:.1f} MB",
            f"{self.speed:.2f} times the speed of {FLOAT} on this machine (one text at a time, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''})",
        ]
        if self.change is None:
            return [*lines, f"answers not measured: {self.reason}"]
        return [*lines, *self.change.in_words()]


def write_onnx(
    folder: Path,
    classifier: Classifier,
    head: str,
    run: Path | None,
    *,
    int8: bool,
    data: str = "",
    force: bool = False,
) -> tuple[dict[str, Any], Agreement, Quantized | None]:
    """Write the graph, its tokenizer, what to know about it, and a program that uses it.

    Returns what to know, and the comparisons. Raises UsageError if onnx or onnxruntime is missing,
    or if the graph cannot give the same answers. Raises CheckpointError if it does not give them, or
    if int8 weights lose more than MOST_LOST of the score.

    Args:
        folder: An existing folder.
        classifier: The classifier, which does not change.
        head: The name of the only head to export; empty for all.
        run: The folder of the classifier's run, or None.
        int8: Also write a version with int8 weights.
        data: Labelled texts on which int8 is measured, instead of the run's validation set.
        force: Write the int8 version whatever it loses.
    """
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise UsageError(
            f"an export to ONNX needs {' and '.join(missing)}. Install with: "
            "pip install 'gpt2-from-scratch[onnx]'"
        )
    proto, how = to_onnx(classifier, head)
    of_heads = [
        node.name
        for node in proto.graph.node
        if any(name.startswith("head.") for name in node.input)
    ]
    _save(proto, folder / FLOAT, how)
    del proto  # as large as the model
    write_json(folder / "tokenizer.json", padding_tokenizer(classifier))
    write_json(folder / "classifier.json", how)
    script = files("gpt2_from_scratch.reports") / "templates" / SCRIPT
    write_text(folder / SCRIPT, script.read_text("utf-8"))
    heads = heads_to_export(classifier, head)
    agreement = _agreement(classifier, heads, folder / FLOAT, run)
    log.info(agreement.in_words())
    measured: dict[str, Any] = {"float32": asdict(agreement)}
    quantized = None
    if int8:
        _quantize(folder / FLOAT, folder / INT8, of_heads)
        quantized = _quantized(classifier, heads, folder, run, data)
        for line in quantized.in_words():
            log.info(f"{INT8}: {line}")
        _judge(quantized.change, force)
        measured["int8"] = asdict(quantized)
    write_json(folder / "measured.json", measured)
    return how, agreement, quantized


def _judge(change: Change | None, force: bool) -> None:
    """Refuse an int8 graph that loses too much; warn if its answers change or are unknown."""
    if change is None:
        log.warning(
            f"how int8 changes the answers is unknown; use {FLOAT} unless this is acceptable"
        )
        return
    if change.loses and not force:
        raise CheckpointError(
            f"int8 lowers the {change.measure} of {change.texts} texts from {change.score:.4f} to "
            f"{change.score_int8:.4f}, and to {change.score_in_batches:.4f} in batches. Export without --int8, or use --force to accept the loss."
        )
    if change.is_large or change.loses:
        log.warning(
            f"int8 changes {change.decisions - change.equal} of {change.decisions} answers, and the "
            f"other texts of a batch change "
            f"{change.decisions - min(change.equal_in_batches, change.equal_in_sorted)}; use "
            f"{FLOAT} unless this is acceptable"
        )


# --- files ---


def _save(proto: Any, path: Path, how: dict[str, Any]) -> None:
    """Save a graph; one of more than 2 GB has its weights in a second file."""
    import onnx

    found = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, found | {KEY: json.dumps(how, ensure_ascii=False)})
    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > IN_ONE_FILE
    onnx.save_model(
        proto, path, save_as_external_data=large, location=f"{path.name}.data" if large else None
    )


def _quantize(path: Path, to: Path, of_heads: Sequence[str]) -> None:
    """Save a version of a graph with int8 weights, by onnxruntime's dynamic quantisation.

    The nodes of heads stay in float32, because they are small and decide. Weights have 7 bits,
    because sums of products of 8 bits overflow on processors without VNNI.
    """
    from onnxruntime.quantization import quantize_dynamic

    # the quantizer logs to the root logger, which prints every package's lines from then on if it
    # has no handler
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        quantize_dynamic(
            path,
            to,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=[*of_heads],
            use_external_data_format=path.with_name(f"{path.name}.data").exists(),
        )
    finally:
        root.removeHandler(handler)


# --- answers of a graph ---


def _session(path: Path) -> Any:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _graph_outputs(
    session: Any, encoded: Sequence[Sequence[int]], batch_size: int
) -> dict[str, list[np.ndarray]]:
    """All outputs of a graph: {name: one array per text}, (K,) or (its tokens, K)."""
    names = [output.name for output in session.get_outputs()]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for first in range(0, len(encoded), batch_size):
        ids, lengths = pad_batch(encoded[first : first + batch_size], 0)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        given = {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()}
        for name, values in zip(names, session.run(None, given), strict=True):
            rows = zip(values, lengths.tolist(), strict=True)
            found[name] += [row[:n] if row.ndim == 2 else row for row, n in rows]
    return found


def _torch_outputs(
    classifier: Classifier,
    heads: Sequence[HeadConfig],
    encoded: Sequence[Sequence[int]],
    batch_size: int,
) -> dict[str, list[np.ndarray]]:
    """What the graph must give: {head's name: one array per text}, (K,) or (its tokens, K)."""
    rows: dict[str, dict[int, np.ndarray]] = {head.name: {} for head in heads}
    for first in range(0, len(encoded), batch_size):
        for numbers, outputs, lengths in classifier.outputs(encoded[first : first + batch_size]):
            for head in heads:
                values = expected_outputs(head, outputs[head.name]).numpy()
                for n, row, length in zip(numbers, values, lengths.tolist(), strict=True):
                    rows[head.name][first + n] = row if head.reads_one_state else row[:length]
    return {name: [by_text[n] for n in range(len(encoded))] for name, by_text in rows.items()}


def _output_name(head: HeadConfig, several: bool) -> str:
    what = "values" if gives_values(head) else "logits"
    return f"{head.name}_{what}" if several else what


def _decisions(head: HeadConfig, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The chosen labels: (M, 1) numbers of classes, or (M, K) for several labels; (0, 1) for values."""
    if gives_values(head):
        return np.zeros((0, 1))
    rows = np.concatenate([row.reshape(-1, row.shape[-1]) for row in outputs])
    if head.task == "multi-label":
        return label_probabilities(torch.from_numpy(rows)) > thresholds_of(head)
    return rows.argmax(axis=1)[:, None]


def _largest_difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


# --- comparisons ---


def _agreement(
    classifier: Classifier, heads: Sequence[HeadConfig], graph: Path, run: Path | None
) -> Agreement:
    """Compare a graph with PyTorch on the run's test set, or on random tokens without a run."""
    task = classifier.description.head.task
    texts: list[str] = []
    if run and test_part(run, task).is_file():
        texts = [message.text for message in read_test_part(run, task)][:MOST_TEXTS]
    encoded = _first(classifier.encode(texts)[0] if texts else _random_ids(classifier))
    source = "texts of the test set" if texts else "texts of random tokens"
    # answers that depend on the padding are compared one text at a time
    of_pads = any(head.pooling in OF_PADS for head in classifier.description.heads)
    batch_size = 1 if of_pads else BATCH
    found = _graph_outputs(_session(graph), encoded, batch_size)
    # in float32, whatever the precision of the classifier's frozen blocks
    plain = Classifier(classifier.model, classifier.tokenizer, classifier.description)
    expected = _torch_outputs(plain, heads, encoded, batch_size)
    difference, decisions, equal = 0.0, 0, 0
    for head in heads:
        theirs, ours = found[_output_name(head, len(heads) > 1)], expected[head.name]
        of_head = _largest_difference(theirs, ours)
        unit = max(1.0, max(float(np.abs(row).max()) for row in ours))
        if not of_head <= LARGEST_ERROR * unit:  # also for NaN
            raise CheckpointError(
                f"onnxruntime's outputs for head {head.name!r} differ from PyTorch's by up to "
                f"{of_head:.1e}, more than {LARGEST_ERROR * unit:.1e}; not exported"
            )
        same = (_decisions(head, theirs) == _decisions(head, ours)).all(axis=1)
        difference = max(difference, of_head)
        decisions, equal = decisions + len(same), equal + int(same.sum())
    return Agreement(len(encoded), source, difference, decisions, equal)


def _random_ids(classifier: Classifier) -> list[list[int]]:
    """The ids of texts of random tokens, with 1 to `max_tokens` tokens each."""
    generator = np.random.default_rng(5)
    end = classifier.encode([""])[0][0] if classifier.description.reads_end_token else []
    most = classifier.description.max_tokens - len(end)
    lengths = [*np.unique(np.geomspace(1, most, 8).round().astype(int))] if most else [0]
    n = classifier.tokenizer.n_vocab
    return [[*generator.integers(n, size=length).tolist(), *end] for length in lengths]


def _first(encoded: Sequence[Sequence[int]], most: int = MOST_TOKENS) -> Sequence[Sequence[int]]:
    """The first texts, with at most `most` tokens together, but at least one text."""
    n = int((np.cumsum([len(ids) for ids in encoded]) <= most).sum())
    return encoded[: max(1, n)]


def _quantized(
    classifier: Classifier, heads: Sequence[HeadConfig], folder: Path, run: Path | None, data: str
) -> Quantized:
    """Measure the int8 version of a graph on `data`, or on the run's validation set."""
    sessions = [_session(folder / name) for name in (FLOAT, INT8)]
    sizes = [
        sum(path.stat().st_size for path in folder.glob(f"{name}*")) / 1e6 for name in (FLOAT, INT8)
    ]
    messages, reason = list[Message](), "the classifier has several heads"
    if len(classifier.description.heads) == 1:
        messages, reason = _labelled(classifier, run, data)
    texts = [message.text for message in messages]
    encoded = _first(classifier.encode(texts)[0] if texts else _random_ids(classifier))
    messages = messages[: len(encoded)]
    change = None
    if messages:
        source = f"texts of {data or 'the validation set'}"
        change = _change(classifier, heads[0], messages, source, encoded, *sessions)
    timed = _first(encoded, MOST_TIMED)
    _graph_outputs(sessions[0], timed, 1)  # the first run allocates memory
    _graph_outputs(sessions[1], timed, 1)
    ratios = []
    for _ in range(ROUNDS):  # in turn, because the machine's speed may change
        float_seconds, int8_seconds = (
            _seconds(lambda session=session: _graph_outputs(session, timed, 1))  # type: ignore[misc]
            for session in sessions
        )
        ratios.append(float_seconds / int8_seconds)
    threads = torch.get_num_threads()
    return Quantized(
        sizes[0], sizes[1], statistics.median(ratios), threads, change, "" if change else reason
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _labelled(classifier: Classifier, run: Path | None, data: str) -> tuple[list[Message], str]:
    """The labelled texts of `data` or of the run's validation set, or why there are none."""
    if data:
        messages = load_examples(DataConfig(source=data), classifier.description.head.task)
    elif run is None or not (run / CONFIG).is_file():
        return [], "there is no run, so there is no validation set"
    else:
        try:
            messages = Run(run, RunConfig.read(run), classifier, None).load_split().val
        except (DataError, UsageError) as error:  # the data were moved, or an old run
            return [], str(error)
    labelled = [message for message in messages if message.label is not None]
    return labelled[:MOST_TEXTS], "no text has a label"


def _change(
    classifier: Classifier,
    head: HeadConfig,
    messages: Sequence[Message],
    source: str,
    encoded: Sequence[Sequence[int]],
    session: Any,
    session_int8: Any,
) -> Change:
    """Compare the answers of two graphs to labelled texts, one text at a time and in batches."""
    name = _output_name(head, several=False)
    plain, int8 = (_graph_outputs(each, encoded, 1)[name] for each in (session, session_int8))
    in_batches = _graph_outputs(session_int8, encoded, BATCH)[name]
    by_length = sorted(range(len(encoded)), key=lambda n: len(encoded[n]))
    of_sorted = _graph_outputs(session_int8, [encoded[n] for n in by_length], BATCH)[name]
    in_sorted = [
        row for _, row in sorted(zip(by_length, of_sorted, strict=True), key=itemgetter(0))
    ]
    decisions, *others = (_decisions(head, each) for each in (int8, plain, in_batches, in_sorted))
    equal, equal_in_batches, equal_in_sorted = (
        int((decisions == other).all(axis=1).sum()) for other in others
    )
    # the graph has applied these already
    head = replace(
        head,
        temperature=1.0,
        one_output=False,
        class_weights=(),
        label_smoothing=0.0,
        center=(),
        scale=(),
    )
    task, labels = TASKS[head.task], [message.label for message in messages]
    targets = task.targets(head, messages, encoded, classifier.tokenizer)
    words = task.words(labels)
    losses, scores, correct = [], [], []
    for outputs in (plain, int8, in_batches):
        answers, of_texts = list[Any](), list[float]()
        for n, row in enumerate(outputs):
            output, ids = torch.from_numpy(row)[None], [encoded[n]]
            some = Batch(
                [messages[n].text], ids, classifier.tokenizer, [words[n]] if words else None
            )
            answers += task.answers(head, output, some)
            target = targets.batch([n])
            loss = task.loss_sum(head, output.float(), target, torch.tensor([len(encoded[n])]))
            of_texts.append(float(loss))
        scores.append(task.scores(head, labels, answers, [message.text for message in messages]))
        losses.append(np.array(of_texts))
        if head.task == "classification":
            pairs = zip(answers, labels, strict=True)
            correct.append(np.array([answer.label == label for answer, label in pairs]))
    weights = targets.weights.double().numpy()
    total = weights.sum() or 1.0  # 0 if all tagged words were cut off
    difference = (losses[1] - losses[0]).sum() / total
    spread = (losses[1] - losses[0] - difference * weights) ** 2
    n = len(messages)
    error = 1.96 * math.sqrt(spread.sum() * n / max(1, n - 1)) / total
    return Change(
        n,
        source,
        len(decisions),
        equal,
        equal_in_batches,
        equal_in_sorted,
        _largest_difference(plain, int8),
        getattr(scores[0], "measure", "accuracy"),
        float(scores[0].main),
        float(scores[1].main),
        float(scores[2].main),
        compare_paired(correct[1], correct[0]).interval if correct else None,
        float(losses[0].sum() / total),
        float(losses[1].sum() / total),
        (float(difference - error), float(difference + error)),
    )
