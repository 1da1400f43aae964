"""Run every chapter as a script, one after another, and print how long each took.

With GPT2_FROM_SCRATCH_COURSE=124M in the environment they run on OpenAI's model. If a chapter fails,
its output is printed and the later chapters are not run.
"""

import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    total = 0.0
    for script in sorted(Path(__file__).parent.glob("[0-9][0-9]_*.py")):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
        took = time.perf_counter() - began
        total += took
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}{script.name} failed after {took:.0f} s")
        print(f"{script.stem:<20} {took:5.1f} s", flush=True)
    print(f"{'all':<20} {total:5.1f} s")


if __name__ == "__main__":
    main()
