"""Lines of progress where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from densepath import progress


def test_the_time_left_is_said_once_a_step_is_done(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=100)
    with progress.StageProgress(console, "DPR", 3) as bar:
        bar.start_at(1)
        bar.update(1)
        first = console.file.getvalue()
        bar.update(2)
        assert first.splitlines() == ["DPR: goes on from step 1 of 3", "DPR: step 1/3"]
        assert console.file.getvalue()[len(first) :].startswith("DPR: step 2/3, ")
        assert " s left" in console.file.getvalue()[len(first) :]
