"""Measure explanations: their time, how well they add up, whether they agree, and a sanity check.

    python benchmarks/explain.py runs/demo

Times are processor times for one message, also as multiples of one prediction of the same message in
the same round, with the run's model and with random weights of the 124M's sizes (`--without-124M`
leaves these out). The
other tables are about test messages of the SMS collection, with words as units and spam as the label:

- integrated gradients: the error of the sum, and the number of steps
- the rank correlation between the methods
- how much the evidence falls if the three most important words are left out together
- the rank correlation with the same classifier whose trained parts have random weights (Adebayo et
  al. 2018, "Sanity Checks for Saliency Maps"). An explanation of what was learned must change. The
  lengths of the words are a control, which fails this check.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench import note, random_gpt2
from scipy.stats import spearmanr

from gpt2_from_scratch import (
    Classifier,
    gradient_times_input,
    integrated_gradients,
    leave_one_out,
    load_messages,
)
from gpt2_from_scratch.explain.attribution import attention, contributions
from gpt2_from_scratch.explain.lenses import answer_by_layer
from gpt2_from_scratch.explain.tokens import Explanation, Question, after_each_token

MESSAGE = "WINNER!! You have been selected to receive a 900 prize reward! To claim call now. Valid 12 hours."
METHODS: dict[str, Callable[..., Explanation]] = {
    "leave-one-out": leave_one_out,
    "integrated gradients": integrated_gradients,
    "gradient x input": gradient_times_input,
}
# what is timed; each is called with a classifier and a text
TIMED: dict[str, Callable[[Classifier, str], object]] = {
    "one prediction": lambda classifier, text: classifier.predict([text]),
    "the answer after each token": lambda c, text: after_each_token(
        c, text, c.description.labels[0]
    ),
    "leave-one-out, words": leave_one_out,
    "leave-one-out, tokens": lambda c, text: leave_one_out(c, text, unit="token"),
    "gradient x input": gradient_times_input,
    "integrated gradients": integrated_gradients,
    "attention of all heads": attention,
    "contributions of heads and blocks": contributions,
    "the answer at each layer": answer_by_layer,
}
FEWEST_WORDS = 6  # of a message, for a rank correlation
SEEDS = 3


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run on the SMS collection")
    parser.add_argument("--messages", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-124M", action="store_true", dest="small")
    args = parser.parse_args()
    torch.set_num_threads(1)
    classifier = Classifier.load(args.run)
    print_times("the miniature", classifier, args.rounds)
    if not args.small:
        with tempfile.TemporaryDirectory() as place:
            large = Classifier.on_base(random_gpt2(Path(place)), ["ham", "spam"])
            large.model.requires_grad_(False)
            print_times("124M, random weights", large, max(1, args.rounds // 5))
    texts = [
        message.text
        for message in load_messages(args.run / "test.csv")
        if len(leave_one_out(classifier, message.text).parts) >= FEWEST_WORDS
    ][: args.messages]
    print(f"\n{len(texts)} test messages of at least {FEWEST_WORDS} words")
    note("methods")
    found = {name: explanations(method, classifier, texts) for name, method in METHODS.items()}
    print_errors(found)
    print_agreement(found)
    note("words left out together")
    print_deletions(classifier, found)
    note("random weights")
    print_sanity(classifier, found, texts[: args.messages // 3])


def print_times(name: str, classifier: Classifier, rounds: int) -> None:
    """Print the median processor time of each explanation, and its ratio to one prediction."""
    (ids,), _ = classifier.encode([MESSAGE])
    words = len(leave_one_out(classifier, MESSAGE).parts)
    print(f"\n{name}: {len(ids)} tokens, {words} words, 1 thread")
    seconds: dict[str, list[float]] = {way: [] for way in TIMED}
    classifier.predict([MESSAGE])  # warms up
    for _ in range(rounds):
        for way, run in TIMED.items():
            began = time.process_time()  # less disturbed by other programs than the clock
            run(classifier, MESSAGE)
            seconds[way].append(time.process_time() - began)
    for way, some in seconds.items():
        ratios = [a / b for a, b in zip(some, seconds["one prediction"], strict=True)]
        milliseconds = 1000 * statistics.median(some)
        print(f"{way:34} {milliseconds:8.1f} ms  {statistics.median(ratios):6.1f} times")
    print(f"points of integrated gradients: {integrated_gradients(classifier, MESSAGE).steps}")


def explanations(
    method: Callable[..., Explanation], classifier: Classifier, texts: Sequence[str]
) -> list[Explanation]:
    """Explain the evidence for spam in each text."""
    return [method(classifier, text, "spam") for text in texts]


def values(explanation: Explanation) -> list[float]:
    """The values of the words."""
    return [part.value for part in explanation.parts]


def print_errors(found: dict[str, list[Explanation]]) -> None:
    """Print by how much the sums of the values differ from what they should add up to."""
    print("\nerror of the sum (log odds), absolute: median, 95th percentile, largest")
    for name, some in found.items():
        errors = np.abs([each.error for each in some])
        print(
            f"{name:22} {np.median(errors):8.4f} {np.quantile(errors, 0.95):8.4f} {errors.max():8.4f}"
        )
    totals = np.abs([each.total for each in found["integrated gradients"]])
    steps = [each.steps for each in found["integrated gradients"]]
    print(f"integrated gradients: median of the total {np.median(totals):.2f}; steps:")
    print({n: steps.count(n) for n in sorted(set(steps))})


def print_agreement(found: dict[str, list[Explanation]]) -> None:
    """Print the mean rank correlation of each pair of methods, and how often the first word agrees."""
    print("\nmean rank correlation; messages with the same most important word")
    for one, other in itertools.combinations(found, 2):
        pairs = [*zip(map(values, found[one]), map(values, found[other]), strict=True)]
        r = np.mean([spearmanr(*pair).statistic for pair in pairs])
        same = np.mean([np.argmax(a) == np.argmax(b) for a, b in pairs])
        print(f"{one} and {other}: {r:.2f}, {same:.0%}")


def print_deletions(classifier: Classifier, found: dict[str, list[Explanation]]) -> None:
    """Print how much the evidence falls if the three words with the largest values are left out."""
    print("\nmean fall of the log odds of spam without the three most important words")
    generator = np.random.default_rng(0)
    orders = {
        name: [np.argsort(values(each))[::-1] for each in some] for name, some in found.items()
    }
    some = found["leave-one-out"]
    orders["three random words"] = [generator.permutation(len(each.parts)) for each in some]
    for name, order in orders.items():
        falls = [fall(classifier, each, ranks[:3]) for each, ranks in zip(some, order, strict=True)]
        print(f"{name:22} {np.mean(falls):.2f}")


def fall(classifier: Classifier, explanation: Explanation, left_out: Sequence[int]) -> float:
    """How much the evidence falls if several parts are left out together."""
    about = Question.of(classifier, explanation.text, "spam")
    gone = {n for k in left_out for n in range(*explanation.parts[k].tokens)}
    kept = [token for n, token in enumerate(about.tokens) if n not in gone]
    end = classifier.encode([""])[0][0]
    outputs = classifier.logits([[*about.tokens, *end], [*kept, *end]])
    before, after = about.evidence(outputs.double()).tolist()
    return before - after


def print_sanity(
    classifier: Classifier, found: dict[str, list[Explanation]], texts: Sequence[str]
) -> None:
    """Print the rank correlation with explanations after the trained parts became random."""
    print(
        f"\n{len(texts)} messages: mean rank correlation with {SEEDS} classifiers of random parts"
    )
    others = [randomised(classifier, seed) for seed in range(SEEDS)]
    for name, some in found.items():
        rs = [
            correlation(some[: len(texts)], explanations(METHODS[name], other, texts))
            for other in others
        ]
        print(f"{name:22} {np.mean(rs):+.2f} ({', '.join(f'{r:+.2f}' for r in rs)})")
    lengths = [by_length(each) for each in found["leave-one-out"][: len(texts)]]
    print(f"{'lengths of the words':22} {correlation(lengths, lengths):+.2f}")


def correlation(some: Sequence[Explanation], others: Sequence[Explanation]) -> float:
    """The mean rank correlation of the explanations of the same texts."""
    pairs = zip(map(values, some), map(values, others), strict=True)
    return float(np.mean([spearmanr(*pair).statistic for pair in pairs]))


def by_length(explanation: Explanation) -> Explanation:
    """An "explanation" that does not look at the classifier."""
    parts = [replace(part, value=float(len(part.text))) for part in explanation.parts]
    return replace(explanation, parts=tuple(parts))


def randomised(classifier: Classifier, seed: int) -> Classifier:
    """A copy whose changed parameters are drawn anew, with the mean and deviation that they have."""
    other, generator = copy.deepcopy(classifier), torch.Generator().manual_seed(seed)
    changed = classifier.changed_names() | {"head.weight", "head.bias"}
    with torch.no_grad():
        for name, parameter in other.model.named_parameters():
            if name in changed:
                mean, std = parameter.mean(), parameter.std(correction=0)
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(mean + std * noise)
    return other


if __name__ == "__main__":
    main()
