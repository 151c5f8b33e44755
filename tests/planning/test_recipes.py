"""The recipes for large models: they parse, fit the GPU they name, and show the plan that the command prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from densepath.cli.arguments import parse
from densepath.cli.main import main
from densepath.pipeline.config import RunArguments
from densepath.pipeline.training import dpr_config, sft_config

ROOT = Path(__file__).parents[2]
PARAMETERS = {  # as their publishers' weights hold them; Gemma's without the image tower
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "mistral-7b-v0.3": 7_248_023_552,
    "gemma-3-4b": 3_880_263_168,
    "qwen3-0.6b": 596_049_920,
}


def test_every_recipe_for_a_large_model_is_tested_here():
    assert {path.stem for path in ROOT.glob("recipes/*.yaml")} == {"quickstart", *PARAMETERS}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_shows_its_plan(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["plan", "--config", f"recipes/{name}.yaml"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert f"{PARAMETERS[name]:,} parameters" in printed[0]
    comments = [
        line[1:].removeprefix(" ")
        for line in Path(f"recipes/{name}.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    ]
    assert comments[-len(printed) :] == printed


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_that_does_not_fit_is_refused_with_the_term(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--config", f"recipes/{name}.yaml", "--gpu_memory", "8"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.match(r"densepath: error: \w+ needs [\d.]+ GiB .*takes? [\d.]+ GiB; ", message), message


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_makes_the_configs_of_its_stages(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    path = f"recipes/{name}.yaml"
    arguments, others = parse(
        RunArguments,
        ["--config", path],
        prog="densepath run",
        description="",
        passthrough={"sft_": "TRL's SFTConfig", "dpr_": "DPRConfig"},
    )
    sft, dpr = sft_config(arguments, others, tmp_path), dpr_config(arguments, others, tmp_path, 0.5)
    given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    assert sft.gradient_accumulation_steps == given["sft_gradient_accumulation_steps"]
    assert (dpr.use_vllm, dpr.max_completion_length) == (given["dpr_use_vllm"], given["max_completion_length"])
    assert Path(given["accelerate_config"]).is_file()
