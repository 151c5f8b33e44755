"""`densepath eval`: completions of held-out prompts, sampled and checked by a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densepath.config.training import EvalArguments
from densepath.data.sources import load_rows
from densepath.evals.generation import Decoding, checked, generate
from densepath.evals.verifiers import get_verifier
from densepath.io import write_json_atomic
from densepath.models.load import load_frozen, load_tokenizer, model_context
from densepath.pipeline.data import check_answers, check_prompts
from densepath.progress import StageProgress
from densepath.records.codec import to_json
from densepath.stats.intervals import mean_interval, metric_interval
from densepath.terminal import Console, say


def run_eval_command(arguments: EvalArguments, console: Console) -> dict[str, Any]:
    """Sample completions of held-out prompts and check them; returns and prints the share that is right.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    verifier = get_verifier(arguments.verifier)
    tokenizer = load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options())
    rows = load_rows(
        arguments.dataset_name,
        arguments.dataset_train_split,
        "prompts",
        limit=arguments.max_samples,
        seed=arguments.seed,
        task_error_rate=0.0,
    )
    context = model_context(arguments.model_name_or_path, arguments.trust_remote_code)
    origin = arguments.dataset_name, arguments.dataset_train_split
    check_answers(arguments.verifier, rows, *origin)
    check_prompts(rows, tokenizer, context, arguments.max_completion_length, *origin)
    model = load_frozen(arguments, arguments.model_name_or_path)
    with StageProgress(console, "eval", len(rows) * arguments.num_generations, "completion") as progress:
        completions = generate(
            model,
            tokenizer,
            rows,
            Decoding(
                arguments.temperature,
                arguments.max_completion_length,
                num_generations=arguments.num_generations,
                seed=arguments.seed,
            ),
            on_progress=lambda done, _: progress.update(done),
        )
        completions = checked(completions, rows, verifier)
        progress.advance(0, tokens=sum(len(c.completion_ids) for c in completions))
    by_prompt: list[list[float]] = [[] for _ in rows]
    for completion in completions:
        by_prompt[completion.row].append(float(completion.metric or 0.0))
    interval = metric_interval([sum(values) / len(values) for values in by_prompt])
    result = {
        "verifier": arguments.verifier,
        "temperature": arguments.temperature,
        "metric": to_json(interval),
        "length": to_json(mean_interval([float(len(c.completion_ids)) for c in completions])),
        "truncated": sum(c.truncated for c in completions) / len(completions),
    }
    say(
        console,
        f"{arguments.verifier}: {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}] "
        f"on {len(rows)} prompts, 95 % interval",
    )
    if arguments.output_file is not None:
        record = {**result, "completions": [to_json(c) for c in completions]}
        write_json_atomic(Path(arguments.output_file), record)
        say(console, f"completions: {Path(arguments.output_file).resolve()}")
    return result
