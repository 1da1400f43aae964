"""Run all campaigns, two at a time (`make faults`), and print their counts for FAULTS.md."""

import argparse
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import campaign

CAMPAIGNS = {  # number of trials of each, the longest first
    "resume": 200,
    "text": 100_000,
    "mutation": 1_000_000,
    "saving": 1_000,
    "terminal": 7_000,
}


def main() -> None:
    """Run the campaigns; exit with 1 if any of them raises an AssertionError."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts (default: 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"{', '.join(CAMPAIGNS)}")
    args = parser.parse_args()
    begun = time.monotonic()

    def one(name: str) -> str:
        def say(line: str) -> None:
            print(f"{time.strftime('%H:%M:%S')} {name}: {line}", file=sys.stderr, flush=True)

        count = max(1, round(args.share * CAMPAIGNS[name]))
        try:
            counts = campaign.run(name, count, args.seed, say)
        except AssertionError as error:
            say(f"FAILED: {error}")
            return f"| {name} | {args.seed} |  | FAILED: {error} |"
        seconds = counts.pop("seconds")
        reported = "; ".join(f"{what} {number:,}" for what, number in sorted(counts.items()))
        say("done")
        return f"| {name} | {args.seed} | {seconds:,} | {reported} |"

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(one, args.only or CAMPAIGNS))
    print(
        f"{platform.processor() or platform.machine()}, {time.monotonic() - begun:,.0f} s in all\n"
    )
    print("| campaign | seed | seconds | counts |", "|---|---|---|---|", *rows, sep="\n")
    sys.exit(any("FAILED" in row for row in rows))


if __name__ == "__main__":
    main()
