"""One codec for frozen dataclass records: what a writer made is what a reader receives.

Fields may be str, bool, int, float, enums of str, other records, tuples (of one type, or one type a place), lists,
mappings from str or such an enum, a union with None, and Any for JSON values that no record describes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, Union

from densepath.errors import DamagedFileError, DataError, DensepathError, NumericalError
from densepath.io import REMEDY, read_json

Json: TypeAlias = Any
"""What `json` reads and writes: dict, list, str, int, float, bool, None."""

T = TypeVar("T")

_PLAIN = frozenset({str, int, bool, type(None)})


def to_json(record: object) -> dict[str, Json]:
    """The record as JSON types: a key for each field, enums as their values, tuples as lists.

    Args:
        record: a dataclass instance whose fields the codec knows.

    Raises:
        NumericalError: NaN or infinity, named by its field: JSON has neither.
        DataError: a value that the codec does not know.
    """
    found: dict[str, Json] = _encode(record, type(record).__name__)
    return found


def from_json(cls: type[T], value: Json) -> T:
    """The record of that class that `to_json` wrote; the class checks its fields itself.

    Args:
        cls: a dataclass.
        value: a mapping with a key for each field; those that have a default may be missing.

    Raises:
        DataError: keys that are missing or unknown, or a value of another type, named by its field.
        NumericalError: NaN or infinity.
    """
    found: T = _decode(cls, value, cls.__name__)
    return found


def read_record(cls: type[T], path: Path, remedy: str = REMEDY) -> T:
    """The record of that class that a file holds.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: it holds something else; the message names file, field and remedy.
    """
    value = read_json(path, remedy)
    try:
        return from_json(cls, value)
    except (DensepathError, ValueError, TypeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}") from None


def _encode(value: object, where: str) -> Json:
    if dataclasses.is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return _finite(value, where)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(_encode(key, where)): _encode(inner, f"{where}[{key}]") for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        if _is_plain(value):
            return list(value)
        if set(map(type, value)) == {tuple} and all(map(_is_plain, value)):
            return list(map(list, value))
        return [_encode(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    raise DataError(f"{where}: {type(value).__name__} cannot be written as JSON; convert it first")


def _is_plain(values: Sequence[object]) -> bool:
    """Whether JSON takes the values as they are: one look at all, of which a completion may have thousands."""
    kinds = set(map(type, values))
    return kinds <= _PLAIN or (kinds == {float} and all(map(math.isfinite, values)))  # type: ignore[arg-type]


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise NumericalError(f"{where} is {value}; a record holds finite numbers")
    return float(value)


def _decode(kind: Any, value: Json, where: str) -> Any:
    """The value as the annotation `kind` says."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(inner, value, where)
    if origin is tuple:
        return _decode_tuple(inner, value, where)
    if origin is list:
        return list(_decode_tuple((inner[0], Ellipsis), value, where))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        entries = _require(value, Mapping, "an object", where)
        return {_decode(inner[0], key, where): _decode(inner[1], v, f"{where}[{key}]") for key, v in entries.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_record(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise DataError(f"{where}: {value!r} is not one of {', '.join(str(m.value) for m in kind)}") from None
    if kind is float:
        if isinstance(value, bool):
            raise DataError(f"{where}: {value!r} is not a number")
        return _finite(float(_require(value, (int, float), "a number", where)), where)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise DataError(f"{where}: {value!r} is not {getattr(kind, '__name__', kind)}")


def _decode_union(kinds: tuple[Any, ...], value: Json, where: str) -> Any:
    """None where that is allowed, else the first kind that fits; what is wrong is said of the one that is meant."""
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest:
        try:
            return _decode(kind, value, where)
        except DataError:
            continue  # an error that is kept would keep the frames below it alive, and the models in them
    return _decode(next((kind for kind in rest if _has_fields(kind, value)), rest[-1]), value, where)


def _has_fields(kind: Any, value: Json) -> bool:
    """Whether an object has fields of a record, and no others."""
    names = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return isinstance(value, Mapping) and bool(value) and set(value) <= names


def _decode_tuple(kinds: tuple[Any, ...], value: Json, where: str) -> tuple[Any, ...]:
    items = _require(value, (list, tuple), "a list", where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        if set(map(type, items)) == {kinds[0]} and _is_plain(items):
            return tuple(items)
        each = typing.get_args(kinds[0])
        if each and _PLAIN.issuperset(each) and all(_has_kinds(item, each) for item in items):
            return tuple(map(tuple, items))
        kinds = kinds[:1] * len(items)
    if len(kinds) != len(items):
        raise DataError(f"{where}: {len(items)} entries; it holds {len(kinds)}")
    return tuple(_decode(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, items, strict=True)))


def _has_kinds(item: Json, kinds: tuple[Any, ...]) -> bool:
    return type(item) in (list, tuple) and tuple(map(type, item)) == kinds


def _decode_record(cls: Any, value: Json, where: str) -> Any:
    entries = _require(value, Mapping, "an object", where)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing, unknown = sorted(set(required) - set(entries)), sorted(set(entries) - set(fields))
    if missing or unknown:
        raise DataError(f"{where}: missing {missing}, unknown {unknown}; give exactly its fields")
    kinds = _kinds(cls)
    return cls(**{name: _decode(kinds[name], inner, f"{where}.{name}") for name, inner in entries.items()})


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    """Field -> annotation, evaluated."""
    return typing.get_type_hints(cls)


def _require(value: Json, kinds: type | tuple[type, ...], name: str, where: str) -> Any:
    if not isinstance(value, kinds):
        raise DataError(f"{where}: {value!r} is not {name}")
    return value


def field_names(cls: type) -> Sequence[str]:
    """The names of a record's fields, in order: the columns of a table made from it."""
    return [f.name for f in dataclasses.fields(cls)]
