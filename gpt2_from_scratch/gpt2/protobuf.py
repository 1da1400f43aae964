"""Protobuf messages -> the fields in them, as far as TensorFlow's checkpoints need it.

A message is a row of tags and values. In octal a tag reads: the field's number, then how its value
is stored: 0 as a varint, 5 as four bytes, 2 as a length and so many bytes. A schema says which tags
may come and what they mean, {0o10: "dtype", ...}; any other tag is an error.

Every function raises ValueError, saying what is wrong.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from typing import Any

VARINT, FOUR_BYTES = 0, 5


def read_fields(raw: bytes, schema: dict[int, str]) -> dict[str, Any]:
    """A protobuf message of single fields; one that is left out is zero or empty, as in proto3."""
    pairs = read_message(raw, schema)
    if len(pairs) != len(dict(pairs)):
        raise ValueError("a field is there twice")
    return {name: 0 if tag & 7 == VARINT else b"" for tag, name in schema.items()} | dict(pairs)


def read_message(raw: bytes, schema: dict[int, str]) -> list[tuple[str, Any]]:
    """The (name, value) pairs of a protobuf message, in order; values are numbers or bytes."""
    pairs: list[tuple[str, Any]] = []
    position = 0
    while position < len(raw):
        (tag,), position = read_varints(raw, position, 1)
        if tag not in schema:
            raise ValueError(f"a field with the tag 0o{tag:o} is none of {sorted(schema.values())}")
        value: Any = 4
        if tag & 7 != FOUR_BYTES:
            (value,), position = read_varints(raw, position, 1)
        if tag & 7 != VARINT:  # then that is the length of the value
            value, position = raw[position : position + value], position + value
        if position > len(raw):
            raise ValueError("a field goes beyond its message")
        pairs.append((schema[tag], value))
    return pairs


def read_varints(raw: bytes, position: int, count: int) -> tuple[list[int], int]:
    """`count` varints from `position` on, and the position behind them.

    A varint has 7 bits of the number in each byte, the lowest first; the top bit means "goes on".
    """
    numbers = []
    for _ in range(count):
        end = position + 1
        while raw[end - 1 : end] >= b"\x80":
            end += 1
        digits = raw[position:end]
        # zeros at the end would be a second spelling of the same number, behind which a flip hides
        if end > len(raw) or len(digits) > 10 or digits[1:].endswith(b"\0"):
            raise ValueError("a number is cut off or too long")
        numbers.append(sum((digit & 0x7F) << 7 * i for i, digit in enumerate(digits)))
        position = end
    return numbers, position
