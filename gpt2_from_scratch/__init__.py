"""GPT-2 written by hand in PyTorch, and finetuned into a text classifier you can trust.

Reading order: gpt2/config, model, tokenizer, weights, generate; data/messages, split;
classifier/heads, freezing, tasks/classification, train, classifier; runs/lecture.
Public names are imported on first use, so `import gpt2_from_scratch` costs nothing.
"""

import lazy_loader

# what users and the chapters need; everything else is in the rooms and may change
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["GPT2Error"],
        "storage.paths": ["model_folder", "data_file"],
        "storage.files": ["sha256_of"],
        "storage.tensors": ["tensors_sha256"],
        "gpt2.config": ["GPT2Config", "LoRAConfig", "PretrainConfig"],
        "gpt2.model": ["CausalSelfAttention", "GPT2", "TransformerBlock", "init_weights"],
        "gpt2.tokenizer": [
            "END_OF_TEXT",
            "SPLIT_PATTERN",
            "Tokenizer",
            "bytes_to_characters",
            "write_bpe",
        ],
        "gpt2.weights": ["load_gpt2", "names_on_disk", "save_gpt2"],
        "gpt2.lora": ["LoRALinear", "add_lora", "merge_lora"],
        "gpt2.generate": ["generate"],
        "gpt2.corpus": ["encode_source", "train_bpe"],
        "gpt2.pretrain": ["bits_per_byte"],
        "gpt2.verify": ["CONTINUATION", "PROMPT", "greedy_continuation", "logits_of_new_head"],
        "gpt2.openai_checkpoint": ["open_arrays"],
        "speed.feature_store": ["FeatureStore"],
        "speed.frozen_trunk": ["Trunk"],
        "speed.partial_blocks": ["block_at"],
        "speed.batching": ["by_length", "encode_texts", "pad_batch"],
        "data.messages": [
            "DataConfig",
            "GoldAnswers",
            "Message",
            "Span",
            "count_labels",
            "load_messages",
            "write_messages",
        ],
        "data.formats": ["load_examples", "write_examples"],
        "data.split": ["Split", "load_split", "split_messages"],
        "data.check": ["check_data"],
        "data.tables": ["tab_separated"],
        "evaluation.metrics": ["evaluate_predictions", "format_evaluation", "wilson_interval"],
        "classifier.settings": ["HeadConfig", "HeadSettings", "POOLINGS", "TrainConfig"],
        "classifier.heads": [
            "class_logits",
            "head_layers",
            "outputs_from",
            "pad_right",
            "pool",
            "read_positions",
            "replace_head",
        ],
        "classifier.freezing": [
            "format_ledger",
            "frozen_depth",
            "ledger",
            "set_trainable",
            "trainable_names",
        ],
        "classifier.train": [
            "TrainingRun",
            "best_epoch",
            "finetune",
            "loss_and_scores",
            "to_labelled",
        ],
        "classifier.classifier": ["Classifier"],
        "classifier.generate": ["generate_with_heads"],
        "classifier.tasks": ["TASKS"],
        "classifier.tasks.classification": ["logit_per_class"],
        "reports.drawings": [
            "draw_architecture",
            "draw_attention",
            "draw_batches",
            "draw_heads_by_token",
            "draw_label_by_token",
            "draw_ledger",
        ],
        "reports.plots": ["plot_confusion", "plot_epochs", "plot_pretraining", "plot_seconds"],
        "runs.recipes": ["resume_training", "train_as_the_lecture", "train_classifier"],
        "runs.results": ["evaluate_classifier"],
        "runs.exporting": ["export"],
        "runs.lecture": ["LABELS", "lecture", "lecture_split", "make_loaders"],
        "studies.probes": ["format_probes", "plot_probes", "pooled_states", "probe_layers"],
        "studies.learning_rate": ["find_learning_rate"],
        "studies.study": ["compare", "run_study"],
    },
)
