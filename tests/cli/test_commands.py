"""Each command end to end on a tiny model; what it writes against a plain forward pass and recomputation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tests.pipeline.runs import checkpoint_steps, run_argv, weights
from tests.support import IM_END, IM_START
from transformers import AutoModelForCausalLM, AutoTokenizer

from densepath.cli.main import main
from densepath.io import read_json, read_jsonl

SYSTEM = f"{IM_START}system\nYou help.{IM_END}\n"  # the chat template's own, where a conversation has none

STANDARD = [{"id": f"row-{i}", "prompt": f"Say {i}:", "completion": f" {i} and on"} for i in (3, 1, 2, 1, 0)]
CHAT = [
    {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": f"It is {i}."}]}
    for i in range(4)
]
MESSAGES = [
    {
        "messages": [
            {"role": "user", "content": f"Count from {i}."},
            {"role": "assistant", "content": f"{i} {i + 1}"},
            {"role": "user", "content": "Go on"},
            {"role": "assistant", "content": "cat, dog"},
        ]
    }
    for i in range(3)
]
TEXT = [{"text": f"the answer is {i} three"} for i in range(3)]
ROWS = {"standard": STANDARD, "chat": CHAT, "messages": MESSAGES, "text": TEXT}


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def turns_of(kind: str, row: dict, tokenizer) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) of each turn that is an action, from the text of the template by hand."""
    end = tokenizer.eos_token_id
    if kind == "standard":
        return [(ids(tokenizer, row["prompt"]), [*ids(tokenizer, row["completion"]), end])]
    if kind == "text":
        whole = [*ids(tokenizer, row["text"]), end]
        return [(whole[:1], whole[1:])]
    user, assistant = f"{IM_START}user\n%s{IM_END}\n", f"{IM_START}assistant\n"
    if kind == "chat":
        state = ids(tokenizer, SYSTEM + user % row["prompt"][0]["content"] + assistant)
        return [(state, [*ids(tokenizer, row["completion"][0]["content"]), end])]
    found, before = [], []
    for index in (0, 2):
        asked, answered = (turn["content"] for turn in row["messages"][index : index + 2])
        text = (SYSTEM if index == 0 else "\n") + user % asked + assistant
        before = before + ids(tokenizer, text)
        action = [*ids(tokenizer, answered), end]
        found.append((before, action))
        before = before + action
    return found


def plain_logits(folder: str, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Float64 logits at every state of the completion, the one after its last token included."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 :]


def naive_rewards(kind: str, sft: str, ref: str, prompt: list[int], completion: list[int], eos: int) -> list[float]:
    """The three readings, token by token."""
    logits = plain_logits(sft, prompt, completion)
    rewards = []
    for t, token in enumerate(completion):
        if kind == "inverse_bellman":
            ended = t == len(completion) - 1 and token == eos
            value = 0.0 if ended else float(logits[t + 1].logsumexp(0))
            rewards.append(float(logits[t, token]) - value)
        else:
            rewards.append(float(logits[t].log_softmax(0)[token]))
            if kind == "baseline_relative":
                other = plain_logits(ref, prompt, completion)
                rewards[-1] -= float(other[t].log_softmax(0)[token])
    return rewards


# --- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reward"),
    [
        ("standard", "baseline_relative"),
        ("chat", "baseline_relative"),
        ("messages", "baseline_relative"),
        ("text", "baseline_relative"),
        ("messages", "logprob"),
        ("standard", "inverse_bellman"),
    ],
)
def test_score_equals_log_probabilities_of_a_plain_forward_pass(models, tmp_path, write_jsonl, capsys, kind, reward):
    rows, output = ROWS[kind], tmp_path / "scores.jsonl"
    words = ["score", "--model_name_or_path", models["sft"], "--dataset_name", write_jsonl("rows.jsonl", rows)]
    words += ["--output_file", str(output), "--dense_reward", reward, "--token_budget", "64"]
    if reward == "baseline_relative":
        words += ["--ref_model_name_or_path", models["ref"]]
    assert main(words) == 0
    tokenizer = AutoTokenizer.from_pretrained(models["sft"])
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records) == len(rows)
    sums = []
    for row, record in zip(rows, records, strict=True):  # line by line in the order of the file
        assert {name: record[name] for name in row} == row
        expected = turns_of(kind, row, tokenizer)
        assert len(record["turns"]) == len(expected)
        every = []
        for turn, (prompt, completion) in zip(record["turns"], expected, strict=True):
            assert turn["token_ids"] == completion
            assert turn["text"] == tokenizer.decode(completion[:-1])
            assert [turn["text"][start:end] for start, end in turn["offsets"][:-1]] == turn["tokens"][:-1]
            assert "".join(turn["tokens"]) == turn["text"] + IM_END
            naive = naive_rewards(reward, models["sft"], models["ref"], prompt, completion, tokenizer.eos_token_id)
            assert turn["rewards"] == pytest.approx(naive, abs=2e-5)
            assert turn["sum"] == pytest.approx(sum(naive), abs=2e-4)
            assert turn["mean"] == pytest.approx(sum(naive) / len(naive), abs=2e-5)
            every += naive
        assert record["num_tokens"] == len(every)
        assert record["reward"] == pytest.approx(sum(every), abs=3e-4)
        assert record["reward_per_token"] == pytest.approx(sum(every) / len(every), abs=2e-5)
        sums.append(sum(every))
    assert max(sums) - min(sums) > 0.1  # the rows are told apart
    mean = re.search(r"reward per row ([+-][0-9.]+)", capsys.readouterr().out.replace("−", "-"))
    assert mean is not None
    assert float(mean.group(1)) == pytest.approx(sum(sums) / len(sums), abs=1e-3)


def test_score_of_the_first_rows_alone(models, tmp_path, write_jsonl):
    words = ["score", "--model_name_or_path", models["sft"], "--dense_reward", "logprob", "--max_samples", "2"]
    words += ["--dataset_name", write_jsonl("rows.jsonl", STANDARD), "--output_file", str(tmp_path / "out.jsonl")]
    assert main(words) == 0
    found = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == ["row-3", "row-1"]


# --- eval ------------------------------------------------------------------------------------------------------------


def greedy(model, prompt: list[int], ends: set[int], budget: int) -> list[int]:
    """The most probable token again and again, without cache or batch."""
    completion: list[int] = []
    while len(completion) < budget and not (completion and completion[-1] in ends):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, -1]
        completion.append(int(logits.argmax()))
    return completion


def test_eval_equals_greedy_decoding_and_the_share_recomputed(models, tmp_path, write_jsonl, capsys):
    tokenizer = AutoTokenizer.from_pretrained(models["sft"])
    model = AutoModelForCausalLM.from_pretrained(models["sft"], dtype=torch.float32).eval()
    prompts = [f"Say {i}" for i in range(6)]
    expected = {p: greedy(model, ids(tokenizer, p), {tokenizer.eos_token_id}, 5) for p in prompts}
    texts = {p: tokenizer.decode(c, skip_special_tokens=True) for p, c in expected.items()}
    rows = [{"prompt": p, "answer": text if i % 3 == 0 else text + "?"} for i, (p, text) in enumerate(texts.items())]
    output = tmp_path / "eval.jsonl"
    words = ["eval", "--model_name_or_path", models["sft"], "--dataset_name", write_jsonl("rows.jsonl", rows)]
    words += ["--dataset_train_split", "train", "--max_completion_length", "5", "--output_file", str(output)]
    assert main(words) == 0
    answers = read_jsonl(output)
    assert [row["row"] for row in answers] == [1, 2, 3, 4, 5, 6]
    assert [(row["prompt"], row["sampled"][0]["token_ids"]) for row in answers] == list(expected.items())
    assert [row["metric"] for row in answers] == [float(i % 3 == 0) for i in range(6)]
    found = read_json(tmp_path / "eval.manifest.json")["result"]
    assert found["metric"]["mean"] == pytest.approx(2 / 6)
    assert (found["metric"]["n"], found["verifier"], found["temperature"]) == (6, "exact_match", 0.0)
    lengths = [len(c) for c in expected.values()]
    assert found["length"]["mean"] == pytest.approx(sum(lengths) / 6)
    assert found["truncated"] == sum(tokenizer.eos_token_id not in c for c in expected.values()) / 6
    # Wilson by hand: p = 2/6, n = 6, z = 1.959964: centre 0.3984, half-width 0.3015
    assert "exact_match: 0.333 [0.097, 0.700] on 6 prompts" in capsys.readouterr().out


def test_eval_averages_several_completions_of_a_prompt(models, tmp_path, write_jsonl, monkeypatch):
    (tmp_path / "my_verifier.py").write_text("def length(completion, row):\n    return len(completion) / row['per']\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"prompt": f"Say {i}", "per": 4.0 + i} for i in range(3)]
    output = tmp_path / "eval.jsonl"
    words = ["eval", "--model_name_or_path", models["sft"], "--dataset_name", write_jsonl("rows.jsonl", rows)]
    words += ["--verifier", "my_verifier:length", "--num_generations", "4", "--temperature", "1"]
    assert main([*words, "--max_completion_length", "4", "--seed", "3", "--output_file", str(output)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(models["sft"])
    answers = read_jsonl(output)
    assert [(row["row"], row["sample"]) for row in answers] == [(i, k) for i in (1, 2, 3) for k in range(4)]
    values: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for row in answers:
        tokens = row["sampled"][0]["token_ids"]
        assert row["text"] == row["completion"] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert row["metric"] == len(row["text"]) / row["per"]
        values[row["row"]].append(row["metric"])
    assert len({tuple(row["sampled"][0]["token_ids"]) for row in answers}) > 6  # they were sampled, each on its own
    found = read_json(tmp_path / "eval.manifest.json")["result"]
    assert found["metric"]["mean"] == pytest.approx(sum(sum(each) / 4 for each in values.values()) / 3)
    assert found["metric"]["n"] == 3  # prompts are the independent units


def test_eval_of_generated_tasks(models, capsys):
    words = [
        "eval",
        "--model_name_or_path",
        models["sft"],
        "--dataset_name",
        "text_tasks",
        "--max_samples",
        "4",
        "--max_completion_length",
        "3",
    ]
    assert main(words) == 0
    assert "on 4 prompts, 95 % interval" in capsys.readouterr().out


# --- sft and dpr -----------------------------------------------------------------------------------------------------


def likelihood(folder: Path | str, kind: str, rows: list[dict]) -> float:
    """Mean log-probability of the demonstrated tokens, EOS included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows:
        for prompt, completion in turns_of(kind, row, tokenizer):
            logprobs = plain_logits(str(folder), prompt, completion)[:-1].log_softmax(-1)
            total += float(logprobs[torch.arange(len(completion)), torch.tensor(completion)].sum())
            count += len(completion)
    return total / count


@pytest.mark.parametrize("kind", list(ROWS))
def test_sft_learns_any_format_and_keeps_references(models, tmp_path, write_jsonl, capsys, kind):
    output = tmp_path / "sft"
    words = ["sft", "--model_name_or_path", models["sft"], "--dataset_name", write_jsonl("rows.jsonl", ROWS[kind])]
    words += ["--output_dir", str(output), "--reference_fractions", "0,0.5", "--max_steps", "6", "--save_steps", "3"]
    words += ["--learning_rate", "5e-3", "--per_device_train_batch_size", "3", "--lr_scheduler_type", "constant"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"{len(ROWS[kind])} rows: 0 dropped (the prompt alone fills " in out
    assert " tokens), 0 cut there, without an end to learn" in out
    assert str(output / "model") in out
    assert sorted(path.name for path in (output / "references").iterdir()) == ["0.5"]
    before, half, after = (
        likelihood(folder, kind, ROWS[kind]) for folder in (models["sft"], output / "references/0.5", output / "model")
    )
    assert after > half > before
    assert checkpoint_steps(output) == []
    written = (output / "model/model.safetensors").stat().st_mtime_ns
    assert main(words) == 0
    assert "is there already: nothing to do" in capsys.readouterr().out
    assert (output / "model/model.safetensors").stat().st_mtime_ns == written
    assert main([*words, "--max_steps", "7"]) == 2
    assert "(max_steps: 6 -> 7)" in capsys.readouterr().err


def test_sft_goes_on_with_the_adapter_that_it_is_given(models, tmp_path, write_jsonl):
    """`use_peft` beside it is what a page repeats: TRL refuses a second adapter."""
    words = ["sft", "--dataset_name", write_jsonl("rows.jsonl", STANDARD), "--max_steps", "1", "--use_peft"]
    words += ["--per_device_train_batch_size", "2"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*words, "--model_name_or_path", models["sft"], "--output_dir", str(first)]) == 0
    assert main([*words, "--model_name_or_path", str(first / "model"), "--output_dir", str(second)]) == 0
    assert (second / "model/adapter_model.safetensors").is_file()


def test_a_turn_may_end_with_another_token_than_the_tokenizers_eos(models, tmp_path, write_jsonl):
    output, rows = tmp_path / "sft", write_jsonl("rows.jsonl", STANDARD)
    words = ["--model_name_or_path", models["sft"], "--dataset_name", rows, "--output_dir", str(output)]
    assert main(["sft", *words, "--eos_token", "<|pad|>", "--max_steps", "1"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert tokenizer.eos_token == "<|pad|>" != AutoTokenizer.from_pretrained(models["sft"]).eos_token
    scored = tmp_path / "scores.jsonl"  # the reference keeps its own EOS, which is not read
    words = ["--model_name_or_path", str(output / "model"), "--ref_model_name_or_path", models["sft"]]
    assert main(["score", *words, "--dataset_name", rows, "--output_file", str(scored)]) == 0
    first = json.loads(scored.read_text(encoding="utf-8").splitlines()[0])
    assert first["turns"][0]["token_ids"][-1] == tokenizer.convert_tokens_to_ids("<|pad|>")
    words += ["--dataset_name", rows, "--output_dir", str(tmp_path / "dpr"), "--max_steps", "1"]
    words += ["--max_completion_length", "4", "--num_generations", "2", "--per_device_train_batch_size", "2"]
    assert main(["dpr", *words]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "dpr/model").eos_token == "<|pad|>"


@pytest.mark.parametrize("peft", [False, True])
def test_dpr_improves_the_dense_reward(models, tmp_path, write_jsonl, capsys, peft):
    output = tmp_path / "dpr"
    prompts = [{"prompt": [{"role": "user", "content": f"{i}?"}], "id": i} for i in range(12)]
    words = ["dpr", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    words += ["--dataset_name", write_jsonl("prompts.jsonl", prompts), "--output_dir", str(output)]
    words += ["--max_steps", "3" if peft else "20", "--per_device_train_batch_size", "32", "--num_generations", "8"]
    words += ["--beta", "0.1", "--max_completion_length", "6", "--learning_rate", "1e-2"]
    words += ["--lr_scheduler_type", "constant", *(["--use_peft", "--lora_r", "4"] if peft else [])]
    assert main(words) == 0
    assert str(output / "model") in capsys.readouterr().out
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows if "reward" in row]
    if peft:
        trained = weights(output / "model")
        assert len(rewards) == 3
        assert {name.split(".")[-2] for name in trained} == {"lora_A", "lora_B"}
        assert all(tensor.abs().max() > 0 for tensor in trained.values())  # LoRA's B matrices begin at zero
    else:
        assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 3
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_dpr_watches_held_out_demonstrations_and_stops_early(models, tmp_path, write_jsonl, caplog):
    pairs = [{"prompt": f"{i}?", "completion": " yes"} for i in range(6)]
    words = ["dpr", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    words += ["--held_out_ref_model_name_or_path", models["ref"], "--dataset_name", write_jsonl("pairs.jsonl", pairs)]
    held = [{**pair, "prompt": f"held {pair['prompt']}"} for pair in pairs]
    words += ["--eval_dataset_name", write_jsonl("held.jsonl", held), "--eval_steps", "2", "--max_eval_samples", "4"]
    words += ["--nll_increase_threshold", "-100", "--early_stopping", "True", "--output_dir", str(tmp_path / "dpr")]
    words += ["--max_steps", "5", "--per_device_train_batch_size", "4", "--max_completion_length", "4"]
    assert main(words) == 0
    assert "step 2: eval_nll_increase is" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "dpr/metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "reward" in row]
    assert [row["step"] for row in train] == [1, 2]
    assert train[0]["reward_held_out_ref"] == pytest.approx(train[0]["reward"], abs=1e-4)
    assert [row["step"] for row in rows if "eval_nll" in row] == [2]


def test_dpr_takes_held_out_rows_of_another_split_and_none_that_it_trains_on(models, tmp_path, write_jsonl, capsys):
    pairs = [{"prompt": f"{i}?", "completion": " yes"} for i in range(6)]
    (tmp_path / "both").mkdir()
    write_jsonl("both/train.jsonl", pairs)
    write_jsonl("both/test.jsonl", [{**pair, "prompt": f"held {pair['prompt']}"} for pair in pairs])
    words = ["dpr", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    words += ["--dataset_name", str(tmp_path / "both"), "--output_dir", str(tmp_path / "dpr"), "--max_steps", "1"]
    words += ["--per_device_train_batch_size", "4", "--max_completion_length", "4", "--eval_steps", "1"]
    leaks = {
        write_jsonl(
            "leak.jsonl", pairs[:1]
        ): r"train.jsonl, row 1 \(train\) and \S+leak.jsonl, row 1 \(held-out\) have the",
        write_jsonl("text.jsonl", [{"text": "a"}]): r"text.jsonl, row 1: plain text has no prompt and answer",
        write_jsonl("long.jsonl", [{"prompt": "z" * 300, "completion": "y"}]): "no held-out demonstration fits",
    }
    for file, message in leaks.items():
        assert main([*words, "--eval_dataset_name", file]) == 2
        assert re.search(message, capsys.readouterr().err)
    both = [*words, "--eval_dataset_name", str(tmp_path / "both")]
    assert main([*both, "--dataset_test_split", "train"]) == 2
    assert "have the same prompt" in capsys.readouterr().err
    assert main(both) == 0
    assert "eval_nll" in (tmp_path / "dpr/metrics.jsonl").read_text()


def test_dpr_evaluates_nothing_without_held_out_demonstrations(models, tmp_path, capsys):
    words = ["dpr", "--model_name_or_path", models["sft"], "--eval_strategy", "steps", "--dataset_name", "text_tasks"]
    assert main([*words, "--output_dir", str(tmp_path / "dpr")]) == 2
    assert "eval_strategy needs eval_dataset_name" in capsys.readouterr().err


def test_dpr_without_a_reference_where_the_reward_needs_none(models, tmp_path):
    words = ["dpr", "--model_name_or_path", models["sft"], "--dense_reward", "logprob", "--max_train_samples", "8"]
    words += ["--dataset_name", "text_tasks"]
    words += ["--output_dir", str(tmp_path / "dpr"), "--max_steps", "1", "--per_device_train_batch_size", "4"]
    assert main([*words, "--max_completion_length", "4"]) == 0
    assert (tmp_path / "dpr/model/model.safetensors").exists()


@pytest.mark.slow
def test_the_stages_by_hand_make_the_same_sft_model_as_a_run(models, tmp_path):
    """`densepath sft` on the rows that a run trained on; all of them in each step, so that order does not matter."""
    same = ["--learning_rate", "1e-3", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
    argv = run_argv(models["sft"], tmp_path / "run", sft_max_steps=3, dpr_max_steps=1, beta=1, arms=["sft", "dpr"])
    argv += [word.replace("--", "--sft_") for word in same] + ["--sft_per_device_train_batch_size", "18"]
    assert main([*argv, "--eval_temperatures", "0"]) == 0
    words = ["sft", "--model_name_or_path", models["sft"], "--dataset_name", str(tmp_path / "run/data/train.jsonl")]
    words += ["--output_dir", str(tmp_path / "sft"), "--max_steps", "3", "--per_device_train_batch_size", "18", *same]
    assert main(words) == 0
    ours, theirs = weights(tmp_path / "sft/model"), weights(tmp_path / "run/sft/model")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)


# --- report and env --------------------------------------------------------------------------------------------------


def test_report_and_env(models, tmp_path, capsys):
    argv = run_argv(models["sft"], tmp_path / "run", sft_max_steps=1, dpr_max_steps=1, beta=1, arms=["sft", "dpr"])
    assert main([*argv, "--eval_temperatures", "0", "--reference", "0"]) == 0
    page = (tmp_path / "run/report.html").read_text()
    (tmp_path / "run/report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 0
    html, twin = capsys.readouterr().out.splitlines()
    assert Path(html).read_text() == page
    assert json.loads(Path(twin).read_text())["run"] == "run"
    own = tmp_path / "sent.html"
    assert main(["report", str(tmp_path / "run"), "--html_file", str(own)]) == 0
    assert own.read_text() == page
    assert own.with_suffix(".json").read_text() == Path(twin).read_text()
    capsys.readouterr()
    kept = tmp_path / "env.json"
    assert main(["env", "--json", "--output_file", str(kept)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads(kept.read_text()) == found
    assert found["torch"] == torch.__version__
    assert re.search(r"\d+ float32 GFLOP/s a core$", found["matrix products"])  # what a figure of speed rests on
    assert re.fullmatch(r"one core reads \d+ GB/s", found["memory"])
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| --- | --- |"
    assert f"| torch | {torch.__version__} |" in lines
    assert all(line.count("|") == 3 for line in lines)
