"""Runs on a tiny model for process-level tests: its folder, its command lines, and a client of the fork server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.pipeline.folders import differences
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

ROOT = Path(__file__).parents[2]
_SPEEDS = ("samples_per_second", "steps_per_second")
UNREPEATABLE = {"time", "step_time", *(f"{k}_{n}" for k in ("train", "eval") for n in ("runtime", *_SPEEDS))}


def save_tiny_model(folder: Path, seed: int = 0, tokenizer: Any = None, **config: Any) -> str:
    """A random Llama and its tokenizer as `from_pretrained` wants them; the folder as text."""
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    model = tiny_llama(vocab_size=len(tokenizer), seed=seed, **config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run_argv(model: str, output: Path, **changes: Any) -> list[str]:
    """`densepath run` in a second or two: 8 SFT steps over one and a half epochs, 7 of DPR, both arms evaluated.

    A change to None leaves the argument out.
    """
    values: dict[str, Any] = {
        "model_name_or_path": model,
        "output_dir": output,
        "dataset_name": "text_tasks",
        "max_train_samples": 18,
        "num_validation_samples": 4,
        "num_test_samples": 4,
        "verifier": "exact_match",
        "max_completion_length": 6,
        "sft_max_steps": 8,
        "sft_per_device_train_batch_size": 4,
        "sft_learning_rate": 1e-3,
        "save_steps": 2,
        "reference": 0.5,
        "arms": ["base", "sft", "continued_sft", "dpr"],
        "dpr_max_steps": 7,
        "dpr_per_device_train_batch_size": 4,
        "dpr_learning_rate": 1e-3,
        "dpr_eval_strategy": "steps",
        "dpr_eval_steps": 7,
        "dpr_predict_with_generate": False,
        "num_generations": 2,
        "num_report_samples": 2,
        **changes,
    }
    return [
        "run",
        *(word for key, value in values.items() if value is not None for word in (f"--{key}", *_words(value))),
    ]


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


class ForkServer:
    """Client of `tests.pipeline.fork_server`: one command at a time, in a process of its own."""

    def __init__(self, scratch: Path, modules: Sequence[str] = ()) -> None:
        self.scratch = scratch
        self.stdout = self.stderr = ""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.pipeline.fork_server", *modules],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, argv: list[str], **request: Any) -> int:
        """Begin a command; its pid."""
        assert self._server.stdin is not None
        outputs = {name: str(self.scratch / name) for name in ("stdout", "stderr")}
        self._server.stdin.write(json.dumps({"argv": [str(word) for word in argv], **outputs, **request}) + "\n")
        self._server.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """The exit code of the command that was started; -9 where it was killed."""
        code = self._read()
        self.stdout, self.stderr = ((self.scratch / name).read_text() for name in ("stdout", "stderr"))
        return code

    def kill(self, pid: int) -> None:
        """End a command that was started in a group of its own, with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def run(self, argv: list[str], **request: Any) -> int:
        """`start` and `wait`."""
        self.start(argv, **request)
        return self.wait()

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)


def wait_for(path: Path, seconds: float = 60.0) -> None:
    """Until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


# --- what a finished run is compared by -----------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a saved model or adapter."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    assert found, f"{folder} holds no weights"
    return found


def steps(run: Path, stage: str) -> list[dict[str, Any]]:
    """What a training stage logged, without clock readings."""
    rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in UNREPEATABLE} for row in rows]


def assert_same_run(run: Path, other: Path) -> None:
    """The whole folder, clocks apart: weights, metrics, data, choice, results, samples, pages."""
    assert list(other.rglob("densepath.json"))
    assert differences(run, other) == []


def leftovers(run: Path) -> list[str]:
    """Temporary files and checkpoints in a run folder."""
    return [
        str(path.relative_to(run))
        for path in sorted(run.rglob("*"))
        if path.name.endswith(".tmp") or path.name.startswith("checkpoint-")
    ]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoint folders, whole or not."""
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))
