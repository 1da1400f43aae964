"""Measure the quality of a classifier, and the uncertainty of that measurement.

Everything here is computed from arrays: metrics, calibration, decision thresholds, confidence
intervals and paired tests. The code here does not use torch. The only files that it reads or writes
are the labelled predictions of a run.
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
            "best_f1_threshold",
            "choose_threshold",
            "fit_temperature",
            "fit_weights",
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
        "task_baselines": ["TaskBaseline", "fit_task_baselines"],
        "assessment": [
            "Assessment",
            "PredictedText",
            "assess",
            "assessment_as_json",
            "format_assessment",
        ],
    },
)
