"""Rows as trainers take them: prompts to sample from, and demonstrations whose likelihood is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from datasets import Dataset

from densepath.data.encode import encode_pairs, encode_row_prompt
from densepath.data.formats import as_dataset
from densepath.data.rows import DataFormat, Row, detect_format, is_answered, normal_turns, prompt_of, template_columns

Rows = list[dict[str, Any]]
R = TypeVar("R", bound=Row)


def longest_prompt(context: int, max_completion_length: int, max_prompt_length: int | None) -> int:
    """Tokens of the longest prompt that is sampled from: what the context holds, and no more than was asked for."""
    return min(context - max_completion_length, max_prompt_length or context)


def fitting_rows(rows: Sequence[R], tokenizer: Any, longest: int) -> list[R]:
    """The rows whose prompt has at most `longest` tokens."""
    return [row for row in rows if len(encode_row_prompt(row, tokenizer)) <= longest]


def demonstration_pairs(rows: Rows, tokenizer: Any, longest: int) -> Dataset:
    """The rows as prompt and completion, as far as they fit into `longest` tokens; those without one, as prompts.

    `messages` that end with the user ask something: they are prompts.
    """
    found = []
    for row in rows:
        prompt, completion = prompt_of(row), row.get("completion")
        if detect_format(row) is DataFormat.MESSAGES:
            completion = normal_turns(row["messages"])[len(prompt) :] or None
        pair = {"prompt": prompt, "completion": completion, **template_columns(row)}
        encoded = encode_pairs(pair, tokenizer) if completion else []
        if all(len(each.prompt_ids) + len(each.completion_ids) <= longest for each in encoded):
            found.append(pair)
    return as_dataset(found)


def measured_rows(rows: Rows, tokenizer: Any, context: int, *, judged: bool) -> Rows:
    """Rows without demonstrations that are longer than the context: prompts alone of all where answers are judged."""

    def fits(row: Row) -> bool:
        pair = encode_pairs(row, tokenizer)[-1]
        return len(pair.prompt_ids) + len(pair.completion_ids) <= context

    shown = [is_answered(row) or detect_format(row) is DataFormat.TEXT for row in rows]
    fitting = [row for row, is_shown in zip(rows, shown, strict=True) if not is_shown or fits(row)]
    if not judged or len(fitting) == len(rows):
        return fitting
    prompts = ({k: v for k, v in row.items() if k not in ("completion", "messages", "text")} for row in rows)
    return [{**rest, "prompt": prompt_of(row)} for rest, row in zip(prompts, rows, strict=True)]


def prompt_dataset(rows: Sequence[Row]) -> Dataset:
    """The rows' prompts for a trainer, with what they give the chat template."""
    return as_dataset([{"prompt": prompt_of(row), **template_columns(row)} for row in rows])
