"""Pictures and pages that show results to people.

`findings` and `study_findings` put results into words. `templates/` contains the layout and all
other prose, and `render` fills the templates. `plots` draws results, and `drawings` draws the
model. Nothing here trains or scores anything.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "findings": ["RunFacts", "run_warnings"],
        "study_findings": ["StudyFacts", "StudyRow", "study_warnings"],
        "render": ["escape_markdown", "write_run_report", "write_study_report"],
        "plots": [
            "plot_confusion",
            "plot_epochs",
            "plot_pretraining",
            "plot_rates",
            "plot_reliability",
            "plot_scores",
            "plot_seconds",
            "plot_trade",
            "plot_training",
            "save_picture",
        ],
        "drawings": [
            "draw_architecture",
            "draw_attention",
            "draw_batches",
            "draw_heads_by_token",
            "draw_label_by_token",
            "draw_ledgers",
            "draw_outputs",
        ],
    },
)
