"""`densepath audit`: the demonstrations that a trained model finds least like expert behaviour."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from densepath.config.reward import AuditArguments
from densepath.data.sources import load_rows
from densepath.evals.audit import Flag, audit_demonstrations
from densepath.io import write_jsonl_atomic
from densepath.pipeline.reward_eval import load_dense_reward
from densepath.progress import StageProgress
from densepath.report.audit import audit_table, audit_view
from densepath.report.console import print_parts
from densepath.stats.intervals import mean_interval
from densepath.terminal import Console, say


def run_audit_command(arguments: AuditArguments, console: Console) -> Path:
    """Write one JSON object a row, the worst first; print the worst ones, and perhaps make a page of them.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    source = arguments.dataset_name
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
        f"{len(records)} rows, {interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}] nats per token; "
        f"flagged: {flagged}",
    )
    say(console, f"rows: {path.resolve()}")
    if arguments.html_file is not None:
        facts = [
            ("file", source),
            ("SFT model", arguments.model_name_or_path),
            ("reference", arguments.ref_model_name_or_path or "none"),
            ("reward", arguments.dense_reward),
            ("worst first by", f"{arguments.aggregation} of the reward"),
        ]
        paths = audit_view(records, arguments.num_shown, facts).save(arguments.html_file)
        say(console, f"page: {paths.html.resolve()}")
    return path
