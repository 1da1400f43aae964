"""What can go wrong that the user can mend. Anything else is a bug and keeps its traceback."""


class GPT2Error(Exception):
    """Base of every error this package raises on purpose: says what, where, and what to do."""

    exit_code = 1


class UsageError(GPT2Error):
    """An argument or a setting that makes no sense, or contradicts another."""

    exit_code = 2


class DataError(GPT2Error):
    """A text, label or table that cannot be used."""

    exit_code = 3


class CheckpointError(GPT2Error):
    """A model folder, weights file, tokenizer or saved classifier that is damaged or does not fit."""

    exit_code = 4


class DownloadError(GPT2Error):
    """A file that could not be fetched, or that came as something else than was asked for."""

    exit_code = 5
