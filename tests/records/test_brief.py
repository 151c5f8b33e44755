"""What records and rewards say of themselves at a prompt."""

from __future__ import annotations

import torch
from tests.tiny_sft import TOKENIZER, counting_models

from densepath import DenseReward
from densepath.records.completion import completion_of
from densepath.records.estimates import Interval
from densepath.rewards.scores import DenseScores


def test_a_record_of_a_thousand_numbers_is_a_line():
    many = 1000
    read = ("a" * many, list(range(many)), ["a"] * many, [(at, at + 1) for at in range(many)])
    said = repr(completion_of(read, [0.25] * many, metric=1.0))
    assert said.startswith("ScoredCompletion(text='aaa")
    assert said.endswith("rewards=<1000 entries>, sum=250, mean=0.25, metric=1)")
    assert len(said) < 300


def test_what_is_unknown_or_as_usual_is_left_out():
    assert repr(Interval(1 / 3, 0.25, 0.5, 80)) == "Interval(mean=0.3333, low=0.25, high=0.5, n=80)"
    assert repr(Interval(0.5, 0.25, 0.75, 3, "seeds")).endswith("n=3, unit='seeds')")


def test_a_reward_names_its_models_and_what_is_not_as_usual():
    sft, reference, base = counting_models()
    sft.config._name_or_path, reference.config._name_or_path = "my/sft", "my/reference"
    said = "DenseReward(sft='my/sft', ref='my/reference', kind='baseline_relative'"
    assert repr(DenseReward(sft, reference)) == f"{said})"
    assert repr(DenseReward(sft, reference, scale=0.5, clip=2.0)) == f"{said}, scale=0.5, clip=2.0)"
    two = repr(DenseReward(sft, [reference, base]))
    assert "ref=['my/reference', " in two
    assert "reference_mean='arithmetic'" in two
    assert repr(DenseReward(sft, kind="logprob")) == "DenseReward(sft='my/sft', kind='logprob')"


def test_scores_say_how_many_and_how_high():
    sft, reference, _ = counting_models()
    scores = DenseReward(sft, reference, tokenizer=TOKENIZER).score(["1 +1:"] * 7, ["2 3."] * 7)
    said = repr(scores)
    assert said.startswith(f"DenseScores(7 completions, {sum(map(len, scores.rewards))} tokens, ")
    assert said.endswith(", …)")
    assert said.count(f"{float(scores.sums[0]):+.3g}") >= 5
    assert repr(DenseScores([torch.zeros(0)], [], [], [])) == "DenseScores(1 completions)"
