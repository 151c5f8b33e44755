"""Compare the length-controlled win rate with alpaca-eval's own, on made-up judgements or on published ones.

    python benchmarks/length_controlled.py cases --output_dir DIR [--judgements FILE]
    ALPACA_EVAL_CASES=DIR /another/venv/bin/python benchmarks/length_controlled.py theirs   # alpaca-eval==0.6.6
    python benchmarks/length_controlled.py compare --output_dir DIR [--judgements FILE]

The second line runs in an environment of its own, since alpaca-eval wants other versions; its download from the hub
is replaced by the made-up `df_gamed.csv` of the first. The third prints, for each model, both figures and their
difference, and, of published judgements, the win rate, its standard error and the discrete win rate beside the
published ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np


def gamed_rows(prompts: int, rng: np.random.Generator) -> list[dict[str, object]]:
    """Rows as df_gamed.csv has them: a concise and a verbose answer of the baseline to each prompt."""
    difficulty = rng.normal(0, 1.5, prompts)
    rows = []
    for name, shift in (("concise", 1.0), ("verbose", -1.0)):
        for index in range(prompts):
            z = float(rng.normal(shift, 0.8))
            logit = -1.5 * np.tanh(z) + 0.3 * rng.normal()
            preference = float(np.clip(1 / (1 + np.exp(-logit)) + 0.1 * rng.normal(), 0, 1))
            rows.append(
                {
                    "model": f"baseline_{name}",
                    "preference": preference,
                    "index": index,
                    "std_delta_len": z,
                    "instruction_difficulty": float(difficulty[index]),
                    "not_gamed_baseline": False,
                }
            )
    return rows


def made_up_models(prompts: int, difficulty: np.ndarray, rng: np.random.Generator) -> list[dict[str, object]]:
    """Models of several strengths, lengths and shares of missing judgements."""
    found = []
    for name, bias, spread, hard in (("weak", -2.0, 500, 0.8), ("even", 0.1, 900, 0.2), ("strong", 1.5, 300, 0.5)):
        baseline = rng.integers(200, 3000, prompts)
        model = np.maximum(1, baseline + rng.normal(0, spread, prompts)).astype(int)
        z = (baseline - model) / (baseline - model).std(ddof=1)
        logit = bias + hard * difficulty - 1.2 * np.tanh(z) + rng.normal(0, 1, prompts)
        preference = 1 + 1 / (1 + np.exp(-3 * logit))
        stored: list[float | None] = [float(value) for value in preference]
        for at in rng.integers(prompts, size=5):
            stored[at] = 0.0  # a draw, as AlpacaEval once wrote it
        if name == "even":
            for at in rng.integers(prompts, size=7):
                stored[at] = None
        found.append(
            {
                "model": name,
                "index": list(range(prompts)),
                "preference": stored,
                "length_1": baseline.tolist(),
                "length_2": model.tolist(),
            }
        )
    return found


def read_judgements(path: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def write_cases(folder: Path, judgements: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    gamed = gamed_rows(805, rng)
    with (folder / "df_gamed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, gamed[0])
        writer.writeheader()
        writer.writerows(gamed)
    difficulty = np.array([row["instruction_difficulty"] for row in gamed[:805]])
    models = made_up_models(805, difficulty, rng) + (read_judgements(judgements) if judgements else [])
    (folder / "models.json").write_text(json.dumps(models))


def run_theirs(folder: Path) -> None:
    """Their figures, by their package."""
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    glm_winrate.hf_hub_download = lambda **kwargs: str(folder / "df_gamed.csv")
    found = {}
    for model in json.loads((folder / "models.json").read_text()):
        frame = pd.DataFrame(
            {
                "preference": model["preference"],
                "index": model["index"],
                "output_1": ["x" * length for length in model["length_1"]],
                "output_2": ["x" * length for length in model["length_2"]],
                "generator_1": model.get("baseline", "baseline"),
                "generator_2": model["model"],
                "annotator": "judge",
            }
        )
        found[model["model"]] = {
            name: {key: float(value) for key, value in figures.items()}
            for name in ("length_controlled_v1", "length_controlled_minimal")
            for figures in [glm_winrate.get_length_controlled_winrate(frame, glm_name=name, save_weights_dir=None)]
        }
    (folder / "theirs.json").write_text(json.dumps(found, indent=1))


def our_figures(model: dict[str, object], gamed: object, difficulty: dict[int, float]) -> dict[str, object]:
    from densepath.stats.length_controlled import length_controlled
    from densepath.stats.win_rate import alpaca_eval

    stored = [np.nan if value is None else (0.5 if value == 0 else value - 1) for value in model["preference"]]
    preferences = np.array(stored)
    deltas = np.array(model["length_1"], dtype=float) - np.array(model["length_2"], dtype=float)
    own = np.array([difficulty[index] for index in model["index"]])
    return {
        "figures": alpaca_eval(str(model["model"]), preferences),
        "length_controlled_v1": length_controlled(preferences, deltas, own, gamed),
        "length_controlled_minimal": length_controlled(preferences, deltas),
    }


def compare(folder: Path, judgements: str | None) -> int:
    from densepath.data.gamed import read_gamed

    gamed, difficulty = read_gamed(str(folder / "df_gamed.csv"))
    theirs = json.loads((folder / "theirs.json").read_text())
    worst = 0.0
    for model in json.loads((folder / "models.json").read_text()):
        name = model["model"]
        ours = our_figures(model, gamed, difficulty)
        for fit in ("length_controlled_v1", "length_controlled_minimal"):
            mine, other = ours[fit], theirs[name][fit]
            gap = abs(100 * mine.rate.mean - other["length_controlled_winrate"])
            gap = max(gap, abs(100 * mine.published_error - other["lc_standard_error"]))
            worst = max(worst, gap)
            interval = f"[{100 * mine.rate.low:.2f}, {100 * mine.rate.high:.2f}]"
            print(f"{name:38} {fit:26} {100 * mine.rate.mean:9.4f} {interval:18} off by {gap:.1e}")
        figures, other = ours["figures"], theirs[name]["length_controlled_v1"]
        published = model.get("leaderboard", other)
        gaps = [
            abs(100 * figures.win_rate - published["win_rate"]),
            abs(100 * figures.standard_error - published["standard_error"]),
            abs(100 * figures.discrete_win_rate - published["discrete_win_rate"]),
        ]
        worst = max(worst, *gaps)
        print(f"{name:38} win rate, its error, discrete: off by {', '.join(f'{gap:.1e}' for gap in gaps)}")
    print(f"largest difference, in points: {worst:.1e}")
    return int(worst > 1e-6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("cases", "theirs", "compare"))
    parser.add_argument("--output_dir", default=os.environ.get("ALPACA_EVAL_CASES", ""))
    parser.add_argument("--judgements", default=os.environ.get("ALPACA_EVAL_JUDGEMENTS"))
    arguments = parser.parse_args()
    folder = Path(arguments.output_dir)
    if not arguments.output_dir:
        parser.error("--output_dir names the folder of the cases: give it, or ALPACA_EVAL_CASES")
    needed = {"cases": (), "theirs": ("models.json",), "compare": ("models.json", "theirs.json")}[arguments.what]
    files = [folder / name for name in needed] + [Path(name) for name in (arguments.judgements,) if name]
    if missing := [str(path) for path in files if not path.is_file()]:
        parser.error(f"{missing[0]} is not there: the steps are cases, theirs, compare")
    if arguments.what == "cases":
        write_cases(folder, arguments.judgements)
    elif arguments.what == "theirs":
        run_theirs(folder)
    else:
        return compare(folder, arguments.judgements)
    return 0


if __name__ == "__main__":
    sys.exit(main())
