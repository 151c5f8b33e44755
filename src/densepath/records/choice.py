"""What was measured before any training, and what follows from it: findings and a decision."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from densepath.records.brief import brief
from densepath.records.estimates import Comparison, Interval, Verdict
from densepath.records.judged import PositionBias


class Answer(str, Enum):
    """What a decision says."""

    CANDIDATE = "candidate"  # one is shown to be better than the SFT model at its best
    NONE = "none"  # none is: the SFT model is kept
    CANNOT_TELL = "cannot_tell"  # too few prompts, or nothing to judge by
    TRAIN_ON = "train_on"  # SFT is not finished: more of it comes first, whatever else was found


class Criterion(str, Enum):
    """What candidates are judged by: their own answers, or the reward that a reference makes with the SFT model.

    The reward is judged on pairs that somebody judged, on right against wrong answers of the SFT model, on
    demonstrations against twins with one altered number, or on demonstrations against answers of the SFT model.
    """

    ANSWERS = "answers"
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
"""What the figure of a criterion of the reward is."""

CHANCE = {Criterion.PREFERENCE: 0.5, Criterion.VERIFIER: 0.5, Criterion.ALTERED: 0.0, Criterion.SAMPLES: 0.0}
"""Its value where the reward says nothing."""

FEWEST = 5
"""Units (prompts, pairs) below which such a figure shows nothing: of 3 that agree a sign test says 1 in 8, and of so
few the bootstrap often draws one alone."""


CAPPED_BETA = 1.0
"""Beta of DPR with the capped reward, whose optimum subtractive decoding previews whatever beta is."""


def strength_name(beta: float, capped: bool) -> str:
    """`beta 0.5` of DPR with the plain reward, `capped` of DPR with the capped one."""
    return "capped" if capped else f"beta {beta:g}"


@dataclass(frozen=True)
class Answers:
    """Completions of the validation prompts by one policy at one temperature.

    Attributes:
        reference: of a preview of DPR; None for the SFT model and for any other policy.
        alpha: the preview's strength 1/beta; 0 for the SFT model.
        temperature: 0 is greedy.
        value: the verifier's verdict, mean over prompts; None without a verifier.
        length: tokens.
        truncated: share that no EOS ended.
        policy: name of another candidate, neither SFT nor preview.
        taken: share c of the reference that subtractive decoding takes away: a preview of capped DPR; else 0.
        longer: length less the SFT model's at this temperature, prompt by prompt; None for the SFT model.
        kl: log-ratio to the SFT model, nats per completion: an estimate of the KL; at temperature 1, previews only.
        reward: dense reward under the preview's reference, nats per completion; at temperature 1, previews only.
        against_best: value less that of the SFT model at its best temperature, corrected for all candidates.
        against_same: value less that of the SFT model at this temperature, corrected for all candidates.
        verdicts: the verifier's of each prompt, mean over its completions.
        lengths: tokens of each prompt's completions, mean.
    """

    reference: str | None
    alpha: float
    temperature: float
    value: Interval | None
    length: Interval
    truncated: float
    policy: str | None = None
    taken: float = 0.0
    longer: Interval | None = None
    kl: Interval | None = None
    reward: Interval | None = None
    against_best: Comparison | None = None
    against_same: Comparison | None = None
    verdicts: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()

    __repr__ = brief

    @property
    def decoding(self) -> str:
        """`greedy` or `temperature 0.5`."""
        return "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"

    @property
    def capped(self) -> bool:
        """Whether DPR with the capped reward is previewed."""
        return self.taken > 0

    @property
    def beta(self) -> float:
        """Of the DPR that is previewed."""
        return CAPPED_BETA if self.capped else 1 / self.alpha

    @property
    def strength(self) -> str:
        """`at beta 0.5`, or `with the capped reward`, of a preview."""
        return "with the capped reward" if self.capped else f"at beta {self.beta:g}"

    @property
    def who(self) -> str:
        """`SFT`, `reference 0.5, beta 0.5`, `reference 0.5, capped` or the policy's name."""
        if self.reference is not None:
            return f"reference {self.reference}, {strength_name(self.beta, self.capped)}"
        return self.policy or "SFT"

    @property
    def label(self) -> str:
        """`SFT, greedy` or `reference 0.5, beta 0.5, greedy`."""
        return f"{self.who}, {self.decoding}"


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
        verifier: AUROC of the mean reward of right completions against wrong ones; None without both, or of fewer
            than five prompts.
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

    __repr__ = brief


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
class Agreement:
    """How well the reward under one reference agrees with what is known, by one criterion.

    Attributes:
        reference: its name; "all" is the mean probability of all of them.
        criterion: of the reward.
        value: accuracy, AUROC or signal-to-noise of the margin, as `UNITS` says.
        low: lower end of its one-sided 90 % interval.
        margin: mean difference of mean rewards, nats per token; None where the figure is no margin.
        above: share of margins above 0; None likewise.
        right: share of the SFT model's answers that the verifier accepts; for `verifier` alone.
    """

    reference: str
    criterion: Criterion
    value: Interval
    low: float
    margin: float | None = None
    above: float | None = None
    right: float | None = None


@dataclass(frozen=True)
class Findings:
    """All that was measured.

    Attributes:
        prompts: validation prompts answered.
        verifier: name of the program that checked them, or None.
        preferences: pairs compared.
        sft: the SFT model's answers, by falling temperature; empty where nothing was sampled.
        candidates: answers of each candidate at each of its decodings: previews of DPR by contrastive decoding, and of
            capped DPR by subtractive decoding, for every reference, strength and temperature, or other policies.
        rewards: for every reference; empty where nothing was sampled.
        likelihoods: of the SFT model, the references and the previews; empty without demonstrations.
        agreement: of each reference's reward, for each criterion that there is.
        criterion: what decides; None where there is nothing to judge by.
        comparisons: the best reference by that criterion (or the first one of the reward) less each other.
        betas: candidates of DPR's beta.
        preferences_set_aside: pairs of equal tokens, or longer than the context.
        position: how far a judge goes by the place in which an answer is shown, over all answers that it compared;
            None without a judge that was shown both orders.
    """

    prompts: int
    verifier: str | None
    preferences: int
    sft: tuple[Answers, ...]
    candidates: tuple[Answers, ...]
    rewards: tuple[RewardFigures, ...] = ()
    likelihoods: tuple[Likelihood, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    criterion: Criterion | None = None
    comparisons: tuple[Comparison, ...] = ()
    betas: tuple[float, ...] = ()
    preferences_set_aside: int = 0
    position: PositionBias | None = None

    __repr__ = brief


@dataclass(frozen=True)
class Decision:
    """What to do, and why.

    Attributes:
        answer: a candidate, none of them, it cannot be told, or SFT is to go on first.
        reference: of DPR: the candidate's, or where it cannot be told the one that looks best, if any does.
        beta: of DPR, likewise.
        capped: whether DPR with the capped reward is meant.
        policy: the candidate, where it is no preview of DPR.
        decoding: of the candidate; None where no answers were judged.
        figure: the number that decided, with its interval before correction: the lead of the best candidate over the
            SFT model at its best, or the agreement of the reward. None where there is none.
        p_holm: p-value of that lead, corrected for the number of candidates; None where the figure is no lead.
        reasons: sentences with the figures that decided.
        warnings: sentences with what else was found.
        p: p-value of that lead before the correction; None likewise.
    """

    answer: Answer
    reference: str | None
    beta: float | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    policy: str | None = None
    decoding: str | None = None
    figure: Interval | None = None
    p_holm: float | None = None
    capped: bool = False
    p: float | None = None

    __repr__ = brief

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return " ".join(self.reasons)


@dataclass(frozen=True)
class ChosenReference:
    """What DPR is run with: the reference, beta, and whether its reward is the capped one."""

    reference: str
    beta: float
    capped: bool = False


@dataclass(frozen=True)
class CandidateRow:
    """One candidate as a table and a plot show it.

    Attributes:
        reference: its name.
        beta: of DPR, nats; a preview by contrastive decoding has the strength 1/beta.
        decoding: at which it leads most; None where no answers were judged.
        score: share of answers that the verifier accepts, or the agreement of the reward.
        lead: the number that decides: score less that of SFT at its best; None where no answers were judged.
        verdict: of the lead, after correction for all candidates; None likewise.
        n: prompts or pairs.
        capped: whether DPR with the capped reward is previewed, by subtractive decoding.
    """

    reference: str
    beta: float
    decoding: str | None
    score: Interval
    lead: Interval | None
    verdict: Verdict | None
    n: int
    capped: bool = False


@dataclass(frozen=True)
class ReferenceChoice:
    """How a run came to its reference and beta: `selection.json`.

    Attributes:
        mode: "fixed": given by the recipe; "auto": candidates were compared.
        criterion: what the score is.
        reason: why the choice was made.
        chosen: what DPR is run with; None: it is left out.
        baseline: SFT at its best on the same prompts; None where no answers were judged.
        rows: the candidates.
        warnings: that SFT is not finished, or a reference with the weights of the SFT model.
        decision: of `densepath.choice.decide`; None where the recipe had decided.
        findings: what it was made from.
    """

    mode: str
    criterion: str
    reason: str
    chosen: ChosenReference | None
    baseline: Interval | None = None
    rows: tuple[CandidateRow, ...] = ()
    warnings: tuple[str, ...] = ()
    decision: Decision | None = None
    findings: Findings | None = None

    __repr__ = brief
