"""Command-line settings of a head: their effect, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gpt2_from_scratch.classifier.settings import (
    HeadConfig,
    HeadSettings,
    TrainConfig,
    in_given_order,
)
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig


def values(*numbers: float) -> list[Message]:
    return [Message(f"text {n}", (number,)) for n, number in enumerate(numbers)]


def test_values_are_standardised_by_their_mean_and_spread() -> None:
    head = HeadSettings("regression").head_config(["v"], values(1.0, 2.0, 6.0), 8)
    assert head.center == (3.0,)
    assert head.scale == pytest.approx((np.std([1, 2, 6]),))


@pytest.mark.parametrize("value", [0.1, 0.0, 1e-320, 1.7e9 + 0.3])
def test_a_value_that_is_always_the_same_has_scale_one(value: float) -> None:
    """The standard deviation of forty times 0.1 is not 0 but 1e-17."""
    head = HeadSettings("regression").head_config(["v"], values(*[value] * 40), 8)
    assert head.scale == (1.0,)


def test_values_too_large_to_be_squared_are_refused() -> None:
    with pytest.raises(DataError, match="too large"):
        HeadSettings("regression").head_config(["v"], values(1e307, -1e308, 5e307), 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"layer": -2},
        {"lora": 4, "lora_blocks": -7},
        {"task": "token-classification", "pooling": "mean"},
        {"task": "span", "pooling": "mean"},
        {"task": "span", "labels": "a,b"},
        {"labels": "a,,b"},
        {"labels": ","},
    ],
)
def test_settings_without_effect_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError):
        HeadSettings(**settings)


@pytest.mark.parametrize("task", ["token-classification", "span"])
def test_heads_for_every_token_accept_the_usual_poolings(task: str) -> None:
    """They are the default of today and that of runs before it; neither has an effect."""
    assert HeadSettings(task) == HeadSettings(task, pooling="end_token")
    for pooling in ("end_token", "last_token"):
        assert HeadSettings(task, pooling=pooling).task == task


def test_an_end_token_is_read_by_default() -> None:
    assert HeadSettings().pooling == HeadConfig(labels=("a", "b")).pooling == "end_token"
    texts = [Message("x", "a"), Message("y", "b")]
    assert HeadSettings().head_config(["a", "b"], texts, 8).pooling == "end_token"


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch": 17},
        {"rate_decay": 1e200},  # its sixth power is infinite
        {"unfreeze_every": 1, "n_last_blocks": 0},
        # the second block would be unfrozen in epoch 11 of 10
        {"unfreeze_every": 5, "n_last_blocks": 2, "epochs": 10},
    ],
)
def test_impossible_training_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**settings)
    TrainConfig(batch_size=17, micro_batch=17)
    TrainConfig(unfreeze_every=3, n_last_blocks=3, epochs=10)


# --- epochs and patience ---


@pytest.mark.parametrize(
    ("n", "epochs", "patience"),
    [
        (1, 500, 200),  # one step per epoch
        (16, 500, 200),
        (17, 250, 100),
        (80, 100, 40),  # 5 steps per epoch
        (500, 16, 6),  # 32 steps: 15 epochs would be 480
        (914, 10, 4),  # 58 steps: 9 epochs would be enough, but there are at least ten
        (10_000, 10, 4),
    ],
)
def test_epochs_and_patience_fit_the_number_of_texts(n: int, epochs: int, patience: int) -> None:
    config = TrainConfig(lr=0.01, seed=3)
    found = config.for_texts(n)
    assert found == replace(config, epochs=epochs, patience=patience)
    assert found.for_texts(n) == found.for_texts(5 * n) == found  # they are chosen once


def test_larger_batches_need_more_epochs() -> None:
    """80 texts are 20 steps of 4, or 2 of 40."""
    for size, epochs, patience in ((4, 25, 10), (40, 250, 100)):
        found = TrainConfig(batch_size=size, micro_batch=2).for_texts(80)
        assert (found.epochs, found.patience) == (epochs, patience)


def test_given_epochs_and_patience_are_kept() -> None:
    for n in (1, 80, 10_000):
        given = TrainConfig(epochs=7, patience=9)
        assert given.for_texts(n) == given
        found = TrainConfig(epochs=3).for_texts(n)
        assert (found.epochs, found.patience) == (3, 4)
        found = TrainConfig(epochs=50).for_texts(n)
        assert (found.epochs, found.patience) == (50, 20)
    found = TrainConfig(patience=2).for_texts(80)
    assert (found.epochs, found.patience) == (100, 2)


def test_all_blocks_are_unfrozen_before_the_last_epoch() -> None:
    """The last of two blocks joins after 2 * 5 epochs, and trains in one epoch at least."""
    config = TrainConfig(unfreeze_every=5, n_last_blocks=2)
    found = config.for_texts(10_000)
    assert (found.epochs, found.patience) == (11, 4)
    assert config.for_texts(80).epochs == 100
    found = TrainConfig(unfreeze_every=100, n_last_blocks=6).for_texts(80)
    assert (found.epochs, found.patience) == (601, 240)


@pytest.mark.parametrize("more", [["--n-last-blocks", "2"], ["--no-final-norm"]])
def test_only_named_parameters_are_trainable(
    more: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["train", "--trainable", "head.*", *more]) == 2
    assert "--trainable already names all" in capsys.readouterr().err


def test_texts_without_any_label_are_refused() -> None:
    with pytest.raises(DataError, match="no text has a label"):
        HeadSettings("multi-label").head_config([], [Message("one", ())], 8)


def test_labels_missing_from_the_setting_are_named() -> None:
    texts = [Message("x", "ham"), Message("y", "eggs")]
    with pytest.raises(DataError, match="eggs"):
        HeadSettings(labels="ham,spam").head_config(["eggs", "ham"], texts, 8)
    with pytest.raises(DataError, match="'Ham', 'ham'\\] differ only in"):
        HeadSettings(labels="ham,spam").head_config(["Ham", "spam"], texts, 8)
    named = HeadSettings(labels="spam,ham", name="kind").head_config(["ham"], texts, 8)
    assert named.labels == ("spam", "ham") and named.name == "kind"


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"patience": -1},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
    ]
    + [{"warmup": 2.0}, {"seed": -1}, {"seed": 2**32}, {"weight_decay": math.inf}]
    + [
        {"patience": 0.4},
        {"epochs": "3"},
        {"epochs": 1.5},
        {"epochs": True},
        {"seed": None},
        {"lr": True},
    ]
    + [{"final_norm": "no"}, {"n_last_blocks": 0.5}],
)
def test_invalid_training_settings_are_refused(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        TrainConfig(**wrong)
    assert TrainConfig(lr=1).lr == 1  # an int is accepted as a float


@pytest.mark.parametrize(
    "values",
    [
        {"task": "span", "label_smoothing": 0.1},
        {"task": "regression", "labels": ("x",), "label_smoothing": 0.1},
        {"task": "language", "label_smoothing": 0.1},
        {"task": "features", "label_smoothing": 0.1},
        {"task": "language", "dropout": 0.1},
        {"task": "features", "dropout": 0.1},
        {"task": "regression", "labels": ("x",), "center": (float("nan"),)},
        {"task": "regression", "labels": ("x",), "center": (float("inf"),)},
    ],
)
def test_head_settings_without_effect_are_refused(values: dict) -> None:
    with pytest.raises(UsageError):
        HeadConfig(**values)


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({"name": "two words"}, "two words"),
        ({"labels": ("ham", 1)}, "labels"),
        ({"hidden": (0,)}, "hidden"),
        ({"class_weights": (1.0,)}, "class_weights"),
        ({"class_weights": (1.0, -1.0)}, "class weights"),
        ({"task": "multi-label", "thresholds": (0.5,)}, "thresholds"),
        ({"task": "multi-label", "thresholds": (0.5, 0.0)}, "thresholds"),
        ({"task": "multi-label", "thresholds": (0.5, 1.0)}, "thresholds"),
        ({"task": "multi-label", "thresholds": (0.5, float("nan"))}, "thresholds"),
        ({"thresholds": (0.5, 0.5)}, "thresholds.*multi-label"),
        ({"one_output": True, "labels": ("a", "b", "c")}, "sigmoid"),
        ({"center": (0.0, 0.0)}, "center"),
        ({"task": "span"}, "span"),
        ({"task": "regression", "labels": ("x",), "scale": (0.0,)}, "scale"),
        ({"task": "regression", "labels": ("x",), "class_weights": (1.0,)}, "regression"),
    ],
)
def test_invalid_heads_are_refused(values: dict, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        HeadConfig(**{"labels": ("ham", "spam"), **values})


def test_labels_and_weights_from_numpy() -> None:
    head = HeadConfig(labels=np.unique(["ham", "spam", "ham"]), class_weights=np.array([0.5, 1.5]))
    assert repr(head) == repr(HeadConfig(labels=("ham", "spam"), class_weights=(0.5, 1.5)))
    one = HeadConfig(labels=(np.str_("ham"), "spam"), temperature=np.float32(2))
    assert repr(one) == repr(HeadConfig(labels=("ham", "spam"), temperature=2.0))


def test_a_set_of_labels_has_no_order() -> None:
    for labels in ({"ham", "spam"}, frozenset(["ham", "spam"]), "ham"):
        with pytest.raises(UsageError, match="labels = .*tuple"):
            HeadConfig(labels=labels)
        with pytest.raises(UsageError, match="labels = .*tuple"):
            in_given_order(labels)
    for labels in (["b", "a"], {"b": 1, "a": 2}.keys(), np.array(["b", "a"])):
        assert in_given_order(labels) == ("b", "a")


def test_lora_settings_describe_the_adapters() -> None:
    asked = HeadSettings(lora=2, lora_alpha=5, lora_dropout=0.25, lora_blocks=1)
    expected = LoRAConfig(rank=2, alpha=5, dropout=0.25, n_last_blocks=1)
    assert asked.lora_config() == expected
    assert HeadSettings(lora=4).lora_config() == LoRAConfig(rank=4, alpha=4)
    assert HeadSettings().lora_config() is None
