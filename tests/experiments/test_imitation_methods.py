"""SPIN, GSIL, DFT and extrapolation as cells: what they cost, who the opponent is, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
import torch
from densepath.experiments import imitation
from densepath.pipeline.cell import Cell
from densepath.pipeline.training import train_continued_sft
from rich.console import Console
from safetensors.torch import load_file
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama
from tests.trainers.test_sft import StopAt

from densepath.config.experiment import MethodArguments
from densepath.models.load import load_model
from densepath.models.scoring import score_completions
from densepath.pipeline.run_folder import RunFolder

PARAMETERS = sum(p.numel() for p in tiny_llama(vocab_size=len(tiny_tokenizer())).parameters())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run folder with what the methods read."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(("base", "sft/model", "sft/references/0.5")):
        model = tiny_llama(vocab_size=len(tokenizer), seed=seed)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir()
    rows = [{"prompt": f"Count from {i}:", "completion": f"{i + 1} {i + 2}"} for i in range(10)]
    rows.append({"prompt": "x " * 130, "completion": "too long to be sampled from"})
    (folder / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunFolder(folder)
    yield run
    run.close()


def cell_of(source, folder, others=None, **changes) -> Cell:
    arguments = MethodArguments(
        **{
            **{"model_name_or_path": str(source / "base"), "reference": "0.5", "reference_fractions": [0.0, 0.5]},
            **{"dpr_max_steps": 4, "dpr_per_device_train_batch_size": 6, "num_generations": 2},
            **{"dpr_learning_rate": 1e-3, "max_completion_length": 8, "save_steps": 100},
            **{"sft_per_device_train_batch_size": 8},
            **changes,
        }
    )
    return Cell(source, folder, arguments, others or {}, Console(file=io.StringIO()), "test", 256)


def pairs_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def test_spin_costs_what_it_says_and_is_done_once(source, tmp_path):
    cell = cell_of(source, tmp_path)
    outcome = imitation.spin(cell)
    pairs = pairs_of(tmp_path / "iteration-1")
    assert len(pairs) == 24
    assert max(len(pair["prompt_ids"]) for pair in pairs) < 60  # the long one is not sampled from
    trained = sum(len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs)
    once = {(tuple(p["prompt_ids"]), tuple(p["chosen_ids"])) for p in pairs}
    prompts = {tuple(p["prompt_ids"]) for p in pairs}
    sampled = sum(map(len, prompts)) + sum(len(p["rejected_ids"]) for p in pairs)
    scored = sum(len(prompt) + len(completion) for prompt, completion in once)
    assert outcome == {
        "samples": 24,
        "demonstrations": 24,
        "tokens": trained,
        "flops": PARAMETERS * (6 * trained + 2 * sampled + 2 * scored),
        "steps": 4,
    }
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3, 4]
    assert losses[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # policy and opponent are one model
    assert losses[-1]["rewards/margins"] > 0
    before = (tmp_path / "model/model.safetensors").stat().st_mtime_ns
    assert imitation.spin(cell) == outcome
    assert (tmp_path / "model/model.safetensors").stat().st_mtime_ns == before
    assert not equal(weights(tmp_path / "model"), weights(source / "sft/model"))


def test_the_opponent_of_a_round_is_the_policy_of_the_round_before(source, tmp_path):
    outcome = imitation.gsil(cell_of(source, tmp_path, iterations=3, gsil_loss="brier", dpr_max_steps=7))
    assert outcome["samples"] == 42  # 14 in each round: three steps, the last of two pairs
    assert outcome["steps"] == 9
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
    whole = imitation.spin(cell_of(source, tmp_path / "whole", iterations=2, save_steps=1))
    real = imitation.SelfPlayTrainer
    calls = []

    def stopping(**arguments):
        calls.append(arguments["args"].output_dir)
        stop = [StopAt(1, KeyboardInterrupt)] if len(calls) == 2 else []
        return real(**arguments, callbacks=stop)

    monkeypatch.setattr(imitation, "SelfPlayTrainer", stopping)
    cell = cell_of(source, tmp_path / "cut", iterations=2, save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        imitation.spin(cell)
    assert imitation.spin(cell) == whole
    assert not list((tmp_path / "cut").rglob("checkpoint-*"))
    assert [name[-1] for name in calls] == ["1", "2", "2"]  # the first round is not trained again
    assert equal(weights(tmp_path / "cut/model"), weights(tmp_path / "whole/model"))


def test_the_recipes_optimizer_is_used_and_dprs_own_keys_are_left_out(source, tmp_path):
    others = {"dpr_adam_beta2": 0.98, "dpr_estimator": "sampled", "dpr_eval_strategy": "steps", "sft_adam_beta2": 0.9}
    cell = cell_of(source, tmp_path, others)
    this = imitation._Round(1, tmp_path, tmp_path, tmp_path, 24, 0)
    config = imitation._config(cell, "spin", this)
    assert (config.adam_beta2, config.learning_rate, config.beta, config.max_steps) == (0.98, 1e-3, 0.1, 4)
    assert config.eval_strategy == "no"
    doubled = dataclasses.replace(cell, others={"dpr_gradient_accumulation_steps": 2})
    assert imitation._config(doubled, "spin", this).max_steps == 2


def test_the_budget_counts_accumulated_batches(source, tmp_path):
    others = {"dpr_gradient_accumulation_steps": 2, "sft_gradient_accumulation_steps": "3"}
    cell = cell_of(source, tmp_path, others)
    assert cell.samples == 4 * 6 * 2
    assert cell.demonstrations_per_step == 8 * 3


def test_dft_is_not_plain_sft(source, tmp_path):
    cell = cell_of(source, tmp_path / "dft")
    outcome = imitation.dft(cell)
    assert {key: outcome[key] for key in ("samples", "demonstrations", "steps")} == {
        "samples": 0,
        "demonstrations": 24,
        "steps": 3,
    }
    assert outcome["flops"] == 6 * PARAMETERS * outcome["tokens"] > 0
    train_continued_sft(dataclasses.replace(cell, folder=tmp_path / "sft"), steps=outcome["steps"])
    assert not equal(weights(tmp_path / "dft/model"), weights(tmp_path / "sft/model"))


def test_extrapolation_uses_the_cells_reference(source, tmp_path):
    outcome = imitation.extrapolate(cell_of(source, tmp_path, alpha=0.5))
    assert outcome == {"samples": 0, "demonstrations": 0, "tokens": 0, "flops": 3 * PARAMETERS, "steps": 0}
    found, sft, ref = (
        weights(tmp_path / "model"),
        weights(source / "sft/model"),
        weights(source / "sft/references/0.5"),
    )
    for name, weight in found.items():
        torch.testing.assert_close(weight, sft[name] + 0.5 * (sft[name] - ref[name]), atol=1e-6, rtol=1e-6)
    assert (tmp_path / "model/tokenizer.json").exists()
    imitation.extrapolate(cell_of(source, tmp_path / "before", alpha=-1.0, reference="0"))
    assert equal(weights(tmp_path / "before/model"), weights(source / "base"))


@pytest.mark.parametrize("found", [{"reference": "0", "beta": 0.5}, None])
def test_extrapolation_takes_the_reference_that_validation_chose(source, tmp_path, found):
    (source / "selection.json").write_text(json.dumps({"chosen": found}))
    outcome = imitation.extrapolate(cell_of(source, tmp_path, alpha=-1.0, reference="auto"))
    if found is None:
        assert outcome is None
        assert not (tmp_path / "model").exists()
    else:
        assert equal(weights(tmp_path / "model"), weights(source / "base"))
