"""Characters in texts that trip up what reads them: halves of characters, formulas, controls."""

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets execute what begins so, csv or not
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tab and line ends
NUL, REPLACEMENT = "\x00", "\ufffd"


def has_halves(text: str) -> bool:
    """Whether some half of a character (a lone surrogate) is in it, which no file can hold."""
    if text.isascii():
        return False
    try:
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return True
    return False


def without_halves(text: str) -> str:
    """Two halves that belong together become one character, each lone one U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def for_spreadsheet(text: str) -> str:
    """The text as a csv field that no spreadsheet executes: ' before what would be a formula.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    return "'" + text if text.startswith(FORMULA) else text


def on_one_line(text: str) -> str:
    """The text in one line, and nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else REPLACEMENT for c in " ".join(text.split()))
