"""Comparisons of many trainings: baselines, settings, seeds, layers, learning rates.

A study fits each of its rows (a classifier, or a change of settings) on each of its splits. Its
predictions are kept on disk and scored together. `book` has the book's rows. `learning_rate` finds
a learning rate. `probes` measures what a linear classifier can predict from the states of each
layer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "probes": ["format_probes", "plot_probes", "probe_layers"],
        "learning_rate": ["find_learning_rate"],
        "rows": ["Finetuned", "Result", "Row", "Setup", "TextBaseline"],
        "book": ["book_rows"],
        "scoreboard": ["Scoreboard", "format_scoreboard", "make_scoreboard"],
        "study": ["Study", "compare", "compare_runs", "experiments", "new_study", "run_study"],
    },
)
