"""A trainer's steps in a `StageProgress`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from densepath.progress import StageProgress


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Feeds a trainer's steps and token counts to a `StageProgress`."""

    def __init__(self, progress: StageProgress) -> None:
        self.progress = progress
        self._tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show where training starts: not at 0 when it is resumed."""
        self.progress.total = state.max_steps
        self.progress.start_at(state.global_step, f"{args.output_dir}/checkpoint-{state.global_step}")
        self.progress.update(state.global_step, total=state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Advance; `num_tokens` is cumulative in TRL's logs."""
        logs = logs or {}
        if "loss" not in logs:
            return
        total = float(logs.get("num_tokens") or 0)
        fresh = total - self._tokens if self._tokens else 0.0
        self._tokens = total
        names = (("loss", "loss"), ("reward", "reward"), ("kl_sequence", "KL"))
        note = "  ".join(f"{label} {logs[key]:.3f}" for key, label in names if isinstance(logs.get(key), float))
        self.progress.update(state.global_step, state.max_steps, tokens=int(fresh), note=note)
