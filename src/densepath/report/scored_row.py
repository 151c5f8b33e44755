"""One row of a scored file, in either layout: as a record to show, as numbers to sort by, as text to search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from densepath.errors import DataError
from densepath.report import parse
from densepath.report.records import Completion, ScoredRow


class Summary(NamedTuple):
    """What rows are sorted by; nats, nats per token, tokens, nats."""

    reward: float
    reward_per_token: float
    tokens: int
    lowest: float


def scored_row(value: Any, number: int, source: str) -> ScoredRow:
    """A row of a scored file, whichever layout it was written in.

    Args:
        value: the JSON object: `turns` as `densepath score` writes them (`tokens`, `offsets`, `token_ids` and
            `rewards`), `turns` of `spans` of `text`, `token_ids` and `rewards`, or `spans` alone; `id`, `category`
            and `prompt` (text or turns) or `messages` where they are known.
        number: its place in the file, from 1.
        source: the file's name, for messages.

    Raises:
        DataError: it holds no scored turn.
    """
    turns = scored_turns(value, number, source)
    cleaned = parse.clean({**value, "turns": turns})
    known = [_turn(turn, place) for place, turn in enumerate(cleaned["turns"], start=1)]
    name = cleaned.get("id")
    category = cleaned.get("category")
    return ScoredRow(
        number=number,
        id=None if name is None else str(name),
        prompt=_asked(cleaned),
        category=None if category is None else str(category),
        turns=tuple(known),
    )


def scored_turns(value: Any, number: int, source: str) -> list[Mapping[str, Any]]:
    """The scored turns of a row, as they were written.

    Raises:
        DataError: it holds none.
    """
    if isinstance(value, Mapping):
        turns = [value] if isinstance(value.get("spans"), list) else value.get("turns")
        if isinstance(turns, list) and all(map(_is_scored, turns)):
            return turns
    raise DataError(
        f'{source}, row {number}: not a scored row, it has no "turns" of "tokens" or "spans"; see densepath score'
    )


def summary(value: Any, number: int, source: str) -> Summary:
    """The numbers of `scored_row`, without making the record: a file may have millions of rows.

    Raises:
        DataError: as `scored_row`.
    """
    rewards: list[float] = []
    tokens = 0
    try:
        for turn in scored_turns(value, number, source):
            for part in turn["spans"] if isinstance(turn.get("spans"), list) else (turn,):
                rewards += part["rewards"]
                tokens += max(len(part["rewards"]), len(part["token_ids"]))
        total, lowest = sum(rewards), min(rewards, default=0.0)
        if math.isfinite(total):
            return Summary(total, total / tokens if tokens else 0.0, tokens, lowest)
    except (TypeError, KeyError):
        pass  # a reward that is not known, or a span without any: read it as it would be shown
    row = scored_row(value, number, source)
    return Summary(row.reward, row.reward_per_token, row.num_tokens, row.lowest)


def searched_text(value: Mapping[str, Any]) -> str:
    """What a search looks through: id, category, prompt and completion, without upper and lower case."""
    turns = [value] if isinstance(value.get("spans"), list) else value["turns"]
    parts = [value.get("id"), value.get("category"), _asked(value)]
    for turn in turns:
        spans = turn.get("spans")
        parts.append(
            "".join(str(s.get("text")) for s in spans if isinstance(s, Mapping)) if spans else turn.get("text")
        )
    return "\n".join(str(part) for part in parts if part is not None).casefold()


def _asked(value: Mapping[str, Any]) -> str | None:
    """The prompt as text: of a conversation what comes before the first answer."""
    prompt, messages = value.get("prompt"), value.get("messages")
    if prompt is None and isinstance(messages, list):
        answers = (isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in messages)
        prompt = messages[: next((place for place, answer in enumerate(answers) if answer), None)]
    return prompt_text(prompt)


def _is_scored(turn: Any) -> bool:
    if not isinstance(turn, Mapping):
        return False
    if isinstance(turn.get("spans"), list):
        return True
    lists = [turn.get(name) for name in ("tokens", "offsets", "token_ids", "rewards")]
    return all(isinstance(values, list) and len(values) == len(lists[0] or ()) for values in lists)


def _runs(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Spans of a turn's aligned lists: consecutive tokens with one range in the text share a character."""
    logprobs = turn.get("sft_logprobs") or [None] * len(turn["tokens"])
    spans: list[dict[str, Any]] = []
    before = None
    for token, offset, *numbers in zip(
        turn["tokens"], turn["offsets"], turn["token_ids"], turn["rewards"], logprobs, strict=False
    ):
        if offset != before or not isinstance(offset, list) or offset[0] == offset[-1]:
            spans.append({"text": token, "token_ids": [], "rewards": [], "logprobs": []})
        for name, number in zip(("token_ids", "rewards", "logprobs"), numbers, strict=True):
            spans[-1][name].append(number)
        before = offset
    return spans


def _turn(value: Mapping[str, Any], place: int) -> Completion:
    parts = value["spans"] if isinstance(value.get("spans"), list) else _runs(value)
    spans = tuple(parse.span(part) for part in parts if isinstance(part, Mapping))
    return Completion(
        arm="",
        label=f"turn {place}",
        text="".join(span.text for span in spans),
        metric=None,
        reward=sum(span.reward for span in spans),
        truncated=bool(value.get("truncated")),
        spans=spans,
    )


def prompt_text(value: Any) -> str | None:
    """A prompt as text: several turns become `role: content` paragraphs."""
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], Mapping) and value[0].get("role") == "user":
            return str(value[0].get("content"))
        return "\n\n".join(
            f"{turn.get('role')}: {turn.get('content')}" if isinstance(turn, Mapping) else str(turn) for turn in value
        )
    return None if value is None else str(value)
