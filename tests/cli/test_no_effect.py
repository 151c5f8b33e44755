"""What was given and cannot take effect is refused, with the argument that it would need."""

from __future__ import annotations

import pytest

from densepath.cli.main import main
from densepath.config.experiment import ExperimentArguments
from densepath.errors import ConfigError
from densepath.pipeline.recipe import read_recipe

RUN = "run --model_name_or_path m --dataset_name d"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{RUN} --lora_r 8", "lora_r=8 has no effect without use_peft: leave it out"),
        ("sft --model_name_or_path m --dataset_name d --lora_alpha 8", "lora_alpha=8 has no effect without use_peft"),
        (f"{RUN} --dataset_test_split dev", "dataset_test_split='dev' has no effect without eval_dataset_name"),
        (f"{RUN} --task_families count", "with dataset_name=d: it is for text_tasks: leave it out"),
        (f"{RUN} --judge_repeats 2", "judge_repeats=2 has no effect without judge"),
        (f"{RUN} --max_calls 2", "max_calls=2 has no effect without judge"),
        (f"{RUN} --judge local:x --max_calls 2", "max_calls=2 has no effect with judge=local:x, which is no endpoint"),
        (f"{RUN} --beta 1 --candidate_betas 0.5", "candidate_betas=[0.5] has no effect with beta=1"),
        (f"{RUN} --arms dpr --purify_rounds 2", "purify_rounds=2 has no effect without purified_sft among arms"),
        (f"{RUN} --arms dpr --continued_sft samples", "has no effect without continued_sft among arms: leave it out"),
        ("diagnose --run_dir r --judge_both_orders false", "judge_both_orders=False has no effect without judge"),
    ],
)
def test_it_is_refused_in_one_line(words, message, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_what_takes_effect_is_taken(capsys):
    told = "--judge verifier:exact_match --second_judge openai:m --judge_base_url http://localhost:1/v1 --dry_run"
    assert main(["judge", "--benchmark", "nowhere.jsonl", "--models", "m", *told.split()]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_in_an_experiment_it_is_looked_at_in_each_setting():
    settings = {"toy": {"dataset_name": "text_tasks"}, "mine": {"dataset_name": "rows.jsonl"}}
    shared = {"model_name_or_path": "m", "task_families": ["count"], "methods": {"sft": {}}}
    read_recipe(ExperimentArguments(**shared, settings={"toy": settings["toy"]}), {})
    with pytest.raises(ConfigError, match=r"settings.mine: task_families=\['count'\] has no effect with"):
        read_recipe(ExperimentArguments(**shared, settings=settings), {})
