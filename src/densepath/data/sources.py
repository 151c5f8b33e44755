"""Rows of a data set by the name that a command is given: a file, a folder, a hub id, or what densepath generates."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from densepath.config.mixins import CONSTRAINED, REGIME, TEXT_TASKS
from densepath.data.constraints import constrained_rows
from densepath.data.formats import Needs, read_rows
from densepath.data.rows import Row, jsonable
from densepath.data.streaming import RowStream
from densepath.data.tasks import generate_tasks

TEXT_TASK_ROWS = 1000
"""Rows that text_tasks generates where nothing says how many."""


def load_rows(
    source: str,
    split: str,
    needs: Needs | None,
    *,
    limit: int | None,
    seed: int | None,
    tasks: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a source as JSON can hold them; without a seed they keep their order.

    `text_tasks` generates them: `tasks` are further arguments of `generate_tasks`.

    `constrained:SOURCE` puts a format that a program can check on each prompt of SOURCE. Which one depends on the
    prompt alone, whatever the seed: a run's seed does not change its task.

    Raises:
        MissingFileError, DataError: see `read_rows`.
    """
    name = source.removeprefix(CONSTRAINED)
    if name == TEXT_TASKS:
        # An empty system turn is the shortest: without one, chat templates put in a longer one of their own.
        count = TEXT_TASK_ROWS if limit is None else limit
        rows = generate_tasks(count, seed=seed or 0, system="", **(tasks or {}))
    else:
        rows = plain_rows(read_rows(name, split=split, limit=limit, seed=seed, needs=needs))
    return rows if name == source else constrained_rows(rows, where=functools.partial(place, name, split))


def place(source: str, split: str, row: Row) -> str:
    """`file, row 7` of a row that was shuffled and split since.

    The source alone where rows are generated, or the row is not found again. Reads the source: for errors only.
    """
    name = source.removeprefix(CONSTRAINED)
    if name == TEXT_TASKS or source.startswith(REGIME):
        return source
    found = [jsonable(each) for each in load_rows(source, split, None, limit=None, seed=None)]
    return next(islice(RowStream(name, split), found.index(row), None)).place if row in found else source


def plain_rows(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows with JSON's values and without nulls: it makes no difference whether they went through a file."""
    return [{key: value for key, value in jsonable(row).items() if value is not None} for row in rows]


def stream_rows(source: str, split: str, limit: int | None) -> RowStream:
    """The first rows of a source, of any number; those that are generated are in memory.

    Raises:
        MissingFileError, DataError: see `RowStream`.
    """
    if source.startswith(CONSTRAINED) or source == TEXT_TASKS:
        return RowStream(load_rows(source, split, None, limit=limit, seed=None), limit=limit)
    return RowStream(source, split, limit=limit)
