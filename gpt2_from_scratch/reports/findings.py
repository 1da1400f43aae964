"""What is to be told of one training run, in sentences: for its page and its model card.

A share of test texts is told with its interval, a difference with its p, a warning with what
follows from it.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.tasks.task import Scores
from gpt2_from_scratch.classifier.train import Epoch, best_epoch
from gpt2_from_scratch.data.check import UNEVEN, WIDE
from gpt2_from_scratch.data.messages import on_one_line
from gpt2_from_scratch.evaluation.assessment import Assessment
from gpt2_from_scratch.evaluation.metrics import Evaluation, LabelledPredictions
from gpt2_from_scratch.evaluation.significance import Paired, format_p

PARTS = {"train": "to train on", "val": "to choose by", "test": "to test"}
FILES = ("model", "data", "val_data", "test_data")  # settings that may be paths
PURPOSE = {
    "multi-label": "to name all labels of a text",
    "regression": "to give a text its numbers",
    "token-classification": "to give each word its tag",
    "span": "to find the answer to a question in a text",
}
TINY = 100  # texts to choose by: with fewer an epoch is chosen by chance as much as by merit
APART = 0.1  # precision from recall
SURE = 0.05  # a difference of a greater p may be chance
NAMED = 8  # labels that a sentence lists
P_TOLD = "p is McNemar's, adjusted for the number of baselines (Holm)"


@dataclass(frozen=True)
class RunFacts:
    """All that is known of a finished run."""

    run: str  # its folder, as commands are to name it
    model: str
    data: str
    seed: int
    task: str
    settings: Mapping[str, Any]  # as config.json has them
    # {"train": {label: texts}, "val": ..., "test": ...}; {"texts": n} where labels are no classes
    counts: Mapping[str, Mapping[str, int]]
    ledger: str  # what finetuning.format_ledger made
    n_parameters: int
    n_trained: int
    history: Sequence[Epoch]
    scores: Scores | Evaluation  # on the test part
    base_sha256: str
    versions: Mapping[str, str | int]  # of Python and packages; the processor
    seconds: float | None = None  # told if given; no two runs have the same
    split: str = ""  # how the parts were made, if not as `train` makes them
    assessment: Assessment | None = None  # of classification
    answered: LabelledPredictions | None = (
        None  # what that was made from: the answers to the test part
    )
    # (name, scores on the same test texts, this run against it: p adjusted for their number by Holm)
    baselines: Sequence[tuple[str, Evaluation, Paired | None]] = ()
    n_near_twins: int | None = None  # test texts nearly in training; None where that is not known
    n_cut: int = 0  # texts longer than max_tokens

    def n_texts(self, part: str) -> int:
        """How many texts "train", "val" or "test" has."""
        return sum(self.counts.get(part, {}).values())

    @property
    def labels(self) -> list[str]:
        """The labels of the training part, on one line each."""
        return [on_one_line(label) for label in self.counts["train"]]

    @property
    def best_baseline(self) -> tuple[str, Evaluation, Paired | None] | None:
        """The baseline with the highest test accuracy."""
        return max(self.baselines, key=lambda baseline: baseline[1].accuracy, default=None)


# --- sentences ---


def trained_on(facts: RunFacts) -> str:
    """What was trained on what."""
    return (
        f"GPT-2 {file_name(facts.model)} was finetuned on {texts_told(facts.n_texts('train'))} of "
        f"{file_name(facts.data)} {_purpose(facts)}. {facts.n_trained:,} of its "
        f"{facts.n_parameters:,} numbers were trained{_time(facts.seconds)}, with seed {facts.seed}."
    )


def how_good(facts: RunFacts) -> str:
    """The score on the test part with its interval; of classes, without near twins too."""
    if not isinstance(facts.scores, Evaluation):
        return f"On {texts_told(facts.n_texts('test'))} kept for the test: " + (
            facts.scores.as_table().splitlines()[0] + "."
        )
    told = f"On texts kept for the test its accuracy is {_accuracy(facts.scores)}."
    fewer = facts.assessment.without_near_duplicates if facts.assessment else None
    if fewer and fewer.total < facts.scores.total:
        told += f" On those that have no near twin in training it is {_accuracy(fewer)}."
    return told


def against_baselines(facts: RunFacts) -> str:
    """Whether it beats the best of the text baselines; empty where there are none."""
    if not facts.best_baseline or not isinstance(facts.scores, Evaluation):
        return ""
    name, theirs, paired = facts.best_baseline
    points = 100 * (facts.scores.accuracy - theirs.accuracy)
    many = f"the best of {len(facts.baselines)} text baselines"
    best = f"{many if len(facts.baselines) > 1 else 'the text baseline'} ({on_one_line(name)})"
    how = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} often than"
    if paired is None:
        how = how if points else "as often as"
        return f"It is right {how} {best}; whether that is chance was not tested."
    low, high = (100 * bound for bound in paired.interval)
    sure = f"95 % interval of the difference {low:+.1f} to {high:+.1f} points, {format_p(paired.p)}"
    if not points:
        return f"It is right as often as {best}: {sure}."
    if paired.p > SURE:
        return f"It is right {how} {best}, which may be chance: {sure}."
    if points > 0:
        return f"It beats {best} by {points:.1f} points: {sure}."
    return f"It is worse than {best} by {-points:.1f} points: {sure}."


def split_rule(facts: RunFacts) -> str:
    """How the three parts were made."""
    settings = facts.settings
    if facts.split:
        return on_one_line(facts.split)
    if settings.get("val_data"):
        return "The three parts came in files of their own; texts in an earlier part were left out."
    drawn = " of as many texts of each label as the rarest has" if settings.get("balance") else ""
    rule = f"Seed {facts.seed} cut 70 % to train on, 10 % to choose by and 20 % to test{drawn}"
    if settings.get("together") == "near-duplicates":
        return f"{rule}; texts that are nearly the same went into one part together."
    return f"{rule}; equal texts count once, so that no test text was trained on."


# --- warnings ---


def run_warnings(facts: RunFacts) -> list[str]:
    """What one should know before relying on the run, each with what follows from it."""
    found = [
        _no_better(facts),
        _small_test(facts),
        _near_twins(facts),
        _one_seed(facts),
        _few_to_choose_by(facts),
        _chosen_on_validation(facts),
        _uneven(facts),
        _one_sided(facts),
        _cut(facts),
    ]
    return [warning for warning in found if warning]


def _no_better(facts: RunFacts) -> str:
    if not facts.best_baseline or not isinstance(facts.scores, Evaluation):
        return ""
    name, theirs, paired = facts.best_baseline
    behind = theirs.accuracy >= facts.scores.accuracy
    if not behind and (paired is None or paired.p <= SURE):
        return ""
    return (
        f"A text baseline, {on_one_line(name)}, is {'as good or better' if behind else 'about as good'} "
        f"({percent(theirs.accuracy)} of the same test texts). On this data nothing shows that GPT-2 is "
        "worth its cost: the baseline is smaller, faster and easier to explain."
    )


def _small_test(facts: RunFacts) -> str:
    interval = getattr(facts.scores, "interval", None)
    if interval is None or (half := (interval[1] - interval[0]) / 2) <= WIDE:
        return ""
    return (
        f"The test part is small: {texts_told(facts.n_texts('test'))} leave {100 * half:.0f} points of "
        "doubt to either side of the score. Classifiers that differ by less cannot be told apart "
        "by it; more labelled texts would help most."
    )


def _near_twins(facts: RunFacts) -> str:
    if not facts.n_near_twins:
        return ""
    told = (
        f"{facts.n_near_twins:,} of {texts_told(facts.n_texts('test'))} to test "
        f"{'has' if facts.n_near_twins == 1 else 'have'} a near twin in training, so that the score "
        "tells in part what was remembered. "
    )
    fewer = facts.assessment.without_near_duplicates if facts.assessment else None
    if fewer:
        told += f"On those that have none its accuracy is {_accuracy(fewer)}. "
    own_files = facts.settings.get("val_data") or facts.settings.get("test_data")
    if own_files or facts.split:  # not cut by `train`, which could cut otherwise
        return told.rstrip()
    return told + '"train --together near-duplicates" splits so that none has one.'


def _one_seed(facts: RunFacts) -> str:
    told = (
        "This is one run, with one seed and one split: another seed gives another score, by chance "
        "alone. "
    )
    if facts.task != "classification":
        return (
            told + '"gpt2-classifier train --seed" with other seeds shows how far apart they are.'
        )
    return told + (
        '"gpt2-classifier compare --seeds 1 2 3" repeats it on other splits, beside the '
        'baselines, and tells the mean with its interval; "gpt2-classifier experiments" does so for '
        "other settings."
    )


def _few_to_choose_by(facts: RunFacts) -> str:
    n = facts.n_texts("val")
    if not 0 < n < TINY:
        return ""
    guess = "All that is chosen by it is a rough guess."
    if facts.history:
        guess = "Which epoch was best is a rough guess, and so is all else chosen by it."
    return (
        f"The part to choose by has {texts_told(n)} only: one text more or less right moves its score "
        f"by {100 / n:.1f} points. {guess}"
    )


def _chosen_on_validation(facts: RunFacts) -> str:
    chosen = []
    if len(facts.history) > 1:
        chosen.append(f"the epoch ({best_epoch(facts.history).epoch} of {len(facts.history)})")
    if facts.assessment and facts.assessment.temperature != 1:
        chosen.append(f"the temperature ({facts.assessment.temperature:.2f})")
    if facts.assessment and facts.assessment.thresholds:
        chosen.append("the thresholds")
    if not chosen:
        return ""
    return (
        f"The part to choose by has chosen {listed(chosen)}, so that its own scores are too good. "
        "Quote those of the test part only, and choose nothing by these."
    )


def _uneven(facts: RunFacts) -> str:
    counts = {on_one_line(label): n for label, n in facts.counts["train"].items()}
    if facts.task != "classification" or len(counts) < 2:
        return ""
    most, fewest = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
    if counts[most] <= UNEVEN * counts[fewest]:
        return ""
    share = counts[most] / sum(counts.values())
    return (
        f"Labels are uneven in training: {counts[most]:,} texts are {most}, {counts[fewest]:,} are "
        f"{fewest}. Always answering {most} would be right {percent(share)} of the time: read the recall "
        f"of {fewest} rather than the accuracy; --balance or --class-weights balanced may raise it."
    )


def _one_sided(facts: RunFacts) -> str:
    """Of the class whose precision and recall are furthest apart, or that was never answered."""
    if not isinstance(facts.scores, Evaluation):
        return ""
    there = [scores for scores in facts.scores.classes if scores.support]
    for scores in there:
        if scores.precision is None:
            return (
                f"{on_one_line(scores.label)} was never answered, though {texts_told(scores.support)} of "
                "the test are: it was not learned. It wants more texts, or --class-weights balanced."
            )
    precision, recall, label = max(
        ((s.precision or 0.0, s.recall or 0.0, on_one_line(s.label)) for s in there),
        key=lambda scores: abs(scores[0] - scores[1]),
    )
    if abs(precision - recall) <= APART:
        return ""
    return (
        f"Errors fall to one side: of texts that are {label} {percent(recall)} are found, of those "
        f"called {label} {percent(precision)} are. If one of the two errors costs more, choose a "
        "threshold for it instead of the likeliest label."
    )


def _cut(facts: RunFacts) -> str:
    if not facts.n_cut:
        return ""
    return (
        f"{texts_told(facts.n_cut)} of all parts were cut to their first "
        f"{facts.settings.get('max_tokens', 0):,} tokens: what stands behind was neither learned nor "
        "read. If labels are decided there, raise --max-tokens or cut texts into pieces."
    )


# --- how to use it ---


def shell_commands(facts: RunFacts) -> str:
    """What can be done with the run from the shell."""
    run = shlex.quote(facts.run)
    return "\n".join(
        [
            f"gpt2-classifier predict {run} 'a text of yours'",
            f"gpt2-classifier predict {run} --file texts.csv --csv > answers.csv",
            f"gpt2-classifier evaluate {run}",
            f"gpt2-classifier verify {run}",
        ]
    )


def python_lines(facts: RunFacts) -> str:
    """The same from Python."""
    return "\n".join(
        [
            "from gpt2_from_scratch import Classifier",
            "",
            f"classifier = Classifier.load({facts.run!r})",
            'print(classifier.predict(["a text of yours"])[0].answer)',
        ]
    )


# --- words ---


def file_name(name: str) -> str:
    """A model's or a file's name without its folders, which are nobody's business."""
    return on_one_line(Path(name).name or name)


def texts_told(n: int) -> str:
    """So many texts."""
    return f"{n:,} text{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """A share in per cent with one decimal."""
    return f"{100 * share:.1f} %"


def between(interval: tuple[float, float]) -> str:
    """An interval of shares, in per cent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _accuracy(scores: Evaluation) -> str:
    return (
        f"{percent(scores.accuracy)} ({scores.correct:,} of {scores.total:,} right; 95 % interval "
        f"{between(scores.interval)})"
    )


def _purpose(facts: RunFacts) -> str:
    labels = facts.labels
    if facts.task != "classification":
        return PURPOSE.get(facts.task, f"for {facts.task}")
    if len(labels) == 2:
        return f"to tell {labels[0]} from {labels[1]}"
    more = [*labels[:NAMED], f"{len(labels) - NAMED} more"] if len(labels) > NAMED else labels
    return f"to tell {len(labels)} labels apart: {listed(more)}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", in {seconds:.1f} seconds" if seconds < 120 else f", in {seconds / 60:.1f} minutes"
