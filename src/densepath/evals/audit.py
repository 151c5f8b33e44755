"""Demonstrations that a trained model finds least like expert behaviour: rows, spans, duplicates and cut-off ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np

from densepath.data.encode import Encoded, encode_pairs
from densepath.data.formats import validate_rows
from densepath.data.rows import DataFormat, Row, detect_format, prompt_of
from densepath.data.spans import ending
from densepath.errors import ConfigError, DataError, ModelError, UsageError
from densepath.evals.altered_numbers import answer_of
from densepath.evals.duplicates import exact_key, first_occurrences, normal_key
from densepath.evals.signals import Aggregation, aggregate
from densepath.models.compat import eos_token_ids
from densepath.records.completion import Span
from densepath.records.spans import worst_spans
from densepath.rewards.dense import DenseReward
from densepath.rewards.scores import DenseScores

SPANS = 3
"""Worst spans named of each row."""
LONGEST_SPAN = 12
"""Runs of tokens in a span at most: what a reader takes in at once."""
UNLIKELY_EOS = 0.05
"""Probability of EOS below which an answer that ends without punctuation counts as cut off."""

_OPENING = frozenset(",;:-–—([{<=+*/\\&")


class Flag(str, Enum):
    """What is wrong with a row, whatever its reward."""

    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    OVER_LONG = "over_long"
    CUT_OFF = "cut_off"


def audit_demonstrations(
    reward: DenseReward,
    rows: Sequence[Row],
    *,
    aggregation: Aggregation | str = Aggregation.MIN,
    max_length: int | None = None,
    source: str = "the data set",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Demonstrations by rising reward: what the trained model finds least like expert behaviour comes first.

    A low reward says that SFT moved away from this answer, or towards it less than towards others: an error, another
    style, or a rare subject. It points at rows to read, and is no proof.

    Flags:

    * `duplicate`: prompt and completion, and the `tools` and `chat_template_kwargs` that they are read with, equal
      those of an earlier row (`of`, its number); `near_duplicate`: but for case, spacing and punctuation. A row has
      both where it differs so from a still earlier one.
    * `over_long`: more tokens than `max_length`; only those within it are scored, and EOS is not among them.
    * `cut_off`: the text ends within a sentence (no closing punctuation, or an open code fence), and the SFT model
      gives EOS (or what ends a turn before it) less than 5 % there.

    Args:
        reward: the reward, with a tokenizer.
        rows: demonstrations in any of TRL's formats; every assistant turn that is an action is scored.
        aggregation: how the tokens of a row become the number it is ranked by: `min` finds one bad token in a good
            answer, `mean` answers that are strange throughout, `sum` long ones of these.
        max_length: longest demonstration in tokens; the models' context if None.
        source: name of the rows in messages.
        on_progress: called with (scored, all) completions, counted once for each model.

    Returns:
        One record a row whose prompt leaves room for an answer, in the layout of `densepath score` with `row` (from
        1), `rank` (from 1), `score`, `lowest`, `sft_logprob_per_token`, `sft_logprob_lowest`, `flags` and
        `worst_spans` (`text`, `reward`, `turn`, `start`, `end` in tokens).

    Raises:
        DataError: a row that is no demonstration, or every prompt alone fills `max_length`.
        ConfigError: an aggregation that does not exist, or max_length below 2.
        UsageError: the reward has no tokenizer.

    Warns:
        UserWarning: prompts that fill `max_length`; their rows have no record.
    """
    tokenizer = reward.tokenizer
    if tokenizer is None:
        raise UsageError("this DenseReward has no tokenizer to read text with: give it tokenizer=")
    how = Aggregation.of(aggregation)
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length={max_length} must hold at least a prompt and a completion token")
    limit = min(max_length or reward.context, reward.context)
    rows = [{key: value for key, value in dict(row).items() if value is not None} for row in rows]
    validate_rows(rows, "demonstrations", source=source)
    encoded = [_encode(row, number, tokenizer, limit, source) for number, row in enumerate(rows, start=1)]
    flat = [pair for pairs, _ in encoded for pair in pairs]
    _say_unread([number for number, (pairs, _) in enumerate(encoded, start=1) if not pairs], len(rows), limit, source)
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, reward.passes * len(flat))

    eos = eos_token_ids(reward.sft.model, tokenizer)
    scores = reward.score_ids(
        [pair.prompt_ids for pair in flat],
        [pair.completion_ids for pair in flat],
        eos_token_ids=eos,
        on_progress=progress,
    )
    exact, normal = (first_occurrences(rows, key) for key in (exact_key, normal_key))
    faint = _faint(scores)
    records = []
    at = 0
    for index, (row, (pairs, length)) in enumerate(zip(rows, encoded, strict=True)):
        if not pairs:
            continue
        turns = range(at, at + len(pairs))
        at += len(pairs)
        record = _record(row, index + 1, turns, scores, tokenizer, how, faint)
        flags: list[dict[str, Any]] = []
        near = None if normal[index] == exact[index] else normal[index]
        for flag, found in ((Flag.DUPLICATE, exact[index]), (Flag.NEAR_DUPLICATE, near)):
            if found is not None:
                flags.append({"flag": flag.value, "of": found + 1})
        if length > limit:
            flags.append({"flag": Flag.OVER_LONG.value, "tokens": length})
        else:
            ids, logprobs = pairs[-1].completion_ids, scores.sft_logprobs[turns[-1]]
            end = ending(ids, eos, tokenizer)
            likely = math.exp(float(logprobs[end])) if end < len(ids) else 1.0
            if likely < UNLIKELY_EOS and ends_openly(answer_of(row)):
                flags.append({"flag": Flag.CUT_OFF.value, "eos_probability": likely})
        records.append({**record, "flags": flags})
    records.sort(key=lambda record: record["score"])
    return [{"rank": rank, **record} for rank, record in enumerate(records, start=1)]


def ends_openly(text: str) -> bool:
    """Whether a text stops where a sentence goes on: after a letter, a digit, an opening or joining sign, or in code.

    >>> ends_openly("She sold 9 of"), ends_openly("She sold 9."), ends_openly("so:"), ends_openly("(as she said)")
    (True, False, True, False)
    """
    text = text.rstrip()
    return text.count("```") % 2 == 1 or (bool(text) and (text[-1].isalnum() or text[-1] in _OPENING))


def _encode(row: Row, number: int, tokenizer: Any, limit: int, source: str) -> tuple[list[Encoded], int]:
    """The row's turns as far as they lie within the limit, and its whole length in tokens."""
    try:
        pairs = encode_pairs(row, tokenizer)
    except (DataError, ModelError) as error:
        raise type(error)(f"{source}, row {number}: {error}") from error
    length = len(pairs[-1].prompt_ids) + len(pairs[-1].completion_ids)
    kept = [
        Encoded(pair.prompt_ids, pair.completion_ids[: limit - len(pair.prompt_ids)])
        for pair in pairs
        if len(pair.prompt_ids) < limit
    ]
    return kept, length


def _say_unread(numbers: Sequence[int], count: int, limit: int, source: str) -> None:
    """Warn of rows of which nothing can be scored, as SFT leaves them out too.

    Raises:
        DataError: they are all of that kind.
    """
    if not numbers:
        return
    words = f"{source}, row {numbers[0]}: the prompt fills the limit of {limit} tokens"
    if len(numbers) == count:
        raise DataError(f"{words}, as in every row; raise max_length")
    more = len(numbers) - 1
    others = f", as in {more} row{'s' * (more > 1)} more" if more else ""
    warnings.warn(f"{words}{others}: not audited; raise max_length to see it", UserWarning, stacklevel=3)


def _faint(scores: DenseScores) -> float:
    """Nats below which a reward does not widen a span: a twentieth of the 98th percentile of their sizes."""
    sizes = np.abs(np.concatenate([values.double().cpu().numpy() for values in scores.rewards]))
    return float(np.quantile(sizes, 0.98)) / 20


def _record(
    row: Row, number: int, turns: Sequence[int], scores: DenseScores, tokenizer: Any, how: Aggregation, faint: float
) -> dict[str, Any]:
    values = np.concatenate([scores.rewards[turn].double().cpu().numpy() for turn in turns])
    logprobs = np.concatenate([scores.sft_logprobs[turn].double().cpu().numpy() for turn in turns])
    worst: list[dict[str, Any]] = []
    drawn = []
    for place, turn in enumerate(turns):
        completion = scores.completion(turn, tokenizer)
        drawn.append(completion.to_json())
        worst += _worst(completion.spans, place, faint)
    return {
        "row": number,
        "id": row.get("id"),
        "category": row.get("category"),
        "prompt": None if detect_format(row) is DataFormat.TEXT else prompt_of(row),
        "score": aggregate(values, how),
        "reward": aggregate(values, Aggregation.SUM),
        "reward_per_token": aggregate(values, Aggregation.MEAN),
        "lowest": aggregate(values, Aggregation.MIN),
        "sft_logprob_per_token": aggregate(logprobs, Aggregation.MEAN),
        "sft_logprob_lowest": aggregate(logprobs, Aggregation.MIN),
        "num_tokens": int(values.size),
        "worst_spans": sorted(worst, key=lambda span: span["reward"])[:SPANS],
        "turns": drawn,
    }


def _worst(runs: Sequence[Span], turn: int, faint: float) -> list[dict[str, Any]]:
    rewards = [run.reward for run in runs]
    starts = np.concatenate([[0], np.cumsum([len(run.token_ids) for run in runs])]).tolist()
    return [
        {
            "text": "".join(run.text for run in runs[span.start : span.end]),
            "reward": span.reward,
            "turn": turn,
            "start": starts[span.start],
            "end": starts[span.end],
        }
        for span in worst_spans(rewards, SPANS, margin=faint, max_tokens=LONGEST_SPAN)
    ]
