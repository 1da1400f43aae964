"""Giving a head other labels keeps what it has learned; heads that do not fit are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from three_blocks import HEADS, LABEL, LANGUAGE, LAYERS, STARS, TAGS, TOPICS, classifier_with
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.classifier.heads import class_logits, replace_head
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig

TEXTS = ["the cat is in the house", "win", ""]
SIGMOID = HeadConfig("sigmoid", labels=("no", "yes"), one_output=True)


def last(classifier: Classifier) -> nn.Linear:
    head = classifier.model.head
    return head if isinstance(head, nn.Linear) else head.out


def probabilities(classifier: Classifier) -> list[dict[str, float]]:
    return [prediction.probabilities for prediction in classifier.predict(TEXTS)]


@pytest.mark.parametrize("head", [LABEL, replace(LAYERS, labels=LABEL.labels), TAGS, TOPICS])
@pytest.mark.parametrize(
    "order", [[0, 1, 2], [2, 0, 1], [1], [0, 2], [2, None], [None, 1, None, 0, None]]
)
def test_known_labels_keep_their_outputs(
    base: Path, tmp_path: Path, head: HeadConfig, order: list
) -> None:
    classifier = classifier_with(base, head)
    before, hidden = last(classifier).weight.clone(), classifier.model.head.state_dict()
    labels = [f"new {n}" if old is None else head.labels[old] for n, old in enumerate(order)]
    if len(labels) < 2 and head.task != "multi-label":
        with pytest.raises(UsageError, match="at least 2 labels"):
            classifier.relabel(labels)
        return
    classifier.relabel(labels)
    weight = last(classifier).weight
    assert weight.shape == (len(order), before.shape[1])
    for number, old in enumerate(order):
        assert old is None or torch.equal(weight[number], before[old])
    if "dense_1.weight" in hidden:
        assert torch.equal(classifier.model.head.dense_1.weight, hidden["dense_1.weight"])
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors", base)
    assert again.description.labels == labels
    assert again.predict(TEXTS) == classifier.predict(TEXTS)


@pytest.mark.parametrize("labels", [("Ham", "ham"), ("a", "a "), ("caf\u00e9", "cafe\u0301")])
def test_labels_that_look_alike(base: Path, tmp_path: Path, labels: tuple[str, str]) -> None:
    classifier = Classifier.on_base(base, ("a", "b"))
    with pytest.raises(DataError, match="Unicode form"):
        classifier.relabel(labels)
    alike = HeadConfig(labels=labels)
    with pytest.raises(DataError, match="Unicode form"):
        Classifier.on_base(base, heads=[alike])
    # old files contain such labels
    classifier.description = replace(classifier.description, heads=(alike,))
    classifier.save(tmp_path / "old.safetensors")
    assert Classifier.load(tmp_path / "old.safetensors", base).description.labels == [*labels]


def test_new_names_change_only_names(base: Path) -> None:
    classifier = classifier_with(base, LABEL)
    before = probabilities(classifier)
    classifier.relabel(["x", "y", "z"])
    assert [[*p.values()] for p in probabilities(classifier)] == [[*p.values()] for p in before]
    assert list(probabilities(classifier)[0]) == ["x", "y", "z"]


def test_new_outputs_depend_on_the_seed(base: Path) -> None:
    state, weights = torch.random.get_rng_state(), []
    for seed in (1, 1, 2):
        classifier = classifier_with(base, LABEL)
        classifier.relabel([*LABEL.labels, "more"], seed=seed)
        weights.append(last(classifier).weight[3])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("labels", "thresholds"),
    [
        (["z", "x", "y"], (0.3, 0.1, 0.2)),
        (["y"], (0.2,)),
        (["new", "z", "x", "y"], (0.5, 0.3, 0.1, 0.2)),
        (["a", "b", "c"], (0.1, 0.2, 0.3)),  # new names of the same outputs
        (["a", "b"], (0.5, 0.5)),
    ],
)
def test_thresholds_follow_their_labels(base: Path, labels: list, thresholds: tuple) -> None:
    classifier = classifier_with(base, replace(TOPICS, thresholds=(0.1, 0.2, 0.3)))
    classifier.relabel(labels)
    assert classifier.description.head.thresholds == thresholds
    plain = classifier_with(base, TOPICS)
    plain.relabel(labels)
    assert plain.description.head.thresholds == ()


def test_one_output_serves_both_orders(base: Path) -> None:
    classifier = classifier_with(base, SIGMOID)
    before = probabilities(classifier)
    classifier.relabel(["yes", "no"])
    for found, expected in zip(probabilities(classifier), before, strict=True):
        assert found == pytest.approx(expected, abs=1e-6) and list(found) == ["yes", "no"]
    classifier.relabel(["yes", "no", "perhaps"])
    assert last(classifier).out_features == 3 and not classifier.description.head.one_output


def test_a_replaced_head_is_described(base: Path, tmp_path: Path) -> None:
    classifier = classifier_with(base, LABEL)
    replace_head(classifier.model, 4)
    mine = classifier.model.head
    for ask in (
        lambda: classifier.predict(TEXTS),
        lambda: classifier.logits([[1, 2]]),
        lambda: classifier.batch_logits(classifier.texts([[1, 2]]), [0]),
        lambda: classifier.save(tmp_path / "c.safetensors"),
    ):
        with pytest.raises(UsageError, match="relabel"):
            ask()
    assert not (tmp_path / "c.safetensors").exists()
    classifier.relabel(["a", "b", "c", "d"])
    assert classifier.model.head is mine
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors", base)
    assert again.predict(TEXTS) == classifier.predict(TEXTS)


def test_one_of_several_heads(base: Path, tmp_path: Path) -> None:
    classifier = classifier_with(base, *HEADS)
    set_trainable(classifier.model, 0, heads=classifier.description.heads)
    before = classifier.predict(TEXTS)
    classifier.relabel(["z", "new"], head="topics")
    for found, was in zip(classifier.predict(TEXTS), before, strict=True):
        assert list(found.answers["topics"].probabilities) == ["z", "new"]
        same = {name: answer for name, answer in found.answers.items() if name != "topics"}
        assert same == {name: was.answers[name] for name in same}
    trainable = {n for n, p in classifier.model.named_parameters() if p.requires_grad}
    assert "head.topics.weight" in trainable
    classifier.save(tmp_path / "c.safetensors")
    assert Classifier.load(tmp_path / "c.safetensors", base).predict(TEXTS) == classifier.predict(
        TEXTS
    )


@pytest.mark.parametrize(
    ("heads", "labels", "head", "fact"),
    [
        ((LABEL,), "abc", "", "labels = 'abc' must be a tuple or a list"),
        ((LABEL,), {"a", "b"}, "", "must be a tuple or a list"),
        ((LABEL,), ["a"], "", "at least 2"),
        ((LABEL,), ["a", "a"], "", "differ"),
        ((LABEL,), ["a", 1], "", "strings"),
        ((LABEL,), ["a", "b"], "other", "no head is named 'other'"),
        ((STARS,), ["a", "b"], "", "classification"),
        ((LANGUAGE, LABEL), ["a", "b"], "", "classification"),
    ],
)
def test_impossible_labels_are_refused(base: Path, heads, labels, head: str, fact: str) -> None:
    classifier = classifier_with(base, *heads)
    before = classifier.predict(TEXTS)
    with pytest.raises(UsageError, match=fact):
        classifier.relabel(labels, head=head)
    assert classifier.predict(TEXTS) == before


def test_a_head_with_adapters_is_refused(base: Path) -> None:
    classifier = classifier_with(base, LABEL, lora=LoRAConfig(rank=2, head=True))
    with pytest.raises(UsageError, match="adapters"):
        classifier.relabel(["a", "b"])


# --- hand-written heads ---


class Own(nn.Module):
    def __init__(self, n_outputs: int):
        super().__init__()
        self.linear = nn.Linear(32, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(32, 4),
        nn.Linear(31, 3),
        Own(2),
        nn.Identity(),
        nn.Flatten(0),
        nn.ModuleDict({"a": nn.Linear(32, 3), "b": nn.Linear(32, 3)}),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_head_that_does_not_fit_is_one_error(base: Path, tmp_path: Path, module) -> None:
    classifier = classifier_with(base, LABEL)
    classifier.model.head = module
    for ask in (
        lambda: classifier.predict(TEXTS),
        lambda: classifier.batch_logits(classifier.texts([[1, 2]]), [0]),
        lambda: classifier.save(tmp_path / "c.safetensors"),
    ):
        with pytest.raises(UsageError, match="head"):
            ask()


def test_a_head_that_fits_is_used_but_not_saved(base: Path, tmp_path: Path) -> None:
    classifier = classifier_with(base, LABEL)
    classifier.model.head = Own(3)
    expected = [classifier.model(torch.tensor([ids]))[0, -1] for ids in ([1, 2], [3])]
    torch.testing.assert_close(classifier.logits([[1, 2], [3]]), torch.stack(expected))
    with pytest.raises(UsageError, match="head.linear.weight"):
        classifier.save(tmp_path / "c.safetensors")
    with pytest.raises(UsageError, match="fit neither"):
        classifier.relabel(["a", "b"])


def test_one_head_in_place_of_several_is_one_error(base: Path, tmp_path: Path) -> None:
    classifier = classifier_with(base, LABEL, TAGS)
    with pytest.raises(UsageError, match="2 heads"):
        class_logits(classifier.model, torch.tensor([[1]]), torch.tensor([1]), "last_token")
    replace_head(classifier.model, 3)
    for ask in (
        lambda: classifier.predict(TEXTS),
        lambda: set_trainable(classifier.model, heads=classifier.description.heads),
        lambda: classifier.save(tmp_path / "c.safetensors"),
        lambda: classifier.relabel(["a", "b", "c"]),
    ):
        with pytest.raises(UsageError, match="head"):
            ask()


def test_gpt2s_own_head_that_was_replaced_is_one_error(base: Path) -> None:
    classifier = classifier_with(base, LANGUAGE)
    replace_head(classifier.model, 3)
    with pytest.raises(UsageError, match="277 outputs"):
        classifier.predict(TEXTS)
