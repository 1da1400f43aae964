"""Which processor computes, with how many threads, in which precision."""

import math
import os
import platform
from pathlib import Path

import torch

from gpt2_from_scratch.errors import UsageError

MOST_THREADS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


def check_dtype(dtype: torch.dtype) -> None:
    """Raise UsageError for anything but the two in which frozen blocks compute."""
    if dtype not in DTYPES.values():
        raise UsageError(f"dtype = {dtype!r} must be torch.float32 or torch.bfloat16")


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In what precision frozen blocks compute when `dtype` is asked for: on CPUs without bfloat16
    instructions that is float32, which is nine times as fast there (README, How fast it is).
    """
    if dtype == torch.bfloat16 and device.type == "cpu" and not _cpu_multiplies_bfloat16():
        return torch.float32
    return dtype


def set_threads(count: int | None = None) -> int:
    """Let torch compute with `count` threads; by default with its own choice (the physical cores),
    but no more than this process may use (its affinity, a container's quota). Returns the number.

    More threads than processors wait for each other: matrix products take many times as long.
    """
    if count is None:
        count = min(torch.get_num_threads(), usable_processors())
    if not 1 <= count <= MOST_THREADS:  # torch ends with a segmentation fault at some number
        raise UsageError(f"threads = {count} must be from 1 to {MOST_THREADS:,}")
    torch.set_num_threads(count)
    return count


def usable_processors(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many processors this process may use at once."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        microseconds, period = quota.read_text().split()
        return max(1, min(count, math.ceil(int(microseconds) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or "max": no quota
        return count


def environment(device: torch.device) -> dict[str, str | int]:
    """What decides the last bits of a result besides the settings."""
    return {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _cpu_multiplies_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch
        return False
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
