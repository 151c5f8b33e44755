"""Columns that nobody reads never matter, whatever their type; what they hold goes through where JSON can hold it."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densepath.data.formats import as_dataset, dataset_fingerprint, load_dataset_rows, read_rows, row_order
from densepath.data.sources import load_rows
from densepath.data.splits import split_by_content
from densepath.data.streaming import RowStream
from densepath.errors import DataError
from densepath.io import read_jsonl, write_jsonl_atomic

# What a Parquet column may hold, and what becomes of it in JSON.
DAY = datetime.datetime(2026, 1, 1, 12)
PARQUET: dict[str, tuple[Any, Any]] = {
    "timestamp": (pa.array([DAY] * 3), "2026-01-01T12:00:00"),
    "nanoseconds": (pa.array([1] * 3, pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    "a date beyond Python's": (
        pa.array([3 * 10**11] * 3, pa.timestamp("s")),
        "<pyarrow.TimestampScalar: '11476-08-15T05:20:00.000'>",
    ),
    "date": (pa.array([DAY.date()] * 3), "2026-01-01"),
    "time": (pa.array([DAY.time()] * 3), "12:00:00"),
    "decimal": (pa.array([decimal.Decimal("1.50")] * 3), "1.50"),
    "bytes": (pa.array([b"\x89PNG"] * 3), "iVBORw=="),
    "an image": (pa.array([{"bytes": b"\x89PNG", "path": None}] * 3), {"bytes": "iVBORw==", "path": None}),
    "map": (pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())), {"a": 1}),
    "dictionary": (pa.array(["x"] * 3).dictionary_encode(), "x"),
    "nan": (pa.array([float("nan")] * 3), None),
    "infinity": (pa.array([float("-inf")] * 3), None),
    "unsigned": (pa.array([2**64 - 1] * 3, pa.uint64()), 2**64 - 1),
    "nothing": (pa.nulls(3), None),
    "no text": (pa.array([b"\xff"] * 3).view(pa.string()), "/w=="),
}
JSON: dict[str, list[Any]] = {
    "mixed": [1, "x", {"a": [None]}],
    "nested": [{"a": 1}, {"a": {"b": 2.5}}, {}],
    "a big integer": [2**70, -(2**70), 0],
    "half a pair": ["\ud83d", "x", ""],
    "1 beside 2.5": [1, 2.5, 3],
}


@pytest.mark.parametrize("kind", PARQUET)
def test_any_parquet_column_goes_by(kind: str, tmp_path: Path) -> None:
    values, expected = PARQUET[kind]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "completion": ["x"] * 3, "extra": values}), path)
    rows = load_rows(str(path), "train", "demonstrations", limit=None, seed=None)
    extra = {} if expected is None else {"extra": expected}
    assert rows == [{"prompt": prompt, "completion": "x", **extra} for prompt in "abc"]
    write_jsonl_atomic(tmp_path / "again.jsonl", rows)
    assert read_jsonl(tmp_path / "again.jsonl") == rows
    assert dataset_fingerprint(load_rows(str(tmp_path / "again.jsonl"), "train", None, limit=None, seed=None)) == (
        dataset_fingerprint(rows)
    )
    loaded = load_dataset_rows(path, needs="demonstrations")
    assert loaded["prompt"] == ["a", "b", "c"]
    assert len(dataset_fingerprint(loaded)) == 64


@pytest.mark.parametrize("kind", JSON)
def test_any_json_column_comes_out_as_it_went_in(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "x", "extra": value} for i, value in enumerate(JSON[kind])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_rows(str(path), "train", "demonstrations", limit=None, seed=None)
    assert repr(found) == repr(rows)  # 1 is not 1.0
    write_jsonl_atomic(tmp_path / "again.jsonl", found)
    assert repr(read_jsonl(tmp_path / "again.jsonl")) == repr(rows)
    loaded = load_dataset_rows(path, needs="demonstrations")
    if kind == "1 beside 2.5":
        assert [row["extra"] for row in loaded] == [1, 2.5, 3]
    else:
        assert repr(list(loaded)) == repr(rows)
    assert loaded.shuffle(seed=1).select([0])[0] in rows
    assert sum(map(len, split_by_content(loaded).values())) == 3


def test_nan_in_json_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "score": NaN, "of": {"it": [Infinity, 1]}}\n')
    assert load_rows(str(path), "train", "prompts", limit=None, seed=None) == [
        {"prompt": "a", "of": {"it": [None, 1]}}
    ]


def test_turns_in_a_dataset_have_no_keys_of_other_turns() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    other = {"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": {"b": 0.1234567890123456}}}]}
    rows = [{"prompt": [{"role": "user", "content": "Hi"}, turn]} for turn in (call, other)]
    table = as_dataset(rows)
    assert list(table) == rows
    assert table[1:]["prompt"] == [rows[1]["prompt"]]
    assert table["prompt"][0] == rows[0]["prompt"]
    assert as_dataset([{"prompt": "a", "n": 1}, {"prompt": "b"}]).to_list() == [
        {"prompt": "a", "n": 1},
        {"prompt": "b", "n": None},
    ]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_rows_are_shuffled_as_datasets_does(seed: int) -> None:
    rows = [{"prompt": str(i)} for i in range(30)]
    expected = datasets.Dataset.from_list(rows).shuffle(seed=seed)
    assert read_rows(rows, seed=seed, limit=7) == expected.select(range(7)).to_list()
    assert sorted(row_order(30, seed, None)) == list(range(30))


def test_json_columns_of_datasets_are_read_as_what_they_hold(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "Hi", "n": 1}]}, {"prompt": [{"role": "user", "content": "Ho"}]}]
    table = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json" in str(table.features)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "rows.parquet", tmp_path / "saved", table):
        assert read_rows(source, needs="prompts") == rows


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": [f"{i} some text" for i in range(5000)]}), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rows\.parquet: damaged"):
        list(RowStream(str(path)))
