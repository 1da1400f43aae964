"""Seconds and peak memory of each phase with a large model, next to the planned memory.

    python benchmarks/large.py                  # 1558M: needs 6.2 GB on the disk
    python benchmarks/large.py --stream-blocks  # with one frozen block in memory at a time
    python benchmarks/large.py --stream-blocks --stored bfloat16  # from a file of 3.1 GB
    python benchmarks/large.py --size 355M

The weights are random, in OpenAI's format or, in bfloat16, as safetensors. The texts are messages of
the SMS Spam Collection. The last block, the final norm and the head are finetuned for two epochs.
`--folder` keeps the model for the next run.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench import PeakMemory, copy_vocabulary, measure_machine, note, timed, vocabulary_folder
from scale import labelled

from gpt2_from_scratch import Classifier, TrainConfig, finetune, load_gpt2, load_messages, save_gpt2
from gpt2_from_scratch.classifier import train
from gpt2_from_scratch.classifier.freezing import count_trainable
from gpt2_from_scratch.classifier.train import freeze
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config, write_hparams
from gpt2_from_scratch.gpt2.openai_checkpoint import TensorEntry, masked_crc32c
from gpt2_from_scratch.gpt2.weights import copy_tokenizer, meta_gpt2, names_on_disk
from gpt2_from_scratch.speed.devices import DTYPES, set_threads
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.memory import planned_memory
from gpt2_from_scratch.storage.paths import CHECKOUT

CONFIG = TrainConfig(epochs=2)  # a state that is saved in the second epoch has the most tensors


def write_openai(folder: Path, config: GPT2Config, seed: int = 124) -> None:
    """Write random weights in OpenAI's format, one array in memory at a time."""
    sys.path.append(str(CHECKOUT / "tests"))
    from write_bundle import index_bytes

    generator = torch.Generator().manual_seed(seed)
    parameters, shapes = parameters_by_name(meta_gpt2(config)), {}
    for parameter, (name, _) in names_on_disk(config).items():
        shape = tuple(parameters[parameter].shape)
        is_matrix = len(shape) == 2 and parameter.startswith("blocks")
        shapes[name] = (1, *shape[::-1]) if is_matrix else shape
    entries, offset = [], 0
    with (folder / "model.ckpt.data-00000-of-00001").open("wb") as file:
        for name in sorted(shapes):
            values = torch.empty(shapes[name]).normal_(0.0, 0.1, generator=generator).numpy()
            if name.endswith("/g"):
                values += 1
            file.write(values.data)
            crc = masked_crc32c(values)
            size = values.nbytes
            entries.append(TensorEntry(name, values.dtype, values.shape, offset, size, crc))
            offset += size
    (folder / "model.ckpt.index").write_bytes(index_bytes(entries))
    write_hparams(folder / "hparams.json", config)
    copy_vocabulary(vocabulary_folder(), folder)


def model_in(folder: Path, size: str, stored: str) -> Path:
    """The folder of the model, which is written first unless it is there."""
    openai, rounded = folder / size, folder / f"{size}-bfloat16"
    if not openai.exists():
        openai.mkdir(parents=True)
        note(f"writing {size}")
        write_openai(openai, SIZES[size])
    if stored == "bfloat16" and not rounded.exists():
        note(f"writing {size} in bfloat16")
        save_gpt2(load_gpt2(openai, stream=True), rounded, torch.bfloat16)
        copy_tokenizer(openai, rounded)
    return rounded if stored == "bfloat16" else openai


def measure(base: Path, args: argparse.Namespace) -> None:
    """Print the table: the seconds, peak memory and planned memory of each phase."""
    texts = [message.text for message in load_messages("sms")][: args.texts]
    split, dtype = labelled(texts), DTYPES[args.dtype]
    train.SAVE_EVERY = 5.0  # seconds; to save a state needs the most memory of a training
    set_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:  # imports everything, with a small model
        small = Classifier.on_base("mini", ["long", "short"])
        finetune(small, labelled(texts[:100]), CONFIG, folder)
        del small
    with PeakMemory() as libraries:
        pass
    found: list[tuple[str, float, float, int]] = []

    def phase(name: str, run: Callable[[], object]) -> None:
        note(name)
        started = time.process_time()
        with PeakMemory() as peak:
            seconds = timed(run)
        found.append((name, seconds, time.process_time() - started, peak.bytes))

    made: list[Classifier] = []

    def load() -> None:
        labels = ["long", "short"]
        classifier = Classifier.on_base(base, labels, dtype=dtype, stream=args.stream_blocks)
        freeze(classifier, CONFIG)
        made.append(classifier)

    phase("loading", load)
    (classifier,) = made
    encoded = classifier.encode(texts)[0]
    n_tokens = sum(map(len, dict.fromkeys(map(tuple, encoded))))
    with tempfile.TemporaryDirectory() as folder:
        classifier.store = FeatureStore(Path(folder) / "features", limit=30e9)
        phase("features", lambda: classifier.texts(encoded))
        phase("training", lambda: finetune(classifier, split, CONFIG, Path(folder) / "run"))
        phase("prediction", lambda: classifier.predict(texts[:20]))
    plan = planned_memory(
        SIZES[args.size],
        SIZES[args.size].n_layer - 1,
        count_trainable(classifier.model),
        n_tokens,
        streamed=args.stream_blocks,
        dtype=dtype,
        stored=2 if args.stored == "bfloat16" else 4,
    )
    print(
        f"\n{args.size}, {len(texts)} texts, {n_tokens:,} tokens, stored in {args.stored}, computed in "
        f"{args.dtype}, {'streamed' if args.stream_blocks else 'in memory'}; Python and its libraries "
        f"{libraries.bytes / 1e9:.2f} GB\n\n"
        "| phase | seconds | processor seconds | peak, GB | planned, GB | peak / planned |\n"
        "|---|---|---|---|---|---|"
    )
    for name, seconds, processor, peak_bytes in found:
        size = vars(plan).get(name)
        planned = "|  |  |" if size is None else ""
        if size is not None:
            total = size + libraries.bytes
            planned = f"| {total / 1e9:.2f} | {peak_bytes / total:.2f} |"
        print(f"| {name} | {seconds:,.1f} | {processor:,.1f} | {peak_bytes / 1e9:.2f} {planned}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1558M")
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--stream-blocks", action="store_true")
    parser.add_argument("--stored", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, help="keep the model here (default: remove it)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = model_in(args.folder or Path(temporary), args.size, args.stored)
        measure(base, args)
    print(f"\n{measure_machine().describe()}")


if __name__ == "__main__":
    main()
