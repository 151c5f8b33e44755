"""What tells one folder that a command left from another: every byte of every file, but clocks and places."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

PASSING = (".lock", "README.md", "environment.json", "log.txt")
"""Files that say when and where, or are for the eye alone: TRL's cards hold dates, and logs what every call said."""
_CLOCK = re.compile(r"time|date|.*seconds|step_time|.*runtime|.*per_second")
_SEALED = ("metrics.jsonl", "results.json", "README.md", "adapter_config.json", "densepath_base.json", "said.json")
"""Files that hold clock readings, a place, or the fingerprint of such a file, and whose own therefore differ."""
_SEAL = "sha256"
"""What a file holds of its own content, which its reader checks."""
_DRAWN = re.compile(r"<svg.*?</svg>|[\d.,:%-]+", re.S)
"""Of a page: some plots are over seconds; and its numbers, which lie beside it."""


def differences(folder: Path, other: Path, passing: Collection[str] = ()) -> list[str]:
    """Names of the files that are missing in one of them, or hold something else.

    Args:
        folder: one.
        other: another.
        passing: names of files that are not looked at, beside `PASSING`.
    """
    left_out = {*PASSING, *passing}
    names = [name for name in sorted({*_names(folder), *_names(other)}) if Path(name).name not in left_out]
    return [name for name in names if content(folder, name) != content(other, name)]


def _names(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def content(folder: Path, name: str) -> Any:
    """What a file holds, without clock readings and the place of the folder; None where it is not there."""
    path = folder / name
    if not path.is_file():
        return None
    if path.suffix not in (".json", ".jsonl", ".html", ".md", ".csv", ".yaml"):
        return path.read_bytes()
    held = path.read_text(encoding="utf-8", errors="replace")
    for place in _places(folder):
        held = held.replace(place, "FOLDER")
    if path.suffix in (".json", ".jsonl"):
        try:
            return [
                _repeatable(_unsealed(json.loads(line)), folder.name)
                for line in (held.splitlines() if path.suffix == ".jsonl" else [held])
            ]
        except ValueError:
            return held
    if path.suffix in (".html", ".md"):
        return _DRAWN.sub("", re.sub(rf"(?<=>){re.escape(folder.name)}(?=<| ·)", "NAME", held))
    if path.suffix == ".csv":
        return [line.rpartition(",")[0] for line in held.splitlines()]  # the last column is the seconds
    return held


def _places(folder: Path) -> list[str]:
    """Where a folder lies, and where it lay when it was written."""
    found = [str(folder)]
    for config in (folder / "config.yaml", folder / "experiment.yaml"):
        if config.is_file():
            recipe = yaml.safe_load(config.read_text(errors="replace"))
            found.append(str(recipe.get("output_dir")) if isinstance(recipe, Mapping) else str(folder))
    return sorted(found, key=len, reverse=True)


def _unsealed(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != _SEAL} if isinstance(value, Mapping) else value


def _repeatable(value: Any, name: str) -> Any:
    """A JSON value without clock readings, the curves of such, and the folder's name."""
    if isinstance(value, Mapping):
        return {
            key: _repeatable(item, name)
            for key, item in value.items()
            if not _CLOCK.fullmatch(key) and key.rpartition("/")[2] not in _SEALED
        }
    if isinstance(value, list):
        return [_repeatable(item, name) for item in value if not (isinstance(item, Mapping) and _is_clock(item))]
    return "NAME" if value == name else value


def _is_clock(item: Mapping[str, Any]) -> bool:
    """Whether it is a curve of clock readings."""
    return _CLOCK.fullmatch(str(item.get("metric"))) is not None
