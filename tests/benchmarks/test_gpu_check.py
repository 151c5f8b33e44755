"""The GPU check's own logic: time boxes, records of what was cut off, tolerances; and its parts on a CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.gpu.boxes import SUMMARY, Box, Report, compared, failures, in_boxes

ROOT = Path(__file__).parents[2]
PART = """
import sys, time
from pathlib import Path
from benchmarks.gpu.boxes import Report, compared
folder, name = Path(sys.argv[1]), sys.argv[2]
report = Report(folder / f"{name}.json")
with report.item("first") as values:
    values["scores"] = compared(1e-5, 1e-4)
if name == "slow":
    time.sleep(60)
if name == "broken":
    raise SystemExit(3)
with report.item("second") as values:
    raise ValueError("two\\nlines")
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A part that fails, one that hangs, one that ends but for an item, and one that has no time left."""
    folder = tmp_path_factory.mktemp("check")
    boxes = [Box(name, name, seconds) for name, seconds in (("broken", 200), ("item", 200), ("slow", 10), ("last", 9))]
    words = [sys.executable, "-c", PART, str(folder)]
    started = time.monotonic()
    found = in_boxes(boxes[:3], words, folder, 400)
    assert time.monotonic() - started < 400
    late = in_boxes(boxes[3:], words, folder, 1)
    return folder, found, late


def test_a_part_that_hangs_is_cut_off_and_keeps_what_it_found(records):
    folder, found, late = records
    assert {name: record["state"] for name, record in found.items()} == {
        "broken": "failed",
        "item": "done",
        "slow": "cut off",
    }
    for record in found.values():
        assert record["found"]["first"]["scores"] == {"difference": 1e-5, "tolerance": 1e-4, "ok": True}
    assert late["last"]["state"] == "not begun"
    assert json.loads((folder / SUMMARY).read_text())["parts"].keys() == {"last"}


def test_what_is_wrong_is_named(records):
    _, found, late = records
    assert failures({**found, **late}) == [
        "broken: failed",
        "slow: cut off",
        "last: not begun",
        "item, second: ValueError: two lines",
    ]


def test_differences_are_compared_and_nan_is_none(tmp_path):
    report = Report(tmp_path / "part.json")
    with report.item("scores") as values:
        values["equal"] = compared(1e-4, 1e-4)
        values["more"] = compared(2e-4, 1e-4)
        values["nan"] = compared(math.nan, 1e-4)
    written = json.loads((tmp_path / "part.json").read_text())
    assert [written["scores"][key]["ok"] for key in ("equal", "more", "nan")] == [True, False, False]
    assert failures({"smoke": {"state": "done", "found": written}}) == [
        "smoke, scores, more: 0.0002, more than 0.0001",
        "smoke, scores, nan: nan, more than 0.0001",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["smoke", "speed", "noise", "extras", "tests"])
def test_every_part_runs_on_a_cpu(tmp_path, part):
    words = ["--device", "cpu", "--tiny", "--parts", part, "--minutes", "30", "--output_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.check", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + (tmp_path / f"{part}.log").read_text()[-3000:]
    record = json.loads((tmp_path / SUMMARY).read_text())
    assert record["failures"] == []
    assert record["parts"][part]["state"] == "done"
    assert record["environment"]["torch"]
