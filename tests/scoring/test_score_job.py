"""`densepath score` as a job: windows, shards, bad rows, both formats, changed settings; numbers against float64."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pipeline.runs import ROOT, save_tiny_model
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.cli.main import main
from densepath.config.reward import ScoreArguments
from densepath.data.encode import encode_pairs
from densepath.report.scored import RowQuery, ScoredFile
from densepath.rewards.dense import DenseReward
from densepath.rewards.rows import RowScorer
from densepath.scoring import shard
from densepath.scoring.parts import PartFolder, _differences

WORDS = ("cat", "dog", "tree", "moon", "12, 7", "é€", "the answer is")


def made_row(i: int) -> dict:
    """A row of one of TRL's formats, of a length of its own; prompts come several times."""
    text = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + (i * 7) % 13))
    if i % 5 == 3:
        turn = {"role": "user", "content": f"Say {i % 4}"}
        answer = {"role": "assistant", "content": text}
        return {"id": f"r{i}", "messages": [turn, answer, {"role": "user", "content": "Go on"}, answer]}
    if i % 5 == 4:
        return {"id": f"r{i}", "text": text + " and on", "n": i}
    return {"id": f"r{i}", "prompt": f"Say {i % 3}:", "completion": text, "n": i}


ROWS = [made_row(i) for i in range(23)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    names = ("sft", "ref", "other")
    return {name: save_tiny_model(folder / name, seed=seed) for seed, name in enumerate(names)}


@pytest.fixture
def score(models, tmp_path, capsys, monkeypatch):
    """Run the command; models are loaded once for each combination. Returns (exit code, what it printed)."""
    loaded: dict[str, DenseReward] = {}
    load = DenseReward.from_models

    def once(sft, refs, **given):
        key = repr((sft, refs, sorted(given.items(), key=str)))
        return loaded[key] if key in loaded else loaded.setdefault(key, load(sft, refs, **given))

    monkeypatch.setattr(shard.DenseReward, "from_models", once)

    def run(data, output, **changes) -> tuple[int, str]:
        values = {
            "model_name_or_path": models["sft"],
            "ref_model_name_or_path": models["ref"],
            "dataset_name": data,
            "output_file": output,
            "window_size": 4,
            "token_budget": 96,
            **changes,
        }
        given = {key: value for key, value in values.items() if value is not None}
        words = [word for key, value in given.items() for word in (f"--{key}", *str(value).split("|"))]
        code = main(["score", *words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out + captured.err

    return run


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def naive(models: list, row: dict) -> list[list[float]]:
    """Rewards of each turn against the arithmetic mean of the references, token by token in float64."""
    rewards = []
    for pair in encode_pairs(row, tiny_tokenizer()):
        ids = torch.tensor([[*pair.prompt_ids, *pair.completion_ids]])
        logprobs = []
        for model in models:
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 :]
            logprobs.append([float(logits[t].log_softmax(0)[a]) for t, a in enumerate(pair.completion_ids)])
        refs = [math.log(sum(map(math.exp, of_token)) / len(of_token)) for of_token in zip(*logprobs[1:], strict=True)]
        rewards.append([a - b for a, b in zip(logprobs[0], refs, strict=True)])
    return rewards


def exact(seed: int):
    return tiny_llama(vocab_size=len(tiny_tokenizer()), seed=seed, dtype=torch.float64)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_in_order_with_rewards_of_a_naive_float64_pass(score, models, data, tmp_path, suffix):
    output = tmp_path / f"scores{suffix}"
    refs = f"{models['ref']}|{models['other']}"
    code, said = score(data, output, ref_model_name_or_path=refs, output_logprobs="true")
    assert code == 0, said
    found = read(output)
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    models64 = [exact(seed) for seed in range(3)]
    rewards = []
    for row, record in zip(ROWS, found, strict=True):
        assert {key: record[key] for key in row} == row
        expected = naive(models64, row)
        assert len(record["turns"]) == len(expected)
        for turn, values in zip(record["turns"], expected, strict=True):
            assert turn["rewards"] == pytest.approx(values, abs=1e-5)
            assert turn["sum"] == pytest.approx(sum(values), abs=1e-4)
            assert turn["mean"] == pytest.approx(sum(values) / len(values), abs=1e-5)
            difference = [a - b for a, b in zip(turn["sft_logprobs"], turn["ref_logprobs"], strict=True)]
            assert turn["rewards"] == pytest.approx(difference, abs=1e-6)
        flat = [value for values in expected for value in values]
        assert record["reward"] == pytest.approx(sum(flat), abs=1e-4)
        assert record["reward_per_token"] == pytest.approx(sum(flat) / len(flat), abs=1e-5)
        assert record["num_tokens"] == len(flat)
        rewards.append(sum(flat))
    mean = sum(rewards) / len(rewards)
    half = 1.96 * math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1) / len(rewards))
    shown = re.search(r"(\d+) rows, (\d+) completion tokens, reward per row (\S+) \[(\S+), (\S+)\] nats", said)
    assert shown is not None, said
    assert int(shown.group(1)) == len(ROWS)
    assert int(shown.group(2)) == sum(row["num_tokens"] for row in found)
    assert [float(x.replace("−", "-")) for x in shown.groups()[2:]] == pytest.approx(
        [mean, mean - half, mean + half], abs=2e-3
    )
    manifest = PartFolder(output).manifest
    record = json.loads(manifest.read_text())
    assert record["result"]["reward"]["mean"] == pytest.approx(mean, abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["rows.jsonl", output.name, manifest.name])


@settings(deadline=None, max_examples=20)
@given(
    order=st.permutations(range(14)),
    budget=st.integers(1, 400),
    cuts=st.sets(st.integers(1, 13), max_size=5),
)
def test_neither_window_nor_budget_nor_order_changes_a_row(order, budget, cuts):
    """Rows scored in any company, window by window, against each row alone."""
    tokenizer = tiny_tokenizer()
    scorer = RowScorer(DenseReward(MODELS[0], MODELS[1], token_budget=budget), tokenizer)
    bounds = [0, *sorted(cuts), len(order)]
    found = {}
    for start, stop in pairwise(bounds):
        rows = [ROWS[index] for index in order[start:stop]]
        found |= dict(zip(order[start:stop], scorer.score(rows), strict=True))
    for index, record in found.items():
        assert record["turns"][0]["rewards"] == pytest.approx(ALONE[index]["turns"][0]["rewards"], abs=1e-5)
        assert record["reward"] == pytest.approx(ALONE[index]["reward"], abs=1e-4)
        assert record["turns"][0]["tokens"] == ALONE[index]["turns"][0]["tokens"]


MODELS = [tiny_llama(vocab_size=len(tiny_tokenizer()), seed=seed) for seed in range(2)]
ALONE = [RowScorer(DenseReward(*MODELS, token_budget=4096), tiny_tokenizer()).score([row])[0] for row in ROWS[:14]]


@pytest.mark.parametrize("changes", [{"window_size": 7}, {"token_budget": 40}, {"window_size": 100}])
def test_the_file_does_not_depend_on_window_and_budget(score, data, tmp_path, changes):
    score(data, tmp_path / "a.jsonl")
    score(data, tmp_path / "b.jsonl", **changes)
    for one, other in zip(read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl"), strict=True):
        assert one["id"] == other["id"]
        for mine, yours in zip(one["turns"], other["turns"], strict=True):
            assert mine["rewards"] == pytest.approx(yours["rewards"], abs=1e-5)


def test_shaping_and_reading_are_those_of_dense_reward(score, models, data, tmp_path):
    plain, shaped = tmp_path / "plain.jsonl", tmp_path / "shaped.jsonl"
    score(data, plain, output_logprobs="true")
    score(data, shaped, reward_scale=0.5, reward_clip=0.75, reward_floor=-3.0)
    for row, other in zip(read(plain), read(shaped), strict=True):
        for turn, changed in zip(row["turns"], other["turns"], strict=True):
            pairs = zip(turn["sft_logprobs"], turn["ref_logprobs"], strict=True)
            expected = [max(-0.75, min(0.75, 0.5 * (max(a, -3.0) - max(b, -3.0)))) for a, b in pairs]
            assert changed["rewards"] == pytest.approx(expected, abs=1e-6)
    reward = DenseReward.from_models(models["sft"], [models["ref"]], scale=0.5, clip=0.75, floor=-3.0)
    reward.save_pretrained(tmp_path / "saved")
    saved = {"model_name_or_path": tmp_path / "saved", "ref_model_name_or_path": None}
    assert score(data, tmp_path / "again.jsonl", **saved)[0] == 0
    assert (tmp_path / "again.jsonl").read_bytes() == shaped.read_bytes()
    for changes in ({"reward_clip": 1}, {"ref_model_name_or_path": models["ref"]}):
        code, said = score(data, tmp_path / "c.jsonl", **{**saved, **changes})
        assert code == 2
        assert f"holds a whole reward (dense_reward.json): leave out {next(iter(changes))}" in said


@pytest.mark.parametrize("kind", ["logprob", "inverse_bellman"])
def test_a_reference_that_the_reading_does_without_is_refused(score, data, tmp_path, kind):
    code, said = score(data, tmp_path / "scores.jsonl", dense_reward=kind)
    assert code == 2
    assert f"dense_reward={kind} reads the SFT model alone" in said
    assert score(data, tmp_path / "scores.jsonl", dense_reward=kind, ref_model_name_or_path=None)[0] == 0


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_shards_give_the_same_file(score, data, tmp_path, monkeypatch, suffix):
    data.write_text(data.read_text() + '{"id": "bad"}\n', encoding="utf-8")
    whole, shared = tmp_path / f"whole{suffix}", tmp_path / f"shared{suffix}"
    assert score(data, whole)[0] == 0
    for index in (2, 0):
        code, said = score(data, shared, num_shards=3, shard_index=index)
        assert code == 0
        assert "windows are still to be scored by other shards" in said
    assert not shared.exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):  # the last share, over two processes of a launcher
        monkeypatch.setenv("RANK", str(rank))
        assert score(data, shared, num_shards=3, shard_index=1)[0] == 0
    assert shared.read_bytes() == whole.read_bytes()
    assert PartFolder(shared).rejected.read_bytes() == PartFolder(whole).rejected.read_bytes()
    monkeypatch.delenv("WORLD_SIZE")
    assert "is there already: nothing to do" in score(data, shared)[1]
    assert not PartFolder(shared).folder.exists()


@pytest.mark.slow
def test_processes_give_the_same_file(data, models, tmp_path, capsys):
    words = ["score", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    words += ["--dataset_name", str(data), "--window_size", "4", "--num_threads", "1", "--output_file"]
    assert main([*words, str(tmp_path / "one.jsonl")]) == 0
    assert main([*words, str(tmp_path / "two.jsonl"), "--num_processes", "2"]) == 0, capsys.readouterr().err
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    data.write_text(data.read_text() + '{"id": "bad"}\n', encoding="utf-8")
    assert main([*words, str(tmp_path / "three.jsonl"), "--num_processes", "2", "--strict"]) == 2
    assert "rows.jsonl, row 24: no format of TRL's" in capsys.readouterr().err


@pytest.mark.slow
def test_a_launcher_gives_the_same_file(data, models, tmp_path):
    words = ["score", "--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    words += ["--dataset_name", str(data), "--window_size", "4", "--num_threads", "1", "--output_file"]
    assert main([*words, str(tmp_path / "one.parquet")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [*launcher, "densepath.cli.main", *words, str(tmp_path / "two.parquet")]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.parametrize(
    ("machines", "processes", "devices", "expected"),
    [
        (1, 4, 4, [[0, 1, 2, 3]]),
        (2, 2, 2, [[0, 1], [0, 1]]),
        (3, 4, 4, [[0, 1, 2, 3]] * 3),
        (4, 1, 4, [[0], [1], [2], [3]]),  # all on one machine, as far as is known
        (2, 2, 8, [[0, 1], [2, 3]]),
        (1, 3, 2, [[0, 1, 0]]),
    ],
)
def test_each_process_of_a_machine_has_a_device_of_its_own(monkeypatch, machines, processes, devices, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(shard, "check_vocabulary", lambda *given: None)
    monkeypatch.setattr(shard, "RowScorer", lambda reward, *given, **named: reward.sft.model)
    made = SimpleNamespace(from_models=lambda *given, device, **named: SimpleNamespace(
        sft=SimpleNamespace(model=device), tokenizer=None
    ))  # fmt: skip
    monkeypatch.setattr(shard, "DenseReward", made)
    for index in range(machines):
        arguments = ScoreArguments(
            model_name_or_path="sft", dataset_name="rows", num_shards=machines, num_processes=processes,
            shard_index=index,
        )  # fmt: skip
        shards = range(index, machines * processes, machines)  # as `run_score_command` deals them out
        assert [shard._scorer(arguments, each, None) for each in shards] == [
            f"cuda:{device}" for device in expected[index]
        ]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert shard._scorer(arguments, machines * 5, None) == f"cuda:{1 % devices}"


def test_processes_that_would_share_vllms_device_are_refused(score, data, tmp_path, monkeypatch):
    code, said = score(data, tmp_path / "scores.jsonl", use_vllm="true", num_processes=3)
    assert (code, "and 3 processes of this machine would share it: start one call for each" in said) == (2, True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for here in ("4", "2"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        code, said = score(data, tmp_path / "scores.jsonl", use_vllm="true")
        assert (code, f"and {here} processes of this machine would share it: start one call" in said) == (2, True)


def test_processes_of_machines_of_their_own_have_vllms_device_to_themselves(score, data, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "_loader", lambda arguments: "vllm" if arguments.use_vllm else None)
    own = shard.DenseReward.from_models
    monkeypatch.setattr(shard.DenseReward, "from_models", lambda *given, load, **others: own(*given, **others))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert score(data, tmp_path / "scores.jsonl", use_vllm="true")[0] == 0
    assert (tmp_path / "scores.jsonl").is_file()


def test_a_shard_that_is_being_scored_is_left_alone(score, data, tmp_path, monkeypatch):
    write = PartFolder.write
    said = []

    def meanwhile(self, *given, **others):
        if not said:
            said.append("")
            said[0] = score(data, tmp_path / "a.jsonl")[1]
        write(self, *given, **others)

    monkeypatch.setattr(PartFolder, "write", meanwhile)
    assert score(data, tmp_path / "a.jsonl")[0] == 0
    assert "another densepath process does this part of the work" in said[0]


# --- bad rows --------------------------------------------------------------------------------------------------------

BAD = [
    ('{"prompt": "x"}', 'a prompt without "completion"'),
    ('{"prompt": "", "completion": "y"}', '"prompt" is empty'),
    ('{"prompt": "x", "completion": " "}', '"completion" is empty'),
    ('{"prompt": "x", "completion": NaN}', '"completion" is nan, not a string'),
    ('{"prompt": "x", ', "not valid JSON"),
    ("[1, 2]", "[1, 2] is not an object"),
    ('{"prompt": "x", "completion": "' + "z" * 300 + '"}', "tokens, but the models' context holds 256"),
    ('{"prompt": "x", "completion": "\\ud800"}', "half of a surrogate pair stands behind"),
    ('{"messages": [{"role": "robot", "content": "x"}]}', "turn 1 has the role 'robot'"),
    ('{"prompt": "x", "completion": "y", "turns": 3}', 'there is a column "turns" already'),
    ("{}", "no format of TRL's"),
    (
        '{"prompt": "x", "chosen": "y", "rejected": "z"}',
        "a preference pair: densepath reward-eval scores both answers",
    ),
]


def test_bad_rows_are_set_aside_with_their_number_and_reason(score, data, tmp_path):
    good = data.read_text().splitlines(keepends=True)
    output = tmp_path / "scores.jsonl"
    score(data, tmp_path / "good.jsonl", token_budget=4096, window_size=100)
    mixed = [line for k, line in enumerate(good) for line in ([BAD[k][0] + "\n"] if k < len(BAD) else []) + [line]]
    data.write_text("\n" + "".join(mixed), encoding="utf-8")  # the blank line counts, as in any editor
    code, said = score(data, output, token_budget=4096, window_size=100)
    assert code == 0
    assert f"warning: {len(BAD)} rows could not be scored; they are in {tmp_path / 'scores.rejected.jsonl'}" in said
    rejected = read(tmp_path / "scores.rejected.jsonl")
    assert [record["row"] for record in rejected] == [2 + 2 * k for k in range(len(BAD))]
    for (line, message), record in zip(BAD, rejected, strict=True):
        assert message in record["error"]
        assert record["file"] == str(data)
        assert record["line"] == line if "line" in record else record["data"] is not None
    assert rejected[0]["data"] == {"prompt": "x"}
    assert output.read_bytes() == (tmp_path / "good.jsonl").read_bytes()
    assert json.loads((tmp_path / "scores.manifest.json").read_text())["result"]["rejected"] == len(BAD)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_half_a_pair_where_nobody_reads_goes_through(score, data, tmp_path, kind):
    data.write_text('{"prompt": "x", "completion": "y", "note": "\\udcff"}\n')
    output = tmp_path / f"scores.{kind}"
    assert score(data, output)[0] == 0
    if kind == "jsonl":
        assert read(output)[0]["note"] == "\udcff"
    else:
        assert pq.read_table(output)["note"].to_pylist() == ['"\\udcff"']  # as JSON


@pytest.mark.parametrize(("line", "message"), BAD[::3])
def test_strict_stops_at_a_bad_row(score, data, tmp_path, line, message):
    rows = data.read_text().splitlines(keepends=True)
    data.write_text("".join([*rows[:6], line + "\n", *rows[6:]]), encoding="utf-8")
    code, said = score(data, tmp_path / "scores.jsonl", strict="true")
    assert code == 2
    assert said.count("densepath: error") == 1
    assert f"{data}, row 7: " in said
    assert message in said
    assert not (tmp_path / "scores.jsonl").exists()
    # without strict the same job goes on: its first window is kept
    assert score(data, tmp_path / "scores.jsonl")[0] == 0


def test_a_row_whose_numbers_are_not_finite_is_set_aside_alone(tmp_path):
    """The NaN of one token reaches rows that share its forward pass; they are scored again without it."""
    tokenizer = tiny_tokenizer()
    sft, ref = (tiny_llama(vocab_size=len(tokenizer), seed=seed) for seed in range(2))
    (bad,) = tokenizer("Q", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        sft.get_input_embeddings().weight[bad] = torch.nan
    rows = [*ROWS[:3], {"prompt": "Say Q:", "completion": "x"}, *ROWS[3:6]]
    told = []
    scorer = RowScorer(DenseReward(sft, ref), tokenizer)
    found = scorer.score(rows, lambda share, tokens: told.append(share))
    assert "not finite: " in str(found[3])
    assert sum(told) == pytest.approx(1)
    for index, record in enumerate(found[:3] + found[4:]):
        assert record["turns"][0]["rewards"] == pytest.approx(ALONE[index]["turns"][0]["rewards"], abs=1e-5)


def test_a_row_that_a_reference_does_not_hold_is_set_aside(score, data, tmp_path):
    """Rotary positions beyond the reference's context would give numbers that it was never trained for."""
    short = save_tiny_model(tmp_path / "short", seed=1, max_position_embeddings=40)
    tokenizer = tiny_tokenizer()
    lengths = [max(len(p.prompt_ids) + len(p.completion_ids) for p in encode_pairs(row, tokenizer)) for row in ROWS]
    assert min(lengths) <= 40 < max(lengths)
    assert score(data, tmp_path / "scores.jsonl", ref_model_name_or_path=short)[0] == 0
    rejected = {each["row"]: each["error"] for each in read(tmp_path / "scores.rejected.jsonl")}
    assert list(rejected) == [number for number, length in enumerate(lengths, start=1) if length > 40]
    assert all("but the models' context holds 40; shorten" in error for error in rejected.values())


def test_data_none_of_which_can_be_scored_is_refused_early(score, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "GIVE_UP_AFTER", 8)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n' * 20)
    code, said = score(path, tmp_path / "scores.jsonl")
    assert code == 2
    assert 'prompts.jsonl, row 5: a prompt without "completion"' in said
    path.write_text('{"prompt": "x"}\n' * 6)
    code, said = score(path, tmp_path / "scores.jsonl")  # nothing was scored: the correction is taken
    assert code == 2
    assert "no row could be scored; the first of them: " in said
    path.write_text('{"prompt": "x", "completion": "y"}\n' * 6)
    assert score(path, tmp_path / "scores.jsonl")[0] == 0


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_stretch_of_bad_rows_stops_neither_a_job_that_goes_on_nor_a_share(score, tmp_path, monkeypatch, done):
    """Four good rows, eight bad, four good, four bad: a job that is killed after some windows, and its second half."""
    monkeypatch.setattr(shard, "GIVE_UP_AFTER", 4)
    path, good, bad = tmp_path / "rows.jsonl", '{"prompt": "x", "completion": "y"}\n' * 4, '{"prompt": "x"}\n' * 4
    path.write_text(good + bad + bad + good + bad)
    assert score(path, tmp_path / "whole.jsonl")[0] == 0
    write = PartFolder.write

    def killed(self, window, *given, **others):
        if window == done:
            raise KeyboardInterrupt
        write(self, window, *given, **others)

    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "write", killed)
        assert score(path, tmp_path / "scores.jsonl")[0] == 130
    assert score(path, tmp_path / "scores.jsonl")[0] == 0
    for index in (1, 0):  # the second of three has windows 1 and 4: bad rows alone
        assert score(path, tmp_path / "shares.jsonl", num_shards=3, shard_index=index)[0] == 0
    assert score(path, tmp_path / "shares.jsonl", num_shards=3, shard_index=2)[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (0, 1, 2):  # the second process reads bad rows alone, behind good ones of the first
        monkeypatch.setenv("RANK", str(rank))
        assert score(path, tmp_path / "processes.jsonl")[0] == 0
    for name in ("scores", "shares", "processes"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_processes_give_up_on_data_none_of_which_can_be_scored(score, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "GIVE_UP_AFTER", 4)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\n' * 40)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        code, said = score(path, tmp_path / "scores.jsonl")
        assert (code, "nor can any other of the 4 rows that were read be scored" in said) == (2, True)


def test_a_job_that_was_given_up_goes_on_behind_what_it_read(score, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "GIVE_UP_AFTER", 4)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\n' * 4 + '{"prompt": "x", "completion": "y"}\n' * 4)
    code, said = score(path, tmp_path / "scores.jsonl")
    assert code == 2
    assert "nor can any other of the 4 rows that were read be scored; the same command goes on" in said
    assert score(path, tmp_path / "scores.jsonl")[0] == 0
    assert [row["row"] for row in read(tmp_path / "scores.rejected.jsonl")] == [1, 2, 3, 4]


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(score, data, tmp_path, monkeypatch):
    """A job of which one window is done."""
    write = PartFolder.write

    def once(self, window, *given, **others):
        if window == 1:
            raise KeyboardInterrupt
        write(self, window, *given, **others)

    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "write", once)
        assert score(data, tmp_path / "scores.jsonl")[0] == 130
    assert (tmp_path / "scores.parts" / "00000000.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"window_size": 5}, "settings.window_size: 4 -> 5"),
        ({"token_budget": 100}, "settings.token_budget: 96 -> 100"),
        ({"reward_clip": 1.5}, "settings.reward_clip: None -> 1.5"),
        ({"dtype": "float64"}, "settings.dtype: 'float32' -> 'float64'"),
        ({"max_samples": 9}, "settings.max_samples: None -> 9"),
        ({"remove_columns": "n"}, "settings.remove_columns: [] -> ['n']"),
    ],
)
def test_changed_settings_are_refused_with_the_difference(begun, score, data, tmp_path, changes, difference):
    code, said = score(data, tmp_path / "scores.jsonl", **changes)
    assert code == 2
    assert difference in said
    assert "undo the change to go on, or remove" in said


def test_a_changed_setting_is_named_though_an_earlier_version_began_the_job(begun, score, data, tmp_path):
    """It sealed neither the manifest nor the markers of windows."""
    for path in (tmp_path / "scores.parts").glob("*.json"):
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"})
        )
    code, said = score(data, tmp_path / "scores.jsonl", reward_clip=1.5)
    assert (code, "settings.reward_clip: None -> 1.5" in said) == (2, True)
    assert score(data, tmp_path / "scores.jsonl")[0] == 0


def test_a_digit_that_flipped_in_the_manifest_of_an_unfinished_job_is_no_change_of_settings(
    begun, score, data, tmp_path
):
    manifest = tmp_path / "scores.parts" / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"token_budget": 96', '"token_budget": 97'))
    assert manifest.read_text() != whole
    code, said = score(data, tmp_path / "scores.jsonl")
    assert (code, f"{manifest} is damaged, it is not what was written: remove" in said) == (1, True)


def test_changed_data_and_models_are_refused(begun, score, models, data, tmp_path):
    code, said = score(data, tmp_path / "scores.jsonl", ref_model_name_or_path=models["other"])
    assert code == 2
    assert f"models.ref 1.name: '{models['ref']}' -> '{models['other']}'" in said
    weights = Path(models["ref"]) / "model.safetensors"
    before = weights.stat()
    os.utime(weights, (before.st_atime, before.st_mtime + 3600))
    code, said = score(data, tmp_path / "scores.jsonl")
    os.utime(weights, (before.st_atime, before.st_mtime))
    assert code == 2
    assert "(models.ref 1.files.model.safetensors: '" in said
    data.write_text(data.read_text().replace("moon", "noon"), encoding="utf-8")
    code, said = score(data, tmp_path / "scores.jsonl")
    assert code == 2
    assert "(data.rows.jsonl.sha256: '" in said


def test_changed_data_of_which_the_rows_are_made_are_refused(score, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Say a", "completion": "a"}\n')
    assert score(f"constrained:{path}", tmp_path / "scores.jsonl")[0] == 0
    assert "already: nothing to do" in score(f"constrained:{path}", tmp_path / "scores.jsonl")[1]
    path.write_text('{"prompt": "Say a", "completion": "another"}\n')
    code, said = score(f"constrained:{path}", tmp_path / "scores.jsonl")
    assert code == 2
    assert "is of another job (data.the data set.sha256: " in said


def test_a_model_of_a_saved_reward_that_was_trained_on_is_refused(score, models, data, tmp_path):
    sft = shutil.copytree(models["sft"], tmp_path / "sft")
    DenseReward.from_models(sft, models["ref"]).save_pretrained(tmp_path / "saved")
    named = {"model_name_or_path": tmp_path / "saved", "ref_model_name_or_path": None}
    assert score(data, tmp_path / "scores.jsonl", **named)[0] == 0
    assert "already: nothing to do" in score(data, tmp_path / "scores.jsonl", **named)[1]
    save_tiny_model(sft, seed=7)
    code, said = score(data, tmp_path / "scores.jsonl", **named)
    assert code == 2
    assert f"{sft} is another model than it was (weights changed): save anew" in said
    DenseReward.from_models(sft, models["ref"]).save_pretrained(tmp_path / "saved")
    os.utime(tmp_path / "saved/dense_reward.json", (1e9, 1e9))  # a file is told by its size and its second
    code, said = score(data, tmp_path / "scores.jsonl", **named)
    assert code == 2
    assert "is of another job (models.reward.files.dense_reward.json: " in said
    assert "models.sft.files.model.safetensors: " in said


@pytest.mark.parametrize("beside", [True, False])
def test_another_chat_template_is_refused(beside, begun, score, models, data, tmp_path):
    path = Path(models["sft"]) / "chat_template.jinja" if beside else tmp_path / "chat.jinja"
    given = {} if beside else {"chat_template_path": path}
    output = tmp_path / ("scores.jsonl" if beside else "other.jsonl")
    before = path.read_text(encoding="utf-8") if beside else tiny_tokenizer().chat_template
    path.write_text(before, encoding="utf-8")
    if not beside:
        assert score(data, output, **given)[0] == 0
    path.write_text(before.replace("You help.", "You do not help."), encoding="utf-8")
    code, said = score(data, output, **given)
    path.write_text(before, encoding="utf-8")
    assert code == 2
    assert f"{'models.sft' if beside else 'models.chat template'}.files.{path.name}: '" in said


def test_strict_sees_what_was_set_aside_before(score, data, tmp_path, monkeypatch):
    data.write_text('{"id": "bad"}\n' + data.read_text(), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "merge", lambda *given, **others: (_ for _ in ()).throw(KeyboardInterrupt))
        assert score(data, tmp_path / "scores.jsonl")[0] == 130
    code, said = score(data, tmp_path / "scores.jsonl", strict="true")
    assert code == 2
    assert f"rows that could not be scored: 1; the first of them: {data}, row 1: no format of TRL's" in said
    assert score(data, tmp_path / "scores.jsonl")[0] == 0


def test_outputs_of_one_stem_have_nothing_in_common(score, data, tmp_path):
    data.write_text(data.read_text() + '{"prompt": "x"}\n')
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "x", "completion": "y"}\n{"completion": "y"}\n')
    assert score(data, tmp_path / "scores.jsonl")[0] == 0
    kept = {path: path.read_bytes() for path in tmp_path.glob("scores.*")}
    assert len(kept) == 3
    assert score(other, tmp_path / "scores.parquet")[0] == 0
    assert [row["data"] for row in read(tmp_path / "scores.parquet.rejected.jsonl")] == [{"completion": "y"}]
    assert {path: path.read_bytes() for path in kept} == kept
    assert "nothing to do" in score(data, tmp_path / "scores.jsonl")[1]
    assert "nothing to do" in score(other, tmp_path / "scores.parquet")[1]


def test_a_finished_file_is_kept(score, data, tmp_path):
    output = tmp_path / "scores.jsonl"
    score(data, output)
    before = output.read_bytes()
    code, said = score(data, output, reward_clip=1.0)
    assert code == 2
    assert "settings.reward_clip: None -> 1.0" in said
    assert "move scores.jsonl away to begin anew" in said
    assert output.read_bytes() == before
    output.rename(tmp_path / "kept.jsonl")
    assert score(data, output, reward_clip=1.0)[0] == 0
    mine = tmp_path / "mine.jsonl"
    mine.write_text("my own")
    code, said = score(data, mine)
    assert code == 2
    assert f"{mine} is there already, and {tmp_path / 'mine.manifest.json'}, which says of which job it is, is" in said
    assert "move it away to begin anew, or give another output_file" in said
    assert mine.read_text() == "my own"


# --- formats ---------------------------------------------------------------------------------------------------------


def test_parquet_holds_what_jsonl_holds_and_loads_as_a_dataset(score, data, tmp_path):
    score(data, tmp_path / "a.jsonl", output_logprobs="true")
    score(data, tmp_path / "b.parquet", output_logprobs="true")
    rows, table = read(tmp_path / "a.jsonl"), pq.read_table(tmp_path / "b.parquet")
    names = table.column_names
    assert names == [
        "id",
        "prompt",
        "completion",
        "n",
        "messages",
        "text",
        "reward",
        "reward_per_token",
        "num_tokens",
        "turns",
    ]
    for row, other in zip(rows, table.to_pylist(), strict=True):
        assert {name: row.get(name) for name in names if name != "turns"} == {
            n: other[n] for n in names if n != "turns"
        }
        for turn, same in zip(row["turns"], other["turns"], strict=True):
            assert turn.keys() == same.keys()
            for key, value in turn.items():
                if key in ("rewards", "sft_logprobs", "ref_logprobs"):  # float32, exactly
                    assert torch.equal(torch.tensor(value), torch.tensor(same[key]))
                else:
                    assert value == same[key]
    shown = [ScoredFile(tmp_path / name).find(RowQuery(limit=99)).rows for name in ("a.jsonl", "b.parquet")]
    for row, one, other in zip(rows, *shown, strict=True):
        assert [span.text for span in one.spans] == [span.text for span in other.spans]
        assert one.reward == pytest.approx(row["reward"])
        assert other.reward == pytest.approx(row["reward"], abs=1e-5)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "b.parquet"), cache_dir=str(tmp_path))["train"]
    assert loaded[0]["turns"][0]["text"] == rows[0]["turns"][0]["text"]


def test_typed_columns_keep_their_types_and_mixed_ones_become_json(score, tmp_path):
    typed = pa.table(
        {
            "prompt": ["a"] * 6,
            "completion": ["b"] * 6,
            "small": pa.array(range(6), pa.int8()),
            "when": pa.array(range(6), pa.timestamp("us")),
            "blob": [b"\xff"] * 6,
        }
    )
    pq.write_table(typed, tmp_path / "typed.parquet")
    score(tmp_path / "typed.parquet", tmp_path / "a.parquet", remove_columns="completion")
    found = pq.read_table(tmp_path / "a.parquet")
    assert found.select(["prompt", "small", "when", "blob"]).equals(typed.select(["prompt", "small", "when", "blob"]))
    assert "completion" not in found.column_names
    score(tmp_path / "typed.parquet", tmp_path / "b.jsonl")
    assert read(tmp_path / "b.jsonl")[1]["when"] == "1970-01-01T00:00:00.000001"
    assert read(tmp_path / "b.jsonl")[1]["blob"] == "/w=="
    extra = [{"x": 1}, {"x": 2.5}, {}, {"y": []}, {"y": ["s"]}, {"y": "t", "x": None}, {"z": {}}, {"z": {"k": 2**70}}]
    rows = [{"prompt": "a", "completion": "b", **more} for more in extra]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(tmp_path / "mixed.jsonl", tmp_path / "c.parquet", window_size=1)
    found = pq.read_table(tmp_path / "c.parquet")
    assert found["x"].to_pylist() == [1.0, 2.5, *[None] * 6]
    assert found["y"].to_pylist() == [None, None, None, "[]", '["s"]', '"t"', None, None]
    assert found["z"].to_pylist() == [*[None] * 6, "{}", '{"k": 1180591620717411303424}']
    score(tmp_path / "mixed.jsonl", tmp_path / "d.parquet", window_size=100)
    assert pq.read_table(tmp_path / "d.parquet")["y"].to_pylist() == found["y"].to_pylist()


@pytest.mark.parametrize("window", [1, 3])
def test_numbers_that_no_type_of_a_column_holds_together_become_json(score, tmp_path, window):
    """A float64 holds every integer up to 2**53 alone."""
    values = [2**60 + 1, 0.5, 3]
    rows = [
        {"prompt": "a", "completion": "b", "x": each, "y": {"k": [each]}, "n": number}
        for number, each in enumerate(values)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score(tmp_path / "rows.jsonl", tmp_path / "a.parquet", window_size=window)[0] == 0
    found = pq.read_table(tmp_path / "a.parquet")
    assert [json.loads(text) for text in found["x"].to_pylist()] == values
    assert [json.loads(text) for text in found["y"].to_pylist()] == [{"k": [each]} for each in values]
    assert found["n"].to_pylist() == [0, 1, 2]


def test_numbers_that_json_cannot_hold_are_null(score, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b", "x": NaN, "y": [1, -Infinity]}\n')
    score(tmp_path / "rows.jsonl", tmp_path / "a.jsonl")
    (row,) = read(tmp_path / "a.jsonl")
    assert (row["x"], row["y"]) == (None, [1, None])


def test_scored_rows_can_be_scored_again_if_their_columns_are_left_out(score, data, tmp_path):
    score(data, tmp_path / "a.jsonl")
    code, said = score(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert code == 2
    assert 'there is a column "reward" already; rename it, or leave it out with remove_columns' in said
    columns = "reward|reward_per_token|num_tokens|turns"
    assert score(tmp_path / "a.jsonl", tmp_path / "b.jsonl", remove_columns=columns)[0] == 0
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], "reward": [1.0]}), tmp_path / "c.parquet")
    code, said = score(tmp_path / "c.parquet", tmp_path / "d.jsonl")
    assert code == 2
    assert 'c.parquet: there is a column "reward" already' in said


def test_what_only_one_call_knows_of_a_model_is_no_difference():
    """The first call of a hub id fetched its weights only after it had said what it is."""
    before = {"model": {"config": "a"}, "settings": {"n": 1}}
    assert list(_differences(before, {"model": {"config": "a", "weights": "w"}, "settings": {"n": 1}})) == []
    found = list(_differences(before, {"model": {"config": "b", "weights": "w"}, "settings": {"n": 1, "m": 2}}))
    assert found == ["model.config: 'a' -> 'b'", "settings.m: None -> 2"]
