"""Plant the classic bugs of a hand-written GPT-2, one by one: the tests must detect each of them.

A copy of `gpt2/model.py` or `gpt2/weights.py` with one bug replaces the original while
`test_weights.py` is loaded again, so that its oracle tests run on the copy.
`pytest tests/campaigns/test_mutations.py -s` shows which tests detect which bug. Detecting all of
them takes weights of std 0.2 and a tolerance of 1e-4. With GPT-2's own std of 0.02, for example,
erf GELU changes no logit by more than 2e-6.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]
COPIED = ("gpt2_from_scratch.gpt2.model", "gpt2_from_scratch.gpt2.weights")

# our own LayerNorm; {} is replaced by the wrong formula
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

# bug: (module, [(text that occurs exactly once in the source, its replacement)])
BUGS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "erf GELU": ("model", [('approximate="tanh"', 'approximate="none"')]),
    "unbiased variance": (
        "model",
        [
            (EPS, NORM.format("(x.var(dim=-1, keepdim=True, correction=1) + 1e-5).sqrt()")),
            *USE_NORM,
        ],
    ),
    "eps outside the root": (
        "model",
        [(EPS, NORM.format("(x.std(dim=-1, keepdim=True, correction=0) + 1e-6)")), *USE_NORM],
    ),
    "eps 1e-12": ("model", [(EPS, "LAYER_NORM_EPS = 1e-12")]),
    "square c_proj not transposed": (
        "weights",
        [
            (
                "if parameter.endswith(STORED_TRANSPOSED) else value",
                "if parameter.endswith(STORED_TRANSPOSED) and 'attn.c_proj' not in parameter else value",
            )
        ],
    ),
    "no 1/sqrt(D)": ("model", [("is_causal=seen is None)", "is_causal=seen is None, scale=1.0)")]),
    "no causal mask": ("model", [("is_causal=seen is None", "is_causal=False")]),
    "q and k swapped": ("model", [("q, k, v = qkv.split", "k, q, v = qkv.split")]),
    "heads viewed (D, H)": (
        "model",
        [
            (
                "part.view(B, T, self.n_head, -1).transpose(1, 2)",
                "part.view(B, T, -1, self.n_head).permute(0, 3, 1, 2)",
            ),
            ("y.transpose(1, 2).reshape(B, T, C)", "y.permute(0, 2, 3, 1).reshape(B, T, C)"),
        ],
    ),
    "wpe off by one": ("model", [("self.wpe.weight[:T]", "self.wpe.weight.roll(-1, 0)[:T]")]),
}


def load(name: str, path: Path, substitutions: list[tuple[str, str]]) -> ModuleType:
    """Run a file with replaced text as the module `name`, for all later imports."""
    source = path.read_text(encoding="utf-8")
    for old, new in substitutions:
        assert (times := source.count(old)) == 1, f"{path} has {old!r} {times} times, not once"
        source = source.replace(old, new)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    sys.modules[name] = module
    exec(compile(source, path, "exec"), vars(module))
    return module


@pytest.fixture
def oracle_tests(monkeypatch) -> Callable[[str | None], dict[str, Callable]]:
    """A function: bug -> {name: oracle test on a copy of the package with this bug}."""

    def of_copy(bug: str | None) -> dict[str, Callable]:
        planted, substitutions = BUGS[bug] if bug else ("", [])
        for name in COPIED:
            original = importlib.import_module(name)
            monkeypatch.setitem(sys.modules, name, original)  # restored after the test
            here = substitutions if name.endswith(f".{planted}") else []
            load(name, Path(original.__file__), here)
        monkeypatch.setitem(sys.modules, "test_weights_copy", None)
        tests = load("test_weights_copy", TESTS / "gpt2" / "test_weights.py", [])
        model, weights = (vars(sys.modules[name]) for name in COPIED)
        assert tests.load_gpt2.__globals__ is weights and weights["GPT2"] is model["GPT2"]
        return {name: test for name, test in vars(tests).items() if name.startswith("test_oracle_")}

    return of_copy


def failures(tests: dict[str, Callable], tmp_path: Path, tiny_checkpoint: Path) -> list[str]:
    """Run tests with their fixtures; return the names of those that detected a difference."""
    failed = []
    for name, test in tests.items():
        (folder := tmp_path / name).mkdir()
        fixtures = {"tmp_path": folder, "tiny_checkpoint": tiny_checkpoint}
        try:
            test(**{asked: fixtures[asked] for asked in inspect.signature(test).parameters})
        except AssertionError as error:
            assert "Not equal to tolerance" in str(error), "it failed before the comparison"
            failed.append(name)
    return failed


def test_the_copy_without_a_bug_passes(oracle_tests, tmp_path, tiny_checkpoint):
    tests = oracle_tests(None)
    assert len(tests) >= 3 and failures(tests, tmp_path, tiny_checkpoint) == []


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_detected(bug, oracle_tests, tmp_path, tiny_checkpoint):
    failed = failures(oracle_tests(bug), tmp_path, tiny_checkpoint)
    print(f"\n{bug:<30} {', '.join(failed)}", end=" ")
    assert failed, "no oracle test sees it"
