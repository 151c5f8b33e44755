"""`make attack`: what users, disks and networks do to densepath, at random, and whether anything is lost by it.

Each attack is seeded and bounded, and counts

    tried       times that it was done
    survived    the end was that of a run that nobody attacked, or an error of one line that names file or value
    lost        something that was finished is gone, or differs
    tracebacks  the program ended in one
    silent      a command went on with what was damaged, and said nothing

`python -m tests.attack.attack` does all of it, for about two hours of a processor; `--scale 0.01` a hundredth of each.
With `--record FILE` the counts are kept, and the same command goes on where it stopped; `--minutes` bounds each.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.damage import attack_files
from tests.attack.disks import may_mount
from tests.attack.inputs import attack_rows
from tests.attack.kills import attack_disk, attack_kills, attack_power, attack_space
from tests.attack.network import attack_clients, attack_http, attack_soak
from tests.attack.place import Place
from tests.attack.words import attack_words
from tests.pipeline.runs import ROOT

from densepath.io import read_json, write_json_atomic

COLUMNS = ("tried", "survived", "lost", "tracebacks", "silent")
Trial = Callable[[Place, random.Random, int], tuple[str, Counter[str]]]


@dataclass(frozen=True)
class Attack:
    """One row of the table.

    Attributes:
        full: times that it is tried.
        trial: tries it a few times, as many at most as it is told; (command, counts).
        needs_root: whether it mounts file systems.
    """

    full: int
    trial: Trial
    needs_root: bool = False


ATTACKS: Mapping[str, Attack] = {
    "kills": Attack(1000, attack_kills),
    "power cuts, by the syncs": Attack(50, attack_power),
    "power cuts, of a disk": Attack(50, attack_disk, needs_root=True),
    "full disks": Attack(100, attack_space, needs_root=True),
    "damaged files": Attack(500, attack_files),
    "rows": Attack(100_000, attack_rows),
    "command lines": Attack(5000, attack_words),
    "HTTP requests": Attack(20_000, attack_http),
    "clients at once": Attack(1000, attack_clients),
    "soak, seconds": Attack(600, attack_soak),
}


@dataclass
class Record:
    """What was found until now: attack -> command -> counts, and the number of trials that the seed has given.

    Args:
        path: where it is kept; None for nowhere.
        seed: of all attacks.
    """

    path: Path | None
    seed: int
    found: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    trials: Counter[str] = field(default_factory=Counter)
    commits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            kept = read_json(self.path)
            assert kept["seed"] == self.seed, f"{self.path} is of seed {kept['seed']}"
            self.trials, self.commits = Counter(kept["trials"]), kept["commits"]
            self.found = {name: {c: Counter(n) for c, n in by.items()} for name, by in kept["found"].items()}
        if commit() not in self.commits:
            self.commits.append(commit())

    def total(self, attack: str) -> Counter[str]:
        """Counts of all commands."""
        return sum(self.found.get(attack, {}).values(), Counter())

    def add(self, attack: str, command: str, counts: Counter[str]) -> None:
        """A trial, kept."""
        self.found.setdefault(attack, {}).setdefault(command, Counter()).update(counts)
        self.trials[attack] += 1
        if self.path is not None:
            write_json_atomic(self.path, {name: value for name, value in vars(self).items() if name != "path"})


def commit() -> str:
    """The repository's, in short."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def table(found: Mapping[str, Counter[str]], first: str) -> str:
    """The counts, as Markdown."""
    lines = [f"| {first} | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    lines += [
        f"| {name} | {' | '.join(f'{counts[column]:,}' for column in COLUMNS)} |" for name, counts in found.items()
    ]
    return "\n".join(lines)


def run_attacks(record: Record, only: list[str], scale: float, minutes: float) -> None:
    """Try each attack as often as it says, or for so many minutes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = Place(folder)
        stack.callback(place.close)
        for name in only or ATTACKS:
            attack = ATTACKS[name]
            if attack.needs_root and not may_mount():
                continue
            full, until = max(1, round(attack.full * scale)), time.monotonic() + 60 * minutes
            while (most := full - record.total(name)["tried"]) > 0 and time.monotonic() < until:
                rng = random.Random(f"{record.seed} {name} {record.trials[name]}")
                record.add(name, *attack.trial(place, rng, most))
            print(table({name: record.total(name)}, "").splitlines()[-1], file=sys.stderr, flush=True)


def main() -> int:
    """Attack, print the tables, and say whether all survived."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], choices=list(ATTACKS))
    parser.add_argument("--record", type=Path)
    parser.add_argument("--minutes", type=float, default=1e9)
    given = parser.parse_args()
    record = Record(given.record, given.seed)
    run_attacks(record, given.only, given.scale, given.minutes)
    totals = {name: record.total(name) for name in ATTACKS if name in record.found}
    print(
        f"commit {', '.join(record.commits)}, seed {given.seed}, {os.cpu_count()} cores\n\n{table(totals, 'attack')}"
    )
    for name, by_command in record.found.items():
        if len(by_command) > 1:
            print(f"\n{table(by_command, name)}")
    return int(any(counts[name] for counts in totals.values() for name in ("lost", "tracebacks", "silent")))


if __name__ == "__main__":
    sys.exit(main())
