"""A run that begins with an SFT model that is there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.pipeline.runs import run_argv, save_tiny_model
from tests.support import CHATML
from trl import SFTConfig

import densepath
from densepath.choice.inputs import SFTModels
from densepath.cli.main import main
from densepath.config.run import RunArguments
from densepath.data.splits import content_hash
from densepath.errors import ConfigError
from densepath.io import read_json, read_jsonl
from densepath.methods import SFTRun
from densepath.models.kept import kept_models
from densepath.models.load import load_tokenizer
from densepath.pipeline.data import SFT_SEED, prompts_of_sft
from densepath.pipeline.plan import plan_recipe
from densepath.pipeline.run import begin, run_pipeline, what_runs
from densepath.pipeline.run_folder import RunFolder
from densepath.terminal import terminal

QUICK = {"dpr_max_steps": 1, "eval_temperatures": [0], "dpr_eval_strategy": "no", "sft_max_steps": "none"}

DPR_ALONE = {"arms": ["dpr"], "sft_learning_rate": None, "sft_per_device_train_batch_size": None}
"""Beside a given SFT model nothing reads what SFT is told."""
UNREAD_BY_SFT = (
    *(*QUICK, *DPR_ALONE, "dpr_per_device_train_batch_size", "dpr_learning_rate", "dpr_eval_steps"),
    *("dpr_predict_with_generate", "num_generations", "save_steps"),
)
"""What a run that trains nothing is not told."""


def argv(tiny_model, folder, **changes):
    return run_argv(tiny_model, folder, **{**QUICK, **changes})


def test_the_models_of_a_finished_run_are_taken_and_no_sft_is_run(tmp_path, finished, tiny_model, capsys):
    source, _ = finished
    assert main(argv(tiny_model, tmp_path / "run", sft_from=source)) == 0
    out = capsys.readouterr().out
    assert f"SFT: {source}/sft/model, given; references: 0, 0.25, 0.5, 0.75" in out
    assert not (tmp_path / "run/sft/model").exists()
    (setting,) = read_json(tmp_path / "run/results.json")["settings"]
    assert {row["method"] for row in setting["rows"]} == {"base", "sft", "dpr", "continued_sft"}


def test_the_folder_of_an_sft_run_knows_the_model_before_it(tmp_path, finished, tiny_model, capsys):
    source, _ = finished
    words = argv(tiny_model, tmp_path / "run", sft_from=source, dry_run=True)
    at = words.index("--model_name_or_path")
    assert main([*words[:at], *words[at + 2 :]]) == 0
    assert f"{tiny_model} on text_tasks, with the SFT model {source}/sft/model, into " in capsys.readouterr().out
    other = save_tiny_model(tmp_path / "other", seed=7)
    assert main([*words[:at], "--model_name_or_path", str(other), *words[at + 2 :]]) == 2
    told = f"model_name_or_path={other} is not the model before the SFT of sft_from={source}, which is {tiny_model}"
    assert told in " ".join(capsys.readouterr().err.split())
    copy = shutil.copytree(tiny_model, tmp_path / "copy")  # the same model by another name
    assert main([*words[:at], "--model_name_or_path", str(copy), *words[at + 2 :]]) == 0


def test_dpr_starts_from_the_given_model_and_the_control_has_its_compute(tmp_path, finished, tiny_model):
    source, _ = finished
    model = tmp_path / "mine"
    shutil.copytree(source / "sft/model", model)
    folder = tmp_path / "run"
    twice = {"sft_gradient_accumulation_steps": 2}  # a step then costs as much again
    words = argv(tiny_model, folder, sft_model_name_or_path=model, reference=0, dpr_learning_rate=0, **twice)
    assert main(words) == 0
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder / "dpr/model", model))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    one, dpr, control = (
        RunFolder((folder / path).parents[1], read_only=True).outcome(Path(path).stem)
        for path in ("stages/sft.json", "dpr/stages/train.json", "continued_sft/stages/train.json")
    )
    assert one.steps == 1
    assert one.budget.demonstrations == 8
    assert control.steps == max(1, round(dpr.budget.flops / one.budget.flops))
    # a step of the control is on average what was said of one
    assert control.budget.flops / control.steps == pytest.approx(one.budget.flops, rel=0.3)
    assert main([*words, "--sft_model_name_or_path", str(source / "sft/references/0.5")]) == 2


@pytest.mark.slow
def test_every_arm_of_a_given_model_trains_an_adapter_where_one_is_asked_for(tmp_path, finished, tiny_model):
    source, _ = finished
    names = ["continued_sft", "spin", "dpr"]
    given = {"sft_model_name_or_path": source / "sft/model", "reference": 0, "use_peft": True, "lora_r": 2}
    assert main(argv(tiny_model, tmp_path / "run", **given, arms=["sft", *names])) == 0
    for name in names:
        model = tmp_path / f"run/{name}/model"
        assert read_json(model / "adapter_config.json")["r"] == 2, name
        assert not (model / "model.safetensors").exists(), name


@pytest.mark.slow
def test_every_stage_after_a_given_model_reads_as_the_recipe_says(tmp_path, tiny_model):
    """Its folder was told nothing of the template: what is counted, trained on, sampled and saved is the recipe's."""
    told = CHATML.replace("You help.", "Reply with the answer only. " * 5)
    (tmp_path / "told.jinja").write_text(told, encoding="utf-8")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{chr(97 + i % 26)}{chr(97 + i // 26)}"}],
            "completion": [{"role": "assistant", "content": "the answer"}],
            "answer": "x",
        }
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["continued_sft", "spin", "extrapolation", "dpr"]
    assert main(argv(
        *(tiny_model, tmp_path / "run"),
        sft_model_name_or_path=save_tiny_model(tmp_path / "mine", seed=1),
        **{"dataset_name": tmp_path / "rows.jsonl", "chat_template_path": tmp_path / "told.jinja"},
        **{"reference": 0, "beta": 1, "arms": ["sft", *names]},
    )) == 0  # fmt: skip
    for name in names:
        assert load_tokenizer(tmp_path / f"run/{name}/model").chat_template == told, name
    data = read_json(tmp_path / "run/data.json")["train"]
    budget = RunFolder(tmp_path / "run/continued_sft", read_only=True).outcome("train").budget
    # every row has as many tokens as the data stage counted, and so has what continued SFT was trained on
    assert budget.tokens / budget.demonstrations == data["tokens"] / data["rows"]


def test_a_stage_after_sft_has_one_way_to_its_tokenizer():
    """`SFTRun.tokenizer`: one that is loaded from the model's folder alone forgets what the recipe says."""
    source = Path(densepath.__file__).parent
    loading = {str(path.relative_to(source)) for path in source.rglob("*.py") if "load_tokenizer" in path.read_text()}
    assert {name for name in loading if name.startswith("methods/")} == {"methods/_stage.py"}
    after = {f"pipeline/{name}.py" for name in ("evaluation", "selection", "against_sft", "samples")}
    assert not after & loading


def test_a_reference_that_is_not_there_is_said_before_anything_is_written(tmp_path, tiny_model, capsys):
    """The corrected command goes into the same folder."""
    given = {"sft_model_name_or_path": tiny_model, "ref_model_name_or_path": "org/checkpoint-4"}
    assert main(argv(tiny_model, tmp_path / "run", **given, reference=0.5)) == 2
    said = "reference=0.5: none was kept there; choose one of 0, checkpoint-4, auto, or a path"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    on_hub = RunArguments(model_name_or_path=tiny_model, sft_model_name_or_path="a", ref_model_name_or_path=["org/b"])
    assert SFTRun(tmp_path, on_hub).reference("b") == "org/b"


def test_a_run_from_python_is_told_what_is_missing_and_takes_the_model_that_a_folder_knows(tmp_path, finished, capsys):
    source, _ = finished
    for missing, others in (
        ("dataset_name", {"model_name_or_path": "a"}),
        ("model_name_or_path", {"dataset_name": "b"}),
    ):
        with pytest.raises(ConfigError, match=f"^{missing} is missing: "):
            run_pipeline(RunArguments(output_dir=str(tmp_path / "run"), **others))
    with pytest.raises(ConfigError, match=r"^model_name_or_path is missing: "):
        plan_recipe(RunArguments(), {})
    recipe = RunArguments(output_dir="out", dataset_name="text_tasks", sft_from=str(source), max_completion_length=6)
    found, _ = begin(recipe, {}, terminal())
    assert found.model_name_or_path == SFTRun(tmp_path, recipe).base
    own = f"{found.model_name_or_path} on text_tasks, with the SFT model {source}/sft/model, into out"
    assert own in " ".join(capsys.readouterr().out.split())
    assert what_runs(RunArguments(model_name_or_path="a", dataset_name="b", output_dir="c")) == "a on b, into c"
    assert not (tmp_path / "run").exists()


def test_the_shortest_context_of_the_given_models_is_that_of_the_run(tmp_path, tiny_model):
    short = save_tiny_model(tmp_path / "checkpoint-1", max_position_embeddings=40)
    given = {"model_name_or_path": tiny_model, "sft_model_name_or_path": tiny_model}
    alone, beside = (RunArguments(**given, ref_model_name_or_path=refs) for refs in ([], [short]))
    assert (SFTRun(tmp_path, alone).context, SFTRun(tmp_path, beside).context) == (256, 40)
    assert SFTModels(tiny_model, {"0": tiny_model, "1": short}, None).context == 40


@pytest.mark.slow
def test_no_setting_of_an_experiment_trains_the_given_model_again(tmp_path, finished, tiny_model):
    source, _ = finished
    recipe = {
        "output_dir": str(tmp_path / "grid"),
        "settings": {
            "mine": {"model_name_or_path": tiny_model, "dataset_name": "text_tasks", "sft_from": str(source)}
        },
        "methods": {"sft": {}, "contrastive": {"tune": {"reference": ["0", "0.5"]}}},
        "seeds": [0],
        "num_workers": 1,
        "beta": 1,
        **{"max_train_samples": 18, "num_validation_samples": 4, "num_test_samples": 4, "eval_temperatures": [0]},
        **{"verifier": "exact_match", "max_completion_length": 6},
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(recipe))
    assert main(["experiment", "--config", str(tmp_path / "grid.yaml")]) == 0
    assert not list((tmp_path / "grid").rglob("model.safetensors"))
    (setting,) = read_json(tmp_path / "grid/results.json")["settings"]
    assert {row["method"] for row in setting["rows"]} == {"sft", "contrastive"}


@pytest.mark.slow
def test_checkpoints_of_another_tool_are_references_by_the_names_of_their_folders(tmp_path, finished, tiny_model):
    source, _ = finished
    for name, kept in (("mine", "sft/model"), ("checkpoint-4", "sft/references/0.5")):
        shutil.copytree(source / kept, tmp_path / name)
    words = argv(
        *(tiny_model, tmp_path / "run"),
        sft_model_name_or_path=tmp_path / "mine",
        ref_model_name_or_path=tmp_path / "checkpoint-4",
        reference="auto",
        **DPR_ALONE,
    )
    assert main(words) == 0
    findings = read_json(tmp_path / "run/selection.json")["findings"]
    assert {one["reference"] for one in findings["candidates"]} >= {"0", "checkpoint-4"}
    assert "reference checkpoint-4 weights" in str(read_json(tmp_path / "run/inputs.json"))
    words = argv(
        *(tiny_model, tmp_path / "fixed"),
        sft_model_name_or_path=tmp_path / "mine",
        ref_model_name_or_path=tmp_path / "checkpoint-4",
        reference="checkpoint-4",
        beta=1,
        **DPR_ALONE,
    )
    assert main(words) == 0
    assert read_json(tmp_path / "fixed/selection.json")["chosen"]["reference"] == "checkpoint-4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sft_from": "a", "sft_max_steps": 2},
            "sft_max_steps=2 has no effect where the SFT model is given: leave it",
        ),
        ({"sft_from": "a", "reference_fractions": [0.5]}, "has the references that are there: leave it out"),
        ({"ref_model_name_or_path": "a"}, "has no effect without sft_model_name_or_path: leave it out"),
        ({"sft_from": "nowhere"}, "nowhere: no such folder; give the output_dir of densepath sft or run"),
        ({"sft_from": "a", "sft_model_name_or_path": "b"}, "both name the SFT model; give one of them"),
        ({"sft_model_name_or_path": "./nothing", "reference": "auto"}, "no such model folder: ./nothing"),
    ],
)
def test_what_is_not_there_is_said_at_once(tmp_path, tiny_model, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    assert main(argv(tiny_model, tmp_path / "run", **changes)) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_the_catalogue_keeps_its_name(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("model_name_or_path: smollm2-135m-instruct\n")
    assert kept_models(tmp_path).references == {"0": "smollm2-135m-instruct"}


def test_held_out_prompts_that_the_given_model_was_trained_on_are_told(tmp_path, finished, tiny_model, capsys):
    source, _ = finished
    trained = source / "data/train.jsonl"
    words = argv(
        *(tiny_model, tmp_path / "run"),
        sft_from=source,
        arms=["sft"],
        task_families="sort_words",  # other prompts than those that SFT has seen
        eval_dataset_name=trained,
        **dict.fromkeys(key for key in UNREAD_BY_SFT if key != "arms"),
    )
    assert main(words) == 0
    assert "4 of 4 test prompts were trained on" in " ".join(capsys.readouterr().out.split())
    (setting,) = read_json(tmp_path / "run/results.json")["settings"]
    assert [said.partition(" were ")[0] for said in setting["warnings"][:2]] == [
        "4 of 4 validation prompts",
        "4 of 4 test prompts",
    ]
    rows = read_jsonl(trained)
    found, hashes = prompts_of_sft(tmp_path, {"dataset_name": str(trained), "max_train_samples": 3})  # densepath sft's
    assert (found, len(hashes)) == (str(trained), 3)
    assert hashes < set(map(content_hash, rows))
    assert prompts_of_sft(tmp_path, {"dataset_name": "owner/name"}) == ("owner/name", set())
    assert SFTConfig.seed == SFT_SEED
