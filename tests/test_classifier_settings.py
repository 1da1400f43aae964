"""Settings from the shell: what they make of the data, and what is refused."""

import numpy as np
import pytest

from gpt2_from_scratch.classifier_settings import ClassifierSettings
from gpt2_from_scratch.data import Message
from gpt2_from_scratch.errors import DataError


def values(*numbers: float) -> list[Message]:
    return [Message(f"text {n}", (number,)) for n, number in enumerate(numbers)]


def test_values_are_standardised_by_their_mean_and_spread() -> None:
    head = ClassifierSettings("regression").head_config(["v"], values(1.0, 2.0, 6.0), 8)
    assert head.center == (3.0,)
    assert head.scale == pytest.approx((np.std([1, 2, 6]),))


@pytest.mark.parametrize("value", [0.1, 0.0, 1e-320, 1.7e9 + 0.3])
def test_a_value_that_is_always_the_same_has_scale_one(value: float) -> None:
    """The standard deviation of forty times 0.1 is not 0 but 1e-17."""
    head = ClassifierSettings("regression").head_config(["v"], values(*[value] * 40), 8)
    assert head.scale == (1.0,)


def test_values_too_large_to_be_squared_are_refused() -> None:
    with pytest.raises(DataError, match="too large"):
        ClassifierSettings("regression").head_config(["v"], values(1e307, -1e308, 5e307), 8)
