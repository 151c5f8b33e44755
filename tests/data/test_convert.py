"""Rows of other tools: ShareGPT, Alpaca, tables of text; each compared with the same row written in TRL's format."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from densepath.data.convert import as_written, conversion, converted
from densepath.data.formats import load_dataset_rows, read_rows, validate_rows
from densepath.data.rows import prompt_of
from densepath.data.splits import content_hash
from densepath.data.streaming import RowStream
from densepath.errors import DataError, MissingFileError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}


def said(speaker: str, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ShareGPT": (
        {"conversations": [said("system", "Be kind."), said("human", "Hi"), said("gpt", "Hello")], "id": "x"},
        {"messages": [SYSTEM, USER, ANSWER], "id": "x"},
    ),
    "an input alone": (
        {"instruction": "", "input": "Hi", "output": "Hello"},
        {"prompt": [USER], "completion": [ANSWER]},
    ),
    "other names": (
        {"conversations": [said("user", "Hi"), said("chatgpt", "Hello")], "system": "Be kind."},
        {"messages": [SYSTEM, USER, ANSWER]},
    ),
    "tools": (
        {
            "conversations": [
                said("human", "Hi"),
                said("function_call", '{"name": "f", "arguments": {"a": 1}}'),
                said("observation", "3"),
                said("gpt", "Hello"),
            ],
            "tools": '[{"name": "f"}]',
        },
        {"messages": [USER, CALL, {"role": "tool", "content": "3"}, ANSWER], "tools": '[{"name": "f"}]'},
    ),
    "roles": ({"conversations": [USER, ANSWER], "messages": None}, {"messages": [USER, ANSWER]}),
    "a conversation beside its first prompt": (
        {"prompt": "Hi", "conversations": [USER, ANSWER]},
        {"prompt": "Hi", "messages": [USER, ANSWER]},
    ),
    "Alpaca": (
        {"instruction": "Hi", "input": "", "output": "Hello", "text": "Below is ...", "id": 3},
        {"prompt": [USER], "completion": [ANSWER], "text": "Below is ...", "id": 3},
    ),
    "Alpaca with an input": (
        {"instruction": "Add.", "input": "1, 2", "output": "Hello", "system": "Be kind."},
        {"prompt": [SYSTEM, {"role": "user", "content": "Add.\n1, 2"}], "completion": [ANSWER]},
    ),
    "Alpaca with a history": (
        {"instruction": "Hi", "input": None, "output": "Hello", "history": [["Hi", "Hello"]]},
        {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
    ),
    "Dolly": (
        {"instruction": "Add.", "context": "1, 2", "response": "Hello", "category": "qa"},
        {"prompt": [{"role": "user", "content": "Add.\n1, 2"}], "completion": [ANSWER], "category": "qa"},
    ),
    "Dolly without a context": (
        {"instruction": "Hi", "context": "", "response": "Hello"},
        {"prompt": [USER], "completion": [ANSWER]},
    ),
    "Alpaca's question": ({"instruction": "Hi", "output": None, "answer": "4"}, {"prompt": [USER], "answer": "4"}),
}


@pytest.mark.parametrize(("row", "same"), SAME.values(), ids=SAME.keys())
def test_a_row_is_that_of_trl(row: dict[str, Any], same: dict[str, Any]) -> None:
    found = converted(row)
    assert {name: found[name] for name in same} == same
    assert found.keys() == row.keys() | same.keys()
    assert read_rows([row]) == [found]
    assert content_hash(found) == content_hash(same)
    validate_rows([converted(row)], "prompts" if "answer" in row else "demonstrations")
    assert converted(same) is same
    assert as_written(found) == {name: value for name, value in row.items() if name != "messages"}
    assert as_written(same) is same


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER], "conversations": [said("human", "other")]},
        {
            "prompt": "a",
            "completion": "b",
            "conversations": [said("human", "other")],
            "instruction": "c",
            "output": "d",
        },
        {"prompt": "a", "instruction": "c", "output": "d"},
        {"text": "a", "output": "b"},
        {"instruction": "a", "response": "b"},
    ],
)
def test_columns_of_trl_count_first(row: dict[str, Any]) -> None:
    assert conversion(row) == ""
    assert converted(row) is row


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"conversations": [said("alien", "Hi")]},
            "\"conversations\" turn 1 is from 'alien'; it must be one of human",
        ),
        ({"conversations": [said("human", None)]}, "turn 1 has the value None, not a string"),
        ({"conversations": []}, r'"conversations" is \[\]; give a list of turns'),
        ({"conversations": "Hi"}, "\"conversations\" is 'Hi'"),
        ({"conversations": ["Hi"]}, "turn 1 is 'Hi'; a turn is an object"),
        ({"conversations": [said("human", "a"), said("function_call", "f(1)")]}, r"turn 2 calls 'f\(1\)'; give JSON"),
        ({"conversations": [said("function_call", "[]")]}, "turn 1 calls"),
        ({"conversations": [USER], "system": 3}, '"system" is 3, not a string'),
        ({"instruction": "a", "input": 3, "output": "b"}, '"input" is 3, not a string'),
        ({"instruction": "a", "output": 4}, '"output" is 4, not a string'),
        ({"instruction": "a", "output": "b", "history": ["a"]}, "\"history\" holds 'a'; give pairs"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_row(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {"conversations": [USER, ANSWER]} if "conversations" in row else {"instruction": "a", "output": "b"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 3: .*{reason}"):
        read_rows(path)
    (_, bad) = RowStream(str(path))
    assert json.loads(bad.line) == row


@pytest.mark.parametrize("empty", ["", None])
@pytest.mark.parametrize("columns", [("input", "output"), ("context", "response")])
def test_an_empty_answer_is_named_by_its_column(columns: tuple[str, str], empty: str | None, tmp_path: Path) -> None:
    """Alpaca has the whole example as `text` too."""
    given, answer = columns
    rows = [{"instruction": "Add.", given: "1", answer: said, "text": "Add. 1: 2"} for said in ("2", empty)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf'row 2: "{answer}" is empty; remove the row or add the answer$'):
        read_rows(path, needs="demonstrations")
    assert len(read_rows(path, needs="prompts")) == 2
    del rows[1]["text"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf'row 2: "{answer}" is empty'):
        read_rows(path, needs="demonstrations")


def test_what_became_of_the_columns_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Hi", "input": "", "output": "Hello"}\n{"instruction": "Hi", "output": "Ho"}\n')
    with caplog.at_level(logging.WARNING):
        assert len(load_dataset_rows(path)) == 2
        load_dataset_rows(path)
    assert [record.message for record in caplog.records] == [
        f'{path}: Alpaca\'s "instruction", "input", "output" read as "prompt" and "completion"'
    ]


def test_a_saved_data_set_of_another_format_is_converted(tmp_path: Path) -> None:
    datasets.Dataset.from_list([SAME["ShareGPT"][0]]).save_to_disk(tmp_path / "saved")
    (row,) = load_dataset_rows(tmp_path / "saved", needs="demonstrations")
    assert row["messages"] == [SYSTEM, USER, ANSWER]


# --- tables of text, compressed files ------------------------------------------------------------------------------

TABLE = [{"prompt": 'Say "a", b\nc', "completion": " é"}, {"prompt": "2", "completion": "x" * 200_000}]


def test_tables_of_text_are_read_with_their_header(tmp_path: Path) -> None:
    import csv

    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(TABLE)
        assert read_rows(tmp_path / name, needs="demonstrations") == TABLE
        assert RowStream(str(tmp_path / name)).scan()[0] == 2
    (tmp_path / "empty.csv").write_text("prompt,completion,answer\na,,4\n\nb,,5\n")
    assert read_rows(tmp_path / "empty.csv", needs="prompts")[1]["answer"] == "5"
    with pytest.raises(DataError, match=r"empty\.csv, row 1: a prompt without"):
        read_rows(tmp_path / "empty.csv", needs="demonstrations")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "lines.json", "rows.csv"])
def test_compressed_files_are_what_they_hold(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "é"} for i in range(7)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    text = {"rows.jsonl": lines, "lines.json": lines, "rows.json": json.dumps(rows)}
    table = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.get(name, table).encode()))
    assert read_rows(tmp_path / f"{name}.gz") == rows == read_rows(tmp_path)
    (identity,) = RowStream(str(tmp_path / f"{name}.gz")).scan()[1]
    assert identity["bytes"] == (tmp_path / f"{name}.gz").stat().st_size


# --- folders and splits --------------------------------------------------------------------------------------------


def prompts(*names: str) -> list[dict[str, Any]]:
    return [{"prompt": name} for name in names]


def test_a_data_set_cloned_from_the_hub_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "train.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    for name, rows in (
        ("train-00000-of-00002", prompts("a")),
        ("train-00001-of-00002", prompts("b")),
        ("train_sft-00000-of-00001", prompts("c")),
        ("test-00000-of-00001-0123456789abcdef", prompts("d")),
    ):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{name}.parquet")
    assert read_rows(tmp_path) == prompts("a", "b")
    assert read_rows(tmp_path, split="train_sft") == prompts("c")
    assert read_rows(tmp_path, split="test") == prompts("d")
    assert read_rows(tmp_path, split="train[1:]") == prompts("b")
    with pytest.raises(DataError, match=r"no file of the split 'dev' among data/test-0000"):
        read_rows(tmp_path, split="dev")


def test_splits_may_be_folders_and_configurations_are_told_apart(tmp_path: Path) -> None:
    for home in ("main/train", "main/test", "other/train"):
        (tmp_path / home).mkdir(parents=True)
        (tmp_path / home / "0000.jsonl").write_text(json.dumps({"prompt": home}) + "\n")
    assert read_rows(tmp_path / "main") == prompts("main/train")
    assert read_rows(tmp_path / "main", split="test") == prompts("main/test")
    with pytest.raises(DataError, match=r"rows in several folders, .*main.*other.*; name one of them"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    "split", ["train[:4]", "train[2:5]", "train[-3:]", "train[10%:50%]", "train[:]", "train[3:-2]"]
)
def test_a_slice_of_a_file_is_that_of_datasets(split: str, tmp_path: Path) -> None:
    rows = prompts(*map(str, range(11)))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = datasets.load_dataset("json", data_files=str(path), split=split, cache_dir=tmp_path / "c").to_list()
    assert read_rows(path, split=split) == expected
    stream = RowStream(str(path), split)
    assert stream.scan()[0] == len(expected)
    windows = [[row.row for row in window] for _, window in stream.windows(2)]
    assert [row for window in windows for row in window] == expected
    assert all(len(window) == 2 for window in windows[:-1])
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved")
    assert load_dataset_rows(tmp_path / "saved", split=split).to_list() == expected
    assert load_dataset_rows(tmp_path / "saved", split=split, limit=2).to_list() == expected[:2]


@pytest.mark.parametrize("split", ["train[a:b]", "train+test", "train[:4", "train[4]", ""])
def test_a_split_that_is_none_is_refused(split: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 11)
    with pytest.raises(DataError, match=r"rows\.jsonl: no (split|slice)"):
        read_rows(tmp_path / "rows.jsonl", split=split)


def test_an_empty_slice_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 3)
    with pytest.raises(DataError, match="no rows"):
        read_rows(tmp_path / "rows.jsonl", split="train[2:2]")


def test_a_saved_folder_that_is_damaged_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_list(prompts("a")).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"saved: not a saved data set"):
        read_rows(tmp_path / "saved")
    with pytest.raises(MissingFileError, match=r"no data set at .*rows\.jsonl\.gz"):
        read_rows(tmp_path / "rows.jsonl.gz")


def test_a_prompt_is_what_the_instruction_asks() -> None:
    assert prompt_of(converted({"instruction": "Hi", "output": "Hello"})) == [USER]
