"""The page of one training run: what was trained on what, how good it is, and what to beware of.

Sections that do not apply to a run are left out.
"""

from collections import Counter

from gpt2_from_scratch.data.messages import on_one_line
from gpt2_from_scratch.evaluation.assessment import Assessment, PredictedText
from gpt2_from_scratch.evaluation.calibration import AtThreshold, format_threshold
from gpt2_from_scratch.evaluation.metrics import ClassScores, Evaluation
from gpt2_from_scratch.evaluation.significance import Paired, format_p
from gpt2_from_scratch.reports.findings import (
    FILES,
    P_TOLD,
    RunFacts,
    against_baselines,
    between,
    file_name,
    how_good,
    percent,
    python_lines,
    run_warnings,
    shell_commands,
    split_rule,
    trained_on,
)
from gpt2_from_scratch.reports.plots import (
    plot_confusion,
    plot_epochs,
    plot_reliability,
    plot_scores,
    plot_trade,
)
from gpt2_from_scratch.reports.render import (
    Page,
    Part,
    Picture,
    Preformatted,
    Section,
    Table,
    Text,
    Texts,
)

DASH = "–"
LARGEST_MATRIX = 30  # classes that a picture of the confusion matrix has room for
CONFUSED = 10  # pairs of labels that are listed


def run_page(facts: RunFacts) -> Page:
    """The page of a finished run; `page.write_page` writes it."""
    summary = [trained_on(facts), how_good(facts), against_baselines(facts)]
    sections = [
        _what_was_trained(facts),
        _data(facts),
        _ledger(facts),
        _curves(facts),
        _scores(facts),
        _confusion(facts),
        _baselines(facts),
        _calibration(facts.assessment),
        _thresholds(facts),
        *_texts(facts),
        _how_to_use(facts),
        _versions(facts),
    ]
    return Page(
        f"GPT-2 {file_name(facts.model)} on {file_name(facts.data)}",
        [line for line in summary if line],
        run_warnings(facts),
        [section for section in sections if section.parts],
    )


def _what_was_trained(facts: RunFacts) -> Section:
    settings = facts.settings
    last = settings.get("n_last_blocks", DASH)
    blocks = {0: "none", 1: "the last", DASH: DASH}.get(last, f"the last {last}")
    lora = settings.get("lora")
    rows = [
        ("base model", f"GPT-2 {file_name(facts.model)}"),
        ("task", facts.task),
        ("head", f"{settings.get('head', DASH)}, reads {settings.get('pooling', DASH)}"),
        ("blocks that train", settings.get("trainable") or blocks),
        ("LoRA", f"rank {lora}" if lora else "none"),
        ("learning rate, at its highest", f"{settings['lr']:g}" if "lr" in settings else DASH),
        ("texts a step", str(settings.get("batch_size", DASH))),
    ]
    if facts.history:  # the lecture counts steps
        epochs = f"{len(facts.history)} of {settings.get('epochs', DASH)}"
        rows.append(("epochs run, at most", epochs))
    share = percent(facts.n_trained / facts.n_parameters)
    rows.append(("numbers that train", f"{facts.n_trained:,} of {facts.n_parameters:,} ({share})"))
    return Section("What was trained", [Table(["", ""], rows, numeric=2)])


def _data(facts: RunFacts) -> Section:
    parts = ("train", "val", "test")
    labels = list(facts.counts["train"])
    columns = [[facts.counts.get(part, {}).get(label, 0) for part in parts] for label in labels]
    rows = [
        [on_one_line(label), *(f"{n:,}" for n in [*row, sum(row)])]
        for label, row in zip(labels, columns, strict=True)
    ]
    totals = [facts.n_texts(part) for part in parts]
    if len(rows) > 1:
        rows.append(["all", *(f"{n:,}" for n in [*totals, sum(totals)])])
    told: list[Part] = [
        Table(["label", "to train on", "to choose by", "to test", "all"], rows),
        Text(split_rule(facts)),
    ]
    if facts.n_near_twins is not None:
        told.append(Text(f"Test texts that have a near twin in training: {facts.n_near_twins:,}."))
    if "max_tokens" in facts.settings:
        told.append(
            Text(
                f"Texts longer than {facts.settings['max_tokens']} tokens, cut there: {facts.n_cut:,}."
            )
        )
    return Section("Data", told)


def _ledger(facts: RunFacts) -> Section:
    about = Text("Every number of the model once: which train, at which rate, with which decay.")
    return Section("Ledger", [about, Preformatted(facts.ledger)] if facts.ledger else [])


def _curves(facts: RunFacts) -> Section:
    if not facts.history:
        return Section("Curves", [])
    last = facts.history[-1]
    alt = (
        f"Loss and score of each of {len(facts.history)} epochs. In the last the training loss is "
        f"{last.train_loss:.3f} and the validation loss {last.val_loss:.3f}."
    )
    return Section("Curves", [Picture(plot_epochs(facts.history, facts.scores.measure), alt)])


def _scores(facts: RunFacts) -> Section:
    if not isinstance(facts.scores, Evaluation):
        return Section("Scores", [Preformatted(facts.scores.as_table())])
    rows = [_accuracy_row("all test texts", facts.scores)]
    fewer = facts.assessment.without_near_duplicates if facts.assessment else None
    if fewer:
        rows.append(_accuracy_row("without a near twin in training", fewer))
    accuracies = Table(["", "accuracy", "95 % interval", "right", "of"], rows)
    return Section("Scores", [accuracies, _classes(facts.scores, facts.assessment)])


def _accuracy_row(name: str, scores: Evaluation) -> list[str]:
    right = [f"{scores.correct:,}", f"{scores.total:,}"]
    return [name, percent(scores.accuracy), between(scores.interval), *right]


def _classes(scores: Evaluation, assessment: Assessment | None) -> Table:
    columns = ["label", "precision", "recall", "F1", "texts"]
    rows = [_class_row(found) for found in scores.classes]
    rankings = {found.label: found for found in assessment.rankings} if assessment else {}
    if rankings:
        columns += ["ROC-AUC", "average precision"]
        for row, found in zip(rows, scores.classes, strict=True):
            ranking = rankings.get(found.label)
            areas = (ranking.roc_auc, ranking.average_precision) if ranking else (None, None)
            row += [DASH if area is None else f"{area:.4f}" for area in areas]
    return Table(columns, rows, "Each label against all others, on all test texts")


def _class_row(scores: ClassScores) -> list[str]:
    shares = (scores.precision, scores.recall, scores.f1)
    told = [DASH if share is None else percent(share) for share in shares]
    return [on_one_line(scores.label), *told, f"{scores.support:,}"]


def _confusion(facts: RunFacts) -> Section:
    if not isinstance(facts.scores, Evaluation):
        return Section("Confusion", [])
    labels = [on_one_line(scores.label) for scores in facts.scores.classes]
    wrong = Counter(
        {
            (labels[true], labels[called]): n
            for true, row in enumerate(facts.scores.confusion)
            for called, n in enumerate(row)
            if n and true != called
        }
    ).most_common(CONFUSED)
    told = [f"{n:,} texts that are {true} called {called}" for (true, called), n in wrong[:4]]
    parts: list[Part] = []
    if len(labels) <= LARGEST_MATRIX:
        alt = f"Confusion matrix. {'; '.join(told) or 'No text was called wrong'}."
        parts.append(Picture(plot_confusion(facts.scores), alt))
    if len(labels) > 2 and wrong:
        rows = [[true, called, f"{n:,}"] for (true, called), n in wrong]
        parts.append(Table(["true", "said", "texts"], rows, "Most often confused", numeric=2))
    return Section("Confusion", parts)


def _baselines(facts: RunFacts) -> Section:
    if not facts.baselines or not isinstance(facts.scores, Evaluation):
        return Section("Baselines on the same split", [])
    this = f"GPT-2 {file_name(facts.model)}, this run"
    every = [(this, facts.scores, None), *facts.baselines]
    every.sort(key=lambda found: -found[1].accuracy)
    rows = [
        [on_one_line(name), percent(scores.accuracy), between(scores.interval), *_paired(paired)]
        for name, scores, paired in every
    ]
    columns = [
        "classifier",
        "accuracy",
        "95 % interval",
        "this run better by",
        "95 % interval",
        "p",
    ]
    names = [on_one_line(name) for name, _, _ in every]
    picture = plot_scores(
        names,
        [scores.accuracy for _, scores, _ in every],
        [scores.interval for _, scores, _ in every],
        reference=names.index(this),
    )
    about = (
        "Trained on the same texts and scored on the same test texts. Differences are of paired "
        f"answers, in points; {P_TOLD}."
    )
    alt = "The accuracies of the table above with their intervals."
    return Section(
        "Baselines on the same split", [Text(about), Table(columns, rows), Picture(picture, alt)]
    )


def _paired(paired: Paired | None) -> list[str]:
    if paired is None:
        return [DASH] * 3
    low, high = (f"{100 * bound:+.1f}" for bound in paired.interval)
    p = format_p(paired.p).removeprefix("p = ").removeprefix("p ")
    return [f"{100 * paired.difference:+.1f}", f"{low} to {high}", p]


def _calibration(assessment: Assessment | None) -> Section:
    if not assessment:
        return Section("Calibration", [])
    found = {"as trained": assessment.calibration}
    about = (
        "Whether probabilities mean what they say: of texts called something with 90 %, 90 % should "
        "be it. 0 is best in all three columns."
    )
    if assessment.temperature != 1:
        before = assessment.uncalibrated
        found = {"as trained": before} if before else {}
        found[f"temperature {assessment.temperature:.2f}"] = assessment.calibration
        about += (
            " The temperature divides all logits; it was fitted on the texts to choose by and changes "
            "no answer."
        )
    rows = [
        [name, f"{one.brier:.4f}", f"{one.log_loss:.4f}", f"{one.ece:.4f}"]
        for name, one in found.items()
    ]
    columns = ["probabilities", "Brier score", "log loss", "expected calibration error"]
    alt = "Reliability diagram: the share of right answers for each range of probabilities."
    return Section(
        "Calibration", [Text(about), Table(columns, rows), Picture(plot_reliability(found), alt)]
    )


def _thresholds(facts: RunFacts) -> Section:
    thresholds = facts.assessment.thresholds if facts.assessment else []
    if not thresholds:
        return Section("Thresholds", [])
    label = on_one_line(thresholds[0].label)
    rows = [
        [
            DASH if at.allowed_per_1000 is None else f"{at.allowed_per_1000:g} of 1,000",
            format_threshold(at.threshold),
            f"{at.false_positives:,} of {at.negatives:,}",
            percent(at.false_positive_rate_bound),
            f"{at.true_positives:,} of {at.positives:,}",
        ]
        for at in thresholds
    ]
    about = (
        f"Calling a text {label} only where its probability reaches a threshold loses fewer of the "
        f"others, and finds fewer that are {label}. Each threshold was chosen on the texts to choose "
        "by; what it loses and finds was counted on the test part. Never: no threshold kept to what "
        "was asked."
    )
    columns = [
        "asked: lost at most",
        f"{label} from",
        "others lost",
        "surely at most (95 %)",
        f"{label} found",
    ]
    table = Table(columns, rows, numeric=0)
    return Section("Thresholds", [Text(about), table, *_trade(facts, thresholds)])


def _trade(facts: RunFacts, thresholds: list[AtThreshold]) -> list[Part]:
    """The picture of all thresholds, if the answers are there and are of both sides."""
    at = thresholds[0]
    if facts.answered is None or not at.negatives or not at.positives:
        return []
    k = facts.answered.labels.index(at.label)
    shares, is_it = facts.answered.probabilities[:, k], facts.answered.true == k  # (N,)
    alt = f"How many that are {on_one_line(at.label)} each threshold finds, against the others it loses."
    return [Picture(plot_trade(shares, is_it, at.label, thresholds), alt)]


def _texts(facts: RunFacts) -> list[Section]:
    if not facts.assessment:
        return []
    sections = []
    for title, about, told in (
        ("Mistakes", "On the test part, the surest first.", facts.assessment.mistakes),
        (
            "Least certain",
            "The smallest gap between the two likeliest labels first, right or wrong.",
            facts.assessment.least_certain,
        ),
    ):
        sections.append(Section(title, [Text(about), Texts(list(map(_row, told)))] if told else []))
    return sections


def _row(told: PredictedText) -> tuple[str, str, str, float]:
    return told.text, on_one_line(told.true), on_one_line(told.predicted), told.probability


def _how_to_use(facts: RunFacts) -> Section:
    return Section(
        "How to use it", [Preformatted(shell_commands(facts)), Preformatted(python_lines(facts))]
    )


def _versions(facts: RunFacts) -> Section:
    rows = [[name, str(value)] for name, value in facts.versions.items()]
    rows += [["seed", str(facts.seed)], ["SHA-256 of the base model", facts.base_sha256]]
    settings = [
        [name, file_name(value) if name in FILES and value else str(value)]
        for name, value in facts.settings.items()
    ]
    return Section(
        "Versions and seeds",
        [
            Table(["", ""], rows, numeric=2),
            Table(["setting", "value"], settings, "All settings", 2),
        ],
    )
