"""Labelled texts: read them, check them, and split them.

Learners need two modules: `messages` and `split`. Errors name the file and the line of each faulty
row. This room does not import torch, so you can inspect data without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "messages": [
            "DataConfig",
            "GoldAnswers",
            "Message",
            "Span",
            "count_labels",
            "load_messages",
            "read_texts",
            "write_messages",
        ],
        "formats": ["TASKS", "label_names", "load_examples", "write_examples"],
        "split": ["Split", "folds", "load_split", "split_messages"],
        "check": ["check_data", "format_report"],
        "near_duplicates": ["has_near_duplicate", "near_duplicate_groups"],
    },
)
