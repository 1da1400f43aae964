"""Messages classified per second: this package, Hugging Face and onnxruntime.

There are 10,000 distinct messages with the lengths of the SMS Spam Collection, and random weights
of the size of 124M. Hugging Face and onnxruntime use their best batch size and some of the messages.
Messages are in random order, and in a second row of Hugging Face sorted by length; for onnxruntime
they are always sorted:

    python benchmarks/predict.py
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from bench import CPU, measure_machine, note, random_gpt2, timed
from export import onnx_answers
from finetune import HuggingFace

from gpt2_from_scratch import Classifier, Tokenizer, export, load_messages

BATCH_SIZES = (2, 4, 8, 16, 32, 64)


def messages(count: int, originals: Iterable[str] | None = None, seed: int = 123) -> list[str]:
    """The collection's distinct messages, and then copies with shuffled words, all distinct."""
    draw = random.Random(seed)
    if originals is None:
        originals = [message.text for message in load_messages("sms")]
    found = dict.fromkeys(originals)
    originals = list(found)
    while len(found) < count:
        words = draw.choice(originals).split()
        draw.shuffle(words)
        found[" ".join(words)] = None
    texts = list(found)[:count]
    draw.shuffle(texts)
    return texts


@torch.inference_mode()
def hugging_face_rate(model: HuggingFace, numbers: list[int], batch_size: int) -> float:
    """Messages per second."""
    batches = [numbers[n : n + batch_size] for n in range(0, len(numbers), batch_size)]
    return len(numbers) / timed(
        lambda: [model.logits(batch).argmax(dim=1).tolist() for batch in batches], model.device
    )


def our_rate(classifier: Classifier, texts: list[str]) -> float:
    """Messages per second, including tokenizing."""
    return len(texts) / timed(lambda: list(classifier.predict_stream(texts)), classifier.device)


def onnx_rate(
    answers: Callable[[list[str], int], np.ndarray], texts: list[str], size: int
) -> float:
    """Messages per second, including tokenizing."""
    return len(texts) / timed(lambda: answers(texts, size), CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    machine, texts = measure_machine(), messages(args.messages)
    with tempfile.TemporaryDirectory() as name:
        folder = random_gpt2(Path(name))
        tokenizer = Tokenizer(folder)
        encoded = [tokenizer.encode(text) or [50256] for text in texts]
        theirs = HuggingFace(folder, encoded, 0, CPU)
        ours = {
            str(dtype).removeprefix("torch."): Classifier.on_base(
                folder, ["ham", "spam"], pooling="last_token", dtype=dtype
            )
            for dtype in (torch.float32, torch.bfloat16, torch.int8)
        }
        export(ours["float32"], folder / "onnx", to="onnx", int8=True)
        threads = torch.get_num_threads()
        graphs = {
            f"onnxruntime, {dtype}": onnx_answers(folder / "onnx", name, threads)
            for dtype, name in {"float32": "model.onnx", "int8": "model_int8.onnx"}.items()
        }
    sample = list(range(min(160, len(texts))))
    best = max(BATCH_SIZES, key=lambda size: hugging_face_rate(theirs, sample, size))
    some = [texts[n] for n in sample]
    sizes = {
        name: max(BATCH_SIZES, key=lambda size: onnx_rate(answers, some, size))  # noqa: B023
        for name, answers in graphs.items()
    }
    rates: dict[str, list[float]] = {}
    for number in range(args.rounds):
        part = list(range(len(texts)))[number :: max(1, len(texts) // 500)]
        name = f"Hugging Face, batches of {best}"
        rates.setdefault(name, []).append(hugging_face_rate(theirs, part, best))
        by_length = sorted(part, key=lambda n: len(encoded[n]))
        rates.setdefault(f"{name}, sorted by length", []).append(
            hugging_face_rate(theirs, by_length, best)
        )
        for name, answers in graphs.items():
            rate = onnx_rate(answers, [texts[n] for n in part], sizes[name])
            rates.setdefault(f"{name}, batches of {sizes[name]}", []).append(rate)
        for dtype, classifier in ours.items():
            rates.setdefault(f"ours, {dtype}", []).append(our_rate(classifier, texts))
        note(f"round {number + 1}: {rates}")
    print(f"predict, {len(texts):,} messages: {machine.describe()}")
    print("| | messages / s | ratio |\n|---|---|---|")
    first = statistics.median(next(iter(rates.values())))
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"| {name} | {rate:,.1f} | {rate / first:.1f} |")


if __name__ == "__main__":
    main()
