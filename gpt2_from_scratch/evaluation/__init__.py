"""How good a classifier is, and how certain that is.

Arrays in, numbers out: metrics, calibration, decision thresholds, intervals, paired tests.
No torch here, and no files except the labelled predictions that a run keeps.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": [
            "ClassScores",
            "Evaluation",
            "LabelledPredictions",
            "Ranking",
            "evaluate_predictions",
            "format_evaluation",
            "rankings",
            "rarer_label",
            "read_predictions",
            "wilson_interval",
            "write_predictions",
        ],
        "calibration": [
            "AtThreshold",
            "Calibration",
            "at_cost",
            "at_threshold",
            "choose_threshold",
            "fit_temperature",
            "format_threshold",
        ],
        "significance": [
            "Paired",
            "Repeated",
            "accuracy_interval",
            "compare_accuracies",
            "compare_paired",
            "format_p",
            "holm",
            "mean_interval",
        ],
        "baselines": [
            "Baseline",
            "baseline_fits",
            "class_numbers",
            "fit_baselines",
            "predictions_of",
        ],
        "assessment": [
            "Assessment",
            "PredictedText",
            "assess",
            "assessment_as_json",
            "format_assessment",
        ],
    },
)
