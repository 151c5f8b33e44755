"""One row of a scored file: as a record to show, as numbers to sort by, as text to search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from densepath.errors import DataError, NumericalError
from densepath.records.codec import from_json
from densepath.records.completion import ScoredCompletion, ScoredRow, asked_text


class Summary(NamedTuple):
    """What rows are sorted by; nats, nats per token, tokens, nats."""

    reward: float
    reward_per_token: float
    tokens: int
    lowest: float


def scored_row(value: Any, number: int, source: str) -> ScoredRow:
    """A row of a scored file.

    Args:
        value: the JSON object: `turns` in the layout of `ScoredCompletion`, and `id`, `category` and `prompt` (text or
            turns) or `messages` where they are known.
        number: its place in the file, from 1.
        source: the file's name, for messages.

    Raises:
        DataError: it holds no scored turn, or one that is not whole.
    """
    turns = _turns(value, number, source)
    try:
        known = tuple(from_json(ScoredCompletion, turn) for turn in turns)
    except (DataError, NumericalError) as error:
        raise DataError(f"{source}, row {number}: not a scored row, {error}; see densepath score") from error
    name, category = value.get("id"), value.get("category")
    return ScoredRow(
        number=number,
        id=None if name is None else str(name),
        prompt=asked_text(value),
        category=None if category is None else str(category),
        turns=known,
    )


def _turns(value: Any, number: int, source: str) -> list[Mapping[str, Any]]:
    """The scored turns of a row, as they were written; of sampled answers the turns with log pi of each token."""
    turns = value.get("turns", value.get("sampled")) if isinstance(value, Mapping) else None
    if isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns):
        return turns
    raise DataError(f'{source}, row {number}: not a scored row, it has no "turns"; see densepath score')


def summary(value: Any, number: int, source: str) -> Summary:
    """The numbers of `scored_row`, without making the record: a file may have millions of rows.

    Raises:
        DataError: as `scored_row`.
    """
    try:
        turns = _turns(value, number, source)
        rewards = [reward for turn in turns for reward in turn["rewards"]]
        total, lowest = sum(rewards), min(rewards, default=0.0)
        if math.isfinite(total) and all(len(turn["rewards"]) == len(turn["token_ids"]) for turn in turns):
            return Summary(total, total / len(rewards) if rewards else 0.0, len(rewards), lowest)
    except (TypeError, KeyError):
        pass  # a turn that is not whole: the record says what is amiss
    row = scored_row(value, number, source)
    return Summary(row.reward, row.reward_per_token, row.num_tokens, row.lowest)


def searched_text(value: Mapping[str, Any]) -> str:
    """What a search looks through: id, category, prompt and completion, without upper and lower case."""
    parts = [
        value.get("id"),
        value.get("category"),
        asked_text(value),
        *(turn.get("text") for turn in _turns(value, 0, "")),
    ]
    return "\n".join(str(part) for part in parts if part is not None).casefold()
