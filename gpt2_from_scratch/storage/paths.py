"""Find the folders of models, data sets and cached features.

Each is in the package, in the checkout or in the user's cache.
"""

import os
from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError, UsageError, did_you_mean
from gpt2_from_scratch.progress import CONTROLLING, command

LONGEST = 80  # characters of a file name that are used in the name of a folder
PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
MODELS = ("mini", "124M", "355M", "774M", "1558M")  # a test compares these with `SIZES`
HUB_NAMES = {  # {name on Hugging Face's hub: our name of the same model}
    "gpt2": "124M",
    "gpt2-medium": "355M",
    "gpt2-large": "774M",
    "gpt2-xl": "1558M",
}
HUB = {ours: f"openai-community/{name}" for name, ours in HUB_NAMES.items()}
HUB_NAMES |= {full: ours for ours, full in HUB.items()}
MODEL_FILES = (  # any of them marks a model
    "hparams.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model.ckpt.index",
)
RUN_FILES = ("provenance.json", "best.safetensors")  # any of them marks a run
DATA_SETS = {  # {name: file in data/, which ships with the package}
    "sms": "sms_spam/SMSSpamCollection",
    "hard": "hard/messages.csv",
    "topics": "topics/messages.csv",
}
OF_THE_DESKTOP = (".DS_Store", "Thumbs.db", "desktop.ini")  # files that file managers create
FORMER_NAMES = {"demo": "hard"}  # {former name of a data set: present name}; for older runs


def home() -> Path:
    """Return the folder whose subfolder `weights/` contains the downloaded models.

    This is $GPT2_FROM_SCRATCH_HOME if it is set. Otherwise it is the checkout that the package runs
    from, or the user's cache if there is no checkout.
    """
    if chosen := os.environ.get("GPT2_FROM_SCRATCH_HOME"):
        return expanded(chosen)
    if (CHECKOUT / "pyproject.toml").exists() and (CHECKOUT / "weights").is_dir():
        return CHECKOUT
    return _user_cache()


def features_folder() -> Path:
    """Return the folder of cached features.

    This is $GPT2_FROM_SCRATCH_CACHE if it is set, and otherwise a folder in the user's cache.
    """
    if chosen := os.environ.get("GPT2_FROM_SCRATCH_CACHE"):
        return expanded(chosen)
    return _user_cache() / "features"


def _user_cache() -> Path:
    """Return the user's cache folder for this package.

    It is `$XDG_CACHE_HOME/gpt2_from_scratch` or `~/.cache/gpt2_from_scratch` on Linux, and the
    platform's usual folder on macOS and Windows.
    """
    from platformdirs import user_cache_path  # imported here, because most commands do not need it

    try:
        return user_cache_path("gpt2_from_scratch", appauthor=False)
    except RuntimeError:
        raise UsageError(
            "this user has no home folder for downloads and cached features. Set HOME, or "
            "GPT2_FROM_SCRATCH_HOME and GPT2_FROM_SCRATCH_CACHE."
        ) from None


def embedded(name: str) -> Path:
    """Return a folder that ships with the package, such as `weights/mini`."""
    in_wheel = PACKAGE / name
    return in_wheel if in_wheel.is_dir() else CHECKOUT / name


def known_name(model: str) -> str:
    """Return our name of a model, given Hugging Face's name, such as "gpt2".

    Any other string is returned unchanged.
    """
    return HUB_NAMES.get(model, model)


def model_name(model: str | Path) -> str:
    """Return the known name of a model, or its full path.

    This identifies the model independently of the current folder.
    """
    return _name_of(model) or str(model_folder(model).resolve())


def _name_of(model: str | Path) -> str:
    """Return the known name of a model, or an empty string.

    A Path such as Path("mini") is also a known name if no such folder exists.
    """
    name = known_name(str(model))
    return name if name in MODELS and (isinstance(model, str) or not model.exists()) else ""


def known_data(source: str) -> str:
    """Return the present name of a data set, given its former name.

    Any other string is returned unchanged.
    """
    return FORMER_NAMES.get(source, source)


def data_name(data: str | Path) -> str:
    """Return the known name of a data set, or its full path.

    This identifies the data set independently of the current folder.
    """
    name = known_data(str(data))
    return name if name in DATA_SETS else str(expanded(data).resolve())


def data_file(name: str) -> Path:
    """Return the file of a data set that ships with the package.

    The data sets are called "sms", "hard" and "topics".
    """
    folder, file = DATA_SETS[known_data(name)].split("/")
    return embedded(f"data/{folder}") / file


def model_folder(model: str | Path) -> Path:
    """Return the folder of a model, given by its name or path.

    Names are "mini", "124M", "gpt2" and so on. Raises CheckpointError if there is no such folder
    or if it is a run. If the model can be downloaded, the message contains the command.
    """
    if name := _name_of(model):
        folder = embedded("weights/mini") if name == "mini" else home() / "weights" / name
        if folder.is_dir():
            return folder
        here = f" (or use ./{model} for the folder here)" if Path(model).is_dir() else ""
        raise CheckpointError(
            f"the {name} model is not in {folder}{here}. Download it with: "
            f"{command('download', name)}"
        )
    folder = expanded(model)
    if os.path.isfile(folder) and is_model(folder.parent):
        raise CheckpointError(f"{folder} is a file of a model. Give its folder, {folder.parent}.")
    if is_run(folder) or (os.path.isfile(folder) and folder.suffix == ".safetensors"):
        raise CheckpointError(
            f"{folder} is a trained classifier, not a GPT-2. Use it with predict, evaluate or "
            "train --from, or give the model that it was trained on."
        )
    if not os.path.isdir(folder):  # Path.is_dir raises OSError for some impossible names
        raise CheckpointError(
            f"{folder} is not a folder and not one of the models {', '.join(MODELS)}."
            + did_you_mean(str(model), [*MODELS, *HUB_NAMES])
        )
    try:
        os.stat(os.path.join(folder, "."))  # needs permission to access files in the folder
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None
    return folder


def refuse_taken(folder: Path) -> None:
    """Check that a new run can be written to a folder.

    Raises UsageError if the folder exists and is not empty, because nothing is ever overwritten.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {*OF_THE_DESKTOP}:
        raise UsageError(f"{folder} exists already. Choose another --out.")


def is_run(folder: Path) -> bool:
    """Return whether a folder belongs to a run and not to a model.

    The run may be unfinished.
    """
    return any(os.path.isfile(folder / name) for name in RUN_FILES) and not is_model(folder)


def is_model(path: Path) -> bool:
    """Return whether a path is a model folder or a model's name.

    The path is taken as a name only if no file or folder exists there.
    """
    if not os.path.exists(path):
        return known_name(str(path)) in MODELS
    return any(os.path.isfile(path / name) for name in MODEL_FILES)


def tidy(name: str) -> str:
    """Shorten a file name, and replace control characters in it with "-".

    The result can be part of a folder's name.
    """
    return CONTROLLING.sub("-", name[:LONGEST])


def expanded(path: str | Path) -> Path:
    """Expand `~` in a path.

    Raises UsageError for an unknown user and for a value that cannot be a path, such as an empty
    string or one that contains NUL or a lone surrogate.
    """
    if not isinstance(path, str | Path):
        raise UsageError(
            f"a path must be a string or a Path, not {type(path).__name__}: {path!r:.80}"
        )
    if path == "":
        raise UsageError("a path must not be empty; use '.' for the current folder")
    try:
        named = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise UsageError(f"{str(path)!a:.80} cannot be the name of a file; choose another name")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}") from None
