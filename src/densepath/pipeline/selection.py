"""Choice of the reference and of beta on validation prompts, before any RL.

With a verifier, each candidate is previewed by contrastive decoding, `softmax((1+a) z_SFT - a z_ref)` with a = 1/beta:
what DPR would amortise, at the price of a few completions. First every reference at the first beta, then the other
betas at the best reference. Without a verifier the criterion is the reward's margin: on held-out prompts, the
demonstration's mean reward per token less that of the SFT policy's own completions. A reward that cannot tell the
expert from the policy has nothing to teach. The margin says nothing about beta: the first candidate is taken.

A candidate is chosen only if its paired difference to SFT (or its margin) is above 0 with a one-sided confidence of
90 %; otherwise none helps, and DPR is not run. Derived and measured here, not the paper's.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np

from densepath.config.run import RunArguments
from densepath.data import encode_pairs
from densepath.errors import DataError
from densepath.evals.generation import Decoding, checked, generate
from densepath.evals.signal_to_noise import reward_margins, signal_to_noise
from densepath.evals.verifiers import get_verifier
from densepath.io import read_json, write_json_atomic
from densepath.methods import SFTRun
from densepath.models.compat import weights_differ
from densepath.models.load import load_frozen, load_tokenizer
from densepath.models.references import EMA_NAME, reference_name
from densepath.pipeline.data import read_split
from densepath.pipeline.run_folder import RunFolder
from densepath.progress import StageProgress
from densepath.records.codec import to_json
from densepath.rewards.dense import DenseReward
from densepath.stats.intervals import lower_bound, mean_interval, metric_interval
from densepath.terminal import Console, warn


def candidate_references(arguments: RunArguments) -> list[str]:
    """The references to choose among: all that were kept, or the one that is fixed."""
    if arguments.reference != "auto":
        return [arguments.reference]
    kept = [reference_name(fraction) for fraction in arguments.reference_fractions]
    return kept if arguments.reference_ema_decay is None else [*kept, EMA_NAME]


def candidate_betas(arguments: RunArguments) -> list[float]:
    """The values of beta to choose among, or the one that is fixed."""
    return list(arguments.candidate_betas) if arguments.beta == "auto" else [float(arguments.beta)]


def run_selection(run: RunFolder, sft: SFTRun, console: Console, title: str) -> None:
    """Write `selection.json`: the candidates, their scores, and what was chosen and why (null: none helps)."""
    started, arguments = time.time(), sft.arguments
    references, betas = candidate_references(arguments), candidate_betas(arguments)
    warnings = [
        f"reference {name} has the same weights as the SFT model: the reward is zero everywhere"
        for name in references
        if not weights_differ(sft.model, sft.reference(name))
    ]
    for warning in warnings:
        warn(console, warning)
    if len(references) == 1 and len(betas) == 1 and arguments.reference != "auto":
        selection: dict[str, Any] = {
            "mode": "fixed",
            "criterion": "none",
            "reason": "reference and beta were given",
            "chosen": {"reference": references[0], "beta": betas[0]},
            "baseline": None,
            "rows": [],
        }
    elif arguments.dense_reward != "baseline_relative":
        selection = {
            "mode": "fixed",
            "criterion": "none",
            "reason": f"the reward {arguments.dense_reward} uses no reference",
            "chosen": {"reference": references[0], "beta": betas[0]},
            "baseline": None,
            "rows": [],
        }
    elif arguments.verifier is not None:
        selection = _preview(run, sft, references, betas, console, title)
    else:
        selection = _margin(run, sft, references, betas[0], console, title)
    selection["warnings"] = warnings
    write_json_atomic(run / "selection.json", selection)
    run.finish("selection", started)


def chosen(path: Path) -> dict[str, Any] | None:
    """`{"reference", "beta"}` that the choice in an SFT run came to, or None if none helps or none was made."""
    file = path / "selection.json"
    found: dict[str, Any] | None = read_json(file)["chosen"] if file.exists() else None
    return found


def _preview(
    run: RunFolder, sft_run: SFTRun, references: list[str], betas: list[float], console: Console, title: str
) -> dict[str, Any]:
    arguments = sft_run.arguments
    verifier = get_verifier(arguments.verifier or "")
    tokenizer = load_tokenizer(str(run / "sft/model"))
    sft = load_frozen(arguments, run / "sft/model")
    rows = read_split(run, "validation")
    scores: dict[tuple[str, float], list[float]] = {}
    with StageProgress(console, title, (len(references) + len(betas)) * len(rows), "completion") as progress:

        def verdicts(ref: Any, alpha: float) -> list[float]:
            before = progress.done
            found = generate(
                sft,
                tokenizer,
                rows,
                Decoding(1.0, arguments.max_completion_length, seed=arguments.seed, alpha=alpha),
                second_model=ref,
                on_progress=lambda done, _: progress.update(before + done),
            )
            found = checked(found, rows, verifier)
            progress.advance(0, tokens=sum(len(c.completion_ids) for c in found))
            return [float(c.metric or 0.0) for c in found]

        def candidate(name: str, beta: float) -> None:
            def compute() -> list[float]:
                ref = load_frozen(arguments, sft_run.reference(name))
                return verdicts(ref, 1.0 / beta)

            scores[name, beta] = run.cached(f"selection/{references.index(name)}-{beta:g}.json", compute)
            progress.update((1 + len(scores)) * len(rows))

        baseline = run.cached("selection/sft.json", lambda: verdicts(None, 0.0))
        progress.update(len(rows))
        for name in references:
            candidate(name, betas[0])
        best = max(references, key=lambda name: sum(scores[name, betas[0]]))
        for beta in betas[1:]:
            candidate(best, beta)
    (name, beta), values = max(scores.items(), key=lambda item: sum(item[1]))
    fixed = arguments.reference != "auto"
    beats = lower_bound([a - b for a, b in zip(values, baseline, strict=True)]) > 0
    mean, base = sum(values) / len(values), sum(baseline) / len(baseline)
    if beats:
        reason = f"its preview reaches {mean:.3f} on validation against {base:.3f} for SFT"
    elif fixed:
        reason = f"the reference was given; no preview beats SFT ({base:.3f}), the best reaches {mean:.3f}"
    else:
        best_text = f"the best (reference {name}, beta {beta:g}) has {mean:.3f}"
        reason = f"no preview beats SFT ({base:.3f}) with 90 % confidence; {best_text}"
    return {
        "mode": "auto",
        "criterion": f"{arguments.verifier} of contrastive decoding on {len(rows)} validation prompts, temperature 1",
        "reason": reason,
        "chosen": {"reference": name, "beta": beta} if beats or fixed else None,
        "baseline": to_json(metric_interval(baseline)),
        "rows": [
            {
                "reference": reference,
                "beta": tried,
                "alpha": 1.0 / tried,
                "score": to_json(metric_interval(found)),
                "difference": to_json(mean_interval([a - b for a, b in zip(found, baseline, strict=True)])),
                "n": len(found),
            }
            for (reference, tried), found in scores.items()
        ],
    }


def _margin(
    run: RunFolder, sft_run: SFTRun, references: list[str], beta: float, console: Console, title: str
) -> dict[str, Any]:
    arguments = sft_run.arguments
    tokenizer = load_tokenizer(str(run / "sft/model"))
    sft = load_frozen(arguments, run / "sft/model")
    rows = [row for row in read_split(run, "validation") if "completion" in row or "messages" in row]
    if not rows:
        raise DataError(
            "reference=auto needs a verifier, or held-out rows with a completion to compare with; give one of "
            "them, or fix the reference"
        )
    # Both are cut to one budget, so that a long demonstration is compared over the same stretch.
    limit = arguments.max_completion_length
    demonstrated = [encode_pairs(row, tokenizer)[-1] for row in rows]
    prompts = [pair.prompt_ids for pair in demonstrated]
    expert_ids = [pair.completion_ids[:limit] for pair in demonstrated]
    margins: dict[str, list[float]] = {}
    with StageProgress(console, title, len(rows) * (1 + len(references)), "completion") as progress:

        def sample_sft() -> list[list[int]]:
            found = generate(
                sft,
                tokenizer,
                rows,
                Decoding(1.0, limit, seed=arguments.seed),
                on_progress=lambda done, _: progress.update(done),
            )
            return [completion.completion_ids for completion in found]

        def margin(name: str) -> list[float]:
            reward = DenseReward(sft, load_frozen(arguments, sft_run.reference(name)))
            return reward_margins(*(reward.score_ids(prompts, ids).rewards for ids in (expert_ids, own_ids)))

        own_ids = run.cached("selection/samples.json", sample_sft)
        progress.update(len(rows))
        for index, name in enumerate(references):
            margins[name] = run.cached(f"selection/{index}.json", functools.partial(margin, name))
            progress.update((2 + index) * len(rows))
    standardised = {name: signal_to_noise(values) for name, values in margins.items()}
    best = max(references, key=lambda name: standardised[name])
    tells = lower_bound(margins[best]) > 0
    if tells:
        mean = float(np.mean(margins[best]))
        reason = (
            "its reward tells held-out demonstrations best from the SFT policy's own completions "
            f"({mean:+.4f} nats per token)"
        )
    else:
        reason = "no reference gives a reward that tells held-out demonstrations from the SFT policy's own completions"
    return {
        "mode": "auto",
        "criterion": f"reward margin of held-out demonstrations over SFT samples, nats per token, {len(rows)} prompts",
        "reason": reason,
        "chosen": {"reference": best, "beta": beta} if tells or arguments.reference != "auto" else None,
        "baseline": None,
        "rows": [
            {
                "reference": name,
                "beta": beta,
                "alpha": 1.0 / beta,
                "score": to_json(mean_interval(values)),
                "standardised": standardised[name],
                "n": len(values),
            }
            for name, values in margins.items()
        ],
    }
