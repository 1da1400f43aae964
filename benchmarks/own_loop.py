"""A loop in plain PyTorch next to `finetune`: the same network, texts and seeds.

    python benchmarks/own_loop.py
    python benchmarks/own_loop.py --seeds 1 --epochs 1 --texts 100     # a short one

Both start from the same weights, train the last block, the final norm and the head with AdamW, and read
the last real token. `finetune` changes the learning rate from step to step and keeps the best epoch.
The loop (docs/how-to/own-training-loop.md) has a constant learning rate and keeps the last epoch.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from bench import measure_machine, note
from torch.utils.data import DataLoader

from gpt2_from_scratch import (
    Classifier,
    DataConfig,
    Message,
    TrainConfig,
    class_logits,
    encode_texts,
    finetune,
    load_split,
    pad_batch,
    set_trainable,
)
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.evaluation.significance import (
    accuracy_interval,
    compare_paired,
    compare_repeated,
    format_p,
)
from gpt2_from_scratch.speed.devices import set_threads

LABELS = ["ham", "spam"]
POOLING = "last_token"
BATCH, LR = 16, 5e-4


def new_classifier(seed: int) -> Classifier:
    """The miniature with a new head, and only the last block, the final norm and the head trainable."""
    classifier = Classifier.on_base("mini", LABELS, pooling=POOLING, seed=seed)
    set_trainable(classifier.model, n_last_blocks=1)
    return classifier


def train_with_own_loop(
    classifier: Classifier, messages: Sequence[Message], epochs: int, seed: int
) -> None:
    """Train on all texts of a split's training part; every batch runs through all blocks."""
    model, tokenizer = classifier.model, classifier.tokenizer

    def collate(batch: list[Message]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        texts = [message.text for message in batch]
        encoded, _ = encode_texts(texts, tokenizer, max_tokens=model.config.n_ctx)
        ids, lengths = pad_batch(encoded, tokenizer.end_of_text_id)
        return ids, lengths, torch.tensor([LABELS.index(message.label) for message in batch])

    loader = DataLoader(
        messages,
        batch_size=BATCH,
        shuffle=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR)
    model.train()
    for _ in range(epochs):
        for ids, lengths, labels in loader:
            loss = F.cross_entropy(class_logits(model, ids, lengths, POOLING), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def train_with_finetune(classifier: Classifier, split: Split, epochs: int, seed: int) -> None:
    """Train with the package's own loop, in a temporary folder."""
    config = TrainConfig(epochs=epochs, batch_size=BATCH, lr=LR, seed=seed)
    with TemporaryDirectory() as folder:
        finetune(classifier, split, config, folder)


def correct(classifier: Classifier, messages: Sequence[Message]) -> np.ndarray:
    """Which test texts a classifier answers correctly: (N,) bool."""
    answers = classifier.predict([message.text for message in messages])
    pairs = zip(answers, messages, strict=True)
    return np.array([answer.label == message.label for answer, message in pairs])


def main() -> None:
    """Train both ways with each seed, and print accuracies and differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--texts", type=int, help="most training texts (default: all)")
    parser.add_argument("--data", type=Path, help="a table with ham and spam (default: sms)")
    parser.add_argument("--full", action="store_true", help="all texts, not as many ham as spam")
    args = parser.parse_args()
    set_threads(1)
    source = "sms" if args.data is None else str(args.data)
    rows: dict[str, list[np.ndarray]] = {"own loop": [], "finetune": []}
    for seed in args.seeds:
        split = load_split(DataConfig(source, balance=not args.full), seed=seed)
        split = Split(split.train[: args.texts], split.val, split.test)
        for name, found in rows.items():
            classifier, since = new_classifier(seed), time.perf_counter()
            if name == "finetune":
                train_with_finetune(classifier, split, args.epochs, seed)
            else:
                train_with_own_loop(classifier, split.train, args.epochs, seed)
            seconds = time.perf_counter() - since
            found.append(correct(classifier, split.test))
            note(f"seed {seed}, {name}: {found[-1].mean():.2%}, {seconds:.0f} s")
    print(measure_machine().describe())
    sizes = [f"{len(getattr(split, part)):,} {part}" for part in ("train", "val", "test")]
    print(f"{', '.join(sizes)}; {args.epochs} epochs\n")
    print("| seed | own loop | 95% interval | finetune | 95% interval | difference | p |")
    print("|---|---|---|---|---|---|---|")
    for seed, own, theirs in zip(args.seeds, *rows.values(), strict=True):
        pair = compare_paired(own, theirs)
        cells = [str(seed)]
        for one in (own, theirs):
            low, high = wilson_interval(int(one.sum()), len(one))
            cells += [f"{one.mean():.2%}", f"{low:.1%} to {high:.1%}"]
        low, high = pair.interval
        difference = f"{100 * pair.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        print(f"| {' | '.join([*cells, difference, format_p(pair.p)])} |")
    if len(args.seeds) > 1:
        n_train, n_test = len(split.train), len(split.test)
        cells = ["all"]
        for found in rows.values():
            low, high = accuracy_interval(found, n_train)
            cells += [f"{np.mean([one.mean() for one in found]):.2%}", f"{low:.1%} to {high:.1%}"]
        means = [[float(one.mean()) for one in found] for found in rows.values()]
        both = compare_repeated(*means, n_train, n_test, least=1 / n_test)
        low, high = both.interval
        difference = f"{100 * both.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        print(f"| {' | '.join([*cells, difference, format_p(both.p)])} |")


if __name__ == "__main__":
    main()
