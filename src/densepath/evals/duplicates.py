"""Demonstrations that occur more than once: letter by letter, or but for case, spacing and punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from densepath.data.rows import (
    DataFormat,
    Row,
    canonical_json,
    conversation_of,
    detect_format,
    template_arguments,
    turn_text,
)
from densepath.data.splits import normalise_text

# Punctuation says little beside words, and much between digits: 2.5 is not 25.
_PUNCTUATION = re.compile(r"(?<![0-9])[.,;:!?'\"“”‘’`…]+|[.,;:!?'\"“”‘’`…]+(?![0-9])")


def exact_key(row: Row) -> str:
    """What two demonstrations share when prompt, completion and template arguments are the same.

    Their other columns do not matter. One question asked with other `tools` is another prompt.
    """
    texts = {name: row[name] for name in ("prompt", "completion", "messages", "text") if name in row}
    return canonical_json([texts, template_arguments(row)])


def normal_key(row: Row) -> str:
    """The same for demonstrations that differ in case, spacing, punctuation, Unicode form, or in the row's format."""
    if detect_format(row) is DataFormat.TEXT:
        parts = [("text", str(row["text"]))]
    elif (turns := conversation_of(row)[0]) is not None:
        parts = [(str(turn["role"]), _words_of(turn)) for turn in turns]
    else:
        parts = [("user", str(row["prompt"])), ("assistant", str(row["completion"]))]
    return canonical_json([[[role, normalise_words(text)] for role, text in parts], template_arguments(row)])


def _words_of(turn: Mapping[str, Any]) -> str:
    """What a turn says and calls."""
    return turn_text(turn) + (canonical_json(turn["tool_calls"]) if turn.get("tool_calls") else "")


def normalise_words(text: str) -> str:
    """Words of a text in one case, one form and one spacing, without punctuation but between digits.

    >>> normalise_words("It is  2.5, she said."), normalise_words("it is 2.5 she said")
    ('it is 2.5 she said', 'it is 2.5 she said')
    """
    plain = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text))
    return normalise_text(plain.casefold())


def first_occurrences(rows: Iterable[Row], key: Callable[[Row], str]) -> Sequence[int | None]:
    """For each row the index of the first row with the same key, or None where it is the first itself."""
    seen: dict[str, int] = {}
    found: list[int | None] = []
    for index, row in enumerate(rows):
        first = seen.setdefault(key(row), index)
        found.append(None if first == index else first)
    return found
