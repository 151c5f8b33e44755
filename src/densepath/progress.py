"""How far a command is: stage, step, tokens per second, time left; a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from densepath.terminal import Console, progress_bar, say

LINE_EVERY_SECONDS = 10.0


class StageProgress:
    """One bar for one stage; use as a context manager.

    Args:
        console: where to print.
        title: e.g. "2/7 SFT".
        total: number of steps; None until it is known.
        unit: what a step is, e.g. "step" or "completion".
    """

    def __init__(self, console: Console, title: str, total: int | None, unit: str = "step") -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done = 0
        self.tokens = 0
        self.started = self._last_line = time.monotonic()
        self._start_done = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> StageProgress:
        if self.console.is_terminal:
            self._bar = progress_bar(
                self.console,
                "{task.description}",
                BarColumn(bar_width=24),
                "{task.completed:.0f}/{task.total:.0f} " + self.unit + "s",
                "{task.fields[rate]}",
                TimeRemainingColumn(compact=True),
                "{task.fields[note]}",
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total or 1, rate="", note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error[0] is None:
            seconds = time.monotonic() - self.started
            say(self.console, f"{self.title}: {self.done} {self.unit}s in {seconds:.0f} s{self._rate()}")

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        return f", {self.tokens / seconds:,.0f} tokens/s" if self.tokens else ""

    def start_at(self, done: int, place: str = "") -> None:
        """Count steps that an earlier process did, and say so.

        Args:
            done: steps.
            place: what they are read from.
        """
        self.done = self._start_done = done
        if done:
            of = f" of {self.total}" if self.total else ""
            say(self.console, f"{self.title}: goes on from {self.unit} {done}{of}" + (f" ({place})" if place else ""))

    def update(
        self,
        done: int,
        total: int | None = None,
        tokens: int = 0,
        note: str = "",
        seconds_left: float | None = None,
    ) -> None:
        """Set how many steps are done; add the tokens that they took.

        Args:
            done: steps finished so far.
            total: steps in all, if that has become known.
            tokens: tokens processed since the last call.
            note: a short text after the bar.
            seconds_left: where steps are too different to be counted; None: as long as the steps so far took.
        """
        self.done = done
        self.total = total if total is not None else self.total
        self.tokens += tokens
        if self._bar is not None and self._task is not None:
            rate = self._rate().removeprefix(", ")
            self._bar.update(self._task, completed=done, total=self.total or 1, rate=rate, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_SECONDS and self.total:
            self._last_line = now
            text = f"{self.title}: {self.unit} {done}/{self.total}{self._rate()}"
            fresh = done - self._start_done
            if seconds_left is None and fresh > 0:  # before the first step nothing is known
                seconds_left = (self.total - done) * (now - self.started) / fresh
            if seconds_left is not None:
                text += f", {seconds_left:.0f} s left"
            say(self.console, f"{text}  {note}".rstrip())

    def advance(self, count: int = 1, tokens: int = 0, note: str = "", seconds_left: float | None = None) -> None:
        """Add finished steps."""
        self.update(self.done + count, tokens=tokens, note=note, seconds_left=seconds_left)
