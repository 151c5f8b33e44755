"""JSON and YAML values -> records. Nothing here raises on odd input: what cannot be read is None."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from densepath.io import is_secret
from densepath.report.records import Estimate, Selection, SelectionRow

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


def _count(value: Any) -> int | None:
    known = number(value)
    return None if known is None else int(known)


def _text(value: Any, default: str = "") -> str:
    return default if value is None else str(value)


def _optional_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def estimate(value: Any) -> Estimate | None:
    """An `Estimate` from {"mean", "low", "high"} or from a bare number."""
    if not isinstance(value, Mapping):
        mean = number(value)
        return None if mean is None else Estimate(mean)
    mean = number(value.get("mean"))
    return None if mean is None else Estimate(mean, number(value.get("low")), number(value.get("high")))


def selection(value: Any) -> Selection | None:
    """The content of `selection.json`."""
    if not isinstance(value, Mapping):
        return None
    chosen = value.get("chosen")
    chosen = chosen if isinstance(chosen, Mapping) else {}
    baseline = value.get("baseline")
    return Selection(
        mode=_text(value.get("mode")),
        criterion=_text(value.get("criterion")),
        reason=_text(value.get("reason")),
        chosen_reference=_optional_text(chosen.get("reference")),
        chosen_beta=number(chosen.get("beta")),
        baseline=estimate(baseline),
        baseline_n=_count(baseline.get("n")) if isinstance(baseline, Mapping) else None,
        rows=tuple(
            SelectionRow(
                reference=_text(row.get("reference")),
                beta=number(row.get("beta")),
                alpha=number(row.get("alpha")),
                score=estimate(row.get("score")),
                n=_count(row.get("n")),
            )
            for row in _rows(value.get("rows"))
        ),
    )
