"""What a command writes must be neither what it reads nor one another: said before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from densepath.config.mixins import CONSTRAINED
from densepath.data.reading import files_of
from densepath.errors import UsageError

MODEL_FILES = (
    *("*.safetensors", "*.bin", "*config.json", "*.index.json", "tokenizer*", "*.jinja", "*.model"),
    *("added_tokens.json", "special_tokens_map.json", "vocab.*", "merges.txt", "densepath_base.json"),
)
"""Files of a model's folder, which may hold others: figures of the model, say."""


def rows_read(source: str | None, split: str = "train") -> list[Path]:
    """Files that the rows of a data set are read from; none where it is None, generated, or a hub id.

    Args:
        source: as a command is given it: a file, a folder, a hub id, or what densepath generates.
        split: that is read of a folder.
    """
    return [] if not source else files_of(source.removeprefix(CONSTRAINED), split)


def models_read(*names: str | None) -> list[Path]:
    """Files of models that are folders here; none of None, or of a hub id."""
    folders = [Path(name).expanduser() for name in names if name]
    return [path for folder in folders for pattern in MODEL_FILES for path in folder.glob(pattern)]


def with_twin(html_file: str | None) -> dict[str, str | Path | None]:
    """A page and the JSON twin beside it, as outputs by argument."""
    twin = None if html_file is None else Path(html_file).with_suffix(".json")
    return {"html_file": html_file, "html_file's JSON twin": twin}


def check_outputs(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, Iterable[str | Path]]) -> None:
    """Refuse to overwrite what is read, or one output by another.

    Args:
        outputs: argument -> the file that it names; None where none is written.
        inputs: argument -> the files that are read.

    Raises:
        UsageError: two of them are one file, however they are written.
    """
    read: dict[Path, str] = {}
    for name, files in inputs.items():
        for file in files:
            read.setdefault(_real(file), name)
    written: dict[Path, str] = {}
    for name, output in outputs.items():
        if output is None:
            continue
        place = _real(output)
        if place in read:
            raise UsageError(
                f"{output} is read as {read[place]}, and would be overwritten as {name}: write to another place"
            )
        if place in written:
            raise UsageError(f"{output} would be written as {written[place]} and as {name}: give each its own name")
        written[place] = name


def _real(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()
