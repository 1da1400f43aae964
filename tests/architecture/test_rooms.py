"""Rules about the package as a whole: which room imports which, what an import costs, what is never called."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gpt2_from_scratch

NAME = "gpt2_from_scratch"
PACKAGE = Path(gpt2_from_scratch.__file__).parent
ROOMS = "storage gpt2 speed data evaluation classifier explain reports runs studies web cli".split()
HEAVY = {"torch", "pandas", "matplotlib", "safetensors", "tokenizers", "sklearn", "onnx"}
LIGHT_ROOMS = ("data", "evaluation", "cli")
LIGHT = {  # no torch at import time: --help and the reading of data need none
    "errors",
    "progress",
    "storage.files",
    "storage.paths",
    "storage.settings",
    "gpt2.config",
    "gpt2.tokenizer",
    "gpt2.openai_checkpoint",
    "gpt2.download",
    "classifier.settings",
}
LIBRARIES = set(
    "numpy scipy sklearn torch tiktoken safetensors pandas matplotlib tqdm requests filelock "
    "tokenizers jinja2 joblib google_crc32c platformdirs tabulate lazy_loader argcomplete onnx "
    "onnxruntime starlette uvicorn regex".split()
)


def module_name(path: Path) -> str:
    """`gpt2.model` of .../gpt2/model.py; a room's __init__ is named as the room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): ast.parse(p.read_text("utf-8")) for p in PACKAGE.rglob("*.py")}


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
    found = {full.removeprefix(f"{NAME}.") for full in imported(MODULES[name])}
    return found & MODULES.keys() - {name, ""}


# --- who knows whom ---


def test_no_import_cycles():
    try:
        TopologicalSorter({name: siblings(name) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")


def test_a_room_imports_only_from_the_rooms_before_it():
    order = {room: n for n, room in enumerate(["errors", "progress", *ROOMS])}
    assert {name.split(".")[0] for name in MODULES} == {*order, "course", "__main__", ""}
    wrong = []
    for name in MODULES:
        room = name.split(".")[0]
        for other in siblings(name):
            there = other.split(".")[0]
            if room in order and (there not in order or order[there] > order[room]):
                wrong.append(f"{name} imports {other}")
            if (room, there) == ("data", "speed"):  # these two do not know each other
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_the_package_imports_only_its_dependencies():
    roots = {full.split(".")[0] for tree in MODULES.values() for full in imported(tree)}
    assert roots - {NAME} - sys.stdlib_module_names - {"google"} <= LIBRARIES


# --- what an import costs ---


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(found.stdout.split())


def test_the_package_costs_nothing():
    assert not loaded_by(NAME) & (HEAVY | {"numpy", "tiktoken", "requests", "tqdm", "scipy"})


def test_light_modules_load_nothing_heavy():
    light = LIGHT | {name for name in MODULES if name.split(".")[0] in LIGHT_ROOMS}
    assert light <= MODULES.keys()
    assert not loaded_by(f"{NAME}.{f', {NAME}.'.join(sorted(light))}") & HEAVY


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_loads_little(words):
    """So it answers at once; `benchmarks/load.py` measures the seconds."""
    code = (
        f"import sys; from {NAME}.cli.main import main\n"
        f"try: main({words})\n"
        "except SystemExit as end: print(end.code, *sys.modules, file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    result, *modules = found.stderr.split()
    assert result == "0" and "train" in found.stdout
    assert len(modules) < 400, "287 in 2025, most of them numpy's and the standard library's"
    assert not {name.split(".")[0] for name in modules} & (HEAVY | {"scipy", "requests", "pooch"})


# --- what is never called ---

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
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
    "joblib.load",
    "joblib.dump",
    "joblib.Memory",
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
    yield from (
        full for full in imported(tree) if re.match(r"joblib\.(externals|numpy_pickle)", full)
    )
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


@pytest.mark.slow
def test_nothing_that_runs_strangers_code():
    assert not {name: found for name in MODULES if (found := list(forbidden(MODULES[name])))}


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
        "joblib.load(p)",
        "from joblib import load",
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


@pytest.mark.slow
def test_public_definitions_have_docstrings():
    mute = []
    for name, tree in MODULES.items():
        inner = {
            id(n)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            or isinstance(node, ast.ClassDef)
            and node.name.startswith("_")
            for n in ast.walk(node)
            if n is not node
        }
        mute += [name] if not ast.get_docstring(tree) else []
        mute += [
            f"{name}.{node.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and id(node) not in inner
            and not ast.get_docstring(node)
        ]
    assert not mute


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for(room):
    """The subject in one line, then for whom it is or what it promises."""
    first, *more = (ast.get_docstring(MODULES[room]) or "").splitlines()
    assert first.endswith(".") and 1 <= len([line for line in more if line]) <= 4


def test_ruff_formats_every_line():
    folders = [PACKAGE, *(PACKAGE.parent / name for name in ("chapters", "benchmarks"))]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert not [p for p in files if re.search(r"# fmt: *(skip|off)", p.read_text("utf-8"))]


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_resolves(room):
    package = importlib.import_module(f"{NAME}.{room}".rstrip("."))
    for name in getattr(package, "__all__", []):
        found = getattr(package, name)
        assert getattr(found, "__module__", NAME).startswith(NAME)
    with pytest.raises(AttributeError):
        package.gtp2  # noqa: B018
