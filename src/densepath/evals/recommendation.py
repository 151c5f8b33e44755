"""`recommend`: from the figures of a diagnosis to run DPR, do not, or it cannot be told; a pure function.

With a verifier: DPR is advised where a preview beats the SFT model at the *best* temperature of both, corrected for
all previews. A preview that beats SFT at temperature 1 alone has only sharpened it: a lower temperature is cheaper.
With preference pairs alone: where the reward agrees with them, and better than log pi_SFT alone does (what SFT prefers
already is sharpening again); with the warning that no preview was judged.
With neither it cannot be told: the reward asks for whatever SFT changed, and only ground truth knows if that is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from densepath.evals.diagnosis_records import Advice, Answers, Findings, Likelihood, Recommendation, RewardFigures
from densepath.records.estimates import Interval, Verdict
from densepath.stats.intervals import CONFIDENCE

WORTH_HAVING = 0.05
"""A lead over SFT below which more prompts are not asked for: a default of our own."""

STILL_FALLING = 0.05
"""Nats per token by which the last part of SFT must have lowered the held-out NLL to count as under-trained, scaled to
a whole run: a default of our own, set on the three regimes."""

LENGTH_CHANGE = 0.2
"""Share of the SFT model's length by which a preview must differ to be warned of."""

TRUNCATED_MORE = 0.1
"""Share of completions that a preview cuts off beyond those of SFT, to be warned of."""

NO_REWARD = 1e-4
"""Standard deviation of a token's reward, nats, below which two models are one up to rounding."""


def recommend(findings: Findings) -> Recommendation:
    """What to do, with the figures that decided it."""
    if all(max(abs(r.per_token.mean), r.per_token.sd) < NO_REWARD for r in findings.rewards):
        reason = (
            "The reward is zero: every candidate reference is the SFT model itself. There is nothing to extrapolate."
        )
        return Recommendation(Advice.DO_NOT, None, None, (reason,))
    if findings.verifier is not None:
        return _by_verifier(findings)
    if any(reward.preference is not None for reward in findings.rewards):
        return _by_preferences(findings)
    return _cannot_tell(findings)


# --- with a verifier ---------------------------------------------------------------------------------------------


def best_of_sft(findings: Findings) -> Answers:
    """The SFT model's answers at the temperature at which most are right."""
    return max(findings.sft, key=_value)


def _by_verifier(findings: Findings) -> Recommendation:
    best = best_of_sft(findings)
    everything = [*findings.sft, *findings.previews]
    if len({_value(answers) for answers in everything}) == 1 and _value(best) in (0.0, 1.0):
        which = "wrong" if _value(best) == 0 else "right"
        reason = (
            f"The verifier ({findings.verifier}) found every answer {which}, of SFT and of every preview, on "
            f"{findings.prompts} prompts: it tells nothing apart."
        )
        return Recommendation(Advice.CANNOT_TELL, None, None, (reason,), _warnings(findings, None))
    better = [p for p in findings.previews if p.against_best and p.against_best.verdict is Verdict.BETTER]
    top = max(better or findings.previews, key=_value)
    if better:
        reasons = (
            f"Contrastive decoding against reference {top.reference} at beta {1 / top.alpha:g} ({top.decoding}), a "
            f"preview of DPR, is right on {_value(top):.3f} of {findings.prompts} validation prompts; SFT at its best "
            f"({best.decoding}) on {_value(best):.3f}: {_lead(top)}, shown after correction for "
            f"{len(findings.previews)} previews.",
            *_agreement_reasons(findings, top.reference),
            *_harm_reasons(findings),
        )
        return Recommendation(Advice.RUN_DPR, top.reference, 1 / top.alpha, reasons, _warnings(findings, top))
    lead = f"The best, reference {top.reference} at beta {1 / top.alpha:g} ({top.decoding}), has {_value(top):.3f}"
    reasons = (
        f"No preview is shown to beat SFT at its best ({best.decoding}: {_value(best):.3f} on {findings.prompts} "
        f"validation prompts). {lead}: {_lead(top)}.",
        *_sharpening_reasons(findings, best),
        *_agreement_reasons(findings, None),
        *_harm_reasons(findings),
    )
    assert top.against_best is not None
    if top.against_best.difference.mean >= WORTH_HAVING:
        reason = (
            f"A lead of {top.against_best.difference.mean:+.3f} would be worth having, and {findings.prompts} prompts "
            f"cannot show it: give about {_prompts_needed(top, findings.prompts)} of them, or fewer candidates."
        )
        return Recommendation(Advice.CANNOT_TELL, None, None, (reason, *reasons), _warnings(findings, None))
    return Recommendation(Advice.DO_NOT, None, None, reasons, _warnings(findings, None))


def _value(answers: Answers) -> float:
    assert answers.value is not None
    return answers.value.mean


def _lead(answers: Answers) -> str:
    """`+0.213 [+0.150, +0.276]`: before correction, as every interval here."""
    assert answers.against_best is not None
    return _signed(answers.against_best.difference)


def _signed(interval: Interval, digits: int = 3) -> str:
    return f"{interval.mean:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def _plain(interval: Interval, digits: int = 2) -> str:
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _prompts_needed(answers: Answers, prompts: int) -> int:
    """Prompts at which a lead of this size is three standard errors, in two digits."""
    assert answers.against_best is not None
    lead = answers.against_best.difference
    error = (lead.high - lead.low) / (2 * _quantile(1))
    needed = prompts * (3 * error / lead.mean) ** 2
    return int(float(f"{max(needed, prompts + 1):.1e}"))


def _sharpening_reasons(findings: Findings, best: Answers) -> tuple[str, ...]:
    """Previews that beat SFT at temperature 1, and not at its best: the cheaper way there is its best decoding."""
    sampled = [p for p in findings.previews if p.temperature > 0 and _same(p) is Verdict.BETTER]
    if not sampled or best.temperature == 1:
        return ()
    top = max(sampled, key=_value)
    at_one = next(answers for answers in findings.sft if answers.temperature == top.temperature)
    return (
        f"It is sharpening, not improvement: at {top.decoding} the preview against reference {top.reference} is right "
        f"on {_value(top):.3f} and SFT on {_value(at_one):.3f}, but SFT has {_value(best):.3f} with "
        f"{'greedy decoding' if best.temperature == 0 else best.decoding}, which costs nothing.",
    )


def _same(answers: Answers) -> Verdict | None:
    return None if answers.against_same is None else answers.against_same.verdict


def _harm_reasons(findings: Findings) -> tuple[str, ...]:
    """One sentence for each reference whose preview is worse than SFT at the same decoding."""
    found = []
    for reward in findings.rewards:
        worse = [p for p in findings.previews if p.reference == reward.reference and _same(p) is Verdict.WORSE]
        if worse:
            worst = min(worse, key=lambda p: p.against_same.difference.mean if p.against_same else 0.0)
            assert worst.against_same is not None
            found.append(
                f"Reference {reward.reference} does harm: at beta {1 / worst.alpha:g} ({worst.decoding}) its preview "
                f"is right on {_value(worst):.3f}, {_signed(worst.against_same.difference)} against SFT at the same "
                "decoding. What SFT changed after this reference is not what makes answers right."
            )
    return tuple(found)


def _agreement_reasons(findings: Findings, reference: str | None) -> tuple[str, ...]:
    """Agreement of the advised reference's reward with what is true, or of each where none is advised."""
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


# --- with preference pairs alone, and with nothing -----------------------------------------------------------------


def _by_preferences(findings: Findings) -> Recommendation:
    agreement = {r.reference: r.preference for r in findings.rewards if r.preference is not None}
    best = max(agreement, key=lambda name: agreement[name].mean)
    (reason,) = _agreement_reasons(findings, None)
    unseen = (
        "No preview could be judged: pairs know only the errors that stand in them, and a reward that agrees with "
        "them may still ask for another. Give a verifier, or have answers of the preview judged."
    )
    others = _warnings(findings, None)
    if _is_shown(agreement[best], 0.5, len(agreement)):
        lead = next(r.preference_lead for r in findings.rewards if r.reference == best)
        assert lead is not None
        agrees = (
            f"The reward against reference {best} agrees with the preferences; its accuracy less that of log pi_SFT "
            f"alone: {_signed(lead.difference)}"
        )
        if lead.verdict is Verdict.BETTER:
            mildest = min(preview.alpha for preview in findings.previews)
            return Recommendation(Advice.RUN_DPR, best, 1 / mildest, (f"{agrees}.", reason), (unseen, *others))
        if lead.difference.mean < WORTH_HAVING:
            known = f"{agrees}. It asks for what SFT prefers already: a lower temperature gives that without training."
            return Recommendation(Advice.DO_NOT, None, None, (known, reason), (unseen, *others))
        pairs = f"{agrees}, which {findings.preferences} pairs do not show to be a lead. Give more."
        return Recommendation(Advice.CANNOT_TELL, None, None, (pairs, reason), (unseen, *others))
    if all(interval.high < 0.5 for interval in agreement.values()):
        against = "The reward prefers the rejected answers, whatever the reference."
        return Recommendation(Advice.DO_NOT, None, None, (against, reason), others)
    not_shown = "No reference's reward is shown to agree with the preferences."
    return Recommendation(Advice.CANNOT_TELL, None, None, (not_shown, reason), (unseen, *others))


def _is_shown(interval: Interval, chance: float, tried: int) -> bool:
    """Whether a figure is above chance at 95 %, Bonferroni-corrected; its standard error is read off its interval."""
    error = (interval.high - interval.low) / (2 * _quantile(1))
    return interval.low > chance and interval.mean - _quantile(tried) * error > chance


def _quantile(tried: int) -> float:
    """Normal quantile of a two-sided 95 % interval for this many figures at once."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * tried))


def _cannot_tell(findings: Findings) -> Recommendation:
    mean = max(r.per_completion.mean for r in findings.rewards)
    return Recommendation(
        Advice.CANNOT_TELL,
        None,
        None,
        (
            "There is no ground truth here: give a verifier, or preference pairs. The reward asks for whatever SFT "
            "changed, good or bad, and its own size (up to "
            f"{mean:+.2f} nats per completion on SFT's samples) and its rise are no evidence: it rises in every "
            "failure.",
        ),
        _warnings(findings, None),
    )


# --- what else was found ---------------------------------------------------------------------------------------------


def _warnings(findings: Findings, advised: Answers | None) -> tuple[str, ...]:
    return (*_training_warnings(findings), *_drift_warnings(findings, advised), *_length_warnings(findings.rewards))


def _training_warnings(findings: Findings) -> tuple[str, ...]:
    """SFT that is still learning, or that has begun to overfit, by the held-out NLL of its last checkpoint."""
    last = last_checkpoint(findings.likelihoods)
    own = next((one for one in findings.likelihoods if one.reference is None), None)
    if last is None or last.change is None or own is None:
        return ()
    name = f"reference {last.reference}"
    rate = last.change.mean / (1 - float(last.reference or 0))
    figures = f"{last.nll.mean:.3f} at {name}, {own.nll.mean:.3f} at its end (nats per token)"
    if last.change.low > 0 and rate > STILL_FALLING:
        return (
            f"Train longer first: the held-out NLL was still falling when SFT ended ({figures}). Continued SFT beats "
            "DPR where SFT is under-trained.",
        )
    if last.change.high < 0:
        return (f"SFT has begun to overfit: the held-out NLL rose at its end ({figures}). Stop it earlier.",)
    return ()


def last_checkpoint(likelihoods: Sequence[Likelihood]) -> Likelihood | None:
    """The latest checkpoint of SFT, a reference named by its fraction; None if none is of its second half."""
    found = []
    for one in likelihoods:
        try:
            fraction = float(one.reference or "")
        except ValueError:
            continue
        if one.alpha is None and 0.5 <= fraction < 1:
            found.append((fraction, one))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _drift_warnings(findings: Findings, advised: Answers | None) -> tuple[str, ...]:
    """Previews at temperature 1 whose length drifts, or that no longer end: the advised one, or all."""
    at_one = next((answers for answers in findings.sft if answers.temperature == 1), None)
    if at_one is None:
        return ()
    found = []
    for preview in findings.previews:
        if preview.temperature != 1 or preview.longer is None:
            continue
        if advised is not None and (preview.reference, preview.alpha) != (advised.reference, advised.alpha):
            continue
        parts = []
        drift = preview.longer.mean / at_one.length.mean
        if abs(drift) > LENGTH_CHANGE and (preview.longer.low > 0 or preview.longer.high < 0):
            parts.append(f"its answers have {preview.length.mean:.1f} tokens, those of SFT {at_one.length.mean:.1f}")
        if preview.truncated > at_one.truncated + TRUNCATED_MORE:
            parts.append(f"{preview.truncated:.0%} of them do not end, of SFT's {at_one.truncated:.0%}")
        if parts:
            found.append(f"Reference {preview.reference} at beta {1 / preview.alpha:g}: {'; '.join(parts)}.")
    return tuple(found)


def _length_warnings(rewards: Sequence[RewardFigures]) -> tuple[str, ...]:
    strong = [r for r in rewards if r.length_correlation is not None and abs(r.length_correlation) > 0.5]
    if not strong:
        return ()
    parts = "; ".join(f"{r.reference}: {r.length_correlation:+.2f}" for r in strong)
    return (
        f"A completion's reward goes with its length (correlation by reference, {parts}): watch the length in DPR.",
    )
