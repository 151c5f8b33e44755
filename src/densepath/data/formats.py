"""Data sets: loading from anywhere, validation that names the file and the row, and a fingerprint.

The formats themselves stand in `rows.py`, the readers of files and folders in `reading.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from densepath.data.reading import Part, read_source
from densepath.data.rows import (
    COLUMNS_HINT,
    ROLES,
    DataFormat,
    Row,
    Turns,
    canonical_json,
    detect_format,
    is_conversational,
    prompt_of,
    short,
    template_arguments,
    turn_text,
)
from densepath.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

Needs: TypeAlias = Literal["demonstrations", "prompts"]
"""What the rows are for: with something to imitate, or only something to answer."""


def load_dataset_rows(
    source: str | Path | Dataset | Sequence[Row],
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int | None = None,
    needs: Needs | None = None,
) -> Dataset:
    """Data set from a file, a folder, the hub or memory, with every column kept.

    Args:
        source: a .jsonl, .json or .parquet file; a folder written by `Dataset.save_to_disk`; a folder of such files
            (when their names carry a split, as in train.jsonl, those of `split`; else all of them in name order);
            a hub id; a `datasets.Dataset` or a sequence of mappings.
        split: the split to take from whatever has splits.
        limit: at most this many rows; None for all.
        seed: rows are shuffled with it before the limit; None keeps their order.
        needs: checked as `validate_rows` does, before shuffling, so that messages carry true line numbers.

    Returns:
        The rows in memory or memory-mapped, at least one.

    Raises:
        MissingFileError: nothing is found under that name.
        DataError: a line that is not a JSON object, a malformed row, columns that mix types, or no row.
        ConfigError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1, or left out for all rows")
    parts = read_source(str(source), split) if isinstance(source, (str, Path)) else [_part_from_memory(source)]
    tables = [_to_dataset(part, needs) for part in parts]
    rows = tables[0] if len(tables) == 1 else _concatenate(tables, str(source))
    if seed is not None:
        rows = rows.shuffle(seed=seed)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def validate_rows(rows: Iterable[Row], needs: Needs, *, source: str = "the data set") -> DataFormat:
    """Format of a whole data set, after every row was checked for what its use requires.

    Args:
        rows: a `datasets.Dataset` or any iterable of mappings.
        needs: "demonstrations" (something to imitate in every row) or "prompts" (something to answer).
        source: the name to use in messages, usually the file.

    Returns:
        The format that all rows share.

    Raises:
        DataError: the first bad row, as one line with source, row (1-based) and remedy; or no row at all.
    """
    return _validate(enumerate(rows, start=1), needs, source)


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


def _validate(numbered: Iterable[tuple[int, Row]], needs: Needs, source: str) -> DataFormat:
    if needs not in ("demonstrations", "prompts"):
        raise ConfigError(f'needs is {needs!r}; it must be "demonstrations" or "prompts"')
    first: tuple[int, DataFormat, bool] | None = None
    for number, row in numbered:
        try:
            found, conversational = check_row(row, needs)
        except DataError as error:
            raise DataError(f"{source}, row {number}: {error}") from None
        if first is None:
            first = (number, found, conversational)
        elif (found, conversational) != first[1:]:
            kinds = ("standard", "conversational")
            raise DataError(
                f"{source}, row {number}: format is {kinds[conversational]} {found.value}, where row {first[0]} is "
                f"{kinds[first[2]]} {first[1].value}; bring all rows into one format"
            )
    if first is None:
        raise DataError(f"{source}: no rows; give at least one example")
    return first[1]


def check_row(row: Row, needs: Needs) -> tuple[DataFormat, bool]:
    """Raise for a row that cannot serve `needs`; else its format (of prompts, without the completion) and kind."""
    _check_types(row)
    found = detect_format(row)
    if needs == "prompts":
        return _check_prompt_row(row, found)
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
    if found is DataFormat.PROMPT and not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
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


def _check_types(row: Row) -> None:
    """Raise where a column of TRL's formats, if present, is neither text nor a list of well-formed turns."""
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be an object with named columns, not {type(row).__name__}; {COLUMNS_HINT}")
    text = row.get("text")
    if text is not None and not isinstance(text, str):
        raise DataError(f'"text" is {short(repr(text))}, not a string; quote it')
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


# --- from parts to one table ---------------------------------------------------------------------------------------


def _part_from_memory(source: Any) -> Part:
    from datasets import Dataset

    if isinstance(source, Dataset):
        return Part("the data set", table=source)
    if isinstance(source, Mapping) or not isinstance(source, Sequence):
        kind = type(source).__name__
        raise DataError(f"a data set cannot be made of {kind}; give a path, a hub id, a Dataset or a list of rows")
    return Part("the data set", numbered=list(enumerate(source, start=1)))


def _to_dataset(part: Part, needs: Needs | None) -> Dataset:
    """Table of one part, its rows checked: completely where `needs` says what for, else for well-formed types."""
    numbered = enumerate(part.table, start=1) if part.table is not None else part.numbered
    if needs is not None:
        _validate(numbered, needs, part.name)
    if part.table is not None:
        if len(part.table) == 0:
            raise DataError(f"{part.name}: no rows; give at least one example")
        return part.table
    if not part.numbered:
        raise DataError(f"{part.name}: no rows; give at least one example")
    for number, row in part.numbered:
        try:
            _check_types(row)
        except DataError as error:
            raise DataError(f"{part.name}, row {number}: {error}") from None
    return _from_columns(part)


def _from_columns(part: Part) -> Dataset:
    from datasets import Dataset

    names = dict.fromkeys(key for _, row in part.numbered for key in row)  # every row's keys, not only the first's
    columns = {name: [row.get(name) for _, row in part.numbered] for name in names}
    try:
        return Dataset.from_dict(columns)
    except (ValueError, TypeError, OverflowError) as error:
        for name, values in columns.items():
            try:
                Dataset.from_dict({name: values})
            except (ValueError, TypeError, OverflowError) as reason:
                raise DataError(
                    f'{part.name}: the column "{name}" mixes types ({short(str(reason))}); '
                    "give it one type in every row"
                ) from error
        raise DataError(f"{part.name}: the rows do not form a table ({short(str(error))})") from error


def _concatenate(tables: list[Dataset], name: str) -> Dataset:
    import datasets

    try:
        return datasets.concatenate_datasets(tables)
    except ValueError as error:
        raise DataError(
            f"{name}: its files differ in a column's type ({short(str(error), 160)}); "
            "load one file, or bring them into one format"
        ) from error
