"""Scores of models whose weights are spread over processes are those of whole ones. On a CPU; FSDP2's own code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny_models import tiny_llama

from densepath.models.sharded import inside_forward

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_fsdp2_on_two_processes_scores_as_one_does(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/src{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "tests.models.sharded_script", str(tmp_path)),
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for rank, rows in ((0, 4), (1, 1)):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == 11
        for name, (before, after, entropies) in found.items():
            assert len(after) == (0 if "none" in name and rank == 1 else rows), name
            for whole, pieces, entropy in zip(before, after, entropies, strict=True):
                torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-4, msg=name)
                assert (entropy > 0).all()


def test_a_function_runs_inside_of_the_forward_and_leaves_no_trace():
    model = tiny_llama()
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("after"))
    ids = torch.tensor([[1, 2, 3]])

    def function():
        seen.append("inside")
        return model(input_ids=ids).logits  # its own forward, not this function again

    expected = model(input_ids=ids).logits
    seen.clear()
    assert torch.equal(inside_forward(model, function), expected)
    assert seen == ["before", "inside", "before", "after", "after"]
    assert "forward" not in model.__dict__
    with pytest.raises(ZeroDivisionError):
        inside_forward(model, lambda: 1 / 0)
    assert "forward" not in model.__dict__
