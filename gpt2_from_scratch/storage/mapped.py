"""Matrices that stay in their file until they are used.

A `MappedParameter` is a view of a file that is mapped into memory. The operating system reads its
pages when they are used. `release` gives them back, so that only matrices in use take memory. The
pages stay in the system's cache of files while there is space, so that they can be read again quickly.

The file must not become shorter while it is mapped, because the process would crash.
"""

import math
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.storage.files import open_regular


class MappedParameter(nn.Parameter):
    """A frozen matrix in a file, in the precision of the file.

    A change in place changes only this process's copy of its pages, never the file. A changed matrix
    is not released. But torch does not count changes through `.data`: call `hold` before them, or they
    are lost. `hold` and `copy.deepcopy` read it into memory as float32.
    """

    pages: mmap.mmap | None  # None: its values are in memory, as those of any other parameter
    mapped_version: int  # torch's count of the changes in place when it was mapped
    digest: str  # its hash, if it is known (see `tensors.each_sha256`)

    @staticmethod
    @torch.inference_mode(False)  # torch does not count the changes of tensors made in this mode
    def of(
        path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> "MappedParameter":
        """Map a matrix: `shape` values of `dtype` that begin `offset` bytes after the file's start.

        Raises CheckpointError if the file cannot be read or is too short.
        """
        count = math.prod(shape)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            with open_regular(path) as file:
                # copy on write, because torch has no read-only tensors
                pages = mmap.mmap(
                    file.fileno(),
                    offset - start + count * dtype.itemsize,
                    access=mmap.ACCESS_COPY,
                    offset=start,
                )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be mapped into memory: {error}") from None
        values = torch.frombuffer(pages, dtype=dtype, count=count, offset=offset - start)
        return MappedParameter._made(values.view(shape), pages)

    @staticmethod
    def _made(values: Tensor, pages: mmap.mmap) -> "MappedParameter":
        made: MappedParameter = torch.Tensor._make_subclass(MappedParameter, values, False)
        made.pages, made.mapped_version, made.digest = pages, made._version, ""
        return made

    @torch.inference_mode(False)
    def transposed(self) -> "MappedParameter":
        """Return the transpose of this matrix, which shares its pages."""
        assert self.pages is not None
        return self._made(self.detach().t(), self.pages)

    @property
    def is_unchanged(self) -> bool:
        """Whether its values are still those of the file."""
        return self.pages is not None and self._version == self.mapped_version

    def release(self) -> None:
        """Give back the memory of the pages; the next use reads them from the file again."""
        # on Windows there is no madvise, and the system takes pages back when it needs memory
        if self.pages is not None and self.is_unchanged and hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED)

    def hold(self) -> None:
        """Read the matrix into memory as float32; it remains the same parameter."""
        if self.pages is not None:
            self.data = self._in_memory()
            self.release()
            self.pages = None

    def _in_memory(self) -> Tensor:
        dtype = self.dtype if self.pages is None else torch.float32
        return self.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the values, as float32; a file cannot be pickled."""
        found = nn.Parameter(self._in_memory(), self.requires_grad)
        self.release()
        return found.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        found = nn.Parameter(self._in_memory(), self.requires_grad)
        self.release()
        memo[id(self)] = found
        return found


def is_mapped(tensor: Tensor) -> bool:
    """Return whether a tensor is a parameter whose values are still in a file."""
    return isinstance(tensor, MappedParameter) and tensor.pages is not None


def release(tensor: Tensor) -> None:
    """Give back the memory of a mapped parameter; do nothing for any other tensor."""
    if isinstance(tensor, MappedParameter):
        tensor.release()


def hold(module: nn.Module) -> None:
    """Read all mapped parameters of a module into memory as float32."""
    for parameter in module.parameters():
        if isinstance(parameter, MappedParameter):
            parameter.hold()
