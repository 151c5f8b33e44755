import itertools
import json
from pathlib import Path

import pytest
from tests.experiments.made_up import METHODS, cell
from tests.report.scored_files import span, turn

from densepath.pipeline.results import assemble
from densepath.records.codec import to_json


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 80, "unit": "prompts"}


def results(right, *, prompts=240, decodings=("greedy",), **fields):
    """The record of a run in which so many of the prompts were answered rightly, the same ones first."""
    values = {arm: [1.0] * count + [0.0] * (prompts - count) for arm, count in right.items()}
    places = list(itertools.product(right, decodings, ("validation", "test")))
    cells = [
        cell(arm, 0, values[arm], decoding=decoding, split=split, setting="tasks", **fields)
        for arm, decoding, split in places
    ]
    arms = [method for method in METHODS if method.name in right]
    return json.loads(json.dumps(to_json(assemble(cells, arms, ["tasks"], metric="exact_match", info={"seeds": [0]}))))


RESULTS = results({"sft": 90, "continued_sft": 105, "dpr": 135}, nll=(0.75, 0.5), kl=0.25, reward=4.0)
for row in RESULTS["settings"][0]["rows"]:
    row["budget"]["tokens"] = 0.0 if row["method"] == "sft" else 960.0

SELECTION = {
    "mode": "auto",
    "criterion": "exact match on validation",
    "reason": "Highest score.",
    "chosen": {"reference": "0", "beta": 0.5, "capped": False},
    "baseline": interval(0.375, 0.125),
    "rows": [
        {"reference": "0", "beta": 0.5, "score": interval(0.5625, 0.125), "lead": interval(0.1875, 0.125)},
        {"reference": "0.5", "beta": 0.5, "score": interval(0.25, 0.125), "lead": interval(-0.125, 0.125)},
    ],
}
for row in SELECTION["rows"]:
    row |= {"decoding": "greedy", "verdict": "tie", "n": 80, "capped": False}

SPANS = [
    span("KATZE", 0.5, 0.25, first_id=11),
    span("\n", -1.5, first_id=13),
    span("<|im_end|>", 0.0, first_id=2),
]

SAMPLES = [
    {
        "id": f"test-{index}",
        "prompt": "Capitals: katze",
        "answer": "KATZE",
        "category": "capitals",
        "completions": {
            "sft": {**turn(*SPANS[1:]), "metric": 0.0, "truncated": False},
            "dpr": {**turn(*SPANS), "metric": 1.0, "truncated": True},
        },
    }
    for index in range(2)
]

METRICS = {
    "sft": [{"step": step, "time": 1.7e9 + step, "loss": 2.0 / step} for step in (1, 2, 3)],
    "dpr": [
        {"step": 1, "time": 1.7e9 + 100, "reward": 4.0, "kl_sequence": 0.0, "loss": 0.5, "entropy": None},
        {"step": 2, "time": 1.7e9 + 101, "reward": 5.0, "kl_sequence": 0.25, "loss": float("nan")},
        {"step": 2, "time": 1.7e9 + 102, "reward": 5.5, "kl_sequence": 0.25},
    ],
}


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = value if isinstance(value, list) else [value]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "a-run"
    write(folder / "environment.json", {"date": "2026-01-02T03:04:05+00:00", "versions": {"densepath": "0.1.0"}})
    write(folder / "data.json", {"test": {"source": "test.jsonl", "rows": 240, "sha256": "ab" * 32}})
    (folder / "config.yaml").write_text("model: tiny/model\nsft.learning_rate: 5.0e-05\nhub_token: hunter2\n")
    write(folder / "selection.json", SELECTION)
    write(folder / "results.json", RESULTS)
    write(folder / "samples.jsonl", SAMPLES)
    for stage, rows in METRICS.items():
        write(folder / stage / "metrics.jsonl", rows)
    return folder
