"""`make attack`: what users, disks and networks do to densepath, at random, and whether anything is lost by it.

Each attack is seeded and bounded, and counts

    tried       times that it was done
    survived    the end was that of a run that nobody attacked, or an error of one line that names file or value
    lost        something that was finished is gone, or differs
    tracebacks  the program ended in one
    silent      a command went on with what was damaged, and said nothing

`python -m tests.attack.attack --scale 1` does all of it, for hours; a smaller scale does as much less of each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.attack.inputs import attack_rows, attack_words
from tests.attack.network import attack_http
from tests.pipeline.runs import ROOT, ForkServer, assert_same_run, run_argv, save_tiny_model
from tests.power import cut

COLUMNS = ("tried", "survived", "lost", "tracebacks", "silent")
DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes | None]] = {
    "half of it": lambda held, _: held[: len(held) // 2],
    "all of it": lambda held, _: b"",
    "zeros": lambda held, _: bytes(len(held)),
    "one bit": lambda held, rng: _flipped(held, rng),
    "removed": lambda held, _: None,
}
"""What a disk does to one file."""


def _flipped(held: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(held)) if held else 0
    return held[:at] + bytes([held[at] ^ 1 << rng.randrange(8)]) + held[at + 1 :] if held else b"\0"


class Place:
    """A folder with a tiny model, a process that forks commands, and a finished run and score job to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_tiny_model(folder / "model")
        self.before = save_tiny_model(folder / "before", seed=3)
        self.forks = ForkServer(folder)
        rows = [{"prompt": f"Say {i}:", "completion": f"{i}"} for i in range(40)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.run, self.score = folder / "whole", folder / "scored/s.jsonl"
        self.score.parent.mkdir()
        started = time.monotonic()
        for argv in (self.run_words(self.run), self.score_words(self.score)):
            assert self.forks.run(argv) == 0, self.forks.stderr
        self.seconds = time.monotonic() - started

    def run_words(self, folder: Path) -> list[str]:
        return run_argv(self.model, folder, sft_max_steps=6, dpr_max_steps=4, arms=["sft", "dpr"])

    def score_words(self, output: Path) -> list[str]:
        words = ["score", "--model_name_or_path", self.model, "--ref_model_name_or_path", self.before]
        return [
            *words,
            "--dataset_name",
            str(self.folder / "rows.jsonl"),
            "--window_size",
            "8",
            "--output_file",
            str(output),
        ]

    def same(self, kind: str, place: Path) -> bool:
        """Whether a run, or a score job, ended as the one that nobody attacked."""
        if kind == "score":
            return place.read_bytes() == self.score.read_bytes()
        try:
            assert_same_run(place, self.run)
        except (AssertionError, OSError, ValueError):
            return False
        return True


def attack_kills(place: Place, rng: random.Random, count: int, *, power: bool) -> Counter[str]:
    """SIGKILL at a random moment, with the power cut or without, a few times in a row; then to the end."""
    found: Counter[str] = Counter()
    name = "cut" if power else "killed"
    while found["tried"] < count:
        kind = rng.choice(("run", "run", "score"))
        folder = Path(tempfile.mkdtemp(dir=place.folder, prefix=name))
        target = folder / "run" if kind == "run" else folder / "out/s.jsonl"
        words = place.run_words(target) if kind == "run" else place.score_words(target)
        synced = [str(folder / part) for part in ("journal", "shadow")]
        request: dict[str, Any] = {"power": synced} if power else {}
        kills = min(rng.randrange(1, 5), count - found["tried"])
        for _ in range(kills):
            pid = place.forks.start(words, **request)
            time.sleep(rng.random() * place.seconds / (1 if kind == "run" else 4))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            place.forks.wait()
            root = target if kind == "run" else target.parent
            if power and root.exists():
                cut(root, *map(Path, synced), removed_come_back=rng.random() < 0.5)
        found["tried"] += kills
        code = place.forks.run(words)
        found["tracebacks"] += "Traceback" in place.forks.stderr
        whole = code == 0 and place.same(kind, target)
        found["survived" if whole else "lost"] += kills
        if whole:
            shutil.rmtree(folder)
        else:
            print(f"{name}: {folder}: exit {code}: {place.forks.stderr[-300:]}", file=sys.stderr)
    return found


def attack_files(place: Place, rng: random.Random, count: int) -> Counter[str]:
    """One file of a run that is half done, of a finished run or of a score job is damaged; then the same command."""
    found: Counter[str] = Counter()
    half = place.folder / "half"
    hook = {"target": "densepath.trainers.dpr:sample", "call": 3}
    if not half.exists():
        assert place.forks.run(place.run_words(half), hook=hook) == -9
    sources = {"finished": (place.run, "run"), "half done": (half, "run"), "score": (place.score.parent, "score")}
    files = {
        name: [path for path in sorted(source.rglob("*")) if path.is_file() and not _is_passing(path)]
        for name, (source, _) in sources.items()
    }
    for _ in range(count):
        name, damage = rng.choice(list(sources)), rng.choice(list(DAMAGES))
        source, kind = sources[name]
        victim = rng.choice(files[name]).relative_to(source)
        # the same place each time: where a model lies is part of what a run began with
        target = place.folder / "damaged"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        path = target / victim
        held = DAMAGES[damage](path.read_bytes(), rng)
        path.unlink() if held is None else path.write_bytes(held)
        end = target if kind == "run" else target / "s.jsonl"
        words = place.run_words(end) if kind == "run" else place.score_words(end)
        code = place.forks.run(words)
        said = place.forks.stderr
        found["tried"] += 1
        outcome = _outcome(code, said, code == 0 and place.same(kind, end))
        found[outcome] += 1
        if outcome != "survived":
            print(f"{name}: {victim}, {damage}: {outcome}, exit {code}: {said[-300:]}", file=sys.stderr)
    return found


def _outcome(code: int, said: str, same: bool) -> str:
    if "Traceback" in said:
        return "tracebacks"
    if code == 0:
        return "survived" if same else "silent"
    return "survived" if said.strip().splitlines()[-1:] and "densepath: error: " in said else "lost"


def _is_passing(path: Path) -> bool:
    """What is made again at each call, or kept for the eye alone."""
    return path.name in (".lock", "report.html", "report.json", "README.md", "environment.json", "training_args.bin")


def table(found: Mapping[str, Counter[str]]) -> str:
    """The counts, as Markdown."""
    lines = [f"| attack | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    lines += [
        f"| {name} | {' | '.join(f'{counts[column]:,}' for column in COLUMNS)} |" for name, counts in found.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Attack, print the table, and say whether all survived."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()

    def times(full: int) -> int:
        return max(1, round(full * given.scale))

    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        attacks: dict[str, Callable[[random.Random], Counter[str]]] = {
            "kills": lambda rng: attack_kills(place, rng, times(1000), power=False),
            "power cuts": lambda rng: attack_kills(place, rng, times(50), power=True),
            "damaged files": lambda rng: attack_files(place, rng, times(500)),
            "rows": lambda rng: attack_rows(rng, times(100_000)),
            "command lines": lambda rng: attack_words(rng, times(5000), place.model),
            "HTTP requests": lambda rng: attack_http(rng, times(20_000), times(1000)),
        }
        found = {}
        for name, attack in attacks.items():
            if not given.only or name in given.only:
                found[name] = attack(random.Random(f"{given.seed} {name}"))
                print(table({name: found[name]}).splitlines()[-1], file=sys.stderr, flush=True)
        place.forks.close()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(f"commit {commit.stdout.strip()}, seed {given.seed}, {os.cpu_count()} cores\n\n{table(found)}")
    return int(any(counts[name] for counts in found.values() for name in ("lost", "tracebacks", "silent")))


if __name__ == "__main__":
    sys.exit(main())
