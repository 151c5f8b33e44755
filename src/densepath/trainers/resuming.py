"""What a resumed training needs to log and end as one that was never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from densepath.io import read_json, write_json_atomic


class Resumable:
    """A trainer of TRL whose checkpoints hold what was measured since the last log, and that ends at its last step.

    By itself transformers takes one step more from a checkpoint of the last step, and a log after a resume is of the
    steps since.
    """

    accelerator: Any
    args: Any
    control: Any
    state: Any
    _metrics: dict[str, Any]

    def _checkpoint_folder(self, trial: Any) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"  # type: ignore[attr-defined]

    def _unlogged_file(self, folder: Path) -> Path:
        return folder / f"unlogged_{self.accelerator.process_index}.json"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        folder = self._checkpoint_folder(trial)
        folder.mkdir(parents=True, exist_ok=True)  # another process makes it
        unlogged = {
            "metrics": self._metrics["train"],
            "loss": self.accelerator.gather(self._tr_loss).mean().item(),
            "last_logged": self._globalstep_last_logged,
        }
        write_json_atomic(self._unlogged_file(folder), unlogged)
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, **keywords: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        checkpoint = keywords["resume_from_checkpoint"]
        if checkpoint is not None and keywords["epoch"] == keywords["epochs_trained"]:
            self._take_up(self._unlogged_file(Path(checkpoint)))
        super()._run_epoch(**keywords)  # type: ignore[misc]

    def _take_up(self, path: Path) -> None:
        """Here, since transformers sets all of it to nothing after it has read the checkpoint."""
        if not path.exists():  # of an earlier version
            return
        unlogged = read_json(path)
        self._metrics["train"].update(unlogged["metrics"])
        self._tr_loss = torch.tensor(unlogged["loss"], device=self.args.device)
        self._total_loss_scalar = -unlogged["loss"]  # the training's mean stays that of the steps since
        self._globalstep_last_logged = unlogged["last_logged"]
