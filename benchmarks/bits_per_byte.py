"""Bits per byte of held-out text: a GPT-2 and compressors with the same training text.

    python benchmarks/bits_per_byte.py --corpus CORPUS --model mini

The compressors are:

- gzip, on the held-out text alone;
- xz, with the end of the training text in front (as much as its window holds), counting only the
  bytes that the held-out text adds;
- an interpolated byte n-gram.
"""

import argparse
import gzip
import lzma
import math
from collections import defaultdict
from pathlib import Path

import torch

from gpt2_from_scratch import Tokenizer, load_gpt2
from gpt2_from_scratch.gpt2.corpus import (
    encode_source,
    is_held_out,
    n_bytes,
    read_documents,
    registers,
)
from gpt2_from_scratch.gpt2.pretrain import bits_per_byte
from gpt2_from_scratch.storage.paths import model_folder

ORDER = 6  # bytes of context of the n-gram
# bytes of training text for the n-gram and xz; more would not fit into memory
TRAINED_BYTES = 12_000_000


def n_gram_bits_per_byte(train: bytes, test: bytes) -> float:
    """The result of a byte n-gram with Witten-Bell interpolation of all orders from 0 to ORDER."""
    counts: list[dict[bytes, dict[int, int]]] = [
        defaultdict(lambda: defaultdict(int)) for _ in range(ORDER + 1)
    ]
    for n in range(ORDER, len(train)):
        for order in range(ORDER + 1):
            counts[order][train[n - order : n]][train[n]] += 1
    bits = 0.0
    for n in range(len(test)):
        probability = 1 / 256
        for order in range(min(n, ORDER) + 1):
            seen = counts[order].get(test[n - order : n])
            if seen is None:
                break
            total, kinds = sum(seen.values()), len(seen)
            probability = (seen.get(test[n], 0) + kinds * probability) / (total + kinds)
        bits -= math.log2(probability)
    return bits / len(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    tokenizer = Tokenizer(model_folder(args.model))
    train_documents, held_out, held_out_texts = [], [], []
    for name in registers(args.corpus):
        documents = read_documents(args.corpus / name)
        train_documents += [d for d in documents if not is_held_out(d)][::10]
        if aside := [d for d in documents if is_held_out(d)]:
            held_out.append(encode_source(name, aside, tokenizer, 1.0))
            held_out_texts += aside
    size = sum(n_bytes(source, tokenizer) for source in held_out)
    train = "\n\n".join(train_documents).encode()[-TRAINED_BYTES:]
    test = "\n\n".join(held_out_texts).encode()
    print(f"{size:,} bytes held out; {len(train):,} bytes of training text for xz and the n-gram")
    with_training = len(lzma.compress(train + test, preset=9 | lzma.PRESET_EXTREME))
    alone = len(lzma.compress(train, preset=9 | lzma.PRESET_EXTREME))
    rows = {
        "gzip -9, held-out text alone": 8 * len(gzip.compress(test, 9)) / len(test),
        "xz -9e after training text": 8 * (with_training - alone) / len(test),
        f"byte {ORDER + 1}-gram, Witten-Bell": n_gram_bits_per_byte(
            train[-TRAINED_BYTES // 4 :], test
        ),
    }
    with torch.no_grad():
        rows[f"GPT-2 {args.model}"] = bits_per_byte(load_gpt2(args.model), held_out, size)
    for name, value in rows.items():
        print(f"{name:<36} {value:.3f} bits per byte")


if __name__ == "__main__":
    main()
