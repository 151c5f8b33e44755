"""The data stage: demonstrations, RL prompts and held-out rows, checked, disjoint, and written into the run folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densepath.data import (
    check_disjoint,
    dataset_fingerprint,
    encode_demonstrations,
    encode_prompt,
    generate_tasks,
    load_dataset_rows,
    prompt_of,
    split_by_content,
)
from densepath.data.formats import Needs
from densepath.errors import ConfigError, DataError
from densepath.io import read_jsonl, write_json_atomic, write_jsonl_atomic
from densepath.pipeline.config import TEXT_TASKS, RunArguments
from densepath.pipeline.run_folder import RunFolder

Rows = list[dict[str, Any]]


def load_rows(
    source: str,
    split: str,
    needs: Needs | None,
    *,
    limit: int | None,
    seed: int,
    task_families: Sequence[str] | None = None,
    task_error_rate: float = 0.35,
) -> Rows:
    """Rows of a source as plain dicts; `text_tasks` generates them.

    Raises:
        MissingFileError, DataError: see `load_dataset_rows`.
    """
    if source == TEXT_TASKS:
        # An empty system turn is the shortest: without one, chat templates put in a longer one of their own.
        count = limit if limit is not None else 1000
        return generate_tasks(count, seed=seed, error_rate=task_error_rate, families=task_families, system="")
    return [_plain(row) for row in load_dataset_rows(source, split=split, limit=limit, seed=seed, needs=needs)]


def _plain(row: Any) -> dict[str, Any]:
    """A row without the nulls that `datasets` fills in where rows differ in their keys."""
    return {key: value for key, value in dict(row).items() if value is not None}


def prepare_data(run: RunFolder, arguments: RunArguments, tokenizer: Any, context: int) -> None:
    """Load, check and split the data; write `data/*.jsonl` and `data.json`.

    Raises:
        DataError: bad rows, too few rows, held-out prompts among the training prompts, or prompts that leave no
            room for a completion.
    """
    started = time.time()
    splits = _splits(arguments)
    check_disjoint({name: splits[name] for name in ("train", "validation", "test")})
    if arguments.rl_prompts is not None:
        check_disjoint({name: splits[name] for name in ("rl", "validation", "test")})
    _check_verifier(arguments, splits)
    record = {}
    longest = context - arguments.max_completion_length
    for name, rows in splits.items():
        if name != "train":
            _check_prompts(rows, tokenizer, longest, f"{name} split")
        record[name] = {"source": _source(arguments, name), "rows": len(rows), "sha256": dataset_fingerprint(rows)}
        write_jsonl_atomic(run / f"data/{name}.jsonl", rows)
    limit = min(arguments.max_length or context, context)
    _, counts = encode_demonstrations(
        splits["train"], tokenizer, limit, drop_overlong=True, source=_source(arguments, "train")
    )
    record["train"]["truncated"] = counts.truncated
    record["train"]["dropped"] = counts.dropped
    record["train"]["tokens"] = counts.state_tokens + counts.action_tokens
    write_json_atomic(run / "data.json", record)
    run.finish("data", started, rows={name: len(rows) for name, rows in splits.items()})


def read_split(run: RunFolder, name: str) -> Rows:
    """Rows that the data stage wrote."""
    return read_jsonl(Path(run / f"data/{name}.jsonl"))


def _source(arguments: RunArguments, name: str) -> str:
    if name == "rl" and arguments.rl_prompts is not None:
        return arguments.rl_prompts
    if name in ("validation", "test") and arguments.eval_dataset_name is not None:
        return arguments.eval_dataset_name
    return arguments.dataset_name


def _splits(arguments: RunArguments) -> dict[str, Rows]:
    held_out = {"validation": arguments.num_validation_samples, "test": arguments.num_test_samples}
    wanted = {"train": arguments.max_train_samples, **held_out}
    seed = arguments.seed
    if arguments.eval_dataset_name is not None:
        train = load_rows(
            arguments.dataset_name,
            arguments.dataset_train_split,
            "demonstrations",
            limit=arguments.max_train_samples,
            seed=seed,
            task_families=arguments.task_families,
            task_error_rate=arguments.task_error_rate,
        )
        rows = load_rows(arguments.eval_dataset_name, "test", None, limit=None, seed=seed)
        held = sum(held_out.values())
        parts = split_by_content(rows, {name: count / held for name, count in held_out.items()})
        splits = {"train": train, **_cut(parts, held_out)}
    else:
        # Hash splits meet their shares only on average: a fifth more rows than needed are generated.
        generated = arguments.dataset_name == TEXT_TASKS
        total = int(1.2 * sum(wanted.values())) + 60 if generated else None
        rows = load_rows(
            arguments.dataset_name,
            arguments.dataset_train_split,
            "demonstrations",
            limit=total,
            seed=seed,
            task_families=arguments.task_families,
            task_error_rate=arguments.task_error_rate,
        )
        share = {name: count / sum(wanted.values()) for name, count in wanted.items()}
        if not generated:
            # A user's rows beyond what is held out are all for training.
            each = min(0.1, max(held_out.values()) / len(rows) * 1.2 + 0.01)
            share = {"train": 1 - 2 * each, "validation": each, "test": each}
        splits = _cut(split_by_content(rows, share), wanted)
    for name, part in splits.items():
        if not part:
            raise DataError(
                f"{_source(arguments, name)}: no row is left for the {name} split; give more rows, or held-out rows "
                "of their own with eval_dataset_name"
            )
    if arguments.rl_prompts is not None:
        splits["rl"] = load_rows(arguments.rl_prompts, arguments.dataset_train_split, "prompts", limit=None, seed=seed)
    return splits


def _cut(parts: dict[str, Rows], counts: dict[str, int]) -> dict[str, Rows]:
    return {name: parts[name][: counts[name]] for name in counts}


def _check_verifier(arguments: RunArguments, splits: dict[str, Rows]) -> None:
    if arguments.verifier not in ("exact_match", "final_number"):
        return
    for name in ("validation", "test"):
        for number, row in enumerate(splits[name], start=1):
            if "answer" not in row:
                raise ConfigError(
                    f"verifier={arguments.verifier} needs an `answer` in every held-out row; {name} row {number} of "
                    f"{_source(arguments, name)} has none: add it, or leave the verifier out"
                )


def _check_prompts(rows: Rows, tokenizer: Any, longest: int, source: str) -> None:
    for number, row in enumerate(rows, start=1):
        length = len(encode_prompt(prompt_of(row), tokenizer))
        if length > longest:
            raise DataError(
                f"{source}, row {number}: the prompt has {length} tokens, but only {longest} fit beside "
                "max_completion_length in the model's context; shorten it, or lower max_completion_length"
            )
