"""The paper's figure as a measurement: one number of an answer altered, and how far the reward falls there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from densepath.data.encode import Encoded, encode_pairs
from densepath.data.rows import DataFormat, Row, conversation_of, detect_format, is_conversational, turn_text
from densepath.evals.alter import AlteredText, alterations, numbers_in
from densepath.evals.figures import credit_figure
from densepath.evals.first_error import lowest_credits
from densepath.evals.preferences import PAIR_DESCRIPTION, pair_measures
from densepath.evals.signals import RANDOM, REWARD, Floats, Signals
from densepath.records.reward_eval import Changes, Figure
from densepath.stats.intervals import mean_interval

_TRIES = 30
"""Alterations tried before a row is given up: only those that change one token alone are taken."""


@dataclass(frozen=True)
class AlteredAnswer:
    """One answer with an altered twin that differs in one token.

    Attributes:
        category: of the row.
        completions: the answer as it was, and the altered one: the same ids but for one.
        at: index of the altered token.
        number: "copied" where the number as it was stands before the answer or earlier in it, else "new".
        altered: what was altered.
    """

    category: str
    completions: tuple[Encoded, Encoded]
    at: int
    number: str
    altered: AlteredText


def answer_of(row: Row) -> str:
    """Text of a demonstration's last completion."""
    if detect_format(row) is DataFormat.TEXT:
        return str(row["text"])
    value = row["messages"] if detect_format(row) is DataFormat.MESSAGES else row["completion"]
    if not is_conversational(value):
        return str(value)
    return turn_text(next(turn for turn in reversed(value) if turn["role"] == "assistant"))


def with_answer(row: Row, text: str) -> dict[str, Any]:
    """The row with another text in the place of its last completion."""
    found = detect_format(row)
    if found is DataFormat.TEXT:
        return {**row, "text": text}
    name = "messages" if found is DataFormat.MESSAGES else "completion"
    value = row[name]
    if not is_conversational(value):
        return {**row, name: text}
    last = max(index for index, turn in enumerate(value) if turn["role"] == "assistant")
    turns = [{**turn, "content": text} if index == last else turn for index, turn in enumerate(value)]
    return {**row, name: turns}


def alter_answer(row: Row, tokenizer: Any, rng: random.Random) -> AlteredAnswer | str:
    """The demonstration with one number altered in exactly one token, or why there is none.

    Args:
        row: a demonstration in any of TRL's formats; its last completion is altered.
        tokenizer: that of the models.
        rng: decides what is altered.
    """
    text = answer_of(row)
    if not numbers_in(text):
        return "the answer holds no number"
    original = encode_pairs(row, tokenizer)[-1]
    for altered in islice(alterations(text, rng), _TRIES):
        twin = encode_pairs(with_answer(row, altered.text), tokenizer)[-1]
        if twin.prompt_ids != original.prompt_ids or len(twin.completion_ids) != len(original.completion_ids):
            continue
        pairs = zip(original.completion_ids, twin.completion_ids, strict=True)
        places = [index for index, (mine, other) in enumerate(pairs) if mine != other]
        if len(places) == 1:
            number = "copied" if _occurs(altered.before, _text_before(row) + "\n" + text[: altered.start]) else "new"
            category = str(row.get("category") or "all")
            return AlteredAnswer(category, (original, twin), places[0], number, altered)
    return "no alteration of a digit changes one token alone"


def altered_figures(
    answers: Sequence[AlteredAnswer], signals: Signals, *, aggregation: str, seed: int
) -> list[Figure]:
    """How often the altered token is the lowest of its answer, how low it ranks, and if the original is preferred."""
    groupings = {"category": [a.category for a in answers], "number": [a.number for a in answers]}
    scores: dict[str, list[Floats]] = {name: values[1::2] for name, values in signals.items()}
    scores[RANDOM] = [np.zeros_like(values) for values in scores[REWARD]]
    lowest, rank = (
        {
            name: np.array([credit(tokens, answer.at) for tokens, answer in zip(values, answers, strict=True)])
            for name, values in scores.items()
        }
        for credit in (lowest_credits, _share_above)
    )
    return [
        credit_figure(
            "lowest_token",
            "share of altered answers whose altered token scores lowest of all its tokens; ties share",
            lowest,
            primary=REWARD,
            chance=float(lowest[RANDOM].mean()),
            groupings=groupings,
            seed=seed,
        ),
        credit_figure(
            "rank_of_token",
            "share of an altered answer's other tokens that score above the altered one; ties count half",
            rank,
            primary=REWARD,
            chance=0.5,
            decides=False,
            groupings=groupings,
            seed=seed,
        ),
        credit_figure(
            "accuracy",
            PAIR_DESCRIPTION.replace("chosen", "original").replace("rejected", "altered"),
            pair_measures(signals, [answer.completions for answer in answers]),
            primary=f"reward/{aggregation}",
            chance=0.5,
            groupings=groupings,
            seed=seed,
        ),
    ]


def changes(answers: Sequence[AlteredAnswer], signals: Signals) -> dict[str, Changes]:
    """How far each signal falls at the altered token, and how it changes elsewhere; means over answers.

    Tokens before the altered one do not see it: nothing changes there.

    Returns:
        Signal -> its changes, each with a 95 % interval over answers.
    """
    found: dict[str, Changes] = {}
    for name, values in signals.items():
        moved = [values[2 * index + 1] - values[2 * index] for index in range(len(answers))]
        at = [float(move[answer.at]) for move, answer in zip(moved, answers, strict=True)]
        # EOS always follows, so there is a later token.
        later = [move[answer.at + 1 :] for move, answer in zip(moved, answers, strict=True)]
        columns = {
            "at": at,
            "next": [float(move[0]) for move in later],
            "after": [float(move.mean()) for move in later],
            "after_size": [float(np.abs(move).mean()) for move in later],
        }
        found[name] = Changes(**{column: mean_interval(numbers) for column, numbers in columns.items()})
    return found


def _share_above(values: Floats, index: int) -> float:
    """Share of the other tokens above `values[index]`, equal ones counted half."""
    others = np.delete(values, index)
    return float(((others > values[index]) + 0.5 * (others == values[index])).mean())


def _text_before(row: Row) -> str:
    """What stands before the answer that is altered: the last turn of the assistant, whatever follows it."""
    if detect_format(row) is DataFormat.TEXT:
        return ""
    turns, _ = conversation_of(row)
    if turns is None:
        return str(row["prompt"])
    last = max(index for index, turn in enumerate(turns) if turn["role"] == "assistant")
    return "\n".join(map(turn_text, turns[:last]))


def _occurs(number: str, text: str) -> bool:
    return any(text[start:end] == number for start, end in numbers_in(text))
