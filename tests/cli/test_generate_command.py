"""`densepath generate` end to end on tiny models: what it asks, writes, hands on and refuses."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from densepath.cli.main import main
from densepath.data.answers import answers_to, read_answers
from densepath.data.benchmarks import read_benchmark
from densepath.evals.answering import Answerer
from densepath.io import read_json, read_jsonl
from densepath.pipeline import generate
from densepath.report.scored import ScoredFile
from densepath.scoring.parts import Parts

PROMPTS = [{"prompt": [{"role": "user", "content": f"Say {i}"}], "answer": f"{i}", "kind": "k"} for i in range(5)]
TWO_TURNS = [
    {"question_id": 81, "category": "writing", "turns": ["Say one", "Say it again"]},
    {"question_id": 101, "category": "math", "turns": ["Add two", "And three"], "reference": ["2", "5"]},
]


@pytest.fixture
def answer(models, tmp_path):
    """Run generate with these words; the rows that it wrote."""

    def call(*words: str, name: str = "answers.jsonl") -> list[dict]:
        argv = ["generate", "--model_name_or_path", models["sft"], "--max_completion_length", "5"]
        assert main([*argv, "--output_file", str(tmp_path / name), *words]) == 0
        return read_jsonl(tmp_path / name)

    return call


def greedy(folder: str, turns: list[dict], steps: int) -> str:
    """The answer to a conversation by plain forward passes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_answers_are_greedy_decoding_in_the_order_of_the_file(models, answer, write_jsonl, capsys):
    rows = answer("--dataset_name", write_jsonl("prompts.jsonl", [*PROMPTS, {"id": "own", **PROMPTS[0]}]))
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["id"] for row in rows] == [*(f"prompts-{i}" for i in range(5)), "own"]
    for row, given in zip(rows, [*PROMPTS, PROMPTS[0]], strict=True):
        assert (row["prompt"], row["answer"], row["kind"]) == (given["prompt"], given["answer"], given["kind"])
        assert row["text"] == greedy(models["sft"], given["prompt"], 5)
        assert row["completion"] == [{"role": "assistant", "content": row["text"]}]
        assert row["generator"] == "sft"
    said = " ".join(capsys.readouterr().out.split())
    assert "sft answers 6 prompts of" in said
    assert ": greedy" in said
    assert re.search(r"6 answers, [1-5]\.\d tokens on average, \d+\.\d % cut off at max_completion_length=5", said)


def test_the_sources_own_answer_is_not_taken_for_the_models(answer, write_jsonl, tmp_path):
    gold = [{**row, "output": "gold", "choices": ["x"], "turns": ["y"]} for row in PROMPTS]
    rows = answer("--dataset_name", write_jsonl("prompts.jsonl", gold))
    file = str(tmp_path / "answers.jsonl")
    assert [each.turns for each in read_answers(file)] == [(row["text"],) for row in rows]
    found = read_benchmark(file)
    assert [each.turns for each in found.questions] == [(f"Say {i}",) for i in range(5)]
    assert found.answers == ()


def test_score_rank_and_view_open_the_answers(models, answer, write_jsonl, tmp_path):
    prompts = [{**row, "completions": ["not", "the model's"]} for row in PROMPTS]
    words = ["--dataset_name", write_jsonl("prompts.jsonl", prompts), "--num_generations", "3", "--temperature", "1"]
    rows = answer(*words)
    assert [(row["row"], row["sample"]) for row in rows] == [(i, k) for i in range(1, 6) for k in range(3)]
    source = str(tmp_path / "answers.jsonl")
    pair = ["--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"], "--dataset_name", source]
    assert main(["rank", *pair, "--verifier", "exact_match", "--output_file", str(tmp_path / "ranking.jsonl")]) == 0
    assert [len(row["order"]) for row in read_jsonl(tmp_path / "ranking.jsonl")] == [3] * 5
    assert main(["score", *pair, "--output_file", str(tmp_path / "scores.jsonl")]) == 0
    scored = read_jsonl(tmp_path / "scores.jsonl")
    filled = [row for row in rows if row["text"]]  # score sets empty answers aside
    assert [turn["text"] for row in scored for turn in row["turns"]] == [row["text"] for row in filled]
    shown = ScoredFile(tmp_path / "answers.jsonl")
    assert [row.turns[0].text for row in shown.read(range(len(shown)))] == [row["sampled"][0]["text"] for row in rows]
    logprobs = [reward for row in rows for reward in row["sampled"][0]["rewards"]]
    assert all(value <= 0 for value in logprobs)
    page = tmp_path / "answers.html"
    assert main(["view", source, "--html_file", str(page)]) == 0
    assert page.read_text().count('<article class="dp-row"') == 15


def test_the_second_turn_is_asked_behind_the_own_first_answer(models, answer, write_jsonl):
    source = f"mt_bench:{write_jsonl('question.jsonl', TWO_TURNS)}"
    rows = answer("--benchmark", source, "--temperature", "0")
    for row, question in zip(rows, TWO_TURNS, strict=True):
        first = [{"role": "user", "content": question["turns"][0]}]
        one = greedy(models["sft"], first, 5)
        then = [*first, {"role": "assistant", "content": one}, {"role": "user", "content": question["turns"][1]}]
        two = greedy(models["sft"], then, 5)
        assert row["text"] == [one, two]
        assert row["prompt"] == first
        assert row["completion"] == [*then[1:], {"role": "assistant", "content": two}]
        assert (row["id"], row["category"]) == (str(question["question_id"]), question["category"])
        assert len(row["sampled"]) == 2


def test_each_category_has_the_benchmarks_own_temperature(answer, write_jsonl):
    source = f"mt_bench:{write_jsonl('question.jsonl', TWO_TURNS)}"
    own, greedily = answer("--benchmark", source), answer("--benchmark", source, "--temperature", "0", name="g.jsonl")
    warm, cold = zip(own, greedily, strict=True)
    assert cold[0]["text"] == cold[1]["text"]  # mathematics is answered at temperature 0
    assert warm[0]["text"] != warm[1]["text"]  # writing at .7
    found = read_benchmark(source)
    assert [each.temperature for each in generate.benchmark_prompts(found, None, None)] == [0.7, 0.0]
    assert [each.temperature for each in generate.benchmark_prompts(found, 0.3, 1)] == [0.3]


@pytest.mark.parametrize("layout", ["alpaca_eval", "arena_hard", "arena_hard_v01"])
def test_layouts_of_the_benchmarks_hold_the_same_answers(models, answer, write_jsonl, tmp_path, layout):
    source = write_jsonl("prompts.jsonl", [{"id": f"q{i}", **row} for i, row in enumerate(PROMPTS)])
    rows = answer("--benchmark", source)
    output = tmp_path / f"theirs.{'json' if layout == 'alpaca_eval' else 'jsonl'}"
    argv = ["generate", "--model_name_or_path", models["sft"], "--max_completion_length", "5", "--generator", "mine"]
    assert main([*argv, "--benchmark", source, "--output_format", layout, "--output_file", str(output)]) == 0
    answers = answers_to(read_benchmark(source).questions, read_answers(str(output)), str(output))
    assert [(each.id, each.generator, each.turns) for each in answers] == [
        (row["id"], "mine", (row["text"],)) for row in rows
    ]
    if layout == "alpaca_eval":
        assert set(json.loads(output.read_text())[0]) == {"dataset", "instruction", "output", "generator"}


def test_a_killed_generation_goes_on_and_ends_with_the_same_bytes(answer, write_jsonl, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "WINDOW", 2)
    words = ["--dataset_name", write_jsonl("prompts.jsonl", PROMPTS), "--temperature", "1", "--num_generations", "2"]
    answer(*words, name="whole.jsonl")
    write, asked = Parts.write_rows, []

    def killed(self, window, rows):
        if window == 1:
            raise KeyboardInterrupt
        write(self, window, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write_rows", killed)
        with pytest.raises(AssertionError):
            answer(*words, name="again.jsonl")
    assert not (tmp_path / "again.jsonl").exists()
    rows = Answerer.rows

    def counted(self, window, *others):
        asked.extend(each.number for each in window)
        return rows(self, window, *others)

    monkeypatch.setattr(Answerer, "rows", counted)
    answer(*words, name="again.jsonl")
    assert asked == [3, 4, 5]  # the first window was whole
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "again.parts").exists()
    capsys.readouterr()
    answer(*words, name="again.jsonl")
    assert "again.jsonl is there already: nothing to do" in " ".join(capsys.readouterr().out.split())
    assert read_json(tmp_path / "again.manifest.json")["result"]["answers"] == 10


def test_eval_is_generate_with_a_check(models, answer, write_jsonl, tmp_path, capsys):
    source = write_jsonl("prompts.jsonl", PROMPTS)
    rows = answer("--dataset_name", source)
    argv = ["eval", "--model_name_or_path", models["sft"], "--dataset_name", source, "--dataset_train_split", "train"]
    output = tmp_path / "eval.jsonl"
    assert main([*argv, "--max_completion_length", "5", "--output_file", str(output)]) == 0
    cut = sum(row["truncated"] for row in rows)
    told = (
        f"{len(rows)} answers, 4.2 tokens on average, {100 * cut / len(rows):.1f} % cut off at max_completion_length=5"
    )
    assert cut > 0
    assert f"{told}: raise it\n" in capsys.readouterr().out.partition("exact_match: ")[2]
    checked = read_jsonl(output)
    assert [row.pop("metric") for row in checked] == [float(r["text"].strip() == r["answer"]) for r in rows]
    assert checked == rows
    said = [(each.id, each.turns) for each in read_answers(str(output))]  # as judge reads them
    assert said == [(row["id"], (row["text"],)) for row in rows]


def test_eval_by_an_edited_verifier_is_another_job(models, write_jsonl, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    program = tmp_path / "checks_that_are_edited.py"
    program.write_text("def check(completion, row):\n    return 1.0\n")
    output = tmp_path / "eval.jsonl"
    argv = ["eval", "--model_name_or_path", models["sft"], "--dataset_name", write_jsonl("prompts.jsonl", PROMPTS)]
    argv += ["--verifier", "checks_that_are_edited:check", "--max_completion_length", "5"]
    assert main([*argv, "--output_file", str(output)]) == 0
    assert main([*argv, "--output_file", str(output)]) == 0
    program.write_text("def check(completion, row):\n    return 0.0\n")
    assert main([*argv, "--output_file", str(output)]) == 2
    assert "is of another job (verifier source: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the prompts: either dataset_name or benchmark"),
        (["--dataset_name", "ROWS", "--benchmark", "lima"], "give the prompts: either dataset_name or benchmark"),
        (["--dataset_name", "ROWS", "--num_generations", "2"], "all would be the same; set temperature"),
        (["--dataset_name", "ROWS", "--output_format", "alpaca_eval"], "one answer to each question of a benchmark"),
        (
            ["--benchmark", "ROWS", "--output_format", "alpaca_eval"],
            "must end in .json with output_format=alpaca_eval",
        ),
        (["--benchmark", "mt_bench:ROWS"], "row 1: 1 turns where mt_bench has 2"),
        (["--dataset_name", "LONG", "--max_completion_length", "5"], "row 2: "),
        (["--dataset_name", "ROWS", "--max_completion_length", "9999"], "fills the models' context"),
        (["--dataset_name", "ROWS", "--temperature", "-1"], "temperature=-1.0 must be at least 0"),
        (["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--dataset_name", "ROWS", "--output_file", "x.csv"], "output_file=x.csv must end in .jsonl"),
    ],
)
def test_mistakes_are_one_line(models, write_jsonl, capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    long = [PROMPTS[0], {"prompt": [{"role": "user", "content": "x" * 600}]}]
    files = {"ROWS": write_jsonl("rows.jsonl", PROMPTS), "LONG": write_jsonl("long.jsonl", long)}
    for name, path in files.items():
        words = [word.replace(name, path) for word in words]
    assert main(["generate", "--model_name_or_path", models["sft"], *words]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"(densepath: warning: [^\n]+\n)*densepath: error: [^\n]+\n", err)
    assert message in err
    assert not (tmp_path / "answers.jsonl").exists()


def test_other_prompts_for_the_same_file_are_refused(models, answer, write_jsonl, tmp_path, capsys):
    answer("--dataset_name", write_jsonl("prompts.jsonl", PROMPTS))
    argv = ["generate", "--model_name_or_path", models["sft"], "--max_completion_length", "5"]
    argv += ["--dataset_name", write_jsonl("prompts.jsonl", PROMPTS[:3])]
    assert main([*argv, "--output_file", str(tmp_path / "answers.jsonl")]) == 2
    assert "is of another job (prompts: '5 prompts" in capsys.readouterr().err


def test_another_layout_of_the_same_file_is_refused(models, answer, write_jsonl, tmp_path, capsys):
    source = write_jsonl("prompts.jsonl", PROMPTS[:1])
    answer("--benchmark", source)
    argv = ["generate", "--model_name_or_path", models["sft"], "--max_completion_length", "5", "--benchmark", source]
    assert main([*argv, "--output_format", "arena_hard", "--output_file", str(tmp_path / "answers.jsonl")]) == 2
    assert "is of another job (layout: 'rows' -> 'arena_hard'): move answers.jsonl away" in capsys.readouterr().err
