"""Where models and data lie."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.storage import paths
from gpt2_from_scratch.storage.paths import CHECKOUT, EMBEDDED_DATA, embedded, home, model_folder

PACKAGE = paths.PACKAGE
VARIABLES = ("GPT2_FROM_SCRATCH_HOME", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory) -> Path:
    """The package as a wheel installs it: alone, with the folders it ships inside."""
    folder = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(PACKAGE, folder / "gpt2_from_scratch")
    (folder / "gpt2_from_scratch" / "weights" / "mini").mkdir(parents=True)
    return folder


def installed(site_packages: Path, **variables: str) -> dict[str, str]:
    """What the installed package says, run in a process and in a folder of its own."""
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


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", "")
    assert home() == CHECKOUT


def test_then_a_cache_of_the_users(site_packages, tmp_path):
    found = installed(site_packages, HOME=str(tmp_path))
    assert found["home"] == str(tmp_path / ".cache" / "gpt2_from_scratch")
    inside = str(site_packages / "gpt2_from_scratch" / "weights" / "mini")
    assert found["embedded"] == found["mini"] == inside


def test_the_users_cache_may_lie_elsewhere(site_packages, tmp_path):
    found = installed(site_packages, XDG_CACHE_HOME=str(tmp_path))
    assert found["home"] == str(tmp_path / "gpt2_from_scratch")


def test_an_empty_cache_variable_is_none(site_packages, tmp_path):
    """The XDG base directory specification: "either not set or empty"."""
    found = installed(site_packages, HOME=str(tmp_path), XDG_CACHE_HOME="")
    assert found["home"] == str(tmp_path / ".cache" / "gpt2_from_scratch")


def test_what_ships_with_the_package():
    for name in EMBEDDED_DATA:
        assert (embedded(f"data/{name}") / "messages.csv").is_file()
        assert embedded(f"data/{name}") == CHECKOUT / "data" / name


def test_models_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    (tmp_path / "weights" / "124M").mkdir(parents=True)
    assert model_folder("124M") == tmp_path / "weights" / "124M"
    assert model_folder("mini") == CHECKOUT / "weights" / "mini"  # it ships, wherever home is


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
    with pytest.raises(CheckpointError) as error:
        model_folder(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name} is not a folder, nor one of the models mini, 124M, 355M, 774M, 1558M"
    )
