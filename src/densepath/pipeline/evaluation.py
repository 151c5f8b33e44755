"""The evaluation stage: every arm on the test prompts, once; the table's figures and the report's samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from densepath.config.run import RunArguments
from densepath.data import encode_pairs, prompt_of, token_spans
from densepath.data.rows import is_conversational, turn_text
from densepath.evals.generation import Completion, Decoding, checked, generate
from densepath.evals.verifiers import get_verifier
from densepath.io import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from densepath.models.compat import eos_token_ids
from densepath.models.load import load_tokenizer
from densepath.models.references import reference_name
from densepath.pipeline.data import read_split
from densepath.pipeline.progress import StageProgress
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.selection import chosen, read_choice
from densepath.pipeline.training import load_frozen, reference_path
from densepath.records.codec import to_json
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import load_policies, view_on_base
from densepath.stats.comparisons import paired_difference
from densepath.stats.intervals import mean_interval, metric_interval
from densepath.terminal import Console

LABELS = {"sft": "SFT", "continued_sft": "continued SFT", "dpr": "DPR"}
NLL_ROWS = 100
"""Held-out demonstrations whose negative log-likelihood is reported."""


def run_evaluation(run: RunFolder, arguments: RunArguments, console: Console, title: str) -> None:
    """Write `eval/results.json` and `eval/samples.jsonl`; finished parts are kept when the stage is resumed."""
    started = time.time()
    rows = read_split(run, "test")
    arms = [arm for arm in LABELS if arm == "sft" or (run.is_done(arm) and (run / f"{arm}/model").exists())]
    parts = [(arm, temperature) for arm in arms for temperature in arguments.eval_temperatures]
    reference = reporting_reference(run, arguments)
    tokenizer = load_tokenizer(str(run / "sft/model"))
    with StageProgress(console, title, len(parts) * len(rows) * 2, "completion") as progress:
        reward: DenseReward | None = None
        policy: FrozenPolicy | None = None
        for index, (arm, temperature) in enumerate(parts):
            path = _part_path(run, arm, temperature)
            if not path.exists():
                if reward is None:
                    reward = dense_reward(run / "sft/model", reference_path(run, arguments, reference), arguments)
                if index == 0 or parts[index - 1][0] != arm or policy is None:
                    policy = None  # before the next arm is loaded
                    policy = reward.sft if arm == "sft" else _arm(run / f"{arm}/model", arm, reward.sft, arguments)
                part = _measure(policy, reward, tokenizer, rows, arguments, temperature, progress, index * 2)
                part["nll"] = _nll(policy, tokenizer, rows, arguments) if temperature == parts[0][1] else None
                write_json_atomic(path, part)
            progress.update((index + 1) * 2 * len(rows))
    loaded = {part: read_json(_part_path(run, *part)) for part in parts}
    results = _results(run, arguments, loaded, rows)
    results["reference"] = reference
    write_json_atomic(run / "eval/results.json", results)
    write_jsonl_atomic(run / "eval/samples.jsonl", _samples(arguments, loaded, rows, tokenizer))
    run.finish("eval", started)


def reporting_reference(run: RunFolder, arguments: RunArguments) -> str:
    """The reference that the reward in the table is read with: the chosen one, else the paper's half-way one."""
    found = chosen(run)
    if found is not None:
        return found.reference
    kept = arguments.reference_fractions or [0.0]
    return reference_name(min(kept, key=lambda fraction: abs(fraction - 0.5)))


def dense_reward(sft: Path, reference: str, arguments: RunArguments) -> DenseReward:
    """The reward of a run, its reference loaded where the reading needs one; adapters share one base in memory."""
    names: list[str | Path] = [sft, reference] if arguments.dense_reward == "baseline_relative" else [sft]
    policy, *refs = load_policies(
        names, dtype=arguments.dtype, device="auto", trust_remote_code=arguments.trust_remote_code
    )
    return DenseReward(policy, refs or None, kind=arguments.dense_reward)


def _arm(path: Path, name: str, sft: FrozenPolicy, arguments: RunArguments) -> FrozenPolicy:
    """The model of an arm: an adapter on the SFT model's base, or a model of its own."""
    return view_on_base(sft.model, path, name) or FrozenPolicy(load_frozen(arguments, path))


def _part_path(run: RunFolder, arm: str, temperature: float) -> Path:
    return run / f"eval/parts/{arm}-{temperature:g}.json"


def _measure(
    policy: FrozenPolicy,
    reward: DenseReward,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    arguments: RunArguments,
    temperature: float,
    progress: StageProgress,
    offset: int,
) -> dict[str, Any]:
    """Completions of one arm at one temperature, with what the models say of each token."""
    base = offset * len(rows)
    eos = eos_token_ids(reward.sft.model, tokenizer)
    with policy.active() as model:
        completions = generate(
            model,
            tokenizer,
            rows,
            # One seed for every arm, and not that of the validation prompts.
            Decoding(temperature, arguments.max_completion_length, seed=arguments.seed + 1),
            on_progress=lambda done, _: progress.update(base + done),
        )
    completions = checked(completions, rows, get_verifier(arguments.verifier) if arguments.verifier else None)
    prompts = [c.prompt_ids for c in completions]
    ids = [c.completion_ids for c in completions]
    scores = reward.score_ids(prompts, ids, eos_token_ids=eos)
    progress.advance(0, tokens=sum(map(len, ids)))
    kl: list[float | None] = [None] * len(ids)
    entropies: list[float | None] = [None] * len(ids)
    if temperature > 0:
        # Both are expectations under the policy's own samples: greedy text says nothing about them.
        mine, spread = scores.sft_logprobs, scores.sft_entropies
        if policy is not reward.sft:
            own = policy.score(prompts, ids)
            mine, spread = own.logprobs, own.entropies
        kl = [float((a - b).sum()) for a, b in zip(mine, scores.sft_logprobs, strict=True)]
        entropies = [float(values.mean()) for values in spread]
    return {
        "completions": [
            {
                **_without_prompt(completion),
                "rewards": _rounded(scores.rewards[index]),
                "sft_logprobs": _rounded(scores.sft_logprobs[index]),
                "kl": kl[index],
                "entropy": entropies[index],
            }
            for index, completion in enumerate(completions)
        ]
    }


def _without_prompt(completion: Completion) -> dict[str, Any]:
    return {
        "row": completion.row,
        "completion_ids": completion.completion_ids,
        "text": completion.text,
        "truncated": completion.truncated,
        "metric": completion.metric,
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _nll(
    policy: FrozenPolicy, tokenizer: Any, rows: Sequence[Mapping[str, Any]], arguments: RunArguments
) -> list[float] | None:
    """Negative log-likelihood of held-out demonstrations, nats per token, one value a row; None without any."""
    pairs = [
        encode_pairs(dict(row), tokenizer)[-1] for row in rows[:NLL_ROWS] if "completion" in row or "messages" in row
    ]
    if not pairs:
        return None
    limit = 4 * arguments.max_completion_length
    scored = policy.score([pair.prompt_ids for pair in pairs], [pair.completion_ids[:limit] for pair in pairs])
    return [-float(values.mean()) for values in scored.logprobs]


def _column(part: Mapping[str, Any], name: str) -> list[float]:
    return [float(completion[name]) for completion in part["completions"]]


def _results(
    run: RunFolder, arguments: RunArguments, parts: Mapping[tuple[str, float], Any], rows: Sequence[Any]
) -> dict[str, Any]:
    table = []
    for (arm, temperature), part in parts.items():
        completions = part["completions"]
        outcome = run.outcome(arm)
        nll = part["nll"] or parts[arm, arguments.eval_temperatures[0]]["nll"]
        table.append(
            {
                "arm": arm,
                "label": LABELS[arm],
                "decoding": _decoding(temperature),
                "n": len(completions),
                "metric": _metric(arguments, part, nll),
                "dense_reward": to_json(mean_interval([sum(c["rewards"]) for c in completions])),
                "length": to_json(mean_interval([float(len(c["completion_ids"])) for c in completions])),
                "entropy": to_json(mean_interval(_column(part, "entropy"))) if temperature > 0 else None,
                "kl": to_json(mean_interval(_column(part, "kl"))) if temperature == 1.0 else None,
                "nll": None if nll is None else to_json(mean_interval(nll)),
                "truncated": sum(_column(part, "truncated")) / len(completions),
                "train_seconds": outcome["seconds"],
                "train_flops": outcome["flops"],
            }
        )
    return {
        "metric": _metric_record(arguments),
        "interval": "95 % over prompts: Wilson for shares, BCa bootstrap for means; paired differences by bootstrap",
        "rows": table,
        "paired": _paired(arguments, parts),
        "warnings": _warnings(run, table),
    }


def _metric(arguments: RunArguments, part: Mapping[str, Any], nll: list[float] | None) -> dict[str, Any] | None:
    values = _column(part, "metric") if arguments.verifier is not None else nll
    if values is None:
        return None
    return to_json(metric_interval(values) if arguments.verifier is not None else mean_interval(values))


def _metric_record(arguments: RunArguments) -> dict[str, Any]:
    if arguments.verifier is not None:
        return {
            "name": arguments.verifier,
            "higher_is_better": True,
            "description": f"share of test prompts whose answer the program {arguments.verifier} accepts",
        }
    return {
        "name": "nll",
        "higher_is_better": False,
        "description": "no verifier: negative log-likelihood of held-out demonstrations, nats per token",
    }


def _decoding(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _paired(arguments: RunArguments, parts: Mapping[tuple[str, float], Any]) -> list[dict[str, Any]]:
    """Differences prompt by prompt: DPR against both others, and continued SFT against SFT."""
    arms = {arm for arm, _ in parts}
    found = []
    for arm, against in (("dpr", "sft"), ("dpr", "continued_sft"), ("continued_sft", "sft")):
        if not {arm, against} <= arms:
            continue
        for temperature in arguments.eval_temperatures:
            if arguments.verifier is not None:
                values, others = (
                    _column(parts[arm, temperature], "metric"),
                    _column(parts[against, temperature], "metric"),
                )
                sign = 1.0
            elif temperature == arguments.eval_temperatures[0] and parts[arm, temperature]["nll"] is not None:
                values, others = parts[arm, temperature]["nll"], parts[against, temperature]["nll"]
                sign = -1.0
            else:
                continue
            verdict = paired_difference([sign * v for v in values], [sign * v for v in others]).verdict
            difference = paired_difference(values, others).interval
            found.append(
                {
                    "arm": arm,
                    "against": against,
                    "decoding": _decoding(temperature) if arguments.verifier else "held-out demonstrations",
                    "difference": to_json(difference),
                    "verdict": verdict.value,
                }
            )
    return found


def _warnings(run: RunFolder, table: Sequence[Mapping[str, Any]]) -> list[str]:
    choice = read_choice(run)
    warnings = list(choice.warnings)
    if choice.chosen is None:
        warnings.append(f"DPR was not run: {choice.reason}")
    worst: dict[str, float] = {}
    for row in table:
        worst[row["label"]] = max(worst.get(row["label"], 0.0), row["truncated"])
    cut = [f"{share:.0%} of {label}" for label, share in worst.items() if share > 0.2]
    if cut:
        warnings.append(f"completions were truncated: {', '.join(cut)}; raise max_completion_length")
    return warnings


def _samples(
    arguments: RunArguments, parts: Mapping[tuple[str, float], Any], rows: Sequence[Mapping[str, Any]], tokenizer: Any
) -> list[dict[str, Any]]:
    """The first test prompts with each arm's completion at the first temperature, in spans of whole characters."""
    temperature = arguments.eval_temperatures[0]
    arms = [arm for arm, at in parts if at == temperature and arm != "continued_sft"]
    found = []
    for index, row in enumerate(rows[: arguments.num_report_samples]):
        completions = {}
        for arm in arms:
            record = parts[arm, temperature]["completions"][index]
            completions[arm] = {
                "label": LABELS[arm],
                "text": record["text"],
                "metric": record["metric"],
                "reward": sum(record["rewards"]),
                "truncated": record["truncated"],
                "spans": token_spans(
                    record["completion_ids"], tokenizer, rewards=record["rewards"], logprobs=record["sft_logprobs"]
                ),
            }
        answer = row.get("answer")
        found.append(
            {
                "id": str(row.get("id", index)),
                "prompt": _prompt_text(prompt_of(dict(row))),
                "answer": None if answer is None else str(answer),
                "category": row.get("family") or row.get("category"),
                "completions": completions,
            }
        )
    return found


def _prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    if not is_conversational(prompt):
        return str(prompt)
    turns = [turn for turn in prompt if isinstance(turn, dict)]
    if len(turns) == 1:
        return turn_text(turns[0])
    return "\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in turns if turn_text(turn))


def load_results(run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the evaluation stage wrote: results and samples."""
    return read_json(run_dir / "eval/results.json"), read_jsonl(run_dir / "eval/samples.jsonl")
