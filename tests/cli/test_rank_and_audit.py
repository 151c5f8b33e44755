"""`densepath rank` and `audit` end to end on tiny models: what they write, print and refuse."""

from __future__ import annotations

import json
import re

import pytest

from densepath import DenseReward, audit_demonstrations, rank_completions
from densepath.cli.main import main
from densepath.evals.ranking import Ranking
from densepath.pipeline.audit import dropped_rows
from densepath.pipeline.ranking import _lengths
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
    rest = [
        sum(each for index, each in enumerate(ranking.num_tokens) if index != ranking.order[0]) / 2
        for ranking in expected
    ]
    means = sum(best) / 8, sum(rest) / 8
    assert f"{means[0]:.1f} tokens against {means[1]:.1f} on average, difference {means[0] - means[1]:+.1f} [" in out
    assert "rank: 48 completions in" in out


def test_rank_groups_rows_by_prompt_and_asks_the_verifier(run, write_jsonl):
    rows = [{**row, "answer": row["completion"]} for row in ROWS[:4]] + [{**row, "answer": "x"} for row in ROWS[4:]]
    output, out = run("rank", write_jsonl("rows.jsonl", rows), "--verifier", "exact_match")
    assert [record["rows"] for record in lines(output)] == [[1, 5], [2, 6], [3, 7], [4, 8]]
    # The answer of a group is that of its first row, so the completion of that row is right.
    right = sum(record["order"][0] == 0 for record in lines(output)) / 4
    assert f"right: {right:.3f} [" in out
    assert "0.500 of all, 1.000 if one always chose well" in out


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        # Of six prompts whose best is longer in all a sign-flip test says p = 2^-5; of three it says p = .25.
        (
            [[9, 3], [8, 3], [9, 4], [8, 3], [9, 3], [9, 4]],
            ["are longer than the rest", "difference +5.3 [+5.0, +5.8]"],
        ),
        (
            [[7, 3], [4, 3], [9, 4]],
            ["are not shown to be longer or shorter than the rest", ", p = 0.25 for 3 prompts"],
        ),
        ([[7, 7], [3, 3], [9, 9]], ["are not shown to be longer or shorter than the rest", "+0.0 [+0.0, +0.0]"]),
    ],
)
def test_rank_says_of_lengths_what_is_shown(lengths, words):
    (line,) = _lengths([Ranking([0, 1], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], each) for each in lengths])
    assert all(each in line for each in words), line
    assert ("p = " in line) == ("p = " in words[1])


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
        (
            "rank",
            [
                {
                    "prompt": [{"role": "user", "content": "x"}],
                    "completion": [{"role": role, "content": "y"} for role in ("assistant", "user", "assistant")],
                }
            ],
            [],
            "row 1: completion 0 has 3 turns, and answers to one prompt are ranked: give the last turn alone",
        ),
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
        (
            "audit",
            DEMONSTRATIONS,
            ["--max_length", "3"],
            "fills the limit of 3 tokens, as in every row; raise max_length",
        ),
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


# --- files that the next command reads ---------------------------------------------------------------------------


def test_audit_parts_the_rows_and_leaves_them_as_they_were(run, write_jsonl, tmp_path):
    rows = [{**row, "meta": {"from": ["a", 1.5, None]}} for row in DEMONSTRATIONS]
    rows += [{**rows[2], "id": "again"}, {**rows[4], "completion": rows[4]["completion"].upper(), "id": "loud"}]
    clean, dropped = tmp_path / "clean.jsonl", tmp_path / "dropped.jsonl"
    words = ["--drop", "duplicate,near_duplicate", "--drop_lowest", "0.2", "--clean_file", str(clean)]
    output, out = run("audit", write_jsonl("rows.jsonl", rows), *words, "--dropped_file", str(dropped))
    worst = [record["row"] for record in lines(output)[:2]]  # a fifth of 14 rows, rounded down
    gone = {*worst, 13, 14}
    assert lines(clean) == [row for number, row in enumerate(rows, 1) if number not in gone]
    found = lines(dropped)
    bare = [{key: value for key, value in row.items() if not key.startswith("audit_")} for row in found]
    assert bare == [rows[number - 1] for number in sorted(gone)]
    reasons = {row["id"]: row["audit_reason"] for row in found}
    assert reasons["again"].startswith("duplicate of row 3")
    assert reasons["loud"].startswith("near duplicate of row 5")
    scores = {record["row"]: record["score"] for record in lines(output)}
    for number, row in zip(sorted(gone), found, strict=True):
        assert ("among the lowest 20 %" in row["audit_reason"]) == (number in worst)
        assert row["audit_score"] == scores[number]
    assert f"{14 - len(gone)} rows kept: {clean}" in out
    assert f"{len(gone)} rows dropped: {dropped}" in out


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ({1: ["cut_off"], 2: [("near_duplicate", 1)], 3: []}, {2, 3}),
        ({1: ["cut_off"], 2: [("near_duplicate", 1), "cut_off"], 3: [("near_duplicate", 1)]}, {3}),
        ({1: ["cut_off"], 2: [("near_duplicate", 1)], 3: [("near_duplicate", 1)], 4: [("duplicate", 3)]}, {2}),
        ({1: [], 2: [("near_duplicate", 1)], 3: [("duplicate", 2)]}, {1}),
    ],
    ids=["twin-of-what-goes", "the-second-twin", "one-twin-alone", "twin-of-a-twin"],
)
def test_of_rows_that_repeat_one_another_the_first_good_one_stays(flags, kept):
    """Worst first, as an audit gives them: the last row is the worst here."""
    told = {
        row: [{"flag": each} if isinstance(each, str) else {"flag": each[0], "of": each[1]} for each in found]
        for row, found in flags.items()
    }
    records = [{"row": row, "score": -row, "flags": told[row]} for row in sorted(told, reverse=True)]
    dropped = dropped_rows(records, ["duplicate", "near_duplicate", "cut_off"], 0.0)
    assert {row - 1 for row in told} - set(dropped) == {row - 1 for row in kept}
    for row in dropped.values():  # what a row is said to repeat is there
        assert all(int(number) in kept for number in re.findall(r"duplicate of row (\d+)", row["audit_reason"]))


@pytest.mark.parametrize(
    ("drop", "kept"),
    [("near_duplicate", ["Yes."]), ("duplicate", ["Yes.", "yes"]), ("duplicate,near_duplicate", ["Yes."])],
)
def test_a_near_duplicate_that_repeats_a_dropped_row_is_dropped_too(run, write_jsonl, tmp_path, drop, kept):
    rows = [{"prompt": "Say it:", "completion": text} for text in ("Yes.", "yes", "yes")]
    clean, dropped = tmp_path / "clean.jsonl", tmp_path / "dropped.jsonl"
    words = ["--drop", drop, "--clean_file", str(clean), "--dropped_file", str(dropped)]
    run("audit", write_jsonl("rows.jsonl", rows), *words)
    assert [row["completion"] for row in lines(clean)] == kept
    reason = "duplicate of row 2" if len(kept) == 2 else "near duplicate of row 1"
    assert [row["audit_reason"] for row in lines(dropped)] == [reason] * (3 - len(kept))


def test_the_worst_span_is_shown_in_its_line(reward, write_jsonl, run):
    row = {"prompt": "Say:", "completion": "one two three four five six seven"}
    _, out = run("audit", write_jsonl("rows.jsonl", [row]))
    span = audit_demonstrations(reward, [row])[0]["worst_spans"][0]["text"]
    before, after = row["completion"].split(span, 1) if span in row["completion"] else (row["completion"], "")
    assert f"{before[-5:]}[".split()[-1] in out
    assert f"]{after[:5]}".split()[0] in out


def test_rank_writes_what_fine_tuning_and_preference_training_read(run, write_jsonl, tmp_path):
    best, pairs = tmp_path / "best.jsonl", tmp_path / "pairs.jsonl"
    groups = [*GROUPS, {"id": 8, "prompt": "Say 8:", "completions": ["8"]}, {"prompt": "x", "completions": ["y", "y"]}]
    words = ["--best_file", str(best), "--pairs_file", str(pairs)]
    output, out = run("rank", write_jsonl("groups.jsonl", groups), *words)
    orders = [record["order"] for record in lines(output)]
    for group, order, row in zip(groups, orders, lines(best), strict=True):
        name = {"id": group["id"]} if "id" in group else {}
        assert row == {**name, "prompt": group["prompt"], "completion": group["completions"][order[0]]}
    told_apart = list(zip(GROUPS, orders, strict=False))
    assert lines(pairs) == [
        {"id": g["id"], "prompt": g["prompt"], "chosen": g["completions"][o[0]], "rejected": g["completions"][o[-1]]}
        for g, o in told_apart
    ]
    assert f"best: 10 completions, {best}" in out
    assert f"pairs: 8 (2 prompts left out: one completion, or equal ones), {pairs}" in out


@pytest.mark.parametrize(
    ("command", "rows", "words", "message"),
    [
        (
            "audit",
            DEMONSTRATIONS,
            ["--drop", "ugly", "--clean_file", "c"],
            "drop='ugly' does not exist; choose one of",
        ),
        ("audit", DEMONSTRATIONS, ["--drop", "duplicate"], "give clean_file or dropped_file too"),
        ("audit", DEMONSTRATIONS, ["--clean_file", "c.jsonl"], "give drop or drop_lowest too"),
        ("audit", DEMONSTRATIONS, ["--drop_lowest", "1", "--clean_file", "c"], "drop_lowest=1.0 must be below 1"),
        (
            "audit",
            DEMONSTRATIONS,
            ["--drop", "over_long", "--max_length", "9", "--clean_file", "c.jsonl"],
            "every row would be dropped",
        ),
        ("rank", ROWS[:4], ["--pairs_file", "p.jsonl"], "no prompt has two completions that the reward tells apart"),
    ],
)
def test_what_no_file_can_be_made_of_is_one_line(
    models, write_jsonl, capsys, tmp_path, monkeypatch, command, rows, words, message
):
    test_mistakes_are_one_line(models, write_jsonl, capsys, tmp_path, monkeypatch, command, rows, words, message)
    assert not (tmp_path / "c.jsonl").exists()
