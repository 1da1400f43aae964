"""The classifiers that the server answers with, and the facts about each."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import LedgerLine, ledger
from gpt2_from_scratch.classifier.heads import blocks_read, layer_read
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.reports.drawings import parameter_counts

WEIGHTS = ("finetuned", "pretrained")


@dataclass
class Model:
    """A classifier with the name under which it is served, and its pretrained GPT-2."""

    name: str
    classifier: Classifier
    parts: Sequence[LedgerLine]  # as trained: LoRA is merged for answers
    pretrained: GPT2 | None  # None if it is not known

    def gpt2(self, weights: str) -> GPT2:
        """GPT-2 as it is now, or as it was before finetuning; see WEIGHTS.

        Raises UsageError if GPT-2 before finetuning is not known.
        """
        if weights != "pretrained":
            return self.classifier.model
        if self.pretrained is None:
            raise UsageError(
                f"{self.name} was saved by another tool together with its finetuned GPT-2, so GPT-2 "
                "before finetuning is not known"
            )
        return self.pretrained

    def facts(self) -> dict[str, Any]:
        """Return the facts that the page shows about the classifier, as JSON accepts them."""
        description, model = self.classifier.description, self.classifier.model
        head = description.head
        return {
            "name": self.name,
            "base": str(description.base),
            "task": head.task,
            "labels": list(head.labels),
            "heads": [each.name for each in description.heads],
            "pooling": head.pooling,
            "max_tokens": description.max_tokens,
            "has_ngrams": self.classifier.ngrams is not None,
            "layer": layer_read(head, model),
            "blocks": blocks_read(description.heads, model),
            "final_norm": head.final_norm,
            "config": asdict(model.config),
            "counts": parameter_counts(model.config),
            "parts": [
                {
                    "part": line.part,
                    "parameters": line.parameters,
                    "trained": line.trainable,
                    "state": line.state,
                }
                for line in self.parts
            ],
        }


def load_models(
    runs: Iterable[str | Path], base: str | Path | None = None, **options: Any
) -> dict[str, Model]:
    """Load classifiers for the server, each under the name of its folder or file.

    Runs with the same base share its pretrained GPT-2. Equal names get numbers.

    Args:
        runs: Runs' folders, or files.
        base: The name or folder of their base model; only needed if that is not a known model.
        options: Further arguments of `Classifier.load`.

    Raises:
        CheckpointError: See `Classifier.load`.
    """
    found: dict[str, Model] = {}
    pretrained: dict[str, GPT2] = {}
    for run in map(Path, runs):
        classifier = Classifier.load(run, base, **options)
        description = classifier.description
        parts = ledger(classifier.model, heads=description.heads)
        classifier.model.requires_grad_(False)
        classifier.merge_for_answers()
        sha256 = description.base_sha256
        is_own_base = Path(description.base).resolve() == run.resolve()
        if not is_own_base and sha256 not in pretrained:
            gpt2 = load_gpt2(base or description.base).requires_grad_(False)
            pretrained[sha256] = gpt2.eval().to(classifier.device)
        stem = run.resolve().parent.name if run.is_file() else run.resolve().name
        name, number = stem, 2
        while name in found:
            name, number = f"{stem} ({number})", number + 1
        found[name] = Model(name, classifier, parts, pretrained.get(sha256))
    return found
