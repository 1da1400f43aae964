"""The campaigns of `make faults`, for a few seconds each."""

import os

import campaign
import pytest

pytestmark = pytest.mark.slow
POSIX = pytest.mark.skipif(os.name == "nt", reason="forks and signals as POSIX has them")


@POSIX
@pytest.mark.parametrize(
    ("name", "count", "least"),
    [
        (
            "saving",
            30,
            {
                "kills": 30,
                "kills in the middle of a file": 10,
                "steps saved": 10,
                "crafted description: refused": 100,
                "crafted state: refused": 10,
                "crafted hparams: refused": 10,
            },
        ),
        ("resume", 3, {"trials that ended bit-equal": 3, "stopped with a state on disk": 3}),
        (
            "mutation",
            3000,
            {
                "mutations": 3000,
                "classifier: refused": 300,
                "index: refused": 300,
                "features: refused": 50,
                "features in use: refused": 50,
            },
        ),
        ("terminal", 35, {"commands": 35, "escapes": 20}),
        ("text", 500, {"texts": 500, "empty": 10, "truncated": 10, "replaced": 10}),
    ],
)
def test_a_short_campaign_finds_nothing(name, count, least):
    counts = campaign.run(name, count, seed=2)  # raises AssertionError if it found anything
    for what, number in least.items():
        assert counts.get(what, 0) >= number, f"{what}: the campaign hit too rarely to show much"
    assert not counts.get("orphans at the end") and not counts.get("wrong files")


def test_a_campaign_that_finds_something_fails(tmp_path, monkeypatch):
    (tmp_path / "broken_campaign.py").write_text("raise SystemExit('found')\n")
    monkeypatch.setattr(campaign, "HERE", tmp_path)
    with pytest.raises(AssertionError, match="broken"):
        campaign.run("broken", 1, 1)
