"""DPR on two processes (gloo, CPU) is DPR on one: the same global batch gives the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny_models import tiny_llama

pytestmark = pytest.mark.slow  # each launch imports torch and TRL in two processes

ROOT = Path(__file__).parents[2]
EVAL = ("eval_nll", "eval_nll_increase")
SHARED = (
    "reward",
    "reward_held_out_ref",
    "completions/distinct_4",
    "effective_sample_size",
    *EVAL,
    "kl",
    "kl_sequence",
    "reward_per_token",
    "entropy",
    "flops",
    "completions/mean_length",
)
"""Metrics of the global batch, which every number of processes should report alike."""


def launch(folder: Path, mode: str, processes: int, **changes) -> list[dict]:
    """Run the script in one process or in several that accelerate joins over gloo; what each of them saved."""
    folder.mkdir()
    module = ["-m", "tests.trainers.distributed_script", str(folder), mode, str(8 // processes)]
    module.append(json.dumps(changes))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(folder / f"{rank}.pt") for rank in range(processes)]
    assert all(each["processes"] == processes for each in found)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"estimator": "sampled"},
        {"loss_normalizer": "tokens", "kl_in_return": False, "baseline": "leave_one_out"},
        {"estimator": "sampled", "loss_normalizer": "tokens", "num_iterations": 2},
    ],
)
def test_two_processes_equal_one_on_the_same_global_batch(tmp_path, changes):
    (one,) = launch(tmp_path / "one", "fixed", 1, **changes)
    two = launch(tmp_path / "two", "fixed", 2, **changes)
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    start = torch.cat([parameter.flatten() for parameter in tiny_llama(vocab_size=384, seed=0).parameters()])
    assert (one["weights"] - start).abs().max() > 1e-3
    torch.testing.assert_close(two[0]["weights"], one["weights"], atol=1e-5, rtol=1e-4)
    for step in range(2):
        # each process sampled its own half of what the single one did
        if step < len(one["seen"]):
            assert sorted(two[0]["seen"][step] + two[1]["seen"][step]) == sorted(one["seen"][step])
        for name in (*SHARED, *(["all_action_weight"] if "estimator" not in changes else [])):
            if step >= len(one["seen"]) and name not in one["logs"][step]:
                continue  # a further update on the batch before
            assert two[0]["logs"][step][name] == pytest.approx(one["logs"][step][name], rel=1e-4, abs=1e-5), name
        assert two[0]["logs"][step]["loss"] == pytest.approx(one["logs"][step]["loss"], rel=1e-4, abs=1e-5)


def test_processes_sample_each_their_own_and_stay_one_model(tmp_path):
    first, second = launch(tmp_path / "two", "sampled", 2)
    assert torch.equal(first["weights"], second["weights"])
    for step in range(2):
        assert len(first["seen"][step]) == len(second["seen"][step]) == 4
        assert not {tuple(ids) for ids in first["seen"][step]} & {tuple(ids) for ids in second["seen"][step]}


def test_a_nan_on_one_process_stops_all_of_them(tmp_path):
    first, second = launch(tmp_path / "two", "nan", 2)
    assert first["error"].startswith("training stopped at step 2: loss: 1 values of another process are NaN")
    assert second["error"].startswith("training stopped at step 2: loss is nan")
    for rank in range(2):
        assert (tmp_path / "two" / "trainer" / "nan_batches" / f"step-2-process-{rank}.safetensors").is_file()
