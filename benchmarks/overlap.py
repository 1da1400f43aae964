"""List the lines of a corpus that occur in data sets used for evaluation.

    python benchmarks/overlap.py --corpus CORPUS ../shared/data/trec/test.csv words.conll ...

`gpt2-classifier pretrain --exclude` removes the same lines. Two lines overlap if they are equal and
have at least 20 bytes, or if they have 50 consecutive bytes in common. Case and white space are
ignored.
"""

import argparse
from pathlib import Path

from bench import note

from gpt2_from_scratch.data.formats import load_examples
from gpt2_from_scratch.gpt2.corpus import is_held_out, read_documents, registers
from gpt2_from_scratch.gpt2.overlap import Overlap

SHOWN = 200  # characters shown of a line


def texts_of(path: Path) -> list[str]:
    """The texts of a table, of one text per line, or of one word per line."""
    words = path.suffix.lower() in (".conll", ".annotated")
    task = "token-classification" if words else "features"
    return [example.text for example in load_examples(path, task)]


def main() -> None:
    """Print one row per data set: the lines of the training text that overlap with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--show", action="store_true", help="print the lines too")
    args = parser.parse_args()
    texts = {path: texts_of(path) for path in args.data}
    overlaps = {path: Overlap(some) for path, some in texts.items()}
    found: dict[Path, list[tuple[str, str]]] = {path: [] for path in args.data}
    n_lines = 0
    for name in registers(args.corpus):
        note(name)
        documents = read_documents(args.corpus / name)
        lines = [li for d in documents if not is_held_out(d) for li in d.split("\n")]
        n_lines += len(lines)
        for path, overlap in overlaps.items():
            here = zip(lines, overlap.find(lines), strict=True)
            found[path] += [(name, line) for line, there in here if there]
    print(f"{n_lines:,} lines of training text\n\n| data set | texts | overlapping lines | files |")
    print("|---|---|---|---|")
    for path, lines in found.items():
        counts = {name: sum(file == name for file, _ in lines) for name, _ in lines}
        files = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
        print(f"| {path.parent.name}/{path.name} | {len(texts[path]):,} | {len(lines)} | {files} |")
    if args.show:
        for path, lines in found.items():
            for name, line in lines:
                print(f"{path.parent.name}/{path.name}\t{name}\t{line[:SHOWN]}")


if __name__ == "__main__":
    main()
