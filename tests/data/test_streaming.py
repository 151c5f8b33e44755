"""Lazy reading: the same rows as the eager reader, whatever the file, in windows, with bad rows kept apart."""

from __future__ import annotations

import datetime
import hashlib
import json
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.data.formats import load_dataset_rows
from densepath.data.streaming import RowStream
from densepath.errors import DataError, MissingFileError

ROWS = [{"id": i, "prompt": f"{i}?", "completion": f"{i}\u2028\u0085!"} for i in range(11)]


def lines(rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def jsonl(folder):
    (folder / "rows.jsonl").write_bytes(b"\n" + lines(ROWS[:4]) + b" \n" + lines(ROWS[4:]).removesuffix(b"\n"))
    return folder / "rows.jsonl"


def json_list(folder):
    (folder / "rows.json").write_text("\ufeff" + json.dumps(ROWS, indent=1), encoding="utf-8")
    return folder / "rows.json"


def json_lines(folder):
    (folder / "rows.json").write_bytes(lines(ROWS))
    return folder / "rows.json"


def parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=3)
    return folder / "rows.parquet"


def saved(folder):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(folder / "saved")
    return folder / "saved"


def several(folder):
    (folder / "several").mkdir()
    (folder / "several" / "train-0.jsonl").write_bytes(lines(ROWS[:4]))
    (folder / "several" / "train-1.jsonl").write_bytes(lines(ROWS[4:]))
    (folder / "several" / "test.jsonl").write_bytes(lines(ROWS[:1]))
    return folder / "several"


KINDS = [jsonl, json_list, json_lines, parquet, saved, several]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("limit", [None, 1, 6, 99])
def test_the_same_rows_as_the_eager_reader_in_windows(kind, limit, tmp_path):
    source = str(kind(tmp_path))
    expected = load_dataset_rows(source, limit=limit).to_list()
    stream = RowStream(source, limit=limit)
    rows, identities = stream.scan()
    assert rows == len(expected)
    assert identities == RowStream(source).scan()[1]
    windows = list(stream.windows(4))
    assert [number for number, _ in windows] == list(range(-(-rows // 4)))
    assert [len(window) for _, window in windows] == [4] * (rows // 4) + ([rows % 4] if rows % 4 else [])
    found = [row for _, window in windows for row in window]
    assert [row.row for row in found] == expected
    assert [row.index for row in found] == list(range(rows))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 13), asked=st.sets(st.integers(0, 12)), limit=st.none() | st.integers(1, 13))
def test_only_wanted_windows_are_given(kind, tmp_path_factory, size, asked, limit):
    folder = tmp_path_factory.getbasetemp() / f"wanted-{kind.__name__}"
    if not folder.exists():
        folder.mkdir()
        kind(folder)
    (source,) = (str(path) for path in folder.iterdir())
    found = list(RowStream(source, limit=limit).windows(size, asked.__contains__))
    rows = ROWS[:limit]
    expected = {w: rows[w * size : (w + 1) * size] for w in sorted(asked) if w * size < len(rows)}
    assert {number: [row.row for row in window] for number, window in found} == expected


def test_numbers_are_those_of_the_file(tmp_path):
    _, first = next(RowStream(str(jsonl(tmp_path))).windows(20))
    # the first line is blank, so is the one behind row 4
    assert [row.number for row in first] == [2, 3, 4, 5, *range(7, 14)]
    assert first[0].place == f"{tmp_path / 'rows.jsonl'}, row 2"
    _, rows = next(RowStream(str(several(tmp_path))).windows(20))
    assert [(row.file[-13:], row.number) for row in rows[3:6]] == [
        ("train-0.jsonl", 4),
        ("train-1.jsonl", 1),
        ("train-1.jsonl", 2),
    ]


def test_unreadable_rows_are_told_and_the_others_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    deep = b'{"a":' * 100_000
    path.write_bytes(b'{"text": "a"}\n{"text": \n[1]\n{"text": "\xff"}\n' + deep + b'\n{"text": "b"}')
    _, rows = next(RowStream(str(path)).windows(20))
    assert [row.row for row in rows] == [{"text": "a"}, None, None, None, None, {"text": "b"}]
    assert rows[1].error.startswith("not valid JSON (Expecting value")
    assert rows[1].line == '{"text": '
    assert rows[2].error == "[1] is not an object; give one JSON object per line"
    assert rows[3].line == '{"text": "\\xff"}'
    assert "recursion" in rows[4].error
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: not valid JSON"):
        load_dataset_rows(path)


def test_a_list_is_parsed_as_it_is_read(tmp_path, monkeypatch):
    """Objects, and characters of several bytes, across the borders of what is read at once."""
    monkeypatch.setattr("densepath.data.streaming._BLOCK", 7)
    rows = [{"text": "é€𝄞" * k, "n": k} for k in range(12)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*rows, 3, None], ensure_ascii=False, indent=2), encoding="utf-8")
    found = [row for _, window in RowStream(str(path)).windows(5) for row in window]
    assert [row.row for row in found] == [*rows, None, None]
    assert found[-1].error == "None is not an object; give [{...}, ...]"
    path.write_text('{\n "text": "alone"\n}', encoding="utf-8")
    assert [row.row for _, window in RowStream(str(path)).windows(5) for row in window] == [{"text": "alone"}]
    path.write_text('[{"text": "a"}, {"text": }]', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json: not a list of objects"):
        list(RowStream(str(path)).windows(5))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"text": "a"}]\n[{"text": "b"}]', "behind the end of its list"),
        ('[{"text": "a"}] x', "behind the end of its list"),
        ('[{"text": "a"} {"text": "b"}]', "no comma"),
    ],
)
def test_no_row_is_lost_behind_a_list(text, reason, tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    for block in (1 << 20, 3):
        monkeypatch.setattr("densepath.data.streaming._BLOCK", block)
        with pytest.raises(DataError, match=reason):
            list(RowStream(str(tmp_path / "rows.json")))


def test_the_identity_of_a_file_is_its_content(tmp_path):
    path = jsonl(tmp_path)
    (identity,) = RowStream(str(path)).scan()[1]
    assert identity["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert identity["rows"] == 11


def test_the_identity_of_rows_in_memory_is_their_content():
    rows = [{"prompt": "a", "completion": "b", "x": float("nan"), "when": datetime.date(2020, 1, 1)}, {"prompt": "é"}]
    (identity,) = RowStream(rows).scan()[1]
    assert RowStream([dict(row) for row in rows]).scan()[1] == [identity]
    assert RowStream([rows[0], {"prompt": "e"}]).scan()[1] != [identity]
    assert RowStream(rows[::-1]).scan()[1] != [identity]


def test_what_is_not_there_or_not_data_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="no data set at"):
        RowStream(str(tmp_path / "none.jsonl"))
    (tmp_path / "rows.txt").write_text("a,b")
    with pytest.raises(DataError, match=r"cannot read \.txt"):
        RowStream(str(tmp_path / "rows.txt"))
    (tmp_path / "rows.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match="not a Parquet file"):
        RowStream(str(tmp_path / "rows.parquet"))


def test_the_schema_of_typed_files_alone(tmp_path):
    assert RowStream(str(parquet(tmp_path))).schema.names == ["id", "prompt", "completion"]
    assert RowStream(str(saved(tmp_path))).schema.names == ["id", "prompt", "completion"]
    assert RowStream(str(jsonl(tmp_path))).schema is None


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_memory_does_not_grow_with_the_file(kind, tmp_path):
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.{kind}"
        table = [{"text": f"{i} " + "x" * 1000} for i in range(rows)]
        if kind == "jsonl":
            path.write_bytes(lines(table))
        elif kind == "json":
            path.write_text(json.dumps(table))
        else:
            pq.write_table(pa.Table.from_pylist(table), path, row_group_size=500)
        del table
        tracemalloc.start()
        stream = RowStream(str(path))
        assert stream.scan()[0] == rows
        assert sum(len(window) for _, window in stream.windows(100)) == rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8_000) < peak(3_000) + 1_000_000  # the longer file holds 5 MB more


def test_rows_of_a_table_with_a_transform_are_what_it_makes_of_them():
    shouted = [{"said": row["prompt"] + "!", "id": row["id"]} for row in ROWS]

    def shout(batch):
        return {"said": [text + "!" for text in batch["prompt"]], "id": batch["id"]}

    stream = RowStream(datasets.Dataset.from_list(ROWS).with_transform(shout))
    assert [row.row for row in stream] == shouted
    assert stream.schema is None  # Arrow's is that of what the transform is given
    assert [(row.number, row.row) for _, window in stream.windows(4, [0, 2].__contains__) for row in window] == [
        (row["id"] + 1, row) for row in (*shouted[:4], *shouted[8:])
    ]
    assert load_dataset_rows(datasets.Dataset.from_list(ROWS).with_transform(shout), limit=2).to_list() == shouted[:2]
    odd = [{"prompt": "a", "x": 1}, {"prompt": "b", "x": {"y": [2.5]}}]  # what Arrow has no one type for
    assert [row.row for row in RowStream(load_dataset_rows(odd))] == odd


def test_maps_are_objects_as_in_json_at_any_depth(tmp_path):
    """As another writer's Parquet has a call's arguments, whose names differ from row to row."""
    texts = pa.map_(pa.string(), pa.string())
    turn = pa.struct([("role", pa.string()), ("calls", pa.list_(pa.struct([("arguments", texts)])))])
    turns = [{"role": "assistant", "calls": [{"arguments": [("city", "Lima"), ("unit", "C")]}]}]
    columns = {
        "messages": pa.array([turns], pa.list_(turn)),
        "of": pa.array([[("k", None)]], texts),
        "maps": pa.array([[("k", [("a", "b")])]], pa.map_(pa.string(), texts)),
        "large": pa.array([[("k", "v")]], pa.map_(pa.large_string(), pa.large_string())),
        "numbers": pa.array([[(1, "a")]], pa.map_(pa.int64(), pa.string())),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    (row,) = RowStream(str(tmp_path / "rows.parquet"))
    assert row.row == {
        "messages": [{"role": "assistant", "calls": [{"arguments": {"city": "Lima", "unit": "C"}}]}],
        "of": {"k": None},
        "maps": {"k": {"a": "b"}},
        "large": {"k": "v"},
        "numbers": [(1, "a")],  # no object of JSON has such a key
    }
