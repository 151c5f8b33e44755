"""Rows that no data set should hold."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.attack.place import Place
from tests.attack.words import outcome_of
from tests.support import tiny_tokenizer

from densepath.data.encode import encode_pairs
from densepath.data.formats import check_row
from densepath.data.sources import load_rows
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
FILED = 20
"""Of these, in a file among the rows that a scoring job is to grade: some of it, and the good ones as without them."""
COLUMNS = ("prompt", "completion", "messages", "text", "tools", "chat_template_kwargs", "chosen", "answer", "id")


def attack_rows(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """Rows through the checks and the tokenizer, some through a loader and a scorer: taken, or refused in a line."""
    found: Counter[str] = Counter()
    tokenizer = tiny_tokenizer()
    filed = min(most, FILED)
    for _ in range(min(most, BATCH) - filed):
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
    found.update(_filed(place, rng, filed))
    return "rows", found


def _filed(place: Place, rng: random.Random, count: int) -> Counter[str]:
    """A file of good and odd rows: the loader has all or says why not, the scorer grades the good ones as ever."""
    good = [json.loads(line) for line in Path(place.rows).read_text().splitlines()]
    odd = [{"prompt": _value(rng), "completion": _value(rng)} for _ in range(count)]
    rows = rng.sample([*good, *odd], k=len(good) + len(odd))
    around = Path(tempfile.mkdtemp(dir=place.folder, prefix="rows"))
    try:
        (around / "rows.jsonl").write_text("".join(json.dumps(row, default=repr) + "\n" for row in rows))
        found = Counter({"tried": count, "survived": count})
        for outcome in (_loaded(around / "rows.jsonl", len(rows)), _scored(place, around, len(rows))):
            if outcome != "survived":
                found.update({outcome: 1, "survived": -found["survived"]})
        return found
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _loaded(file: Path, rows: int) -> str:
    try:
        return "survived" if len(load_rows(str(file), "train", None, limit=None, seed=None)) == rows else "silent"
    except DensepathError:
        return "survived"
    except Exception as error:
        print(f"loader: {type(error).__name__}: {error!s:.300}", file=sys.stderr)
        return "tracebacks"


def _scored(place: Place, around: Path, rows: int) -> str:
    """What became of the file in a scoring job; `silent` where rows are gone, or a good one has another reward."""
    place.done("score")
    words, folder = place.words("score", around / "score"), around / "score"
    code = place.forks.run([*words, "--dataset_name", str(around / "rows.jsonl")], group=True)
    outcome = outcome_of(code, place.forks.stderr)
    if code == 0:
        graded = _lines(folder / "s.jsonl")
        kept = len(graded) + len(_lines(folder / "s.rejected.jsonl")) == rows
        outcome = "survived" if kept and _same(graded, _lines(place.done("score").folder / "s.jsonl")) else "silent"
    if outcome != "survived":
        print(f"scorer: {outcome}, exit {code}: {place.forks.stderr[-300:]}", file=sys.stderr)
    return outcome


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _same(graded: Sequence[Mapping[str, Any]], good: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each good row has the reward that it has among others, up to what packing does to the last bits."""
    found = {json.dumps(row["prompt"]): row["reward"] for row in graded}
    return all(abs(found.get(json.dumps(row["prompt"]), 1e9) - row["reward"]) < 1e-5 for row in good)


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
