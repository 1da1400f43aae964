"""Where models and data lie: in the package, in the checkout, or in a cache of the user's."""

import os
from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError, UsageError

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
MODELS = ("mini", "124M", "355M", "774M", "1558M")  # a test holds them equal to `SIZES`
EMBEDDED_DATA = ("demo", "topics")  # these ship with the package
DATA_SETS = (*EMBEDDED_DATA, "sms")


def home() -> Path:
    """The folder that holds `weights/` and `data/`: $GPT2_FROM_SCRATCH_HOME, else the checkout the
    package runs from, else `~/.cache/gpt2_from_scratch`.
    """
    if chosen := os.environ.get("GPT2_FROM_SCRATCH_HOME"):
        return expanded(chosen)
    if (CHECKOUT / "pyproject.toml").exists() and (CHECKOUT / "weights").is_dir():
        return CHECKOUT
    return _user_cache()


def features_folder() -> Path:
    """Where features are kept: $GPT2_FROM_SCRATCH_CACHE, else the user's cache."""
    if chosen := os.environ.get("GPT2_FROM_SCRATCH_CACHE"):
        return expanded(chosen)
    return _user_cache() / "features"


def sms_collection() -> Path:
    """Where `download sms` puts the SMS Spam Collection."""
    return home() / "data" / "sms_spam" / "SMSSpamCollection"


def embedded(name: str) -> Path:
    """A folder that ships with the package, such as `weights/mini`."""
    in_wheel = PACKAGE / name
    return in_wheel if in_wheel.is_dir() else CHECKOUT / name


def model_name(model: str | Path) -> str:
    """What to call a model later: its known name, or else the whole path of its folder."""
    return str(model) if model in MODELS else str(model_folder(model).resolve())


def data_name(data: str | Path) -> str:
    """What to call a data set later: its known name, or else the whole path of its file."""
    return str(data) if data in DATA_SETS else str(expanded(data).resolve())


def model_folder(model: str | Path) -> Path:
    """The folder of a model given as a name ("mini", "124M", ...) or as a path ("./mini").

    Raises CheckpointError when there is none, saying how to get it.
    """
    if model in MODELS:
        folder = embedded("weights/mini") if model == "mini" else home() / "weights" / str(model)
        if folder.is_dir():
            return folder
        raise CheckpointError(
            f"the {model} model is not in {folder}; get it with: gpt2-classifier download {model}"
        )
    folder = expanded(model)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder, nor one of the models {', '.join(MODELS)}"
        )
    return folder


def expanded(path: str | Path) -> Path:
    """With `~` written out. Raises UsageError for a user that there is not."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}") from None


def _user_cache() -> Path:
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gpt2_from_scratch"
