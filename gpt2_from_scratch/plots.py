"""Pictures. Drawn without pyplot, so that no window, back end or global state is involved."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from gpt2_from_scratch.files import atomic_path

# two of Okabe and Ito's colours, told apart by people who confuse red and green too
TRAIN, VAL = "#0072B2", "#D55E00"


def plot_training(
    steps: Sequence[float],
    losses: tuple[Sequence[float], Sequence[float]],
    accuracies: tuple[Sequence[float], Sequence[float]],
    path: Path,
    *,
    step_name: str = "epoch",
) -> None:
    """Loss and accuracy (shares of 1), (training, validation) each, as a .png of two panels."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, curves, title in zip(
        figure.subplots(1, 2),
        (losses, [[100 * a for a in curve] for curve in accuracies]),
        ("Loss (cross-entropy, nats)", "Accuracy (%)"),
        strict=True,
    ):
        for curve, name, colour, mark in zip(
            curves, ("training", "validation"), (TRAIN, VAL), "os", strict=True
        ):
            x = steps if len(steps) == len(curve) else range(1, len(curve) + 1)
            axes.plot(x, curve, color=colour, marker=mark, markersize=4, label=name)
        axes.set(title=title, xlabel=step_name if len(steps) == len(curves[0]) else "epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def plot_pretraining(
    tokens: Sequence[float],
    bits_per_byte: Sequence[float],
    references: dict[str, float],
    path: Path,
) -> None:
    """Bits per byte of held-out text against tokens seen, with reference lines, as a .png."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([n / 1e6 for n in tokens], bits_per_byte, color=TRAIN, marker="o", markersize=3)
    for n, (name, value) in enumerate(references.items()):
        axes.axhline(
            value, color=VAL, linestyle=("--", ":", "-.")[n % 3], label=f"{name}: {value:.2f}"
        )
    axes.set(
        title="Pretraining: held-out text", xlabel="tokens seen (millions)", ylabel="bits per byte"
    )
    axes.grid(alpha=0.3)
    if references:
        axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
