"""One cell of an experiment: a method trained from the SFT model of one setting and seed."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.experiment import MethodArguments
from densepath.pipeline.training import Stage


@dataclass(frozen=True)
class Cell(Stage):
    """A stage whose recipe has the method's own keys, and whose source is only read."""

    arguments: MethodArguments

    @property
    def samples(self) -> int:
        """Completions that DPR samples in training: the budget that others are given."""
        accumulated = int(self.others.get("dpr_gradient_accumulation_steps", 1))
        return self.arguments.dpr_max_steps * self.arguments.dpr_per_device_train_batch_size * accumulated

    @property
    def demonstrations_per_step(self) -> int:
        """Of SFT."""
        accumulated = int(self.others.get("sft_gradient_accumulation_steps", 1))
        return self.arguments.sft_per_device_train_batch_size * accumulated
