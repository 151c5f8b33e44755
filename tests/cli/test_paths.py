"""A path means the same to every part of a command, and is printed as it was written."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
from trl import SFTConfig

from densepath.cli.arguments import parse
from densepath.cli.main import main
from densepath.config.answers import EvalArguments, GenerateArguments
from densepath.config.choice import DiagnoseArguments
from densepath.config.experiment import ExperimentArguments
from densepath.config.pages import ServeArguments, ViewArguments
from densepath.config.reward import AuditArguments, RankArguments, RewardEvalArguments, ScoreArguments
from densepath.config.run import PlanArguments, RunArguments
from densepath.config.training import DPRArguments, SFTArguments
from densepath.pipeline.recipe import read_recipe
from densepath.trainers.trl_config import trl_config

ROWS = [{"prompt": f"Say {i}:", "completion": f" {i} and on"} for i in range(6)]
COMMANDS = [
    *(
        RunArguments,
        PlanArguments,
        SFTArguments,
        DPRArguments,
        EvalArguments,
        GenerateArguments,
        DiagnoseArguments,
        ScoreArguments,
    ),
    *(ServeArguments, AuditArguments, RankArguments, RewardEvalArguments, ViewArguments),
]
PATHS = ("_dir", "_file", "_path", "dataset_name", "rl_prompts", "accelerate_config")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of our own; the working directory is another one."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def path_fields(kind: typing.Any) -> list[str]:
    hints = typing.get_type_hints(kind)
    if kind is ViewArguments:
        return ["html_file", "scores_file"]
    text = [f.name for f in dataclasses.fields(kind) if str in (hints[f.name], *typing.get_args(hints[f.name]))]
    return [name for name in text if name.endswith(PATHS)]


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_the_home_folder_is_meant_in_every_path(kind: typing.Any, home: Path) -> None:
    ends = dict.fromkeys(path_fields(kind), "") | {"output_file": ".jsonl", "html_file": ".html"}
    ends = {name: end for name, end in ends.items() if name in path_fields(kind)}
    separate = [word for name, end in ends.items() for word in (f"--{name}", f"~/a b/x{end}")]
    joined = [f"--{name}=~/a b/x{end}" for name, end in ends.items()]
    needed = ["--drop", "duplicate"] if kind is AuditArguments else []
    for words in (separate, joined):
        arguments, _ = parse(kind, [*needed, *words], prog="densepath", description="")
        for name, end in ends.items():
            assert getattr(arguments, name) in (f"{home}/a b/x{end}", [f"{home}/a b/x{end}"])


GIVEN = "model_name_or_path: m\ndataset_name: d\n"


def test_the_home_folder_is_meant_in_a_recipe_and_what_it_gives_to_trl(home: Path) -> None:
    (home / "r.yaml").write_text("output_dir: ~/out\nlogging_dir: ~/logs\nrun_name: ~\neos_token: '~'\n" + GIVEN)
    arguments, others = parse(
        SFTArguments, ["--config", "~/r.yaml"], prog="", description="", passthrough={"": "TRL's SFTConfig"}
    )
    assert arguments.output_dir == f"{home}/out"
    assert arguments.eos_token == "~"  # no folder
    assert others == {"logging_dir": f"{home}/logs", "run_name": None}
    assert trl_config(SFTConfig, {"output_dir": "~/x", "use_cpu": True, "bf16": False}).output_dir == f"{home}/x"


def test_the_home_folder_is_meant_in_the_settings_of_an_experiment(home: Path) -> None:
    recipe = ExperimentArguments(
        settings={"a": {"dataset_name": "~/rows.jsonl"}}, methods={"sft": {}}, output_dir="x", verifier="exact_match"
    )
    assert read_recipe(recipe, {})[0].arguments.dataset_name == f"{home}/rows.jsonl"


@pytest.mark.parametrize("name", ["~/run", "run [v2]", "a[/b]/checks:one", "./läufe 日本/"])
def test_the_path_that_is_printed_is_the_path_that_was_written(
    name: str, home: Path, models: dict[str, str], write_jsonl: typing.Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", "--model_name_or_path", models["sft"], "--dataset_name", write_jsonl("rows.jsonl", ROWS)]
    words += ["--output_dir", name, "--max_steps", "2", "--save_steps", "1", "--per_device_train_batch_size", "1"]
    words += ["--reference_fractions", "0.5"]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()[-1].removeprefix("model: ")
    folder = home / "run" if name.startswith("~") else Path(name)
    assert Path(printed) == (folder / "model").resolve()
    assert (folder / "model/model.safetensors").is_file()
    assert (folder / "references/0.5/model.safetensors").is_file()
    assert (folder / "metrics.jsonl").is_file()
    assert not Path("~").exists()
    assert main(words) == 0
    assert f"{folder / 'model'} is there already" in capsys.readouterr().out


def test_a_reason_is_printed_as_it_is(
    home: Path, models: dict[str, str], write_jsonl: typing.Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl("rows [-v2]:smile:.jsonl", ROWS)
    words = ["sft", "--model_name_or_path", models["sft"], "--dataset_name", source, "--output_dir", "x"]
    assert main([*words, "--max_length", "2", "--max_steps", "1"]) == 2
    assert "rows [-v2]:smile:.jsonl" in capsys.readouterr().err
