"""Several processes that train one model or share one task, started by torchrun.

torchrun starts this program several times, on one machine or on many, and torch.distributed connects
the processes. They run the same code in step. Each computes a part of the work, and the functions
here exchange the results: `part_of` selects a process's part, `sum_gradients` and `gathered` put the
parts together. The processes need a common disk. The first process writes the files.

Outside torchrun, in a block of `apart`, and after `leave`, there is one process, and nothing is
exchanged. Objects are exchanged as pickles, so only trusted machines may reach torchrun's ports.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gpt2_from_scratch.errors import GPT2Error

T = TypeVar("T")
# how long a process waits for the others, for example while the first one writes a checkpoint
PATIENCE = timedelta(hours=6)
_is_joined = _is_apart = False


class OtherProcessEnded(GPT2Error):
    """Another process of this run has ended, so this one cannot continue."""


def local_rank() -> int:
    """The number of this process among those of its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def joined(rank: int = -1, world_size: int = -1, init_method: str | None = None) -> Iterator[None]:
    """Connect this process with the others during the block.

    By default torchrun's environment variables say which processes there are. The arguments are
    those of `torch.distributed.init_process_group`. Without this block the package computes alone,
    also in a program that uses torch.distributed itself.
    """
    global _is_joined
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    dist.init_process_group(
        backend, rank=rank, world_size=world_size, init_method=init_method, timeout=PATIENCE
    )
    _is_joined = True
    yield  # after an error nothing is left to tidy, because torchrun ends all processes
    leave()


def leave() -> None:
    """Work alone from now on. The other processes must not wait for this one any longer."""
    global _is_joined
    if _is_joined:
        _is_joined = False
        dist.destroy_process_group()


@contextmanager
def apart() -> Iterator[None]:
    """Work alone during the block, as the others do too."""
    global _is_apart
    before, _is_apart = _is_apart, True
    try:
        yield
    finally:
        _is_apart = before


def _are_several() -> bool:
    return _is_joined and not _is_apart


def count() -> int:
    """The number of processes that work together."""
    return dist.get_world_size() if _are_several() else 1


def rank() -> int:
    """The number of this process, counted from 0."""
    return dist.get_rank() if _are_several() else 0


def is_first() -> bool:
    """Whether this process writes the files. It does if it is alone."""
    return rank() == 0


def part_of(items: Iterable[T]) -> Iterator[T]:
    """Yield this process's part of the items: every `count()`-th, beginning with number `rank()`."""
    return islice(items, rank(), None, count())


@contextmanager
def _connection() -> Iterator[None]:
    """Raise OtherProcessEnded if the connection to another process is lost."""
    try:
        yield
    except RuntimeError as error:
        what = str(error).strip().partition("\n")[0]
        raise OtherProcessEnded(
            "another process cannot be reached, so this one stops. If the other one has ended, its "
            f"message says why. ({what:.200})"
        ) from error


def wait_for_all() -> None:
    """Wait until every process is here."""
    if _are_several():
        with _connection():
            dist.barrier()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Run the block in the first process, and then in the others."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in the order of their numbers."""
    if not _are_several():
        return [value]
    found: list[T] = [value] * count()
    with _connection():
        dist.all_gather_object(found, value)
    return found


def agreed(value: T) -> T:
    """Return the first process's value."""
    return gathered(value)[0]


def in_any(flag: bool) -> bool:
    """Whether the flag is true in at least one process."""
    return bool(summed(torch.tensor(int(flag))))


def summed(values: Tensor) -> Tensor:
    """Return the sum of all processes' values, in a tensor of the same shape on the same device."""
    if not _are_several():
        return values
    total = values.clone()
    with _connection():
        dist.all_reduce(total)
    return total


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradient of each parameter by the sum of all processes' gradients.

    A parameter that has no gradient in any process keeps none, so the optimizer leaves it as it is.
    All gradients travel together. Unlike with DistributedDataParallel, a process may have computed
    no gradient at all, for example if a batch has fewer texts than there are processes.
    """
    if not _are_several():
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor([p.grad is not None for p in parameters], dtype=gradients[0].dtype)
    sizes = [gradient.numel() for gradient in gradients]
    flat = torch.cat([*(g.flatten() for g in gradients), there.to(gradients[0].device)])
    *totals, there = summed(flat).split([*sizes, len(sizes)])
    for parameter, total, n in zip(parameters, totals, there.tolist(), strict=True):
        parameter.grad = total.view_as(parameter) if n else None
