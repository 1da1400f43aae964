"""Many experiments, one after another and beside each other: rows by seeds, resumable.

Every seed is a split of its own, and first weights and an order of messages of its own; all rows of
a seed have the same. Results are lines of JSON in `results.jsonl`, one an experiment, added when it
is done; what stands there is not done again. Rows share what frozen blocks make of texts.
"""

import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import count_trainable
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune, freeze
from gpt2_from_scratch.data.messages import DataConfig, Message, Span, load_messages
from gpt2_from_scratch.data.split import Split, messages_sha256, split_messages
from gpt2_from_scratch.errors import CheckpointError, DataError, GPT2Error, UsageError
from gpt2_from_scratch.gpt2.weights import random_twin
from gpt2_from_scratch.progress import progress_bar, silenced
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.speed.devices import DTYPES, set_threads
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import locked, read_json, write_json, write_text
from gpt2_from_scratch.storage.paths import data_name, model_name
from gpt2_from_scratch.storage.states import refuse_changes
from gpt2_from_scratch.studies.ablations import Row

log = logging.getLogger(__name__)

# settings that rows vary: the default has them as they are by default, so that rows are what they
# are called
VARIED = (
    "n_last_blocks",
    "final_norm",
    "trainable",
    "unfreeze_every",
    "rate_decay",
    "micro_batch",
    "head",
    "layer",
    "state",
    "pooling",
    "pad_to",
    "causal_mask",
    "dropout",
    "class_weights",
    "label_smoothing",
    "lora",
    "lora_alpha",
    "lora_dropout",
    "lora_blocks",
)
AUXILIARY = 0.5  # weight of the loss of the next token: Radford et al. 2018 (GPT-1), section 3.2


@dataclass(frozen=True)
class Plan:
    """What all experiments of a table have in common."""

    model: str
    data: str
    seeds: tuple[int, ...]
    config: TrainConfig  # of the default row; its seed is replaced
    settings: HeadSettings  # of the default row
    balance: bool = True
    together: str = "copies"
    max_tokens: int | None = None
    dtype: str = "float32"  # of the frozen blocks
    reading: tuple[tuple[str, Any], ...] = ()  # how the data is read


@dataclass(frozen=True)
class Result:
    """One experiment: a row with one seed."""

    row: str
    seed: int
    accuracy: float  # on the test part
    val_accuracy: float  # on the validation part, which the epoch was chosen by
    right: str  # of each test message in its order: 1 if right, else 0
    n_train: int
    epochs: int
    trained: int  # numbers that trained
    seconds: float
    busy: float  # seconds of the processor


def run_experiments(
    plan: Plan, rows: Sequence[Row], out: Path, *, jobs: int = 2, threads: int = 1
) -> list[Result]:
    """Run every row with every seed that is not in `out` yet; the results in order of rows, of those
    rows that have one for every seed.

    `jobs` processes work side by side, each with so many `threads`. Ctrl-C loses those under way;
    what was done stays. An experiment that fails, whose loss is no number any more or which finds no
    memory, is told, and tried again the next time. Raises UsageError where `out` holds experiments
    with other settings or messages, and for settings that rows vary; GPT2Error where the default row
    fails.
    """
    refuse_unfit(plan, rows)
    if jobs < 1:
        raise UsageError(f"jobs = {jobs} must be at least 1")
    messages = load_messages(DataConfig(source=str(plan.data), **dict(plan.reading)))
    split_for(plan, rows[0], plan.seeds[0])  # tells what is left out, and fails now if at all
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait=False):
        _refuse_other_plan(plan, messages, out)
        done = read_results(out)
        # whole lines again, where the last was cut short
        write_text(out / "results.jsonl", "".join(map(_line, done.values())))
        todo = [
            (row, seed)
            for row in sorted(rows, key=lambda row: -_work(row))  # the longest first
            for seed in plan.seeds
            if (row.name, seed) not in done
        ]
        if done:
            log.info(f"{len(done)} experiments are in {out} already, {len(todo)} are to be done")
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            for result in progress_bar(
                _side_by_side(plan, todo, jobs, threads), total=len(todo), desc="experiments"
            ):
                file.write(_line(result))
                file.flush()
                log.info(
                    f"{result.row}, seed {result.seed}: {100 * result.accuracy:.2f} %, {result.seconds:.0f} s"
                )
                done[result.row, result.seed] = result
    whole = [row.name for row in rows if all((row.name, seed) in done for seed in plan.seeds)]
    if rows[0].name not in whole:
        raise GPT2Error("the default row failed, which all others are held against; see above")
    return [done[name, seed] for name in whole for seed in plan.seeds]


def refuse_unfit(plan: Plan, rows: Sequence[Row]) -> None:
    """Raise UsageError for settings that rows vary, or a row's change does not fit, before any runs."""
    default = TrainConfig(), HeadSettings()
    for name in VARIED:
        given, usual = (
            getattr(s[hasattr(s[1], name)], name) for s in ((plan.config, plan.settings), default)
        )
        if given != usual:
            raise UsageError(
                f"{name} = {given!r}: rows vary it; leave it at {usual!r} for the default"
            )
    if plan.settings.task != "classification":
        raise UsageError("experiments are for classification: one label a text")
    if len(set(plan.seeds)) != len(plan.seeds) or not plan.seeds:
        raise UsageError(f"seeds must be some different numbers, not {list(plan.seeds)}")
    for row in rows:
        try:
            row.changed(plan.config, plan.settings)
        except UsageError as error:
            raise UsageError(f"row {row.name!r} does not fit the default: {error}") from None


def read_results(out: Path) -> dict[tuple[str, int], Result]:
    """{(row, seed): its result} of a folder. A last line that was cut short is passed over.

    Raises CheckpointError for other lines that are none.
    """
    path = out / "results.jsonl"
    lines = path.read_text("utf-8").split("\n") if path.exists() else []
    results = {}
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                result = Result(**json.loads(line))
                results[result.row, result.seed] = result
        except (ValueError, TypeError):
            if number < len(lines):
                raise CheckpointError(f"{path}, line {number} is no result: {line:.80}") from None
    return results


def run_one(plan: Plan, row: Row, seed: int) -> Result:
    """One experiment, from the messages to the test part's answers; it logs nothing."""
    with silenced():
        return _run_one(plan, row, seed)


def _run_one(plan: Plan, row: Row, seed: int) -> Result:
    began, busy = time.perf_counter(), time.process_time()
    config, settings = row.changed(replace(plan.config, seed=seed), plan.settings)
    split = split_for(plan, row, seed)
    with tempfile.TemporaryDirectory() as folder:
        model = plan.model
        if row.random_weights:
            model = str(random_twin(plan.model, Path(folder) / "model", seed))
        classifier, split = _prepared(model, split, config, settings, row, plan)
        n_train = len(split.train)
        run = Path(folder) / "run"
        run.mkdir()
        # a twin's blocks are those of one seed only: not worth the room on disk
        classifier.store = None if row.random_weights else FeatureStore()
        history = finetune(classifier, split, config, run)
        trained = count_trainable(classifier.model)
        right, val = _right(classifier, split.test), _right(classifier, split.val)
    return Result(
        row.name,
        seed,
        sum(right) / len(right),
        sum(val) / len(val),
        "".join(str(int(is_right)) for is_right in right),
        n_train,
        len(history),
        trained,
        time.perf_counter() - began,
        time.process_time() - busy,
    )


def split_for(plan: Plan, row: Row, seed: int) -> Split:
    """The split of a seed; where the row wants all messages, those left over are trained on too.

    Raises DataError where there are no others.
    """
    messages = load_messages(DataConfig(source=str(plan.data), **dict(plan.reading)))
    options: dict[str, Any] = {
        "seed": seed,
        "on_error": dict(plan.reading).get("on_error", "stop"),
        "keep_together": plan.together,
    }
    split = split_messages(messages, balance=plan.balance, **options)
    if not row.all_messages:
        return split
    whole = split_messages(messages, **options)
    kept = {message.text for message in (*split.val, *split.test)}
    every = [m for m in (*whole.train, *whole.val, *whole.test) if m.text not in kept]
    if len(every) == len(split.train):
        raise DataError("there are no other messages than those of the default; try --balance")
    return replace(split, train=every)


def _prepared(
    model: str,
    split: Split,
    config: TrainConfig,
    settings: HeadSettings,
    row: Row,
    plan: Plan,
) -> tuple[Classifier, Split]:
    """The classifier of a row, and the messages as it learns from them."""
    dtype = DTYPES[plan.dtype]
    plain = new_classifier(model, split, config, settings, plan.max_tokens, dtype)
    if not row.extra:
        return plain, split
    head, max_tokens = plain.description.head, plain.description.max_tokens
    if row.extra == "tokens":
        heads = [replace(head, task="token-classification", one_output=False)]
        label: Callable[[Message], Any] = _every_token
    else:
        heads = [head, HeadConfig("next", "language", loss_weight=AUXILIARY)]
        label = lambda message: {"label": message.label}  # noqa: E731
    parts = (
        [Message(message.text, label(message)) for message in part]
        for part in (split.train, split.val, split.test)
    )
    classifier = Classifier.on_base(
        model, heads=heads, max_tokens=max_tokens, seed=config.seed, dtype=dtype
    )
    freeze(classifier, config)
    return classifier, Split(*parts)


def _every_token(message: Message) -> list[Span]:
    """The label of a text as that of each of its characters, and so of the tokens they stand in."""
    return [Span(n, n + 1, message.label) for n, c in enumerate(message.text) if not c.isspace()]


def _right(classifier: Classifier, messages: Sequence[Message]) -> list[bool]:
    """Whether each message's answer is right; where every token has one, the last token's."""
    head, wanted = classifier.description.head, [_label_of(message) for message in messages]
    if head.reads_one_state:
        told = classifier.predict([message.text for message in messages])
        return [
            answer is not None and answer.label == w for answer, w in zip(told, wanted, strict=True)
        ]
    encoded, _ = classifier.encode([message.text for message in messages])
    found = dict[int, bool]()
    for batch, outputs, lengths in classifier.outputs(classifier.texts(encoded)):
        last = outputs[head.name][torch.arange(len(batch)), lengths - 1]  # (B, K)
        found |= {
            n: head.labels[k] == wanted[n]
            for n, k in zip(batch, last.argmax(1).tolist(), strict=True)
        }
    return [found[n] for n in range(len(found))]


def _label_of(message: Message) -> str:
    if isinstance(message.label, dict):
        return message.label["label"]
    return message.label[0].label if isinstance(message.label, list) else message.label


def _side_by_side(
    plan: Plan, todo: Sequence[tuple[Row, int]], jobs: int, threads: int
) -> Iterator[Result]:
    """Results as they come, from `jobs` processes, or from this one; `say` is told of failures."""
    if jobs == 1:
        set_threads(threads)
        for row, seed in todo:
            yield from _result(row.name, seed, partial(run_one, plan, row, seed))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=set_threads, initargs=(threads,)) as pool:
        futures = {pool.submit(run_one, plan, row, seed): (row.name, seed) for row, seed in todo}
        try:
            for future in as_completed(futures):
                yield from _result(*futures[future], future.result)
        except BaseException:  # Ctrl-C, SIGTERM, a full disk: nobody wants what is under way
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _result(name: str, seed: int, run: Callable[[], Result]) -> Iterator[Result]:
    """The result, if it does not fail."""
    try:
        yield run()
    except GPT2Error as error:
        log.warning(f"{name}, seed {seed}: left out: {error}")


def _work(row: Row) -> float:
    """About how long a row takes, the default being 1: only their order matters."""
    if row.config.get("trainable") or row.settings.get("lora_blocks", 1) < 0:
        return 20.0
    if row.settings.get("lora") and "lora_blocks" not in row.settings:
        return 25.0
    read_all = row.extra or row.settings.get("pooling", "").startswith("mean")
    work = 3.0 if read_all else 1.0
    work *= row.config.get("n_last_blocks", 1) ** 2 or 0.5
    work *= 4.0 if row.all_messages else 1.0
    work *= 6.0 if 1 in (row.config.get("batch_size"), row.config.get("micro_batch")) else 1.0
    return work * (8.0 if row.settings.get("pad_to", 0) > 0 else 1.0)


def _refuse_other_plan(plan: Plan, messages: list[Message], out: Path) -> None:
    """Keep what the experiments have in common; raise UsageError where it was something else."""
    path = out / "experiments.json"
    found = {
        "model": model_name(plan.model),
        "data": data_name(plan.data),
        "messages_sha256": messages_sha256(Split(messages, [], [])),
    }
    now = json.loads(json.dumps(asdict(plan) | found))
    del now["seeds"], now["config"]["seed"]  # more seeds may come
    if path.exists():
        refuse_changes(read_json(path), now, out)
    else:
        write_json(path, now)


def _line(result: Result) -> str:
    return json.dumps(asdict(result)) + "\n"
