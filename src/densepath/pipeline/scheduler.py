"""Tasks that wait for one another, run in several processes."""

from __future__ import annotations

import contextlib
import functools
import gc
import graphlib
import importlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.resource_tracker import ensure_running
from typing import Any

from densepath.errors import DamagedFileError, DensepathError, ResumeError, StorageError
from densepath.io import hidden_secrets


@dataclass(frozen=True)
class Task:
    """Something to run.

    Attributes:
        function: importable by name, since another process calls it.
        arguments: what it is called with; they are pickled between the processes of one program only.
        needs: keys of tasks that must have succeeded.
    """

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    needs: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Finished:
    """How a task ended.

    Attributes:
        key: of the task.
        seconds: that it took.
        error: one line, or None if it succeeded.
        details: traceback of a failure that is not a user's mistake.
        refused: what lies in its folder, or in that of one that it needs, is not what it would have made.
    """

    key: Hashable
    seconds: float
    error: str | None = None
    details: str | None = None
    refused: bool = False


def run_tasks(
    tasks: Mapping[Hashable, Task],
    *,
    num_workers: int,
    threads: int,
    on_finished: Callable[[Finished], None],
    preload: Sequence[str] = (),
) -> dict[Hashable, Finished]:
    """Run every task after those that it needs; what needs a failed one is not run, and is reported as failed too.

    Args:
        tasks: key -> task, in the order in which they are to begin where the needs allow it.
        num_workers: processes; 1 runs them in this one.
        threads: of each process.
        on_finished: called in this process whenever a task has ended.
        preload: modules that each process imports first.

    Returns:
        key -> how it ended.

    Raises:
        StorageError: a process died, as when the memory is used up.
        ValueError: tasks that wait for one another, or for one that is not there, and would do so for ever.
    """
    if missing := {need for task in tasks.values() for need in task.needs} - set(tasks):
        raise ValueError(f"no such task: {', '.join(map(_name, missing))}")
    graphlib.TopologicalSorter({key: task.needs for key, task in tasks.items()}).prepare()
    done: dict[Hashable, Finished] = {}
    waiting = dict(tasks)

    def finish(result: Finished) -> None:
        done[result.key] = result
        on_finished(result)

    def ready() -> list[Hashable]:
        found = []
        for key, task in list(waiting.items()):
            failed = [need for need in task.needs if need in done and done[need].error is not None]
            if failed:
                del waiting[key]
                refused = any(done[need].refused for need in failed)
                finish(Finished(key, 0.0, f"not run, since {_name(failed[0])} failed", refused=refused))
            elif all(need in done for need in task.needs):
                del waiting[key]
                found.append(key)
        return found

    if num_workers == 1:
        while waiting:
            for key in ready():
                finish(_run(key, tasks[key].function, tasks[key].arguments))
        return done
    start = functools.partial(_start, threads, preload)
    pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=start)
    running: set[Future[Finished]] = set()
    try:
        while waiting or running:
            with _deaf_children():
                running |= {pool.submit(_run, key, tasks[key].function, tasks[key].arguments) for key in ready()}
            if not running:
                continue
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                finish(future.result())
    except BrokenProcessPool:
        raise StorageError(
            "a process of the experiment was killed, perhaps for want of memory: lower num_workers or the batch "
            "sizes; the same command goes on where it stopped"
        ) from None
    finally:
        workers = list((pool._processes or {}).values())  # shutdown forgets them
        for process in workers if running else ():
            process.kill()  # what it has done is whole, and nothing waits for the rest
        pool.shutdown(wait=True, cancel_futures=True)
    return done


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started inside the block hear no interrupt from the terminal: this one ends them."""
    ensure_running()  # the tracker that the first of them starts would unblock signals here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def seconds_left(
    keys: Collection[Hashable], ended: Mapping[Hashable, Finished], kind: Callable[[Hashable], Hashable], workers: int
) -> float | None:
    """Time until all tasks have ended: each takes as long as those of its kind took on average, or as all did.

    Args:
        keys: of all tasks.
        ended: those that have, by key.
        kind: of a task; tasks of one kind take about the same time.
        workers: processes.

    Returns:
        Seconds; None before the first task has ended.
    """
    took: dict[Hashable, list[float]] = {}
    for key, result in ended.items():
        took.setdefault(kind(key), []).append(result.seconds)
    if not took:
        return None
    means = {name: statistics.mean(seconds) for name, seconds in took.items()}
    overall = statistics.mean(means.values())
    return sum(means.get(kind(key), overall) for key in keys if key not in ended) / workers


def _start(threads: int, preload: Sequence[str]) -> None:
    """A worker: quiet, and with its share of the cores."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from densepath.models.quiet import quiet_libraries

    torch.set_num_threads(threads)
    quiet_libraries()
    for name in preload:
        importlib.import_module(name)
    gc.freeze()  # what is loaded stays: the collection after each task need not look through it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose program was killed must not hold a cell's lock until it has trained to the end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _run(key: Hashable, function: Callable[..., None], arguments: tuple[Any, ...]) -> Finished:
    started = time.monotonic()
    error = details = None
    refused = False
    try:
        function(*arguments)
    except DensepathError as found:
        refused = isinstance(found, ResumeError | DamagedFileError)
        error = hidden_secrets(" ".join(str(found).split()))
    except Exception as found:  # one cell's failure must not end the grid
        error = hidden_secrets(f"{type(found).__name__}: {' '.join(str(found).split())}")
        details = hidden_secrets(traceback.format_exc())
    gc.collect()  # trainers are reference cycles around a model and its optimizer
    return Finished(key, time.monotonic() - started, error, details, refused)


def _name(key: Hashable) -> str:
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)
