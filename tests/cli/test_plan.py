"""`densepath plan`: table, JSON, exit codes, and one line for what is wrong."""

from __future__ import annotations

import json

import pytest

from densepath.cli.main import main
from densepath.planning.plan import TERMS

BIG = ["--model_name_or_path", "meta-llama/Llama-3.1-8B", "--max_length", "512"]


def test_a_recipe_is_planned_as_a_table(capsys):
    recipe = ["--config", "recipes/quickstart.yaml", "--reference", "auto"]
    assert main(["plan", *recipe, "--gpu_memory", "24"]) == 0
    out = capsys.readouterr().out
    assert "134,515,008 parameters, 134,515,008 trained; one GPU of 24.0 GiB" in out
    assert all(stage in out for stage in ("SFT", "selection", "DPR", "evaluation"))
    assert {line.split("  ")[0] for line in out.splitlines()} & set(TERMS) >= {"policy", "optimizer", "activations"}
    assert max(map(len, out.splitlines())) <= 100


def test_json_has_every_moment(tmp_path, capsys):
    argv = ["plan", *BIG, "--use_peft", "--gpu_memory", "79", "--json", "--reference", "0.5", "--beta", "1"]
    assert main([*argv, "--sft_per_device_train_batch_size", "4", "--output_file", str(tmp_path / "plan.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "plan.json").read_text()) == found
    assert found["fits"]
    assert found["reason"] is None
    for stage in found["stages"].values():
        totals = [moment["total"] for moment in stage["moments"].values()]
        assert stage["total"] == max(totals)
        for moment in stage["moments"].values():
            assert moment["total"] == pytest.approx(sum(v for k, v in moment.items() if k != "total"))


def test_a_plan_that_cannot_fit_prints_the_plan_and_exits_with_2(capsys):
    assert main(["plan", *BIG, "--gpu_memory", "79", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["fits"] is False
    assert err.count("\n") == 1
    assert err.startswith("densepath: error: DPR needs ")
    assert "optimizer takes 59.8 GiB; set use_peft: true" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        ([], "model_name_or_path is missing: Hub id, local folder"),
        ([*BIG, "--gpu_memori", "3"], "unknown key 'gpu_memori'; did you mean gpu_memory?"),
        (["--model_name_or_path", "./nowhere"], "no such model folder: ./nowhere"),
        ([*BIG, "--dpr_top_p", "0.5"], "set temperature=1, top_p=1"),
        ([*BIG, "--dpr_nonsense", "1"], "unknown key 'dpr_nonsense'"),
        ([*BIG, "--gpu_memory", "much"], "gpu_memory='much'"),
        ([*BIG, "--accelerate_config", "nowhere.yaml"], "accelerate_config=nowhere.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(argv, message, capsys):
    assert main(["plan", *argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_model_without_a_network_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["plan", "--model_name_or_path", "nobody/has-this-model", "--gpu_memory", "79"]) == 2
    err = capsys.readouterr().err
    assert "cannot load the configuration nobody/has-this-model: no such folder, and the hub cannot be reached" in err
    assert err.count("\n") == 1


def test_a_run_that_cannot_fit_is_refused_before_its_first_stage(tmp_path, capsys):
    argv = ["run", *BIG, "--dataset_name", "text_tasks", "--gpu_memory", "79", "--output_dir", str(tmp_path / "run")]
    assert main(argv) == 2
    assert "optimizer takes 59.8 GiB" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
