"""The folder of one run: its configuration, which stages are done, and the lock that keeps it to one process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from densepath.config.coerce import expanded
from densepath.config.judge import JudgeArguments
from densepath.errors import ResumeError, StorageError, UsageError
from densepath.io import UNWRITABLE, hold_lock, read_json, without_secrets, write_json_atomic, write_text_atomic
from densepath.models.kept import INPUTS
from densepath.records.codec import from_json, to_json
from densepath.records.outcome import Outcome

MACHINE_KEYS = (
    *("output_dir", "num_threads", "accelerate_config", "num_processes", "gpu_memory"),
    *("max_calls", "max_cost", "max_invalid", "judge_concurrency", "judge_timeout", "judge_retries"),
    *("judge_calls_per_minute", "judge_prompt_price", "judge_completion_price", "judge_cache", "judge_api_key_env"),
)
"""Keys that may change between two calls on the same folder: they do not change the result."""
_OF_JUDGE = frozenset(f.name for f in dataclasses.fields(JudgeArguments))
STAGES = ("sft", "dpr", "continued_sft")
HALF_WRITTEN = (
    *(
        f".{name}.*tmp"
        for name in (
            "config.yaml",
            "environment.json",
            "data.json",
            "selection.json",
            "report.html",
            "sft_answers.json",
        )
    ),
    f".{INPUTS}.*tmp",
    *(".report.json.*tmp", ".metrics.jsonl.*tmp", ".model.tmp"),
    *(f".{name}.*tmp" for name in ("scores.json", "samples.json", "size.json", "purification.json")),
    *(".kept.jsonl.*tmp", ".dropped.jsonl.*tmp", "behaviours-*/*/*/.*tmp", "validation/.*tmp"),
    *(f"{place}/.*.tmp" for place in ("data", "stages", "eval", "eval/parts", "selection", "references", *STAGES)),
    *(f"{stage}/references/.*.tmp" for stage in STAGES),
)
"""Temporary names that a kill leaves. In the folder itself, which may hold anything, no name but these is touched."""


class RunFolder:
    """Paths, state and lock of a run.

    Args:
        path: the folder; it is made if it is not there.
        process: which of several processes that work together this is; the first alone writes and holds the lock.
            None: this work is one process's.
        read_only: nothing is written and no lock is held, so several processes may read a finished run.

    Raises:
        UsageError: there is a file of that name, or a launcher started several processes where one is meant.
        StorageError: the folder cannot be written, or another process works in it.
    """

    def __init__(self, path: Path, *, process: int | None = None, read_only: bool = False) -> None:
        self.path = path = path.expanduser()  # as transformers does with output_dir
        self.writes = process in (None, 0) and not read_only
        self._lock: FileLock | None = None
        if read_only:
            return
        if process is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                "densepath run works in one process; the stages sft and dpr alone take several, and so does "
                "DPRTrainer in a script of your own"
            )
        if path.exists() and not path.is_dir():
            raise UsageError(f"output_dir={path} is a file; give a folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not self.writes:
                return
            self._lock = hold_lock(
                path / ".lock", f"{path}: another densepath process works in this run folder; wait for it"
            )
        except StorageError:
            raise
        except OSError as error:
            remedy = UNWRITABLE.get(error.errno or 0, "give another output_dir")
            raise StorageError(f"cannot write the run folder {path}: {error.strerror or error}; {remedy}") from error

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.release()

    def open_config(self, config: dict[str, Any]) -> None:
        """Write the resolved configuration, or compare it with the one that the folder was made with; then tidy.

        Tokens and passwords are neither written nor compared.
        Before anything was trained, another configuration replaces the first: it may correct a mistake.

        Raises:
            ResumeError: a key that decides the result has another value; the message shows each difference.
        """
        if not self.writes:
            return
        path = self.path / "config.yaml"
        config = without_secrets(config)
        before = without_secrets(_read_config(path)) if path.exists() else config
        differences = [
            f"{key}: {before.get(key)!r} -> {config.get(key)!r}"
            for key in sorted({*before, *config})
            if key not in MACHINE_KEYS and expanded(before.get(key), key) != expanded(config.get(key), key)
        ]
        if differences and self._has_work():
            raise ResumeError(
                f"{self.path} holds a run with another configuration ({'; '.join(differences)}): "
                "undo the change to go on with it, or give another output_dir"
            )
        if differences:
            shutil.rmtree(self.path / "stages", ignore_errors=True)
        if differences or not path.exists():
            write_text_atomic(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self.tidy()

    def open_inputs(self, inputs: Mapping[str, Any], places: Mapping[str, str] | None = None) -> str | None:
        """Write what decides the result beside the configuration, or compare it with what the work began with.

        Every process calls it. Before anything was trained, other inputs replace the first.

        Args:
            inputs: name -> digest or number; JSON.
            places: role -> where that model lies, for those who read the folder from elsewhere.

        Returns:
            A line that says so where there is nothing to compare with, else None.

        Raises:
            ResumeError: one of them has changed; the message shows each difference.
        """
        path = self.path / INPUTS
        has_work = self._has_work()
        if self.writes and not has_work:
            write_json_atomic(path, {"inputs": dict(inputs), "places": dict(places or {})})
        if not path.exists():
            if not has_work:
                return None
            return (
                f"{self.path} does not say what its training began with: whether data and models are the same is open"
            )
        before = read_json(path)["inputs"]
        changed = {name: value for name, value in inputs.items() if name in before and before[name] != value}
        if changed:
            shown = "; ".join(f"{name}: {before[name]} -> {value}" for name, value in changed.items())
            raise ResumeError(
                f"{self.path} holds a training that began with something else ({shown}): "
                "undo the change to go on with it, or give another output_dir"
            )
        return None

    def start_again(self) -> bool:
        """Forget finished stages, if nothing was trained yet; whether that was so."""
        if self._has_work():
            return False
        shutil.rmtree(self.path / "stages", ignore_errors=True)
        return True

    def _has_work(self) -> bool:
        """Whether something was trained: if not, a mistake in the configuration can still be corrected."""
        trained = (self.path / "model").exists() or self.is_done("sft") or self.is_done("train")
        begun = any(
            any(self.path.glob(name)) for name in ("checkpoint-*", "*/checkpoint-*", "samples.json", "size.json")
        )
        return trained or begun

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return (self.path / "stages" / f"{stage}.json").exists()

    def outcome(self, stage: str) -> Outcome:
        """What a finished training came to."""
        return from_json(Outcome, read_json(self.path / "stages" / f"{stage}.json"))

    def finish(self, stage: str, started: float, outcome: Outcome | None = None) -> None:
        """Record that a stage is done, and tidy. Seconds are this process's: a resumed stage counts its rest."""
        if not self.writes:
            return
        outcome = outcome or Outcome()
        spent = replace(outcome.budget, seconds=round(time.time() - started, 1))
        write_json_atomic(self.path / "stages" / f"{stage}.json", to_json(replace(outcome, budget=spent)))
        self.tidy()

    def cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value in the file `name` of the folder; computed and written if it is not there yet."""
        path = self.path / name
        if not path.exists():
            write_json_atomic(path, compute())
        return read_json(path)

    def tidy(self) -> None:
        """Remove what nothing reads any more: checkpoints of finished training, and what a kill left half-written."""
        if not self.writes:
            return
        for stage in (self.path / "stages").glob("*.json"):
            folder = self.path if stage.stem == "train" else self.path / stage.stem  # a training in its own folder
            for checkpoint in sorted(folder.glob("checkpoint-*")):
                shutil.rmtree(checkpoint, ignore_errors=True)
        for pattern in HALF_WRITTEN:
            for half in self.path.glob(pattern):
                if half.is_dir():
                    shutil.rmtree(half, ignore_errors=True)
                else:
                    half.unlink(missing_ok=True)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ResumeError(f"{path} is not valid YAML ({' '.join(str(error).split())}): undo the change") from None
    if not isinstance(found, dict):
        raise ResumeError(f"{path} holds no `key: value` lines: undo the change")
    return found


def resolved(arguments: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """One flat mapping of a command's arguments and the keys that go to TRL's configs."""
    config = {**dataclasses.asdict(arguments), **dict(sorted(others.items()))}
    if config.get("judge") is None:  # how a judge is asked decides nothing where there is none
        config = {key: value for key, value in config.items() if key not in _OF_JUDGE}
    return config
