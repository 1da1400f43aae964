"""Classifying any number of texts in flat memory, as they come."""

import hashlib
from collections.abc import Iterable, Iterator

from gpt2_from_scratch.batches import no_string
from gpt2_from_scratch.classifier import Classifier, Prediction
from gpt2_from_scratch.data import check_on_error
from gpt2_from_scratch.errors import DataError

FIRST, LARGEST = 64, 4096  # texts in a window: few at first, so that answers begin to come at once
CHARACTERS = 4_000_000  # in a window, whatever the number of texts
REMEMBERED = 65_536  # distinct texts whose answers are kept, about 50 MB


def predict_stream(
    classifier: Classifier, texts: Iterable[str], *, on_error: str = "stop"
) -> Iterator[tuple[str, Prediction | None]]:
    """(text, answer) of each text, in their order, each computed once.

    Texts are taken up in windows, inside of which they are sorted for speed; the answers of the
    65,536 distinct texts met last are remembered. Raises DataError for what is not a string; with
    `on_error="skip"` its answer is None.
    """
    check_on_error(on_error)
    if isinstance(texts, str):  # it would be taken for a list of letters
        raise DataError(f"give a list of texts, not one string: [{texts!r:.80}]")
    known: dict[bytes, Prediction | None] = {}
    for window in _windows(texts, on_error):
        keys = [_key(text) for text in window]
        new = {key: text for key, text in zip(keys, window, strict=True)}
        new = {key: text for key, text in new.items() if key and key not in known}
        answers = dict(zip(new, classifier.predict(list(new.values())), strict=True))
        answers |= {key: known.pop(key) for key in dict.fromkeys(keys) if key in known}
        known |= answers  # those met now stand last
        yield from ((text, answers.get(key)) for key, text in zip(keys, window, strict=True))
        for key in list(known)[: max(0, len(known) - REMEMBERED)]:
            del known[key]


def _windows(texts: Iterable[str], on_error: str) -> Iterator[list[str]]:
    window: list[str] = []
    size, characters = FIRST, 0
    for number, text in enumerate(texts):
        if on_error == "stop" and not isinstance(text, str):
            raise DataError(no_string(text, number))
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) >= size or characters >= CHARACTERS:
            yield window
            window, characters = [], 0
            size = min(2 * size, LARGEST)
    if window:
        yield window


def _key(text: str) -> bytes:
    if not isinstance(text, str):
        return b""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
