"""The text classifier: heads on GPT-2, freezing, the training loop, saving.

Learners need `heads`, `freezing`, `tasks/classification`, `train` and `classifier`. Each task
(classes, tags, spans, numbers) is one file in `tasks/`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "settings": ["HeadConfig", "HeadSettings", "TrainConfig"],
        "heads": ["class_logits", "outputs_from", "pad_right", "pool", "replace_head"],
        "freezing": [
            "format_ledger",
            "ledger",
            "parameter_groups",
            "set_trainable",
            "trainable_names",
        ],
        "classifier": ["Classifier", "Prediction"],
        "saving": ["Description"],
        "train": [
            "Epoch",
            "TrainingRun",
            "best_epoch",
            "finetune",
            "freeze",
            "loss_and_scores",
            "rate_factor",
            "to_labelled",
        ],
        "adaptation": ["Adaptation", "adapt"],
        "generate": ["GeneratedText", "generate_with_heads"],
    },
)
