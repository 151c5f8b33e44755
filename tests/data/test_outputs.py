"""What a command writes is neither what it reads nor another of its outputs."""

from __future__ import annotations

import os

import pytest

from densepath.data.outputs import check_outputs, models_read, rows_read, with_twin
from densepath.errors import UsageError


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "data/train.jsonl", "data/test.jsonl", "model/config.json", "model/figures.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"prompt": "x"}\n')
    return tmp_path


def test_a_file_is_the_same_however_it_is_written(place):
    os.symlink("rows.jsonl", "link.jsonl")
    for name in ("rows.jsonl", "./data/../rows.jsonl", place / "rows.jsonl", "link.jsonl"):
        with pytest.raises(UsageError, match="is read as dataset_name, and would be overwritten as output_file"):
            check_outputs({"output_file": name}, {"dataset_name": rows_read("constrained:rows.jsonl")})
    with pytest.raises(UsageError, match=r"a\.jsonl would be written as one and as other: give each its own name"):
        check_outputs({"one": "./a.jsonl", "none": None, "other": "a.jsonl"}, {})
    check_outputs({"one": "a.jsonl", "other": "b.jsonl"}, {"dataset_name": rows_read("rows.jsonl")})


def test_of_a_folder_the_files_of_the_split_are_read(place):
    assert [path.name for path in rows_read("data", "train[:10]")] == ["train.jsonl"]
    assert [path.name for path in rows_read("data", "test")] == ["test.jsonl"]
    assert rows_read("text_tasks") == rows_read(None) == rows_read("org/name") == rows_read("model/nothing") == []


def test_figures_may_stand_beside_the_model_that_they_are_of(place):
    assert [path.name for path in models_read("model", "org/name", None)] == ["config.json"]


def test_the_twin_of_a_page_is_an_output_too(place):
    with pytest.raises(UsageError, match=r"rows\.json is read as scores_file, .* as html_file's JSON twin"):
        check_outputs(with_twin("rows.html"), {"scores_file": ["rows.json"]})
    assert set(with_twin(None).values()) == {None}
