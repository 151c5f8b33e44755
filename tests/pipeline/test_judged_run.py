"""A run with a judge in place of a verifier: every arm against the SFT model's own answers to the same prompts."""

from __future__ import annotations

import json
import statistics

import pytest
from tests.pipeline.runs import run_argv

from densepath.config.run import RunArguments
from densepath.errors import ConfigError
from densepath.io import read_json, read_jsonl, read_sealed_json, write_sealed_json
from densepath.pipeline.results import WIN_RATE

LONGER = "verifier:tests.pipeline.test_judged_run:longer_is_better"


def longer_is_better(completion: str, row) -> float:
    """A program that a judge is made of: it prefers the longer answer."""
    return float(len(completion))


@pytest.fixture(scope="module")
def judged(tmp_path_factory, tiny_model, forks):
    """A run with a choice to make, judged by a program."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    argv = run_argv(tiny_model, folder, judge=LONGER, reference="auto")
    at = argv.index("--verifier")
    argv = [*argv[:at], *argv[at + 2 :]]
    assert forks.run(argv) == 0, forks.stderr
    return folder, argv


def test_the_table_shows_win_rates_against_sft_beside_the_likelihood(judged):
    run, _ = judged
    results = read_json(run / "results.json")
    assert results["metric"] == WIN_RATE
    (setting,) = results["settings"]
    rows = {(row["method"], row["decoding"]): row for row in setting["rows"]}
    assert rows["sft", "greedy"]["value"]["mean"] == 0.5
    fixed = [row["text"] for row in read_jsonl(run / "sft/eval/test-0.jsonl")]
    seen = set()
    for (method, decoding), row in rows.items():
        path = run / method / f"eval/test-{0 if decoding == 'greedy' else 1}.jsonl"
        answers = [line["text"] for line in read_jsonl(path)]
        wins = [(len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a, b in zip(answers, fixed, strict=True)]
        assert row["value"]["mean"] == pytest.approx(statistics.fmean(wins))
        assert row["nll"] is not None
        seen |= set(wins)
    assert seen == {0.0, 0.5, 1.0}, "a test that sees wins, ties and losses"
    assert "win rate against SFT" in (run / "report.html").read_text()
    place = setting["position"]  # of a judge that never goes by it, at the prompts with two answers that differ
    assert (place["follows_place"]["mean"], place["first_place"]["mean"]) == (0.0, 0.5)
    assert place["follows_place"]["n"] <= len(fixed)


def test_the_answers_that_others_are_compared_with_are_the_sft_arms_greedy_ones(judged):
    run, _ = judged
    kept = read_json(run / "sft_answers.json")
    for split in ("validation", "test"):
        rows, answers = read_jsonl(run / f"data/{split}.jsonl"), read_jsonl(run / f"sft/eval/{split}-0.jsonl")
        assert [kept[json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False)] for row in rows] == [
            each["text"] for each in answers
        ]


def test_the_judge_chooses_the_reference_too(judged):
    run, _ = judged
    findings = read_json(run / "selection.json")["findings"]
    assert findings["verifier"] == LONGER
    assert findings["criterion"] == "answers"
    greedy = next(each for each in findings["sft"] if each["temperature"] == 0)
    assert greedy["verdicts"] == [0.5] * findings["prompts"]


def test_another_judge_is_another_run_and_a_higher_limit_is_not(judged, forks):
    run, argv = judged
    before = {path: path.stat().st_mtime_ns for path in run.rglob("eval/*.json")}
    assert forks.run([*argv, "--max_invalid", "0.4"]) == 0, forks.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("eval/*.json")} == before
    assert forks.run([*argv, "--judge", "verifier:exact_match"]) == 2
    assert "another configuration (judge: " in forks.stderr
    kept = (run / "inputs.json").read_text()
    record = read_sealed_json(run / "inputs.json")
    record["inputs"]["judge source"] = "0" * 16  # as if another program had judged under this name
    write_sealed_json(run / "inputs.json", record)
    assert forks.run(argv) == 2
    assert "began with something else (judge source: 0000000000000000 -> " in forks.stderr
    (run / "inputs.json").write_text(kept)


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("openai:gpt-4.1", "NO_SUCH_KEY is not set"),
        ("gpt-4.1", "is no judge"),
        ("verifier:none", "none"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is_trained(tiny_model, forks, tmp_path, judge, says):
    argv = run_argv(tiny_model, tmp_path / "run", judge=judge, judge_api_key_env="NO_SUCH_KEY")
    at = argv.index("--verifier")
    assert forks.run([*argv[:at], *argv[at + 2 :]]) == 2
    assert says in forks.stderr
    assert "Traceback" not in forks.stderr
    assert not (tmp_path / "run/data").exists()


def test_a_judge_and_a_verifier_are_one_too_many():
    with pytest.raises(ConfigError, match="give one of them"):
        RunArguments(judge="verifier:exact_match", verifier="exact_match")
