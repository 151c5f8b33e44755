"""Files that `densepath score` wrote, of any size: an index of the rows in memory, the rows themselves on disk."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from densepath.errors import DataError, MissingFileError, UsageError
from densepath.records.completion import ScoredRow
from densepath.report.heatmap import heat_scale
from densepath.report.scored_row import Summary, scored_row, searched_text, summary

SORTS = ("row", *Summary._fields)
"""What rows can be ordered by: file order, summed reward, mean reward, length, lowest reward of one token."""

_PROGRESS_EVERY = 256
SCALE_ROWS = 200
"""Rows, evenly spread over the file, from which the common colour scale is made."""


class RowQuery(NamedTuple):
    """Which rows, in which order, from where on.

    Attributes:
        sort: one of `SORTS`.
        descending: the largest first.
        words: only rows in whose id, category, prompt or completion this occurs, upper and lower case alike.
        low: only rows whose sort key is at least this.
        high: only rows whose sort key is at most this.
        start: position in that order to begin at: 0, or the `next` of the page before.
        limit: rows on a page.
        max_tokens: tokens on a page; at least one row is given whatever its length.
        seconds: time to search for `words` before giving what was found.
    """

    sort: str = "row"
    descending: bool = False
    words: str = ""
    low: float | None = None
    high: float | None = None
    start: int = 0
    limit: int = 20
    max_tokens: int = 12_000
    seconds: float = 3.0


class RowPage(NamedTuple):
    """Rows of one page; `next` is where the following one starts, None at the end.

    `candidates` rows are within the bounds, and `searched` of them were read up to here.
    """

    rows: list[ScoredRow]
    next: int | None
    candidates: int
    searched: int


_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


@dataclass(frozen=True)
class _Index:
    """One number a row: where it stands in the file, and what rows are sorted by."""

    places: Sequence[int]
    columns: dict[str, _Array]


class ScoredFile:
    """A scored file: its rows are read when they are shown, and only numbers about them are kept.

    Args:
        path: JSONL or Parquet, as `densepath score` writes it.
        on_progress: called with the share of the file that has been read, while the index is made.

    Raises:
        MissingFileError: there is no such file.
        DataError: it holds no row, or one that was not scored, with its number.
    """

    def __init__(self, path: Path, *, on_progress: Callable[[float], None] | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFileError(f"{self.path}: no such file; give one that densepath score wrote")
        self._rows: _Rows = _ParquetRows(self.path) if self.path.suffix == ".parquet" else _JsonlRows(self.path)
        self._state = self._stat()
        self._index = self._make_index(on_progress)
        self._orders: dict[tuple[str, bool], _Array] = {}
        spread = np.linspace(0, len(self) - 1, min(len(self), SCALE_ROWS)).astype(int)
        self.scale = heat_scale(span for row in self.read(spread.tolist()) for span in row.spans)

    def __len__(self) -> int:
        return len(self._index.places)

    def _stat(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_mtime_ns, found.st_size

    def _make_index(self, on_progress: Callable[[float], None] | None) -> _Index:
        places = array("q")
        numbers = {name: array("d") for name in SORTS[1:]}
        for place, value, share in self._rows.scan(("turns", "spans")):
            known = summary(value, len(places) + 1, self.path.name)
            places.append(place)
            for name, number in known._asdict().items():
                numbers[name].append(number)
            if on_progress is not None and len(places) % _PROGRESS_EVERY == 0:
                on_progress(share)
        if not places:
            raise DataError(f"{self.path}: no rows; give a file that densepath score wrote")
        columns: dict[str, _Array] = {name: np.frombuffer(values) for name, values in numbers.items()}
        columns["row"] = np.arange(1, len(places) + 1)
        return _Index(places, columns)

    def read(self, indices: Sequence[int]) -> list[ScoredRow]:
        """The rows at these indices (from 0), in this order.

        Raises:
            DataError: the file has changed since it was opened.
        """
        return [self._shown(i, value) for i, value in zip(indices, self._values(indices), strict=True)]

    def _shown(self, index: int, value: Any) -> ScoredRow:
        return scored_row(value, index + 1, self.path.name)

    def _values(self, indices: Sequence[int]) -> list[Any]:
        if self._stat() != self._state:
            raise DataError(f"{self.path} has changed since it was opened; start densepath view again")
        return self._rows.read([self._index.places[index] for index in indices])

    def find(self, query: RowQuery) -> RowPage:
        """One page of the rows that a query asks for.

        Raises:
            UsageError: an order that does not exist.
        """
        order = self._candidates(query)
        words = query.words.casefold().strip()
        rows: list[ScoredRow] = []
        tokens = 0
        until = time.monotonic() + query.seconds
        at = max(query.start, 0)
        while at < len(order):
            # Without words each row is shown, so no more are read than fit.
            step = query.limit - len(rows) if not words else 64
            indices = order[at : at + step].tolist()
            for index, value in zip(indices, self._values(indices), strict=True):
                if words and words not in searched_text(value):
                    at += 1
                    continue
                row = self._shown(index, value)
                if rows and (len(rows) == query.limit or tokens + row.num_tokens > query.max_tokens):
                    return RowPage(rows, at, len(order), at)
                rows.append(row)
                tokens += row.num_tokens
                at += 1
            if len(rows) == query.limit or (words and time.monotonic() > until):
                break
        return RowPage(rows, at if at < len(order) else None, len(order), min(at, len(order)))

    def _candidates(self, query: RowQuery) -> _Array:
        if query.sort not in SORTS:
            raise UsageError(f"sort={query.sort!r} does not exist; choose one of: {', '.join(SORTS)}")
        key = query.sort, query.descending
        column = self._index.columns[query.sort]
        if key not in self._orders:
            self._orders[key] = np.argsort(-column if query.descending else column, kind="stable").astype(np.int64)
        order = self._orders[key]
        if query.low is None and query.high is None:
            return order
        values = column[order]
        keep = np.ones(len(order), dtype=bool)
        if query.low is not None:
            keep &= values >= query.low
        if query.high is not None:
            keep &= values <= query.high
        return order[keep]

    def row(self, name: str) -> ScoredRow:
        """A row by its number (from 1), or by its id.

        Raises:
            UsageError: there is none.
        """
        if name.isdecimal() and 1 <= int(name) <= len(self):
            return self.read([int(name) - 1])[0]
        for index, (_, value, _) in enumerate(self._rows.scan()):
            if str(value.get("id")) == name:
                return self._shown(index, value)
        raise UsageError(f"{self.path}: no row {name!r}; give a number from 1 to {len(self)}, or an id")


class _Rows:
    """How one file format is read.

    `scan` gives all rows in order as (place, value, share of the file); where the format can, only some of their
    columns. `read` gives some by their places.
    """

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any, float]]:
        raise NotImplementedError

    def read(self, places: Sequence[int]) -> list[Any]:
        raise NotImplementedError


class _JsonlRows(_Rows):
    """A place is the byte at which the line starts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any, float]]:
        size = max(self.path.stat().st_size, 1)
        place = number = 0
        with self.path.open("rb") as file:
            for line in file:
                number += 1
                value = self._value(line, number) if line.strip() else None
                if value is not None:
                    yield place, value, (place + len(line)) / size
                place += len(line)

    def read(self, places: Sequence[int]) -> list[Any]:
        with self.path.open("rb") as file:
            values = []
            for place in places:
                file.seek(place)
                values.append(json.loads(file.readline()))
        return values

    def _value(self, line: bytes, number: int) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            if not line.endswith(b"\n"):
                return None  # the last line of a writer that was killed, or is still at work
            raise DataError(
                f"{self.path}, line {number}: not valid JSON; give a file that densepath score wrote"
            ) from None


class _ParquetRows(_Rows):
    """A place is the number of the row. The row group that was read last stays in memory."""

    BATCH = 256

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        try:
            self.file = pq.ParquetFile(path)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise DataError(f"{path}: not a Parquet file ({reason}); give one that densepath score wrote") from None
        groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(groups)]).astype(int)
        self._group: tuple[int, Any] = (-1, None)

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any, float]]:
        total = max(int(self.starts[-1]), 1)
        place = 0
        known = None if columns is None else [name for name in columns if name in self.file.schema_arrow.names]
        for batch in self.file.iter_batches(self.BATCH, columns=known):
            for value in batch.to_pylist():
                yield place, value, (place + 1) / total
                place += 1

    def read(self, places: Sequence[int]) -> list[Any]:
        found: dict[int, Any] = {}
        groups = (np.searchsorted(self.starts, places, side="right") - 1).tolist()
        for group in sorted(set(groups)):
            if self._group[0] != group:
                self._group = (group, self.file.read_row_group(group))
            for place, of in zip(places, groups, strict=True):
                if of == group:
                    found[place] = self._group[1].slice(place - int(self.starts[group]), 1).to_pylist()[0]
        return [found[place] for place in places]
