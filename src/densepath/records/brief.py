"""What a record says of itself at a prompt or in a notebook: a line, where its fields hold thousands of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_MOST, _TEXT = 3, 60
"""Entries of a list, and characters of a text, that are shown whole."""


def brief(record: Any) -> str:
    """`Name(field=value, ...)` with long lists and texts as their sizes, and without fields that have their default.

    A record takes it as its own: `__repr__ = brief` in its class.

    >>> @dataclasses.dataclass
    ... class Scored:
    ...     text: str
    ...     rewards: tuple[float, ...]
    ...     metric: float | None = None
    ...     __repr__ = brief
    >>> Scored("Seven.", (0.123456, -1.0, 0.5, 2.0))
    Scored(text='Seven.', rewards=<4 entries>)
    """
    shown = (f"{f.name}={_shown(value)}" for f, value in _told(record))
    return f"{type(record).__name__}({', '.join(shown)})"


def _told(record: Any) -> list[tuple[Any, Any]]:
    found = [(f, getattr(record, f.name)) for f in dataclasses.fields(record)]
    return [(f, value) for f, value in found if value is not None and not _is_default(f, value)]


def _is_default(field: Any, value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return not value
    return field.default is not dataclasses.MISSING and type(value) is type(field.default) and value == field.default


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and len(value) > _TEXT:
        return repr(value[: _TEXT - 1] + "…")
    if isinstance(value, (list, tuple)) and len(value) > _MOST:
        return f"<{len(value)} entries>"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_shown, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping) and len(value) > _MOST:
        return f"<{len(value)} keys>"
    return repr(value)
