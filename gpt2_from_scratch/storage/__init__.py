"""Atomic files on disk: JSON, tensors, resumable states, locks. Processes that share their work.

This sub-package is for maintainers. A process that is killed at any moment leaves the old file or the
new one, never a partial file. The code here knows where models and data sets are stored, but not what
their files mean.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": [
            "check_sums",
            "is_complete",
            "locked",
            "read_json",
            "sha256_of",
            "write_json",
            "write_manifest",
            "write_text",
        ],
        "tensors": ["read_tensors", "write_tensors"],
        "states": ["newest_state", "save_state"],
        "paths": ["features_folder", "home", "model_folder"],
        "settings": ["check_settings", "setting"],
    },
)
