"""Commands and Python of the README and of `docs/` run, and their output is the one shown.

A page's commands run one after another in a folder of their own, with the run of the demo in
`runs/first` and small tables. The sets below list every command that does not run here, and why.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from urllib.request import urlopen

import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

from gpt2_from_scratch import Classifier, export, load_messages
from gpt2_from_scratch.classifier import settings
from gpt2_from_scratch.cli.main import build_parser, main

ROOT = Path(__file__).parents[2]
WRITTEN = {"docs/reference/commands.md", "docs/reference/settings.md"}  # from the code

NETWORK = {  # or a fresh environment, or a server
    "make demo",
    "pip install --constraint constraints.txt .",
    "pip download --constraint constraints.txt --dest wheels . hatchling",
    "pip install --no-index --find-links wheels .",
    'pip install --constraint constraints.txt --editable ".[notebooks]"',
    'pip install --constraint constraints.txt ".[onnx]"',
    """curl --data '["See you at six", "WINNER!! Call 09061701461 now"]' http://127.0.0.1:8000""",
    'pip install --constraint constraints.txt ".[serve]"',
}
OPENAI = {  # these need OpenAI's weights
    "gpt2-classifier download 124M",
    "gpt2-classifier verify 124M",
    "gpt2-classifier verify weights/124M",
    'gpt2-classifier generate --model 124M --prompt "Every effort moves you"',
    "gpt2-classifier train --model 124M --data sms --balance --lr 2e-4 --out runs/124M",
    "gpt2-classifier find-rate --model 124M --data sms --balance",
    "gpt2-classifier train --model 124M --data sms --balance --lora 16 --lr 8e-4 --out runs/lora-124M",
    "gpt2-classifier train --model 124M --data sms --recipe lecture",
    "gpt2-classifier train --model 1558M --data sms --stream-blocks",
}
LONG = {  # a quarter of a minute and more, or files of another machine
    "gpt2-classifier train --data hard --out runs/hard",
    "gpt2-classifier compare --data reviews.csv --folds 5 --quick --out runs/folds",
    "gpt2-classifier compare --data reviews.csv --quick --seeds 1 2 --out runs/compared",
    "gpt2-classifier compare --data sms --balance --seeds 1 2 3 4 5",
    "gpt2-classifier experiments --data sms --balance --epochs 5",
    "gpt2-classifier train --data reviews.csv --autotune 5m --out runs/tuned",
    "gpt2-classifier probe --task language --balance --out next-token.png",
    "gpt2-classifier probe runs/demo --task language",
    "python benchmarks/miniature.py weights/mini runs/next --corpus CORPUS",
    "python benchmarks/miniature.py weights/mini --quick",
    "python benchmarks/gpu/parts.py join folder weights/next",
    "python chapters/01_messages.py",  # tests/course runs it
}
ELSEWHERE = {  # other tests run these: they need an interrupted run, empty the cache, or do not end
    "gpt2-classifier train --resume runs/first",
    "gpt2-classifier serve runs/first",  # tests/web starts and stops the server
    "gpt2-classifier serve runs/first runs/other",
    "gpt2-classifier cache --clear",
    "gpt2-classifier demo",  # the fixture below runs it; it makes the run of the first tutorial
    "gpt2-classifier train --data sms --balance --verbose --out runs/first",
}
# programs that an export wrote, run after it
EXPORTED = {'python served/classify.py "See you at six" "WINNER!! Call 09061701461 now"'}
WITHOUT_TORCH = (
    "import runpy, sys; sys.argv = sys.argv[1:]; sys.modules['torch'] = None; "
    "sys.modules['gpt2_from_scratch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
)
THINGS = (
    "soup bread coffee room bed lamp chair view garden lift key towel pillow shower tea cake plate "
    "spoon window carpet"
).split()
NOT_RUN = NETWORK | OPENAI | LONG | ELSEWHERE


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    return list(found)


def commands(page: Path) -> list[str]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip()]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_COMMANDS = [page for page in PAGES if set(commands(page)) - NOT_RUN]
SERVER = "server.serve_forever()"  # a program that does not end; it has a test of its own
PYTHON = [
    (page, n)
    for page in PAGES
    for n, code in enumerate(blocks(page, "python"))
    if SERVER not in code
]


def words(command: str) -> list[str]:
    """The arguments of `gpt2-classifier`, without `> FILE`."""
    return shlex.split(command.partition(" > ")[0])[1:]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of `gpt2-classifier demo`, and what the command printed."""
    run, printed = tmp_path_factory.mktemp("demo") / "run", StringIO()
    with redirect_stdout(printed):
        assert main(["demo", "--out", str(run)]) == 0
    return run, printed.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the tables that the pages speak of."""
    reviews = [(f"the {thing} was lovely and {thing}s never fail", "good") for thing in THINGS]
    reviews += [(f"our {thing} came cold: two {thing}s too many", "bad") for thing in THINGS]
    table = "".join(f'"{text}",{label}\n' for text, label in reviews)
    (tmp_path / "reviews.csv").write_text(f"text,label\n{table}")
    (tmp_path / "new.csv").write_text("text\nlovely breakfast\ncold soup\n")
    stars = "".join(f'stay,"{text}",{label}\n' for text, label in reviews)
    (tmp_path / "stars.csv").write_text(f"title,body,stars\n{stars}")
    lines = "".join(f"{label}\t{text}\n" for text, label in reviews)
    (tmp_path / "noheader.tsv").write_text(lines)
    messages = load_messages("hard")[:80]
    newer = "".join(f"{json.dumps(m.text)},{m.label}\n" for m in messages if '"' not in m.text)
    (tmp_path / "newer.csv").write_text(f"text,label\n{newer}")
    (tmp_path / "inbox.txt").write_text("see you at six\nWIN a prize, call 09061701461 now\n")
    tickets = [{"text": text, "label": [label, "hotel"]} for text, label in reviews]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(one) + "\n" for one in tickets))
    for part, numbers in (("train", range(30)), ("dev", range(30, 42)), ("test", range(42, 54))):
        sentences = "".join(f"We\tO\nleft\tO\nTown{n}\tB-place\n\n" for n in numbers)
        (tmp_path / f"{part}.conll").write_text(sentences)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists(page: Path, tmp_path: Path, monkeypatch) -> None:
    """The parser knows its options, the Makefile its target, the repository its script."""
    monkeypatch.chdir(tmp_path)  # where no run exists yet
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in commands(page):
        program, *rest = shlex.split(command.partition(" > ")[0])
        if program == "gpt2-classifier":
            build_parser().parse_args(rest)
        elif program == "torchrun":
            build_parser().parse_args(rest[rest.index("gpt2_from_scratch") + 1 :])
        elif program == "make":
            assert rest[0] in targets, command
        elif program == "python":
            assert command in EXPORTED or (ROOT / rest[0]).is_file(), command
        else:
            assert command in NETWORK, f"{command}: list it in this test, or correct it"


def test_every_command_that_is_not_run_is_on_a_page() -> None:
    assert {command for page in PAGES for command in commands(page)} >= NOT_RUN


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_run(
    page: Path, folder: Path, demo: tuple[Path, str], monkeypatch, capsys
) -> None:
    """With a short training where the command does not say how long: nobody reads its scores."""
    if any("--to onnx" in command for command in commands(page)):
        pytest.importorskip("onnxruntime")
    monkeypatch.setattr(settings, "ENOUGH_STEPS", 1)
    monkeypatch.setattr(settings, "EPOCHS", 2)
    for run in ("first", "other"):
        shutil.copytree(demo[0], folder / "runs" / run)
    for command in commands(page):
        if command in EXPORTED:
            program, *arguments = words(command)
            answers = subprocess.run(
                [sys.executable, "-c", WITHOUT_TORCH, program, *arguments],
                capture_output=True,
                check=True,
                text=True,
            ).stdout.splitlines()
            labels = [json.loads(answer)["label"]["label"] for answer in answers]
            assert labels == [p.label for p in Classifier.load(demo[0]).predict(arguments)]
        if command not in NOT_RUN and command.startswith("gpt2-classifier"):
            code = main(words(command))
            assert code == 0, f"{command}: {capsys.readouterr().err[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), PYTHON, ids=lambda it: getattr(it, "stem", str(it)))
def test_the_python_of_a_page_runs(
    page: Path, number: int, folder: Path, demo: tuple[Path, str], capsys
) -> None:
    code = blocks(page, "python")[number]
    if "onnxruntime" in code:
        pytest.importorskip("onnxruntime")
        export(Classifier.load(demo[0]), folder / "served", to="onnx")
        capsys.readouterr()
    exec(compile(code, str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert printed
    after = page.read_text("utf-8").split(code)[1].removeprefix("```")
    following = re.match(r"\s*```text\n(.*?)^```", after, re.M | re.S)
    if following:
        assert_alike(printed, following[1])


@pytest.mark.slow
def test_the_server_of_the_page_about_onnx_answers(folder: Path, demo: tuple[Path, str]) -> None:
    """Without PyTorch and without this package; at a free port instead of 8000."""
    pytest.importorskip("onnxruntime")
    classifier = Classifier.load(demo[0])
    export(classifier, folder / "served", to="onnx")
    page = ROOT / "docs/how-to/serve-onnx.md"
    (code,) = (code for code in blocks(page, "python") if SERVER in code)
    (folder / "serve.py").write_text(code.replace(", 8000)", ", 0)"))
    (curl,) = (command for command in commands(page) if command.startswith("curl"))
    body = shlex.split(curl)[2]
    program = [sys.executable, "-c", WITHOUT_TORCH, "serve.py"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            with urlopen(address, data=body.encode(), timeout=60) as response:
                answers = json.load(response)
        finally:
            server.terminate()
    for found, expected in zip(answers, classifier.predict(json.loads(body)), strict=True):
        assert found == pytest.approx(expected.probabilities, abs=1e-4)


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(demo: tuple[Path, str]) -> None:
    """Up to what another processor changes: a few of the 262 test messages."""
    shown = re.search(r"```text\n(Test set.*?)^```", PAGES[0].read_text("utf-8"), re.M | re.S)[1]
    number = r"[-+]?\d+(?:\.\d+)?"
    before_the_report = slice(0, 6)
    printed, shown = (text.splitlines()[before_the_report] for text in (demo[1], shown))
    for ours, theirs in zip(printed, shown, strict=True):
        assert re.sub(number, "N", ours) == re.sub(number, "N", theirs)
        for a, b in zip(re.findall(number, ours), re.findall(number, theirs), strict=True):
            assert float(a) == pytest.approx(float(b), abs=5)


@pytest.mark.slow
def test_the_picture_of_the_readme_is_drawn_from_a_run(demo: tuple[Path, str]) -> None:
    """Both halves: a box per part of the network, and a point per token."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    classifier = Classifier.load(demo[0])
    network, curve = pictures.draw(classifier).axes
    boxes = [patch for patch in network.patches if isinstance(patch, FancyBboxPatch)]
    assert [to_rgb(box.get_facecolor()) for box in boxes] == (
        [to_rgb(pictures.FROZEN)] * 7 + [to_rgb(pictures.TRAINED)] * 3
    )
    percents = curve.lines[1].get_ydata()
    (answer,) = classifier.predict([pictures.MESSAGE])
    assert percents[-1] == pytest.approx(100 * answer.probabilities["spam"], abs=0.01)


@pytest.mark.slow
def test_the_scores_that_are_shown_are_those_of_the_run(demo: tuple[Path, str]) -> None:
    """In the README and in the first tutorial, up to what another processor changes."""
    scores = json.loads((demo[0] / "evaluation.json").read_text())
    for page in (ROOT / "README.md", ROOT / "docs/tutorials/first-classifier.md"):
        shown = re.search(r"accuracy ([\d.]+)%  \((\d+) of (\d+);", page.read_text("utf-8"))
        assert float(shown[1]) == pytest.approx(100 * scores["accuracy"], abs=2)
        assert float(shown[1]) == round(100 * int(shown[2]) / int(shown[3]), 2)


def assert_alike(printed: str, shown: str) -> None:
    """The same text; numbers may differ by 5%, because another processor rounds otherwise."""
    number = r"\d+(?:\.\d+)?"
    assert re.sub(number, "N", printed) == re.sub(number, "N", shown)
    for ours, theirs in zip(re.findall(number, printed), re.findall(number, shown), strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=0.05)
