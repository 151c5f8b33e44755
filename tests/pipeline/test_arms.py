"""Which arms a run has: their order, what is always there, whose compute is matched, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from tests.pipeline.runs import run_argv

from densepath.cli.main import main
from densepath.config.run import RunArguments
from densepath.errors import ConfigError
from densepath.io import read_json, read_jsonl
from densepath.methods import SFTRun, Stage, get_method, method_names, purified_sft
from densepath.methods._stage import sft_config
from densepath.pipeline.run import run_setting
from densepath.terminal import terminal


def arms(*names: str, **changes):
    return run_setting(RunArguments(arms=list(names), **changes), {}).methods


def test_the_table_has_the_order_of_the_recipe_and_sft_is_always_there():
    assert list(run_setting(RunArguments(), {}).methods) == [
        *("base", "sft", "continued_sft", "dft", "dpr", "purified_sft")
    ]
    assert list(arms("dpr", "base")) == ["sft", "dpr", "base"]
    assert list(arms("dpr", "sft")) == ["dpr", "sft"]
    assert list(arms()) == ["sft"]


def test_continued_sft_has_the_compute_of_the_arm_that_takes_the_most_or_dprs_samples():
    for names, given, budget, like in (
        (("continued_sft", "dpr"), "flops", "flops", "dpr"),
        (("continued_sft", "dpr"), "samples", "samples", "dpr"),
        (("continued_sft", "dpr", "purified_sft"), "flops", "flops", "purified_sft"),
        (("continued_sft",), "flops", "samples", "dpr"),
    ):
        (variant,) = arms(*names, continued_sft=given)["continued_sft"].variants
        assert (variant.arguments.budget, variant.arguments.budget_of) == (budget, like)


def test_what_is_no_arm_is_refused():
    with pytest.raises(ConfigError, match=r"arms: no method 'contrastiv'; did you mean contrastive\?"):
        arms("contrastiv")
    with pytest.raises(ConfigError, match="give each once"):
        arms("dpr", "dpr")
    with pytest.raises(ConfigError, match="trains on what a verifier accepts"):
        arms("rejection_sampling")


def test_the_help_names_every_method():
    (field,) = (field for field in dataclasses.fields(RunArguments) if field.name == "arms")
    words = set(field.metadata["help"].replace(":", " ").replace(",", " ").replace(";", " ").replace(".", " ").split())
    assert set(method_names()) <= words


def test_a_run_with_arms_of_every_sort(tiny_model, tmp_path):
    """Trained, sorted, filtered and decoded ones; the one that matches another is trained after it."""
    names = ["continued_sft", "sft", "dft", "dpr", "dpr_capped", "purified_sft", "filtered_sft", "subtractive"]
    names += ["purified_random"]
    purify = {"purify_behaviours": 2, "purify_steps": 1, "purify_final_steps": 1, "purify_samples": 4}
    short = {"sft_max_steps": 2, "dpr_max_steps": 1, "save_steps": 10, "beta": 1, "eval_temperatures": 1}
    run = tmp_path / "run"
    assert main(run_argv(tiny_model, run, arms=names, purify_kinds=1, **purify, **short)) == 0
    results = read_json(run / "results.json")
    (setting,) = results["settings"]
    assert [method["name"] for method in results["methods"]] == names
    assert {row["method"] for row in setting["rows"]} == set(names)
    sorted_by = {name: read_json(run / f"{name}/purification.json") for name in ("purified_sft", "purified_random")}
    assert read_json(run / "report.json")["purification"] == sorted_by["purified_sft"]
    assert (run / "dpr_capped/model").is_dir()
    shown = read_jsonl(run / "samples.jsonl")[0]["completions"]
    assert set(shown) == {"sft", "dpr", "dpr_capped", "purified_sft"}  # SFT and what is no control


@pytest.mark.parametrize(("name", "score"), [("purified_random", "random"), ("purified_sft_logprob", "sft_logprob")])
def test_controls_of_purification_sort_by_something_else(monkeypatch, tmp_path, name, score):
    asked = []
    monkeypatch.setattr(purified_sft, "train", lambda stage: asked.append(stage.arguments))
    given = RunArguments(purify_steps=3)
    get_method(name).train(Stage(SFTRun(tmp_path, given), tmp_path, given, {}, terminal(), ""))
    assert asked == [dataclasses.replace(given, purify_score=score)]


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ("text", {}, "plain text has no prompt that the model before SFT could answer"),
        ("prompt completion", {"purify_kind_column": "tsak"}, "purify_kind_column=tsak: training row 1 has no such"),
    ],
    ids=["text", "kind"],
)
def test_rows_that_an_arm_cannot_use_are_refused_before_sft(tiny_model, tmp_path, capsys, columns, changes, message):
    prompts = [{"prompt": f"q {i}?", "answer": f"{i}"} for i in range(40)]
    texts = [{name: f"{name} {i}" for name in columns.split()} for i in range(60)]
    given = {
        "dataset_name": texts,
        "eval_dataset_name": prompts,
        "rl_prompts": [{"prompt": f"r {i}?"} for i in range(9)],
    }
    for name, rows in given.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: tmp_path / f"{name}.jsonl" for name in given}
    words = run_argv(tiny_model, tmp_path / "run", arms=["sft", "dpr", "purified_sft"], **files, **changes)
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/sft").exists()


def test_sft_goes_over_the_demonstrations_once_unless_it_is_told_otherwise(tmp_path):
    def length(**given):
        config = sft_config(RunArguments(**given), {}, tmp_path)
        return config.max_steps, config.num_train_epochs, config.warmup_steps

    assert length() == (-1, 1.0, 0.05)
    assert length(sft_num_train_epochs=2.5) == (-1, 2.5, 0.05)
    assert length(sft_max_steps=60)[::2] == (60, 3)


def test_cards_name_real_models_and_what_was_compared(finished, tiny_model):
    folder, _ = finished
    for name, base in (("sft", "tiny"), ("dpr", "finished/sft/model"), ("continued_sft", "finished/sft/model")):
        card = (folder / name / "model/README.md").read_text(encoding="utf-8")
        assert "co/None" not in card
        assert f"fine-tuned version of `{base}`" in card
        assert "### Compared in its run" in card
        assert "| before SFT" in card
        assert "Compared with:" not in card


def test_a_card_may_be_changed_and_the_run_is_still_whole(finished, tmp_path, forks):
    folder, argv = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "sft/model/README.md").write_text("mine")
    assert forks.run([str(copy) if word == str(folder) else word for word in argv]) == 0, forks.stderr
    assert (copy / "sft/model/README.md").read_text() == "mine"
