"""Arguments become a judge of each kind, and what they get wrong is one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama
from transformers import AutoModelForSequenceClassification

from densepath.config.coerce import coerce
from densepath.config.judge import JudgeArguments
from densepath.config.mixins import FrozenArguments
from densepath.errors import ConfigError, MissingFileError, ModelError
from densepath.judging.build import check_judge, make_judge, template_of
from densepath.judging.endpoint import EndpointJudge
from densepath.judging.identity import judge_identity
from densepath.judging.local import LocalJudge
from densepath.judging.program import ProgramJudge
from densepath.judging.protocol import JudgeRequest
from densepath.judging.scorers import DenseRewardJudge, RewardModelJudge
from densepath.rewards.dense import DenseReward

REQUEST = JudgeRequest(({"role": "user", "content": "one"},), (("two",), ("three",)), row={"answer": "two"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a causal LM, of another, of a reward model and of a dense reward of the two."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("sft", 0), ("ref", 1)):
        tiny_llama(384, seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(num_labels=1, pad_token_id=1, vocab_size=384, **widths)
    LlamaForSequenceClassification(config).save_pretrained(folder / "rm")
    tiny_tokenizer().save_pretrained(folder / "rm")
    DenseReward.from_models(folder / "sft", folder / "ref").save_pretrained(folder / "dense")
    return folder


def make(judge: str, tmp_path: Path, num_answers: int = 2, benchmark: str | None = None, **fields):
    arguments = JudgeArguments(judge=judge, **fields)
    loading = FrozenArguments()
    return make_judge(arguments, loading, cache=tmp_path / "cache", num_answers=num_answers, benchmark=benchmark)


@pytest.mark.parametrize(
    ("judge", "kind", "name"),
    [
        ("local:{}/sft", LocalJudge, "local:{}/sft (letters)"),
        ("reward:{}/rm", RewardModelJudge, "reward:{}/rm"),
        ("dense:{}/dense", DenseRewardJudge, "dense:{}/dense"),
        ("verifier:exact_match", ProgramJudge, "verifier:exact_match"),
    ],
    ids=["local", "reward", "dense", "verifier"],
)
def test_each_kind_is_made_and_judges(models, tmp_path, judge, kind, name):
    made = make(judge.format(models), tmp_path)
    assert isinstance(made, kind)
    assert made.name == name.format(models)
    (found,) = made.judge([REQUEST])
    assert 0 <= found.preference <= 1


def test_an_endpoint_is_asked_as_the_arguments_say(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-of-mine")
    made = make(
        "openai:gpt-4.1",
        tmp_path,
        judge_base_url="http://localhost:1/v1",
        judge_api_key_env="MY_KEY",
        judge_parameters=coerce('{"max_tokens": null, "max_completion_tokens": 99, "temperature": 1}', dict, "x"),
        judge_prompt_price=1.0,
        judge_completion_price=2.0,
        max_cost=3.0,
        max_calls=4,
        judge_calls_per_minute=60,
    )
    assert isinstance(made, EndpointJudge)
    assert made.name == "gpt-4.1 (pair)"
    assert made.parameters == {"temperature": 1, "max_completion_tokens": 99}
    assert made.cache.folder == tmp_path / "cache"
    assert (made.settings.max_calls, made.settings.max_cost, made.settings.per_minute) == (4, 3.0, 60)
    assert make("openai:m", tmp_path, judge_base_url="http://x/v1", judge_cache=str(tmp_path)).cache.folder == tmp_path


@pytest.mark.parametrize(
    ("kind", "num_answers", "benchmark", "given", "expected"),
    [
        ("openai", 2, "arena_hard", None, "arena_hard"),
        ("openai", 2, "arena_hard", "pair", "pair"),
        ("openai", 2, None, None, "pair"),
        ("openai", 1, None, None, "mt_bench"),
        ("local", 2, "arena_hard", None, "letters"),
        ("local", 2, "alpaca_eval", None, "alpaca_eval"),
        ("local", 1, "mt_bench", None, "grade"),
    ],
)
def test_the_users_template_goes_before_the_benchmarks_before_ours(kind, num_answers, benchmark, given, expected):
    assert template_of(JudgeArguments(judge_template=given), kind, num_answers, benchmark).name == expected


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"judge": "gpt-4.1"}, "judge='gpt-4.1' is no judge; write one of openai:"),
        ({"judge": "local:"}, "is no judge"),
        ({"judge_api_key_env": "sk-proj-secret"}, "give its name, never the key itself"),
        ({"judge_prompt_price": 1.0}, "one price alone"),
        ({"max_cost": 1.0}, "max_cost needs prices"),
        ({"max_invalid": 1.5}, "is a share"),
        ({"judge_timeout": 0.0}, "must be above 0"),
        ({"judge_timeout": float("nan")}, "must be a number"),
        ({"judge_repeats": 0}, "at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(fields, says):
    with pytest.raises(ConfigError, match=says) as caught:
        JudgeArguments(**fields)
    assert "secret" not in str(caught.value)


def test_what_is_not_there_is_said(models, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="judge is missing"):
        make_judge(JudgeArguments(), FrozenArguments(), cache=tmp_path)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        make("openai:gpt-4.1", tmp_path)
    with pytest.raises(ConfigError, match="shows 1 answers at once, and here it is 2"):
        make("openai:m", tmp_path, judge_base_url="http://x/v1", judge_template="mt_bench")
    with pytest.raises(MissingFileError):
        make(f"local:{tmp_path}/none", tmp_path)
    with pytest.raises(ModelError, match="it is no reward model"):
        make(f"reward:{models}/sft", tmp_path)
    with pytest.raises(MissingFileError):
        make(f"dense:{models}/sft", tmp_path)
    with pytest.raises(ConfigError):
        make("verifier:none", tmp_path)


def test_what_stands_behind_a_name_is_told_apart(models, tmp_path, monkeypatch):
    """Another model, other settings or another program under the same name; a copy of the same is the same."""
    shutil.copytree(models, tmp_path / "m")
    home = tmp_path / "m"
    DenseReward.from_models(home / "sft", home / "ref").save_pretrained(home / "dense")
    DenseReward.from_models(home / "sft", home / "ref", scale=2.0).save_pretrained(home / "other")
    (home / "grader.py").write_text("def grade(text, row):\n    return 1.0\n")
    monkeypatch.syspath_prepend(home)
    judges = [f"local:{home}/sft", f"reward:{home}/rm", f"dense:{home}/dense", "verifier:grader:grade"]
    before = [judge_identity(judge) for judge in judges]
    assert all(before)
    assert before[0] == judge_identity(f"local:{models}/sft")
    other = judge_identity(f"dense:{home}/other")
    assert [name for name in other if other[name] != before[2][name]] == ["reward"]
    assert judge_identity("openai:gpt-4.1") == judge_identity("verifier:exact_match") == {}
    (home / "grader.py").write_text("def grade(text, row):\n    return 0.5\n")
    assert judge_identity(judges[3]) != before[3]
    tiny_llama(384, seed=7).save_pretrained(home / "ref")
    with pytest.raises(ModelError, match="ref is another model than it was"):
        judge_identity(judges[2])
    DenseReward.from_models(home / "sft", home / "ref").save_pretrained(home / "dense")
    changed = judge_identity(judges[2])
    assert [name for name in changed if changed[name] != before[2][name]] == ["reference 1 weights"]
    assert judge_identity(judges[0]) == before[0]


@pytest.mark.parametrize("kind", ["local", "reward", "dense"])
def test_a_folder_that_is_no_judge_is_refused_before_anything_is_loaded(tmp_path, kind):
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises((MissingFileError, ModelError), match=name) as caught:
            check_judge(JudgeArguments(judge=f"{kind}:{tmp_path / name}"))
        assert "\n" not in str(caught.value)


def test_a_model_that_cannot_judge_is_refused_from_its_tokenizer_and_configuration(models, tmp_path):
    """What `make_judge` would say after an hour of training."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig

    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    two = LlamaConfig(num_labels=2, vocab_size=384, architectures=["LlamaForSequenceClassification"], **widths)
    for name in ("sft", "rm"):
        shutil.copytree(models / name, tmp_path / name)
    shutil.copytree(models / "rm", tmp_path / "two")
    two.save_pretrained(tmp_path / "two")
    shutil.copytree(models / "sft", tmp_path / "mute")
    (tmp_path / "mute/chat_template.jinja").unlink()
    get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(models / "sft", num_labels=1),
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["score"]),
    ).save_pretrained(tmp_path / "adapter")
    for judge in ("local:{}/sft", "reward:{}/rm"):
        check_judge(JudgeArguments(judge=judge.format(tmp_path)))
    for judge, says in {
        "local:{}/mute": "chat template",
        "reward:{}/two": "tells 2 classes apart",
        "reward:{}/sft": "is a language model: it is no reward model; write local: before it",
        "reward:{}/adapter": "is an adapter of the language model",
    }.items():
        with pytest.raises(ModelError, match=says):
            check_judge(JudgeArguments(judge=judge.format(tmp_path)))
