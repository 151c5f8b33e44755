"""What a worker process does: one model before SFT, one SFT run, or one cell. Each goes on where it stopped."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.config.experiment import MethodArguments
from densepath.config.run import RunArguments
from densepath.data.regimes import Regime
from densepath.experiments.cell import Cell
from densepath.experiments.evaluate import Policy, evaluate
from densepath.experiments.methods import TRAINED, continued_sft
from densepath.experiments.regimes import before_sft
from densepath.models.load import load_tokenizer, model_context
from densepath.pipeline.data import prepare_data
from densepath.pipeline.inputs import model_inputs, open_run_inputs
from densepath.pipeline.run_folder import RunFolder, resolved
from densepath.pipeline.selection import run_selection
from densepath.pipeline.training import reference_path, run_sft
from densepath.terminal import Console, terminal


@dataclass(frozen=True)
class SFTJob:
    """An SFT run.

    Attributes:
        folder: of the run.
        arguments, others: its recipe, seed included.
        select: choose the reference too, for cells that leave it to validation.
    """

    folder: Path
    arguments: MethodArguments
    others: dict[str, Any]
    select: bool


@dataclass(frozen=True)
class CellJob:
    """A cell.

    Attributes:
        kind: what the method is.
        source: folder of the SFT run.
        folder: of the cell.
        arguments, others: its recipe, seed included.
        report_reference: of the reward in the table.
        splits: to evaluate on; the test prompts only once it is known that this variant is the chosen one.
        like: folder of the cell whose FLOPs or seconds are matched, or None.
    """

    kind: str
    source: Path
    folder: Path
    arguments: MethodArguments
    others: dict[str, Any]
    report_reference: str
    splits: tuple[str, ...]
    like: Path | None = None


def run_before_sft(folder: Path, regime: Regime, seed: int, steps: int) -> None:
    """Train the model that a regime's SFT starts from."""
    with _log(folder / "logs" / f"{regime.value}-{seed}.txt") as console:
        before_sft(folder, regime, seed, console, steps=steps)


def run_sft_job(job: SFTJob) -> None:
    """Data, SFT with references, and the choice of the reference where a cell leaves it open."""
    run = RunFolder(job.folder)
    try:
        run.open_config(_sft_config(job.arguments, job.others))
        with _log(job.folder / "log.txt") as console:
            context = model_context(job.arguments.model_name_or_path, job.arguments.trust_remote_code)
            open_run_inputs(run, job.arguments, console)
            if not run.is_done("data"):
                tokenizer = load_tokenizer(job.arguments.model_name_or_path, **job.arguments.tokenizer_options())
                prepare_data(run, job.arguments, tokenizer, context)
            if not run.is_done("sft"):
                run_sft(run, job.arguments, job.others, console, "SFT", context)
            if job.select and not run.is_done("selection"):
                run_selection(run, job.arguments, console, "choice of the reference")
    finally:
        run.close()


def run_cell(job: CellJob) -> None:
    """Train a method, then sample its completions of the validation prompts, and of the test prompts if asked to."""
    run = RunFolder(job.folder)
    source = RunFolder(job.source, read_only=True)
    try:
        run.open_config({"method": job.kind, **resolved(job.arguments, job.others)})
        run.open_inputs(model_inputs({"SFT model": str(source / "sft/model")}))
        with _log(job.folder / "log.txt") as console:
            if not run.is_done("train"):
                started = time.time()
                run.finish("train", started, **_train(job, source, console))
            policy = _policy(job, source)
            for split in job.splits:
                evaluate(policy, split, source, run.path, job.arguments, report_reference=job.report_reference)
    finally:
        run.close()


def _train(job: CellJob, source: RunFolder, console: Console) -> dict[str, Any]:
    context = model_context(job.arguments.model_name_or_path, job.arguments.trust_remote_code)
    cell = Cell(source, job.folder, job.arguments, job.others, console, job.kind, context)
    if job.kind == "continued_sft":
        like = None if job.like is None else RunFolder(job.like, read_only=True).outcome("train")
        return continued_sft(cell, like)
    if job.kind in TRAINED:
        return TRAINED[job.kind](cell) or NOTHING
    return NOTHING


NOTHING: dict[str, Any] = {"samples": 0, "demonstrations": 0, "tokens": 0, "flops": 0.0, "steps": 0}
"""What a policy costs that is not trained beyond SFT."""


def _policy(job: CellJob, source: RunFolder) -> Policy:
    sft = source / "sft/model"
    if job.kind == "contrastive":
        return Policy(sft, reference_path(source, job.arguments, job.arguments.reference), job.arguments.alpha)
    model = job.folder / "model"
    return Policy(model if model.exists() else sft)


def _sft_config(arguments: MethodArguments, others: dict[str, Any]) -> dict[str, Any]:
    """What decides an SFT run: without the keys of DPR and of the methods, which may change from cell to cell."""
    own = {f.name for f in dataclasses.fields(RunArguments) if not f.name.startswith("dpr_")} - {
        "num_generations",
        "eval_temperatures",
        "continued_sft_learning_rate",
    }
    config = resolved(arguments, others)
    return {key: value for key, value in config.items() if key in own or key.startswith("sft_")}


class _log:
    """A console that writes to a file: workers share no terminal."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Console:
        return terminal(file=self._file, width=160)

    def __exit__(self, *error: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
