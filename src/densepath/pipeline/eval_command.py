"""`densepath eval`: what `densepath generate` does with held-out prompts, and a program that checks the answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.config.answers import EvalArguments
from densepath.evals.verifiers import get_verifier
from densepath.pipeline.data import check_answers
from densepath.pipeline.generate import (
    AnswerJob,
    answer_length,
    check_answers_file,
    file_prompts,
    lengths_text,
    write_answers,
)
from densepath.records.codec import from_json, to_json
from densepath.records.estimates import Interval
from densepath.stats.intervals import mean_interval, metric_interval
from densepath.terminal import Console, say


def run_eval_command(arguments: EvalArguments, console: Console) -> dict[str, Any]:
    """Sample completions of held-out prompts and check them; returns and prints the share that is right.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    get_verifier(arguments.verifier)
    asked = file_prompts(arguments, arguments.max_samples, arguments.temperature, draw=True)
    source = arguments.dataset_name
    if arguments.output_file is not None:
        check_answers_file(arguments.output_file, source, arguments.dataset_train_split)
    check_answers(arguments.verifier, [dict(each.row) for each in asked], source, arguments.dataset_train_split)
    job = AnswerJob(arguments, asked, source, "eval", arguments.verifier)

    def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        by_prompt: dict[int, list[float]] = {}
        lengths: dict[int, list[float]] = {}
        for row in rows:
            by_prompt.setdefault(row["row"], []).append(row["metric"])
            lengths.setdefault(row["row"], []).append(float(answer_length(row)))
        return {
            "verifier": arguments.verifier,
            "temperature": arguments.temperature,
            "metric": to_json(metric_interval([sum(values) / len(values) for values in by_prompt.values()])),
            "length": to_json(mean_interval([sum(values) / len(values) for values in lengths.values()])),
            "truncated": sum(row["truncated"] for row in rows) / len(rows),
        }

    with tempfile.TemporaryDirectory() as spare:
        output = Path(arguments.output_file or f"{spare}/eval.jsonl")
        result: dict[str, Any] = write_answers(job, output, console, conclude=figures)
    interval = from_json(Interval, result["metric"])
    say(
        console,
        f"{arguments.verifier}: {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}] "
        f"on {len(asked)} prompts, 95 % interval",
    )
    count, limit = len(asked) * arguments.num_generations, arguments.max_completion_length
    say(console, lengths_text(count, from_json(Interval, result["length"]).mean, result["truncated"], limit))
    if arguments.output_file is not None:
        say(console, f"answers: {output.resolve()}")
    return result
