"""A path is a str or a Path, in every public function, and is looked at before work begins."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.train import finetune
from gpt2_from_scratch.data.formats import load_examples, write_examples
from gpt2_from_scratch.data.messages import Message, load_messages, read_texts, write_messages
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.data.tables import tab_separated
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, write_bpe
from gpt2_from_scratch.gpt2.weights import load_gpt2, random_twin, save_gpt2
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import locked, read_json, sha256_of, write_json, write_text
from gpt2_from_scratch.storage.states import newest_state, save_state
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

ROOMS = "storage gpt2 speed data evaluation classifier reports runs studies".split()
MADE_HERE = {"Run"}  # returned to users, who do not make one
LATER = {  # they take names of models and data too, or nothing is done before the result is used
    *("Classifier.on_base", "DataConfig.of", "Setup", "check_data", "compare", "compare_runs"),
    *("experiments", "lecture_split", "load_examples", "load_messages", "load_split"),
    *("resume_training", "run_study", "tab_separated", "train_as_the_lecture", "train_classifier"),
    *("verify_model", "verify_run", "Tokenizer", "GPT2Classifier", "GPT2Features"),
}
MESSAGES = [Message("the cat", "ham"), Message("win", "spam")] * 2


def path_parameters() -> Iterator[tuple[str, Callable, str]]:
    """(name, function, parameter) of every public function and method that takes a path."""
    for room in ("", *ROOMS):
        module = importlib.import_module(f"gpt2_from_scratch.{room}".rstrip("."))
        for name in module.__all__:
            value = getattr(module, name)
            functions = {name: value} if callable(value) else {}
            if inspect.isclass(value):
                members = inspect.getmembers(value, lambda m: inspect.isroutine(m) and callable(m))
                functions |= {f"{name}.{n}": member for n, member in members if n[0] != "_"}
            for title, function in functions.items():
                try:
                    parameters = inspect.signature(function).parameters
                except ValueError:  # of a class without one
                    continue
                for parameter in parameters.values():
                    if "Path" in str(parameter.annotation):
                        yield title, function, parameter.name


WALKED = sorted({(title, name): function for title, function, name in path_parameters()}.items())


@pytest.mark.parametrize(
    ("of", "function"),
    WALKED,
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_every_path_may_be_a_string(of: tuple[str, str], function: Callable) -> None:
    title, name = of
    annotation = str(inspect.signature(function).parameters[name].annotation)
    assert "str" in annotation or title in MADE_HERE, f"{title}({name}: {annotation})"


@pytest.mark.parametrize(
    ("of", "function"),
    [((title, name), f) for (title, name), f in WALKED if title not in LATER | MADE_HERE],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_no_path_is_refused_before_anything_is_done(
    of: tuple[str, str], function: Callable
) -> None:
    """All other arguments are None, so any work would end in another error."""
    _, name = of
    parameters = inspect.signature(function).parameters.values()
    others = {p.name: None for p in parameters if p.default is p.empty}
    with pytest.raises(UsageError, match="a path must be a string or a Path"):
        result = function(**others | {name: 5})
        if hasattr(result, "__enter__"):
            result.__enter__()


@pytest.fixture
def classifier(tiny_checkpoint: Path) -> Classifier:
    return Classifier.on_base(str(tiny_checkpoint), ["ham", "spam"])


def saved_and_loaded(folder: str, classifier: Classifier, model: str) -> Any:
    classifier.save(f"{folder}/best.safetensors")
    Classifier.load(f"{folder}/best.safetensors", model)
    return Classifier.load(folder, model).description


def attached(folder: str, classifier: Classifier, model: str) -> Any:
    from gpt2_from_scratch.classifier.settings import HeadConfig

    classifier.model.requires_grad_(False)
    other = Classifier.on_base(model, heads=[HeadConfig("b", labels=("x", "y"))])
    other.model.requires_grad_(False)
    other.save(f"{folder}/b.safetensors")
    classifier.attach(f"{folder}/b.safetensors")
    return len(classifier.description.heads)


def finetuned(folder: str, classifier: Classifier, model: str) -> Any:
    split = Split(MESSAGES, MESSAGES, MESSAGES)
    finetune(classifier, split, TrainConfig(epochs=1), folder)
    return sorted(path.name for path in Path(folder).glob("*.safetensors"))


def locked_twice(folder: str, classifier: Classifier, model: str) -> Any:
    with locked(f"{folder}/lock", wait=False):
        return Path(folder, "lock").exists()


USES: dict[str, tuple[Callable[[str, Classifier, str], Any], Any]] = {
    "save and load": (lambda f, c, m: saved_and_loaded(f, c, m) == c.description, True),
    "attach": (attached, 2),
    "finetune": (finetuned, ["best.safetensors", "last.safetensors"]),
    "FeatureStore": (lambda f, c, m: FeatureStore(f"{f}/cache").folder.name, "cache"),
    "save_gpt2": (lambda f, c, m: save_gpt2(load_gpt2(m), f) or load_gpt2(f).config.n_embd, 32),
    "random_twin": (lambda f, c, m: load_gpt2(random_twin(m, f, 1)).config.n_embd, 32),
    "write_bpe": (lambda f, c, m: write_bpe(f, [("h", "e")]) or Tokenizer(f).n_vocab, 258),
    "messages": (
        lambda f, c, m: write_messages(f"{f}/t.csv", MESSAGES) or load_messages(f"{f}/t.csv"),
        MESSAGES,
    ),
    "examples": (
        lambda f, c, m: write_examples(f"{f}/t.jsonl", MESSAGES) or load_examples(f"{f}/t.jsonl"),
        MESSAGES,
    ),
    "read_texts": (
        lambda f, c, m: write_text(f"{f}/t.txt", "a\nb\n") or [*read_texts(f"{f}/t.txt")],
        [(1, "a"), (2, "b")],
    ),
    "tab_separated": (
        lambda f, c, m: write_text(f"{f}/t.tsv", "a\tb\n") or len([*tab_separated(f"{f}/t.tsv")]),
        1,
    ),
    "json": (
        lambda f, c, m: write_json(f"{f}/t.json", {"a": 1}) or read_json(f"{f}/t.json"),
        {"a": 1},
    ),
    "sha256_of": (
        lambda f, c, m: write_text(f"{f}/t", "") or sha256_of(f"{f}/t")[:6],
        "e3b0c4",
    ),
    "states": (
        lambda f, c, m: save_state(f, 1, {"x": torch.ones(1)}, {"a": 1}) and newest_state(f)[0],
        {"a": 1},
    ),
    "tensors": (
        lambda f, c, m: (
            write_tensors(f"{f}/x", {"x": torch.ones(1)}, {"format": "y"})
            or [*read_tensors(f"{f}/x", "y")[1]]
        ),
        ["x"],
    ),
    "locked": (locked_twice, True),
}


SLOW = pytest.param("finetune", marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("use", [SLOW if use == "finetune" else use for use in USES])
def test_strings_work(use: str, tmp_path: Path, classifier: Classifier, tiny_checkpoint) -> None:
    function, expected = USES[use]
    assert function(str(tmp_path), classifier, str(tiny_checkpoint)) == expected


def test_the_home_folder_is_expanded(
    tmp_path: Path, monkeypatch, classifier, tiny_checkpoint
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    classifier.save("~/c.safetensors")
    assert (tmp_path / "c.safetensors").exists() and not Path("~").exists()
    assert Classifier.load("~/c.safetensors", tiny_checkpoint).description == classifier.description
