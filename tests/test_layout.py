"""Rules about the code itself: which module knows which, what is never called, how large a file
grows.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gpt2_from_scratch

NAME = "gpt2_from_scratch"
PACKAGE = Path(gpt2_from_scratch.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text("utf-8")) for path in PACKAGE.glob("*.py")}
# a module imports only from modules to its left
ORDER = [
    "errors",
    "extras",
    "kinds",
    "files",
    "interruption",
    "manifest",
    "sums",
    "locks",
    "part",
    "crc32c",
    "protobuf",
    "pinned",
    "config",
    "head_config",
    "paths",
    "devices",
    "metrics",
    "answered",
    "comparison",
    "calibration",
    "ranking",
    "thresholds",
    "characters",
    "scoreboard",
    "probe_report",
    "tokenizer",
    "leveldb_table",
    "tensor_bundle",
    "https",
    "fetch",
    "download",
    "assessment",
    "lines",
    "tables",
    "data",
    "alignment",
    "conll",
    "squad",
    "examples",
    "scores",
    "score_tables",
    "baselines",
    "near_twins",
    "split",
    "cross_validation",
    "leaks",
    "lengths",
    "remarks",
    "text_baselines",
    "check",
    "report",
    "answers",
    "corpus",
    "epochs",
    "plots",
    "score_plots",
    "page",
    "architecture",
    "model",
    "lora",
    "last_block",
    "real_tokens",
    "tensor_file",
    "checkpoints",
    "weights",
    "random_twin",
    "identity",
    "heads",
    "classifier_settings",
    "ablations",
    "finetuning",
    "drawings",
    "generation",
    "published",
    "saved_classifier",
    "verify",
    "pretrain",
    "batches",
    "trunk",
    "logistic_regression",
    "probes",
    "feature_store",
    "features",
    "targets",
    "losses",
    "predictions",
    "assembly",
    "classifier",
    "heads_by_token",
    "stream",
    "labelled",
    "answering",
    "training_run",
    "run_folder",
    "train",
    "rate_finder",
    "lecture",
    "run_facts",
    "model_card",
    "run_report",
    "run_results",
    "recipes",
    "contenders",
    "contest",
    "compare_report",
    "compare",
    "compare_runs",
    "experiments",
    "experiment_table",
    "experiment_report",
    "arguments",
    "compare_command",
    "experiments_command",
    "commands",
    "course",
    "option_groups",
    "options",
    "cli",
]
LIGHT = [
    "config",
    "head_config",
    "tensor_bundle",
    "tokenizer",
    "download",
    "cli",
    "tables",
    "data",
    "near_twins",
    "split",
    "cross_validation",
    "text_baselines",
    "check",
    "report",
    "answers",
    "metrics",
]
HEAVY = {"torch", "pandas", "matplotlib", "safetensors", "tokenizers"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, at any depth: inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings(name: str) -> set[str]:
    """The modules of the package that one of them imports."""
    parts = [full.split(".") for full in imported(MODULES[name])]
    return {
        second
        for first, second, *_ in (p for p in parts if len(p) > 1)
        if first == NAME and second in MODULES
    }


# --- who knows whom ---


def test_imports_go_round_in_no_circle():
    try:
        TopologicalSorter({name: siblings(name) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")


def test_imports_point_one_way():
    assert sorted(ORDER) == sorted(set(MODULES) - {"__init__"}), "ORDER lists every module once"
    wrong = [
        f"{name} -> {other}"
        for name in ORDER
        for other in siblings(name)
        if other == "__init__" or ORDER.index(other) >= ORDER.index(name)
    ]
    assert not wrong, f"these imports point the wrong way: {wrong}"


def test_the_package_imports_neither_chapters_nor_tests_nor_benchmarks():
    roots = {full.split(".")[0] for tree in MODULES.values() for full in imported(tree)}
    assert not roots & {"chapters", "tests", "benchmarks", "conftest", "pytest"}
    known = {
        NAME,
        "numpy",
        "torch",
        "tiktoken",
        "safetensors",
        "pandas",
        "matplotlib",
        "tqdm",
        "requests",
        "filelock",
        "tokenizers",
        "sklearn",
        "scipy",
        "jinja2",
    }
    assert not {root for root in roots - known if root not in sys.stdlib_module_names}


# --- what an import costs ---


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(found.stdout.split())


def test_the_package_costs_nothing():
    assert not loaded_by(NAME) & (HEAVY | {"numpy", "tiktoken", "requests", "tqdm"})


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_nothing_heavy(name):
    assert not loaded_by(f"{NAME}.{name}") & HEAVY


def test_nothing_is_printed_by_help():
    """And torch stays unloaded: the help answers at once."""
    code = (
        "import sys; from gpt2_from_scratch.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stderr == "0 False\n" and "train" in found.stdout


# --- what is never called ---

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "yaml",
    "runpy",
}
FORBIDDEN_CALLS = {
    "torch.load",
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "np.load",
    "numpy.load",
    "pandas.read_pickle",
    "tempfile.mktemp",
}
FORBIDDEN_METHODS = {"extractall", "read_pickle"}
FORBIDDEN_ARGUMENTS = {"shell", "allow_pickle", "trust_remote_code"}


def dotted(node: ast.AST) -> str:
    """`os.path.join` of such an expression; "" of anything else."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(tree: ast.AST) -> Iterator[str]:
    yield from ({full.split(".")[0] for full in imported(tree)} & FORBIDDEN_MODULES)
    yield from (set(imported(tree)) & FORBIDDEN_CALLS)  # from os import system
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {dotted(node.func)}"
            if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
                yield f"line {node.lineno}: {node.func.attr}"
            for keyword in node.keywords:
                if (
                    keyword.arg in FORBIDDEN_ARGUMENTS
                    and getattr(keyword.value, "value", 1) is not False
                ):
                    yield f"line {node.lineno}: {keyword.arg}="


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_that_runs_strangers_code(name):
    assert not list(forbidden(MODULES[name]))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.load(p)",
        "eval('1')",
        "np.load(p, allow_pickle=True)",
        "numpy.lib.format.read_array(f, allow_pickle=flag)",
        "subprocess.run(c, shell=True)",
        "os.system('ls')",
        "from os import system",
        "zipfile.ZipFile(p).extractall()",
        "from torch import load",
        "import joblib.externals",
    ],
)
def test_the_rule_fires(line):
    assert list(forbidden(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["torch.compile(f)", "json.load(f)", "run(c, shell=False)", "re.compile(x)", "m.eval()"]
)
def test_the_rule_spares_what_is_harmless(line):
    assert not list(forbidden(ast.parse(line)))


# --- how it is written ---


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_is_long(name):
    lines = (PACKAGE / f"{name}.py").read_text("utf-8").count("\n")
    assert lines <= 400


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_is_public_says_what_it_is(name):
    assert ast.get_docstring(MODULES[name]), "the module"
    public = [
        node
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    inner = {
        id(n)
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.FunctionDef)
        for n in ast.walk(node)
        if n is not node
    }
    mute = [node.name for node in public if id(node) not in inner and not ast.get_docstring(node)]
    assert not mute, "say in a sentence what these are"


def test_every_public_name_resolves():
    assert len(set(gpt2_from_scratch.__all__)) == len(gpt2_from_scratch.__all__)
    for name in gpt2_from_scratch.__all__:
        found = getattr(gpt2_from_scratch, name)
        assert found.__name__ == name and found.__module__.startswith(f"{NAME}.")
    assert set(gpt2_from_scratch.__all__) <= set(dir(gpt2_from_scratch))
    with pytest.raises(AttributeError, match="no attribute 'gtp2'"):
        gpt2_from_scratch.gtp2  # noqa: B018
