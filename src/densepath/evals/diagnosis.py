"""Will DPR help on this SFT run? Its reward, and contrastive decoding as a preview of what DPR would converge to.

1. The SFT model answers validation prompts at temperature 1, at temperature 0.5 and greedily.
2. Its samples at temperature 1 and, where there are any, demonstrations and preference pairs are scored under the SFT
   model and each candidate reference: sign and spread of the reward, agreement with the verifier and the preferences.
3. Each reference at each strength is previewed at temperature 1 and greedily, and compared prompt by prompt with the
   SFT model, with a correction for the number of previews.
4. `recommend` decides from these figures alone.

Derived and measured here, not the paper's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from densepath.core.monitors import correlation
from densepath.data.formats import validate_rows
from densepath.data.rows import Row
from densepath.errors import ConfigError
from densepath.evals.diagnosis_records import (
    Answers,
    Diagnosis,
    Findings,
    Likelihood,
    RewardFigures,
    Spread,
)
from densepath.evals.generation import Completion, Decoding, checked, generate
from densepath.evals.preferences import pair_credits
from densepath.evals.preview import preview_logprobs
from densepath.evals.recommendation import recommend
from densepath.evals.reference_choice import Criterion, choose_reference
from densepath.evals.scored_texts import Model, Texts, collect_texts, dense_rewards, load_policy
from densepath.evals.signals import SFT, Floats
from densepath.evals.verifiers import Verifier, get_verifier
from densepath.models.compat import context_length
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET
from densepath.records.estimates import Comparison, Interval
from densepath.rewards.frozen import FrozenPolicy
from densepath.stats.bootstrap import mean_replicates
from densepath.stats.comparisons import compare_pairs
from densepath.stats.intervals import mean_interval, metric_interval

SFT_TEMPERATURES = (1.0, 0.5, 0.0)
"""What SFT has to offer without training: a preview that beats it at one of them alone has only sharpened it."""

PREVIEW_TEMPERATURES = (1.0, 0.0)
BINS = 30
RIGHT = 0.5
"""Verdicts from here on count as right where right and wrong completions are told apart."""

Key: TypeAlias = tuple[str, float, float]
"""Reference, strength and temperature of a preview."""


def diagnose(
    sft: Model,
    references: Mapping[str, Model],
    rows: Sequence[Row],
    *,
    tokenizer: Any,
    verifier: str | Verifier | None = None,
    preferences: Sequence[Row] = (),
    betas: Sequence[float] = (1.0, 0.5),
    num_generations: int = 1,
    max_completion_length: int = 128,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    source: str = "the data set",
    on_progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Whether to run DPR from this SFT model, against which reference and with which beta; nothing is trained.

    Args:
        sft: the SFT model: path, model or `FrozenPolicy`.
        references: name -> candidate: earlier checkpoints under their fraction ("0.5"), the model before SFT ("0").
            One is in memory at a time, beside the SFT model.
        rows: validation rows, never trained on and not the test's: prompts, or demonstrations in any format.
        tokenizer: that of all models.
        verifier: checks completions against their row; a name of `get_verifier` or a function. None: the preview can
            be described, not judged.
        preferences: rows with `prompt`, `chosen`, `rejected`.
        betas: candidates; a preview has the strength 1/beta.
        num_generations: completions of each prompt above temperature 0.
        max_completion_length: longest of them, tokens.
        seed: of sampling and bootstrap; every policy draws with the same random numbers.
        token_budget: tokens in one forward pass.
        dtype: of weights that are loaded here.
        device: where they go; None: CPU, "auto": CUDA where there is one.
        trust_remote_code: run Python code that comes with weights that are loaded here.
        source: name of the rows in messages.
        on_progress: called with (done, all) completions, sampled and scored.

    Returns:
        The findings and the recommendation.

    Raises:
        ConfigError: no reference, no or impossible betas.
        DataError: rows that cannot be used.
    """
    if not references:
        raise ConfigError("there is no reference to preview; SFT keeps some at reference_fractions")
    if not betas or min(betas) <= 0 or len(set(betas)) < len(betas):
        raise ConfigError(f"betas={list(betas)} must be different positive numbers")
    check = get_verifier(verifier) if isinstance(verifier, str) else verifier
    rows = [{key: value for key, value in dict(row).items() if value is not None} for row in rows]
    validate_rows(rows, "prompts", source=source)
    load = functools.partial(load_policy, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    policy = load(sft)
    texts = collect_texts(rows, preferences, tokenizer, context_length(policy.model), seed, source, altered=False)
    alphas = [1 / beta for beta in betas]
    of_sft = sum(_generations(each, num_generations) for each in SFT_TEMPERATURES)
    of_preview = sum(_generations(each, num_generations) for each in PREVIEW_TEMPERATURES)
    of_previews = len(references) * len(alphas) * len(rows) * of_preview
    done, total = 0, len(rows) * (of_sft + (1 + len(references)) * num_generations) + of_previews

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    def answers(temperature: float, ref: FrozenPolicy | None = None, alpha: float = 0.0) -> list[Completion]:
        before = done
        with policy.active() as model:
            found = generate(
                model,
                tokenizer,
                rows,
                Decoding(temperature, max_completion_length, _generations(temperature, num_generations), seed, alpha),
                second_model=None if ref is None else ref.model,
                on_progress=lambda finished, _: progress(before + finished - done),
            )
        return checked(found, rows, check)

    sampled = {temperature: answers(temperature) for temperature in SFT_TEMPERATURES}
    texts.add_samples(sampled[1.0], len(rows))
    total = done + (1 + len(references)) * len(texts.flat) + of_previews
    mine = texts.logprobs(policy, token_budget, progress)
    demonstrations = [texts.flat[place] for place in texts.demonstrations]
    nll: dict[tuple[str | None, float | None], Floats] = {(None, None): _demonstrated(mine, texts)}
    rewards: dict[str, list[Tensor]] = {}
    previews: dict[Key, list[Completion]] = {}
    shifts: dict[Key, tuple[Floats, Floats]] = {}
    for name, candidate in references.items():
        ref = load(candidate)
        if ref.model is policy.model or (ref.adapter != "" and ref.adapter is not None):
            raise ConfigError(f"reference {name}: a preview reads two models side by side; give a model of its own")
        theirs = texts.logprobs(ref, token_budget, progress)
        rewards[name] = dense_rewards(mine, theirs)
        nll[name, None] = _demonstrated(theirs, texts)
        shifted = preview_logprobs(policy, ref, demonstrations, alphas, token_budget=token_budget)
        for alpha in alphas:
            if shifted is not None:
                nll[name, alpha] = np.array([-float(values.mean()) for values in shifted[alpha]])
            for temperature in PREVIEW_TEMPERATURES:
                key = name, alpha, temperature
                previews[key] = answers(temperature, ref, alpha)
                if temperature == 1.0:
                    shifts[key] = _shift(previews[key], policy, ref, token_budget)
        del ref
    verdicts = {value >= RIGHT for of_row in texts.verdicts for value in of_row}
    agreement: dict[str, Any] = {"candidates": []}
    if texts.pairs or len(verdicts) == 2:
        agreement = choose_reference(texts, rewards, max_completion_length=max_completion_length, seed=seed)
    criteria = {candidate["reference"]: candidate["criteria"] for candidate in agreement["candidates"]}
    leads = _preference_leads(texts, mine, rewards, seed)
    own = [_answers(None, 0.0, temperature, found) for temperature, found in sampled.items()]
    tried = []
    for key, found in previews.items():
        longer = _per_prompt(found, _length) - _per_prompt(sampled[key[2]], _length)
        kl, reward = (_mean(values, seed) for values in shifts[key]) if key in shifts else (None, None)
        tried.append(dataclasses.replace(_answers(*key, found), longer=_mean(longer, seed), kl=kl, reward=reward))
    findings = Findings(
        prompts=len(rows),
        verifier=verifier if isinstance(verifier, str) else getattr(check, "__name__", None),
        preferences=len(texts.pairs),
        sft=tuple(own),
        previews=tuple(tried if check is None else _compared(own, tried, seed)),
        rewards=tuple(
            _reward_figures(name, values, texts, criteria.get(name, {}), leads.get(name))
            for name, values in rewards.items()
        ),
        likelihoods=_likelihoods(nll, seed) if demonstrations else (),
    )
    return Diagnosis(findings, recommend(findings))


def _generations(temperature: float, num_generations: int) -> int:
    """Completions of a prompt: one where they would all be equal."""
    return 1 if temperature == 0 else num_generations


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


def _answers(reference: str | None, alpha: float, temperature: float, found: Sequence[Completion]) -> Answers:
    verdicts = () if found[0].metric is None else tuple(_per_prompt(found, _verdict).tolist())
    lengths = tuple(_per_prompt(found, _length).tolist())
    return Answers(
        reference=reference,
        alpha=alpha,
        temperature=temperature,
        value=metric_interval(verdicts) if verdicts else None,
        length=mean_interval(lengths),
        truncated=float(np.mean([completion.truncated for completion in found])),
        verdicts=verdicts,
        lengths=lengths,
    )


def _compared(sft: Sequence[Answers], previews: Sequence[Answers], seed: int) -> list[Answers]:
    """The previews with their lead over SFT at its best temperature, and over SFT at the preview's own."""
    best = max(sft, key=lambda answers: float(np.mean(answers.verdicts)))
    same = {answers.temperature: answers for answers in sft}
    columns = {answers.label: np.array(answers.verdicts) for answers in (*sft, *previews)}
    means = {label: float(values.mean()) for label, values in columns.items()}
    drawn = mean_replicates(np.stack(list(columns.values())), seed=seed)
    replicates = dict(zip(columns, drawn.T, strict=True))
    leads = [
        compare_pairs([(one.label, against.label) for one, against in pairs], means, replicates, len(best.verdicts))
        for pairs in ([(one, best) for one in previews], [(one, same[one.temperature]) for one in previews])
    ]
    return [
        dataclasses.replace(one, against_best=of_best, against_same=of_same)
        for one, of_best, of_same in zip(previews, *leads, strict=True)
    ]


def _shift(
    completions: Sequence[Completion], policy: FrozenPolicy, ref: FrozenPolicy, token_budget: int
) -> tuple[Floats, Floats]:
    """(prompts,) log-ratio of the preview to SFT, and dense reward, of its own samples, nats per completion."""
    prompts, ids = [c.prompt_ids for c in completions], [c.completion_ids for c in completions]
    of_sft, of_ref = (
        np.array([float(values.double().sum()) for values in each.score(prompts, ids, token_budget).logprobs])
        for each in (policy, ref)
    )
    own = np.array([sum(completion.logprobs) for completion in completions])
    rows = completions[-1].row + 1
    return (own - of_sft).reshape(rows, -1).mean(axis=1), (of_sft - of_ref).reshape(rows, -1).mean(axis=1)


def _reward_figures(
    name: str, rewards: Sequence[Tensor], texts: Texts, criteria: Mapping[str, Any], lead: Comparison | None
) -> RewardFigures:
    own = [rewards[place] for of_row in texts.samples for place in of_row]
    sums = torch.stack([values.sum() for values in own])
    lengths = torch.tensor([len(values) for values in own], dtype=torch.float64)
    related = float(correlation(sums, lengths))
    counts, edges = np.histogram(sums.numpy(), bins=BINS)
    return RewardFigures(
        reference=name,
        per_token=_spread(torch.cat(own)),
        per_completion=_spread(sums),
        length_correlation=None if np.isnan(related) else related,
        verifier=_interval(criteria.get(Criterion.VERIFIER.value)),
        preference=_interval(criteria.get(Criterion.PREFERENCE.value)),
        preference_lead=lead,
        histogram=(tuple(edges.tolist()), tuple(counts.tolist())),
    )


def _preference_leads(
    texts: Texts, mine: Sequence[Tensor], rewards: Mapping[str, Sequence[Tensor]], seed: int
) -> dict[str, Comparison]:
    """Accuracy on the pairs of each mean reward less that of the mean log pi_SFT: what SFT does not know by itself."""
    if not texts.pairs:
        return {}
    credits = {
        name: pair_credits(*(np.array([float(of[pair[side]].mean()) for pair in texts.pairs]) for side in (0, 1)))
        for name, of in {SFT: mine, **rewards}.items()
    }
    means = {name: float(values.mean()) for name, values in credits.items()}
    drawn = mean_replicates(np.stack(list(credits.values())), seed=seed)
    replicates = dict(zip(credits, drawn.T, strict=True))
    compared = compare_pairs([(name, SFT) for name in rewards], means, replicates, len(texts.pairs))
    return dict(zip(rewards, compared, strict=True))


def _spread(values: Tensor) -> Spread:
    return Spread(float(values.mean()), float(values.std(correction=0)), float((values < 0).double().mean()))


def _interval(criterion: Mapping[str, Any] | None) -> Interval | None:
    return None if criterion is None else Interval(**criterion["value"])


def _demonstrated(logprobs: Sequence[Tensor], texts: Texts) -> Floats:
    """(rows,) negative log-likelihood of each demonstration, nats per token."""
    return np.array([-float(logprobs[place].mean()) for place in texts.demonstrations])


def _likelihoods(nll: Mapping[tuple[str | None, float | None], Floats], seed: int) -> tuple[Likelihood, ...]:
    own = nll[None, None]
    return tuple(
        Likelihood(
            reference,
            alpha,
            _mean(values, seed),
            None if reference is None else _mean(values - own, seed),
        )
        for (reference, alpha), values in nll.items()
    )
