"""AlpacaEval's rows of gamed baselines, which its length control is fitted with: `df_gamed.csv` of the hub.

The file is under CC BY-NC 4.0 and does not come with densepath.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densepath.data.splits import normalise_text
from densepath.errors import DataError, MissingFileError
from densepath.io import file_sha256
from densepath.stats.length_controlled import Gamed

SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
"""Of the published file: figures by another one are not the leaderboard's."""
PROMPTS_SHA256 = "8dd9dac99363f3d413e6350ea0d958f3bb5658cab5507e6bb88f9348eb7127fc"
"""Of AlpacaEval's 805 instructions in their order, by which the file counts its prompts (`in_published_order`)."""
HUB = ("tatsu-lab/alpaca_eval", "df_gamed.csv")
_COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty")


def read_gamed(path: str) -> tuple[Gamed, dict[int, float]]:
    """The rows of the file, and the difficulty of each prompt by its place in AlpacaEval, from 0.

    Raises:
        MissingFileError: there is no such file.
        DataError: a column is missing, or a value is no number; file and row are named.
    """
    columns: dict[str, list[float]] = {name: [] for name in _COLUMNS}
    difficulty: dict[int, float] = {}
    if not Path(path).is_file():
        raise MissingFileError(f"{path}: no such file; download {HUB[1]} of the data set {HUB[0]}")
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := sorted(set(_COLUMNS) - set(reader.fieldnames or ())):
            raise DataError(f"{path}: no column {', '.join(missing)}; give AlpacaEval's {HUB[1]}")
        for number, row in enumerate(reader, start=1):
            for name in _COLUMNS:
                columns[name].append(_number(row[name], name, f"{path}, row {number}"))
            difficulty.setdefault(int(columns["index"][-1]), columns["instruction_difficulty"][-1])
    if not difficulty:
        raise DataError(f"{path}: no rows; give AlpacaEval's {HUB[1]}")
    arrays = [np.array(columns[name]) for name in ("preference", "std_delta_len", "instruction_difficulty")]
    return Gamed(*arrays), difficulty


def is_published(path: str) -> bool:
    """Whether the file is the one that the leaderboard's figures are made with."""
    return file_sha256(Path(path)) == SHA256


def in_published_order(instructions: Sequence[str]) -> bool:
    """Whether these are AlpacaEval's prompts in its order: only then its places are theirs."""
    text = "\n".join(map(normalise_text, instructions))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest() == PROMPTS_SHA256


def _number(text: str | None, name: str, where: str) -> float:
    try:
        found = float(text or "")
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{where}: {name} is {text!r}, not a number; give AlpacaEval's {HUB[1]}")
    return found
