"""`densepath reward-eval` end to end on tiny models, and what a user can get wrong with it."""

from __future__ import annotations

import json
import re

import pytest

from densepath import DenseReward, evaluate_reward, load_model
from densepath.cli.main import main
from densepath.records.codec import to_json

PREFERENCES = [
    {"prompt": f"Say {i}:", "chosen": f"{i} and on", "rejected": f"no {i}", "category": "ab"[i % 2]} for i in range(12)
]
STEPPED = [
    {"prompt": f"{i}?", "steps": [f"{i} = {i}", "the answer is", f"{i + 1}"], "first_error": i % 4 - 1}
    for i in range(12)
]
ANSWERS = [{"prompt": f"{i}?", "completion": f"It is {i} + 1 = {i + 1}"} for i in range(12)]


@pytest.fixture
def reward_eval(models, tmp_path):
    """Run the command; its record."""

    def run(path: str, *words: str) -> dict:
        output = tmp_path / "figures.json"
        argv = ["reward-eval", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
        assert main([*argv, "--dataset_name", path, "--output_file", str(output), *words]) == 0
        return json.loads(output.read_text())

    return run


def test_preferences(reward_eval, models, write_jsonl, capsys):
    path = write_jsonl("pairs.jsonl", PREFERENCES)
    record = reward_eval(path)
    out = capsys.readouterr().out
    expected = to_json(evaluate_reward(DenseReward.from_models(models["sft"], models["ref"]), PREFERENCES))
    assert {key: record[key] for key in expected} == expected
    assert (record["dataset_name"], record["model_name_or_path"]) == (path, models["sft"])
    (figure,) = record["figures"]
    for measure in figure["measures"]:  # the table shows the record's numbers
        value = measure["value"]
        cell = re.sub(r"\b0\.", ".", f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
        assert re.search(rf"^ ?{re.escape(measure['name'])} +{re.escape(cell)}", out, flags=re.MULTILINE), measure
    assert figure["statement"] in " ".join(out.split())
    assert re.search(r"^reward-eval: 48 completions in", out, flags=re.MULTILINE)
    assert re.search(r"accuracy within groups", out)


def test_first_errors_with_a_base(reward_eval, models, write_jsonl, capsys):
    record = reward_eval(
        write_jsonl("steps.jsonl", STEPPED), "--base_model_name_or_path", models["ref"], "--aggregation", "min"
    )
    assert [figure["name"] for figure in record["figures"]] == [
        *("lowest_step", "auroc_step", "auroc_token", "auroc_row")
    ]
    assert record["figures"][0]["comparisons"][0]["measure"] == "reward/min"
    names = {measure["name"] for measure in record["figures"][1]["measures"]}
    assert {"base_logprob/mean", "earlier"} <= names
    assert "ref_logprob/mean" not in names
    assert "reward-eval: 24 completions" in capsys.readouterr().out  # the base is the reference: two models


def test_altered_numbers(reward_eval, write_jsonl, capsys):
    path = write_jsonl("answers.jsonl", [*ANSWERS, {"prompt": "x", "completion": "none"}])
    record = reward_eval(path, "--task", "altered_numbers", "--max_samples", "13", "--seed", "5")
    assert record["rows"] == 12
    out = " ".join(capsys.readouterr().out.split())
    assert f"warning: {path}: 1 rows set aside: row 13: the answer holds no number" in out
    assert "change of each signal where the number was altered" in out
    assert set(record["changes"]) == {"reward", "sft_logprob", "ref_logprob"}


def test_one_model_alone(models, write_jsonl, capsys):
    argv = ["reward-eval", "--model_name_or_path", models["sft"], "--dense_reward", "logprob"]
    assert main([*argv, "--dataset_name", write_jsonl("pairs.jsonl", PREFERENCES)]) == 0
    assert "sft_logprob" not in capsys.readouterr().out


def test_equal_models_are_warned_of_and_tie(models, write_jsonl, capsys):
    argv = ["reward-eval", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["sft"]]
    assert main([*argv, "--dataset_name", write_jsonl("pairs.jsonl", PREFERENCES)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "have the same weights" in out
    assert re.search(r"reward/mean \.500 \[\.500, \.500\] 12", out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"ref_model_name_or_path": None}, "with one model alone choose dense_reward=logprob"),
        ({"model_name_or_path": None}, "model_name_or_path is missing: The SFT model"),
        ({"dataset_name": None}, "dataset_name is missing: Rows to read"),
        ({"ref_model_name_or_path": "foreign"}, "the tokenizers of"),
        ({"base_model_name_or_path": "foreign"}, "the tokenizers of"),
        ({"task": "guess"}, "task='guess' does not exist; choose one of: auto, preference, first_error"),
        ({"aggregation": "max"}, "aggregation='max' does not exist; choose one of: mean, sum, min"),
        ({"max_samples": "0"}, "max_samples=0 must be at least 1"),
        ({"max_sample": "3"}, "unknown key 'max_sample'; did you mean max_samples?"),
        ({"dataset_name": "nowhere.jsonl"}, "no data set at nowhere.jsonl"),
    ],
)
def test_wrong_words_are_one_line(models, write_jsonl, capsys, words, message):
    given = {
        "model_name_or_path": models["sft"],
        "ref_model_name_or_path": models["ref"],
        "dataset_name": write_jsonl("pairs.jsonl", PREFERENCES),
        **{key: models.get(value, value) for key, value in words.items()},
    }
    argv = [word for key, value in given.items() if value is not None for word in (f"--{key}", value)]
    assert main(["reward-eval", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("densepath: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a"}, 'row 13: no "rejected"'),
        ({"prompt": "x", "completion": "a"}, 'row 13: no "chosen"'),
    ],
)
def test_a_bad_row_is_named_with_its_file(models, write_jsonl, capsys, row, message):
    path = write_jsonl("pairs.jsonl", [*PREFERENCES, row])
    argv = ["reward-eval", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    assert main([*argv, "--dataset_name", path]) == 2
    assert f"{path}, {message}" in capsys.readouterr().err


def test_the_same_function_takes_models_as_objects(models):
    sft, ref = load_model(models["sft"]), load_model(models["ref"])
    tokenizer = DenseReward.from_models(models["sft"], models["ref"]).tokenizer
    found = evaluate_reward(DenseReward(sft, ref, tokenizer=tokenizer), PREFERENCES, max_samples=5)
    assert found.rows == 5
