"""The state of a job on disk: one part a window of rows, each whole or not there, and what they belong to.

Beside `scores.jsonl` a job of `densepath score` keeps

    scores.parts/manifest.json       settings, data and models that the parts belong to
    scores.parts/00000012.jsonl      rows of window 12 with their rewards
    scores.parts/00000012.rejected   rows of it that could not be scored, as JSON lines; if there are any
    scores.parts/00000012.json       numbers about it and what its files hold; written last: the window is done

and, when all windows are done, `scores.jsonl`, `scores.rejected.jsonl` (if there are any) and `scores.manifest.json`.
Beside `scores.parquet` they are `scores.parquet.parts` and so on, so that outputs of one stem do not share them.
A window's rows and numbers do not depend on who scored it or when, so neither do the joined files.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densepath.errors import DamagedFileError, DamageWarning, DataError, ResumeError, UsageError
from densepath.io import (
    atomic_path,
    changed_files,
    hold_lock,
    read_jsonl,
    read_sealed_json,
    remove,
    sealed,
    write_sealed_json,
)
from densepath.records.codec import from_json
from densepath.scoring.tables import join_parts, json_line, write_rows

_ANEW = "the same command scores this window again"
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Tally:
    """Counts of scored rows, and mean and spread of their rewards.

    Attributes:
        rows: rows scored.
        rejected: rows set aside.
        tokens: completion tokens scored, EOS included.
        mean: of the rows' rewards, nats.
        squares: sum of their squared distances from the mean.
    """

    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        """Both together (Chan, Golub and LeVeque 1979)."""
        rows = self.rows + other.rows
        if not rows:
            return Tally(rejected=self.rejected + other.rejected)
        distance = other.mean - self.mean
        return Tally(
            rows,
            self.rejected + other.rejected,
            self.tokens + other.tokens,
            self.mean + distance * other.rows / rows,
            self.squares + other.squares + distance**2 * self.rows * other.rows / rows,
        )

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean over rows, nats; by the normal approximation."""
        if self.rows < 2:
            return self.mean, self.mean
        half = _Z * math.sqrt(self.squares / (self.rows - 1) / self.rows)
        return self.mean - half, self.mean + half


def tally(rows: Sequence[Mapping[str, Any]], rejected: int) -> Tally:
    """The tally of one window."""
    rewards = [row["reward"] for row in rows]
    mean = math.fsum(rewards) / len(rewards) if rewards else 0.0
    squares = math.fsum((reward - mean) ** 2 for reward in rewards)
    return Tally(len(rows), rejected, sum(row["num_tokens"] for row in rows), mean, squares)


class Parts:
    """Parts of one output file, each one window of the work: what a kill leaves, and the same call goes on with.

    Args:
        output: the file that they become.

    Attributes:
        beside: other files of the job, which are written before the output.
    """

    def __init__(self, output: Path) -> None:
        self.output, self._name = output, output.name.removesuffix(".jsonl")
        self.folder = output.with_name(f"{self._name}.parts")
        self.manifest = output.with_name(f"{self._name}.manifest.json")
        self.beside: tuple[Path, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the output and its manifest are there."""
        return self.output.exists() and self.manifest.exists()

    @property
    def result(self) -> Any:
        """What the finished job came to, as its manifest says."""
        return self._concluded("move it away, with its output, to begin anew")["result"]

    def _concluded(self, remedy: str) -> dict[str, Any]:
        """What the manifest of the finished job holds.

        Raises:
            DamagedFileError: it is not what was written.
        """
        found = read_sealed_json(self.manifest, remedy, old=True)
        if not {"job", "result"} <= found.keys() <= {"job", "result", "files"}:
            raise DamagedFileError(f"{self.manifest} is damaged, it is not what was written: {remedy}")
        return found

    def open(self, job: Mapping[str, Any]) -> bool:
        """Begin the job, or go on with it.

        Args:
            job: all that decides the result, as JSON.

        Returns:
            Whether it is finished: the output is there.

        Raises:
            ResumeError: the parts, or the output, belong to another job; the message shows each difference.
            DamagedFileError: a file of the job is not what was written.
            UsageError: the output is there and is not ours.
            StorageError: the place cannot be written.
        """
        if self.output.is_dir() or (self.folder.exists() and not self.folder.is_dir()):
            raise UsageError(f"output_file={self.output}: {self.folder} or it is in the way; give another name")
        if self.finished:
            anew = f"move {self.output.name} away to begin anew"
            concluded = self._concluded(anew)
            self._check(self.manifest, concluded["job"], job, anew)
            changed = changed_files(self.output.parent, concluded.get("files", {}))
            if changed:
                raise DamagedFileError(f"{', '.join(changed)}: not what {self.manifest} says was written: {anew}")
            self._tidy()
            return True
        if self.output.exists() and not self.folder.exists():
            raise UsageError(
                f"{self.output} is there already, and {self.manifest}, which says of which job it is, is not; "
                "move it away to begin anew, or give another output_file"
            )
        begun = self.folder / "manifest.json"
        if begun.exists():
            away = f"remove {self.folder} to begin anew"
            try:
                self._check(
                    begun, read_sealed_json(begun, away, old=True), job, f"undo the change to go on, or {away}"
                )
            except (ResumeError, DamagedFileError):
                if self.holds_rows:
                    raise
                remove(self.folder)  # nothing was done yet: the change may correct a mistake
        if not begun.exists():
            write_sealed_json(begun, job)
        return False

    def _check(self, path: Path, before: Any, job: Mapping[str, Any], remedy: str) -> None:
        differences = list(_differences(before, json.loads(json.dumps(job))))
        if differences:
            raise ResumeError(f"{path} is of another job ({'; '.join(differences)}): {remedy}")

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """Keep others with the same name out; the lock goes with the process, however it ends.

        Raises:
            StorageError: somebody else has it.
        """
        busy = f"{self.folder}: another densepath process does this part of the work; wait for it"
        lock = hold_lock(self.folder / f".{name}.lock", busy, wait=wait)
        try:
            yield
        finally:
            lock.release()

    def has(self, window: int) -> bool:
        """Whether a window is done and its files hold what was written; one that is damaged is forgotten and said."""
        if not self._marker(window).exists():
            return False
        try:
            self._whole(window)
        except DamagedFileError as error:
            warnings.warn(str(error), DamageWarning, stacklevel=2)
            remove(self._marker(window))
            return False
        return True

    def _whole(self, window: int) -> dict[str, Any]:
        """The numbers about a window that is done, its rows among them.

        Raises:
            DamagedFileError: its marker cannot be read, or its files are not what it says.
        """
        marker = self._marker(window)
        try:
            found = read_sealed_json(marker, _ANEW)
            changed = changed_files(self.folder, found.pop("files"))
            found["rows"] += 0  # a number
        except (AttributeError, KeyError, TypeError) as error:
            raise DamagedFileError(f"{marker} is damaged ({error}): {_ANEW}") from None
        if changed:
            raise DamagedFileError(f"{self.folder / changed[0]} is not what was written: {_ANEW}")
        return found

    @property
    def holds_rows(self) -> bool:
        """Whether a window that is done has a row, or its marker cannot be read, as one of an earlier version."""
        try:
            return any(self._whole(int(path.stem))["rows"] for path in sorted(self.folder.glob("[0-9]*.json")))
        except DamagedFileError:
            return True

    def missing(self, windows: int) -> int:
        """How many windows are not done yet."""
        return sum(not self._marker(window).exists() for window in range(windows))

    def write_rows(self, window: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a window's rows as JSON lines, and that it is done.

        Raises:
            StorageError: writing failed; what was written before is whole.
        """
        with atomic_path(self._rows(window)) as path:
            path.write_bytes(b"".join(map(json_line, rows)))
        self._mark(window, {"rows": len(rows)}, self._rows(window))

    def _mark(self, window: int, numbers: Mapping[str, Any], *files: Path) -> None:
        """Say that a window is done, and what its files hold."""
        held = sealed(self.folder, files)
        write_sealed_json(self._marker(window), {**numbers, "files": held})

    def read_rows(self, windows: int) -> list[dict[str, Any]]:
        """The rows of all windows, in order.

        Raises:
            DamagedFileError: a window has changed since it was found whole.
        """
        for window in range(windows):
            self._whole(window)
        return [row for window in range(windows) for row in read_jsonl(self._rows(window))]

    def finish(self, job: Mapping[str, Any], result: Any, write: Callable[[Path], object]) -> None:
        """Write the output and then the manifest, which says that it is whole; the parts are then removed.

        Args:
            job: as `open` took it.
            result: what it came to, as JSON.
            write: writes the output at the path that it is given.

        Raises:
            StorageError: writing failed.
        """
        with atomic_path(self.output) as path:
            write(path)
        files = sealed(self.output.parent, (self.output, *self.beside))
        write_sealed_json(self.manifest, {"job": dict(job), "result": result, "files": files})
        self._tidy()

    def _tidy(self) -> None:
        """Remove the parts, and what a kill left of files that were being written or parts that were being removed."""
        remove(self.folder)
        for path in (self.output, self.manifest, self.folder, *self.beside):
            for half in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                remove(half)

    def _rows(self, window: int) -> Path:
        return self.folder / f"{window:08d}.jsonl"

    def _marker(self, window: int) -> Path:
        return self.folder / f"{window:08d}.json"


class PartFolder(Parts):
    """Parts of scored rows, with those that could not be scored set aside, and numbers about each window.

    Args:
        output: the file that they become.
    """

    def __init__(self, output: Path) -> None:
        super().__init__(output)
        self.rejected = output.with_name(f"{self._name}.rejected.jsonl")
        self.beside = (self.rejected,)
        self._parquet = output.suffix == ".parquet"

    def write(
        self,
        window: int,
        rows: Sequence[Mapping[str, Any]],
        rejected: Sequence[Mapping[str, Any]],
        *,
        logprobs: bool,
        schema: Any | None,
    ) -> None:
        """Write a window's rows, what was set aside, and that it is done.

        Raises:
            StorageError: writing failed; what was written before is whole.
        """
        remove(self._rejected(window))  # of a window that is scored again
        if rejected:
            with atomic_path(self._rejected(window)) as path:
                path.write_bytes(b"".join(map(json_line, rejected)))
        with atomic_path(self._rows(window)) as path:
            write_rows(path, rows, parquet=self._parquet, logprobs=logprobs, source=schema)
        numbers = asdict(tally(rows, len(rejected)))
        self._mark(window, numbers, self._rows(window), self._rejected(window))

    def merge(self, windows: int, job: Mapping[str, Any], *, strict: bool) -> Tally:
        """Join the parts into the output, the same whoever wrote them; the parts are then removed.

        Raises:
            DataError: no row could be scored, or, under `strict`, one could not. StorageError: writing failed.
            DamagedFileError: a window has changed since it was found whole.
        """
        total = sum((from_json(Tally, self._whole(window)) for window in range(windows)), Tally())
        if not total.rows:
            raise DataError(f"no row could be scored; {self._first_rejected(windows)}")
        if strict and total.rejected:
            raise DataError(f"rows that could not be scored: {total.rejected}; {self._first_rejected(windows)}")
        remove(self.rejected)
        if total.rejected:
            with atomic_path(self.rejected) as path, path.open("wb") as file:
                for window in range(windows):
                    if self._rejected(window).exists():
                        file.write(self._rejected(window).read_bytes())
        low, high = total.interval
        counts = {"rows": total.rows, "rejected": total.rejected, "tokens": total.tokens}
        result = {**counts, "reward": {"mean": total.mean, "low": low, "high": high}}
        parts = map(self._rows, range(windows))
        self.finish(job, result, lambda path: join_parts(parts, path, parquet=self._parquet))
        return total

    def _first_rejected(self, windows: int) -> str:
        path = next(path for path in map(self._rejected, range(windows)) if path.exists())
        with path.open("rb") as lines:
            first = json.loads(next(lines))
        return f"the first of them: {first['file']}, row {first['row']}: {first['error']}"

    def _rows(self, window: int) -> Path:
        return self.folder / f"{window:08d}{self.output.suffix}"

    def _rejected(self, window: int) -> Path:
        return self.folder / f"{window:08d}.rejected"


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """`settings.window_size: 256 -> 128` for each leaf that differs.

    Of a model only what both know is compared: the first call of a hub id may have fetched its weights.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before} & {*now} if key == "model" else {*before, *now}):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"{key}: {before!r} -> {now!r}"
