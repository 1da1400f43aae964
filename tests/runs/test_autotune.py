"""Runs whose settings were searched for: what they keep, and how they resume."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command import call
from interrupted import interrupted_after

from gpt2_from_scratch.classifier.autotune import TRIES, best_try, read_tries
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.cli.options import duration
from gpt2_from_scratch.errors import Interrupted
from gpt2_from_scratch.runs import recipes
from gpt2_from_scratch.runs.folder import RunConfig, verify_run
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier
from gpt2_from_scratch.runs.results import Run
from gpt2_from_scratch.storage.files import read_json, sha256_of

# with the same learning rate in all trainings, there are few of them
TRAINING = TrainConfig(epochs=1, lr=0.01, batch_size=8, seed=3)
BEST = "best.safetensors"


def tuned(base: Path, table: Path, out: Path) -> Run:
    return train_classifier(base, table, TRAINING, run=out, device="cpu", autotune=1000)


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = tuned(tiny_checkpoint, table, tmp_path_factory.mktemp("tuned") / "run")
    made.write_report()
    return made


@pytest.mark.slow
def test_the_run_is_one_with_the_settings_that_were_found(run, tiny_checkpoint, table, tmp_path):
    config = RunConfig.read(run.folder)
    assert config == run.config
    assert config.autotune == 0
    best = best_try(read_tries(run.folder), len(run.load_split().train))
    assert best is not None
    assert all(config.settings()[name] == value for name, value in best.settings.items())
    plain = train_classifier(
        tiny_checkpoint, table, config.training, config.head, run=tmp_path / "run", device="cpu"
    )
    assert sha256_of(run.folder / BEST) == sha256_of(plain.folder / BEST)
    assert plain.scores == run.scores
    assert all(check.ok for check in verify_run(run.folder))


@pytest.mark.slow
def test_the_report_shows_every_try(run):
    page = (run.folder / "report.html").read_text("utf-8")
    tries = read_tries(run.folder)
    assert len(tries) > 1
    for one in tries:
        assert one.in_words in page
    assert page.count(">yes</td>") == 1
    assert f"{len(tries)} trainings" in (run.folder / "model_card.md").read_text("utf-8")


@pytest.mark.slow
def test_a_run_stopped_in_its_search_resumes(run, tiny_checkpoint, table, tmp_path, monkeypatch):
    with (
        interrupted_after(3, monkeypatch),
        pytest.raises(Interrupted, match="--resume"),
    ):
        tuned(tiny_checkpoint, table, tmp_path / "run")
    again = resume_training(tmp_path / "run", device="cpu")
    assert again.config == run.config
    assert sha256_of(again.folder / BEST) == sha256_of(run.folder / BEST)
    assert sorted(p.name for p in again.folder.iterdir()) == sorted(
        p.name
        for p in run.folder.iterdir()
        if p.name not in ("report.html", "model_card.md", "curves.png")
    )


@pytest.mark.slow
def test_a_run_killed_after_its_search_resumes(run, tiny_checkpoint, table, tmp_path, monkeypatch):
    def killed(*args: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(recipes, "score_run", killed)
        tuned(tiny_checkpoint, table, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "finetune", None)  # nothing is trained again
        again = resume_training(tmp_path / "run", device="cpu")
    assert sha256_of(again.folder / BEST) == sha256_of(run.folder / BEST)
    assert again.scores == run.scores


@pytest.mark.slow
def test_the_command_that_began_a_search_resumes_its_run(
    run, tiny_checkpoint, table, tmp_path, monkeypatch, capsys
):
    options = ["--autotune", "1000s", "--device", "cpu", "--model", str(tiny_checkpoint)]
    with interrupted_after(3, monkeypatch), pytest.raises(Interrupted):
        tuned(tiny_checkpoint, table, tmp_path / "run")
    code, _, err = call(capsys, "train", "--resume", tmp_path / "run", "--autotune", "1s")
    assert code == 2 and "autotune" in err
    for _ in range(2):  # during the search, and after it
        code, _, err = call(capsys, "train", "--resume", tmp_path / "run", *options)
        assert code == 0, err
    assert sha256_of(tmp_path / "run" / BEST) == sha256_of(run.folder / BEST)


@pytest.mark.slow
def test_a_search_starts_from_the_adapted_gpt2(tiny_checkpoint, table, tmp_path, monkeypatch):
    """Its run equals a run with the settings that were found, also if it was killed."""
    training = replace(TRAINING, adapt=1)

    def killed(*args: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(recipes, "score_run", killed)
        train_classifier(
            tiny_checkpoint, table, training, run=tmp_path / "run", device="cpu", autotune=1000
        )
    after_search = sha256_of(tmp_path / "run" / "last.safetensors")
    run = resume_training(tmp_path / "run", device="cpu")
    plain = train_classifier(
        tiny_checkpoint,
        table,
        run.config.training,
        run.config.head,
        run=tmp_path / "plain",
        device="cpu",
    )
    for made in (run, plain):
        assert sha256_of(made.folder / "last.safetensors") == after_search
    assert run.scores == plain.scores
    assert sorted(p.name for p in run.folder.iterdir() if p.name != TRIES) == sorted(
        p.name for p in plain.folder.iterdir()
    )


@pytest.mark.slow
def test_a_search_continues_from_another_run(run, tiny_checkpoint, table, tmp_path):
    """It keeps the form of that run's head and LoRA, because their weights are kept."""
    made = train_classifier(
        tiny_checkpoint,
        table,
        TRAINING,
        start=run.folder,
        run=tmp_path / "run",
        device="cpu",
        autotune=1000,
    )
    changed = {name for one in read_tries(made.folder) for name in one.settings}
    assert not changed & {"pooling", "lora"}
    assert made.config.head.pooling == run.config.head.pooling


@pytest.mark.slow
def test_the_earlier_run_is_not_needed_at_the_end_of_a_search(
    run, tiny_checkpoint, table, tmp_path, monkeypatch
):
    earlier = Path(shutil.copytree(run.folder, tmp_path / "earlier"))
    with interrupted_after(3, monkeypatch), pytest.raises(Interrupted):
        train_classifier(
            tiny_checkpoint,
            table,
            TRAINING,
            start=earlier,
            run=tmp_path / "run",
            device="cpu",
            autotune=1000,
        )
    known = read_json(tmp_path / "run" / "provenance.json")["start"]
    shutil.rmtree(earlier)
    resume_training(tmp_path / "run", device="cpu")
    assert read_json(tmp_path / "run" / "provenance.json")["start"] == known


def test_times(capsys):
    assert [duration(text) for text in ("90s", "5m", "1h", "0.5m", "7")] == [90, 300, 3600, 30, 7]
    for text in ("", "m", "5 minutes", "0", "-1m", "nan", "inf", "1e999"):
        with pytest.raises(Exception, match="90s, 5m or 1h"):
            duration(text)
