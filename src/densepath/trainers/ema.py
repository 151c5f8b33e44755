"""An exponential moving average of the weights, kept during SFT as one more reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from densepath.errors import ConfigError, ResumeError
from densepath.io import atomic_path
from densepath.models.references import EMA_NAME
from densepath.trainers.callbacks import save_folder_atomic

_FILE = "ema.safetensors"


class EMACallback(TrainerCallback):  # type: ignore[misc]
    """Averages the trained weights and saves them as the reference `ema` at the last step.

    `ema_0 = theta_0`, `ema_t = decay ema_{t-1} + (1 - decay) theta_t` after each optimizer step, in float32. It lags
    the weights by about 1 / (1 - decay) steps: an earlier checkpoint, without the noise of a single one.
    The average goes into every checkpoint, so that a resumed run ends with the same one.

    Args:
        folder: where references are kept.
        decay: share of the old average that a step keeps, in (0, 1).
        save: writes the current model into a folder.

    Raises:
        ConfigError: a decay outside (0, 1).
        ResumeError: a checkpoint that holds no average.

    Source: ours; the paper uses a checkpoint.
    """

    def __init__(self, folder: Path, decay: float, save: Callable[[Path], None]) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"ema_decay={decay} must lie in (0, 1); it lags by about 1 / (1 - ema_decay) steps")
        self.folder = folder
        self.decay = decay
        self.save = save
        self.average: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin with the present weights, or with the average of the checkpoint that training goes on from."""
        trained = _trained(model)
        if state.global_step == 0:
            self.average = {name: value.detach().float().clone() for name, value in trained.items()}
            return
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
        if not path.exists():
            raise ResumeError(f"{path.parent} holds no average of the weights: it was made without ema_decay")
        self.average = {name: value.to(trained[name].device) for name, value in load_file(path).items()}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take the step's weights into the average; at the last step save it."""
        trained = _trained(model)
        for name, value in trained.items():
            self.average[name].lerp_(value.detach().float(), 1 - self.decay)
        if state.global_step == state.max_steps and state.is_world_process_zero:
            with self._in_place_of_the_weights(trained):
                record = {"ema_decay": self.decay, "step": state.global_step, "max_steps": state.max_steps}
                save_folder_atomic(self.folder / EMA_NAME, self.save, record)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the average into the checkpoint."""
        if state.is_world_process_zero:
            with atomic_path(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE) as path:
                save_file({name: value.cpu() for name, value in self.average.items()}, path)

    @contextlib.contextmanager
    def _in_place_of_the_weights(self, trained: dict[str, Tensor]) -> Iterator[None]:
        kept = {name: value.detach().clone() for name, value in trained.items()}
        try:
            _copy(self.average, trained)
            yield
        finally:
            _copy(kept, trained)


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
