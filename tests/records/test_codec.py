"""Records go to JSON and come back; what does not fit is named by its field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest

from densepath.errors import DataError, NumericalError
from densepath.records.codec import field_names, from_json, to_json


class Colour(str, Enum):
    RED = "red"


@dataclass(frozen=True)
class Leaf:
    size: float
    name: str = "leaf"


@dataclass(frozen=True)
class Tree:
    colour: Colour
    leaves: tuple[Leaf, ...]
    pair: tuple[str, int]
    best: Leaf | None
    sizes: Mapping[str, float]
    by_colour: dict[Colour, tuple[int, ...]]
    alive: bool
    value: float | str
    info: Any = None


TREE = Tree(
    Colour.RED,
    (Leaf(1.0), Leaf(2.5, "big")),
    ("a", 1),
    None,
    {"x": 0.1},
    {Colour.RED: (1, 2)},
    True,
    "none",
    {"k": [1]},
)
JSON = {
    "colour": "red",
    "leaves": [{"size": 1.0, "name": "leaf"}, {"size": 2.5, "name": "big"}],
    "pair": ["a", 1],
    "best": None,
    "sizes": {"x": 0.1},
    "by_colour": {"red": [1, 2]},
    "alive": True,
    "value": "none",
    "info": {"k": [1]},
}


def test_a_record_is_written_field_by_field():
    assert to_json(TREE) == JSON
    assert json.loads(json.dumps(to_json(TREE))) == JSON


def test_a_record_comes_back():
    assert from_json(Tree, JSON) == TREE
    assert field_names(Leaf) == ["size", "name"]


def test_whole_numbers_become_floats_where_floats_stand_and_defaults_may_be_missing():
    found = from_json(Leaf, {"size": 2})
    assert found == Leaf(2.0, "leaf")
    assert type(found.size) is float


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "blue"}, r"Tree\.colour: 'blue' is not one of red"),
        ({"leaves": [{"size": 1}, {"name": "x"}]}, r"Tree\.leaves\[1\]: missing \['size'\], unknown \[\]"),
        ({"leaves": {}}, r"Tree\.leaves: \{\} is not a list"),
        ({"pair": ["a"]}, r"Tree\.pair: 1 entries; it holds 2"),
        ({"best": 3}, r"Tree\.best: 3 is not an object"),
        ({"sizes": {"x": "y"}}, r"Tree\.sizes\[x\]: 'y' is not a number"),
        ({"sizes": {"x": True}}, r"Tree\.sizes\[x\]: True is not a number"),
        ({"alive": 1}, r"Tree\.alive: 1 is not bool"),
        ({"pair": ["a", 1.5]}, r"Tree\.pair\[1\]: 1\.5 is not int"),
        ({"value": []}, r"Tree\.value: \[\] is not str"),
        ({"extra": 1}, r"Tree: missing \[\], unknown \['extra'\]"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    with pytest.raises(DataError, match=words):
        from_json(Tree, {**JSON, **change})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_none_is_refused_on_both_ways(number):
    with pytest.raises(NumericalError, match=r"Tree\.leaves\[0\]\.size is (nan|inf)"):
        to_json(Tree(Colour.RED, (Leaf(number),), ("a", 1), None, {}, {}, True, 1.0))
    with pytest.raises(NumericalError, match=r"Tree\.sizes\[x\] is (nan|inf)"):
        from_json(Tree, {**JSON, "sizes": {"x": number}})


def test_a_value_that_json_does_not_know_is_named():
    with pytest.raises(DataError, match=r"Tree\.info\[a\]: set cannot be written"):
        to_json(Tree(Colour.RED, (), ("a", 1), None, {}, {}, True, 1.0, {"a": {1}}))


@dataclass(frozen=True)
class Places:
    numbers: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...]


@pytest.mark.parametrize("pairs", [[[1, 2], "ab"], [[1, 2], 3], [[1, 2, 3]], [[1, 2.0]], [[1, True]]])
def test_a_look_at_all_entries_lets_none_through_that_is_of_another_type(pairs):
    with pytest.raises(DataError, match=r"Places\.pairs"):
        from_json(Places, {"numbers": [0.5], "pairs": pairs})


def test_many_entries_come_back_whatever_their_mixture():
    for numbers, pairs in (([0.5, 1.5], [[1, 2], [3, 4]]), ([1, 0.5], []), ([], [[1, 2]])):
        found = from_json(Places, {"numbers": numbers, "pairs": pairs})
        assert found == Places(tuple(map(float, numbers)), tuple(map(tuple, pairs)))
        assert to_json(found) == {"numbers": numbers, "pairs": pairs}
    with pytest.raises(NumericalError, match=r"Places\.numbers\[1\] is nan"):
        to_json(Places((0.5, float("nan")), ()))
