"""The findings about a run, and the warnings for those who want to rely on it.

Numbers come from `evaluation`. A sentence is written here if its words depend on the numbers, or if
the page, the model card and the log share it. All other prose is in the templates. Every proportion
is given with its interval, and every difference with its p-value. Every warning says what follows
from it.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_from_scratch.classifier.adaptation import Adaptation
from gpt2_from_scratch.classifier.autotune import Try, best_try
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.tasks.task import Scores
from gpt2_from_scratch.classifier.train import Epoch, best_epoch
from gpt2_from_scratch.data.check import UNEVEN, WIDE
from gpt2_from_scratch.data.messages import DataConfig, on_one_line, short
from gpt2_from_scratch.evaluation.assessment import Assessment, PredictedText
from gpt2_from_scratch.evaluation.calibration import AtThreshold, Calibration
from gpt2_from_scratch.evaluation.metrics import (
    MOST_CLASSES,
    Evaluation,
    LabelledPredictions,
    confused,
    head_of_weakest,
    rarer_label,
    weakest,
)
from gpt2_from_scratch.evaluation.significance import Paired, format_p

TASK_PURPOSES = {
    "multi-label": "to predict the labels of a text",
    "regression": "to predict numbers for a text",
    "token-classification": "to tag each word",
    "token-regression": "to predict a number after each token of a text",
    "span": "to find the answer to a question in a text",
}
FEW_VALIDATION_TEXTS = 100  # with fewer, the choice of the epoch depends largely on chance
FAR_APART = 0.1  # difference between precision and recall that leads to a warning
FEW_KNOWN = 0.02  # if a smaller proportion of texts was trained on, scores hardly change
ALPHA = 0.05  # differences with a larger p-value are not significant
MOST_NAMED = 8  # most names listed in a sentence
TO_SEPARATE = '"train --keep-together near-duplicates"'
PATHS = (
    "source",
    "val_source",
    "test_source",
    "unlabelled",
    "model",
    "data",
    "val_data",
    "test_data",
)


@dataclass(frozen=True)
class RunFacts:
    """All facts about a finished run that the page and the card may show."""

    run: str  # the run's folder, as used in commands
    model: str
    data: DataConfig
    seed: int
    task: str
    # {"train": {label: texts}, "val": ..., "test": ...}; {"texts": n} if labels are not classes
    counts: Mapping[str, Mapping[str, int]]
    ledger: str  # the output of `format_ledger`
    n_parameters: int
    n_trained: int
    history: Sequence[Epoch]
    scores: Scores  # scores on the test set
    base_sha256: str
    versions: Mapping[str, str | int]  # versions of Python and packages; the processor
    training: TrainConfig | None = None  # None for the lecture's recipe
    head: HeadSettings | None = None
    max_tokens: int = 0  # longer texts were cut to this; 0 if unknown
    n_cut: int = 0  # number of texts that were cut
    split: str = ""  # how the three sets were made; empty if by `train`
    assessment: Assessment | None = None  # for classification
    predictions: LabelledPredictions | None = None  # predictions on the test set
    # (name, scores on the same test texts, comparison with this run, p-value adjusted by Holm)
    baselines: Sequence[tuple[str, Evaluation, Paired]] = ()
    # (name, scores on the same test texts) for the other tasks
    task_baselines: Sequence[tuple[str, Scores]] = ()
    tries: Sequence[Try] = ()  # the trainings of autotune
    start: str = ""  # the trained classifier that the run continues from
    adaptation: Adaptation | None = None  # how GPT-2 was adapted to the texts before
    n_trained_on: int = 0  # test texts on which the run or `start` was trained
    # test texts with a near duplicate in training; None if unknown
    n_near_duplicates: int | None = None
    # with n-grams: the weights of GPT-2 and of the n-grams, and the test accuracy of GPT-2 alone
    ngram_weights: tuple[float, float] | None = None
    alone: float | None = None

    def n_texts(self, part: str) -> int:
        """Number of texts in "train", "val" or "test"."""
        return sum(self.counts.get(part, {}).values())

    @property
    def chosen(self) -> Try | None:
        """The try whose settings autotune chose."""
        epochs = self.training.epochs if self.training else 0
        return best_try(self.tries, self.n_texts("train"), epochs)

    @property
    def classified(self) -> Evaluation | None:
        """The scores if the task is classification, otherwise None."""
        return self.scores if isinstance(self.scores, Evaluation) else None

    @property
    def score_table(self) -> str:
        """The scores as text; the main score is in the first line."""
        return self.scores.as_table()

    @property
    def without_near_duplicates(self) -> Evaluation | None:
        """Scores on the test texts without a near duplicate in the training set."""
        return self.assessment.without_near_duplicates if self.assessment else None

    @property
    def best_baseline(self) -> tuple[str, Evaluation, Paired] | None:
        """The baseline with the highest test accuracy."""
        return max(self.baselines, key=lambda baseline: baseline[1].accuracy, default=None)

    @property
    def best_task_baseline(self) -> tuple[str, Scores] | None:
        """The baseline of another task than classification with the highest main score."""
        return max(self.task_baselines, key=lambda baseline: baseline[1].main, default=None)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name, without folders."""
        groups = [group for group in (self.data, self.training, self.head) if group is not None]
        found = {"model": self.model, "seed": self.seed}
        for group in groups:
            found |= asdict(group)
        return without_folders(found)


def run_findings(facts: RunFacts) -> dict[str, Any]:
    """Return what the templates `run.html` and `model_card.md` need."""
    return {
        "facts": facts,
        "summary": sentences(
            trained_on(facts), how_good(facts), combination(facts), against_baselines(facts)
        ),
        "card": score_card(facts),
        "examples": example_texts(facts),
        "warnings": sentences(*run_warnings(facts)),
        "split_rule": split_rule(facts),
        "label_counts": label_counts(facts),
        "classes": weakest(facts.classified.classes) if facts.classified else [],
        "classes_head": head_of_weakest("label", facts.classified.classes)
        if facts.classified
        else "",
        "confused": confused(facts.classified) if facts.classified else [],
        "ranked": ranked(facts),
        "ranked_scores": ranked_scores(facts),
        "calibrations": calibrations(facts.assessment) if facts.assessment else {},
        "thresholds": distinct_thresholds(facts.assessment.thresholds) if facts.assessment else [],
        "commands": shell_commands(facts.run),
        "python": python_lines(facts.run),
    }


def trained_on(facts: RunFacts) -> str:
    """Say which part of the model was trained on which texts."""
    purpose = TASK_PURPOSES.get(facts.task, f"for {facts.task}")
    if facts.task == "classification":
        labels = list(facts.counts["train"])
        purpose = f"to distinguish {len(labels)} labels: {listed(labels, MOST_NAMED)}"
        if len(labels) == 2:
            purpose = f"to distinguish {labels[0]} from {labels[1]}"
    return (
        f"GPT-2 {file_name(facts.model)} was finetuned on {count_texts(facts.n_texts('train'))} of "
        f"{file_name(facts.data.source)} {purpose}. {facts.n_trained:,} of its "
        f"{facts.n_parameters:,} parameters were trained, with seed {facts.seed}."
        + (" Training continued from another run's classifier." if facts.start else "")
        + (
            " Before that, all of GPT-2 was adapted to the texts by next-token prediction: "
            f"{facts.adaptation.in_words()}."
            if facts.adaptation
            else ""
        )
    )


def how_good(facts: RunFacts) -> str:
    """Give the score on the test set with its interval."""
    if not facts.classified:
        score = facts.score_table.splitlines()[0]
        return f"On the test set ({count_texts(facts.n_texts('test'))}): {score}."
    sentence = f"On the test set its accuracy is {_accuracy(facts.classified)}."
    fewer = facts.without_near_duplicates
    if fewer and fewer.total < facts.classified.total:
        sentence += (
            " On test texts without a near duplicate in the training set, it is "
            f"{_accuracy(fewer)}."
        )
    return sentence


def combination(facts: RunFacts) -> str:
    """Say how GPT-2 and n-grams are combined; empty without n-grams."""
    if not facts.ngram_weights:
        return ""
    gpt2, ngrams = facts.ngram_weights
    return (
        f"Its answers combine GPT-2 (weight {gpt2:.2f}) with n-grams of words and characters (weight "
        f"{ngrams:.2f}). GPT-2 alone: {percent(facts.alone)}."
    )


def found_and_marked(scores: Evaluation) -> str:
    """Say how many texts of the rarer label were found, and how many others were marked as it.

    The result is empty unless there are two labels.
    """
    positive = rarer_label([c.label for c in scores.classes], [c.support for c in scores.classes])
    if not positive:
        return ""
    k = [c.label for c in scores.classes].index(positive)
    found, marked = scores.confusion[k][k], scores.confusion[1 - k][k]
    yes, no = scores.classes[k], scores.classes[1 - k]
    if (no.label, yes.label) == ("ham", "spam"):
        return (
            f"found {found:,} of {yes.support:,} spam messages; marked {marked:,} of {no.support:,} "
            "good messages as spam"
        )
    return (
        f"found {found:,} of {yes.support:,} texts with the label {short(yes.label)!r}; marked "
        f"{marked:,} of {no.support:,} others as {short(yes.label)!r}"
    )


def against_baselines(facts: RunFacts) -> str:
    """Compare the run with the best text baseline; empty without baselines."""
    if facts.best_task_baseline:
        name, scores = facts.best_task_baseline
        article = "an" if scores.measure[0] in "eF" else "a"  # an entity F1, an F1
        return (
            f"{name[0].upper()}{name[1:]} reaches {article} {scores.measure} of "
            f"{scores.main_in_words}; this classifier reaches {facts.scores.main_in_words}."
            + _what_may_help(facts, scores.main > facts.scores.main)
        )
    if not facts.best_baseline or not facts.classified:
        return ""
    name, theirs, paired = facts.best_baseline
    points = 100 * (facts.classified.accuracy - theirs.accuracy)
    n = len(facts.baselines)
    best = f"the best of {n} text baselines" if n > 1 else "the text baseline"
    best += f" ({short(name, 80)}: {theirs.correct:,} of {theirs.total:,} correct)"
    low, high = (100 * bound for bound in paired.interval)
    chance = f"{format_p(paired.p)}; 95% interval {low:+.1f} to {high:+.1f} points"
    direction = "more" if points > 0 else "less"
    compared = f"{abs(points):.1f} points {direction} accurate than" if points else "as accurate as"
    verdict = "significant" if paired.p <= ALPHA else "not significant"
    return (
        f"With one seed, it is {compared} {best}. The difference is {verdict} ({chance})."
        + _what_may_help(facts, points < 0)
    )


def _what_may_help(facts: RunFacts, is_worse: bool) -> str:
    """Name the options that make classifiers more accurate and were not used."""
    if not is_worse or facts.split:  # the lecture's recipe has fixed settings
        return ""
    options = [] if facts.tries else ["--autotune 5m"]
    if facts.classified and not facts.ngram_weights:
        options.append("--with-ngrams")
    return f" Try {' and '.join(options)}." if options else ""


def score_card(facts: RunFacts) -> list[tuple[str, str]]:
    """List the most important numbers of a classification as (name, value)."""
    scores = facts.classified
    if not scores:
        return []
    card = [("accuracy on the test set", _accuracy(scores))]
    if found := found_and_marked(scores):
        card.append(("messages", found))
    if facts.best_baseline:
        name, theirs, _ = facts.best_baseline
        card.append((f"accuracy of the best text baseline ({name})", percent(theirs.accuracy)))
    return card


def example_texts(facts: RunFacts, most: int = 3) -> list[PredictedText]:
    """The first correct test texts, then the most confident mistakes, at most `most` of each."""
    if not facts.predictions or not facts.assessment:
        return []
    said, labels = facts.predictions, facts.predictions.labels
    correct = [
        PredictedText(said.texts[n], labels[said.true[n]], labels[said.true[n]], float(p))
        for n in np.flatnonzero(said.correct)[:most]
        for p in [said.probabilities[n, said.true[n]]]
    ]
    return correct + facts.assessment.mistakes[:most]


def distinct_thresholds(thresholds: Sequence[AtThreshold]) -> list[tuple[str, AtThreshold]]:
    """List (limits, threshold); equal thresholds are listed once, with all their limits."""
    limits: dict[float, list[float]] = {}
    for at in thresholds:
        known = limits.setdefault(at.threshold, [])
        known += [] if at.allowed_per_1000 is None else [at.allowed_per_1000]
    first = {at.threshold: at for at in reversed(thresholds)}
    return [
        (
            f"{', '.join(f'{limit:g}' for limit in found)} of 1,000" if found else "–",
            first[threshold],
        )
        for threshold, found in limits.items()
    ]


def split_rule(facts: RunFacts) -> str:
    """Say how training, validation and test set were made."""
    if facts.split:
        return facts.split
    if facts.data.val_source:
        left_out = "Questions whose context is" if facts.task == "span" else "Texts that are"
        return (
            f"Training, validation and test set came from separate files. {left_out} already in "
            "an earlier set were left out."
        )
    apart = "contexts" if facts.task == "span" else "texts"
    drawn = ", after drawing equally many texts of each label" if facts.data.balance else ""
    rule = (
        f"Seed {facts.seed} split the texts into 70% training, 10% validation and 20% test "
        f"set{drawn}."
    )
    if facts.data.test_source:
        rule = (
            f"The test set came from a separate file, without {apart} that are also in the training "
            f"file. Seed {facts.seed} split the training file into 7/8 training and 1/8 validation "
            f"set{drawn}."
        )
    if facts.data.keep_together == "near-duplicates":
        return f"{rule} Near duplicates were kept in the same set."
    if facts.task == "span":
        return f"{rule} All questions about a context are in the same set."
    return f"{rule} Equal texts count once, so no test text occurs in training."


def label_counts(facts: RunFacts) -> list[tuple[str, list[int]]]:
    """List each label with its counts in the three sets; if there are many, the rarest first."""
    parts = [facts.counts.get(part, {}) for part in ("train", "val", "test")]
    labels = list(parts[0])
    counts = {label: [part.get(label, 0) for part in parts] for label in labels}
    if len(labels) <= MOST_CLASSES:
        return [*counts.items()]
    rarest = sorted(labels, key=lambda label: counts[label][0])[:MOST_CLASSES]
    others = [counts[label] for label in labels if label not in set(rarest)]
    sums = [sum(column) for column in zip(*others, strict=True)]
    return [*((label, counts[label]) for label in rarest), (f"{len(others):,} other labels", sums)]


def ranked(facts: RunFacts) -> list[tuple[str, Evaluation, Paired | None]]:
    """List this run and its baselines, the most accurate first; empty without baselines."""
    if not facts.baselines or not facts.classified:
        return []
    ngrams = " with n-grams" if facts.ngram_weights else ""
    this = (f"GPT-2 {file_name(facts.model)}{ngrams}, this run", facts.classified, None)
    return sorted([this, *facts.baselines], key=lambda found: -found[1].accuracy)


def ranked_scores(facts: RunFacts) -> list[tuple[str, Scores]]:
    """List this run and its baselines, the best first, if the task is not classification."""
    if not facts.task_baselines:
        return []
    this = (f"GPT-2 {file_name(facts.model)}, this run", facts.scores)
    return sorted([this, *facts.task_baselines], key=lambda found: -found[1].main)


def calibrations(assessment: Assessment) -> dict[str, Calibration]:
    """The calibrations before and after fitting the temperature, by their names in a picture."""
    if assessment.temperature == 1:
        return {"as trained": assessment.calibration}
    before = {"as trained": assessment.uncalibrated} if assessment.uncalibrated else {}
    return before | {f"temperature {assessment.temperature:.2f}": assessment.calibration}


def shell_commands(run: str) -> str:
    """The commands for using a run from the shell."""
    name = shlex.quote(run)
    return "\n".join(
        [
            f"gpt2-classifier predict {name} 'your text'",
            f"gpt2-classifier predict {name} --file texts.csv --csv > answers.csv",
            f"gpt2-classifier evaluate {name}",
            f"gpt2-classifier verify {name}",
        ]
    )


def python_lines(run: str) -> str:
    """The lines for using a run from Python."""
    return "\n".join(
        [
            "from gpt2_from_scratch import Classifier",
            "",
            f"classifier = Classifier.load({run!r})",
            'print(classifier.predict(["your text"])[0].answer)',
        ]
    )


# --- warnings about a run ---


def run_warnings(facts: RunFacts) -> Iterator[str]:
    """Yield the warnings about a run. A warning that does not apply is an empty string."""
    yield _no_better_than_text(facts)
    interval = getattr(facts.scores, "interval", None)
    if interval is not None:
        yield small_test(facts.n_texts("test"), interval)
    if facts.n_trained_on:
        few = facts.n_trained_on < FEW_KNOWN * facts.n_texts("test")
        yield (
            f"The model was trained on {facts.n_trained_on:,} of {facts.n_texts('test'):,} test texts"
            f"{', or on texts that differ from them only in white space' * (not facts.start)}. The "
            f"score {'may be slightly' if few else 'is'} too high: test on new texts."
        )
    yield _near_duplicates(facts)
    one_seed = (
        "These are the results of one seed and one split. Another seed gives other results, by "
        "chance alone. "
    )
    if facts.task == "classification":
        yield one_seed + (
            '"gpt2-classifier compare --seeds 1 2 3" repeats the training and the baselines on other '
            'splits, and gives means with intervals. "gpt2-classifier experiments" does so for '
            "other settings."
        )
    else:
        yield one_seed + '"gpt2-classifier train --seed N" shows how much the score varies.'
    n = facts.n_texts("val")
    if 0 < n < FEW_VALIDATION_TEXTS:
        selected = "The choice of the best epoch is"
        if not facts.history:
            selected = "Choices that depend on it are"
        yield (
            f"The validation set has only {count_texts(n)}, so one more correct text changes its score "
            f"by {100 / n:.1f} points. {selected} therefore uncertain."
        )
    yield _selected_on_validation(facts)
    yield _uneven_labels(facts)
    yield _one_sided_errors(facts)
    if facts.n_cut:
        yield (
            f"{count_texts(facts.n_cut)} of the three sets were cut to {facts.max_tokens:,} tokens, and "
            "the rest was ignored. If the rest decides the label, raise --max-tokens or split the "
            "texts into pieces."
        )


def _no_better_than_text(facts: RunFacts) -> str:
    if facts.best_task_baseline:
        name, found = facts.best_task_baseline
        if found.main < facts.scores.main:
            return ""
        return _not_worth_its_cost(name, "as good or better", found.main_in_words)
    if not facts.best_baseline or not facts.classified:
        return ""
    name, theirs, paired = facts.best_baseline
    as_good = theirs.accuracy >= facts.classified.accuracy
    if not as_good and paired.p <= ALPHA:
        return ""
    verdict = "as good or better" if as_good else "about as good"
    return _not_worth_its_cost(name, verdict, f"{percent(theirs.accuracy)} of the same test texts")


def _not_worth_its_cost(name: str, verdict: str, score: str) -> str:
    return (
        f'The text baseline "{name}" is {verdict} ({score}). These results do not show that GPT-2 '
        "is worth its cost on this data: the baseline is smaller, faster and easier to explain."
    )


def _near_duplicates(facts: RunFacts) -> str:
    n = facts.n_near_duplicates
    if not n:
        return ""
    found = [near_duplicates_in_training(n, facts.n_texts("test"))]
    if facts.without_near_duplicates:
        found.append(
            f"On the other test texts the accuracy is {_accuracy(facts.without_near_duplicates)}."
        )
    if not (facts.data.val_source or facts.data.test_source or facts.split):
        found.append(f"{TO_SEPARATE} keeps them in the same set.")
    return " ".join(found)


def _selected_on_validation(facts: RunFacts) -> str:
    selected = []
    if len(facts.history) > 1:
        selected.append(f"the epoch ({best_epoch(facts.history).epoch} of {len(facts.history)})")
    if facts.assessment and facts.assessment.temperature != 1:
        selected.append(f"the temperature ({facts.assessment.temperature:.2f})")
    if facts.ngram_weights:
        selected.append("the weights of GPT-2 and the n-grams")
    if (facts.assessment and facts.assessment.thresholds) or getattr(
        facts.scores, "thresholds", {}
    ):
        selected.append("the thresholds")
    if not selected:
        return ""
    return (
        f"The validation set selected {listed(selected)}, so scores on it are too high. Report only "
        "the scores on the test set, and do not use them to select anything."
    )


def _uneven_labels(facts: RunFacts) -> str:
    counts = facts.counts["train"]
    if facts.task != "classification" or len(counts) < 2:
        return ""
    most, fewest = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
    if counts[most] <= UNEVEN * counts[fewest]:
        return ""
    return (
        f"The labels are uneven in the training set: {counts[most]:,} texts are {most}, but only "
        f"{counts[fewest]:,} are {fewest}. Always predicting {most} would be correct for "
        f"{percent(counts[most] / sum(counts.values()))} of them. Look at the recall of {fewest} "
        "rather than at the accuracy; --balance or --class-weights balanced may raise it."
    )


def _one_sided_errors(facts: RunFacts) -> str:
    """Warn about a class that is never predicted, or whose precision and recall differ most."""
    if not facts.classified:
        return ""
    present = [scores for scores in facts.classified.classes if scores.support]
    for scores in present:
        if scores.precision is None:
            return (
                f"{scores.label} was never predicted, although {count_texts(scores.support)} of the test "
                "set have this label. The model has not learned it. It needs more texts, or "
                "--class-weights balanced."
            )
    precision, recall, label = max(
        ((s.precision or 0.0, s.recall or 0.0, s.label) for s in present),
        key=lambda scores: abs(scores[0] - scores[1]),
    )
    if abs(precision - recall) <= FAR_APART:
        return ""
    return (
        f"The errors are one-sided: {label} has a recall of {percent(recall)} and a precision of "
        f"{percent(precision)}. If one kind of error costs more, set a threshold for {label} instead "
        "of using the most probable label."
    )


# --- used by runs and studies ---


def sentences(*found: str) -> list[str]:
    """Keep the sentences that are not empty, each on one line and without control characters."""
    return [on_one_line(sentence) for sentence in found if sentence]


def small_test(n_texts: int, interval: tuple[float, float]) -> str:
    """Warn if the interval of the test score is wide; empty if it is not."""
    half = (interval[1] - interval[0]) / 2
    if half <= WIDE:
        return ""
    return (
        f"The test set is small: with {count_texts(n_texts)} the score has an uncertainty of plus or "
        f"minus {100 * half:.0f} points. Classifiers that differ by less cannot be distinguished. More "
        "labelled texts would help most."
    )


def near_duplicates_in_training(n: int, total: int) -> str:
    """Warn that `n` of `total` test texts have a near duplicate in the training set."""
    return (
        f"{n:,} of {total:,} test texts {'has' if n == 1 else 'have'} a near duplicate in the "
        "training set, so the score partly measures memorisation."
    )


def file_name(name: str) -> str:
    """A model's or a file's name without its folders, which may be private."""
    return Path(name).name or name


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with paths cut to their last part."""
    return {
        name: file_name(value) if name in PATHS and isinstance(value, str) else value
        for name, value in settings.items()
    }


def count_texts(n: int) -> str:
    """Format a number of texts."""
    return f"{n:,} text{'' if n == 1 else 's'}"


def percent(proportion: float | None) -> str:
    """Format a proportion as a percentage with one decimal; a dash for None."""
    return "–" if proportion is None else f"{100 * proportion:.1f}%"


def between(interval: tuple[float, float]) -> str:
    """Format an interval of proportions in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Join names as in a sentence. After the first `most`, say how many more there are."""
    if most is not None and len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _accuracy(scores: Evaluation) -> str:
    return (
        f"{percent(scores.accuracy)} ({scores.correct:,} of {scores.total:,} correct; 95% interval "
        f"{between(scores.interval)})"
    )
