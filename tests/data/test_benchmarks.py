"""Every published layout of questions and answers becomes the same records, and what does not fit is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from densepath.data import benchmarks
from densepath.data.answers import (
    alpaca_eval_rows,
    answers_to,
    answers_to_none,
    arena_hard_rows,
    check_not_empty,
    generators,
    read_answers,
    with_references,
)
from densepath.data.benchmarks import BENCHMARKS, read_benchmark
from densepath.data.splits import content_hash
from densepath.errors import DataError, MissingFileError
from densepath.records.benchmark import Answer, Benchmark, BenchmarkRows, Question
from densepath.records.codec import from_json, to_json

ALPACA = [
    {"dataset": "koala", "instruction": "Name a bird.", "output": "A wren.", "generator": "base"},
    {"dataset": "oasst", "instruction": "Name a fish.", "output": "A pike.", "generator": "base"},
]
ARENA = [
    {"uid": "a1", "category": "hard_prompt", "subcategory": "coding", "prompt": "Sort a list."},
    {"uid": "b2", "category": "creative_writing", "subcategory": "writing", "prompt": "Write a verse."},
]
OLD_ARENA = [
    {"question_id": "x", "category": "arena-hard-v0.1", "cluster": "Sorting", "turns": [{"content": "Sort a list."}]}
]
MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And doubled?"], "reference": ["2", "4"]},
    {
        "question_id": 142,
        "category": "stem",
        "turns": ["A satellite slows.", "And then?"],
        "reference": ["It sinks", ""],
    },
]
LIMA = [{"conversations": ["Why is the sky blue?"], "source": "test"}]


def put(path, rows):
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "file", "rows", "ids", "categories", "first"),
    [
        ("alpaca_eval", "q.json", ALPACA, ["alpaca_eval-0", "alpaca_eval-1"], ["koala", "oasst"], ("Name a bird.",)),
        ("arena_hard", "q.jsonl", ARENA, ["a1", "b2"], ["hard_prompt", "creative_writing"], ("Sort a list.",)),
        ("arena_hard", "q.jsonl", OLD_ARENA, ["x"], ["Sorting"], ("Sort a list.",)),
        ("mt_bench", "q.jsonl", MT_BENCH, ["81", "111", "142"], ["writing", "math", "stem"], ("Write.", "Shorter.")),
        ("lima", "q.jsonl", LIMA, ["lima-0"], [""], ("Why is the sky blue?",)),
    ],
    ids=["alpaca_eval", "arena_hard", "arena_hard_old", "mt_bench", "lima"],
)
def test_a_published_layout(tmp_path, name, file, rows, ids, categories, first):
    found = read_benchmark(f"{name}:{put(tmp_path / file, rows)}")
    assert [each.id for each in found.questions] == ids
    assert [each.category for each in found.questions] == categories
    assert found.questions[0].turns == first
    assert f"{len(rows)} prompts where {name} has" in found.notes[-1]
    assert from_json(BenchmarkRows, to_json(found)) == found


def test_the_baseline_of_alpaca_eval_comes_with_its_questions(tmp_path):
    found = read_benchmark(f"alpaca_eval:{put(tmp_path / 'q.json', ALPACA)}")
    assert generators(found.answers) == ("base",)
    answers = answers_to(found.questions, found.answers, found.source)
    assert [(each.id, each.turns) for each in answers] == [
        ("alpaca_eval-0", ("A wren.",)),
        ("alpaca_eval-1", ("A pike.",)),
    ]


def test_the_two_versions_of_arena_hard_have_baselines_of_their_own(tmp_path):
    new = read_benchmark(f"arena_hard:{put(tmp_path / 'new.jsonl', ARENA)}").benchmark
    old = read_benchmark(f"arena_hard:{put(tmp_path / 'old.jsonl', OLD_ARENA)}").benchmark
    assert new.baseline("hard_prompt") == "o3-mini-2025-01-31"
    assert new.baseline("creative_writing") == "gemini-2.0-flash-001"
    assert old.baseline("Sorting") == "gpt-4-0314"
    assert (old.prompts, new.prompts) == (500, 750)


def test_references_of_mt_bench_and_its_temperatures(tmp_path):
    found = read_benchmark(f"mt_bench:{put(tmp_path / 'q.jsonl', MT_BENCH)}")
    assert [each.references for each in found.questions] == [None, ("2", "4"), None]  # as FastChat's NEED_REF_CATS
    heats = {name: found.benchmark.temperature(name) for name in ("writing", "math", "stem", "humanities", "roleplay")}
    assert heats == {"writing": 0.7, "math": 0.0, "stem": 0.1, "humanities": 0.1, "roleplay": 0.7}
    other = put(tmp_path / "hub.jsonl", [{"prompt": ["a", "b"], "reference": [], "category": "math", "prompt_id": 5}])
    (question,) = read_benchmark(f"mt_bench:{other}").questions
    assert (question.id, question.turns, question.references) == ("5", ("a", "b"), None)
    first, *_ = with_references(found.questions, [Answer("81", "gpt-4", ("right", "still"), 1)])
    assert first.references == ("right", "still")


def test_what_lima_was_trained_on_is_left_out_and_said(tmp_path, monkeypatch):
    known = {"prompt": "Why is the sky  blue?"}
    lima = replace(BENCHMARKS["lima"], left_out=(content_hash(known),))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "lima", lima)
    rows = [*LIMA, {"conversations": ["Why is grass green?"]}]
    found = read_benchmark(f"lima:{put(tmp_path / 'q.jsonl', rows)}")
    assert [each.turns for each in found.questions] == [("Why is grass green?",)]
    assert found.notes[0] == "row 1 (lima-0) is left out: lima's training set has it too"


def test_prompts_of_ones_own(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = [
        {"id": "a", "prompt": turns, "references": {"m": "Hello."}},
        {"id": "b", "prompt": "Plain", "reference": "Yes", "reference_turns": None},
        {"id": "c", "prompt": turns, "turns": ["Hi", "Again"], "reference_turns": ["Hello", None], "category": "two"},
    ]
    found = read_benchmark(str(put(tmp_path / "mine.jsonl", rows)))
    assert found.benchmark == Benchmark(str(tmp_path / "mine.jsonl"), turns=0)
    one, two, three = found.questions
    assert one.context == (("system", "Be brief."),)
    assert one.conversation() == turns
    assert (two.turns, two.references) == (("Plain",), ("Yes",))
    assert (three.references, three.category) == (("Hello", None), "two")
    assert [turn["content"] for turn in three.conversation(["A"])] == ["Hi", "A", "Again"]
    assert three.conversation(["A", "B"])[-1] == {"role": "assistant", "content": "B"}
    assert found.answers == (Answer("a", "m", ("Hello.",), 1, ("Hi",)),)


def test_published_answers_of_each_layout(tmp_path):
    old = {
        "question_id": "x",
        "model_id": "m",
        "choices": [{"index": 0, "turns": [{"content": "One", "token_len": 1}]}],
    }
    new = {
        "uid": "a1",
        "model": "m",
        "messages": [
            {"role": "user", "content": "Sort a list."},
            {"role": "assistant", "content": {"answer": "Two"}},
        ],
    }
    two_turns = {"question_id": 81, "model_id": "m", "choices": [{"turns": ["Three", "Four"]}], "tstamp": 1.0}
    ours = {"id": "p", "generator": "m", "text": "Five", "prompt": [{"role": "user", "content": "Q"}]}
    bare = {"id": "p", "text": "Six"}
    found = [
        read_answers(str(put(tmp_path / "my.model.jsonl", [row])))[0] for row in (old, new, two_turns, ours, bare)
    ]
    assert [(each.id, each.generator, each.turns, each.prompt) for each in found] == [
        ("x", "m", ("One",), None),
        ("a1", "m", ("Two",), ("Sort a list.",)),
        ("81", "m", ("Three", "Four"), None),
        ("p", "m", ("Five",), ("Q",)),
        ("p", "my.model", ("Six",), None),
    ]
    # Versions and sizes of models have dots: two of them are two generators.
    for name in ("gpt-4.1-mini.jsonl", "qwen2.5-7b.json", "qwen2.5-72b.csv"):
        (tmp_path / name).write_text("id,text\np,Six\n" if name.endswith("csv") else json.dumps(bare))
        assert generators(read_answers(str(tmp_path / name))) == (name.rpartition(".")[0],)
    (tmp_path / "gpt-4.1").mkdir()
    put(tmp_path / "gpt-4.1/part.jsonl", [bare])
    assert generators(read_answers(str(tmp_path / "gpt-4.1"))) == ("gpt-4.1",)


def test_the_models_text_counts_before_what_else_a_row_holds(tmp_path):
    row = {"id": "p", "generator": "m", "prompt": "Q", "completion": "Mine", "text": "Mine", "output": "Gold"}
    file = str(put(tmp_path / "a.jsonl", [row]))
    assert [(each.turns, each.prompt) for each in read_answers(file)] == [(("Mine",), ("Q",))]
    assert read_benchmark(file).answers == ()


def test_a_folder_of_files_is_one_benchmark(tmp_path):
    for name in "ab":
        put(tmp_path / f"{name}.jsonl", [{"id": f"{name}{i}", "prompt": f"{name} {i}"} for i in range(2)])
    assert [(each.id, each.row, each.index) for each in read_benchmark(str(tmp_path)).questions] == [
        ("a0", 1, 0),
        ("a1", 2, 1),
        ("b0", 1, 2),
        ("b1", 2, 3),
    ]
    put(tmp_path / "c.jsonl", [{"id": "a0", "prompt": "c"}])
    with pytest.raises(DataError, match=r"c\.jsonl, row 1: the id 'a0' is that of .*a\.jsonl, row 1 too"):
        read_benchmark(str(tmp_path))


TALK = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]


def test_answers_behind_a_conversation_are_read_again_and_compared(tmp_path):
    questions = [Question("a", "", ("And now?", "Then?"), 1, context=tuple(TALK))]
    answers = [Answer("a", "m", ("This.", "That."), 1)]
    file = str(put(tmp_path / "a.jsonl", arena_hard_rows(questions, answers)))
    assert answers_to(questions, read_answers(file), file)[0].turns == ("This.", "That.")
    other = [replace(questions[0], turns=("And so?", "Then?"))]
    with pytest.raises(DataError, match="row 1: it answers 'Hi / And now"):
        answers_to(other, read_answers(file), file)
    for said in (("And now?",), ("Hi", "And now?"), ("And now?", "Then?")):
        assert answers_to(questions, [replace(answers[0], id="", prompt=said)], "f")[0].id == "a"


@pytest.mark.parametrize("layout", ["alpaca_eval", "arena_hard", "arena_hard_old"])
def test_what_is_written_is_read_again(tmp_path, layout):
    questions = [Question("a", "c", ("Q 1\u2028",), 1), Question("b", "d", ("Q 2",), 2)]
    answers = [Answer("a", "m", ("A\n1",), 1), Answer("b", "m", ("A 2\u0085",), 2)]
    if layout == "alpaca_eval":
        rows = alpaca_eval_rows(questions, answers)
        assert rows[0] == {"dataset": "c", "instruction": "Q 1\u2028", "output": "A\n1", "generator": "m"}
    else:
        rows = arena_hard_rows(questions, answers, old=layout.endswith("old"))
    file = put(tmp_path / ("a.json" if layout == "alpaca_eval" else "a.jsonl"), rows)
    found = answers_to(questions, read_answers(str(file)), str(file))
    assert [(each.id, each.generator, each.turns) for each in found] == [
        (each.id, each.generator, each.turns) for each in answers
    ]


QUESTIONS = [Question("a", "", ("Q 1",), 1), Question("b", "", ("Q 2",), 2)]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([Answer("a", "m", ("x",), 1)], r"f: no answer of m to b \('Q 2', row 2 of the benchmark\); it answers 1 que"),
        (
            [Answer("a", "m", ("x",), 1), Answer("a", "m", ("y",), 7)],
            "f, row 7: a second answer of m to a, after row 1",
        ),
        ([Answer("a", "m", ("x", "y"), 1), Answer("b", "m", ("x",), 2)], "f, row 1: 2 answers to 1 turns of a"),
        (
            [Answer("a", "m", ("x",), 1, ("Q 0",)), Answer("b", "m", ("x",), 2)],
            "row 1: it answers 'Q 0', where a asks",
        ),
        ([Answer("a", "m", ("x",), 1), Answer("a", "n", ("x",), 2)], "f: answers of m, n; name one of them"),
    ],
    ids=["missing", "twice", "turns", "other_text", "two_models"],
)
def test_answers_that_do_not_fit(answers, said):
    with pytest.raises(DataError, match=said):
        answers_to(QUESTIONS, answers, "f")


def test_answers_to_more_questions_are_passed_over():
    answers = [Answer(each, "m", (each,), row) for row, each in enumerate("cba", start=1)]
    assert [each.id for each in answers_to(QUESTIONS, answers, "f")] == ["a", "b"]
    with pytest.raises(DataError, match="no answers of 'n'; there are those of m"):
        answers_to(QUESTIONS, answers, "f", "n")
    by_text = Answer("", "m", ("x",), 4, ("Q  2",))
    assert [each.id for each in answers_to_none(QUESTIONS, [*answers, by_text])] == ["c"]


def test_an_answer_that_is_empty_is_named():
    answers = [Answer("a", "m", ("x",), 1), Answer("b", "m", ("x", " "), 2)]
    check_not_empty(answers[:1], "f", "write it")
    with pytest.raises(DataError, match="f, row 2: the answer to b is empty; write it"):
        check_not_empty(answers, "f", "write it")


@pytest.mark.parametrize(
    ("name", "rows", "other"),
    [
        ("lima", ALPACA, "alpaca_eval"),
        ("alpaca_eval", ARENA, "arena_hard"),
        ("arena_hard", [{"id": "x", "prompt": "Known  first."}, {"id": "y", "prompt": "Q"}], "lima"),
    ],
    ids=["categories", "categories_of_v2", "first_prompt"],
)
def test_a_file_of_another_benchmark_is_refused(tmp_path, monkeypatch, name, rows, other):
    monkeypatch.setitem(benchmarks._FIRST_PROMPTS, content_hash({"prompt": "Known first."}), "lima")
    file = put(tmp_path / "q.jsonl", rows)
    with pytest.raises(
        DataError, match=f"q.jsonl: its prompts are those of {other}, and not of {name}; give .* or {other}"
    ):
        read_benchmark(f"{name}:{file}")
    assert read_benchmark(f"{other}:{file}").notes  # its own name, and not the whole of it


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("mt_bench", ALPACA, "row 1: 1 turns where mt_bench has 2"),
        ("alpaca_eval", MT_BENCH, "row 1: 2 turns where alpaca_eval has 1"),
        ("mt_bench", [MT_BENCH[0], MT_BENCH[0]], "row 2: the id '81' is that of row 1 too"),
        ("lima", [{"conversations": [" "]}], "row 1: a turn of the prompt is empty"),
        ("mt_bench", [{**MT_BENCH[1], "reference": ["a", "b", "c"]}], "row 1: the reference is"),
        ("mt_bench", [{**MT_BENCH[1], "turns": ["a", 5]}], 'row 1: "turns" is'),
        ("arena_hard", [{"uid": "a"}], "row 1: no format of TRL's"),
        ("mt_bench", [MT_BENCH[0], {"turns": ["a", "b"]}], "row 2: no id, by which answers to mt_bench are found"),
        ("mt_bench", [{**MT_BENCH[1], "reference": 5}], "row 1: the reference is 5"),
        ("mt_bench", [{**MT_BENCH[1], "reference": True}], "row 1: the reference is True"),
        ("mt_bench", [{**MT_BENCH[1], "reference": {"a": "b"}}], "row 1: the reference is {"),
        ("lima", [{"prompt": 5}], 'row 1: "prompt" is 5'),
        ("lima", [{"messages": "hi"}], "row 1: \"messages\" is 'hi'"),
    ],
    ids=[
        *("other", "two_turned", "twice", "empty", "references", "types", "no_prompt", "no_id"),
        *("number", "truth", "object", "odd_prompt", "odd_messages"),
    ],
)
def test_questions_that_do_not_fit(tmp_path, name, rows, said):
    with pytest.raises(DataError, match=said):
        read_benchmark(f"{name}:{put(tmp_path / 'q.jsonl', rows)}")


ODD = [{"id": "a", "messages": ["hi"]}, {"id": "a", "messages": "hi"}, {"id": "a", "prompt": 5, "text": "x"}]
ODD += [{"id": "a", "completion": said} for said in ({"role": "assistant"}, 5, ["x"], [{"content": 5}])]
ODD += [{"id": "a", "prompt": [5], "text": "x"}, {"id": "a", "messages": [{"role": "assistant", "content": 5}]}]


@pytest.mark.parametrize(
    "row", [{"id": "a"}, {"text": "x"}, {"id": "a", "choices": [3]}, {"id": "a", "turns": "x"}, *ODD]
)
def test_rows_that_answer_nothing(tmp_path, row):
    with pytest.raises(DataError, match="row 1: "):
        read_answers(str(put(tmp_path / "a.jsonl", [row])))


def test_the_hub_that_does_not_answer(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(MissingFileError, match="or give a file as mt_bench:FILE"):
        read_benchmark("mt_bench")
