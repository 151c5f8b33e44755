import json
from pathlib import Path

import pytest
from tests.report.made_results import comparison, record, row
from tests.report.scored_files import span, turn


def estimate(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


RESULTS = record(
    [
        row(
            arm,
            label,
            value=estimate(mean, 0.0625),
            reward=estimate(4.0, 0.5),
            length=estimate(13.5, 0.5),
            kl=estimate(0.25, 0.125),
            nll=estimate(0.75, 0.125),
            truncated=0.0,
            budget={"seconds": 390.0},
        )
        for arm, label, mean in (
            ("sft", "SFT", 0.375),
            ("continued_sft", "continued SFT", 0.4375),
            ("dpr", "DPR", 0.5625),
        )
    ],
    [comparison("dpr", "continued_sft", "better", estimate(0.125, 0.0625))],
    metric="exact_match",
    warnings=["One seed."],
)

SELECTION = {
    "mode": "auto",
    "criterion": "exact match on validation",
    "reason": "Highest score.",
    "chosen": {"reference": "0", "beta": 0.5},
    "baseline": {**estimate(0.375, 0.125), "n": 80},
    "rows": [
        {"reference": "0", "beta": 0.5, "alpha": 2.0, "score": estimate(0.5625, 0.125), "n": 80},
        {"reference": "0.5", "beta": 0.5, "alpha": 2.0, "score": estimate(0.25, 0.125), "n": 80},
    ],
}

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
