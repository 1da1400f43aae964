"""Many experiments, one after another and beside each other: rows by seeds, resumable.

Every seed is a split of its own, and first weights and an order of messages of its own; all rows of
a seed have the same. Results are lines of JSON in `results.jsonl`, one an experiment, added when it
is done; what stands there is not done again. Rows share what frozen blocks make of texts.
"""

import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt2_from_scratch.ablations import Row
from gpt2_from_scratch.checkpoints import refuse_changes
from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.classifier_settings import ClassifierSettings
from gpt2_from_scratch.config import TrainConfig
from gpt2_from_scratch.data import Message, Span, load_messages
from gpt2_from_scratch.devices import DTYPES, set_threads
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.feature_store import FeatureStore
from gpt2_from_scratch.files import read_json, write_json, write_text
from gpt2_from_scratch.finetuning import count_trainable
from gpt2_from_scratch.head_config import HeadConfig
from gpt2_from_scratch.locks import locked
from gpt2_from_scratch.paths import data_name, model_name
from gpt2_from_scratch.random_twin import random_twin
from gpt2_from_scratch.recipes import new_classifier
from gpt2_from_scratch.split import Split, split_messages
from gpt2_from_scratch.train import finetune, freeze

AUXILIARY = 0.5  # weight of the loss of the next token: Radford et al. 2018 (GPT-1), section 3.2


@dataclass(frozen=True)
class Plan:
    """What all experiments of a table have in common."""

    model: str
    data: str
    seeds: tuple[int, ...]
    config: TrainConfig  # of the default row; its seed is replaced
    settings: ClassifierSettings  # of the default row
    balance: bool = True
    max_tokens: int | None = None
    dtype: str = "float32"  # of the frozen blocks
    reading: tuple[tuple[str, Any], ...] = ()  # how the data is read


@dataclass(frozen=True)
class Result:
    """One experiment: a row with one seed."""

    row: str
    seed: int
    accuracy: float  # on the test part
    val_accuracy: float  # of the epoch that was kept
    right: str  # of each test message in its order: 1 if right, else 0
    n_train: int
    epochs: int
    trained: int  # numbers that trained
    seconds: float
    busy: float  # seconds of the processor


def run_experiments(
    plan: Plan,
    rows: Sequence[Row],
    out: Path,
    *,
    jobs: int = 2,
    threads: int = 1,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Run every row with every seed that is not in `out` yet; the results in order of rows.

    `jobs` processes work side by side, each with so many `threads`. Ctrl-C ends those under way; what was
    done stays. Raises UsageError where `out` holds experiments with other settings.
    """
    refuse_unfit(plan, rows)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait=False, say=say):
        _refuse_other_plan(plan, out)
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
            say(f"{len(done)} experiments are in {out} already, {len(todo)} are to be done")
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            for result in tqdm(
                _side_by_side(plan, todo, jobs, threads),
                total=len(todo),
                desc="experiments",
                disable=None,
            ):
                file.write(_line(result))
                file.flush()
                say(f"{result.row}, seed {result.seed}: {100 * result.accuracy:.2f} %, {result.seconds:.0f} s")  # fmt: skip
                done[result.row, result.seed] = result
    return [done[row.name, seed] for row in rows for seed in plan.seeds]


def refuse_unfit(plan: Plan, rows: Sequence[Row]) -> None:
    """Raise UsageError for settings that a row's change does not fit, before anything runs."""
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
    """One experiment, from the messages to the test part's answers."""
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
        store = None if row.random_weights else FeatureStore(say=_silent)
        history = finetune(classifier, split, config, run, store=store, quiet=True, say=_silent)
        trained = count_trainable(classifier.model)
        right = _right(classifier, split.test)
    return Result(
        row.name, seed, sum(right) / len(right), max(epoch.val_score for epoch in history),
        "".join(str(int(is_right)) for is_right in right), n_train, len(history), trained,
        time.perf_counter() - began, time.process_time() - busy,
    )  # fmt: skip


def split_for(plan: Plan, row: Row, seed: int) -> Split:
    """The split of a seed; where the row wants all messages, those left over are trained on too."""
    messages = load_messages(plan.data, **dict(plan.reading), say=_silent)
    on_error = dict(plan.reading).get("on_error", "stop")
    split = split_messages(messages, balance=plan.balance, seed=seed, on_error=on_error, say=_silent)  # fmt: skip
    if not row.all_messages:
        return split
    whole = split_messages(messages, seed=seed, on_error=on_error, say=_silent)
    kept = {message.text for message in (*split.val, *split.test)}
    every = (*whole.train, *whole.val, *whole.test)
    return replace(split, train=[message for message in every if message.text not in kept])


def _prepared(
    model: str,
    split: Split,
    config: TrainConfig,
    settings: ClassifierSettings,
    row: Row,
    plan: Plan,
) -> tuple[Classifier, Split]:
    """The classifier of a row, and the messages as it learns from them."""
    dtype = DTYPES[plan.dtype]
    plain = new_classifier(model, split, config, settings, plan.max_tokens, dtype)
    if not row.extra:
        return plain, split
    head, max_tokens = plain.description.head, plain.description.max_tokens
    if row.extra == "words":
        heads = [HeadConfig("label", "token-classification", head.labels)]
        label: Callable[[Message], Any] = _every_word
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


def _every_word(message: Message) -> list[Span]:
    """The label of a text as that of each of its words."""
    return [Span(*word.span(), message.label) for word in re.finditer(r"\S+", message.text)]


def _right(classifier: Classifier, test: Sequence[Message]) -> list[bool]:
    """Whether each message's answer is right; where every word has one, the last word's."""
    answers = classifier.predict([message.text for message in test])
    found = []
    for answer, message in zip(answers, test, strict=True):
        assert answer is not None
        if isinstance(message.label, list):
            tags = answer.answer.words
            found.append(bool(tags) and tags[-1].label == message.label[-1].label)
        else:
            wanted = message.label["label"] if isinstance(message.label, dict) else message.label
            found.append(answer.label == wanted)
    return found


def _side_by_side(
    plan: Plan, todo: Sequence[tuple[Row, int]], jobs: int, threads: int
) -> Iterator[Result]:
    """Results as they come, from `jobs` processes, or from this one."""
    if jobs == 1:
        for row, seed in todo:
            yield run_one(plan, row, seed)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=set_threads, initargs=(threads,)) as pool:
        futures = {pool.submit(run_one, plan, row, seed) for row, seed in todo}
        try:
            while futures:
                ready, futures = wait(futures, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        finally:
            _cancel(futures)


def _cancel(futures: set[Future[Result]]) -> None:
    for future in futures:
        future.cancel()


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


def _refuse_other_plan(plan: Plan, out: Path) -> None:
    """Keep what the experiments have in common; raise UsageError where it was something else."""
    path = out / "experiments.json"
    now = json.loads(json.dumps(asdict(plan) | {"model": model_name(plan.model), "data": data_name(plan.data)}))  # fmt: skip
    del now["seeds"], now["config"]["seed"]  # more seeds may come
    if path.exists():
        refuse_changes(read_json(path), now, out)
    else:
        write_json(path, now)


def _line(result: Result) -> str:
    return json.dumps(asdict(result)) + "\n"


def _silent(text: str) -> None:
    pass
