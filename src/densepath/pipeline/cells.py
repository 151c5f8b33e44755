"""The tasks of a grid: one model before SFT, one SFT run, or one cell of an arm. Each goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.config.run import RunArguments
from densepath.data.regimes import Regime
from densepath.errors import ConfigError
from densepath.methods import Method, Policy, SFTRun, Stage, get_method
from densepath.methods._stage import free_models
from densepath.models.load import load_tokenizer
from densepath.pipeline.against_sft import answer_with_sft, check_of_run
from densepath.pipeline.data import prepare_data, tell_data
from densepath.pipeline.evaluation import Evaluation, ask
from densepath.pipeline.inputs import model_inputs, open_run_inputs
from densepath.pipeline.recipe import UNREAD_BY_CELLS
from densepath.pipeline.regimes import before_sft
from densepath.pipeline.run_folder import RunFolder, resolved
from densepath.pipeline.selection import check_choice, run_selection, settled
from densepath.pipeline.sft import run_sft, take_sft
from densepath.records.arm import Arm
from densepath.terminal import Console, terminal


@dataclass(frozen=True)
class SFTJob:
    """An SFT run.

    Attributes:
        sft: its folder and recipe, seed included.
        others: its `sft_*` and `dpr_*` keys.
        arms: method and recipe of every arm that goes on from it.
        choose: choose the reference too, for arms that leave it to validation.
        capped: the capped reward may be chosen: by a run, where the arm is then called so. In an experiment what an
            arm is must not change from seed to seed.
    """

    sft: SFTRun
    others: Mapping[str, Any]
    arms: tuple[tuple[str, RunArguments], ...]
    choose: bool
    capped: bool


@dataclass(frozen=True)
class CellJob:
    """A cell: an arm of a setting, with one seed and one set of keys.

    Attributes:
        arm: what it is called.
        method: what it is: a module of `densepath.methods`.
        evaluation: what it is asked, and the SFT run that it goes on from.
        folder: of the cell.
        arguments, others: its recipe, seed included.
        splits: to evaluate on; the test prompts only once it is known that this variant is the chosen one.
        like: folder of the cell whose FLOPs or seconds are matched, or None.
    """

    arm: Arm
    method: str
    evaluation: Evaluation
    folder: Path
    arguments: RunArguments
    others: Mapping[str, Any]
    splits: tuple[str, ...]
    like: Path | None = None


def run_before_sft(folder: Path, regime: Regime, seed: int, steps: int) -> None:
    """Train the model that a regime's SFT starts from."""
    with _log(folder / "logs" / f"{regime.value}-{seed}.txt") as console:
        before_sft(folder, regime, seed, console, steps=steps)


def run_sft_job(job: SFTJob) -> None:
    """`prepare` in a folder of its own, of which only what decides SFT is its configuration."""
    run = RunFolder(job.sft.path)
    try:
        run.open_config(_sft_config(job.sft.arguments, job.others))
        with _log(job.sft.path / "log.txt") as console:
            prepare(run, job, console)
    finally:
        run.close()


def prepare(run: RunFolder, job: SFTJob, console: Console, steps: str = "") -> None:
    """Data, SFT with references, and the choice of the reference where an arm leaves it open.

    Args:
        run: the folder, open.
        job: what is prepared.
        console: where progress goes.
        steps: how many steps the whole job has, for titles such as "2/6 SFT"; empty for none.
    """
    sft = job.sft
    title = [f"{number}/{steps} " if steps else "" for number in (1, 2, 3)]
    open_run_inputs(run, sft, console)
    if not run.is_done("data"):
        source = sft.base if sft.given is None else sft.given.sft
        prepare_data(run, sft.arguments, load_tokenizer(source, **sft.arguments.tokenizer_options()), sft.context)
    tell_data(run, console, title[0])
    checks = [(check, each) for name, each in job.arms if (check := get_method(name).check_rows) is not None]
    if checks and not run.is_done("sft"):  # behind it the arm alone fails, and not what is trained already
        rows = sft.rows("train")
        for check, each in checks:
            check(each, rows)
    if job.choose and not run.is_done("selection"):
        check_choice(sft)
    if not run.is_done("sft"):
        if sft.given is None:
            run_sft(run, sft, job.others, console, f"{title[1]}SFT")
        else:
            take_sft(run, sft, job.others, console, f"{title[1]}SFT")
        free_models()
    if sft.arguments.judge is not None and not run.is_done("sft_answers"):
        answer_with_sft(run, sft, console, f"{title[2]}SFT answers what the judge will see")
    if job.choose and not run.is_done("selection"):
        run_selection(run, sft, console, f"{title[2]}choose the reference", capped=job.capped)


def run_cell(job: CellJob, console: Console | None = None, title: str | None = None) -> None:
    """Train a method, then ask it the validation prompts, and the test prompts if asked to.

    Args:
        job: the cell.
        console: where progress goes; None: a log in the cell's folder, since workers share no terminal.
        title: of the training's progress; the arm's name if None.
    """
    run = RunFolder(job.folder)
    evaluation = job.evaluation
    try:
        run.open_config({"method": job.method, **resolved(job.arguments, job.others)}, UNREAD_BY_CELLS)
        run.open_inputs(model_inputs({"SFT model": str(evaluation.sft.model)}))
        with _log(job.folder / "log.txt") if console is None else contextlib.nullcontext(console) as out:
            method = get_method(job.method)
            stage = _stage(job, method, out, title or job.arm.label)
            if not run.is_done("train"):
                started = run.begin("train")
                run.finish("train", started, method.train(stage) if stage and method.train else None)
                free_models()
            # Where no reference helps, the SFT model stands for what it would have been.
            policy = Policy(str(evaluation.sft.model)) if stage is None else method.policy(stage)
            asked = time.monotonic()
            if not run.is_done("eval") or evaluation.missing(job.folder, job.splits):
                ask(policy, job.arm, evaluation, job.folder, job.splits, out)
                run.finish("eval", asked)
    finally:
        run.close()


def _stage(job: CellJob, method: Method, console: Console, title: str) -> Stage | None:
    """The stage with reference and beta settled; None where it needs a reference and validation found none."""
    sft = job.evaluation.sft
    arguments = settled(job.arguments, sft.path) if method.needs_reference else job.arguments
    if arguments is None:
        return None
    matched = None if job.like is None else _matched(job)
    check = check_of_run(sft, job.evaluation.arguments)
    return Stage(sft, job.folder, arguments, job.others, console, title, matched, check)


def _matched(job: CellJob) -> int:
    """Steps of continued SFT that cost as much as the training that it is matched with."""
    assert job.like is not None
    budget = getattr(job.arguments, "budget", "flops")
    like = RunFolder(job.like, read_only=True).outcome("train").budget
    sft = RunFolder(job.evaluation.sft.path, read_only=True).outcome("sft")
    each: float = getattr(sft.budget, budget) / sft.steps
    if not each > 0:
        raise ConfigError(f"{job.folder}: a step of SFT took no {budget} that were counted; match flops or samples")
    steps: int = round(getattr(like, budget) / each)
    return max(1, steps)


def _sft_config(arguments: RunArguments, others: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an SFT run: without the keys of DPR and of the methods, which may change from cell to cell."""
    own = {f.name for f in dataclasses.fields(RunArguments) if not f.name.startswith(("dpr_", "purify_"))} - {
        "arms",
        "num_generations",
        "eval_temperatures",
        "continued_sft",
        "continued_sft_learning_rate",
    }
    config = resolved(arguments, others)
    return {key: value for key, value in config.items() if key in own or key.startswith("sft_")}


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Console]:
    """A console that writes to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        yield terminal(file=file, width=160)
        file.flush()
        os.fsync(file.fileno())
