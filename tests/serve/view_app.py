"""A view of a small scored file, with tiny models to choose from; for tests over HTTP and in a browser."""

from __future__ import annotations

from pathlib import Path

from tests.pipeline.runs import save_tiny_model
from tests.report.scored_files import END, ROWS, row, span, turn, write_jsonl

from densepath.report.scored import ScoredFile
from densepath.serve.view_models import RewardChoices

FILLER = [row(f"filler-{n}", turn(span(f"w{n}", n / 8), END), prompt="Another?") for n in range(1, 43)]


def scored_file(folder: Path) -> ScoredFile:
    """45 rows: those of `ROWS`, then fillers whose rewards grow; three pages of twenty at most."""
    return ScoredFile(write_jsonl(folder / "scores.jsonl", [*ROWS, *FILLER]))


def model_choices(folder: Path) -> RewardChoices:
    """Two SFT models and two references, all with one tokenizer."""
    names = [save_tiny_model(folder / name, seed=seed) for seed, name in enumerate(("sft", "later", "ref", "base"))]
    return RewardChoices(names[:2], names[2:], first="baseline_relative", token_budget=256)
