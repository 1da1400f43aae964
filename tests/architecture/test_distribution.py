"""The wheel and the sdist: built without a network, looked through, and used without the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "gpt2_from_scratch"
SHIPPED = ("weights/mini", "data/sms_spam", "data/hard", "data/topics")
LARGEST = 16 * 2**20  # bytes; the miniature has 11 MB
CLASSIFY = """
import gpt2_from_scratch as package
from gpt2_from_scratch import Classifier, DataConfig, TrainConfig, train_classifier
print(package.__file__)
run = train_classifier("mini", DataConfig("hard"), TrainConfig(epochs=1), run="run", device="cpu")
print(Classifier.load("run").predict(["WINNER! Call 09061701461 now"])[0].label)
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist as a build tool does, in a process of its own."""
    pytest.importorskip("hatchling")
    program = f"from hatchling.build import *; print(build_{kind}(r'{out}'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, check=True, capture_output=True, text=True
    )
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files(folder: Path) -> set[str]:
    """The files in a folder, without caches."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found)
    return {name for name in names if "__pycache__" not in name}


@pytest.mark.slow
def test_the_wheel_has_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    expected = {f"{NAME}/{name}" for name in files(ROOT / NAME)}
    for folder in SHIPPED:
        expected |= {f"{NAME}/{folder}/{name}" for name in files(ROOT / folder)}
    found = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert found == expected
    assert f"{NAME}/py.typed" in found
    assert wheel.stat().st_size < LARGEST


@pytest.mark.slow
def test_the_metadata_of_the_wheel(wheel: Path) -> None:
    (about,) = (text for name, text in contents(wheel).items() if name.endswith("/METADATA"))
    metadata = message_from_bytes(about)
    assert (metadata["Name"], metadata["Requires-Python"]) == ("gpt2-from-scratch", ">=3.11")
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    (scripts,) = (t for name, t in contents(wheel).items() if name.endswith("/entry_points.txt"))
    assert b"gpt2-classifier = gpt2_from_scratch.cli.main:main" in scripts


@pytest.mark.slow
def test_the_sdist_has_no_stray_files(sdist: Path, unpacked: Path) -> None:
    assert sdist.stat().st_size < LARGEST
    found = files(unpacked) - {"PKG-INFO"}
    assert {name for name in found if not (ROOT / name).is_file()} == set()
    for folder in (NAME, "tests", "docs", *SHIPPED):
        assert {name for name in found if name.startswith(f"{folder}/")} == {
            f"{folder}/{name}" for name in files(ROOT / folder)
        }
    endings = (".pyc", ".ipynb_checkpoints", ".swp", ".orig")
    assert not [name for name in found if name.endswith(endings) or name.startswith("runs/")]
    assert {"Makefile", "constraints.txt", "CITATION.cff", "LICENSE"} <= found


@pytest.mark.slow
def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    again = build("wheel", unpacked, tmp_path)
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


@pytest.mark.slow
def test_the_wheel_trains_and_predicts_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = os.environ | {
        "PYTHONPATH": str(tmp_path / "installed"),
        "GPT2_FROM_SCRATCH_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFY],
        cwd=elsewhere,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    path, label = done.stdout.splitlines()
    assert Path(path).is_relative_to(tmp_path / "installed")
    assert label in ("ham", "spam")


def test_the_version_is_the_same_everywhere() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
