"""Memory of `densepath score` does not grow with the number of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc

import pyarrow as pa
import pytest
from rich.console import Console
from tests.pipeline.runs import ROOT, save_tiny_model

from densepath.config.reward import ScoreArguments
from densepath.scoring import shard
from densepath.scoring.job import run_score_command

PEAK = """
import sys
from densepath.cli.main import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print("PEAK", code, next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def write_rows(path, count: int) -> str:
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            # lengths come back with every window, so that the longest batch is the same
            words = " ".join(f"{i % 97} cat" for _ in range(1 + i % 16))
            file.write(json.dumps({"id": i, "prompt": f"Say {i % 251}:", "completion": words}) + "\n")
    return str(path)


class _Scorer:
    """Columns like those of the real one, without a model."""

    def score(self, rows, on_progress):
        on_progress(1.0, 1)
        turn = {"text": "x" * 100, "token_ids": list(range(50)), "tokens": ["xx"] * 50, "offsets": [[0, 1]] * 50}
        turn |= {"rewards": [0.5] * 50, "sum": 25.0, "mean": 0.5}
        return [{"reward": 25.0, "reward_per_token": 0.5, "num_tokens": 50, "turns": [turn]} for _ in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_job_itself_holds_one_window(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(shard, "_scorer", lambda *given: _Scorer())
    monkeypatch.setattr("densepath.scoring.tables.ROW_GROUP_BYTES", 2**18)

    def peak(count: int) -> tuple[int, int]:
        data = write_rows(tmp_path / f"{count}.jsonl", count)
        output = tmp_path / f"out-{count}.{suffix}"
        arguments = ScoreArguments("m/m", dense_reward="logprob", dataset_name=data, output_file=str(output))
        arguments.window_size = 50
        tracemalloc.start()
        run_score_command(arguments, Console(quiet=True))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, pa.default_memory_pool().max_memory()

    peak(100)  # imports and caches
    small, large = peak(200), peak(1200)
    assert large[0] < small[0] + 300_000  # the rows of the longer file take 4 MB as objects
    assert large[1] < small[1] + 300_000  # and 2.5 MB as an Arrow table


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak of a process from /proc")
def test_resident_memory_of_1000_and_50000_rows(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def peak(count: int) -> int:
        data = write_rows(tmp_path / f"{count}.jsonl", count)
        words = ["score", "--model_name_or_path", model, "--dense_reward", "logprob", "--dataset_name", data]
        words += ["--output_file", str(tmp_path / f"out-{count}.jsonl")]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *words],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        code, kib = done.stdout.rsplit("PEAK", 1)[1].split()
        assert code == "0"
        return int(kib)

    small, large = peak(1000), peak(50_000)
    print(f"peak resident memory: {small} KiB for 1,000 rows, {large} KiB for 50,000")
    assert large < small + 16_000  # the larger output is 60 MB
