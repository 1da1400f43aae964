"""Features on disk survive kills, damage, full disks and other processes.

Otherwise they are computed again.
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from pytest import CaptureFixture, MonkeyPatch
from said import listen

from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.speed import feature_cache, feature_store
from gpt2_from_scratch.speed.feature_cache import Features, space_name, text_key
from gpt2_from_scratch.speed.feature_store import FeatureStore, Shard
from gpt2_from_scratch.speed.frozen_trunk import Trunk
from gpt2_from_scratch.storage import files as storage_files
from gpt2_from_scratch.storage import tensors as storage_tensors
from gpt2_from_scratch.storage.files import atomic_path

TEXTS = [[5, 6, 7, 8], [5, 6], [9], [200, 201, 3], [5, 6], [30] * 12]
LONG = [[n, 276 - n, *range(n, n + 18)] for n in range(250)]  # 640 KB of features
NO_TRUNK = SimpleNamespace(
    depth=1,
    device=torch.device("cpu"),
    wte=torch.empty(0, 768),
    run=lambda *_, **options: [],
    sha256=lambda: "0" * 64,
)
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs forks, signals and rights of POSIX")


def made(numbers: Iterable[int], dtype: torch.dtype = torch.float32, tokens: int = 1) -> dict:
    """Make features (T, 8) of some texts.

    They include special values, and are the same in every process.
    """
    texts = {}
    for n in numbers:
        draw = torch.Generator().manual_seed(n)
        texts[b"%032d" % n] = states = torch.randn(tokens + n % 5, 8, generator=draw).to(dtype)
        states[0, :3] = torch.tensor([1e-39, -3e38, -0.0])
    return texts


def found_in(shards: Iterable[Shard], texts: dict[bytes, torch.Tensor]) -> set[bytes]:
    """Return which texts the shards contain.

    This checks that their features are bit-identical.
    """
    pairs = [(k, shard.states(k)) for shard in shards for k in shard.places.keys() & texts.keys()]
    for k, states in pairs:
        assert states.dtype == texts[k].dtype and states.shape == texts[k].shape
        assert torch.equal(states.view(torch.uint8), texts[k].view(torch.uint8))
    return {k for k, _ in pairs}


def check(found: Features, model: GPT2, texts: list[list[int]]) -> None:
    """Compare features with the output of the blocks for single texts.

    If there are many texts, only a sample is compared.
    """
    x, lengths = found.batch(range(len(texts)))
    assert lengths.tolist() == [len(text) for text in texts]
    with torch.no_grad():
        for row, text in [*zip(x, texts, strict=True)][:: 1 + len(texts) // 40]:
            expected = model.blocks[1](model.blocks[0](model.embed(torch.tensor([text]))))
            torch.testing.assert_close(row[: len(text)], expected[0], atol=1e-4, rtol=1e-5)


def features(model: GPT2, folder: Path, texts: list = TEXTS, limit: float | None = None):
    """Compute features with a store in this folder, and check them."""
    found = Features(Trunk(model, 2), texts, store=FeatureStore(folder, limit))
    check(found, model, texts)
    return found


def files(folder: Path, ending: str = ".safetensors") -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix == ending)


def elsewhere(function: Callable, *arguments: object) -> str:
    """Run a function of this file in another process.

    Returns its output.
    """
    code = (
        f"import sys, importlib.util as u; s = u.spec_from_file_location('t', {__file__!r}); "
        f"t = u.module_from_spec(s); s.loader.exec_module(t); t.{function.__name__}(*sys.argv[1:])"
    )
    command, here = [sys.executable, "-c", code, *map(str, arguments)], Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_found_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, first, second = tmp_path / "not yet" / "there", made([1, 2], dtype), made([3], dtype)
    saving, both = FeatureStore(folder), first | second
    for texts in (first, second, first):
        assert found_in([saving.save("space", texts)], texts) == texts.keys()
    saving.save("other", made([1]))
    assert len(files(folder)) == 3  # a shard that is saved twice exists once
    # a dangling link behaves like a file that was removed after it was listed
    (folder / "space" / f"{0:064}.safetensors").symlink_to("nowhere")
    for store in (saving, FeatureStore(folder)):
        assert found_in(store.find("space", both), both) == both.keys()
        assert found_in(store.find("space", second), both) == second.keys()
        assert store.find("space", made([4])) == store.find("third", first) == []
        assert found_in(store.find("other", first), made([1])) == made([1]).keys()


def test_the_command(tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture) -> None:
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", str(tmp_path))
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE_GB", "3")
    store = FeatureStore()
    for space, n, second in (("a", 5, 3e8), ("b", 0, 1e8), ("b", 10, 2e8)):
        path = store.save(space, made([n], tokens=50_000)).path
        os.utime(path, (second, second))
    size = path.stat().st_size
    assert store.spaces() == [("a", 1, size, 3e8), ("b", 2, 2 * size, 2e8)]
    (tmp_path / "theirs").touch()
    assert main(["cache"]) == main(["cache", "--clear"]) == 0
    a, b, total, cleared = capsys.readouterr().out.splitlines()
    assert a.split()[:7] == "1.6 MB 1 files last used 1979-07-05".split() and a.endswith(" a")
    assert b.split()[:4] == "3.2 MB 2 files".split() and b.endswith(" b")
    assert total.strip() == f"4.8 MB of at most 3.0 GB in {tmp_path}"
    assert cleared == f"4.8 MB removed from {tmp_path}"
    assert store.spaces() == [] and [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_damaged_shards_are_computed_again(tiny_gpt2: GPT2, tmp_path: Path) -> None:
    features(tiny_gpt2, tmp_path)
    (path,) = files(tmp_path)
    raw, save = path.read_bytes(), safetensors.torch.save
    # other tensors, and a shard without a checksum
    others = save({"x": torch.zeros(3)}), save(safetensors.torch.load(raw))
    for damaged in (raw[:-1], raw[:100], b"", random.Random(1).randbytes(1000), *others):
        path.write_bytes(damaged)
        lines = listen()
        features(tiny_gpt2, tmp_path)
        assert len(lines) == 1 and "damaged" in lines[0] and str(path) in lines[0]
        assert path.read_bytes() == raw


@pytest.mark.parametrize("part", ["states", "keys", "ends", "checksums"])
def test_a_flipped_bit_never_gives_wrong_features(tmp_path: Path, part: str) -> None:
    lines, texts = listen(), made(range(3))
    store = FeatureStore(tmp_path)
    raw = (path := store.save("space", texts).path).read_bytes()
    head = 8 + int.from_bytes(raw[:8], "little")
    for place in range(*(head + n for n in json.loads(raw[8:head])[part]["data_offsets"])):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        found = found_in(store.find("space", texts), texts)  # fails if any features are wrong
        assert part == "keys" or (not found and not path.exists() and lines.pop())


def is_killed(folder: str) -> None:
    """Fork processes that are killed while they save a second shard."""

    def killed(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_written(tensors: dict, path: Path, metadata: dict) -> None:
        safetensors.torch.save_file(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        killed()

    points = [(storage_tensors, "save_file", half_written), (storage_files, "_sync", killed)]
    for n, (module, name, function) in enumerate(
        [*points, (storage_files.shutil, "rmtree", killed)]
    ):
        if (child := os.fork()) == 0:
            store = FeatureStore(Path(folder))
            store.save("space", made([10 * n]))
            setattr(module, name, function)
            store.save("space", made([10 * n + 1]))
            os._exit(1)  # not reached
        assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.slow
@POSIX
def test_kill_9_leaves_complete_shards_and_temporary_files(tmp_path: Path) -> None:
    """The process is killed while a file is written, before it is renamed, and afterwards."""
    assert elsewhere(is_killed, tmp_path) == ""
    left, whole = files(tmp_path, ".tmp"), files(tmp_path)
    store = FeatureStore(tmp_path)
    shards = store.find("space", {b"%032d" % n for n in range(100)})
    assert [shard.path for shard in shards] == whole and len(left) == 3
    assert found_in(shards, made([0, 10, 20, 21])) == made([0, 10, 20, 21]).keys()
    for folder in left[1:]:
        for path in (*folder.iterdir(), folder):
            os.utime(path, (time.time() - 7200,) * 2)
    assert sorted([*whole, store.save("space", made([999])).path]) == files(tmp_path)
    assert files(tmp_path, ".tmp") == left[:1]  # it is recent, so a process might be writing it


def shares(folder: str) -> None:
    """Run by two processes that alternately find and save the same texts."""
    child = os.fork()
    draw = random.Random(child == 0)
    for first in draw.choices(range(5), k=30):
        texts, store = made(range(first, first + 4)), FeatureStore(Path(folder))
        found_in(store.find("space", texts), texts)
        assert found_in([store.save("space", texts)], texts) == texts.keys()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
@POSIX
def test_two_processes_share_a_store(tmp_path: Path) -> None:
    assert elsewhere(shares, tmp_path) == ""
    assert len(files(tmp_path)) == 5 and not files(tmp_path, ".tmp")
    texts = made(range(8))
    assert found_in(FeatureStore(tmp_path).find("space", texts), texts) == texts.keys()


def test_shards_that_another_process_removes(
    tiny_gpt2: GPT2, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "MEMORY", 0)  # reads the file for each text anew
    found = features(tiny_gpt2, tmp_path)
    assert FeatureStore(tmp_path).clear() > 0
    check(found, tiny_gpt2, TEXTS)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-300] ^= 4  # in the states
    path.write_bytes(raw)


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "theirs").mkdir(parents=True)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # the full path is too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def a_link(path: Path) -> None:
    path.rename(path.with_name("theirs"))
    path.symlink_to("theirs")


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def crafted(path: Path, **change: torch.Tensor) -> None:
    """Replace tensors of a shard, and give it correct checksums."""
    tensors = safetensors.torch.load(path.read_bytes()) | change
    if len(tensors["checksums"]):
        bounds = [0, *tensors["ends"].tolist()]
        rows = [tensors["states"][slice(*pair)] for pair in pairwise(bounds)]
        tensors["checksums"] = torch.tensor([feature_store._crc32c(some) for some in rows])
    metadata = {"crc32c": feature_store._index_checksum(tensors)}
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def states_of(path: Path) -> torch.Tensor:
    return safetensors.torch.load(path.read_bytes())["states"]


HARMS: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "shortened": lambda path: os.truncate(path, path.stat().st_size - 1000),
    "empty": lambda path: os.truncate(path, 0),
    "removed": Path.unlink,
    "its folder removed": lambda path: shutil.rmtree(path.parent),
    "a folder": a_folder,
    "a pipe": a_pipe,
    "a socket": a_socket,
    "a link": a_link,
    "a link to itself": a_link_to_itself,
    "half precision": lambda path: crafted(path, states=states_of(path).bfloat16()),
    "narrow": lambda path: crafted(path, states=states_of(path)[:, :16].contiguous()),
    "wide": lambda path: crafted(path, states=states_of(path).repeat(1, 2)),
    "one dimension": lambda path: crafted(path, states=states_of(path).flatten()),
    "NaN": lambda path: crafted(path, states=states_of(path) * torch.nan),
    "other rows": lambda path: crafted(path, ends=torch.tensor([1, 2, 4, 20, 24])),
    "ends that fall": lambda path: crafted(path, ends=torch.tensor([4, 2, 7, 19, 22])),
    "negative ends": lambda path: crafted(path, ends=torch.tensor([-1, 6, 7, 10, 22])),
    "no texts": lambda path: crafted(path, ends=torch.tensor([]).long()),
    "one text often": lambda path: crafted(path, keys=torch.zeros(5, 32).byte()),
    "narrow keys": lambda path: crafted(path, keys=torch.zeros(5, 31).byte()),
    "nested JSON": lambda path: path.write_bytes((n := 99999).to_bytes(8, "little") + b"[" * n),
    "a large header": lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"),
    "JSON of another kind": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
}


@POSIX
@pytest.mark.parametrize("harm", HARMS)
def test_whatever_happens_to_a_shard_its_texts_are_computed_again(
    tiny_gpt2: GPT2, tmp_path: Path, monkeypatch: MonkeyPatch, harm: str
) -> None:
    """This holds for a shard that is in use, and between two runs. A log line reports it."""
    monkeypatch.setattr(feature_cache, "MEMORY", 0)  # reads the file for each text anew
    for in_use in (True, False):
        folder = tmp_path / str(in_use)
        found = features(tiny_gpt2, folder)
        expected = found.batch(range(len(TEXTS)))[0]
        (path,) = files(folder)
        HARMS[harm](path)
        lines = listen(logging.DEBUG)
        if not in_use:
            found = features(tiny_gpt2, folder)
        assert torch.equal(found.batch(range(len(TEXTS)))[0], expected)
        assert in_use or "removed" in harm or (len(lines) == 1 and str(path) in lines[0])
        lines.clear()
        assert torch.equal(features(tiny_gpt2, folder).batch(range(6))[0], expected)
        assert in_use or harm == "a folder" or "5 distinct texts from the cache" in lines.pop()
    for theirs in ("a folder", "a link"):  # these are not removed, because we did not create them
        assert harm != theirs or len([*tmp_path.glob("*/*/theirs"), *tmp_path.glob("*/*/*/theirs")])


@pytest.mark.slow
def test_a_flipped_bit_in_a_shard_in_use_is_noticed_and_the_shard_replaced(
    tiny_gpt2: GPT2, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "MEMORY", 0)
    found = features(tiny_gpt2, tmp_path, LONG)
    (path,) = files(tmp_path)
    whole, expected, lines = path.read_bytes(), found.batch(range(250))[0], listen()
    start = 8 + int.from_bytes(whole[:8], "little")
    size = json.loads(whole[8:start])["states"]["data_offsets"][1]
    for place in random.Random(1).sample(range(start, start + size), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert torch.equal(found.batch(range(250))[0], expected)
        assert "was changed" in lines.pop(0) and path.read_bytes() == whole


def test_a_shard_that_changes_before_it_is_loaded_into_memory(
    tiny_gpt2: GPT2, tmp_path: Path, monkeypatch
) -> None:
    features(tiny_gpt2, tmp_path)
    (path,) = files(tmp_path)
    find = FeatureStore.find

    def then_changed(store: FeatureStore, *given: object) -> list[Shard]:
        found = find(store, *given)
        flip(path)
        return found

    monkeypatch.setattr(FeatureStore, "find", then_changed)
    lines = listen()
    features(tiny_gpt2, tmp_path)
    assert any(str(path) in line and "changed" in line for line in lines)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    """A file system of 512 KB at tmp_path."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes Linux and root")
    yield
    subprocess.run(["umount", "-l", tmp_path], check=True)  # -l, because a file may still be open


NO_ROOM = [(1e9, None, "less than 1 GB"), (-1e9, None, "No space left on device")]
NO_ROOM += [(0, 300e3, "GPT2_FROM_SCRATCH_CACHE_GB")]


@pytest.mark.slow
@pytest.mark.parametrize("held", [1e9, 300e3, 0])
@pytest.mark.parametrize("spare, limit, why", NO_ROOM)
def test_no_room(tiny_gpt2, tmp_path, request, monkeypatch, spare, limit, why, held) -> None:
    """Features that do not fit on the disk are kept in memory, or else computed each time."""
    if limit is None:
        request.getfixturevalue("small_disk")
    monkeypatch.setattr(feature_store, "SPARE", spare)
    monkeypatch.setattr(feature_cache, "MEMORY", held)
    monkeypatch.setattr(feature_cache, "SHARD", 50e3)
    for _ in range(2):  # the second run finds the features that the first run saved
        lines = listen()
        found = features(tiny_gpt2, tmp_path, LONG, limit)
        assert sum(why in line for line in lines) == 1
        assert len(files(tmp_path)) == (spare < 1e9) and not files(tmp_path, ".tmp")
        assert any("computed again each time" in line for line in lines) == (held < 1e9)
        expected = pytest.raises(TypeError) if held < 1e9 else nullcontext()
        with monkeypatch.context() as patch, expected:
            patch.setattr(Trunk, "__call__", None)  # any computation would fail
            check(found, tiny_gpt2, LONG)


def test_the_least_recently_used_shards_are_removed_but_none_in_use(tmp_path: Path) -> None:
    lines, texts = listen(), [made([5 * n], tokens=1000) for n in range(10)]  # 32 KB each
    paths = [FeatureStore(tmp_path).save("ab"[n % 2], texts[n]).path for n in range(5)]
    for path, hours in zip(paths, [4, 1, 5, 3, 2], strict=True):
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    store = FeatureStore(tmp_path, limit=5.5 * 32e3)
    before = paths[2].stat().st_mtime
    assert found_in(store.find("a", texts[2]), texts[2])  # the oldest shard, but just used
    assert paths[2].stat().st_mtime > before + 3600
    for n, left in ((5, {1, 2, 3, 4, 5}), (6, {1, 2, 4, 5, 6}), (7, {1, 2, 5, 6, 7})):
        paths.append(store.save("new", texts[n]).path)
        assert {m for m, path in enumerate(paths) if path.exists()} == left
        assert sum(path.stat().st_size for path in files(tmp_path)) <= store.limit
    assert store.save("new", texts[8]) and lines == []
    assert store.save("new", texts[9]) is store.save("new", texts[9]) is None and len(lines) == 1
    assert {m for m, path in enumerate(paths) if path.exists()} == {2, 5, 6, 7}


def test_a_variable_sets_the_limit(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2_FROM_SCRATCH_CACHE_GB", raising=False)
    assert FeatureStore().limit == 20e9
    for value, limit in (("2", 2e9), ("0", 0), ("0.5", 5e8)):
        monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE_GB", value)
        assert FeatureStore().limit == limit and FeatureStore(limit=7).limit == 7
    for value in ("lots", "-1", "inf", "nan"):
        monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE_GB", value)
        pytest.raises(UsageError, FeatureStore).match(f"GPT2_FROM_SCRATCH_CACHE_GB = {value!r}")
        assert main(["cache"]) == 2


@POSIX
@pytest.mark.parametrize("case", ["no folder", "empty", "whole", "damaged", "too large", "locked"])
def test_an_unwritable_folder_does_not_stop_the_run(tiny_gpt2: GPT2, case: str) -> None:
    large, user = case == "too large", os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # other users can read it, unlike tmp_path
        folder = Path(name)
        features(tiny_gpt2, folder, LONG if large else TEXTS)
        (path,) = files(folder)
        if case in ("empty", "damaged"):
            path.unlink() if case == "empty" else path.write_bytes(b"")
        for each in (path.parent, folder):
            each.chmod(0o000 if case == "locked" else 0o555)
        lines = listen(logging.DEBUG)
        try:
            os.seteuid(user or 65534)  # permissions do not apply to root
            place = path / "below a file" if case == "no folder" else folder
            features(tiny_gpt2, place, limit=100 if large else None)
        finally:
            os.seteuid(user)
    assert lines and ("0 computed" in lines[0] and len(lines) == 1) == (case == "whole")


def test_recent_temporary_files_count_towards_the_limit_and_are_kept(tmp_path: Path) -> None:
    kept = FeatureStore(tmp_path).save("space", made([0], tokens=300)).path  # 9.6 KB
    with atomic_path(tmp_path / "space" / f"{0:064}.safetensors") as theirs:
        theirs.write_bytes(bytes(20_000))
        store = FeatureStore(tmp_path, limit=40e3)
        assert store.save("space", made([5], tokens=200)) and kept.exists()
        assert store.save("space", made([10], tokens=500)) is None and theirs.exists()


def reads_much(folder: str) -> None:
    """Read texts in random order.

    Prints the peak memory use before and after.
    """
    feature_cache.MEMORY, status = 50e6, Path("/proc/self/status")
    print(status.read_text())
    store, draw = FeatureStore(Path(folder)), random.Random(1)
    found = Features(NO_TRUNK, [[n] * 20 for n in range(5000)], store=store)
    for _ in range(250):
        found.batch(draw.sample(range(5000), 20))
    print(status.read_text())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux counts it")
def test_reading_takes_little_memory(tmp_path: Path) -> None:
    space, states = space_name(NO_TRUNK, torch.float32), torch.rand(1000, 20, 768)
    for n in range(0, 5000, 1000):  # 300 MB
        texts = {text_key([n + m] * 20): states[m] for m in range(1000)}
        FeatureStore(tmp_path).save(space, texts)
    before, after = map(int, re.findall(r"VmHWM:\s+(\d+) kB", elsewhere(reads_much, tmp_path)))
    assert after - before < 150_000


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    """The user may choose a folder as the cache that already contains other files."""
    theirs = [
        tmp_path / "photos" / "a.jpg",
        tmp_path / "photos" / f"{0:064}.jpg",
        tmp_path / "llama" / "model.safetensors",
        tmp_path / "llama" / ".draft.tmp" / "b.txt",
        tmp_path / "space" / "notes.txt",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100_000))
        os.utime(path, (0, 0))
        os.utime(path.parent, (0, 0))
    store = FeatureStore(tmp_path, limit=50e3)
    assert store.save("space", made([0], tokens=300))
    assert [name for name, *_ in store.spaces()] == ["space"]
    (tmp_path / "space" / f"{0:064}.plan").touch()  # from an earlier version
    # 45 KB, so the first shard is removed
    assert FeatureStore(tmp_path, limit=50e3).save("space", made([1], tokens=1400))
    assert len(files(tmp_path)) == 2, "llama's model and the second shard"
    assert store.clear() > 30_000
    assert all(path.exists() for path in theirs) and not list(tmp_path.glob("*/*.plan"))
