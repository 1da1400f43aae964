"""What a finished run consists of: `MANIFEST.json`, the SHA-256 of each of its files.

It is written last, so a folder that has one is complete; what changed since is told before it is
used.
"""

from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.files import read_json, sha256_of, write_json

NAME = "MANIFEST.json"


def write_manifest(folder: Path) -> None:
    """List every file of a folder, but hidden ones, what was put aside, and the manifest itself."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    listed = {
        path.name: sha256_of(path)
        for path in files
        if path.name[0] != "." and path.suffix != ".bad"
    }
    listed.pop(NAME, None)
    write_json(folder / NAME, {"sha256": listed})


def is_complete(folder: Path) -> bool:
    """Whether the run in this folder came to its end."""
    return (folder / NAME).exists()


def read_manifest(folder: Path) -> dict[str, str]:
    """{file: SHA-256}, in order of names; raises CheckpointError for anything else."""
    path = folder / NAME
    listed = read_json(path).get("sha256")
    if not isinstance(listed, dict) or not all(type(digits) is str for digits in listed.values()):
        raise CheckpointError(f"{path} lists no files with their sha256")
    if foreign := [name for name in listed if Path(name).name != name]:
        raise CheckpointError(f"{path} names what is no file of its folder: {foreign[0]!r:.100}")
    return dict(sorted(listed.items()))


def check_listed(path: Path) -> None:
    """Raise CheckpointError where a file is not as its folder's manifest has it, if it has one."""
    if not is_complete(path.parent):
        return
    expected = read_manifest(path.parent).get(path.name)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if expected is None:
        raise CheckpointError(f"{path} is not in {NAME}: it came after the run was complete")
    if sha256_of(path) != expected:
        raise CheckpointError(f"{path} is not what {NAME} has: changed since the run was complete")
