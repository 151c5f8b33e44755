"""Commands on tiny models, each with a run that nobody attacked; and what tells one folder from another."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.judging.fake_endpoint import MODEL, FakeEndpoint
from tests.pipeline.folders import differences
from tests.pipeline.runs import ForkServer, run_argv, save_tiny_model

SCORE_BY_TWO, REPORT = "score --num_processes 2", "report"
"""A form of its own, and what writes into a folder that `run` has left."""
COMMANDS = (
    *("run", "purify", "experiment", "diagnose", "reward-eval", "judge-eval"),
    *(2 * ("run", "sft", "dpr", "score", "generate", "judge", "eval", "audit", "rank")),
    SCORE_BY_TWO,
)
"""What is attacked in a folder of its own; those that take a second or more less often."""
CONCURRENCY = 2
"""Calls of the judge under way at once: those that a kill may have paid for in vain."""
_MODULES = (
    *("experiment", "judge", "generate", "eval_command", "diagnose", "audit", "ranking", "purify"),
    *("reward_eval", "judge_eval"),
)
_SPENT = {
    "judge": ("spent.json", "report.json", "report.html"),
    "judge-eval": ("spent.json",),
}
"""Of a judge: they count the calls of all commands, or of the last."""
_LEFT = {
    "run": ("sft/model", "dpr/model", "results.json", "report.html"),
    "sft": ("model", "references/0.4"),
    "dpr": ("model",),
    "purify": ("model", "purification.json", "kept.jsonl"),
    "experiment": ("results.json",),
    "judge": ("report.html",),
    "report": ("report.html", "report.json"),
}
"""What a command has to leave: one that came to its end by a shorter way is not the one to attack."""


@dataclass(frozen=True)
class Done:
    """What a command came to where nobody attacked it.

    Attributes:
        folder: what it left.
        seconds: that it took.
    """

    folder: Path
    seconds: float


class Place:
    """A folder with models, rows, an endpoint and a process that forks commands.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.before = save_tiny_model(folder / "model"), save_tiny_model(folder / "before", seed=3)
        self.forks = ForkServer(folder, [*(f"densepath.pipeline.{name}" for name in _MODULES), "openai"])
        self.endpoint = FakeEndpoint(key=None).__enter__()
        self._done: dict[str, Done] = {}
        self.at_end: list[Callable[[], None]] = [self.forks.close, self.endpoint.__exit__]
        rows = [{"prompt": f"Say {i}:", "completion": f"{i}", "answer": f"{i}"} for i in range(70)]
        self.rows = self._write("rows", rows)
        self._held_out = self._write("held_out", [{**row, "prompt": f"Tell {row['answer']}:"} for row in rows[:6]])
        several = {"completions": ["7", "no", "8 and"]}
        altered = [
            {"prompt": row["prompt"], "chosen": row["answer"], "rejected": f"{row['answer']} or so"}
            for row in rows[:12]
        ]
        self._pairs = self._write("pairs", altered)
        self._many = self._write("many", [{"prompt": row["prompt"], **several} for row in rows[:16]])
        self._answers = [
            self._write(
                f"answers{n}",
                [
                    {"id": row["answer"], "generator": f"g{n}", "text": "x" * (1 + i % (3 + n))}
                    for i, row in enumerate(rows[:12])
                ],
            )
            for n in range(2)
        ]
        self._questions = self._write("questions", [{**row, "id": row["answer"]} for row in rows[:12]])
        self._recipe = folder / "recipe.yaml"
        self._recipe.write_text(json.dumps(_recipe(self.model, self.rows)))

    def _write(self, name: str, rows: list[dict[str, Any]]) -> str:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def close(self) -> None:
        """End the processes."""
        for end in reversed(self.at_end):
            end()

    def done(self, command: str) -> Done:
        """What it comes to, measured at the first call."""
        if command not in self._done:
            folder = self.folder / "whole" / command
            folder.parent.mkdir(exist_ok=True)
            self.forks.run(["--version"])  # until all is imported
            words = self.words(command, folder)
            started = time.monotonic()
            code = self.forks.run(words, group=True)
            assert code == 0, (command, self.forks.stdout, self.forks.stderr)
            missing = [name for name in _LEFT.get(command, ()) if not (folder / name).exists()]
            assert not missing, (command, missing, self.forks.stdout)
            self._done[command] = Done(folder, time.monotonic() - started)
        return self._done[command]

    def words(self, command: str, folder: Path) -> list[str]:
        """The command line that writes into that folder, which holds nothing else."""
        pair = {"model_name_or_path": self.model, "ref_model_name_or_path": self.before}
        if command == REPORT:
            if not folder.exists():
                shutil.copytree(self.done("run").folder, folder)
            return [command, str(folder)]
        if command == SCORE_BY_TWO:
            return [*self.words("score", folder), "--num_processes", "2"]
        if command == "run":
            return run_argv(self.model, folder, sft_max_steps=4, dpr_max_steps=3, arms=["sft", "dpr"])
        made: dict[str, Callable[[], dict[str, Any]]] = {
            "sft": lambda: {"model_name_or_path": self.model, "reference_fractions": 0.4, **self._training(folder)},
            "dpr": lambda: {**self._trained(), **self._training(folder), **_SAMPLING},
            "purify": lambda: {**pair, "eval_dataset_name": self._held_out, **_PURIFY, **self._training(folder, 0)},
            "experiment": lambda: {"config": self._recipe, "output_dir": folder},
            "score": lambda: {**pair, "window_size": 8, "output_file": folder / "s.jsonl"},
            "generate": lambda: {"model_name_or_path": self.model, **_SHORT, "output_file": folder / "a.jsonl"},
            "eval": lambda: {
                "model_name_or_path": self.model,
                **_SHORT,
                **_CHECKED,
                "output_file": folder / "e.jsonl",
            },
            "judge": lambda: self._judged(folder),
            "diagnose": lambda: {**_DIAGNOSIS, "run_dir": self.done("sft").folder, **_pages(folder, "d.json")},
            "audit": lambda: {**pair, "drop_lowest": 0.2, **_parts(folder), **_pages(folder, "a.jsonl")},
            "rank": lambda: {**pair, **_ranked(folder)},
            "reward-eval": lambda: {**pair, "output_file": folder / "figures.json"},
            "judge-eval": lambda: {**self._judge(), **_pages(folder, "figures.json")},
        }
        rows = {"rank": self._many, "reward-eval": self._pairs, "judge-eval": self._pairs}
        given = made[command]()
        if command not in ("experiment", "judge"):
            given["dataset_name"] = rows.get(command, self.rows)
        return [command, *(word for name, value in given.items() for word in (f"--{name}", *_texts(value)))]

    def _training(self, folder: Path, steps: int = 5) -> dict[str, Any]:
        shared = {"output_dir": folder, "per_device_train_batch_size": 4, "save_steps": 2}
        return {**shared, **({"max_steps": steps, "learning_rate": 1e-3, "max_train_samples": 12} if steps else {})}

    def _trained(self) -> dict[str, Any]:
        sft = self.done("sft").folder
        return {"model_name_or_path": sft / "model", "ref_model_name_or_path": sft / "references/0.4"}

    def _judged(self, folder: Path) -> dict[str, Any]:
        one, other = self._answers
        asked = {"benchmark": self._questions, "models": [one, self.model], "baseline": other, "output_dir": folder}
        return {**asked, **self._judge(), "max_completion_length": 4}

    def _judge(self) -> dict[str, Any]:
        return {"judge": f"openai:{MODEL}", "judge_base_url": self.endpoint.url, "judge_concurrency": CONCURRENCY}

    def paid_twice(self) -> int:
        """Replies that the endpoint gave again, since this was last asked."""
        with self.endpoint.lock:
            again = sum(count - 1 for count in self.endpoint.answered.values())
            self.endpoint.answered = Counter()
        return again

    def differences(self, command: str, folder: Path) -> list[str]:
        """Names of files that are missing, too many, or not what an unattacked run wrote, clocks apart."""
        return differences(folder, self.done(command).folder, _SPENT.get(command, ()))


_SHORT = {"max_completion_length": 4}
_CHECKED = {"verifier": "exact_match"}
_SAMPLING = {"num_generations": 2, "max_completion_length": 5}
_DIAGNOSIS = {"betas": 0.5, "num_generations": 2, "max_samples": 4, **_SHORT}
_PURIFY = {
    **{"purify_behaviours": 2, "purify_steps": 4, "purify_final_steps": 3, "purify_samples": 64, "purify_kinds": 1},
    **{"purify_learning_rate": 0.03, **_SHORT},
}
"""Its models differ so much that a lift is told from 0, as nothing is trained but then (see `_LEFT`)."""


def _recipe(model: str, rows: str) -> dict[str, Any]:
    shared = {
        **{"model_name_or_path": model, "dataset_name": rows, "max_train_samples": 18, "num_validation_samples": 4},
        **{"num_test_samples": 4, "verifier": "exact_match", "sft_max_steps": 4, "sft_learning_rate": 1e-3},
        **{"sft_per_device_train_batch_size": 4, "save_steps": 2, "reference": 0.5, "beta": 1.0, "dpr_max_steps": 2},
        **{"dpr_per_device_train_batch_size": 4, "num_generations": 2, "eval_temperatures": [1.0, 0.0], **_SHORT},
    }
    methods = {"sft": {}, "dpr": {}, "continued_sft": {"tune": {"continued_sft_learning_rate": [1e-3, 1e-2]}}}
    return {**shared, "seeds": [0, 1], "num_workers": 2, "settings": {"rows": {}}, "methods": methods}


def _pages(folder: Path, name: str) -> dict[str, Any]:
    return {"output_file": folder / name, "html_file": folder / "page.html"}


def _parts(folder: Path) -> dict[str, Any]:
    return {"clean_file": folder / "clean.jsonl", "dropped_file": folder / "dropped.jsonl"}


def _ranked(folder: Path) -> dict[str, Any]:
    return {f"{kind}_file": folder / f"{kind}.jsonl" for kind in ("output", "best", "pairs")}


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
