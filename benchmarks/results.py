"""Measure every number of the documentation again: `make results DATA=folder`.

Each measurement is a command. What it prints is kept in `docs/results/printed/NAME.txt`, with the
commit, the machine and the seconds, and a test compares the tables of the documentation with these
files. A measurement that has a file of the current commit is not repeated, so an interrupted call can
be resumed. Measurements whose data are not in the folder are left out.

    python benchmarks/results.py --list
    python benchmarks/results.py --data ../shared/data --only explain serve
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import measure_machine

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {  # data that does not ship with the package
    "trec": "TREC's question types (Li & Roth 2002), train.csv and test.csv: text,label",
    "sst2": "the film reviews of SST-2 (Socher et al. 2013), train.csv and test.csv: text,label",
    "wnut17": "the entities of WNUT 2017 (Derczynski et al. 2017), in CoNLL form",
}
DEMO = "runs/demo"  # a finished `gpt2-classifier demo`


@dataclass(frozen=True)
class Measurement:
    """A command whose output the documentation shows."""

    name: str  # of its file
    page: str  # of docs/, where its numbers are
    command: str  # DATA stands for the folder of the data
    minutes: float  # on 2 cores of an AMD EPYC with AVX-512
    needs: tuple[str, ...] = ()  # names in SOURCES

    def words(self, data: Path) -> list[str]:
        """The words of the command."""
        program, *words = self.command.replace("DATA", str(data)).split()
        start = [sys.executable, *(["-m", "gpt2_from_scratch"] if program != "python" else [])]
        return [*start, *words]


MEASUREMENTS = (
    Measurement("explain", "results/explanations.md", f"python benchmarks/explain.py {DEMO}", 3),
    Measurement("serve", "results/serve.md", f"python benchmarks/serve.py {DEMO}", 2),
    Measurement(
        "serve-124M", "results/serve.md", "python benchmarks/serve.py 124M --keystrokes 20", 3
    ),
    Measurement("export", "how-to/serve-onnx.md", f"python benchmarks/export.py {DEMO}", 2),
    Measurement("processes", "how-to/several-processes.md", "python benchmarks/processes.py", 4),
    Measurement("finetune", "results/speed.md", "python benchmarks/finetune.py", 8),
    Measurement("predict", "results/speed.md", "python benchmarks/predict.py --messages 2000", 12),
    Measurement(
        "precision", "results/speed.md", "python benchmarks/precision.py --seeds 1 2 3", 12
    ),
    Measurement("scale", "results/speed.md", "python benchmarks/scale.py", 12),
    Measurement("scale-long", "results/speed.md", "python benchmarks/scale.py --long", 12),
    Measurement("second-run", "results/speed.md", "python benchmarks/second_run.py", 5),
    Measurement("load", "results/speed.md", "python benchmarks/load.py", 1),
    Measurement(
        "estimators", "results/estimators.md", "python benchmarks/estimators.py --epochs 3", 4
    ),
    Measurement("heads", "results/heads.md", "python benchmarks/several_heads.py", 4),
    Measurement("tasks", "results/heads.md", "python benchmarks/tasks.py", 8),
    Measurement("own-loop", "results/own-loop.md", "python benchmarks/own_loop.py", 5),
    Measurement("probes", "results/probes.md", "python benchmarks/probes.py", 5),
    Measurement("next-token", "results/probes.md", "python benchmarks/next_token.py", 5),
    Measurement(
        "next-token-mini", "results/probes.md", "python benchmarks/next_token.py --scores mini", 6
    ),
    Measurement("qlora", "results/qlora.md", "python benchmarks/qlora.py --texts 240", 8),
    Measurement(
        "reading",
        "results/reading.md",
        "python benchmarks/reading.py --data DATA",
        60,
        ("trec", "sst2"),
    ),
    Measurement("reading-cost", "results/reading.md", "python benchmarks/reading_cost.py", 3),
    Measurement(
        "compare",
        "results/scoreboard.md",
        "gpt2-classifier compare --data sms --balance --seeds 1 2 3 4 5 --verbose",
        15,
    ),
    Measurement(
        "experiments",
        "results/experiments.md",
        "gpt2-classifier experiments --data sms --balance --epochs 5 --verbose",
        60,
    ),
    Measurement(
        "autotune",
        "results/autotune.md",
        "python benchmarks/autotune.py --threads 1 --data DATA",
        150,
        ("trec", "sst2"),
    ),
    Measurement(
        "adaptation",
        "results/adaptation.md",
        "python benchmarks/adaptation.py --epochs 3 --seeds 1 2 3 --more 1000 --test --data DATA",
        40,
        ("trec",),
    ),
    Measurement(
        "miniature",
        "results/miniature.md",
        "python benchmarks/miniature.py weights/mini",
        30,
        ("trec", "sst2", "wnut17"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in MEASUREMENTS])
    parser.add_argument("--list", action="store_true", help="only list the measurements")
    args = parser.parse_args()
    wanted = [one for one in MEASUREMENTS if not args.only or one.name in args.only]
    commit = git("rev-parse", "--short", "HEAD")
    todo = [one for one in wanted if not is_done(one, commit)]
    print(
        f"{len(todo)} of {len(wanted)} measurements, about {sum(m.minutes for m in todo):.0f} minutes"
    )
    if args.list:
        for one in wanted:
            print(f"{one.name:16}{one.minutes:4.0f} min  {one.page:30}{one.command}")
        return
    if git("status", "--porcelain", "--", "gpt2_from_scratch", "benchmarks", "weights"):
        sys.exit("commit your changes first, so that the commit says what was measured")
    machine = measure_machine().describe()
    for one in todo:
        if missing := [name for name in one.needs if not (args.data / name).is_dir()]:
            print(
                f"{one.name}: left out; {args.data / missing[0]} is missing: {SOURCES[missing[0]]}"
            )
            continue
        print(f"{one.name}: {one.command} (about {one.minutes:.0f} minutes)", flush=True)
        measure(one, args.data, commit, machine)


def measure(one: Measurement, data: Path, commit: str, machine: str) -> None:
    """Run a command and keep what it prints; a failed one is reported and leaves no file."""
    began = time.monotonic()
    done = subprocess.run(one.words(data), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{one.name}: failed with exit code {done.returncode}")
        return
    seconds = time.monotonic() - began
    printed(one).parent.mkdir(exist_ok=True)
    head = f"$ {one.command}\ncommit {commit}, {seconds:.0f} s\n{machine}\n\n"
    printed(one).write_text(head + done.stdout, "utf-8")


def printed(one: Measurement) -> Path:
    """The file that keeps what a measurement printed."""
    return ROOT / "docs" / "results" / "printed" / f"{one.name}.txt"


def is_done(one: Measurement, commit: str) -> bool:
    """Whether the output of this commit is there."""
    path = printed(one)
    return path.exists() and f"\ncommit {commit}," in path.read_text("utf-8")


def git(*words: str) -> str:
    """What a git command prints."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
