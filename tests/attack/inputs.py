"""Rows that no data set should hold, and command lines that nobody should type."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from collections import Counter
from typing import Any

from tests.attack.place import Place
from tests.support import tiny_tokenizer

from densepath.cli.main import COMMANDS, main
from densepath.data.encode import encode_pairs
from densepath.data.formats import check_row
from densepath.errors import DensepathError

TEXTS = (
    "",
    " ",
    "a",
    "7 + 5 =",
    "\ud83d",
    "\U0001f600",
    "\x00",
    "\n\n",
    "a" * 3000,
    "<s></s>",
    "{{ messages }}",
    "\u202e",
)
SCALARS: tuple[Any, ...] = (None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), b"\xff", *TEXTS)
ROLES: tuple[Any, ...] = ("user", "assistant", "system", "tool", "robot", None, 3, [])
BATCH = 1000
"""Rows of a trial."""
COLUMNS = ("prompt", "completion", "messages", "text", "tools", "chat_template_kwargs", "chosen", "answer", "id")
WORDS = (
    *("--seed", "--output_dir", "--dataset_name", "--model_name_or_path", "--sft_max_steps", "--beta", "--config"),
    *(
        "--dpr_learning_rate",
        "--eval_temperatures",
        "--reference",
        "--verifier",
        "--num_generations",
        "--debugg",
        "--",
    ),
    *("--max_train_samples", "--window_size", "--output_file", "--port", "--host", "--arms", "--save_steps", "-x"),
)
VALUES = (
    *(
        "",
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "none",
        "true",
        "[1, 2",
        "{a: b}",
        "~",
        "/",
        ".",
        "\x00",
        "\ud800",
        "é" * 500,
    ),
    *(
        "text_tasks",
        "nowhere.jsonl",
        "/dev/null",
        "/proc/self/mem",
        "0.5,0.5",
        "999999999999999999999",
        "!!python/x",
        "&a *a",
    ),
)


def attack_rows(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """Rows through the checks and the tokenizer: accepted, or refused in one line."""
    found: Counter[str] = Counter()
    tokenizer = tiny_tokenizer()
    for _ in range(min(most, BATCH)):
        row = {name: _value(rng) for name in rng.sample(COLUMNS, rng.randrange(1, 5))}
        found["tried"] += 1
        try:
            check_row(row, rng.choice(("demonstrations", "prompts")))
            encode_pairs(row, tokenizer)
            found["survived"] += 1
        except DensepathError:
            found["survived"] += 1
        except Exception as error:
            found["tracebacks"] += 1
            print(f"row {row!r:.300}: {type(error).__name__}: {error!s:.200}", file=sys.stderr)
    return "rows", found


def _value(rng: random.Random) -> Any:
    if rng.random() < 0.4:
        return rng.choice(SCALARS)
    if rng.random() < 0.5:
        return rng.choice(TEXTS)
    return [_turn(rng) for _ in range(rng.randrange(4))]


def _turn(rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return rng.choice(SCALARS)
    turn: dict[Any, Any] = {"role": rng.choice(ROLES), "content": rng.choice(SCALARS)}
    if rng.random() < 0.2:
        turn["content"] = [{"type": "text", "text": rng.choice(SCALARS)}]
    if rng.random() < 0.2:
        turn["tool_calls"] = rng.choice((None, [], [{}], [{"function": {"name": "f", "arguments": "{"}}], "x", [3]))
    return turn


def attack_words(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """Command lines that end before any work: exit code 1 or 2 and one line, or help."""
    found: Counter[str] = Counter()
    commands = [name for name in COMMANDS if name not in ("serve", "view", "env", "theory")]
    for _ in range(min(most, BATCH // 20)):
        argv = [rng.choice(commands)] if rng.random() < 0.95 else [rng.choice(VALUES)]
        for _ in range(rng.randrange(1, 5)):
            argv += [rng.choice(WORDS), *rng.choices(VALUES, k=rng.randrange(3))]
        argv += [
            "--dataset_name",
            "nowhere.jsonl",
            "--output_dir",
            "/proc/none",
            "--output_file",
            "/proc/none/x.jsonl",
        ]
        said = io.StringIO()
        found["tried"] += 1
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                main(argv)
            found["survived"] += 1
        except SystemExit:
            found["survived"] += 1
        except Exception as error:
            found["tracebacks"] += 1
            print(f"{argv!r:.300}: {type(error).__name__}: {error!s:.200}", file=sys.stderr)
    return "command lines", found
