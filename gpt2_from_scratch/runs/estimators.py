"""The classifier and its frozen features as scikit-learn estimators.

Both read a list, a column or a one-dimensional array of texts, so they work in pipelines, in
cross-validation and in searches. Constructors only store their parameters. Everything is checked in
`fit`, or in `transform`.

N texts, K classes, C = n_embd.
"""

import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas
import torch
from scipy.special import softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import OF_PADS, HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split, hold_out
from gpt2_from_scratch.errors import DataError, Interrupted, UsageError
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.progress import shown, silenced
from gpt2_from_scratch.runs.folder import RunConfig
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.runs.results import add_ngrams, calibrate
from gpt2_from_scratch.speed.batching import no_string, refuse_no_list
from gpt2_from_scratch.speed.devices import DTYPES, choose_device, choose_dtype
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.paths import model_folder, model_name
from gpt2_from_scratch.storage.settings import plain

SAVED = "classifier.safetensors"
# new heads are drawn with torch's random state, of which there is one for all threads
_ONE_AT_A_TIME = threading.Lock()


class GPT2Classifier(ClassifierMixin, BaseEstimator):
    """GPT-2 finetuned into a classifier of texts, for scikit-learn.

    `fit` trains as `train_classifier` does. Part of the training texts is the validation set. It
    selects the best epoch, and the probabilities are calibrated on it. The same texts, labels and
    parameters give the same classifier on the same processor, torch version and number of threads.

    Args:
        model: "mini", "124M", ... or a model's folder.
        n_last_blocks: The number of last blocks to train, with the final norm and the head. None
            means 1, or 0 with LoRA.
        lora: The rank of LoRA adapters on every matrix; 0 means no LoRA.
        pooling: Where a text is read: "end_token", "last_token", "first_token" or "mean".
        max_tokens: Longer texts are cut to this many tokens; 0 means n_ctx.
        epochs: The most epochs; 0 means enough for 500 steps, at least 10.
        batch_size: Texts per step.
        lr: The peak learning rate. Wider models need less.
        class_weights: "equal", or "balanced" to give rare classes more weight.
        with_ngrams: Combine GPT-2's answers with those of n-grams of words and characters.
        validation_fraction: The proportion of the texts that is the validation set. With 0, all
            texts are trained on, the last epoch is kept, and nothing is calibrated.
        seed: The random seed of the head, the order and the validation set.
        device: "auto", "cpu", "cuda", "mps" or a torch device.
        dtype: The precision of the frozen blocks, "float32", "bfloat16" or "auto".
        cache: Keep the frozen blocks' output on disk. Other fits on these texts, such as those of a
            search, then need not compute it again, not even in other processes.
        verbose: Write a line per epoch to standard error.

    Attributes:
        classes_: The labels (K,), sorted, in their own type.
        classifier_: The trained `Classifier`, which can be saved to a file.
        history_: The results of each epoch, as dictionaries.

    A pickle contains the parameters and the bytes of the saved classifier, without the base model.
    So the base model must be available where the pickle is read.
    """

    classes_: np.ndarray
    history_: list[dict[str, Any]]
    _classifier: Classifier  # missing if this estimator was unpickled or copied, until it is used
    _saved: bytes  # the classifier's file, as long as `_classifier` is missing
    _base: str  # name or folder of the base model
    _columns: list[int]  # the classifier's output for each of `classes_`

    def __init__(
        self,
        model: str | Path = "mini",
        *,
        n_last_blocks: int | None = None,
        lora: int = 0,
        pooling: str = "end_token",
        max_tokens: int = 0,
        epochs: int = 0,
        batch_size: int = 16,
        lr: float = 5e-4,
        class_weights: str = "equal",
        with_ngrams: bool = False,
        validation_fraction: float = 0.1,
        seed: int = 123,
        device: torch.device | str = "auto",
        dtype: str = "float32",
        cache: bool = True,
        verbose: bool = False,
    ):
        self.model = model
        self.n_last_blocks = n_last_blocks
        self.lora = lora
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.class_weights = class_weights
        self.with_ngrams = with_ngrams
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.device = device
        self.dtype = dtype
        self.cache = cache
        self.verbose = verbose

    def fit(self, X: Iterable[str], y: Any) -> "GPT2Classifier":
        """Finetune the model on texts and their labels.

        Args:
            X: N texts. Copies of a text are never divided between training and validation.
            y: N labels: strings, whole numbers or booleans.

        Raises:
            DataError: (a ValueError) An entry is missing or is not a text, a text is empty, there
                are fewer than two classes or too few texts, or labels differ only in case, white
                space or Unicode form.
            UsageError: A parameter is invalid or contradicts another one.
        """
        texts = texts_of(X, at_least_one=True)
        if empty := [n for n, text in enumerate(texts) if not text.strip()]:
            raise DataError(
                f"text {empty[0]}, counted from 0, is empty, so there is nothing to learn"
            )
        classes, names, numbers = _classes_of(y, len(texts))
        config = self._config()
        messages = [Message(text, names[n]) for text, n in zip(texts, numbers, strict=True)]
        split = self._split(messages)
        with (
            shown(sys.stderr) if self.verbose else silenced(),
            torch.inference_mode(False),
            torch.enable_grad(),
            TemporaryDirectory() as folder,
        ):
            with _ONE_AT_A_TIME:
                classifier = new_classifier(config, split)
            classifier.to(choose_device(str(self.device)))
            classifier.store = FeatureStore() if self.cache else None
            try:
                history = finetune(classifier, split, config.training, folder)
            except Interrupted:
                raise KeyboardInterrupt("fit was interrupted, and nothing was kept") from None
            if not self.validation_fraction:
                last, where = Path(folder) / "last.safetensors", classifier.device
                with _ONE_AT_A_TIME:
                    classifier = Classifier.load(
                        last, self.model, dtype=classifier.dtype, device=where
                    )
            elif self.with_ngrams:
                add_ngrams(classifier, split)
            if self.validation_fraction and not classifier.ngrams:
                calibrate(classifier, split.val)
        self.classes_ = classes
        self.history_ = [asdict(epoch) for epoch in history]
        self._set(classifier, names)
        return self

    def decision_function(self, X: Iterable[str]) -> np.ndarray:
        """Compute each text's logits (N, K), or the second minus the first (N,) for two classes."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Iterable[str]) -> np.ndarray:
        """Compute the probability of each class, in the order of `classes_`: (N, K)."""
        return softmax(self._logits(X), axis=1)

    def predict(self, X: Iterable[str]) -> np.ndarray:
        """Choose the most probable class of each text, including empty ones: (N,)."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    @property
    def classifier_(self) -> Classifier:
        """The trained classifier."""
        check_is_fitted(self)
        with _ONE_AT_A_TIME:
            if "_classifier" not in vars(self):
                with TemporaryDirectory() as folder, torch.inference_mode(False):
                    path = Path(folder) / SAVED
                    path.write_bytes(self._saved)
                    where = choose_device(str(self.device))
                    dtype = DTYPES[choose_dtype(self.dtype, where)]
                    self._classifier = Classifier.load(path, self._base, dtype=dtype, device=where)
                del self._saved
        return self._classifier

    def _config(self) -> RunConfig:
        """The settings of the training; their constructors check the parameters."""
        fraction = plain(self.validation_fraction)
        if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
            raise UsageError(f"validation_fraction = {fraction!r:.80} must be at least 0, below 1")
        if self.with_ngrams and not fraction:
            raise UsageError("with_ngrams needs a validation set: set validation_fraction")
        refuse_padding(self.pooling)
        blocks, where = self.n_last_blocks, choose_device(str(self.device))
        return RunConfig(
            model=model_name(self.model),
            training=TrainConfig(
                n_last_blocks=(0 if self.lora else 1) if blocks is None else blocks,
                epochs=self.epochs,
                patience=0 if fraction else sys.maxsize,  # without validation, never stop early
                batch_size=self.batch_size,
                lr=self.lr,
                seed=self.seed,
            ),
            head=HeadSettings(
                pooling=self.pooling,
                max_tokens=self.max_tokens,
                class_weights=self.class_weights,
                with_ngrams=self.with_ngrams,
                lora=self.lora,
            ),
            dtype=choose_dtype(self.dtype, where),
            cache=self.cache,
        )

    def _split(self, messages: list[Message]) -> Split:
        if self.validation_fraction:
            return Split(*hold_out(messages, self.validation_fraction, self.seed), test=[])
        # `finetune` needs a validation set; here its scores are not used
        return Split(messages, messages[:1], test=[])

    def _set(self, classifier: Classifier, names: list[str]) -> None:
        """Keep a trained classifier; `names` are its labels in the order of `classes_`."""
        self._classifier = classifier
        self._base = model_name(self.model)
        self._columns = [classifier.description.labels.index(name) for name in names]

    def _logits(self, X: Iterable[str]) -> np.ndarray:
        """The logits (N, K) of texts, in the order of `classes_`."""
        classifier, texts = self.classifier_, texts_of(X)
        outputs = classifier.logits(classifier.encode(texts)[0])
        logits = classifier.class_logits(outputs, texts) / classifier.description.head.temperature
        return logits.numpy()[:, self._columns]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if (classifier := state.pop("_classifier", None)) is not None:
            with TemporaryDirectory() as folder:
                path = Path(folder) / SAVED
                classifier.save(path)
                state["_saved"] = path.read_bytes()
        return state

    def __sklearn_tags__(self) -> Tags:
        return _for_texts(super().__sklearn_tags__())


class GPT2Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The states of a frozen GPT-2, one per text, as features for any estimator.

    There is nothing to fit: `fit` only loads the model. Estimators for numbers usually need a
    `StandardScaler` after it.

    Args:
        model: "mini", "124M", ... or a model's folder.
        layer: The number of blocks before the states that are read; None means all.
        pooling: Where a text is read: "mean", "end_token", "last_token" or "first_token".
        final_norm: Whether to read the states after the model's final norm.
        max_tokens: Longer texts are cut to this many tokens; 0 means n_ctx.
        device: "auto", "cpu", "cuda", "mps" or a torch device.
        dtype: The precision of the blocks, "float32", "bfloat16" or "auto".
        cache: Keep the blocks' output for the texts of `fit_transform` on disk, where other fits on
            these texts find it. `transform` never writes to disk.
    """

    def __init__(
        self,
        model: str | Path = "mini",
        *,
        layer: int | None = None,
        pooling: str = "mean",
        final_norm: bool = True,
        max_tokens: int = 0,
        device: torch.device | str = "auto",
        dtype: str = "float32",
        cache: bool = True,
    ):
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.final_norm = final_norm
        self.max_tokens = max_tokens
        self.device = device
        self.dtype = dtype
        self.cache = cache

    def fit(self, X: Iterable[str], y: Any = None) -> "GPT2Features":
        """Check the texts and load the model; nothing is learned from the texts."""
        self._fitted(X)
        return self

    def fit_transform(self, X: Iterable[str], y: Any = None) -> np.ndarray:
        """Compute the same as `fit` and `transform`, up to rounding, with the cache."""
        texts, classifier = self._fitted(X)
        encoded, _ = classifier.encode(texts)
        if not self.cache:
            return classifier.logits(encoded).numpy()
        with silenced():
            return classifier.logits(classifier.texts(encoded)).numpy()

    def transform(self, X: Iterable[str]) -> np.ndarray:
        """Compute the features of texts, including empty ones: (N, C) float32."""
        texts = texts_of(X)
        parameters, classifier = vars(self).get("_loaded", (None, None))
        if parameters != self.get_params():
            classifier = self._load()
        return classifier.logits(classifier.encode(texts)[0]).numpy()

    def _fitted(self, X: Iterable[str]) -> tuple[list[str], Classifier]:
        texts, classifier = texts_of(X, at_least_one=True), self._load()
        self._loaded = self.get_params(), classifier
        return texts, classifier

    def _load(self) -> Classifier:
        refuse_padding(self.pooling)
        settings = HeadSettings(pooling=self.pooling, max_tokens=self.max_tokens)
        head = HeadConfig(
            "state",
            "features",
            layer=self.layer,
            final_norm=self.final_norm,
            pooling=self.pooling,  # type: ignore[arg-type]
        )
        where = choose_device(str(self.device))
        dtype = choose_dtype(self.dtype, where)
        config = RunConfig(model=model_name(self.model), head=settings, dtype=dtype)
        with _ONE_AT_A_TIME, torch.inference_mode(False):
            classifier = Classifier.on_base(
                config.model,
                heads=[head],
                max_tokens=self.max_tokens or None,
                device=where,
                dtype=DTYPES[dtype],
                store=FeatureStore() if self.cache else None,
            )
        classifier.model.requires_grad_(False)  # all blocks are frozen, so `texts` can cache them
        return classifier

    @property
    def _n_features_out(self) -> int:
        return read_config(model_folder(self.model)).n_embd

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}

    def __sklearn_tags__(self) -> Tags:
        tags = _for_texts(super().__sklearn_tags__())
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags


def texts_of(X: Iterable[str], *, at_least_one: bool = False) -> list[str]:
    """Return the texts as a list. Raises DataError for anything that is not a list of texts."""
    refuse_no_list(X)
    texts = [*X]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(no_string(text, number))
    if at_least_one and not texts:
        raise DataError("there are no texts; give at least one")
    return texts


def refuse_padding(pooling: str) -> None:
    """Raise UsageError for a pooling with which answers depend on the other texts."""
    if pooling in OF_PADS:
        raise UsageError(
            f"pooling {pooling!r} reads padding, so answers would depend on the other texts"
        )


def _classes_of(y: Any, n_texts: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The classes (K,), their names as labels of a classifier, and each text's class number (N,).

    Raises ValueError if the labels are not N classes.
    """
    if y is None:
        raise DataError("this classifier requires y to be passed, but the target y is None")
    # before numpy makes a string of NaN in a list of strings
    if getattr(y, "ndim", 1) == 1 and hasattr(y, "__iter__"):
        labels = pandas.Series([*y], dtype=object)
        if missing := np.flatnonzero(labels.isna()).tolist():
            raise DataError(
                f"label {missing[0]}, counted from 0, is missing: {labels[missing[0]]!r}"
            )
    y = column_or_1d(np.asarray(y), warn=True)
    check_consistent_length(range(n_texts), y)
    check_classification_targets(y)
    classes, numbers = np.unique(y, return_inverse=True)
    names = [str(label) for label in classes.tolist()]
    if len(names) < 2:
        raise DataError(f"y has only one class, {names[0]!r:.80}; training needs two classes")
    return classes, names, numbers


def _for_texts(tags: Tags) -> Tags:
    """The tags of an estimator that reads texts instead of a table of numbers."""
    tags.input_tags.string = True
    tags.input_tags.two_d_array = False
    return tags
