"""Flat keys from YAML and the command line: types, precedence, suggestions."""

from __future__ import annotations

import pytest

from densepath.cli.arguments import load_yaml, parse
from densepath.errors import ConfigError, MissingFileError, UsageError
from densepath.pipeline.coerce import coerce
from densepath.pipeline.config import RunArguments, SFTArguments
from densepath.pipeline.score_config import ScoreArguments

PASSTHROUGH = {"sft_": "TRL's SFTConfig", "dpr_": "DPRConfig"}


def run_arguments(*words: str):
    return parse(RunArguments, words, prog="densepath run", description="", passthrough=PASSTHROUGH)


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("value", "hint", "read"),
    [
        ("5e-5", float, 5e-5),  # YAML 1.1 reads this as text
        (3, float, 3.0),
        ("8.0", int, 8),
        ("true", bool, True),
        ("No", bool, False),
        (True, bool, True),
        ("none", int | None, None),
        ("null", str | None, None),
        (None, float | None, None),
        ("7", int | None, 7),
        ("0.5", str, "0.5"),
        (0.5, str, "0.5"),
        ("0,0.25 0.5", list[float], [0.0, 0.25, 0.5]),
        ([0, "0.5"], list[float], [0.0, 0.5]),
        (1, list[float], [1.0]),
        ("a,b", list[str], ["a", "b"]),
    ],
)
def test_a_value_is_read_as_its_fields_type(value, hint, read):
    found = coerce(value, hint, "key")
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("many", int, "key='many' must be a number"),
        ("2.5", int, "key='2.5' must be a whole number"),
        ("inf", int, "key='inf' must be a whole number"),
        ("nan", int, "key='nan' must be a whole number"),
        (True, int, "key=True must be a number"),
        (None, int, "key=None must be a number"),
        ("fast", float, "key='fast' must be a number"),
        ({"a": 1}, float, "must be a number"),
        ("maybe", bool, "key='maybe' must be true or false"),
        (2, bool, "must be true or false"),
        (None, str, "key=None must be text"),
        ({"a": 1}, str, "must be text"),
        ("x", int | None, "key='x' does not fit"),
        ("1,b", list[float], "key='b' must be a number"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(value, hint, message):
    with pytest.raises(ConfigError) as error:
        coerce(value, hint, "key")
    assert message in str(error.value)


def test_the_command_line_overrides_the_recipe_and_the_recipe_the_defaults(recipe):
    path = recipe(
        "model_name_or_path: a/model\nsft_max_steps: 7\nsft_learning_rate: 5e-5\nverifier: null\n"
        "reference_fractions: [0, 0.5]\nuse_peft: true\nreference: 0.5\n"
    )
    found, others = run_arguments("--config", path, "--sft_max_steps", "9", "--seed=3", "--use_peft", "false")
    assert (found.model_name_or_path, found.sft_max_steps, found.seed) == ("a/model", 9, 3)
    assert found.sft_learning_rate == 5e-5
    assert found.verifier is None
    assert found.reference_fractions == [0.0, 0.5]
    assert found.reference == "0.5"
    assert found.use_peft is False
    assert found.dpr_max_steps == RunArguments().dpr_max_steps
    assert others == {}


@pytest.mark.parametrize(
    ("words", "name", "read"),
    [
        (("--use_peft",), "use_peft", True),
        (("--use_peft", "--seed", "1"), "use_peft", True),
        (("--use_peft=false",), "use_peft", False),
        (("--candidate_betas", "0.25", "2"), "candidate_betas", [0.25, 2.0]),
        (("--candidate_betas=0.25,2",), "candidate_betas", [0.25, 2.0]),
        (("--candidate_betas", "0.25,2"), "candidate_betas", [0.25, 2.0]),
        (("--max_length", "none"), "max_length", None),
        (("--max_length", "12"), "max_length", 12),
        (("--verifier", "package.module:function"), "verifier", "package.module:function"),
        (("--verifier", "none"), "verifier", None),
        (("--continued_sft", "none"), "continued_sft", "none"),
        (("--sft_learning_rate", "1e-3"), "sft_learning_rate", 1e-3),
    ],
)
def test_ways_to_write_a_value(words, name, read):
    assert getattr(run_arguments(*words)[0], name) == read


def test_other_keys_go_to_trl_with_the_types_that_yaml_gives(recipe):
    path = recipe("sft_weight_decay: 0.1\ndpr_lr_scheduler_type: linear\nsft_optim_args: a=1\n")
    _, others = run_arguments(
        *("--config", path, "--sft_gradient_accumulation_steps", "4", "--dpr_bf16=false"),
        *("--dpr_epsilon_high", "0.3", "--sft_packing", "--sft_report_to", "[a, b]"),
    )
    assert others == {
        "sft_weight_decay": 0.1,
        "dpr_lr_scheduler_type": "linear",
        "sft_optim_args": "a=1",
        "sft_gradient_accumulation_steps": 4,
        "dpr_bf16": False,
        "dpr_epsilon_high": 0.3,
        "sft_packing": True,
        "sft_report_to": ["a", "b"],
    }


def test_every_key_goes_to_trl_where_there_is_one_config():
    found, others = parse(
        SFTArguments,
        ["--max_steps", "3", "--output_dir", "x"],
        prog="p",
        description="",
        passthrough={"": "SFTConfig"},
    )
    assert found.output_dir == "x"
    assert others == {"max_steps": 3}


def test_unknown_keys_are_refused_with_the_nearest_name_and_where_they_stand(recipe):
    path = recipe("sead: 3\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: unknown key 'sead'; did you mean seed\?"):
        run_arguments("--config", path)
    with pytest.raises(ConfigError, match="the command line: unknown key 'num_test_sample'; did you mean num_test_s"):
        run_arguments("--num_test_sample", "3")
    with pytest.raises(ConfigError, match="unknown key 'zzz'; see densepath score --help"):
        parse(ScoreArguments, ["--zzz", "3"], prog="densepath score", description="")
    with pytest.raises(ConfigError, match="unknown key 'sft_'"):
        run_arguments("--sft_", "3")


def test_words_without_a_key_are_refused():
    with pytest.raises(UsageError, match=r"unexpected word 'recipe\.yaml'"):
        run_arguments("recipe.yaml")
    with pytest.raises(UsageError, match="--config: expected one argument"):
        run_arguments("--config")
    with pytest.raises(UsageError, match="--seed: expected one argument"):
        run_arguments("--seed")


def test_recipes_that_cannot_be_read(recipe, tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.yaml: no such file"):
        load_yaml(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(MissingFileError):
        load_yaml(str(tmp_path))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not valid YAML: .*line 2"):
        load_yaml(recipe("a: [1,\n b: }"))
    with pytest.raises(ConfigError, match=r"expected `key: value` lines, got a list"):
        load_yaml(recipe("- a\n- b\n"))
    assert load_yaml(recipe("# nothing yet\n")) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_test_samples", "0"), "num_test_samples=0 must be at least 1"),
        (("--continued_sft", "maybe"), "continued_sft='maybe' does not exist; choose one of: flops, samples, none"),
        (("--dense_reward", "dense"), "choose one of: baseline_relative, logprob, inverse_bellman"),
        (("--num_generations", "1"), "num_generations=1 must be at least 2"),
        (("--num_generations", "5"), "must be a multiple of num_generations=5"),
        (("--reference_fractions", "0.5", "1"), r"reference_fractions: 1.0 must lie in [0, 1)"),
        (("--reference_fractions", "-0.5"), r"reference_fractions: -0.5 must lie in [0, 1)"),
        (("--reference", "1"), "reference=1 must be auto, a path, or a fraction"),
        (("--reference", "0.3"), "reference=0.3 is not among reference_fractions (0, 0.25, 0.5, 0.75)"),
        (("--beta", "0"), "beta=0 must be auto or a number above 0"),
        (("--beta", "soft"), "beta=soft must be auto or a number above 0"),
        (("--candidate_betas", "1,-1"), "candidate_betas: -1.0 must be above 0"),
        (("--eval_temperatures", "-1"), "eval_temperatures: -1.0 must be at least 0"),
        (("--sft_learning_rate", "-1"), "sft_learning_rate=-1.0 must be a number, at least 0"),
        (("--dpr_learning_rate", "nan"), "dpr_learning_rate=nan must be a number, at least 0"),
        (("--task_error_rate", "2"), "task_error_rate=2.0 must lie in [0, 1]"),
    ],
)
def test_values_out_of_their_range_are_refused_at_once(words, message):
    with pytest.raises(ConfigError) as error:
        run_arguments(*words)
    assert message in str(error.value)


def test_a_reference_before_sft_and_every_kept_one_are_accepted():
    for words in (("--reference", "0"), ("--reference", "0.50"), ("--reference", "some/folder")):
        run_arguments(*words)
    run_arguments("--reference", "0.3", "--reference_fractions", "0.3")
