"""Scored rows as `densepath score` writes them, made by hand."""

import json
from pathlib import Path

EOS = "<|im_end|>"


def span(text, *rewards, first_id=10):
    """Tokens that decode to this text together."""
    return {"text": text, "token_ids": list(range(first_id, first_id + len(rewards))), "rewards": list(rewards)}


def turn(*spans):
    """The completion of these spans; one whose text is that of EOS ends it."""
    found = {"text": "", "token_ids": [], "tokens": [], "offsets": [], "rewards": []}
    for item in spans:
        start, count = len(found["text"]), len(item["rewards"])
        found["text"] += "" if item["text"] == EOS else item["text"]
        found["tokens"] += [item["text"]] * count
        found["offsets"] += [[start, len(found["text"])]] * count
        found["token_ids"] += item["token_ids"]
        found["rewards"] += item["rewards"]
    total = sum(found["rewards"])
    return {**found, "sum": total, "mean": total / len(found["rewards"])}


def row(identifier, *turns, **others):
    total = sum(item["sum"] for item in turns)
    count = sum(len(item["rewards"]) for item in turns)
    return {"id": identifier, "reward": total, "reward_per_token": total / count, "turns": list(turns), **others}


# It costs 45 dollars; in the second row the 5 is altered.
RIGHT = [span("It", 0.25), span(" costs", 0.5), span(" 4", 0.0), span("5", 0.25), span(" dollars", 0.5)]
WRONG = [span("It", 0.25), span(" costs", 0.25), span(" 4", 0.0), span("7", -4.0), span(" dollars", 0.25)]
END = span(EOS, 0.5, first_id=2)

ROWS = [
    row("right", turn(*RIGHT, END), prompt="What does it cost?"),
    row("wrong", turn(*WRONG, END), prompt="What does it cost?", category="altered"),
    row(None, turn(span("Ja", -0.25), span("é", 0.5, -1.0), END), turn(span("Zwei\n", -2.0), END)),
]


def write_jsonl(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows=ROWS, **options) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for item in rows for name in item)
    pq.write_table(pa.Table.from_pylist([{n: item.get(n) for n in names} for item in rows]), path, **options)
    return path
