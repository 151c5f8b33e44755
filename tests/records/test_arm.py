"""The result of an arm: what does not fit is refused with its place, and JSON gives it back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from densepath.errors import DataError, NumericalError
from densepath.records.arm import Arm, ArmResult, Budget, mean_of
from densepath.records.codec import from_json, to_json

FIELDS = {
    "arm": Arm("dpr", "DPR", False),
    "setting": "habit",
    "seed": 0,
    "decoding": "greedy",
    "split": "test",
    "values": (1.0, 0.0),
    "lengths": (3, 4, 5, 6),
    "truncated": 0.25,
    "budget": Budget(samples=2.0),
    "nll": (0.5,),
    "reward": (1.5, 1.0, 0.0, -1.0),
}


def test_json_gives_the_record_back():
    result = ArmResult(**FIELDS)
    written = json.loads(json.dumps(to_json(result)))
    assert from_json(ArmResult, written) == result
    assert written["arm"] == {
        "name": "dpr",
        "label": "DPR",
        "control": False,
        "settings": None,
        "matches": None,
        "sees_validation": False,
    }
    assert written["budget"] == {"samples": 2.0, "demonstrations": 0.0, "tokens": 0.0, "flops": 0.0, "seconds": 0.0}
    assert written["kl"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "train"}, "split"),
        ({"values": ()}, "0 values"),
        ({"values": None, "lengths": (), "reward": None}, "0 values and 0 lengths"),
        ({"lengths": (1, 2, 3)}, "2 values and 3 lengths"),
        ({"lengths": (1, -2), "reward": None}, "-2"),
        ({"truncated": 1.5}, "1.5"),
        ({"truncated": math.nan}, "nan"),
        ({"reward": (1.0,)}, "1 of reward and 4 lengths"),
        ({"nll": ()}, "nll is of no demonstration"),
        ({"setting": ""}, "setting is empty"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(DataError, match=words):
        ArmResult(**{**FIELDS, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": (1.0, math.nan)}, r"habit/dpr/seed 0, greedy, test: values\[1\] is nan"),
        ({"kl": (0.0, 0.0, 0.0, math.inf)}, r"kl\[3\] is inf"),
        ({"nll": (math.nan,)}, r"nll\[0\] is nan"),
    ],
)
def test_a_number_that_is_none_is_named(changes, words):
    with pytest.raises(NumericalError, match=words):
        ArmResult(**{**FIELDS, **changes})


def test_a_budget_is_finite_and_not_negative():
    with pytest.raises(DataError, match=r"flops is -1"):
        Budget(flops=-1)
    with pytest.raises(NumericalError, match="seconds is inf"):
        Budget(seconds=math.inf)


def test_prompts_that_were_not_judged_are_left_out_with_all_their_completions():
    result = ArmResult(**{**FIELDS, "values": (1.0, 0.5), "kl": (1.0, 2.0, 3.0, 4.0), "unjudged": (1,)})
    result = replace(result, by_order=((1.0, 0.0), None))
    left = result.without({1})
    assert left.by_order == ((1.0, 0.0),)
    assert (left.values, left.lengths, left.kl, left.reward) == ((1.0,), (3, 4), (1.0, 2.0), (1.5, 1.0))
    assert (left.nll, left.entropy, left.unjudged) == (result.nll, None, ())
    assert result.without(()) is result
    with pytest.raises(DataError, match="nothing of any prompt"):
        result.without({0, 1})
    with pytest.raises(DataError, match="unjudged are"):
        ArmResult(**{**FIELDS, "unjudged": (2,)})
    with pytest.raises(DataError, match="by_order is of 1 prompts"):
        replace(result, by_order=(None,))


def test_fields_are_exactly_those():
    written = to_json(ArmResult(**FIELDS))
    del written["lengths"]
    with pytest.raises(DataError, match=r"missing \['lengths'\], unknown \['lengthss'\]"):
        from_json(ArmResult, {**written, "lengthss": []})


def test_sft_is_a_control():
    with pytest.raises(DataError, match="control"):
        Arm("sft", "SFT", False)


def test_a_mean_of_what_was_not_measured_is_none():
    assert mean_of(None) is None
    assert mean_of((0.1, 0.2, 0.6)) == pytest.approx(0.3)
