"""Compare the answers of an exported classifier in transformers with this package's.

    python benchmarks/export.py runs/demo

Prints one row per batch size and padding side: equal labels, and the largest difference of a
probability. With padding on the left, GPT-2 needs the positions of the tokens; the last row shows what
happens without them.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers

from gpt2_from_scratch import Classifier, export, load_messages

N_TEXTS = 500


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


def differences(theirs: torch.Tensor, ours: torch.Tensor) -> tuple[int, str]:
    """The number of equal labels, and the largest difference of a probability."""
    equal = int((theirs.argmax(1) == ours.argmax(1)).sum())
    return equal, f"{float((theirs - ours).abs().max()):.1e}"


if __name__ == "__main__":
    main()
