"""Compare an exported classifier in transformers and onnxruntime with this package's.

    python benchmarks/export.py runs/demo

Prints one row per program, batch size and padding side: equal labels, and the largest difference of a
probability. With padding on the left, transformers' GPT-2 needs the positions of the tokens; one row
shows what happens without them. Then it prints the messages per second of this package and of both
ONNX files, all with one thread: the median of several rounds in turn, tokenizing included.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from gpt2_from_scratch import Classifier, export, load_messages

N_TEXTS, ROUNDS, BATCH = 500, 5, 32


def main() -> None:
    """Export the run and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="sms")
    args = parser.parse_args()
    torch.set_num_threads(1)
    classifier = Classifier.load(args.run)
    texts = [message.text for message in load_messages(args.data)][:N_TEXTS]
    labels = classifier.description.labels
    ours = torch.tensor([[p.probabilities[k] for k in labels] for p in classifier.predict(texts)])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "exported"
        export(classifier, folder, run=args.run)
        kind = transformers.AutoModelForSequenceClassification
        model = kind.from_pretrained(folder).eval()
        print(f"{len(texts)} texts; equal labels; largest difference of a probability")
        for side in ("right", "left"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
            for size in (1, 8, 32):
                print(side, size, *compared(model, tokenizer, texts, size, ours))
        print("left, no positions", 32, *compared(model, tokenizer, texts, 32, ours, False))
        classify = transformers.pipeline("text-classification", model=str(folder))
        answers = classify(texts, truncation=True, top_k=None, batch_size=32)
        rows = [{one["label"]: one["score"] for one in answer} for answer in answers]
        print(
            "pipeline", 32, *differences(torch.tensor([[r[k] for k in labels] for r in rows]), ours)
        )
        served = Path(place) / "served"
        export(classifier, served, to="onnx", int8=True, run=args.run)
        ways: dict[str, Callable[[], object]] = {
            "PyTorch, all texts": lambda: classifier.predict(texts),
            "PyTorch, one text": lambda: [classifier.predict([text]) for text in texts],
        }
        for name in ("model.onnx", "model_int8.onnx"):
            answers = onnx_answers(served, name)
            for size in (1, BATCH):
                print(name, size, *differences(torch.from_numpy(answers(texts, size)), ours))
            ways[f"{name}, one text"] = lambda answers=answers: answers(texts, 1)  # type: ignore[misc]
            ways[f"{name}, batches of {BATCH}"] = lambda answers=answers: answers(texts, BATCH)  # type: ignore[misc]
        seconds = timed_in_turn(ways)
        for name, some in seconds.items():
            ratios = [a / b for a, b in zip(seconds["PyTorch, one text"], some, strict=True)]
            rate = len(texts) / statistics.median(some)
            print(f"{name}: {rate:.0f} messages/s, {statistics.median(ratios):.2f} times")


@torch.no_grad()
def compared(
    model: torch.nn.Module,
    tokenizer: object,
    texts: list[str],
    size: int,
    ours: torch.Tensor,
    with_positions: bool = True,
) -> tuple[int, str]:
    """Compute the answers of transformers in batches of `size`, and compare them with ours."""
    rows = []
    for first in range(0, len(texts), size):
        batch = tokenizer(
            texts[first : first + size], truncation=True, padding=True, return_tensors="pt"
        )
        if with_positions:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        rows.append(model(**batch).logits.softmax(1))
    return differences(torch.cat(rows), ours)


def onnx_answers(
    folder: Path, name: str, threads: int = 1
) -> Callable[[list[str], int], np.ndarray]:
    """A function that computes the probabilities (N, K) of texts in batches of similar length."""
    from onnxruntime import InferenceSession, SessionOptions
    from tokenizers import Tokenizer

    options = SessionOptions()
    options.intra_op_num_threads = threads
    session = InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def answers(texts: list[str], size: int) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
        rows: dict[int, np.ndarray] = {}
        for first in range(0, len(texts), size):
            numbers = order[first : first + size]
            batch = tokenizer.encode_batch([texts[n] for n in numbers])
            given = {
                "input_ids": np.array([each.ids for each in batch]),
                "attention_mask": np.array([each.attention_mask for each in batch]),
            }
            rows |= zip(numbers, session.run(["probabilities"], given)[0], strict=True)
        return np.stack([rows[n] for n in range(len(texts))])

    return answers


def timed_in_turn(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """The seconds of each way in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(ROUNDS + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if n:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def differences(theirs: torch.Tensor, ours: torch.Tensor) -> tuple[int, str]:
    """The number of equal labels, and the largest difference of a probability."""
    equal = int((theirs.argmax(1) == ours.argmax(1)).sum())
    return equal, f"{float((theirs - ours).abs().max()):.1e}"


if __name__ == "__main__":
    main()
