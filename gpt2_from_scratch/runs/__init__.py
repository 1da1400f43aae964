"""One training run, from the names of a model and a data set to its results.

`recipes` trains and resumes runs, `continuing` prepares those that start from a trained classifier,
and `folder` keeps what they need. `results` scores a classifier. `lecture` is the lecture's recipe,
with the same random draws. `exporting` writes a classifier for other tools; `onnx_files` compares
ONNX graphs with PyTorch. `estimators` are for scikit-learn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "recipes": [
            "resume_training",
            "train_as_the_lecture",
            "train_classifier",
        ],
        "folder": ["RunConfig", "TrainedOn", "verify_run"],
        "results": ["Run", "calibrate", "evaluate_classifier"],
        "lecture": ["Trace"],
        "exporting": ["export"],
        "estimators": ["GPT2Classifier", "GPT2Features"],
    },
)
