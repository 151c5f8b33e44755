"""What is known before any training: the SFT model at its best, each reference's reward, and previews of DPR.

1. The SFT model answers validation prompts at temperature 1, at temperature 0.5 and greedily.
2. Its samples at temperature 1 and, where there are any, demonstrations and preference pairs are scored under the SFT
   model and each candidate reference: sign and spread of the reward, and its agreement with what is known.
3. Each reference is previewed, at each strength by contrastive decoding and, for the capped reward, by subtractive
   decoding, at temperature 1 and greedily, and compared prompt by prompt with the SFT model, with a correction for the
   number of previews.

`decide` decides from these findings alone. Derived and measured here, not the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from densepath.choice.figures import Key, Measured, OfReference, Preview, demonstrated, make_findings, mean_verdict
from densepath.choice.inputs import Evidence, MeasurePlan, SFTModels
from densepath.data.formats import validate_rows
from densepath.data.rows import Row
from densepath.errors import ConfigError, DataError
from densepath.evals.generation import Completion, Decoding, checked, generate_each
from densepath.evals.preview import preview_logprobs
from densepath.evals.scored_texts import Texts, TextScores, collect_texts
from densepath.evals.signals import Floats
from densepath.evals.verifiers import AnswerJudge, Verifier, get_verifier
from densepath.models.sampling import Contrast, ContrastKind
from densepath.records.choice import Findings
from densepath.records.codec import from_json, to_json
from densepath.rewards.frozen import FrozenPolicy

SFT_TEMPERATURES = (1.0, 0.5, 0.0)
"""What SFT has to offer without training: a preview that beats it at one of them alone has only sharpened it."""

PREVIEW_TEMPERATURES = (1.0, 0.0)
TAKEN = 0.8
"""Share of the reference that the preview of capped DPR takes away."""

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
        models: the SFT model and the candidates for the reference.
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
    sampled = job.answers(job.temperatures)
    job.add_samples(texts, sampled)
    mine = texts.scores(job.policy, job.plan.token_budget, job.progress.add)
    first = job.contrasts if job.plan.every_beta else job.contrasts[:1]
    found = {name: job.reference(name, texts, mine, first) for name in models.references}
    previews = {key: preview for of in found.values() for key, preview in of.previews.items()}
    rest = job.contrasts[len(first) :]
    if rest:
        best = max(previews, key=lambda key: mean_verdict(previews[key].completions))
        previews |= job.previews(best[0], rest)
    scored = job.plan, len(job.rows), job.verifier, texts, mine.logprobs
    return make_findings(Measured(*scored, sampled, found, previews))


# --- sampling and scoring ------------------------------------------------------------------------------------------


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
class _Job:
    """What every step needs."""

    models: SFTModels
    evidence: Evidence
    plan: MeasurePlan
    policy: FrozenPolicy
    rows: list[Row]
    check: Verifier | AnswerJudge | None
    progress: _Progress
    keep: Keep
    views: dict[str, FrozenPolicy] = field(default_factory=dict)

    @classmethod
    def begin(cls, models: SFTModels, evidence: Evidence, plan: MeasurePlan, progress: _Progress, keep: Keep) -> _Job:
        """The rows checked, then the SFT model loaded."""
        check = get_verifier(evidence.verifier) if isinstance(evidence.verifier, str) else evidence.verifier
        rows: list[Row] = [
            {key: value for key, value in dict(row).items() if value is not None} for row in evidence.rows
        ]
        validate_rows(rows, "held-out prompts", source=str(evidence.source))
        return cls(models, evidence, plan, models.load(models.sft), rows, check, progress, keep)

    @property
    def judged(self) -> bool:
        """Whether a verifier or a judge says how good answers are."""
        return self.check is not None and self.plan.num_generations > 0

    @property
    def verifier(self) -> str | None:
        """Name of what judges; None where nothing does."""
        given = self.evidence.verifier
        name = given if isinstance(given, str) else getattr(given, "__name__", "verifier")
        return name if self.judged else None

    @property
    def betas(self) -> tuple[float, ...]:
        """Of previews: none where nothing is sampled, or where only judged ones were asked for and nothing judges."""
        wanted = self.plan.num_generations > 0 and (self.judged or self.plan.every_beta)
        return self.plan.betas if wanted else ()

    @property
    def contrasts(self) -> tuple[tuple[ContrastKind, float], ...]:
        """Of previews: one for each beta, and one for the capped reward if it is asked for."""
        plain = tuple((ContrastKind.CONTRASTIVE, 1 / beta) for beta in self.betas)
        return (*plain, (ContrastKind.SUBTRACTIVE, TAKEN)) if plain and self.plan.capped else plain

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which the SFT model answers: all that it is good for where previews have to beat it."""
        return () if self.plan.num_generations == 0 else SFT_TEMPERATURES if self.betas else SFT_TEMPERATURES[:1]

    def answers(
        self, temperatures: Sequence[float], name: str = "sft", contrast: Contrast | None = None
    ) -> dict[float, list[Completion]]:
        """Completions of every row, checked, by temperature; with a contrast, those of a preview, which is named."""
        if not temperatures:
            return {}
        plan, before = self.plan, self.progress.done
        decodings = [
            Decoding(each, plan.max_completion_length, self._per_prompt(each), plan.seed) for each in temperatures
        ]

        def sample() -> list[Any]:
            with self.policy.active() as model:
                found = generate_each(
                    model,
                    self.models.tokenizer,
                    self.rows,
                    decodings,
                    contrast=contrast,
                    on_progress=lambda finished, _: self.progress.add(before + finished - self.progress.done),
                )
            return [[to_json(each) for each in completions] for completions in found]

        kept = [[from_json(Completion, each) for each in completions] for completions in self.keep(name, sample)]
        found = [checked(completions, self.rows, self.check) for completions in kept]
        self.progress.add(before + sum(map(len, found)) - self.progress.done)
        return dict(zip(temperatures, found, strict=True))

    def collect(self) -> Texts:
        """The demonstrations and pairs that are scored under every model."""
        evidence, plan = self.evidence, self.plan
        texts = collect_texts(
            self.rows,
            evidence.preferences,
            self.models.tokenizer,
            self.models.context,
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
        references = len(self.models.references)
        previewed = _previewed(self.plan, references, len(self.contrasts))
        return (1 + references) * texts + previewed * len(self.rows)

    def _per_prompt(self, temperature: float) -> int:
        return _per_prompt(self.plan, temperature)

    def load(self, name: str) -> FrozenPolicy:
        """A reference that can stand beside the SFT model; adapters on its base stay there once they are loaded."""
        if name in self.views:
            return self.views[name]
        place = list(self.models.references).index(name)
        ref = self.models.load(self.models.references[name], self.policy, f"reference_{place}")
        if ref.model is self.policy.model:
            if ref.adapter == "" and self.betas:
                raise ConfigError(f"reference {name} is the SFT model itself, so a preview would be SFT; give another")
            self.views[name] = ref
        return ref

    def reference(
        self, name: str, texts: Texts, mine: TextScores, contrasts: Sequence[tuple[ContrastKind, float]]
    ) -> OfReference:
        """All texts scored, and previewed by some contrasts."""
        ref = self.load(name)
        theirs = texts.scores(ref, self.plan.token_budget, self.progress.add)
        likelihoods: dict[float | None, Floats] = {None: demonstrated(theirs.logprobs, texts)}
        demonstrations = [texts.flat[place] for place in texts.demonstrations]
        alphas = [strength for kind, strength in contrasts if kind is ContrastKind.CONTRASTIVE]
        states = list(zip(mine.hidden, theirs.hidden, strict=False))  # none where a head is not plain
        shifted = preview_logprobs(self.policy, ref, demonstrations, alphas, states)
        for alpha, logprobs in (shifted or {}).items():
            likelihoods[alpha] = np.array([-float(values.mean()) for values in logprobs])
        return OfReference(theirs.logprobs, likelihoods, self._previews(name, ref, contrasts))

    def previews(self, name: str, contrasts: Sequence[tuple[ContrastKind, float]]) -> dict[Key, Preview]:
        """A reference previewed by further contrasts."""
        return self._previews(name, self.load(name), contrasts)

    def _previews(
        self, name: str, ref: FrozenPolicy, contrasts: Sequence[tuple[ContrastKind, float]]
    ) -> dict[Key, Preview]:
        place = list(self.models.references).index(name)
        found = {}
        for kind, strength in contrasts:
            capped = kind is ContrastKind.SUBTRACTIVE
            title = f"{place}-{'capped' if capped else f'{1 / strength:g}'}"
            alpha, taken = (0.0, strength) if capped else (strength, 0.0)
            with ref.beside() as second:
                drawn = self.answers(PREVIEW_TEMPERATURES, title, Contrast(second, kind, strength))
            for temperature, completions in drawn.items():
                shift = _shift(completions) if temperature == 1 else None
                found[name, alpha, taken, temperature] = Preview(completions, shift)
        return found


def judged_answers(plan: MeasurePlan, references: int) -> int:
    """Answers to each prompt that `measure` has judged.

    Args:
        plan: how much is tried.
        references: number of candidates.
    """
    contrasts = (len(plan.betas) + plan.capped) if plan.betas else 0
    own = sum(_per_prompt(plan, each) for each in (SFT_TEMPERATURES if contrasts else SFT_TEMPERATURES[:1]))
    return own + _previewed(plan, references, contrasts)


def _previewed(plan: MeasurePlan, references: int, contrasts: int) -> int:
    """Answers of all previews to each prompt."""
    if not contrasts:
        return 0
    tried = references * contrasts if plan.every_beta else references + contrasts - 1
    return tried * sum(_per_prompt(plan, temperature) for temperature in PREVIEW_TEMPERATURES)


def _per_prompt(plan: MeasurePlan, temperature: float) -> int:
    """Completions of each prompt: one where they would all be equal."""
    return 1 if temperature == 0 else plan.num_generations


def _shift(completions: Sequence[Completion]) -> tuple[Floats, Floats]:
    """(prompts,) log-ratio of the preview to SFT, and dense reward, of its own samples, nats per completion.

    All three log-probabilities are the sampler's, which had both models' distributions at hand.
    """
    of_sft, of_ref = np.array([completion.of_models for completion in completions]).T
    own = np.array([sum(completion.logprobs) for completion in completions])
    rows = completions[-1].row + 1
    return (own - of_sft).reshape(rows, -1).mean(axis=1), (of_sft - of_ref).reshape(rows, -1).mean(axis=1)
