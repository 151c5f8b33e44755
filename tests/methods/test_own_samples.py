"""SFT on own samples: which are kept, what it costs, that a kill changes nothing, and the capped reward's defaults."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tests.methods.stages import PARAMETERS, equal, stage_of, weights

from densepath.errors import ConfigError
from densepath.io import read_json, write_jsonl_atomic
from densepath.methods import dpr, dpr_capped, filtered_sft, get_method, rejection_sampling
from densepath.models.load import load_model
from densepath.models.scoring import score_completions


def said(path):
    """(prompt ids, completion ids) of the samples that a method kept on disk."""
    return [(row["prompt_ids"], row["completion_ids"]) for row in read_json(path / "samples.json")["value"]]


def test_filtered_sft_trains_on_the_answers_whose_log_ratio_is_not_negative(source, tmp_path, monkeypatch):
    trained = []
    real = filtered_sft.train_on_own.__globals__["go_on"]

    def spy(stage, steps, dataset):
        trained.append(dataset)
        return real(stage, steps, dataset)

    monkeypatch.setitem(filtered_sft.train_on_own.__globals__, "go_on", spy)
    near = tmp_path / "near"  # a reference so close to SFT that answers lie on both sides of it
    shutil.copytree(source / "sft/model", near)
    torch.manual_seed(0)
    moved = {name: weight + 0.03 * torch.randn_like(weight) for name, weight in weights(near).items()}
    save_file(moved, near / "model.safetensors", metadata={"format": "pt"})
    outcome = filtered_sft.train(stage_of(source, tmp_path, method="filtered_sft", reference=str(near)))
    samples = said(tmp_path)
    assert len(samples) == 4 * 6  # what DPR would sample
    assert all(len(prompt) < 100 for prompt, _ in samples)  # the prompt that leaves no room is not sampled from
    sums = []
    for place in (source / "sft/model", near):
        scores = score_completions(load_model(str(place)), *map(list, zip(*samples, strict=True)))
        sums.append(torch.tensor([float(values.double().sum()) for values in scores.logprobs]))
    ratios = sums[0] - sums[1]
    assert 0 < int((ratios >= 0).sum()) < 24  # the filter has something to do
    kept = {tuple(prompt + ids) for (prompt, ids), r in zip(samples, ratios.tolist(), strict=True) if r >= 0}
    (dataset,) = trained
    assert {tuple(row["input_ids"]) for row in dataset} == kept
    assert all(sum(row["completion_mask"]) <= 8 for row in dataset)
    assert read_json(tmp_path / "kept.json") == {"samples": 24, "kept": int((ratios >= 0).sum())}
    prompts = sum(len(prompt) for prompt, _ in samples[::2])  # two samples share one
    forward = 2 * 2 * (prompts + sum(len(ids) for _, ids in samples)) * PARAMETERS
    assert (outcome.budget.samples, outcome.budget.demonstrations, outcome.steps) == (24, 24, 3)
    assert outcome.budget.flops == 6 * PARAMETERS * outcome.budget.tokens + forward
    assert not equal(weights(tmp_path / "model"), weights(source / "sft/model"))
    again = filtered_sft.train(stage_of(source, tmp_path, method="filtered_sft", reference=str(near)))
    assert again == outcome  # nothing is sampled or trained twice


def test_rejection_sampling_trains_on_accepted_answers_of_validation_prompts(source, tmp_path):
    rows = [{"prompt": f"Count from {i}:", "answer": "x"} for i in range(20, 23)]
    write_jsonl_atomic(source / "data/validation.jsonl", rows)
    changes = {"samples_per_prompt": 5, "verifier": "tests.methods.test_own_samples:starts_high"}
    stage = stage_of(source, tmp_path / "some", method="rejection_sampling", **changes)
    outcome = rejection_sampling.train(stage)
    samples = read_json(tmp_path / "some/samples.json")["value"]
    assert [row["row"] for row in samples] == [0] * 5 + [1] * 5 + [2] * 5
    right = sum(starts_high(row["text"], {}) for row in samples)
    assert read_json(tmp_path / "some/kept.json") == {"samples": 15, "kept": right}
    assert 0 < right < 15
    assert (outcome.budget.samples, outcome.budget.demonstrations) == (15, 24)
    assert get_method("rejection_sampling").policy(stage).model == str(tmp_path / "some/model")
    none = stage_of(source, tmp_path / "none", method="rejection_sampling", **{**changes, "verifier": "exact_match"})
    outcome = rejection_sampling.train(none)
    assert (outcome.steps, outcome.budget.samples, outcome.budget.demonstrations) == (0, 15, 0)
    assert get_method("rejection_sampling").policy(none).model == str(source / "sft/model")
    with pytest.raises(ConfigError, match="trains on what a verifier accepts; set verifier"):
        stage_of(source, tmp_path, method="rejection_sampling")


def starts_high(completion: str, row) -> float:
    """A verifier that accepts about half of random text."""
    return float(completion[:1] > "M")


def test_capped_dpr_caps_at_sft_unless_the_recipe_says_otherwise(source, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(dpr, "train", lambda stage: given.append(stage.others))
    stage = stage_of(source, tmp_path, {"dpr_adam_beta1": 0.9})
    dpr_capped.train(stage)
    dpr_capped.train(dataclasses.replace(stage, others={"dpr_sequence_cap": -1.0, "dpr_reward_scale": 8.0}))
    assert given == [
        {"dpr_adam_beta1": 0.9, "dpr_sequence_cap": 0.0, "dpr_reward_scale": 2.0},
        {"dpr_sequence_cap": -1.0, "dpr_reward_scale": 8.0},
    ]
