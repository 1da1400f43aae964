"""What the end token costs, and how exact its shortcuts are, on random weights of 124M's sizes.

    python benchmarks/reading_cost.py

It compares three pairs: the same messages read at the last token and at the end token; the answers
of `predict` and those of the whole network, text by text; the answers after each token, in one pass
and text by text.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench import best_of, measure_machine, random_gpt2

from gpt2_from_scratch import Classifier, load_messages

N, LENGTHS = 128, (30, 300)


def main() -> None:
    """Measure and print."""
    texts = [message.text for message in load_messages("sms")[:N]]
    with TemporaryDirectory() as folder:
        base = random_gpt2(Path(folder))
        last, end = (
            Classifier.on_base(base, ["ham", "spam"], pooling=pooling)
            for pooling in ("last_token", "end_token")
        )
        print(measure_machine().describe())
        compare_readings(last, end, texts)
        difference = largest_difference(end, end.encode(texts)[0][:32])
        print(f"predict and the whole network: logits differ by at most {difference:.0e}")
        for n in LENGTHS:
            compare_by_token(end, " ".join(texts), n)


def compare_readings(last: Classifier, end: Classifier, texts: list[str]) -> None:
    """Print the messages per second of each reading."""
    seconds = [best_of(3, runner(reader, texts)) for reader in (last, end)]
    tokens = [sum(map(len, reader.encode(texts)[0])) for reader in (last, end)]
    for name, took, count in zip(("last token", "end token"), seconds, tokens, strict=True):
        print(f"{name}: {len(texts) / took:.1f} messages per second ({count:,} tokens)")
    print(f"time at the end token / at the last token: {seconds[1] / seconds[0]:.2f}")


def runner(classifier: Classifier, texts: list[str]) -> Callable[[], object]:
    """A function that predicts the texts."""
    return lambda: classifier.predict(texts)


@torch.no_grad()
def largest_difference(classifier: Classifier, encoded: Sequence[Sequence[int]]) -> float:
    """The largest difference between the logits of all shortcuts and of the whole network."""
    whole = torch.stack([classifier.model(torch.tensor([ids]))[0, -1] for ids in encoded])
    return float((classifier.logits(encoded) - whole).abs().max())


def compare_by_token(classifier: Classifier, text: str, n: int) -> None:
    """Print the time and the difference of the answers after each of `n` tokens."""
    tokenizer = classifier.tokenizer
    ids = tokenizer.encode(text)[:n]
    text = tokenizer.decode(ids)
    beginnings = [[*ids[: t + 1], *tokenizer.encode("\n")] for t in range(n)]
    one_pass = best_of(2, lambda: classifier.predict_by_token(text))
    separate = best_of(1, lambda: classifier.logits(beginnings))
    expected = classifier.logits(beginnings).softmax(dim=1)
    found = [
        [*answers["label"].probabilities.values()]
        for _, answers in classifier.predict_by_token(text)
    ]
    difference = float((torch.tensor(found) - expected).abs().max())
    print(
        f"answers after each of {n} tokens: {1000 * one_pass:.0f} ms in one pass, "
        f"{1000 * separate:.0f} ms text by text; probabilities differ by at most {difference:.0e}"
    )


if __name__ == "__main__":
    main()
