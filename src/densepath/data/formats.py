"""Data sets: loading from anywhere, validation that names the file and the row, and a fingerprint.

The formats themselves stand in `rows.py`, the reader of whatever holds rows in `streaming.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from densepath.data.convert import empty_answer
from densepath.data.rows import (
    DataFormat,
    Row,
    Turns,
    canonical_json,
    check_types,
    detect_format,
    is_answered,
    is_conversational,
    jsonable,
    prompt_of,
    split_turns,
    turn_text,
)
from densepath.data.streaming import RowStream, SourceRow
from densepath.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

Needs: TypeAlias = Literal["demonstrations", "prompts", "held-out prompts"]
"""What the rows are for: with something to imitate, only something to answer, or this and the likelihood of an answer
where they have one."""


def load_dataset_rows(
    source: str | Path | Dataset | Sequence[Row],
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int | None = None,
    needs: Needs | None = None,
) -> Dataset:
    """Data set from a file, a folder, the hub or memory, with every column kept, for trainers that take a `Dataset`.

    A column that Arrow would change (turns with different keys, a mixture of types) is held as JSON text and comes out
    as it went in.

    Args, Raises: see `read_rows`.

    Returns:
        The rows in memory, or memory-mapped where they were a `Dataset` on disk; at least one.
    """
    stream = _stream(source, split)
    table = stream.table
    if table is None or any(set(row.row or ()) != set(table.column_names) for row in islice(stream, 1)):
        return as_dataset(read_rows(source, split=split, limit=limit, seed=seed, needs=needs))
    count = sum(1 for _ in _checked(stream, needs, _name(source)))
    return table.select(row_order(count, seed, limit))


def read_rows(
    source: str | Path | Dataset | Sequence[Row],
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int | None = None,
    needs: Needs | None = None,
) -> list[Row]:
    """Rows from a file, a folder, the hub or memory: each with its own columns, values as their file types them.

    Args:
        source: a .jsonl, .json, .csv, .tsv (also .gz) or .parquet file; a folder written by `Dataset.save_to_disk`; a
            folder of such files, or a data set cloned from the hub (when names carry a split, as in train.jsonl, those
            of `split`; else all of them in name order); a hub id; a `datasets.Dataset` or a sequence of mappings.
        split: the split to take from whatever has splits, or a slice of it (`train[:100]`).
        limit: at most this many rows; None for all.
        seed: rows are shuffled with it before the limit; None keeps their order.
        needs: checked as `validate_rows` does, before shuffling, so that messages carry true row numbers.

    Returns:
        At least one row.

    Raises:
        MissingFileError: nothing is found under that name.
        DataError: a row that cannot be read, a malformed row, or no row.
        ConfigError: a limit below 1.
    """
    rows = list(_checked(_stream(source, split), needs, _name(source)))
    return [rows[index] for index in row_order(len(rows), seed, limit)]


def row_order(rows: int, seed: int | None, limit: int | None) -> list[int]:
    """Indices of the rows to take: in the order of `Dataset.shuffle(seed)`, at most `limit`.

    Raises:
        ConfigError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1, or left out for all rows")
    order = range(rows) if seed is None else np.random.default_rng(seed).permutation(rows).tolist()
    return list(order[:limit])


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """The rows as a `Dataset` whose items have the values that went in (nulls for absent columns).

    Arrow gives a column one type, and all of its objects the keys of all: that would turn 1 into 1.0 beside 2.5, and
    add nulls to one call for the arguments of others. A column that does not come back from Arrow as it went in is
    held as JSON text, and read from it with each access.

    Args:
        rows: mappings; nothing is checked.
    """
    from datasets import Dataset

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    texts = [name for name, values in columns.items() if not _survives_arrow(values)]
    for name in texts:
        columns[name] = [json.dumps(jsonable(value)) for value in columns[name]]
    table = Dataset.from_dict(columns)
    return table.with_transform(functools.partial(_parse_columns, names=texts)) if texts else table


def _survives_arrow(values: list[Any]) -> bool:
    import pyarrow  # type: ignore[import-untyped]

    try:
        return repr(pyarrow.array(values).to_pylist()) == repr(values)
    except (ValueError, TypeError, OverflowError, pyarrow.ArrowException):
        return False


def _parse_columns(batch: dict[str, list[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    return {
        name: [json.loads(value) for value in values] if name in names else values for name, values in batch.items()
    }


def validate_rows(rows: Iterable[Row], needs: Needs, *, source: str = "the data set") -> DataFormat:
    """Format of a whole data set, after every row was checked for what its use requires.

    Args:
        rows: a `datasets.Dataset` or any iterable of mappings.
        needs: "demonstrations" (something to imitate in every row), "prompts" (something to answer; nobody reads a
            completion) or "held-out prompts" (a completion, where there is one, can be encoded).
        source: the name to use in messages, usually the file.

    Returns:
        The format that all rows share.

    Raises:
        DataError: the first bad row, as one line with source, row (1-based) and remedy; or no row at all.
    """
    given = (SourceRow(index, source, index + 1, row) for index, row in enumerate(rows))
    first = None
    for row in _checked(given, needs, source):
        first = row if first is None else first
    assert first is not None
    return check_row(first, needs)[0]


def dataset_fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256 of the rows in their order, whether they come from a file, from memory or from Arrow.

    Each row enters as one line of canonical JSON: keys sorted, nulls left out (Arrow fills absent keys with nulls).

    Args:
        rows: a `datasets.Dataset` or any iterable of mappings.

    Returns:
        64 hexadecimal digits.

    >>> dataset_fingerprint([{"prompt": "a", "id": None}]) == dataset_fingerprint([{"prompt": "a"}])
    True
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical_json(row).encode("ascii") + b"\n")
    return digest.hexdigest()


# --- checks of one row -------------------------------------------------------------------------------------------


def _stream(source: Any, split: str) -> RowStream:
    if hasattr(source, "with_format") and not hasattr(source, "__len__"):
        raise DataError("a data set that is streamed cannot be read again; load it whole, or give list(rows)")
    kinds = isinstance(source, (str, Path, Sequence)) or hasattr(source, "with_format")
    if isinstance(source, Mapping) or not kinds:
        kind = type(source).__name__
        raise DataError(f"a data set cannot be made of {kind}; give a path, a hub id, a Dataset or a list of rows")
    return RowStream(str(source) if isinstance(source, Path) else source, split)


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the data set"


def _checked(rows: Iterable[SourceRow], needs: Needs | None, source: str) -> Iterator[Row]:
    """The rows, each checked: completely where `needs` says what for, else for well-formed types; at least one."""
    if needs not in (*get_args(Needs), None):
        raise ConfigError(f"needs is {needs!r}; it must be one of {', '.join(get_args(Needs))}")
    first: tuple[SourceRow, DataFormat, bool] | None = None
    empty = True
    for row in rows:
        empty = False
        try:
            if row.row is None:
                raise DataError(row.error)
            if needs is None:
                check_types(row.row)
            else:
                found, conversational = check_row(row.row, needs)
        except DataError as error:
            raise DataError(f"{row.place}: {error}") from None
        if needs is not None:
            first = first or (row, found, conversational)
            if (found, conversational) != first[1:]:
                kinds = ("standard", "conversational")
                other = f"row {first[0].number}" if first[0].file == row.file else first[0].place
                raise DataError(
                    f"{row.place}: format is {kinds[conversational]} {found.value}, where {other} is "
                    f"{kinds[first[2]]} {first[1].value}; bring all rows into one format"
                )
        yield row.row
    if empty:
        raise DataError(f"{source}: no rows; give at least one example")


def check_row(row: Row, needs: Needs) -> tuple[DataFormat, bool]:
    """Raise for a row that cannot serve `needs`; else its format (of prompts, without the completion) and kind."""
    check_types(row)
    found = detect_format(row)
    if needs != "demonstrations":
        if needs == "held-out prompts" and found is DataFormat.PROMPT_COMPLETION and not split_turns(row):
            raise DataError(
                '"completion" has no assistant turn; add the demonstrated answer, or leave "completion" out'
            )
        return _check_prompt_row(row, found)
    if found in (DataFormat.PROMPT, DataFormat.TEXT) and (column := empty_answer(row)):
        raise DataError(f'"{column}" is empty; remove the row or add the answer')
    if found is DataFormat.PROMPT:
        raise DataError('a prompt without "completion"; add the demonstrated answer, or use the rows as prompts only')
    if found is DataFormat.TEXT:
        if not row["text"].strip():
            raise DataError('"text" is empty; remove the row')
        return found, False
    if found is DataFormat.PROMPT_COMPLETION:
        if not row["prompt"]:
            raise DataError('"prompt" is empty; give the text or the turns to answer')
        return found, _check_completion(row["prompt"], row["completion"])
    _check_assistant_turns(row["messages"], "messages")
    if row["messages"][0]["role"] == "assistant":
        raise DataError('"messages" begins with an assistant turn, which answers nothing; put a user turn before it')
    return found, True


def _check_prompt_row(row: Row, found: DataFormat) -> tuple[DataFormat, bool]:
    prompt = prompt_of(row)
    if not is_answered(row) and not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise DataError(
            "the prompt ends with an assistant turn, and a turn that was begun cannot be gone on with; end it with "
            'the turn to answer, or give that turn as "completion"'
        )
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError("the prompt is empty; give the text or the turns to answer")
    return (DataFormat.MESSAGES if found is DataFormat.MESSAGES else DataFormat.PROMPT), is_conversational(prompt)


def _check_completion(prompt: object, completion: Any) -> bool:
    if is_conversational(prompt) != is_conversational(completion):
        raise DataError('"prompt" and "completion" differ in kind; make both text or both lists of turns')
    if isinstance(completion, str):
        if not completion.strip():
            raise DataError('"completion" is empty; remove the row or add the answer')
        return False
    _check_assistant_turns(completion, "completion")
    if completion[0]["role"] != "assistant":
        raise DataError(f'"completion" begins with a {completion[0]["role"]} turn; move that turn into "prompt"')
    return True


def _check_assistant_turns(turns: Turns, column: str) -> None:
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        raise DataError(
            f'"{column}" has no assistant turn; add the demonstrated answer, or use the rows as prompts only'
        )
    if not all(turn.get("tool_calls") or turn_text(turn).strip() for turn in answers):
        raise DataError(f'an assistant turn in "{column}" is empty; remove the row or add the answer')
