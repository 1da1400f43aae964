"""The n-grams of a text, as a second opinion on its class.

Logistic regression on n-grams of words and characters is the strongest text baseline. Its mistakes
differ from those of GPT-2, so that both together are usually better than either. `NGrams` adds its
log probabilities to GPT-2's logits. Its two weights are fitted on the validation set, so the sum is
calibrated and needs no temperature.

N texts, K classes, S classes with training texts, F n-grams, R outputs (S, or one for two classes).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.data.messages import Message, without_halves
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.evaluation.baselines import (
    WORDS_AND_CHARACTERS,
    Baseline,
    linear_model,
    words_and_characters,
)
from gpt2_from_scratch.evaluation.calibration import fit_weights
from gpt2_from_scratch.storage.files import parse_json

PREFIX = "ngrams."  # of its tensors in a classifier's file
LOWEST = 1e-9  # a lower probability counts as this one, so that logarithms are finite


@dataclass(frozen=True, eq=False)
class NGrams:
    """Logistic regression on TF-IDF of n-grams, and how much its answers count.

    All numbers have 32 bits, so that a saved file contains exactly the numbers that were used.
    """

    words: list[str]  # words and pairs of words, in the order of the features
    characters: list[str]  # n-grams of 2 to 5 characters, in the order of the features
    idf: np.ndarray  # (F,) of the words, then of the characters
    coefficients: np.ndarray  # (R, F)
    intercepts: np.ndarray  # (R,)
    seen: np.ndarray  # (S,) int64, the numbers of the classes with training texts
    n_classes: int
    weights: tuple[float, float] = (1.0, 1.0)  # of GPT-2's logits, and of the log probabilities

    @classmethod
    def fitted(cls, split: Split, labels: Sequence[str]) -> "NGrams | None":
        """Fit the regression to a split, with weights that are still 1.

        Returns None if the training texts have no n-grams or only one label. The reason is then
        logged. Raises DataError if the training or validation set is empty, or if a label is not in
        `labels`.
        """
        train, val = (
            [replace(message, text=without_halves(message.text)) for message in part]
            for part in (split.train, split.val)
        )
        texts = Split(train, val, [])
        model = linear_model(WORDS_AND_CHARACTERS, words_and_characters, texts, labels)
        if model is None:
            return None
        union, regression = (part for _, part in model.steps)
        vectorizers = [vectorizer for _, vectorizer in union.transformer_list]
        words, characters = (each.get_feature_names_out().tolist() for each in vectorizers)
        return cls(
            words,
            characters,
            np.concatenate([each.idf_ for each in vectorizers]).astype(np.float32),
            regression.coef_.astype(np.float32),
            regression.intercept_.astype(np.float32),
            regression.classes_.astype(np.int64),
            len(labels),
        )

    def weighted(
        self, logits: np.ndarray, messages: Sequence[Message], true: np.ndarray
    ) -> "NGrams":
        """The same n-grams, with weights fitted to GPT-2's logits (N, K) for validation messages.

        `true` are their classes (N,). Raises the errors of `fit_weights`.
        """
        texts = [message.text for message in messages]
        weights = fit_weights([logits, self._log_probabilities(texts)], true)
        gpt2, ngrams = weights.astype(np.float32).tolist()
        return replace(self, weights=(gpt2, ngrams))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """The regression's own probability of each class: (N, K).

        A class without training texts gets 0.
        """
        from scipy.special import softmax

        found = np.zeros((len(texts), self.n_classes))
        if not len(texts):
            return found
        scores = self.intercepts.astype(np.float64)  # (R,), then (N, R)
        texts = [*map(without_halves, texts)]
        for vectorizer, coefficients in self._parts:
            scores = scores + vectorizer.transform(texts) @ coefficients
        if scores.shape[1] == 1:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)  # (N, 2)
        found[:, self.seen] = softmax(scores, axis=1)
        return found

    def combined(self, logits: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Add the weighted log probabilities to GPT-2's weighted logits (N, K)."""
        gpt2, ngrams = self.weights
        return gpt2 * logits + ngrams * self._log_probabilities(texts)

    def as_baseline(self) -> Baseline:
        """The regression alone, as the text baseline that it is."""
        return Baseline(WORDS_AND_CHARACTERS, self.probabilities)

    def _log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        return np.log(np.maximum(self.probabilities(texts), LOWEST))

    @cached_property
    def _parts(self) -> list[tuple[Any, np.ndarray]]:
        """The vectorizers of words and of characters, each with its coefficients (F', R)."""
        n = len(self.words)
        vectorizers = [vectorizer for _, vectorizer in words_and_characters().transformer_list]
        vocabularies, idf = (self.words, self.characters), self.idf.astype(np.float64)
        for vectorizer, terms, values in zip(
            vectorizers, vocabularies, np.split(idf, [n]), strict=True
        ):
            vectorizer.set_params(vocabulary=terms)
            vectorizer.idf_ = values
        coefficients = self.coefficients.T.astype(np.float64)  # (F, R)
        return [*zip(vectorizers, np.split(coefficients, [n]), strict=True)]

    # --- as tensors of a file ---

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, by name. The n-grams are JSON in UTF-8, one byte per number."""
        found = {
            "words": _as_bytes(self.words),
            "characters": _as_bytes(self.characters),
            "idf": torch.from_numpy(self.idf),
            "coefficients": torch.from_numpy(self.coefficients),
            "intercepts": torch.from_numpy(self.intercepts),
            "seen": torch.from_numpy(self.seen),
            "weights": torch.tensor(self.weights, dtype=torch.float32),
        }
        return {PREFIX + name: value for name, value in found.items()}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], n_classes: int, path: Path
    ) -> "NGrams | None":
        """Rebuild what `tensors` returned; None if there are no tensors.

        Args:
            tensors: The tensors of a file whose names start with `PREFIX`.
            n_classes: The number of the head's classes, K.
            path: The file, for errors.

        Raises:
            CheckpointError: The tensors are not those of n-grams for this many classes.
        """
        if not tensors:
            return None
        refuse = partial(_refuse, path)
        found = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
        if odd := found.keys() ^ KINDS.keys():
            refuse(f"the tensor {min(odd)!r:.80} is unknown or missing")
        for name, (dtype, n_dimensions) in KINDS.items():
            value = found[name]
            if value.dtype != dtype or value.ndim != n_dimensions:
                refuse(f"{name} has the type {value.dtype} and the shape {tuple(value.shape)}")
            if not value.isfinite().all():
                refuse(f"{name} contains NaN or infinite values")
        seen = found["seen"].tolist()
        if seen != sorted(set(seen)) or len(seen) < 2 or not 0 <= seen[0] <= seen[-1] < n_classes:
            refuse(f"the numbers of classes {seen!r:.80} are not 2 or more of 0 to {n_classes - 1}")
        words, characters = (_from_bytes(found[name], path) for name in ("words", "characters"))
        F, R = len(words) + len(characters), 1 if len(seen) == 2 else len(seen)
        shapes = {"idf": (F,), "coefficients": (R, F), "intercepts": (R,), "weights": (2,)}
        for name, shape in shapes.items():
            if tuple(found[name].shape) != shape:
                refuse(f"{name} has the shape {tuple(found[name].shape)}, not {shape}")
        for name in ("idf", "weights"):
            if found[name].min() < 0:
                refuse(f"{name} contains negative values")
        gpt2, ngrams = found["weights"].tolist()
        return cls(
            words,
            characters,
            found["idf"].numpy(),
            found["coefficients"].numpy(),
            found["intercepts"].numpy(),
            found["seen"].numpy(),
            n_classes,
            (gpt2, ngrams),
        )


KINDS = {  # the type and the number of dimensions of each tensor
    "words": (torch.uint8, 1),
    "characters": (torch.uint8, 1),
    "idf": (torch.float32, 1),
    "coefficients": (torch.float32, 2),
    "intercepts": (torch.float32, 1),
    "seen": (torch.int64, 1),
    "weights": (torch.float32, 1),
}


def _refuse(path: Path, reason: str) -> None:
    raise CheckpointError(f"{path}: its n-grams are not valid: {reason}")


def _as_bytes(terms: Sequence[str]) -> Tensor:
    encoded = json.dumps(terms, ensure_ascii=False, separators=(",", ":")).encode()
    return torch.frombuffer(bytearray(encoded), dtype=torch.uint8)


def _from_bytes(value: Tensor, path: Path) -> list[str]:
    """The n-grams in a tensor of `_as_bytes`. Raises CheckpointError unless all are different."""
    try:
        terms = parse_json(value.numpy().tobytes().decode())
    except ValueError as error:
        raise CheckpointError(f"{path}: its n-grams cannot be read: {error!s:.200}") from None
    if not isinstance(terms, list) or {type(term) for term in terms} != {str}:
        _refuse(path, "they are not a list of texts")
    if len(set(terms)) < len(terms):
        _refuse(path, "one of them occurs twice")
    return terms
