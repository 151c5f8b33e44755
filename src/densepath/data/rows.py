"""One row, whatever its format: which format it is, its prompt, its turns, its canonical text.

A row is a mapping in one of TRL's formats, standard (text) or conversational (lists of {"role", "content"}):

    text                    {"text": str}
    messages                {"messages": [turn, ...]}
    prompt and completion   {"prompt": str | [turn, ...], "completion": str | [turn, ...]}
    prompt                  {"prompt": str | [turn, ...]}

Every other column (`id`, `category`, `answer`, `references`, ...) is kept as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

from densepath.errors import DataError

Row: TypeAlias = Mapping[str, Any]
"""One example: column name to value."""
Turns: TypeAlias = Sequence[Mapping[str, Any]]
"""A conversation: turns with a "role" and a "content"."""

ROLES = ("system", "user", "assistant", "tool", "developer")
COLUMNS_HINT = 'use "prompt" and "completion", "messages", or "text"'


class DataFormat(str, Enum):
    """The formats that a row can have, by the columns that define them."""

    TEXT = "text"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt and completion"
    PROMPT = "prompt"


def detect_format(row: Row) -> DataFormat:
    """Format of one row, by the columns that are present and not null.

    A row with several of them counts as the first of: prompt and completion, messages, text, prompt (data sets such as
    UltraChat carry the first prompt beside the whole conversation).

    Args:
        row: one example.

    Returns:
        The row's format.

    Raises:
        DataError: none of the formats' columns is there.

    >>> detect_format({"prompt": "1 + 1 =", "completion": " 2", "id": 7}).value
    'prompt and completion'
    """
    if row.get("prompt") is not None and row.get("completion") is not None:
        return DataFormat.PROMPT_COMPLETION
    for name in (DataFormat.MESSAGES, DataFormat.TEXT, DataFormat.PROMPT):
        if row.get(name.value) is not None:
            return name
    present = ", ".join(f'"{key}"' for key, value in row.items() if value is not None) or "no column"
    raise DataError(f"no format of TRL's: the columns are {short(present, 80)}; {COLUMNS_HINT}")


def is_conversational(value: object) -> bool:
    """Whether a prompt, completion or `messages` value is a list of turns (True) rather than plain text (False)."""
    return not isinstance(value, str)


def prompt_of(row: Row) -> str | list[dict[str, Any]]:
    """Prompt of a row in any format: what the model is conditioned on.

    Args:
        row: a validated example; of `messages`, the turns before the last assistant turn are the prompt
            (all of them, when there is no assistant turn).

    Returns:
        Plain text, or a list of turns.

    Raises:
        DataError: a `text` row, which has no prompt, or a row in no known format.

    >>> prompt_of({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    [{'role': 'user', 'content': 'Hi'}]
    """
    found = detect_format(row)
    if found is DataFormat.TEXT:
        raise DataError('a "text" row has no prompt; give the part to answer as "prompt"')
    if found is not DataFormat.MESSAGES:
        prompt = row["prompt"]
        return [dict(turn) for turn in prompt] if is_conversational(prompt) else str(prompt)
    turns = [dict(turn) for turn in row["messages"]]
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    return turns[:last]


def split_turns(row: Row) -> list[dict[str, Any]]:
    """Rows with one assistant turn each, from a row with several: for chat templates that rewrite the history.

    Args:
        row: a validated conversational row in the format messages, or prompt and completion.

    Returns:
        One row of prompt (everything before the turn) and completion (the turn) per assistant turn that is an action;
        the other columns are repeated. A row of plain text is returned alone.
    """
    turns, first_action = conversation_of(row)
    if turns is None:
        return [dict(row)]
    extras = {key: value for key, value in row.items() if key not in ("prompt", "completion", "messages")}
    return [
        {**extras, "prompt": list(turns[:index]), "completion": [turns[index]]}
        for index in range(first_action, len(turns))
        if turns[index]["role"] == "assistant"
    ]


def conversation_of(row: Row) -> tuple[list[dict[str, Any]] | None, int]:
    """Whole conversation of a demonstration, and the index from which its assistant turns are actions.

    Args:
        row: a validated demonstration.

    Returns:
        (turns, index): of prompt and completion only the completion's turns are actions, of `messages` every assistant
        turn is. (None, 0) for a row of plain text.
    """
    if detect_format(row) is DataFormat.MESSAGES:
        return [dict(turn) for turn in row["messages"]], 0
    prompt, completion = row.get("prompt"), row.get("completion")
    if is_conversational(prompt) != is_conversational(completion):
        raise DataError('"prompt" and "completion" differ in kind; make both text or both lists of turns')
    if prompt is not None and completion is not None and is_conversational(prompt):
        return [dict(turn) for turn in (*prompt, *completion)], len(prompt)
    return None, 0


def canonical_json(value: object) -> str:
    """ASCII JSON with sorted keys and without nulls in objects: equal content gives equal text."""
    return json.dumps(_without_nulls(value), sort_keys=True, separators=(",", ":"), default=str)


def short(text: str, length: int = 60) -> str:
    """One line of at most `length` characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    return value
