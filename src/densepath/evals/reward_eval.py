"""Is the reward any good? One function over preference pairs, first-error data and altered numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from densepath.data.context import check_context
from densepath.data.formats import read_rows, validate_rows
from densepath.data.rows import Row
from densepath.data.sources import plain_rows
from densepath.errors import ConfigError, DataError, ModelError, UsageError
from densepath.evals.altered_numbers import AlteredAnswer, alter_answer, altered_figures, changes
from densepath.evals.first_error import SteppedSolution, check_steps, encode_steps, first_error_figures
from densepath.evals.preferences import PreferencePair, check_preference, encode_preference, preference_figures
from densepath.evals.signals import Aggregation, Signals, signal_passes, token_signals
from densepath.models.compat import eos_token_ids
from densepath.records.reward_eval import Figure, RewardEvaluation, SetAside
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy

Example = PreferencePair | SteppedSolution | AlteredAnswer


INTERVAL = (
    "95 % over rows: Wilson for shares, bootstrap for the rest; differences paired over rows, p by bootstrap, "
    "verdicts at 5 % after Holm's correction within each figure"
)


class RewardTask(str, Enum):
    """What a data set asks of the reward."""

    PREFERENCE = "preference"
    FIRST_ERROR = "first_error"
    ALTERED_NUMBERS = "altered_numbers"


def detect_task(row: Row) -> RewardTask:
    """The task of a row by its columns; altered numbers must be asked for, as any demonstrations would do.

    Raises:
        DataError: neither preference pairs nor first-error data.
    """
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return RewardTask.PREFERENCE
    if row.get("steps") is not None or row.get("first_error") is not None:
        return RewardTask.FIRST_ERROR
    raise DataError(
        'neither "chosen" and "rejected" (preference) nor "steps" and "first_error" (first_error) is there; '
        "for demonstrations give task=altered_numbers"
    )


def evaluate_reward(
    reward: DenseReward,
    rows: Any,
    *,
    task: RewardTask | str | None = None,
    base: FrozenPolicy | Any | None = None,
    aggregation: Aggregation | str = Aggregation.MEAN,
    max_samples: int | None = None,
    step_separator: str = "\n",
    seed: int = 0,
    source: str = "the data set",
    on_progress: Callable[[int, int], None] | None = None,
) -> RewardEvaluation:
    """How well the dense reward agrees with labels, beside the baselines that it must beat.

    * `preference`: rows with `prompt`, `chosen`, `rejected` (and `category`): accuracy.
    * `first_error`: rows with `prompt`, `steps`, `first_error` (0-based, -1 = none): how often the first wrong step is
      lowest, AUROC of steps, of tokens, and of whole solutions.
    * `altered_numbers`: demonstrations: one digit of one number of each answer is altered (fixed by the seed).

    Baselines: guessing, length, log pi_SFT, and the log-probability under the model before SFT; each signal as sum,
    mean and lowest token. Differences are paired over rows (bootstrap) and corrected for their number (Holm).

    Args:
        reward: the reward, with a tokenizer.
        rows: a path, a hub id, a `Dataset`, or a list of rows.
        task: what the rows ask; by their columns if None.
        base: the model before SFT; the reference stands in where it is None.
        aggregation: the one that is compared with the baselines: `mean`, `sum` or `min`.
        max_samples: rows drawn with the seed; all if None.
        step_separator: what stands between two steps.
        seed: of the draw of rows, the altered digits and the bootstrap.
        source: name of the rows in messages.
        on_progress: called with (scored, all) completions, counted once for each model.

    Returns:
        The record; `to_json` writes it.

    Raises:
        DataError: a row that is not of the task, with its number; or no row that can be used.
        UsageError: the reward has no tokenizer.
        ConfigError: an unknown task or aggregation, or max_samples below 1.
    """
    tokenizer = reward.tokenizer
    if tokenizer is None:
        raise UsageError("this DenseReward has no tokenizer to read text with: give it tokenizer=")
    how, given = Aggregation.of(aggregation), rows
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"max_samples={max_samples} must be at least 1")
    if isinstance(rows, str):
        source = rows
    rows = plain_rows(read_rows(given))
    kind = _task(task, rows[0], source)
    check_rows(rows, kind, source)

    ends = eos_token_ids(reward.sft.model, tokenizer)

    def encode(index: int) -> Example | str:
        return _encode_row(rows[index], kind, tokenizer, step_separator, ends, random.Random(f"{seed} {index}"))

    before = base if base is None or isinstance(base, FrozenPolicy) else FrozenPolicy(base)
    most = min(max_samples or len(rows), len(rows))
    context = reward.context if before is None else min(reward.context, before.context)
    examples, set_aside = _encode(encode, _drawn(len(rows), most, seed), most, context, source)
    completions = [completion for example in examples for completion in example.completions]
    total = signal_passes(reward, before) * len(completions)
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    signals = token_signals(reward, completions, base=before, on_progress=progress)
    altered = [example for example in examples if isinstance(example, AlteredAnswer)]
    return RewardEvaluation(
        task=kind.value,
        rows=len(examples),
        set_aside=tuple(set_aside),
        aggregation=how.value,
        seed=seed,
        reward=reward.kind.value,
        interval=INTERVAL,
        figures=tuple(_figures(kind, examples, signals, how, seed)),
        changes=changes(altered, signals) if altered else None,
    )


def _task(task: RewardTask | str | None, row: Row, source: str) -> RewardTask:
    try:
        if task is not None:
            return RewardTask(task)
        return detect_task(row)
    except DataError as error:
        raise DataError(f"{source}, row 1: {error}") from None
    except ValueError:
        known = ", ".join(member.value for member in RewardTask)
        raise ConfigError(f"task={task} is not one of {known}") from None


def check_rows(rows: Sequence[Row], kind: RewardTask, source: str) -> None:
    """Refuse rows that are not of the task.

    Raises:
        DataError: the first bad row, with its number.
    """
    if kind is RewardTask.ALTERED_NUMBERS:
        validate_rows(rows, "demonstrations", source=source)
        return
    check = check_preference if kind is RewardTask.PREFERENCE else check_steps
    for number, row in enumerate(rows, start=1):
        try:
            check(row)
        except DataError as error:
            raise DataError(f"{source}, row {number}: {error}") from None


def _drawn(rows: int, most: int, seed: int) -> list[int]:
    """The order in which rows are tried: theirs, or shuffled where not all are wanted."""
    order = list(range(rows))
    if most < rows:
        random.Random(seed).shuffle(order)
    return order


def _encode(
    encode: Callable[[int], Example | str], order: Sequence[int], most: int, context: int, source: str
) -> tuple[list[Example], list[SetAside]]:
    """Examples of as many rows as asked for, in their order, and the rows that say nothing, with the reason."""
    found: dict[int, Example] = {}
    set_aside = []
    for index in order:
        if len(found) == most:
            break
        try:
            example = encode(index)
        except (DataError, ModelError) as error:
            raise type(error)(f"{source}, row {index + 1}: {error}") from error
        if not isinstance(example, str):
            longest = max(len(c.prompt_ids) + len(c.completion_ids) for c in example.completions)
            try:
                check_context(longest, context)
                found[index] = example
                continue
            except DataError as error:
                example = str(error)
        set_aside.append(SetAside(index + 1, example))
    if not found:
        raise DataError(f"{source}: no row can be used; of row {set_aside[0].row}: {set_aside[0].reason}")
    return [found[index] for index in sorted(found)], sorted(set_aside, key=lambda item: item.row)


def _encode_row(
    row: Row, kind: RewardTask, tokenizer: Any, separator: str, ends: Sequence[int], draw: random.Random
) -> Example | str:
    if kind is RewardTask.PREFERENCE:
        return encode_preference(row, tokenizer)
    if kind is RewardTask.FIRST_ERROR:
        return encode_steps(row, tokenizer, separator, ends)
    return alter_answer(row, tokenizer, draw)


def _figures(
    kind: RewardTask, examples: Sequence[Example], signals: Signals, how: Aggregation, seed: int
) -> list[Figure]:
    if kind is RewardTask.PREFERENCE:
        pairs = [e for e in examples if isinstance(e, PreferencePair)]
        return preference_figures(pairs, signals, aggregation=how.value, seed=seed)
    if kind is RewardTask.FIRST_ERROR:
        solutions = [e for e in examples if isinstance(e, SteppedSolution)]
        return first_error_figures(solutions, signals, aggregation=how.value, seed=seed)
    answers = [e for e in examples if isinstance(e, AlteredAnswer)]
    return altered_figures(answers, signals, aggregation=how.value, seed=seed)
