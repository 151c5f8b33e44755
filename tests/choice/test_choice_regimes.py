"""The three regimes, where the truth is known: `densepath sft` from a model before SFT, then `densepath diagnose`."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from densepath.config.choice import DiagnoseArguments
from densepath.config.training import SFTArguments
from densepath.data.regimes import SFT, Regime, regime_rows
from densepath.io import write_jsonl_atomic
from densepath.pipeline.diagnose import run_diagnose_command
from densepath.pipeline.regimes import before_sft
from densepath.pipeline.standalone import run_sft_command

SEED = 0
STEPS = {Regime.SCRATCH: (60_000, 500, 64, 1e-3)}
"""Demonstrations, steps, batch and learning rate of SFT, as in the evidence; in the other regimes `OTHERS`."""
OTHERS = (4_000, 300, 32, 5e-4)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    folder, console = tmp_path_factory.mktemp("regimes"), Console(file=io.StringIO(), width=200)

    def run(regime: Regime) -> dict:
        place = folder / regime.value
        demonstrations, steps, batch, rate = STEPS.get(regime, OTHERS)
        for name, n, held_out in (("train", demonstrations, False), ("validation", 400, True)):
            rows = regime_rows(SFT[regime], n, seed=SEED + 1, held_out=held_out)
            write_jsonl_atomic(place / f"{name}.jsonl", rows)
        base = before_sft(folder / "before", regime, SEED, console)
        run_sft_command(
            SFTArguments(
                model_name_or_path=str(base), dataset_name=str(place / "train.jsonl"), output_dir=str(place / "sft")
            ),
            {
                "max_steps": steps,
                "per_device_train_batch_size": batch,
                "learning_rate": rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 10,
                "adam_beta2": 0.98,
                "save_steps": steps,
                "seed": SEED,
            },
            console,
        )
        return run_diagnose_command(
            DiagnoseArguments(
                run_dir=str(place / "sft"),
                dataset_name=str(place / "validation.jsonl"),
                verifier="exact_match",
                max_samples=400,
                max_completion_length=8,
                output_file=str(place / "diagnosis.json"),
            ),
            console,
        )

    return run


@pytest.mark.slow
def test_habit_advises_the_model_before_sft(diagnosed):
    found = diagnosed(Regime.HABIT)
    assert list(found["paths"]) == ["0", "0.25", "0.5", "0.75"]
    assert (found["decision"]["answer"], found["decision"]["reference"]) == ("candidate", "0")


@pytest.mark.slow
def test_novel_is_a_no_that_names_the_harmful_reference(diagnosed):
    found = diagnosed(Regime.NOVEL)["decision"]
    assert found["answer"] == "none"
    (harm,) = (reason for reason in found["reasons"] if reason.startswith("Reference 0 does harm"))
    assert float(re.search(r"is right on (\d\.\d+)", harm)[1]) < 0.1  # the collapse


@pytest.mark.slow
def test_scratch_is_told_to_be_sharpening_and_to_train_longer(diagnosed):
    found = diagnosed(Regime.SCRATCH)["decision"]
    assert (found["answer"], found["reference"]) == ("train_on", None)
    assert any(reason.startswith("It is sharpening") for reason in found["reasons"])
