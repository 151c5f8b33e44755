"""`densepath rank` and `audit` end to end on tiny models: what they write, print and refuse."""

from __future__ import annotations

import json
import re

import pytest

from densepath import DenseReward, audit_demonstrations, rank_completions
from densepath.cli.main import main
from densepath.report.scored import ScoredFile

GROUPS = [
    {"id": i, "prompt": f"Say {i}:", "completions": [f"{i} and on", f"{i}", "no, no and no"], "answer": f"{i}"}
    for i in range(8)
]
ROWS = [{"prompt": f"Say {i % 4}:", "completion": f"{i}"} for i in range(8)]
DEMONSTRATIONS = [{"prompt": f"Say {i}:", "completion": f"{i} and on.", "id": f"row-{i}"} for i in range(12)]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(models, tmp_path, capsys):
    """Run a command on rows; (file written, text printed on one line)."""

    def call(command: str, dataset: str, *words: str):
        output = tmp_path / "out.jsonl"
        argv = [command, "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
        assert main([*argv, "--dataset_name", dataset, "--output_file", str(output), *words]) == 0
        return output, " ".join(capsys.readouterr().out.split())

    return call


@pytest.fixture
def reward(models):
    return DenseReward.from_models(models["sft"], models["ref"])


def test_rank_writes_what_the_function_returns(run, reward, write_jsonl):
    output, out = run("rank", write_jsonl("groups.jsonl", GROUPS), "--aggregation", "mean")
    prompts, completions = ([row[name] for row in GROUPS] for name in ("prompt", "completions"))
    expected = rank_completions(reward, prompts, completions, aggregation="mean")
    for row, ranking, record in zip(GROUPS, expected, lines(output), strict=True):
        assert record["id"] == row["id"]
        assert record["rows"] == [row["id"] + 1]
        assert record["order"] == ranking.order
        assert [result["score"] for result in record["results"]] == pytest.approx(ranking.means, abs=1e-6)
        assert record["best"] == row["completions"][ranking.order[0]]
    assert "8 prompts, 24 completions, ranked by the mean of the reward" in out
    best = [ranking.num_tokens[ranking.order[0]] for ranking in expected]
    assert f"{sum(best) / 8:.1f} tokens against" in out
    assert "rank: 48 completions in" in out


def test_rank_groups_rows_by_prompt_and_asks_the_verifier(run, write_jsonl):
    rows = [{**row, "answer": row["completion"]} for row in ROWS[:4]] + [{**row, "answer": "x"} for row in ROWS[4:]]
    output, out = run("rank", write_jsonl("rows.jsonl", rows), "--verifier", "exact_match")
    assert [record["rows"] for record in lines(output)] == [[1, 5], [2, 6], [3, 7], [4, 8]]
    # The answer of a group is that of its first row, so the completion of that row is right.
    right = sum(record["order"][0] == 0 for record in lines(output)) / 4
    assert f"right: {right:.3f} [" in out
    assert "0.500 of all, 1.000 if one always chose well" in out


def test_single_completions_leave_nothing_to_choose(run, write_jsonl):
    _, out = run("rank", write_jsonl("rows.jsonl", ROWS[:4]), "--max_samples", "3")
    assert "3 prompts, 3 completions" in out
    assert "every prompt has one completion: there is nothing to choose" in out


def test_audit_writes_what_the_function_returns_and_view_can_open_it(run, reward, write_jsonl, tmp_path):
    rows = [*DEMONSTRATIONS, {**DEMONSTRATIONS[2], "id": "again"}]
    page = tmp_path / "audit.html"
    output, out = run("audit", write_jsonl("rows.jsonl", rows), "--num_shown", "5", "--html_file", str(page))
    records = lines(output)
    expected = audit_demonstrations(reward, rows)
    assert [record["row"] for record in records] == [record["row"] for record in expected]
    assert [record["score"] for record in records] == pytest.approx([r["score"] for r in expected], abs=1e-6)
    assert "duplicate of row 3" in out or [r["row"] for r in records].index(13) >= 5
    assert "13 rows, " in out
    assert "flagged: 1 duplicate, 0 near duplicate, 0 over long, 0 cut off" in out
    first = records[0]
    assert f"{first['row']} {first['reward_per_token']:+.3f} {first['lowest']:+.2f}" in out
    assert len(ScoredFile(output)) == 13
    text = page.read_text()
    assert text.count('<article class="dp-row"') == 5
    assert f"row-{first['row'] - 1}" in text
    twin = json.loads(page.with_suffix(".json").read_text())
    assert [row["number"] for row in twin["rows"]] == [record["row"] for record in records[:5]]


def test_audit_counts_over_long_rows(run, write_jsonl):
    _, out = run("audit", write_jsonl("rows.jsonl", DEMONSTRATIONS), "--max_length", "9", "--aggregation", "min")
    assert "12 over long" in out


def test_one_model_alone(models, write_jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, rows, name in (("rank", GROUPS, "ranking.jsonl"), ("audit", DEMONSTRATIONS, "audit.jsonl")):
        path = write_jsonl(f"{command}-rows.jsonl", rows)
        argv = [command, "--model_name_or_path", models["sft"], "--dense_reward", "logprob", "--dataset_name", path]
        assert main(argv) == 0
        assert len(lines(tmp_path / name)) == len(rows)


@pytest.mark.parametrize(
    ("command", "rows", "words", "message"),
    [
        ("rank", [{"prompt": "x"}], [], 'row 1: give either "completions", a list, or "completion"'),
        ("rank", [{"prompt": "x", "completions": []}], [], 'row 1: "completions" is []'),
        ("rank", GROUPS, ["--aggregation", "best"], "aggregation='best' does not exist; choose one of: mean, sum"),
        ("rank", GROUPS, ["--verifier", "nothing"], "verifier 'nothing' does not exist"),
        (
            "rank",
            [{"prompt": "x", "completions": ["y"]}],
            ["--verifier", "final_number"],
            'row 1: the row\'s "answer"',
        ),
        ("rank", [{"prompt": "x", "completions": ["y" * 300]}], [], "row 1, completion 0: "),
        ("audit", [{"prompt": "x"}], [], 'row 1: a prompt without "completion"'),
        ("audit", DEMONSTRATIONS, ["--max_length", "1"], "max_length=1 must be at least 2"),
        ("audit", DEMONSTRATIONS, ["--max_length", "3"], "tokens, and the limit is 3; raise max_length"),
        ("audit", DEMONSTRATIONS, ["--num_shown", "0"], "num_shown=0 must be at least 1"),
        (
            "audit",
            DEMONSTRATIONS,
            ["--html_file", "page.json"],
            "html_file=page.json must end in .html; its JSON twin takes .json",
        ),
    ],
)
def test_mistakes_are_one_line(models, write_jsonl, capsys, tmp_path, monkeypatch, command, rows, words, message):
    monkeypatch.chdir(tmp_path)
    argv = [command, "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    assert main([*argv, "--dataset_name", write_jsonl("rows.jsonl", rows), *words]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"densepath: error: [^\n]+\n", err)
    assert message in err
