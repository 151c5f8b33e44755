"""`densepath sft`, `dpr` and `purify` under a launcher: two processes leave what one does; `run` refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.errors import UsageError
from densepath.io import read_jsonl
from densepath.pipeline.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}/src{os.pathsep}{ROOT}",
    "TOKENIZERS_PARALLELISM": "false",
}


def command(processes: int, *words: object) -> list[str]:
    return [sys.executable, *LAUNCH[processes], "-m", "densepath.cli.main", *map(str, words)]


def densepath(processes: int, *words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(processes, *words), env=ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False
    )


def killed_at(file: Path, processes: int, *words: object) -> None:
    """The command, killed with all of its processes as soon as a file is there."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(processes, *words), env=ENVIRONMENT, start_new_session=True, **quiet) as running:
        while not file.exists():
            assert running.poll() is None, f"it ended before {file} was there"
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)


def written(folder: Path, change: float = 0.0) -> Path:
    """A tiny model and its tokenizer, the model changed a little where it shall be another one."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += change * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_two_processes_leave_what_one_does(tmp_path):
    written(tmp_path / "base")
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


def even(completion: str, row: dict) -> float:
    """A verdict that answers of tiny models differ in."""
    return float(len(completion) % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("verifier", [None, "tests.cli.test_several_processes:even"], ids=["by-lift", "by-verdicts"])
def test_two_processes_purify_as_one_does(tmp_path, verifier):
    words = ["purify", "--model_name_or_path", written(tmp_path / "sft", 0.05), "--dataset_name", "text_tasks"]
    words += ["--ref_model_name_or_path", written(tmp_path / "base"), "--max_train_samples", 60]
    words += ["--purify_behaviours", 2, "--purify_kinds", 1, "--purify_samples", 8, "--num_validation_samples", 6]
    words += ["--purify_steps", 3, "--purify_final_steps", 3, "--purify_learning_rate", "1e-3"]
    words += ["--max_completion_length", 5, *([] if verifier is None else ["--verifier", verifier])]
    folders = tmp_path / "of-1", tmp_path / "of-2"
    for processes, folder in enumerate(folders, 1):
        batch = ["--per_device_train_batch_size", 4 // processes]
        done = densepath(processes, *words, *batch, "--output_dir", folder)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("page: ") == 1  # one process speaks
    one, two = (json.loads((folder / "purification.json").read_text()) for folder in folders)
    assert two["reason"] == one["reason"]
    assert two["trained"] == one["trained"] == (folders[1] / "model").exists()
    for name in ("kept.jsonl", "dropped.jsonl"):
        ours, theirs = (read_jsonl(folder / name) for folder in folders)
        assert [row["prompt"] for row in ours] == [row["prompt"] for row in theirs]
    for mine, other in zip(*(each["mixtures"][0]["behaviours"] for each in (two, one)), strict=True):
        assert mine["share"] == pytest.approx(other["share"], abs=1e-4)
        assert mine["validation"] == other["validation"]
    if one["trained"]:
        ours, theirs = (load_file(folder / "model/model.safetensors") for folder in folders)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=1e-3)
    assert "nothing to do" in densepath(2, *words, *batch, "--output_dir", folders[1]).stdout
    words += batch
    again = tmp_path / "killed"
    for file in ("behaviours-2/round-1/1/said.json", "behaviours-2/round-1/2/checkpoint-2/densepath_complete.json"):
        killed_at(again / file, 2, *words, "--save_steps", 1, "--output_dir", again)
    assert densepath(2, *words, "--save_steps", 1, "--output_dir", again).returncode == 0
    for name in ("purification.json", "kept.jsonl", *(["model/model.safetensors"] if one["trained"] else [])):
        assert (again / name).read_bytes() == (folders[1] / name).read_bytes(), name
    wrong = densepath(2, *words, "--output_dir", tmp_path / "wrong", "--purify_kind_column", "task")
    assert wrong.returncode != 0
    assert "densepath: error: purify_kind_column=task: training row 1 has no such column" in wrong.stderr
    assert "densepath (process 1): error: the first process stopped: purify_kind_column=task" in wrong.stderr


def test_a_whole_run_is_for_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"run and experiment work in one process.* sft, dpr, purify and score take"):
        RunFolder(tmp_path / "run")
    first, second = (RunFolder(tmp_path / "dpr", process=process) for process in (0, 1))
    second.open_config({"beta": 1.0})
    assert not (tmp_path / "dpr/config.yaml").exists()
    first.open_config({"beta": 1.0})
    assert (tmp_path / "dpr/config.yaml").exists()
    for folder in (first, second):
        folder.close()
