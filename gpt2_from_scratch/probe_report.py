"""What probes found, and how a person reads it."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2_from_scratch.config import Pooling


@dataclass(frozen=True)
class Probe:
    """One probe: where it read the model, and how often it was right."""

    layer: int  # blocks in front of the point it reads; 0: behind the embeddings
    final_norm: bool  # it read through ln_f; False: the residual stream as it is
    pooling: Pooling
    l2: float  # the penalty, chosen on the validation part
    n_train: int
    train_accuracy: float
    val_accuracy: float
    correct: int  # of the test part
    total: int
    interval: tuple[float, float]  # 95 % Wilson interval of the accuracy
    majority: float  # what always giving the commonest label of the training part gets there

    @property
    def accuracy(self) -> float:
        """The share of right answers on the test part."""
        return self.correct / self.total


def format_probes(probes: Sequence[Probe]) -> str:
    """The test accuracies as a table: a row a layer, and of each pooling raw and final-normed."""
    poolings = list(dict.fromkeys(probe.pooling for probe in probes))
    found = {(p.layer, p.pooling, p.final_norm): 100 * p.accuracy for p in probes}
    lines = [
        f"test accuracy of a probe at each layer, % of {probes[0].total:,} texts; "
        f"always the commonest label: {100 * probes[0].majority:.1f}",
        "",
        "       " + "".join(f"  {pooling:>15}" for pooling in poolings),
        "  layer" + "      raw  normed" * len(poolings),
    ]
    for layer in sorted({probe.layer for probe in probes}):
        pairs = [(found[layer, p, False], found[layer, p, True]) for p in poolings]
        lines.append(
            f"{layer:7d}" + "".join(f"  {raw:7.1f} {normed:7.1f}" for raw, normed in pairs)
        )
    widest = max(probes, key=lambda p: p.interval[1] - p.interval[0])
    half = 50 * (widest.interval[1] - widest.interval[0])
    lines += ["", f"95 % intervals reach up to {half:.1f} points to either side"]
    return "\n".join(lines)
