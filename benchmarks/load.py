"""Startup times: loading 124M, the first prediction, --help, and importing.

    python benchmarks/load.py

Hugging Face loads the same safetensors file. Each measurement has its own process; they take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import (
    CHECKOUT,
    copy_vocabulary,
    measure_machine,
    megabytes,
    random_gpt2,
    vocabulary_folder,
)

# each prints seconds, and the peak resident memory beyond the imports in bytes
MEASURE = """
import json, sys, time
sys.path.insert(0, {benchmarks!r})
from bench import PeakMemory
{imports}
with PeakMemory() as before: pass
with PeakMemory() as peak:
    start = time.perf_counter()
    {work}
    seconds = time.perf_counter() - start
print(json.dumps([seconds, peak.bytes - before.bytes]))
"""
WHOLE = """
import json, subprocess, sys, time
start = time.perf_counter()
subprocess.run({command!r}, check=True, stdout=subprocess.DEVNULL)
print(json.dumps([time.perf_counter() - start, 0]))
"""


def programs(safetensors: Path, openai: Path) -> dict[str, str]:
    """{what is measured: the program that measures it}."""

    def measured(imports: str, work: str) -> str:
        benchmarks = str(Path(__file__).parent)
        return MEASURE.format(benchmarks=benchmarks, imports=imports, work=work)

    python = sys.executable
    load = "from gpt2_from_scratch.gpt2.weights import load_gpt2"
    return {
        "Hugging Face, from_pretrained": measured(
            "from transformers import GPT2LMHeadModel",
            f"model = GPT2LMHeadModel.from_pretrained({str(safetensors)!r})",
        ),
        "load_gpt2, the same file": measured(load, f"model = load_gpt2({str(safetensors)!r})"),
        "load_gpt2, OpenAI's files": measured(load, f"model = load_gpt2({str(openai)!r})"),
        "a new classifier and its first answer": measured(
            "from gpt2_from_scratch.classifier.classifier import Classifier",
            f"Classifier.on_base({str(safetensors)!r}, ['ham', 'spam']).predict(['hello'])",
        ),
        "gpt2-classifier --help": WHOLE.format(
            command=[python, "-m", "gpt2_from_scratch", "train", "--help"]
        ),
        "import gpt2_from_scratch": WHOLE.format(
            command=[python, "-c", "import gpt2_from_scratch"]
        ),
        "python -c pass": WHOLE.format(command=[python, "-c", "pass"]),
    }


def write_openai_folder(folder: Path) -> None:
    """Write random weights in OpenAI's format, with the same writer as in the tests."""
    sys.path.insert(0, str(CHECKOUT / "tests"))
    from write_bundle import write_random_gpt2

    from gpt2_from_scratch.gpt2.config import SIZES

    write_random_gpt2(folder, vars(SIZES["124M"]), seed=124)
    copy_vocabulary(vocabulary_folder(), folder)


def write_config_json(folder: Path) -> None:
    """Write the file that Hugging Face needs next to the weights."""
    sizes = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"} | sizes
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        safetensors = random_gpt2(Path(name) / "safetensors")
        write_config_json(safetensors)
        write_openai_folder(Path(name) / "openai")
        results: dict[str, list[list[float]]] = {}
        for _ in range(args.rounds):
            for what, program in programs(safetensors, Path(name) / "openai").items():
                found = subprocess.run(
                    [sys.executable, "-c", program], check=True, capture_output=True, text=True
                )
                results.setdefault(what, []).append(json.loads(found.stdout.splitlines()[-1]))
        weights = (safetensors / "model.safetensors").stat().st_size
    print(f"load and start: {measure_machine().describe()}")
    print("| | seconds | more memory than before, MB | copies of the weights |\n|---|---|---|---|")
    for what, rounds in results.items():
        seconds, size = (statistics.median(values) for values in zip(*rounds, strict=True))
        memory = f"{megabytes(size)} | {size / weights:.2f}" if size else " | "
        print(f"| {what} | {seconds:.2f} | {memory} |")


if __name__ == "__main__":
    main()
