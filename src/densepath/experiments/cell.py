"""One cell of an experiment: a method trained from the SFT model of one setting and seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from densepath.experiments.method_arguments import MethodArguments
from densepath.pipeline.run_folder import RunFolder


@dataclass(frozen=True)
class Cell:
    """What a method reads, and where it writes.

    Attributes:
        source: run folder of the SFT model, read only: `data/*.jsonl`, `sft/model`, `sft/references/<fraction>`.
        folder: the method's own folder; it leaves `model` there.
        arguments: the setting's recipe with the method's own keys, seed included.
        others: `sft_*` and `dpr_*` keys for TRL's configs.
        console: where progress goes.
        title: of the progress.
        context: of the model, in tokens.
    """

    source: RunFolder
    folder: Path
    arguments: MethodArguments
    others: dict[str, Any]
    console: Console
    title: str
    context: int

    @property
    def samples(self) -> int:
        """Completions that DPR samples in training: the budget that others are given."""
        return self.arguments.dpr_max_steps * self.arguments.dpr_per_device_train_batch_size
