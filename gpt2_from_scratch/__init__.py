"""GPT-2 written by hand in PyTorch, and finetuned into a text classifier you can trust.

The public names are imported when they are first used, so that `import gpt2_from_scratch` costs
nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "GPT2": "model",
    "GPT2Config": "config",
    "HeadConfig": "head_config",
    "LoRAConfig": "lora",
    "ClassifierSettings": "classifier_settings",
    "PretrainConfig": "config",
    "TrainConfig": "config",
    "GPT2Error": "errors",
    "Tokenizer": "tokenizer",
    "load_gpt2": "weights",
    "save_gpt2": "weights",
    "generate": "generation",
    "Message": "data",
    "Span": "data",
    "Split": "split",
    "load_messages": "data",
    "load_sms_spam": "data",
    "load_examples": "examples",
    "split_messages": "split",
    "check_data": "check",
    "replace_head": "heads",
    "class_logits": "heads",
    "pad_right": "heads",
    "set_trainable": "finetuning",
    "ledger": "finetuning",
    "format_ledger": "finetuning",
    "Classifier": "classifier",
    "finetune": "train",
    "find_rate": "rate_finder",
    "probe_layers": "probes",
    "generate_with_heads": "heads_by_token",
    "train_classifier": "recipes",
    "resume_training": "recipes",
    "train_as_the_lecture": "recipes",
    "evaluate_classifier": "recipes",
    "format_evaluation": "metrics",
    "format_scores": "score_tables",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
