"""What a diagnosis measured, as frozen records: answers of SFT and of each preview, figures of the reward, advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from densepath.records.estimates import Comparison, Interval


class Advice(str, Enum):
    """Whether to run DPR."""

    RUN_DPR = "run_dpr"
    DO_NOT = "do_not"
    CANNOT_TELL = "cannot_tell"


@dataclass(frozen=True)
class Recommendation:
    """What to do, and why.

    Attributes:
        advice: run DPR, do not, or it cannot be told.
        reference: of the advised run, else None.
        beta: of the advised run, else None.
        reasons: sentences with the figures that decided.
        warnings: sentences with what else was found.
    """

    advice: Advice
    reference: str | None
    beta: float | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """Completions of the validation prompts by one policy at one temperature.

    Attributes:
        reference: the preview's; None for the SFT model.
        alpha: the preview's strength 1/beta; 0 for the SFT model.
        temperature: 0 is greedy.
        value: the verifier's verdict, mean over prompts; None without a verifier.
        length: tokens.
        truncated: share that no EOS ended.
        longer: length less the SFT model's at this temperature, prompt by prompt; None for the SFT model.
        kl: log-ratio to the SFT model, nats per completion: an estimate of the KL; at temperature 1, previews only.
        reward: dense reward under the preview's reference, nats per completion; at temperature 1, previews only.
        against_best: value less that of the SFT model at its best temperature, corrected for all previews.
        against_same: value less that of the SFT model at this temperature, corrected for all previews.
        verdicts: the verifier's of each prompt, mean over its completions.
        lengths: tokens of each prompt's completions, mean.
    """

    reference: str | None
    alpha: float
    temperature: float
    value: Interval | None
    length: Interval
    truncated: float
    longer: Interval | None = None
    kl: Interval | None = None
    reward: Interval | None = None
    against_best: Comparison | None = None
    against_same: Comparison | None = None
    verdicts: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()

    @property
    def decoding(self) -> str:
        """`greedy` or `temperature 0.5`."""
        return "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"

    @property
    def label(self) -> str:
        """`SFT, greedy` or `reference 0.5, beta 0.5, greedy`."""
        who = "SFT" if self.reference is None else f"reference {self.reference}, beta {1 / self.alpha:g}"
        return f"{who}, {self.decoding}"


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and share below 0 of the reward of tokens or of completions, nats."""

    mean: float
    sd: float
    negative: float


@dataclass(frozen=True)
class RewardFigures:
    """The dense reward of the SFT model's own completions, sampled at temperature 1, under one reference.

    Attributes:
        reference: its name.
        per_token: over all tokens.
        per_completion: over the completions' sums.
        length_correlation: Pearson's, of a completion's sum with its length; None where one does not vary.
        verifier: AUROC of the mean reward of right completions against wrong ones; None without both.
        preference: accuracy of the mean reward on preference pairs; None without pairs.
        preference_lead: that accuracy less that of log pi_SFT alone, corrected for all references; None without pairs.
        histogram: (edges, counts) of the completions' sums.
    """

    reference: str
    per_token: Spread
    per_completion: Spread
    length_correlation: float | None
    verifier: Interval | None = None
    preference: Interval | None = None
    preference_lead: Comparison | None = None
    histogram: tuple[tuple[float, ...], tuple[int, ...]] = ((), ())


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of held-out demonstrations, nats per token, mean over rows.

    Attributes:
        reference: None for the SFT model.
        alpha: strength of the preview against that reference; None for the model itself.
        nll: of the demonstrations.
        change: less the SFT model's, row by row; None for the SFT model.
    """

    reference: str | None
    alpha: float | None
    nll: Interval
    change: Interval | None = None


@dataclass(frozen=True)
class Findings:
    """All that was measured.

    Attributes:
        prompts: validation prompts answered.
        verifier: name of the program that checked them, or None.
        preferences: pairs compared.
        sft: the SFT model's answers, by falling temperature.
        previews: answers of contrastive decoding, for every reference, strength and temperature.
        rewards: for every reference.
        likelihoods: of the SFT model, the references and the previews; empty without demonstrations.
    """

    prompts: int
    verifier: str | None
    preferences: int
    sft: tuple[Answers, ...]
    previews: tuple[Answers, ...]
    rewards: tuple[RewardFigures, ...]
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What was measured and what follows from it."""

    findings: Findings
    recommendation: Recommendation

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"recommendation": _plain(asdict(self.recommendation)), **_plain(asdict(self.findings))}


def _plain(value: Any) -> Any:
    """Enums as their values, in nested mappings and sequences."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
