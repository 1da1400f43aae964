"""Settings check the type and the bounds of their fields."""

from dataclasses import asdict, dataclass, fields

import numpy as np
import pytest

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.storage.settings import check_settings, from_json, setting


@dataclass(frozen=True)
class Oven:
    heat: float = setting(180.0, "temperature in °C", at_least=0, at_most=300)
    share: float = setting(0.5, "proportion of water", above=0, below=1)
    minutes: int = setting(20, "time in minutes", at_least=1)
    fan: bool = setting(False, "whether the fan runs")
    rack: str = setting("middle", "where the tray is", choices=("top", "middle"))
    timer: int | None = setting(None, "seconds until it rings")
    trays: tuple[int, ...] = setting((), "their sizes in cm")
    brand: str = "unknown"  # only the type of an ordinary field is checked


def test_a_setting_keeps_its_help_text():
    heat = fields(Oven)[0]
    assert heat.default == 180.0 and heat.metadata["help"] == "temperature in °C"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"heat": 0.0},
        {"heat": 300},  # an int is accepted for a float
        {"share": 0.001},
        {"minutes": 1},
        {"timer": 5},
        {"rack": "top"},
        {"trays": (1, 2)},
    ],
)
def test_values_within_their_bounds(values):
    check_settings(Oven(**values))


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"heat": -0.1}, "heat = -0.1 .*at least 0 and at most 300"),
        ({"heat": 301}, "heat = 301 .*at most 300"),
        ({"heat": float("nan")}, "heat = nan .*finite"),
        ({"heat": "hot"}, "heat = 'hot' .*float"),
        ({"share": 0.0}, "share = 0.0 .*above 0"),
        ({"share": 1.0}, "share = 1.0 .*below 1"),
        ({"minutes": 0}, "minutes = 0 .*at least 1"),
        ({"minutes": 2.0}, "minutes = 2.0 .*int"),
        ({"minutes": True}, "minutes = True .*int"),  # bool is a subclass of int
        ({"minutes": None}, "minutes = None .*int"),
        ({"fan": 1}, "fan = 1 .*bool"),
        ({"timer": 1.5}, "timer = 1.5 .*int"),
        ({"rack": "floor"}, "rack 'floor'.*top, middle"),
        ({"brand": 7}, "brand = 7 .*str"),
    ],
)
def test_values_out_of_their_bounds_are_named(values, facts):
    with pytest.raises(UsageError, match=f"the oven's {facts}"):
        check_settings(Oven(**values), "the oven's ")


def test_numpy_values_become_python_values():
    oven = Oven(
        heat=np.float64(200.5),
        minutes=np.int64(5),
        fan=np.bool_(True),
        rack=np.str_("top"),
        timer=np.int32(3),
        trays=(np.int64(1), np.int64(2)),
    )
    check_settings(oven)
    assert repr(oven) == repr(Oven(200.5, minutes=5, fan=True, rack="top", timer=3, trays=(1, 2)))
    check_settings(oven := Oven(trays=np.array([1, 2])))
    assert repr(oven) == repr(Oven(trays=(1, 2)))
    for wrong in ({"heat": np.float64("nan")}, {"minutes": np.float64(5)}, {"trays": {1, 2}}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            check_settings(Oven(**wrong))


def test_settings_come_back_from_json():
    oven = Oven(heat=200, trays=(30, 40), timer=9)
    as_json = asdict(oven) | {"trays": [30, 40]}  # JSON has no tuples
    assert from_json(Oven, as_json) == oven
    assert from_json(Oven, {}) == Oven()
    with pytest.raises(UsageError, match=r"Oven .*\['colour', 'size'\].*heat, share"):
        from_json(Oven, {"size": 1, "colour": "red"})


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan")])
def test_a_number_that_no_float_holds_is_not_finite(value):
    with pytest.raises(UsageError, match="must be a finite number"):
        check_settings(Oven(heat=value))


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(UsageError) as caught:
        check_settings(Oven(brand=[1] * 50_000))
    assert len(str(caught.value)) < 200
