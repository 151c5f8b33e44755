"""Parts of a check: each in a process and a time box of its own; what is known so far is on disk at every moment."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densepath.io import read_json, write_json_atomic

SUMMARY = "gpu_check.json"
LEAST_SECONDS = 5.0
"""A part that would have less is not begun: its imports alone take about as long."""


@dataclass(frozen=True)
class Box:
    """A part of the check, the seconds that it may take, and whether nothing is wrong where they end it."""

    name: str
    title: str
    seconds: float
    open_ended: bool = False


@dataclass
class Report:
    """What a part has found, written whole after each item; an item that fails does not end the part."""

    path: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextlib.contextmanager
    def item(self, name: str) -> Iterator[dict[str, Any]]:
        """The values of an item, to be filled in the block; its seconds and its error are added."""
        started, values = time.monotonic(), {}
        try:
            yield values
        except Exception as error:
            values["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            traceback.print_exc()
        values["seconds"] = round(time.monotonic() - started, 2)
        self.found[name] = _finite(values)
        write_json_atomic(self.path, self.found)


def _finite(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinity as text."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def compared(difference: float, tolerance: float) -> dict[str, Any]:
    """A difference, what it may be, and whether it is no more; NaN is more."""
    return {"difference": difference, "tolerance": tolerance, "ok": bool(difference <= tolerance)}


def in_boxes(boxes: Sequence[Box], words: Sequence[str], folder: Path, seconds: float) -> dict[str, Any]:
    """Run parts one after the other, and write `gpu_check.json` after each.

    Args:
        boxes: the parts, the most telling first: what a limit cuts off is the end.
        words: of the command that runs a part, with its name to come; it writes `<name>.json` into the folder.
        folder: where records and logs go.
        seconds: that all of them may take.

    Returns:
        Part -> its record: `state` (done, failed, cut off, not begun), `open_ended`, `seconds` and `found`.
    """
    deadline, records = time.monotonic() + seconds, {}
    for box in boxes:
        left = min(box.seconds, deadline - time.monotonic())
        record = {"title": box.title, "open_ended": box.open_ended}
        if left < LEAST_SECONDS:
            records[box.name] = {**record, "state": "not begun", "seconds": 0.0, "found": {}}
        else:
            records[box.name] = {**record, **_in_box(box.name, words, folder, left)}
        write_json_atomic(folder / SUMMARY, {"parts": records})
        print(f"{box.name}: {records[box.name]['state']}, {records[box.name]['seconds']:.0f} s", flush=True)
    return records


def _in_box(name: str, words: Sequence[str], folder: Path, seconds: float) -> dict[str, Any]:
    started, path = time.monotonic(), folder / f"{name}.json"
    path.unlink(missing_ok=True)
    with (folder / f"{name}.log").open("w") as log:
        # A session of its own: what the part has started ends with it.
        child = subprocess.Popen([*words, name], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            state = "done" if child.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "cut off"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    found = read_json(path) if path.exists() else {}
    return {"state": state, "seconds": round(time.monotonic() - started, 2), "found": found}


def failures(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is not as it should be: parts that did not end, items with an error or too large a difference."""
    found = []
    for name, record in records.items():
        if record["state"] not in ("done", "cut off" if record["open_ended"] else None):
            found.append(f"{name}: {record['state']}")
    for name, record in records.items():
        for item, values in record["found"].items():
            if "error" in values:
                found.append(f"{name}, {item}: {values['error']}")
            for key, value in values.items():
                if isinstance(value, Mapping) and value.get("ok") is False:
                    found.append(f"{name}, {item}, {key}: {value['difference']}, more than {value['tolerance']}")
    return found


def command(*words: str) -> list[str]:
    """`python -m benchmarks.gpu.check` with these words."""
    return [sys.executable, "-m", "benchmarks.gpu.check", *words]
