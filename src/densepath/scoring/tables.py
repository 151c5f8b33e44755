"""The files of scored rows: JSONL as it comes, Parquet with one schema for all, made of parts without holding them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from densepath.data.rows import jsonable
from densepath.rewards.rows import SCORE_COLUMNS

ROW_GROUP_BYTES = 4 * 2**20
"""Parts are joined into row groups of about this size in memory."""

_AS_JSON = {b"densepath": b"json"}
_NUMBERS = pa.list_(pa.float32())
_TURN = {
    "text": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "tokens": pa.list_(pa.string()),
    "offsets": pa.list_(pa.list_(pa.int32())),
    "rewards": _NUMBERS,
    "sum": pa.float64(),
    "mean": pa.float64(),
}


def score_schema(logprobs: bool) -> Any:
    """The `pyarrow.Schema` of the columns that scoring adds."""
    turn = {**_TURN, **({"sft_logprobs": _NUMBERS, "ref_logprobs": _NUMBERS} if logprobs else {})}
    types = (pa.float64(), pa.float64(), pa.int32(), pa.list_(pa.struct(turn)))
    return pa.schema(list(zip(SCORE_COLUMNS, types, strict=True)))


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], *, parquet: bool, logprobs: bool, source: Any | None
) -> None:
    """Write one part.

    Args:
        path: the file.
        rows: original columns and `SCORE_COLUMNS`.
        parquet: Parquet instead of JSONL.
        logprobs: whether turns hold log-probabilities.
        source: `pyarrow.Schema` of the original columns, where the data had one.
    """
    if parquet:
        pq.write_table(_table(rows, score_schema(logprobs), source), path)
    else:
        path.write_bytes(b"".join(json_line(row) for row in rows))


def join_parts(parts: Iterable[Path], target: Path, *, parquet: bool) -> None:
    """Write the rows of all parts, in order, into one file; a row group of them at a time is in memory."""
    if not parquet:
        with target.open("wb") as file:
            for part in parts:
                with part.open("rb") as rows:
                    shutil.copyfileobj(rows, file, 1 << 20)
        return
    parts = list(parts)
    schema = _common_schema(parts)
    with pq.ParquetWriter(target, schema) as writer:
        waiting: list[Any] = []
        for part in parts:
            waiting.append(_conform(pq.ParquetFile(part).read(), schema))
            if sum(table.nbytes for table in waiting) >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


# --- JSON ------------------------------------------------------------------------------------------------------------


def json_line(value: Any) -> bytes:
    """One line of strict JSON: NaN and infinity are null, dates ISO 8601, bytes base64."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=jsonable)
    except ValueError:
        text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Mapping[str, Any]], scores: Any, source: Any | None) -> Any:
    """Rows as a table; a column that has no one type is written as JSON text."""
    names = dict.fromkeys(name for row in rows for name in row if name not in SCORE_COLUMNS)
    columns, fields = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        column, field = _column(name, values, source)
        columns.append(column)
        fields.append(field)
    for field in scores:
        columns.append(pa.array([row[field.name] for row in rows], field.type))
        fields.append(field)
    return pa.table(columns, schema=pa.schema(fields))


def _column(name: str, values: list[Any], source: Any | None) -> tuple[Any, Any]:
    if source is not None and name in source.names:
        try:
            column = pa.array(values, source.field(name).type)
            return column, pa.field(name, column.type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass  # a type that Python values do not carry back
    try:
        column = pa.array(values)
        if not _has_empty_struct(column.type):
            return column, pa.field(name, column.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        pass
    return pa.array(_json_texts(values), pa.string()), _json_field(name)


def _json_texts(values: Iterable[Any]) -> list[str | None]:
    return [None if value is None else json_line(value).decode().rstrip("\n") for value in values]


def _has_empty_struct(kind: Any) -> bool:
    """Whether Parquet cannot hold the type."""
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_has_empty_struct(kind.field(index).type) for index in range(kind.num_fields))


def _common_schema(parts: Sequence[Path]) -> Any:
    """One schema for all parts: missing columns are null, types widened; JSON text where nothing else holds all."""
    fields: dict[str, Any] = {}
    schemas = {part: pq.read_schema(part) for part in parts}
    for schema in schemas.values():
        for field in schema:
            known = fields.get(field.name)
            if known is None:
                fields[field.name] = field
            elif not known.equals(field, check_metadata=True):
                fields[field.name] = _common_field(known, field)
    for part, schema in schemas.items():
        for name in schema.names:
            field = fields[name]
            if field.metadata != _AS_JSON and field.type != schema.field(name).type and not _widens(part, field):
                fields[name] = _json_field(name)
    ordered = [name for name in fields if name not in SCORE_COLUMNS]
    return pa.schema([fields[name] for name in (*ordered, *SCORE_COLUMNS)])


def _json_field(name: str) -> Any:
    return pa.field(name, pa.string(), metadata=_AS_JSON)


def _common_field(one: Any, other: Any) -> Any:
    if one.metadata == _AS_JSON or other.metadata == _AS_JSON:
        return _json_field(one.name)
    try:
        return pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive").field(0)
    except pa.ArrowException:
        return _json_field(one.name)


def _widens(part: Path, field: Any) -> bool:
    """Whether the common type holds what the part has: a float none of the integers above 2**53, for example."""
    try:
        _widened(pq.ParquetFile(part).read([field.name]).column(field.name), field.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return False
    return True


def _conform(table: Any, schema: Any) -> Any:
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column, given = table.column(field.name), table.schema.field(field.name)
        if field.metadata == _AS_JSON:
            values = column if given.metadata == _AS_JSON else pa.array(_json_texts(column.to_pylist()), pa.string())
            columns.append(values)
        elif given.type == field.type:
            columns.append(column)
        else:
            columns.append(_widened(column, field.type))
    return pa.table(columns, schema=schema)


def _widened(column: Any, kind: Any) -> Any:
    try:
        return column.cast(kind)
    except pa.ArrowException:
        return pa.chunked_array([pa.array(column.to_pylist(), kind)], kind)
