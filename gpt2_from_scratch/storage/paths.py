"""Locations of models, data sets and caches: in the package, in the checkout, or in a user cache."""

import os
from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError, UsageError

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
MODELS = ("mini", "124M", "355M", "774M", "1558M")  # a test compares them with `SIZES`
EMBEDDED_DATA = ("demo", "topics")  # these ship with the package
DATA_SETS = (*EMBEDDED_DATA, "sms")


def home() -> Path:
    """The folder that holds `weights/` and `data/`.

    $GPT2_FROM_SCRATCH_HOME, else the checkout that the package runs from, else the user's cache.
    """
    if chosen := os.environ.get("GPT2_FROM_SCRATCH_HOME"):
        return expanded(chosen)
    if (CHECKOUT / "pyproject.toml").exists() and (CHECKOUT / "weights").is_dir():
        return CHECKOUT
    return _user_cache()


def features_folder() -> Path:
    """The folder of cached features: $GPT2_FROM_SCRATCH_CACHE, else in the user's cache."""
    if chosen := os.environ.get("GPT2_FROM_SCRATCH_CACHE"):
        return expanded(chosen)
    return _user_cache() / "features"


def _user_cache() -> Path:
    """`~/.cache/gpt2_from_scratch` or in $XDG_CACHE_HOME; on macOS and Windows what is usual there."""
    from platformdirs import user_cache_path  # here, because most commands do not need it

    return user_cache_path("gpt2_from_scratch", appauthor=False)


def sms_collection() -> Path:
    """The file to which `download sms` writes the SMS Spam Collection."""
    return home() / "data" / "sms_spam" / "SMSSpamCollection"


def embedded(name: str) -> Path:
    """A folder that ships with the package, such as `weights/mini`."""
    in_wheel = PACKAGE / name
    return in_wheel if in_wheel.is_dir() else CHECKOUT / name


def model_name(model: str | Path) -> str:
    """The name under which a model is found again: its known name, or its folder's full path."""
    return str(model) if model in MODELS else str(model_folder(model).resolve())


def data_name(data: str | Path) -> str:
    """The name under which data are found again: a known name, or the file's full path."""
    return str(data) if data in DATA_SETS else str(expanded(data).resolve())


def model_folder(model: str | Path) -> Path:
    """The folder of a model given as a name ("mini", "124M", ...) or as a path ("./mini").

    Raises CheckpointError if there is none, with the command that downloads it.
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
    """The path with `~` expanded. Raises UsageError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}") from None
