"""eos_token, chat_template_path and chat_template_kwargs: one setting for every stage and command."""

from __future__ import annotations

import json

import pytest
from tests.pipeline.runs import save_tiny_model
from tests.support import CHATML, IM_END, PAD, tiny_tokenizer
from transformers import AutoTokenizer

from densepath.cli.main import main
from densepath.config.answers import EvalArguments, GenerateArguments
from densepath.config.choice import DiagnoseArguments
from densepath.config.mixins import TEMPLATE_SETTINGS
from densepath.config.pages import ServeArguments, ViewArguments
from densepath.config.reward import AuditArguments, RankArguments, RewardEvalArguments, ScoreArguments
from densepath.config.run import RunArguments, with_one_template
from densepath.config.training import DPRArguments, PurifyCommandArguments, SFTArguments
from densepath.data.encode import encode_prompt
from densepath.errors import ConfigError
from densepath.models.load import load_tokenizer

THOUGHT = "<think></think>"
CLOSED = CHATML + "{% if enable_thinking is defined and not enable_thinking %}" + THOUGHT + "{% endif %}"
THINKING = CHATML.replace(
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}" + THOUGHT + "{% endif %}{% endif %}",
).replace(
    "message['role'] + '\n' +",
    "message['role'] + '\n' + ('" + THOUGHT.replace("\n", "\\n") + "' if message['role'] == 'assistant' else '') +",
)
ROWS = [
    {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": "the answer"}]}
    for i in range(4)
]


@pytest.mark.parametrize(
    "kind",
    [
        RunArguments, SFTArguments, DPRArguments, EvalArguments, ScoreArguments, ServeArguments, ViewArguments,
        GenerateArguments, AuditArguments, RankArguments, RewardEvalArguments, DiagnoseArguments,
        PurifyCommandArguments,
    ],
)  # fmt: skip
def test_every_command_that_reads_text_has_the_three_settings(kind: type) -> None:
    assert set(TEMPLATE_SETTINGS) <= set(kind.__dataclass_fields__)


@pytest.fixture(scope="module")
def pad_models(tmp_path_factory) -> dict[str, str]:
    """Models whose template ends turns with <|pad|>, while the tokenizer's EOS is <|im_end|>."""
    folder = tmp_path_factory.mktemp("pad")
    tokenizer = tiny_tokenizer(pad_is_eos=False)
    tokenizer.chat_template = CHATML.replace(IM_END, PAD)
    return {n: save_tiny_model(folder / n, seed=i, tokenizer=tokenizer) for i, n in enumerate(("sft", "ref"))}


def test_a_template_that_ends_turns_otherwise_is_scored_audited_and_improved(
    pad_models, write_jsonl, tmp_path, capsys
) -> None:
    rows = write_jsonl("rows.jsonl", ROWS)
    pair = ["--model_name_or_path", pad_models["sft"], "--ref_model_name_or_path", pad_models["ref"]]
    common = [*pair, "--dataset_name", rows]
    dpr = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--num_generations", "2"]
    commands = {
        "score": ["--output_file", str(tmp_path / "scores.jsonl")],
        "audit": ["--output_file", str(tmp_path / "audit.jsonl")],
        "dpr": ["--output_dir", str(tmp_path / "dpr"), *dpr, "--max_completion_length", "4"],
    }
    for command, words in commands.items():
        assert main([command, *common, *words, "--eos_token", PAD]) == 0
    scored = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    end = tiny_tokenizer(pad_is_eos=False).convert_tokens_to_ids(PAD)
    assert scored["turns"][0]["token_ids"][-1] == end
    assert load_tokenizer(tmp_path / "dpr/model").eos_token == PAD  # kept for the commands that come
    capsys.readouterr()
    assert main(["score", *common, "--output_file", str(tmp_path / "other.jsonl")]) == 2
    assert f"set eos_token to {PAD!r}" in capsys.readouterr().err


def test_purification_reads_and_saves_what_it_was_told(pad_models, write_jsonl, tmp_path, monkeypatch) -> None:
    told = CHATML.replace(IM_END, PAD).replace("You help.", "Reply with the answer only.")
    (tmp_path / "told.jinja").write_text(told, encoding="utf-8")
    trusted, load = set(), AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *a, **k: trusted.add(k["trust_remote_code"]) or load(*a, **k)
    )
    rows = [{**row, "completion": [{"role": "assistant", "content": "the " * (1 + i % 3)}]} for i, row in many(ROWS)]
    words = ["--model_name_or_path", pad_models["sft"], "--ref_model_name_or_path", pad_models["ref"]]
    words += ["--dataset_name", write_jsonl("rows.jsonl", rows), "--output_dir", str(tmp_path / "out")]
    words += ["--purify_rounds", "0", "--purify_final_steps", "1", "--per_device_train_batch_size", "4"]
    words += ["--chat_template_path", str(tmp_path / "told.jinja"), "--eos_token", PAD, "--trust_remote_code", "true"]
    assert main(["purify", *words]) == 0
    assert trusted == {True}
    saved = load_tokenizer(tmp_path / "out/model")
    assert (saved.eos_token, saved.chat_template) == (PAD, told)
    shown = json.loads((tmp_path / "out/purification.json").read_text())["rows"]
    assert shown
    for row in shown:  # scored with the token that ends turns
        assert row["turns"][0]["token_ids"][-1] == saved.eos_token_id


def many(rows, times=10):
    """(number, row), the number a part of the row's prompt, so that none is another."""
    found = (row for _ in range(times) for row in rows)
    return ((i, {**row, "prompt": [{"role": "user", "content": f"{i}?"}]}) for i, row in enumerate(found))


def test_what_sft_was_told_is_kept_by_its_model(write_jsonl, tmp_path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING, encoding="utf-8")
    base = save_tiny_model(tmp_path / "base")
    rows = write_jsonl("rows.jsonl", ROWS)
    sft = ["sft", "--model_name_or_path", base, "--dataset_name", rows, "--output_dir", str(tmp_path / "sft")]
    given = ["--chat_template_path", str(template), "--chat_template_kwargs", '{"enable_thinking": false}']
    assert main([*sft, "--max_steps", "1", "--per_device_train_batch_size", "2", *given]) == 0
    for name in ("model", "references/0.5"):
        tokenizer = load_tokenizer(tmp_path / "sft" / name)
        assert tokenizer.decode(encode_prompt(ROWS[0]["prompt"], tokenizer)).endswith("assistant\n" + THOUGHT)
    out = tmp_path / "scores.jsonl"
    pair = [str(tmp_path / "sft/model"), "--ref_model_name_or_path", base]
    assert main(["score", "--model_name_or_path", *pair, "--dataset_name", rows, "--output_file", str(out)]) == 0
    assert json.loads(out.read_text().splitlines()[0])["turns"][0]["text"] == "the answer"
    away = ["--chat_template_kwargs", '{"enable_thinking": true}', "--output_file", str(tmp_path / "away.jsonl")]
    assert main(["score", "--model_name_or_path", *pair, "--dataset_name", rows, *away]) == 0
    assert json.loads((tmp_path / "away.jsonl").read_text().splitlines()[0])["turns"][0]["text"].startswith("<think>")


def test_a_wrong_template_is_one_line(models, write_jsonl, tmp_path, capsys) -> None:
    rows = write_jsonl("rows.jsonl", ROWS)
    sft = ["sft", "--model_name_or_path", models["sft"], "--dataset_name", rows, "--output_dir", str(tmp_path / "s")]
    for given, said in (
        (["--chat_template_path", "nothing.jinja"], "chat_template_path=nothing.jinja: no such file"),
        (["--chat_template_kwargs", "false"], "chat_template_kwargs='false' must be an object of names and values"),
        (["--eos_token", "<end_of_turn>"], "no token '<end_of_turn>'"),
    ):
        assert main([*sft, *given]) == 2
        assert said in capsys.readouterr().err


def test_the_template_of_another_tokenizer(tmp_path) -> None:
    base = save_tiny_model(tmp_path / "base")
    other = tiny_tokenizer()
    other.chat_template = CLOSED
    other.save_pretrained(tmp_path / "other")
    assert load_tokenizer(base, chat_template_path=str(tmp_path / "other")).chat_template == CLOSED
    other.add_tokens(["<|new|>"], special_tokens=True)
    other.chat_template = CLOSED + "<|new|>"
    other.save_pretrained(tmp_path / "grown")
    with pytest.raises(Exception, match=r"its template writes <\|new\|>, which the model's tokenizer lacks"):
        load_tokenizer(base, chat_template_path=str(tmp_path / "grown"))


def test_a_setting_that_was_given_for_one_stage_is_for_all() -> None:
    closed = {"enable_thinking": False}
    arguments, others = with_one_template(RunArguments(), {"dpr_chat_template_kwargs": closed, "dpr_lr": 1})
    assert (arguments.chat_template_kwargs, others) == (closed, {"dpr_lr": 1})
    with pytest.raises(ConfigError, match="it is one setting for every stage"):
        with_one_template(RunArguments(eos_token="a"), {"sft_eos_token": "b"})
    assert with_one_template(RunArguments(eos_token="a"), {"sft_eos_token": "a"})[0].eos_token == "a"
