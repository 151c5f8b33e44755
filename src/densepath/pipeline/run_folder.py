"""The folder of one run: its configuration, which stages are done, and the lock that keeps it to one process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import warnings
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from densepath.config.coerce import expanded
from densepath.config.judge import JudgeArguments
from densepath.config.run import OF_BEHAVIOURS
from densepath.errors import DamagedFileError, DamageWarning, DensepathError, ResumeError, UsageError
from densepath.io import (
    Lock,
    changed_files,
    hold_lock,
    make_folder,
    read_json,
    read_sealed_json,
    read_text,
    remove,
    sealed,
    without_secrets,
    write_json_atomic,
    write_sealed_json,
    write_text_atomic,
    writing,
)
from densepath.models.identity import CARD
from densepath.models.kept import ASIDE, INPUTS
from densepath.records.codec import from_json, to_json
from densepath.records.outcome import Outcome

HUB = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy")
"""Where a trained model goes beside its folder."""
MACHINE_KEYS = (
    *("output_dir", "num_threads", "report_to", "accelerate_config", "num_processes", "gpu_memory", "profile"),
    *("max_calls", "max_cost", "max_invalid", "judge_concurrency", "judge_timeout", "judge_retries"),
    *("judge_calls_per_minute", "judge_prompt_price", "judge_completion_price", "judge_cache", "judge_api_key_env"),
    *(f"{prefix}{name}" for prefix in ("", "sft_", "dpr_") for name in HUB),
)
"""Keys that may change between two calls on the same folder: they do not change the result."""
_OF_JUDGE = frozenset(f.name for f in dataclasses.fields(JudgeArguments))
STAGES = ("sft", "dpr", "continued_sft")
_NAMES = (
    *("config.yaml", "environment.json", INPUTS, "data.json", "selection.json", "results.json", "samples.jsonl"),
    *("sft", "sft_passes.json", "sft_answers.json"),
    *("report.html", "report.json", "metrics.jsonl", "README.md", "model", "data", "stages", "eval", "checkpoint-*"),
    f"{ASIDE}checkpoint-*",
    *("samples.json", "scores.json", "size.json", "log_ratios.json", "purification.json", "kept.json"),
    *("kept.jsonl", "dropped.jsonl", "profile.json", "profile.html", "pushed.json"),
)
_PLACES = (
    *("data", "stages", "eval", "selection", "references", "validation", "nan_batches", "completions"),
    *("judge_cache", "judge_cache/*"),
    *("iteration-*", "iteration-*/*", "behaviours-*/*", "behaviours-*/*/*", *STAGES, *(f"{s}/*" for s in STAGES)),
)
HALF_WRITTEN = (*(f".{name}.*tmp" for name in _NAMES), *(f"{place}/.*.tmp" for place in _PLACES))
"""Temporary names that a kill leaves. In the folder itself, which may hold anything, no name but these is touched."""
_FILES = {
    "data": ("data.json", "data/*.jsonl"),
    "sft": ("sft_passes.json", "sft/model/**/*", "sft/references/**/*", "sft/metrics.jsonl"),
    "sft_answers": ("sft_answers.json",),
    "selection": ("selection.json", "selection/*.json"),
    "train": (
        *("model/**/*", "references/**/*"),
        *("metrics.jsonl", "purification.json", "kept.jsonl", "dropped.jsonl", "samples.json", "scores.json"),
        *("size.json", "kept.json", "log_ratios.json", "validation/*.json", "spent.json"),
        *("behaviours-*/*/*/*.json*", "iteration-*/*.json*", "data.json", "data/*.jsonl", INPUTS),
    ),
    "eval": ("eval/*",),
    "arms": ("results.json", "samples.jsonl"),
}
"""What each stage leaves: its marker says what these files hold, and a later call compares."""
_MADE_AGAIN = ("data", "sft_answers", "selection", "eval", "arms")
"""Stages that are done again where their files have changed. A training costs too much to be begun anew unasked."""


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
        self._lock: Lock | None = None
        self._looked_at: set[str] = set()
        self._lost: dict[str, Mapping[str, str]] = {}
        if read_only:
            return
        if process is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                "run and experiment work in one process, since their stages read and write one folder; sft, dpr, "
                "purify and score take several, and so does DPRTrainer in a script of your own"
            )
        if path.exists() and not path.is_dir():
            raise UsageError(f"output_dir={path} is a file; give a folder")
        with writing(path):
            make_folder(path)
        if self.writes:
            busy = f"{path}: another densepath process works in this run folder; wait for it"
            self._lock = hold_lock(path / ".lock", busy)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.release()

    def open_config(self, config: dict[str, Any], unread: Container[str] = ()) -> None:
        """Write the resolved configuration, or compare it with the one that the folder was made with; then tidy.

        Tokens and passwords are neither written nor compared.
        Before anything was trained, another configuration replaces the first: it may correct a mistake.

        Args:
            config: key -> value.
            unread: keys that decide nothing in this folder: they are written and not compared.

        Raises:
            ResumeError: a key that decides the result has another value; the message shows each difference.
        """
        if not self.writes:
            return
        path = self.path / "config.yaml"
        config = without_secrets(config)
        before = without_secrets(_read_config(path)) if path.exists() else config
        idle = OF_BEHAVIOURS if config.get("purify_rounds") == 0 else ()  # refused since, which they were not always
        differences = [
            f"{key}: {before.get(key)!r} -> {config.get(key)!r}"
            for key in sorted({*before, *config})
            if key not in MACHINE_KEYS
            and key not in unread
            and key not in idle
            and _meant(before.get(key), key) != _meant(config.get(key), key)
        ]
        if differences and self._has_work():
            raise ResumeError(
                f"{self.path} holds a run with another configuration ({'; '.join(differences)}): "
                f"undo the change to go on with it ({path} says what it was made with), or give another output_dir"
            )
        if differences:
            remove(self.path / "stages")
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
        has_work, known = self._has_work(), path.exists()
        if self.writes and not (has_work and known):  # from here on a call has something to compare with
            write_sealed_json(path, {"inputs": dict(inputs), "places": dict(places or {})})
        if not known:
            if not has_work:
                return None
            return (
                f"{self.path} does not say what its training began with: whether data and models are the same is open"
            )
        remedy = "put a whole copy in its place, or remove it: the inputs are then not compared"
        try:
            before = dict(read_sealed_json(path, remedy, old=True)["inputs"])
        except (KeyError, TypeError, ValueError):
            raise DamagedFileError(f"{path} is damaged, it names no inputs: {remedy}") from None
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
        remove(self.path / "stages")
        return True

    def _has_work(self) -> bool:
        """Whether something was trained: if not, a mistake in the configuration can still be corrected."""
        trained = (self.path / "model").exists() or self.is_done("sft") or self.is_done("train")
        traces = ("checkpoint-*", "*/checkpoint-*", "sft_passes.json", "samples.json", "size.json")
        begun = any(any(self.path.glob(name)) for name in traces)
        return trained or begun

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished, and its files hold what it wrote.

        A stage that costs no training is forgotten where they do not, with a warning, so that it is done again.

        Raises:
            DamagedFileError: a training's files have changed; the message names them and the remedy.
        """
        marker = self._marker(stage)
        if not marker.exists():
            return False
        if stage in self._looked_at or not self.writes:
            return True
        self._looked_at.add(stage)
        files = self._finished(stage)["files"]
        changed = changed_files(self.path, files)
        if not changed:
            return True
        what = f"{', '.join(map(str, (self.path / name for name in changed)))}: not what the stage {stage} wrote"
        if stage not in _MADE_AGAIN:
            raise DamagedFileError(
                f"{what}: put a whole copy in its place, or remove {marker} and the folder of the model to train again"
            )
        warnings.warn(f"{what}: it is made again", DamageWarning, stacklevel=2)
        self._lost[stage] = files
        for name in changed:
            remove(self.path / name)
        remove(marker)
        return False

    def outcome(self, stage: str) -> Outcome:
        """What a finished training came to.

        Raises:
            DamagedFileError: the stage's marker does not hold it.
        """
        outcome: Outcome = self._finished(stage)["outcome"]
        return outcome

    def files(self, stage: str) -> dict[str, str]:
        """The fingerprints of what a finished stage left, by name.

        Raises:
            DamagedFileError: the stage's marker does not hold them.
        """
        files: dict[str, str] = self._finished(stage)["files"]
        return files

    def _finished(self, stage: str) -> dict[str, Any]:
        """What the marker of a stage says: its outcome, and the fingerprints of its files."""
        marker = self._marker(stage)
        remedy = "put a whole copy in its place, or remove it to do this stage again"
        value = read_sealed_json(marker, remedy, old=True)
        try:
            files = value.pop("files", {})
            return {"outcome": from_json(Outcome, value), "files": dict(files)}
        except (DensepathError, AttributeError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{marker} is damaged ({error}): {remedy}") from None

    def _marker(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def _place(self, stage: str) -> Path:
        """Where a stage lies: one called `train` in a folder of its own."""
        return self.path if stage == "train" else self.path / stage

    def begin(self, stage: str) -> float:
        """`time.monotonic()` at which a training would have begun, had it been killed never.

        A process that was killed counts until the last line that it logged: the time between two of them does not.

        Raises:
            DamagedFileError: the file that says so is damaged.
        """
        now = time.monotonic()
        if not self.writes:
            return now
        clock, before = self.path / "stages" / f"{stage}.clock", 0.0
        if clock.exists():
            remedy = "remove it: what earlier processes took is then not counted"
            try:
                said = read_json(clock, remedy)
                before, since = float(said["before"]), float(said["since"])
            except (KeyError, TypeError, ValueError) as error:
                raise DamagedFileError(f"{clock} is damaged ({error}): {remedy}") from None
            logged = map(_last_time, self._place(stage).glob("**/metrics.jsonl"))
            before += max([0.0, *(time - since for time in logged)])  # none where that process logged nothing
        write_json_atomic(clock, {"before": before, "since": time.time()})
        return now - before

    def forget(self, stage: str) -> None:
        """Remove what a training in a folder of its own has left, and that it was begun; before it is finished."""
        remove(self._place(stage))
        remove(self.path / "stages" / f"{stage}.clock")

    def finish(self, stage: str, started: float, outcome: Outcome | None = None) -> None:
        """Record that a stage is done, with what its files hold, and tidy.

        Args:
            stage: its name.
            started: `time.monotonic()` at its begin; of a training, what `begin` said.
            outcome: of a training.

        Raises:
            ResumeError: the stage was done again for files that were damaged, and its source gives others now.
        """
        if not self.writes:
            return
        outcome = outcome or Outcome()
        spent = replace(outcome.budget, seconds=round(time.monotonic() - started, 1))
        left = (path for pattern in _FILES[stage] for path in self.path.glob(pattern))
        files = sealed(self.path, (path for path in left if path.name != CARD))
        if stage == "data" and self._lost.get(stage, files) != files:
            raise ResumeError(
                f"{self.path}: stored rows are damaged, and their source gives others now: put whole copies into "
                f"{self.path / 'data'}, or give another output_dir"
            )
        write_sealed_json(self._marker(stage), {**to_json(replace(outcome, budget=spent)), "files": files})
        self._looked_at.add(stage)
        self.tidy()

    def tidy(self) -> None:
        """Remove what nothing reads any more: checkpoints of finished training, and what a kill left half-written."""
        if not self.writes:
            return
        for stage in (self.path / "stages").glob("*.json"):
            folder = self._place(stage.stem)
            for checkpoint in sorted([*folder.glob("checkpoint-*"), *folder.glob(f"{ASIDE}checkpoint-*")]):
                remove(checkpoint)
            if (clock := stage.with_suffix(".clock")).exists():
                remove(clock)
        for pattern in HALF_WRITTEN:
            for half in self.path.glob(pattern):
                remove(half)


def _meant(value: Any, key: str) -> Any:
    """What decides the result of a value: the folder that `~` names, and of a number not how it is written."""
    if key in ("reference", "beta"):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    return expanded(value, key)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(read_text(path, "undo the change")) or {}
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


def _last_time(log: Path) -> float:
    """The clock's reading in a log's last whole line, seconds; 0 for none. The training says what is damaged in it."""
    for line in reversed(log.read_bytes().split(b"\n")):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            return float(json.loads(line)["time"])
    return 0.0
