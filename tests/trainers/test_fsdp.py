"""DPR under FSDP2 on two processes ends where DDP does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_training_under_fsdp2_ends_where_ddp_does(tmp_path):
    """The same fixed completions, two steps; accelerate is told that the CPUs are accelerators."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/src{os.pathsep}{ROOT}"}
    found = {}
    for kind in ("sharded", "whole"):
        (tmp_path / kind).mkdir()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
                *("-m", "tests.trainers.fsdp_script", str(tmp_path / kind), kind, "plain"),
            ],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found[kind] = torch.load(tmp_path / kind / "found.pt")
    assert found["sharded"]["fsdp"]
    for name, value in found["whole"]["weights"].items():
        torch.testing.assert_close(found["sharded"]["weights"][name], value, atol=1e-5, rtol=1e-4, msg=name)
    for ours, theirs in zip(found["sharded"]["logs"], found["whole"]["logs"], strict=True):
        for name in ("loss", "reward", "kl_sequence", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
