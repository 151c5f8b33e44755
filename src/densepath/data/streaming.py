"""Rows of a data set of any size, one window at a time: nothing is held but the window, and a bad row stops nothing.

`reading.py` finds the files; here they are read lazily. Row numbers in messages are those of `load_dataset_rows`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from densepath.data.reading import FILE_SUFFIXES, find_source, json_row
from densepath.data.rows import Row, short
from densepath.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Wanted: TypeAlias = Callable[[int], bool]
"""Whether the row with this index (from 0, over the whole source) is asked for."""

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
        split: the split to take from whatever has splits.
        limit: at most this many rows; None for all.

    Raises:
        MissingFileError: nothing is found under that name.
        DataError: a file of another kind, or a split that is not there.
    """

    def __init__(self, source: str | Iterable[Row], split: str = "train", *, limit: int | None = None) -> None:
        places = find_source(source, split) if isinstance(source, str) else [list(source)]
        name = source if isinstance(source, str) else "the data set"
        self._parts = [_part(place, name) for place in places]
        self._limit = limit

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
        return rows if self._limit is None else min(rows, self._limit), identities

    def windows(self, size: int, wanted: Wanted | None = None) -> Iterator[tuple[int, list[SourceRow]]]:
        """Consecutive rows, `size` at a time: (number of the window, its rows).

        Args:
            size: rows of a window; the last one may have fewer.
            wanted: whether a window (by its number, from 0) is asked for; others are passed over without being parsed.
        """
        end = sys.maxsize if self._limit is None else self._limit
        window: list[SourceRow] = []
        for row in self._rows(lambda index: index < end and (wanted is None or wanted(index // size))):
            window.append(row)
            if (row.index + 1) % size == 0 or row.index + 1 == end:
                yield row.index // size, window
                window = []
        if window:
            yield window[0].index // size, window

    def _rows(self, wanted: Wanted) -> Iterator[SourceRow]:
        start = 0
        for part in self._parts:
            start = yield from part.rows(start, wanted)


class _Part:
    """One file or table."""

    schema: Any | None = None

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
    suffix = place.suffix.lower()
    if suffix == ".parquet":
        return _Parquet(place)
    if suffix == ".jsonl" or (suffix == ".json" and _holds_lines(place)):
        return _JsonLines(place)
    if suffix == ".json":
        return _JsonDocument(place)
    raise DataError(f"{place}: cannot read {suffix or 'a file without suffix'}; give {', '.join(FILE_SUFFIXES)}")


def _file_identity(path: Path, rows: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"name": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


class _JsonLines(_Part):
    """One object a line; lines end at "\\n" alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            return _file_identity(self.path, sum(1 for line in file if line.strip()))

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        index = start
        with self.path.open("rb") as file:
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


class _JsonDocument(_Part):
    """One list of objects, or a single object; parsed as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path, sum(1 for _ in _json_items(self.path)))

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
    with path.open("rb") as file:
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
    with path.open(encoding="utf-8-sig") as file:
        buffer = file.read(_BLOCK).lstrip()
        if not buffer.startswith("["):
            buffer = "[" + buffer + file.read() + "]"
        at = 1
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n,":
                at += 1
            if at < len(buffer) and buffer[at] == "]":
                return
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
            yield item


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

    def identity(self) -> dict[str, Any]:
        return _file_identity(self.path, self.file.metadata.num_rows)

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        index = start
        for group in range(self.file.metadata.num_row_groups):
            stop = index + self.file.metadata.row_group(group).num_rows
            if any(map(wanted, range(index, stop))):
                at = index
                for batch in self.file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    yield from _arrow_rows(batch, at, start, str(self.path), wanted)
                    at += batch.num_rows
            index = stop
        return index


class _Table(_Part):
    """A `datasets.Dataset`, memory-mapped from disk."""

    def __init__(self, name: str, table: Dataset) -> None:
        self.name, self.table = name, table.with_format("arrow")
        self.schema = table.features.arrow_schema.remove_metadata()
        self._fingerprint = table._fingerprint

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self.table), "fingerprint": self._fingerprint}

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        for at in range(0, len(self.table), _BATCH_ROWS):
            stop = min(at + _BATCH_ROWS, len(self.table))
            if any(map(wanted, range(start + at, start + stop))):
                yield from _arrow_rows(self.table[at:stop], start + at, start, self.name, wanted)
        return start + len(self.table)


def _arrow_rows(batch: Any, at: int, start: int, name: str, wanted: Wanted) -> Iterator[SourceRow]:
    for index in filter(wanted, range(at, at + batch.num_rows)):
        (row,) = batch.slice(index - at, 1).to_pylist()
        yield SourceRow(index, name, index - start + 1, row)


class _InMemory(_Part):
    def __init__(self, name: str, rows: list[Row]) -> None:
        self.name, self.table = name, rows

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self.table)}

    def rows(self, start: int, wanted: Wanted) -> Generator[SourceRow, None, int]:
        for index, row in enumerate(self.table, start=start):
            if wanted(index):
                yield SourceRow(index, self.name, index - start + 1, row)
        return start + len(self.table)
