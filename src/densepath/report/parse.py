"""JSON and YAML values -> records. Nothing here raises on odd input: what cannot be read is None."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from densepath.io import is_secret
from densepath.report.records import Estimate, Metric, PairedRow, ResultRow, Results, Selection, SelectionRow

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


def results(value: Any) -> Results | None:
    """The content of a run's `results.json`; None where it has no row."""
    settings = _rows(value.get("settings")) if isinstance(value, Mapping) else []
    if not settings:
        return None
    (setting,) = settings[:1]
    prompts = setting.get("prompts")
    n = _count(prompts.get("test")) if isinstance(prompts, Mapping) else None
    rows = tuple(_result_row(row, n) for row in _rows(setting.get("rows")) if row.get("value") is not None)
    paired = tuple(_paired_row(row) for row in _rows(setting.get("comparisons")))
    if not rows and not paired:
        return None
    warnings = setting.get("warnings")
    return Results(
        metric=Metric(name=_text(value.get("metric"), "metric")),
        interval=_text(value.get("interval")),
        rows=rows,
        paired=paired,
        warnings=tuple(str(line) for line in warnings) if isinstance(warnings, list) else (),
    )


def _paired_row(row: Mapping[str, Any]) -> PairedRow:
    decoding, against = _text(row.get("decoding")), _text(row.get("against_decoding"))
    return PairedRow(
        arm=_text(row.get("method")),
        against=_text(row.get("against")),
        decoding=decoding if decoding == against else f"{decoding} against {against}",
        difference=estimate(row.get("difference")),
        verdict=_text(row.get("verdict"), "unknown"),
        primary=row.get("primary") is True,
    )


def _result_row(row: Mapping[str, Any], n: int | None) -> ResultRow:
    arm = _text(row.get("method"))
    budget = row.get("budget")
    budget = budget if isinstance(budget, Mapping) else {}
    return ResultRow(
        arm=arm,
        label=_text(row.get("label")) or arm,
        decoding=_text(row.get("decoding")),
        n=n,
        metric=estimate(row.get("value")),
        dense_reward=estimate(row.get("reward")),
        length=estimate(row.get("length")),
        entropy=estimate(row.get("entropy")),
        kl=estimate(row.get("kl")),
        nll=estimate(row.get("nll")),
        truncated=number(row.get("truncated")),
        train_seconds=number(budget.get("seconds")),
        train_flops=number(budget.get("flops")),
    )


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
                decoding=_text(row.get("decoding")),
                lead=estimate(row.get("lead")),
            )
            for row in _rows(value.get("rows"))
        ),
    )
