"""`densepath judge-eval` end to end: a program and a tiny local model as judges, and what a user can get wrong."""

from __future__ import annotations

import json

import pytest

from densepath.cli.main import main

PAIRS = [
    {"prompt": f"{i} + 1?", "chosen": str(i + 1), "rejected": f"{i + 2} or so", "answer": str(i + 1)}
    for i in range(20)
]


@pytest.fixture
def judge_eval(tmp_path, write_jsonl):
    """Run the command on pairs; its record."""

    def run(*words: str) -> dict:
        output = tmp_path / "figures.json"
        argv = ["--dataset_name", write_jsonl("pairs.jsonl", PAIRS), "--output_file", str(output), *words]
        assert main(["judge-eval", *argv]) == 0
        return json.loads(output.read_text()) if output.is_file() else {}

    return run


def test_a_program_as_judge(judge_eval, tmp_path, capsys):
    page = tmp_path / "page.html"
    record = judge_eval("--judge", "verifier:exact_match", "--html_file", str(page))
    out = " ".join(capsys.readouterr().out.split())
    assert record["headline"] == "verifier:exact_match agrees with 1.000 [0.839, 1.000] of 20 labels"
    assert record["headline"] in out
    assert "judge-eval: 40 judgements" in out
    assert record["headline"] in page.read_text(encoding="utf-8")
    assert record["figures"][0]["measures"][0]["value"]["mean"] == 1.0


def test_a_local_model_as_judge(judge_eval, models, capsys):
    record = judge_eval("--judge", f"local:{models['sft']}", "--max_samples", "8")
    assert (record["rows"], record["invalid"]) == (8, 0)
    assert record["headline"] is None
    assert "No headline" in capsys.readouterr().out


def test_a_dry_run_asks_nobody(judge_eval, capsys):
    assert judge_eval("--judge", "verifier:exact_match", "--dry_run") == {}
    assert "40 judgements of 20 pairs: no call of an endpoint" in " ".join(capsys.readouterr().out.split())
    words = ["--judge", "openai:m", "--judge_base_url", "http://127.0.0.1:9/v1", "--judge_prompt_price", "2"]
    assert judge_eval(*words, "--judge_completion_price", "8", "--dry_run") == {}
    out = " ".join(capsys.readouterr().out.split())
    assert "40 judgements of 20 pairs: 40 calls, " in out
    assert "cost about " in out  # four bytes a token, and no retries: it may be more


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"judge": None}, "judge is missing: Who judges"),
        ({"dataset_name": None}, "dataset_name is missing: Preference pairs"),
        ({"judge": "gpt-4"}, "is no judge; write one of"),
        ({"html_file": "page.txt"}, "html_file=page.txt must end in .html"),
        ({"judge": "verifier:guess"}, "verifier 'guess' does not exist"),
        ({"max_sample": "3"}, "unknown key 'max_sample'; did you mean max_samples?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_wrong_words_are_one_line(write_jsonl, capsys, words, message):
    given = {"judge": "verifier:exact_match", "dataset_name": write_jsonl("pairs.jsonl", PAIRS), **words}
    argv = [word for key, value in given.items() if value is not None for word in (f"--{key}", value)]
    assert main(["judge-eval", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
