"""The recipes for large models: they parse, fit the GPU they name, and show the plan that the command prints.

`python -m tests.planning.test_recipes` writes the plans into the recipes again, after a change of a formula.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

from densepath.cli.arguments import parse
from densepath.cli.main import main
from densepath.config.run import RunArguments
from densepath.methods._stage import dpr_config, sft_config
from densepath.pipeline.run import check_configuration

ROOT = Path(__file__).parents[2]
PARAMETERS = {  # as their publishers' weights hold them; Gemma's without the image tower
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-8b-48gb": 8_030_261_248,
    "llama-3.1-8b-24gb": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "mistral-7b-v0.3": 7_248_023_552,
    "gemma-3-4b": 3_880_263_168,
    "qwen3-0.6b": 596_049_920,
}
EXPERIMENTS = {"regimes", "sweeps", "gsm8k", "formats", "real-model"}


def test_every_recipe_for_a_large_model_is_tested_here():
    assert {path.stem for path in ROOT.glob("recipes/*.yaml")} - EXPERIMENTS == {"quickstart", *PARAMETERS}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    """Recipes name accelerate files from the root of the repository."""
    monkeypatch.chdir(ROOT)


def printed_plan(name: str) -> str:
    """What `densepath plan` prints for a recipe, as comments."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["plan", "--config", str(ROOT / f"recipes/{name}.yaml")]) == 0
    return "".join(f"# {line}".rstrip() + "\n" for line in out.getvalue().splitlines())


def shown_plan(text: str) -> tuple[int, int]:
    """Where the plan stands in a recipe: from the line after the sentence about it to the first empty line."""
    start = text.index(" prints it:\n#\n") + len(" prints it:\n#\n")
    return start, text.index("\n\n", start - 1) + 1


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_shows_its_plan(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = Path(f"recipes/{name}.yaml").read_text(encoding="utf-8")
    start, stop = shown_plan(text)
    printed = printed_plan(name)
    assert f"{PARAMETERS[name]:,} parameters" in printed.splitlines()[0]
    assert "# fits: " in printed
    assert text[start:stop] == printed, "run: python -m tests.planning.test_recipes"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_names_the_accelerate_file_the_vllm_mode_and_where_its_rates_come_from(name):
    text = Path(f"recipes/{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert re.search(r"^# vLLM: (colocate|server|none)\.", text, flags=re.MULTILINE)
    assert values["dpr_use_vllm"] == ("dpr_vllm_mode" in values)
    assert "LoRA Without Regret" in text or "TRL's SFTConfig" in text
    assert "TRL's GRPOConfig" in text
    for file in re.findall(r"recipes/accelerate/[\w.]+yaml", text):
        assert Path(file).is_file()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_that_does_not_fit_is_refused_with_the_term(name, capsys):
    assert main(["plan", "--config", f"recipes/{name}.yaml", "--gpu_memory", "6"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.match(r"densepath: error: \w+ needs [\d.]+ GiB .*takes? [\d.]+ GiB; ", message), message


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_makes_the_configs_of_its_stages(name, tmp_path, monkeypatch):
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
    monkeypatch.setattr("densepath.trainers.refusals.is_vllm_available", lambda: True)  # as where the recipe is for
    monkeypatch.setattr("densepath.pipeline.run.check_four_bit", lambda: None)
    check_configuration(arguments, others)  # what densepath run refuses before its first stage


if __name__ == "__main__":
    for recipe in PARAMETERS:
        path = ROOT / f"recipes/{recipe}.yaml"
        content = path.read_text(encoding="utf-8")
        begin, end = shown_plan(content)
        path.write_text(content[:begin] + printed_plan(recipe) + content[end:], encoding="utf-8")
