"""Tasks wait for what they need, run in several processes, and a failure stays where it happened."""

from __future__ import annotations

import os
import signal
import time

import pytest

from densepath.errors import DataError, StorageError
from densepath.experiments.scheduler import Task, run_tasks


def write(path, *needs):
    for need in needs:
        assert need.exists(), f"{path.name} ran before {need.name}"
    path.write_text(str(os.getpid()))


def fail(error):
    raise error


def meet(mine, other):
    """Returns only if both tasks run at the same time."""
    mine.touch()
    deadline = time.time() + 60
    while not other.exists():
        assert time.time() < deadline
        time.sleep(0.01)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tasks_run_after_what_they_need_and_failures_do_not_spread_sideways(tmp_path, num_workers):
    a, b, c = (tmp_path / name for name in "abc")
    tasks = {
        "c": Task(write, (c, a, b), ("a", "b")),
        "b": Task(write, (b, a), ("a",)),
        "a": Task(write, (a,)),
        "bad": Task(fail, (DataError("row 3: no prompt"),)),
        "worse": Task(fail, (ZeroDivisionError("by zero"),)),
        "after": Task(write, (tmp_path / "never",), ("bad", "a")),
        "later": Task(write, (tmp_path / "never",), ("after",)),
    }
    seen = []
    ended = run_tasks(tasks, num_workers=num_workers, threads=1, on_finished=lambda result: seen.append(result.key))
    assert sorted(seen) == sorted(tasks)
    assert c.exists()
    assert not (tmp_path / "never").exists()
    assert [ended[key].error for key in "abc"] == [None] * 3
    assert ended["bad"].error == "row 3: no prompt"
    assert ended["bad"].details is None
    assert ended["worse"].error == "ZeroDivisionError: by zero"
    assert "Traceback" in ended["worse"].details
    assert ended["after"].error == "not run, since bad failed"
    assert ended["later"].error == "not run, since after failed"


@pytest.mark.slow
def test_two_workers_work_at_once(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    tasks = {"a": Task(meet, (a, b)), "b": Task(meet, (b, a))}
    ended = run_tasks(tasks, num_workers=2, threads=1, on_finished=lambda result: None)
    assert [result.error for result in ended.values()] == [None, None]


@pytest.mark.slow
def test_a_killed_worker_ends_the_grid_with_what_to_do():
    with pytest.raises(StorageError, match="lower num_workers"):
        run_tasks({"a": Task(die, ())}, num_workers=2, threads=1, on_finished=lambda result: None)
