"""Data that several tests of runs share."""

import csv
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty texts of two classes, which no test may change."""
    path = tmp_path_factory.mktemp("data") / "kinds.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [f"{'the goal' if n % 2 else 'a pill'} {n}", "ab"[n % 2]] for n in range(40)
        )
    return path
