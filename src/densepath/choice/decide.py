"""`decide`: from findings alone to a candidate, none of them, or that it cannot be told. The one rule, and pure.

With a verifier: a candidate is taken where it beats the SFT model at the *best* temperature of both, paired over
prompts and corrected for all candidates. One that beats SFT at temperature 1 alone has only sharpened it: a lower
temperature is cheaper. A lead worth having that too few prompts show cannot be told, and its candidate is named.
With preference pairs alone: where the reward agrees with them, and better than log pi_SFT alone does (what SFT prefers
already is sharpening again); with the warning that no answer was judged.
With less it cannot be told: the reward asks for whatever SFT changed, and only ground truth knows if that is good. The
reference whose reward tells demonstrations best from altered ones, or from SFT's own answers, is named; if none tells
them apart, there is nothing to teach.
Whatever the candidates say, SFT that is not finished goes on first (`choice.training`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

from densepath.choice.training import train_on
from densepath.choice.warnings import all_warnings
from densepath.records.choice import (
    CHANCE,
    FEWEST,
    UNITS,
    Answer,
    Answers,
    Criterion,
    Decision,
    Findings,
    RewardFigures,
)
from densepath.records.estimates import LEVEL, Interval, Verdict

WORTH_HAVING = 0.05
"""A lead over SFT below which more prompts are not asked for: a default of our own."""

NO_REWARD = 1e-4
"""Standard deviation of a token's reward, nats, below which two models are one up to rounding."""


def decide(findings: Findings) -> Decision:
    """A candidate, none of them, that it cannot be told, or that SFT is to go on first, with the figures that decided.

    Where SFT is not finished that is the answer; what else was found follows it, and what it names stays named.

    Args:
        findings: what `measure` or `arm_findings` found.
    """
    decision, unfinished = _of_candidates(findings), train_on(findings.likelihoods)
    if unfinished is None:
        return decision
    return dataclasses.replace(decision, answer=Answer.TRAIN_ON, reasons=(unfinished, *decision.reasons))


def _of_candidates(findings: Findings) -> Decision:
    """What the candidates say, whether SFT is finished or not."""
    if findings.rewards and all(max(abs(r.per_token.mean), r.per_token.sd) < NO_REWARD for r in findings.rewards):
        reason = (
            "The reward is zero: every candidate reference is the SFT model itself. There is nothing to extrapolate."
        )
        return Decision(Answer.NONE, None, None, (reason,))
    if findings.criterion is Criterion.ANSWERS and findings.candidates:
        return _by_answers(findings)
    pairs = findings.criterion is Criterion.PREFERENCE
    counts = [one.value.n for one in findings.agreement if one.criterion is findings.criterion]
    if (n := findings.preferences if pairs else min(counts, default=FEWEST)) < FEWEST:
        return _too_few(findings, n, "pairs" if pairs else "prompts")
    if findings.criterion is Criterion.PREFERENCE and findings.rewards:
        return _by_preferences(findings)
    if findings.criterion in UNITS:
        return _by_agreement(findings, findings.criterion)
    return Decision(Answer.CANNOT_TELL, None, None, (_no_truth(findings),), all_warnings(findings, None))


def _too_few(findings: Findings, n: int, units: str, *reasons: str) -> Decision:
    few = f"{n} {units} show nothing, whatever they say: give at least {FEWEST}."
    return Decision(Answer.CANNOT_TELL, None, None, (few, *reasons), all_warnings(findings, None))


# --- by judged answers -----------------------------------------------------------------------------------------------


def best_of_sft(findings: Findings) -> Answers:
    """The SFT model's answers at the temperature at which most are right."""
    return max(findings.sft, key=_value)


def best_candidate(findings: Findings) -> Answers | None:
    """The candidate that is taken, or that looks best where none is shown to be better; None without judged ones."""
    judged = [one for one in findings.candidates if one.value is not None]
    better = [one for one in judged if one.against_best and one.against_best.verdict is Verdict.BETTER]
    return max(better or judged, key=_value) if judged else None


def _by_answers(findings: Findings) -> Decision:
    best, top = best_of_sft(findings), best_candidate(findings)
    assert top is not None
    assert top.against_best is not None
    everything = [*findings.sft, *findings.candidates]
    if len({_value(answers) for answers in everything}) == 1 and _value(best) in (0.0, 1.0):
        which = "wrong" if _value(best) == 0 else "right"
        reason = (
            f"The verifier ({findings.verifier}) found every answer {which}, of SFT and of every candidate, on "
            f"{findings.prompts} prompts: it tells nothing apart."
        )
        return Decision(Answer.CANNOT_TELL, None, None, (reason,), all_warnings(findings, None))
    lead = top.against_best
    if lead.verdict is Verdict.BETTER:
        tried = len(findings.candidates)
        shown = "shown" if tried == 1 else f"shown after correction for {tried} candidates"
        reasons = (
            f"{_described(top)} is right on {_value(top):.3f} of {findings.prompts} validation prompts; SFT at its "
            f"best ({best.decoding}) on {_value(best):.3f}: {_signed(lead.difference)}, {shown}.",
            *_agreement_reasons(findings, top.reference),
            *_harm_reasons(findings),
        )
        return _of(Answer.CANDIDATE, top, reasons, all_warnings(findings, top))
    reasons = (
        f"No candidate is shown to beat SFT at its best ({best.decoding}: {_value(best):.3f} on {findings.prompts} "
        f"validation prompts). The best, {top.label}, has {_value(top):.3f}: {_signed(lead.difference)}.",
        *_sharpening_reasons(findings, best),
        *_agreement_reasons(findings, None),
        *_harm_reasons(findings),
    )
    if lead.difference.mean >= WORTH_HAVING:
        reason = (
            f"A lead of {lead.difference.mean:+.3f} would be worth having, and {findings.prompts} prompts cannot show "
            f"it: give about {_prompts_needed(top, best, len(findings.candidates))} of them"
            f"{', or fewer candidates' if len(findings.candidates) > 1 else ''}."
        )
        return _of(Answer.CANNOT_TELL, top, (reason, *reasons), all_warnings(findings, None))
    if findings.prompts < FEWEST:
        return _too_few(findings, findings.prompts, "prompts", *reasons)
    return _of(Answer.NONE, top, reasons, all_warnings(findings, None))


def _of(answer: Answer, top: Answers, reasons: tuple[str, ...], warnings: tuple[str, ...]) -> Decision:
    """A decision by the lead of the best candidate, which is named unless there is none."""
    assert top.against_best is not None
    named = answer is not Answer.NONE
    return Decision(
        answer,
        reference=top.reference if named else None,
        beta=top.beta if named and top.reference is not None else None,
        reasons=reasons,
        warnings=warnings,
        policy=top.policy if named else None,
        decoding=top.decoding if named else None,
        figure=top.against_best.difference,
        p=top.against_best.p,
        p_holm=top.against_best.p_holm,
        capped=named and top.capped,
    )


def _described(answers: Answers) -> str:
    if answers.reference is None:
        return f"{answers.policy} ({answers.decoding})"
    if answers.capped:
        return (
            f"Subtractive decoding against reference {answers.reference} ({answers.decoding}), a preview of DPR with "
            "the capped reward,"
        )
    return (
        f"Contrastive decoding against reference {answers.reference} {answers.strength} "
        f"({answers.decoding}), a preview of DPR,"
    )


def _value(answers: Answers) -> float:
    assert answers.value is not None
    return answers.value.mean


def _signed(interval: Interval, digits: int = 3) -> str:
    """`+0.213 [+0.150, +0.276]`: before correction, as every interval here."""
    return f"{interval.mean:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def _plain(interval: Interval, digits: int = 2) -> str:
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _prompts_needed(top: Answers, best: Answers, tried: int) -> int:
    """Prompts at which a lead of this size is three standard errors, in two digits.

    And as many differ as the sign-flip test needs where all speak for one: of k it has p = 2^(1 - k), times the
    candidates tried. The interval of few or equal differences has no width, and asks for none.
    """
    assert top.against_best is not None
    lead, prompts = top.against_best.difference, len(top.verdicts)
    error = (lead.high - lead.low) / (2 * _quantile(1))
    differing = fmean(mine != other for mine, other in zip(top.verdicts, best.verdicts, strict=True))
    fewest = math.ceil(math.ceil(1 + math.log2(tried / LEVEL)) / differing)
    needed = max(prompts * (3 * error / lead.mean) ** 2, fewest)
    return max(int(float(f"{needed:.1e}")), prompts + 1)


def _sharpening_reasons(findings: Findings, best: Answers) -> tuple[str, ...]:
    """Candidates that beat SFT at temperature 1, and not at its best: the cheaper way there is its best decoding."""
    sampled = [p for p in findings.candidates if p.temperature > 0 and _same(p) is Verdict.BETTER]
    if not sampled or best.temperature == 1:
        return ()
    top = max(sampled, key=_value)
    at_one = next(answers for answers in findings.sft if answers.temperature == top.temperature)
    what = f"the preview against reference {top.reference}" if top.reference is not None else top.who
    return (
        f"It is sharpening, not improvement: at {top.decoding} {what} is right on {_value(top):.3f} and SFT on "
        f"{_value(at_one):.3f}, but SFT has {_value(best):.3f} with "
        f"{'greedy decoding' if best.temperature == 0 else best.decoding}, which costs nothing.",
    )


def _same(answers: Answers) -> Verdict | None:
    return None if answers.against_same is None else answers.against_same.verdict


def _harm_reasons(findings: Findings) -> tuple[str, ...]:
    """One sentence for each reference whose preview is worse than SFT at the same decoding."""
    found = []
    for reward in findings.rewards:
        worse = [p for p in findings.candidates if p.reference == reward.reference and _same(p) is Verdict.WORSE]
        if worse:
            worst = min(worse, key=lambda p: p.against_same.difference.mean if p.against_same else 0.0)
            assert worst.against_same is not None
            found.append(
                f"Reference {reward.reference} does harm: {worst.strength} ({worst.decoding}) its preview "
                f"is right on {_value(worst):.3f}, {_signed(worst.against_same.difference)} against SFT at the same "
                "decoding. What SFT changed after this reference is not what makes answers right."
            )
    return tuple(found)


def _agreement_reasons(findings: Findings, reference: str | None) -> tuple[str, ...]:
    """Agreement of the chosen reference's reward with what is true, or of each where none is chosen."""
    shown = [r for r in findings.rewards if reference in (None, r.reference)]
    kinds = (
        ("AUROC of the mean reward for right against wrong answers of SFT", [r.verifier for r in shown]),
        (f"Accuracy of the mean reward on {findings.preferences} preference pairs", [r.preference for r in shown]),
    )
    return tuple(
        f"{what}, chance 0.5, by reference: {_by_reference(shown, figures)}."
        for what, figures in kinds
        if any(figure is not None for figure in figures)
    )


def _by_reference(rewards: Sequence[RewardFigures], figures: Sequence[Interval | None]) -> str:
    return "; ".join(
        f"{reward.reference}: {_plain(figure)}"
        for reward, figure in zip(rewards, figures, strict=True)
        if figure is not None
    )


# --- by the reward alone ---------------------------------------------------------------------------------------------


def _by_preferences(findings: Findings) -> Decision:
    agreement = {r.reference: r.preference for r in findings.rewards if r.preference is not None}
    best = max(agreement, key=lambda name: agreement[name].mean)
    (reason,) = (text for text in _agreement_reasons(findings, None) if text.startswith("Accuracy"))
    unseen = (
        "No preview could be judged: pairs know only the errors that stand in them, and a reward that agrees with "
        "them may still ask for another. Give a verifier, or have answers of the preview judged."
    )
    others = all_warnings(findings, None)
    figure = agreement[best]
    if _is_shown(figure, 0.5, len(agreement)):
        lead = next(r.preference_lead for r in findings.rewards if r.reference == best)
        assert lead is not None
        figure = lead.difference
        agrees = (
            f"The reward against reference {best} agrees with the preferences; its accuracy less that of log pi_SFT "
            f"alone: {_signed(figure)}"
        )
        if lead.verdict is Verdict.BETTER:
            mildest = max(findings.betas, default=None)
            return Decision(Answer.CANDIDATE, best, mildest, (f"{agrees}.", reason), (unseen, *others), figure=figure)
        if figure.mean < WORTH_HAVING:
            known = f"{agrees}. It asks for what SFT prefers already: a lower temperature gives that without training."
            return Decision(Answer.NONE, None, None, (known, reason), (unseen, *others), figure=figure)
        pairs = f"{agrees}, which {findings.preferences} pairs do not show to be a lead. Give more."
        return Decision(Answer.CANNOT_TELL, None, None, (pairs, reason), (unseen, *others), figure=figure)
    if all(interval.high < 0.5 for interval in agreement.values()):
        against = "The reward prefers the rejected answers, whatever the reference."
        return Decision(Answer.NONE, None, None, (against, reason), others, figure=figure)
    not_shown = "No reference's reward is shown to agree with the preferences."
    return Decision(Answer.CANNOT_TELL, None, None, (not_shown, reason), (unseen, *others), figure=figure)


def _is_shown(interval: Interval, chance: float, tried: int) -> bool:
    """Whether a figure is above chance at 95 %, Bonferroni-corrected: the lower side of its interval is stretched."""
    return interval.mean - (interval.mean - interval.low) * _quantile(tried) / _quantile(1) > chance


def _quantile(tried: int) -> float:
    """Normal quantile of a two-sided 95 % interval for this many figures at once."""
    return NormalDist().inv_cdf(1 - LEVEL / (2 * tried))


def _by_agreement(findings: Findings, criterion: Criterion) -> Decision:
    """The reference whose reward agrees best: one to try, or, where none is above chance, nothing to teach.

    Pairs that do not show it leave it open, as in `_by_preferences`: they may not hold what SFT learned.
    """
    best = max((one for one in findings.agreement if one.criterion is criterion), key=lambda one: one.value.mean)
    what = f"{UNITS[criterion]} ({criterion.value}) of {_plain(best.value, 3)}"
    chance = CHANCE[criterion]
    warnings = all_warnings(findings, None)
    if best.low > chance:
        reason = f"Reference {best.reference} has the highest {what}, above {chance:g} with 90 % confidence."
        beta = findings.betas[0] if findings.betas else None
        reasons = (reason, _no_truth(findings))
        return Decision(Answer.CANNOT_TELL, best.reference, beta, reasons, warnings, figure=best.value)
    reason = f"No reference's reward is shown to be above {chance:g}; the best, {best.reference}, has {what}."
    is_open = criterion is Criterion.PREFERENCE and best.value.high >= chance
    answer = Answer.CANNOT_TELL if is_open else Answer.NONE
    return Decision(answer, None, None, (reason,), warnings, figure=best.value)


def _no_truth(findings: Findings) -> str:
    size = ""
    if findings.rewards:
        mean = max(reward.per_completion.mean for reward in findings.rewards)
        size = f" (up to {mean:+.2f} nats per completion on SFT's samples)"
    return (
        "There is no judged answer here: give a verifier, or preference pairs. The reward asks for whatever SFT "
        f"changed, good or bad, and its own size{size} and its rise are no evidence: it rises in every failure."
    )
