"""Several processes agree, exchange values, and notice that one of them has ended."""

import os
from pathlib import Path

import pytest
import torch
from several import in_processes

from gpt2_from_scratch.storage import processes
from gpt2_from_scratch.storage.processes import (
    OtherProcessEnded,
    agreed,
    apart,
    count,
    first_before_others,
    gathered,
    in_any,
    is_first,
    leave,
    part_of,
    rank,
    sum_gradients,
    summed,
    wait_for_all,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs forks")


def test_a_process_alone_exchanges_nothing() -> None:
    parameter = torch.ones(2, requires_grad=True)
    parameter.grad = torch.tensor([1.0, 2.0])
    sum_gradients([parameter])
    wait_for_all()
    assert (count(), rank(), is_first()) == (1, 0, True)
    assert [*part_of("abc")] == ["a", "b", "c"]
    assert gathered(7) == [7] and agreed(7) == 7
    assert in_any(True) and not in_any(False)
    assert summed(torch.tensor(3.0)) == 3.0 and parameter.grad.tolist() == [1.0, 2.0]


def exchange(number: int) -> dict[str, object]:
    """Use every function in one of three processes."""
    found: dict[str, object] = {"who": (rank(), count(), is_first()), "part": [*part_of("abcde")]}
    found["gathered"], found["agreed"] = gathered(f"from {number}"), agreed(number + 10)
    found["in any"] = in_any(number == 2), in_any(False)
    found["sum"] = summed(torch.tensor([number, 1])).tolist()
    with apart():
        found["apart"] = (rank(), count(), gathered(number))
    parameters = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    if number == 1:  # the others have no gradient for this one
        parameters[0].grad = torch.tensor([5.0, 6.0])
    parameters[1].grad = torch.tensor([1.0, float(number)])
    sum_gradients(parameters)
    found["gradients"] = [None if p.grad is None else p.grad.tolist() for p in parameters]
    leave()
    found["left"] = (rank(), count())
    return found


def test_three_processes_exchange_values(tmp_path: Path) -> None:
    found = in_processes(3, exchange, tmp_path)
    parts = ["a", "d"], ["b", "e"], ["c"]
    for number, (one, part) in enumerate(zip(found, parts, strict=True)):
        assert one["who"] == (number, 3, number == 0) and one["part"] == part
        assert one["gathered"] == ["from 0", "from 1", "from 2"] and one["agreed"] == 10
        assert one["in any"] == (True, False) and one["sum"] == [3, 3]
        assert one["apart"] == (0, 1, [number]) and one["left"] == (0, 1)
        assert one["gradients"] == [[5.0, 6.0], [3.0, 3.0], None]


def test_the_first_goes_before_the_others(tmp_path: Path) -> None:
    def work(number: int) -> bool:
        with first_before_others():
            if number == 0:
                (tmp_path / "made").touch()
            return (tmp_path / "made").exists()

    assert in_processes(3, work, tmp_path) == [True, True, True]


def test_a_process_notices_that_another_has_ended(tmp_path: Path) -> None:
    def work(number: int) -> None:
        wait_for_all()
        if number == 1:
            os._exit(1)
        gathered(number)

    first, second = in_processes(2, work, tmp_path)
    assert isinstance(first, OtherProcessEnded) and second is None


def test_the_number_of_a_gpu_is_that_of_the_process_on_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert processes.local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert processes.local_rank() == 3


def test_a_group_of_the_caller_is_not_used(tmp_path: Path) -> None:
    def work(number: int) -> tuple[int, int, list[int]]:
        leave()
        meeting = f"file://{tmp_path / 'own'}"
        torch.distributed.init_process_group("gloo", rank=number, world_size=2, init_method=meeting)
        found = rank(), count(), gathered(number)
        leave()
        assert torch.distributed.is_initialized()  # still the caller's
        torch.distributed.destroy_process_group()
        return found

    assert in_processes(2, work, tmp_path) == [(0, 1, [0]), (0, 1, [1])]
