"""Exact shortcuts: the same results as the plain network, in less time.

Frozen blocks run once per text, without padding, and their output is cached on disk. Tests compare
each shortcut with the plain network, and `benchmarks/` measures how much time it saves.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batching": ["by_length", "encode_texts", "pad_batch"],
        "devices": ["choose_device", "choose_dtype", "set_threads"],
        "feature_cache": ["Embedded", "Features"],
        "feature_store": ["FeatureStore"],
        "frozen_trunk": ["Trunk"],
        "partial_blocks": ["block_at", "block_on"],
    },
)
