"""GPT-2: the network, its tokenizer and its weights.

Learners read `config`, `model`, `tokenizer`, `weights` and `generate`, in this order. Parameters have
the same names as in OpenAI's checkpoint.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["GPT2Config", "LoRAConfig", "PretrainConfig", "SIZES"],
        "model": ["CausalSelfAttention", "GPT2", "MLP", "TransformerBlock", "init_weights"],
        "tokenizer": ["Tokenizer"],
        "weights": ["load_gpt2", "random_twin", "save_gpt2"],
        "nf4": ["NF4_LEVELS", "NF4Linear", "quantize_blocks"],
        "lora": ["LoRALinear", "add_lora", "merge_lora", "unmerge_lora"],
        "generate": ["choose_tokens"],
        "pretrain": ["bits_per_byte"],
        "download": ["download_model"],
        "verify": ["verify_model"],
    },
)
