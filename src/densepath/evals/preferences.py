"""Preference pairs: does the chosen completion score above the rejected one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densepath.data.encode import Encoded, encode_pair
from densepath.data.rows import Row, is_conversational, short, template_arguments, without_nulls
from densepath.errors import DataError
from densepath.evals.figures import credit_figure
from densepath.evals.signals import Floats, Piece, Signals, piece_measures
from densepath.records.reward_eval import Figure

PAIR_DESCRIPTION = "share of pairs in which the chosen completion scores above the rejected one; a tie counts half"


@dataclass(frozen=True)
class PreferencePair:
    """One encoded pair of completions of one prompt; the first is the chosen one."""

    category: str
    completions: tuple[Encoded, Encoded]


def explicit_prompt(row: Row) -> Row:
    """The row with its prompt apart, where `chosen` and `rejected` are whole conversations that share one.

    Many data sets are written so, some with the prompt as text beside it. Text without a prompt is left alone.

    Source: `trl.data_utils.maybe_extract_prompt`, for conversations.
    """
    if not all(isinstance(row.get(name), (list, tuple)) for name in ("chosen", "rejected")):
        return row
    chosen, rejected = both = row["chosen"], row["rejected"]
    if not all(turns and isinstance(turns[0], dict) for turns in both):
        return row
    if any(turns[0].get("role") == "assistant" for turns in both) or isinstance(row.get("prompt"), (list, tuple)):
        return row  # answers alone
    bare = zip(without_nulls(chosen), without_nulls(rejected), strict=False)  # Arrow fills in keys of other turns
    differing = (index for index, (mine, other) in enumerate(bare) if mine != other)
    shared = next(differing, min(len(chosen), len(rejected)) - 1)  # of two that are the same, the last turn differs
    return {**row, "prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def check_preference(row: Row) -> None:
    """Refuse a row that is no preference pair in TRL's format, its prompt explicit or implicit.

    Raises:
        DataError: what is missing or of the wrong kind.
    """
    row = explicit_prompt(row)
    for name in ("prompt", "chosen", "rejected"):
        value = row.get(name)
        if value is None:
            raise DataError(f'no "{name}"; a preference row has "prompt", "chosen" and "rejected"')
        if not value or (isinstance(value, str) and not value.strip()):
            raise DataError(f'"{name}" is empty; remove the row')
        if is_conversational(value) != is_conversational(row["prompt"]):
            raise DataError(f'"prompt" and "{name}" differ in kind; make both text or both lists of turns')
        if is_conversational(value):
            _check_turns(value, name)


def _check_turns(value: Any, name: str) -> None:
    turns = list(value) if isinstance(value, (list, tuple)) else []
    if not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) and turn.get("role") for turn in turns):
        raise DataError(f'"{name}" is {short(repr(value))}, not a string or a list of turns with role and content')
    if name != "prompt" and [turn["role"] for turn in turns] != ["assistant"]:
        raise DataError(
            f'"{name}" has {len(turns)} turns of its own; give one assistant turn, and the rest as "prompt"'
        )


def encode_preference(row: Row, tokenizer: Any) -> PreferencePair | str:
    """The pair as ids, EOS included; or why it says nothing."""
    row = explicit_prompt(row)
    own = template_arguments(row)
    chosen, rejected = (
        encode_pair(row["prompt"], row[name], tokenizer, chat_template_kwargs=own) for name in ("chosen", "rejected")
    )
    if chosen.completion_ids == rejected.completion_ids:
        return "chosen and rejected are the same tokens"
    return PreferencePair(str(row.get("category") or "all"), (chosen, rejected))


def pair_credits(chosen: Floats, rejected: Floats) -> Floats:
    """1 where the chosen one scores higher, 0 where it scores lower, 0.5 where both score the same."""
    return np.where(chosen > rejected, 1.0, np.where(chosen < rejected, 0.0, 0.5))


def pair_measures(signals: Signals, pairs: Sequence[Sequence[Encoded]]) -> dict[str, Floats]:
    """Credits of every measure; in the signals each pair's completions are neighbours, the chosen one first."""
    lengths = [len(completion.completion_ids) for pair in pairs for completion in pair]
    measures = piece_measures(signals, [Piece(index, 0, length) for index, length in enumerate(lengths)])
    return {name: pair_credits(values[0::2], values[1::2]) for name, values in measures.items()}


def preference_figures(
    pairs: Sequence[PreferencePair], signals: Signals, *, aggregation: str, seed: int
) -> list[Figure]:
    """Accuracy over all pairs, by category, and by which of the two is longer."""
    credits = pair_measures(signals, [pair.completions for pair in pairs])
    lengths = [tuple(len(completion.completion_ids) for completion in pair.completions) for pair in pairs]
    longer = [
        "chosen longer" if mine > other else "chosen shorter" if mine < other else "same length"
        for mine, other in lengths
    ]
    groupings = {"category": [pair.category for pair in pairs], "length": longer}
    return [
        credit_figure(
            "accuracy",
            PAIR_DESCRIPTION,
            credits,
            primary=f"reward/{aggregation}",
            chance=0.5,
            groupings=groupings,
            seed=seed,
        )
    ]
