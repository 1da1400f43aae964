"""Latency of the page's answer to a keystroke, and 32 clients at once.

    python benchmarks/serve.py runs/demo
    python benchmarks/serve.py 124M

For each panel the program asks what the page asks after a keystroke in a message of 30 tokens: first
the answer after each token, then the panel's own requests, all at once. It prints the median and the
95th percentile, and the server's processor time, which depends less on other programs. Then 32
clients ask for answers without a pause. It prints the number of answers and of errors, and the memory
of the server. `124M` is a classifier with random weights of that size.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from bench import random_gpt2

from gpt2_from_scratch import Classifier, load_messages

N_TOKENS, CLIENTS = 30, 32
WARM_UP = 1  # keystroke that opens connections
PANELS: dict[str, list[tuple[str, dict]]] = {  # what each panel asks for, next to api/tokens
    "none": [],
    "Words": [("importance", {})],
    "Attention": [("attention", {"token": N_TOKENS - 2})],
    "Layers": [
        ("layers", {}),
        ("next", {"token": N_TOKENS - 3, "weights": "finetuned"}),
        ("next", {"token": N_TOKENS - 3, "weights": "pretrained"}),
    ],
    "Parts": [("contributions", {"label": "ham", "other": "spam"})],
    "Network": [("network", {})],
}


@contextmanager
def server(*words: object) -> Iterator[tuple[str, int]]:
    """Run `gpt2-classifier serve`; yield its address and its process id."""
    command = [sys.executable, "-m", "gpt2_from_scratch", "serve", *map(str, words), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found, process.stderr.read()
        try:
            yield found[0], process.pid
        finally:
            process.terminate()


def message(classifier: Classifier) -> str:
    """A message of the collection that has N_TOKENS tokens."""
    texts = [one.text for one in load_messages("sms")]
    encoded, _ = classifier.encode(texts)
    return next(t for t, ids in zip(texts, encoded, strict=True) if len(ids) == N_TOKENS)


def keystrokes(url: str, pid: int, text: str, panel: str, count: int) -> tuple[list[float], float]:
    """The milliseconds until a panel is complete, and the server's processor time, per keystroke."""
    found, used = [], 0.0
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(6) as pool:

        def ask(path: str, fields: dict) -> None:
            client.post(f"api/{path}", json=fields).raise_for_status()

        for n in range(count + WARM_UP):
            if n == WARM_UP:
                used = processor_time(pid)
            typed = text[:-1] + chr(ord("a") + n % 26)
            start = time.perf_counter()
            ask("tokens", {"text": typed})
            list(pool.map(lambda one, t=typed: ask(one[0], {"text": t} | one[1]), PANELS[panel]))
            found.append(1000 * (time.perf_counter() - start))
        used = processor_time(pid) - used
    return found[WARM_UP:], 1000 * used / count


def load(url: str, pid: int, seconds: float) -> str:
    """Let CLIENTS clients ask for answers without a pause; describe what happened."""
    texts = [one.text for one in load_messages("sms")]
    texts = [text for text in texts if len(text) < 300]
    end = time.monotonic() + seconds

    def client(number: int) -> tuple[list[float], int]:
        times, errors, n = [], 0, number
        with httpx.Client(base_url=url, timeout=120) as session:
            while time.monotonic() < end:
                n += CLIENTS
                start = time.perf_counter()
                try:
                    session.post(
                        "api/tokens", json={"text": texts[n % len(texts)]}
                    ).raise_for_status()
                    times.append(time.perf_counter() - start)
                except httpx.HTTPError:
                    errors += 1
        return times, errors

    memory = [resident(pid)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        while time.monotonic() < end:
            time.sleep(min(10, seconds / 3))
            memory.append(resident(pid))
        results = [each.result() for each in running]
    times = sorted(t for part, _ in results for t in part)
    errors = sum(n for _, n in results)
    return (
        f"{CLIENTS} clients, {seconds:g} s: {len(times)} answers, {errors} errors, "
        f"{len(times) / seconds:.1f} per second, median {1000 * statistics.median(times):.0f} ms, "
        f"95th percentile {1000 * percentile(times):.0f} ms; "
        f"memory {' '.join(f'{mb:.0f}' for mb in memory)} MB"
    )


def processor_time(pid: int) -> float:
    """The seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """The resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000  # type: ignore[index]


def percentile(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[round(0.95 * (len(values) - 1))]


def main() -> None:
    """Measure one classifier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run's folder, or 124M for random weights of that size")
    parser.add_argument(
        "--seconds", type=float, default=60, help="of the 32 clients; 0: none (default: 60)"
    )
    parser.add_argument("--keystrokes", type=int, default=40, help="per panel (default: 40)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        words: list[object] = [args.run, "--threads", args.threads]
        if args.run == "124M":
            model, run = random_gpt2(Path(place) / "model"), Path(place) / "run"
            classifier = Classifier.on_base(model, ["ham", "spam"])
            classifier.save(run / "best.safetensors")
            words = [run, "--model", model, "--threads", args.threads]
        else:
            classifier = Classifier.load(args.run)
        text = message(classifier)
        del classifier
        with server(*words) as (url, pid):
            print(f"{args.run}, {args.threads} threads, a message of {N_TOKENS} tokens")
            for panel in PANELS:
                ms, used = keystrokes(url, pid, text, panel, args.keystrokes)
                print(
                    f"{panel}: median {statistics.median(ms):.0f} ms, 95th percentile "
                    f"{percentile(ms):.0f} ms, {used:.0f} ms of processor time",
                    flush=True,
                )
            if args.seconds:
                print(load(url, pid, args.seconds))


if __name__ == "__main__":
    main()
