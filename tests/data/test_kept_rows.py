"""Rows that are sorted into two files keep the columns of their source, whatever tool's format it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from densepath.data.formats import read_rows
from densepath.data.kept_rows import write_kept_rows
from densepath.data.sources import plain_rows
from densepath.io import read_jsonl, write_jsonl_atomic

SOURCES = {
    "Alpaca": [{"instruction": f"Add {n}.", "input": "1", "output": "2", "id": n} for n in range(4)],
    "Dolly": [{"instruction": f"Add {n}.", "context": "", "response": "2", "category": "qa"} for n in range(4)],
    "ShareGPT": [
        {
            "conversations": [{"from": "human", "value": f"{n}"}, {"from": "gpt", "value": "Hello"}],
            "system": "Be kind.",
        }
        for n in range(4)
    ],
    "TRL": [{"prompt": f"{n}", "completion": "Hello", "id": n} for n in range(4)],
}


@pytest.mark.parametrize("rows", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("through_a_run", [False, True])
def test_the_sources_columns_come_back(rows: list[dict[str, object]], through_a_run: bool, tmp_path: Path) -> None:
    """A run writes the rows that it was given into a file of its own, and reads them there."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read = read_rows(source)
    if through_a_run:
        write_jsonl_atomic(tmp_path / "train.jsonl", plain_rows(read))
        read = read_rows(tmp_path / "train.jsonl")
    write_kept_rows(read, {2: {"reason": "cut off"}}, tmp_path / "kept.jsonl", tmp_path / "dropped.jsonl")
    assert read_jsonl(tmp_path / "kept.jsonl") == [row for place, row in enumerate(rows) if place != 2]
    assert read_jsonl(tmp_path / "dropped.jsonl") == [{**rows[2], "reason": "cut off"}]
