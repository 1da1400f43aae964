"""Use a few minutes on one NVIDIA card: compare it with the CPU, measure speed, pretrain.

    python benchmarks/gpu/run.py --pack build/gpu-pack --out runs/gpu      # or: make gpu
    python benchmarks/gpu/run.py --stages qlora large --pack ...           # or: make gpu STAGES="qlora large"

Needs the pack that `make gpu-pack` writes, PyTorch and numpy, and no network. Each stage is a
process of its own, and writes its results into --out as soon as it has them.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib import metadata
from pathlib import Path

import parts

ROOT = Path(__file__).resolve().parents[2]
WHOLE = 505  # seconds after which the last stage must be over
# seconds at most, in the order in which the stages run
STAGES = {
    "compare": 120,
    "speed": 120,
    "qlora": 150,
    "large": 150,
    "torchrun": 60,
    "pretrain_next": WHOLE,
}
ONLY_IF_NAMED = {"qlora", "large", "torchrun"}
# a stage's program is that of its name, unless a benchmark has this name already
PROGRAMS = {
    "qlora": "qlora_steps.py",
    "large": "large_model.py",
    "torchrun": "one_nccl_process.py",
}
GRACE = 10  # seconds between asking a stage to stop and ending it
MODEL = (
    "model.safetensors",
    "hparams.json",
    "vocab.bpe",
    "encoder.json",
    "pretraining.json",
    "pretraining.jsonl",
)
PACKAGES = (
    "lazy_loader",
    "safetensors",
    "tiktoken",
    "tqdm",
    "tabulate",
    "google_crc32c",
    "filelock",
)


def install(wheels: Path, site: Path) -> None:
    """Install the wheels of packages that this Python lacks into a folder of their own."""
    names = (found.metadata["Name"] or "" for found in metadata.distributions())
    installed = {name.lower().replace("-", "_") for name in names}
    missing = [
        str(wheel)
        for wheel in sorted(wheels.glob("*.whl"))
        if wheel.name.split("-")[0].lower() not in installed
    ]
    if missing:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
        done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *missing])
        print(f"{len(missing)} packages installed, exit status {done.returncode}", flush=True)
    sys.path.insert(0, str(site))
    if lacking := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        sys.exit(
            f"the packages {', '.join(lacking)} are missing; write the pack for Python "
            f"{sys.version_info.major}.{sys.version_info.minor}: make gpu-pack PACK_PYTHON=..."
        )


def run_stage(name: str, seconds: float, options: list[str], site: Path, out: Path) -> None:
    """Run a stage in a process of its own; stop it when its time is over."""
    results, log = out / f"{name}.json", out / "log.txt"
    program = Path(__file__).with_name(PROGRAMS.get(name, f"{name}.py"))
    command = [sys.executable, str(program), *options]
    command += ["--out", str(results), "--seconds", str(seconds)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", site)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    before = log.stat().st_size if log.exists() else 0
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            process.wait(seconds + GRACE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # pretraining ends its step
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    printed = log.read_bytes()[before:].decode(errors="replace")
    print(printed, end="", flush=True)
    if process.returncode:
        found = json.loads(results.read_text("utf-8")) if results.exists() else {}
        last = printed.strip().splitlines()[-1:]
        found["stage"] = {"error": f"exit status {process.returncode}", "last line": "".join(last)}
        results.write_text(json.dumps(found, indent=1), "utf-8")


def main() -> None:
    """Unpack, install what is missing, run the stages, split the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True, help="the folder of make gpu-pack")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it on a CPU")
    parser.add_argument(
        "--stages",
        nargs="*",
        choices=STAGES,
        default=[],
        help=f"default: all but {', '.join(sorted(ONLY_IF_NAMED))}; with --small, all",
    )
    args = parser.parse_args()
    started = time.monotonic()
    if not (args.pack / "data.tar.xz").exists():
        sys.exit(f"{args.pack} holds no data.tar.xz; run make gpu-pack first")
    if args.out.exists() and any(args.out.iterdir()):
        sys.exit(f"{args.out} is not empty; choose another folder: make gpu OUT=...")
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.pack.resolve().with_name(f"{args.pack.name}-work")
    shutil.rmtree(work, ignore_errors=True)
    data, site = work / "data", work / "site"
    with tarfile.open(args.pack / "data.tar.xz") as tar:
        tar.extractall(data, filter="data")
    install(args.pack / "wheels", site)
    options = ["--device", args.device, "--data", str(data), "--work", str(work)]
    options += ["--small"] if args.small else []
    # with --small all stages are quick
    chosen = set(args.stages) or STAGES.keys() - (set() if args.small else ONLY_IF_NAMED)
    for name, most in STAGES.items():
        if name not in chosen:
            continue
        seconds = min(most, WHOLE - (time.monotonic() - started))
        if args.small:  # tiny, but this machine may be busy
            seconds = 3600
        print(f"--- {name}: at most {seconds:.0f} s", flush=True)
        run_stage(name, seconds, options, site, args.out)
    model = [work / "next" / name for name in MODEL]
    if model[0].exists():
        parts.split([file for file in model if file.exists()], args.out)
    print(f"--- {time.monotonic() - started:.0f} s; {args.out} holds:")
    for file in sorted(args.out.iterdir()):
        print(f"{file.stat().st_size:>12,} {file.name}")
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
