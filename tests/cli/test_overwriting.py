"""No command overwrites what it reads, or one of its outputs by another: refused before any model is looked for."""

from __future__ import annotations

import json

import pytest

from densepath.cli.main import main

ROW = {"prompt": "Say 1:", "completion": "1", "answer": "1", "chosen": "1", "rejected": "2", "id": "a"}
MODEL = "--model_name_or_path ./nowhere"
PAIR = f"{MODEL} --ref_model_name_or_path ./before"
DROP = "--drop duplicate"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"audit {PAIR} --dataset_name rows.jsonl {DROP} --clean_file rows.jsonl", "as dataset_name"),
        (f"audit {PAIR} --dataset_name rows.jsonl {DROP} --clean_file c --dropped_file ./c", "its own name"),
        (f"audit {PAIR} --dataset_name rows.jsonl --output_file sub/../rows.jsonl", "as dataset_name"),
        (f"audit {PAIR} --dataset_name rows.json --html_file rows.html", "as html_file's JSON twin"),
        (f"rank {PAIR} --dataset_name rows.jsonl --output_file rows.jsonl", "as dataset_name"),
        (f"rank {PAIR} --dataset_name rows.jsonl --best_file rows.jsonl", "as dataset_name"),
        (f"rank {PAIR} --dataset_name rows.jsonl --best_file p --pairs_file p", "its own name"),
        (f"reward-eval {PAIR} --dataset_name rows.jsonl --output_file rows.jsonl", "as dataset_name"),
        (f"score {PAIR} --dataset_name s.rejected.jsonl --output_file s.jsonl", "as output_file's rejected rows"),
        (f"generate {MODEL} --dataset_name rows.jsonl --output_file rows.jsonl", "as the prompts"),
        (f"eval {MODEL} --dataset_name rows.jsonl --output_file rows.jsonl", "as the prompts"),
        ("judge-eval --judge local:./j --dataset_name rows.jsonl --output_file rows.jsonl", "as dataset_name"),
        ("judge-eval --judge local:./j --dataset_name rows.json --output_file p.html --html_file p.html", "own name"),
        ("judge --judge local:./j --models a b --benchmark results.json --output_dir .", "as benchmark"),
        ("view rows.json --html_file rows.html", "as html_file's JSON twin"),
        ("report . --html_file results.html", "as html_file's JSON twin"),
        ("plan --model_name_or_path model --output_file model/config.json", "as model_name_or_path"),
        ("theory --output_file p.html --html_file p.html", "its own name"),
        (f"run {MODEL} --dataset_name data/train.jsonl --output_dir .", "as data/train.jsonl of output_dir"),
        (f"run {MODEL} --dataset_name data --output_dir .", "as data/train.jsonl of output_dir"),
        (f"purify {PAIR} --dataset_name kept.jsonl --output_dir .", "as kept.jsonl of output_dir"),
    ],
)
def test_nothing_is_lost(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    for name in ("sub", "data", "model"):
        (tmp_path / name).mkdir()
    line = json.dumps(ROW) + "\n"
    for name in (
        "rows.jsonl",
        "rows.json",
        "results.json",
        "kept.jsonl",
        "s.rejected.jsonl",
        "data/train.jsonl",
        "model/config.json",
    ):
        (tmp_path / name).write_text(line)
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "would be overwritten" in err or "would be written as" in err
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_diagnosis_leaves_the_rows_of_its_run(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    rows = tmp_path / "data/validation.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")
    (tmp_path / "config.yaml").write_text("model_name_or_path: org/before\n")
    assert main(["diagnose", "--run_dir", str(tmp_path), "--output_file", str(rows)]) == 2
    assert "is read as run_dir, and would be overwritten as output_file" in capsys.readouterr().err
    assert json.loads(rows.read_text()) == ROW
