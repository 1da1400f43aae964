"""Tagging: one tag per word. Each token gets a class, and a word has its first token's tag.

B texts in a batch, N texts in all, T tokens in the longest, K tags. Tags such as B-person, I-person
and O (BIO) mark entities. Sources: Ramshaw & Marcus 1995 for BIO; Tjong Kim Sang & De Meulder 2003
(CoNLL) for the scores.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import (
    Choice,
    Classification,
    probabilities_of,
    weighted_targets,
)
from gpt2_from_scratch.classifier.tasks.task import (
    IGNORED,
    Answer,
    Batch,
    Encoded,
    Scores,
    Targets,
    Task,
    checked_span,
    class_number,
    class_table,
    first_tokens,
    label_for,
    labelled_only,
    percent,
    proportion_in_words,
)
from gpt2_from_scratch.data.messages import Message, Span, on_one_line, short
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import (
    ClassScores,
    evaluate_predictions,
    wilson_interval,
)
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

BIO = re.compile(r"O|[BI]-\S+")


@dataclass(frozen=True)
class Tag:
    """A word, which is `text[start:end]`, with its tag and the tag's probability."""

    word: str
    start: int
    end: int
    label: str
    probability: float


@dataclass(frozen=True)
class Tags(Answer):
    """A tag for each word.

    Words that were cut off have the tag O, or the head's first tag if the head has no O.
    """

    words: list[Tag]

    @property
    def entities(self) -> list[Span]:
        """The entities that BIO tags mark. Raises DataError for other kinds of tags."""
        found = entities([tag.label for tag in self.words])
        return [Span(self.words[a].start, self.words[b - 1].end, kind) for a, b, kind in found]

    def as_dict(self) -> dict[str, Any]:
        """Return the words, and the entities if all tags are BIO tags."""
        if not all(BIO.fullmatch(tag.label) for tag in self.words):
            return super().as_dict()
        return super().as_dict() | {"entities": [span._asdict() for span in self.entities]}

    def in_words(self) -> str:
        """Format the words whose tag is not O; "-" if there are none."""
        marked = [tag for tag in self.words if tag.label != "O"]
        return " ".join(f"{on_one_line(tag.word)}/{short(tag.label)}" for tag in marked) or "-"


@dataclass(frozen=True)
class TagScores(Scores):
    """The scores of tagged words."""

    correct: int  # words with the correct tag
    total: int
    interval: tuple[float, float]  # 95% Wilson interval, as if words were independent
    entities: ClassScores | None  # all types combined; None if the tags do not mark entities
    classes: list[ClassScores]  # one per entity type, or one per tag

    @property
    def accuracy(self) -> float:
        """The proportion of words with the correct tag."""
        return self.correct / self.total

    @property
    def main(self) -> float:
        """F1 of entities if the tags mark them, else the accuracy."""
        return self.accuracy if self.entities is None else self.entities.f1 or 0.0

    @property
    def measure(self) -> str:  # type: ignore[override]
        """The name of `main`."""
        return "word accuracy" if self.entities is None else "entity F1"

    def as_table(self) -> str:
        """Format the word accuracy, and the scores of entities or tags."""
        words = proportion_in_words("word accuracy", self.correct, self.total, self.interval)
        if self.entities is None:
            return f"{words}\n\n{class_table(self.classes, 'tag', 'words')}"
        classes = class_table(self.classes, "entity", "entities", self.entities)
        return f"entity F1 {percent(self.entities.f1)}\n{words}\n\n{classes}"


class Tagging(Classification):
    """Choose a class for each token; the loss and the count of correct answers are inherited."""

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Convert each word's tag to its number, at the word's first token: N tensors (T,) int64.

        Tokens that continue a word are IGNORED, and so are words that were cut off.
        """
        values = []
        for message, ids in zip(messages, encoded, strict=True):
            words = [checked_span(message.text, w) for w in label_for(head, message) or ()]
            numbers = [class_number(head, word.label) for word in words]
            tags = torch.full((len(ids),), IGNORED)
            for n, token in zip(
                numbers, first_tokens(message.text, ids, words, tokenizer), strict=True
            ):
                if token is not None:
                    tags[token] = n
            values.append(tags)
        return weighted_targets(head, values)

    def words(self, labels: Sequence[Any]) -> list[Sequence[Span]]:
        """Return the labelled words of each text."""
        return [label or () for label in labels]

    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> list[Tags]:  # type: ignore[override]
        """Tag the words of each text: outputs (B, T, K)."""
        words = batch.words or [
            [Span(*match.span()) for match in re.finditer(r"\S+", text)] for text in batch.texts
        ]
        after_cut = head.labels.index("O") if "O" in head.labels else 0
        found = []
        for row, text, ids, spans in zip(
            outputs.float(), batch.texts, batch.encoded, words, strict=True
        ):
            probabilities = probabilities_of(row[: len(ids)])  # (T, K)
            tags = []
            for word, token in zip(
                spans, first_tokens(text, ids, spans, batch.tokenizer), strict=True
            ):
                best = after_cut if token is None else int(probabilities[token].argmax())
                p = 0.0 if token is None else float(probabilities[token][best])
                start, end = word.start, word.end
                tags.append(Tag(text[start:end], start, end, head.labels[best], p))
            found.append(Tags(tags))
        return found

    def answers_by_token(
        self, head: HeadConfig, outputs: Tensor, tokenizer: Tokenizer
    ) -> list[Choice]:
        """Choose the tag of each token, as a class: (T, K) -> T."""
        T = len(outputs)
        return super().answers(head, outputs, Batch([""] * T, [[]] * T, tokenizer))

    def scores(  # type: ignore[override]
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> TagScores:
        """Compare tags word by word, and entity by entity."""
        labels, answers = labelled_only(labels, answers)
        true = [[word.label for word in words] for words in labels]
        predicted = [[tag.label for tag in answer.words] for answer in answers]
        return tag_scores(true, predicted, head.labels)

    def answer_of(self, head: HeadConfig, text: str, label: Any) -> Tags:
        """Give each word its tag in the label, with probability 1."""
        return Tags([Tag(text[a:b], a, b, tag, 1.0) for a, b, tag in label])

    columns = Task.columns  # type: ignore[assignment]  # an answer is not a row


def tag_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str] = ()
) -> TagScores:
    """Score the tags of words, given as one list per text.

    An entity is correct if its first word, its last word and its type are all correct. `labels` are
    all possible tags. They decide whether the tags mark entities, even if every word here has the
    tag O. Raises DataError for texts without a word.
    """
    pairs = [
        (a, b)
        for tags, answers in zip(true, predicted, strict=True)
        for a, b in zip(tags, answers, strict=True)
    ]
    correct, total = sum(a == b for a, b in pairs), len(pairs)
    interval = wilson_interval(correct, total)
    names = [*dict.fromkeys([*labels, *sorted({tag for pair in pairs for tag in pair})])]
    if is_bio(names):
        types = sorted({name[2:] for name in names if name != "O"})
        return TagScores(correct, total, interval, *_entity_scores(true, predicted, types))
    numbers = np.array([(names.index(a), names.index(b)) for a, b in pairs])  # (words, 2)
    classes = evaluate_predictions(numbers[:, 0], numbers[:, 1], names).classes
    return TagScores(correct, total, interval, None, classes)


def _entity_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], types: Sequence[str]
) -> tuple[ClassScores, list[ClassScores]]:
    """Score all entities together, and the entities of each type."""
    hits, called, support = Counter[str](), Counter[str](), Counter[str]()
    for tags, answers in zip(true, predicted, strict=True):
        marked, found = set(entities(tags)), set(entities(answers))
        support.update(kind for _, _, kind in marked)
        called.update(kind for _, _, kind in found)
        hits.update(kind for _, _, kind in marked & found)

    def scores(name: str, hits: int, called: int, support: int) -> ClassScores:
        precision, recall = hits / called if called else None, hits / support if support else None
        f1 = 2 * hits / (called + support) if called + support else None
        return ClassScores(name, precision, recall, f1, support)

    everything = scores("all", hits.total(), called.total(), support.total())
    return everything, [scores(kind, hits[kind], called[kind], support[kind]) for kind in types]


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (first word, end, type) of each entity that BIO tags mark; `end` is exclusive.

    B- begins an entity. I- continues an entity of the same type that ends at the word before. If
    there is no such entity, I- also begins one, as in conlleval and seqeval. Raises DataError for a
    tag that is not a BIO tag.
    """
    found: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        if not BIO.fullmatch(tag):
            raise DataError(f"{tag!r} is not a BIO tag such as O, B-person or I-person")
        if tag == "O":
            continue
        start, kind = place, tag[2:]
        if tag[0] == "I" and found and found[-1][1:] == (place, kind):
            start = found.pop()[0]
        found.append((start, place + 1, kind))
    return found


def is_bio(labels: Sequence[str]) -> bool:
    """Whether these are BIO tags (O, B-..., I-...) and at least one of them is not O."""
    return all(BIO.fullmatch(label) for label in labels) and bool(set(labels) - {"O"})
