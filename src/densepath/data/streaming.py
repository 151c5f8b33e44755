"""Rows of a data set of any size, one window at a time: nothing is held but the window, and a bad row stops nothing.

`reading.py` finds the files; here they are read lazily, whatever their format, and every command reads them here.
Values keep the types of their file (dates, decimals, bytes, integers of any size). Rows in another tool's format come
as TRL's (`convert.py`).
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from densepath.data.convert import conversion, converted
from densepath.data.reading import FILE_SUFFIXES, file_suffix, find_source
from densepath.data.rows import Row, jsonable, short
from densepath.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Wanted: TypeAlias = Callable[[int], bool]
"""Whether the row with this index (from 0, over the whole source) is asked for."""

logger = logging.getLogger(__name__)
_said: set[str] = set()
_BATCH_ROWS = 256
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it stands in its source, or why it cannot be read.

    Attributes:
        index: place in the whole source, from 0; blank lines do not count.
        file: name of the file or data set.
        number: place in the file, from 1, as messages give it.
        row: the row; None where it cannot be read.
        error: why not.
        line: what stands there instead, as far as it is text.
    """

    index: int
    file: str
    number: int
    row: Row | None
    error: str = ""
    line: str = ""

    @property
    def place(self) -> str:
        """`file, row 7`, for messages."""
        return f"{self.file}, row {self.number}"


class RowStream:
    """Rows of a file, folder, hub data set or table, read when they are asked for.

    Args:
        source: a name as `load_dataset_rows` takes it, or rows that are in memory.
        split: the split to take from whatever has splits, or a slice of it (`train[:100]`).
        limit: at most this many rows; None for all.
        as_written: leave the columns of other tools' formats as they are.

    Raises:
        MissingFileError: nothing is found under that name.
        DataError: a file of another kind, or a split or slice that is not there.
    """

    def __init__(
        self, source: str | Iterable[Row], split: str = "train", *, limit: int | None = None, as_written: bool = False
    ) -> None:
        places: list[Any]
        self._as_written = as_written
        if isinstance(source, str):
            places, cut = find_source(source, split)
        else:
            places, cut = [source if hasattr(source, "with_format") else list(source)], ""
        self._name = name = source if isinstance(source, str) else "the data set"
        self._parts = [_part(place, name) for place in places]
        self._first, self._end = (
            (0, sys.maxsize) if not cut else _slice(name, cut, sum(p.count() for p in self._parts))
        )
        if limit is not None:
            self._end = min(self._end, self._first + limit)

    @property
    def table(self) -> Any | None:
        """The `datasets.Dataset` that the rows are, as it is on disk; None where they come from files or memory."""
        part = self._parts[0]
        if len(self._parts) > 1 or not isinstance(part, _Table):
            return None
        return part.dataset.select(range(self._first, min(self._end, part.count())))

    @property
    def schema(self) -> Any | None:
        """The `pyarrow.Schema` of all rows; None where files without one (JSON) are among the parts."""
        schemas = [part.schema for part in self._parts]
        return schemas[0] if all(schema is not None and schema.equals(schemas[0]) for schema in schemas) else None

    def scan(self) -> tuple[int, list[dict[str, Any]]]:
        """Number of rows, unreadable ones included, and what identifies each part: its name, size and hash.

        Files are read through once, as fast as the disk gives them.
        """
        identities = [part.identity() for part in self._parts]
        rows = sum(int(identity["rows"]) for identity in identities)
        return max(0, min(rows, self._end) - self._first), identities

    def windows(self, size: int, wanted: Wanted | None = None) -> Iterator[tuple[int, list[SourceRow]]]:
        """Consecutive rows, `size` at a time: (number of the window, its rows).

        Args:
            size: rows of a window; the last one may have fewer.
            wanted: whether a window (by its number, from 0) is asked for; others are passed over without being parsed.
        """
        window: list[SourceRow] = []
        for row in self._rows(lambda index: wanted is None or wanted(index // size)):
            window.append(row)
            if (row.index + 1) % size == 0 or row.index + 1 == self._end - self._first:
                yield row.index // size, window
                window = []
        if window:
            yield window[0].index // size, window

    def __iter__(self) -> Iterator[SourceRow]:
        return self._rows(lambda index: True)

    def _rows(self, wanted: Wanted) -> Iterator[SourceRow]:
        first, end = self._first, self._end
        for row in self._all(lambda index: first <= index < end and wanted(index - first)):
            yield self._converted(row if first == 0 else replace(row, index=row.index - first))

    def _converted(self, row: SourceRow) -> SourceRow:
        if self._as_written or not isinstance(row.row, Mapping) or not (said := conversion(row.row)):
            return row
        _say_once(self._name, said)
        try:
            return replace(row, row=converted(row.row))
        except DataError as error:
            return replace(row, row=None, error=str(error), line=json.dumps(row.row, default=str))

    def _all(self, wanted: Wanted) -> Generator[SourceRow, None, None]:
        start = 0
        for part in self._parts:
            start = yield from part.rows(start, wanted)


def _say_once(name: str, said: str) -> None:
    """Say of a data set what its columns are read as: the first of several processes does, on the error stream."""
    first = os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None
    if first and name not in _said:
        _said.add(name)
        logger.warning("%s: %s", name, said)


def _slice(name: str, cut: str, rows: int) -> tuple[int, int]:
    """First row of a slice such as `:100`, `-5:` or `10%:20%`, and the one behind its last, as `datasets` takes it."""
    from datasets import ReadInstruction

    try:
        (found,) = ReadInstruction.from_spec(f"rows[{cut}]").to_absolute({"rows": rows})
    except (ValueError, AssertionError) as error:
        raise DataError(f"{name}: no slice [{cut}] of its {rows} rows ({short(str(error))}); give another") from None
    return found.from_, found.to


class _Part:
    """One file or table."""

    schema: Any | None = None

    def count(self) -> int:
        """Number of rows, unreadable ones included."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Name, number of rows, and what tells it from another of that name."""
        raise NotImplementedError

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        """The wanted rows, the first of the part having index `start`; returns the index behind the last."""
        raise NotImplementedError


def _part(place: Any, name: str) -> _Part:
    if isinstance(place, list):
        return _InMemory(name, place)
    if not isinstance(place, Path):
        return _Table(name, place)
    suffix = file_suffix(place)
    kind = suffix.removesuffix(".gz")
    if suffix == ".parquet":
        return _Parquet(place)
    if kind == ".jsonl" or (kind == ".json" and _holds_lines(place)):
        return _JsonLines(place)
    if kind == ".json":
        return _JsonDocument(place)
    if kind in (".csv", ".tsv"):
        return _Separated(place, "," if kind == ".csv" else "\t")
    raise DataError(f"{place}: cannot read {suffix or 'a file without suffix'}; give {', '.join(FILE_SUFFIXES)}")


def _file_identity(path: Path, rows: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"name": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where its name says .gz; a DataError where they are not what the name says."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({short(str(error))}); compress it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({short(str(error))}); write it as UTF-8") from error


class _JsonLines(_Part):
    """One object a line; lines end at "\\n" alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self) -> int:
        with _opened(self.path) as file:
            return sum(1 for line in file if line.strip())

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path, self.count())

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        index = start
        with _opened(self.path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                if wanted(index):
                    yield self._row(index, number, line)
                index += 1
        return index

    def _row(self, index: int, number: int, line: bytes) -> SourceRow:
        try:
            return SourceRow(index, str(self.path), number, json_row(line))
        except DataError as error:
            text = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
            return SourceRow(index, str(self.path), number, None, str(error), text)


def json_row(line: bytes) -> Row:
    """The object in one line of JSON.

    Raises:
        DataError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error}); give one UTF-8 object per line") from None
    if not isinstance(row, dict):
        raise DataError(f"{short(repr(row))} is not an object; give one JSON object per line")
    return row


class _JsonDocument(_Part):
    """One list of objects, or a single object; parsed as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self) -> int:
        return sum(1 for _ in _json_items(self.path))

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path, self.count())

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        index = start
        for number, item in enumerate(_json_items(self.path), start=1):
            if wanted(index):
                if isinstance(item, dict):
                    yield SourceRow(index, str(self.path), number, item)
                else:
                    error = f"{short(repr(item))} is not an object; give [{{...}}, ...]"
                    yield SourceRow(index, str(self.path), number, None, error, json.dumps(item))
            index += 1
        return index


def _holds_lines(path: Path) -> bool:
    """Whether a .json file has one object a line, as many such files do."""
    with _opened(path) as file:
        if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return False  # the list may be one line, of any length
        file.seek(0)
        first = next((line for line in file if line.strip()), b"")
    try:
        return isinstance(json_row(first), dict)
    except DataError:
        return False


def _json_items(path: Path) -> Iterator[Any]:
    """Items of the list in a file, each parsed when its end has been read; a single object is an item too."""
    decoder = json.JSONDecoder()
    with _opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as file:
        buffer = file.read(_BLOCK).lstrip()
        if not buffer.startswith("["):
            buffer = "[" + buffer + file.read() + "]"
        at, comma_due = 1, False
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n":
                at += 1
            following = buffer[at : at + 1]
            if following == "]":
                if (buffer[at + 1 :] + file.read()).strip():
                    raise DataError(f"{path}: goes on behind the end of its list; give one list, or one object a line")
                return
            if comma_due and following == ",":
                at, comma_due = at + 1, False
                continue
            if comma_due and following:
                raise DataError(f"{path}: no comma between two objects of its list; write the file again")
            try:
                item, at = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError) as error:
                more = file.read(max(_BLOCK, len(buffer) - at))
                if not more:
                    raise DataError(
                        f"{path}: not a list of objects ({error}); give [{{...}}, ...] or one object per line"
                    ) from None
                buffer, at = buffer[at:] + more, 0
                continue
            comma_due = True
            yield item


class _Separated(_Part):
    """A table of text with a header: every cell is a string, an empty one is absent."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path, self.delimiter = path, delimiter

    def count(self) -> int:
        return sum(1 for _ in self.rows(0, lambda index: True))

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path, self.count())

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        index = start
        csv.field_size_limit(2**31 - 1)  # the module's own limit is 128 KiB a cell
        with _opened(self.path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                header = next(reader, [])
                if len(set(header)) < len(header):
                    raise DataError(f"{self.path}: two columns of one name in {short(repr(header))}; rename one")
                for cells in filter(None, reader):
                    if wanted(index):
                        yield self._row(index, index - start + 1, header, cells)
                    index += 1
            except csv.Error as error:
                raise DataError(f"{self.path}, row {index - start + 1}: {error}; quote the cell") from None
        return index

    def _row(self, index: int, number: int, header: list[str], cells: list[str]) -> SourceRow:
        if len(cells) != len(header):
            error = f"{len(cells)} cells, where the header names {len(header)} columns; quote those with separators"
            return SourceRow(index, str(self.path), number, None, error, self.delimiter.join(cells))
        return SourceRow(index, str(self.path), number, {n: c or None for n, c in zip(header, cells, strict=True)})


class _Parquet(_Part):
    """A Parquet file: only the row groups that hold wanted rows are read, a batch of rows at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        self.path = path
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{path}: not a Parquet file ({short(str(error))}); write it again") from error
        self.schema = self.file.schema_arrow

    def count(self) -> int:
        return int(self.file.metadata.num_rows)

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path, self.count())

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        index = start
        for group in range(self.file.metadata.num_row_groups):
            stop = index + self.file.metadata.row_group(group).num_rows
            if any(map(wanted, range(index, stop))):
                at = index
                for batch in self._batches(group):
                    yield from _arrow_rows(batch, at, start, str(self.path), wanted)
                    at += batch.num_rows
            index = stop
        return index

    def _batches(self, group: int) -> Iterator[Any]:
        try:
            yield from self.file.iter_batches(_BATCH_ROWS, row_groups=[group])
        except OSError as error:  # a page that is damaged
            raise DataError(f"{self.path}: damaged ({short(str(error))}); write it again") from error


class _Table(_Part):
    """A `datasets.Dataset`, memory-mapped from disk; where it has a transform, rows are what that makes of them."""

    def __init__(self, name: str, table: Dataset) -> None:
        self.name, self.dataset, self.table = name, table, table.with_format("arrow")
        self._transformed = table.format["type"] == "custom"
        self.schema = None if self._transformed else table.features.arrow_schema.remove_metadata()
        self._fingerprint = table._fingerprint

    def count(self) -> int:
        return len(self.table)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self.table), "fingerprint": self._fingerprint}

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        for at in range(0, len(self.table), _BATCH_ROWS):
            stop = min(at + _BATCH_ROWS, len(self.table))
            if not any(map(wanted, range(start + at, start + stop))):
                continue
            if self._transformed:
                columns = self.dataset[at:stop]
                for number in range(at, stop):
                    if wanted(start + number):
                        row = {name: values[number - at] for name, values in columns.items()}
                        yield SourceRow(start + number, self.name, number + 1, row)
            else:
                yield from _arrow_rows(self.table[at:stop], start + at, start, self.name, wanted)
        return start + len(self.table)


def _arrow_rows(batch: Any, at: int, start: int, name: str, wanted: Wanted) -> Iterator[SourceRow]:
    indices = list(filter(wanted, range(at, at + batch.num_rows)))
    if len(indices) < batch.num_rows:
        batch = batch.take([index - at for index in indices])
    columns = [_python_values(column) for column in batch.columns]
    for index, values in zip(indices, zip(*columns, strict=True), strict=True):
        yield SourceRow(index, name, index - start + 1, dict(zip(batch.schema.names, values, strict=True)))


def _python_values(column: Any) -> list[Any]:
    """Values of an Arrow column; where Python has no such value (a date beyond the year 9999), its text."""
    import pyarrow

    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return [_python_value(value) for value in column]
    held = any(mark in str(column.type) for mark in ("arrow.json", "map<"))
    return [_as_objects(value, column.type) for value in values] if held else values


def _python_value(value: Any) -> Any:
    import pyarrow

    try:
        return _as_objects(value.as_py(), value.type)
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes() if hasattr(value, "as_buffer") else repr(value)
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return repr(value)


def _as_objects(value: Any, kind: Any) -> Any:
    """The value with the objects that JSON texts (the `Json` of `datasets`) and maps in it stand for.

    Arrow gives a map as pairs, which no chat template takes for arguments.
    """
    import pyarrow

    texts = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    if value is None:
        return None
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if pyarrow.types.is_struct(kind):
        return {field.name: _as_objects(value[field.name], field.type) for field in kind}
    if pyarrow.types.is_map(kind) and any(is_text(kind.key_type) for is_text in texts):
        return {key: _as_objects(item, kind.item_type) for key, item in value}
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        return [_as_objects(item, kind.value_type) for item in value]
    return value


class _InMemory(_Part):
    def __init__(self, name: str, rows: list[Row]) -> None:
        self.name, self.table = name, rows

    def count(self) -> int:
        return len(self.table)

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(jsonable(self.table), ensure_ascii=True).encode())
        return {"name": self.name, "rows": len(self.table), "sha256": digest.hexdigest()}

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        for index, row in enumerate(self.table, start=start):
            if wanted(index):
                yield SourceRow(index, self.name, index - start + 1, row)
        return start + len(self.table)
