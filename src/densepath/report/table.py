"""The results as a terminal table, and how an interval is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from densepath.report import parse
from densepath.report.records import Estimate
from densepath.terminal import Table, plain_table


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
    """The rows of `eval/results.json` as a table that fits 80 columns: the same numbers as on the page.

    The metric has its interval; those of the other columns stand on the page. Dense reward and KL are in nats per
    completion, length in tokens, entropy in nats per token.
    """
    parsed = parse.results(parse.clean(results))
    metric = parsed.metric if parsed else None
    caption = Text(f"interval: {parsed.interval}") if parsed and parsed.interval else None
    table = plain_table(caption=caption)
    table.add_column("arm", no_wrap=True)
    table.add_column("decoding", no_wrap=True)
    name = metric.name if metric else "metric"
    for title in (name, "reward", "length", "entropy", "KL"):
        table.add_column(Text(title), justify="right", no_wrap=True)
    for row in parsed.rows if parsed else ():
        means = (
            "-" if value is None else f"{value.mean:.{digits}f}"
            for value, digits in ((row.dense_reward, 2), (row.length, 1), (row.entropy, 2), (row.kl, 2))
        )
        decoding = row.decoding.replace("temperature ", "T = ")
        table.add_row(Text(row.label), Text(decoding), format_interval(row.metric), *means)
    return table
