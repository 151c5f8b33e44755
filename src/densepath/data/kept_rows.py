"""Rows sorted into two files: those that are kept, as they were, and those that are dropped, with the reason.

Rows of another tool's format have their own columns there, and not those of TRL's that they were read as.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.data.convert import as_written
from densepath.data.rows import Row
from densepath.io import write_jsonl_atomic


def write_kept_rows(
    rows: Sequence[Row], dropped: Mapping[int, Mapping[str, Any]], kept_file: Path | None, dropped_file: Path | None
) -> None:
    """Write the rows of a source into two JSONL files, each in the order of the source.

    Args:
        rows: of the source, each of which is written as it is.
        dropped: index of each row that is dropped, with the columns that say why.
        kept_file: takes the others; None writes none.
        dropped_file: takes the dropped ones with those columns behind their own; None writes none.

    Raises:
        StorageError: a file cannot be written.
    """
    if kept_file is not None:
        write_jsonl_atomic(
            kept_file, [dict(as_written(row)) for index, row in enumerate(rows) if index not in dropped]
        )
    if dropped_file is not None:
        write_jsonl_atomic(dropped_file, [{**as_written(rows[index]), **dropped[index]} for index in sorted(dropped)])
