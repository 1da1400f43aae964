"""Write what `make gpu` needs in addition to a checkout, PyTorch and numpy: the corpus and a few packages.

    python benchmarks/gpu/pack.py --corpus ../shared/corpus --out build/gpu-pack    # make gpu-pack

`data.tar.xz` holds the corpus without the lines that occur in --exclude, the vocabularies, the
settings of the next miniature, and the SMS collection. Registers that are large are cut, all to the
same size, until everything has at most --largest megabytes. Held-out documents are never cut.
"""

import argparse
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import copy_vocabulary, note, vocabulary_folder
from overlap import texts_of

from gpt2_from_scratch import Split, lecture_split, load_messages, write_bpe
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.gpt2.corpus import (
    CorpusFile,
    bpe_sample,
    is_held_out,
    read_corpus,
    train_bpe,
)
from gpt2_from_scratch.gpt2.overlap import Overlap
from gpt2_from_scratch.storage.paths import CHECKOUT, data_file

NEXT = {  # PretrainConfig's defaults are those of weights/mini
    "n_vocab": 8192,
    "n_ctx": 512,
    "n_embd": 320,
    "n_head": 5,
    "n_layer": 8,
    "tokens": 98304,
    "decay": 0.3,
}
SMALL = {"n_vocab": 4096, "n_ctx": 32, "n_embd": 32, "n_head": 2, "n_layer": 1}
SMALL |= {"tokens": 128, "row": 16, "long_every": 2}
PACKAGES = ["tiktoken", "regex", "safetensors", "tqdm", "lazy-loader", "filelock"]
PACKAGES += ["google-crc32c", "tabulate"]
HUGGING_FACE = ["transformers", "tokenizers", "huggingface-hub", "hf-xet", "pyyaml", "packaging"]
HUGGING_FACE += [
    "typer",
    "click",
    "rich",
    "shellingham",
    "annotated-doc",
    "markdown-it-py",
    "mdurl",
]
HUGGING_FACE += ["pygments", "httpx2", "httpcore2", "h11", "anyio", "idna", "truststore", "fsspec"]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]


def cut(files: Sequence[CorpusFile], characters: int) -> list[CorpusFile]:
    """Cut the training documents of large registers so that all documents together have this many characters.

    Every register keeps at most the same size; which documents stay follows from their text alone.
    """
    sizes: dict[str, int] = {}
    for file in files:
        sizes[file.register] = sizes.get(file.register, 0) + sum(map(len, file.train))
    most, left = 0, characters
    for number, size in enumerate(sorted(sizes.values())):  # the small ones stay whole
        most = left // (len(sizes) - number)
        left -= min(size, most)
    kept = []
    for file in files:
        share = min(1.0, most / max(1, sizes[file.register]))
        train = [d for d in file.train if zlib.adler32(d.encode()) % 10_000 < 10_000 * share]
        kept.append(CorpusFile(file.name, file.register, train, file.held_out))
    return kept


def write_corpus(files: Sequence[CorpusFile], folder: Path) -> None:
    """Write files of documents and the table of registers.

    A document that lost a line may now look held out (`is_held_out`), and would be scored: it is
    left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["file\tregister"]
    for file in files:
        documents = [*(d for d in file.train if not is_held_out(d)), *file.held_out]
        (folder / file.name).write_text("\n\n".join(documents) + "\n", "utf-8")
        rows.append(f"{file.name}\t{file.register}")
    (folder / "MANIFEST.tsv").write_text("\n".join(rows) + "\n", "utf-8")


def write_archive(folder: Path, path: Path) -> int:
    """Write a folder's files as .tar.xz; returns its size in bytes."""
    with tarfile.open(path, "w:xz", preset=lzma.PRESET_DEFAULT) as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                info = tarfile.TarInfo(str(file.relative_to(folder)))
                info.size = file.stat().st_size
                tar.addfile(info, io.BytesIO(file.read_bytes()))
    return path.stat().st_size


def download_wheels(packages: Sequence[str], python: str, folder: Path) -> int:
    """Download wheels for Linux on x86-64 and a version of Python; returns their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    command += [word for name in PLATFORMS for word in ("--platform", name)]
    command += ["--constraint", str(CHECKOUT / "constraints.txt"), "--dest", str(folder)]
    subprocess.run([*command, *packages], check=True)
    return sum(wheel.stat().st_size for wheel in folder.iterdir())


def small_files() -> list[CorpusFile]:
    """The messages and texts that come with the package, as a corpus of two registers."""
    files = []
    for name, register in (("hard", "conversation"), ("topics", "general")):
        texts = [message.text.replace("\n", " ") for message in load_messages(name)][:200]
        train = [text for text in texts if not is_held_out(text)]
        aside = [f"held out {n}" for n in range(5000) if is_held_out(f"held out {n}")]
        files.append(CorpusFile(f"{name}.txt", register, train, aside))
    return files


def write_data(args: argparse.Namespace, data: Path) -> list[CorpusFile]:
    """Write everything but the corpus, and read that."""
    vocabularies = {name: data / name for name in ("openai", "next")}
    for folder in vocabularies.values():
        folder.mkdir()
    mini = CHECKOUT / "weights" / "mini"
    if args.small:
        messages = load_messages("hard")[:60]
        split, texts = Split(messages[:40], messages[40:50], messages[50:]), messages
        files, config = small_files(), PretrainConfig(**SMALL)
    else:
        split, texts = lecture_split(data_file("sms")), load_messages("sms")
        config = PretrainConfig(**NEXT)
        excluded = Overlap(text for path in args.exclude for text in texts_of(path))
        files = list(read_corpus(args.corpus, excluded))
    copy_vocabulary(mini if args.small else vocabulary_folder(), vocabularies["openai"])
    if args.small or args.vocabulary:
        copy_vocabulary(mini if args.small else args.vocabulary, vocabularies["next"])
    else:
        note(f"learning {config.n_vocab} tokens")
        merges = train_bpe(bpe_sample(args.corpus, config, excluded), config.n_vocab)
        write_bpe(vocabularies["next"], merges)
    settings = SMALL if args.small else NEXT
    (data / "pretraining.json").write_text(json.dumps(settings, indent=1) + "\n")
    parts = [[(m.text, m.label) for m in part] for part in (split.train, split.val, split.test)]
    (data / "lecture.json").write_text(json.dumps(parts))
    (data / "messages.json").write_text(json.dumps([message.text for message in texts]))
    return files


def main() -> None:
    """Download wheels, then write the data, cut until both fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=CHECKOUT.parent / "shared" / "corpus")
    parser.add_argument(
        "--exclude", type=Path, nargs="*", default=[], help="data sets to be scored"
    )
    parser.add_argument("--vocabulary", type=Path, help="a model with the next one's vocabulary")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument(
        "--hugging-face", action="store_true", help="take transformers too, about 25 MB"
    )
    parser.add_argument("--largest", type=float, default=60, help="megabytes in all; default: 60")
    parser.add_argument("--small", action="store_true", help="tiny, and without wheels")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    most = int(1e6 * args.largest)
    if not args.small:
        packages = PACKAGES + (HUGGING_FACE if args.hugging_face else [])
        most -= download_wheels(packages, args.python, args.out / "wheels")
    with TemporaryDirectory() as temporary:
        data = Path(temporary)
        files = write_data(args, data)
        characters = sum(len(d) for file in files for d in file.train)
        while True:
            write_corpus(files, data / "corpus")
            size = write_archive(data, args.out / "data.tar.xz")
            note(f"{characters:,} characters of training text: {size:,} bytes")
            if size <= most:
                break
            characters = int(0.97 * characters * most / size)
            files = cut(files, characters)
    for file in sorted(path for path in args.out.rglob("*") if path.is_file()):
        print(f"{file.stat().st_size:>12,} {file.relative_to(args.out)}")


if __name__ == "__main__":
    main()
