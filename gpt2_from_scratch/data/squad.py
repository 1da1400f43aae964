"""Questions about a text whose answer is a piece of it, as SQuAD publishes them.

The model reads question and context as one text: the question on one line, the context behind it.

Source: Rajpurkar et al., 2016, https://aclanthology.org/D16-1264; version 1.1 of
https://rajpurkar.github.io/SQuAD-explorer.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2_from_scratch.data.lines import Fault
from gpt2_from_scratch.data.messages import Message, Span, without_halves
from gpt2_from_scratch.errors import CheckpointError, DataError
from gpt2_from_scratch.storage.files import and_is, each_once, no_number, read_bounded

LARGEST_SQUAD = 1 << 27  # bytes; SQuAD 2.0's training part has 42 million
MALFORMED = "questions that are not as in SQuAD"
UNANSWERED = "questions without an answer"
ELSEWHERE = "answers that do not stand where they should"


def read_squad(path: Path) -> Iterator[Message | Fault]:
    """Each question, labelled with the Span of its first answer, or what is wrong with it.

    The text is the question, its white space made single spaces, a newline and the context.
    Questions without an answer, as SQuAD 2.0 has them, are faults: no place in the text is right.
    Raises DataError for a file that is missing, too large or not JSON, and for one whose articles
    and paragraphs are not SQuAD's.
    """
    raw = _read(path)
    try:
        text = raw.decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=each_once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON{and_is(raw)}: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        raise DataError(f'{path}: expected {{"data": [...]}} as in SQuAD, found {text!r:.80}')
    return _examples(found["data"], text, path)


def context_start(text: str) -> int:
    """Where the context begins: behind the first newline; 0 in a text without one."""
    return text.find("\n") + 1


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    try:
        return read_bounded(path, LARGEST_SQUAD)
    except CheckpointError as error:  # it is of a model's files otherwise
        raise DataError(str(error)) from None


def _examples(articles: list[Any], text: str, path: Path) -> Iterator[Message | Fault]:
    place, line = 0, 1  # in the file; JSON keeps no lines, so a fault's is where its id stands
    for context, question in _questions(articles, path):
        found = _example(context, question)
        if isinstance(found, Message):
            yield found
            continue
        name = question.get("id") if isinstance(question, dict) else None
        here = max(place, text.find(json.dumps(name), place))
        place, line = here, line + text.count("\n", place, here)
        what, kind = found
        yield Fault(line, f"question {name!r:.80}: {what}", kind)


def _questions(articles: list[Any], path: Path) -> Iterator[tuple[Any, Any]]:
    """(context, question) of all paragraphs."""
    for article in articles:
        for paragraph in _list_in(article, "paragraphs", path):
            for question in _list_in(paragraph, "qas", path):
                yield paragraph.get("context"), question


def _list_in(found: Any, key: str, path: Path) -> list[Any]:
    if isinstance(found, dict) and isinstance(found.get(key), list):
        return found[key]
    raise DataError(
        f"{path}: expected an object with a list {key!r} as in SQuAD, found {found!r:.200}"
    )


def _example(context: Any, question: Any) -> Message | tuple[str, str]:
    """The example, or what is wrong with it and of which kind that is."""
    asked = question.get("question") if isinstance(question, dict) else None
    if not isinstance(asked, str) or not asked.strip():
        return f"expected words to ask with, found {asked!r:.80}", MALFORMED
    if not isinstance(context, str) or not context.strip():
        return f"expected a context to answer from, found {context!r:.80}", MALFORMED
    answers = question.get("answers")
    if not isinstance(answers, list):
        return f"expected a list of answers, found {answers!r:.80}", MALFORMED
    if not answers or question.get("is_impossible"):
        return (
            "it has no answer, as in SQuAD 2.0; only questions with one can be learned",
            UNANSWERED,
        )
    answer = answers[0] if isinstance(answers[0], dict) else {}
    words, start = answer.get("text"), answer.get("answer_start")
    if not isinstance(words, str) or not words.strip() or type(start) is not int:
        return f"expected an answer's text and answer_start, found {answers[0]!r:.80}", MALFORMED
    if start < 0 or not context.startswith(words, start):
        there = context[max(start, 0) : max(start, 0) + len(words)]
        return f"the answer {words!r:.80} is not at {start}, where {there!r:.80} stands", ELSEWHERE
    line = without_halves(" ".join(asked.split()) + "\n")
    place = len(line) + start
    return Message(line + without_halves(context), Span(place, place + len(words)))
