"""Define settings as frozen dataclasses, and check their values.

Each field has a help text and bounds. The command line's --help is generated from the same fields.
"""

import operator
import sys
from dataclasses import MISSING, field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from gpt2_from_scratch.errors import UsageError

COMPARISONS = {
    "at least": operator.ge,
    "at most": operator.le,
    "above": operator.gt,
    "below": operator.lt,
}


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Define a dataclass field with a help text and its allowed values.

    Args:
        default: the field's default value, whose type the values must have.
        help: the text for --help.
        choices: allowed strings; empty if any string is allowed.
        at_least: smallest allowed value.
        at_most: largest allowed value.
        above: the value must be greater than this.
        below: the value must be smaller than this.

    Returns:
        The field. Its metadata holds the help text, the choices and the bounds.
    """
    bounds = {"at least": at_least, "at most": at_most, "above": above, "below": below}
    return field(default=default, metadata={"help": help, "choices": choices, "bounds": bounds})


def plain(value: Any) -> Any:
    """Convert numpy numbers and strings to Python's own, and arrays to tuples."""
    if isinstance(value, np.generic | np.ndarray):
        found = value.tolist()
        return tuple(found) if isinstance(found, list) else found
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    return value


def check_settings(settings: Any, what: str = "") -> None:
    """Check the type and the bounds of each field of settings.

    A value must have the type of the field's default. An int is accepted for a float. A float must
    be finite. If the default is None, the value must be an int or None. Numpy values are replaced by
    Python's own. Raises UsageError; the message contains `what`, followed by the name of the field.
    """
    for known in fields(settings):
        value: Any = plain(getattr(settings, known.name))
        object.__setattr__(settings, known.name, value)
        if known.default is MISSING or (value is None and known.default is None):
            continue  # nested settings check themselves
        wanted: Any = int if known.default is None else type(known.default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UsageError(
                f"{what}{known.name} = {value!r:.80} must be of type {wanted.__name__}"
            )
        if wanted is float and not is_finite(value):
            raise UsageError(f"{what}{known.name} = {value!s:.80} must be a finite number")
        choices = known.metadata.get("choices")
        if choices and value not in choices:
            raise UsageError(
                f"unknown {what}{known.name} {value!r:.80}; choose from: {', '.join(choices)}"
            )
        bounds = known.metadata.get("bounds", {})
        for words, bound in bounds.items():
            if bound is not None and not COMPARISONS[words](value, bound):
                allowed = " and ".join(f"{w} {b:g}" for w, b in bounds.items() if b is not None)
                raise UsageError(f"{what}{known.name} = {value!s:.80} must be {allowed}")


def is_finite(value: float) -> bool:
    """Return whether a number is finite as a float. An int may be too large for a float."""
    return abs(value) <= sys.float_info.max


def record_from_json(kind: Any, values: dict[str, Any]) -> Any:
    """Rebuild a dataclass of numbers, lists and dictionaries from its JSON object.

    Raises TypeError for missing keys, unknown keys and values of the wrong type.
    """
    for name, wanted in get_type_hints(kind).items():
        if name in values and not _is_a(values[name], wanted):
            raise TypeError(f"{name} = {values[name]!r:.80} must be of type {wanted}")
    return kind(**values)


def _is_a(value: Any, kind: Any) -> bool:
    outer, inner = get_origin(kind), get_args(kind)
    if outer is UnionType:  # such as float | None
        return any(_is_a(value, each) for each in inner)
    if outer is list:
        return isinstance(value, list) and all(_is_a(each, inner[0]) for each in value)
    if outer is dict:
        return isinstance(value, dict) and all(_is_a(each, inner[1]) for each in value.values())
    return kind is Any or type(value) is kind or (kind is float and type(value) is int)


def from_json(kind: Any, values: dict[str, Any]) -> Any:
    """Rebuild a settings dataclass from its JSON object. Raises UsageError for unknown keys."""
    known = [one.name for one in fields(kind)]
    if unknown := sorted(values.keys() - set(known)):
        raise UsageError(
            f"{kind.__name__} has unknown keys {unknown!r:.80}; known keys: {', '.join(known)}"
        )
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return kind(**values | lists)
