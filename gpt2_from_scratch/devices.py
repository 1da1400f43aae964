"""Which processor computes."""

import torch

from gpt2_from_scratch.errors import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """A CUDA GPU, else Apple's, else the CPU for "auto"; UsageError if the named one is absent."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    if not available.get(name):
        there = ", ".join(device for device, there in available.items() if there)
        raise UsageError(f"device {name} is not to be had here; there is: {there}")
    return torch.device(name)
