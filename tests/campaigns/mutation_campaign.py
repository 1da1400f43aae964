"""Change files at random and read them: each must be refused by name, or give the same content.

No change to a file with a checksum may go unnoticed (the index, classifiers, states, shards of
features, files in a manifest). For the rest (weights from elsewhere, vocabularies, sizes), only a
CheckpointError is allowed, without delay and in bounded memory.
"""

import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import campaign
import torch
from tiny import write_checkpoint

from gpt2_from_scratch.classifier.saving import Description, read_classifier, write_classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.openai_checkpoint import check_tensors, read_index
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2, meta_gpt2, save_gpt2, stored_parameters
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import check_listed, read_manifest, write_manifest
from gpt2_from_scratch.storage.states import FORMAT, save_state
from gpt2_from_scratch.storage.tensors import read_tensors

PATIENCE = 20  # after this many seconds, reading counts as hanging
MEMORY = 4 << 30  # additional bytes of address space
SIZES = {"n_vocab": 277, "n_ctx": 8, "n_embd": 4, "n_head": 1, "n_layer": 1}
Reader = Callable[[], object]


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """Make one to four changes: flip, change, cut, double, move or insert bits and bytes."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        start = draw.randrange(len(raw)) if raw else 0
        end = min(len(raw), start + draw.choice([1, 2, 4, 8, 64]))
        piece = raw[start:end]
        kind = draw.randrange(8)
        if kind <= 2 and piece:
            place = draw.randrange(len(piece))
            flipped = bytes([piece[place] ^ 1 << draw.randrange(8)])
            piece = piece[:place] + flipped + piece[place + 1 :]
        elif kind == 3:
            piece = draw.choice(
                [b"\0", b"\xff", b'"', b"{", b"}", b"9" * 20, b"NaN", b"-1", b"\x80"]
            )
        elif kind == 4:
            piece = draw.randbytes(len(piece))
        elif kind == 5:
            piece = b""
        elif kind == 6:
            piece = piece * draw.choice([2, 3])
        else:
            end = len(raw) if draw.random() < 0.3 else end  # sometimes cut off the rest
            piece = b"" if end == len(raw) else piece[::-1]
        raw = raw[:start] + piece + raw[end:]
    return raw


def prepare(folder: Path) -> dict[str, tuple[int, Path, Reader, bool]]:
    """{kind: (weight, file to change, function that reads it, whether it has a checksum)}."""
    openai, hugging_face = write_checkpoint(folder / "openai", 3, **SIZES), folder / "hf"
    hugging_face.mkdir()
    save_gpt2(load_gpt2(openai), hugging_face)
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copy(openai / name, hugging_face / name)
    run = folder / "run"
    tensors = {"head.weight": torch.randn(2, 4), "head.bias": torch.randn(2)}
    write_classifier(
        run / "best.safetensors",
        Description("mini", "0" * 64, (HeadConfig(labels=("a", "b")),)),
        tensors,
    )
    write_manifest(run, ["best.safetensors"])
    state = save_state(folder, 7, tensors, {"settings": {"lr": 0.1}, "progress": {"step": 7}})
    store = FeatureStore(folder / "cache")
    keys = {b"%032d" % n: torch.randn(5, 4) for n in range(9)}
    shard = store.save("space", keys).path

    def classifier() -> object:
        description, saved, _ = read_classifier(run / "best.safetensors")
        return asdict(description), {name: value.tolist() for name, value in saved.items()}

    def listed() -> object:
        check_listed(run / "best.safetensors")
        return classifier()

    def features() -> object:
        found = store.find("space", keys)
        if not found:
            raise CheckpointError("none, or damaged and removed")
        return {key: value.states(key).tolist() for value in found for key in value.places}

    in_use = store.find("space", keys)

    def features_in_use() -> object:
        try:
            return {key: shard.states(key).tolist() for shard in in_use for key in shard.places}
        except (OSError, ValueError) as error:  # features are then computed again
            raise CheckpointError(str(error)) from None

    def data() -> object:
        if not all(ok for _, ok, _, _ in check_tensors(openai)):
            raise CheckpointError("damaged")
        return True

    def weights() -> object:
        return [
            name
            for name, _ in stored_parameters(hugging_face, meta_gpt2(read_config(hugging_face)))
        ]

    return {
        "index": (
            30,
            openai / "model.ckpt.index",
            lambda: read_index(openai / "model.ckpt.index"),
            True,
        ),
        "data": (5, openai / "model.ckpt.data-00000-of-00001", data, True),
        "classifier": (25, run / "best.safetensors", classifier, True),
        "classifier in a manifest": (5, run / "best.safetensors", listed, True),
        "state": (15, state, lambda: str(read_tensors(state, FORMAT)), True),
        "features": (4, shard, features, True),
        "features in use": (4, shard, features_in_use, True),
        "manifest": (8, run / "MANIFEST.json", lambda: read_manifest(run), False),
        "weights": (5, hugging_face / "model.safetensors", weights, False),
        "hparams.json": (1, openai / "hparams.json", lambda: read_config(openai), False),
        "vocab.bpe": (1, openai / "vocab.bpe", lambda: Tokenizer(openai).sha256, False),
        "encoder.json": (1, openai / "encoder.json", lambda: Tokenizer(openai).sha256, True),
    }


def try_one(path: Path, raw: bytes, read: Reader) -> tuple[str, object]:
    """("read", result) or ("refused", ""); AssertionError for any other outcome."""
    path.write_bytes(raw)
    signal.alarm(PATIENCE)
    try:
        return "read", read()
    except CheckpointError:
        return "refused", ""
    except BaseException as error:  # a panic in a Rust library is not an Exception
        raise AssertionError(f"{path.name}: {error!r} for {raw!r}") from error
    finally:
        signal.alarm(0)


def mutations(count: int, seed: int, folder: Path) -> Counter:
    """Read `count` changed files."""
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    draw, kinds = random.Random(seed), prepare(folder)
    seen = Counter({"silently different": 0})
    originals = {}
    for kind, (_, path, read, _) in kinds.items():
        outcome, found = try_one(path, path.read_bytes(), read)
        assert outcome == "read", f"{kind} is refused as it is"
        originals[kind] = path.read_bytes(), found
    shares = [share for share, *_ in kinds.values()]
    progress = campaign.Progress(count, "mutations")
    for number in range(count):
        (kind,) = draw.choices(list(kinds), shares)
        _, path, read, sure = kinds[kind]
        raw, expected = originals[kind]
        changed = mutated(raw, draw)
        outcome, found = try_one(path, changed, read)
        path.write_bytes(raw)
        seen[f"{kind}: {outcome}"] += 1
        if outcome == "read" and found != expected and sure:
            raise AssertionError(f"{kind}: {changed!r} was read as if it were whole")
        seen["read, and equal"] += outcome == "read" and found == expected
        progress(number + 1)
    seen["mutations"] = count
    return seen


if __name__ == "__main__":
    campaign.main(mutations)
