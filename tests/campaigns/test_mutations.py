"""Do the tests see the classic bugs of a hand-written GPT-2? Each is planted in a copy and must
fail.

`pytest tests/campaigns/test_mutations.py -s` shows which tests see which bug. Weights of std 0.2 and a
tolerance of 1e-4 are needed to see them all: at GPT-2's own std of 0.02, erf GELU for instance
moves no logit by more than 2e-6.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import gpt2_from_scratch

PACKAGE, TESTS = Path(gpt2_from_scratch.__file__).parent, Path(__file__).parents[1]
SELECTION = [
    str(TESTS / "gpt2" / "test_weights.py"),
    str(TESTS / "gpt2" / "test_model.py"),
    "-k",
    "oracle or parts",
]
ORACLE = "test_weights.py::test_oracle_"

# a LayerNorm of our own; {} becomes the wrong formula
NORM = """LAYER_NORM_EPS = 1e-5


class WrongNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / {} * self.weight + self.bias

"""
USE_NORM = [
    (f"self.{name} = nn.LayerNorm(", f"self.{name} = WrongNorm(")
    for name in ("ln_1", "ln_2", "ln_f")
]
EPS = "LAYER_NORM_EPS = 1e-5"

# bug: (file, [(text, which must be there exactly once, and what takes its place)])
BUGS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "erf GELU": ("gpt2/model.py", [('approximate="tanh"', 'approximate="none"')]),
    "unbiased variance": (
        "gpt2/model.py",
        [
            (EPS, NORM.format("(x.var(dim=-1, keepdim=True, correction=1) + 1e-5).sqrt()")),
            *USE_NORM,
        ],
    ),
    "eps outside the root": (
        "gpt2/model.py",
        [(EPS, NORM.format("(x.std(dim=-1, keepdim=True, correction=0) + 1e-6)")), *USE_NORM],
    ),
    "eps 1e-12": ("gpt2/model.py", [(EPS, "LAYER_NORM_EPS = 1e-12")]),
    "square c_proj not transposed": (
        "gpt2/weights.py",
        [
            (
                "if parameter.endswith(STORED_TRANSPOSED) else value",
                "if parameter.endswith(STORED_TRANSPOSED) and 'attn.c_proj' not in parameter else value",
            )
        ],
    ),
    "no 1/sqrt(D)": (
        "gpt2/model.py",
        [("is_causal=seen is None)", "is_causal=seen is None, scale=1.0)")],
    ),
    "no causal mask": ("gpt2/model.py", [("is_causal=seen is None", "is_causal=False")]),
    "q and k swapped": ("gpt2/model.py", [("q, k, v = qkv.split", "k, q, v = qkv.split")]),
    "heads viewed (D, H)": (
        "gpt2/model.py",
        [
            (
                "part.view(B, T, self.n_head, -1).transpose(1, 2)",
                "part.view(B, T, -1, self.n_head).permute(0, 3, 1, 2)",
            ),
            ("y.transpose(1, 2).reshape(B, T, C)", "y.permute(0, 2, 3, 1).reshape(B, T, C)"),
        ],
    ),
    "wpe off by one": (
        "gpt2/model.py",
        [("self.wpe.weight[:T]", "self.wpe.weight.roll(-1, 0)[:T]")],
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What pytest made of a copy of the package."""

    exit_code: int
    failed: list[str]  # "test_weights.py::test_oracle_...", in the order they ran
    output: str


def mutated(source: str, substitutions: list[tuple[str, str]]) -> str:
    for old, new in substitutions:
        assert source.count(old) == 1, (
            f"{old!r} is in the source {source.count(old)} times, not once"
        )
        source = source.replace(old, new)
    return source


def run_tests(folder: Path, bug: str | None) -> Outcome:
    """Copy the package into `folder`, plant the bug, run the selected tests on the copy."""
    copy = folder / "gpt2_from_scratch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if bug is not None:
        name, substitutions = BUGS[bug]
        path = copy / name
        path.write_text(mutated(path.read_text(encoding="utf-8"), substitutions), encoding="utf-8")
    check = "import importlib.util as u; print(u.find_spec('gpt2_from_scratch').origin, end='')"
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    run = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    imported = subprocess.run([sys.executable, "-c", check], **run).stdout
    assert Path(imported).parent == copy, f"the tests would run {imported}, not the copy"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", "-rf"]
    done = subprocess.run([*command, *SELECTION], **run)
    failed = re.findall(r"^FAILED .*?(test_\w+\.py::[^\n]*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return Outcome(done.returncode, failed, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str | None, Future]]:
    """All runs, two at a time; a test waits for its own."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {
            bug: pool.submit(run_tests, tmp_path_factory.mktemp("copy"), bug)
            for bug in (None, *BUGS)
        }
        pool.shutdown(wait=True, cancel_futures=True)


def test_the_copy_without_a_bug_passes(outcomes):
    outcome = outcomes[None].result()
    assert (outcome.exit_code, outcome.failed) == (0, []), outcome.output


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_seen(outcomes, bug):
    outcome = outcomes[bug].result()
    # 1: tests ran and some failed; an error at import would be 2, and " 1 error" in the last line
    assert outcome.exit_code == 1, outcome.output
    assert re.search(r"^\d+ failed, \d+ passed, \d+ deselected in", outcome.output, re.MULTILINE)
    by_oracle = [name for name in outcome.failed if name.startswith(ORACLE)]
    print(f"\n{bug:<30} {len(outcome.failed):>2} tests fail, first {outcome.failed[0]}", end=" ")
    assert by_oracle, f"only parts see it, not the oracle: {outcome.failed}"
