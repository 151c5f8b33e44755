"""One file of what a command left, or had left when it was killed, is damaged; then the same command again."""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.attack.place import Place
from tests.pipeline.folders import PASSING

STATES: Mapping[str, tuple[str, Mapping[str, object] | None]] = {
    "run, finished": ("run", None),
    "run, in SFT": ("run", {"target": "transformers.trainer:Trainer.training_step", "call": 4}),
    "run, in its choice": ("run", {"target": "densepath.choice.measure:generate_each", "call": 2}),
    "run, in DPR": ("run", {"target": "densepath.trainers.dpr:sample", "call": 3}),
    "run, in an evaluation": ("run", {"target": "densepath.pipeline.evaluation:generate_each", "call": 2}),
    "sft, finished": ("sft", None),
    "dpr, half done": ("dpr", {"target": "densepath.trainers.dpr:sample", "call": 4}),
    "purify, finished": ("purify", None),
    "purify, half done": ("purify", {"target": "transformers.trainer:Trainer.training_step", "call": 5}),
    "experiment, finished": ("experiment", None),
    "score, finished": ("score", None),
    "score, half done": ("score", {"target": "densepath.rewards.dense:DenseReward.score_ids", "call": 5}),
    "generate, half done": ("generate", {"target": "densepath.scoring.parts:Parts.read_rows"}),
    "judge, finished": ("judge", None),
    "judge, half done": ("judge", {"target": "densepath.judging.cache:ReplyCache.put", "call": 20}),
}
"""What is damaged: a command's name, and where it was killed before."""
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


def attack_files(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """A file is damaged, and the command comes to the same bits, or names it in one line; (state, counts)."""
    state, damage = rng.choice(list(STATES)), rng.choice(list(DAMAGES))
    command = STATES[state][0]
    source = left(place, state)
    victims = [path for path in sorted(source.rglob("*")) if path.is_file() and path.name not in PASSING]
    victim = rng.choice(victims).relative_to(source)
    # the same place each time: where a model lies is part of what a run began with
    target = source.parents[1] / "now" / command
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    held = DAMAGES[damage]((target / victim).read_bytes(), rng)
    (target / victim).unlink() if held is None else (target / victim).write_bytes(held)
    code = place.forks.run(place.words(command, target), group=True)
    said = place.forks.stderr
    different = place.differences(command, target) if code == 0 else []
    if different == [victim.as_posix()] and ("judge_cache" in victim.parts or victim.suffix == ".sealed"):
        different = []  # its game is judged, or its part sealed by the stage: nothing reads it again
    if different == [victim.as_posix()] and f"{victim} is damaged" in said:
        different = []  # nothing is computed from it, and it is said
    outcome = outcome_of_damage(code, said, different, victim)
    if outcome != "survived":
        print(f"{state}: {victim}, {damage}: {outcome}, exit {code}: {different}: {said[-400:]}", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    return state.partition(",")[0], Counter({"tried": 1, outcome: 1})


def left(place: Place, state: str) -> Path:
    """What a command left that was killed at that place, or ended; made once."""
    command, hook = STATES[state]
    around = place.folder / "harmed" / state.replace(", ", "-").replace(" ", "_")
    kept = around / "kept" / command
    if not kept.exists():
        place.done(command)
        now = around / "now" / command
        code = place.forks.run(place.words(command, now), group=True, **({} if hook is None else {"hook": hook}))
        assert code == (0 if hook is None else -9), (state, code, place.forks.stderr)
        shutil.copytree(now, kept)
    return kept


def outcome_of_damage(code: int, said: str, different: list[str], victim: Path) -> str:
    """What a command came to whose file was damaged; an error has to name the file, or say that one is damaged."""
    if "Traceback" in said:
        return "tracebacks"
    if code == 0:
        return "silent" if different else "survived"
    with contextlib.suppress(IndexError):
        last = said.strip().splitlines()[-1]
        return "survived" if "densepath: error: " in last and _names(last, victim) else "lost"
    return "lost"


def _names(line: str, victim: Path) -> bool:
    """Whether it says that a file is damaged, or which was: no word of the folder where all of this lies counts."""
    return any(word in line for word in (" is damaged", "not what", victim.as_posix()))
