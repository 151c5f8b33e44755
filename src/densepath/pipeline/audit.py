"""`densepath audit`: the demonstrations that a trained model finds least like expert behaviour."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.config.reward import AuditArguments
from densepath.data.kept_rows import write_kept_rows
from densepath.data.outputs import check_outputs, with_twin
from densepath.data.rows import Row
from densepath.data.sources import load_rows
from densepath.errors import DataError
from densepath.evals.audit import Flag, audit_demonstrations
from densepath.io import write_jsonl_atomic
from densepath.pipeline.reward_eval import load_dense_reward, pair_inputs
from densepath.progress import StageProgress
from densepath.report.audit import audit_table, audit_view, flag_text
from densepath.report.console import print_parts
from densepath.report.words import nats_interval
from densepath.stats.intervals import mean_interval
from densepath.terminal import Console, say


def run_audit_command(arguments: AuditArguments, console: Console) -> Path:
    """Write one JSON object a row, the worst first; print the worst ones, and perhaps make a page of them.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    source = arguments.dataset_name
    outputs = {name: getattr(arguments, name) for name in ("output_file", "clean_file", "dropped_file")}
    check_outputs({**outputs, **with_twin(arguments.html_file)}, pair_inputs(arguments))
    rows = load_rows(source, arguments.dataset_train_split, "demonstrations", limit=arguments.max_samples, seed=None)
    reward = load_dense_reward(arguments, console)
    with StageProgress(console, "audit", None, "completion") as progress:
        records = audit_demonstrations(
            reward,
            rows,
            aggregation=arguments.aggregation,
            max_length=arguments.max_length,
            source=source,
            on_progress=lambda done, total: progress.update(done, total),
        )
    path = Path(arguments.output_file)
    write_jsonl_atomic(path, records)
    print_parts(console, audit_table(records, arguments.num_shown))
    interval = mean_interval([record["reward_per_token"] for record in records])
    counts = Counter(flag["flag"] for record in records for flag in record["flags"])
    flagged = ", ".join(f"{counts[flag.value]} {flag.value.replace('_', ' ')}" for flag in Flag)
    say(
        console,
        f"{len(records)} rows, {nats_interval(interval)} nats per token; flagged: {flagged}",
    )
    say(console, f"rows: {path.resolve()}")
    if arguments.drop or arguments.drop_lowest:
        _write_parts(arguments, rows, records, console)
    if arguments.html_file is not None:
        facts = [
            ("file", source),
            ("SFT model", arguments.model_name_or_path),
            ("reference", ", ".join(arguments.ref_model_name_or_path) or "none"),
            ("reward", arguments.dense_reward),
            ("worst first by", f"{arguments.aggregation} of the reward"),
        ]
        if arguments.max_length is not None:
            facts.append(("max_length", str(arguments.max_length)))
        paths = audit_view(records, arguments.num_shown, facts).save(arguments.html_file)
        say(console, f"page: {paths.html.resolve()}")
    return path


def dropped_rows(
    records: Sequence[Mapping[str, Any]], flags: Collection[str], lowest: float
) -> dict[int, dict[str, Any]]:
    """Which rows are dropped, and why.

    Args:
        records: of all rows, the worst first, as `audit_demonstrations` gives them.
        flags: a row with one of these is dropped.
        lowest: share of all rows, in [0, 1), that is dropped for the lowest score; rounded down to whole rows.

    Returns:
        Index of each dropped row, from 0, with all its reasons as `audit_reason` and its `audit_score`. Of rows
        that repeat one another the first stays that nothing else drops.
    """
    found: dict[int, dict[str, Any]] = {}
    first: dict[int, int] = {}  # row -> the first that it repeats, or itself
    stays: dict[int, int] = {}  # such a first row -> the one of its kind that is kept
    for place, record in sorted(enumerate(records), key=lambda each: int(each[1]["row"])):
        number, reasons = record["row"], []
        first[number] = number
        named = [flag for flag in record["flags"] if flag["flag"] in flags]
        for flag in [flag for flag in named if "of" in flag][-1:]:  # a near duplicate goes further back
            first[number] = first.get(flag["of"], flag["of"])
            if first[number] in stays:
                reasons.append(flag_text({**flag, "of": stays[first[number]]}))
        reasons += [flag_text(flag) for flag in named if "of" not in flag]
        if place < math.floor(lowest * len(records) + 1e-9):  # .29 of 100 are 29
            reasons.append(f"among the lowest {100 * lowest:g} %")
        if reasons:
            found[number - 1] = {"audit_reason": ", ".join(reasons), "audit_score": record["score"]}
        else:
            stays[first[number]] = number
    return found


def _write_parts(
    arguments: AuditArguments, rows: Sequence[Row], records: Sequence[Mapping[str, Any]], console: Console
) -> None:
    """Write the rows that are kept and those that are dropped, and say how many there are of each."""
    dropped = dropped_rows(records, arguments.drop, arguments.drop_lowest)
    if Flag.OVER_LONG.value in arguments.drop:  # of a prompt that fills the limit there is no record
        unread = set(range(len(rows))) - {record["row"] - 1 for record in records}
        dropped |= {index: {"audit_reason": "over long", "audit_score": None} for index in unread}
    if len(dropped) == len(rows):
        raise DataError(f"{arguments.dataset_name}: every row would be dropped; name fewer flags with drop")
    files = {"kept": arguments.clean_file, "dropped": arguments.dropped_file}
    paths = {name: None if file is None else Path(file) for name, file in files.items()}
    write_kept_rows(rows, dropped, paths["kept"], paths["dropped"])
    counts = {"kept": len(rows) - len(dropped), "dropped": len(dropped)}
    for name, path in paths.items():
        say(console, f"{counts[name]} rows {name}" + ("" if path is None else f": {path.resolve()}"))
