"""Which reference makes the better reward: its signal-to-noise on held-out text, and its agreement with what is true.

Candidates are compared on the same texts, each scored once under every model:

* `samples`: held-out demonstrations against the SFT policy's own completions of the same prompts;
* `altered`: demonstrations against twins in which one number was altered;
* `preference`: pairs that somebody judged;
* `verifier`: the SFT policy's own completions that a program found right against those it found wrong.

The last three know what is true; the first one only who wrote it. Derived and measured here, not the paper's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densepath.core.rewards import ReferenceMean, baseline_relative, reference_logprobs
from densepath.data import Encoded, encode_pairs
from densepath.data.formats import validate_rows
from densepath.data.rows import Row
from densepath.errors import ConfigError, DataError, ModelError
from densepath.evals.altered_numbers import alter_answer
from densepath.evals.auroc import auroc, auroc_replicates
from densepath.evals.bootstrap import compare, mean_replicates, replicate_interval
from densepath.evals.generation import generate
from densepath.evals.preferences import check_preference, encode_preference, pair_credits
from densepath.evals.signal_to_noise import (
    ONE_SIDED_CONFIDENCE,
    reward_margins,
    signal_to_noise,
    signal_to_noise_replicates,
)
from densepath.evals.verifiers import get_verifier
from densepath.models.compat import context_length, eos_token_ids
from densepath.models.load import load_model
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET
from densepath.rewards.frozen import FrozenPolicy

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

Model: TypeAlias = Any
"""A path or hub id, a model, or a `FrozenPolicy`."""


# --- texts -------------------------------------------------------------------------------------------------------


@dataclass
class _Texts:
    """What is scored under every model, and where each part lies in it."""

    flat: list[Encoded] = field(default_factory=list)
    demonstrations: list[int] = field(default_factory=list)
    twins: list[int | None] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    verdicts: list[list[float]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    places: dict[Encoded, int] = field(default_factory=dict)
    unused: int = 0

    def add(self, pair: Encoded) -> int:
        """Its place; equal texts have one, so that rounding cannot part them."""
        if pair not in self.places:
            self.places[pair] = len(self.flat)
            self.flat.append(pair)
        return self.places[pair]


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
    asked = None if criterion is None else _criterion(criterion)
    rows = [{key: value for key, value in dict(row).items() if value is not None} for row in rows]
    validate_rows(rows, "demonstrations", source=source)
    check = None if verifier is None else get_verifier(verifier)

    def load(model: Model) -> FrozenPolicy:
        if isinstance(model, FrozenPolicy):
            return model
        if not isinstance(model, (str, Path)):
            return FrozenPolicy(model)
        return FrozenPolicy(
            load_model(model, dtype=dtype, device=device, merge=True, trust_remote_code=trust_remote_code)
        )

    policy = load(sft)
    context = context_length(policy.model)
    texts = _texts(rows, preferences, tokenizer, context, seed, source)
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
                max_completion_length=max_completion_length,
                temperature=1.0,
                eos_token_ids=eos_token_ids(model, tokenizer),
                seed=seed,
                verifier=check,
                num_generations=num_generations,
                on_progress=lambda finished, _: progress(finished - done),
            )
        texts.samples = [[] for _ in rows]
        texts.verdicts = [[] for _ in rows]
        for completion in found:
            pair = Encoded(tuple(completion.prompt_ids), tuple(completion.completion_ids))
            texts.samples[completion.row].append(texts.add(pair))
            if completion.metric is not None:
                texts.verdicts[completion.row].append(completion.metric)
        total = sampled + (1 + len(references)) * len(texts.flat)

    def logprobs(scored: FrozenPolicy) -> list[Tensor]:
        prompts, ids = ([getattr(pair, name) for pair in texts.flat] for name in ("prompt_ids", "completion_ids"))
        return [values.double() for values in scored.score(prompts, ids, token_budget, progress).logprobs]

    mine = logprobs(policy)
    del policy
    theirs = {name: logprobs(load(reference)) for name, reference in references.items()}
    if ensemble and len(theirs) > 1:
        theirs[ENSEMBLE] = [
            reference_logprobs(values, ReferenceMean.ARITHMETIC) for values in zip(*theirs.values(), strict=True)
        ]
    rewards = {
        name: [
            baseline_relative(a, b, torch.ones_like(a, dtype=torch.bool)) for a, b in zip(mine, values, strict=True)
        ]
        for name, values in theirs.items()
    }
    measured = _measure(texts, rewards, max_completion_length, seed)
    if not measured:
        raise DataError(
            f"{source}: nothing to compare by: no number to alter; sample with num_generations, or give pairs"
        )
    return {**_choose(measured, asked, rewards, seed), "preferences_set_aside": texts.unused}


def _criterion(value: Criterion | str) -> Criterion:
    try:
        return Criterion(value)
    except ValueError:
        raise ConfigError(f"criterion={value} is not one of {', '.join(c.value for c in Criterion)}") from None


def _texts(
    rows: Sequence[Row], preferences: Sequence[Row], tokenizer: Any, context: int, seed: int, source: str
) -> _Texts:
    texts = _Texts()
    for index, row in enumerate(rows):
        try:
            pair = encode_pairs(row, tokenizer)[-1]
            twin = alter_answer(row, tokenizer, random.Random(f"{seed} {index}"))
        except (DataError, ModelError) as error:
            raise type(error)(f"{source}, row {index + 1}: {error}") from error
        length = len(pair.prompt_ids) + len(pair.completion_ids)
        if length > context:
            raise DataError(
                f"{source}, row {index + 1}: {length} tokens, and the model's context holds {context}; leave it out"
            )
        texts.demonstrations.append(texts.add(pair))
        texts.twins.append(None if isinstance(twin, str) else texts.add(twin.completions[1]))
    for index, row in enumerate(preferences):
        try:
            check_preference(row)
            judged = encode_preference(row, tokenizer)
        except (DataError, ModelError) as error:
            raise type(error)(f"the preference rows, row {index + 1}: {error}") from error
        if isinstance(judged, str) or any(
            len(c.prompt_ids) + len(c.completion_ids) > context for c in judged.completions
        ):
            texts.unused += 1
            continue
        texts.pairs.append((texts.add(judged.completions[0]), texts.add(judged.completions[1])))
    return texts


# --- criteria ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """One criterion of all candidates: values, paired replicates, and the units behind them."""

    values: dict[str, float]
    replicates: dict[str, NDArray[np.float64]]
    n: int
    extras: dict[str, dict[str, Any]]


def _measure(texts: _Texts, rewards: Mapping[str, list[Tensor]], limit: int, seed: int) -> dict[Criterion, _Measured]:
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
    if texts.samples:
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
    names: Sequence[str] | Mapping[str, Any],
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
                        "value": replicate_interval(m.values[name], m.replicates[name], m.n).as_dict(),
                        **m.extras.get(name, {}),
                    }
                    for c, m in measured.items()
                },
            }
            for name in names
        ],
        "comparisons": [one.as_dict() for one in compare(best, deciding.values, deciding.replicates, deciding.n)],
        "seed": seed,
    }
