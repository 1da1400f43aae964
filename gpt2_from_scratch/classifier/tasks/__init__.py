"""The tasks that a head can be trained for, one file per task.

A new task is a new file and a line here. `classification.py` shows every step, from a label to the
loss, the answer and the score.
"""

from gpt2_from_scratch.classifier.tasks.classification import Classification
from gpt2_from_scratch.classifier.tasks.language import Features, Language
from gpt2_from_scratch.classifier.tasks.multi_label import MultiLabel
from gpt2_from_scratch.classifier.tasks.regression import Regression
from gpt2_from_scratch.classifier.tasks.span import SpanExtraction
from gpt2_from_scratch.classifier.tasks.tagging import Tagging
from gpt2_from_scratch.classifier.tasks.task import Task

TASKS: dict[str, Task] = {  # the keys are those of data.formats.TASKS
    "classification": Classification(),
    "multi-label": MultiLabel(),
    "regression": Regression(),
    "token-classification": Tagging(),
    "span": SpanExtraction(),
    "language": Language(),
    "features": Features(),
}
