"""What needs more than the package itself: scikit-learn and scipy, which come as an extra."""

from importlib import import_module

from gpt2_from_scratch.errors import UsageError


def need_sklearn(what: str) -> None:
    """Raise UsageError unless scikit-learn can be imported; `what` begins the message.

    With it comes scipy, on which it stands.
    """
    try:
        import_module("sklearn")
    except ImportError:
        raise UsageError(
            f"{what} needs scikit-learn: pip install 'gpt2-from-scratch[eval]'"
        ) from None
