"""Choose the device, the number of threads and the precision."""

import logging
import os
import platform

import torch

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.pretrain import multiplies_bfloat16
from gpt2_from_scratch.storage.processes import count, local_rank

log = logging.getLogger(__name__)

MOST_THREADS = 1024  # torch crashes with many more threads
# processor features with which torch multiplies int8 faster than float32
INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}

if hasattr(os, "register_at_fork"):
    # A forked process does not have its parent's threads, and torch would wait for them forever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device.

    "auto" prefers a CUDA GPU, then Apple's GPU, then the CPU. Each process of torchrun gets a GPU of
    its own; Apple's GPU cannot be shared. Raises UsageError if the named device is not available.
    """
    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and count() == 1,
        "cpu": True,
    }
    available = [device for device, there in is_available.items() if there]
    if name == "auto":
        name = available[0]
    if name == "cuda" and count() > 1:
        name = f"cuda:{local_rank()}"
    kind, _, number = name.partition(":")
    if kind == "cuda" and kind in available and number.isdecimal():
        if int(number) >= torch.cuda.device_count():
            raise UsageError(
                f"device {name} is not available; there are {torch.cuda.device_count()} GPUs. Choose "
                "another one, --device cpu, or with torchrun a lower --nproc-per-node."
            )
        return torch.device(name)
    if name not in available:
        raise UsageError(
            f"device {name} is not available; available devices: {', '.join(available)}"
        )
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> str:
    """Return the name of a precision; "auto" becomes float32 or bfloat16, and is logged.

    "auto" is bfloat16 if the device multiplies bfloat16 faster than float32. It is never int8, which
    changes more answers than bfloat16. Any other name is returned unchanged.
    """
    if name != "auto":
        return name
    if device.type == "cuda":  # GPUs that are older than 2020 only emulate bfloat16
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = multiplies_bfloat16(device)
    chosen, slower = ("bfloat16", "float32") if is_fast else ("float32", "bfloat16")
    log.info(
        f"precision of the frozen blocks: {chosen}, faster than {slower} on this {device.type}"
    )
    return chosen


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the precision of the frozen blocks if the user chooses `dtype`.

    On a CPU without instructions for bfloat16 or int8 it is float32, because they would be slower.
    Int8 is for CPUs: on a GPU it becomes bfloat16.
    """
    if dtype == torch.int8 and not multiplies_int8(device):
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype == torch.bfloat16 and not multiplies_bfloat16(device):
        dtype = torch.float32
    return dtype


def multiplies_int8(device: torch.device) -> bool:
    """Return whether a device is a CPU that adds products of 8-bit integers in one instruction."""
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(has.get(name, False) for name in INT8)


def set_threads(count: int | None = None) -> int:
    """Set the number of threads that torch uses, and return it.

    The default is the number of physical cores, but at most the number of processors that this
    process may use (its affinity, or the quota of its container). With more threads than that, the
    threads wait for each other, and matrix products take many times as long.
    """
    if count is None:
        from joblib import cpu_count  # imported here, because it takes 0.1 s

        count = min(torch.get_num_threads(), cpu_count())
    if not 1 <= count <= MOST_THREADS:
        raise UsageError(f"threads = {count} must be from 1 to {MOST_THREADS:,}")
    torch.set_num_threads(count)
    return count


def environment(device: torch.device) -> dict[str, str | int]:
    """Describe software and hardware that affect the last bits of results."""
    several: dict[str, str | int] = {"processes": count()} if count() > 1 else {}
    return several | {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
