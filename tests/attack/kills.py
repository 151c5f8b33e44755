"""Commands that are killed at a random moment, a few times in a row, with the power cut or without; and full disks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.attack.disks import CutDisk, SmallDisk
from tests.attack.place import COMMANDS, CONCURRENCY, REPORT, SCORE_BY_TWO, Place
from tests.power import cut

MOST = 8
"""Kills in a row, at most."""
_LINGER = 10.0
"""Seconds that workers may outlive their program."""


def attack_kills(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """SIGKILL at random moments of a command, then the command to its end; (command, counts)."""
    command = rng.choice((*COMMANDS, REPORT))
    with _trial(place, command) as folder:
        return command, _attacked(place, rng, command, folder, lambda: None, most)


def attack_power(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """The same, and then only what was synced is left of the folder; in half of the cuts removed names come back."""
    command = rng.choice(COMMANDS)
    with _trial(place, command) as folder:
        synced = [folder.parent / part for part in ("journal", "shadow")]

        def cut_off() -> None:
            if folder.exists() and rng.random() < 0.8:  # else a kill alone
                cut(folder, *synced, removed_come_back=rng.random() < 0.5)

        return command, _attacked(place, rng, command, folder, cut_off, most, power=list(map(str, synced)))


def attack_disk(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """The same on an ext4 file system on a loop device, which ends without writing its journal."""
    command = rng.choice(COMMANDS)
    with _trial(place, command) as folder:
        disk = CutDisk(folder.parent / "image", folder.parent / "disk")
        try:
            return command, _attacked(place, rng, command, disk.place / command, disk.cut, most)
        finally:
            disk.close()


def _attacked(
    place: Place,
    rng: random.Random,
    command: str,
    folder: Path,
    after: Callable[[], None],
    most: int,
    **request: object,
) -> Counter[str]:
    """Kill a command a few times, each followed by `after`; then let it end, and compare."""
    found: Counter[str] = Counter()
    words, seconds = place.words(command, folder), place.done(command).seconds
    place.paid_twice()
    ways = ("main", "group", "worker") if command in ("experiment", SCORE_BY_TWO) else ("main",)
    for number in range(rng.randrange(1, min(MOST, most) + 1)):
        moment = rng.random() * seconds / (3 if number else 1)  # what is left takes less
        code = _killed(place, words, moment, rng.choice(ways), request)
        found["tracebacks"] += "Traceback" in place.forks.stderr
        if code not in (-signal.SIGKILL, 1):  # it came to its end before
            break
        found["tried"] += 1
        after()
    code = place.forks.run(words, group=True, **request)
    found["tracebacks"] += "Traceback" in place.forks.stderr
    different = place.differences(command, folder) if code == 0 else ["exit code"]
    again = place.paid_twice()
    if again > CONCURRENCY * found["tried"]:
        different.append(f"{again} replies were paid twice")
    found["lost" if different else "survived"] += found["tried"]
    if different or found["tracebacks"]:
        print(f"{command}: exit {code}: {different}: {place.forks.stderr[-600:]}", file=sys.stderr)
    return found


def _killed(place: Place, words: list[str], seconds: float, way: str, request: dict[str, object]) -> int:
    """The exit code of a command that was killed after so many seconds; its workers have gone, too."""
    pid = place.forks.start(words, group=True, **request)
    time.sleep(seconds)
    victims = _workers(pid) if way == "worker" else []
    with contextlib.suppress(ProcessLookupError):
        if way == "group":
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(victims[0] if victims else pid, signal.SIGKILL)
    code = place.forks.wait()
    deadline = time.monotonic() + _LINGER
    while _workers(pid):
        assert time.monotonic() < deadline, "workers outlive their program"
        time.sleep(0.02)
    return code


def _workers(group: int) -> list[int]:
    """Processes of a group, without the one that leads it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and int(entry.name) != group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def attack_space(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """A disk that is full at random places: one line each time, and with more room the command goes on to its end."""
    command, found = rng.choice(COMMANDS), Counter[str]()
    whole = place.done(command).folder
    need = sum(-(-path.stat().st_size // 4096) * 4 + 4 for path in whole.rglob("*"))
    with _trial(place, command) as folder:
        disk = SmallDisk(folder.parent / "disk", 4)
        try:
            words = place.words(command, disk.place / command)
            for room in sorted(rng.randrange(4, need) for _ in range(rng.randrange(1, min(3, most) + 1))):
                disk.grow(room)
                code = place.forks.run(words, group=True)
                found["tried"] += 1
                found[_outcome(code, place.forks.stderr)] += 1
            disk.grow(1 << 18)
            code = place.forks.run(words, group=True)
            different = place.differences(command, disk.place / command) if code == 0 else ["exit code"]
            if different or found["tracebacks"] or found["lost"]:
                found["lost"] += bool(different)
                print(f"{command}: exit {code}: {different}: {place.forks.stderr[-600:]}", file=sys.stderr)
        finally:
            disk.close()
    return command, found


def _outcome(code: int, said: str) -> str:
    if "Traceback" in said:
        return "tracebacks"
    return "survived" if code == 0 or "densepath: error: " in said else "lost"


@contextlib.contextmanager
def _trial(place: Place, command: str):  # type: ignore[no-untyped-def]
    """A folder for a command, named as that of the run that nobody attacked; gone after the block."""
    place.done(command)
    around = Path(tempfile.mkdtemp(dir=place.folder, prefix="trial"))
    try:
        yield around / command
    finally:
        shutil.rmtree(around, ignore_errors=True)
