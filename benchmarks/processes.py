"""Several processes of torchrun against one: seconds, weights and answers.

    python benchmarks/processes.py

Each command runs with one process of one thread, one process with a thread per core, and two and four
processes of one thread. The seconds are those of the whole command, starting Python included. Weights
and answers are compared with those of the first. The model is the miniature, or a folder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import measure_machine
from safetensors.numpy import load_file

from gpt2_from_scratch import load_messages

WAYS = [(1, 1), (1, os.cpu_count() or 1), (2, 1), (4, 1)]  # (processes, threads)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def seconds(n_processes: int, n_threads: int, *words: object, output: Path | None = None) -> float:
    """Run a command, with its output in a file; return its seconds."""
    start = [sys.executable, *(TORCHRUN + [str(n_processes)] if n_processes > 1 else [])]
    command = [*start, "-m", "gpt2_from_scratch", *map(str, words)]
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": str(n_threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    if output:
        output.write_text(done.stdout)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--texts", type=int, default=4000, help="of predict and features")
    parser.add_argument("--blocks", type=int, default=6, help="trained blocks (default: 6)")
    args = parser.parse_args()
    print(f"processes: {measure_machine().describe()}")
    print("| processes x threads | train, s | predict, s | features, s | weights | answers |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["GPT2_FROM_SCRATCH_CACHE"] = str(folder / "cache")
        texts = [" ".join(message.text.split()) for message in load_messages("sms")]
        file = folder / "texts.txt"
        file.write_text("".join(f"{text}\n" for text in dict.fromkeys(texts[: args.texts])))
        first: dict[str, np.ndarray] = {}
        for n_processes, n_threads in WAYS:
            name = f"{n_processes}-{n_threads}"
            run, table, states = (folder / f"{kind}-{name}" for kind in ("run", "csv", "npy"))
            train = ["train", "--model", args.model, "--data", "sms", "--balance", "--epochs", 2]
            train += ["--n-last-blocks", args.blocks, "--patience", 2, "--out", run]
            base = ["--model", args.model] if Path(args.model).is_dir() else []
            took = [
                seconds(n_processes, n_threads, *train),
                seconds(
                    n_processes,
                    n_threads,
                    *("predict", folder / "run-1-1", *base, "--file", file, "--csv"),
                    output=table,
                ),
                seconds(
                    n_processes,
                    n_threads,
                    *("features", "--model", args.model, "--file", file, "--out", states),
                ),
            ]
            weights = load_file(run / "last.safetensors")
            first = first or weights
            # not the biases of the keys, whose gradient is only rounding
            largest = max(
                float(np.abs(weights[key] - value).max())
                for key, value in first.items()
                if not key.endswith("c_attn.bias")
            )
            same = all(
                path.read_bytes() == (folder / f"{kind}-1-1").read_bytes()
                for kind, path in (("csv", table), ("npy", states))
            )
            print(
                f"| {n_processes} x {n_threads} | {' | '.join(f'{s:.1f}' for s in took)} "
                f"| {largest:.0e} | {'the same bytes' if same else 'other last digits'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
