"""The scikit-learn estimators: sklearn's own checks, its searches and pipelines, labels, pickles."""

import logging
import pickle  # the package itself never unpickles; joblib's processes do
import pickletools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from gpt2_from_scratch import GPT2Classifier, GPT2Features
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split, hold_out
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.runs.folder import RunConfig
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.speed.batching import encode_texts
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import Trunk
from gpt2_from_scratch.studies.probes import pooled_states

TEXTS = [f"the {'red one' if n % 2 else 'sea is here'} {n}" for n in range(24)]
LABELS = ["ham", "spam"] * 12


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> str:
    return str(tiny_checkpoint)


def small(model: str, **parameters: Any) -> GPT2Classifier:
    return GPT2Classifier(model, **{"epochs": 1, "lr": 5e-3, "device": "cpu"} | parameters)


@pytest.fixture(scope="module")
def fitted(model: str) -> GPT2Classifier:
    return small(model).fit(TEXTS, LABELS)


def parameters_of(estimator: GPT2Classifier) -> dict[str, torch.Tensor]:
    return dict(estimator.classifier_.model.named_parameters())


# --- scikit-learn's own checks ---

PASSES = "passes"
NUMBERS = "it checks tables of numbers; texts have no number of features, NaN or sparse form"
ROUNDING = "float32: the last bits of a text's logits depend on the other texts in its batch"
ENVIRONMENT = "skipped: it needs the environment variable SCIPY_ARRAY_API"
BOTH = {
    "check_complex_data": PASSES,
    "check_dict_unchanged": PASSES,
    "check_do_not_raise_errors_in_init_or_set_params": PASSES,
    "check_dont_overwrite_parameters": PASSES,
    "check_estimator_cloneable": PASSES,
    "check_estimator_repr": PASSES,
    "check_estimator_tags_renamed": PASSES,
    "check_estimators_dtypes": PASSES,
    "check_estimators_fit_returns_self": PASSES,
    "check_estimators_overwrite_params": PASSES,
    "check_estimators_pickle": PASSES,
    "check_f_contiguous_array_estimator": PASSES,
    "check_fit2d_1feature": PASSES,
    "check_fit2d_1sample": PASSES,
    "check_fit_check_is_fitted": PASSES,
    "check_fit_idempotent": PASSES,
    "check_fit_score_takes_y": PASSES,
    "check_get_params_invariance": PASSES,
    "check_methods_sample_order_invariance": PASSES,
    "check_methods_subset_invariance": PASSES,
    "check_mixin_order": PASSES,
    "check_no_attributes_set_in_init": PASSES,
    "check_parameters_default_constructible": PASSES,
    "check_pipeline_consistency": PASSES,
    "check_positive_only_tag_during_fit": PASSES,
    "check_readonly_memmap_input": PASSES,
    "check_set_params": PASSES,
    "check_valid_tag_types": PASSES,
    "check_array_api_input": ENVIRONMENT,
    "check_dtype_object": NUMBERS,
    "check_estimator_sparse_array": NUMBERS,
    "check_estimator_sparse_matrix": NUMBERS,
    "check_estimator_sparse_tag": NUMBERS,
    "check_estimators_empty_data_messages": NUMBERS,
    "check_estimators_nan_inf": NUMBERS,
    "check_fit1d": "a one-dimensional X is correct for texts",
    "check_fit2d_predict1d": "a one-dimensional X is correct for texts",
    "check_n_features_in": NUMBERS,
    "check_n_features_in_after_fitting": NUMBERS,
}
CLASSIFIER = BOTH | {
    "check_classifier_data_not_an_array": PASSES,
    "check_classifiers_classes": PASSES,
    "check_classifiers_one_label": PASSES,
    "check_classifiers_one_label_sample_weights": PASSES,
    "check_classifiers_regression_target": PASSES,
    "check_decision_proba_consistency": PASSES,
    "check_estimators_partial_fit_n_features": PASSES,
    "check_estimators_unfitted": PASSES,
    "check_non_transformer_estimators_n_iter": PASSES,
    "check_requires_y_none": PASSES,
    "check_supervised_y_2d": PASSES,
    "check_supervised_y_no_nan": PASSES,
    "check_classifiers_train": "its last step expects an error for another number of features",
    "check_methods_subset_invariance": ROUNDING,
}
FEATURES = BOTH | {
    "check_transformer_data_not_an_array": PASSES,
    "check_transformer_general": PASSES,
    "check_transformer_n_iter": PASSES,
    "check_transformers_unfitted_stateless": PASSES,
    "check_complex_data": "nothing is fitted, so the complex numbers are never read",
}


def as_texts(rows: Any) -> list[str]:
    """Write each row of numbers as a text: the checks of scikit-learn make tables of numbers."""
    return [" ".join(f"{value:.2g}" for value in row) for row in np.asarray(rows)]


class OfRows:
    """Claims to read tables; otherwise scikit-learn would skip nearly all of its checks."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        return tags


class ClassifierOfRows(OfRows, GPT2Classifier):
    def __init__(self, model="mini", *, epochs=2, lr=5e-3, seed=123, cache=False, device="cpu"):
        super().__init__(model, epochs=epochs, lr=lr, seed=seed, cache=cache, device=device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # of random weights, on numbers
        return tags

    def fit(self, X, y):
        return super().fit(as_texts(X), y)

    def _logits(self, X):
        return super()._logits(as_texts(X))


class FeaturesOfRows(OfRows, GPT2Features):
    def __init__(self, model="mini", *, device="cpu"):
        super().__init__(model, device=device)

    def fit(self, X, y=None):
        return super().fit(as_texts(X))

    def fit_transform(self, X, y=None):
        return super().fit_transform(as_texts(X))

    def transform(self, X):
        return super().transform(as_texts(X))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "table"), [(ClassifierOfRows, CLASSIFIER), (FeaturesOfRows, FEATURES)]
)
def test_the_checks_of_scikit_learn(kind: type, table: dict[str, str], model: str) -> None:
    """Each passes, or the table has the reason why it does not apply."""
    reasons = {name: reason for name, reason in table.items() if reason != PASSES}
    results = check_estimator(
        kind(model), expected_failed_checks=reasons, on_skip=None, on_fail=None
    )
    failed = {one["check_name"]: one["exception"] for one in results if one["status"] == "failed"}
    assert not failed
    passed = {one["check_name"] for one in results if one["status"] == "passed"}
    rounding = {name for name, reason in table.items() if reason == ROUNDING}  # may also pass
    assert passed - rounding == {name for name, reason in table.items() if reason == PASSES}
    assert table.keys() == {one["check_name"] for one in results}


@pytest.mark.parametrize("kind", [GPT2Classifier, GPT2Features])
def test_scikit_learn_knows_that_they_read_texts(kind: type, model: str) -> None:
    with pytest.warns(SkipTestWarning, match="string=True"):
        results = check_estimator(kind(model), on_skip=None)
    assert {one["status"] for one in results} == {"passed"}


# --- the classifier ---


@pytest.mark.slow
def test_it_is_trained_as_the_package_trains(model: str, tmp_path: Path) -> None:
    """Independent of the estimator's code: the same weights as those of `finetune`."""
    parameters = {"n_last_blocks": 2, "lr": 1e-3, "seed": 5, "pooling": "mean", "epochs": 2}
    ours = small(model, **parameters, validation_fraction=0.25).fit(TEXTS, LABELS)
    messages = [Message(text, label) for text, label in zip(TEXTS, LABELS, strict=True)]
    split = Split(*hold_out(messages, 0.25, 5), test=[])
    assert len(split.val) == 6
    training = TrainConfig(n_last_blocks=2, lr=1e-3, seed=5, epochs=2)
    config = RunConfig(model=model, training=training, head=HeadSettings(pooling="mean"))
    theirs = new_classifier(config, split)
    history = finetune(theirs, split, training, tmp_path)
    assert [epoch["val_loss"] for epoch in ours.history_] == [one.val_loss for one in history]
    for name, parameter in theirs.model.named_parameters():
        assert torch.equal(parameter, parameters_of(ours)[name]), name
    raw = [one.label for one in theirs.predict(TEXTS)]  # a temperature changes no label
    assert ours.predict(TEXTS).tolist() == raw


def test_answers_are_those_of_the_classifier(fitted: GPT2Classifier, tmp_path: Path) -> None:
    texts = ["the cat", "", "win"]
    answers = fitted.classifier_.predict(texts)
    expected = [[one.probabilities[name] for name in ("ham", "spam")] for one in answers]
    np.testing.assert_allclose(fitted.predict_proba(texts), expected, atol=1e-6)
    assert fitted.predict(texts).tolist() == [one.label for one in answers]
    odds = fitted.decision_function(texts)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), fitted.predict_proba(texts)[:, 1])
    fitted.classifier_.save(tmp_path / "saved.safetensors")
    loaded = Classifier.load(tmp_path / "saved.safetensors", fitted.model)
    assert loaded.predict(texts) == answers
    assert fitted.predict([]).shape == (0,) and fitted.predict_proba([]).shape == (0, 2)


@pytest.mark.slow
def test_without_validation_the_last_epoch_is_kept(model: str, tmp_path: Path) -> None:
    ours = small(model, validation_fraction=0, epochs=8).fit(TEXTS, LABELS)
    assert len(ours.history_) == 8  # the patience of 8 epochs would be 4
    messages = [Message(text, label) for text, label in zip(TEXTS, LABELS, strict=True)]
    training = TrainConfig(lr=5e-3, epochs=8, patience=9)
    split = Split(messages, messages, [])
    theirs = new_classifier(RunConfig(model=model, training=training), split)
    finetune(theirs, split, training, tmp_path)
    last = Classifier.load(tmp_path / "last.safetensors", model)
    for name, parameter in last.model.named_parameters():
        assert torch.equal(parameter, parameters_of(ours)[name]), name
    assert ours.classifier_.description.head.temperature == 1


KINDS = {
    "strings": (["b", "a", "c"], ["a", "b", "c"]),
    "numpy strings": (np.array(["b", "a", "c"]), ["a", "b", "c"]),
    "objects": (np.array(["b", "a", "c"], dtype=object), ["a", "b", "c"]),
    "numbers as strings": (["10", "9", "1"], ["1", "10", "9"]),
    "numbers": (np.array([10, 9, -1], dtype=np.int32), [-1, 9, 10]),
    "booleans": ([True, False, True], [False, True]),
    "whole floats": ([2.0, 1.0, 3.0], [1.0, 2.0, 3.0]),
    "series": (pd.Series(["b", "a", "c"], index=[5, 5, 1]), ["a", "b", "c"]),
    "categories": (pd.Series(["b", "a", "c"], dtype="category"), ["a", "b", "c"]),
    "nullable": (pd.Series([2, 1, 3], dtype="Int64"), [1, 2, 3]),
    "with commas": (["a,b", "a", "b"], ["a", "a,b", "b"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_labels(kind: str, model: str) -> None:
    """Sorted as scikit-learn sorts them, and given back in their own type."""
    three, classes = KINDS[kind]
    y = three.repeat(4) if hasattr(three, "repeat") else list(np.repeat(three, 4))
    estimator = small(model, lr=0.02, epochs=6, validation_fraction=0).fit(TEXTS[:12], y)
    assert estimator.classes_.tolist() == classes
    expected = np.unique(np.asarray(y))
    assert estimator.classes_.dtype == expected.dtype
    assert estimator.predict(TEXTS).dtype == expected.dtype
    p = estimator.predict_proba(TEXTS[:12])
    assert p.shape == (12, len(classes)) and np.allclose(p.sum(axis=1), 1)
    assert (estimator.predict(TEXTS[:12]) == expected[p.argmax(axis=1)]).all()
    # the columns belong to the classes: what it was trained on is more probable than chance
    assert p[np.arange(12), np.searchsorted(expected, np.asarray(y))].mean() > 1 / len(classes)
    by_name = estimator.classifier_.predict(TEXTS[:1])[0].probabilities
    assert by_name == pytest.approx(dict(zip(map(str, classes), p[0], strict=True)), abs=1e-6)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a b", None, "c"], [0, 1, 0], "text 1, .* not NoneType"),
        (pd.Series(["a b", "c", np.nan]), [0, 1, 0], "text 2, .* not float"),
        (["a b", "c", " \n"], [0, 1, 0], "text 2, .* empty"),
        (["a", "b"], ["x", None], "label 1, .* missing: None"),
        (["a", "b"], ["x", float("nan")], "label 1, .* missing: nan"),
        (["a", "b"], pd.Series([1, None], dtype="Int64"), "label 1, .* missing"),
        (["a", "b"], ["x", "x"], "only one class, 'x'"),
        (["a", "b"], ["x", "y"], "2 texts are too few"),
        (["a", "a", "b", "b"], ["x", "x", "y", "y"], "2 texts are too few"),  # copies count once
        ([], [], "no texts"),
        (["a", "b"], ["x"], r"inconsistent numbers of samples: \[2, 1\]"),
        (["a", "b"], None, "y is None"),
        (["a", "b"], [0.5, 1.7], "Unknown label type"),
        (["a", "b"], [["x", "y"], ["z", "x"]], "shape"),
        (["a", "b", "c", "d"], ["Spam", "spam"] * 2, "differ in case"),
        ("a text", ["x"], "not one string"),
        (np.array([["a"], ["b"]]), ["x", "y"], r"shape \(2, 1\)"),
        (pd.DataFrame({"text": ["a", "b"]}), ["x", "y"], r'df\["text"\]'),
    ],
)
def test_faulty_data_is_a_value_error(X: Any, y: Any, message: str, model: str) -> None:
    estimator = small(model)
    with pytest.raises(ValueError, match=message):
        estimator.fit(X, y)
    with pytest.raises(NotFittedError):
        estimator.predict(["a"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lr": -1.0}, "lr = -1"),
        ({"pooling": "last_position"}, "last_position.*padding"),
        ({"pooling": "best"}, "best"),
        ({"validation_fraction": 1.0}, "validation_fraction = 1.0"),
        ({"validation_fraction": 0, "with_ngrams": True}, "with_ngrams"),
        ({"dtype": "float16"}, "float16"),
        ({"seed": None}, "seed"),
    ],
)
def test_invalid_parameters(parameters: dict[str, Any], message: str, model: str) -> None:
    estimator = small(model).set_params(**parameters)  # stored unchecked, as scikit-learn wants
    with pytest.raises(UsageError, match=message):
        estimator.fit(TEXTS, LABELS)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "score"])
def test_it_must_be_fitted(method: str, model: str) -> None:
    arguments = (["a"], ["x"]) if method == "score" else (["a"],)
    with pytest.raises(NotFittedError):
        getattr(small(model), method)(*arguments)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_probabilities(fitted: GPT2Classifier) -> None:
    again = clone(fitted).fit(np.array(TEXTS), pd.Series(LABELS))
    assert (again.predict_proba(TEXTS) == fitted.predict_proba(TEXTS)).all()
    other = clone(fitted).set_params(seed=5).fit(TEXTS, LABELS)
    assert (other.predict_proba(TEXTS) != fitted.predict_proba(TEXTS)).any()


def test_torch_and_numpy_are_left_as_they_were(model: str, capfd, caplog) -> None:
    """The random states, the grad mode, the threads, the log; and nothing is printed."""
    torch.manual_seed(1)
    np.random.seed(1)
    draws = torch.rand(3), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    package = logging.getLogger("gpt2_from_scratch")
    level = package.level
    with caplog.at_level(logging.DEBUG), torch.inference_mode():
        level = package.level
        estimator = small(model, lora=2).fit(TEXTS, LABELS)
        copy = pickle.loads(pickle.dumps(estimator))  # noqa: S301  # written by this test
        copy.predict(TEXTS)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), draws[0]) and np.random.rand() == draws[1]
    assert torch.get_num_threads() == 1 and torch.is_grad_enabled() and package.level == level
    assert capfd.readouterr() == ("", "") and not caplog.records
    # what was loaded in inference mode can be trained
    copy.classifier_.model.head.weight.requires_grad_(True).sum().backward()


def test_the_log_returns_after_the_last_thread() -> None:
    package = logging.getLogger("gpt2_from_scratch")
    before = package.level
    first, second = silenced(), silenced()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert package.level == logging.ERROR
    second.__exit__(None, None, None)
    assert package.level == before


@pytest.mark.slow
def test_fits_in_threads_are_those_of_one_thread(model: str) -> None:
    """And an unpickled estimator may be used by several threads."""
    estimators = [small(model, seed=seed) for seed in range(6)]
    expected = [clone(one).fit(TEXTS, LABELS).predict_proba(TEXTS) for one in estimators]
    with ThreadPoolExecutor(3) as pool:
        fitted = [*pool.map(lambda one: one.fit(TEXTS, LABELS), estimators)]
        for one, p in zip(fitted, expected, strict=True):
            assert (one.predict_proba(TEXTS) == p).all()
        copy = pickle.loads(pickle.dumps(fitted[0]))  # noqa: S301  # written by this test
        for p in pool.map(lambda _: copy.predict_proba(TEXTS), range(3)):
            assert (p == expected[0]).all()


def test_an_interruption_ends_fit(model: str, monkeypatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise Interrupted("stopped after step 3; the state is saved")

    monkeypatch.setattr("gpt2_from_scratch.runs.estimators.finetune", interrupted)
    estimator = small(model)
    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        estimator.fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        estimator.predict(TEXTS)


def test_verbose_writes_a_line_per_epoch(model: str, capsys) -> None:
    handlers = [*logging.getLogger("gpt2_from_scratch").handlers]
    small(model, verbose=True, epochs=2).fit(TEXTS, LABELS)
    written = capsys.readouterr()
    assert "epoch 1/2" in written.err and "epoch 2/2" in written.err and not written.out
    assert logging.getLogger("gpt2_from_scratch").handlers == handlers


def test_a_pickle_is_data(fitted: GPT2Classifier) -> None:
    """It names no class but the estimator and numpy's arrays, and contains no base model."""
    raw = pickle.dumps(fitted, protocol=2)  # whose opcodes have the names in them
    named = {arg.split()[0] for op, arg, _ in pickletools.genops(raw) if op.name == "GLOBAL"}
    estimator = "gpt2_from_scratch.runs.estimators"
    assert estimator in named
    assert {name.split(".")[0] for name in named - {estimator}} <= {
        "numpy",
        "copy_reg",
        "_codecs",
        "__builtin__",
    }
    state = fitted.__getstate__()
    assert type(state["_saved"]) is bytes and "_classifier" not in state
    trained = sum(p.nbytes for p in parameters_of(fitted).values() if p.requires_grad)
    everything = sum(p.nbytes for p in parameters_of(fitted).values())
    assert trained < len(state["_saved"]) < trained + 8000 < everything
    copy = pickle.loads(pickle.dumps(fitted))  # noqa: S301  # written by this test
    assert (copy.predict_proba(TEXTS) == fitted.predict_proba(TEXTS)).all()
    again = pickle.loads(pickle.dumps(copy))  # noqa: S301  # written by this test
    assert (again.predict_proba(TEXTS) == fitted.predict_proba(TEXTS)).all()
    assert again.get_params() == fitted.get_params() and again.history_ == fitted.history_


@pytest.mark.slow
def test_fits_share_the_frozen_features(model: str, tmp_path: Path, monkeypatch) -> None:
    """Another learning rate computes no frozen block again; the result is that without a cache."""
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", str(tmp_path))
    rows = []
    monkeypatch.setattr(Trunk, "pack", spied(Trunk.pack, rows))
    small(model).fit(TEXTS, LABELS)
    first = len(rows)
    found = small(model, lr=1e-3).fit(TEXTS, LABELS)
    # what remains is `calibrate`, which reads the validation texts
    assert len(rows) < 2 * first
    assert len(FeatureStore().spaces()) == 1
    alone = small(model, lr=1e-3, cache=False).fit(TEXTS, LABELS)
    assert (alone.predict_proba(TEXTS) == found.predict_proba(TEXTS)).all()


def test_features_of_the_same_texts_are_computed_once(
    model: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", str(tmp_path))
    rows: list[int] = []
    monkeypatch.setattr(Trunk, "pack", spied(Trunk.pack, rows))
    found = [GPT2Features(model).fit_transform(TEXTS) for _ in range(2)]
    assert sum(rows) == len(TEXTS) and (found[0] == found[1]).all()
    alone = GPT2Features(model, cache=False).fit_transform(TEXTS)
    np.testing.assert_allclose(found[0], alone, atol=1e-5)
    shards = [path.name for path in tmp_path.rglob("*.safetensors")]
    GPT2Features(model).transform(["another text"])  # writes nothing
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == shards and len(shards) == 1


def spied(function: Any, calls: list) -> Any:
    def spy(self, texts, **options):
        calls.append(len(texts))
        return function(self, texts, **options)

    return spy


def test_copies_stay_on_one_side(model: str) -> None:
    """A text is never in the training and in the validation set; its copies all count."""
    messages = [Message(text, label) for text, label in zip(TEXTS, LABELS, strict=True)] * 3
    train, val = hold_out(messages, 0.25, seed=1)
    assert not {m.text for m in train} & {m.text for m in val}
    assert sorted(train + val, key=str) == sorted(messages, key=str) and len(val) == 18
    assert {m.label for m in val} == {"ham", "spam"}
    assert hold_out(messages, 0.25, seed=1) == (train, val) != hold_out(messages, 0.25, seed=2)


def test_a_rare_class_is_trained_on() -> None:
    messages = [Message(f"text {n}", "often") for n in range(20)] + [Message("other", "once")]
    train, val = hold_out(messages, 0.5, seed=1)
    assert Message("other", "once") in train and len(val) == 10


# --- the features ---


@pytest.mark.parametrize("layer", [0, 1, 2, None])
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_features_are_the_pooled_states(
    layer: int | None, final_norm: bool, pooling: str, model: str
) -> None:
    features = GPT2Features(model, layer=layer, final_norm=final_norm, pooling=pooling)
    found = features.fit_transform(TEXTS)
    gpt2, tokenizer = (part := features._load()).model, part.tokenizer
    encoded, _ = encode_texts(TEXTS, tokenizer, 32)
    trunk = Trunk(gpt2, 2)
    states = pooled_states(trunk, gpt2.ln_f, encoded, [pooling], tokenizer.end_of_text_id, 32)
    expected = states[pooling, final_norm][2 if layer is None else layer]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert found.dtype == np.float32 and found.shape == (24, 32)


def test_features_need_no_fit_and_follow_their_parameters(model: str) -> None:
    features = GPT2Features(model)
    found = features.transform(TEXTS)
    assert (features.fit(TEXTS).transform(TEXTS) == found).all()
    features.set_params(layer=1)
    assert (features.transform(TEXTS) == GPT2Features(model, layer=1).transform(TEXTS)).all()
    assert (features.transform(TEXTS) != found).any()
    assert features.transform([]).shape == (0, 32) and features.transform([""]).shape == (1, 32)
    copy = pickle.loads(pickle.dumps(features))  # noqa: S301  # written by this test
    assert (copy.transform(TEXTS) == features.transform(TEXTS)).all()
    assert len(pickle.dumps(features)) < 1000


def test_features_as_a_frame(model: str) -> None:
    frame = GPT2Features(model).set_output(transform="pandas").fit_transform(pd.Series(TEXTS))
    assert frame.shape == (24, 32) and frame.columns[31] == "gpt2features31"


@pytest.mark.parametrize("X", [["a", None], "a text", pd.DataFrame({"text": ["a"]}), [1]])
def test_features_of_something_else(X: Any, model: str) -> None:
    with pytest.raises(ValueError, match="text|table"):
        GPT2Features(model).transform(X)


# --- in scikit-learn's tools ---


@pytest.mark.slow
def test_cross_validation_and_calibration(model: str) -> None:
    scores = cross_val_score(small(model, epochs=4), TEXTS, LABELS, cv=StratifiedKFold(3))
    assert scores.shape == (3,) and scores.mean() > 0.5
    calibrated = CalibratedClassifierCV(small(model), cv=2).fit(TEXTS, LABELS)
    assert calibrated.predict_proba(TEXTS).shape == (24, 2)


@pytest.mark.slow
def test_a_pipeline(model: str) -> None:
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    upper = [text.upper() for text in TEXTS]
    piped = make_pipeline(lower, small(model)).fit(upper, LABELS)
    alone = small(model).fit(TEXTS, LABELS)
    assert (piped.predict_proba(upper) == alone.predict_proba(TEXTS)).all()
    logistic = make_pipeline(GPT2Features(model), StandardScaler(), LogisticRegression())
    assert logistic.fit(TEXTS, LABELS).score(TEXTS, LABELS) > 0.9
    assert cross_val_score(logistic, TEXTS, LABELS, cv=3).mean() > 0.5


def test_a_column_of_a_table(model: str) -> None:
    """Next to columns of numbers, which pass through."""
    table = pd.DataFrame({"text": TEXTS, "length": [*map(len, TEXTS)]})
    columns = [("text", GPT2Features(model), "text"), ("length", "passthrough", ["length"])]
    found = ColumnTransformer(columns).fit_transform(table)
    np.testing.assert_allclose(found[:, :32], GPT2Features(model).transform(TEXTS), atol=1e-5)
    assert found[:, 32].tolist() == table["length"].tolist()


@pytest.mark.slow
def test_a_search_in_two_processes(model: str) -> None:
    """The same scores and the same best classifier as in this process."""
    grid = {"lr": np.array([1e-4, 5e-3]), "n_last_blocks": np.array([1, 2])}
    searches = [
        GridSearchCV(small(model, epochs=2), grid, cv=2, n_jobs=n).fit(TEXTS, LABELS)
        for n in (1, 2)
    ]
    one, two = (search.cv_results_["mean_test_score"].tolist() for search in searches)
    assert one == two
    p, q = (search.predict_proba(TEXTS) for search in searches)
    assert (p == q).all() and searches[1].classes_.tolist() == ["ham", "spam"]
