"""One row, whatever its format: which format it is, its prompt, its turns, its canonical text.

A row is a mapping in one of TRL's formats, standard (text) or conversational (lists of {"role", "content"}):

    text                    {"text": str}
    messages                {"messages": [turn, ...]}
    prompt and completion   {"prompt": str | [turn, ...], "completion": str | [turn, ...]}
    prompt                  {"prompt": str | [turn, ...]}

Conversational rows may also give the chat template `tools` and `chat_template_kwargs` (`template_arguments`).
Every other column (`id`, `category`, `answer`, `references`, ...) is kept as it is.

Whoever reads turns reads them in one normal form (`normal_turns`), the same from JSON, from Parquet and from memory.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

from densepath.errors import DataError

Row: TypeAlias = Mapping[str, Any]
"""One example: column name to value."""
Turns: TypeAlias = Sequence[Mapping[str, Any]]
"""A conversation: turns with a "role", and a "content" or, of an assistant, "tool_calls" (or both)."""

ROLES = ("system", "user", "assistant", "tool", "developer")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""What a conversational row gives its chat template beside the turns."""
_NOT_THE_TEMPLATES = frozenset(
    (
        "conversation",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "sanitize_control_tokens",
    )
)
"""Arguments of transformers' `apply_chat_template` that say what to make of the text: no row decides these."""
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
        row: a validated example; of `messages` that end with the assistant's turn, the turns before it are the prompt;
            `messages` that end with another turn (the user's, a tool's) are a prompt as a whole. `text` has none but
            a `prompt` beside it.

    Returns:
        Plain text, or a list of turns in their normal form.

    Raises:
        DataError: a `text` row without a prompt, or a row in no known format.

    >>> prompt_of({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    [{'role': 'user', 'content': 'Hi'}]
    """
    found = detect_format(row)
    if not has_prompt(row):
        raise DataError('a "text" row has no prompt; give the part to answer as "prompt"')
    if found is not DataFormat.MESSAGES:
        prompt = row["prompt"]
        return normal_turns(prompt) if is_conversational(prompt) else str(prompt)
    turns = normal_turns(row["messages"])
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


def has_prompt(row: Row) -> bool:
    """Whether there is something to answer: all but plain text without a `prompt` beside it.

    >>> has_prompt({"text": "Hi"}), has_prompt({"text": "Hi", "prompt": "H"})
    (False, True)
    """
    return detect_format(row) is not DataFormat.TEXT or row.get("prompt") is not None


def is_answered(row: Row) -> bool:
    """Whether a row holds the answer to what `prompt_of` gives: a completion, or `messages` that end with one.

    >>> is_answered({"messages": [{"role": "user", "content": "Hi"}]}), is_answered({"prompt": "a", "completion": "b"})
    (False, True)
    """
    found = detect_format(row)
    if found is DataFormat.MESSAGES:
        turns = normal_turns(row["messages"])
        return bool(turns) and turns[-1]["role"] == "assistant"
    return found is DataFormat.PROMPT_COMPLETION


def normal_turns(turns: Turns) -> list[dict[str, Any]]:
    """Turns in the one form that everything reads: without nulls at any depth, their content a string.

    * A key whose value is null is left out, in a turn and in whatever it holds (`tool_calls`, `arguments`): Arrow
      fills the keys of other rows' calls with nulls. So an argument that was null on purpose is left out too: nobody
      can tell the two apart. A null that is an item of a list stays.
    * Content in parts, [{"type": "text", "text": ...}, ...], becomes their texts joined without anything between.
    * Empty `tool_calls` are left out: templates take a turn that has the key for one that calls.
    * A call without content has no "content" key, as transformers itself hands it to the template: `{{ content }}` is
      empty then, and `is defined` and `is none` are false. An empty string stays one.

    Every other key (`tool_calls`, `name`, `reasoning_content`, `thinking`, ...) is kept, `arguments` that are a JSON
    string too.

    Raises:
        DataError: a part of a content that is no text.
    """
    return [_normal_turn(turn) for turn in turns]


def _normal_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    normal: dict[str, Any] = without_nulls(turn)
    if isinstance(normal.get("content"), (list, tuple)):
        normal["content"] = "".join(_part_text(part) for part in normal["content"])
    if not normal.get("tool_calls", True):
        del normal["tool_calls"]
    return normal


def _part_text(part: object) -> str:
    if not isinstance(part, Mapping):
        raise DataError(f'a content part is {short(repr(part))}; give {{"type": "text", "text": ...}}, or a string')
    if part.get("type") != "text":
        raise DataError(f"a content part of the type {short(repr(part.get('type')))}; only text can be tokenised")
    if not isinstance(part.get("text"), str):
        raise DataError(f"a text part holds {short(repr(part.get('text')))}, not a string; quote it")
    return str(part["text"])


def turn_text(turn: Mapping[str, Any]) -> str:
    """Text of a turn; empty where it calls tools without a word."""
    return str(_normal_turn(turn).get("content", ""))


def template_columns(row: Row) -> dict[str, Any]:
    """The row's columns that `template_arguments` reads, for rows that are made of it."""
    return {name: row[name] for name in TEMPLATE_COLUMNS if row.get(name) is not None}


def template_arguments(row: Row) -> dict[str, Any]:
    """What a conversational row itself gives its chat template, as TRL reads it.

    Args:
        row: with `tools` (JSON schemas, or a JSON string of their list) or `chat_template_kwargs` (name to value), or
            without; empty and null count as absent.

    Returns:
        Keyword arguments of `apply_chat_template`, without nulls (Arrow fills in those of other rows); an entry of
        `chat_template_kwargs` counts before the column `tools`. Nothing of a row of plain text.

    Raises:
        DataError: a column of that name that holds something else.

    >>> template_arguments({"tools": "[]", "chat_template_kwargs": {"enable_thinking": False, "x": None}})
    {'enable_thinking': False}
    """
    asked = next((row[name] for name in ("prompt", "messages", "text") if row.get(name) is not None), None)
    if isinstance(asked, str) and row.get("messages") is None:
        return {}  # text is not rendered: a column of that name is any other column
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            raise DataError(f'"tools" is {short(repr(tools))}, not JSON; give a list of JSON schemas') from None
    if tools and not (isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)):
        raise DataError(f'"tools" is {short(repr(tools))}; give a list of JSON schemas, {{"type": "function", ...}}')
    given = row.get("chat_template_kwargs")
    if given and not isinstance(given, Mapping):
        raise DataError(f'"chat_template_kwargs" is {short(repr(given))}; give an object of names and values')
    if taken := sorted(_NOT_THE_TEMPLATES.intersection(given or {})):
        raise DataError(f'"chat_template_kwargs" sets {taken[0]}, which is not the chat template\'s; leave it out')
    arguments: dict[str, Any] = without_nulls({"tools": tools, **(given or {})})
    # Llama's templates print the instructions for tools even where their list is empty.
    return {name: value for name, value in arguments.items() if name != "tools" or value}


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
        (turns, index): turns in their normal form; of prompt and completion only the completion's are actions, of
        `messages` every assistant turn is, whatever follows it. (None, 0) for a row of plain text.
    """
    found = detect_format(row)
    if found is DataFormat.MESSAGES:
        return normal_turns(row["messages"]), 0
    if found is DataFormat.TEXT:
        return None, 0
    prompt, completion = row.get("prompt"), row.get("completion")
    if is_conversational(prompt) != is_conversational(completion):
        raise DataError('"prompt" and "completion" differ in kind; make both text or both lists of turns')
    if prompt is not None and completion is not None and is_conversational(prompt):
        return normal_turns([*prompt, *completion]), len(prompt)
    return None, 0


def canonical_json(value: object) -> str:
    """ASCII JSON with sorted keys and without nulls in objects: equal content gives equal text."""
    return json.dumps(without_nulls(value), sort_keys=True, separators=(",", ":"), default=str)


def jsonable(value: Any) -> Any:
    """The value as strict JSON can hold it: bytes as base64, dates in ISO 8601, NaN and infinity as null.

    Numbers of any size stay numbers; whatever else JSON does not know (decimals, durations) is its text.

    >>> jsonable({"a": (1, float("nan")), "b": b"x"})
    {'a': [1, None], 'b': 'eA=='}
    """
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return jsonable(value.tolist())
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


def check_unicode(value: Any) -> None:
    """Refuse what is neither text nor JSON, and text that holds half of a surrogate pair.

    Raises:
        DataError: with what stands before it.
    """
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError as error:
        behind = repr(error.object[max(error.start - 20, 0) : error.start])
        raise DataError(f"half of a surrogate pair stands behind {behind}; correct the text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{short(repr(type(value)))} is no text ({error})") from None


def check_types(row: Row) -> None:
    """Refuse a row in which a column of TRL's formats, if present, is neither text nor a list of well-formed turns.

    Raises:
        DataError: the first such column, turn or template argument.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be an object with named columns, not {type(row).__name__}; {COLUMNS_HINT}")
    text = row.get("text")
    if text is not None and not isinstance(text, str):
        raise DataError(f'"text" is {short(repr(text))}, not a string; quote it')
    for column in ("text", "prompt", "completion", "messages", *TEMPLATE_COLUMNS):
        _check_unicode(column, row.get(column))
    conversational = False
    for column in ("prompt", "completion", "messages"):
        value = row.get(column)
        if value is None or (isinstance(value, str) and column != "messages"):
            continue
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            wanted = "a list of turns" if column == "messages" else "a string or a list of turns"
            raise DataError(f'"{column}" is {short(repr(value))}, not {wanted}; see TRL\'s data set formats')
        if not value:
            raise DataError(f'"{column}" is an empty list of turns; remove the row or fill it')
        conversational = True
        for index, turn in enumerate(value):
            _check_turn(turn, f'"{column}" turn {index + 1}')
    if conversational:
        template_arguments(row)


def _check_unicode(column: str, value: Any) -> None:
    try:
        check_unicode(value)
    except DataError as error:
        raise DataError(f'"{column}": {error}') from None


def _check_turn(turn: object, where: str) -> None:
    if not isinstance(turn, Mapping):
        raise DataError(f'{where} is {short(repr(turn))}; a turn is an object {{"role": ..., "content": ...}}')
    if turn.get("role") not in ROLES:
        raise DataError(f"{where} has the role {short(repr(turn.get('role')))}; the roles are {', '.join(ROLES)}")
    calls = turn.get("tool_calls")
    if calls is not None and not (isinstance(calls, Sequence) and all(isinstance(call, Mapping) for call in calls)):
        raise DataError(f"{where} has the tool_calls {short(repr(calls))}; give a list of objects")
    content = turn.get("content")
    if isinstance(content, (list, tuple)):
        try:
            turn_text(turn)
        except DataError as error:
            raise DataError(f"{where} has {error}") from None
    elif not isinstance(content, str) and not (content is None and calls and turn["role"] == "assistant"):
        raise DataError(f"{where} has the content {short(repr(content))}, not a string; only text can be tokenised")


def short(text: str, length: int = 60) -> str:
    """One line of at most `length` characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def without_nulls(value: Any) -> Any:
    """The value without null entries of its objects, at every depth; objects become dicts, nulls in lists stay."""
    if isinstance(value, Mapping):
        return {str(key): without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value
