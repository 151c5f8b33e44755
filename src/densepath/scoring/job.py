"""`densepath score`: rows of any number -> the same rows with their dense reward; over processes, and on after a kill.

Windows of consecutive rows are the unit of work, of files and of resuming (`parts.py`). Shard k of n does every
n-th window from k (`shard.py`). Whoever finds all windows done joins them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from densepath.config.options import check_reference
from densepath.config.reward import ScoreArguments
from densepath.data.outputs import check_outputs, rows_read
from densepath.data.sources import stream_rows
from densepath.errors import ConfigError, DataError, DensepathError, StorageError
from densepath.models import locate
from densepath.progress import StageProgress
from densepath.records.estimates import Interval
from densepath.report.words import nats_interval
from densepath.rewards.dense import saved_reward
from densepath.rewards.rows import SCORE_COLUMNS
from densepath.scoring.parts import Tally
from densepath.scoring.shard import (
    Job,
    Report,
    is_saved_reward,
    refuse_settings_beside_a_saved_reward,
    score_shard,
)
from densepath.terminal import Console, say, terminal, warn

_FREE = (
    *("output_file", "strict", "device", "num_processes", "num_shards", "shard_index", "num_threads"),
    "vllm_gpu_memory_utilization",
)
"""Arguments that may change between two calls of a job: they do not change its result."""
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_MODELS = ("model_name_or_path", "ref_model_name_or_path")


def run_score_command(arguments: ScoreArguments, console: Console) -> Path:
    """Score the rows that the arguments name, or this process's share of them; the output's path.

    Raises:
        DensepathError: data, models or settings that cannot be used, or parts of another job.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and arguments.num_processes > 1:
        raise ConfigError(f"num_processes={arguments.num_processes} under a launcher that started {world} processes")
    processes = max(world, arguments.num_processes)
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", world)), arguments.num_processes)
    if arguments.use_vllm and here > 1:
        raise ConfigError(
            f"use_vllm takes the first device that a process sees, and {here} processes of this machine would share "
            "it: start one call for each device, with num_shards, shard_index and CUDA_VISIBLE_DEVICES"
        )
    job, description = _look(arguments)
    folder = job.folder
    if folder.open(description):
        say(console, f"{folder.output} is there already: nothing to do")
        return folder.output
    # A share is divided again among its processes, so that it is the same windows whoever does it.
    shards = arguments.num_shards * processes
    first = arguments.shard_index + arguments.num_shards * rank
    mine = range(first, first + arguments.num_shards * arguments.num_processes, arguments.num_shards)
    todo = [window for shard in mine for window in job.todo(shard, shards)]
    if todo:
        total = sum(job.rows_in(window) for shard in mine for window in range(shard, job.windows, shards))
        shown = terminal(quiet=True) if rank else console
        with _progress(shown, total, total - sum(map(job.rows_in, todo))) as report:
            if arguments.num_processes > 1:
                _in_processes(job, mine, shards, report)
            else:
                with folder.lock(f"{first}-of-{shards}"):
                    score_shard(job, first, shards, report, shown)
    return _finish(job, description, console)


def _look(arguments: ScoreArguments) -> tuple[Job, dict[str, Any]]:
    """The job, and all that decides its result; no model is loaded for it."""
    named = _named(arguments)
    folder = Job(arguments, 0).folder
    check_outputs(
        {"output_file": folder.output, "output_file's rejected rows": folder.rejected},
        {"dataset_name": rows_read(arguments.dataset_name, arguments.dataset_train_split)},
    )
    stream = stream_rows(arguments.dataset_name, arguments.dataset_train_split, arguments.max_samples)
    for name in SCORE_COLUMNS:
        if stream.schema is not None and name in stream.schema.names and name not in arguments.remove_columns:
            raise DataError(
                f'{arguments.dataset_name}: there is a column "{name}" already; rename it, or leave it out with '
                "remove_columns"
            )
    models = {role: {"name": name, "files": _files(locate.locate(name))} for role, name in named.items()}
    if arguments.chat_template_path is not None:
        template = arguments.chat_template_path
        models["chat template"] = {"name": template, "files": _files(template)}
    rows, parts = stream.scan()
    data = {part["name"]: {key: value for key, value in part.items() if key != "name"} for part in parts}
    if not rows:
        raise DataError(f"{arguments.dataset_name}: no rows; give at least one example")
    next(iter(stream))  # says what its columns are read as, where they are another tool's
    settings = {k: v for k, v in dataclasses.asdict(arguments).items() if k not in (*_FREE, *_MODELS)}
    settings["output_format"] = Path(arguments.output_file).suffix
    return Job(arguments, rows), {"settings": settings, "models": models, "data": data, "rows": rows}


def _named(arguments: ScoreArguments) -> dict[str, str]:
    """What the reward is made of, by its part in it: a saved one's file, and the models."""
    name, refs = arguments.model_name_or_path, arguments.ref_model_name_or_path
    if is_saved_reward(name):
        refuse_settings_beside_a_saved_reward(arguments)
        _, (sft, *refs) = saved_reward(name)
        whole = {"reward": name}
    else:
        check_reference(arguments.dense_reward, refs)
        sft, whole = name, {}
    return {**whole, "sft": sft, **{f"ref {k}": ref for k, ref in enumerate(refs, start=1)}}


def _files(source: str) -> dict[str, str]:
    """Size and time of a model's files, or of one file: whether it is the same after a pause. Empty for the hub's.

    An adapter's are those of its base too.
    """
    place = Path(source).expanduser()
    files = [place] if place.is_file() else sorted(path for path in place.glob("*") if path.suffix in _MODEL_FILES)
    if (place / locate.ADAPTER_CONFIG).is_file():
        base = _files(locate.adapter_base(str(place)))
    else:
        base = {}
    found = [(path.name, path.stat()) for path in files]
    return {f"base {name}": said for name, said in base.items()} | {
        name: f"{stat.st_size} bytes, {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(stat.st_mtime))}"
        for name, stat in found
    }


# --- several processes -----------------------------------------------------------------------------------------------


def _in_processes(job: Job, mine: range, shards: int, report: Report) -> None:
    """Score the shards of `mine`, each in a process of its own.

    Raises:
        DensepathError: the first error of any of them; the others are then stopped.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    if job.arguments.num_threads is None:
        threads = max(1, torch.get_num_threads() // len(mine))
        job = dataclasses.replace(job, arguments=dataclasses.replace(job.arguments, num_threads=threads))
    workers = [
        context.Process(target=_work, args=(job, shard, shards, messages, os.getpid()), daemon=True) for shard in mine
    ]
    for worker in workers:
        worker.start()
    try:
        running = len(workers)
        while running:
            try:
                kind, value = messages.get(timeout=1.0)
            except queue.Empty:
                for worker in workers:
                    if worker.exitcode not in (None, 0) and messages.empty():
                        raise StorageError(
                            f"a scoring process ended with exit code {worker.exitcode} (-9: killed, often for want of "
                            "memory); the same command goes on, with fewer num_processes if need be"
                        ) from None
                continue
            if kind == "progress":
                report(*value)
            elif kind == "error":
                raise value
            else:
                running -= 1
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _work(job: Job, shard: int, shards: int, messages: Any, parent: int) -> None:
    """Body of a process: one shard, its progress and its end told to the parent."""
    from densepath.models.quiet import quiet_libraries

    quiet_libraries()

    def report(rows: float, tokens: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the parent was killed: nobody waits for this any more
        messages.put(("progress", (rows, tokens)))

    try:
        with job.folder.lock(f"{shard}-of-{shards}"):
            score_shard(job, shard, shards, report, None)
        messages.put(("done", shard))
    except KeyboardInterrupt:
        pass  # the parent has it too
    except DensepathError as error:
        messages.put(("error", error))
    messages.close()
    messages.join_thread()


# --- progress and end ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Report]:
    started = time.monotonic()
    finished = 0.0
    with StageProgress(console, "score", total, "row") as progress:
        progress.start_at(done)

        def report(rows: float, tokens: int) -> None:
            nonlocal finished
            finished += rows
            rate = finished / max(time.monotonic() - started, 1e-9)
            progress.update(done + round(finished), tokens=tokens, note=f"{rate:,.1f} rows/s")

        yield report


def _finish(job: Job, description: dict[str, Any], console: Console) -> Path:
    """Join the parts if all are there, and say what has been reached."""
    folder = job.folder
    missing = folder.missing(job.windows)
    if missing and not folder.finished:
        say(console, f"this share is done; {missing} of {job.windows} windows are still to be scored by other shards")
        return folder.output
    total: Tally | None = None
    try:
        with folder.lock("merge", wait=True):
            if not folder.finished:
                total = folder.merge(job.windows, description, strict=job.arguments.strict)
    except StorageError:
        if not folder.finished:  # else another process was faster, and has removed the parts
            raise
    if total is None:
        return folder.output
    low, high = total.interval
    say(
        console,
        f"{total.rows} rows, {total.tokens} completion tokens, reward per row "
        f"{nats_interval(Interval(total.mean, low, high, total.rows))} nats",
    )
    if total.rejected:
        warn(console, f"{total.rejected} rows could not be scored; they are in {folder.rejected} with the reasons")
    say(console, f"scores: {folder.output.resolve()}")
    return folder.output
