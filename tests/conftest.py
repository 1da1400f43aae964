"""Common fixtures: a GPT-2 small enough to check by hand, as a model and as a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

# set before torch is imported, also for processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest
import torch
from said import stop_listening
from tiny import TINY, write_checkpoint

from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.storage.paths import data_file

# threads slow down such small models: on a busy machine 100 s instead of 2 s
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"
OPENAI_FILES = ("vocab.bpe", "encoder.json", "model.ckpt.index")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run chapters and campaigns first, each on the next free worker; keep other files together.

    The tests of a file use the same fixtures. Fast tests at the end keep both workers busy.
    """
    for item in items:
        if item.path.parent.name not in ("course", "campaigns"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is not None)


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep features in a folder of these tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_FROM_SCRATCH_CACHE", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(autouse=True)
def no_listeners_left() -> Iterator[None]:
    """Keep the log lines of one test out of the next."""
    yield
    stop_listening()


@pytest.fixture
def tiny_config() -> GPT2Config:
    return GPT2Config(**TINY)


@pytest.fixture
def tiny_gpt2(tiny_config: GPT2Config) -> GPT2:
    """All parameters are random with std 0.2 (gains around 1), so that every part matters."""
    model, generator = GPT2(tiny_config), torch.Generator().manual_seed(2019)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
            parameter.normal_(1.0 if gain else 0.0, 0.2, generator=generator)
    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in OpenAI's format, which no test may change: weights, hparams.json, BPE files."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny_checkpoint"), seed=124)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large original files next to the checkout; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"this test reads genuine files from {SHARED}, which is not there")
    return SHARED


@pytest.fixture
def sms_file() -> Path:
    """The SMS Spam Collection, which ships with the package."""
    return data_file("sms")


@pytest.fixture(scope="session")
def openai_124M(shared: Path) -> Path:
    """OpenAI's own files of the 124M model, except the weights."""
    folder = shared / "openai_124M"
    for name in OPENAI_FILES:
        if not (folder / name).exists():
            pytest.skip(f"put OpenAI's {name} of the 124M model into {folder} to run this test")
    return folder
