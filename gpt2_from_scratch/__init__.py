"""GPT-2 written by hand in PyTorch, and finetuned into a text classifier you can trust.

Reading order: gpt2/config, model, tokenizer, weights, generate; data/messages, split;
classifier/heads, freezing, tasks/classification, train, classifier; runs/lecture.
Public names are imported on first use, so `import gpt2_from_scratch` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "gpt2": [
            "GPT2",
            "GPT2Config",
            "LoRAConfig",
            "PretrainConfig",
            "Tokenizer",
            "add_lora",
            "load_gpt2",
            "merge_lora",
            "save_gpt2",
        ],
        "data": [
            "DataConfig",
            "Message",
            "Span",
            "Split",
            "check_data",
            "load_examples",
            "load_messages",
            "load_sms_spam",
            "split_messages",
        ],
        "classifier": [
            "Classifier",
            "HeadSettings",
            "HeadConfig",
            "TrainConfig",
            "class_logits",
            "finetune",
            "format_ledger",
            "generate_with_heads",
            "ledger",
            "pad_right",
            "replace_head",
            "set_trainable",
        ],
        "runs": [
            "evaluate_classifier",
            "resume_training",
            "train_as_the_lecture",
            "train_classifier",
        ],
        "gpt2.generate": ["generate"],
        "studies": ["compare", "find_learning_rate", "probe_layers", "run_study"],
        "errors": ["GPT2Error"],
        "evaluation": ["format_evaluation"],
    },
)
