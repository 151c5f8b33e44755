"""Flat keys from YAML and the command line: types, precedence, suggestions."""

from __future__ import annotations

import math

import pytest
from trl import SFTConfig

from densepath.cli.arguments import parse
from densepath.config.coerce import coerce
from densepath.config.recipe_yaml import load_mapping, read_yaml, settled
from densepath.config.reward import AuditArguments, RewardEvalArguments, ScoreArguments
from densepath.config.run import RunArguments
from densepath.config.training import SFTArguments
from densepath.errors import ConfigError, MissingFileError, UsageError
from densepath.trainers.trl_config import trl_config

PASSTHROUGH = {"sft_": "TRL's SFTConfig", "dpr_": "DPRConfig"}


def run_arguments(*words: str):
    required = ["--model_name_or_path", "a/model", "--dataset_name", "rows"]
    return parse(RunArguments, [*required, *words], prog="densepath run", description="", passthrough=PASSTHROUGH)


def loaded(path: str) -> dict:
    return load_mapping(path, f"--config {path}")


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
        ("on", bool, True),
        ("Off", bool, False),
        ("9007199254740993", int, 9007199254740993),  # 2^53 + 1: no float holds it
        (9007199254740993, int, 9007199254740993),
        ("1e3", int, 1000),
        ("010", int, 10),
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
        (["a, b", "c d"], list[str], ["a", "b", "c d"]),
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
        ("nan", float, "key='nan' must be a number"),
        ("0.5,nan", list[float], "key='nan' must be a number"),
        (10**400, float, "must be a number"),
        ({"a": 1}, float, "must be a number"),
        ("maybe", bool, "key='maybe' must be true or false"),
        (2, bool, "must be true or false"),
        (None, str, "key=None must be text"),
        ({"a": 1}, str, "must be text"),
        ("x", int | None, "key='x' must be a number"),
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
        (("--continued_sft", "samples"), "continued_sft", "samples"),
        (("--arms", "sft", "dpr"), "arms", ["sft", "dpr"]),
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
        ["--max_steps", "3", "--output_dir", "x", "--model_name_or_path", "m", "--dataset_name", "d"],
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
        load_mapping(str(tmp_path / "nowhere.yaml"), "--config nowhere.yaml")
    with pytest.raises(MissingFileError):
        load_mapping(str(tmp_path), "--config folder")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not valid YAML: .*line 2"):
        loaded(recipe("a: [1,\n b: }"))
    with pytest.raises(ConfigError, match=r"expected `key: value` lines, got a list"):
        loaded(recipe("- a\n- b\n"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not valid YAML: .*line 2"):
        loaded(recipe("a: 1\n\tb: 2\n"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not valid YAML: nested too deeply"):
        loaded(recipe("a: " + "[" * 5000))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not valid YAML: .*4300"):
        loaded(recipe("a: " + "1" * 5000))
    assert loaded(recipe("# nothing yet\n")) == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_is_read_in_the_encodings_that_editors_write(tmp_path, encoding):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("dataset_name: żółw.jsonl\r\nseed: 3\r\n".encode(encoding))
    assert loaded(str(path)) == {"dataset_name": "żółw.jsonl", "seed": 3}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
def test_a_recipe_in_another_encoding_is_one_line(tmp_path, encoding):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("dataset_name: é.jsonl\n".encode(encoding))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: cannot be read as text .*; save it as UTF-8$"):
        loaded(str(path))


@pytest.mark.parametrize(
    "text", ["seed: 1\nsave_steps: 2\nseed: 3\n", "settings:\n  a: {seed: 1,\n    seed: 2}\n", 'seed: 1\n\n"seed": 1']
)
def test_a_key_given_twice_is_named_with_both_lines(recipe, text):
    with pytest.raises(
        ConfigError, match=r"recipe\.yaml: the key 'seed' is given twice, in lines \d and \d; remove one"
    ):
        loaded(recipe(text))


def test_a_key_may_override_what_is_merged_in(recipe):
    found = loaded(recipe("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n"))
    assert found == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("no", "no"), ("Off", "Off"), ("on", "on"), ('"no"', "no"), ("true", True), ("False", False), ("y", "y")),
        *(("1e-5", 1e-5), ("5E3", 5000.0), ("-.5", -0.5), ("12", 12), ("-3", -3), ("010", "010"), ("12:30", "12:30")),
        *(("2026-11-27", "2026-11-27"), ("~", None), ("null", None), ("none", "none"), (".inf", float("inf"))),
        *(("1.2.3", "1.2.3"), ("0x10", "0x10"), ("1_000", "1_000"), ("", None)),
    ],
)
def test_a_plain_value_is_what_yaml_1_2_says(text, value):
    found = settled(read_yaml(text, "text"))
    assert found == value
    assert type(found) is type(value)


def test_no_is_a_word_where_text_is_meant_and_false_where_a_truth_value_is(recipe):
    path = recipe(
        "use_peft: off\nverifier: no\nsft_save_strategy: no\nsft_bf16: no\nsft_report_to: [no, on]\n"
        "sft_gradient_checkpointing_kwargs: {use_reentrant: no, other: {deep: yes}}\n"
    )
    found, others = run_arguments("--config", path, "--dpr_save_strategy", "no")
    assert found.use_peft is False
    assert found.verifier == "no"
    assert others == {
        "sft_save_strategy": "no",
        "sft_bf16": "no",
        "sft_report_to": ["no", "on"],
        "sft_gradient_checkpointing_kwargs": {"use_reentrant": False, "other": {"deep": True}},
        "dpr_save_strategy": "no",
    }
    given = {"save_strategy": others["sft_save_strategy"], "bf16": others["sft_bf16"]}
    config = trl_config(SFTConfig, {"output_dir": "out", "report_to": "none", "run_name": 7, **given})
    assert (config.save_strategy, config.bf16, config.run_name) == ("no", False, "7")


def test_a_word_of_the_command_line_that_is_no_yaml_is_text():
    _, others = run_arguments("--sft_run_name", "a: b: c", "--sft_hub_model_id", "@x", "--sft_project", "'open")
    assert others == {"sft_run_name": "a: b: c", "sft_hub_model_id": "@x", "sft_project": "'open"}
    with pytest.raises(ConfigError, match="--sft_lr_scheduler_kwargs: not valid YAML"):
        run_arguments("--sft_lr_scheduler_kwargs", "{a: 1")


@pytest.mark.parametrize("key", ["model_init_kwargs", "trust_remote_code", "device", "resume_from_checkpoint"])
def test_what_a_command_decides_itself_is_refused(key):
    with pytest.raises(ConfigError, match=f"sft_{key} is not taken here: "):
        trl_config(SFTConfig, {"output_dir": "out", key: None}, "sft_")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_test_samples", "0"), "num_test_samples=0 must be at least 1"),
        (("--continued_sft", "maybe"), "continued_sft='maybe' does not exist; choose one of: flops, samples"),
        (("--dense_reward", "dense"), "choose one of: baseline_relative, logprob, inverse_bellman"),
        (("--num_generations", "1"), "num_generations=1 must be at least 2"),
        (("--num_generations", "5"), "must be a multiple of num_generations=5"),
        (("--reference_fractions", "0.5", "1"), r"reference_fractions: 1.0 must lie in [0, 1)"),
        (("--reference_fractions", "-0.5"), r"reference_fractions: -0.5 must lie in [0, 1)"),
        (("--reference", "1"), "reference=1 must be auto, a path, or a fraction"),
        (("--reference", "0.3"), "reference=0.3 is not among reference_fractions (0, 0.25, 0.5, 0.75)"),
        (("--beta", "0"), "beta=0 must be auto or a number above 0"),
        (("--beta", "soft"), "beta=soft must be auto or a number above 0"),
        (("--candidate_betas", "1,-1"), "candidate_betas: -1.0 must be a number above 0"),
        (("--candidate_betas", "1,1.0"), "candidate_betas=[1.0, 1.0]: give each once"),
        (("--eval_temperatures", "-1"), "eval_temperatures: -1.0 must be at least 0"),
        (("--sft_learning_rate", "-1"), "sft_learning_rate=-1.0 must be a number, at least 0"),
        (("--dpr_learning_rate", "nan"), "dpr_learning_rate='nan' must be a number"),
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


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: *x}", "a: !!bool foo", "a: !!timestamp foo"])
def test_yaml_that_pyyaml_stumbles_over_is_one_line(text):
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not valid YAML: [^\n]+$"):
        read_yaml(text, "recipe.yaml")


def test_a_recipe_takes_hyphens_as_the_command_line_does(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max-length: 9\nper-device-train-batch-size: 2\nmodel-name-or-path: a-b\ndataset_name: d\n")
    found, others = parse(
        SFTArguments, ["--config", str(recipe)], prog="sft", description="", passthrough={"": "SFTConfig"}
    )
    assert (found.max_length, found.model_name_or_path) == (9, "a-b")
    assert others == {"per_device_train_batch_size": 2}
    recipe.write_text("max-length: 9\nmax_length: 8\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml: max_length is given twice, with - and with _; remove one"):
        parse(SFTArguments, ["--config", str(recipe)], prog="sft", description="")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (RewardEvalArguments, "output_file", ""),
        (AuditArguments, "clean_file", "."),
    ],
)
def test_what_is_no_name_of_a_file_or_folder_is_refused_before_the_work(kind, name, value):
    with pytest.raises(ConfigError, match=f"^{name}=.* is no name of a f"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value", "what"),
    [
        (RewardEvalArguments, "output_file", "a\0b", "a null character"),
        (SFTArguments, "output_dir", "\0", "a null character"),
        (AuditArguments, "chat_template_path", "\0", "a null character"),
        (RunArguments, "judge_cache", "\ud800", "half of a surrogate pair"),
        (RunArguments, "report_to", ["none", "\0"], "a null character"),
    ],
)
def test_what_neither_a_files_name_nor_a_text_holds_is_refused(kind, name, value, what):
    with pytest.raises(ConfigError, match=f"^{name}=.* holds {what}: "):
        kind(**{name: value})
    RunArguments(dataset_name="\udcff.jsonl")  # a byte of a name that is no UTF-8


def test_repeats_that_would_never_end_are_refused():
    with pytest.raises(ConfigError, match="judge_repeats=1000000 must be at most 100"):
        RunArguments(judge_repeats=10**6)


@pytest.mark.parametrize(("kind", "name"), [(ScoreArguments, "reward_scale"), (RunArguments, "eval_temperatures")])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_of_a_command_is_infinite_or_none_at_all(kind, name, value):
    with pytest.raises(ConfigError, match=f"^{name}={value} must be a number"):
        kind(**{name: [value] if name.endswith("s") else value})
