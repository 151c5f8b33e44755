"""What one process computes, two compute too: accumulation, truncation, rewards, adapters, several updates, a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # each launch imports torch and TRL in two processes

ROOT = Path(__file__).parents[2]
SCENARIOS = ("accumulation", "truncated", "hybrid", "adapter", "several_updates")
SHARED = ("loss", "reward", "kl", "kl_sequence", "entropy", "grad_norm", "completions/mean_length", "num_tokens")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": f"{ROOT}/src{os.pathsep}{ROOT}",
    "PYTHONWARNINGS": "ignore",
}
# What `accelerate launch` starts for several GPUs. On a CPU it needs MPI, and starts one process without.
LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}


def launch(folder: Path, scenarios: tuple[str, ...], processes: int) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    script = ["-m", "tests.trainers.processes_script", str(folder), *scenarios]
    return subprocess.run(
        [sys.executable, *LAUNCH[processes], *script],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def found(folder: Path, scenario: str, processes: int) -> list[dict]:
    saved = [torch.load(folder / f"{scenario}-{rank}.pt") for rank in range(processes)]
    assert all(each["processes"] == processes for each in saved)
    return saved


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for processes in (1, 2):
        made[processes] = tmp_path_factory.mktemp(f"processes-{processes}")
        done = launch(made[processes], SCENARIOS, processes)
        assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_end_where_one_does(folders, scenario):
    (one,), two = found(folders[1], scenario, 1), found(folders[2], scenario, 2)
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    torch.testing.assert_close(two[0]["weights"], one["weights"], atol=2e-5, rtol=1e-4)
    assert len(one["logs"]) == len(two[0]["logs"]) > 1
    for mine, theirs in zip(one["logs"], two[0]["logs"], strict=True):
        for name in SHARED:
            if name in mine:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-4), name
    assert one["logs"][0]["grad_norm"] > 0.1


def test_a_killed_process_ends_the_run_and_leaves_a_checkpoint_to_go_on_from(tmp_path):
    assert launch(tmp_path, ("whole",), 2).returncode == 0
    killed = launch(tmp_path, ("killed",), 2)
    assert killed.returncode != 0
    assert "Signal 9 (SIGKILL)" in killed.stderr
    whole = [path.name for path in (tmp_path / "killed").glob("checkpoint-*/densepath_complete.json")]
    assert len(whole) <= 2
    assert (tmp_path / "killed" / "checkpoint-3" / "densepath_complete.json").is_file()
    again = launch(tmp_path, ("resumed",), 2)
    assert again.returncode == 0, again.stderr[-3000:]
    expected, resumed = found(tmp_path, "whole", 2), found(tmp_path, "resumed", 2)
    assert torch.equal(resumed[0]["weights"], expected[0]["weights"])
    assert torch.equal(resumed[1]["weights"], expected[0]["weights"])
