"""Files by name: OpenAI's GPT-2 in four sizes and the UCI SMS Spam Collection, where from and how
checked.

Of the 124M model five SHA-256 are known and the data file's MD5. OpenAI never published the data
files' SHA-256, and it is not needed: `model.ckpt.index` holds a CRC-32C of every tensor, so the
pinned index vouches for the data. For the other sizes the index must be whole by its own checksums
and name exactly the arrays of that size. OpenAI's `checkpoint` and `model.ckpt.meta` are not
needed.
"""

import hashlib
import logging
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError, DataError, DownloadError, UsageError
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.fetch import alone_at, fetch, set_aside, storing
from gpt2_from_scratch.gpt2.openai_checkpoint import check_tensors, read_index
from gpt2_from_scratch.gpt2.pinned import PinnedFile
from gpt2_from_scratch.storage.files import atomic_path, read_json
from gpt2_from_scratch.storage.paths import home, sms_collection

log = logging.getLogger(__name__)

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
MIRROR = "https://f001.backblazeb2.com/file/LLMs-from-scratch"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"

# {model: bytes of the index (None: not known), bytes of the data}; the last two follow from the
# shapes
BYTES = {
    "124M": (5_215, 497_759_232),
    "355M": (10_399, 1_419_292_672),
    "774M": (None, 3_096_120_320),
    "1558M": (None, 6_230_444_800),
}
INDEX_SHA256 = {"124M": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687"}
DATA_MD5 = {"124M": "f48b9cf1a525a603be52258f69bf9162"}  # as OpenAI's server told one project
VOCABULARY = {  # the same in all sizes; tiktoken pins them too
    "vocab.bpe": (456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "encoder.json": (1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
}
SMS_ZIP = PinnedFile(
    "sms+spam+collection.zip",
    (
        "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        f"{MIRROR}/sms%2Bspam%2Bcollection.zip",
    ),
)
SMS = PinnedFile(
    "SMSSpamCollection",
    size=477_907,
    sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
)


def model_files(name: str) -> list[PinnedFile]:
    """The files of one of OpenAI's models, in the order in which they are fetched."""
    index_size, data_size = BYTES[name]
    files = [
        PinnedFile("hparams.json"),  # copies differ in line ends: checked by what they say
        *(PinnedFile(file, (), *known) for file, known in VOCABULARY.items()),
        PinnedFile(INDEX, (), index_size, INDEX_SHA256.get(name)),
        PinnedFile(DATA, (), data_size, md5=DATA_MD5.get(name)),
    ]
    bases = (f"{OPENAI}/{name}", f"{MIRROR}/gpt2/{name}")
    return [replace(file, urls=tuple(f"{base}/{file.name}" for base in bases)) for file in files]


def download_model(name: str, folder: Path | None = None) -> Path:
    """Bring "124M", "355M", "774M" or "1558M" to `folder`, by default `weights/<name>` at home.

    Files that are there are checked and not fetched again. `say` is told of each file; by default
    it prints to standard error. Raises DownloadError that says how to get a file by other means,
    and ResourceError when it cannot be written.
    """
    if name not in SIZES:
        raise UsageError(f"there is no model {name!r} to download, only {', '.join(SIZES)}")
    folder = folder or home() / "weights" / name
    checks: dict[str, Callable[[Path], None]] = {
        "hparams.json": partial(_check_hparams, SIZES[name]),
        INDEX: partial(_check_index, SIZES[name]),
        DATA: partial(_check_data, folder),
    }
    for file in model_files(name):
        check = checks.get(file.name, lambda path: None)
        path = fetch(file, folder / file.name, check)
        log.info(f"{path}: {path.stat().st_size:,} bytes, checked")
    return folder


def download_sms_spam(folder: Path | None = None) -> Path:
    """Bring the SMS Spam Collection to `folder`, by default `data/sms_spam` at home; returns the
    file.

    Raises DownloadError that says how to get it by other means, and ResourceError when it cannot
    be written.
    """
    target = (folder or sms_collection().parent) / SMS.name
    with storing(target):
        if _is_sms(target):
            return target
        with alone_at(target):
            if not _is_sms(target):  # another process may have brought it meanwhile
                _fetch_sms(target)
    return target


def openai_arrays(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every array in OpenAI's checkpoint of this size."""
    C = config.n_embd
    block = {
        "ln_1/g": (C,),
        "ln_1/b": (C,),
        "attn/c_attn/w": (1, C, 3 * C),
        "attn/c_attn/b": (3 * C,),
        "attn/c_proj/w": (1, C, C),
        "attn/c_proj/b": (C,),
        "ln_2/g": (C,),
        "ln_2/b": (C,),
        "mlp/c_fc/w": (1, C, 4 * C),
        "mlp/c_fc/b": (4 * C,),
        "mlp/c_proj/w": (1, 4 * C, C),
        "mlp/c_proj/b": (C,),
    }
    whole = {"wte": (config.n_vocab, C), "wpe": (config.n_ctx, C), "ln_f/g": (C,), "ln_f/b": (C,)}
    blocks = {
        f"model/h{n}/{name}": shape for n in range(config.n_layer) for name, shape in block.items()
    }
    return {f"model/{name}": shape for name, shape in whole.items()} | blocks


# Each check raises a GPT2Error for a file that does not hold what it should.


def _check_hparams(config: GPT2Config, path: Path) -> None:
    found = read_json(path)
    if found != asdict(config):
        raise CheckpointError(f"{path} says {found!r:.200}, expected {asdict(config)}")


def _check_index(config: GPT2Config, path: Path) -> None:
    found = {name: entry.shape for name, entry in read_index(path).items()}
    expected = openai_arrays(config)
    names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
    if names:
        first = names[0]
        raise CheckpointError(
            f"{path} differs in {len(names)} arrays from a GPT-2 of {config}; the first, {first}, "
            f"has the shape {found.get(first)}, expected {expected.get(first)}"
        )


def _check_data(folder: Path, path: Path) -> None:
    damaged = [entry.name for entry, ok, _, _ in check_tensors(folder, path) if not ok]
    if damaged:
        raise CheckpointError(
            f"{path} has {len(damaged)} damaged tensors: {', '.join(damaged[:5])}"
        )


def _is_sms(path: Path) -> bool:
    return path.is_file() and not SMS.difference(path)


def _fetch_sms(target: Path) -> None:
    try:
        archive = fetch(SMS_ZIP, target.with_name(SMS_ZIP.name), _check_sms)
    except DownloadError as error:
        raise DownloadError(
            f"{error}\n  Or unpack {SMS.name} from it to {target} ({SMS.facts()})"
        ) from None
    set_aside(target)
    with atomic_path(target) as temporary:
        temporary.write_bytes(_read_sms(archive))
    archive.unlink()


def _check_sms(path: Path) -> None:
    _read_sms(path)


def _read_sms(archive: Path) -> bytes:
    """The collection out of its zip: that one member by its exact name, nothing is extracted."""
    assert SMS.size is not None
    try:
        with zipfile.ZipFile(archive) as file, file.open(SMS.name) as member:
            raw = member.read(SMS.size + 1)  # however much it claims or unfolds to
    except Exception as error:  # zipfile has no common error: BadZipFile, KeyError, zlib.error, ...
        raise DataError(f"{archive} has no readable {SMS.name}: {error}") from None
    digits = hashlib.sha256(raw).hexdigest()
    if len(raw) != SMS.size or digits != SMS.sha256:
        raise DataError(
            f"{SMS.name} in {archive} has at least {len(raw):,} bytes and sha256 {digits}, "
            f"expected {SMS.facts()}"
        )
    return raw
