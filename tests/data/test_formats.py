from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.data.formats import dataset_fingerprint, load_dataset_rows, read_rows, validate_rows
from densepath.data.rows import DataFormat, detect_format, prompt_of, split_turns
from densepath.errors import ConfigError, DataError, MissingFileError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}

ROWS: dict[DataFormat, list[dict[str, Any]]] = {
    DataFormat.TEXT: [{"text": "Hi. Hello."}],
    DataFormat.MESSAGES: [{"messages": [SYSTEM, USER, ANSWER]}],
    DataFormat.PROMPT_COMPLETION: [
        {"prompt": "Hi.", "completion": " Hello."},
        {"prompt": [USER], "completion": [ANSWER], "id": "x", "category": "greeting"},
    ],
    DataFormat.PROMPT: [{"prompt": "Hi."}, {"prompt": [SYSTEM, USER], "references": {"a": "Hello"}}],
}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expected", "row"), [(kind, row) for kind, rows in ROWS.items() for row in rows])
def test_every_format_is_detected_and_valid_for_its_use(expected: DataFormat, row: dict[str, Any]) -> None:
    assert detect_format(row) is expected
    if expected is DataFormat.PROMPT:
        assert validate_rows([row], "prompts") is DataFormat.PROMPT
    else:
        assert validate_rows([row], "demonstrations") is expected


def test_the_conversation_counts_where_the_first_prompt_stands_beside_it() -> None:
    row = {"prompt": "Hi", "messages": [USER, ANSWER, USER, ANSWER]}
    assert detect_format(row) is DataFormat.MESSAGES
    assert prompt_of(row) == [USER, ANSWER, USER]


def test_columns_that_arrow_filled_with_nulls_do_not_count() -> None:
    assert detect_format({"prompt": "Hi", "completion": None, "messages": None}) is DataFormat.PROMPT


def test_split_turns_makes_one_row_per_assistant_turn() -> None:
    row = {"id": 7, "messages": [USER, ANSWER, {"role": "user", "content": "Bye"}, ANSWER]}
    first, second = split_turns(row)
    assert first == {"id": 7, "prompt": [USER], "completion": [ANSWER]}
    assert second == {"id": 7, "prompt": row["messages"][:3], "completion": [ANSWER]}


def test_split_turns_leaves_the_prompts_own_assistant_turns_in_the_prompt() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert split_turns(row) == [row]
    assert split_turns({"prompt": "a", "completion": "b"}) == [{"prompt": "a", "completion": "b"}]


# --- validation ----------------------------------------------------------------------------------------------------

BAD_DEMONSTRATIONS = {
    "no completion": ({"prompt": "Hi"}, "completion"),
    "null completion": ({"prompt": "Hi", "completion": None}, "completion"),
    "empty completion": ({"prompt": "Hi", "completion": " \n"}, "empty"),
    "empty prompt": ({"prompt": "", "completion": "x"}, "empty"),
    "empty list": ({"prompt": [USER], "completion": []}, "empty"),
    "empty turn": ({"prompt": [USER], "completion": [{"role": "assistant", "content": ""}]}, "empty"),
    "unknown role": ({"messages": [{"role": "human", "content": "Hi"}, ANSWER]}, "'human'"),
    "no role": ({"messages": [{"content": "Hi"}, ANSWER]}, "role"),
    "no content": ({"messages": [{"role": "user"}, ANSWER]}, "content"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}, ANSWER]},
        "turn 1 has a content part of the type 'image'",
    ),
    "a part of no type": ({"messages": [{"role": "user", "content": [{"text": "Hi"}]}, ANSWER]}, "of the type None"),
    "a part without text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, "holds None"),
    "a bare part": ({"messages": [{"role": "user", "content": ["Hi"]}, ANSWER]}, "a content part is 'Hi'"),
    "a call by the user": ({"messages": [{"role": "user", "tool_calls": [{}]}, ANSWER]}, "content None"),
    "a call that is text": ({"messages": [USER, {"role": "assistant", "tool_calls": "f()"}]}, "list of objects"),
    "no call": ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": []}]}, "empty"),
    "tools that are no JSON": ({"messages": [USER, ANSWER], "tools": "[{"}, '"tools" is'),
    "tools that are names": ({"messages": [USER, ANSWER], "tools": ["add"]}, "JSON schemas"),
    "kwargs that are text": ({"messages": [USER, ANSWER], "chat_template_kwargs": "x"}, '"chat_template_kwargs" is'),
    "kwargs that are not the template's": (
        {"messages": [USER, ANSWER], "chat_template_kwargs": {"continue_final_message": True}},
        "sets continue_final_message",
    ),
    "number as completion": ({"prompt": "Hi", "completion": 5}, "5"),
    "number as text": ({"text": 5}, "5"),
    "turn is a string": ({"messages": ["Hi", "Hello"]}, "turn 1"),
    "no assistant": ({"messages": [USER]}, "no assistant turn"),
    "assistant first": ({"messages": [ANSWER, USER]}, "begins with an assistant turn"),
    "user in completion": ({"prompt": [USER], "completion": [USER, ANSWER]}, "begins with a user turn"),
    "kinds differ": ({"prompt": "Hi", "completion": [ANSWER]}, "differ in kind"),
    "kinds differ the other way": ({"prompt": [USER], "completion": "Hello"}, "differ in kind"),
    "another schema": ({"instruction": "Hi", "output": "Hello"}, '"instruction"'),
    "not an object": (["Hi", "Hello"], "list"),
    "empty text": ({"text": "  "}, "empty"),
}


@pytest.mark.parametrize(("row", "said"), BAD_DEMONSTRATIONS.values(), ids=BAD_DEMONSTRATIONS.keys())
def test_a_bad_row_is_named_in_one_line(row: Any, said: str) -> None:
    good = {"prompt": "Hi", "completion": "Hello"} if not isinstance(row, dict) or "messages" not in row else None
    rows = [good, row] if good else [{"messages": [USER, ANSWER]}, row]
    with pytest.raises(DataError) as caught:
        validate_rows(rows, "demonstrations", source="lessons.jsonl")
    message = str(caught.value)
    assert message.startswith("lessons.jsonl, row 2: ")
    assert said in message
    assert ";" in message  # what is wrong; what to do
    assert "\n" not in message


@pytest.mark.parametrize(
    "row",
    [{"text": "Hi"}, {"prompt": " "}, {"messages": [ANSWER]}, {"answer": "4"}, {"prompt": [USER, ANSWER]}],
    ids=lambda row: next(iter(row)),
)
def test_rows_that_cannot_prompt_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="row 1"):
        validate_rows([row], "prompts")


def test_prompts_need_no_completion_and_may_have_one() -> None:
    rows = [{"prompt": [USER]}, {"prompt": [USER], "completion": [ANSWER]}]
    assert validate_rows(rows, "prompts") is DataFormat.PROMPT


@pytest.mark.parametrize("completion", ["Hello", [USER]], ids=["another kind", "no assistant turn"])
def test_a_completion_is_checked_only_where_its_likelihood_is_measured(completion: Any) -> None:
    rows = [{"prompt": [USER], "completion": completion}]
    assert validate_rows(rows, "prompts") is DataFormat.PROMPT
    with pytest.raises(DataError, match=r'row 1: .*"completion"'):
        validate_rows(rows, "held-out prompts")
    assert validate_rows([{"prompt": [USER]}], "held-out prompts") is DataFormat.PROMPT


def test_mixed_formats_are_refused() -> None:
    rows = [{"prompt": "Hi", "completion": "Hello"}, {"text": "Hi"}]
    with pytest.raises(DataError, match="row 2: format is standard text, where row 1"):
        validate_rows(rows, "demonstrations")


def test_no_rows_and_unknown_needs_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        validate_rows([], "prompts", source="empty.jsonl")
    with pytest.raises(ConfigError, match="pairs"):
        validate_rows([{"prompt": "Hi"}], "pairs")  # type: ignore[arg-type]


# --- loading -------------------------------------------------------------------------------------------------------


def test_jsonl_lines_end_at_newline_only_and_every_column_is_kept(tmp_path: Path) -> None:
    # U+2028, U+0085 and form feed end a line for str.splitlines(), not here.
    rows = [
        {"prompt": "a\u2028b\u0085c\x0cd", "completion": "e", "id": "1"},
        {"prompt": "f", "completion": "g", "id": "2", "references": {"model": "h"}},
    ]
    loaded = load_dataset_rows(write_lines(tmp_path / "rows.jsonl", rows), needs="demonstrations")
    assert len(loaded) == 2
    assert loaded[0]["prompt"] == "a\u2028b\u0085c\x0cd"
    assert loaded["references"] == [None, {"model": "h"}]
    assert loaded["id"] == ["1", "2"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_any_text_survives_a_jsonl_file(texts: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        loaded = load_dataset_rows(write_lines(Path(folder) / "rows.jsonl", [{"prompt": text} for text in texts]))
        assert loaded["prompt"] == texts


def test_every_kind_of_source_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": [USER], "completion": [ANSWER], "id": str(i)} for i in range(5)]
    table = datasets.Dataset.from_list(rows)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "bom.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, rows)) + "\r\n\r\n")
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "saved_splits")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_lines(folder / "part-0.jsonl", rows[:2])
    write_lines(folder / "part-1.jsonl", rows[2:])
    (folder / "README.md").write_text("not data")
    sources: list[Any] = [rows, table, str(tmp_path / "rows.parquet")]
    sources += [
        tmp_path / name for name in ("list.json", "lines.json", "bom.jsonl", "saved", "saved_splits", "folder")
    ]
    for source in sources:
        loaded = load_dataset_rows(source, needs="demonstrations")
        assert dataset_fingerprint(loaded) == dataset_fingerprint(rows), source


def test_a_folder_whose_files_carry_splits_gives_the_one_asked_for(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"prompt": "a"}])
    write_lines(tmp_path / "my_test.jsonl", [{"prompt": "b"}])
    assert load_dataset_rows(tmp_path)["prompt"] == ["a"]
    assert load_dataset_rows(tmp_path, split="test")["prompt"] == ["b"]
    with pytest.raises(DataError, match=r"no file of the split 'validation' among my_test.jsonl, train.jsonl"):
        load_dataset_rows(tmp_path, split="validation")


def test_a_split_may_be_the_whole_name_of_a_file(tmp_path: Path) -> None:
    """As UltraChat's four, written as JSONL."""
    for name in ("train_sft", "train_gen", "test_sft", "Test_gen"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name.lower()}) + "\n")
    for split in ("train_sft", "train_gen", "test_sft", "Test_gen"):
        assert read_rows(tmp_path, split=split) == [{"prompt": split.lower()}]
    assert [row["prompt"] for row in read_rows(tmp_path, split="train")] == ["train_gen", "train_sft"]
    with pytest.raises(DataError, match="no file of the split 'train_dpo' among"):
        read_rows(tmp_path, split="train_dpo")
    for name in ("sft", "gen"):  # a folder in which no other name tells a split
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / f"plain/{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    assert read_rows(tmp_path / "plain", split="sft") == [{"prompt": "sft"}]
    assert len(read_rows(tmp_path / "plain")) == 2


@pytest.mark.parametrize("other", ["rows.jsonl.gz", "rows.parquet", "Rows.csv"])
def test_a_file_is_not_read_beside_its_twin(tmp_path: Path, other: str) -> None:
    for name in ("rows.jsonl", other):
        (tmp_path / name).write_bytes(b'{"prompt": "a"}\n')
    with pytest.raises(
        DataError, match=r"ows\.\S+ and rows\.\S+ would both be read, and have one name; remove or name"
    ):
        read_rows(tmp_path)
    assert read_rows(tmp_path / "rows.jsonl") == [{"prompt": "a"}]
    (tmp_path / "test").mkdir()
    (tmp_path / other).rename(tmp_path / "test" / other)
    assert read_rows(tmp_path) == [{"prompt": "a"}]


def test_a_saved_folder_without_the_split_names_those_it_has(tmp_path: Path) -> None:
    datasets.DatasetDict({"a": datasets.Dataset.from_list([{"prompt": "x"}])}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="no split 'train'; the splits are a"):
        load_dataset_rows(tmp_path / "d")


def test_limit_takes_the_first_rows_and_seed_shuffles_before() -> None:
    rows = [{"prompt": str(i)} for i in range(50)]
    assert load_dataset_rows(rows, limit=3)["prompt"] == ["0", "1", "2"]
    assert len(load_dataset_rows(rows, limit=99)) == 50
    shuffled = load_dataset_rows(rows, limit=3, seed=1)["prompt"]
    assert shuffled == load_dataset_rows(rows, limit=3, seed=1)["prompt"] != ["0", "1", "2"]
    with pytest.raises(ConfigError, match="limit is 0"):
        load_dataset_rows(rows, limit=0)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "a/b/c"])
def test_a_missing_path_is_said_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(MissingFileError, match=f"no data set at {name}.*check the path"):
        load_dataset_rows(name)


def test_a_hub_id_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list([{"prompt": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_dataset_rows("someone/rows", split="test")) == 1
    assert asked == [("someone/rows", "test")]


def test_what_the_hub_lacks_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, split: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(MissingFileError, match=r"no data set 'someone/rows'.*ConnectionError: no route to host"):
        load_dataset_rows("someone/rows")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', "row 2: not valid JSON"),
        (b'{"prompt": "a"}\n\n[1, 2]\n', r"row 3: \[1, 2\] is not an object"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "row 2: not valid JSON"),
        (b'{"prompt": "a"}\n{"prompt": 5}\n', "row 2: .*5, not a string"),
        (
            b'{"prompt": "a"}\n{"prompt": "b \\ud83d"}\n',
            "row 2: \"prompt\": half of a surrogate pair stands behind 'b '",
        ),
        (b'{"prompt": [{"role": "user", "content": "\\ud83d"}]}\n', "row 1: .*half of a surrogate pair"),
        (b"\n \n", "no rows"),
        (b"", "no rows"),
    ],
)
def test_a_bad_jsonl_file_is_named_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=f"rows.jsonl.*{said}") as caught:
        load_dataset_rows(tmp_path / "rows.jsonl")
    assert "\n" not in str(caught.value)


def test_line_numbers_count_blank_lines_and_survive_shuffling(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "c"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, row 3: a prompt without"):
        load_dataset_rows(path, needs="demonstrations", seed=3, limit=1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", "[1, 2]", "row 1: 1 is not an object"),
        ("rows.json", '{"prompt": ', "rows.json: not a list of objects"),
        ("rows.json", "[{}, \ud83d".encode("utf-8", "surrogatepass"), "rows.json: not UTF-8"),
        ("rows.parquet", "PAR0", "not a Parquet file"),
        ("rows.csv", "prompt,id\na,1\nb\n", r"rows.csv, row 2: 1 cells, where the header names 2"),
        ("rows.csv", 'prompt\n"a" b\n', "rows.csv, row 1: .*quote the cell"),
        ("rows.csv", "prompt,prompt\na,b\n", "two columns of one name"),
        ("rows.csv", b"prompt\n\xff\n", "not UTF-8"),
        ("rows.jsonl.gz", "{}", "not a whole gzip file"),
        ("rows.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n', mtime=0)[:-6], "not a whole gzip file"),
        ("rows.parquet.gz", "x", "cannot read .parquet.gz"),
        ("rows.xlsx", "x", "cannot read .xlsx"),
    ],
)
def test_other_unreadable_files_are_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=said):
        load_dataset_rows(tmp_path / name)


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no \.jsonl, \.json, \.csv, \.tsv, \.parquet file"):
        load_dataset_rows(tmp_path)
    streamed = datasets.Dataset.from_list([{"prompt": "a"}]).to_iterable_dataset()
    with pytest.raises(DataError, match=r"streamed cannot be read again; load it whole, or give list\(rows\)"):
        load_dataset_rows(streamed)
    with pytest.raises(DataError, match="cannot be made of dict"):
        load_dataset_rows({"prompt": ["a"]})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no rows"):
        load_dataset_rows([])
    with pytest.raises(DataError, match="no rows"):
        load_dataset_rows(datasets.Dataset.from_dict({"prompt": []}))
    write_lines(tmp_path / "a.jsonl", [{"prompt": "a"}])
    write_lines(tmp_path / "b.jsonl", [{"prompt": [USER]}])
    with pytest.raises(DataError, match=r"b.jsonl, row 1: format is conversational prompt, where .*a.jsonl, row 1 is"):
        load_dataset_rows(tmp_path, needs="prompts")


# --- fingerprint ---------------------------------------------------------------------------------------------------


def test_fingerprint_is_the_hash_of_canonical_lines() -> None:
    import hashlib

    rows = [{"prompt": "é", "id": None, "answer": 3}, {"b": [1, {"d": None, "c": 2}], "a": True}]
    lines = b'{"answer":3,"prompt":"\\u00e9"}\n' + b'{"a":true,"b":[1,{"c":2}]}\n'
    assert dataset_fingerprint(rows) == hashlib.sha256(lines).hexdigest()
    assert dataset_fingerprint(rows) != dataset_fingerprint(rows[::-1])


# --- imports -------------------------------------------------------------------------------------------------------


def test_importing_data_loads_no_heavy_library() -> None:
    code = (
        "import densepath.evals.verifiers, sys; "
        "from densepath.data import encode, formats, rows, spans, splits, tasks; "
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
