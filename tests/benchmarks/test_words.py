"""Wrong words of a benchmark are said in one line, exit 2, before a model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from benchmarks.gpu import kit
from benchmarks.words import run_command
from tests.pipeline.runs import save_tiny_model

from benchmarks import (
    common,
    estimator_variance,
    growth,
    length_controlled,
    plan_memory,
    planted_faults,
    reward_noise,
    sampling,
    scoring,
    serving,
    sft,
    step,
)

NOWHERE = ["--dataset_name", "nowhere.jsonl"]
WRONG = [
    (step, ["--settings", "2x4"], "2x4 is not prompts x completions"),
    (step, ["--settings", "2x1x64"], "at least 2 completions"),
    (step, ["--settings", "axbxc"], "axbxc is not prompts x completions"),
    (step, ["--pairs", "0"], "0 is no whole number of at least 1"),
    (step, ["--json", "no/where/step.json"], "in a folder that is not there"),
    (step, ["--plot", "."], ". is a folder"),
    (scoring, NOWHERE, "nowhere.jsonl"),
    (scoring, ["--exact", "0"], "0 is no whole number"),
    (scoring, ["--only", "mine"], "invalid choice: 'mine'"),
    (sampling, ["--prompts", "0"], "0 is no whole number"),
    (sampling, ["--length", "none"], "none is no whole number"),
    (sampling, NOWHERE, "nowhere.jsonl"),
    (sft, ["--batch", "-1"], "-1 is no whole number"),
    (sft, NOWHERE, "nowhere.jsonl"),
    (growth, ["--rounds", "0"], "0 is no whole number"),
    (growth, ["--prompts", "8"], "unrecognized arguments: --prompts 8"),
    (serving, ["--requests", "0"], "0 is no whole number"),
    (serving, ["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (plan_memory, ["--case", "mine"], "invalid choice: 'mine'"),
    (plan_memory, ["--mmap_threshold", "much"], "much is no whole number"),
    (reward_noise, ["--steps", "0"], "0 is no whole number"),
    (reward_noise, ["--max_length", "1"], "--max_length 1 leaves no text"),
    (reward_noise, NOWHERE, "nowhere.jsonl"),
    (planted_faults, ["--output_dir", "out", "--rows", "0", *NOWHERE], "0 is no whole number"),
    (planted_faults, ["--output_dir", "out", *NOWHERE], "nowhere.jsonl"),
    (estimator_variance, ["--sft", "a", "--ref", "b", "--batches", "0", *NOWHERE], "0 is no whole number"),
    (estimator_variance, ["--sft", "a", "--ref", "b", *NOWHERE], "nowhere.jsonl"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def told(model, tmp_path, monkeypatch, capsys):
    """What a benchmark says of words in one line, and how it ends; no model is loaded, and no process started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(common.OPTIONS, "model", {"default": model})
    monkeypatch.setattr(planted_faults, "MODEL", model)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    for module in (common, sampling, scoring, reward_noise, estimator_variance):
        monkeypatch.setattr(module, "load_model", lambda *given, **named: pytest.fail("a model was loaded"))
    monkeypatch.setattr(serving.DenseReward, "from_models", lambda *given, **named: pytest.fail("models were loaded"))
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: pytest.fail("a process was started"))

    def tell(benchmark, words):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_command(benchmark.main)
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return ended.value.code, said

    return tell


@pytest.mark.parametrize(
    ("benchmark", "words", "said"), WRONG, ids=[f"{b.__name__[11:]} {' '.join(w)}" for b, w, _ in WRONG]
)
def test_a_mistake_is_one_line(told, benchmark, words, said):
    code, line = told(benchmark, words)
    assert code == 2
    assert said in line


def test_rows_that_do_not_fit_are_said_before_a_model_is_loaded(told, tmp_path):
    (tmp_path / "few.jsonl").write_text(
        "".join(json.dumps({"prompt": "a", "completion": "b c"}) + "\n" for _ in "123")
    )
    (tmp_path / "turns.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
    for benchmark, words, said in (
        (reward_noise, ["--dataset_name", "few.jsonl"], "few.jsonl has 3 rows, and --prompts scores 24"),
        (planted_faults, ["--output_dir", "out", "--dataset_name", "few.jsonl"], "few.jsonl gives 3 rows of at most"),
        (serving, ["--data", "turns.jsonl"], "turns.jsonl, row 1 has no prompt and completion"),
    ):
        code, line = told(benchmark, words)
        assert code == 2
        assert said in line
    assert serving.items_of(str(tmp_path / "few.jsonl"), 2) == [{"prompt": "a", "completion": "b c"}] * 2


def test_cases_that_are_not_there_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "compare", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        length_controlled.main()
    assert "models.json is not there: the steps are cases, theirs, compare" in capsys.readouterr().err


def test_an_arm_or_pip_that_failed_has_said_why_itself(monkeypatch, tmp_path):
    failed = SimpleNamespace(returncode=3, stdout=b"")
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: failed)
    with pytest.raises(SystemExit) as ended:
        common.peaks("benchmarks.sampling", ["one"])
    assert ended.value.code == 3
    monkeypatch.setattr(sys, "argv", ["kit", str(tmp_path)])
    assert kit.main() == 3
