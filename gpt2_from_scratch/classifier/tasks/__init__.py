"""The tasks that a head can be trained for, one file per task.

A new task is a new file and a line here. `classification.py` shows every step, from a label to the
loss, the answer and the score.
"""

from collections.abc import Callable, Sequence

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import Classification
from gpt2_from_scratch.classifier.tasks.language import Features, Language
from gpt2_from_scratch.classifier.tasks.multi_label import MultiLabel
from gpt2_from_scratch.classifier.tasks.regression import Regression
from gpt2_from_scratch.classifier.tasks.span import SpanExtraction
from gpt2_from_scratch.classifier.tasks.tagging import Tagging
from gpt2_from_scratch.classifier.tasks.task import Task
from gpt2_from_scratch.classifier.tasks.token_regression import TokenRegression
from gpt2_from_scratch.errors import UsageError

TASKS: dict[str, Task] = {  # the keys are those of data.formats.TASKS
    "classification": Classification(),
    "multi-label": MultiLabel(),
    "regression": Regression(),
    "token-classification": Tagging(),
    "token-regression": TokenRegression(),
    "span": SpanExtraction(),
    "language": Language(),
    "features": Features(),
}


def answer_columns(
    heads: Sequence[HeadConfig],
    before: Sequence[str],
    after: Sequence[str],
    shown: Callable[[str], str] = str,
) -> list[str]:
    """Name the columns of a table of answers.

    If a label has the name of another column, its column is in parentheses: "(label)". Raises
    UsageError for several heads, and for a head whose answers do not fit into rows.

    Args:
        heads: The classifier's heads.
        before: The names of the columns before those of the answers.
        after: The names of the columns after them.
        shown: How a label is written; the names differ in that form.
    """
    head, columns = heads[0], TASKS[heads[0].task].columns(heads[0])
    if len(heads) > 1 or columns is None:
        what = f"{head.task} answers" if len(heads) == 1 else "the answers of several heads"
        raise UsageError(f"{what} do not fit into the columns of a table. Use predict, or --json.")
    own = [*before, *columns[: len(columns) - len(head.labels)]]  # then one column per label
    used = {*own, *after}
    of_labels = {shown(label) for label in head.labels}
    names = []
    for label in head.labels:
        name, others = label, used
        while shown(name) in others:
            name, others = f"({name})", used | of_labels
        used.add(shown(name))
        names.append(name)
    return [*own, *names, *after]
