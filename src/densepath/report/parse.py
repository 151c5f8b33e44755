"""JSON and YAML values made fit to show. Nothing here raises on odd input: what cannot be read is None."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from densepath.io import is_secret

_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(value: Any, key: str = "") -> Any:
    """`value` as strict JSON: NaN and infinity become None, a lone surrogate U+FFFD, a secret "(hidden)"."""
    if isinstance(value, Mapping):
        return {clean(str(name)): clean(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if is_secret(key) and str(value):
        return "(hidden)"
    return _SURROGATE.sub("\ufffd", str(value))


def number(value: Any) -> float | None:
    """A finite number, or None. Integers stay integers; bools count as 0 and 1."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None
