"""`densepath select` end to end: the folders of `densepath sft` and `run`, what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from tests.tiny_sft import TOKENIZER, counting_models, counting_rows

from densepath import load_dataset_rows, select_reference
from densepath.cli.main import main

PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "9 9."} for row in counting_rows(9, seed=4)
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("counting")
    for name, model in zip(("sft", "ref", "base"), counting_models(), strict=True):
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    return {name: folder / name for name in ("sft", "ref", "base")}


@pytest.fixture(params=["sft", "run"])
def run_dir(request, saved, tmp_path) -> Path:
    """As `densepath sft` or `densepath run` leaves it."""
    folder = tmp_path / "out"
    inside = folder / "sft" if request.param == "run" else folder
    (inside / "references").mkdir(parents=True)
    (inside / "model").symlink_to(saved["sft"])
    (inside / "references/0.25").symlink_to(saved["ref"])
    recipe = {"model_name_or_path": str(saved["base"]), "dataset_name": "train.jsonl"}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_select_writes_what_the_function_returns(run_dir, saved, write_jsonl, tmp_path, capsys):
    rows = write_jsonl("held-out.jsonl", counting_rows(8, seed=31))
    words = ["--dataset_name", rows, "--preference_dataset_name", write_jsonl("pairs.jsonl", PAIRS)]
    words += ["--max_completion_length", "6", "--output_file", str(tmp_path / "select.json"), "--seed", "2"]
    assert main(["select", "--run_dir", str(run_dir), *words]) == 0
    record = json.loads((tmp_path / "select.json").read_text())
    out = " ".join(capsys.readouterr().out.split())
    assert list(record["paths"]) == ["0", "0.25"]
    assert record["paths"]["0"] == str(saved["base"])
    assert record["criterion"] == "preference"
    assert {c["reference"] for c in record["candidates"]} == {"0", "0.25", "all"}
    assert f"chosen: {record['chosen']}: {record['reason']}" in out
    value = record["candidates"][1]["criteria"]["samples"]["value"]
    assert f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" in out
    direct = select_reference(
        saved["sft"],
        {"0": saved["base"], "0.25": saved["ref"]},
        list(load_dataset_rows(rows, seed=2)),
        tokenizer=TOKENIZER,
        max_completion_length=6,
        criterion="altered",
        seed=2,
    )
    for criterion in ("altered", "samples"):
        for mine, other in zip(record["candidates"], direct["candidates"], strict=True):
            assert mine["criteria"][criterion]["value"]["mean"] == pytest.approx(
                other["criteria"][criterion]["value"]["mean"], abs=1e-3
            )


def test_without_samples_base_or_ensemble(run_dir, write_jsonl, capsys):
    words = ["--dataset_name", write_jsonl("train.jsonl", counting_rows(6, seed=31)), "--num_generations", "0"]
    words += ["--include_base", "false", "--ensemble", "false"]
    assert main(["select", "--run_dir", str(run_dir), *words]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ ?0\.25 ", out, flags=re.MULTILINE)
    assert not re.search(r"^ ?(0|all) ", out, flags=re.MULTILINE)
    assert "samples" not in out


def test_rows_that_were_trained_on_and_equal_weights_are_warned_of(run_dir, saved, write_jsonl, tmp_path, capsys):
    rows = write_jsonl("train.jsonl", counting_rows(4, seed=31))
    recipe = {"model_name_or_path": str(saved["sft"]), "dataset_name": rows}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["select", "--run_dir", str(run_dir), "--dataset_name", rows, "--num_generations", "0"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "is what SFT was trained on" in out
    assert "reference 0 has the same weights as the SFT model: its reward is zero everywhere" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"run_dir": "nowhere"}, "nowhere: no such folder; give the output_dir of densepath sft or run"),
        ({"run_dir": "."}, "no finished SFT run: neither model nor sft/model is there"),
        ({"run_dir": None}, "run_dir is missing: an SFT run's folder"),
        ({"dataset_name": None}, "dataset_name is missing: held-out demonstrations"),
        ({"criterion": "luck"}, "criterion='luck' does not exist; choose one of: auto, preference"),
        ({"criterion": "verifier"}, "criterion=verifier cannot be computed from what was given; there is altered"),
        ({"num_generations": "-1"}, "num_generations=-1 must be at least 0"),
        ({"verifier": "exact_match"}, 'the row has no "answer"'),
        ({"preference_dataset_name": "rows"}, 'row 1: no "chosen"; a preference row has'),
    ],
)
def test_mistakes_are_one_line(run_dir, write_jsonl, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    rows = write_jsonl("rows.jsonl", counting_rows(4, seed=1))
    given = {"run_dir": str(run_dir), "dataset_name": rows, "num_generations": "0", **words}
    given = {key: rows if value == "rows" else value for key, value in given.items() if value is not None}
    assert main(["select", *(word for key, value in given.items() for word in (f"--{key}", value))]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"densepath: error: [^\n]+\n", err)
    assert message in err


def test_a_run_without_references_says_how_to_keep_some(saved, tmp_path, write_jsonl, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model").symlink_to(saved["sft"])
    rows = write_jsonl("rows.jsonl", counting_rows(4, seed=1))
    assert main(["select", "--run_dir", str(tmp_path / "out"), "--dataset_name", rows]) == 2
    assert "SFT kept no reference; train with reference_fractions, such as 0.25 0.5 0.75" in capsys.readouterr().err
