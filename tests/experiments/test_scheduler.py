"""Tasks wait for what they need, run in several processes, and a failure stays where it happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densepath.errors import ConfigError, DataError, ResumeError, StorageError
from densepath.pipeline.scheduler import Finished, Task, run_tasks, seconds_left


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


def note_and_sleep(path):
    path.write_text(str(os.getpid()))
    time.sleep(600)


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


def test_the_time_left_counts_tasks_of_a_kind_by_what_their_kind_took():
    def took(key, seconds):
        return key, Finished(key, seconds)

    keys = [("sft", 0), ("sft", 1), ("dpr", 0), ("dpr", 1), ("spin", 0)]
    ended = dict([took(("sft", 0), 2.0), took(("sft", 1), 4.0), took(("dpr", 0), 9.0)])
    # dpr/1 takes 9 s as dpr/0 did; spin is unknown: the mean of sft's 3 s and dpr's 9 s
    assert seconds_left(keys, ended, lambda key: key[0], 2) == (9 + 6) / 2
    assert seconds_left(keys, {}, lambda key: key[0], 2) is None


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


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_scheduler import note_and_sleep
from densepath.cli.main import _interruptible
from densepath.pipeline.scheduler import Task, run_tasks
if __name__ == "__main__":
    with _interruptible():
        run_tasks({"a": Task(note_and_sleep, (Path(sys.argv[1]),))}, num_workers=2, threads=1, on_finished=print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signals", [("SIGKILL",), ("SIGINT",), ("SIGTERM",), ("SIGINT", "SIGINT")], ids="-".join)
def test_workers_end_with_a_program_that_was_ended(tmp_path, signals):
    (tmp_path / "program.py").write_text(PROGRAM)
    noted = tmp_path / "pid"
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(noted), str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
    )
    deadline = time.time() + 120
    while not (noted.exists() and noted.read_text()):
        assert time.time() < deadline
        time.sleep(0.1)
    for name in signals:
        program.send_signal(getattr(signal, name))
        time.sleep(0.05)
    program.wait(20)
    while Path(f"/proc/{noted.read_text()}").exists():
        assert time.time() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("needs", [("a",), ("b",), ("elsewhere",)])
def test_what_would_wait_for_ever_is_refused_before_anything_runs(tmp_path, needs):
    tasks = {"c": Task(write, (tmp_path / "c",)), "a": Task(write, (tmp_path / "a",), needs)}
    tasks |= {"b": Task(write, (tmp_path / "b",), ("a",))}
    with pytest.raises(ValueError, match=r"cycle|no such task: elsewhere"):
        run_tasks(tasks, num_workers=1, threads=1, on_finished=print)
    assert not list(tmp_path.iterdir())


def test_what_needs_a_refused_task_is_refused_and_what_needs_a_failed_one_is_not():
    ends = {"a": ResumeError("another configuration"), "c": ConfigError("no such prompt")}
    tasks = {key: Task(fail, (error,)) for key, error in ends.items()}
    tasks |= {"b": Task(fail, (None,), ("a",)), "d": Task(fail, (None,), ("c",))}
    done = run_tasks(tasks, num_workers=1, threads=1, on_finished=lambda _: None)
    assert {key for key, result in done.items() if result.error is not None} == {*"abcd"}
    assert {key for key, result in done.items() if result.refused} == {*"ab"}
