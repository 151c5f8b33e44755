"""The methods: what they cost, who the opponent is, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import torch
from tests.methods.stages import PARAMETERS, equal, stage_of, weights
from tests.trainers.test_sft import StopAt

from densepath.methods import (
    _self_play,
    continued_sft,
    dft,
    extrapolation,
    get_method,
    gsil,
    method_names,
    spin,
)
from densepath.models.load import load_model
from densepath.models.scoring import score_completions
from densepath.records.arm import Budget
from densepath.records.outcome import Outcome


def pairs_of(folder) -> list[dict]:
    return json.loads((folder / "pairs.json").read_text())["value"]


def test_spin_costs_what_it_says_and_is_done_once(source, tmp_path):
    stage = stage_of(source, tmp_path)
    outcome = spin.train(stage)
    pairs = pairs_of(tmp_path / "iteration-1")
    assert len(pairs) == 24
    assert max(len(pair["prompt_ids"]) for pair in pairs) < 60  # the long one is not sampled from
    trained = sum(len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs)
    once = {(tuple(p["prompt_ids"]), tuple(p["chosen_ids"])) for p in pairs}
    prompts = {tuple(p["prompt_ids"]) for p in pairs}
    sampled = sum(map(len, prompts)) + sum(len(p["rejected_ids"]) for p in pairs)
    scored = sum(len(prompt) + len(completion) for prompt, completion in once)
    flops = PARAMETERS * (6 * trained + 2 * sampled + 2 * scored)
    assert outcome == Outcome(Budget(24, 24, trained, flops), steps=4)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3, 4]
    assert losses[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # policy and opponent are one model
    assert losses[-1]["rewards/margins"] > 0
    before = (tmp_path / "model/model.safetensors").stat().st_mtime_ns
    assert spin.train(stage) == outcome
    assert (tmp_path / "model/model.safetensors").stat().st_mtime_ns == before
    assert not equal(weights(tmp_path / "model"), weights(source / "sft/model"))


@pytest.mark.slow
def test_the_opponent_of_a_round_is_the_policy_of_the_round_before(source, tmp_path):
    outcome = gsil.train(stage_of(source, tmp_path, method="gsil", iterations=3, gsil_loss="brier", dpr_max_steps=7))
    assert outcome.budget.samples == 42  # 14 in each round: three steps, the last of two pairs
    assert outcome.steps == 9
    for number, model in ((1, source / "sft/model"), (2, tmp_path / "iteration-1/model")):
        pairs = pairs_of(tmp_path / f"iteration-{number}")
        assert len(pairs) == 14
        opponent = load_model(model)
        for kind, name in (("chosen", "ref_chosen_logps"), ("rejected", "ref_rejected_logps")):
            found = score_completions(opponent, [p["prompt_ids"] for p in pairs], [p[f"{kind}_ids"] for p in pairs])
            expected = [values.sum().item() for values in found.logprobs]
            assert [p[name] for p in pairs] == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "model").is_dir()
    assert not (tmp_path / "iteration-3/model").exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["iteration"] for row in rows} == {1, 2, 3}


def test_a_killed_cell_ends_as_one_that_was_not(source, tmp_path, monkeypatch):
    whole = spin.train(stage_of(source, tmp_path / "whole", iterations=2, save_steps=1))
    real = _self_play.SelfPlayTrainer
    calls = []

    def stopping(**arguments):
        calls.append(arguments["args"].output_dir)
        stop = [StopAt(1, KeyboardInterrupt)] if len(calls) == 2 else []
        return real(**arguments, callbacks=stop)

    monkeypatch.setattr(_self_play, "SelfPlayTrainer", stopping)
    stage = stage_of(source, tmp_path / "cut", iterations=2, save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        spin.train(stage)
    assert spin.train(stage) == whole
    assert not list((tmp_path / "cut").rglob("checkpoint-*"))
    assert [name[-1] for name in calls] == ["1", "2", "2"]  # the first round is not trained again
    assert equal(weights(tmp_path / "cut/model"), weights(tmp_path / "whole/model"))


def test_the_recipes_optimizer_is_used_and_dprs_own_keys_are_left_out(source, tmp_path):
    others = {"dpr_adam_beta2": 0.98, "dpr_estimator": "sampled", "dpr_eval_strategy": "steps", "sft_adam_beta2": 0.9}
    stage = stage_of(source, tmp_path, others)
    this = _self_play._Round(1, tmp_path, tmp_path, tmp_path, 24, 0)
    config = _self_play._config(stage, "spin", this)
    assert (config.adam_beta2, config.learning_rate, config.beta, config.max_steps) == (0.98, 1e-3, 0.1, 4)
    assert config.eval_strategy == "no"
    doubled = dataclasses.replace(stage, others={"dpr_gradient_accumulation_steps": 2})
    assert _self_play._config(doubled, "spin", this).max_steps == 2


def test_the_budget_counts_accumulated_batches(source, tmp_path):
    others = {"dpr_gradient_accumulation_steps": 2, "sft_gradient_accumulation_steps": "3"}
    stage = stage_of(source, tmp_path, others)
    assert stage.samples == 4 * 6 * 2
    assert stage.demonstrations_per_step == 8 * 3


def test_dft_is_not_plain_sft(source, tmp_path):
    stage = stage_of(source, tmp_path / "dft", method="dft")
    outcome = dft.train(stage)
    assert (outcome.budget.samples, outcome.budget.demonstrations, outcome.steps) == (0, 24, 3)
    assert outcome.budget.flops == 6 * PARAMETERS * outcome.budget.tokens > 0
    continued_sft.go_on(dataclasses.replace(stage, folder=tmp_path / "sft"), outcome.steps)
    assert not equal(weights(tmp_path / "dft/model"), weights(tmp_path / "sft/model"))


def test_extrapolation_uses_the_cells_reference(source, tmp_path):
    outcome = extrapolation.train(stage_of(source, tmp_path, method="extrapolation", alpha=0.5))
    assert outcome == Outcome(Budget(flops=3 * PARAMETERS))
    found, sft, ref = (
        weights(tmp_path / "model"),
        weights(source / "sft/model"),
        weights(source / "sft/references/0.5"),
    )
    for name, weight in found.items():
        torch.testing.assert_close(weight, sft[name] + 0.5 * (sft[name] - ref[name]), atol=1e-6, rtol=1e-6)
    assert (tmp_path / "model/tokenizer.json").exists()
    extrapolation.train(stage_of(source, tmp_path / "before", method="extrapolation", alpha=-1.0, reference="0"))
    assert equal(weights(tmp_path / "before/model"), weights(source / "base"))


@pytest.mark.parametrize("name", method_names())
def test_every_file_of_the_room_is_a_method_that_says_its_source_or_its_cost(name):
    method = get_method(name)
    assert method.label
    assert method.control == (name not in ("dpr", "dpr_capped", "purified_sft"))
    module = importlib.import_module(f"densepath.methods.{name}")
    assert module.__doc__


def test_a_learning_rate_of_zero_is_one_that_was_given(source, tmp_path):
    def rate(**given):
        return stage_of(source, tmp_path, method="continued_sft", sft_learning_rate=1e-3, **given).continued_rate

    assert rate() == 1e-3
    assert rate(continued_sft_learning_rate=1e-4) == 1e-4
    assert rate(continued_sft_learning_rate=0.0) == 0.0
