"""Command lines that nobody should type: a command that would do its work, and odd values of its arguments."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import threading
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.attack.place import REPORT, Place

from densepath.cli.commands import RECIPE_KEYS, ROWS
from densepath.trainers.bounds import BOUNDS

BATCH = 20
"""Command lines of a trial."""
_SECONDS, _MEMORY = 90.0, 3 << 30
"""That a command on a tiny model may take; bytes beside what is imported, lest a batch of 1e30 stops the machine."""
NUMBERS = ("-1", "0", "-5", "-0.5", "inf", "-inf", "nan", "1e30", "1e400", "", "none", "many", "true", "1,2", "[1, 2")
WORDS = (
    *("", "0", "-1", "1e400", "nan", "inf", "none", "true", "[1, 2", "{a: b}", "~", ".", "\x00", "\ud800", "é" * 500),
    *("text_tasks", "nowhere.jsonl", "/dev/null", "0.5,0.5", "999999999999999999999", "!!python/x", "&a *a", "-x"),
)
PLACES = ("", "\x00", "/proc/none/x.jsonl", "/dev/null/x.jsonl", "é" * 500, "~nobody/x", "a/b")
"""Of what is written; the command runs in a folder of its own."""
TRAINER_NUMBERS = (
    *("max_steps", "num_train_epochs", "learning_rate", "seed", "data_seed", "dataloader_num_workers", "adam_epsilon"),
    *("adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "warmup_steps", "logging_steps", "save_steps"),
    *("eval_steps", "save_total_limit", "per_device_train_batch_size", "per_device_eval_batch_size", "max_length"),
    *("gradient_accumulation_steps", "label_smoothing_factor", "neftune_noise_alpha", "dataloader_prefetch_factor"),
    *("beta", "gamma", "num_generations", "num_iterations", "epsilon", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "max_completion_length", "generation_batch_size", "steps_per_generation"),
)
TRAINER_WORDS = (
    *("lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "bf16", "fp16", "packing", "eval_strategy"),
    *("save_strategy", "logging_strategy", "gradient_checkpointing", "completion_only_loss", "loss_type", "run_name"),
)
"""Keys of TRL and transformers, for the commands that hand them on."""
UNKNOWN = ("debugg", "", "max-sample", "x", "-")
_COUNTS = ("worker", "thread", "proc", "concurrency", "prefetch")
"""In the names of what would start so many processes or threads: of these no large number is tried."""
_ELSEWHERE = ("hub", "push", "debug", "report_to", "base_url")
"""In the names of what asks other machines, or for the traceback."""
_WORK = ("sft", "dpr", "score", "generate", "eval", "audit", "rank", "reward-eval", "judge-eval")
"""What may come to its end; the others are given no rows that they could begin with."""
_COMMANDS = (*(2 * _WORK), "run", "purify", "diagnose", "judge", "experiment", "plan", REPORT)


@dataclass(frozen=True)
class Flag:
    """An argument: its name, whether it is a number, whether it says where something is written."""

    name: str
    is_number: bool
    is_place: bool


def flags(command: str) -> list[Flag]:
    """What a command takes: the fields of its dataclass, and keys of the trainers that it hands on."""
    if command == REPORT:
        return []
    kind, prefixes = _taken(command)
    hints = typing.get_type_hints(kind)
    own = [Flag(f.name, _is_number(hints[f.name]), _is_place(f.name)) for f in fields(kind)]
    of_trainers = [
        Flag(f"{prefix}{name}", name in TRAINER_NUMBERS, False)
        for prefix in prefixes
        for name in (*TRAINER_NUMBERS, *TRAINER_WORDS)
    ]
    found = {flag.name: flag for flag in (*of_trainers, *own)}
    return [flag for name, flag in found.items() if not any(part in name for part in _ELSEWHERE)]


def _taken(command: str) -> tuple[Any, Mapping[str, str]]:
    others = {"experiment": "experiment:ExperimentArguments", "plan": "run:PlanArguments"}
    place = ROWS[command].arguments if command in ROWS else others[command]
    module, _, name = place.partition(":")
    kind = getattr(import_module(f"densepath.config.{module}"), name)
    return kind, ROWS[command].passthrough if command in ROWS else RECIPE_KEYS


def _is_number(hint: Any) -> bool:
    return bool({hint, *typing.get_args(hint)} & {int, float})


def _is_place(name: str) -> bool:
    return name.endswith(("_file", "output_dir"))


def odd_words(rng: random.Random, command: str) -> tuple[list[str], dict[str, str]]:
    """Arguments for the end of a command line, where they win; and what the last of each name says."""
    words, given, known = [], {}, flags(command)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not known or rng.random() < 0.05:
            words += [f"--{rng.choice(UNKNOWN)}", *rng.choices(WORDS, k=rng.randrange(3))]
            continue
        flag = rng.choice(known)
        value = rng.choice(PLACES if flag.is_place else NUMBERS if flag.is_number and rng.random() < 0.9 else WORDS)
        if any(part in flag.name for part in _COUNTS) and value[:1] in "19":
            value = "-1"
        words += [f"--{flag.name}={value}"]
        given[flag.name] = value if flag.is_number else ""
    return words, given


def attack_words(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """Command lines that would do their work but for an argument: exit code 0, or 1 or 2 and one line."""
    found: Counter[str] = Counter()
    command = rng.choice(_COMMANDS)
    for _ in range(min(most, BATCH)):
        around = Path(tempfile.mkdtemp(dir=place.folder, prefix="words"))
        folder = around / command
        odd, given = odd_words(rng, command)
        argv = [*_whole(place, rng, command, folder), *odd]
        code = _run_for(place, argv, cwd=str(around), memory=_MEMORY)
        outcome = outcome_of(code, place.forks.stderr)
        if code == 0 and any(map(means_nothing, given, given.values())):
            outcome = "silent"
        found.update(("tried", outcome))
        if outcome != "survived":
            said = place.forks.stderr[-300:]
            print(f"{outcome}: exit {code}: {command} ... {odd!r:.300}: {said}", file=sys.stderr)
        shutil.rmtree(around, ignore_errors=True)
    return command, found


def _whole(place: Place, rng: random.Random, command: str, folder: Path) -> list[str]:
    """The command as it should be, or cut off; only what takes a moment is given rows."""
    if command == "plan":
        return ["plan", "--model_name_or_path", place.model]
    words = place.words(command, folder)
    if rng.random() < 0.05 and command != REPORT:
        words = words[: rng.randrange(1, len(words))]
    if command not in (*_WORK, REPORT, "judge", "experiment"):
        words += ["--dataset_name", "nowhere.jsonl"]
    return [*words, *{"judge": ["--benchmark", "nowhere.jsonl"], "experiment": ["--settings", "{}"]}.get(command, [])]


def _run_for(place: Place, argv: list[str], **request: Any) -> int:
    """The exit code; -9 after so many seconds."""
    pid = place.forks.start(argv, group=True, **request)
    timer = threading.Timer(_SECONDS, place.forks.kill, (pid,))
    timer.start()
    try:
        return place.forks.wait()
    finally:
        timer.cancel()


def means_nothing(name: str, value: str) -> bool:
    """Whether no command can take a number at its word: what is not finite, and seeds, rates and counts below 0.

    Of a few infinity says that nothing is cut.
    """
    below = ("seed", "num_workers", "learning_rate", "adam_epsilon", "batch_size", "warmup_steps", "decay")
    uncut = BOUNDS.get(name.removeprefix("sft_").removeprefix("dpr_"))
    endless = value.lstrip("-") in ("inf", "nan", "1e400") and not (uncut and uncut.holds(float(value)))
    return endless or (value.startswith("-") and any(part in name for part in below))


def outcome_of(code: int, said: str) -> str:
    """What a command line came to: `survived`, `tracebacks`, or `lost` where no single line says what was wrong."""
    if "Traceback" in said:
        return "tracebacks"
    if code == 0:
        return "survived"
    lines = [line for line in said.splitlines() if line.strip() and not _is_beside(line)]
    return "survived" if code in (1, 2) and len(lines) == 1 and lines[0].startswith("densepath: error: ") else "lost"


def _is_beside(line: str) -> bool:
    """Whether it is a warning, or a library's bar."""
    return line.startswith("densepath: warning: ") or "%|" in line
