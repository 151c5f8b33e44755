"""What was given and cannot take effect is refused, with the argument that it would need."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from densepath.cli.arguments import parse
from densepath.cli.commands import RECIPE_KEYS
from densepath.cli.main import main
from densepath.config.experiment import ExperimentArguments
from densepath.config.run import READ_BY_ARMS, RunArguments
from densepath.errors import ConfigError
from densepath.methods import get_method, method_names
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
        (f"{RUN} --purify_rounds 0 --purify_keep 0.3", "purify_keep=0.3 has no effect with purify_rounds=0: leave it"),
        (
            "purify --model_name_or_path m --ref_model_name_or_path b --dataset_name d --purify_rounds 0 "
            "--purify_samples 9",
            "purify_samples=9 has no effect with purify_rounds=0",
        ),
        (f"{RUN} --arms dpr --continued_sft samples", "has no effect without continued_sft among arms: leave it out"),
        (
            f"{RUN} --arms sft --dpr_learning_rate 1",
            "dpr_learning_rate=1.0 has no effect with arms=sft, none of which",
        ),
        (
            f"{RUN} --arms base sft --dpr_max_steps 5 --max_prompt_length 9",
            "dpr_max_steps=5 have no effect with arms=",
        ),
        (f"{RUN} --arms sft --num_generations 8", "num_generations=8 has no effect with arms=sft"),
        (f"{RUN} --arms sft --dpr_weight_decay .3", "dpr_weight_decay=0.3 has no effect with arms=sft"),
        (f"{RUN} --arms sft dft --dpr_learning_rate 1", "dpr_learning_rate=1.0 has no effect with arms=sft dft"),
        (
            f"{RUN} --arms sft dpr --continued_sft_learning_rate 1e-3",
            "continued_sft_learning_rate=0.001 has no effect",
        ),
        (f"{RUN} --purify_dft true", "purify_dft=True has no effect without verifier or judge"),
        (
            f"{RUN} --sft_model_name_or_path x --arms dpr --sft_learning_rate 1e-3",
            "sft_learning_rate=0.001 has no effect where the SFT model is given, with arms=dpr, none of which reads",
        ),
        (
            f"{RUN} --sft_model_name_or_path x --arms dpr --sft_weight_decay .1",
            "sft_weight_decay=0.1 has no effect where the SFT model is given",
        ),
        (
            "score --model_name_or_path m --ref_model_name_or_path r --dataset_name d --reference_mean geometric",
            "reference_mean='geometric' has no effect with fewer than two references",
        ),
        (
            "generate --model_name_or_path m --dataset_name d --vllm_gpu_memory_utilization .5",
            "vllm_gpu_memory_utilization=0.5 has no effect without use_vllm",
        ),
        (
            "judge --benchmark b --models m --judge verifier:exact_match --dense_reward logprob",
            "dense_reward='logprob' has no effect without model_name_or_path",
        ),
        ("diagnose --run_dir r --num_generations 0 --betas 2", "betas=[2.0] has no effect with num_generations=0"),
        (
            "dpr --model_name_or_path m --dataset_name d --max_eval_samples 9",
            "has no effect without eval_dataset_name",
        ),
        (
            "reward-eval --model_name_or_path m --dense_reward logprob --dataset_name d --task preference "
            "--step_separator x",
            "step_separator='x' has no effect with task=preference",
        ),
        ("view scores.jsonl --html_file a.html --port 9", "port=9 has no effect with html_file"),
        ("view scores.jsonl --chat false", "chat=False has no effect without model_name_or_path"),
        ("diagnose --run_dir r --judge_both_orders false", "judge_both_orders=False has no effect without judge"),
    ],
)
def test_it_is_refused_in_one_line(words, message, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("--arms base sft", {"purify_behaviours=[2]", "continued_sft='samples'"}),
        ("--arms sft purified_sft --beta 1", {"continued_sft='samples'", "candidate_betas=[0.5]"}),
        ("--max_train_samples 8", set()),
    ],
)
def test_what_the_command_line_makes_a_recipe_lose_is_left_out(words, left, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model_name_or_path: m\ndataset_name: d\narms: [sft, continued_sft, purified_sft]\n"
        "continued_sft: samples\npurify_behaviours: [2]\ncandidate_betas: [0.5]\n"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, _ = parse(RunArguments, ["--config", str(recipe), *words.split()], prog="run", description="")
    assert {str(each.message).partition(" has no effect")[0] for each in said} == left
    assert found.candidate_betas == ([0.5, 1.0] if "candidate_betas=[0.5]" in left else [0.5])


def shipped(words):
    """The arguments and other keys of the quickstart with words of the command line, and what was said."""
    recipe = Path(__file__).parents[2] / "recipes/quickstart.yaml"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        argv = ["--config", str(recipe), *words.split()]
        found = parse(RunArguments, argv, prog="run", description="", passthrough=RECIPE_KEYS)
    return *found, [str(each.message) for each in said]


def test_what_belongs_together_is_left_out_together():
    found, others, said = shipped("--arms base sft --save_steps 7")
    assert (found.num_generations, found.dpr_per_device_train_batch_size) == (4, 32)
    assert others == {}
    (told,) = (each for each in said if "dpr_max_steps=5" in each)
    assert "dpr_per_device_train_batch_size=24" in told
    with pytest.raises(ConfigError, match=r"^dpr_max_steps=6 has no effect with arms=sft, none of which"):
        shipped("--arms sft --dpr_max_steps 6")
    assert shipped("--dpr_weight_decay 0.1 --dpr_use_vllm true")[1:] == (
        {"dpr_weight_decay": 0.1, "dpr_use_vllm": True},
        [],
    )


@pytest.mark.parametrize(
    "words",
    [
        "--arms sft --beta 2",  # the choice of the reference previews it
        "--arms sft --rl_prompts p.jsonl",  # of plain text they are the prompts
        "--arms sft dft --dpr_max_steps 5 --dpr_num_iterations 2 --continued_sft_learning_rate 1",
        "--arms sft filtered_sft --num_generations 8 --max_prompt_length 400",
        "--arms sft spin --dpr_learning_rate 1 --dpr_adam_beta1 .9",
        "--arms sft purified_sft --max_prompt_length 400 --sft_model_name_or_path x --sft_learning_rate 1 --beta 1",
        "--arms sft --sft_weight_decay .1 --dpr_chat_template_kwargs {} --gpu_memory 24 --max_prompt_length 9",
        "--purify_dft true --verifier exact_match",
    ],
)
def test_what_any_stage_reads_is_taken(words):
    argv = ["--model_name_or_path", "m", "--dataset_name", "d", *words.split()]
    parse(RunArguments, argv, prog="run", description="", passthrough=RECIPE_KEYS)


def test_what_arms_read_is_what_their_methods_are_trained_as():
    assert READ_BY_ARMS.keys() <= {*method_names()}
    prefixes = {None: [], "SFT": ["sft_"], "DPR": ["dpr_"], "self-play": ["dpr_"]}
    for name, keys in READ_BY_ARMS.items():
        assert [key for key in keys if key.endswith("_") and key[:-1] in ("sft", "dpr")] == prefixes[
            get_method(name).stage
        ], name


def test_what_the_command_line_gives_effect_is_no_mistake_of_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name_or_path: m\ndataset_name: d\njudge_repeats: 2\npurify_rounds: 2\n")
    argv = ["--config", str(recipe), "--judge", "local:j", "--arms", "sft", "dpr"]
    with pytest.warns(UserWarning, match="purify_rounds=2 has no effect without purified_sft among arms as the"):
        found, _ = parse(RunArguments, argv, prog="run", description="")
    assert (found.judge_repeats, found.purify_rounds) == (2, 1)


def test_a_recipe_by_itself_and_the_command_line_are_not_excused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name_or_path: m\ndataset_name: d\narms: [sft]\npurify_behaviours: [2]\n")
    for words in ([], ["--max_calls", "2"], ["--output_dir", "elsewhere"]):
        with pytest.raises(ConfigError, match="has no effect without"):
            parse(RunArguments, ["--config", str(recipe), *words], prog="run", description="")


def test_what_takes_effect_is_taken(capsys):
    told = "--judge verifier:exact_match --second_judge openai:m --judge_base_url http://localhost:1/v1 --dry_run"
    assert main(["judge", "--benchmark", "nowhere.jsonl", "--models", "m", *told.split()]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def purifying(rounds, *, top=None, settings=None, **methods):
    """The numbers of rounds with which an experiment on a file purifies, by setting and method."""
    settings = settings or {"mine": {}}
    methods = {"sft": {}, **(methods or {"purified_sft": {}})}
    shared = {"model_name_or_path": "m", "dataset_name": "rows.jsonl", **(top or {})}
    found = read_recipe(ExperimentArguments(**shared, settings=settings, methods=methods), {})
    plans = [plan for setting in found for plan in setting.methods.values() if plan.name != "sft"]
    assert [variant.arguments.purify_rounds for plan in plans for variant in plan.variants] == rounds


def test_in_an_experiment_what_is_shared_may_have_its_effect_elsewhere():
    purifying([0, 1], top={"purify_steps": 150}, settings={"cheap": {"purify_rounds": 0}, "full": {}})
    cheap, full = {"method": "purified_sft"}, {"method": "purified_sft", "purify_rounds": 2}
    purifying([0, 2], top={"purify_rounds": 0, "purify_samples": 50}, cheap=cheap, full=full)
    tuned = {"method": "purified_sft", "purify_keep": 0.3, "tune": {"purify_rounds": [0, 1]}}
    purifying([0, 1], tuned=tuned)


@pytest.mark.parametrize("given", [{"purify_keep": 0.3}, {"tune": {"purify_keep": [0.3, 0.5]}}])
def test_in_an_experiment_what_a_method_without_rounds_says_of_behaviours_is_refused(given):
    cheap = {"method": "purified_sft", "purify_rounds": 0, **given}
    with pytest.raises(ConfigError, match=r"methods.cheap: purify_keep=0.3 has no effect with purify_rounds=0: leave"):
        purifying([0], top={"purify_samples": 50}, cheap=cheap)


def test_in_an_experiment_it_is_looked_at_in_each_setting():
    settings = {"toy": {"dataset_name": "text_tasks"}, "mine": {"dataset_name": "rows.jsonl"}}
    shared = {"model_name_or_path": "m", "task_families": ["count"], "methods": {"sft": {}}}
    read_recipe(ExperimentArguments(**shared, settings={"toy": settings["toy"]}), {})
    with pytest.raises(ConfigError, match=r"settings.mine: task_families=\['count'\] has no effect with"):
        read_recipe(ExperimentArguments(**shared, settings=settings), {})
