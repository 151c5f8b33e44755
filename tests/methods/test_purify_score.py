"""What bands are made of: the reward, log pi_SFT in its place, or nothing."""

from __future__ import annotations

import pytest
import torch
from tests.methods.stages import stage_of

from densepath.errors import ConfigError
from densepath.io import write_jsonl_atomic
from densepath.methods import purified_sft
from densepath.models.load import load_model
from densepath.rewards.frozen import FrozenPolicy
from densepath.terminal import terminal


def test_bands_are_made_of_what_was_asked_for_and_the_reward_stays_what_it_is(source, tmp_path):
    write_jsonl_atomic(source / "data/validation.jsonl", [{"prompt": "Count from 30:", "answer": "x"}])
    rows = [{"prompt": f"Count from {i}:", "completion": f"{i + 1} {i + 2}"} for i in range(20)]
    write_jsonl_atomic(source / "data/train.jsonl", rows)  # the fewest that the bands of three behaviours need

    def scores(score, seed=0):
        given = {"purify_score": score, "purify_samples": 2, "purify_kinds": 1, "seed": seed}
        stage = stage_of(source, tmp_path, method="purified_sft", **given)
        corpus, _ = purified_sft._corpus(stage)
        return corpus, purified_sft._scores(stage, corpus)

    corpus, found = scores("reward")
    policies = [FrozenPolicy(load_model(str(source / place))) for place in ("sft/model", "base")]
    sft, base = (corpus.train.log_likelihoods(policy, terminal(quiet=True), "asked") for policy in policies)
    root = corpus.train.tokens.sqrt()
    torch.testing.assert_close(found.banded, (sft - base) / root)
    _, by_sft = scores("sft_logprob")
    torch.testing.assert_close(by_sft.banded, sft / root)
    (_, drawn), (_, again), (_, other) = scores("random"), scores("random"), scores("random", seed=1)
    assert torch.equal(drawn.banded, again.banded)
    assert not torch.equal(drawn.banded, other.banded)
    for each in (by_sft, drawn):
        torch.testing.assert_close(each.scores, found.banded)


def test_without_rounds_there_are_no_bands_to_make(source, tmp_path):
    with pytest.raises(ConfigError, match="makes no bands of purify_score=random; give one round or more"):
        stage_of(source, tmp_path, method="purified_sft", purify_rounds=0, purify_score="random")
