"""Exports to ONNX: onnxruntime gives the package's answers, and int8 is measured.

N texts, T tokens of the longest, K outputs of a head.
"""

import ast
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from said import listen
from tiny import ODD_TEXTS, random_classifier

from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import loss_and_scores, to_labelled
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.runs import onnx_files
from gpt2_from_scratch.runs.exporting import export
from gpt2_from_scratch.runs.recipes import train_classifier
from gpt2_from_scratch.runs.results import evaluate_classifier

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

LABELS = ("ham", "other", "spam")
TEXTS = [*ODD_TEXTS, " \t\u3000"]
FILES = {
    "README.md",
    "classifier.json",
    "classify.py",
    "measured.json",
    "model.onnx",
    "tokenizer.json",
}
LORA = LoRAConfig(rank=2, alpha=6.0)


def loaded(folder: Path) -> ModuleType:
    """The program in an exported folder."""
    spec = importlib.util.spec_from_file_location("classify", folder / "classify.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(folder: Path, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return dict(zip(names, found, strict=True))


def padded(encoded: Sequence[Sequence[int]], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (N, T), with padding on a side; the ids at padding are 3, a token of texts."""
    T = max(map(len, encoded))
    ids, mask = np.full((len(encoded), T), 3), np.zeros((len(encoded), T), np.int64)
    for n, row in enumerate(encoded):
        place = slice(0, len(row)) if side == "right" else slice(T - len(row), T)
        ids[n, place], mask[n, place] = row, 1
    return ids, mask


CASES: list[tuple[tuple[HeadConfig, ...], dict[str, Any]]] = [
    ((HeadConfig(labels=LABELS, temperature=2.5),), {}),
    ((HeadConfig(labels=("no", "yes"), one_output=True, temperature=0.5),), {}),
    ((HeadConfig(labels=LABELS, hidden=(7,), dropout=0.1),), {}),
    ((HeadConfig(labels=LABELS, hidden=(32,), activation="tanh"),), {}),
    ((HeadConfig(labels=LABELS, hidden=(9, 8), activation="gelu", pooling="mean"),), {}),
    ((HeadConfig(labels=LABELS, hidden=(9,), activation="relu", layer=1),), {}),
    ((HeadConfig(labels=LABELS, layer=0, pooling="last_token"),), {}),
    ((HeadConfig(labels=LABELS, final_norm=False, pooling="first_token"),), {}),
    ((HeadConfig(labels=LABELS, pooling="last_position"),), {"pad_to": 32}),
    ((HeadConfig(labels=LABELS, pooling="mean_position"),), {"pad_to": 20, "max_tokens": 20}),
    ((HeadConfig(labels=LABELS),), {"max_tokens": 9}),
    ((HeadConfig(labels=LABELS),), {"lora": LORA}),
    ((HeadConfig(labels=LABELS),), {"lora": replace(LORA, head=True, matrices=("value",))}),
    ((HeadConfig(labels=LABELS),), {"causal_mask": False}),
    ((HeadConfig(task="multi-label", labels=LABELS, thresholds=(0.25, 0.5, 0.75)),), {}),
    ((HeadConfig(task="regression", labels=("year",), center=(1.7e9,), scale=(1.5,)),), {}),
    ((HeadConfig(task="token-classification", labels=("O", "B-x", "I-x")),), {}),
    (
        (
            HeadConfig("kind", labels=LABELS, pooling="last_token"),
            HeadConfig("tone", labels=("bad", "good"), pooling="mean", layer=1),
            HeadConfig("tags", "token-classification", labels=("O", "B-x")),
        ),
        {},
    ),
]


@pytest.mark.parametrize(("heads", "options"), CASES)
def test_the_program_gives_our_answers(
    tiny_checkpoint: Path, tmp_path: Path, heads: tuple[HeadConfig, ...], options: dict[str, Any]
) -> None:
    """In one batch, so that texts are padded, and one text at a time."""
    ours = random_classifier(tiny_checkpoint, *heads, **options)
    export(ours, tmp_path / "out", to="onnx")
    program = loaded(tmp_path / "out")
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "model.onnx"), full_check=True)
    for batches in ([TEXTS], [[text] for text in TEXTS]):
        found = [answer for batch in batches for answer in program.classify(batch)]
        for text, theirs, prediction in zip(TEXTS, found, ours.predict(TEXTS), strict=True):
            for head in heads:
                same_answer(head, theirs[head.name], prediction.answers[head.name], text)


def same_answer(head: HeadConfig, theirs: Any, ours: Any, text: str) -> None:
    if head.task == "regression":
        assert theirs == pytest.approx(ours.values, abs=1e-4, rel=0)
    elif head.task == "token-classification":
        words = [(word.word, word.label) for word in ours.words if word.probability]
        assert [(word, tag) for word, tag in theirs if tag] == words, text
    else:
        assert theirs["probabilities"] == pytest.approx(ours.probabilities, abs=1e-5)
        what = "labels" if head.task == "multi-label" else "label"
        assert theirs[what] == getattr(ours, what), text


@pytest.mark.parametrize("pooling", ["end_token", "last_token", "mean", "first_token", "every"])
def test_padding_on_either_side(tiny_checkpoint: Path, tmp_path: Path, pooling: str) -> None:
    head = HeadConfig(task="token-classification", labels=LABELS)
    if pooling != "every":
        head = HeadConfig(labels=LABELS, pooling=pooling)
    ours = random_classifier(tiny_checkpoint, head)
    export(ours, tmp_path / "out", to="onnx")
    encoded = ours.encode(TEXTS)[0]
    expected = {}
    for numbers, some, _ in ours.outputs(encoded):
        expected |= zip(numbers, some["label"], strict=True)
    for side in ("right", "left"):
        ids, mask = padded(encoded, side)
        found = outputs(tmp_path / "out", ids, mask)["logits"]
        for n, row in expected.items():
            theirs = found[n] if pooling != "every" else found[n][mask[n] == 1]
            row = row if pooling != "every" else row[: len(encoded[n])]
            np.testing.assert_allclose(theirs, row.numpy(), atol=1e-5, rtol=0)


def test_rows_without_tokens_are_read_as_empty_texts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS, pooling="last_token"))
    export(ours, tmp_path / "out", to="onnx")
    expected = ours.logits(ours.encode([""])[0]).numpy()
    for T in (0, 1, 5):
        ids, mask = np.ones((2, T), np.int64), np.zeros((2, T), np.int64)
        found = outputs(tmp_path / "out", ids, mask)["logits"]
        np.testing.assert_allclose(found, np.repeat(expected, 2, axis=0), atol=1e-5, rtol=0)


def test_a_text_that_is_too_long_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(
        random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS)), tmp_path / "out", to="onnx"
    )
    ids = np.ones((1, 33), np.int64)
    with pytest.raises(Exception, match=r"\b33\b"):
        outputs(tmp_path / "out", ids, ids)


def test_one_of_several_heads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    heads = [HeadConfig("kind", labels=LABELS), HeadConfig("tone", labels=("bad", "good"))]
    ours = random_classifier(tiny_checkpoint, *heads)
    with pytest.raises(UsageError, match="'topic'"):
        export(ours, tmp_path / "out", to="onnx", head="topic")
    export(ours, tmp_path / "out", to="onnx", head="tone")
    found = loaded(tmp_path / "out").classify(TEXTS)
    for theirs, prediction in zip(found, ours.predict(TEXTS), strict=True):
        assert {*theirs} == {"tone"}
        same_answer(heads[1], theirs["tone"], prediction.answers["tone"], "")


# --- files ---


def test_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_card.md").write_text("# Mine\n")
    export(ours, tmp_path / "some" / "out", to="onnx", run=run)
    folder = tmp_path / "some" / "out"
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    how = json.loads((folder / "classifier.json").read_text())
    assert how["heads"][0]["labels"] == [*LABELS]
    proto = onnx.load(folder / "model.onnx")
    assert json.loads(proto.metadata_props[0].value) == how
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    readme = (folder / "README.md").read_text()
    assert "# Mine" in readme and "out/classify.py" in readme
    after = ours.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(UsageError, match="exists"):
        export(ours, folder, to="onnx")


def test_the_program_needs_no_torch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(
        random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS)), tmp_path / "out", to="onnx"
    )
    tree = ast.parse((tmp_path / "out" / "classify.py").read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "numpy", "onnxruntime", "pathlib", "re", "sys", "tokenizers", "typing"}


@pytest.mark.slow
def test_weights_of_a_large_model_are_in_a_second_file(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "IN_ONE_FILE", 0)
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    export(ours, tmp_path / "out", to="onnx", int8=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == FILES | {
        "model.onnx.data",
        "model_int8.onnx",
        "model_int8.onnx.data",
    }
    (found,) = loaded(tmp_path / "out").classify(TEXTS[:1])
    same_answer(ours.description.head, found["label"], ours.predict(TEXTS[:1])[0].answer, "")


# --- what is refused ---


@pytest.mark.parametrize("task", ["span", "language"])
def test_tasks_whose_answers_the_graph_cannot_compute(
    tiny_checkpoint: Path, tmp_path: Path, task: str
) -> None:
    with pytest.raises(UsageError, match=task):
        export(
            random_classifier(tiny_checkpoint, HeadConfig(task=task)), tmp_path / "out", to="onnx"
        )
    assert not [*tmp_path.iterdir()]


def test_rounded_frozen_blocks_are_exported_in_float32(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rounded = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS), dtype=torch.bfloat16)
    rounded.model.requires_grad_(False)
    export(rounded, tmp_path / "out", to="onnx")
    plain = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    found = loaded(tmp_path / "out").classify(TEXTS)
    for theirs, prediction in zip(found, plain.predict(TEXTS), strict=True):
        same_answer(plain.description.head, theirs["label"], prediction.answer, "")


def test_a_changed_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    hook = ours.model.ln_f.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(UsageError, match="ln_f"):
        export(ours, tmp_path / "out", to="onnx")
    hook.remove()
    with torch.no_grad():
        ours.model.wte.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="wte"):
        export(ours, tmp_path / "out", to="onnx")
    assert not [*tmp_path.iterdir()]


def test_a_graph_that_answers_otherwise_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: the exact GELU instead of GPT-2's approximation."""
    original = onnx_files.to_onnx

    def with_another_gelu(*args: Any) -> Any:
        proto, how = original(*args)
        for node in proto.graph.node:
            if node.op_type == "Gelu":
                del node.attribute[:]
        return proto, how

    monkeypatch.setattr(onnx_files, "to_onnx", with_another_gelu)
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    with pytest.raises(CheckpointError, match="'label'"):
        export(ours, tmp_path / "out", to="onnx")
    assert not [*tmp_path.iterdir()]


def test_missing_packages_are_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"onnx and onnxruntime.*\[onnx\]"):
        export(ours, tmp_path / "out", to="onnx")
    with pytest.raises(UsageError, match="int8"):
        export(ours, tmp_path / "out", int8=True)
    assert not [*tmp_path.iterdir()]


# --- int8 ---


@pytest.mark.slow
def test_int8_without_labelled_texts_is_not_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    said = listen()
    handlers = [*logging.getLogger().handlers]
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    export(ours, tmp_path / "out", to="onnx", int8=True)
    measured = json.loads((tmp_path / "out" / "measured.json").read_text())["int8"]
    assert measured["change"] is None and measured["speed"] > 0
    assert measured["megabytes_int8"] < measured["megabytes"]
    assert "not measured" in (tmp_path / "out" / "README.md").read_text()
    assert any("unknown" in line for line in said)
    assert logging.getLogger().handlers == handlers  # the quantizer would add one


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Forty texts with labels of three kinds."""
    texts = [f"{'the goal' if n % 2 else 'a pill'} {n}" for n in range(40)]
    labels = (lambda n: "ab"[n % 2], lambda n: ["ab"[n % 2]], lambda n: float(n))
    kinds = ("classification", "multi-label", "regression")
    return [
        {"text": text} | {kind: label(n) for kind, label in zip(kinds, labels, strict=True)}
        for n, text in enumerate(texts)
    ]


def in_batches(session: Any, encoded: list[list[int]], order: np.ndarray) -> np.ndarray:
    """The classes of texts, in batches of 32 that follow `order`, with padding 0 on the right."""
    chosen = np.zeros(len(encoded), int)
    for first in range(0, len(order), 32):
        numbers = order[first : first + 32]
        longest = max(len(encoded[n]) for n in numbers)
        ids = [[*encoded[n], *[0] * (longest - len(encoded[n]))] for n in numbers]
        mask = [[float(t < len(encoded[n])) for t in range(longest)] for n in numbers]
        given = {"input_ids": np.array(ids), "attention_mask": np.array(mask, np.int64)}
        chosen[numbers] = session.run(None, given)[0].argmax(1)
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_int8_is_measured_on_the_validation_set(
    tiny_checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]], task: str
) -> None:
    """The scores and losses that numpy finds in the outputs of both graphs."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": r["text"], "label": r[task]}) for r in rows))
    config, head = TrainConfig(epochs=1), HeadSettings(task=task)
    run = train_classifier(tiny_checkpoint, path, config, head, run=tmp_path / "run")
    export(run.classifier, tmp_path / "out", to="onnx", int8=True, run=run.folder)
    measured = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert measured["float32"]["source"] == "texts of the test set"
    assert measured["float32"]["texts"] == len(run.load_split().test)
    val = run.load_split().val
    found = measured["int8"]["change"]
    assert found["texts"] == len(val)
    encoded = run.classifier.encode([message.text for message in val])[0]
    outputs = []
    for name in ("model.onnx", "model_int8.onnx"):
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / name))
        given = [{"input_ids": [ids], "attention_mask": [[1] * len(ids)]} for ids in encoded]
        outputs.append(np.array([session.run(None, one)[0][0] for one in given], np.float64))
    assert found["largest_difference"] == pytest.approx(np.abs(outputs[0] - outputs[1]).max())
    losses, numbers = [], run.classifier.description.head
    for rows_of_graph in outputs:
        losses.append(numpy_loss(numbers, rows_of_graph, [message.label for message in val]))
    assert found["loss"] == pytest.approx(losses[0], rel=1e-4)
    assert found["loss_int8"] == pytest.approx(losses[1], rel=1e-4)
    low, high = found["loss_interval"]
    assert low <= losses[1] - losses[0] <= high
    if task == "classification":
        true = np.array([numbers.labels.index(message.label) for message in val])
        chosen = [each.argmax(1) for each in outputs]
        assert found["score"] == pytest.approx((chosen[0] == true).mean())
        assert found["score_int8"] == pytest.approx((chosen[1] == true).mean())
        assert found["equal"] == (chosen[0] == chosen[1]).sum()
        by_length = np.argsort([len(ids) for ids in encoded], kind="stable")
        in_order = in_batches(session, encoded, np.arange(len(encoded)))
        in_sorted = in_batches(session, encoded, by_length)
        assert found["equal_in_batches"] == (chosen[1] == in_order).sum()
        assert found["equal_in_sorted"] == (chosen[1] == in_sorted).sum()
        assert found["score_in_batches"] == pytest.approx((in_order == true).mean())
        low, high = found["score_interval"]
        assert low <= found["score_int8"] - found["score"] <= high
    assert (found["decisions"] == 0) == (task == "regression")


@pytest.mark.slow
def test_int8_that_loses_more_than_a_point_is_refused_unless_forced(
    tiny_checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]], monkeypatch
) -> None:
    """The quantizer gets weights that are wrong: the signs of the last matrix are changed."""

    def with_other_signs(path: Path, to: Path, of_heads: Any) -> None:
        graph = onnx.load(path)
        for tensor in graph.graph.initializer:
            if tensor.name.startswith("head."):
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
        onnx.save(graph, to)

    monkeypatch.setattr(onnx_files, "_quantize", with_other_signs)
    path = tmp_path / "data.jsonl"
    kept = [{"text": row["text"], "label": row["classification"]} for row in rows]
    path.write_text("\n".join(map(json.dumps, kept)))
    config = TrainConfig(epochs=8, lr=0.01, n_last_blocks=2)
    run = train_classifier(tiny_checkpoint, path, config, run=tmp_path / "run")
    with pytest.raises(CheckpointError, match="--force") as refused:
        export(run.classifier, tmp_path / "out", to="onnx", int8=True, run=run.folder)
    assert "accuracy" in str(refused.value) and not (tmp_path / "out").exists()
    export(run.classifier, tmp_path / "out", to="onnx", int8=True, run=run.folder, force=True)
    change = json.loads((tmp_path / "out" / "measured.json").read_text())["int8"]["change"]
    assert change["score"] - change["score_int8"] > 0.01


def test_force_without_int8_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    with pytest.raises(UsageError, match="int8"):
        export(ours, tmp_path / "out", to="onnx", force=True)


def numpy_loss(head: HeadConfig, outputs: np.ndarray, labels: list[Any]) -> float:
    """The mean loss of logits or values (N, K)."""
    if head.task == "classification":
        true = [head.labels.index(label) for label in labels]
        logs = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
        return float(-logs[np.arange(len(true)), true].mean())
    if head.task == "multi-label":
        true = np.array([[name in label for name in head.labels] for label in labels])
        p = 1 / (1 + np.exp(-outputs))
        return float(-np.where(true, np.log(p), np.log(1 - p)).mean())
    return float(((outputs - np.array(labels).reshape(len(labels), -1)) ** 2).mean())


@pytest.mark.slow
def test_int8_of_tags(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Decisions are tokens, and the loss is the mean over words."""
    lines = []
    for n in range(30):
        lines += [f"goal{n} B-x", "in O", f"town{n % 7} O", ""]
    (tmp_path / "tags.conll").write_text("\n".join(lines) + "\n")
    config, head = TrainConfig(epochs=1), HeadSettings(task="token-classification")
    run = train_classifier(
        tiny_checkpoint, tmp_path / "tags.conll", config, head, run=tmp_path / "run"
    )
    export(run.classifier, tmp_path / "out", to="onnx", int8=True, run=run.folder)
    found = json.loads((tmp_path / "out" / "measured.json").read_text())["int8"]["change"]
    val = run.load_split().val
    encoded = run.classifier.encode([message.text for message in val])[0]
    assert found["decisions"] == sum(map(len, encoded)) > found["texts"] == len(val)
    assert found["score"] == pytest.approx(evaluate_classifier(run.classifier, val).main)
    assert found["loss"] == pytest.approx(
        loss_and_scores(run.classifier, to_labelled(run.classifier, val))[0], rel=1e-4
    )


@pytest.mark.slow
def test_int8_without_the_data(tiny_checkpoint: Path, tmp_path: Path, table: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_bytes(table.read_bytes())
    run = train_classifier(tiny_checkpoint, data, TrainConfig(epochs=1), run=tmp_path / "run")
    data.unlink()
    export(run.classifier, tmp_path / "out", to="onnx", int8=True, run=run.folder)
    found = json.loads((tmp_path / "out" / "measured.json").read_text())["int8"]
    assert found["change"] is None and "data.csv" in found["reason"]
    export(
        run.classifier, tmp_path / "again", to="onnx", int8=True, run=run.folder, data=str(table)
    )
    found = json.loads((tmp_path / "again" / "measured.json").read_text())["int8"]["change"]
    assert found["texts"] == 40 and table.name in found["source"]
    assert f"40 texts of {table}" in (tmp_path / "again" / "README.md").read_text()
    with pytest.raises(UsageError, match="int8"):
        export(run.classifier, tmp_path / "third", to="onnx", data=str(table))


def test_when_a_change_is_large() -> None:
    change = onnx_files.Change(
        300,
        "texts",
        300,
        297,
        299,
        299,
        0.1,
        "accuracy",
        0.9,
        0.9,
        0.9,
        None,
        0.2,
        0.2,
        (-0.1, 0.1),
    )
    assert not change.is_large
    for name in ("equal", "equal_in_batches", "equal_in_sorted"):
        assert replace(change, **{name: 296}).is_large
    assert not replace(change, decisions=0, equal=0).is_large
    assert not change.loses and not replace(change, score_int8=0.95).loses
    assert replace(change, score_int8=0.88).loses and replace(change, score_in_batches=0.88).loses
