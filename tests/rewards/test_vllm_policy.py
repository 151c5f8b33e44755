"""vLLM in float32 scores and samples as densepath does: its CPU build, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from scipy import stats
from tests.launching import ENVIRONMENT, NEEDS_VLLM, ROOT
from tests.tiny_models import tiny_llama

from densepath.config.reward import ScoreArguments
from densepath.errors import ConfigError, ModelError, UsageError
from densepath.io import read_jsonl
from densepath.rewards.dense import DenseReward
from densepath.rewards.vllm_policy import VLLMPolicy, load_vllm_policies

NEAR = 5e-5
"""Nats."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("vllm")
    command = [sys.executable, "-m", "tests.rewards.vllm_script", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


@pytest.fixture(scope="module")
def found(folder):
    return torch.load(folder / "found.pt")


def close(ours, theirs) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(other), atol=NEAR, rtol=0)


@pytest.mark.slow
@NEEDS_VLLM
def test_the_reward_of_a_pair_is_the_same(found):
    for ours, theirs in zip(*found["scores"], strict=True):
        close(ours, theirs)


@pytest.mark.slow
@NEEDS_VLLM
def test_samples_are_the_policys(found):
    drawn = found["drawn"]
    close(drawn["logprobs"], found["own"])
    assert drawn["completion_ids"] == found["again"]["completion_ids"]
    assert len({tuple(ids) for ids in drawn["completion_ids"]}) > 8  # 12, of which none was drawn like another
    ours, theirs = found["greedy"]
    assert ours["completion_ids"] == theirs["completion_ids"]
    close(ours["logprobs"], theirs["logprobs"])
    counts, expected = found["counts"].double(), found["probs"] * found["counts"].sum()
    often = expected >= 5
    both = [torch.cat([each[often], each[~often].sum()[None]]).numpy() for each in (counts, expected)]
    assert stats.chisquare(*both).pvalue > 1e-3


@pytest.mark.slow
@NEEDS_VLLM
def test_the_commands_give_the_same(folder):
    for ours, theirs in zip(*(read_jsonl(folder / f"score-{name}.jsonl") for name in ("vllm", "own")), strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=NEAR * ours["num_tokens"])
    for ours, theirs in zip(*(read_jsonl(folder / f"generate-{name}.jsonl") for name in ("vllm", "own")), strict=True):
        assert ours["text"] == theirs["text"]


def test_what_vllm_cannot_do_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="normalisers"):
        ScoreArguments(model_name_or_path="m", dataset_name="d", use_vllm=True, dense_reward="inverse_bellman")
    with pytest.raises(UsageError, match="device=cpu has no effect on vLLM"):
        load_vllm_policies([tmp_path], device="cpu")
    with pytest.raises(UsageError, match="no hidden states"):
        VLLMPolicy(None).hidden_states([[1]], [[2]])


def test_vllm_needs_room_to_go_on_by_one_token():
    sft, ref = tiny_llama(), tiny_llama(seed=1, max_position_embeddings=64)
    assert DenseReward(VLLMPolicy(sft), VLLMPolicy(ref)).context == 63


@pytest.mark.skipif(not NEEDS_VLLM.args[0], reason="vLLM is installed")
def test_without_vllm_the_error_says_what_to_install(tmp_path):
    with pytest.raises(ModelError, match="pip install 'densepath"):
        load_vllm_policies([tmp_path])
