"""Readers: a name (file, folder, hub id) becomes parts, each with its rows numbered as in its file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densepath.data.rows import Row, short
from densepath.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from datasets import Dataset

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
# The words by which a file's name tells its split, as the hub reads them.
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one source: either an Arrow table, or parsed rows with the numbers (1-based) that messages give."""

    name: str
    table: Dataset | None = None
    numbered: list[tuple[int, Row]] = field(default_factory=list)


def read_source(name: str, split: str) -> list[Part]:
    """Parts of the data set with that name, unchecked.

    Args:
        name: a file, a folder or a hub id.
        split: the split to take where there are several.

    Returns:
        One part per file, or one for a table.

    Raises:
        MissingFileError: nothing is found under that name.
        DataError: a file that cannot be parsed, or a split that is not there.
    """
    return [
        _read_file(place) if isinstance(place, Path) else Part(name, table=place) for place in find_source(name, split)
    ]


def find_source(name: str, split: str) -> list[Path] | list[Dataset]:
    """Where the rows of the data set with that name are: its files in order, or one table on disk.

    Args, Raises: see `read_source`; no file is opened.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _find_in_folder(path, split)
    if path.suffix.lower() in FILE_SUFFIXES or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MissingFileError(f"no data set at {name}: there is neither a file nor a folder; check the path")
    return [_read_hub(name, split)]


def _read_hub(name: str, split: str) -> Dataset:
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub client raises a dozen kinds; the reason travels in the message
        raise MissingFileError(
            f"no data set {name!r}: there is no such file or folder here, and the hub gave no split {split!r} of it "
            f"({type(error).__name__}: {short(str(error), 160)}); check the name, the split and the connection"
        ) from error


def _find_in_folder(folder: Path, split: str) -> list[Path] | list[Dataset]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return [_read_saved(folder, split)]
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in FILE_SUFFIXES)
    if not files:
        raise MissingFileError(f"no data set in {folder}: no {', '.join(FILE_SUFFIXES)} file; check the path")
    splits = {path: _split_in_name(path) for path in files}
    if any(splits.values()):
        files = [path for path in files if splits[path] == _SPLIT_WORDS.get(split, split)]
        if not files:
            there = short(", ".join(path.name for path in splits), 160)
            raise DataError(f"{folder}: no file of the split {split!r} among {there}; name another split")
    return files


def _read_saved(folder: Path, split: str) -> Dataset:
    import datasets

    rows: Any = datasets.load_from_disk(str(folder))
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise DataError(f"{folder}: no split {split!r}; the splits are {', '.join(sorted(rows))}")
        rows = rows[split]
    return rows


def _split_in_name(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _read_file(path: Path) -> Part:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix == ".jsonl":
        return Part(str(path), numbered=list(_json_lines(path)))
    if suffix == ".json":
        return Part(str(path), numbered=_json_document(path))
    raise DataError(f"{path}: cannot read {suffix or 'a file without suffix'}; give {', '.join(FILE_SUFFIXES)}")


def _read_parquet(path: Path) -> Part:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        return Part(str(path), table=Dataset(InMemoryTable(pyarrow.parquet.read_table(path))))
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({short(str(error))}); write it again") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, row) per line that is not blank; lines end at "\\n" only, as texts contain other separators."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json_row(line)
                except DataError as error:
                    raise DataError(f"{path}, row {number}: {error}") from None


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


def _json_document(path: Path) -> list[tuple[int, Row]]:
    """Rows of a .json file: one list of objects, or, as many such files are, one object per line."""
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError:
        return list(_json_lines(path))
    if isinstance(document, dict):
        document = [document]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise DataError(f"{path}: not a list of objects; give [{{...}}, ...] or one object per line")
    return list(enumerate(document, start=1))
