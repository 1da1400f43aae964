"""How good a classifier is, and how certain that is.

Arrays in, numbers out: metrics, calibration, decision thresholds, intervals, paired tests.
No torch here, and no files except the labelled predictions that a run keeps.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": [
            "Answered",
            "Evaluation",
            "evaluate_predictions",
            "format_evaluation",
            "rankings",
            "wilson_interval",
        ],
        "calibration": ["fit_temperature"],
        "thresholds": ["at_threshold", "choose_threshold"],
        "significance": ["compare_accuracies", "compare_paired", "holm", "mean_interval"],
        "baselines": ["answered_by", "fit_baselines"],
        "assessment": ["assess", "format_assessment"],
    },
)
