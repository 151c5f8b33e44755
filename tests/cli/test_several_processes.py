"""`densepath sft` and `dpr` under a launcher: two processes leave what one does; `run` refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.errors import UsageError
from densepath.pipeline.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}


def densepath(processes: int, *words: object) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}/src{os.pathsep}{ROOT}",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, *LAUNCH[processes], "-m", "densepath.cli.main", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
def test_two_processes_leave_what_one_does(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    weights = {}
    for processes in (1, 2):
        folder = tmp_path / f"sft-{processes}"
        words = ["sft", "--model_name_or_path", tmp_path / "base", "--output_dir", folder, "--max_train_samples", 12]
        words += ["--dataset_name", "text_tasks"]
        words += ["--max_steps", 4, "--per_device_train_batch_size", 4 // processes, "--learning_rate", "1e-3"]
        done = densepath(processes, *words, "--reference_fractions", 0.5, "--save_steps", 2, "--seed", 3)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("model: ") == 1  # one process speaks
        assert (folder / "references/0.5/model.safetensors").is_file()
        weights[processes] = load_file(folder / "model/model.safetensors")
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[2][name], value, atol=1e-4, rtol=1e-3)
    words = ["dpr", "--model_name_or_path", tmp_path / "sft-2/model", "--ref_model_name_or_path", tmp_path / "base"]
    words += [
        "--output_dir",
        tmp_path / "dpr",
        "--dataset_name",
        "text_tasks",
        "--max_train_samples",
        8,
        "--max_steps",
        2,
        "--num_generations",
        2,
    ]
    words += ["--per_device_train_batch_size", 2, "--max_completion_length", 5]
    done = densepath(2, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(1 for _ in (tmp_path / "dpr/metrics.jsonl").open()) == 3  # two steps and the totals, once each
    again = densepath(2, *words)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    other = densepath(2, *words, "--beta", 3)
    assert other.returncode != 0
    assert "holds a run with another configuration (beta" in other.stderr


def test_a_whole_run_is_for_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"run, experiment and purify work in one process.* sft, dpr and score take"):
        RunFolder(tmp_path / "run")
    first, second = (RunFolder(tmp_path / "dpr", process=process) for process in (0, 1))
    second.open_config({"beta": 1.0})
    assert not (tmp_path / "dpr/config.yaml").exists()
    first.open_config({"beta": 1.0})
    assert (tmp_path / "dpr/config.yaml").exists()
    for folder in (first, second):
        folder.close()
