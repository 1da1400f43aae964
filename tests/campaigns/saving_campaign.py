"""Kill processes while they save, and after each kill read everything they have written.

Then read crafted files: complete, with a valid checksum, and with impossible contents.
"""

import copy
import csv
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import campaign
import torch
from said import listen
from tiny import write_checkpoint

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.saving import (
    FORMAT as CLASSIFIER,
)
from gpt2_from_scratch.classifier.saving import (
    Description,
    read_classifier,
    write_classifier,
)
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.data.messages import Message, load_messages, write_messages
from gpt2_from_scratch.errors import CheckpointError, GPT2Error
from gpt2_from_scratch.gpt2.config import LoRAConfig, read_config
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import read_json, sweep, write_json
from gpt2_from_scratch.storage.states import FORMAT as STATE
from gpt2_from_scratch.storage.states import newest_state, save_state
from gpt2_from_scratch.storage.tensors import write_tensors

LIFE = 100  # most changes of files before a process is killed, about two steps
SIZE = 480_000  # limit in bytes within a state or classifier of half a megabyte
DESCRIPTION = Description("mini", "0" * 64, (HeadConfig(labels=("ham", "spam")),))


def tensors(step: int, size: int = 60_000) -> dict[str, torch.Tensor]:
    """Half a megabyte of numbers that depend on the step."""
    return {name: torch.full((size,), float(step)) for name in ("head.weight", "head.bias")}


def save_for_ever(folder: Path, step: int, done: int) -> None:
    """Save everything that a run writes, step after step; report each saved step to `done`."""
    torch.set_num_threads(1)
    store = FeatureStore(folder / "cache", limit=20e6)
    while True:
        step += 1
        save_state(folder, step, tensors(step), {"step": step})
        write_classifier(folder / "best.safetensors", DESCRIPTION, tensors(step))
        write_json(folder / "config.json", {"step": step, "padding": "x" * 50_000})
        write_messages(
            folder / "test.csv", [Message(f"text {n}", "ham") for n in range(1 + step % 500)]
        )
        store.save("space", {b"%032d" % step: torch.full((300, 64), float(step))})
        os.write(done, b"%012d" % step)


def look(folder: Path, safe: int) -> int:
    """Read everything, and return the newest state's step; AssertionError for damaged files."""
    found = newest_state(folder)
    assert found or not safe, "no state is left"
    step = found[0]["step"] if found else 0
    assert step >= safe, f"state {safe} was saved, {step} is the newest"
    assert not found or all(bool((t == step).all()) for t in found[1].values())
    assert not list(folder.glob("*.bad")), "a damaged state"
    if (path := folder / "best.safetensors").exists():
        description, saved, _ = read_classifier(path)
        assert description == DESCRIPTION and saved["head.bias"][0] >= safe
    if (path := folder / "config.json").exists():
        assert read_json(path)["step"] >= safe
    if (path := folder / "test.csv").exists():
        texts = [message.text for message in load_messages(path)]
        assert texts == [f"text {n}" for n in range(len(texts))]
    look_at_features(folder / "cache")
    return step


def look_at_features(folder: Path) -> None:
    """Check that every shard is complete; otherwise `find` would report it."""
    said = listen()
    paths = list((folder / "space").glob("*.safetensors"))
    shards = FeatureStore(folder).find("space", {b"%032d" % n for n in range(9999)})
    assert len(shards) == len(paths) and not said, said
    for shard in shards:
        for key in shard.places:
            assert bool((shard.states(key) == float(key)).all())


def kills(count: int, seed: int, folder: Path) -> Counter:
    """Kill `count` processes, each at a random change of a file, or at a byte after it."""
    torch.set_num_threads(1)
    csv.field_size_limit(10**8)
    folder.mkdir()
    draw, seen = random.Random(seed), Counter({"orphans at the end": 0})
    step = safe = 0
    progress = campaign.Progress(count, "kills")
    while seen["kills"] < count:
        reading, writing = os.pipe()
        moment, size = draw.randint(1, LIFE), draw.randrange(SIZE)
        end = draw.choice([campaign.die, lambda size=size: campaign.die_at_byte(size)])

        def work(moment=moment, end=end, step=step, writing=writing) -> None:
            campaign.at_change(moment, end)
            save_for_ever(folder, step, writing)

        child = campaign.fork(work)
        os.close(writing)
        assert campaign.end_of(child) in campaign.DEATHS, "it ended by itself"
        with os.fdopen(reading, "rb") as pipe:
            reported = pipe.read()
        seen["kills"] += 1
        seen["kills in the middle of a file"] += bool(list(folder.rglob(".*.tmp")))
        safe = max(safe, int(reported[-12:] or 0))
        before, step = step, look(folder, safe)
        seen["steps saved"] += step - before
        if draw.random() < 0.05:  # the next run does the same
            sweep(folder), sweep(folder / "cache" / "space")
        progress(seen["kills"])
    sweep(folder), sweep(folder / "cache" / "space")
    seen["orphans at the end"] = len(list(folder.rglob(".*.tmp")))
    return seen


# --- crafted files ---

IMPOSSIBLE = [
    *(
        None,
        True,
        -1,
        0,
        3,
        2.5,
        1e308,
        10**12,
        10**19,
        -(10**19),
        10**400,
        "",
        "x" * 10_000,
        "\x1b[31m",
    ),
    *(
        [],
        {},
        [10**12],
        [10**19] * 3,
        [1] * 5000,
        [[]],
        [None],
        ["a"] * 3,
        {"a": 1},
        json.loads("[" * 400 + "]" * 400),
    ),
]
TEXTS_OF_JSON = [
    *("[" * 990 + "]" * 990, '{"a":' * 990 + "1" + "}" * 990, "{", "", "null", "NaN", "1e999"),
    "9" * 5000,
]
DTYPES = [
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.bool, torch.complex64),
    *(torch.uint16, torch.bfloat16, torch.float64),
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def spoilt(value: Any, draw: random.Random) -> str:
    """JSON with one value changed or missing, or a text that is hardly JSON."""
    if draw.random() < 0.1:
        return draw.choice(TEXTS_OF_JSON)
    path = draw.choice([*places(value)])
    if not path:
        return json.dumps(draw.choice(IMPOSSIBLE))
    value = at = copy.deepcopy(value)
    for key in path[:-1]:
        at = at[key]
    if draw.random() < 0.1:
        del at[path[-1]]
    else:
        at[path[-1]] = draw.choice(IMPOSSIBLE)
    return json.dumps(value)


def crafted(count: int, seed: int, folder: Path) -> Counter:
    """Read `count` complete files with a valid checksum but impossible contents."""
    draw, seen = random.Random(seed), Counter()
    base = write_checkpoint(folder / "base", 3)
    heads = [
        HeadConfig("a", labels=("x", "y"), hidden=(8,), activation="tanh", class_weights=(1, 2.0)),
        HeadConfig("b", "regression", labels=("z",), center=(1.0,), scale=(2.0,)),
    ]
    classifier = Classifier.on_base(base, heads=heads, lora=LoRAConfig(rank=2))
    classifier.model.requires_grad_(False)
    classifier.save(folder / "c.safetensors")
    _, tensors, _ = read_classifier(folder / "c.safetensors")
    described = json.loads(json.dumps(asdict(classifier.description)))
    sizes, record = read_json(base / "hparams.json"), {"settings": {"lr": 0.1}, "progress": {}}

    def use(description: str, saved: dict[str, torch.Tensor]) -> None:
        metadata = {"format": CLASSIFIER, "description": description}
        write_tensors(folder / "c.safetensors", saved, metadata)
        Classifier.load(folder / "c.safetensors", base).predict(["the cat", ""])

    def state() -> None:
        whole = {"format": STATE, "record": spoilt(record, draw)}
        whole = whole if draw.random() < 0.8 else {"format": STATE}
        write_tensors(folder / "state-00000001.safetensors", {"x": torch.zeros(2)}, whole)
        if newest_state(folder) is None:
            (folder / "state-00000001.safetensors.bad").unlink()
            raise CheckpointError("renamed")

    def hparams() -> None:
        (folder / "hparams.json").write_text(spoilt(sizes, draw))
        read_config(folder)

    def another_dtype() -> None:
        name = draw.choice([*tensors])
        other = {name: tensors[name].to(draw.choice(DTYPES))}
        use(json.dumps(described), tensors | other)

    def large() -> None:
        name = draw.choice([*tensors])
        use(json.dumps(described), tensors | {name: torch.full_like(tensors[name], 3e38)})

    kinds = {
        "description": lambda: use(spoilt(described, draw), tensors),
        "dtype": another_dtype,
        "large": large,
        "state": state,
        "hparams": hparams,
    }
    progress = campaign.Progress(count, "crafted files")
    for number in range(count):
        (kind,) = draw.choices([*kinds], [6, 1, 1, 1, 1])
        try:
            kinds[kind]()
            seen[f"crafted {kind}: read"] += 1
        except GPT2Error:
            seen[f"crafted {kind}: refused"] += 1
        progress(number + 1)
    seen["crafted files"] = count
    return seen


def trials(count: int, seed: int, folder: Path) -> Counter:
    """Kill `count` processes, then read ten times as many crafted files."""
    return kills(count, seed, folder / "kills") + crafted(10 * count, seed, folder / "crafted")


if __name__ == "__main__":
    if sys.argv[1:2] == ["look"]:
        print(json.dumps(look(Path(sys.argv[2]), 0)))
    else:
        campaign.main(trials)
