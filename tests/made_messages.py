"""Generated messages for tests of splitting and checking."""

import hashlib
import json
import random
from fractions import Fraction

from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.data.near_duplicates import THRESHOLD, masked
from gpt2_from_scratch.data.split import Split


def made_up(ham: int = 60, spam: int = 30) -> list[Message]:
    """Distinct texts with alternating labels."""
    messages = [Message(f"see you at {n}", "ham") for n in range(ham)]
    messages += [Message(f"win {n} now", "spam") for n in range(spam)]
    random.Random(0).shuffle(messages)
    return messages


def parts(split: Split) -> list[list[Message]]:
    return [split.train, split.val, split.test]


OTHERS = [
    [("a",), ("b", "a"), ()],
    [(1.0,), (-2.5,)],
    [(Span(0, 3, "O"),), (Span(0, 3, "B-x"), Span(4, 7, "O"))],
    [Span(0, 3), Span(4, 7)],
    [{"topic": "a", "score": (1.0,)}, {"topic": "b"}],
    [None],
]


KINDS = ["labels", "numbers", "tags", "answers", "heads", "nothing"]


def fingerprint(split: Split) -> str:
    raw = [[(m.label, m.text) for m in part] for part in parts(split)]
    return hashlib.sha256(json.dumps(raw).encode()).hexdigest()[:16]


PLACES = ["park", "pub", "gym", "lake", "shop", "bank", "zoo", "pier"]


def with_near_duplicates(ham: int = 300, spam: int = 120) -> list[Message]:
    """Texts of each label; a third of them come from a few templates."""
    draw = random.Random(5)
    words = ["".join(draw.choices("bdfklmnrst", k=4)) for _ in range(400)]
    messages = []
    for label, count in (("ham", ham), ("spam", spam)):
        templates = [draw.choices(words, k=12) for _ in range(25)]
        found: set[str] = set()
        while len(found) < count:
            text = draw.choices(words, k=12)
            if len(found) < count // 3:
                text = [*draw.choice(templates)[:-1], draw.choice(PLACES)]
            found.add(" ".join(text))
        messages += [Message(text, label) for text in sorted(found)]
    draw.shuffle(messages)
    return messages


def are_near_duplicates(one: str, other: str) -> bool:
    """The definition, word by word, with exact fractions."""
    forms = [masked(one), masked(other)]
    if forms[0] == forms[1]:
        return True
    words = [form.split(" ") for form in forms]
    if min(map(len, words)) < 3:
        return False
    a, b = ({(w[n], w[n + 1]) for n in range(len(w) - 1)} for w in words)
    return Fraction(len(a & b), len(a | b)) >= Fraction(str(THRESHOLD))


def components(texts: list[str]) -> list[set[int]]:
    """The components of the graph of near duplicates, found by walking along its edges."""
    found: list[set[int]] = []
    for start in range(len(texts)):
        if any(start in component for component in found):
            continue
        reached, to_do = {start}, [start]
        while to_do:
            at = to_do.pop()
            near = {
                n for n in range(len(texts)) if are_near_duplicates(texts[at], texts[n])
            } - reached
            reached |= near
            to_do += near
        found.append(reached)
    return found
