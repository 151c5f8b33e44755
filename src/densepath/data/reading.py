"""Where the rows of a data set are: a name (file, folder, hub id) becomes files, or one table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densepath.data.rows import short
from densepath.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from datasets import Dataset

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Files that can be read; all but Parquet may be compressed too (.jsonl.gz)."""
_COMPRESSED = ".gz"
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
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


def file_suffix(path: Path) -> str:
    """Suffix that tells a file's format, in lower case; `.jsonl.gz` of a compressed one.

    >>> file_suffix(Path("my.rows.JSONL.gz")), file_suffix(Path("rows.parquet"))
    ('.jsonl.gz', '.parquet')
    """
    name = path.name.lower()
    inner = Path(name.removesuffix(_COMPRESSED)).suffix
    return inner + _COMPRESSED if name.endswith(_COMPRESSED) else inner


def is_readable(path: Path) -> bool:
    """Whether a file's name says that rows can be read from it."""
    suffix = file_suffix(path)
    return suffix in FILE_SUFFIXES or (
        suffix.removesuffix(_COMPRESSED) in FILE_SUFFIXES[:-1] and suffix.endswith(_COMPRESSED)
    )


def find_source(name: str, split: str) -> tuple[list[Path] | list[Dataset], str]:
    """Where the rows of the data set with that name are, and which of them are asked for.

    Args:
        name: a file, a folder or a hub id.
        split: the split to take where there are several; `train[:100]` and `train[10%:20%]` take a slice of it.

    Returns:
        Its files in order, or one table on disk; and the slice that is still to be taken (`:100`), or nothing.
        No file is opened.

    Raises:
        MissingFileError: nothing is found under that name.
        DataError: a split that is not there, or a slice that cannot be read.
    """
    path = Path(name).expanduser()
    if not path.is_file() and not path.is_dir():
        if is_readable(path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise MissingFileError(f"no data set at {name}: there is neither a file nor a folder; check the path")
        return [_read_hub(name, split)], ""
    found = re.fullmatch(r"([^\[\]+]+)(?:\[((?:-?\d+%?)?:(?:-?\d+%?)?)\])?", split.strip())
    if found is None:
        raise DataError(f"{name}: no split {split!r}; name one split, or a slice of it as in train[:100]")
    return ([path] if path.is_file() else _find_in_folder(path, found[1])), found[2] or ""


def files_of(name: str, split: str) -> list[Path]:
    """Files that the data set with that name would be read from; none for a hub id, or where nothing can be read.

    Args:
        name: a file, a folder or a hub id.
        split: the split to take where a folder has several, with or without a slice.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        return [path] if path.is_file() else []
    if _is_saved(path):
        return [each for each in path.rglob("*") if each.is_file()]
    try:
        return _chosen_files(path, split.partition("[")[0].strip())
    except (DataError, MissingFileError):  # which reading it will say
        return []


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
    return [_read_saved(folder, split)] if _is_saved(folder) else _chosen_files(folder, split)


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` saved it."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _chosen_files(folder: Path, split: str) -> list[Path]:
    """The files of a split among those of a folder.

    Raises:
        MissingFileError, DataError: there is none, or two of one name, or they lie in several folders.
    """
    files = _data_files(folder)
    if not files:
        raise MissingFileError(f"no data set in {folder}: no {', '.join(FILE_SUFFIXES)} file; check the path")
    splits = {path: _split_of(path, folder) for path in files}
    wanted = _SPLIT_WORDS.get(split.lower(), split.lower())
    found = [path for path in files if wanted in (splits[path], _stem(path))]
    if any(splits.values()) and not found:
        there = short(", ".join(str(path.relative_to(folder)) for path in splits), 160)
        raise DataError(f"{folder}: no file of the split {split!r} among {there}; name another split")
    files = found or files
    of_one_name: dict[Path, Path] = {}
    for path in files:
        if (other := of_one_name.setdefault(path.with_name(_stem(path)), path)) != path:
            raise DataError(
                f"{folder}: {other.name} and {path.name} would both be read, and have one name; remove or name one"
            )
    # The hub keeps each configuration of a data set in a folder of its own; those of splits are one.
    parents = {path.parent for path in files}
    homes = sorted({str(each.parent if each.name.lower() in _SPLIT_WORDS else each) for each in parents})
    if len(homes) > 1:
        raise DataError(f"{folder}: rows in several folders, {short(', '.join(homes), 160)}; name one of them")
    return files


def _data_files(folder: Path) -> list[Path]:
    """Files of a folder itself; else, as in a data set cloned from the hub, of the folders in it."""
    for paths in (folder.iterdir(), folder.rglob("*")):
        found = [
            path
            for path in sorted(paths)
            if is_readable(path)
            and path.is_file()
            and path.name not in _NO_DATA
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        if found:
            return found
    return []


def _read_saved(folder: Path, split: str) -> Dataset:
    import datasets

    try:
        rows: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever its files lack, the reason travels in the message
        raise DataError(f"{folder}: not a saved data set ({short(str(error), 160)}); save it again") from error
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise DataError(f"{folder}: no split {split!r}; the splits are {', '.join(sorted(rows))}")
        rows = rows[split]
    return rows


def _stem(path: Path) -> str:
    """A file's name without what tells its format, in lower case."""
    return path.name.lower().removesuffix(file_suffix(path))


def _split_of(path: Path, folder: Path) -> str | None:
    """Split that a file's name tells: all before the hub's `-00000-of-00002`, else the first word that is one."""
    stem = _stem(path)
    if sharded := re.fullmatch(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?", stem):
        return _SPLIT_WORDS.get(sharded[1], sharded[1])
    words = re.split(r"[^a-z]+", stem)
    inner = [part.lower() for part in path.relative_to(folder).parts[:-1]]
    return next((_SPLIT_WORDS[word] for word in (*words, *inner) if word in _SPLIT_WORDS), None)
