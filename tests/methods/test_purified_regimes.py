"""Purification where the truth is known: it finds the behaviours that were planted in the digit regimes."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from densepath.config.training import PurifyCommandArguments, SFTArguments
from densepath.data.regimes import BEFORE_SFT, SFT, Demonstrator, Regime, regime_rows
from densepath.io import read_json, read_jsonl, write_jsonl_atomic
from densepath.pipeline.purify import run_purify_command
from densepath.pipeline.regimes import before_sft
from densepath.pipeline.standalone import run_sft_command
from densepath.records.behaviours import Purification
from densepath.records.codec import from_json

SEED = 0
BEHAVIOURS = {
    Regime.HABIT: (Demonstrator.COPY, Demonstrator.CORRECT),
    Regime.NOVEL: (Demonstrator.COPY, Demonstrator.CORRECT, Demonstrator.DROP_LAST),
}
"""By rising lift: what SFT made rarer, what it raised, what is new."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("regimes")


@pytest.mark.slow
@pytest.mark.parametrize("regime", BEHAVIOURS, ids=lambda regime: regime.value)
def test_em_recovers_the_planted_shares(folder, regime):
    console, place = Console(file=io.StringIO(), width=200), folder / regime.value
    for name, n, held_out in (("train", 4000, False), ("held-out", 200, True)):
        write_jsonl_atomic(place / f"{name}.jsonl", regime_rows(SFT[regime], n, seed=SEED + 1, held_out=held_out))
    base = before_sft(folder / "before", regime, SEED, console)
    sft = run_sft_command(
        SFTArguments(
            model_name_or_path=str(base), dataset_name=str(place / "train.jsonl"), output_dir=str(place / "sft")
        ),
        {
            "max_steps": 300,
            "per_device_train_batch_size": 32,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 10,
            "adam_beta2": 0.98,
            "seed": SEED,
        },
        console,
    )
    run_purify_command(
        PurifyCommandArguments(
            model_name_or_path=str(sft),
            ref_model_name_or_path=str(base),
            dataset_name=str(place / "train.jsonl"),
            eval_dataset_name=str(place / "held-out.jsonl"),
            purify_behaviours=[len(BEHAVIOURS[regime])],
            purify_rounds=3,
            purify_steps=150,
            purify_learning_rate=5e-4,
            purify_final_steps=1,
            purify_kinds=1,
            max_completion_length=8,
            output_dir=str(place / "purified"),
        ),
        {"per_device_train_batch_size": 64, "adam_beta2": 0.98, "save_steps": 200},
        console,
    )
    record = from_json(Purification, read_json(place / "purified/purification.json"))
    rows = read_jsonl(place / "train.jsonl")
    planted = [sum(row["demonstrator"] == who.value for row in rows) / len(rows) for who in BEHAVIOURS[regime]]
    (mixture,) = record.mixtures
    found = [behaviour.share for behaviour in mixture.behaviours]
    assert found == pytest.approx(planted, abs=0.05)
    # The lift is the log of both shares' ratio; what the model before SFT never does is new.
    before = [BEFORE_SFT[regime].get(who, 0) for who in BEHAVIOURS[regime]]
    for behaviour, share, earlier in zip(mixture.behaviours, planted, before, strict=True):
        if earlier:
            assert behaviour.lift == pytest.approx(math.log(share / earlier), abs=0.1)
        else:
            assert behaviour.lift is None or behaviour.lift > 2
    # Without a label it trains on the demonstrators that are right.
    assert record.behaviour == 1 + BEHAVIOURS[regime].index(Demonstrator.CORRECT)
    kept = read_jsonl(place / "purified/kept.jsonl")
    right = sum(row["completion"] == row["answer"] for row in kept) / len(kept)
    assert right > 0.8 > planted[record.behaviour - 1]
