"""`densepath purify`: from models and rows to what was kept, in one line where nothing can be sorted."""

from __future__ import annotations

import json

import pytest
from tests.methods.test_purified_sft import HELD_OUT, ROWS
from tests.methods.test_purified_sft import source as source  # a fixture
from tests.trainers.test_sft import StopAt

from densepath.cli.main import main
from densepath.config.training import PurifyCommandArguments
from densepath.data.splits import split_by_content
from densepath.errors import DataError
from densepath.io import read_json, read_jsonl
from densepath.methods import _behaviours
from densepath.pipeline.purify import _rows, _write_page


@pytest.fixture
def argv(source, tmp_path):
    """Words of a command on tiny models."""
    for name, rows in (("rows", ROWS), ("held-out", HELD_OUT)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def words(output="out", **changes) -> list[str]:
        given = {
            "model_name_or_path": source / "sft/model",
            "ref_model_name_or_path": source / "base",
            "dataset_name": tmp_path / "rows.jsonl",
            "eval_dataset_name": tmp_path / "held-out.jsonl",
            "output_dir": tmp_path / output,
            "purify_behaviours": 2,
            "purify_steps": 2,
            "purify_final_steps": 2,
            "purify_samples": 8,
            "purify_kinds": 1,
            "purify_learning_rate": 1e-3,
            "max_completion_length": 6,
            "per_device_train_batch_size": 4,
            "save_steps": 1,
            **changes,
        }
        flags = [(f"--{name}", str(value)) for name, value in given.items() if value is not None]
        return ["purify", *(word for pair in flags for word in pair)]

    return words


def always_the_second(monkeypatch):
    monkeypatch.setattr("densepath.methods._behaviour_choice.by_lift", lambda mixtures: ((2, 2), "told to"))


def test_it_sorts_trains_and_tells(argv, tmp_path, source, capsys, monkeypatch):
    always_the_second(monkeypatch)
    assert main(argv()) == 0
    out = capsys.readouterr().out
    assert "24 demonstrations to sort, 6 rows held out" in out
    assert f"num_validation_samples=200 of {tmp_path}/held-out.jsonl, and there are 6: give more rows there" in out
    trained = "The SFT model was trained again, on 8 rows drawn from the 12 of 24 demonstrations that are kept."
    assert trained in " ".join(out.split())  # two steps of four
    assert "raise purify_final_steps" in " ".join(out.split())
    assert "did not end within 6 tokens; raise max_completion_length" in " ".join(out.split())
    assert "- told to" in out
    assert "2 of 2 ✓" in out
    assert all(len(line) <= 80 or line.startswith(("page: ", "model: ", "warning: ")) for line in out.splitlines())
    folder = tmp_path / "out"
    assert f"page: {(folder / 'purification.html').resolve()}" in " ".join(out.split())
    page = (folder / "purification.html").read_text(encoding="utf-8")
    assert "What the demonstrations are made of" in page
    assert f"--baseline {source / 'sft/model'} --judge local:JUDGE" in page
    asked = PurifyCommandArguments(model_name_or_path="sft", dataset_name="d.jsonl", judge="openai:mine")
    assert "--baseline sft --judge openai:mine" in _write_page(folder, asked).read_text(encoding="utf-8")
    assert "told to" in page
    assert out.rstrip().endswith(f"model: {(folder / 'model').resolve()}")
    rows = [*read_jsonl(folder / "kept.jsonl"), *read_jsonl(folder / "dropped.jsonl")]
    assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in ROWS)
    assert not list(folder.glob("checkpoint-*"))
    assert main(argv()) == 0
    again = capsys.readouterr().out
    assert "is there already: nothing to do" in again
    assert "- told to" in again


def test_a_killed_command_goes_on_and_another_configuration_is_refused(argv, tmp_path, capsys, monkeypatch):
    always_the_second(monkeypatch)
    assert main(argv("whole")) == 0
    real, calls = _behaviours.sft_trainer, []

    def stopping(*given, **named):
        calls.append(1)
        return real(*given, **named, callbacks=[StopAt(1, KeyboardInterrupt)] if len(calls) == 2 else [])

    monkeypatch.setattr(_behaviours, "sft_trainer", stopping)
    assert main(argv("cut")) == 130
    assert main(argv("cut", purify_steps=3)) == 2
    assert "holds a run with another configuration (purify_steps: 2 -> 3)" in capsys.readouterr().err
    assert main(argv("cut")) == 0
    assert len(calls) == 4  # two behaviours, one of them twice, and the final training
    for name in ("model/model.safetensors", "purification.json", "kept.jsonl", "dropped.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_sft_model_is_kept_as_an_answer(argv, tmp_path, source, capsys):
    (tmp_path / "rows.jsonl").write_text((json.dumps(ROWS[0]) + "\n") * 14)
    assert main(argv()) == 0
    out = capsys.readouterr().out
    assert "the demonstrations are one behaviour" in out
    assert f"the SFT model is kept: {source / 'sft/model'}" in out.replace("\n", "")
    assert not (tmp_path / "out/model").exists()
    assert read_json(tmp_path / "out/purification.json")["trained"] is False


@pytest.mark.slow
def test_a_judge_decides_against_the_sft_models_own_answers(argv, tmp_path, capsys):
    assert main(argv(judge="verifier:tests.pipeline.test_judged_run:longer_is_better")) == 0
    fixed = read_json(tmp_path / "out/sft_answers.json")
    assert len(fixed) == len(HELD_OUT)
    verdicts = read_json(tmp_path / "out/validation/sft.json")["value"]
    assert verdicts["values"] == [0.5] * len(HELD_OUT), "its own answers, compared with themselves"
    assert "DFT-on-all-demonstrations.json" in {path.name for path in (tmp_path / "out/validation").iterdir()}
    assert main(argv(judge="verifier:exact_match")) == 2
    assert "another configuration (judge: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_verifier_needs_no_held_out_rows_of_their_own(argv, tmp_path, capsys):
    rows = [{**row, "answer": "0"} for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 1))
    assert main(argv(eval_dataset_name=None, verifier="exact_match")) == 0
    said = "as nearly all answers were cut off: raise max_completion_length. The SFT model is kept"
    assert said in " ".join(capsys.readouterr().out.split())  # models of random weights do not end
    kept, dropped, held = (
        read_jsonl(tmp_path / "out" / name) for name in ("kept.jsonl", "dropped.jsonl", "data/validation.jsonl")
    )
    assert held
    assert len(kept) + len(dropped) + len(held) == len(ROWS)


def test_every_row_is_sorted_or_held_out_but_twins_of_what_is_held_out(tmp_path):
    """A split by content is larger than what is asked for; of a prompt that is held out no row is sorted."""
    rows = [{"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(600)]
    again = [{**row, "completion": "b"} for row in rows]
    for given in (rows, rows + again):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        asked = {"dataset_name": str(tmp_path / "rows.jsonl"), "num_validation_samples": 6}
        to_sort, held_out, unused = _rows(PurifyCommandArguments("sft", ref_model_name_or_path="base", **asked))
        prompts = {row["prompt"] for row in held_out}
        twins = sum(row["prompt"] in prompts for row in given) - 6
        assert (len(held_out), unused) == (6, twins)
        assert len(to_sort) == len(given) - 6 - twins
        assert (twins > 0) == (given is not rows)
        assert to_sort == [row for row in given if row in to_sort]  # in the source's order
        assert not {row["prompt"] for row in to_sort} & {row["prompt"] for row in held_out}


def test_rows_of_which_a_run_has_held_out_its_own_leave_some_to_hold_out(tmp_path):
    """A run's data/train.jsonl: by the same hash none of them is in the stretch that is held out."""
    rows = [{"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(600)]
    given = split_by_content(rows)["train"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    asked = {"dataset_name": str(tmp_path / "rows.jsonl"), "num_validation_samples": 30}
    to_sort, held_out, unused = _rows(PurifyCommandArguments("sft", ref_model_name_or_path="base", **asked))
    assert (len(held_out), len(to_sort), unused) == (30, len(given) - 30, 0)


def test_of_a_sorted_file_every_kind_is_held_out(tmp_path):
    """40 of 4 x 500: one draw in 10^5 lacks a kind, and the first 40 of what a split by content takes have no D."""
    rows = [{"prompt": f"{kind} {i}?", "completion": "a", "kind": kind} for kind in "ABCD" for i in range(500)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"dataset_name": str(tmp_path / "rows.jsonl"), "num_validation_samples": 40}
    found = [_rows(PurifyCommandArguments("s", ref_model_name_or_path="b", seed=n, **asked))[1] for n in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    for held_out in found:
        assert len(held_out) == 40
        assert {row["kind"] for row in held_out} == set("ABCD")
        assert held_out == [row for row in rows if row in held_out]  # in the source's order


def test_rows_of_one_prompt_are_told_why_none_is_left_to_sort(tmp_path):
    (tmp_path / "rows.jsonl").write_text((json.dumps({"prompt": "q?", "completion": "a"}) + "\n") * 60)
    asked = {"dataset_name": str(tmp_path / "rows.jsonl"), "num_validation_samples": 6}
    with pytest.raises(DataError, match="all 60 rows have a prompt in common, so that none is left to sort"):
        _rows(PurifyCommandArguments("sft", ref_model_name_or_path="base", **asked))


@pytest.mark.slow
def test_answers_may_be_as_long_as_the_demonstrations(argv, tmp_path, capsys):
    """A token for each character, and EOS: 40 tokens need three times 16."""
    long = [{**row, "completion": "x" * (37 + i % 3)} for i, row in enumerate(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    assert main(argv(max_completion_length=None)) == 0
    assert "max_completion_length: 48 tokens, within which 99 of 100 demonstrations end" in capsys.readouterr().out
    assert "max_completion_length: 48\n" in (tmp_path / "out/config.yaml").read_text()
    assert main(argv(max_completion_length=48)) == 0  # the same command


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"purify_kind_column": "knd"}, "purify_kind_column=knd: training row 1 has no such column"),
        ({"ref_model_name_or_path": None}, "ref_model_name_or_path is missing: The model before SFT"),
        ({"model_name_or_path": None}, "model_name_or_path is missing: The SFT model"),
        ({"purify_behaviours": 1}, "give numbers of 2 or more"),
        ({"purify_behaviours": 30}, "24 demonstrations are too few for 30 behaviours (a band of them would"),
        ({"purify_behaviours": 8}, "would hold 3, and 4 are the fewest); give 32 or more, lower purify_behaviours"),
        ({"learning_rate": 1e-3}, "learning_rate is not taken here; set purify_learning_rate"),
        ({"max_steps": 3}, "max_steps is not taken here; set purify_steps and purify_final_steps"),
        ({"wieght_decay": 0.1}, "did you mean weight_decay?"),
        ({"dataloader_num_workers": -1}, "error: dataloader_num_workers=-1 must be at least 0"),
        ({"weight_decay": "inf"}, "error: weight_decay=inf must be at least 0, and finite"),
        ({"verifier": "nonsense"}, "nonsense"),
        ({"judge": "nonsense"}, "is no judge"),
        ({"judge": "verifier:exact_match", "verifier": "exact_match"}, "give one of them"),
        ({"verifier": "exact_match", "eval_dataset_name": "rows"}, "to compare with"),
        ({"eval_dataset_name": "rows"}, "prompt"),
    ],
    ids=[
        "kind",
        "no-base",
        "no-sft",
        "one",
        "thirty",
        "eight",
        "rate",
        "steps",
        "key",
        "workers",
        "decay",
        "verifier",
        "judge",
        "both",
        "no-answers",
        "not-held-out",
    ],
)
def test_a_mistake_is_one_line(argv, tmp_path, capsys, changes, message):
    if changes.get("eval_dataset_name"):
        changes = {**changes, "eval_dataset_name": tmp_path / "rows.jsonl"}
        if "verifier" in changes:
            changes["dataset_name"] = tmp_path / "others.jsonl"
            changes["dataset_name"].write_text((tmp_path / "held-out.jsonl").read_text() * 3)
    assert main(argv(**changes)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("densepath: error: ")
    assert message in line


def test_one_model_twice_is_a_mistake(argv, source, capsys):
    assert main(argv(ref_model_name_or_path=source / "sft/model")) == 2
    assert "have the same weights: the reward is zero; give the model before SFT" in capsys.readouterr().err


def test_what_is_held_out_answers_nothing_that_is_sorted(argv, tmp_path, capsys):
    """The held-out likelihood is one of every turn, so an earlier one may not be trained on either."""
    turns = [("user", ROWS[0]["prompt"]), ("assistant", "x"), ("user", "y"), ("assistant", "z")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "held-out.jsonl").write_text(json.dumps(row) + "\n")
    assert main(argv()) == 2
    err = capsys.readouterr().err
    assert "held-out.jsonl, row 1 (validation) and " in err
    assert "rows.jsonl, row 1 (train) have the same prompt" in err
