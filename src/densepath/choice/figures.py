"""From what was sampled and scored to findings: figures with their intervals, and comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from densepath.choice.agreement import (
    ENSEMBLE,
    best_against_others,
    deciding_criterion,
    measure_agreement,
    preference_credits,
)
from densepath.choice.compare import with_leads
from densepath.choice.inputs import MeasurePlan
from densepath.core.monitors import correlation
from densepath.core.rewards import ReferenceMean, reference_logprobs
from densepath.errors import DataError
from densepath.evals.generation import Completion
from densepath.evals.scored_texts import Texts, dense_rewards
from densepath.evals.signals import SFT, Floats
from densepath.records.choice import Agreement, Answers, Criterion, Findings, Likelihood, RewardFigures, Spread
from densepath.records.estimates import Comparison, Interval
from densepath.records.judged import PositionBias
from densepath.stats.bootstrap import mean_replicates
from densepath.stats.comparisons import compare_pairs
from densepath.stats.intervals import mean_interval, metric_interval
from densepath.stats.win_rate import position_bias

BINS = 30

Key: TypeAlias = tuple[str, float, float, float]
"""A preview's reference, alpha of contrastive decoding, c of subtractive decoding, and temperature."""


@dataclass(frozen=True)
class Preview:
    """Answers of one preview; of its own samples at temperature 1, log-ratio to SFT and reward, (prompts,) nats."""

    completions: list[Completion]
    shift: tuple[Floats, Floats] | None


@dataclass(frozen=True)
class OfReference:
    """What one reference in memory gave.

    Attributes:
        logprobs: of every text, (completion tokens,) each, nats.
        likelihoods: strength, or None for the reference itself -> (rows,) NLL of demonstrations, nats per token.
        previews: by key.
    """

    logprobs: list[Tensor]
    likelihoods: dict[float | None, Floats]
    previews: dict[Key, Preview]


@dataclass(frozen=True)
class Measured:
    """All that was sampled and scored.

    Attributes:
        plan: how much was tried.
        prompts: rows that were answered.
        verifier: name of what judged the answers; None where nothing did.
        texts: what was scored under every model.
        logprobs: of every text under the SFT model, (completion tokens,) each, nats.
        sampled: temperature -> completions of the SFT model; empty where nothing was sampled.
        references: what each of them gave.
        previews: of all references.
    """

    plan: MeasurePlan
    prompts: int
    verifier: str | None
    texts: Texts
    logprobs: list[Tensor]
    sampled: Mapping[float, list[Completion]]
    references: Mapping[str, OfReference]
    previews: Mapping[Key, Preview]


def make_findings(measured: Measured) -> Findings:
    """All figures, with their intervals and comparisons; a prompt of which a judge could not say all is left out."""
    measured = _judged_everywhere(measured)
    plan, texts, mine, found = measured.plan, measured.texts, measured.logprobs, measured.references
    rewards = {name: dense_rewards(mine, of.logprobs) for name, of in found.items()}
    judged_rewards = dict(rewards)
    if plan.ensemble and len(found) > 1:
        columns = zip(*(of.logprobs for of in found.values()), strict=True)
        mean = [reference_logprobs(values, ReferenceMean.ARITHMETIC) for values in columns]
        judged_rewards[ENSEMBLE] = dense_rewards(mine, mean)
    agreed = measure_agreement(texts, judged_rewards, plan.max_completion_length, plan.seed)
    judged = measured.verifier is not None
    criterion = deciding_criterion(plan.criterion, agreed, judged=judged and bool(measured.previews))
    agreement = [each.agreement(name, which) for which, each in agreed.items() for name in judged_rewards]
    own = [
        _answers((None, 0.0, 0.0, temperature), completions) for temperature, completions in measured.sampled.items()
    ]
    tried = [_preview_answers(key, one, measured.sampled[key[3]], plan.seed) for key, one in measured.previews.items()]
    leads = _preference_leads(texts, mine, rewards, plan.seed)
    return Findings(
        prompts=measured.prompts,
        verifier=measured.verifier,
        preferences=len(texts.pairs),
        sft=tuple(own),
        candidates=with_leads(own, tried) if judged else tuple(tried),
        rewards=tuple(
            _reward_figures(values, texts, [a for a in agreement if a.reference == name], name, leads.get(name))
            for name, values in rewards.items()
            if measured.sampled
        ),
        likelihoods=_likelihoods(demonstrated(mine, texts), found, plan.seed) if texts.demonstrations else (),
        agreement=tuple(agreement),
        criterion=criterion,
        comparisons=best_against_others(criterion, agreed),
        betas=plan.betas,
        preferences_set_aside=texts.unused,
        position=_position(measured),
    )


def _position(measured: Measured) -> PositionBias | None:
    """A judge's bias for a place, each prompt one unit."""
    lists = [*measured.sampled.values(), *(preview.completions for preview in measured.previews.values())]
    found = [(each.row, each.by_order) for completions in lists for each in completions if each.by_order is not None]
    if not found:
        return None
    prompts, orders = zip(*found, strict=True)
    return position_bias(np.array(orders), np.array(prompts))


def _judged_everywhere(measured: Measured) -> Measured:
    """Without the prompts of which an answer of SFT or of a preview has no verdict, where others have."""
    lists = [*measured.sampled.values(), *(preview.completions for preview in measured.previews.values())]
    gone = {each.row for found in lists for each in found if each.metric is None}
    if measured.verifier is None or not gone:
        return measured
    kept = [row for row in range(measured.prompts) if row not in gone]
    if not kept:
        raise DataError(f"{measured.verifier} could say nothing of any prompt; ask another judge")
    places = {row: place for place, row in enumerate(kept)}

    def left(found: Sequence[Completion]) -> list[Completion]:
        return [dataclasses.replace(each, row=places[each.row]) for each in found if each.row in places]

    previews = {
        key: Preview(left(one.completions), one.shift and (one.shift[0][kept], one.shift[1][kept]))
        for key, one in measured.previews.items()
    }
    sampled = {temperature: left(found) for temperature, found in measured.sampled.items()}
    return dataclasses.replace(measured, prompts=len(kept), sampled=sampled, previews=previews)


def mean_verdict(completions: Sequence[Completion]) -> float:
    """Share that is right, mean over the prompts that were judged; NaN without a verifier."""
    return float(np.nanmean(_per_prompt(completions, _verdict)))


def _length(completion: Completion) -> float:
    return float(len(completion.completion_ids))


def _verdict(completion: Completion) -> float:
    return float("nan") if completion.metric is None else completion.metric


def _per_prompt(completions: Sequence[Completion], value: Callable[[Completion], float]) -> Floats:
    """(prompts,) mean of a value over each prompt's completions, which are neighbours."""
    rows = completions[-1].row + 1
    values = np.array([value(completion) for completion in completions], dtype=np.float64)
    found: Floats = values.reshape(rows, -1).mean(axis=1)
    return found


def _mean(values: Floats, seed: int) -> Interval:
    return mean_interval(values.tolist(), seed)


def _answers(key: Key | tuple[None, float, float, float], found: Sequence[Completion]) -> Answers:
    reference, alpha, taken, temperature = key
    verdicts = () if found[0].metric is None else tuple(_per_prompt(found, _verdict).tolist())
    lengths = tuple(_per_prompt(found, _length).tolist())
    return Answers(
        reference=reference,
        alpha=alpha,
        taken=taken,
        temperature=temperature,
        value=metric_interval(verdicts) if verdicts else None,
        length=mean_interval(lengths),
        truncated=float(np.mean([completion.truncated for completion in found])),
        verdicts=verdicts,
        lengths=lengths,
    )


def _preview_answers(key: Key, preview: Preview, own: Sequence[Completion], seed: int) -> Answers:
    """With the SFT model's answers at the same temperature."""
    longer = _per_prompt(preview.completions, _length) - _per_prompt(own, _length)
    kl, reward = (None, None) if preview.shift is None else (_mean(values, seed) for values in preview.shift)
    return dataclasses.replace(_answers(key, preview.completions), longer=_mean(longer, seed), kl=kl, reward=reward)


def _reward_figures(
    rewards: Sequence[Tensor], texts: Texts, agreement: Sequence[Agreement], name: str, lead: Comparison | None
) -> RewardFigures:
    own = [rewards[place] for of_row in texts.samples for place in of_row]
    sums = torch.stack([values.sum() for values in own])
    lengths = torch.tensor([len(values) for values in own], dtype=torch.float64)
    related = float(correlation(sums, lengths))
    counts, edges = np.histogram(sums.numpy(), bins=BINS)
    values = {one.criterion: one.value for one in agreement}
    return RewardFigures(
        reference=name,
        per_token=_spread(torch.cat(own)),
        per_completion=_spread(sums),
        length_correlation=None if np.isnan(related) else related,
        verifier=values.get(Criterion.VERIFIER),
        preference=values.get(Criterion.PREFERENCE),
        preference_lead=lead,
        histogram=(tuple(edges.tolist()), tuple(counts.tolist())),
    )


def _preference_leads(
    texts: Texts, mine: Sequence[Tensor], rewards: Mapping[str, Sequence[Tensor]], seed: int
) -> dict[str, Comparison]:
    """Accuracy on the pairs of each mean reward less that of the mean log pi_SFT: what SFT does not know by itself."""
    if not texts.pairs:
        return {}
    credits = {name: preference_credits(texts, of) for name, of in {SFT: mine, **rewards}.items()}
    means = {name: float(values.mean()) for name, values in credits.items()}
    drawn = mean_replicates(np.stack(list(credits.values())), seed=seed)
    replicates = dict(zip(credits, drawn.T, strict=True))
    compared = compare_pairs([(name, SFT) for name in rewards], means, replicates, len(texts.pairs))
    return dict(zip(rewards, compared, strict=True))


def _spread(values: Tensor) -> Spread:
    return Spread(float(values.mean()), float(values.std(correction=0)), float((values < 0).double().mean()))


def demonstrated(logprobs: Sequence[Tensor], texts: Texts) -> Floats:
    """(rows,) negative log-likelihood of each demonstration, nats per token."""
    return np.array([-float(logprobs[place].mean()) for place in texts.demonstrations])


def _likelihoods(own: Floats, found: Mapping[str, OfReference], seed: int) -> tuple[Likelihood, ...]:
    """Of the SFT model, then of each reference and its previews."""
    return (
        Likelihood(None, None, _mean(own, seed)),
        *(
            Likelihood(name, alpha, _mean(values, seed), _mean(values - own, seed))
            for name, of in found.items()
            for alpha, values in of.likelihoods.items()
        ),
    )
