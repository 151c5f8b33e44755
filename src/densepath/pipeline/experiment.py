"""`densepath experiment`: methods x seeds x settings from one recipe to one table."""

from __future__ import annotations

import functools
import os
import subprocess
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from densepath.config.experiment import ExperimentArguments
from densepath.config.recipe_yaml import RecipeDumper
from densepath.errors import ConfigError, ExperimentError, ModelError
from densepath.io import hold_lock, remove, without_secrets, write_text_atomic
from densepath.models.quiet import quiet_libraries
from densepath.pipeline import cells
from densepath.pipeline.data import regime_of
from densepath.pipeline.environment import environment
from densepath.pipeline.grid import Grid
from densepath.pipeline.plan import machine_memory, plan_recipe
from densepath.pipeline.recipe import Setting, read_recipe
from densepath.pipeline.regimes import STEPS
from densepath.pipeline.results import grid_results, write_results
from densepath.pipeline.run import check_configuration
from densepath.pipeline.run_folder import resolved
from densepath.pipeline.scheduler import Finished, run_tasks, seconds_left
from densepath.progress import StageProgress
from densepath.report.console import print_parts
from densepath.report.experiment_brief import WIDE, experiment_parts
from densepath.terminal import Console, say, terminal

GIB = 2**30
REGIME_MEMORY = 1.5 * GIB
"""What a process needs with a digit regime's model: nearly all of it is the libraries."""
MEMORY_SHARE = 0.8
"""Of the machine's memory, that the cells may fill."""


def run_experiment(
    arguments: ExperimentArguments,
    others: dict[str, Any],
    console: Console | None = None,
    *,
    command: str = "densepath experiment",
    pretraining_steps: int = STEPS,
) -> Path:
    """Run every cell that is not done, choose on validation, and write the table; returns the report's path.

    Args:
        arguments: the recipe.
        others: `sft_*` and `dpr_*` keys that hold for all cells.
        console: where progress goes; standard output if None.
        command: that is named beside the table.
        pretraining_steps: of the digit regimes' model before SFT.

    Raises:
        DensepathError: a recipe that cannot be run, before anything is trained.
        ExperimentError: cells failed; the message names them, their folders hold a log, and the others are reported.
    """
    console = console if console is not None else terminal()
    quiet_libraries()
    settings = read_recipe(arguments, others)
    for setting in settings:
        check_setting(setting)
    grid = Grid(Path(arguments.output_dir), settings, arguments.seeds, pretraining_steps=pretraining_steps)
    busy = f"{grid.folder}: another densepath process works in this experiment; wait for it"
    lock = hold_lock(grid.folder / ".lock", busy)
    try:
        return _run_grid(arguments, others, grid, console, command)
    finally:
        lock.release()


def _run_grid(
    arguments: ExperimentArguments, others: dict[str, Any], grid: Grid, console: Console, command: str
) -> Path:
    """Every cell that is not done, then the table; the report's path."""
    settings = grid.settings
    write_text_atomic(
        grid.folder / "experiment.yaml",
        yaml.dump(
            without_secrets(resolved(arguments, others)), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True
        ),
    )
    failures = grid.folder / "failures"
    remove(failures)  # of an earlier call: what failed runs again
    num_workers, threads = processes(arguments, settings, console)
    training = grid.training_tasks()
    tuned = sum(len(plan.variants) > 1 for s in settings for plan in s.methods.values()) * len(arguments.seeds)
    say(
        console,
        f"settings: {len(settings)}, seeds: {len(arguments.seeds)}, cells: {sum(1 for _ in grid.cells())}; "
        f"at once: {num_workers}, threads of each: {threads}",
    )
    started = time.monotonic()
    ended: dict[Hashable, Finished] = {}
    keys = [*training, *(("test of a tuned method", index) for index in range(tuned))]
    with StageProgress(console, "experiment", len(keys), "task") as progress:

        def finished(result: Finished) -> None:
            ended[result.key] = result
            name = "/".join(map(str, result.key)) if isinstance(result.key, tuple) else str(result.key)
            if result.error is not None:
                say(console, f"{name}: failed: {result.error}", style="yellow")
                if result.details is not None:
                    write_text_atomic(failures / f"{name.replace('/', '_')}.txt", result.details)
            left = seconds_left(keys, ended, _kind, num_workers)
            progress.advance(note=f"{name}: {result.seconds:.0f} s", seconds_left=left)

        run = functools.partial(
            run_tasks, num_workers=num_workers, threads=threads, on_finished=finished, preload=(cells.__name__,)
        )
        run(training)
        grid = replace(grid, refused=frozenset(key for key, result in ended.items() if result.refused))
        keys = list(training)
        keys += (testing := grid.test_tasks({key for key, result in ended.items() if result.error is not None}))
        run(testing)
    info = {
        "name": grid.folder.name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "commit": _commit(),
        "seconds": round(time.monotonic() - started, 1),
        "versions": environment(),
    }
    results = grid_results(grid, info)
    paths = write_results(grid.folder, results)
    # A file or pipe takes lines of any length.
    table_console = console if console.is_terminal else terminal(file=console.file, width=max(console.width, WIDE))
    print_parts(table_console, *experiment_parts(results, table_console.width))
    say(console, f"report: {paths.html.resolve()}")
    failed = ["/".join(map(str, key)) for key, result in ended.items() if result.error and isinstance(key, tuple)]
    if failed:
        named = ", ".join(failed[:3]) + (", ..." if len(failed) > 3 else "")
        first = next(result.error for result in ended.values() if result.error)  # the others may wait for that one
        raise ExperimentError(
            f"{len(failed)} of {len(ended)} tasks failed ({named}), the first with: {first.rstrip('.')}. The same "
            f"command runs them again; see log.txt in their folders and {failures}"
        )
    return paths.html


def _kind(key: Hashable) -> Hashable:
    """What takes about as long: a method of a setting whatever its seed, the model before SFT of any setting."""
    return (key[0], *key[2:]) if isinstance(key, tuple) else "model before SFT"


def processes(arguments: ExperimentArguments, settings: Sequence[Setting], console: Console) -> tuple[int, int]:
    """How many cells run at once, and the threads of each: what cores, memory and the one GPU allow.

    One where nobody knows what memory a model takes, which is said.
    """
    cores = len(os.sched_getaffinity(0))
    if arguments.num_workers is not None:
        workers = arguments.num_workers
    elif torch.accelerator.is_available():
        workers = 1
    else:
        try:
            peak = max(_memory(setting) for setting in settings)
            workers = max(1, min(cores, int(MEMORY_SHARE * machine_memory() / peak)))
        except (ConfigError, ModelError) as error:  # there are cells for what there are no formulas for
            say(console, f"one cell at once, since there is no memory plan: {error}; give num_workers for more")
            workers = 1
    return workers, arguments.num_threads or max(1, cores // workers)


def _memory(setting: Setting) -> float:
    """Bytes that one process needs."""
    if regime_of(setting.arguments.dataset_name) is not None:
        return REGIME_MEMORY
    arms = sorted({plan.method for plan in setting.methods.values()})
    plan = plan_recipe(replace(setting.arguments, arms=arms), setting.others)
    return plan.need(plan.largest)


def check_setting(setting: Setting) -> None:
    """Refuse before the first cell what one would refuse after an hour.

    Raises:
        ConfigError: a key that is missing, nothing that says what is better, or what `check_configuration` refuses.
    """
    known = set() if regime_of(setting.arguments.dataset_name) is None else {"model_name_or_path"}
    for name in ("dataset_name", "model_name_or_path", "max_completion_length"):
        if not getattr(setting.arguments, name) and name not in known:
            raise ConfigError(f"settings.{setting.name}: {name} is missing; give it there or for all settings")
    if setting.arguments.verifier is None and setting.arguments.judge is None:
        raise ConfigError(
            f"settings.{setting.name}: an experiment needs a verifier or a judge, which says what is better; give "
            "exact_match, final_number or package.module:function, or a judge such as local:FOLDER"
        )
    for plan in setting.methods.values():
        for variant in plan.variants:
            try:
                check_configuration(variant.arguments, variant.others)
            except ConfigError as error:
                raise ConfigError(f"settings.{setting.name}, methods.{plan.name}: {error}") from None


def _commit() -> str | None:
    """The commit, where densepath runs from a repository."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
