"""What a file is that came instead of the one that should be there, by its first bytes."""

HEAD = 64  # bytes to look at
LFS = "a git-LFS pointer; `git lfs pull` fetches the file itself"
PAGE = "a web page"
PICKLE = "a Python pickle, perhaps PyTorch's, which could run a stranger's code and is never read"
ZIP = "a zip archive, perhaps PyTorch's or a spreadsheet's"
KINDS = {  # how it begins (in lower case, white space before it left out), what it is
    b"version https://git-lfs": LFS,
    b"<!doctype": PAGE,
    b"<html": PAGE,
    b"<?xml": PAGE,
    b"pk\x03\x04": ZIP,
    b"\x80\x02": PICKLE,
    b"\x80\x03": PICKLE,
    b"\x80\x04": PICKLE,
    b"\x80\x05": PICKLE,
    b"\x1f\x8b": "a gzip archive",
    b"\x89hdf": "an HDF5 file, perhaps Keras's",
    b"gguf": "a GGUF model",
    b"par1": "a Parquet table",
    b"%pdf": "a PDF document",
}


def and_is(head: bytes) -> str:
    """A clause such as " and is a web page" for a message; empty if the first bytes say nothing."""
    if not head:
        return " and is empty"
    start = head[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kinds = [f" and is {kind}" for begins, kind in KINDS.items() if start.startswith(begins)]
    return kinds[0] if kinds else ""
