"""`densepath judge` end to end: what it asks, writes and prints, how it goes on, and what it refuses."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from tests.judging.fake_endpoint import KEY, MODEL, FakeEndpoint
from tests.pipeline.runs import save_tiny_model

from densepath.cli.main import main
from densepath.io import read_json, read_jsonl
from densepath.judging.game_log import GameLog
from densepath.pipeline.judge import _gamed_notes
from densepath.records.benchmark import Question
from densepath.records.codec import from_json
from densepath.records.judge_report import JudgeReport
from densepath.records.judged import Judged
from densepath.stats.agreement import cohens_kappa

N = 12
QUESTIONS = [
    {"id": f"q{i}", "category": "many" if i < 10 else "few", "prompt": f"Name {i}.", "answer": f"{i}"}
    for i in range(N)
]


def answers(name: str, texts: list[str]) -> list[dict]:
    return [{"id": f"q{i}", "generator": name, "text": text} for i, text in enumerate(texts)]


RIGHT = answers("right", [f"{i}" for i in range(N)])
HALF = answers("half", [f"{i}" if i < 6 else "no" for i in range(N)])
WRONG = answers("wrong", ["a long answer"] * N)


@pytest.fixture
def judge(write_jsonl, tmp_path):
    """Run judge on answer files; (exit code, folder)."""
    write_jsonl("questions.jsonl", QUESTIONS)
    for rows in (RIGHT, HALF, WRONG):
        write_jsonl(f"{rows[0]['generator']}.jsonl", rows)

    def call(*words: str, models: tuple[str, ...] = ("right", "half"), baseline: str = "wrong", name: str = "out"):
        argv = ["judge", "--benchmark", str(tmp_path / "questions.jsonl"), "--output_dir", str(tmp_path / name)]
        argv += ["--models", *(each if "/" in each else str(tmp_path / f"{each}.jsonl") for each in models)]
        if baseline:
            argv += ["--baseline", str(tmp_path / f"{baseline}.jsonl")]
        return main([*argv, *words]), tmp_path / name

    return call


def figures(folder: Path) -> Judged:
    return from_json(Judged, read_json(folder / "results.json"))


def test_a_program_judges_answers_and_the_figures_are_those_by_hand(judge, capsys):
    code, folder = judge("--judge", "verifier:exact_match")
    assert code == 0
    found = figures(folder)
    right, half = found.win_rates
    assert (right.model, right.baseline, right.rate.mean, right.wins, right.ties) == ("right", "wrong", 1.0, N, 0)
    assert (half.rate.mean, half.wins, half.ties, half.losses) == (0.75, 6, 6, 0)
    assert right.verdict.value == "better"
    assert right.length is not None
    assert right.length.mean == sum(len(f"{i}") for i in range(N)) / N - 13
    assert set(right.categories) == {"many"}  # two prompts have no rate of their own
    assert right.position is not None
    assert right.position.follows_place.mean == 0
    assert [c.difference.mean for c in found.comparisons] == [0.25]
    games = read_jsonl(folder / "games.jsonl")
    assert len(games) == 2 * 2 * N  # two models, both orders
    report = from_json(JudgeReport, read_json(folder / "report.json"))
    assert report.judged == found
    assert report.lengths["half"][0] == (1 - 13, 1.0)
    assert [pair.answers[0].generator for pair in report.pairs] == ["right"] * 10 + ["half"] * 10
    half_pairs = [pair.preference for pair in report.pairs if pair.answers[0].generator == "half"]
    assert half_pairs[:2] == [1.0, 0.5]  # the highest and the lowest, in turn
    page = (folder / "report.html").read_text()
    assert "right beats wrong" in page
    assert "a long answer" in page
    (folder / "report.html").unlink()
    out = " ".join(capsys.readouterr().out.split())
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page
    assert "right 1.000 [" in out
    assert "verifier:exact_match: 48 of 48 games to judge; no call of an endpoint" in out


def test_models_are_asked_and_what_is_there_is_not_judged_again(judge, models, write_jsonl, tmp_path, capsys):
    words = ["--judge", "verifier:exact_match", "--max_completion_length", "4", "--max_samples", "3"]
    code, folder = judge(*words, models=(models["sft"], models["ref"]))
    assert code == 0
    assert sorted(path.name for path in (folder / "answers").glob("*.jsonl")) == ["ref.jsonl", "sft.jsonl"]
    assert [rate.model for rate in figures(folder).win_rates] == ["sft", "ref"]
    before = {path: path.read_bytes() for path in (folder / "answers").glob("*.jsonl")} | {
        folder / "games.jsonl": (folder / "games.jsonl").read_bytes()
    }
    capsys.readouterr()
    halves = [folder / name for name in (".results.json.1.tmp", "judge_cache/.spent.json.2.tmp")]
    for half in halves:  # a kill left them
        half.parent.mkdir(exist_ok=True)
        half.touch()
    assert judge(*words, models=(models["sft"], models["ref"]))[0] == 0
    assert not any(half.exists() for half in halves)
    assert ": 0 of 12 games to judge" in " ".join(capsys.readouterr().out.split())
    assert {path: path.read_bytes() for path in before} == before
    # The answers that it wrote are a file of answers like any other.
    code, other = judge(*words, models=(str(folder / "answers/sft.jsonl"),), name="other")
    assert figures(other).win_rates[0].rate == figures(folder).win_rates[0].rate


def test_one_baseline_is_that_of_every_category(write_jsonl, tmp_path, capsys):
    """Even where its name is that of the benchmark's own baseline for some."""
    questions = [
        {"uid": f"q{i}", "category": category, "prompt": f"Name {i}."}
        for i, category in enumerate(["hard_prompt", "creative_writing"] * 3)
    ]
    own = answers("o3-mini-2025-01-31", ["no"] * 6)
    argv = ["judge", "--benchmark", f"arena_hard:{write_jsonl('arena.jsonl', questions)}", "--judge"]
    argv += [
        "verifier:shorter:shorter",
        "--models",
        write_jsonl("m.jsonl", answers("m", ["x"] * 6)),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    argv += ["--baseline", write_jsonl("o3.jsonl", own)]
    (tmp_path / "shorter.py").write_text("def shorter(completion, row):\n    return -len(completion)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert main(argv) == 0
        (rate,) = figures(tmp_path / "out").win_rates
        assert (rate.baseline, rate.wins) == ("o3-mini-2025-01-31", 6)
        write_jsonl("o3.jsonl", own[::2])
        assert main(argv) == 2
    assert "no answer of o3-mini-2025-01-31 to q1" in capsys.readouterr().err


def test_each_row_says_against_which_baseline_it_is(write_jsonl, tmp_path, monkeypatch, capsys):
    """Arena-Hard v2.0 has two: each model stands once below each, on a terminal of 80 columns too."""
    (tmp_path / "shorter.py").write_text("def shorter(completion, row):\n    return -len(completion)\n")
    monkeypatch.syspath_prepend(tmp_path)
    categories = ["hard_prompt", "creative_writing"] * 6
    questions = [{"uid": f"q{i}", "category": name, "prompt": f"Name {i}."} for i, name in enumerate(categories)]
    names = ("purified_sft", "dpr", "o3-mini-2025-01-31", "gemini-2.0-flash-001")
    own = [answers(name, [text] * N) for name, text in zip(names, ("xx", "xxx", "xxxx", "x"), strict=True)]
    own[2], own[3] = own[2][::2], own[3][1::2]
    files = [write_jsonl(f"{name}.jsonl", rows) for name, rows in zip(names, own, strict=True)]
    argv = ["judge", "--benchmark", f"arena_hard:{write_jsonl('arena.jsonl', questions)}", "--models", *files[:2]]
    argv += ["--baseline", *files[2:], "--judge", "verifier:shorter:shorter", "--output_dir", str(tmp_path / "out")]
    assert main(argv) == 0
    found = figures(tmp_path / "out")
    assert [(each.measure, each.against, each.baseline) for each in found.comparisons] == [
        ("purified_sft", "dpr", name) for name in names[2:]
    ]
    order = [word for name in names[2:] for word in (f"against {name}", *names[:2])]
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for title in ("arena_hard", "Arena-Hard, percent"):
        start = printed.index(title) + 3
        assert all(line.startswith(word) for line, word in zip(printed[start : start + 6], order, strict=True))
        assert max(map(len, printed[start : start + 6])) <= 80
    page = (tmp_path / "out/report.html").read_text()
    tables = [re.sub(r"<[^>]+>", " ", table) for table in re.findall(r"<table.*?</table>", page, re.S)]
    for column in ("detectable", "Bradley-Terry", "follows the place"):
        (table,) = (each for each in tables if column in each)
        assert re.findall("|".join(order), table.split("between models")[0]) == order
    assert all(f"between models against {name}, over the prompts of both" in page for name in names[2:])


def test_a_model_that_is_added_renames_none_that_is_there(judge, models, tmp_path, capsys):
    """Of two folders of one name: what the first answered and was judged for stays."""
    folders = [str(tmp_path / name / "dpr" / "model") for name in ("one", "two")]
    for folder, source in zip(folders, (models["sft"], models["ref"]), strict=True):
        shutil.copytree(source, folder)
    words = ["--judge", "verifier:exact_match", "--max_completion_length", "4", "--max_samples", "3"]
    _, out = judge(*words, models=(folders[0],))
    (before,) = [rate.model for rate in figures(out).win_rates]
    capsys.readouterr()
    assert judge(*words, models=tuple(folders))[0] == 0
    assert [rate.model for rate in figures(out).win_rates] == [before, "two/dpr/model"]
    assert "6 of 12 games to judge" in " ".join(capsys.readouterr().out.split())


def test_a_folder_makes_way_for_a_generator_of_its_name_and_is_judged_once(
    judge, models, write_jsonl, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "one" / "dpr" / "model"
    shutil.copytree(models["sft"], folder)
    old = write_jsonl("old.jsonl", answers("dpr", ["a"] * N))
    words = ["--judge", "verifier:exact_match", "--max_completion_length", "4", "--max_samples", "3"]
    for name, given in (("first", (str(folder), old)), ("last", (old, str(folder)))):
        code, out = judge(*words, models=given, name=name)
        assert code == 0, capsys.readouterr().err
        assert {rate.model for rate in figures(out).win_rates} == {"one/dpr/model", "dpr"}
    monkeypatch.chdir(tmp_path)
    for again in (str(folder), "one/dpr/model/"):
        assert judge(*words, models=(str(folder), again))[0] == 2
        assert f"{again} is given twice among models: leave one out" in capsys.readouterr().err


def test_a_program_reads_the_row_of_its_question_in_any_file(judge, write_jsonl, tmp_path):
    (tmp_path / "parts").mkdir()
    for name, rows in (("a", QUESTIONS[:5]), ("b", QUESTIONS[5:])):
        write_jsonl(f"parts/{name}.jsonl", rows)
    code, folder = judge("--judge", "verifier:exact_match", "--benchmark", str(tmp_path / "parts"))
    assert code == 0
    assert [rate.wins for rate in figures(folder).win_rates] == [N, 6]


def test_a_local_model_grades_two_turns_without_a_baseline(judge, write_jsonl, tmp_path):
    folder = save_tiny_model(tmp_path / "judge", max_position_embeddings=4096)
    rows = [
        {"question_id": 81 + i, "category": "writing", "turns": [f"Say {i}", "Again"], "reference": None}
        for i in range(3)
    ]
    said = [{"question_id": 81 + i, "model_id": "m", "choices": [{"turns": [f"one {i}", "two"]}]} for i in range(3)]
    argv = ["judge", "--benchmark", f"mt_bench:{write_jsonl('mt.jsonl', rows)}", "--judge", f"local:{folder}"]
    argv += ["--models", write_jsonl("m.jsonl", said), "--output_dir", str(tmp_path / "mt")]
    assert main(argv) == 0
    found = figures(tmp_path / "mt")
    assert found.win_rates == ()
    (graded,) = found.mt_bench
    assert len(graded.turns) == 2
    assert graded.mean.n == 3
    page = (tmp_path / "mt/report.html").read_text()
    assert "one 0" in page
    assert "Grades" in page


def test_a_dense_reward_colours_the_pairs(judge, models):
    words = ["--judge", "verifier:exact_match", "--model_name_or_path", models["sft"], "--num_shown", "2"]
    code, folder = judge(*words, "--ref_model_name_or_path", models["ref"])
    assert code == 0
    report = from_json(JudgeReport, read_json(folder / "report.json"))
    assert len(report.pairs) == 4
    for pair in report.pairs:
        for each in pair.answers:
            assert each.scored is not None
            assert each.scored.text == each.text
            assert "".join(each.scored.tokens) == each.text  # nobody knows whether the model ended there
    assert '<article class="card sample"' in (folder / "report.html").read_text()


def test_two_judges_agree_as_far_as_kappa_says(judge, tmp_path, monkeypatch, capsys):
    (tmp_path / "longest.py").write_text("def longest(completion, row):\n    return len(completion)\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, folder = judge("--judge", "verifier:exact_match", "--second_judge", "verifier:longest:longest")
    assert code == 0
    (kappa,) = figures(folder).kappas
    mine = (["win"] * N + ["win"] * 6 + ["tie"] * 6) * 2
    assert kappa.kappa.mean == cohens_kappa(("a", "b"), mine, ["loss"] * len(mine)).kappa.mean
    assert kappa.agreement.mean == 0.0
    assert "kappa" in capsys.readouterr().out


# --- an endpoint over a socket ---------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FakeEndpoint() as served:
        words = ["--judge", f"openai:{MODEL}", "--judge_base_url", served.url, "--judge_api_key_env", "JUDGE_KEY"]
        yield served, [*words, "--judge_prompt_price", "2", "--judge_completion_price", "8"]


def test_a_dry_run_prints_calls_tokens_and_cost_and_asks_nobody(judge, endpoint, models, capsys):
    served, words = endpoint
    code, folder = judge(*words, "--dry_run", models=("right", models["sft"]))
    assert code == 0
    assert served.calls == []
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"48 games of 12 questions; 48 calls, [\d,]+ tokens to read, [\d,]+ to write at most, cost about", out
    )
    assert "sft: 12 answers to generate, taken as 1024 tokens" in out
    assert not (folder / "answers").exists()


def test_a_dry_run_counts_a_call_for_each_game_of_models_that_are_still_to_be_asked(judge, endpoint, models, capsys):
    """Their answers will differ, so that no two requests are the same."""
    _, words = endpoint
    assert judge(*words, "--dry_run", models=(models["sft"], models["ref"]))[0] == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{2 * 2 * N} games of {N} questions; {2 * 2 * N} calls, " in out
    assert "the same as others" not in out
    assert "there already" not in out
    assert judge(*words, "--dry_run", models=("right", "half"))[0] == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "48 games of 12 questions; 36 calls, " in out
    assert out.endswith("12 requests are the same as others")  # half of one model's answers are those of the other


def test_mt_bench_is_judged_beside_the_published_right_answers_where_the_benchmark_has_it_so(
    judge, endpoint, write_jsonl, tmp_path, capsys
):
    """FastChat's NEED_REF_CATS, whose right answers are in reference_answer/gpt-4.jsonl and not in question.jsonl."""
    served, words = endpoint
    served.reply = lambda body: "Rating: [[7]]"
    notes = {134: ("extraction", ["a note", "a note"]), 111: ("math", ["a note", "a note"]), 123: ("coding", None)}
    rows = [
        {"question_id": key, "category": category, "turns": [f"{category} 1", f"{category} 2"], "reference": said}
        for key, (category, said) in notes.items()
    ]
    said = [{"question_id": key, "model_id": "m", "choices": [{"turns": ["one", "two"]}]} for key in notes]
    right = [
        {"question_id": key, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["published 1", "published 2"]}]}
        for key in (111, 123)
    ]
    words += ["--benchmark", f"mt_bench:{write_jsonl('mt.jsonl', rows)}"]
    models = (write_jsonl("m.jsonl", said),)
    told = "right answers are the notes that stand beside mt_bench's questions"

    def shown() -> dict[str, bool]:
        asked = ["\n".join(turn["content"] for turn in call["messages"]) for call in served.calls]
        served.calls.clear()
        return {f"{kind} {word}": any(f"{kind} 1" in each and word in each for each in asked) for kind, word in checks}

    checks = [(kind, word) for kind, _ in notes.values() for word in ("a note", "published 1", "published 2")]
    assert judge(*words, models=models, baseline="")[0] == 0
    assert [name for name, is_shown in shown().items() if is_shown] == ["math a note"]
    assert told in " ".join(capsys.readouterr().out.split())
    unread = ["--judge", "verifier:builtins:len", *words[-2:], "--dry_run"]
    assert judge(*unread, models=models, baseline="")[0] == 0
    assert told not in " ".join(capsys.readouterr().out.split())
    words += ["--reference_answers", write_jsonl("gpt-4.jsonl", right)]
    code, folder = judge(*words, models=models, baseline="")
    assert code == 0
    assert [name for name, is_shown in shown().items() if is_shown] == [
        f"{kind} published {turn}" for kind in ("math", "coding") for turn in (1, 2)
    ]
    assert told not in " ".join(figures(folder).notes)
    write_jsonl("gpt-4.jsonl", right[:1])
    assert judge(*words, models=models, baseline="")[0] == 2
    assert "no answer of gpt-4 to 123" in capsys.readouterr().err


def test_a_template_without_a_form_is_refused_before_anyone_answers(
    judge, endpoint, models, write_jsonl, tmp_path, capsys
):
    _, words = endpoint
    two = write_jsonl("two.jsonl", [{"id": f"q{i}", "turns": ["one", "two"]} for i in range(N)])
    write_jsonl("wrong.jsonl", answers("wrong", [["a", "b"]] * N))
    assert judge(*words, "--benchmark", two, models=(models["sft"],))[0] == 2
    assert "judge template pair has no form for 2 turns without a reference; choose" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_parameter_that_is_taken_away_is_another_judge(judge, endpoint):
    served, words = endpoint
    assert judge(*words)[0] == 0
    first = len(served.calls)
    assert judge(*words, "--judge_parameters", '{"temperature": null}')[0] == 0
    assert len(served.calls) == 2 * first
    assert ["temperature" in call for call in served.calls] == [True] * first + [False] * first


def test_a_second_judge_tells_its_cost_and_is_looked_at_before_the_first_is_paid(judge, endpoint, tmp_path, capsys):
    served, words = endpoint
    for second, says in ((f"local:{tmp_path}/none", "no such model folder"), ("verifier:nothing", "does not exist")):
        assert judge(*words, "--second_judge", second)[0] == 2
        assert says in capsys.readouterr().err
    assert served.calls == []
    words = ["--judge", "verifier:exact_match", "--second_judge", words[1], *words[2:]]
    assert judge(*words, "--dry_run")[0] == 0
    assert f"openai:{MODEL}: 48 games of 12 questions; 36 calls," in " ".join(capsys.readouterr().out.split())
    code, folder = judge(*words)
    assert code == 0
    assert re.search(rf"{MODEL} \(pair\): 36 calls, [^:]+ cost 0\.", " ".join(capsys.readouterr().out.split()))
    assert read_json(folder / "report.json")["spent"]["calls"] == len(served.calls) == 36


def test_a_second_judge_that_fails_loses_nothing_of_the_first(judge, endpoint, capsys):
    served, words = endpoint
    served.reply = lambda body: "no verdict here"
    words = ["--judge", "verifier:exact_match", "--second_judge", words[1], *words[2:]]
    code, folder = judge(*words)
    assert code == 1
    out, err = capsys.readouterr()
    assert re.fullmatch(r"densepath: error: [^\n]+ judgements are invalid, [^\n]+\n", err)
    assert "right" in out
    assert (folder / "report.html").exists()
    found = figures(folder)
    assert {each.model for each in found.win_rates} == {"right", "half"}
    assert found.kappas == ()
    assert f"second_judge=openai:{MODEL} failed: how far the two judges agree is not known" in found.notes


def test_a_killed_run_pays_nothing_twice_and_comes_to_the_same(judge, endpoint, tmp_path, monkeypatch, capsys):
    served, words = endpoint
    code, whole = judge(*words, name="whole")
    assert code == 0
    first = len(served.calls)
    assert first == 36  # of 48 games: half of one model's answers are those of the other
    play = GameLog.play

    def killed(self, *given, on_game, **others):
        count = 0

        def game():
            nonlocal count
            count += 1
            on_game()
            if count == 20:
                raise KeyboardInterrupt

        return play(self, *given, on_game=game, **others)

    with monkeypatch.context() as patch:
        patch.setattr(GameLog, "play", killed)
        assert judge(*words)[0] == 130
    assert len(read_jsonl(tmp_path / "out/games.jsonl")) == 20
    with (tmp_path / "out/games.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # as a power cut leaves it
    code, folder = judge(*words)
    assert code == 0
    assert len(served.calls) == 2 * first  # each pair once more, in another folder
    assert figures(folder) == figures(whole)
    assert (folder / "report.html").read_text().count("[[A]]") == (whole / "report.html").read_text().count("[[A]]")
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY not in path.read_text(encoding="utf-8")


def test_a_judge_that_keeps_failing_ends_with_1_and_keeps_what_was_paid_for(judge, endpoint, tmp_path, capsys):
    served, words = endpoint
    served.reply = lambda body: "no verdict here"
    code, folder = judge(*words, "--judge_concurrency", "2")
    assert code == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"densepath: error: [^\n]+\n", err)
    assert "judgements are invalid, and max_invalid=0.2 allows 9" in err
    assert 9 < (first := len(served.calls)) < 36
    assert judge(*words, "--max_invalid", "1")[0] == 0
    assert len(served.calls) == first + 36, "a reply without a verdict is asked again"
    found = figures(folder)
    assert found.win_rates == ()
    assert "no prompt has a verdict" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "judge is missing"),
        (["--judge", "best"], "judge='best' is no judge"),
        (["--judge", "verifier:nothing"], "verifier 'nothing' does not exist"),
        (["--judge", "openai:gpt"], "OPENAI_API_KEY"),
        (["--judge", "verifier:exact_match", "--second_judge", "verifier:exact_match"], "is judge itself"),
        (["--judge", "verifier:exact_match", "--models", "SHORT"], "no answer of short to q3"),
        (
            ["--judge", "verifier:exact_match", "--models", "EMPTY"],
            "row 1: the answer to q0 is empty; give its text, leave empty out, or give allow_empty",
        ),
        (["--judge", "verifier:exact_match", "--models", "OTHER"], "row 1: it answers 'Something else', where q0"),
        (["--judge", "verifier:exact_match", "--models", "RIGHT", "RIGHT"], "are both called right"),
        (["--judge", "verifier:exact_match", "--baseline"], "has no baseline of its own"),
        (["--judge", "verifier:exact_match", "--baseline", "RIGHT", "WRONG"], "compares with one, and these are"),
        (["--judge", "verifier:exact_match", "--models", "WRONG"], "are both called wrong"),
        (["--judge", "verifier:exact_match", "--benchmark", "mt_bench:QUESTIONS"], "1 turns where mt_bench has 2"),
        (["--judge", "verifier:exact_match", "--model_name_or_path", "sft"], "needs ref_model_name_or_path"),
        (
            ["--judge", "verifier:exact_match", "--reference_answers", "RIGHT"],
            "right.jsonl' has no effect with judge=verifier:exact_match",
        ),
        (
            ["--judge", "verifier:exact_match", "--gamed_file", "g.csv"],
            "gamed_file is of AlpacaEval's prompts, and has",
        ),
        (
            ["--judge", "verifier:exact_match", "--gamed_file", "g.csv", "--benchmark", "alpaca_eval:QUESTIONS"],
            "g.csv: no such file",
        ),
        (["--judge", "local:nowhere", "--dry_run", "--max_samples", "0"], "max_samples=0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(judge, write_jsonl, capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    files = {
        "SHORT": write_jsonl("short.jsonl", answers("short", ["a", "b", "c"])),
        "EMPTY": write_jsonl("empty.jsonl", answers("empty", [" "] * N)),
        "OTHER": write_jsonl("other.jsonl", [{**RIGHT[0], "prompt": "Something else"}, *RIGHT[1:]]),
        "RIGHT": str(tmp_path / "right.jsonl"),
        "WRONG": str(tmp_path / "wrong.jsonl"),
        "QUESTIONS": str(tmp_path / "questions.jsonl"),
    }
    for name, path in files.items():
        words = [word.replace(name, path) for word in words]
    assert judge(*words)[0] == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"densepath: error: [^\n]+\n", err)
    assert message in err
    assert not (tmp_path / "out/games.jsonl").exists()


def test_what_is_left_out_of_the_questions_and_answers_is_told_in_the_figures(judge, write_jsonl, capsys):
    """Empty answers that are let in, answers to questions of another file, and questions that are not asked."""
    said = [*answers("said", ["", " ", *"23456789ab"]), {"id": "x7", "generator": "said", "text": "?"}]
    words = ["--judge", "verifier:exact_match", "--allow_empty", "--models", write_jsonl("said.jsonl", said)]
    code, folder = judge(*words, "--max_samples", "10", models=())
    assert code == 0
    found = figures(folder)
    assert found.win_rates[0].wins == 8
    benchmark = str(folder.parent / "questions.jsonl")
    assert found.notes == (
        f"max_samples=10: the first 10 of 12 questions, and not all of {benchmark}",
        f"{folder.parent / 'said.jsonl'}: answers of said to questions that the benchmark lacks are passed over: 1, "
        "the first in row 13, to 'x7'",
        "said: 2 of 10 answers are empty",
    )
    assert "2 of 10 answers are empty" in " ".join(capsys.readouterr().out.split())


def test_difficulties_by_place_are_doubted_where_the_order_is_not_alpaca_evals(monkeypatch, tmp_path):
    (tmp_path / "g.csv").write_text("preference\n")
    questions = [Question("a", "", ("Q",), 1), Question("b", "", ("R",), 2)]
    order = hashlib.sha256(b"Q\nR").hexdigest()
    monkeypatch.setattr("densepath.data.gamed.PROMPTS_SHA256", order)
    file = str(tmp_path / "g.csv")
    assert [len(_gamed_notes(file, each)) for each in (questions, questions[::-1], questions[:1])] == [1, 2, 2]


def test_a_name_that_no_file_can_have_is_one_line(judge, tmp_path, capsys):
    gamed = ["--gamed_file", "x" * 300, "--benchmark", f"alpaca_eval:{tmp_path}/questions.jsonl"]
    for words in (["--models", "x" * 300], ["--benchmark", "x" * 300], gamed):
        assert judge("--judge", "verifier:exact_match", *words)[0] == 1
        assert re.fullmatch(r"densepath: error: x{60}… is too long for the name [^\n]+\n", capsys.readouterr().err)


def test_a_judge_that_goes_by_the_place_gets_no_headline(judge, endpoint):
    served, words = endpoint
    served.reply = lambda body: "[[A]]"  # whatever stands first
    code, folder = judge(*words)
    assert code == 0
    right, _ = figures(folder).win_rates
    assert (right.rate.mean, right.ties) == (0.5, N)
    page = (folder / "report.html").read_text()
    assert "The judge goes by the place in which an answer stands: its figures say nothing</h1>" in page
    says = "at 100.0 % of the prompts of right against wrong it goes by the place."
    assert f"The judge favours the answer shown first: {says}" in page


def test_a_damaged_game_is_said_with_its_line(judge, capsys):
    _, folder = judge("--judge", "verifier:exact_match")
    games = (folder / "games.jsonl").read_text().splitlines(keepends=True)
    flipped = games[0].replace('"model": "right"', '"model": "sight"')
    for damage in ('{"key": "a", "game": {}}\n', "half a li\n", flipped):
        (folder / "games.jsonl").write_text("".join([*games[:2], damage, *games[2:]]))
        capsys.readouterr()
        assert judge("--judge", "verifier:exact_match")[0] == 1
        err = capsys.readouterr().err
        assert re.fullmatch(r"densepath: error: [^\n]+\n", err)
        assert "games.jsonl" in err
        assert "line 3" in err
