"""The tutorial's commands, one after the other, as they stand there.

The rows are made here, or those of a file that DENSEPATH_TUTORIAL_ROWS names: JSONL, 200 rows or more.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from tests.pipeline.runs import save_tiny_model

from densepath import generate_tasks
from densepath.cli.main import main
from densepath.io import read_json, read_jsonl

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
ROWS = 200


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").strip().splitlines()]


def made_rows() -> list[dict[str, str]]:
    """Alpaca's columns, some of them twice, and some answers cut off."""
    tasks = generate_tasks(ROWS, seed=3)
    names = {"instruction": "prompt", "output": "completion"}
    rows = [{"input": ""} | {name: row[turns][-1]["content"] + "." for name, turns in names.items()} for row in tasks]
    rng = random.Random(0)
    for place in rng.sample(range(101, ROWS), 8):
        rows[place] = rows[place - 1]
    rows[150]["output"] = rows[150]["output"].rstrip(".")
    return rows


@pytest.mark.slow
def test_the_tutorial_runs_from_raw_rows_to_a_judged_answer(tmp_path, monkeypatch):
    given = os.environ.get("DENSEPATH_TUTORIAL_ROWS")
    rows = (
        made_rows() if given is None else [row for _, row in zip(range(ROWS), read_jsonl(Path(given)), strict=False)]
    )
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for seed, name in enumerate(("my-model", "my-judge")):
        save_tiny_model(tmp_path / name, seed=seed, max_position_embeddings=4096)
    for line in commands():
        if line.startswith("densepath "):
            assert main(line.split()[1:]) == 0, line
        else:
            subprocess.run(line, shell=True, check=True)
    clean, dropped, train = (read_jsonl(Path(f"{name}.jsonl")) for name in ("clean", "dropped", "train"))
    assert len(clean) + len(dropped) == len(train) == len(rows) - 100
    assert all(row["audit_reason"] for row in dropped)
    assert all(row in rows for row in clean)
    answers = read_jsonl(Path("answers.jsonl"))
    assert len(answers) == len(read_jsonl(Path("test.jsonl"))) == 60
    report = read_json(Path("judged/report.json"))
    assert report["judged"]["win_rates"][0]["rate"]["n"] == 12
    for page in ("audit", "diagnosis", "purified/purification", "judged/report", "view"):
        html = Path(f"{page}.html").read_text(encoding="utf-8")
        assert "What next: " in html, page
        assert "<code>densepath " in html, page
