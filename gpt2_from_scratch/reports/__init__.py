"""Pictures and pages for people.

`findings` says what was found, the templates say it in words, `plots` and `drawings` show it.
Nothing here trains or scores anything.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "plots": [
            "plot_confusion",
            "plot_epochs",
            "plot_pretraining",
            "plot_rates",
            "plot_reliability",
            "plot_scores",
            "plot_training",
            "save_picture",
        ],
        "drawings": [
            "draw_architecture",
            "draw_attention",
            "draw_batches",
            "draw_heads_by_token",
            "draw_label_by_token",
            "draw_ledger",
        ],
    },
)
