"""Which reference makes the better reward: its signal-to-noise on held-out text, and its agreement with what is true.

Candidates are compared on the same texts, each scored once under every model:

* `samples`: held-out demonstrations against the SFT policy's own completions of the same prompts;
* `altered`: demonstrations against twins in which one number was altered;
* `preference`: pairs that somebody judged;
* `verifier`: the SFT policy's own completions that a program found right against those it found wrong.

The last three know what is true; the first one only who wrote it. Derived and measured here, not the paper's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densepath.core.rewards import ReferenceMean, reference_logprobs
from densepath.data.formats import validate_rows
from densepath.data.rows import Row
from densepath.errors import ConfigError, DataError
from densepath.evals.auroc import auroc, auroc_replicates
from densepath.evals.generation import Decoding, checked, generate
from densepath.evals.preferences import pair_credits
from densepath.evals.scored_texts import Model, Texts, collect_texts, dense_rewards, load_policy
from densepath.evals.signal_to_noise import reward_margins, signal_to_noise, signal_to_noise_replicates
from densepath.evals.verifiers import get_verifier
from densepath.models.compat import context_length
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET
from densepath.records.codec import to_json
from densepath.stats.bootstrap import mean_replicates, replicate_interval
from densepath.stats.comparisons import compare
from densepath.stats.intervals import ONE_SIDED_CONFIDENCE

ENSEMBLE = "all"
"""Name of the candidate that is the mean probability of all kept references."""


class Criterion(str, Enum):
    """What candidates are compared by, those that know what is true first: `auto` takes the first one there is."""

    PREFERENCE = "preference"
    VERIFIER = "verifier"
    ALTERED = "altered"
    SAMPLES = "samples"


UNITS = {
    Criterion.PREFERENCE: "accuracy",
    Criterion.VERIFIER: "AUROC",
    Criterion.ALTERED: "signal-to-noise",
    Criterion.SAMPLES: "signal-to-noise",
}
CHANCE = {Criterion.PREFERENCE: 0.5, Criterion.VERIFIER: 0.5, Criterion.ALTERED: 0.0, Criterion.SAMPLES: 0.0}

ROUNDING = 1e-5
"""Nats per token by which two scores of the same tokens may differ in float32."""


def select_reference(
    sft: Model,
    references: Mapping[str, Model],
    rows: Sequence[Row],
    *,
    tokenizer: Any,
    preferences: Sequence[Row] = (),
    verifier: str | None = None,
    criterion: Criterion | str | None = None,
    num_generations: int = 1,
    max_completion_length: int = 128,
    ensemble: bool = True,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    source: str = "the data set",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare references by the reward that each makes with the SFT model; one is in memory at a time.

    Args:
        sft: the SFT model.
        references: name -> reference: earlier checkpoints, their average, the model before SFT.
        rows: held-out demonstrations, best not those of the training.
        tokenizer: that of all models.
        preferences: rows with `prompt`, `chosen`, `rejected`, for `preference`.
        verifier: program that checks the SFT policy's own completions against the rows' `answer`, for `verifier`.
        criterion: what the choice is made by; the first of preference, verifier, altered, samples that there is.
        num_generations: completions sampled for each row at temperature 1; 0 leaves out `samples` and `verifier`.
        max_completion_length: longest of them in tokens; demonstrations are compared over the same stretch.
        ensemble: with two or more references, the mean of their probabilities is one more candidate, `all`.
        seed: of sampling, altered digits and bootstrap.
        token_budget: tokens in one forward pass.
        dtype: of weights that are loaded here.
        device: where they go; None: CPU, "auto": CUDA where there is one.
        trust_remote_code: run Python code that comes with weights that are loaded here.
        source: name of the rows in messages.
        on_progress: called with (done, all) completions, sampled ones once and scored ones once a model.

    Returns:
        A JSON record: `criterion`, `chosen` (a name, or null: none is shown to be better than chance), `reason`,
        `best_by` (criterion -> name), `candidates` with each criterion's `value`, and `comparisons` of the best.

    Raises:
        DataError: rows that are no demonstrations, or nothing to compare by.
        ConfigError: no reference, or a criterion that does not exist or cannot be computed.
    """
    if not references:
        raise ConfigError("there is no reference to choose from; SFT keeps some at reference_fractions")
    if criterion is not None:
        _criterion(criterion)
    rows = [{key: value for key, value in dict(row).items() if value is not None} for row in rows]
    validate_rows(rows, "demonstrations", source=source)
    check = None if verifier is None else get_verifier(verifier)

    load = functools.partial(load_policy, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    policy = load(sft)
    context = context_length(policy.model)
    texts = collect_texts(rows, preferences, tokenizer, context, seed, source)
    sampled = num_generations * len(rows)
    total = sampled + (1 + len(references)) * (len(texts.flat) + sampled)
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    if num_generations:
        with policy.active() as model:
            found = generate(
                model,
                tokenizer,
                rows,
                Decoding(1.0, max_completion_length, num_generations, seed),
                on_progress=lambda finished, _: progress(finished - done),
            )
        texts.add_samples(checked(found, rows, check), len(rows))
        total = sampled + (1 + len(references)) * len(texts.flat)

    mine = texts.logprobs(policy, token_budget, progress)
    del policy
    theirs = {name: texts.logprobs(load(ref), token_budget, progress) for name, ref in references.items()}
    if ensemble and len(theirs) > 1:
        theirs[ENSEMBLE] = [
            reference_logprobs(values, ReferenceMean.ARITHMETIC) for values in zip(*theirs.values(), strict=True)
        ]
    rewards = {name: dense_rewards(mine, values) for name, values in theirs.items()}
    return choose_reference(
        texts, rewards, criterion=criterion, max_completion_length=max_completion_length, seed=seed, source=source
    )


def choose_reference(
    texts: Texts,
    rewards: Mapping[str, Sequence[Tensor]],
    *,
    criterion: Criterion | str | None = None,
    max_completion_length: int,
    seed: int = 0,
    source: str = "the data set",
) -> dict[str, Any]:
    """Compare references by rewards that are there already; see `select_reference`.

    Args:
        texts: what was scored.
        rewards: name of each candidate -> one (completion tokens,) tensor for each of `texts.flat`, nats.
        criterion: as in `select_reference`.
        max_completion_length: demonstrations are compared with samples over this stretch, tokens.
        seed: of the bootstrap.
        source: name of the rows in messages.

    Returns:
        The record of `select_reference`.
    """
    asked = None if criterion is None else _criterion(criterion)
    measured = _measure(texts, rewards, max_completion_length, seed)
    if not measured:
        raise DataError(
            f"{source}: nothing to compare by: no number to alter; sample with num_generations, or give pairs"
        )
    return {**_choose(measured, asked, list(rewards), seed), "preferences_set_aside": texts.unused}


def _criterion(value: Criterion | str) -> Criterion:
    try:
        return Criterion(value)
    except ValueError:
        raise ConfigError(f"criterion={value} is not one of {', '.join(c.value for c in Criterion)}") from None


# --- criteria ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """One criterion of all candidates: values, paired replicates, and the units behind them."""

    values: dict[str, float]
    replicates: dict[str, NDArray[np.float64]]
    n: int
    extras: dict[str, dict[str, Any]]


def _measure(
    texts: Texts, rewards: Mapping[str, Sequence[Tensor]], limit: int, seed: int
) -> dict[Criterion, _Measured]:
    found: dict[Criterion, _Measured] = {}
    if texts.pairs:
        credits = {
            name: pair_credits(*(np.array([float(r[pair[side]].mean()) for pair in texts.pairs]) for side in (0, 1)))
            for name, r in rewards.items()
        }
        columns = mean_replicates(np.stack(list(credits.values())), seed=seed)
        found[Criterion.PREFERENCE] = _Measured(
            {name: float(values.mean()) for name, values in credits.items()},
            {name: columns[:, index] for index, name in enumerate(credits)},
            len(texts.pairs),
            {},
        )
    verdicts = np.array([value for values in texts.verdicts for value in values])
    right = verdicts >= 0.5
    if right.any() and not right.all():
        flat = [index for indices in texts.samples for index in indices]
        row = np.repeat(np.arange(len(texts.samples)), [len(indices) for indices in texts.samples])
        scores = {name: np.array([float(r[index].mean()) for index in flat]) for name, r in rewards.items()}
        found[Criterion.VERIFIER] = _Measured(
            {name: auroc(values, right) for name, values in scores.items()},
            {
                name: auroc_replicates(values, right, row, len(texts.samples), seed=seed)
                for name, values in scores.items()
            },
            len(texts.samples),
            {name: {"right": float(right.mean())} for name in scores},
        )
    altered = [(mine, twin) for mine, twin in zip(texts.demonstrations, texts.twins, strict=True) if twin is not None]
    if altered:
        margins = {
            name: reward_margins([r[mine] for mine, _ in altered], [r[twin] for _, twin in altered])
            for name, r in rewards.items()
        }
        found[Criterion.ALTERED] = _margins_measured(margins, seed)
    if any(texts.samples) and texts.demonstrations:
        margins = {}
        for name, r in rewards.items():
            own = [torch.cat([r[index] for index in indices]) for indices in texts.samples]
            margins[name] = reward_margins([r[index][:limit] for index in texts.demonstrations], own)
        found[Criterion.SAMPLES] = _margins_measured(margins, seed)
    return found


def _margins_measured(margins: Mapping[str, list[float]], seed: int) -> _Measured:
    arrays = {name: np.array(values) for name, values in margins.items()}
    return _Measured(
        {name: signal_to_noise(values) for name, values in margins.items()},
        {name: signal_to_noise_replicates(values, seed=seed) for name, values in arrays.items()},
        len(next(iter(arrays.values()))),
        {
            name: {"margin": float(values.mean()), "above": float((values > ROUNDING).mean())}
            for name, values in arrays.items()
        },
    )


def _choose(
    measured: Mapping[Criterion, _Measured],
    asked: Criterion | None,
    names: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    if asked is not None and asked not in measured:
        raise ConfigError(
            f"criterion={asked.value} cannot be computed from what was given; there is "
            f"{', '.join(criterion.value for criterion in measured)}"
        )
    criterion = asked or next(c for c in Criterion if c in measured)
    best_by = {c.value: max(m.values, key=m.values.__getitem__) for c, m in measured.items()}
    best, deciding = best_by[criterion.value], measured[criterion]
    low = float(np.nanquantile(deciding.replicates[best], 1 - ONE_SIDED_CONFIDENCE))
    tells = low > CHANCE[criterion]
    what = f"{UNITS[criterion]} ({criterion.value}) of {deciding.values[best]:.3f}"
    if tells:
        reason = f"reference {best} has the highest {what}, above {CHANCE[criterion]:g} with 90 % confidence"
    else:
        reason = f"no reference is shown to be above {CHANCE[criterion]:g}; the best, {best}, has {what}"
    return {
        "criterion": criterion.value,
        "units": {c.value: UNITS[c] for c in measured},
        "chosen": best if tells else None,
        "reason": reason,
        "best_by": best_by,
        "candidates": [
            {
                "reference": name,
                "criteria": {
                    c.value: {
                        "value": to_json(replicate_interval(m.values[name], m.replicates[name], m.n)),
                        **m.extras.get(name, {}),
                    }
                    for c, m in measured.items()
                },
            }
            for name in names
        ],
        "comparisons": [to_json(one) for one in compare(best, deciding.values, deciding.replicates, deciding.n)],
        "seed": seed,
    }
