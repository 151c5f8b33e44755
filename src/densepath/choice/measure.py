"""What is known before any training: the SFT model at its best, each reference's reward, and previews of DPR.

1. The SFT model answers validation prompts at temperature 1, at temperature 0.5 and greedily.
2. Its samples at temperature 1 and, where there are any, demonstrations and preference pairs are scored under the SFT
   model and each candidate reference: sign and spread of the reward, and its agreement with what is known.
3. Each reference at each strength is previewed by contrastive decoding at temperature 1 and greedily, and compared
   prompt by prompt with the SFT model, with a correction for the number of previews.

`decide` decides from these findings alone. Derived and measured here, not the paper's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
from densepath.choice.inputs import Evidence, MeasurePlan, SFTModels
from densepath.core.monitors import correlation
from densepath.core.rewards import ReferenceMean, reference_logprobs
from densepath.data.formats import validate_rows
from densepath.data.rows import Row
from densepath.errors import ConfigError, DataError
from densepath.evals.generation import Completion, Decoding, checked, generate
from densepath.evals.preview import preview_logprobs
from densepath.evals.scored_texts import Texts, collect_texts, dense_rewards
from densepath.evals.signals import SFT, Floats
from densepath.evals.verifiers import Verifier, get_verifier
from densepath.models.compat import context_length
from densepath.records.choice import Agreement, Answers, Criterion, Findings, Likelihood, RewardFigures, Spread
from densepath.records.codec import from_json, to_json
from densepath.records.estimates import Comparison, Interval
from densepath.rewards.frozen import FrozenPolicy
from densepath.stats.bootstrap import mean_replicates
from densepath.stats.comparisons import compare_pairs
from densepath.stats.intervals import mean_interval, metric_interval

SFT_TEMPERATURES = (1.0, 0.5, 0.0)
"""What SFT has to offer without training: a preview that beats it at one of them alone has only sharpened it."""

PREVIEW_TEMPERATURES = (1.0, 0.0)
BINS = 30

Keep: TypeAlias = Callable[[str, Callable[[], Any]], Any]
"""(name, compute) -> the JSON value that `compute` gave, now or before a kill."""


def measure(
    models: SFTModels,
    evidence: Evidence,
    plan: MeasurePlan | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    keep: Keep = lambda name, compute: compute(),
) -> Findings:
    """Answers of the SFT model and of each candidate, and what the reward of each reference says; nothing is trained.

    Args:
        models: the SFT model and the candidates for the reference; one of these is in memory at a time.
        evidence: validation rows, and what says that an answer is right.
        plan: how much is tried; the defaults if None.
        on_progress: called with (done, all) completions, sampled and scored.
        keep: keeps what was sampled, so that a killed run goes on from there.

    Raises:
        ConfigError: a criterion that cannot be computed, or a reference that shares the SFT model's weights in memory.
        DataError: rows that cannot be used, or nothing to measure.
    """
    job = _Job.begin(models, evidence, plan or MeasurePlan(), _Progress(on_progress), keep)
    texts = job.collect()
    sampled = {temperature: job.answers(temperature) for temperature in job.temperatures}
    job.add_samples(texts, sampled)
    mine = texts.logprobs(job.policy, job.plan.token_budget, job.progress.add)
    betas = job.betas if job.plan.every_beta else job.betas[:1]
    found = {name: job.reference(name, texts, mine, betas) for name in models.references}
    previews = {key: preview for of in found.values() for key, preview in of.previews.items()}
    rest = [beta for beta in job.betas if beta not in betas]
    if rest:
        best = max(previews, key=lambda key: float(np.mean(_per_prompt(previews[key].completions, _verdict))))
        previews |= job.previews(best[0], rest)
    return _findings(job, texts, mine, sampled, found, previews)


# --- sampling and scoring ------------------------------------------------------------------------------------------

Key: TypeAlias = tuple[str, float, float]
"""Reference, strength and temperature of a preview."""


@dataclass
class _Progress:
    """Counts completions, sampled and scored, of a total that is known better as it goes on."""

    report: Callable[[int, int], None] | None
    done: int = 0
    total: int = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.report is not None:
            self.report(self.done, max(self.done, self.total))


@dataclass(frozen=True)
class _Preview:
    """Answers of one preview; of its own samples at temperature 1, log-ratio to SFT and reward, (prompts,) nats."""

    completions: list[Completion]
    shift: tuple[Floats, Floats] | None


@dataclass(frozen=True)
class _OfReference:
    """What one reference in memory gave.

    Attributes:
        logprobs: of every text, (completion tokens,) each, nats.
        likelihoods: strength, or None for the reference itself -> (rows,) NLL of demonstrations, nats per token.
        previews: by key.
    """

    logprobs: list[Tensor]
    likelihoods: dict[float | None, Floats]
    previews: dict[Key, _Preview]


@dataclass(frozen=True)
class _Job:
    """What every step needs."""

    models: SFTModels
    evidence: Evidence
    plan: MeasurePlan
    policy: FrozenPolicy
    rows: list[Row]
    check: Verifier | None
    progress: _Progress
    keep: Keep

    @classmethod
    def begin(cls, models: SFTModels, evidence: Evidence, plan: MeasurePlan, progress: _Progress, keep: Keep) -> _Job:
        """The rows checked, then the SFT model loaded."""
        check = get_verifier(evidence.verifier) if isinstance(evidence.verifier, str) else evidence.verifier
        rows: list[Row] = [
            {key: value for key, value in dict(row).items() if value is not None} for row in evidence.rows
        ]
        validate_rows(rows, "prompts", source=str(evidence.source))
        return cls(models, evidence, plan, models.load(models.sft), rows, check, progress, keep)

    @property
    def judged(self) -> bool:
        """Whether a verifier says which answers are right."""
        return self.check is not None and self.plan.num_generations > 0

    @property
    def betas(self) -> tuple[float, ...]:
        """Of previews: none where nothing is sampled, or where only judged ones were asked for and nothing judges."""
        wanted = self.plan.num_generations > 0 and (self.judged or self.plan.every_beta)
        return self.plan.betas if wanted else ()

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which the SFT model answers: all that it is good for where previews have to beat it."""
        return () if self.plan.num_generations == 0 else SFT_TEMPERATURES if self.betas else SFT_TEMPERATURES[:1]

    def answers(
        self, temperature: float, name: str = "sft", ref: FrozenPolicy | None = None, alpha: float = 0.0
    ) -> list[Completion]:
        """Completions of every row, checked; with a reference, those of its preview."""
        decoding = Decoding(
            temperature,
            self.plan.max_completion_length,
            self._per_prompt(temperature),
            self.plan.seed,
            alpha,
        )
        before = self.progress.done

        def sample() -> list[Any]:
            with self.policy.active() as model:
                found = generate(
                    model,
                    self.models.tokenizer,
                    self.rows,
                    decoding,
                    second_model=None if ref is None else ref.model,
                    on_progress=lambda finished, _: self.progress.add(before + finished - self.progress.done),
                )
            return [to_json(each) for each in found]

        kept = self.keep(f"{name}{f'-{1 / alpha:g}' if alpha else ''}-{temperature:g}", sample)
        found = checked([from_json(Completion, each) for each in kept], self.rows, self.check)
        self.progress.add(before + len(found) - self.progress.done)
        return found

    def collect(self) -> Texts:
        """The demonstrations and pairs that are scored under every model."""
        evidence, plan = self.evidence, self.plan
        texts = collect_texts(
            self.rows,
            evidence.preferences,
            self.models.tokenizer,
            context_length(self.policy.model),
            plan.seed,
            str(evidence.source),
        )
        if not texts.flat and not self.temperatures:
            raise DataError(
                f"{evidence.source}: nothing to measure; sample with num_generations, or give demonstrations"
            )
        per_prompt = sum(self._per_prompt(temperature) for temperature in self.temperatures)
        self.progress.total = len(self.rows) * per_prompt + self._scored(len(texts.flat))
        return texts

    def add_samples(self, texts: Texts, sampled: Mapping[float, list[Completion]]) -> None:
        """Let the SFT model's own answers at temperature 1 be scored too."""
        if sampled:
            texts.add_samples(sampled[1.0], len(self.rows))
            self.progress.total = self.progress.done + self._scored(len(texts.flat))

    def _scored(self, texts: int) -> int:
        """Completions that are still to be scored and sampled, once the SFT model has answered."""
        references, betas = len(self.models.references), len(self.betas)
        tried = references * betas if self.plan.every_beta else references + betas - 1
        per_prompt = sum(self._per_prompt(temperature) for temperature in PREVIEW_TEMPERATURES)
        return (1 + references) * texts + (tried * per_prompt * len(self.rows) if betas else 0)

    def _per_prompt(self, temperature: float) -> int:
        """Completions of each prompt: one where they would all be equal."""
        return 1 if temperature == 0 else self.plan.num_generations

    def load(self, name: str) -> FrozenPolicy:
        """A reference that can stand beside the SFT model."""
        ref = self.models.load(self.models.references[name])
        if self.betas and (ref.model is self.policy.model or (ref.adapter != "" and ref.adapter is not None)):
            raise ConfigError(f"reference {name}: a preview reads two models side by side; give a model of its own")
        return ref

    def reference(self, name: str, texts: Texts, mine: list[Tensor], betas: Sequence[float]) -> _OfReference:
        """All texts scored, and previewed at some betas."""
        ref = self.load(name)
        theirs = texts.logprobs(ref, self.plan.token_budget, self.progress.add)
        likelihoods: dict[float | None, Floats] = {None: _demonstrated(theirs, texts)}
        demonstrations = [texts.flat[place] for place in texts.demonstrations]
        alphas = [1 / beta for beta in betas]
        shifted = preview_logprobs(self.policy, ref, demonstrations, alphas, token_budget=self.plan.token_budget)
        for alpha, logprobs in (shifted or {}).items():
            likelihoods[alpha] = np.array([-float(values.mean()) for values in logprobs])
        return _OfReference(theirs, likelihoods, self._previews(name, ref, alphas))

    def previews(self, name: str, betas: Sequence[float]) -> dict[Key, _Preview]:
        """A reference previewed at further betas."""
        return self._previews(name, self.load(name), [1 / beta for beta in betas])

    def _previews(self, name: str, ref: FrozenPolicy, alphas: Sequence[float]) -> dict[Key, _Preview]:
        place = list(self.models.references).index(name)
        found = {}
        for alpha in alphas:
            for temperature in PREVIEW_TEMPERATURES:
                completions = self.answers(temperature, str(place), ref, alpha)
                shift = _shift(completions, self.policy, ref, self.plan.token_budget) if temperature == 1 else None
                found[name, alpha, temperature] = _Preview(completions, shift)
        return found


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


# --- figures -------------------------------------------------------------------------------------------------------


def _findings(
    job: _Job,
    texts: Texts,
    mine: list[Tensor],
    sampled: Mapping[float, list[Completion]],
    found: Mapping[str, _OfReference],
    previews: Mapping[Key, _Preview],
) -> Findings:
    seed = job.plan.seed
    rewards = {name: dense_rewards(mine, of.logprobs) for name, of in found.items()}
    judged_rewards = dict(rewards)
    if job.plan.ensemble and len(found) > 1:
        mean = [
            reference_logprobs(values, ReferenceMean.ARITHMETIC)
            for values in zip(*(of.logprobs for of in found.values()), strict=True)
        ]
        judged_rewards[ENSEMBLE] = dense_rewards(mine, mean)
    measured = measure_agreement(texts, judged_rewards, job.plan.max_completion_length, seed)
    criterion = deciding_criterion(job.plan.criterion, measured, judged=job.judged and bool(previews))
    agreement = [each.agreement(name, which) for which, each in measured.items() for name in judged_rewards]
    own = [_answers(None, 0.0, temperature, completions) for temperature, completions in sampled.items()]
    tried = [_preview_answers(key, preview, sampled[key[2]], seed) for key, preview in previews.items()]
    leads = _preference_leads(texts, mine, rewards, seed)
    return Findings(
        prompts=len(job.rows),
        verifier=_verifier_name(job) if job.judged else None,
        preferences=len(texts.pairs),
        sft=tuple(own),
        candidates=with_leads(own, tried) if job.judged else tuple(tried),
        rewards=tuple(
            _reward_figures(values, texts, [a for a in agreement if a.reference == name], name, leads.get(name))
            for name, values in rewards.items()
            if sampled
        ),
        likelihoods=_likelihoods(_demonstrated(mine, texts), found, seed) if texts.demonstrations else (),
        agreement=tuple(agreement),
        criterion=criterion,
        comparisons=best_against_others(criterion, measured),
        betas=job.plan.betas,
        preferences_set_aside=texts.unused,
    )


def _verifier_name(job: _Job) -> str:
    given = job.evidence.verifier
    return given if isinstance(given, str) else getattr(job.check, "__name__", "verifier")


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


def _preview_answers(key: Key, preview: _Preview, own: Sequence[Completion], seed: int) -> Answers:
    """With the SFT model's answers at the same temperature."""
    longer = _per_prompt(preview.completions, _length) - _per_prompt(own, _length)
    kl, reward = (None, None) if preview.shift is None else (_mean(values, seed) for values in preview.shift)
    return dataclasses.replace(_answers(*key, preview.completions), longer=_mean(longer, seed), kl=kl, reward=reward)


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


def _demonstrated(logprobs: Sequence[Tensor], texts: Texts) -> Floats:
    """(rows,) negative log-likelihood of each demonstration, nats per token."""
    return np.array([-float(logprobs[place].mean()) for place in texts.demonstrations])


def _likelihoods(own: Floats, found: Mapping[str, _OfReference], seed: int) -> tuple[Likelihood, ...]:
    """Of the SFT model, then of each reference and its previews."""
    return (
        Likelihood(None, None, _mean(own, seed)),
        *(
            Likelihood(name, alpha, _mean(values, seed), _mean(values - own, seed))
            for name, of in found.items()
            for alpha, values in of.likelihoods.items()
        ),
    )
