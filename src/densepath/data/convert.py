"""Rows in the formats of other tools, made rows of TRL's formats: in this one place, whatever file they come from.

    ShareGPT   {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}   -> messages
               {"conversations": [{"role": "user", "content": ...}, ...]}                            -> messages
    Alpaca     {"instruction": ..., "input": ..., "output": ...}                    -> prompt and completion, as turns
    Dolly      {"instruction": ..., "context": ..., "response": ...}                -> prompt and completion, as turns

The user's turn of an Alpaca row is instruction + "\n" + input, or the one of them that is not empty (LLaMA-Factory's
join); that of a Dolly row likewise. `system`, text beside any of them, becomes the first turn; `history`, pairs of an
instruction and its answer, the turns before the instruction. Columns of TRL's own count first: a row that has
`messages`, or a prompt and a completion, is not touched. Every column stays beside those that are added, for verifiers
that read it, and so that `as_written` gives back what stood in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from densepath.data.rows import Row, short
from densepath.errors import DataError

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
    "developer": "developer",
}
"""What ShareGPT's `from` says of a turn."""
_INSTRUCTIONS = {"Alpaca": ("input", "output"), "Dolly": ("context", "response")}
"""Whose rows have an `instruction` -> their columns of what it is about, and of the answer."""

_ADDED = (("messages",), ("prompt", "completion"))


def conversion(row: Row) -> str:
    """What `converted` makes of the row's columns, for a message; empty where the row stays as it is."""
    if row.get("messages") is not None or (row.get("prompt") is not None and row.get("completion") is not None):
        return ""
    if row.get("conversations") is not None:
        return f'ShareGPT\'s {_named(row, "conversations", "system")} read as "messages"'
    if isinstance(row.get("instruction"), str) and row.get("prompt") is None:
        for whose, (given, answer) in _INSTRUCTIONS.items():
            if answer in row and (given in row or whose == "Alpaca"):
                columns = _named(row, "instruction", given, answer, "system", "history")
                return f'{whose}\'s {columns} read as "prompt" and "completion"'
    return ""


def converted(row: Row) -> Row:
    """The row with the columns of one of TRL's formats too, where it is in one of those above; else the row itself.

    Raises:
        DataError: a turn that cannot be read.

    >>> converted({"instruction": "Add.", "input": "1, 2", "output": "3", "id": 7})["prompt"]
    [{'role': 'user', 'content': 'Add.\\n1, 2'}]
    """
    if not conversion(row):
        return row
    if row.get("conversations") is not None:
        return {**row, "messages": _with_system(row, _sharegpt_turns(row["conversations"]))}
    given, answered = _instruction_columns(row)
    for name in (given, answered):
        if not isinstance(row.get(name), (str, type(None))):
            raise DataError(f'"{name}" is {short(repr(row[name]))}, not a string; quote it')
    asked = "\n".join(filter(None, (row["instruction"], row.get(given))))
    prompt = _with_system(row, [*_history(row.get("history")), {"role": "user", "content": asked}])
    answer = {"completion": [{"role": "assistant", "content": row[answered]}]} if row[answered] else {}
    return {**row, "prompt": prompt, **answer}


def empty_answer(row: Row) -> str:
    """Column in which the answer of a row that was converted should stand and does not; empty for any other row.

    >>> empty_answer(converted({"instruction": "Add.", "input": "1, 2", "output": ""}))
    'output'
    """
    written = as_written(row)
    return (
        ""
        if written is row or any(name in row for name in ("messages", "completion"))
        else _instruction_columns(row)[1]
    )


def as_written(row: Row) -> Row:
    """The row without what `converted` added to it.

    >>> as_written(converted({"instruction": "Add.", "input": "1, 2", "output": "3"}))
    {'instruction': 'Add.', 'input': '1, 2', 'output': '3'}
    """
    for added in _ADDED:
        given = {name: value for name, value in row.items() if name not in added}
        if conversion(given) and converted(given) == row:
            return given
    return row


def _instruction_columns(row: Row) -> tuple[str, str]:
    return _INSTRUCTIONS["Alpaca" if "output" in row else "Dolly"]


def _named(row: Row, *names: str) -> str:
    return ", ".join(f'"{name}"' for name in names if name in row)


def _with_system(row: Row, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = row.get("system")
    if not text or (turns and turns[0].get("role") == "system"):
        return turns
    if not isinstance(text, str):
        raise DataError(f'"system" is {short(repr(text))}, not a string; quote it')
    return [{"role": "system", "content": text}, *turns]


def _history(history: Any) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for pair in history or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(f'"history" holds {short(repr(pair))}; give pairs of an instruction and its answer')
        turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    return turns


def _sharegpt_turns(turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, (list, tuple)) or not turns:
        raise DataError(
            f'"conversations" is {short(repr(turns))}; give a list of turns, {{"from": ..., "value": ...}}'
        )
    return [_sharegpt_turn(turn, f'"conversations" turn {number}') for number, turn in enumerate(turns, start=1)]


def _sharegpt_turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f'{where} is {short(repr(turn))}; a turn is an object {{"from": ..., "value": ...}}')
    if turn.get("role") is not None:
        return dict(turn)
    speaker, text = turn.get("from"), turn.get("value")
    if speaker not in _ROLES:
        raise DataError(f"{where} is from {short(repr(speaker))}; it must be one of {', '.join(_ROLES)}")
    if not isinstance(text, str):
        raise DataError(f"{where} has the value {short(repr(text))}, not a string; only text can be tokenised")
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": _calls(text, where)}
    return {"role": _ROLES[speaker], "content": text}


def _calls(text: str, where: str) -> list[dict[str, Any]]:
    """Calls in TRL's form of a JSON text: {"name": ..., "arguments": {...}}, or a list of these."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(f'{where} calls {short(repr(text))}; give JSON, {{"name": ..., "arguments": {{...}}}}')
    return [{"type": "function", "function": call} for call in calls]
