"""Kill processes while they save, and read after each kill all that they ever wrote."""

import csv
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import campaign
import torch
from said import listen

from gpt2_from_scratch.classifier.saving import Description, read_classifier, write_classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.data.messages import Message, load_messages, write_messages
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import read_json, sweep, write_json
from gpt2_from_scratch.storage.states import newest_state, save_state

LIFE = 100  # changes of files before a process is killed, at most: two steps or so
SIZE = 480_000  # bytes of a state or classifier, of half a megabyte each
DESCRIPTION = Description("mini", "0" * 64, (HeadConfig(labels=("ham", "spam")),))


def tensors(step: int, size: int = 60_000) -> dict[str, torch.Tensor]:
    """Half a megabyte that says which step it is of."""
    return {name: torch.full((size,), float(step)) for name in ("head.weight", "head.bias")}


def save_for_ever(folder: Path, step: int, done: int) -> None:
    """One step after the other, each with all that a run writes; `done` is told what is safe."""
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
    """Read everything; AssertionError where it is not whole. The step of the newest state."""
    found = newest_state(folder)
    assert found or not safe, "no state is left"
    step = found[0]["step"] if found else 0
    assert step >= safe, f"state {safe} was saved, {step} is the newest"
    assert not found or all(bool((t == step).all()) for t in found[1].values())
    assert not list(folder.glob("*.bad")), "a damaged state"
    if (path := folder / "best.safetensors").exists():
        description, saved = read_classifier(path)
        assert description == DESCRIPTION and saved["head.bias"][0] >= safe
    if (path := folder / "config.json").exists():
        assert read_json(path)["step"] >= safe
    if (path := folder / "test.csv").exists():
        texts = [message.text for message in load_messages(path)]
        assert texts == [f"text {n}" for n in range(len(texts))]
    look_at_features(folder / "cache")
    return step


def look_at_features(folder: Path) -> None:
    """Every shard is whole: `find` would say otherwise."""
    said = listen()
    paths = list((folder / "space").glob("*.safetensors"))
    shards = FeatureStore(folder).find("space", {b"%032d" % n for n in range(9999)})
    assert len(shards) == len(paths) and not said, said
    for shard in shards:
        for key in shard.places:
            assert bool((shard.states(key) == float(key)).all())


def kills(count: int, seed: int, folder: Path) -> Counter:
    """Kill `count` processes, each at a drawn change of a file, or at a byte of a file after it."""
    torch.set_num_threads(1)
    csv.field_size_limit(10**8)
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
            told = pipe.read()
        seen["kills"] += 1
        seen["kills in the middle of a file"] += bool(list(folder.rglob(".*.tmp")))
        safe = max(safe, int(told[-12:] or 0))
        before, step = step, look(folder, safe)
        seen["steps saved"] += step - before
        if draw.random() < 0.05:  # as the next run does
            sweep(folder), sweep(folder / "cache" / "space")
        progress(seen["kills"])
    sweep(folder), sweep(folder / "cache" / "space")
    seen["orphans at the end"] = len(list(folder.rglob(".*.tmp")))
    return seen


if __name__ == "__main__":
    if sys.argv[1:2] == ["look"]:
        print(json.dumps(look(Path(sys.argv[2]), 0)))
    else:
        campaign.main(kills)
