"""Common code of the benchmarks: a random 124M for all sides, the machine's limits, memory."""

import ctypes
import gc
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2_from_scratch import GPT2
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.model import init_weights
from gpt2_from_scratch.gpt2.weights import save_gpt2
from gpt2_from_scratch.storage.paths import CHECKOUT, home

SHARED = CHECKOUT.parent / "shared"
CPU = torch.device("cpu")


def vocabulary_folder() -> Path:
    """The folder of OpenAI's vocabulary, from a downloaded 124M or next to the checkout."""
    for folder in (home() / "weights" / "124M", SHARED / "openai_124M"):
        if (folder / "vocab.bpe").exists():
            return folder
    sys.exit("this benchmark needs OpenAI's vocab.bpe; get it with: gpt2-classifier download 124M")


def random_gpt2(
    folder: Path,
    config: GPT2Config = SIZES["124M"],
    seed: int = 124,
    vocabulary: Path | None = None,
) -> Path:
    """A folder with random weights of GPT-2's own sizes, and OpenAI's or another vocabulary.

    The matrices are five times as large as before training in GPT-2's paper. With the paper's size,
    texts would hardly differ after the last block, and nothing could be learned from them.
    """
    model = GPT2(config)
    init_weights(model, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name.startswith(("blocks", "wte")):
                parameter *= 5
    save_gpt2(model, folder)
    copy_vocabulary(vocabulary or vocabulary_folder(), folder)
    return folder


def copy_vocabulary(source: Path, folder: Path) -> None:
    """Copy the two files of a tokenizer."""
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copy(source / name, folder / name)


@dataclass(frozen=True)
class Machine:
    """The highest speed of this machine, as measured here and now."""

    name: str
    # operations per second in a matrix product of the size in GPT-2's MLP
    flops: dict[torch.dtype, float]
    bandwidth: float  # bytes read and written per second

    def describe(self) -> str:
        """Describe the machine in one line, for a table's caption."""
        return (
            f"{self.name}, {torch.get_num_threads()} threads, torch {torch.__version__}: float32 "
            f"{self.flops[torch.float32] / 1e9:.0f} GFLOP/s, bfloat16 "
            f"{self.flops[torch.bfloat16] / 1e9:.0f} GFLOP/s, memory {self.bandwidth / 1e9:.0f} GB/s"
        )


def measure_machine(device: torch.device = CPU, times: int = 5) -> Machine:
    """Measure matrix products and an in-place addition, on the processor or on a GPU.

    The products are of 2048 tokens by 768 x 3072. These are too small for a GPU, where they are of
    8192 x 8192.
    """
    is_cpu = device.type == "cpu"
    rows, n_in, n_out = (2048, 768, 3072) if is_cpu else (8192, 8192, 8192)
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, n_in, device=device).to(dtype)
        W = torch.randn(n_out, n_in, device=device).to(dtype)
        seconds = best_of(times, lambda x=x, W=W: x @ W.T, device)
        flops[dtype] = 2 * rows * n_in * n_out / seconds
    numbers = torch.zeros(2**27 if is_cpu else 2**29, device=device)
    bandwidth = 2 * numbers.nbytes / best_of(times, lambda: numbers.add_(1), device)
    name = _processor() if is_cpu else torch.cuda.get_device_name(device)
    return Machine(name, flops, bandwidth)


def best_of(times: int, run: Callable[[], object], device: torch.device = CPU) -> float:
    """The shortest duration of several runs after a warm-up, in seconds."""
    run()
    return min(timed(run, device) for _ in range(times))


def timed(run: Callable[[], object], device: torch.device = CPU) -> float:
    """The duration of one run in seconds, including all work that it started on a GPU."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The peak memory of a block: `with PeakMemory() as peak`, and then `peak.bytes`.

    On a GPU it is the most memory that torch allocated there; otherwise, the most resident memory
    (on Linux).
    """

    def __init__(self, device: torch.device = CPU):
        self.device, self.bytes = device, 0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # do not count memory that was freed earlier
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif sys.platform == "linux":
            status = Path("/proc/self/status").read_text()
            self.bytes = int(status.split("VmHWM:")[1].split()[0]) * 1024


def megabytes(size: float) -> str:
    """Format bytes as megabytes, such as "1,234"."""
    return f"{size / 1e6:,.0f}"


def note(line: str) -> None:
    """Report progress on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def block_flops(config: GPT2Config, tokens: float, length: float) -> float:
    """The operations of one block for this many tokens, in texts of about this length."""
    C = config.n_embd
    return tokens * (24 * C * C + 2 * C * length)  # causal: half of 4 C T


def _processor() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":")[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
