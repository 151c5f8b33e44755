"""The results as a terminal table, and how an interval is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from densepath.report import parse
from densepath.report.records import Estimate


def format_interval(estimate: Estimate | None, digits: int = 3, *, signed: bool = False, missing: str = "-") -> str:
    """`mean [low, high]`, in ASCII; the interval is left out where it is unknown.

    Args:
        estimate: the quantity, in its own unit.
        digits: decimals.
        signed: write "+" before a positive number (for differences).
        missing: what stands for None.

    >>> format_interval(Estimate(0.5, 0.4, 0.6), 2)
    '0.50 [0.40, 0.60]'
    """
    if estimate is None:
        return missing
    form = f"{'+' if signed else ''}.{digits}f"
    mean = format(estimate.mean, form)
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} [{estimate.low:{form}}, {estimate.high:{form}}]"


def results_table(results: Mapping[str, Any]) -> Table:
    """The rows of `eval/results.json` as a table: the same numbers as on the page.

    Dense reward and KL are in nats per completion, length in tokens, entropy in nats per token.
    """
    parsed = parse.results(parse.clean(results))
    metric = parsed.metric if parsed else None
    arrow = "" if metric is None else (" (higher is better)" if metric.higher_is_better else " (lower is better)")
    table = Table(caption=Text(parsed.interval) if parsed and parsed.interval else None)
    table.add_column("arm")
    table.add_column("decoding")
    for title in (
        f"{metric.name if metric else 'metric'}{arrow}",
        "dense reward, nats",
        "length, tokens",
        "entropy, nats/token",
        "KL to SFT, nats",
    ):
        table.add_column(Text(title), justify="right")
    for row in parsed.rows if parsed else ():
        table.add_row(
            Text(row.label),
            Text(row.decoding),
            format_interval(row.metric),
            format_interval(row.dense_reward, 2),
            format_interval(row.length, 1),
            format_interval(row.entropy),
            format_interval(row.kl),
        )
    return table
