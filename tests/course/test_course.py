"""What the chapters share: their model, their data set, and how they show sources and pictures."""

from types import SimpleNamespace

import pytest
from contents import PARTS

from gpt2_from_scratch import course
from gpt2_from_scratch.errors import UsageError


def test_setting(monkeypatch):
    monkeypatch.delenv("GPT2_FROM_SCRATCH_COURSE", raising=False)
    assert course.setting() == ("mini", "sms") and course.setting("124M") == ("124M", "sms")
    monkeypatch.setenv("GPT2_FROM_SCRATCH_COURSE", "355M")
    assert course.setting("mini") == ("355M", "sms")
    monkeypatch.setenv("GPT2_FROM_SCRATCH_COURSE", "125M")
    with pytest.raises(UsageError, match="125M"):
        course.setting("mini")


def test_a_script_prints_sources_and_saves_pictures(tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    monkeypatch.chdir(tmp_path)
    course.show(course.setting)
    assert capsys.readouterr().out.startswith("# course.py\ndef setting(model")
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    shown = course.picture(figure, "line")
    assert (tmp_path / "runs/course/line.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.replace("\\", "/") == "picture: runs/course/line.png\n"
    assert shown._repr_png_() == shown._repr_png_()


def test_a_notebook_shows_them_itself(monkeypatch, capsys):
    shell = SimpleNamespace()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)
    assert not course.in_notebook(), "IPython in a terminal"
    shell.kernel = None
    shown = course.show(course.setting, course.Picture._repr_png_)
    assert capsys.readouterr().out == ""
    assert "```python\n# course.py\ndef setting" in shown._repr_markdown_()
    assert "\n\n# course.py\ndef _repr_png_(self)" in shown._repr_markdown_()
    assert repr(shown) == "# course.py"


def test_the_map_has_the_chapters_of_part_one():
    """The steps are named as in the road maps; attention is part of the network."""
    expected = {
        int(chapter[:2]): title for chapter, title in PARTS[0].items() if chapter[:2] != "00"
    }
    expected |= {1: "message", 3: "network"}
    drawn = {text.get_text() for text in course.draw_map().axes[0].texts if text.get_text()}
    assert "network\nchapters 3, 4" in drawn and "head\nchapter 6" in drawn
    found = {}
    for name, (chapters, _, following) in course.STEPS.items():
        assert set(following) <= set(course.STEPS)
        for number in chapters.split(", "):
            found[int(number)] = name
    assert found == expected
