"""Token ids and targets of labelled texts, for the tests of every task."""

from typing import Any

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.task import Targets
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.speed.batching import encode_texts

TEXT = "the cat héllo 🎉 xyz"


def targets_of(
    tokenizer: Tokenizer, head: HeadConfig, *pairs: tuple[str, Any], max_tokens: int = 32
) -> tuple[Targets, list[list[int]]]:
    encoded, _ = encode_texts([text for text, _ in pairs], tokenizer, max_tokens)
    messages = [Message(text, label) for text, label in pairs]
    return TASKS[head.task].targets(head, messages, encoded, tokenizer), encoded


def owners(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The index of the token that contains each byte."""
    return [t for t, token in enumerate(ids) for _ in tokenizer.token_bytes(token)]


def words_of(text: str, label: str = "ham") -> list[Span]:
    spans, start = [], 0
    for word in text.split(" "):
        spans.append(Span(start, start + len(word), label))
        start += len(word) + 1
    return spans
