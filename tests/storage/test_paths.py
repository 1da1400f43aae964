"""Locations in a checkout and in an installed package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.config import SIZES
from gpt2_from_scratch.storage.paths import (
    CHECKOUT,
    MODELS,
    PACKAGE,
    data_file,
    data_name,
    expanded,
    features_folder,
    home,
    is_model,
    is_run,
    model_folder,
    model_name,
)

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="XDG's folders")
VARIABLES = ("GPT2_FROM_SCRATCH_HOME", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory) -> Path:
    """The package as installed from a wheel.

    There is no checkout, and the data are inside the package.
    """
    folder = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(PACKAGE, folder / "gpt2_from_scratch")
    (folder / "gpt2_from_scratch" / "weights" / "mini").mkdir(parents=True)
    return folder


def installed(site_packages: Path, **variables: str) -> dict[str, str]:
    """Return the locations that the installed package reports.

    It runs in another process and folder.
    """
    code = (
        "import json; from gpt2_from_scratch.storage import paths as p; "
        "print(json.dumps([str(p.home()), str(p.embedded('weights/mini')), str(p.model_folder('mini'))]))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=site_packages,
        env=environment | {"PYTHONPATH": str(site_packages)},
    )
    return dict(zip(("home", "embedded", "mini"), json.loads(found.stdout), strict=True))


def test_the_variable_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", "~/models")
    assert home() == Path.home() / "models"


def test_then_the_checkout():
    assert (CHECKOUT / "pyproject.toml").exists() and CHECKOUT == PACKAGE.parent
    assert home() == CHECKOUT


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", "")
    assert home() == CHECKOUT


@LINUX
@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": ""}], ids=["unset", "empty"])
def test_then_the_users_cache(site_packages, tmp_path, variables):
    """The XDG base directory specification: "either not set or empty"."""
    found = installed(site_packages, HOME=str(tmp_path), **variables)
    assert found["home"] == str(tmp_path / ".cache" / "gpt2_from_scratch")
    inside = str(site_packages / "gpt2_from_scratch" / "weights" / "mini")
    assert found["embedded"] == found["mini"] == inside


@LINUX
def test_the_users_cache_may_be_elsewhere(site_packages, tmp_path):
    found = installed(site_packages, XDG_CACHE_HOME=str(tmp_path))
    assert found["home"] == str(tmp_path / "gpt2_from_scratch")


@LINUX
def test_features_are_cached_there_unless_a_variable_names_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", str(tmp_path / "features"))
    assert features_folder() == tmp_path / "features"
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert features_folder() == tmp_path / "gpt2_from_scratch" / "features"


def test_what_ships_with_the_package():
    for name, folder in (
        ("sms", "sms_spam"),
        ("hard", "hard"),
        ("demo", "hard"),
        ("topics", "topics"),
    ):
        assert data_file(name).is_file()
        assert data_file(name).parent == CHECKOUT / "data" / folder


def test_models_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    (tmp_path / "weights" / "124M").mkdir(parents=True)
    assert model_folder("124M") == tmp_path / "weights" / "124M"
    # the miniature ships with the package, so it does not depend on `home()`
    assert model_folder("mini") == CHECKOUT / "weights" / "mini"


@pytest.mark.parametrize("size", ["124M", "355M", "774M", "1558M"])
def test_a_model_that_is_not_there_yet(tmp_path, monkeypatch, size):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        model_folder(size)
    assert f"{size} model is not in {tmp_path / 'weights' / size}" in str(error.value)
    assert f"gpt2-classifier download {size}" in str(error.value)


def test_models_by_path(tmp_path, monkeypatch):
    assert model_folder(tmp_path) == model_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert model_folder("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize("name", ["none", "124m", "file.txt"])
def test_neither_a_model_nor_a_folder(tmp_path, name):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(
        CheckpointError, match=f"{tmp_path / name} .* mini, 124M, 355M, 774M, 1558M"
    ):
        model_folder(tmp_path / name)


def test_a_user_that_does_not_exist():
    with pytest.raises(UsageError, match="~nobody-of-this-name/x"):
        model_folder("~nobody-of-this-name/x")


@pytest.mark.parametrize("path", ["", "nul\0", "half \ud800", Path("nul\0"), 3, None])
def test_impossible_file_names_are_refused(path):
    with pytest.raises(UsageError, match="path|cannot be the name"):
        expanded(path)


def test_names_under_which_models_and_data_are_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert (model_name("mini"), data_name("sms")) == ("mini", "sms")
    assert model_name("mine") == str(tmp_path.resolve() / "mine")
    assert data_name("mine/texts.csv") == str(tmp_path.resolve() / "mine" / "texts.csv")


def test_the_names_of_models_are_the_published_sizes():
    assert MODELS == ("mini", *SIZES)


# --- Hugging Face's names, and runs given instead of models ---

NAMES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}


@pytest.mark.parametrize(("theirs", "ours"), NAMES.items())
def test_models_have_the_hubs_names_too(theirs, ours, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (theirs, f"openai-community/{theirs}"):
        assert model_name(name) == ours
        with pytest.raises(CheckpointError, match=f"download {ours}$"):
            model_folder(name)
    (tmp_path / theirs).mkdir()  # a known name means the model, even if there is such a folder
    with pytest.raises(CheckpointError, match=f"use ./{theirs} for the folder here"):
        model_folder(theirs)
    assert model_name(f"./{theirs}") == str(tmp_path / theirs)
    assert model_folder(Path(theirs)) == Path(theirs)
    (tmp_path / "weights" / ours).mkdir(parents=True)
    assert model_folder(theirs) == model_folder(ours) == tmp_path / "weights" / ours


def test_runs_and_models_are_distinguished(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "provenance.json").write_text("{}")
    assert is_run(run) and not is_model(run)
    assert is_model(tiny_checkpoint) and not is_run(tiny_checkpoint)
    assert is_model(Path("mini")) and is_model(Path("gpt2")) and not is_model(Path("runs/gpt2"))
    (run / "best.safetensors").write_bytes(b"")
    for given in (run, run / "best.safetensors"):
        with pytest.raises(CheckpointError, match="trained classifier(?s:.*)--from"):
            model_folder(given)
    for file in tiny_checkpoint.iterdir():
        with pytest.raises(CheckpointError, match=f"Give its folder, {tiny_checkpoint}"):
            model_folder(file)
    (tmp_path / "mini").mkdir()  # an empty folder with a model's name
    assert not is_model(Path("mini")) and not is_run(Path("mini"))


def test_a_name_may_be_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_name(Path("mini")) == "mini" and model_folder(Path("mini")) == model_folder("mini")
    (tmp_path / "mini").mkdir()
    assert model_folder(Path("mini")) == Path("mini") and model_folder("mini") != Path("mini")
