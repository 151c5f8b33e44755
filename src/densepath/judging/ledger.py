"""What was paid with one cache, on disk: several processes, and commands one after another, share a limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from densepath.errors import DataError, JudgeError, MissingFileError
from densepath.io import hold_lock, read_json, write_json_atomic
from densepath.records.codec import from_json, to_json

LEDGER = "spent.json"


@dataclass(frozen=True)
class Paid:
    """All calls that were made with one cache.

    Attributes:
        calls: sent.
        prompt_tokens: read, as far as the endpoint said it.
        completion_tokens: written, likewise.
        cost: booked, in the unit of the prices; calls made without prices cost nothing here.
        held: process and judge in it -> the most that its calls under way may cost.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    held: dict[str, float] = field(default_factory=dict)

    @property
    def without_dead(self) -> Paid:
        """The same with what processes that have ended were holding booked in full: nobody knows what became of it."""
        dead = {process: cost for process, cost in self.held.items() if not _is_alive(process.partition(":")[0])}
        alive = {process: cost for process, cost in self.held.items() if process not in dead}
        return replace(self, cost=self.cost + sum(dead.values()), held=alive) if dead else self


class Ledger:
    """A file beside the replies of a cache.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER

    @contextmanager
    def open(self) -> Iterator[Entry]:
        """What was paid, with no other process in between; what the block sets is on disk after it.

        Raises:
            JudgeError: the file was damaged. StorageError: it cannot be written.
        """
        lock = hold_lock(self._path.with_suffix(".lock"), "", wait=True)
        try:
            found = self._read()
            entry = Entry(found.without_dead)
            yield entry
            if entry.paid != found:
                write_json_atomic(self._path, to_json(entry.paid))
        finally:
            lock.release()

    def _read(self) -> Paid:
        try:
            return from_json(Paid, read_json(self._path))
        except MissingFileError:
            return Paid()
        except (ValueError, DataError):
            raise JudgeError(
                f"{self._path}: damaged, so it is not known what was paid; remove it to count from nothing"
            ) from None


@dataclass
class Entry:
    """What was paid, to be replaced."""

    paid: Paid


def this_process() -> str:
    """What tells this process from all others: in a container the next one may have its number."""
    return f"{os.getpid()}@{_started(os.getpid())}"


def _started(process: int) -> str:
    """When a process began, in ticks since the machine did; nothing where the system does not tell it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_alive(said: str) -> bool:
    number, _, started = said.partition("@")
    process = int(number)
    if started and started != _started(process):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
