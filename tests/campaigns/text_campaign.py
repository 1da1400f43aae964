"""Texts that Hypothesis thinks of, through the tokenizer and through a classifier's answer."""

import math
from collections import Counter
from pathlib import Path

import campaign
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gpt2_from_scratch.classifier.classifier import Classifier

AT_ONCE = 25  # texts in a list
ODD = [
    "\0",
    "\u200d",
    "\u0301",
    "\ufeff",
    "\U0001f468\u200d\U0001f469",
    "<|endoftext|>",
    "=1+1",
    "\r",
]
PIECES = st.sampled_from([*ODD, " ", "\n", "a", "é", "漢", "💥", "the ", "\ud800", "'ll"])
TEXTS = st.one_of(
    st.text(st.characters(codec=None)),  # halves of characters too
    st.text("abc \n\t0'ſ", max_size=200),
    st.lists(PIECES, max_size=40).map("".join),
    st.tuples(PIECES, st.integers(1, 5000), PIECES).map(lambda t: t[0] * t[1] + t[2]),
)


def as_read(text: str) -> str:
    """Halves of characters are read as U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def look(classifier: Classifier, texts: list[str], seen: Counter) -> None:
    """Encode, decode and classify; AssertionError for what cannot be."""
    tokenizer, limit = classifier.tokenizer, classifier.description.max_tokens
    answers = classifier.predict(texts)
    assert len(answers) == len(texts)
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == as_read(text)
        assert all(0 <= n < tokenizer.n_vocab - 1 for n in ids), "a text wrote a control token"
        shares = list(answer.probabilities.values())
        assert all(math.isfinite(share) for share in shares) and abs(sum(shares) - 1) < 1e-9
        assert answer.label in answer.probabilities
        assert answer.empty == (not text.strip())
        assert answer.n_tokens == (1 if answer.empty else min(limit, len(ids)))
        assert answer.truncated == (not answer.empty and len(ids) > limit)
        assert answer.replaced == any("\ud800" <= c <= "\udfff" for c in text)
        for word in ("empty", "truncated", "replaced"):
            seen[word] += getattr(answer, word)
    seen["texts"] += len(texts)
    seen["distinct answers"] += len({tuple(a.probabilities.values()) for a in answers})


def texts(count: int, number: int, folder: Path) -> Counter:
    """At least `count` texts, in lists of 25, through the miniature with a new head."""
    torch.set_num_threads(1)
    classifier, seen = Classifier.on_base("mini", ["ham", "spam"], seed=1), Counter()
    progress = campaign.Progress(count, "texts")

    @seed(number)
    @settings(
        max_examples=math.ceil(count / AT_ONCE),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(TEXTS, min_size=AT_ONCE, max_size=AT_ONCE))
    def each(batch: list[str]) -> None:
        look(classifier, batch, seen)
        progress(seen["texts"])

    while seen["texts"] < count:
        each()
    return seen


if __name__ == "__main__":
    campaign.main(texts)
