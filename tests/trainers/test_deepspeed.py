"""Trainings under DeepSpeed's ZeRO on two processes end where DDP's do, also after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.launching import NEEDS_DEEPSPEED, launched
from tests.trainers.deepspeed_script import KINDS, WORKS

pytestmark = [pytest.mark.slow, NEEDS_DEEPSPEED]

SHARED = ("loss", "reward", "kl_sequence", "grad_norm", "num_tokens")


def found(folder: Path, kind: str, *works: str) -> dict[str, dict]:
    folder.mkdir(exist_ok=True)
    done = launched("tests.trainers.deepspeed_script", folder, kind, *works)
    assert done.returncode == 0, done.stderr[-3000:]
    return {work: torch.load(folder / f"{work}.pt") for work in works}


@pytest.fixture(scope="module")
def by_ddp(tmp_path_factory):
    return found(tmp_path_factory.mktemp("ddp"), "ddp", *WORKS)


def same(ours: dict, theirs: dict, atol: float = 1e-5, rtol: float = 1e-4) -> None:
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, atol=atol, rtol=rtol, msg=name)
    assert len(ours["logs"]) == len(theirs["logs"]) > 1
    for mine, other in zip(ours["logs"], theirs["logs"], strict=True):
        for name in SHARED:
            if name in other:
                assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_trainings_end_where_ddp_ends(tmp_path, by_ddp, kind):
    for work, ours in found(tmp_path, kind, *WORKS).items():
        assert ours["stage"] == KINDS[kind]["stage"]
        same(ours, by_ddp[work])


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_goes_on_to_the_same_end(tmp_path, kind):
    whole = found(tmp_path, kind, "whole")["whole"]
    killed = launched("tests.trainers.deepspeed_script", tmp_path, kind, "killed")
    assert "Signal 9 (SIGKILL)" in killed.stderr
    assert any((tmp_path / "killed").glob("checkpoint-*/densepath_complete.json"))
    same(found(tmp_path, kind, "resumed")["resumed"], whole, atol=0, rtol=0)
