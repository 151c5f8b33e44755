"""What every training stage keeps: metrics as JSONL, reference checkpoints, and which checkpoints are whole."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from densepath.errors import DamagedFileError, DamageWarning, NumericalError
from densepath.io import (
    atomic_folder,
    atomic_path,
    changed_files,
    file_sha256,
    read_json,
    read_log,
    remove,
    sealed,
    sync,
    write_json_atomic,
)
from densepath.models.identity import record_base
from densepath.models.kept import ASIDE

LOG = "metrics.jsonl"
COMPLETE_MARKER = "densepath_complete.json"
"""Written into a checkpoint folder after everything else, with what each file holds: without it, it was cut short."""
_STATE = {
    "the trainer's state": ("trainer_state.json",),
    "the optimizer's state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "the random numbers' state": ("rng_state*.pth",),
}
"""What training cannot go on without as it would have gone, and the names under which transformers writes it."""


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Appends every log to a JSONL file, which ends as that of a training that was never interrupted.

    Training ends with a `NumericalError` where the loss is not finite: nothing after it would mean anything.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._resumed = False

    def go_on_from(self, checkpoint: str | None) -> None:
        """Forget what was logged after a checkpoint, or all of it: a power cut may have left anything there."""
        self._resumed = checkpoint is not None
        kept = 0 if checkpoint is None else int(read_json(Path(checkpoint) / COMPLETE_MARKER)["log"]["bytes"])
        held = self.path.read_bytes()[:kept] if kept else b""
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(held)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append one line; NaN becomes null."""
        if state.is_world_process_zero and logs:
            self._append(state, logs if "train_loss" not in logs else {**logs, **self._mean_loss(state)})
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise NumericalError(
                f"the loss is {logs['loss']} at step {state.global_step} ({self.path}); lower the learning rate, "
                "or check the model's weights for NaN"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was logged is on the disk before anything is made of the training."""
        if state.is_world_process_zero and self.path.exists():
            sync(self.path)

    def _mean_loss(self, state: Any) -> dict[str, float | None]:
        """The mean over all steps, where each is in a log; transformers' is over those since training was resumed."""
        logged = [
            (0, 0.0),
            *((row["step"], row["loss"]) for row in read_log(self.path) if row.get("loss") is not None),
        ]
        if logged[-1][0] == state.global_step > 0:
            total = sum(loss * (step - before) for (before, _), (step, loss) in itertools.pairwise(logged))
            return {"train_loss": total / state.global_step}
        return {"train_loss": None} if self._resumed else {}

    def _append(self, state: Any, values: Mapping[str, Any]) -> None:
        row: dict[str, Any] = {"step": state.global_step, "time": time.time()}
        for name, value in values.items():
            row[name] = value if not isinstance(value, float) or math.isfinite(value) else None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


class CompleteCheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint as whole once all processes have written it, durably; an adapter in it knows its base.

    The mark also says what was logged until then, what the references hold that were kept, and the tokens trained on,
    which `SFTTrainer` and `DPOTrainer` forget when they resume.

    Args:
        tokens: gives their present count.
    """

    def __init__(self, tokens: Callable[[], int] = lambda: 0) -> None:
        self._tokens = tokens
        self._references: dict[str, str] = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the marker, after what it stands for: the checkpoint's files, and the log up to its step."""
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        record_base(folder)
        log = folder.parent / LOG
        log.touch()
        sync(log)
        files = sealed(folder, folder.rglob("*"))
        kept = {path.relative_to(folder.parent).as_posix(): path for path in folder.parent.glob("references/*/*")}
        new = [path for name, path in kept.items() if name not in self._references]
        self._references |= sealed(folder.parent, new)
        sync(folder.parent)
        logged = {"bytes": log.stat().st_size, "sha256": file_sha256(log)}
        beside = {"log": logged, "references": self._references, "tokens": self._tokens()}
        write_json_atomic(folder / COMPLETE_MARKER, {"step": state.global_step, "files": files, **beside})


class NoLastCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Leaves out the checkpoint after the last step, where the model itself is written next.

    Weights and two moments are three times the model, and nothing would read them. One is written where the best
    checkpoint is looked for, of which the last may be the one.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of transformers' decision, which came before."""
        if state.global_step >= state.max_steps and args.metric_for_best_model is None:
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Likewise where checkpoints are written after an epoch."""
        self.on_step_end(args, state, control)


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """The newest whole `checkpoint-N` under `output_dir`.

    Folders that were cut short are removed. One that is damaged is set aside, with a warning, for the one before it.

    Returns:
        Its path for `Trainer.train(resume_from_checkpoint=...)`, or None.

    Raises:
        DamagedFileError: a reference or the log is no longer what was written before it.
    """
    found: list[tuple[int, Path]] = []
    for folder in output_dir.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match is None:
            continue
        if (folder / COMPLETE_MARKER).exists():
            found.append((int(match.group(1)), folder))
        else:
            remove(folder)
    for _, folder in sorted(found, reverse=True):
        damage = checkpoint_damage(folder)
        if damage is None:
            _check_beside(folder)
            return str(folder)
        aside = folder.with_name(f"{ASIDE}{folder.name}")
        remove(aside)
        os.replace(folder, aside)
        warnings.warn(
            f"{folder} is damaged ({damage}): it is set aside as {aside.name}, and training goes on from the whole "
            "checkpoint before it, or from its beginning",
            DamageWarning,
            stacklevel=2,
        )
    return None


def _check_beside(checkpoint: Path) -> None:
    """Refuse to go on beside a damaged log or reference: training has passed the steps at which they were written."""
    output_dir, marker = checkpoint.parent, read_json(checkpoint / COMPLETE_MARKER)
    changed, log = changed_files(output_dir, marker["references"]), output_dir / LOG
    held = log.read_bytes()[: marker["log"]["bytes"]] if log.exists() else b""
    if hashlib.sha256(held).hexdigest() != marker["log"]["sha256"]:
        changed.append(LOG)
    if changed:
        raise DamagedFileError(
            f"{', '.join(str(output_dir / name) for name in changed)}: not what was written: put a whole copy in its "
            f"place, or remove the checkpoints in {output_dir} to train again"
        )


def checkpoint_damage(folder: Path) -> str | None:
    """What of a checkpoint is missing or has changed since it was written; None where it is whole."""
    missing = [what for what, names in _STATE.items() if not any(any(folder.glob(name)) for name in names)]
    if missing:
        return f"{', '.join(missing)} is missing"
    try:
        marker = read_json(folder / COMPLETE_MARKER)
        changed = changed_files(folder, marker["files"])
        if not {"log", "references", "tokens"} <= marker.keys():
            return f"{COMPLETE_MARKER} does not say what lay beside it"
    except (DamagedFileError, AttributeError, KeyError, TypeError):
        return f"{COMPLETE_MARKER} cannot be read"
    return f"{', '.join(changed)}: not what was written" if changed else None


class ReferenceCheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Saves the model at chosen fractions of the samples that SFT will see.

    A fraction falls on the nearest optimizer step; the exact share of the steps is written beside the weights.

    Args:
        folder: where to keep them, one folder a fraction.
        fractions: shares in (0, 1); 0, the model before SFT, needs no copy.
        save: writes the current model and a record into a folder; every process calls it.
    """

    def __init__(
        self, folder: Path, fractions: Mapping[str, float], save: Callable[[Path, dict[str, Any]], None]
    ) -> None:
        self.folder = folder
        self.fractions = dict(fractions)
        self.save = save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save if this step is one of the chosen."""
        for name, fraction in self.fractions.items():
            step = min(max(round(fraction * state.max_steps), 1), state.max_steps)
            if step == state.global_step:
                record = {"fraction": step / state.max_steps, "step": step, "max_steps": state.max_steps}
                self.save(self.folder / name, record)


def save_folder_atomic(folder: Path, save: Callable[[Path], None], record: dict[str, Any]) -> None:
    """Fill a folder that is there whole or not at all; `densepath.json` in it holds the record."""
    with atomic_folder(folder) as temporary:
        save(temporary)
        write_json_atomic(temporary / "densepath.json", record)
