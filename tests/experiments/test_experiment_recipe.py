"""The recipe of an experiment: which cells it asks for, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from densepath.cli.arguments import parse
from densepath.config.experiment import ExperimentArguments
from densepath.config.recipe_yaml import RecipeDumper, Word, read_yaml
from densepath.errors import ConfigError
from densepath.pipeline.grid import Grid
from densepath.pipeline.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = {
    "settings": {"habit": {"dataset_name": "regime:habit"}, "novel": {"dataset_name": "regime:novel", "beta": 2}},
    "verifier": "exact_match",
    "dpr_max_steps": 7,
    "sft_warmup_steps": 3,
    "methods": {
        "sft": {},
        "dpr": {"reference": 0, "dpr_gamma": 0.9},
        "sequence": {"method": "dpr", "control": True, "dpr_reward_level": "sequence", "settings": ["habit"]},
        "continued_sft": {
            "tune": {"continued_sft_learning_rate": [1e-4, 1e-3], "sft_per_device_train_batch_size": [8]}
        },
    },
}


def read(tmp_path, changes=None, words=()):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **(changes or {})}))
    arguments, others = parse(
        ExperimentArguments,
        ["--config", str(path), *words],
        prog="densepath experiment",
        description="",
        passthrough={"sft_": "", "dpr_": ""},
    )
    return {setting.name: setting for setting in read_recipe(arguments, others)}


def test_keys_of_the_recipe_the_setting_and_the_method_win_in_that_order(tmp_path):
    settings = read(tmp_path)
    habit, novel = settings["habit"].methods, settings["novel"].methods
    assert habit["dpr"].variants[0].arguments.beta == "auto"
    assert novel["dpr"].variants[0].arguments.beta == "2"
    assert habit["dpr"].variants[0].arguments.dpr_max_steps == 7
    assert habit["dpr"].variants[0].others == {"sft_warmup_steps": 3, "dpr_gamma": 0.9}
    assert settings["habit"].others == {"sft_warmup_steps": 3}


def test_hyphens_in_a_setting_and_a_method_are_underscores(tmp_path):
    methods = {"sft": {}, "my-dpr": {"method": "dpr", "dpr-gamma": 0.9, "tune": {"dpr-max-steps": [1, 2]}}}
    settings = {"my-habit": {"dataset-name": "regime:habit", "sft-warmup-steps": 3}}
    (habit,) = read(tmp_path, {"settings": settings, "methods": methods}).values()
    assert (habit.name, habit.others) == ("my-habit", {"sft_warmup_steps": 3})
    assert [each.arguments.dpr_max_steps for each in habit.methods["my-dpr"].variants] == [1, 2]
    assert habit.methods["my-dpr"].variants[0].others["dpr_gamma"] == 0.9
    twice = {"sft": {}, "dpr": {"dpr-gamma": 0.9, "dpr_gamma": 0.8}}
    with pytest.raises(ConfigError, match=r"methods.dpr: dpr_gamma is given twice, with - and with _"):
        read(tmp_path, {"methods": twice})


def test_the_command_line_overrides_what_all_cells_share(tmp_path):
    settings = read(tmp_path, words=["--dpr_max_steps", "2", "--seeds", "5", "--dpr_gamma", "0.5"])
    (variant,) = settings["habit"].methods["sft"].variants
    assert variant.arguments.dpr_max_steps == 2
    assert variant.others["dpr_gamma"] == 0.5
    assert settings["habit"].methods["dpr"].variants[0].others["dpr_gamma"] == 0.9  # the method's own key stays


def test_tuned_values_become_variants_and_a_method_can_be_left_out_of_a_setting(tmp_path):
    settings = read(tmp_path)
    names = [variant.name for variant in settings["habit"].methods["continued_sft"].variants]
    assert names == [
        "continued_sft,continued_sft_learning_rate=0.0001,sft_per_device_train_batch_size=8",
        "continued_sft,continued_sft_learning_rate=0.001,sft_per_device_train_batch_size=8",
    ]
    assert "sequence" in settings["habit"].methods
    assert "sequence" not in settings["novel"].methods
    assert settings["habit"].methods["sequence"].arm.control
    assert not settings["habit"].methods["dpr"].arm.control


def test_a_word_is_a_truth_value_or_text_as_its_key_wants(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "verifier: exact_match\n"
        "settings: {a: {sft_save_strategy: no}}\n"
        "methods:\n"
        "  sft: {}\n"
        "  dpr: {control: no, use_peft: on, dpr_bf16: off, tune: {dpr_optim_args: [no, yes]}}\n"
        "  again: {method: dpr, control: yes, dpr_gradient_checkpointing_kwargs: {use_reentrant: no}}\n"
    )
    words = ["--config", str(path)]
    given = {"prog": "densepath experiment", "description": "", "passthrough": {"sft_": "", "dpr_": ""}}
    arguments, others = parse(ExperimentArguments, words, **given)
    (setting,) = read_recipe(arguments, others)
    methods = setting.methods
    assert (methods["dpr"].arm.control, methods["again"].arm.control) == (False, True)
    assert all(variant.arguments.use_peft is True for variant in methods["dpr"].variants)
    assert [variant.others["dpr_optim_args"] for variant in methods["dpr"].variants] == ["no", "yes"]
    assert methods["again"].variants[0].others["dpr_gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    for plan in methods.values():
        for variant in plan.variants:
            assert variant.others["sft_save_strategy"] == "no"
            assert all(type(value) in (str, bool, dict) for value in variant.others.values())
    kept = yaml.dump(arguments.methods, Dumper=RecipeDumper)
    assert read_yaml(kept, "kept") == arguments.methods
    assert isinstance(read_yaml(kept, "kept")["dpr"]["control"], Word)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"dpr": {}}}, "add `sft: {}`"),
        ({"methods": {"sft": {}, "dpo": {}}}, "methods.dpo: no method 'dpo'; did you mean dpr"),
        ({"methods": {"sft": {}, "dpr": {"bta": 1}}}, "methods.dpr: unknown key 'bta'; did you mean beta"),
        ({"methods": {"sft": {}, "dpr": {"beta": -1}}}, "methods.dpr: beta=-1"),
        ({"methods": {"sft": {}, "dpr": [1]}}, "methods.dpr: expected `key: value` lines"),
        ({"methods": {"sft": {}, "dpr": {"settings": ["habits"]}}}, "methods.dpr.settings"),
        ({"methods": {"sft": {}, "a/b": {"method": "dpr"}}}, "becomes a folder"),
        ({"methods": {"sft": {}, "continued_sft": {"budget": "flops"}}}, "budget_of=dpr must name a trained method"),
        (
            {"methods": {"sft": {}, "dpr": {"tune": {"beta": [1, 2]}}, "continued_sft": {"budget": "flops"}}},
            "methods.continued_sft: budget_of=dpr is tuned",
        ),
        (
            {"methods": {"sft": {}, "rejection_sampling": {"tune": {"samples_per_prompt": [1, 2]}}}},
            "methods.rejection_sampling: it is trained on the validation prompts",
        ),
        (
            {
                **{"sft_from": "runs/mine", "model_name_or_path": "base"},
                "methods": {"sft": {}, "dpr": {}, "continued_sft": {"budget": "seconds"}},
            },
            "continued_sft: seconds cannot be matched, since SFT was not trained here",
        ),
        ({"methods": {"sft": {}, "cap": {"method": "dpr_capped"}}}, "methods.cap: give its reference"),
        (
            {"methods": {"sft": {}, "dpr": {"sft_max_steps": 3}}},
            "methods.dpr: sft_max_steps is decided by the setting",
        ),
        (
            {"methods": {"sft": {}, "dpr": {"reference": 0.7, "reference_fractions": [0.7]}}},
            "methods.dpr: reference_fractions is decided by the setting",
        ),
        ({"methods": {"sft": {}, "dpr": {"verifier": "final_number"}}}, "methods.dpr: verifier is decided by"),
        (
            {"rl_prompts": "a.jsonl", "methods": {"sft": {}, "dpr": {"tune": {"rl_prompts": [None, "b.jsonl"]}}}},
            "methods.dpr: rl_prompts=b.jsonl are not those of settings.",
        ),
        (
            {"settings": {"habit": {"sft_eos_token": "a", "dpr_eos_token": "b"}}},
            "settings.habit: sft_eos_token='a', but eos_token='b': it is one setting",
        ),
        (
            {"methods": {"sft": {}, "dpr": {"dpr_chat_template_kwargs": {"a": True}}}},
            "methods.dpr: dpr_chat_template_kwargs is decided by the setting",
        ),
        (
            {"methods": {"sft": {}, "dpr": {"tune": {"seed": [0, 1]}}}},
            "methods.dpr: seed is decided by the experiment",
        ),
        (
            {"methods": {"sft": {}, "dpr": {"tune": {"dpr_learning_rate": []}}}},
            "methods.dpr.tune: dpr_learning_rate=[]",
        ),
        ({"methods": {"sft": {}, "dpr": {"tune": {"beta": [1, 1.0]}}}}, "give each value once"),
        ({"settings": {"habit": {"arms": ["sft"]}}}, "settings.habit: arms is decided by the experiment"),
        ({"settings": {"habit": {"seed": 1}}}, "settings.habit: seed is decided by the experiment"),
        ({"seed": 1}, "seed is a key of densepath run"),
        ({"settings": {}}, "settings is empty"),
        ({"settings": {"habit": {"dataset": "x"}}}, "settings.habit: unknown key 'dataset'; did you mean"),
        ({"seeds": [1, 1]}, "give each seed once"),
        ({"num_workers": 0}, "num_workers=0"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_place(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(tmp_path, changes)


@pytest.mark.parametrize("closed", [{"enable_thinking": False}, '{"enable_thinking": false}'])
def test_a_template_that_was_given_for_one_stage_is_that_of_the_setting_and_all_its_methods(tmp_path, closed):
    settings = {"habit": {"dataset_name": "regime:habit", "dpr_chat_template_kwargs": closed}}
    methods = {"sft": {}, "dpr": {"tune": {"beta": [1, 2]}}}
    setting = read(tmp_path, {"settings": settings, "methods": methods, "sft_eos_token": "<|end|>"})["habit"]
    for each in (setting, *setting.methods["sft"].variants, *setting.methods["dpr"].variants):
        assert each.arguments.eos_token == "<|end|>"
        assert each.arguments.chat_template_kwargs == {"enable_thinking": False}
        assert each.others == {"sft_warmup_steps": 3}


@pytest.mark.parametrize("outer", ["eos_token", "sft_eos_token", "dpr_eos_token"])
@pytest.mark.parametrize("inner", ["eos_token", "sft_eos_token", "dpr_eos_token"])
def test_a_template_of_a_setting_wins_over_the_top_whatever_their_prefixes(tmp_path, outer, inner):
    given = {"habit": {"dataset_name": "regime:habit", inner: "b"}, "error": {"dataset_name": "regime:error"}}
    found = read(tmp_path, {"settings": given, "methods": {"sft": {}}, outer: "a"})
    assert {name: setting.arguments.eos_token for name, setting in found.items()} == {"habit": "b", "error": "a"}


def test_a_method_may_do_without_the_prompts_of_its_setting_and_bound_its_judge(tmp_path):
    methods = {"sft": {}, "dpr": {"rl_prompts": None, "max_invalid": 0.5}}
    setting = read(tmp_path, {"methods": methods, "rl_prompts": "a.jsonl"})["habit"]
    own = setting.methods["dpr"].variants[0].arguments
    assert (setting.arguments.rl_prompts, setting.methods["sft"].variants[0].arguments.rl_prompts) == ("a.jsonl",) * 2
    assert (own.rl_prompts, own.max_invalid) == (None, 0.5)


def test_a_method_may_be_called_as_tables_call_the_sft_run(tmp_path):
    settings = read(tmp_path, {"methods": {"sft": {}, "SFT": {"method": "dpr"}}})
    grid = Grid(tmp_path, list(settings.values()), [0])
    tasks = grid.training_tasks()
    assert len(tasks) == 1 + 2 * (1 + 2)  # one model before SFT, and for each setting an SFT run and two cells
    assert [key for key, task in tasks.items() if key in task.needs] == []


@pytest.mark.parametrize("name", ["regimes", "real-model", "sweeps", "gsm8k"])
def test_the_recipes_are_read(name):
    """Every method of a recipe takes its keys, and what its bands are made of is what its name says."""
    words = ["--config", str(RECIPES / f"{name}.yaml")]
    found = parse(ExperimentArguments, words, prog="", description="", passthrough={"sft_": "", "dpr_": ""})
    for setting in read_recipe(*found):
        for plan in setting.methods.values():
            keys = plan.variants[0].arguments
            score = {"purified_by_sft": "sft_logprob", "purified_at_random": "random"}.get(plan.name, "reward")
            assert keys.purify_score == score
            assert plan.arm.control == (score != "reward") or plan.method != "purified_sft"


def test_an_experiment_has_methods_and_no_arms(tmp_path):
    with pytest.raises(ConfigError, match="arms is a key of densepath run"):
        read(tmp_path, {"arms": ["sft"]})
