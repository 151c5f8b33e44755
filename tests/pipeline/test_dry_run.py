"""`run --dry_run`: what it shows, that it tries every stage, and that it leaves nothing behind."""

from __future__ import annotations

import json
import re

import pytest
from tests.pipeline.runs import run_argv
from tests.support import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from densepath.cli.main import main
from densepath.data.encode import encode_demonstration
from densepath.pipeline.dry_run import CONTEXT, TRAINED, tokens_text


def test_it_shows_and_tries_and_leaves_nothing(tmp_path, tiny_model, capsys):
    output = tmp_path / "runs/mine"
    words = run_argv(tiny_model, output, reference="auto", arms=["base", "continued_sft", "dpr"], max_train_samples=90)
    assert main([*words, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "  verifier: exact_match\n" in out
    assert "  seed:" not in out, "what is as by default is not told"
    assert "90 train, 4 validation, 4 test rows" in out
    assert len(re.findall(r"row \d: \d+ tokens, trained on \d+ of them", out)) == 3
    assert "GiB" in out
    for label in ("SFT and the choice of the reference", "before SFT", "SFT", "continued SFT", "DPR"):
        assert re.search(rf"^{label}: tried, [\d.]+ s$", out, flags=re.MULTILINE), out
    assert f"nothing was left behind, and {output} is as it was" in out
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_with_a_judge_and_prompts_alone_is_tried_without_asking_the_judge(tmp_path, tiny_model, capsys):
    """Nothing but the judge says which answers are better there, and the real run takes the recipe."""
    rows = [{"prompt": f"Say {number}:", "completion": str(number)} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [{"prompt": f"Tell {number}:"} for number in range(8)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    data = {"dataset_name": tmp_path / "rows.jsonl", "eval_dataset_name": tmp_path / "held_out.jsonl"}
    changes = {"dataset_test_split": "train", "reference": "auto", "beta": 0.3, "dpr_eval_strategy": "no"}
    judge = {"judge": "openai:nobody", "judge_base_url": "http://localhost:9/v1"}
    words = run_argv(tiny_model, tmp_path / "run", **data, **changes, arms=["dpr"], **judge)
    place = words.index("--verifier")
    prices = ["--judge_prompt_price", "2", "--judge_completion_price", "8"]
    assert main([*words[:place], *words[place + 2 :], *prices, "--dry_run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert re.search(r"^DPR: tried", out, flags=re.MULTILINE)
    # Two arms at two temperatures, but for what SFT says greedily; and for the choice three answers of SFT, then each
    # of four references at the one beta and the best of them capped, at two temperatures.
    calls = 2 * (4 * 3 + 4 * (3 + 3 + 5 * 2))
    assert re.search(
        rf"openai:nobody: about {calls} games of 4 validation and 4 test prompts; {calls} calls, [\d,]+ tokens to "
        r"read, [\d,]+ to write at most, cost about [\d.]+ ",
        " ".join(out.split()),
    ), out


def test_a_model_that_no_plan_can_be_made_of_is_tried_all_the_same(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=512)
    ).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    words = run_argv(tmp_path / "gpt2", tmp_path / "run", arms=["dpr"])
    assert main([*words, "--dry_run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "no memory plan: " in out
    assert re.search(r"^DPR: tried", out, flags=re.MULTILINE)


def test_an_accelerate_file_that_no_plan_can_be_made_of_stops_no_look(tmp_path, tiny_model, capsys):
    """FSDP1 as accelerate writes it; a plan alone reads the file."""
    file = tmp_path / "fsdp1.yaml"
    file.write_text("distributed_type: FSDP\nfsdp_config:\n  fsdp_reshard_after_forward: FULL_SHARD\n")
    words = run_argv(tiny_model, tmp_path / "run", arms=["dpr"], accelerate_config=file)
    assert main([*words, "--dry_run"]) == 0, capsys.readouterr().err
    out = " ".join(capsys.readouterr().out.split())
    assert re.search("no memory plan: .*fsdp1.yaml: of FSDP's strategies .* set fsdp_version: 2", out)
    assert "DPR: tried" in out


def test_what_would_stop_the_run_stops_the_look_and_leaves_nothing(tmp_path, tiny_model, capsys):
    words = run_argv(tiny_model, tmp_path / "run", dpr_learning_rate=1e30, sft_learning_rate=1e30)
    assert main([*words, "--dry_run", "--chat_template_path", "nowhere.jinja"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rows_that_sft_leaves_out_are_not_shown_and_stop_nothing(tmp_path, tiny_model, capsys):
    rows = [{"prompt": f"Say {i}:" + "z" * 300 * (i % 3 > 0), "completion": f"{i}" + "y" * 300} for i in range(90)]
    held_out = [{"prompt": f"Tell {i}:", "completion": f"{i}"} for i in range(40)]
    files = {"dataset_name": (tmp_path / "rows.jsonl", rows), "eval_dataset_name": (tmp_path / "held.jsonl", held_out)}
    for path, written in files.values():
        path.write_text("".join(json.dumps(row) + "\n" for row in written))
    changes = {key: path for key, (path, _) in files.items()} | {"verifier": "none", "beta": 0.3, "arms": ["dpr"]}
    words = run_argv(tiny_model, tmp_path / "run", **changes, max_train_samples=90, max_length=100)
    assert main([*words, "--dry_run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "60 left out of SFT: the prompt fills max_length" in " ".join(out.split())
    assert len(re.findall(r"row \d+: 100 tokens, trained on \d+ of them", out)) == 3


def test_turns_behind_max_length_stop_a_look_no_more_than_sft(tmp_path, tiny_model, capsys):
    """A call that the template leaves out is refused where it is trained on, which here it is not."""
    call = {"type": "function", "function": {"name": "palette", "arguments": {}}}
    says = [("user", "Say {}:"), ("assistant", "{}"), ("user", "z" * 110)]
    rows = [[{"role": role, "content": text.format(number)} for role, text in says] for number in range(90)]
    long = [{"messages": [*row, {"role": "assistant", "content": "", "tool_calls": [call]}]} for row in rows]
    held_out = [
        {"prompt": [{"role": "user", "content": f"Tell {number}:"}], "completion": row[1:2]}
        for number, row in enumerate(rows)
    ]
    for name, written in {"rows": long, "held_out": held_out}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row[:1]}) + "\n" for row in rows))
    files = {"dataset_name": "rows", "eval_dataset_name": "held_out", "rl_prompts": "prompts"}
    changes = {key: tmp_path / f"{name}.jsonl" for key, name in files.items()}
    changes |= {"verifier": "none", "beta": 0.3, "arms": ["purified_sft", "dpr"]}
    words = run_argv(tiny_model, tmp_path / "run", **changes, max_train_samples=90, max_length=100)
    assert main([*words, "--dry_run"]) == 0, capsys.readouterr().err
    assert len(re.findall(r"row \d+: 100 tokens, trained on \d+ of them", capsys.readouterr().out)) == 3


@pytest.mark.parametrize("answer", ["3, 4", "żółw 🐢"])
def test_tokens_that_are_trained_on_stand_between_bars(answer):
    tokenizer = tiny_tokenizer()
    found = encode_demonstration({"prompt": "Say 3:", "completion": answer}, tokenizer)
    text = tokens_text("row 1", found["input_ids"], found["completion_mask"], tokenizer)
    shown = text.plain.partition("\n")[2]
    before, bar, trained = shown.partition("│")
    assert (before, bar) == ("Say 3:", "│")
    assert trained.replace("│", "") == answer + tokenizer.eos_token
    assert trained.endswith("│")
    green = "".join(text.plain[span.start : span.end] for span in text.spans if TRAINED in str(span.style))
    assert green == answer + tokenizer.eos_token
    dim = "".join(text.plain[span.start : span.end] for span in text.spans if CONTEXT in str(span.style))
    assert dim == "Say 3:"
