"""The same numbers as the plain network, faster.

Frozen blocks run once per text, without padding, and their output is cached on disk.
Tests hold each shortcut equal to the plain network; `benchmarks/` measures it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batching": ["by_length", "encode_texts", "pad_batch"],
        "devices": ["choose_device", "set_threads"],
        "feature_cache": ["Embedded", "Features"],
        "feature_store": ["FeatureStore"],
        "frozen_trunk": ["Trunk"],
        "partial_blocks": ["block_at", "block_on"],
    },
)
