"""Draw the picture of the README from a finished run: `python docs/pictures.py runs/demo`.

On the left the network, with what is frozen in grey; on the right how P(spam) changes as the
classifier reads a message token by token. The message is from the test set of `gpt2-classifier demo`.
"""

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from gpt2_from_scratch import Classifier, ledger

PICTURE = Path(__file__).parent / "pictures" / "classifier.png"
MESSAGE = "500 free text msgs. Just text ok to 80488 and we'll credit your account"
TRAINED, FROZEN, DARK, BLUE = "#D55E00", "#D0D0D0", "#333333", "#0072B2"


def draw(classifier: Classifier, message: str = MESSAGE, label: str = "spam") -> Figure:
    """Draw the network and the probability of a label after each token of a message."""
    figure = Figure(figsize=(9, 4.2), layout="constrained", facecolor="white")
    network, curve = figure.subplots(1, 2, width_ratios=(1, 2))
    draw_network(network, classifier)
    draw_curve(curve, classifier, message, label)
    return figure


def draw_network(axes: Axes, classifier: Classifier) -> None:
    """Draw each part as a box, from the embeddings up to the head; frozen ones are grey."""
    lines = ledger(classifier.model)
    axes.set(xlim=(0, 1), ylim=(-0.6, 0.9 * len(lines)))
    axes.set_axis_off()
    for n, line in enumerate(lines):
        trained = line.trainable > 0
        fill, ink = (TRAINED, "white") if trained else (FROZEN, DARK)
        style = "round,pad=0,rounding_size=0.03"
        axes.add_patch(
            FancyBboxPatch((0.04, 0.9 * n), 0.92, 0.62, boxstyle=style, fc=fill, ec=fill)
        )
        text = f"{line.part}   {line.parameters:,}"
        axes.text(0.5, 0.9 * n + 0.31, text, color=ink, ha="center", va="center", fontsize=10)
        if n:
            arrow = {"arrowstyle": "-|>", "color": DARK, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (0.5, 0.9 * n), (0.5, 0.9 * n - 0.28), arrowprops=arrow)
    total, trained = sum(x.parameters for x in lines), sum(x.trainable for x in lines)
    title = f"{total:,} parameters\ngrey: frozen; orange: trained ({100 * trained / total:.0f}%)"
    axes.set_title(title, fontsize=10)
    axes.text(0.5, -0.4, "tokens of the message", ha="center", va="center", fontsize=10)


def draw_curve(axes: Axes, classifier: Classifier, message: str, label: str) -> None:
    """Draw P(label) after each token of the message."""
    found = classifier.predict_by_token(message)
    tokens = [token.replace(" ", "·") for token, _ in found]
    name = classifier.description.head.name
    percents = [100 * answers[name].probabilities[label] for _, answers in found]
    axes.axhline(50, color=DARK, linestyle="--", linewidth=1)
    axes.plot(range(len(tokens)), percents, color=BLUE, marker="o", markersize=5)
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=10)
    axes.set(ylim=(-4, 104), xlim=(-0.6, len(tokens) - 0.4), ylabel=f"P({label}) (%)")
    axes.set_title(f"P({label}) after each token of a message: {percents[-1]:.1f}% at the end")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the picture of a run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture to write")
    args = parser.parse_args()
    figure = draw(Classifier.load(args.run))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=150, metadata={"Software": None})
    print(args.out)


if __name__ == "__main__":
    main()
