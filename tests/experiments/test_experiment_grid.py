"""A whole experiment on tiny models: cells, choices on validation, the table, resuming, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
import yaml
from rich.console import Console
from transformers import GPT2Config

from densepath.cli.main import main
from densepath.config.experiment import ExperimentArguments
from densepath.config.run import RunArguments
from densepath.data.regimes import SFT, Regime, regime_rows
from densepath.errors import DensepathError
from densepath.io import hold_lock, write_json_atomic
from densepath.pipeline.experiment import processes, run_experiment
from densepath.pipeline.recipe import read_recipe
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.selection import settled
from densepath.records.choice import ChosenReference, ReferenceChoice
from densepath.records.codec import to_json

SMALL = {
    "verifier": "exact_match",
    "num_workers": 1,
    "num_validation_samples": 6,
    "num_test_samples": 10,
    "max_completion_length": 8,
    "max_train_samples": 64,
    "eval_temperatures": [1.0, 0.0],
    "sft_max_steps": 4,
    "sft_per_device_train_batch_size": 8,
    "reference_fractions": [0.0, 0.5],
    "dpr_max_steps": 1,
    "dpr_per_device_train_batch_size": 8,
    "reference": "0",
    "beta": "1",
    "save_steps": 2,
}
METHODS = {
    "sft": {},
    "nothing": {"method": "extrapolation", "alpha": 0.0, "label": "secretly SFT"},
    "continued_sft": {"tune": {"continued_sft_learning_rate": [1e-3, 1e-2]}},
    "contrastive": {},
    "dpr": {},
    "continued_flops": {"method": "continued_sft", "budget": "flops"},
}


def experiment(folder, **changes):
    given = {
        **SMALL,
        "output_dir": str(folder),
        "seeds": [0, 1],
        "settings": {"novel": {"dataset_name": "regime:novel"}},
        "methods": METHODS,
        **changes,
    }
    console = Console(file=io.StringIO(), width=200)
    try:
        run_experiment(ExperimentArguments(**given), {}, console, pretraining_steps=3)
    finally:
        experiment.printed = console.file.getvalue()
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment") / "grid"
    return folder, experiment(folder)


def read_outcome(path):
    return RunFolder(path.parents[1], read_only=True).outcome(path.stem)


def cells(folder, seed=0):
    return folder / "novel" / f"seed-{seed}" / "cells"


def moved(finished, tmp_path):
    copy = tmp_path / "grid"
    shutil.copytree(finished[0], copy)
    for path in copy.rglob("config.yaml"):
        path.write_text(path.read_text().replace(str(finished[0]), str(copy)))
    return copy


def test_every_method_and_seed_is_in_the_table(finished):
    folder, record = finished
    (setting,) = record["settings"]
    shown = {(row["method"], row["decoding"]) for row in setting["rows"]}
    assert shown == {(name, decoding) for name in METHODS for decoding in ("temperature 1", "greedy")}
    assert setting["seeds"] == [0, 1]
    assert (folder / "results.csv").exists()
    assert "secretly SFT" in (folder / "results.html").read_text()


def test_a_method_that_is_secretly_the_sft_model_is_a_tie(finished):
    _, record = finished
    found = [one for one in record["settings"][0]["comparisons"] if one["method"] == "nothing"]
    assert {one["against"] for one in found} >= {"sft"}
    for one in found:
        if one["against"] == "sft":
            assert one["verdict"] == "tie"
            assert one["difference"]["mean"] == 0
            assert one["p"] == 1


def test_only_the_variant_that_validation_chose_meets_the_test_prompts(finished):
    folder, record = finished
    (setting,) = {sweep["setting"] for sweep in record["sweeps"]}
    chosen = [sweep for sweep in record["sweeps"] if sweep["chosen"]]
    assert setting == "novel"
    assert len(record["sweeps"]) == 2
    assert len(chosen) == 1
    assert chosen[0]["value"]["mean"] == max(sweep["value"]["mean"] for sweep in record["sweeps"])
    for sweep in record["sweeps"]:
        assert sweep["variant"] in (folder / "results.md").read_text().replace("\\", "")
        assert sweep["variant"] in (folder / "results.html").read_text()
    for seed in (0, 1):
        for variant in cells(folder, seed).glob("continued_sft,*"):
            tested = sorted(path.name for path in variant.glob("eval/test-*"))
            files = ["test-0.json", "test-0.jsonl", "test-1.json", "test-1.jsonl"]
            expected = files if variant.name.endswith(chosen[0]["variant"]) else []
            assert tested == expected


def test_budgets_are_accounted_for(finished):
    folder, _ = finished
    outcome = {path.name: read_outcome(path / "stages/train.json") for path in cells(folder).iterdir()}
    assert outcome["dpr"].budget.samples == 8
    assert outcome["dpr"].budget.flops > 0
    assert outcome["sft"].budget.flops == outcome["sft"].budget.samples == 0
    for name in outcome:
        if name.startswith("continued_sft,"):  # as many demonstrations as DPR sampled completions
            assert outcome[name].budget.demonstrations == 8
            assert outcome[name].steps == 1
    sft = read_outcome(folder / "novel/seed-0/stages/sft.json")
    wanted = outcome["dpr"].budget.flops / (sft.budget.flops / sft.steps)
    assert outcome["continued_flops"].steps == max(1, round(wanted))


def test_the_seeds_share_held_out_prompts_and_no_prompt_is_in_two_splits(finished):
    folder, _ = finished
    rows = {
        (seed, split): [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        for seed in (0, 1)
        for split in ("train", "validation", "test")
        for path in [folder / f"novel/seed-{seed}/data/{split}.jsonl"]
    }
    assert rows[0, "test"] == rows[1, "test"]
    assert rows[0, "train"] != rows[1, "train"]
    assert not {*rows[0, "train"], *rows[1, "train"]} & {*rows[0, "test"], *rows[0, "validation"]}
    assert not {*rows[0, "test"]} & {*rows[0, "validation"]}


def test_the_same_command_does_nothing_twice_and_finishes_what_is_missing(finished, tmp_path):
    folder, record = finished
    copy = tmp_path / "grid"
    shutil.copytree(folder, copy)
    shutil.rmtree(cells(copy) / "dpr")
    (cells(copy) / "contrastive/eval/test-0.json").unlink()
    # The temperatures of a split are answered together, so what is left of one is made anew with it.
    again_asked = set((cells(copy) / "contrastive/eval").glob("test-*"))
    kept = {path: path.stat().st_mtime_ns for path in set(copy.rglob("eval/*.json")) - again_asked}
    model = (copy / "novel/seed-0/sft/model/model.safetensors").stat().st_mtime_ns
    # The folder has moved, and a folder of models is named in its configurations.
    for path in copy.rglob("config.yaml"):
        path.write_text(path.read_text().replace(str(folder), str(copy)))
    again = experiment(copy)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (copy / "novel/seed-0/sft/model/model.safetensors").stat().st_mtime_ns == model
    for before, after in zip(record["settings"][0]["rows"], again["settings"][0]["rows"], strict=True):
        assert (before["method"], before["value"]) == (after["method"], after["value"])


def test_a_cell_of_another_recipe_is_not_mixed_in(finished, tmp_path):
    copy = moved(finished, tmp_path)
    shutil.rmtree(cells(copy, seed=1) / "dpr")  # trained anew, and seed 0 is there with the rate of before
    with pytest.raises(DensepathError, match="tasks failed"):
        experiment(copy, methods={**METHODS, "dpr": {"dpr_learning_rate": 1e-3}})
    assert "novel/seed-0/dpr: failed" in experiment.printed
    assert "dpr_learning_rate: 5e-06 -> 0.001" in experiment.printed
    rows = json.loads((copy / "results.json").read_text())["settings"][0]["rows"]
    missing = {row["method"]: row["missing_seeds"] for row in rows}
    assert missing == {**{name: [] for name in METHODS}, "dpr": [0], "continued_flops": [0]}
    (dpr, _) = (row for row in rows if row["method"] == "dpr")
    assert (dpr["status"], list(dpr["by_seed"])) == ("incomplete", ["1"])


@pytest.mark.slow
def test_a_variant_of_another_recipe_is_not_chosen(finished, tmp_path):
    copy = moved(finished, tmp_path)
    (chosen,) = (sweep["variant"] for sweep in finished[1]["sweeps"] if sweep["chosen"])
    config = cells(copy) / f"continued_sft,{chosen}" / "config.yaml"
    config.write_text(config.read_text().replace("num_generations: 4", "num_generations: 8"))
    with pytest.raises(DensepathError, match="1 of"):
        experiment(copy)
    sweeps = json.loads((copy / "results.json").read_text())["sweeps"]
    assert {sweep["variant"]: (sweep["chosen"], sweep["seeds"]) for sweep in sweeps} == {
        sweep["variant"]: (False, 1) if sweep["variant"] == chosen else (True, 2) for sweep in sweeps
    }


@pytest.mark.slow
def test_a_new_method_that_refuses_the_rows_takes_nothing_out_of_a_finished_table(finished, tmp_path):
    copy = moved(finished, tmp_path)
    first = r"2 of .* tasks failed \(.*\), the first with: .*training row 1 has no such column"
    with pytest.raises(DensepathError, match=first):  # a cell for each seed
        experiment(copy, methods={**METHODS, "purified_sft": {"purify_kind_column": "tsak"}})
    assert "training row 1 has no such column" in experiment.printed
    rows = json.loads((copy / "results.json").read_text())["settings"][0]["rows"]
    assert {row["method"]: row["missing_seeds"] for row in rows} == {
        **{name: [] for name in METHODS},
        "purified_sft": [0, 1],
    }


@pytest.mark.slow
def test_a_cell_that_was_given_what_its_setting_decides_goes_on_without(finished, tmp_path):
    copy = moved(finished, tmp_path)
    for path in cells(copy).glob("*/config.yaml"):
        given = {**yaml.safe_load(path.read_text()), "arms": ["dft"], "sft_max_steps": 9, "dpr_push_to_hub": False}
        path.write_text(yaml.safe_dump(given))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("model.safetensors")}
    assert experiment(copy)["settings"] == finished[1]["settings"]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("model.safetensors")} == before


@pytest.mark.slow
def test_of_a_cell_that_failed_when_it_was_asked_what_was_found_counts_and_no_test_begins(
    finished, tmp_path, monkeypatch
):
    copy = moved(finished, tmp_path)
    (chosen,) = (sweep["variant"] for sweep in finished[1]["sweeps"] if sweep["chosen"])
    for seed in (0, 1):
        asked = cells(copy, seed) / f"continued_sft,{chosen}" / "eval"
        (asked / "validation-0.json").unlink()
        (asked / "test-1.json").unlink()

    def unreached(*_):
        raise ConnectionError("the judge is not reached")

    monkeypatch.setattr("densepath.pipeline.cells.ask", unreached)
    with pytest.raises(DensepathError, match=r"^2 of \d+ tasks failed"):  # neither of the two tests
        experiment(copy)
    (sweep,) = (one for one in json.loads((copy / "results.json").read_text())["sweeps"] if one["variant"] == chosen)
    assert (sweep["decoding"], sweep["seeds"]) == ("temperature 1", 2)
    assert list((copy / "failures").glob("*.txt"))
    monkeypatch.undo()
    experiment(copy)
    assert not (copy / "failures").exists()


def test_a_test_prompt_among_the_demonstrations_is_refused(tmp_path):
    train = regime_rows(SFT[Regime.HABIT], 40, seed=0)
    held_out = regime_rows(SFT[Regime.HABIT], 30, seed=0, held_out=True)
    train[17] = {**held_out[25], "prompt": held_out[25]["prompt"].replace(" ", "  ")}  # spaces do not hide it
    for name, rows in (("train", train), ("held_out", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from densepath.pipeline.regimes import before_sft

    model = before_sft(tmp_path / "models", Regime.SCRATCH, 0, Console(file=io.StringIO()))
    settings = {
        "leak": {
            "dataset_name": str(tmp_path / "train.jsonl"),
            "eval_dataset_name": str(tmp_path / "held_out.jsonl"),
            "dataset_test_split": "train",
            "model_name_or_path": str(model),
        }
    }
    with pytest.raises(DensepathError, match="tasks failed"):
        experiment(tmp_path / "grid", settings=settings, seeds=[0])
    assert "have the same prompt" in experiment.printed
    assert not list((tmp_path / "grid").rglob("eval/*.json"))
    assert not (tmp_path / "grid/leak/seed-0/sft").exists()


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["experiment", "--output_dir", str(tmp_path / "x")]) == 2
    assert "settings is empty" in capsys.readouterr().err
    assert main(["experiment", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_an_experiment_without_a_verifier_is_refused(tmp_path):
    with pytest.raises(DensepathError, match=r"settings\.novel: an experiment needs a verifier"):
        experiment(tmp_path / "grid", verifier=None)


def test_of_a_model_that_no_plan_can_be_made_of_one_cell_is_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    GPT2Config(n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "fsdp1.yaml").write_text("distributed_type: FSDP\n")
    given = {"settings": {"a": {"dataset_name": "rows.jsonl"}}, "model_name_or_path": str(tmp_path / "gpt2")}
    arguments = ExperimentArguments(**given, methods={"sft": {}}, verifier="exact_match")
    reasons = ({}, "has formulas for dense"), ({"accelerate_config": str(tmp_path / "fsdp1.yaml")}, "of FSDP's strat")
    for others, reason in reasons:
        console = Console(file=io.StringIO(), width=1000)
        assert processes(arguments, read_recipe(arguments, others), console)[0] == 1
        assert re.search(f"one cell at once, since there is no memory plan: .*{reason}", console.file.getvalue())


def test_one_process_alone_works_in_an_experiment(tmp_path):
    lock = hold_lock(tmp_path / "grid/.lock", "busy")
    with pytest.raises(DensepathError, match="another densepath process works in this experiment"):
        experiment(tmp_path / "grid")
    lock.release()
    assert not (tmp_path / "grid/experiment.yaml").exists()


# -- what validation chooses, and for whom -------------------------------------------------------------------------


@pytest.mark.parametrize("found", [None, ("0.75", 0.5, False), ("0.75", 1.0, True)])
def test_the_choice_fills_in_what_an_arm_leaves_open_and_nothing_else(tmp_path, found):
    choice = ReferenceChoice("auto", "", "", None if found is None else ChosenReference(*found))
    write_json_atomic(tmp_path / "selection.json", to_json(choice))
    of_choice = found or (None, 2.0)  # where none helps the first candidate is left for beta
    for reference in ("auto", "0.25"):
        for beta in ("auto", "0.1"):
            recipe = RunArguments(
                reference=reference, beta=beta, candidate_betas=[2.0, 1.0] if beta == "auto" else [1.0]
            )
            arm = settled(recipe, tmp_path)
            if reference == "auto" and found is None:
                assert arm is None
                continue
            assert arm.reference == (of_choice[0] if reference == "auto" else "0.25")
            assert float(arm.beta) == (of_choice[1] if beta == "auto" else 0.1)


def test_arms_of_one_choice_are_trained_with_what_each_was_given(tmp_path):
    """The setting gives both keys, and one arm alone leaves its reference open: it may have any that SFT kept."""
    methods = {
        "sft": {},
        "open": {"method": "dpr", "reference": "auto"},
        "half": {"method": "dpr", "reference": "0.5", "beta": "auto"},
        "dpr": {"tune": {"beta": [0.25, 4]}},
    }
    folder = tmp_path / "grid"
    experiment(folder, methods=methods, seeds=[0], candidate_betas=[3.0])
    choice = json.loads((folder / "novel/seed-0/selection.json").read_text())
    assert choice["mode"] == "auto"
    assert {row["reference"] for row in choice["rows"]} == {"0", "0.5"}
    assert not any(row["capped"] for row in choice["rows"])  # dpr_capped is an arm of its own
    beta = {
        path.parts[-3]: json.loads(path.read_text())["beta"] for path in cells(folder).glob("*/model/densepath.json")
    }
    open_one = {} if choice["chosen"] is None else {"open": 1.0}  # else SFT stands for it
    assert beta == {"dpr,beta=0.25": 0.25, "dpr,beta=4": 4.0, "half": 3.0, **open_one}
