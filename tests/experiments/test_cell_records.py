"""A cell's result: what does not fit is refused with its place, and JSON gives it back."""

from __future__ import annotations

import json
import math

import pytest

from densepath.errors import DataError, NumericalError
from densepath.experiments.records import BUDGET, CellResult, MethodInfo

FIELDS = {
    "setting": "habit",
    "method": "dpr",
    "seed": 0,
    "decoding": "greedy",
    "split": "test",
    "values": (1.0, 0.0),
    "lengths": (3, 4, 5, 6),
    "truncated": 0.25,
    "kl": None,
    "reward": 1.5,
    "budget": dict.fromkeys(BUDGET, 2.0),
}


def test_json_gives_the_record_back():
    cell = CellResult(**FIELDS)
    assert CellResult.from_dict(json.loads(json.dumps(cell.as_dict()))) == cell
    info = MethodInfo("dpr", "DPR", False)
    assert MethodInfo.from_dict(json.loads(json.dumps(info.as_dict()))) == info


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "train"}, "split"),
        ({"values": ()}, "0 values"),
        ({"lengths": (1, 2, 3)}, "2 values and 3 lengths"),
        ({"lengths": (1, -2)}, "-2"),
        ({"truncated": 1.5}, "1.5"),
        ({"truncated": math.nan}, "nan"),
        ({"budget": {"samples": 1}}, "demonstrations, tokens, flops, seconds"),
        ({"budget": {**FIELDS["budget"], "flops": -1}}, r"budget\[flops\]"),
        ({"method": ""}, "method is empty"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(DataError, match=words):
        CellResult(**{**FIELDS, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": (1.0, math.nan)}, r"habit/dpr/seed 0, greedy, test: values\[1\] is nan"),
        ({"kl": math.inf}, "kl is inf"),
        ({"budget": {**FIELDS["budget"], "seconds": math.inf}}, "seconds"),
    ],
)
def test_a_number_that_is_none_is_named(changes, words):
    with pytest.raises(NumericalError, match=words):
        CellResult(**{**FIELDS, **changes})


def test_fields_are_exactly_those():
    with pytest.raises(DataError, match=r"missing \['kl'\], unknown \['kll'\]"):
        CellResult.from_dict({**{k: v for k, v in FIELDS.items() if k != "kl"}, "kll": 0})


def test_sft_is_a_control():
    with pytest.raises(DataError, match="control"):
        MethodInfo("sft", "SFT", False)
