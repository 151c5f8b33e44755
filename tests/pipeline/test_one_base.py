"""With LoRA every stage of a run holds the base once: policy, SFT model, references and judge are adapters on it."""

from __future__ import annotations

import gc
import traceback
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.pipeline.runs import run_argv, save_tiny_model
from transformers.utils import is_bitsandbytes_available

import densepath.models.load as loading
from densepath.cli.main import main
from densepath.methods import method_names


@pytest.fixture
def bases(monkeypatch):
    """After each loading of a base: how many are in memory, and whose code loaded it."""
    alive: list[weakref.ref] = []
    counts: list[tuple[int, str]] = []
    load = loading._load_base

    def counted(source, **kwargs):
        model = load(source, **kwargs)
        alive.append(weakref.ref(model))
        place = "/".join(frame.name for frame in traceback.extract_stack() if "densepath" in frame.filename)
        counts.append((sum(each() is not None for each in alive), place))
        return model

    monkeypatch.setattr(loading, "_load_base", counted)
    return counts


def held(argv: list[str], bases: list[tuple[int, str]]) -> list[str]:
    """Which code loaded a base beside another; the garbage collector, which hides cycles by chance, rests."""
    gc.disable()
    try:
        assert main([*argv, "--use_peft", "true", "--lora_r", "4", "--beta", "auto"]) == 0
    finally:
        gc.enable()
    return [place for count, place in bases if count > 1]


def trained_by_dpr(run: Path) -> dict[str, torch.Tensor]:
    """The adapter of DPR, plain or capped: of models of random weights the choice takes either."""
    (path,) = run.glob("dpr*/model/adapter_model.safetensors")
    return load_file(path)


SHORT = {"sft_max_steps": 4, "dpr_max_steps": 2}
PURIFY = {"purify_steps": 2, "purify_final_steps": 2, "purify_samples": 4}


def test_a_run_holds_one_base_for_policy_sft_model_references_and_a_judge_of_its_own(tmp_path, tiny_model, bases):
    judge = {"verifier": "None", "judge": f"local:{tiny_model}", "dtype": "bfloat16"}
    argv = run_argv(tiny_model, tmp_path / "run", arms=["base", "sft", "contrastive", "dpr"], **SHORT, **judge)
    assert held(argv, bases) == []
    assert len(bases) == 8  # SFT, its answers, the choice, DPR, and the evaluation of four arms
    adapter = trained_by_dpr(tmp_path / "run")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}  # on a base of half precision


@pytest.mark.slow
@pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs the extra `quantization`")
def test_a_base_in_4_bits_goes_through_every_stage(tmp_path, bases):
    model = save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    arms = ["base", "sft", "contrastive", "dpr", "purified_sft"]
    argv = run_argv(model, tmp_path / "run", arms=arms, load_in_4bit="true", **SHORT, **PURIFY)
    assert held(argv, bases) == []
    dpr, sft = trained_by_dpr(tmp_path / "run"), load_file(tmp_path / "run/sft/model/adapter_model.safetensors")
    assert all(weight.dtype is torch.float32 for weight in dpr.values())
    moved = [float((dpr[name] - sft[name]).abs().max()) for name in sft]
    assert all(distance > 0 for distance in moved)


@pytest.mark.skipif(is_bitsandbytes_available(), reason="for an installation without it")
def test_4_bits_without_bitsandbytes_are_refused_before_the_first_stage(tmp_path, tiny_model, capsys):
    argv = run_argv(tiny_model, tmp_path / "run", load_in_4bit="true", use_peft="true")
    assert main(argv) == 2
    assert "load_in_4bit needs bitsandbytes: pip install bitsandbytes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_arm_holds_one_base(tmp_path, tiny_model, bases):
    arms = [arm for arm in method_names() if arm not in ("gsil", "extrapolation")]  # SPIN's rounds, and no model
    assert held(run_argv(tiny_model, tmp_path / "run", arms=arms, **SHORT, **PURIFY), bases) == []
    assert len(bases) > 2 * len(arms)
