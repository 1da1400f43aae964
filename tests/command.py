"""The command `gpt2-classifier`, called as a function."""

import pytest

from gpt2_from_scratch.cli.main import main


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """The exit code, and what went to standard output and to standard error."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err
