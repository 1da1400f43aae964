"""Split a folder of files into parts that are small enough to be sent, and join them again.

    python benchmarks/gpu/parts.py join runs/gpu weights/next

`parts.json` lists the parts and their SHA-256. Needs nothing but Python.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

LARGEST = 15_000_000  # bytes of a part
LIST = "parts.json"


def split(files: Sequence[Path], out: Path, largest: int = LARGEST) -> list[Path]:
    """Write files as one .tar, in parts of at most `largest` bytes, and the list of the parts.

    A list that is there is removed first and written last, so it never names parts of another file.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            tar.add(file, file.name)
    whole = packed.getvalue()
    (out / LIST).unlink(missing_ok=True)
    sums, parts = {}, []
    for number, start in enumerate(range(0, len(whole), largest)):
        part = out / f"model.tar.{number}"
        part.write_bytes(whole[start : start + largest])
        sums[part.name] = _sha256(whole[start : start + largest])
        parts.append(part)
    listed = {"sha256": _sha256(whole), "bytes": len(whole), "parts": sums}
    (out / LIST).write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
    return [*parts, out / LIST]


def join(source: Path, folder: Path) -> list[str]:
    """Check the parts and write the files they hold into a new folder; returns their names.

    Raises ValueError for a part that is missing or differs from what was split, or if the folder is
    there already.
    """
    listed = json.loads((source / LIST).read_text("utf-8"))
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another folder")
    whole = b""
    for name, expected in listed["parts"].items():
        if not (source / name).exists():
            raise ValueError(f"{source / name} is missing; copy it from where it was written")
        part = (source / name).read_bytes()
        if _sha256(part) != expected:
            raise ValueError(f"{source / name} was changed (another SHA-256); copy it again")
        whole += part
    if _sha256(whole) != listed["sha256"]:
        raise ValueError(f"{source / LIST} lists other parts than were split; copy all files again")
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        folder.mkdir(parents=True)
        tar.extractall(folder, filter="data")
        return tar.getnames()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Join; splitting is done by `make gpu`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["join"])
    parser.add_argument("source", type=Path, help="the folder that holds parts.json and the parts")
    parser.add_argument("folder", type=Path, help="the folder to write")
    args = parser.parse_args()
    try:
        names = join(args.source, args.folder)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{args.folder}: {', '.join(names)}")


if __name__ == "__main__":
    main()
