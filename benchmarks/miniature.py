"""Compare miniature GPT-2s: bits per byte, classifiers, probes, time and memory.

    python benchmarks/miniature.py weights/mini runs/next --corpus ../shared/corpus
    python benchmarks/miniature.py weights/mini --quick

The models are those in the folders, random weights of the first folder's size, and TF-IDF (words 1
to 2 and characters 2 to 5) on the same rows. Each classifier is trained with the package's default
settings. Results are kept in --out, and a second call computes only what is missing. Without --test
the scores are those of the validation sets, which may be used to select weights. --test shows the
scores of the test sets, once, at the end.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from bench import SHARED, PeakMemory, measure_machine, megabytes, note, timed

from gpt2_from_scratch import Message, Split, TrainConfig, finetune
from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.classifier.tasks.tagging import tag_scores
from gpt2_from_scratch.data.formats import load_examples
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.evaluation.significance import compare_accuracies, format_p, holm
from gpt2_from_scratch.gpt2.corpus import (
    encode_source,
    is_held_out,
    n_bytes,
    read_documents,
    registers,
)
from gpt2_from_scratch.gpt2.pretrain import bits_per_byte
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2, random_twin
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.reports.plots import save_picture
from gpt2_from_scratch.runs.folder import RunConfig
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.storage.files import sha256_of, write_json
from gpt2_from_scratch.storage.paths import data_file
from gpt2_from_scratch.studies.probes import probe_layers

TFIDF, RANDOM = "TF-IDF", "random weights"
TAGS = "token-classification"
CS = (1.0, 10.0, 100.0)  # inverse penalties of TF-IDF's regression, selected on the validation set
QUICK_TEXTS, QUICK_DOCUMENTS = (
    1500,
    300,
)  # with --quick: training texts, documents for bits per byte


# --- measurements ---


@dataclass(frozen=True)
class DataSet:
    """Labelled texts, split for a seed."""

    name: str
    split: Callable[[int], Split]
    task: str = "classification"


def data_sets(quick: bool) -> list[DataSet]:
    """The data sets whose files exist."""
    shared = SHARED / "data"
    sms = partial(load_messages, "sms")
    found = [
        DataSet("SMS, balanced", lambda seed: split_messages(sms(), balance=True, seed=seed)),
        DataSet("topics", lambda seed: split_messages(load_messages("topics"), seed=seed)),
    ]
    if not quick:
        found.append(DataSet("SMS, complete", lambda seed: split_messages(sms(), seed=seed)))
    if (shared / "trec").is_dir():
        found.append(DataSet("question types", partial(_trec, shared / "trec")))
    if (shared / "sst2").is_dir():
        parts = ("train.csv", "val.csv", "test.csv")
        found.append(
            DataSet("film reviews", partial(_given, shared / "sst2", parts, "classification"))
        )
    if (shared / "wnut17").is_dir() and not quick:
        parts = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
        found.append(
            DataSet("tags (WNUT17)", partial(_given, shared / "wnut17", parts, TAGS), TAGS)
        )
    if not quick:
        return found
    return [replace(one, split=partial(_shortened, one.split)) for one in found]


def _shortened(split: Callable[[int], Split], seed: int) -> Split:
    whole = split(seed)
    return replace(whole, train=whole.train[:QUICK_TEXTS])


def _trec(folder: Path, seed: int) -> Split:
    """A tenth of the training questions becomes validation; test questions are not in training."""
    test = load_messages(folder / "test.csv")
    texts = {message.text for message in test}
    rest = [m for m in load_messages(folder / "train.csv") if m.text not in texts]
    rest = list({message.text: message for message in rest}.values())
    order = np.random.RandomState(seed).permutation(len(rest)).tolist()
    n_val = len(rest) // 10
    return Split([rest[n] for n in order[n_val:]], [rest[n] for n in order[:n_val]], test)


def _given(
    folder: Path, parts: Sequence[str], task: str = "classification", seed: int = 0
) -> Split:
    return Split(*(load_examples(folder / part, task) for part in parts))


@dataclass(frozen=True)
class Score:
    """The scores on one part: which texts are entirely correct, and F1 (macro or of entities)."""

    correct: list[int]
    f1: float


def scored(task: str, messages: Sequence[Message], answers: Sequence[Any]) -> Score:
    """Compare predictions (a label or a list of tags per text) with the messages' labels."""
    if task == TAGS:
        true = [[word.label for word in message.label] for message in messages]
        f1 = tag_scores(true, answers).f1 or 0.0
    else:
        from sklearn.metrics import f1_score

        true = [message.label for message in messages]
        f1 = float(f1_score(true, answers, average="macro"))
    return Score([int(a == b) for a, b in zip(true, answers, strict=True)], f1)


def finetuned(folder: Path, split: Split, task: str, seed: int) -> Callable[[list[str]], list[Any]]:
    """Finetune with the default settings; return a function that predicts texts."""
    config = RunConfig(model=str(folder), training=TrainConfig(seed=seed), head=HeadSettings(task))
    classifier = new_classifier(config, split)
    with TemporaryDirectory() as run, silenced():
        finetune(classifier, split, config.training, Path(run))

    def answer(texts: list[str]) -> list[Any]:
        answers = [prediction.answer for prediction in classifier.predict(texts) if prediction]
        if task == TAGS:
            return [[word.label for word in answer.words] for answer in answers]
        return [answer.label for answer in answers]

    return answer


def tfidf(split: Split) -> Callable[[list[str]], list[Any]]:
    """Logistic regression on words 1 to 2 and characters 2 to 5; validation selects the penalty."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    texts, labels = zip(*((m.text, m.label) for m in split.train), strict=True)
    val_texts, val_labels = zip(*((m.text, m.label) for m in split.val), strict=True)
    x, x_val = features.fit_transform(texts), features.transform(val_texts)
    fits = [LogisticRegression(C=C, max_iter=2000).fit(x, labels) for C in CS]
    best = max(fits, key=lambda fit: fit.score(x_val, val_labels))
    return lambda some: make_pipeline(features, best).predict(some).tolist()


def classify(name: str, folder: Path | None, data: DataSet, seed: int) -> dict[str, Any] | None:
    """Train on a data set and predict its validation and test sets; None if that is impossible."""
    if folder is None and data.task == TAGS:
        return None
    split = data.split(seed)
    note(f"{name}: {data.name}, seed {seed}")
    answer: Callable[[list[str]], list[Any]] | None = None

    def fit() -> None:
        nonlocal answer
        answer = tfidf(split) if folder is None else finetuned(folder, split, data.task, seed)

    seconds = timed(fit)
    assert answer is not None
    found: dict[str, Any] = {"seconds": seconds, "n_train": len(split.train)}
    for part, messages in (("val", split.val), ("test", split.test)):
        score = scored(data.task, messages, answer([message.text for message in messages]))
        found[part] = {"correct": "".join(map(str, score.correct)), "f1": score.f1}
    return found


def bits(folder: Path, corpus: Path | None, quick: bool) -> dict[str, float]:
    """Bits per byte of the corpus's held-out text by register, and of texts of data sets."""
    texts: dict[str, list[str]] = {}
    if corpus is not None:
        for name, register in registers(corpus).items():
            aside = [d for d in read_documents(corpus / name) if is_held_out(d)]
            texts.setdefault(f"held out: {register}", []).extend(aside)
    unseen = {"SMS collection": data_file("sms")}
    unseen |= {"question types": SHARED / "data" / "trec" / "train.csv"}
    unseen |= {"film reviews": SHARED / "data" / "sst2" / "train.csv"}
    for name, path in unseen.items():
        if path.exists():
            texts[name] = [message.text for message in load_messages(path)]
    tokenizer, model, found = Tokenizer(folder), load_gpt2(folder), {}
    for name, some in texts.items():
        note(f"{folder.name}: bits per byte, {name}")
        chosen = some[:: max(1, len(some) // QUICK_DOCUMENTS)] if quick else some
        source = encode_source(name, chosen, tokenizer, 1.0)
        found[name] = bits_per_byte(model, [source], n_bytes(source, tokenizer))
    return found


def probes(folder: Path, split: Split) -> list[float]:
    """The validation accuracy of a linear probe of the mean state, by layer."""
    note(f"{folder.name}: probes")
    with silenced():
        found = probe_layers(load_gpt2(folder), Tokenizer(folder), split, poolings=["mean"])
    return [probe.val_accuracy for probe in found if not probe.final_norm]


def costs(folder: Path, split: Split) -> dict[str, float]:
    """Seconds and peak memory of a training without a cache; seconds per 1,000 predictions."""
    answer: list[Any] = []
    with PeakMemory() as peak:
        seconds = timed(lambda: answer.append(finetuned(folder, split, "classification", 1)))
    texts = [m.text for part in (split.train, split.val, split.test) for m in part][:1000]
    texts += texts[: 1000 - len(texts)]
    predict = timed(lambda: answer[0](texts))
    return {"train": seconds, "predict_1000": predict, "peak_bytes": float(peak.bytes)}


# --- the table and the picture ---


def classifier_rows(
    results: dict[str, dict[str, list[dict[str, Any]]]], names: Sequence[str], part: str
) -> list[list[str]]:
    """One row per data set: mean accuracy and F1 of each model, and p against the first model."""
    rows = []
    for data, of_model in results.items():
        cells = [data]
        right = {
            name: [np.array([*map(int, r[part]["correct"])], dtype=bool) for r in of_model[name]]
            for name in names
            if of_model.get(name)
        }
        first, others = names[0], [name for name in names[1:] if name in right]
        n_train = of_model[first][0]["n_train"]
        tests = [compare_accuracies(right[n], right[first], n_train).p for n in others]
        p_of = dict(zip(others, holm(tests), strict=True))
        for name in names:
            if name not in right:
                cells.append("–")
                continue
            accuracy = 100 * statistics.mean(float(c.mean()) for c in right[name])
            f1 = 100 * statistics.mean(r[part]["f1"] for r in of_model[name])
            p = f" ({format_p(p_of[name])})" if name in p_of else ""
            cells.append(f"{accuracy:.1f}% / {f1:.1f}{p}")
        rows.append(cells)
    return rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def picture(models: dict[str, dict[str, Any]], accuracies: list[list[str]], path: Path) -> None:
    """Draw bits per byte by text, and accuracies by data set, as grouped bars."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    texts = list(next(iter(models.values()))["bits"])
    width = 0.8 / len(models)
    for n, (name, found) in enumerate(models.items()):
        left.bar(
            [k + n * width for k in range(len(texts))],
            [found["bits"][t] for t in texts],
            width,
            label=name,
        )
    left.set_xticks([k + 0.4 for k in range(len(texts))], texts, rotation=40, ha="right")
    left.set_ylabel("bits per byte (lower is better)")
    left.legend()
    names = [*models, TFIDF]
    width = 0.8 / len(names)
    for n, name in enumerate(names):
        shown = [
            (k, float(cells[n + 1].split("%")[0]))
            for k, cells in enumerate(accuracies)
            if "%" in cells[n + 1]
        ]
        right.bar([k + n * width for k, _ in shown], [v for _, v in shown], width, label=name)
    right.set_xticks(
        [k + 0.4 for k in range(len(accuracies))],
        [cells[0] for cells in accuracies],
        rotation=40,
        ha="right",
    )
    right.set_ylabel("accuracy, %")
    right.set_ylim(bottom=40)
    right.legend()
    save_picture(figure, path)


class Kept:
    """Results on disk, one file per measurement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """A result from its file, or measured now."""
        safe = "".join(c if c.isalnum() else "-" for c in key)
        path = self.folder / f"{safe}.json"
        if not path.exists():
            write_json(path, {"key": key, "result": measure()})
        return json.loads(path.read_text("utf-8"))["result"]


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--corpus", type=Path, help="the pretraining corpus, for held-out text")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer texts: ten minutes")
    parser.add_argument("--test", action="store_true", help="show the scores of the test sets")
    args = parser.parse_args()
    set_threads()
    kept = Kept(args.out / ("quick" if args.quick else "full"))
    seeds = args.seeds[:1] if args.quick else args.seeds
    data = data_sets(args.quick)
    with TemporaryDirectory() as temporary:
        folders: dict[str, Path] = {str(folder): folder for folder in args.folders}
        keys = {name: sha256_of(path / "model.safetensors")[:12] for name, path in folders.items()}
        folders[RANDOM] = random_twin(args.folders[0], Path(temporary) / "random", seed=0)
        keys[RANDOM] = f"random-{keys[str(args.folders[0])]}"
        models = {}
        for name, path in folders.items():
            found = {
                "bits": kept.get(
                    f"{keys[name]} bits{args.corpus or ''}",
                    partial(bits, path, args.corpus, args.quick),
                ),
                "probes": kept.get(
                    f"{keys[name]} probes",
                    partial(probes, path, data[-1 if args.quick else 3].split(1)),
                ),
                "costs": kept.get(f"{keys[name]} costs", partial(costs, path, data[0].split(1))),
            }
            models[name] = found
        results: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for one in data:
            for name, path in {**folders, TFIDF: None}.items():
                for seed in seeds:
                    key = f"{keys.get(name, TFIDF)} {one.name} {seed}"
                    result = kept.get(key, partial(classify, name, path, one, seed))
                    if result is not None:
                        results.setdefault(one.name, {}).setdefault(name, []).append(result)
    part = "test" if args.test else "val"
    names = [*folders, TFIDF]
    rows = classifier_rows(results, names, part)
    print(f"{measure_machine().describe()}\n")
    texts = list(models[names[0]]["bits"])
    print(
        markdown(
            ["bits per byte", *models],
            [
                [text, *(f"{found['bits'][text]:.3f}" for found in models.values())]
                for text in texts
            ],
        )
    )
    print(
        f"\nMeans over seeds {', '.join(map(str, seeds))} on the "
        f"{'test' if args.test else 'validation'} sets; p against {names[0]}, adjusted by Holm.\n"
    )
    print(markdown(["accuracy / macro F1", *names], rows))
    print(
        "\n"
        + markdown(
            ["probe of the mean state, by layer", *models],
            [
                [
                    str(layer),
                    *(
                        f"{100 * f['probes'][layer]:.1f}%" if layer < len(f["probes"]) else "–"
                        for f in models.values()
                    ),
                ]
                for layer in range(max(len(found["probes"]) for found in models.values()))
            ],
        )
    )
    print(
        "\n"
        + markdown(
            ["cost", *models],
            [
                [
                    "seconds of one training (SMS, balanced)",
                    *(f"{f['costs']['train']:.1f}" for f in models.values()),
                ],
                [
                    "its peak memory, MB",
                    *(megabytes(f["costs"]["peak_bytes"]) for f in models.values()),
                ],
                [
                    "seconds of 1,000 predictions",
                    *(f"{f['costs']['predict_1000']:.2f}" for f in models.values()),
                ],
            ],
        )
    )
    picture(models, rows, args.out / "miniature.png")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
