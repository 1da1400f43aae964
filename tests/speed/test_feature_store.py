"""Features on disk survive kills, damage, full disks and other processes, or are computed again."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from pytest import CaptureFixture, MonkeyPatch

from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.speed import feature_cache as features
from gpt2_from_scratch.speed import feature_store
from gpt2_from_scratch.speed.feature_cache import Features
from gpt2_from_scratch.speed.feature_store import FeatureStore, Shard
from gpt2_from_scratch.speed.frozen_trunk import Trunk
from gpt2_from_scratch.storage.files import atomic_path

TEXTS = [[5, 6, 7, 8], [5, 6], [9], [200, 201, 3], [5, 6], [30] * 12]
LONG = [[n, 276 - n, *range(n, n + 18)] for n in range(250)]  # 640 KB of features
NO_TRUNK = SimpleNamespace(depth=1, device=torch.device("cpu"), tokens=1, sha256=lambda: "0" * 64)
POSIX = pytest.mark.skipif(os.name == "nt", reason="forks, signals, rights: as POSIX has them")


def made(numbers: Iterable[int], dtype: torch.dtype = torch.float32, tokens: int = 1) -> dict:
    """Features (T, 8) of some texts, the same in every process, with numbers of all kinds."""
    texts = {}
    for n in numbers:
        draw = torch.Generator().manual_seed(n)
        texts[b"%032d" % n] = states = torch.randn(tokens + n % 5, 8, generator=draw).to(dtype)
        states[0, :3] = torch.tensor([torch.nan, -torch.inf, -0.0])
    return texts


def found_in(shards: Iterable[Shard], texts: dict[bytes, torch.Tensor]) -> set[bytes]:
    """Which of the texts the shards have; what they have is right to the last bit."""
    pairs = [(k, shard.states(k)) for shard in shards for k in shard.places.keys() & texts.keys()]
    for k, states in pairs:
        assert states.dtype == texts[k].dtype and states.shape == texts[k].shape
        assert torch.equal(states.view(torch.uint8), texts[k].view(torch.uint8))
    return {k for k, _ in pairs}


def check(found: Features, model: GPT2, texts: list[list[int]]) -> None:
    """Against the blocks, one text at a time; of many texts some."""
    x, lengths = found.batch(range(len(texts)))
    assert lengths.tolist() == [len(text) for text in texts]
    with torch.no_grad():
        for row, text in [*zip(x, texts, strict=True)][:: 1 + len(texts) // 40]:
            expected = model.blocks[1](model.blocks[0](model.embed(torch.tensor([text]))))
            torch.testing.assert_close(row[: len(text)], expected[0], atol=1e-4, rtol=1e-5)


def run(model: GPT2, folder: Path, texts: list = TEXTS, limit: float | None = None) -> tuple:
    """Features that are right, what their store has said, and what they have said themselves."""
    said, lines = list[str](), list[str]()
    store = FeatureStore(folder, limit)
    found = Features(Trunk(model, 2), texts, store=store)
    check(found, model, texts)
    return found, said, lines


def files(folder: Path, ending: str = ".safetensors") -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix == ending)


def elsewhere(function: Callable, *arguments: object) -> subprocess.Popen:
    """A function of this file in a process of its own."""
    code = (
        f"import sys, importlib.util as u; s = u.spec_from_file_location('t', {__file__!r}); "
        f"t = u.module_from_spec(s); s.loader.exec_module(t); t.{function.__name__}(*sys.argv[1:])"
    )
    command, both = [sys.executable, "-c", code, *map(str, arguments)], subprocess.STDOUT
    here = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=both, text=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_found_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, first, second = tmp_path / "not yet" / "there", made([1, 2], dtype), made([3], dtype)
    saving, both = FeatureStore(folder), first | second
    for texts in (first, second, first):
        assert found_in([saving.save("space", texts)], texts) == texts.keys()
    saving.save("other", made([1]))
    assert len(files(folder)) == 3  # what is saved twice is there once
    (folder / "space" / "gone.safetensors").symlink_to("nowhere")  # removed since it was listed
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
    run(tiny_gpt2, tmp_path)
    (path,) = files(tmp_path)
    raw, save = path.read_bytes(), safetensors.torch.save
    others = save({"x": torch.zeros(3)}), save(safetensors.torch.load(raw))  # without a checksum
    for damaged in (raw[:-1], raw[:100], b"", random.Random(1).randbytes(1000), *others):
        path.write_bytes(damaged)
        _, said, _ = run(tiny_gpt2, tmp_path)
        assert len(said) == 1 and said[0].startswith(f"damaged features, computed again: {path}: ")
        assert path.read_bytes() == raw


@pytest.mark.parametrize("part", ["states", "keys", "ends"])
def test_whichever_bit_flips_nothing_wrong_is_found(tmp_path: Path, part: str) -> None:
    said, texts = list[str](), made(range(3))
    store = FeatureStore(tmp_path)
    raw = (path := store.save("space", texts).path).read_bytes()
    head = 8 + int.from_bytes(raw[:8], "little")
    for place in range(*(head + n for n in json.loads(raw[8:head])[part]["data_offsets"])):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        found = found_in(store.find("space", texts), texts)  # raises for what is wrong
        assert part == "keys" or (not found and not path.exists() and "checksum" in said.pop())


def is_killed_often(folder: str) -> None:
    """Forks that save again and again, each killed when it is seen to write a file."""
    for n in range(8):
        before, child = files(Path(folder), ".tmp"), os.fork()
        if child == 0:
            for number in range(100 * n, 100 * n + 50):
                FeatureStore(Path(folder)).save("space", made([number], tokens=100_000))
            os._exit(1)
        while files(Path(folder), ".tmp") == before and os.waitpid(child, os.WNOHANG) == (0, 0):
            pass
        time.sleep(0.001 * n)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@POSIX
def test_kill_9_leaves_whole_shards_and_temporary_files(tmp_path: Path) -> None:
    assert elsewhere(is_killed_often, tmp_path).communicate(timeout=60)[0] == ""
    left, whole = files(tmp_path, ".tmp"), files(tmp_path)
    assert left, "not once was it killed in the middle"
    store = FeatureStore(tmp_path)
    shards = store.find("space", {b"%032d" % n for n in range(800)})
    assert [shard.path for shard in shards] == whole
    texts = made((int(k) for shard in shards for k in shard.places), tokens=100_000)
    assert found_in(shards, texts) == texts.keys() and len(texts) == len(whole)
    for folder in left[1:]:
        for path in (*folder.iterdir(), folder):
            os.utime(path, (time.time() - 7200,) * 2)
    assert sorted([*whole, store.save("space", made([999])).path]) == files(tmp_path)
    assert files(tmp_path, ".tmp") == left[:1]  # perhaps another process is at it


def shares(folder: str, seed: str) -> None:
    """Find and save by turns what the other process finds and saves too."""
    draw = random.Random(seed)
    for first in draw.choices(range(5), k=30):
        texts, store = made(range(first, first + 4)), FeatureStore(Path(folder))
        found_in(store.find("space", texts), texts)
        assert found_in([store.save("space", texts)], texts) == texts.keys()


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    processes = [elsewhere(shares, tmp_path, seed) for seed in (1, 2)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["", ""]
    assert len(files(tmp_path)) == 5 and not files(tmp_path, ".tmp")
    texts = made(range(8))
    assert found_in(FeatureStore(tmp_path).find("space", texts), texts) == texts.keys()


def test_what_others_remove(tiny_gpt2: GPT2, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(features, "HELD", 0)  # reads the file for each text anew
    found, _, _ = run(tiny_gpt2, tmp_path)
    assert FeatureStore(tmp_path).clear() > 0
    check(found, tiny_gpt2, TEXTS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    """A file system of 512 KB at tmp_path."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes Linux and root")
    yield
    subprocess.run(["umount", "-l", tmp_path], check=True)  # -l: still mapped, perhaps


NO_ROOM = [(1e9, None, "less than 1 GB is free"), (-1e9, None, "No space left on device")]
NO_ROOM += [(0, 300e3, "set GPT2_FROM_SCRATCH_CACHE_GB")]


@pytest.mark.parametrize("held", [1e9, 300e3, 0])
@pytest.mark.parametrize("spare, limit, why", NO_ROOM)
def test_no_room(tiny_gpt2, tmp_path, request, monkeypatch, spare, limit, why, held) -> None:
    """What finds none is held in memory, or else computed each time."""
    if limit is None:
        request.getfixturevalue("small_disk")
    monkeypatch.setattr(feature_store, "SPARE", spare)
    monkeypatch.setattr(features, "HELD", held)
    monkeypatch.setattr(features, "SHARD", 50e3)
    for _ in range(2):  # the second run finds what found room in the first
        found, said, lines = run(tiny_gpt2, tmp_path, LONG, limit)
        assert len(said) == 1 and why in said[0]
        assert len(files(tmp_path)) == (spare < 1e9) and not files(tmp_path, ".tmp")
        assert ("find no room" in str(lines)) == (held < 1e9)
        expected = pytest.raises(TypeError) if held < 1e9 else nullcontext()
        with monkeypatch.context() as patch, expected:
            patch.setattr(Trunk, "__call__", None)  # who computes now fails
            check(found, tiny_gpt2, LONG)


def test_shards_used_longest_ago_go_first_and_those_in_use_never(tmp_path: Path) -> None:
    said, texts = list[str](), [made([5 * n], tokens=1000) for n in range(10)]  # 32 KB each
    paths = [FeatureStore(tmp_path).save("ab"[n % 2], texts[n]).path for n in range(5)]
    for path, hours in zip(paths, [4, 1, 5, 3, 2], strict=True):
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    store = FeatureStore(tmp_path, limit=5.5 * 32e3)
    assert found_in(store.find("a", texts[2]), texts[2])  # the oldest, but used just now:
    assert time.time() - 60 < paths[2].stat().st_mtime
    for n, left in ((5, {1, 2, 3, 4, 5}), (6, {1, 2, 4, 5, 6}), (7, {1, 2, 5, 6, 7})):
        paths.append(store.save("new", texts[n]).path)
        assert {m for m, path in enumerate(paths) if path.exists()} == left
        assert sum(path.stat().st_size for path in files(tmp_path)) <= store.limit
    assert store.save("new", texts[8]) and said == []
    assert store.save("new", texts[9]) is store.save("new", texts[9]) is None and len(said) == 1
    assert {m for m, path in enumerate(paths) if path.exists()} == {2, 5, 6, 7}


def test_a_variable_sets_the_limit(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2_FROM_SCRATCH_CACHE_GB", raising=False)
    assert FeatureStore().limit == 20e9
    for value, limit in (("2", 2e9), ("0", 0), ("0.5", 5e8)):
        monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE_GB", value)
        assert FeatureStore().limit == limit and FeatureStore(limit=7).limit == 7
    for value in ("lots", "-1", "inf", "nan", "1e400"):
        monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE_GB", value)
        pytest.raises(UsageError, FeatureStore).match(f"GPT2_FROM_SCRATCH_CACHE_GB = {value!r}")
        assert main(["cache"]) == 2


@POSIX
@pytest.mark.parametrize("case", ["no folder", "empty", "whole", "damaged", "too large", "locked"])
def test_where_one_may_not_write_the_run_goes_on(tiny_gpt2: GPT2, case: str) -> None:
    large, user = case == "too large", os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # which other users can reach, unlike tmp_path
        folder = Path(name)
        run(tiny_gpt2, folder, LONG if large else TEXTS)
        (path,) = files(folder)
        if case in ("empty", "damaged"):
            path.unlink() if case == "empty" else path.write_bytes(b"")
        for each in (path.parent, folder):
            each.chmod(0o000 if case == "locked" else 0o555)
        try:
            os.seteuid(user or 65534)  # root may do all: it becomes another user
            place = path / "below a file" if case == "no folder" else folder
            _, said, lines = run(tiny_gpt2, place, limit=100 if large else None)
        finally:
            os.seteuid(user)
    assert "0 computed" in lines[0] and not said if case == "whole" else said


def test_temporary_files_count_once_and_stay(tmp_path: Path) -> None:
    kept = FeatureStore(tmp_path).save("space", made([0], tokens=300)).path  # 9.6 KB
    with atomic_path(tmp_path / "space" / f"{0:064}.safetensors") as theirs:
        theirs.write_bytes(bytes(20_000))
        store = FeatureStore(tmp_path, limit=40e3)
        assert store.save("space", made([5], tokens=200)) and kept.exists()
        assert store.save("space", made([10], tokens=500)) is None and theirs.exists()


def reads_much(folder: str) -> None:
    """Read in random order; print what memory was taken at most: before, and now."""
    features.HELD, status = 50e6, Path("/proc/self/status")
    print(status.read_text())
    store, draw = FeatureStore(Path(folder)), random.Random(1)
    found = Features(NO_TRUNK, [[n] for n in range(5000)], store=store)
    for _ in range(250):
        found.batch(draw.sample(range(5000), 20))
    print(status.read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux counts it")
def test_reading_takes_little_memory(tmp_path: Path) -> None:
    space, states = features._space(NO_TRUNK, torch.float32), torch.rand(1000, 20, 768)
    for n in range(0, 5000, 1000):  # 300 MB
        FeatureStore(tmp_path).save(space, {features._key([n + m]): states[m] for m in range(1000)})
    said = elsewhere(reads_much, tmp_path).communicate(timeout=60)[0]
    before, after = map(int, re.findall(r"VmHWM:\s+(\d+) kB", said))
    assert after - before < 150_000


def test_strangers_files_are_never_removed(tmp_path: Path) -> None:
    """Whoever names a folder of theirs as the cache keeps what is in it."""
    theirs = [
        tmp_path / "photos" / "a.jpg",
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
    assert FeatureStore(tmp_path, limit=50e3).save(
        "space", made([1], tokens=1400)
    )  # 45 KB: it makes room
    assert len(files(tmp_path)) == 2, "the first shard went, theirs and the second are there"
    assert store.clear() > 30_000
    assert all(path.exists() for path in theirs)
