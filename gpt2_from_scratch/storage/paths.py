"""Locations of models, data sets and caches: in the package, in the checkout, or in a user cache."""

import os
from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError, UsageError, did_you_mean
from gpt2_from_scratch.progress import CONTROLLING, command

LONGEST = 80  # characters of a file's name in the name of a folder
PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
MODELS = ("mini", "124M", "355M", "774M", "1558M")  # a test compares them with `SIZES`
HUB_NAMES = {  # of the same models on Hugging Face's hub
    "gpt2": "124M",
    "gpt2-medium": "355M",
    "gpt2-large": "774M",
    "gpt2-xl": "1558M",
}
HUB_NAMES |= {f"openai-community/{name}": ours for name, ours in HUB_NAMES.items()}
MODEL_FILES = ("hparams.json", "model.safetensors", "model.ckpt.index")  # each model has one
RUN_FILES = ("provenance.json", "best.safetensors")  # a run has one
DATA_SETS = {  # they ship with the package, in data/
    "sms": "sms_spam/SMSSpamCollection",
    "hard": "hard/messages.csv",
    "topics": "topics/messages.csv",
}
OF_THE_DESKTOP = (".DS_Store", "Thumbs.db", "desktop.ini")  # files that appear by themselves
FORMER_NAMES = {"demo": "hard"}  # of data sets; runs made before the change have them


def home() -> Path:
    """The folder that holds the downloaded models, in `weights/`.

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

    try:
        return user_cache_path("gpt2_from_scratch", appauthor=False)
    except RuntimeError:
        raise UsageError(
            "this user has no home folder for downloads and cached features. Set HOME, or "
            "GPT2_FROM_SCRATCH_HOME and GPT2_FROM_SCRATCH_CACHE."
        ) from None


def embedded(name: str) -> Path:
    """A folder that ships with the package, such as `weights/mini`."""
    in_wheel = PACKAGE / name
    return in_wheel if in_wheel.is_dir() else CHECKOUT / name


def known_name(model: str) -> str:
    """The package's name for one of Hugging Face's ("gpt2"); any other text stays as it is."""
    return HUB_NAMES.get(model, model)


def model_name(model: str | Path) -> str:
    """The name under which a model is found again: its known name, or its folder's full path."""
    return _name_of(model) or str(model_folder(model).resolve())


def _name_of(model: str | Path) -> str:
    """The known name of a model, also as a Path if there is no such folder; else empty."""
    name = known_name(str(model))
    return name if name in MODELS and (isinstance(model, str) or not model.exists()) else ""


def known_data(source: str) -> str:
    """The present name of a data set that ships with the package; any other text stays as it is."""
    return FORMER_NAMES.get(source, source)


def data_name(data: str | Path) -> str:
    """The name under which data are found again: a known name, or the file's full path."""
    name = known_data(str(data))
    return name if name in DATA_SETS else str(expanded(data).resolve())


def data_file(name: str) -> Path:
    """The file of a data set that ships with the package: "sms", "hard" or "topics"."""
    folder, file = DATA_SETS[known_data(name)].split("/")
    return embedded(f"data/{folder}") / file


def model_folder(model: str | Path) -> Path:
    """The folder of a model given as a name ("mini", "124M", "gpt2", ...) or as a path ("./mini").

    Raises CheckpointError if there is none, with the command that downloads it, and for a run.
    """
    if name := _name_of(model):
        folder = embedded("weights/mini") if name == "mini" else home() / "weights" / name
        if folder.is_dir():
            return folder
        here = f", or ./{model} for the folder here" if Path(model).is_dir() else ""
        raise CheckpointError(
            f"the {name} model is not in {folder}; get it with: {command('download', name)}{here}"
        )
    folder = expanded(model)
    if os.path.isfile(folder) and is_model(folder.parent):
        raise CheckpointError(f"{folder} is one file of a model. Give its folder, {folder.parent}.")
    if is_run(folder) or (os.path.isfile(folder) and folder.suffix == ".safetensors"):
        raise CheckpointError(
            f"{folder} is a trained classifier, not a GPT-2. Use it with predict, evaluate or "
            "train --from, or give the model that it was trained on."
        )
    if not os.path.isdir(folder):  # Path.is_dir raises OSError for some impossible names
        raise CheckpointError(
            f"{folder} is not a folder, nor one of the models {', '.join(MODELS)}."
            + did_you_mean(str(model), [*MODELS, *HUB_NAMES])
        )
    try:
        os.stat(os.path.join(folder, "."))  # which needs permission to use what is in it
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None
    return folder


def refuse_taken(folder: Path) -> None:
    """Raise UsageError unless the folder can be made or is empty: nothing is ever overwritten."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {*OF_THE_DESKTOP}:
        raise UsageError(f"{folder} exists already. Choose another --out.")


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not, and not that of a model."""
    return any(os.path.isfile(folder / name) for name in RUN_FILES) and not is_model(folder)


def is_model(path: Path) -> bool:
    """Whether a path is a model's folder or, if there is nothing there, a model's name."""
    if not os.path.exists(path):
        return known_name(str(path)) in MODELS
    return any(os.path.isfile(path / name) for name in MODEL_FILES)


def tidy(name: str) -> str:
    """The name of a file as part of a folder's name: short, and without control characters."""
    return CONTROLLING.sub("-", name[:LONGEST])


def expanded(path: str | Path) -> Path:
    """The path with `~` expanded. Raises UsageError for an unknown user, and for what is no path.

    An empty string, a NUL, and halves of characters that no file's name can hold are no path.
    """
    if not isinstance(path, str | Path):
        raise UsageError(
            f"a path must be a string or a Path, not {type(path).__name__}: {path!r:.80}"
        )
    if path == "":
        raise UsageError("a path must not be empty; the folder here is '.'")
    try:
        named = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise UsageError(f"{str(path)!a:.80} cannot be the name of a file; choose another")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}") from None
