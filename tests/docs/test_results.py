"""The tables of the documentation show the numbers that the benchmarks printed."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
from results import MEASUREMENTS, Measurement, printed  # noqa: E402

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
BY_PAGE: dict[str, list[Measurement]] = {}
for each in MEASUREMENTS:
    BY_PAGE.setdefault(each.page, []).append(each)
# pages all of whose measurements were printed
PAGES = {page: some for page, some in BY_PAGE.items() if all(printed(m).exists() for m in some)}


def numbers(text: str) -> list[str]:
    """The numbers in a text, as they are written."""
    return [found.rstrip(",") for found in NUMBER.findall(text)]


def value(number: str) -> float:
    return float(number.replace(",", ""))


def unit(number: str) -> float:
    """The value of the last digit that a number shows: 0.01 for 3.14, 100 for 1,200."""
    mantissa, _, exponent = number.replace(",", "").partition("e")
    if "." in mantissa:
        last = 10.0 ** -len(mantissa.partition(".")[2])
    else:
        digits = mantissa.strip("+-")
        last = 10.0 ** (len(digits) - len(digits.rstrip("0"))) if int(digits) else 1.0
    return last * 10.0 ** int(exponent or 0)


def script(one: Measurement) -> str:
    """The word of a command by which a page names it: a file, or a command's own words."""
    words = one.command.split()
    return words[1] if words[0] == "python" else " ".join(words[:2])


def table_numbers(page: Path, scripts: set[str]) -> list[tuple[str, str]]:
    """(row, number) of each table of measurements, without the first column.

    If the beginning of a page names the commands, these are all tables of the page. Otherwise they
    are those of the sections that name one.
    """
    sections = re.split(r"^(?=##)", page.read_text("utf-8"), flags=re.M)
    if not any(script in sections[0] for script in scripts):
        sections = [one for one in sections if any(script in one for script in scripts)]
    found = []
    for row in re.findall(r"^\|(.*)\|$", "".join(sections), re.M):
        cells = [cell.strip() for cell in row.split("|")]
        found += [(row, number) for cell in cells[1:] for number in numbers(cell)]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_tables_show_what_was_printed(page: str) -> None:
    text = "".join(printed(one).read_text("utf-8") for one in PAGES[page])
    known = [value(number) for number in numbers(text)]
    for row, number in table_numbers(ROOT / "docs" / page, {script(one) for one in PAGES[page]}):
        assert any(abs(value(number) - other) <= 0.501 * unit(number) for other in known), (
            f"{page}: {number} in the row {row!r} was not printed"
        )


def test_the_pages_are_those_that_were_measured() -> None:
    assert {"results/explanations.md", "results/serve.md"} <= PAGES.keys()


@pytest.mark.parametrize("one", MEASUREMENTS, ids=lambda one: one.name)
def test_a_measurement_is_on_its_page(one: Measurement) -> None:
    text = " ".join((ROOT / "docs" / one.page).read_text("utf-8").split())
    assert script(one) in text, f"docs/{one.page} does not name {script(one)}"
    assert not one.command.startswith("python ") or (ROOT / script(one)).is_file()


def test_numbers_are_compared_at_the_precision_they_show() -> None:
    assert numbers("1,234 of 5; -0.5, 3.1e-05 (v2) 12%") == ["1,234", "5", "-0.5", "3.1e-05", "12"]
    assert [unit(number) for number in ("3.14", "7", "1,200", "0", "2e-3")] == [
        0.01,
        1,
        100,
        1,
        0.001,
    ]
