"""Parts that come in files of their own: no text in two of them, no label that depends on order."""

from pathlib import Path

import pytest

from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.split import Split, split_messages
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.runs.recipes import three_parts


def table(folder: Path, name: str, rows: list[str]) -> str:
    (folder / name).write_text("text,label\n" + "".join(f"{row}\n" for row in rows))
    return str(folder / name)


def cut(folder: Path, train: list[str], val: list[str], test: list[str], **reading) -> Split:
    rows = {"data": train, "val_data": val, "test_data": test}
    sources = {name: table(folder, f"{name}.csv", some) for name, some in rows.items()}
    said: list[str] = []
    found = three_parts(sources, "classification", reading, False, 123, said.append)
    assert said  # what was left out is told
    return found


def test_copies_stay_in_the_first_part(tmp_path: Path) -> None:
    split = cut(tmp_path, ["one,a", "two,b", "one,a"], ["two,b", "six,b"], ["one,b", "ten,a"])
    assert [[m.text for m in part] for part in vars(split).values()] == [
        ["one", "two"],
        ["six"],
        ["ten"],
    ]


def test_a_text_with_two_labels_in_one_file_is_refused_or_left_out(tmp_path: Path) -> None:
    parts = ["one,a", "two,b", "one,b"], ["six,b"], ["ten,a"]
    with pytest.raises(DataError, match="one text, two labels"):
        cut(tmp_path, *parts)
    assert [m.text for m in cut(tmp_path, *parts, on_error="skip").train] == ["two"]


@pytest.mark.parametrize("emptied", ["val_data", "test_data"])
def test_a_part_without_texts_of_its_own_is_refused_before_training(
    tmp_path: Path, emptied: str
) -> None:
    own = {"val_data": ["six,b"], "test_data": ["ten,a"]} | {emptied: ["one,a"]}
    with pytest.raises(DataError, match=f"no text of .*{emptied}.csv is left"):
        cut(tmp_path, ["one,a", "two,b"], own["val_data"], own["test_data"])


def test_near_twins_stay_together_in_one_file_only(tmp_path: Path) -> None:
    rows = [
        f"{a}{b} won {b}{a} at the {place},{'ab'[n % 2]}"
        for n, a in enumerate("bdfgklmnprst")
        for b in "ae"
        for place in ("pub", "bar")
    ]
    sources = {"data": table(tmp_path, "data.csv", rows), "val_data": "", "test_data": ""}
    arguments = (sources, "classification", {}, False, 123, print)
    found = three_parts(*arguments, together="near-twins")
    assert found == split_messages(load_messages(sources["data"]), together="near-twins")
    assert found != three_parts(*arguments) == split_messages(load_messages(sources["data"]))
    own = dict.fromkeys(sources, sources["data"])
    with pytest.raises(UsageError, match="together = 'near-twins' says how one file is cut"):
        three_parts(own, *arguments[1:], together="near-twins")
