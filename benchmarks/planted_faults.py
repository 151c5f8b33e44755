"""Does the reward find demonstrations that are known to be faulty, and does purification set them aside?

    python -m benchmarks.planted_faults --dataset_name gsm8k_train.jsonl --seeds 0 1 --output_dir runs/planted/gsm8k

A third of the answers is made faulty, in equal parts: the answer of another row, an answer that is cut off, and one
with a digit of a number altered (rows without a number get one of the other two). SFT sees them all. Then every row
is ranked by what `densepath audit` ranks by, by log pi_SFT for each token, by the reward over the square root of the
tokens, and by what purification sorts by (log-likelihood under the kept behaviour less that under the other one), and
AUROC, precision and recall are taken at two cuts: the half that purification keeps, and as many rows as are faulty.
No label is used before the figures. What a folder holds already is not made again.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.words import Parser, count, run_command
from densepath import DenseReward
from densepath.config.training import PurifyCommandArguments, SFTArguments
from densepath.data.encode import encode_pairs
from densepath.data.sources import load_rows
from densepath.errors import DataError
from densepath.evals.alter import alterations
from densepath.evals.altered_numbers import answer_of, with_answer
from densepath.evals.audit import audit_demonstrations
from densepath.evals.auroc import auroc
from densepath.io import read_json, read_jsonl, recalled, write_json_atomic, write_jsonl_atomic
from densepath.models.load import load_tokenizer
from densepath.pipeline.purify import run_purify_command
from densepath.pipeline.standalone import run_sft_command

FAULTS = ("other_answer", "cut_off", "altered_number")
MODEL = "smollm2-135m-instruct"
RANKED_BY = {
    "audit": "audit, lowest token",
    "audit_mean": "audit, mean",
    "sft_logprob": "log pi_SFT, each token",
    "reward_root": "reward over root of tokens",
    "purification": "purification",
}


def faulty(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows with `fault` beside them: None, or what was done to the answer of every third one."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(rows)), len(rows) // 3)
    kinds = {index: FAULTS[place % len(FAULTS)] for place, index in enumerate(chosen)}
    found = []
    for index, row in enumerate(rows):
        kind = kinds.get(index)
        answer = answer_of(row)
        altered = next(alterations(answer, rng), None) if kind == "altered_number" else None
        if kind == "altered_number" and altered is None:
            kind = rng.choice(FAULTS[:2])
        if kind == "cut_off" and len(answer.split()) < 4:
            kind = "other_answer"
        if kind == "other_answer":
            other = rng.randrange(len(rows) - 1)
            answer = answer_of(rows[other + (other >= index)])
        elif kind == "cut_off":
            words = answer.split(" ")
            answer = " ".join(words[: max(1, round(len(words) * rng.uniform(0.3, 0.7)))])
        elif altered is not None:
            answer = altered.text
        found.append({**with_answer(row, answer), "fault": kind, "number": index})
    return found


def short_rows(name: str, count: int, most: int, seed: int) -> list[dict[str, Any]]:
    """Rows of at most `most` tokens, drawn by the seed."""
    tokenizer = load_tokenizer(MODEL)
    rows = load_rows(name, "train", "demonstrations", limit=4 * count, seed=seed)
    pairs = [(row, encode_pairs(row, tokenizer)[-1]) for row in rows]
    return [dict(row) for row, pair in pairs if len(pair.prompt_ids) + len(pair.completion_ids) <= most][:count]


def trained(folder: Path, arguments: argparse.Namespace, seed: int, console: Console) -> list[dict[str, Any]]:
    """SFT and purification in that folder; the rows in the order in which both saw them."""
    if not (folder / "train.jsonl").exists():
        rows = faulty(short_rows(arguments.dataset_name, arguments.rows, arguments.max_length, seed), seed)
        if len(rows) <= arguments.held_out:
            raise DataError(
                f"{arguments.dataset_name} gives {len(rows)} rows of at most {arguments.max_length} tokens, and "
                f"--held_out takes {arguments.held_out}: give less, or raise --rows or --max_length"
            )
        write_jsonl_atomic(folder / "held_out.jsonl", rows[-arguments.held_out :])
        write_jsonl_atomic(folder / "train.jsonl", rows[: -arguments.held_out])
    common = {"max_length": arguments.max_length}
    keys = {"per_device_train_batch_size": 16, "seed": seed, "logging_steps": 4}
    if not (folder / "sft/model").exists():
        run_sft_command(
            SFTArguments(
                model_name_or_path=MODEL,
                dataset_name=str(folder / "train.jsonl"),
                output_dir=str(folder / "sft"),
                reference_fractions=[0.5],
                **common,
            ),
            {**keys, "max_steps": arguments.sft_steps, "learning_rate": 1e-4},
            console,
        )
    run_purify_command(
        PurifyCommandArguments(
            model_name_or_path=str(folder / "sft/model"),
            ref_model_name_or_path=MODEL,
            dataset_name=str(folder / "train.jsonl"),
            eval_dataset_name=str(folder / "held_out.jsonl"),
            output_dir=str(folder / "purified"),
            purify_behaviours=[2],
            purify_samples=64,
            purify_final_steps=1,  # the sorting is what is measured
            purify_learning_rate=5e-5,
            max_completion_length=128,
            seed=seed,
            **common,
        ),
        {"per_device_train_batch_size": 16},
        console,
    )
    return list(read_jsonl(folder / "train.jsonl"))


def scores(folder: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Name -> (rows,) what the rows are ranked by: the lowest are suspected first."""
    path = folder / "audit.jsonl"
    if not path.exists():
        reward = DenseReward.from_models(str(folder / "sft/model"), MODEL)
        write_jsonl_atomic(path, audit_demonstrations(reward, rows))
    audit = sorted(read_jsonl(path), key=lambda record: record["row"])

    def column(name: str) -> np.ndarray:
        return np.array([record[name] for record in audit])

    said = [
        np.array(recalled(folder / f"purified/behaviours-2/round-1/{number}/said.json")["train"]) for number in (1, 2)
    ]
    chosen = read_json(folder / "purified/purification.json")["behaviour"] or 2
    return {
        "audit": column("score"),
        "audit_mean": column("reward_per_token"),
        "sft_logprob": column("sft_logprob_per_token"),
        "reward_root": column("reward") / np.sqrt(column("num_tokens")),
        "purification": said[chosen - 1] - said[2 - chosen],
    }


def figures(values: np.ndarray, faults: np.ndarray) -> dict[str, float]:
    """AUROC of all faults and of each kind against the sound rows; precision and recall at two cuts."""
    wrong = faults != "None"
    found = {"auroc": auroc(-values, wrong)}
    for kind in FAULTS:
        some = (faults == kind) | ~wrong
        found[f"auroc_{kind}"] = auroc(-values[some], wrong[some])
    order = np.argsort(values, kind="stable")
    for name, cut in (("half", len(values) // 2), ("third", int(wrong.sum()))):
        caught = int(wrong[order[:cut]].sum())
        found |= {f"precision_{name}": caught / cut, f"recall_{name}": caught / int(wrong.sum())}
    return found


def main() -> None:
    """Make the folders and print one table, its means over the seeds."""
    words = Parser(__doc__)
    words.add_argument("--dataset_name", required=True)
    words.add_argument("--output_dir", required=True)
    words.add_argument("--seeds", type=int, nargs="+", default=[0])
    words.add_argument("--rows", type=count, default=520, help="rows read, the held-out ones among them")
    words.add_argument("--held_out", type=count, default=40)
    words.add_argument("--max_length", type=count, default=256)
    words.add_argument("--sft_steps", type=count, default=30, help="of 16 demonstrations")
    arguments = words.parse_args()
    console, found = Console(width=119), []
    for seed in arguments.seeds:
        folder = Path(arguments.output_dir) / f"seed-{seed}"
        rows = trained(folder, arguments, seed, console)
        faults = np.array([str(row["fault"]) for row in rows])
        purification = read_json(folder / "purified/purification.json")
        found.append(
            {
                "seed": seed,
                "rows": len(rows),
                "faults": {kind: int((faults == kind).sum()) for kind in FAULTS},
                "chosen": [purification["behaviour"], purification["of"]],
                "reason": purification["reason"],
                "figures": {name: figures(values, faults) for name, values in scores(folder, rows).items()},
            }
        )
        write_json_atomic(Path(arguments.output_dir) / "planted_faults.json", {"seeds": found})
    columns = list(found[0]["figures"]["audit"])
    print(f"| ranked by | {' | '.join(column.replace('_', ' ') for column in columns)} |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, label in RANKED_BY.items():
        each = [[record["figures"][name][column] for record in found] for column in columns]
        print(f"| {label} | {' | '.join(f'{np.mean(values):.3f}' for values in each)} |")
    for record in found:
        print(f"seed {record['seed']}: {record['rows']} rows, {record['faults']}; {record['reason']}")


if __name__ == "__main__":
    run_command(main)
