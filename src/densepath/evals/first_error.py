"""First-error data: does the first wrong step of a solution, and do its tokens, get the lowest reward?

Steps after the first error are neither right nor wrong by the labels: the AUROCs of steps and of tokens leave them
out. In a row with an error the wrong step is therefore the last one that counts, which alone can make late steps
suspicious: `earlier` is the baseline that knows nothing else. What is asked of whole rows looks at all steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densepath.data.encode import Encoded, encode_pair
from densepath.data.rows import Row, is_conversational, short, template_arguments
from densepath.data.spans import ending, token_offsets
from densepath.errors import DataError
from densepath.evals.figures import auroc_figure, credit_figure
from densepath.evals.signals import RANDOM, REWARD, Floats, Piece, Signals, piece_measures
from densepath.records.reward_eval import Figure

EARLIER, LATER = "earlier", "later"


@dataclass(frozen=True)
class SteppedSolution:
    """One encoded solution.

    Attributes:
        category: of the row.
        completions: the solution, alone.
        steps: (start, end) in tokens of each step; a separator belongs to the step before it; what the template puts
            before the first step, and the ending from its first EOS on, to none.
        first_error: index of the first wrong step, None where all are right.
    """

    category: str
    completions: tuple[Encoded]
    steps: tuple[tuple[int, int], ...]
    first_error: int | None


def check_steps(row: Row) -> None:
    """Refuse a row that is no solution in steps with a first error.

    Raises:
        DataError: what is missing, of the wrong kind, or out of range.
    """
    if not row.get("prompt"):
        raise DataError('no "prompt"; a first-error row has "prompt", "steps" and "first_error"')
    steps = row.get("steps")
    if not isinstance(steps, (list, tuple)) or not steps or not all(isinstance(step, str) for step in steps):
        raise DataError(f'"steps" is {short(repr(steps))}, not a list of one or more strings')
    error = row.get("first_error")
    if not isinstance(error, int) or isinstance(error, bool):
        raise DataError(
            f'"first_error" is {short(repr(error))}; give the 0-based index of the first wrong step, or -1'
        )
    if not -1 <= error < len(steps):
        raise DataError(
            f'"first_error" is {error}, and there are {len(steps)} steps: it must be 0 to {len(steps) - 1}, '
            "or -1 where every step is right"
        )


def encode_steps(row: Row, tokenizer: Any, separator: str, eos_token_ids: Sequence[int]) -> SteppedSolution | str:
    """The solution as ids with each step's tokens; or why the steps cannot be told apart."""
    text = separator.join(row["steps"])
    if not text.strip():
        return "every step is empty"
    answer = [{"role": "assistant", "content": text}] if is_conversational(row["prompt"]) else text
    pair = encode_pair(row["prompt"], answer, tokenizer, chat_template_kwargs=template_arguments(row))
    steps = step_tokens(pair.completion_ids, row["steps"], tokenizer, eos_token_ids)
    if isinstance(steps, str):
        return steps
    error = row["first_error"]
    return SteppedSolution(str(row.get("category") or "all"), (pair,), steps, None if error < 0 else error)


def step_tokens(
    ids: Sequence[int], steps: Sequence[str], tokenizer: Any, eos_token_ids: Sequence[int]
) -> tuple[tuple[int, int], ...] | str:
    """(start, end) in tokens of each step, or which step has none of its own.

    A token belongs to the step in which its first character that is not white space or separator lies; tokens that
    hold nothing else belong to the step before them.

    Args:
        ids: the solution, EOS included or not.
        steps: texts, in order.
        tokenizer: turns ids into text.
        eos_token_ids: ids that end a completion.
    """
    text, offsets = token_offsets(ids, tokenizer)
    starts: list[int] = []  # first token of each step
    at = token = 0
    for number, step in enumerate(steps):
        core = step.strip()
        if not core:
            return f"step {number} is empty"
        begin = text.find(core, at)
        if begin < 0:
            return f"step {number} is not in the tokenised text; the chat template or the tokenizer changes it"
        while token < len(offsets) and offsets[token][1] <= begin:
            token += 1
        if token < len(offsets) and offsets[token][0] < at:  # it began in the step before
            return f"steps {number - 1} and {number} share a token; choose another step_separator"
        starts.append(token)
        at = begin + len(core)
    return tuple(zip(starts, [*starts[1:], ending(ids, eos_token_ids, tokenizer)], strict=True))


def first_error_figures(
    solutions: Sequence[SteppedSolution], signals: Signals, *, aggregation: str, seed: int
) -> list[Figure]:
    """How often the first wrong step is the lowest, and how well low scores tell wrong from right.

    Raises:
        DataError: no row has an error.
    """
    pieces, rows, places = [], [], []
    for index, solution in enumerate(solutions):
        for step_index, (start, end) in enumerate(solution.steps):
            pieces.append(Piece(index, start, end))
            rows.append(index)
            places.append(float(step_index))
    place = np.array(places)
    measures: dict[str, Floats] = {**piece_measures(signals, pieces), EARLIER: -place, LATER: place}
    row = np.array(rows, dtype=np.int64)
    error = np.array([-1 if s.first_error is None else s.first_error for s in solutions])
    wrong = place == error[row]
    counts = (error[row] < 0) | (place <= error[row])
    categories = {"category": [solution.category for solution in solutions]}
    primary, n = f"reward/{aggregation}", len(solutions)
    lowest = _lowest_figure(solutions, measures, row, primary=primary, seed=seed)
    step = auroc_figure(
        "auroc_step",
        "AUROC with which low scores tell the first wrong step from right ones; later steps are left out",
        {name: values[counts] for name, values in measures.items()},
        wrong[counts],
        row[counts],
        n,
        primary=primary,
        groupings=categories,
        seed=seed,
    )
    token = _token_figure(solutions, signals, n, groupings=categories, seed=seed)
    whole = auroc_figure(
        "auroc_row",
        "AUROC with which a solution's lowest step tells solutions with an error from right ones",
        {name: np.minimum.reduceat(values, np.flatnonzero(place == 0)) for name, values in measures.items()},
        error >= 0,
        np.arange(n),
        n,
        primary=primary,
        groupings=categories,
        seed=seed,
    )
    found = [figure for figure in (lowest, step, token, whole) if figure is not None]
    if not found:
        raise DataError("no row has an error to find: first_error is -1 everywhere; give rows with wrong steps too")
    return found


def lowest_credits(values: Floats, index: int) -> float:
    """1 where `values[index]` is the one lowest, 1/k where k tie for lowest and it is among them, else 0."""
    lowest = values == values.min()
    return float(lowest[index] / lowest.sum())


def _lowest_figure(
    solutions: Sequence[SteppedSolution], measures: Mapping[str, Floats], row: Any, *, primary: str, seed: int
) -> Figure | None:
    kept = [
        (index, solution)
        for index, solution in enumerate(solutions)
        if solution.first_error is not None and len(solution.steps) > 1
    ]
    if not kept:
        return None
    bounds = np.searchsorted(row, np.arange(len(solutions) + 1))
    credits = {
        name: np.array([lowest_credits(values[bounds[i] : bounds[i + 1]], s.first_error or 0) for i, s in kept])
        for name, values in measures.items()
    }
    return credit_figure(
        "lowest_step",
        "share of solutions with an error (and several steps) whose first wrong step scores lowest; ties share",
        credits,
        primary=primary,
        chance=float(credits[RANDOM].mean()),
        groupings={"category": [solution.category for _, solution in kept]},
        seed=seed,
    )


def _token_figure(
    solutions: Sequence[SteppedSolution],
    signals: Signals,
    n: int,
    *,
    groupings: Mapping[str, Sequence[str]],
    seed: int,
) -> Figure | None:
    rows, wrong, places = [], [], []
    for index, solution in enumerate(solutions):
        last = len(solution.steps) - 1 if solution.first_error is None else solution.first_error
        start, end = solution.steps[last]
        tokens = np.arange(solution.steps[0][0], end)
        rows.append(np.full(tokens.size, index))
        wrong.append(tokens >= (end if solution.first_error is None else start))
        places.append(tokens)
    scores = {
        name: np.concatenate([tokens[place] for tokens, place in zip(values, places, strict=True)])
        for name, values in signals.items()
    }
    place = np.concatenate(places).astype(np.float64)
    return auroc_figure(
        "auroc_token",
        "AUROC with which low scores tell tokens of the first wrong step from those of right ones",
        {**scores, EARLIER: -place, RANDOM: np.zeros(len(place))},
        np.concatenate(wrong),
        np.concatenate(rows),
        n,
        primary=REWARD,
        groupings=groupings,
        seed=seed,
    )
