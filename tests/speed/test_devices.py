"""The requested device, threads and precision are used if available."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest import MonkeyPatch
from said import listen

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.speed import devices
from gpt2_from_scratch.speed.devices import arithmetic, choose_device, choose_dtype, set_threads


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("there", [["cuda", "mps", "cpu"], ["mps", "cpu"], ["cpu"]])
def test_the_best_device_or_the_named_one(monkeypatch: MonkeyPatch, there: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert choose_device() == choose_device("auto") == torch.device(there[0])
    assert [str(choose_device(name)) for name in there] == there
    for name in {"cuda", "mps", "tpu"} - set(there):
        error = pytest.raises(UsageError, choose_device, name)
        error.match(f"device {name} .*: {', '.join(there)}$")


HAVE = [{"avx512_bf16": True, "amx_bf16": False}, {"amx_bf16": True}, {"bf16": True}]
# capabilities of CPUs without bfloat16; None stands for an older torch that does not list them
LACK = [{"avx512_bf16": False, "amx_bf16": False, "avx2": True}, {}, None]


@pytest.mark.parametrize("flags", HAVE + LACK)
def test_only_cpus_may_lack_bfloat16(monkeypatch: MonkeyPatch, flags: dict[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    if flags is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    for device in map(torch.device, ("cuda", "cuda:1", "mps", "cpu")):
        assert arithmetic(torch.float32, device) == torch.float32
        there = device.type != "cpu" or flags in HAVE
        assert arithmetic(torch.bfloat16, device) == (torch.bfloat16 if there else torch.float32)


@pytest.mark.parametrize(
    "flags", [{"avx512_vnni": True}, {"avx_vnni": True}, {"amx_int8": True}, *LACK]
)
def test_int8_needs_instructions_of_a_cpu(monkeypatch: MonkeyPatch, flags: dict[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    if flags is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    expected = torch.float32 if flags in LACK else torch.int8
    assert arithmetic(torch.int8, torch.device("cpu")) == expected
    assert arithmetic(torch.int8, torch.device("cuda")) == torch.bfloat16


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="its flags")
def test_bfloat16_is_detected_as_linux_reports_it() -> None:
    there = {"amx_bf16", "avx512_bf16"} & set(Path("/proc/cpuinfo").read_text().split())
    assert (arithmetic(torch.bfloat16, torch.device("cpu")) == torch.bfloat16) == bool(there)


@pytest.mark.parametrize("flags", HAVE + LACK)
def test_auto_is_the_faster_of_two_precisions(
    monkeypatch: MonkeyPatch, flags: dict[str, bool]
) -> None:
    """It is not int8, even if the processor has instructions for it."""
    if flags is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: flags | {"avx512_vnni": True}, raising=False
        )
    said, cpu = listen(), torch.device("cpu")
    expected = "bfloat16" if flags in HAVE else "float32"
    assert choose_dtype("auto", cpu) == expected
    assert len(said) == 1 and expected in said[0]
    for name in ("float32", "bfloat16", "int8", "float64"):
        assert choose_dtype(name, cpu) == name
    for emulated in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: not emulated)  # noqa: B023
        expected = "float32" if emulated else "bfloat16"
        assert choose_dtype("auto", torch.device("cuda")) == expected


def test_the_number_of_threads(monkeypatch: MonkeyPatch) -> None:
    for usable in (1, 2, 9):
        monkeypatch.setattr("joblib.cpu_count", lambda usable=usable: usable)
        torch.set_num_threads(5)
        assert set_threads() == torch.get_num_threads() == min(5, usable)
    assert set_threads(3) == torch.get_num_threads() == 3
    for count in (0, -1):
        pytest.raises(UsageError, set_threads, count).match(f"threads = {count} ")
    assert torch.get_num_threads() == 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity as Linux has it")
def test_threads_are_limited_by_the_affinity() -> None:
    code = """if True:
        import os, torch
        from gpt2_from_scratch.speed.devices import set_threads
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
        torch.set_num_threads(2)
        print(set_threads(), torch.get_num_threads())"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout == "1 1\n"


def test_each_process_gets_a_gpu_of_its_own(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "count", lambda: 4)
    for number in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        device = choose_device("auto")
        assert device == choose_device("cuda") == torch.device("cuda", number)
        assert choose_device(str(device)) == device  # a command passes it on like this
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert "2 GPUs" in str(pytest.raises(UsageError, choose_device, "auto").value)


def test_apples_gpu_is_not_shared(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(devices, "count", lambda: 2)
    assert choose_device("auto").type == "cpu"
    pytest.raises(UsageError, choose_device, "mps")
